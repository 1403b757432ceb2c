"""QuickDraw files to sketches: safe reading of .npz, splits, the scale factor.

Sketches stay compact (int16 rows, one array a split) until a batch is made of them.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hparams import HParams
from support import quickdraw
from support.files import UserError, one_line
from support.pickled_arrays import PickledArray, UnsafePickle
from support.safe_npz import Archive, DamagedFile, open_archive, parse_entries

SPLITS = ("train", "valid", "test")
LIMIT = 1000  # raw values are clipped to +-LIMIT, as published
MAX_OFFSET = 10**9  # raw units; no drawing reaches as far, and sums stay finite
MIN_SCALE_FACTOR = 1e-6  # float32 divides by it
MAX_UNUSABLE = 50_000  # entries of a split that are no sketches at all
MAX_REASONS = 3  # that are told of why sketches were left out
SPLIT_STREAM = 4  # first entry of the random streams' keys; see `batches` and `inference`
# A file may hold one sketch several times without taking room for it: bounded.
FREE_BYTES, BYTES_PER_BYTE = 2**24, 8


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
        hparams: categories, num_per_category, max_seq_len, split_train and its seed are read.
        scale_factor: raw units per model unit; None takes the standard deviation of all raw
            values of the training sketches used.
        splits: which of train, valid and test to load; train is needed for the scale factor.
        categories: which of the options' categories to load; None: all.

    Raises:
        UserError: a missing, broken or unsafe file, a split without sketches.
    """
    found: dict[str, list[_FileSplit]] = {split: [] for split in splits}
    left_out = {split: _LeftOut() for split in splits}
    converted: Counter[str] = Counter()
    for category, name in enumerate(hparams.categories):
        if categories is not None and name not in categories:
            continue
        path = _find(data_dir, name)
        file_splits = _read_file(path, splits, hparams)
        for split in splits:
            # One array takes the place of the many before the next file is read.
            part = file_splits.pop(split)
            with _one_line_errors(path):
                piece, lost, read_as = _usable(part, category, hparams.max_seq_len)
            del part
            converted += read_as
            left_out[split] += lost
            if len(piece.index):
                found[split].append(piece)
            elif lost and split == "train":
                raise UserError(f"{path}: no usable sketch in the train split: {lost}")
    for split in splits:
        if not found[split]:
            raise UserError(
                f"{data_dir}: no usable sketch in the {split} split of "
                f"{', '.join(categories or hparams.categories)}: {left_out[split]}"
            )
    packed = {split: _pack(found.pop(split)) for split in splits}
    if scale_factor is None:
        scale_factor = _scale_factor(packed["train"])
        if scale_factor == 0:
            raise UserError(f"{data_dir}: all values of the training sketches are the same")
        if scale_factor < MIN_SCALE_FACTOR:
            raise UserError(
                f"{data_dir}: the offsets of the training sketches are too small, their standard "
                f"deviation is {scale_factor:.3g}; multiply them, to about 30"
            )
    warnings = [f"{count} sketches read as stroke-3 {how}" for how, count in converted.items()]
    lost = sum(left_out.values(), start=_LeftOut())
    if lost.unusable:
        warnings.append(f"{lost.unusable.total()} sketches skipped: {lost.reasons()}")
    if lost.too_long:
        warnings.append(f"{lost.too_long} sketches left out: more than {hparams.max_seq_len} rows")
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
            arrays and lists of numbers.
    """
    with _one_line_errors(path), open_archive(path) as archive:
        _require_splits(path, archive, splits)
        return {
            split: [
                entry.to_array() if isinstance(entry, PickledArray) else entry
                for entry in _Entries(archive.read(split))
            ]
            for split in splits
        }


@contextmanager
def _one_line_errors(path: str | Path) -> Iterator[None]:
    """Turns whatever a file of sketches does wrong into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except UnsafePickle as error:
        raise UserError(
            f"{path}: refused, its pickle asks for {one_line(error)}, not only for arrays of "
            "numbers"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    except Exception as error:  # a broken archive can fail in any way
        raise UserError(
            f"{path}: not a readable .npz file of sketches ({one_line(error)})"
        ) from error


def _require_splits(path: str | Path, archive: Archive, splits: Sequence[str]) -> None:
    for split in splits:
        if split not in archive.names:
            hint = "; the option split_train makes one" if split != "train" else ""
            raise UserError(f"{path}: has no array {split!r}{hint}")


class _Entries:
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


def _read_file(
    path: Path, splits: tuple[str, ...], hparams: HParams
) -> dict[str, tuple[_Entries, np.ndarray]]:
    """The entries of each split, and which of them to use, in order."""
    with _one_line_errors(path), open_archive(path) as archive:
        made = []
        if hparams.split_train > 0:
            made = [split for split in SPLITS[1:] if split not in archive.names]
        _require_splits(path, archive, [split for split in splits if split not in made])
        read = {split: _Entries(archive.read(split)) for split in splits if split not in made}
        chosen = {split: np.arange(len(entries)) for split, entries in read.items()}
        if made:
            train = read["train"] if "train" in read else _Entries(archive.read("train"))
            parts = _parts(len(train), path.stem, hparams)
            for split in made:
                read[split], chosen[split] = train, parts[split]
            chosen["train"] = np.setdiff1d(
                np.arange(len(train)), np.concatenate([parts[split] for split in made])
            )
    if hparams.num_per_category and "train" in splits:
        chosen["train"] = chosen["train"][: hparams.num_per_category]
    return {split: (read[split], chosen[split]) for split in splits}


def _parts(count: int, category: str, hparams: HParams) -> dict[str, np.ndarray]:
    """Which of `count` training sketches are for validation and for test, sorted.

    They depend on the seed and the category's name, not on what else a run does with the file.
    """
    size = round(count * hparams.split_train)
    rng = np.random.default_rng([hparams.seed, SPLIT_STREAM, zlib.crc32(category.encode())])
    order = rng.permutation(count)
    return {"valid": np.sort(order[:size]), "test": np.sort(order[size : 2 * size])}


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


class _LeftOut:
    """Why sketches of a split were left out, and how many.

    Attributes:
        unusable: reason to count.
        too_long: how many have more than max_seq_len rows.
        shortest: rows of the shortest of these, or 0.
    """

    def __init__(self, unusable: Mapping[str, int] = {}, too_long: int = 0, shortest: int = 0):
        self.unusable = Counter(unusable)
        self.too_long, self.shortest = too_long, shortest

    def __bool__(self) -> bool:
        return bool(self.unusable or self.too_long)

    def __add__(self, other: "_LeftOut") -> "_LeftOut":
        lengths = [n for n in (self.shortest, other.shortest) if n]
        return _LeftOut(
            self.unusable + other.unusable,
            self.too_long + other.too_long,
            min(lengths, default=0),
        )

    def reasons(self) -> str:
        """What is wrong with the unusable ones, the most frequent first."""
        counted = [f"{count} {reason}" for reason, count in self.unusable.most_common(MAX_REASONS)]
        more = len(self.unusable) - len(counted)
        return "; ".join([*counted, *([f"and {more} other reasons"] if more else [])])

    def __str__(self) -> str:
        reasons = [self.reasons()] if self.unusable else []
        if self.too_long:
            reasons.append(
                f"{self.too_long} have more rows than max_seq_len, the shortest of them "
                f"{self.shortest}"
            )
        return "; ".join(reasons) or "it is empty"


def _usable(
    part: tuple[_Entries, np.ndarray], category: int, max_seq_len: int
) -> tuple["_FileSplit", _LeftOut, Counter]:
    """The usable sketches of a file's split, what was left out, and what had to be converted."""
    entries, chosen = part
    unusable: Counter[str] = Counter()
    converted: Counter[str] = Counter()
    rows, lengths, index = _gather(entries, chosen, unusable, converted)
    fits = np.ones(len(lengths), bool)
    for reason, is_bad in _row_checks(rows):
        bad = fits & np.logical_or.reduceat(is_bad, np.cumsum(lengths) - lengths)
        if bad.any():
            unusable[reason] += int(bad.sum())
            fits &= ~bad
    too_long = fits & (lengths > max_seq_len) if max_seq_len > 0 else np.zeros(len(fits), bool)
    lost = _LeftOut(
        unusable, int(too_long.sum()), int(lengths[too_long].min()) if too_long.any() else 0
    )
    fits &= ~too_long
    if not fits.all():
        rows, lengths, index = rows[np.repeat(fits, lengths)], lengths[fits], index[fits]
    return _FileSplit(rows, lengths, category, index), lost, converted


def _row_checks(rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Reasons that make a sketch unusable, and which rows have them, (n,)."""
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


def _gather(
    entries: _Entries, chosen: np.ndarray, unusable: Counter, converted: Counter
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of all chosen entries that are sketches of two rows or more.

    Returns:
        Rows (total, 3), rows of each sketch, and the place of each among the chosen.
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
