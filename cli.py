"""What the command lines share: a quiet start, and one line for a user's mistake.

Import this before anything that imports Keras: loading TensorFlow writes notes about missing
GPUs and instruction sets to the terminal, below the level that its own settings reach.
"""

import contextlib
import os
import sys
from collections.abc import Callable

from absl import app

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


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow's caching allocator: large tensors would else be mapped and zeroed anew at each step.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
with _native_stderr_hidden():
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.list_physical_devices()


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; the process ends with its outcome.

    A `UserError` or an error of the operating system (a full disk, no permission) becomes one
    line on standard error and exit status 1; Ctrl-C exits with 130.
    """

    def guarded(argv):
        script = os.path.basename(argv[0])
        try:
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} is no option; options are written --name=value")
            main()
        except (UserError, OSError) as error:
            print(f"{script}: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print(f"{script}: interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(guarded)
