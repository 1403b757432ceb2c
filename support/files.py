"""Files: written whole or not at all, read with one line for whatever is wrong with them."""

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, get_args, get_origin

import numpy as np

from support.safe_npz import open_archive, parse_array

MAX_JSON = 2**26  # bytes
MAX_TEXT = 2**20


class UserError(ValueError):
    """A mistake that the user can put right; its text is the one line that is printed."""


@contextlib.contextmanager
def write_errors(path: str | Path, consequence: str = "") -> Iterator[None]:
    """Turns the system's errors (disk full, no permission) in writing a file into `UserError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: can't be written ({reason}){consequence}") from error


def write_file(
    path: str | Path,
    content: bytes | str | Callable[[BinaryIO], Any],
    *,
    survives_power_loss: bool = True,
) -> None:
    """Writes a file so that at any moment there is the old one or the new one, whole.

    Args:
        path: of the file.
        content: bytes, or text for UTF-8, or a function that writes to the open file.
        survives_power_loss: wait until it is on the disk, some milliseconds; without it a file
            that was just written may be empty after a power cut.

    Raises:
        UserError: it can't be written (disk full, no permission); an older file stays.
    """
    path = Path(path)
    # Two processes must not write to one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if isinstance(content, str):
        content = content.encode()
    try:
        with write_errors(path, "; an earlier one, if any, is intact"):
            with open(temporary, "wb") as file:
                content(file) if callable(content) else file.write(content)
                if survives_power_loss:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the directory itself may be gone
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, values: Any) -> None:
    """Writes JSON as `write_file` does."""
    write_file(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; numbers in it may be NaN or infinite.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    with _one_line_errors(path, "damaged, not a JSON file"):
        return json.loads(_read_bytes(path, MAX_JSON).decode("utf-8"))


def read_text(path: str | Path) -> str:
    """The text of a small file in UTF-8.

    Raises:
        UserError: the file is missing, or is not such a text.
    """
    with _one_line_errors(path, "no text that can be read"):
        return _read_bytes(path, MAX_TEXT).decode("utf-8")


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file, read-only, without running anything that it holds.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _one_line_errors(path, "damaged, not a .npy file of numbers"):
        return parse_array(_read_bytes(path))


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, read-only, without running anything that it holds.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _one_line_errors(path, "damaged, it can't be read"), open_archive(path) as archive:
        return {name: parse_array(archive.read(name)) for name in archive.names}


@contextlib.contextmanager
def _one_line_errors(path: str | Path, what: str) -> Iterator[None]:
    """Turns any error of reading a file into a `UserError` that says what it is."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path}: {what} ({one_line(error)})") from error


def _read_bytes(path: str | Path, max_bytes: int | None = None) -> bytes:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # it might have no end
            raise ValueError("it is not a regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise ValueError(f"it has {status.st_size} bytes, more than {max_bytes}")
        return file.read(status.st_size)


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether a value of a JSON file has the type that a field is declared with.

    Args:
        value: from the file.
        kind: bool, int (from 0 to 2**63 - 1), float (finite), str, None, list[...] or
            dict[str, ...], or several of these (int | None).
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(is_of_type(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(is_of_type(v, inner[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(is_of_type(v, inner[1]) for v in value.values())
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int) and 0 <= value < 2**63
    if kind is float:
        whole = isinstance(value, int) and abs(value) < 2**63
        return whole or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind)


def file_sha256(path: str | Path) -> str:
    """Checksum of a file, in hexadecimal digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error


def one_line(error: BaseException) -> str:
    """An error's text, without line breaks and of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    # What a file says may hold control characters, or halves of characters.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 200 else f"{text[:197]}..."
