"""Batches of sketches to codes, batches of codes to sketches.

The random numbers of a sketch come from (seed, its key) alone, so what is generated from a code
does not depend on the other sketches of a run.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator

import keras
import numpy as np
from keras import ops

import dataset
from model import MIXTURES, SPGra2Seq, split_outputs

GENERATION_STREAM = 3  # first entry of the random streams' keys; see `dataset`
FEWEST_PICTURES = 32  # of a quarter of the step in which JAX's batches grow
CHUNK = 8  # steps between two looks at which sketches have ended
DEFAULT_TEMPERATURE = 0.24
ROW_BLOCK = 8  # a batch is widened to a multiple of it, by at most 8 such blocks
DRAWS = 4  # random numbers of a step: mixture, pen state, two coordinates


def compiled(function: Callable, model: SPGra2Seq) -> Callable:
    """`function`, which reads the model's variables, compiled for the backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=True, autograph=False)
    if backend == "jax":
        import jax

        variables = model.weights

        @jax.jit
        def run(values, *args):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(*args)

        return lambda *args: run([v.value for v in variables], *args)
    return function


def encode(
    model: SPGra2Seq,
    items: Iterable[tuple[Hashable, dict[str, np.ndarray]]],
    *,
    jit: bool = True,
) -> Iterator[tuple[Hashable, np.ndarray]]:
    """Codes of packed sketches.

    Args:
        model: the model.
        items: (keys, graphs) pairs: the keys of B sketches and what `dataset.pack_graphs` makes
            of them.
        jit: compile first, which pays for more than a few batches.

    Yields:
        (key, mu), mu float32 (Z,), sketch by sketch.
    """

    def mu(pictures, nodes, graph_masks):
        return model.encode_embeddings(model.embed(pictures, nodes), graph_masks)[0]

    run = compiled(mu, model) if jit else mu
    few_shapes = keras.backend.backend() == "jax"  # it compiles anew for each
    most = 0
    for keys, graphs in items:
        arrays = [graphs[name] for name in ("pictures", "nodes", "graph_masks")]
        if few_shapes:
            most = max(most, len(keys))
            arrays = _fill_up(*arrays, sketches=most)
        codes = ops.convert_to_numpy(run(*arrays))
        yield from zip(keys, codes[: len(keys)], strict=True)


def _fill_up(pictures, nodes, graph_masks, sketches):
    """Packed sketches behind which stand blank ones, and blank pictures up to a round number."""
    granule = 4 * max(sketches, FEWEST_PICTURES)

    def fill(array, size):
        return np.pad(array, [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)])

    return (
        fill(pictures, -(-len(pictures) // granule) * granule),
        fill(nodes, sketches),
        fill(graph_masks, sketches),
    )


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
) -> Iterator[tuple[Hashable, np.ndarray]]:
    """Draws a sketch from each code.

    A sketch that has ended leaves the batch and a waiting one enters, so the work follows the
    rows drawn.

    Args:
        model: the model.
        codes: (key, z) pairs, z float32 (Z,); a key is a tuple of integers, which together with
            the seed decides the sketch's random numbers.
        steps: T, the most rows of a sketch.
        temperature: tau in (0, 1] or above: mixture and pen logits are divided by it, standard
            deviations multiplied.
        greedy: take the most likely mixture's mean and the most likely pen state instead.
        seed: of the random numbers.
        batch_size: sketches drawn at a time; some more where that makes them all round alike.
        jit: compile first, which pays for more than a few sketches.

    Yields:
        (key, sketch), stroke-3 float64 (n, 3), 0 <= n <= steps, in model units, in the order in
        which sketches end.
    """
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
    rows = np.zeros((batch_size, 5), np.float32)
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
            drawn[slot].append(new)
            if len(ends) or position[slot] >= steps:
                sketch = np.concatenate(drawn[slot])[:steps, [0, 1, 3]].astype(np.float64)
                yield key, sketch
                keys[slot], position[slot] = None, 0


def _even_width(draw: Callable, model: SPGra2Seq, batch_size: int) -> int:
    """The fewest rows from batch_size on that come out alike wherever they stand in a batch.

    Of some widths a matrix product rounds a few rows otherwise than the rest, which ones depends
    on the machine; a sketch would then depend on the place that happens to be free for it.
    """
    rng = np.random.default_rng(0)
    sizes = (model.hparams.z_size, 5, *model.decoder.cell.state_sizes)
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
        start = ops.convert_to_tensor(np.array([dataset.START_ROW], np.float32))
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
