"""The backend: Keras imported quietly, operations made repeatable, functions compiled.

Every module takes `keras` and `ops` from here, so that it does not matter which is imported
first: loading TensorFlow writes notes about missing GPUs and instruction sets to the terminal,
below the level that its own settings reach.
"""

import contextlib
import functools
import glob
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

BACKENDS = ("tensorflow", "jax")


@contextlib.contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3":  # the user wants to see more
        yield
        return
    if sys.stderr is not None:  # closed by the caller
        sys.stderr.flush()
    stderr, null_device = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_device, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null_device)


@contextlib.contextmanager
def _plain_interrupt() -> Iterator[None]:
    """Lets Ctrl-C end the process as it would any program, not with a traceback."""
    # Only a main thread may handle signals; a caller that handles or ignores Ctrl-C still does.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail(message: str) -> NoReturn:
    """Ends a command of this program with one line; raises ImportError in other programs."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script and Path(script).resolve().is_relative_to(Path(__file__).resolve().parents[1]):
        sys.exit(f"{Path(script).name}: {message}")
    raise ImportError(message)


# TensorFlow's caching allocator: without it large tensors are mapped and zeroed at each step.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
with _plain_interrupt(), _native_stderr_hidden():
    try:
        import keras
        from keras import ops  # noqa: F401, for all other modules
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        _fail(
            f"{missing} is not installed; install it (requirements.txt), or set KERAS_BACKEND to "
            f"a backend that is: {' or '.join(BACKENDS)}"
        )
    except ValueError as error:  # a backend that Keras does not know
        _fail(f"{error}; set KERAS_BACKEND to {' or '.join(BACKENDS)}")
    if keras.backend.backend() not in BACKENDS:
        _fail(
            f"the Keras backend {keras.backend.backend()} can't be used; set KERAS_BACKEND to "
            f"{' or '.join(BACKENDS)}"
        )
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.list_physical_devices()
        # Its advice on retracing, for a model that meets a few shapes of batches.
        tensorflow.get_logger().setLevel("ERROR")
        # A GPU's fast products would round float32 inputs to 11 bits.
        tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    else:
        import jax

        if jax.config.jax_default_matmul_precision is None:  # the user has not set it
            jax.config.update("jax_default_matmul_precision", "highest")
    # Its notes on kinds of devices that it did not find.
    logging.getLogger("jax").setLevel(logging.WARNING)


@functools.cache
def on_cpu() -> bool:
    """Whether Keras computes on a CPU."""
    return all(name.lower().startswith("cpu") for name in keras.distribution.list_devices())


def has_gpu() -> bool:
    """Whether the backend uses a GPU."""
    # Asking JAX for GPUs where there are none is an error.
    return any(name.lower().startswith("gpu") for name in keras.distribution.list_devices())


def why_no_gpu() -> str:
    """Why the backend does not use a GPU that the machine has; "" where there is nothing to say."""
    if has_gpu() or not _machine_has_gpu():
        return ""
    if keras.backend.backend() == "jax":
        reason = 'a JAX without CUDA is installed; see docs/jax.md for "jax[cuda13]"'
    else:
        reason = _tensorflow_says() or 'see "tensorflow[and-cuda]" in the README'
    return f"this machine has a GPU, but {keras.backend.backend()} does not use it: {reason}"


def _tensorflow_says() -> str:
    """What TensorFlow writes about GPUs as it loads, at a level that is hidden here."""
    done = subprocess.run(
        [sys.executable, "-c", "import tensorflow; tensorflow.config.list_physical_devices()"],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stderr.splitlines() if re.search(r"cuda|gpu|dlopen", line, re.I)]
    # Without the time, level and place in the source that begin a line.
    return re.sub(r"^.*?\] ", "", found[0]) if found else ""


def _machine_has_gpu() -> bool:
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd"))


def make_deterministic(seed: int) -> None:
    """Makes runs on a CPU repeatable to the last bit."""
    # JAX is so by itself, and Keras's seeding would load TensorFlow too if it is installed.
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        keras.utils.set_random_seed(seed)
        if not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()


def compiled(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """`function`, which reads the model's variables, compiled for the backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=True, autograph=False)
    if backend == "jax":
        import jax

        variables = model.weights

        @jax.jit
        def run(values, *args):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(*args)

        return lambda *args: run([v.value for v in variables], *args)
    return function
