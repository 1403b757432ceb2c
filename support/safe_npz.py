""".npy and .npz files from unknown sources: what they claim is checked before it is used.

No code in a file runs. Reading takes at most a small multiple of the bytes that a file's members
really hold, and these are bounded by the size of the file itself.
"""

import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from support import pickled_arrays
from support.pickled_arrays import MAX_DIMENSIONS, PickledArray

CHUNK = 2**20  # bytes read at a time
MAX_DIRECTORY = 2**22  # bytes of a zip file's list of members
MAX_UNPACKED = 100  # bytes for each byte of the file: sketches are packed about 4 to 1
FREE_UNPACKED = 2**24  # bytes that any file may unpack to
MAX_HEADER = 2**14
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # those that NumPy writes
_MAGIC = b"\x93NUMPY"
_ENTRY = r"""\s*['"](\w+)['"]\s*:\s*(['"][^'"]*['"]|True|False|\([\d\sL,]*\))\s*"""


class DamagedFile(ValueError):
    """A file does not hold what it claims; the text says in what."""


class Archive:
    """The members of an .npz file, their names without `.npy`; see `open_archive`."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        unpacked = 0
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in self._members:
                raise DamagedFile(f"holds {member.filename!r} twice")
            self._members[name] = member
            unpacked += member.file_size
        if unpacked > FREE_UNPACKED + MAX_UNPACKED * size:
            raise DamagedFile(f"claims to unpack {size} bytes to {unpacked}")

    @property
    def names(self) -> list[str]:
        """Of all members, in order."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """The bytes of a member, its checksum compared.

        Raises:
            DamagedFile: it is encrypted, or packed as NumPy never does.
        """
        member = self._members[name]
        if member.flag_bits & 1:
            raise DamagedFile(f"{member.filename!r} is encrypted")
        if member.compress_type not in METHODS:
            raise DamagedFile(f"{member.filename!r} is not packed as NumPy does it")
        with self._archive.open(member) as file:
            data = b"".join(iter(lambda: file.read(CHUNK), b""))
        if len(data) != member.file_size:
            raise DamagedFile(
                f"{member.filename!r} has {len(data)} bytes, not the {member.file_size} claimed"
            )
        return data


@contextmanager
def open_archive(path: str | Path) -> Iterator[Archive]:
    """Opens an .npz file and checks its list of members.

    Raises:
        OSError: it can't be opened.
        DamagedFile, zipfile.BadZipFile: it is damaged, holds a name twice, or claims to unpack to
            more than 16 MiB and a hundred times its size.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(_BoundedReads(file, size)) as archive:
            yield Archive(archive, size)


class _BoundedReads:
    """A file of which `zipfile` reads its list of members only where that has a usual length."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = max(self._size - self._file.tell(), 0)
        if size > MAX_DIRECTORY:
            raise DamagedFile(f"claims to have a list of members of {size} bytes")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def parse_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Reads the header of a .npy file.

    Returns:
        Shape, whether in Fortran order, dtype, and where the values begin.

    Raises:
        DamagedFile: no header, or one of anything but plain numbers, texts or objects.
    """
    if data[:6] != _MAGIC or len(data) < 12 or data[6] not in (1, 2):
        raise DamagedFile("is not a .npy file of version 1 or 2")
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    begin = 8 + width + length
    if length > MAX_HEADER or begin > len(data):
        raise DamagedFile("has a broken header")
    text = data[8 + width : begin].decode("latin1")
    if not re.fullmatch(rf"\s*\{{{_ENTRY}(,{_ENTRY}){{2}},?\s*\}}\s*", text):
        raise DamagedFile("has a broken header")
    entries = dict(re.findall(_ENTRY, text))
    if entries.keys() != {"descr", "fortran_order", "shape"}:
        raise DamagedFile("has a broken header")
    code, order = entries["descr"][1:-1], entries["fortran_order"]
    if order not in ("True", "False") or entries["shape"][0] != "(":
        raise DamagedFile("has a broken header")
    if not re.fullmatch(r"[<>=|]?([biufcSU]\d{1,9}|[?O]|O8)", code):
        raise DamagedFile("has a header of another type than numbers")
    try:
        dtype = np.dtype(code)
        numbers = re.findall(r"\d+", entries["shape"])
        shape = tuple(int(number[:20]) for number in numbers)
    except (TypeError, ValueError):
        raise DamagedFile("has a broken header") from None
    if len(shape) > MAX_DIMENSIONS or any(n >= 2**62 for n in shape) or dtype.itemsize == 0:
        raise DamagedFile("has a header with an impossible shape")
    return shape, order == "True", dtype, begin


def parse_array(data: bytes) -> np.ndarray:
    """The array of a .npy file's bytes, of numbers or texts; it can't be written to.

    Raises:
        DamagedFile: it is damaged, or holds other than the bytes that its shape needs.
    """
    shape, fortran_order, dtype, begin = parse_header(data)
    if dtype.hasobject:
        raise DamagedFile("holds objects, not numbers")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(data) - begin:
        raise DamagedFile(f"has {len(data) - begin} bytes of values; its shape needs {needed}")
    if needed == 0:
        return np.zeros(shape, dtype)
    values = np.frombuffer(data, dtype, offset=begin)
    return values.reshape(shape, order="F" if fortran_order else "C")


def parse_entries(data: bytes) -> np.ndarray | PickledArray:
    """The entries of a .npy file's bytes: an array of numbers, or of objects and in bytes still.

    Raises:
        DamagedFile, ValueError: it is damaged, claims more than it holds, or is not an array
            of at least one dimension.
        UnsafePickle: its pickle asks for more than arrays of numbers.
    """
    shape, _, dtype, begin = parse_header(data)
    if not dtype.hasobject:
        entries = parse_array(data)
    else:
        entries = pickled_arrays.load(data, begin)
        if type(entries) is not PickledArray or entries.dtype != object:
            raise DamagedFile("holds no array of objects")
        if entries.shape != shape:
            raise DamagedFile(f"has the shape {entries.shape}, not the {shape} claimed")
    if not shape:
        raise DamagedFile("holds one object, no array")
    if shape[0] and 0 in shape:
        raise DamagedFile(f"claims {shape[0]} entries without any values")
    return entries
