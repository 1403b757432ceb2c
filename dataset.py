"""QuickDraw files to sketches: safe reading of .npz, splits, the scale factor.

Sketches stay compact (int16 rows, one array a split) until a batch is made of them.
"""

import math
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from hparams import HParams
from support import quickdraw
from support.files import UserError, one_line

SPLITS = ("train", "valid", "test")
LIMIT = 1000  # raw values are clipped to +-LIMIT, as published


@dataclass(frozen=True)
class Split:
    """The sketches of one split over all categories, category after category.

    Attributes:
        rows: int16 or float32 (total, 3), raw stroke-3 rows clipped to +-1000.
        ends: int64 (n + 1,); sketch i has the rows ends[i] to ends[i + 1].
        category: int32 (n,), position in the categories.
        index: int32 (n,), the sketch's row in its split's file.
        scale_factor: raw units per model unit.
    """

    rows: np.ndarray
    ends: np.ndarray
    category: np.ndarray
    index: np.ndarray
    scale_factor: float

    def __len__(self) -> int:
        return len(self.category)

    def sketch(self, i: int) -> np.ndarray:
        """Stroke-3, float32 (n, 3), in model units."""
        sketch = self.rows[self.ends[i] : self.ends[i + 1]].astype(np.float32)
        sketch[:, :2] /= np.float32(self.scale_factor)
        return sketch

    def key(self, i: int) -> tuple[int, int]:
        """Category and index, which name a sketch in files and random numbers."""
        return int(self.category[i]), int(self.index[i])

    def first_of_each(self, count: int, among: Sequence[int] | None = None) -> list[int]:
        """Positions of the first `count` sketches of each category, of all or among some."""
        positions = np.arange(len(self)) if among is None else np.asarray(among)
        category = self.category[positions]
        return [i for c in np.unique(category) for i in positions[category == c][:count].tolist()]

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each sketch, int64 (n,)."""
        return np.diff(self.ends)


@dataclass(frozen=True)
class Dataset:
    """All splits of some categories.

    Attributes:
        splits: the loaded ones of train, valid and test.
        scale_factor: raw units per model unit, of the training sketches.
        max_seq_len: T, the most rows of a sketch.
        warnings: what was left out, a line each.
    """

    splits: dict[str, Split]
    scale_factor: float
    max_seq_len: int
    warnings: tuple[str, ...]

    def fingerprint(self) -> str:
        """A checksum of all sketches."""
        check = 0
        for split in self.splits.values():
            for array in (split.rows, split.ends, split.category):
                check = zlib.crc32(np.ascontiguousarray(array), check)
        return f"{check:08x}"


def load_dataset(
    data_dir: str | Path,
    hparams: HParams,
    *,
    scale_factor: float | None = None,
    splits: tuple[str, ...] = SPLITS,
    categories: tuple[str, ...] | None = None,
) -> Dataset:
    """Loads `<data_dir>/<category>.npz` of all or some categories.

    Args:
        data_dir: holds the files, each with the arrays train, valid and test.
        hparams: categories, num_per_category and max_seq_len are read.
        scale_factor: raw units per model unit; None takes the standard deviation of all raw
            values of the training sketches used.
        splits: which of train, valid and test to load; train is needed for the scale factor.
        categories: which of the options' categories to load; None: all.

    Raises:
        UserError: a missing, broken or unsafe file, a split without sketches.
    """
    found: dict[str, list[_FileSplit]] = {split: [] for split in splits}
    unusable, too_long = 0, 0
    for category, name in enumerate(hparams.categories):
        if categories is not None and name not in categories:
            continue
        arrays = read_sketch_file(_find(data_dir, name), splits)
        for split in splits:
            # One array takes the place of the many before the next file is read.
            sketches = arrays.pop(split)
            if split == "train" and hparams.num_per_category:
                sketches = sketches[: hparams.num_per_category]
            lengths = np.array([len(s) if _is_sketch(s) else 0 for s in sketches], np.int64)
            fits = lengths > 0
            unusable += np.count_nonzero(~fits)
            if hparams.max_seq_len > 0:
                fits &= lengths <= hparams.max_seq_len
                too_long += np.count_nonzero(lengths > hparams.max_seq_len)
            index = np.flatnonzero(fits)
            if len(index):
                rows = np.concatenate([sketches[i] for i in index.tolist()])
                found[split].append(_FileSplit(rows, lengths[index], category, index))
    for split in splits:
        if not found[split]:
            raise UserError(
                f"{data_dir}: no usable sketch in the {split} split of "
                f"{', '.join(categories or hparams.categories)}"
            )
    packed = {split: _pack(found.pop(split)) for split in splits}
    if scale_factor is None:
        scale_factor = _scale_factor(packed["train"])
        if scale_factor == 0:
            raise UserError(f"{data_dir}: all values of the training sketches are the same")
    warnings = []
    if unusable:
        warnings.append(
            f"{unusable} sketches skipped: fewer than two rows, NaN, or not of shape (n, 3)"
        )
    if too_long:
        warnings.append(f"{too_long} sketches left out: more than {hparams.max_seq_len} rows")
    packed = {split: _finished(packed[split], scale_factor) for split in splits}
    max_seq_len = hparams.max_seq_len
    if max_seq_len == -1:
        max_seq_len = max(int(split.lengths.max()) for split in packed.values())
    return Dataset(packed, scale_factor, max_seq_len, tuple(warnings))


def read_sketch_file(path: str | Path, splits: tuple[str, ...] = SPLITS) -> dict[str, list]:
    """Reads a QuickDraw .npz without running anything that it holds.

    Returns:
        For each split the list of its entries, normally stroke-3 arrays (n, 3).

    Raises:
        UserError: the file is missing or broken, lacks a split, or its pickles hold anything but
            NumPy arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            for split in splits:
                if f"{split}.npy" not in members:
                    raise UserError(f"{path}: has no array {split!r}")
            arrays = {}
            for split in splits:
                with archive.open(f"{split}.npy") as file:
                    arrays[split] = _read_array(file)
            return arrays
    except UserError:
        raise
    except UnsafePickle as error:
        raise UserError(
            f"{path}: refused, its pickle asks for {error}, not only for arrays of numbers"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    except Exception as error:  # a broken pickle can fail in any way
        raise UserError(
            f"{path}: not a readable .npz file of sketches ({one_line(error)})"
        ) from error


class UnsafePickle(Exception):
    """A pickle names something that no array of numbers needs; the text says what."""


class ArrayUnpickler(pickle.Unpickler):
    """Admits what pickled NumPy arrays of numbers are made of, and nothing else.

    Arrays come as `_PickledArray`. NumPy's own classes stay out of reach: given a forged state,
    they take a file's bytes for the addresses of objects.
    """

    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _PickledArray if name == "ndarray" else _PickledType
        if module == "_codecs" and name == "encode":
            return _encode_latin1
        raise UnsafePickle(repr(f"{module}.{name}"))


class _PickledType:
    """A pickled dtype: a kind of number or object, and of its state the byte order alone."""

    def __init__(self, code: str, *_):
        self.dtype = np.dtype(code) if isinstance(code, str) else None
        if self.dtype is None or self.dtype.kind not in "biufO":
            raise UnsafePickle(f"the type {code!r}")

    def __setstate__(self, state: tuple):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray:
    """A pickled array; `array` is there once its state is."""

    def __setstate__(self, state: tuple):
        _, shape, kind, fortran_order, values = state
        if kind.dtype.hasobject:
            entries = np.empty(len(values), object)
            for i, value in enumerate(values):
                entries[i] = value.array if isinstance(value, _PickledArray) else value
            self.array = entries.reshape(shape)
        else:
            if isinstance(values, str):  # written by Python 2
                values = values.encode("latin1")
            numbers = np.frombuffer(values, kind.dtype)
            self.array = numbers.reshape(shape, order="F" if fortran_order else "C")


def _reconstruct(*_) -> _PickledArray:
    return _PickledArray()


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickle(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _read_array(file: BinaryIO) -> list:
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        loaded = ArrayUnpickler(file, encoding="latin1").load()  # written by Python 2
        entries = loaded.array if isinstance(loaded, _PickledArray) else None
    else:
        values = np.frombuffer(file.read(), dtype)
        entries = values.reshape(shape, order="F" if fortran_order else "C")
    if entries is None or entries.ndim == 0:
        raise ValueError("an entry is no array of sketches")
    return list(entries)


def _find(data_dir: str | Path, category: str) -> Path:
    path = Path(data_dir) / f"{category}.npz"
    if path.is_file():
        return path
    if category in quickdraw.CATEGORIES:
        advice = (
            f"; to fetch it: python download.py --data_dir={data_dir} --categories=[{category}]"
        )
    else:
        like = ", ".join(quickdraw.nearest(category))
        advice = f"; of the Quick, Draw! categories, the nearest are {like}" if like else ""
    if not Path(data_dir).is_dir():
        raise UserError(f"{path}: not found, there is no directory {data_dir}{advice}")
    there = sorted(file.name for file in Path(data_dir).glob("*.npz"))
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    raise UserError(f"{path}: not found; {data_dir} holds {shown or 'no .npz files'}{advice}")


def _is_sketch(sketch) -> bool:
    return (
        isinstance(sketch, np.ndarray)
        and sketch.ndim == 2
        and sketch.shape[1] == 3
        and len(sketch) >= 2
        and sketch.dtype.kind in "iuf"
        and (sketch.dtype.kind != "f" or bool(np.isfinite(sketch).all()))
    )


class _FileSplit(NamedTuple):
    """The sketches of one file's split: raw rows, rows a sketch, category, index in the file."""

    rows: np.ndarray
    lengths: np.ndarray
    category: int
    index: np.ndarray


def _pack(pieces: list[_FileSplit]) -> Split:
    """Joins pieces, raw as they are: still without a scale factor."""
    return Split(
        rows=np.concatenate([piece.rows for piece in pieces]),
        ends=np.cumsum(np.concatenate([[0], *(piece.lengths for piece in pieces)])),
        category=np.concatenate([np.full(len(p.index), p.category, np.int32) for p in pieces]),
        index=np.concatenate([piece.index.astype(np.int32) for piece in pieces]),
        scale_factor=math.nan,
    )


def _scale_factor(raw: Split) -> float:
    """Population standard deviation of all values, pen column included, in float64.

    Saved runs are compared with it, so the order of summation must stay.
    """

    def chunks():
        for first in range(0, len(raw), 50_000):
            last = min(first + 50_000, len(raw))
            yield raw.rows[raw.ends[first] : raw.ends[last]].astype(np.float64)

    mean = sum(chunk.sum() for chunk in chunks()) / raw.rows.size
    return float(np.sqrt(sum(np.square(chunk - mean).sum() for chunk in chunks()) / raw.rows.size))


def _finished(raw: Split, scale_factor: float) -> Split:
    """Clips raw rows, in place, and adds the scale factor."""
    rows = np.clip(raw.rows, -LIMIT, LIMIT, out=raw.rows)
    if rows.dtype != np.int16:
        rows = rows.astype(np.float32)
    return replace(raw, rows=rows, scale_factor=scale_factor)
