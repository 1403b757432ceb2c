"""Sketches to batches: augmentation, stroke-5, and the nodes that the method makes of a sketch.

Everything random is a function of (seed, epoch, position of the sketch) or (seed, split,
position), so that batches are the same whatever the number of workers, and a run can be resumed
at any batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

import methods
import utils
from dataset import SPLITS, Split
from hparams import HParams
from support.random_streams import EVALUATION_STREAM, ORDER_STREAM, SKETCH_STREAM
from support.workers import prefetch

START_ROW = (0, 0, 1, 0, 0)
END_ROW = (0, 0, 0, 0, 1)
NO_SKETCH = np.zeros((0, 3), np.float32)
MAX_STEP_COUNTS = 4  # of an evaluation, where shapes are fixed

Batch = dict[str, np.ndarray]
Items = TypeVar("Items", list, np.ndarray, range)


@dataclass(frozen=True)
class BatchShape:
    """The shapes of batches, and which shard of each to make; by default whole batches.

    Attributes:
        shard_index: which of the equal shards of each batch to make.
        num_shards: into how many consecutive shards a batch is cut.
        fixed: a compiler that works for every new shape wants few of them: batches of an
            evaluation are filled up with steps, and with sketches that count nowhere.
    """

    shard_index: int = 0
    num_shards: int = 1
    fixed: bool = False

    def shard(self, items: Items) -> Items:
        """The shard to make of what a batch is made from."""
        size = len(items) // self.num_shards
        return items[self.shard_index * size : (self.shard_index + 1) * size]


WHOLE = BatchShape()


def training_batches(
    split: Split,
    hparams: HParams,
    steps: int,
    *,
    first_epoch: int = 0,
    first_batch: int = 0,
    workers: int | None = None,
    shape: BatchShape = WHOLE,
) -> Iterator[Batch]:
    """Endless batches, epoch after epoch, each epoch in an order of its own; see `make_batch`.

    An epoch has `len(split) // batch_size` batches: the rest is left out of it.

    Args:
        split: the training sketches, at least batch_size of them.
        hparams: the options.
        steps: T.
        first_epoch: epochs already made.
        first_batch: batches already made of that epoch.
        workers: processes (one: a thread) that prepare batches; None: half as many as there are
            cores.
        shape: of the batches, and the shard of each batch that is wanted.
    """
    size = hparams.batch_size

    def members():
        epoch, batch = first_epoch, first_batch
        while True:
            order = _rng(hparams, ORDER_STREAM, epoch).permutation(len(split))
            for start in range(batch * size, len(split) // size * size, size):
                yield order[start : start + size], epoch
            epoch, batch = epoch + 1, 0

    make = _TrainingBatch(split, hparams, steps, shape)
    return prefetch(make, members(), workers, processes=True)


def evaluation_batches(
    split: Split,
    hparams: HParams,
    *,
    stream: str,
    workers: int | None = None,
    shape: BatchShape = WHOLE,
) -> Iterator[Batch]:
    """Every sketch once, in order, nothing masked or augmented; see `make_batch`.

    The last batch may be smaller, and a batch has as many steps as its longest sketch has rows:
    after a sketch's end nothing counts in evaluation.

    Args:
        split: the sketches.
        hparams: the options.
        stream: the split's name, which with the sketch's position decides its random numbers.
        workers: as in `training_batches`.
        shape: as in `training_batches`.
    """
    size = hparams.batch_size
    members = (range(i, min(i + size, len(split))) for i in range(0, len(split), size))
    make = _EvaluationBatch(split, hparams, SPLITS.index(stream), shape)
    return prefetch(make, members, workers, processes=True)


# Classes, not functions inside of functions, so that a worker process can be sent them.


@dataclass(frozen=True)
class _TrainingBatch:
    """Makes a batch of the sketches at some positions, in some epoch."""

    split: Split
    hparams: HParams
    steps: int
    shape: BatchShape

    def __call__(self, item: tuple[np.ndarray, int]) -> Batch:
        members, epoch = item
        rngs = [_rng(self.hparams, SKETCH_STREAM, epoch, i) for i in self.shape.shard(members)]
        sketches = [
            augment(self.split.sketch(i), self.hparams, rng)
            for i, rng in zip(self.shape.shard(members), rngs, strict=True)
        ]
        return make_batch(sketches, self.hparams, self.steps, rngs, self.hparams.mask_prob)


@dataclass(frozen=True)
class _EvaluationBatch:
    """Makes a batch of consecutive sketches."""

    split: Split
    hparams: HParams
    stream: int
    shape: BatchShape

    def __call__(self, members: range) -> Batch:
        steps = int(self.split.lengths[members.start : members.stop].max())
        if self.shape.fixed:
            longest = int(self.split.lengths.max())
            few = -(-longest // MAX_STEP_COUNTS)
            steps = min(-(-steps // few) * few, longest)
            members = range(members.start, members.start + self.hparams.batch_size)
        members = self.shape.shard(members)
        sketches = [self.split.sketch(i) if i < len(self.split) else NO_SKETCH for i in members]
        rngs = [_rng(self.hparams, EVALUATION_STREAM, self.stream, i) for i in members]
        return make_batch(sketches, self.hparams, steps, rngs, 0.0)


def make_batch(
    sketches: list[np.ndarray],
    hparams: HParams,
    steps: int,
    rngs: list[np.random.Generator],
    mask_prob: float,
) -> Batch:
    """One batch of B sketches, stroke-3 in model units, with their random numbers.

    A sketch without any rows counts nowhere in an evaluation.

    Returns:
        What `make_graphs` makes for the encoder, and
        strokes: float32 (B, steps + 1, 5), stroke-5.
        eps: float32 (B, Z), standard normal, for drawing z.
        dropout_seed: int32 (B,), for the decoder's dropout.
    """
    masking = hparams.training_masking
    seeds = [rng.random(count_seeds(hparams, masking)) for rng in rngs]
    nodes, _ = make_graphs(sketches, hparams, mask_prob=mask_prob, seeds=seeds, masking=masking)
    for values in nodes.values():
        values[[len(sketch) == 0 for sketch in sketches]] = 0
    return {
        **nodes,
        "strokes": to_stroke5(sketches, steps),
        "eps": np.stack([rng.standard_normal(hparams.z_size, np.float32) for rng in rngs]),
        "dropout_seed": np.array([rng.integers(2**31) for rng in rngs], np.int32),
    }


def make_graphs(
    sketches: list[np.ndarray],
    hparams: HParams,
    *,
    mask_prob: float = 0.0,
    seeds: list[np.ndarray] | None = None,
    masking: str = "patch",
    holes: list[utils.Box | None] | None = None,
) -> tuple[Batch, list[Any]]:
    """The nodes of B sketches, as the method makes them.

    Args:
        sketches: stroke-3 in model units; one of fewer than two rows is a blank canvas.
        hparams: the options.
        mask_prob: the share of a sketch that is erased, in [0, 1].
        seeds: for each sketch its uniform numbers, `count_seeds` of them or more.
        masking: one of the method's approaches.
        holes: for each sketch a rectangle to blank, see `utils.Box`; None: none.

    Returns:
        What the encoder takes, arrays of B rows; and for each sketch the graph that
        `drawing.draw_graph` shows.
    """
    make_nodes = methods.load(hparams.traits.nodes)
    return make_nodes(
        sketches, hparams, mask_prob=mask_prob, seeds=seeds, masking=masking, holes=holes
    )


def count_seeds(hparams: HParams, masking: str) -> int:
    """The most uniform numbers that masking a sketch takes."""
    return hparams.lattice_nodes if masking == "lattice" else hparams.graph_number - 1


def to_stroke5(sketches: list[np.ndarray], steps: int) -> np.ndarray:
    """Stroke-3 sketches of at most `steps` rows to float32 (B, steps + 1, 5).

    Row 0 is (0, 0, 1, 0, 0); after a sketch's rows (dx, dy, draw, lift, end) come end rows.
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


def _rng(hparams: HParams, *key: int) -> np.random.Generator:
    # Of this type, they are not split into words of 32 bits one by one.
    return np.random.default_rng(np.array([hparams.seed, *key], np.uint32))
