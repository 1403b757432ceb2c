"""Files: written whole or not at all, read with one line for whatever is wrong with them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


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
    """What a JSON file holds.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not a JSON file ({one_line(error)})") from error


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file, without running anything that it holds.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive, not a single array")
        return array
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path}: can't be read, no .npy file ({one_line(error)})") from error


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, without running anything that it holds.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except Exception as error:  # a damaged archive can fail in any way
        raise UserError(f"{path}: damaged, it can't be read ({one_line(error)})") from error


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
    return text if len(text) <= 200 else f"{text[:197]}..."
