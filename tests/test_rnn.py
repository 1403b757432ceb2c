"""The decoder's cells and its dropout.

The cells are compared with float64 NumPy code written here from the papers: LSTM (Hochreiter &
Schmidhuber 1997; forget gate of Gers et al. 2000), layer normalisation (arXiv 1607.06450),
HyperNetworks (1609.09106) and recurrent dropout without memory loss (1603.05118). Gradients are
compared with the central differences of the same code.
"""

import re

import golden_data
import numpy as np
import pytest
from autodiff import gradients

import rnn
import unroll
from hparams import HParams
from model import Decoder, SPGra2Seq
from support.backend import keras, ops

CELLS = ("lstm", "layer_norm", "hyper")
UNITS, Z, STEPS, BATCH = 6, 3, 5, 3
KEEP = 0.7


# The reference.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, gain, shift):
    centred = x - x.mean(axis=-1, keepdims=True)
    return gain * centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-3) + shift


def gates_of(x):
    return dict(zip("ijfo", np.split(x, 4, axis=-1), strict=True))


def next_memory(gates, c, mask):
    candidate = np.tanh(gates["j"]) * mask
    return c * sigmoid(gates["f"] + 1) + sigmoid(gates["i"]) * candidate


def lstm(w, x, state, mask):
    c, h = state
    gates = gates_of(x @ w["W_xh"] + h @ w["W_hh"] + w["bias"])
    c = next_memory(gates, c, mask)
    return c, np.tanh(c) * sigmoid(gates["o"])


def normed_lstm(w, pre_activation, c, mask):
    pre_activation = gates_of(pre_activation)
    gain, shift = gates_of(w["ln_all/ln_gamma"]), gates_of(w["ln_all/ln_beta"])
    gates = {g: layer_norm(pre_activation[g], gain[g], shift[g]) for g in "ijfo"}
    c = next_memory(gates, c, mask)
    normed_c = layer_norm(c, w["ln_c/ln_gamma"], w["ln_c/ln_beta"])
    return np.tanh(normed_c) * sigmoid(gates["o"]), c


def layer_norm_lstm(w, x, state, mask):
    h, c = state
    return normed_lstm(w, x @ w["W_xh"] + h @ w["W_hh"], c, mask)


def hyper_lstm(w, x, state, mask):
    h, hyper_h, c, hyper_c = state
    prefix = "LayerNormLSTMCell/"
    hyper_w = {name[len(prefix) :]: w[name] for name in w if name.startswith(prefix)}
    hyper_x = np.concatenate([x, h], axis=-1)
    hyper_h, hyper_c = layer_norm_lstm(hyper_w, hyper_x, (hyper_h, hyper_c), 1.0)

    def linear(value, name):
        return value @ w[f"{name}/super_linear_w"] + w.get(f"{name}/super_linear_b", 0.0)

    x_part, h_part, bias = gates_of(x @ w["W_xh"]), gates_of(h @ w["W_hh"]), gates_of(w["bias"])
    pre_activation = []
    for g in "ijfo":
        x_scale = linear(linear(hyper_h, f"hyper_{g}x/zw"), f"hyper_{g}x/alpha")
        h_scale = linear(linear(hyper_h, f"hyper_{g}h/zw"), f"hyper_{g}h/alpha")
        shift = linear(linear(hyper_h, f"hyper_{g}h/zb"), f"hyper_{g}h/beta")
        pre_activation.append(x_scale * x_part[g] + h_scale * h_part[g] + shift + bias[g])
    h, c = normed_lstm(w, np.concatenate(pre_activation, axis=-1), c, mask)
    return h, hyper_h, c, hyper_c


REFERENCE = {"lstm": (lstm, 1), "layer_norm": (layer_norm_lstm, 0), "hyper": (hyper_lstm, 0)}


def reference(kind, w, rows, z, state, masks=None):
    """The state after every step, a list of tuples, and the hidden vectors (T, B, R)."""
    step, place_of_h = REFERENCE[kind]
    states = []
    for t in range(len(rows)):
        x = np.concatenate([rows[t], z], axis=-1)
        state = step(w, x, state, 1.0 if masks is None else masks[t])
        states.append(state)
    return states, np.stack([state[place_of_h] for state in states])


# Ours, with weights and inputs at random.


def short_name(variable):
    """The published name of a cell's variable, after that of the cell itself."""
    layer, name = variable.path.split("/")
    name = re.sub(r"ln_(all|c)_", r"ln_\1/ln_", name)
    name = re.sub(r"(hyper_[ijfo][xh])_(zw|alpha|zb|beta)_", r"\1/\2/super_linear_", name)
    return {"cell": "", "hyper_cell": "LayerNormLSTMCell/"}[layer] + name


def make_cell(kind, seed=0):
    return rnn.CELLS[kind](rnn.ROW_WIDTH + Z, UNITS, seed=seed, name="cell")


def scramble(variables, rng):
    """Moves weights away from where they start, to values that keep the gates off their limits."""
    for variable in variables:
        width = 0.3 if len(variable.shape) == 1 else 1 / np.sqrt(variable.shape[0])
        start = 1.0 if variable.name.endswith(("gamma", "zw_b")) else 0.0
        variable.assign(start + width * rng.standard_normal(variable.shape))


def random_case(kind, dropout):
    """A cell, and float32 rows, code, state and masks."""
    rng = np.random.default_rng(7)
    cell = make_cell(kind)
    scramble(cell.weights, rng)
    normal = lambda *shape: rng.standard_normal(shape).astype("float32")  # noqa: E731
    rows, z = normal(STEPS, BATCH, 5), normal(BATCH, Z)
    state = tuple(np.tanh(normal(BATCH, size)) for size in cell.state_sizes)
    masks = None
    if dropout:
        masks = (rng.random((STEPS, BATCH, UNITS)) < KEEP).astype("float32") / np.float32(KEEP)
    return cell, rows, z, state, masks


def float64_weights(cell):
    return {short_name(v): np.asarray(v.value).astype(np.float64) for v in cell.weights}


def run(cell, rows, z, state, masks):
    rows, z, *state = (ops.convert_to_tensor(x) for x in (rows, z, *state))
    masks = None if masks is None else ops.convert_to_tensor(masks)
    return unroll.unroll(cell, cell.project(rows, cell.project_code(z)), tuple(state), masks)


@pytest.mark.parametrize("dropout", (False, True))
@pytest.mark.parametrize("kind", CELLS)
def test_forward(kind, dropout):
    """Each cell computes what the papers say, over a sequence, all parts of the state.

    The values are of the order of 1, so each float32 rounding is off by at most 6e-8; a step makes
    a few in a row after its sums, and the five steps together came to 6e-7 at most.
    """
    cell, rows, z, state, masks = random_case(kind, dropout)
    expected, hidden = reference(kind, float64_weights(cell), rows, z, state, masks)
    hs, last = run(cell, rows, z, state, masks)
    np.testing.assert_allclose(hs, hidden, rtol=0, atol=2e-6)
    assert len(last) == len(expected[-1])
    for ours, theirs in zip(last, expected[-1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_step_by_step(kind):
    """Decoding step by step goes through the same states as the whole sequence in training."""
    cell, rows, z, state, _ = random_case(kind, dropout=False)
    expected, _ = reference(kind, float64_weights(cell), rows, z, state)
    hs, last = run(cell, rows, z, state, None)
    code_part = cell.project_code(ops.convert_to_tensor(z))
    state = tuple(ops.convert_to_tensor(part) for part in state)
    for t in range(STEPS):
        h, state = cell.step(cell.project(ops.convert_to_tensor(rows[t]), code_part), state)
        np.testing.assert_allclose(h, hs[t], rtol=0, atol=1e-6)
        for ours, theirs in zip(state, expected[t], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
    for stepped, unrolled in zip(state, last, strict=True):
        np.testing.assert_allclose(stepped, unrolled, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", (False, True))
@pytest.mark.parametrize("kind", CELLS)
def test_gradients(kind, dropout):
    """The handwritten gradients: of every weight, the rows, the code and the initial state.

    Each gradient g of n entries is compared along a random direction v with a central difference
    of the float64 reference (itself good to 1e-9). g.v is of the order |g| |v| / sqrt(n), and so
    is its float32 error, times some 1e-6.
    """
    cell, rows, z, state, masks = random_case(kind, dropout)
    rng = np.random.default_rng(11)
    of_hidden = rng.standard_normal((STEPS, BATCH, UNITS))
    of_state = [rng.standard_normal(part.shape) for part in state]

    def scalar(rows, z, *state):
        hs, last = run(cell, rows, z, state, masks)
        terms = zip((hs, *last), (of_hidden, *of_state), strict=True)
        return sum(ops.sum(x * ops.cast(factor, "float32")) for x, factor in terms)

    def reference_scalar(weights, rows, z, *state):
        states, hs = reference(kind, weights, rows, z, state, masks)
        terms = zip((hs, *states[-1]), (of_hidden, *of_state), strict=True)
        return sum(np.sum(x * factor) for x, factor in terms)

    weights = float64_weights(cell)
    inputs = dict(zip(["rows", "z", "s0", "s1", "s2", "s3"], (rows, z, *state), strict=False))
    found = gradients(scalar, cell.weights, inputs.values())
    values = {**weights, **{name: x.astype(np.float64) for name, x in inputs.items()}}
    for (name, value), g in zip(values.items(), found, strict=True):
        g = np.asarray(g, np.float64)
        assert g.shape == value.shape, name
        assert np.abs(g).max() > 1e-4, f"{name}: no gradient"
        direction = rng.standard_normal(value.shape)
        ends = []
        for sign in (1, -1):
            moved = {**values, name: value + sign * 1e-6 * direction}
            given = [moved[key] for key in inputs]
            ends.append(reference_scalar({k: moved[k] for k in weights}, *given))
        expected = (ends[0] - ends[1]) / 2e-6
        size = np.linalg.norm(g) * np.linalg.norm(direction) / np.sqrt(value.size)
        assert abs(np.sum(g * direction) - expected) < 1e-5 * size, name


# Names and initial values.


@pytest.mark.parametrize("kind", CELLS)
def test_published_variables(kind):
    """Each published variable of a decoder is one of ours, alike in shape, and none is left over.

    Gradients are clipped per variable, so two in one or one in two would train differently.
    """
    published = {
        entry["name"].split("/decoder/", 1)[1].removesuffix(":0"): tuple(entry["shape"])
        for entry in golden_data.load_json("variables.json")[kind]
        if entry["name"].startswith("SP-gra2seq/decoder/") and entry["trainable"]
    }
    hparams = HParams(dec_model=kind, dec_rnn_size=64, z_size=16, num_mixture=7)
    decoder = Decoder(hparams, seed=0, name="decoder")
    paths = [v.path for v in decoder.trainable_variables]
    assert len(set(paths)) == len(paths)
    prefix = f"decoder/rnn/{type(decoder.cell).__name__}/"
    ours = {prefix + short_name(v): tuple(v.shape) for v in decoder.cell.weights}
    ours["init_state/linear/fc_w"] = tuple(decoder.state_kernel.shape)
    ours["decoder/fc/linear/fc_w"] = tuple(decoder.output_kernel.shape)
    assert ours == published


@pytest.mark.parametrize("seed", (3, keras.random.SeedGenerator(3)))
@pytest.mark.parametrize("kind", CELLS)
def test_initial_weights(kind, seed):
    """Weights start where the published ones do, in law, whatever kind of seed is given."""
    units = 24
    cell = rnn.CELLS[kind](rnn.ROW_WIDTH + Z, units, seed=seed, name="cell")
    for variable in cell.weights:
        name, value = short_name(variable), np.asarray(variable.value).astype(np.float64)
        if name.endswith("W_hh"):
            blocks = np.split(value, 4, axis=1)
            for block in blocks:
                identity = np.eye(len(block))
                np.testing.assert_allclose(block @ block.T, identity, rtol=0, atol=1e-5)
            assert not np.allclose(blocks[0], blocks[1], atol=0.01)
        elif name.endswith("W_xh"):
            bound = np.sqrt(6 / sum(value.shape))
            assert np.abs(value).max() <= bound
            # Uniform: the variance is bound^2 / 3, and that of the squares 4 / 45 bound^4.
            deviation = np.sqrt(4 / 45 / value.size) * bound**2
            assert abs(np.mean(value**2) - bound**2 / 3) < 5 * deviation
        elif name.endswith("zb/super_linear_w"):
            assert abs(value.std() / 0.01 - 1) < 5 / np.sqrt(2 * value.size)
            assert abs(value.mean()) < 5 * 0.01 / np.sqrt(value.size)
        elif name.endswith("alpha/super_linear_w"):
            np.testing.assert_array_equal(value, np.float32(0.1 / 32))
        else:
            ones = name.endswith(("gamma", "zw/super_linear_b"))
            np.testing.assert_array_equal(value, 1.0 if ones else 0.0)
    random = [
        np.asarray(v.value) for v in cell.weights if short_name(v).endswith("zb/super_linear_w")
    ]
    assert not any(np.array_equal(random[0], other) for other in random[1:])


# Dropout.

ALL_PLACES = {"use_input_dropout": True, "input_dropout_prob": 0.6}
ALL_PLACES |= {"use_recurrent_dropout": True, "recurrent_dropout_prob": 0.7}
ALL_PLACES |= {"use_output_dropout": True, "output_dropout_prob": 0.8}


def make_decoder(**options):
    """A decoder with random weights, always the same."""
    options = {"dec_rnn_size": UNITS, "z_size": Z, "num_mixture": 2, **options}
    decoder = Decoder(HParams(**options), seed=0, name="decoder")
    scramble(decoder.weights, np.random.default_rng(5))
    return decoder


def only(place):
    return {key: value for key, value in ALL_PLACES.items() if place in key}


def decoder_inputs(steps=4, batch=3):
    rng = np.random.default_rng(6)
    z = rng.standard_normal((batch, Z)).astype("float32")
    rows = rng.standard_normal((steps, batch, 5)).astype("float32")
    return ops.convert_to_tensor(z), ops.convert_to_tensor(rows)


def seeds(first, batch=3):
    return ops.convert_to_tensor(np.arange(first, first + batch, dtype="int32"))


def check_kept(factors, keep):
    """Factors (T, ...): each 0 or 1 / keep, kept with probability keep, all independent."""
    kept = factors > 0
    np.testing.assert_allclose(factors[kept], 1 / keep, rtol=1e-5)
    np.testing.assert_array_equal(factors[~kept], 0)
    # Five standard deviations: of a share, and of a product of two independent shares.
    share_deviation = np.sqrt(keep * (1 - keep) / kept.size)
    assert abs(kept.mean() - keep) < 5 * share_deviation
    # Mean 1 and variance 1 / keep - 1 follow: what comes in is kept on average.
    assert abs(factors.mean() - 1) < 5 * share_deviation / keep
    assert abs(factors.var() - (1 / keep - 1)) < 5 * share_deviation / keep**2
    centred = kept - keep
    for axis in range(factors.ndim):
        ahead, before = np.delete(centred, 0, axis), np.delete(centred, -1, axis)
        assert abs((ahead * before).mean()) < 5 * keep * (1 - keep) / np.sqrt(ahead.size)


def test_input_dropout(monkeypatch):
    """Every one of the 5 + Z inputs is dropped, with another mask at each step; nothing else is."""
    decoder = make_decoder(**only("input"))
    z, rows = decoder_inputs(steps=60, batch=30)
    seen = {}
    cell = decoder.cell
    project_code, project, unrolled = cell.project_code, cell.project, unroll.unroll

    def spy_code(z):
        seen["z"] = np.asarray(z)
        return project_code(z)

    def spy_rows(rows, code_part):
        seen["rows"] = np.asarray(rows)
        return project(rows, code_part)

    def spy_unroll(cell, projected, state, masks):
        seen["state"], seen["masks"] = state, masks
        seen["hidden"], last = unrolled(cell, projected, state, masks)
        return seen["hidden"], last

    cell.project_code, cell.project = spy_code, spy_rows
    monkeypatch.setattr(unroll, "unroll", spy_unroll)
    outputs = decoder(z, rows, training=True, dropout_seed=seeds(9, 30))
    codes = np.broadcast_to(z, (*rows.shape[:2], Z))
    given = np.concatenate([rows, codes], axis=-1)
    factors = np.concatenate([seen["rows"], seen["z"]], axis=-1) / given
    check_kept(factors, 0.6)
    assert seen["masks"] is None
    for ours, expected in zip(seen["state"], decoder.initial_state(z), strict=True):
        np.testing.assert_array_equal(ours, expected)
    expected = ops.matmul(seen["hidden"], decoder.output_kernel)
    np.testing.assert_array_equal(outputs, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_dropout(kind, monkeypatch):
    """The candidate of the main cell is dropped, with another mask at each step; nothing else is.

    The outputs are those of the reference with the masks that the cell was given.
    """
    decoder = make_decoder(dec_model=kind, **only("recurrent"))
    z, rows = decoder_inputs(steps=30, batch=40)
    seen = []
    unrolled = unroll.unroll

    def spy(cell, projected, state, masks):
        seen.append(np.asarray(masks))
        return unrolled(cell, projected, state, masks)

    monkeypatch.setattr(unroll, "unroll", spy)
    outputs = decoder(z, rows, training=True, dropout_seed=seeds(9, 40))
    check_kept(seen[0], 0.7)
    weights = float64_weights(decoder.cell)
    state = [np.asarray(part) for part in decoder.initial_state(z)]
    _, hidden = reference(kind, weights, np.asarray(rows), np.asarray(z), state, seen[0])
    expected = hidden @ np.asarray(decoder.output_kernel.value)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)


def test_output_dropout():
    """What goes to the output layer is dropped, with another mask at each step; the state is not.

    Were a state touched, the hidden vectors after it would differ from those of evaluation.
    """
    decoder = make_decoder(**only("output"))
    shown = np.zeros(decoder.output_kernel.shape)
    shown[:, :UNITS] = np.eye(UNITS)
    decoder.output_kernel.assign(shown)
    z, rows = decoder_inputs(steps=50, batch=40)
    plain = np.asarray(decoder(z, rows))[:, :, :UNITS]
    dropped = np.asarray(decoder(z, rows, training=True, dropout_seed=seeds(9, 40)))
    check_kept(dropped[:, :, :UNITS] / plain, 0.8)


def test_dropout_is_off_in_evaluation():
    """Evaluation drops nothing and consumes no randomness, whatever the options."""
    z, rows = decoder_inputs()
    decoder = make_decoder(**ALL_PLACES)
    before = np.asarray(decoder.dropout_seeds.state.value)
    plain = np.asarray(make_decoder()(z, rows, training=True))
    np.testing.assert_array_equal(decoder(z, rows), plain)
    np.testing.assert_array_equal(decoder(z, rows, dropout_seed=seeds(1)), plain)
    np.testing.assert_array_equal(decoder.dropout_seeds.state.value, before)


def test_keeping_everything():
    """A keep probability of 1 drops nothing."""
    options = {key: 1.0 if "prob" in key else value for key, value in ALL_PLACES.items()}
    z, rows = decoder_inputs()
    np.testing.assert_array_equal(
        make_decoder(**options)(z, rows, training=True), make_decoder()(z, rows)
    )


def test_dropout_seed():
    """The same seed draws the same masks, so that a resumed run repeats them; others differ.

    Only the batch's first seed counts, and without one the random stream goes on.
    """
    z, rows = decoder_inputs()
    decoder = make_decoder(**ALL_PLACES)

    def drop(seed):
        return np.asarray(decoder(z, rows, training=True, dropout_seed=seed))

    first, other, without, again = drop(seeds(1)), drop(seeds(2)), drop(None), drop(seeds(1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(other, without)
    fresh = make_decoder(**ALL_PLACES)(z, rows, training=True, dropout_seed=seeds(1))
    np.testing.assert_array_equal(first, fresh)
    np.testing.assert_array_equal(first, drop(ops.convert_to_tensor(np.int32([1, 7, 7]))))
    assert not np.array_equal(first, drop(seeds(2**31 - 3)))


def test_dropout_without_state_changes():
    """In a stateless scope dropout works, and the random stream stays where it was."""
    z, rows = decoder_inputs()
    decoder = make_decoder(**ALL_PLACES)
    expected = np.asarray(decoder(z, rows, training=True, dropout_seed=seeds(1)))
    before = np.asarray(decoder.dropout_seeds.state.value)
    with keras.StatelessScope():
        found = np.asarray(decoder(z, rows, training=True, dropout_seed=seeds(1)))
        decoder(z, rows, training=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(decoder.dropout_seeds.state.value, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CELLS)
def test_compiled(kind):
    """A compiled training pass is the uncompiled one, call after call, its masks included.

    Neither the batch's size nor the sequence's length needs to be known beforehand.
    """
    if keras.backend.backend() != "tensorflow":
        pytest.skip("compiled by hand for TensorFlow only")
    import tensorflow as tf

    z, rows = decoder_inputs()
    decoder = make_decoder(dec_model=kind, **ALL_PLACES)
    weights = [v.value for v in decoder.trainable_variables]

    def plain(z, rows, seed):
        with tf.GradientTape() as tape:
            outputs = decoder(z, rows, training=True, dropout_seed=seed)
            loss = tf.reduce_sum(tf.square(outputs))
        return outputs, tape.gradient(loss, weights)

    compiled = tf.function(
        plain,
        input_signature=[
            tf.TensorSpec((None, Z)),
            tf.TensorSpec((None, None, 5)),
            tf.TensorSpec((None,), tf.int32),
        ],
    )
    for first in (1, 2, 1):
        expected, expected_gradients = plain(z, rows, seeds(first))
        outputs, gradients = compiled(z, rows, seeds(first))
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_model_takes_seed_from_batch():
    """The batch's seeds reach the decoder, and the random stream is not a weight of the model."""
    hparams = HParams(
        dec_rnn_size=UNITS,
        z_size=Z,
        num_mixture=2,
        graph_number=3,
        graph_picture_size=4,
        **ALL_PLACES,
    )
    model = SPGra2Seq(hparams)
    assert not [v.path for v in model.weights if "seed" in v.path]
    rng = np.random.default_rng(8)
    batch = {
        "patches": rng.integers(0, 256, (2, 3, 4, 4)).astype("uint8"),
        "graph_masks": np.ones((2, 2, 2), "float32"),
        "strokes": rng.standard_normal((2, 5, 5)).astype("float32"),
        "eps": rng.standard_normal((2, Z)).astype("float32"),
    }
    batch = {name: ops.convert_to_tensor(value) for name, value in batch.items()}

    def loss(first):
        given = {**batch, "dropout_seed": seeds(first, 2)}
        return float(model(given, training=True)["reconstruction"])

    one, two, again = loss(1), loss(2), loss(1)
    assert one == again != two
    args = (batch["patches"], batch["graph_masks"], batch["strokes"], batch["eps"])
    before = np.asarray(model.decoder.dropout_seeds.state.value)
    assert np.isfinite(float(model.losses(*args, training=True)["reconstruction"]))
    np.testing.assert_array_equal(model.decoder.dropout_seeds.state.value, before)


def test_the_fused_kernel_takes_the_same_weights():
    """Keras's LSTM, a cuDNN kernel on a GPU, gives the cell's results and gradients.

    Here it runs as Keras's plain loop: what is tested is that gate order, forget bias and state
    order are converted. Tolerances are float32 rounding over five steps.
    """
    rng = np.random.default_rng(0)
    width, units, steps, batch = 8, 6, 5, 3
    cell = rnn.LSTMCell(width, units, seed=1)
    cell.bias.assign(rng.standard_normal(4 * units))
    fused = unroll.keras_lstm(cell)
    assert [v.path.rpartition("/")[2] for v in cell.weights] == ["W_xh", "W_hh", "bias"]
    inputs = rng.standard_normal((steps, batch, width)).astype(np.float32)
    state = tuple(rng.standard_normal((batch, units)).astype(np.float32) for _ in range(2))

    def outcome(run):
        def total():
            hs, (c, h) = run()
            return ops.sum(hs * hs) + ops.sum(c) + ops.sum(h * c)

        hs, (c, h) = run()
        return [hs, c, h, *gradients(total, cell.trainable_variables)]

    def plain():
        rows, z = inputs[..., : rnn.ROW_WIDTH], inputs[..., rnn.ROW_WIDTH :]
        return unroll.unroll(cell, cell.project(rows, cell.project_code(z)), state)

    for ours, theirs in zip(outcome(plain), outcome(lambda: fused(inputs, state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CELLS)
def test_the_fused_kernel_is_for_gpus(kind, monkeypatch):
    """It is chosen for a float32 LSTM on a GPU only."""
    monkeypatch.setattr(unroll, "has_gpu", lambda: False)
    assert unroll.fused_lstm(make_cell(kind)) is None
    monkeypatch.setattr(unroll, "has_gpu", lambda: True)
    mixed = rnn.CELLS[kind](rnn.ROW_WIDTH + Z, UNITS, seed=0, dtype="mixed_bfloat16")
    assert unroll.fused_lstm(mixed) is None
    assert (unroll.fused_lstm(make_cell(kind)) is not None) == (kind == "lstm")


@pytest.mark.parametrize("place", ["", "input", "output", "recurrent"])
def test_the_decoder_with_the_fused_kernel(place, monkeypatch):
    """It gives the same outputs, dropout included; where the candidates are dropped, which that
    kernel can't do, the cell's own loop runs."""
    options = only(place) if place else {}
    z, rows = decoder_inputs()
    outputs, loops = [], []
    unrolled = unroll.unroll

    def spy(*args):
        loops.append(len(outputs))
        return unrolled(*args)

    monkeypatch.setattr(unroll, "unroll", spy)
    for on_gpu in (False, True):
        monkeypatch.setattr(unroll, "has_gpu", lambda on_gpu=on_gpu: on_gpu)
        decoder = make_decoder(**options)
        outputs.append(decoder(z, rows, training=True, dropout_seed=seeds(3)))
    assert loops == ([0, 1] if place == "recurrent" else [0])
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-5)
