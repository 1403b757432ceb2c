"""What the command lines share: flags, progress, interruptions, one line for a user's mistake."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TextIO

from absl import app, flags
from tqdm import tqdm

from support.files import UserError

SECONDS_BETWEEN_LINES = 30  # of a progress display that is not on a terminal


def on_terminal() -> bool:
    """Whether a person sees what is printed, as it is printed."""
    return sys.stdout.isatty()


class Progress(tqdm):
    """tqdm's bar on a terminal; elsewhere a line now and then, and one at the end.

    Args:
        description: what is going on.
        total: how many there will be; None where that is not known.
        done: how many there are already.
        unit: what is counted, in the singular.
        scaled: large numbers are shown in thousands (k), millions (M), ...
        quiet: nothing is shown.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        done: int = 0,
        unit: str = "sketch",
        scaled: bool = False,
        quiet: bool = False,
    ):
        self.as_bar = on_terminal()
        super().__init__(
            desc=description,
            total=total,
            initial=done,
            unit=f" {unit}",
            unit_scale=scaled,
            file=sys.stdout,
            dynamic_ncols=self.as_bar,
            ncols=None if self.as_bar else 120,
            mininterval=0.1 if self.as_bar else SECONDS_BETWEEN_LINES,
            # Without a bar the first line would say that nothing is done yet.
            delay=0 if self.as_bar else SECONDS_BETWEEN_LINES,
            miniters=1,
            disable=quiet,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Shows the present state: called by tqdm."""
        if self.as_bar:
            super().display(msg, pos)
        else:
            print(msg or str(self), flush=True)

    def close(self) -> None:
        """Shows the last state and ends the display."""
        if self.as_bar or self.disable:
            super().close()
            return
        self.disable = True
        with contextlib.suppress(KeyError):
            self._instances.remove(self)
        print(str(self), flush=True)


class Interruption:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the present update."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested = False

    def __enter__(self) -> Self:
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # Not on stdout, which the progress bar may be writing to at this very moment.
        message = "\nStopping after this update; once more stops at once, without saving."
        print(message, file=sys.stderr, flush=True)
        for number in self.before:
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """An error inside ends the process as in `run`, but skips what libraries do at the end."""
    try:
        yield
    except (UserError, OSError) as error:
        _end_at_once(_line(error), 1)
    except KeyboardInterrupt:
        _end_at_once(_interrupted(), 130)
    except Exception:
        _end_at_once(traceback.format_exc(), 1)


class _LastingStream:
    """A text stream that goes on without a reader: what is written after its pipe broke is lost.

    A run must not end because its output was piped into `head`.

    Args:
        stream: with a file descriptor.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or drops it."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop_all()
            return len(text)

    def flush(self) -> None:
        """Flushes what was written, or drops it."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop_all()

    def _drop_all(self) -> None:
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, self._stream.fileno())
        os.close(null_device)


def _prepare_streams() -> None:
    """Makes standard streams that can be written to, whatever the caller closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives
        setattr(sys, name, _LastingStream(stream))


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; the process ends with its outcome.

    A wrong flag, a `UserError` or an error of the operating system (a full disk, no permission)
    becomes one line on standard error (on standard output, if that is closed) and exit status 1;
    Ctrl-C exits with 130. Output that is no longer read does not stop a command.
    """
    script = os.path.basename(sys.argv[0])
    no_stderr = sys.stderr is None
    _prepare_streams()
    if no_stderr:
        sys.stderr = sys.stdout

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            sys.exit(f"{script}: {error}")

    def guarded(argv):
        try:
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} is not an option; options are written --name=value")
            main()
        except (UserError, OSError) as error:
            sys.exit(_line(error))
        except KeyboardInterrupt:
            print(_interrupted(), file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def _end_at_once(text: str, status: int) -> NoReturn:
    print(text, file=sys.stderr, flush=True)
    os._exit(status)


def _interrupted() -> str:
    return f"{os.path.basename(sys.argv[0])}: interrupted"


def _line(error: UserError | OSError) -> str:
    script = os.path.basename(sys.argv[0])
    if isinstance(error, UserError):
        return f"{script}: {error}"
    where = f"{error.filename}: " if error.filename else ""
    return f"{script}: {where}{error.strerror or error}"
