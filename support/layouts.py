"""What the sketches of a file may look like: entries in several layouts to rows of stroke-3."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from support.pickled_arrays import PickledArray
from support.safe_npz import DamagedFile, parse_entries

MAX_OFFSET = 10**9  # raw units; no drawing reaches as far, and sums stay finite
MAX_UNUSABLE = 50_000  # entries of a split that are no sketches at all
# A file may hold one sketch several times without taking room for it: bounded.
FREE_BYTES, BYTES_PER_BYTE = 2**24, 8


class Entries:
    """The entries of a split as they are in a file: `PickledArray`, `np.ndarray` or others.

    Args:
        data: the bytes of the .npy file.

    Attributes:
        size: how many bytes these are.
        array: all entries in one array of numbers, or None.
    """

    def __init__(self, data: bytes):
        held = parse_entries(data)
        self.size = len(data)
        self.array = held if isinstance(held, np.ndarray) else None
        self._held = held

    def __len__(self) -> int:
        return self._held.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if self.array is not None:
            yield from self.array
            return
        if len(self._held.shape) == 1:
            yield from self._held.values
            return
        # NumPy makes one array of objects of equally long sketches.
        size = len(self._held.values) // len(self)
        for first in range(0, len(self._held.values), size):
            entry = PickledArray()
            entry.shape, entry.dtype, entry.order = self._held.shape[1:], self._held.dtype, "C"
            entry.values = self._held.values[first : first + size]
            yield entry


def gather_rows(
    entries: Entries, chosen: np.ndarray, unusable: Counter, converted: Counter
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of all chosen entries that are sketches of two rows or more.

    Args:
        entries: of a split.
        chosen: which of them to take, sorted.
        unusable: takes how many others there are, by reason.
        converted: takes how many sketches were not stored as stroke-3, by layout.

    Returns:
        Rows (total, 3), rows of each sketch, and the place of each among the chosen.

    Raises:
        DamagedFile: far more of them than an honest file holds are no sketches, or its sketches
            are the same few over and over.
    """
    array = entries.array
    if array is not None and array.ndim == 3 and array.shape[2] == 3 and array.shape[1] > 1:
        picked = array if len(chosen) == len(array) else array[chosen]
        if picked.dtype.kind in "iuf":
            lengths = np.full(len(picked), picked.shape[1], np.int64)
            return picked.reshape(-1, 3), lengths, np.arange(len(picked))
    wanted = None if len(chosen) == len(entries) else set(chosen.tolist())
    values: list[bytes] = []  # a sketch each
    dtypes: list[np.dtype] = []  # of the sketches from `firsts` on
    firsts: list[int] = []
    lengths, index, place, size = [], [], -1, 0
    limit = FREE_BYTES + BYTES_PER_BYTE * entries.size
    for i, entry in enumerate(entries):
        if wanted is not None and i not in wanted:
            continue
        place += 1
        # Nearly all entries are like this, and there are many of them.
        if (
            type(entry) is PickledArray
            and entry.dtype is not None
            and entry.order == "C"
            and entry.dtype.kind in "iuf"
            and len(entry.shape) == 2
            and entry.shape[1] == 3
        ):
            length, dtype, value = entry.shape[0], entry.dtype, entry.values
        else:
            sketch, reason = to_stroke3(entry)
            if sketch is None:
                unusable[reason] += 1
                if unusable.total() > MAX_UNUSABLE:
                    raise DamagedFile(f"more than {MAX_UNUSABLE:,} of its entries {reason}")
                continue
            if reason:
                converted[reason] += 1
            length, dtype, value = len(sketch), sketch.dtype, sketch.tobytes()
        if length < 2:
            unusable["have fewer than two rows"] += 1
            continue
        if not dtypes or dtype is not dtypes[-1]:
            dtypes.append(dtype)
            firsts.append(len(values))
        values.append(value)
        lengths.append(length)
        index.append(place)
        size += len(value)
        if size > limit:
            raise DamagedFile("holds the same sketches over and over")
    return _joined(values, dtypes, firsts), np.array(lengths, np.int64), np.array(index, np.int64)


def _joined(values: list[bytes], dtypes: list[np.dtype], firsts: list[int]) -> np.ndarray:
    """Rows (total, 3) of sketches in bytes, of which dtypes[k] holds from firsts[k] on."""
    if not values:
        return np.zeros((0, 3), np.int16)
    ends = [*firsts[1:], len(values)]
    if all(dtype == dtypes[0] for dtype in dtypes):
        dtypes, firsts, ends = dtypes[:1], firsts[:1], ends[-1:]
    return np.concatenate(
        [
            np.frombuffer(b"".join(values[first:end]), dtype).reshape(-1, 3)
            for dtype, first, end in zip(dtypes, firsts, ends, strict=True)
        ]
    )


def to_stroke3(entry: Any) -> tuple[np.ndarray | None, str]:
    """Reads an entry of a file as a stroke-3 sketch where it is certain that it is one.

    Lists of rows, arrays of objects, stroke-5 (dx, dy, draw, lift, end), and (dx, dy, draw, lift)
    with rows of -1 or 0 that fill it up are read.

    Args:
        entry: `PickledArray`, an array, a list or anything else.

    Returns:
        The sketch, (n, 3), and how it was read, "" where it was one; or None and why not.
    """
    if isinstance(entry, PickledArray):
        entry = entry.to_array() if entry.dtype is not None else None
    how = ""
    if isinstance(entry, list | tuple):
        entry, how = _from_rows(list(entry)), "from lists of rows"
        if entry is None:
            return None, "are lists, but not of rows of three numbers"
    elif isinstance(entry, np.ndarray) and entry.dtype == object and entry.ndim == 2:
        entry, how = _from_rows(entry.tolist()), "from arrays of objects"
        if entry is None:
            return None, "are arrays of objects, not of numbers"
    if not isinstance(entry, np.ndarray):
        return None, f"are no arrays, but of type {type(entry).__name__}"
    if entry.dtype.kind not in "iuf":
        return None, f"are of type {entry.dtype}, not of numbers"
    if entry.ndim != 2:
        return None, f"have {entry.ndim} dimensions, not the shape (n, 3)"
    columns = entry.shape[1]
    if columns == 3:
        return entry, how
    if columns in (4, 5):
        sketch = _from_one_hot(entry)
        if sketch is not None:
            return sketch, "from stroke-5" if columns == 5 else "from rows (dx, dy, draw, lift)"
    return None, f"are of shape (n, {columns}), not (n, 3)"


def _from_rows(rows: list) -> np.ndarray | None:
    """Rows of 3 to 5 numbers each as an array; None where they are anything else."""
    if not rows:
        return np.zeros((0, 3), np.int16)
    rows = [row.to_array() if isinstance(row, PickledArray) else row for row in rows]
    rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
    if not all(isinstance(row, list | tuple) and len(row) == len(rows[0]) for row in rows):
        return None
    if not 3 <= len(rows[0]) <= 5:
        return None
    if not all(isinstance(value, int | float) for row in rows for value in row):
        return None
    try:
        array = np.array(rows)
    except OverflowError:
        return None
    if array.dtype.kind == "i" and abs(array).max() < 2**15:
        array = array.astype(np.int16)
    return array


def _from_one_hot(rows: np.ndarray) -> np.ndarray | None:
    """Rows (dx, dy, draw, lift[, end]) as stroke-3; None where they can't be that.

    The sketch ends before the first row that only says end, or with the one that says lift and
    end (as in some converters' files), or before rows that fill it up. A first row of zeros, which
    starts a sequence in sketch-rnn, is an offset of nothing and stays.
    """
    pens = rows[:, 2:]
    one_hot = np.isin(pens, (0, 1)).all(axis=1) & (pens[:, 0] != pens[:, 1])
    if rows.shape[1] == 5:
        one_hot &= pens[:, 2] == 0
    length = len(rows) if one_hot.all() else int(np.argmin(one_hot))
    rest = rows[length:]
    if len(rest) and rows.shape[1] == 5 and rest[0, 2:].tolist() == [0, 1, 1]:
        length, rest = length + 1, rest[1:]
    ended = (rest == rest[:, :1]).all(axis=1) & np.isin(rest[:, 0], (0, -1))
    if rows.shape[1] == 5:
        ended |= (rest == (0, 0, 0, 0, 1)).all(axis=1)
    if length == 0 or not ended.all():
        return None
    return rows[:length, [0, 1, 3]]


def row_checks(rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Reasons that make a sketch unusable, and which of the rows (n, 3) have them, bool (n,)."""
    if len(rows) == 0:
        return
    if rows.dtype.kind == "f":
        finite = np.isfinite(rows)
        if not finite.all():
            yield "hold NaN or infinite values", ~finite.all(axis=1)
    offsets, pens = rows[:, :2], rows[:, 2]
    if rows.dtype.itemsize > 2:
        with np.errstate(invalid="ignore"):
            far = (offsets > MAX_OFFSET) | (offsets < -MAX_OFFSET)
        if far.any():
            yield f"have offsets above {MAX_OFFSET:,}", far.any(axis=1)
    strange = (pens != 0) & (pens != 1)
    if strange.any():
        values = np.unique(pens)
        shown = ", ".join(f"{value:g}" for value in values[:4].tolist())
        more = ", ..." if len(values) > 4 else ""
        yield (
            f"have pen values other than 0 (drawing) and 1 (lifted after this row): {shown}{more}",
            strange,
        )
