"""Batches of sketches to codes, batches of codes to sketches.

The random numbers of a sketch come from (seed, its key) alone, so what is generated from a code
does not depend on the other sketches of a run.
"""

from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from batches import NO_SKETCH, START_ROW, make_graphs
from model import MIXTURES, SPGra2Seq, split_outputs
from rnn import ROW_WIDTH
from support.backend import compiled, keras, ops
from support.checks import check_real
from support.devices import device_sender
from support.files import UserError
from support.random_streams import GENERATION_STREAM
from support.workers import prefetch
from utils import Box

ENCODING_BATCH = 32
CHUNK = 8  # steps between two looks at which sketches have ended
DEFAULT_TEMPERATURE = 0.24
# Below, float32 logits divided by it overflow; above, every sketch is noise.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 100.0
ROW_BLOCK = 8  # a batch is widened to a multiple of it, by at most 8 such blocks
DRAWS = 4  # random numbers of a step: mixture, pen state, two coordinates


class Encoded(NamedTuple):
    """A sketch and its code.

    Attributes:
        key: the sketch's.
        code: mu, float32 (Z,).
        graph: its nodes, as `drawing.draw_graph` shows them. The next batches may overwrite them
            unless a reference is kept.
        adjacency: float32 (N, N), between them.
    """

    key: Hashable
    code: np.ndarray
    graph: Any
    adjacency: np.ndarray


def encode_sketches(
    model: SPGra2Seq,
    sketches: Sequence[np.ndarray],
    *,
    mask_prob: float = 0.0,
    seeds: Sequence[np.ndarray] | None = None,
    masking: str = "patch",
    holes: Sequence[Box | None] | None = None,
    keys: Sequence[Hashable] | None = None,
    wanted: Container[Hashable] | None = None,
    workers: int | None = None,
    jit: bool = True,
) -> Iterator[Encoded]:
    """Codes of sketches, which threads crop ahead.

    Args:
        model: the model.
        sketches: stroke-3 (n, 3) in model units; one of fewer than two rows is a blank canvas.
        mask_prob: see `batches.make_graphs`.
        seeds: see `batches.make_graphs`.
        masking: see `batches.make_graphs`.
        holes: see `batches.make_graphs`.
        keys: names of the sketches; None: their positions.
        wanted: the keys whose codes are wanted; None: all. A code's last bits depend on its
            neighbours, so these stay in the batches that they would be in without it.
        workers: threads that crop; None: half as many as there are cores.
        jit: compile first, which pays for more than a few batches.

    Yields:
        The codes, in order.

    Raises:
        UserError: a code that is not finite.
    """
    keys = range(len(sketches)) if keys is None else keys
    count = len(sketches)
    batches = [range(i, min(i + ENCODING_BATCH, count)) for i in range(0, count, ENCODING_BATCH)]
    if wanted is not None:
        batches = [batch for batch in batches if any(keys[i] in wanted for i in batch)]
    # JAX compiles a program for each shape: a last, smaller batch is filled up.
    filled_up = keras.backend.backend() == "jax" and len(batches) > 1
    to_device = device_sender()

    def make(members: range):
        empty = ENCODING_BATCH - len(members) if filled_up else 0
        nodes, graphs = make_graphs(
            [*(sketches[i] for i in members), *[NO_SKETCH] * empty],
            model.hparams,
            mask_prob=mask_prob,
            seeds=None if seeds is None else [seeds[i] for i in members],
            masking=masking,
            holes=None if holes is None else [*(holes[i] for i in members), *[None] * empty],
        )
        return to_device(nodes), graphs

    def encode_nodes(nodes):
        found = model.encode_nodes(nodes)
        return found.mu, found.adjacency

    encode = compiled(encode_nodes, model) if jit else encode_nodes
    for members, (nodes, graphs) in zip(batches, prefetch(make, batches, workers), strict=True):
        mu, adjacency = encode(nodes)
        mu, adjacency = ops.convert_to_numpy(mu), ops.convert_to_numpy(adjacency)
        for place, i in enumerate(members):
            if wanted is None or keys[i] in wanted:
                if not np.isfinite(mu[place]).all():
                    raise UserError(f"the code of sketch {keys[i]} is not finite")
                yield Encoded(keys[i], mu[place], graphs[place], adjacency[place])


class Generated(NamedTuple):
    """A sketch drawn from a code.

    Attributes:
        key: the code's.
        code: z, float32 (Z,).
        sketch: stroke-3, float64 (n, 3), 0 <= n <= T, in model units.
    """

    key: Hashable
    code: np.ndarray
    sketch: np.ndarray


def generate(
    model: SPGra2Seq,
    codes: Iterable[tuple[Hashable, np.ndarray]],
    steps: int,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    greedy: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    jit: bool = True,
) -> Iterator[Generated]:
    """Draws a sketch from each code.

    A sketch that has ended leaves the batch and a waiting one enters, so the work follows the
    rows drawn.

    Args:
        model: the model.
        codes: (key, z) pairs, z float32 (Z,); a key is a tuple of integers, which together with
            the seed decides the sketch's random numbers.
        steps: T, the most rows of a sketch.
        temperature: tau, from 0.001 to 100, usually at most 1: mixture and pen logits are
            divided by it, standard deviations multiplied.
        greedy: take the most likely mixture's mean and the most likely pen state instead.
        seed: of the random numbers.
        batch_size: sketches drawn at a time; some more where that makes them all round alike.
        jit: compile first, which pays for more than a few sketches.

    Yields:
        The sketches, in the order in which they end.

    Raises:
        UserError: a temperature out of bounds; a row that is not finite.
    """
    check_real("temperature", temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
    decoder, width = model.decoder, model.hparams.z_size
    draw = chunk_function(decoder, temperature, greedy)
    if jit:
        draw = compiled(draw, model)
    batch_size = _even_width(draw, model, batch_size)
    waiting = iter(codes)
    keys: list[Hashable | None] = [None] * batch_size
    drawn: list[list[np.ndarray]] = [[] for _ in range(batch_size)]
    z = np.zeros((batch_size, width), np.float32)
    randoms = np.zeros((batch_size, steps + CHUNK, DRAWS), np.float32)
    position = np.zeros(batch_size, np.int64)
    rows = np.zeros((batch_size, ROW_WIDTH), np.float32)
    state = tuple(np.zeros((batch_size, n), np.float32) for n in decoder.cell.state_sizes)
    fresh = np.ones(batch_size, bool)
    while True:
        for slot in range(batch_size):
            if keys[slot] is None and (item := next(waiting, None)) is not None:
                keys[slot], z[slot] = item
                randoms[slot, :steps] = _random_numbers(seed, keys[slot], steps)
                position[slot], drawn[slot], fresh[slot] = 0, [], True
        if not any(key is not None for key in keys):
            return
        window = position[:, None] + np.arange(CHUNK)
        chunk_randoms = randoms[np.arange(batch_size)[:, None], window]
        rows, state, chunk = draw(z, fresh, rows, state, chunk_randoms)
        chunk = ops.convert_to_numpy(chunk)
        fresh = np.zeros(batch_size, bool)
        position += CHUNK
        for slot, key in enumerate(keys):
            if key is None:
                position[slot] = 0
                continue
            new = chunk[slot]
            ends = np.flatnonzero(new[:, 4])
            if len(ends):
                new = new[: ends[0]]
            if not np.isfinite(new).all():
                raise UserError(
                    f"the model draws values that are not finite, from the code of sketch {key}; "
                    "nothing of it is kept; are the weights or the code damaged?"
                )
            drawn[slot].append(new)
            if len(ends) or position[slot] >= steps:
                sketch = np.concatenate(drawn[slot])[:steps, [0, 1, 3]].astype(np.float64)
                yield Generated(key, z[slot].copy(), sketch)
                keys[slot], position[slot] = None, 0


def _even_width(draw: Callable, model: SPGra2Seq, batch_size: int) -> int:
    """The fewest rows from batch_size on that come out alike wherever they stand in a batch.

    At some widths a matrix product rounds a few rows in another way than the rest. Which rows,
    depends on the machine. A sketch would then depend on its place in the batch.
    """
    rng = np.random.default_rng(0)
    sizes = (model.hparams.z_size, ROW_WIDTH, *model.decoder.cell.state_sizes)
    z, rows, *state = (rng.standard_normal((1, n)).astype(np.float32) for n in sizes)
    randoms = rng.random((1, CHUNK, DRAWS), np.float32)
    block = -(-batch_size // ROW_BLOCK)
    for width in (batch_size, *(ROW_BLOCK * n for n in range(block, block + 9))):
        arguments = (z, np.zeros(1, bool), rows, tuple(state), randoms)
        wide = keras.tree.map_structure(lambda a, n=width: np.repeat(a, n, axis=0), arguments)
        drawn = map(ops.convert_to_numpy, keras.tree.flatten(draw(*wide)))
        if all(np.array_equal(a, np.repeat(a[:1], width, 0), equal_nan=True) for a in drawn):
            return width
    return batch_size


def _random_numbers(seed: int, key: Hashable, steps: int) -> np.ndarray:
    """Two uniform and two normal numbers a step, float32 (steps, 4)."""
    rng = np.random.default_rng([seed, GENERATION_STREAM, *key])
    return np.concatenate([rng.random((steps, 2)), rng.standard_normal((steps, 2))], axis=1)


def chunk_function(decoder, temperature: float, greedy: bool) -> Callable:
    """A function that draws CHUNK rows of each sketch of a batch."""

    def draw(z, fresh, rows, state, randoms):
        z, fresh = ops.convert_to_tensor(z), ops.convert_to_tensor(fresh)[:, None]
        start = ops.convert_to_tensor(np.array([START_ROW], np.float32))
        rows = ops.where(fresh, start, rows)
        state = tuple(
            ops.where(fresh, new, old)
            for new, old in zip(decoder.initial_state(z), state, strict=True)
        )
        code_part = decoder.cell.project_code(z)
        chunk = []
        for step in range(CHUNK):
            hidden, state = decoder.cell.step(decoder.cell.project(rows, code_part), state)
            outputs = ops.matmul(hidden, decoder.output_kernel)
            rows = sample_rows(outputs, randoms[:, step], temperature, greedy)
            chunk.append(rows)
        return rows, state, ops.stack(chunk, axis=1)

    return draw


def sample_rows(outputs, randoms, temperature: float, greedy: bool):
    """Stroke-5 rows (B, 5) drawn from raw decoder outputs (B, 3 + 6 M).

    Args:
        outputs: raw outputs.
        randoms: (B, 4): uniform for the mixture, uniform for the pen state, two normal.
        temperature: see `generate`.
        greedy: see `generate`.
    """
    pen, pi, mu_x, mu_y, log_sigma_x, log_sigma_y, rho = split_outputs(outputs)
    if greedy:
        mixture = ops.one_hot(ops.argmax(pi, axis=-1), MIXTURES, dtype=outputs.dtype)
        pen_state = ops.argmax(pen, axis=-1)
    else:
        mixture = ops.one_hot(
            _pick(pi / temperature, randoms[:, :1]), MIXTURES, dtype=outputs.dtype
        )
        pen_state = _pick(pen / temperature, randoms[:, 1:2])

    def chosen(parameter):
        return ops.sum(parameter * mixture, axis=-1)

    x, y = chosen(mu_x), chosen(mu_y)
    if not greedy:
        normal_x, normal_y = randoms[:, 2], randoms[:, 3]
        rho = ops.tanh(chosen(rho))
        x = x + temperature * ops.exp(chosen(log_sigma_x)) * normal_x
        correlated = rho * normal_x + ops.sqrt(1 - ops.square(rho)) * normal_y
        y = y + temperature * ops.exp(chosen(log_sigma_y)) * correlated
    pens = ops.one_hot(pen_state, 3, dtype=outputs.dtype)
    return ops.concatenate([x[:, None], y[:, None], pens], axis=-1)


def _pick(logits, uniform):
    """Index (B,) drawn from softmax(logits), (B, n), by a uniform number (B, 1) in [0, 1)."""
    cumulative = ops.cumsum(ops.softmax(logits, axis=-1), axis=-1)
    below = ops.sum(ops.cast(cumulative <= uniform, "int32"), axis=-1)
    return ops.minimum(below, logits.shape[-1] - 1)
