"""The backend: Keras imported quietly, operations made repeatable, functions compiled.

Every module takes `keras` and `ops` from here, so that it does not matter which is imported
first: loading TensorFlow writes notes about missing GPUs and instruction sets to the terminal,
below the level that its own settings reach.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed by whoever started this process
        yield
        return
    null_device = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_device, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
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


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow's caching allocator: without it large tensors are mapped and zeroed at each step.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
with _plain_interrupt(), _native_stderr_hidden():
    import keras
    from keras import ops  # noqa: F401, for all other modules

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.list_physical_devices()
        # Its advice on retracing, for a model that meets a few shapes of batches.
        tensorflow.get_logger().setLevel("ERROR")
    # Its notes on kinds of devices that it did not find.
    logging.getLogger("jax").setLevel(logging.WARNING)


def has_gpu() -> bool:
    """Whether the backend uses a GPU."""
    # Asking JAX for GPUs where there are none is an error.
    return any(name.lower().startswith("gpu") for name in keras.distribution.list_devices())


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


class MixedLayer(keras.layers.Layer):
    """A layer that chooses itself what is computed in its policy's compute type.

    Keras would cast all inputs and all variables, and so also what needs float32's digits.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def add_weight(self, **kwargs):
        """As Keras's, and read as float32 everywhere."""
        return super().add_weight(autocast=False, **kwargs)

    def to_compute_dtype(self, x):
        """`x` in the compute type, for `mixed_matmul`."""
        return ops.cast(x, self.compute_dtype)


def mixed_matmul(x, kernel):
    """`x` times `kernel`, made in the kernel's type, of `x`'s type."""
    return ops.cast(ops.matmul(ops.cast(x, kernel.dtype), kernel), x.dtype)
