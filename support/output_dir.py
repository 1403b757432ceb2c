"""A directory that a command writes: one writer at a time, who replaces only its own files."""

import contextlib
import fnmatch
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock

from support.files import UserError, read_json, write_json

LOCK_NAME = ".lock"
WRITER_NAME = ".writer.json"  # who holds the lock
MANIFEST_NAME = ".manifest.json"  # which names belong to which kind of content


@contextlib.contextmanager
def write_to(
    directory: str | Path,
    content: str,
    names: Sequence[str],
    *,
    is_ours: Callable[[Path], bool] = lambda path: False,
) -> Iterator[None]:
    """Takes a directory for writing; it is made if it is not there.

    A manifest in the directory tells which files hold what. A file whose name would be written,
    but which the manifest does not have, is another program's: nothing is touched then.

    Args:
        directory: to write to.
        content: what is written: "model", "samples", "classifier" or "data".
        names: of all files that may be written, as patterns of `fnmatch`.
        is_ours: whether a file that no manifest has was written by an earlier release.

    Raises:
        UserError: another process writes there; a file is another program's; no permission.
    """
    directory = Path(directory)
    made = _make(directory)
    try:
        with _locked(directory):
            try:
                _claim(directory, content, names, is_ours)
            except UserError:
                if not (directory / MANIFEST_NAME).exists():  # nothing here is this program's
                    (directory / LOCK_NAME).unlink(missing_ok=True)
                raise
            yield
    finally:
        if made:  # and left empty, by an error before anything was written
            with contextlib.suppress(OSError):
                if {path.name for path in directory.iterdir()} <= {LOCK_NAME, MANIFEST_NAME}:
                    for name in (LOCK_NAME, MANIFEST_NAME):
                        (directory / name).unlink(missing_ok=True)
                    directory.rmdir()


def _make(directory: Path) -> bool:
    """Makes a directory; whether it was not there."""
    try:
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        return made
    except OSError as error:
        raise UserError(f"{directory}: can't be written to ({error.strerror})") from error


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the directory's lock, which the system takes back when the process ends."""
    lock = filelock.FileLock(directory / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"{directory}: {_writer(directory)} writes there now; wait for its end or choose "
            "another directory"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{directory}: can't be locked for writing ({reason})") from error
    try:
        writer = {"host": socket.gethostname(), "process": os.getpid()}
        write_json(directory / WRITER_NAME, writer)
        yield
    finally:
        with contextlib.suppress(OSError):
            (directory / WRITER_NAME).unlink(missing_ok=True)
        lock.release()


def _writer(directory: Path) -> str:
    """Who holds the lock, for a message."""
    try:
        writer = json.loads((directory / WRITER_NAME).read_text())
        return f"process {int(writer['process'])} on {writer['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another process"


def _claim(
    directory: Path, content: str, names: Sequence[str], is_ours: Callable[[Path], bool]
) -> None:
    """Notes in the manifest which names are this content's; refuses other files of these names."""
    path = directory / MANIFEST_NAME
    manifest = read_json(path) if path.exists() else {}
    names_of = manifest.values() if isinstance(manifest, dict) else [None]
    if not all(isinstance(n, list) and all(isinstance(x, str) for x in n) for n in names_of):
        raise UserError(f"{path}: damaged; remove it if you can do without the files here")
    own = manifest.get(content, [])
    for file in sorted(directory.iterdir()):
        written = any(fnmatch.fnmatchcase(file.name, name) for name in names)
        if written and not any(fnmatch.fnmatchcase(file.name, name) for name in own):
            others = [kind for kind in manifest if kind != content and _has(manifest, kind, file)]
            if others or not is_ours(file):
                holds = f"belongs to the {others[0]} there" if others else "is not of this program"
                raise UserError(
                    f"{file}: {holds} and would be replaced; move it, or choose another directory"
                )
    claimed = [*own, *(name for name in names if name not in own)]
    if claimed != own or not path.exists():
        write_json(path, manifest | {content: claimed})


def _has(manifest: dict, content: str, file: Path) -> bool:
    return any(fnmatch.fnmatchcase(file.name, name) for name in manifest[content])
