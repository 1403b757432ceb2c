"""QuickDraw files to sketches to batches: safe .npz, scaling, splits, stroke-5, augmentation.

Sketches stay compact (int16 rows, one array a split) until they are needed. Everything random is
a function of (seed, pass, index of the sketch) or (seed, split, index), so that batches are the
same whatever the number of workers, and a run can be taken up at any batch.
"""

import math
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

import utils
from hparams import HParams, UserError
from workers import prefetch, used_memory

SPLITS = ("train", "valid", "test")
LIMIT = 1000  # raw values are clipped to +-LIMIT, as published
START_ROW = (0, 0, 1, 0, 0)
END_ROW = (0, 0, 0, 0, 1)
# First entries of the random streams' keys.
ORDER_STREAM, SKETCH_STREAM, EVALUATION_STREAM = 0, 1, 2


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

    def first_of_each(self, count: int) -> list[int]:
        """Positions of the first `count` sketches of each category."""
        return [
            i
            for category in np.unique(self.category)
            for i in np.flatnonzero(self.category == category)[:count].tolist()
        ]

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
        remarks: what was left out, a line each.
    """

    splits: dict[str, Split]
    scale_factor: float
    max_seq_len: int
    remarks: tuple[str, ...]

    def fingerprint(self) -> str:
        """A checksum of all sketches."""
        check = 0
        for split in self.splits.values():
            for array in (split.rows, split.ends, split.category):
                check = zlib.crc32(np.ascontiguousarray(array), check)
        return f"{check:08x}"


@dataclass(frozen=True)
class BatchShape:
    """The shapes of batches, and the part of them to make; by default whole batches, exactly.

    A compiler that starts anew for every shape wants few of them, and processes that share the
    batches want parts of one shape, without asking each other.

    Attributes:
        part: which of the equal parts of each batch to make.
        parts: into how many parts, one behind the other, a batch is cut.
        granule: pictures of a part are filled up with blank ones to a multiple of it, and the
            batches of an evaluation with steps, and with sketches that count nowhere; None: not.
    """

    part: int = 0
    parts: int = 1
    granule: int | None = None

    def own(self, whole: list) -> list:
        """The part to make of what a batch is made from."""
        size = len(whole) // self.parts
        return whole[self.part * size : (self.part + 1) * size]


WHOLE = BatchShape()
NO_SKETCH = np.zeros((0, 3), np.float32)
EVALUATED_STEPS = 4  # so many different numbers of steps, where there shall be few


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
    found: dict[str, list[_Part]] = {split: [] for split in splits}
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
                found[split].append(_Part(rows, lengths[index], category, index))
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
    remarks = []
    if unusable:
        remarks.append(
            f"{unusable} sketches skipped: fewer than two rows, NaN, or not of shape (n, 3)"
        )
    if too_long:
        remarks.append(f"{too_long} sketches left out: more than {hparams.max_seq_len} rows")
    packed = {split: _finished(packed[split], scale_factor) for split in splits}
    max_seq_len = hparams.max_seq_len
    if max_seq_len == -1:
        max_seq_len = max(int(split.lengths.max()) for split in packed.values())
    return Dataset(packed, scale_factor, max_seq_len, tuple(remarks))


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
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable .npz file of sketches ({reason})") from error


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
    if not Path(data_dir).is_dir():
        raise UserError(f"{path}: not found, there is no directory {data_dir}")
    there = sorted(file.name for file in Path(data_dir).glob("*.npz"))
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    raise UserError(f"{path}: not found; {data_dir} holds {shown or 'no .npz files'}")


def _is_sketch(sketch) -> bool:
    return (
        isinstance(sketch, np.ndarray)
        and sketch.ndim == 2
        and sketch.shape[1] == 3
        and len(sketch) >= 2
        and sketch.dtype.kind in "iuf"
        and (sketch.dtype.kind != "f" or bool(np.isfinite(sketch).all()))
    )


class _Part(NamedTuple):
    """The sketches of one file's split: raw rows, rows a sketch, category, index in the file."""

    rows: np.ndarray
    lengths: np.ndarray
    category: int
    index: np.ndarray


def _pack(parts: list[_Part]) -> Split:
    """Joins parts, raw as they are: still without a scale factor."""
    return Split(
        rows=np.concatenate([part.rows for part in parts]),
        ends=np.cumsum(np.concatenate([[0], *(part.lengths for part in parts)])),
        category=np.concatenate([np.full(len(p.index), p.category, np.int32) for p in parts]),
        index=np.concatenate([part.index.astype(np.int32) for part in parts]),
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


def to_stroke5(sketches: list[np.ndarray], steps: int) -> np.ndarray:
    """Stroke-3 sketches of at most `steps` rows to float32 (B, steps + 1, 5).

    Row 0 is (0, 0, 1, 0, 0); behind a sketch's rows (dx, dy, draw, lift, end) stand end rows.
    """
    strokes = np.empty((len(sketches), steps + 1, 5), np.float32)
    strokes[:, 0] = START_ROW
    for padded, sketch in zip(strokes[:, 1:], sketches, strict=True):
        n = len(sketch)
        padded[:n, :2] = sketch[:, :2]
        padded[:n, 2] = 1 - sketch[:, 2]
        padded[:n, 3] = sketch[:, 2]
        padded[:n, 4] = 0
        padded[n:] = END_ROW
    return strokes


def augment(sketch: np.ndarray, hparams: HParams, rng: np.random.Generator) -> np.ndarray:
    """Stretches the axes and drops rows of a training sketch, stroke-3 (n, 3) (sketch-rnn).

    dx and dy are multiplied by two factors uniform in [1 - r, 1 + r], r = random_scale_factor.
    Then a row goes, with probability augment_stroke_prob, by being merged into its predecessor,
    from the third row of an unlifted run on: strokes keep their ends.
    """
    if hparams.random_scale_factor > 0:
        r = hparams.random_scale_factor
        sketch = sketch.copy()
        sketch[:, :2] *= rng.uniform(1 - r, 1 + r, 2).astype(sketch.dtype)
    if hparams.augment_stroke_prob > 0:
        drop = rng.random(len(sketch)) < hparams.augment_stroke_prob
        draws = sketch[:, 2] == 0
        inside = np.append(False, draws[1:] & draws[:-1])
        rows = np.arange(len(sketch))
        # Rows since a lift, this one included, while none lifts the pen.
        run = rows - np.maximum.accumulate(np.where(inside, 0, rows))
        drop &= run > 2
        kept = sketch[~drop]
        # One after the other: the order decides the rounding.
        np.add.at(kept, np.cumsum(~drop)[drop] - 1, sketch[drop])
        sketch = kept
    return sketch


def training_batches(
    split: Split,
    hparams: HParams,
    steps: int,
    *,
    first_pass: int = 0,
    first_batch: int = 0,
    workers: int | None = None,
    shape: BatchShape = WHOLE,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, pass after pass, each pass in an order of its own; see `make_batch`.

    A pass has `len(split) // batch_size` batches: the rest is left out of it.

    Args:
        split: the training sketches, at least batch_size of them.
        hparams: the options.
        steps: T.
        first_pass: passes already made.
        first_batch: batches already made of that pass.
        workers: processes (one: a thread) that prepare batches; None: half as many as there are
            cores.
        shape: of the batches, and the part of each batch that is wanted.
    """
    size = hparams.batch_size

    def plans():
        number, batch = first_pass, first_batch
        while True:
            order = _rng(hparams, ORDER_STREAM, number).permutation(len(split))
            for start in range(batch * size, len(split) // size * size, size):
                yield order[start : start + size], number
            number, batch = number + 1, 0

    prepare = _TrainingBatch(split, hparams, steps, shape)
    return prefetch(prepare, plans(), workers, processes=True)


def evaluation_batches(
    split: Split,
    hparams: HParams,
    *,
    stream: str,
    workers: int | None = None,
    shape: BatchShape = WHOLE,
) -> Iterator[dict[str, np.ndarray]]:
    """Every sketch once, in order, nothing masked or augmented; see `make_batch`.

    The last batch may be smaller, and a batch has as many steps as its longest sketch has rows:
    behind a sketch's end nothing counts in evaluation.

    Args:
        split: the sketches.
        hparams: the options.
        stream: the split's name, which with the sketch's position decides its random numbers.
        workers: as in `training_batches`.
        shape: as in `training_batches`.
    """
    if shape.granule:
        # Sizes vary more than in training, where sketches of all categories are mixed.
        shape = replace(shape, granule=4 * shape.granule)
    size = hparams.batch_size
    plans = (range(i, min(i + size, len(split))) for i in range(0, len(split), size))
    prepare = _EvaluationBatch(split, hparams, SPLITS.index(stream), shape)
    return prefetch(prepare, plans, workers, processes=True)


@dataclass(frozen=True)
class _TrainingBatch:
    """Makes a batch of sketches and the number of a pass; see `training_batches`."""

    split: Split
    hparams: HParams
    steps: int
    shape: BatchShape

    def __call__(self, plan: tuple[np.ndarray, int]) -> dict[str, np.ndarray]:
        members, number = plan
        hparams = self.hparams
        rngs = [_rng(hparams, SKETCH_STREAM, number, i) for i in members]
        sketches = [
            augment(self.split.sketch(i), hparams, rng)
            for i, rng in zip(members, rngs, strict=True)
        ]
        return make_batch(sketches, hparams, self.steps, rngs, hparams.mask_prob, self.shape)


@dataclass(frozen=True)
class _EvaluationBatch:
    """Makes a batch of sketches that follow one another; see `evaluation_batches`."""

    split: Split
    hparams: HParams
    stream: int
    shape: BatchShape

    def __call__(self, members: range) -> dict[str, np.ndarray]:
        sketches = [self.split.sketch(i) for i in members]
        steps = max(map(len, sketches))
        if self.shape.granule:
            longest = int(self.split.lengths.max())
            steps = min(_round_up(steps, -(-longest // EVALUATED_STEPS)), longest)
            sketches += [NO_SKETCH] * (self.hparams.batch_size - len(sketches))
        rngs = [
            _rng(self.hparams, EVALUATION_STREAM, self.stream, members[0] + i)
            for i in range(len(sketches))
        ]
        return make_batch(sketches, self.hparams, steps, rngs, 0.0, self.shape)


def make_batch(
    sketches: list[np.ndarray],
    hparams: HParams,
    steps: int,
    rngs: list[np.random.Generator],
    mask_prob: float,
    shape: BatchShape = WHOLE,
) -> dict[str, np.ndarray]:
    """One batch of B sketches, stroke-3 in model units, with their random numbers.

    A sketch without any rows counts nowhere in an evaluation.

    Returns:
        pictures: uint8 (N, S, S), 1 <= N <= 1 + B * G: every picture that is not blank, behind
            a blank one that serves all blank nodes. Where `shape` says so, N is larger, and
            only this part's pictures and sketches are here; `nodes` counts over all parts'.
        nodes: int32 (B, G), the picture of each node.
        graph_masks: float32 (B, P, P).
        strokes: float32 (B, steps + 1, 5), stroke-5.
        eps: float32 (B, Z), standard normal, for drawing z.
        dropout_seed: int32 (B,), for the decoder's dropout.
    """
    room = _picture_room(sketches, hparams, shape)
    sketches, rngs = shape.own(sketches), shape.own(rngs)
    seeds = [rng.random(hparams.graph_number - 1) for rng in rngs]
    graphs = pack_graphs(sketches, hparams, mask_prob=mask_prob, seeds=seeds, room=room)
    graphs["nodes"] += shape.part * room
    graphs["graph_masks"][[len(sketch) == 0 for sketch in sketches]] = 0
    return {
        **graphs,
        "strokes": to_stroke5(sketches, steps),
        "eps": np.stack([rng.standard_normal(hparams.z_size, np.float32) for rng in rngs]),
        "dropout_seed": np.array([rng.integers(2**31) for rng in rngs], np.int32),
    }


def pack_graphs(
    sketches: list[np.ndarray],
    hparams: HParams,
    *,
    mask_prob: float = 0.0,
    seeds: list[np.ndarray] | None = None,
    masking: str = "patch",
    room: int = 0,
) -> dict[str, np.ndarray]:
    """The graphs of B sketches, each distinct picture once.

    Args:
        sketches: stroke-3 in model units; one of fewer than two rows is a blank canvas.
        hparams: graph_number and graph_picture_size are read.
        mask_prob: see `utils.make_graph`.
        seeds: for each sketch its uniform numbers, see `utils.make_graph`.
        masking: see `utils.make_graph`.
        room: fewest pictures, filled up with blank ones.

    Returns:
        pictures, nodes and graph_masks as in `make_batch`.
    """
    graph, side = hparams.graph_number, hparams.graph_picture_size
    # Fresh memory costs the system as much time as the pictures themselves.
    most = max(1 + len(sketches) * graph, room)
    pictures = used_memory(most * side * side).reshape(most, side, side)
    pictures[0] = 0
    filled = 1
    nodes = np.zeros((len(sketches), graph), np.int32)
    linked = np.zeros((len(sketches), graph - 1), np.float32)
    linked[:, 0] = 1
    drawn = [i for i, sketch in enumerate(sketches) if len(sketch) > 1]
    layouts = utils.lay_out([sketches[i] for i in drawn], side)
    for i, layout in zip(drawn, layouts, strict=True):
        n_patches = min(len(layout.centers), graph - 1)
        erase = utils.choose_erased(n_patches, mask_prob, seeds[i] if seeds else None)
        slots, masked = utils.cut_nodes(layout, erase, pictures[filled:], masking=masking)
        nodes[i, : len(slots)] = [0 if slot == utils.BLANK else filled + slot for slot in slots]
        filled += 1 + max(slots)
        linked[i] = utils.linked_nodes(n_patches, masked, graph)
    masks = linked[:, :, None] * linked[:, None]
    pictures[filled:room] = 0
    return {"pictures": pictures[: max(filled, room)], "nodes": nodes, "graph_masks": masks}


def _picture_room(sketches: list[np.ndarray], hparams: HParams, shape: BatchShape) -> int:
    """How many pictures each part of a batch gets, found without drawing; 0: as many as it has."""
    if shape.granule is None:
        return 0
    counts = [1 + utils.count_patches(sketch, hparams.graph_number) for sketch in sketches]
    most = max(sum(replace(shape, part=part).own(counts)) for part in range(shape.parts))
    return _round_up(1 + most, shape.granule)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _rng(hparams: HParams, *key: int) -> np.random.Generator:
    return np.random.default_rng([hparams.seed, *map(int, key)])
