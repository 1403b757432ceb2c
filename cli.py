"""What the command lines share: a quiet start, interruptions, one line for a user's mistake.

Import this before anything that imports Keras: loading TensorFlow writes notes about missing
GPUs and instruction sets to the terminal, below the level that its own settings reach.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags

from hparams import UserError


@contextlib.contextmanager
def _native_stderr_hidden():
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _plain_interrupt():
    """Lets Ctrl-C end the process as it would any program, not with a traceback."""
    # Only a main thread may handle signals, and who ignores Ctrl-C or handles it goes on doing so.
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
# TensorFlow's caching allocator: large tensors would else be mapped and zeroed anew at each step.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
with _plain_interrupt(), _native_stderr_hidden():
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.list_physical_devices()
        # Its advice on retracing, for a model that meets a few shapes of batches.
        tensorflow.get_logger().setLevel("ERROR")
    # Its remarks on kinds of devices that it did not find.
    logging.getLogger("jax").setLevel(logging.WARNING)


def _line(error: UserError | OSError) -> str:
    script = os.path.basename(sys.argv[0])
    if isinstance(error, UserError):
        return f"{script}: {error}"
    where = f"{error.filename}: " if error.filename else ""
    return f"{script}: {where}{error.strerror or error}"


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """An error inside ends the process as in `run`, but without what libraries do at the end."""
    try:
        yield
    except (UserError, OSError) as error:
        _end_at_once(_line(error), 1)
    except KeyboardInterrupt:
        _end_at_once(_interrupted(), 130)
    except Exception:
        _end_at_once(traceback.format_exc(), 1)


def _end_at_once(text: str, status: int) -> NoReturn:
    print(text, file=sys.stderr, flush=True)
    os._exit(status)


def _interrupted() -> str:
    return f"{os.path.basename(sys.argv[0])}: interrupted"


def on_terminal() -> bool:
    """Whether a person sees what is printed, as it is printed."""
    return sys.stdout.isatty()


class Progress:
    """A line that is rewritten on a terminal; elsewhere only the last is printed.

    Args:
        what: is counted, in the plural.
        total: how many there will be.
        done: how many there are already.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done, self.before = what, total, done, done
        self.started, self.shown_at = time.monotonic(), 0.0

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        now = time.monotonic()
        finished = self.done == self.total
        if now - self.shown_at < 0.5 and not finished:
            return
        self.shown_at = now
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        line = f"{self.done}/{self.total} {self.what}, {rate:.1f} a second"
        if on_terminal():
            print(f"\r{line} ", end="\n" if finished else "", flush=True)
        elif finished:
            print(line, flush=True)


class Interruption:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the present update."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested = False

    def __enter__(self):
        # Only a main thread may handle signals; elsewhere the caller's handling stays. So does an
        # ignored Ctrl-C: a shell that puts a run into the background arranges for that.
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {
                number: signal.signal(number, self._request)
                for number in self.SIGNALS
                if signal.getsignal(number) not in (None, signal.SIG_IGN)
            }
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _request(self, number, frame):
        self.requested = True
        # Not on stdout, which the progress bar may be writing to at this very moment.
        said = "\nStopping after this update; once more stops at once, without saving."
        print(said, file=sys.stderr, flush=True)
        for number in self.before:
            signal.signal(number, signal.default_int_handler)


def make_deterministic(seed: int) -> None:
    """Makes runs on a CPU repeatable to the last bit."""
    # JAX is so by itself, and Keras's seeding would load TensorFlow beside it if it is there.
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        keras.utils.set_random_seed(seed)
        if not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; the process ends with its outcome.

    A wrong flag, a `UserError` or an error of the operating system (a full disk, no permission)
    becomes one line on standard error and exit status 1; Ctrl-C exits with 130.
    """
    script = os.path.basename(sys.argv[0])
    if sys.stdout is None:  # closed by whoever called
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            sys.exit(f"{script}: {error}")

    def guarded(argv):
        try:
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} is no option; options are written --name=value")
            main()
        except (UserError, OSError) as error:
            sys.exit(_line(error))
        except KeyboardInterrupt:
            print(_interrupted(), file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)
