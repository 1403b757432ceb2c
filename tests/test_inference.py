"""Codes and generated sketches: the published ones, the right law, each sketch on its own."""

import golden_data
import numpy as np
import pytest

import checkpoints
import inference
import utils
from doodles import doodle
from hparams import HParams
from import_checkpoint import import_checkpoint
from model import MIXTURES, OUTPUT_WIDTH, SPGra2Seq, split_outputs
from support.files import UserError
from support.random_streams import GENERATION_STREAM

STEPS = 20


def small_model(dec_model="lstm"):
    """A model whose untrained sketches have a few rows each."""
    hparams = HParams(
        batch_size=4,
        dec_rnn_size=16,
        z_size=5,
        num_mixture=3,
        dec_model=dec_model,
        graph_number=6,
        graph_picture_size=16,
    )
    model = SPGra2Seq(hparams)
    kernel = np.asarray(model.decoder.output_kernel) + 0
    kernel[:, 2] *= 0.2  # ends later
    model.decoder.output_kernel.assign(kernel)
    return model


def codes(count, width=5):
    z = np.random.default_rng(1).standard_normal((count, width)).astype(np.float32)
    return [((0, i), z[i]) for i in range(count)]


def sketches_of(drawn):
    return {found.key: found.sketch for found in drawn}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The reference checkpoint, imported."""
    folder = tmp_path_factory.mktemp("imported") / "model"
    import_checkpoint(golden_data.CHECKPOINT, folder)
    return checkpoints.load_model(folder)


@pytest.mark.slow
def test_greedy_sketches_are_the_published_ones(published):
    """Greedy decoding gives the published rows, lengths 0 and T included, as float64."""
    reference = golden_data.load("decode_greedy_lstm.npz")
    items = [((0, i), z) for i, z in enumerate(reference["z"])]
    drawn = sketches_of(inference.generate(published, items, 60, greedy=True, batch_size=8))
    lengths = set()
    for (_, i), sketch in drawn.items():
        expected = reference[f"greedy/{i}/stroke3"]
        assert sketch.dtype == np.float64 and sketch.shape == expected.shape
        # Offsets are of order 1; rounding grows a little over sixty fed-back steps.
        np.testing.assert_allclose(sketch, expected, atol=1e-5)
        lengths.add(len(sketch))
    assert len(drawn) == 5 and {0, 60} <= lengths


def test_published_draws_are_replayed():
    """The published uniform numbers choose the published component and pen state, and the
    offset has the published mean and covariance."""
    reference = golden_data.load("decode_greedy_lstm.npz")
    for i in range(len(reference["z"])):
        sampled = {
            name: reference[f"sampled/{i}/{name}"]
            for name in ("raw_output", "uniforms", "mean_cov_draw", "inputs")
        }
        raw = sampled["raw_output"]
        uniforms = sampled["uniforms"].reshape(-1, 2)
        mean_cov = sampled["mean_cov_draw"]

        def rows(x, y, raw=raw, uniforms=uniforms):
            normals = np.broadcast_to([x, y], uniforms.shape)
            numbers = np.concatenate([uniforms, normals], 1).astype(np.float32)
            return np.asarray(inference.sample_rows(raw, numbers, 0.24, False), np.float64)

        mean = rows(0, 0)
        np.testing.assert_allclose(mean[:, :2], mean_cov[:, :2], rtol=1e-5, atol=1e-5)
        factor_x, factor_y = rows(1, 0)[:, :2] - mean[:, :2], rows(0, 1)[:, :2] - mean[:, :2]
        covariance = np.stack(
            [
                factor_x[:, 0] ** 2 + factor_y[:, 0] ** 2,
                factor_x[:, 0] * factor_x[:, 1] + factor_y[:, 0] * factor_y[:, 1],
                factor_x[:, 1] ** 2 + factor_y[:, 1] ** 2,
            ],
            axis=1,
        )
        # Differences of float32 numbers of order 1.
        np.testing.assert_allclose(covariance, mean_cov[:, 2:5], rtol=1e-4, atol=1e-5)
        # The next step was fed the pen state that was drawn.
        np.testing.assert_array_equal(mean[:-1, 2:], sampled["inputs"][1:, 2:])


@pytest.mark.slow
def test_rows_follow_the_mixture():
    """Frequencies, means and covariances are the analytic ones at a temperature."""
    count, temperature = 200_000, 0.6
    rng = np.random.default_rng(0)
    outputs = np.full(OUTPUT_WIDTH, 0.0)
    outputs[:3] = [0.5, -0.2, -0.6]
    outputs[3 : 3 + MIXTURES] = -40  # two components share nearly everything
    outputs[[3, 10]] = [0.3, -0.4]
    mu_x, mu_y, sx, sy, rho = (3 + MIXTURES * k for k in range(1, 6))
    outputs[[mu_x, mu_x + 7, mu_y, mu_y + 7]] = [5, -5, 1, 2]
    outputs[[sx, sx + 7, sy, sy + 7]] = np.log([0.5, 1.0, 0.8, 0.3])
    outputs[[rho, rho + 7]] = np.arctanh([0.7, -0.5])
    numbers = np.concatenate([rng.random((count, 2)), rng.standard_normal((count, 2))], 1)
    batch = np.repeat(outputs[None], count, 0).astype(np.float32)
    rows = np.asarray(
        inference.sample_rows(batch, numbers.astype(np.float32), temperature, False), np.float64
    )
    first = rows[:, 0] > 0
    share = 1 / (1 + np.exp(-0.7 / temperature))
    bound = 5 / np.sqrt(count)  # five standard errors or more
    assert abs(first.mean() - share) < 0.5 * bound
    pen = np.exp(outputs[:3] / temperature)
    np.testing.assert_allclose(rows[:, 2:].mean(0), pen / pen.sum(), atol=0.5 * bound)
    for chosen, mean, deviations, correlation in (
        (first, (5, 1), (0.5, 0.8), 0.7),
        (~first, (-5, 2), (1.0, 0.3), -0.5),
    ):
        part = rows[chosen, :2]
        scaled = temperature * np.array(deviations)
        error = 5 / np.sqrt(len(part))
        assert (np.abs(part.mean(0) - mean) < error * scaled).all()
        np.testing.assert_allclose(part.std(0), scaled, rtol=error)
        assert abs(np.corrcoef(part.T)[0, 1] - correlation) < error


def one_by_one(model, key, z, steps, seed=0, temperature=0.24):
    """A sketch drawn alone, row by row, with its own random numbers."""
    rng = np.random.default_rng([seed, GENERATION_STREAM, *key])
    numbers = np.concatenate([rng.random((steps, 2)), rng.standard_normal((steps, 2))], 1)
    numbers = numbers.astype(np.float32)
    decoder = model.decoder
    state, code = decoder.initial_state(z[None]), decoder.cell.project_code(z[None])
    row, sketch = np.array([[0, 0, 1, 0, 0]], np.float32), []
    for step in range(steps):
        hidden, state = decoder.cell.step(decoder.cell.project(row, code), state)
        outputs = np.asarray(hidden) @ np.asarray(decoder.output_kernel)
        row = np.asarray(
            inference.sample_rows(outputs, numbers[step : step + 1], temperature, False)
        )
        if row[0, 4]:
            break
        sketch.append(row[0, [0, 1, 3]])
    return np.array(sketch, np.float64).reshape(-1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dec_model", ["lstm", "layer_norm", "hyper"])
def test_batches_draw_what_one_by_one_draws(dec_model):
    """Leaving, entering, chunks and cuts change nothing, for each decoder."""
    model, items = small_model(dec_model), codes(11)
    drawn = sketches_of(inference.generate(model, items, STEPS, batch_size=4))
    assert set(drawn) == {key for key, _ in items}
    lengths = {len(sketch) for sketch in drawn.values()}
    assert len(lengths) > 2 and max(lengths) <= STEPS
    for key, z in items:
        alone = one_by_one(model, key, z, STEPS)
        # The same draws unless rounding moves one over an edge, which these seeds don't meet.
        np.testing.assert_allclose(drawn[key], alone, atol=1e-4)


@pytest.mark.slow
def test_a_sketch_is_its_own(published):
    """Order and neighbours change not a bit; another batch size or no compilation only rounding."""
    rng = np.random.default_rng(2)
    items = [((1, i), rng.standard_normal(16).astype(np.float32)) for i in range(150)]
    drawn = sketches_of(inference.generate(published, items, 60, batch_size=64))
    again = sketches_of(inference.generate(published, items[::-1], 60, batch_size=64))
    few = sketches_of(inference.generate(published, items[70:73], 60, batch_size=64))
    for key, sketch in drawn.items():
        np.testing.assert_array_equal(sketch, again[key])
    for key, sketch in few.items():
        np.testing.assert_array_equal(sketch, drawn[key])
    other = sketches_of(inference.generate(published, items, 60, batch_size=48))
    plain = sketches_of(inference.generate(published, items[:16], 60, batch_size=64, jit=False))
    for sketches in (other, plain):
        differ = [
            key
            for key, sketch in sketches.items()
            if sketch.shape != drawn[key].shape or not np.allclose(sketch, drawn[key], atol=1e-4)
        ]
        assert len(differ) <= 2  # a draw on an edge, about one in a million rows


@pytest.mark.slow
def test_seed_and_key_decide():
    """Another seed or another key draws another sketch from the same code."""
    model = small_model()
    z = codes(1)[0][1]
    items = [((0, i), z) for i in range(8)]
    drawn = sketches_of(inference.generate(model, items, STEPS, batch_size=8))
    assert len({sketch.tobytes() for sketch in drawn.values()}) > 4
    other = sketches_of(inference.generate(model, items, STEPS, batch_size=8, seed=1))
    assert any(drawn[key].tobytes() != other[key].tobytes() for key in drawn)


@pytest.mark.slow
def test_nothing_to_draw():
    """No codes, no sketches."""
    assert list(inference.generate(small_model(), [], STEPS, batch_size=4)) == []


@pytest.mark.slow
def test_what_is_generated_says_from_what():
    """Each sketch comes with its key and the very code that it was drawn from."""
    items = codes(9)
    drawn = list(inference.generate(small_model(), items, STEPS, batch_size=4))
    assert sorted(found.key for found in drawn) == [key for key, _ in items]
    for found in drawn:
        np.testing.assert_array_equal(found.code, dict(items)[found.key])


def some_sketches(count):
    """Doodles in model units, and two that are blank."""
    rng = np.random.default_rng(3)
    names = ("fish", "tree", "house")
    sketches = [doodle(names[i % 3], rng).astype(np.float32) for i in range(count)]
    sketches[1], sketches[-1] = sketches[1][:1], sketches[-1][:0]
    return sketches


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_codes_are_the_models(jit, monkeypatch):
    """Codes, graphs and adjacencies are those of each sketch alone, in order, compiled or not."""
    monkeypatch.setattr(inference, "ENCODING_BATCH", 4)
    model, sketches = small_model(), some_sketches(10)
    seeds = [np.random.default_rng(i).random(5) for i in range(10)]
    keys = [f"sketch {i}" for i in range(10)]
    found = list(
        inference.encode_sketches(
            model, sketches, mask_prob=0.5, seeds=seeds, keys=keys, workers=2, jit=jit
        )
    )
    assert [encoded.key for encoded in found] == keys
    masked = 0
    for encoded, sketch, own_seeds in zip(found, sketches, seeds, strict=True):
        patches, n, erased = np.zeros((6, 16, 16), np.uint8), 0, []
        if len(sketch) > 1:
            graph = utils.make_graph(
                sketch, graph_number=6, graph_picture_size=16, mask_prob=0.5, seeds=own_seeds
            )
            patches, n, erased = graph.patches, graph.n_patches, graph.masked
        mask = utils.graph_mask(n, erased, 6)
        mu, _ = model.encode(patches[None], mask[None])
        adjacency = model.adjacency(patches[None], mask[None])
        # Products of other sizes round otherwise.
        np.testing.assert_allclose(encoded.code, mu[0], atol=1e-5)
        np.testing.assert_allclose(encoded.adjacency, adjacency[0], atol=1e-5)
        np.testing.assert_array_equal(encoded.graph.patches, patches)
        assert (encoded.graph.n_patches, encoded.graph.masked) == (n, erased)
        masked += len(erased)
    assert masked > 5


@pytest.mark.slow
def test_only_wanted_codes_come(monkeypatch):
    """Some of the codes are, to the last bit, what they are among all; batches without any are
    not encoded at all."""
    monkeypatch.setattr(inference, "ENCODING_BATCH", 3)
    model, sketches = small_model(), some_sketches(11)
    every = {found.key: found.code for found in inference.encode_sketches(model, sketches)}
    assert list(every) == list(range(11))
    encoded, encode = [], model.encode_nodes

    def counting(nodes):
        encoded.append(len(nodes["patches"]))
        return encode(nodes)

    monkeypatch.setattr(model, "encode_nodes", counting)
    wanted = {4, 9, 10}
    some = {
        found.key: found.code
        for found in inference.encode_sketches(model, sketches, wanted=wanted, jit=False)
    }
    assert list(some) == sorted(wanted) and encoded == [3, 2]
    monkeypatch.undo()
    for key, code in some.items():
        np.testing.assert_allclose(code, every[key], atol=1e-6)
    assert list(inference.encode_sketches(model, sketches, wanted=set())) == []
    assert list(inference.encode_sketches(model, [])) == []


def test_raw_outputs_are_split_in_order():
    """Pen logits, then weights, means, deviations and correlations of all mixtures."""
    parts = split_outputs(np.arange(OUTPUT_WIDTH, dtype=np.float32)[None])
    flat = np.concatenate([np.asarray(part)[0] for part in parts])
    np.testing.assert_array_equal(flat, np.arange(OUTPUT_WIDTH))


@pytest.mark.parametrize("temperature", [0, 1e-40, 9e-4, 100.1, 1e39, float("nan"), -0.24])
def test_temperatures_out_of_bounds(temperature):
    """float32 can't divide by them, or what is drawn is noise: a line before anything is drawn."""
    with pytest.raises(UserError, match="temperature: .* is not allowed"):
        next(inference.generate(small_model(), codes(1), STEPS, temperature=temperature))


@pytest.mark.parametrize("temperature", [inference.MIN_TEMPERATURE, inference.MAX_TEMPERATURE])
@pytest.mark.slow
def test_temperatures_at_the_bounds(temperature):
    """What is drawn is finite there."""
    drawn = list(inference.generate(small_model(), codes(3), STEPS, temperature=temperature))
    assert len(drawn) == 3 and all(np.isfinite(found.sketch).all() for found in drawn)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.slow
def test_what_is_not_finite_is_no_sketch(value, greedy):
    """Damaged codes and damaged weights end in a line that names the sketch."""
    model = small_model()
    items = [(key, np.full_like(code, np.nan)) for key, code in codes(2)]
    with pytest.raises(UserError, match="values that are not finite, from the code of sketch"):
        list(inference.generate(model, items, STEPS, greedy=greedy, batch_size=4))
    kernel = model.decoder.output_kernel
    kernel.assign(np.full(kernel.shape, value, np.float32))
    with pytest.raises(UserError, match="not finite"):
        list(inference.generate(model, codes(2), STEPS, greedy=greedy, batch_size=4))
