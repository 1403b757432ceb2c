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
from typing import NamedTuple

import numpy as np

from hparams import HParams
from support import quickdraw
from support.files import UserError, one_line
from support.layouts import Entries, gather_rows, row_checks
from support.pickled_arrays import PickledArray, UnsafePickle
from support.random_streams import SPLIT_STREAM
from support.safe_npz import Archive, open_archive

SPLITS = ("train", "valid", "test")
LIMIT = 1000  # raw values are clipped to +-LIMIT, as published
MIN_SCALE_FACTOR = 1e-6  # float32 divides by it
MAX_REASONS = 3  # that are told of why sketches were left out


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

    def in_first_rows(self, count: int) -> np.ndarray:
        """Positions of the sketches in the first `count` rows of their category's file.

        These are fewer than `first_of_each` gives where a row holds no usable sketch.
        """
        return np.flatnonzero(self.index < count)

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
                for entry in Entries(archive.read(split))
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


def _read_file(
    path: Path, splits: tuple[str, ...], hparams: HParams
) -> dict[str, tuple[Entries, np.ndarray]]:
    """The entries of each split, and which of them to use, in order."""
    with _one_line_errors(path), open_archive(path) as archive:
        made = []
        if hparams.split_train > 0:
            made = [split for split in SPLITS[1:] if split not in archive.names]
        _require_splits(path, archive, [split for split in splits if split not in made])
        read = {split: Entries(archive.read(split)) for split in splits if split not in made}
        chosen = {split: np.arange(len(entries)) for split, entries in read.items()}
        if made:
            train = read["train"] if "train" in read else Entries(archive.read("train"))
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
    part: tuple[Entries, np.ndarray], category: int, max_seq_len: int
) -> tuple["_FileSplit", _LeftOut, Counter]:
    """The usable sketches of a file's split, what was left out, and what had to be converted."""
    entries, chosen = part
    unusable: Counter[str] = Counter()
    converted: Counter[str] = Counter()
    rows, lengths, index = gather_rows(entries, chosen, unusable, converted)
    fits = np.ones(len(lengths), bool)
    for reason, is_bad in row_checks(rows):
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
