"""The patch encoder against convolutions in float64, with and without skipping uniform cells."""

import ml_dtypes
import numpy as np
import pytest
from autodiff import gradients
from scipy import stats

import encoders
from dense_cells import Grid
from encoders import CHANNELS, PatchEncoder
from mixed_cells import MixedCells
from support.backend import keras, ops

# Largest difference over largest value. A float32 sum is off by about its last digit; gradients
# pass seven of them, and a ReLU may open the other way where its input is zero except for rounding.
FORWARD, GRADIENT = 1e-6, 2e-5
METHODS = {
    "sp_gra2seq": {},
    "dc_gra2seq": {"use_bias": True},
    "sketch_healer": {"channels": CHANNELS[:6], "use_bias": True, "last_relu": True},
}
# Whole powers of two, edges through a pixel of a window, a window of a cell, and between cells.
SIDES = [1, 2, 3, 4, 6, 30, 64, 100, 128, 130, 200, 250, 256]


@pytest.fixture(params=["skipping", "dense"])
def way(request, monkeypatch):
    """Both ways to compute, where the backend has them."""
    skipping = request.param != "dense"
    if skipping and keras.backend.backend() != "tensorflow":
        pytest.skip("shapes may vary in TensorFlow alone")
    monkeypatch.setattr(encoders, "skips_uniform_cells", lambda: skipping)


def relative(ours, theirs) -> float:
    ours = np.asarray(ours, np.float64)
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)


def drawn(side, count=4, seed=0):
    """Pictures (count, side, side): noise, blank, and a few lines beside a square full of ink."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, side, side), np.uint8)
    for picture in pictures[2:]:
        left, top = rng.integers(0, side // 2 + 1, 2)
        picture[top : top + side // 2, left : left + side // 2] = 255
        for _ in range(3):
            ends = rng.uniform(0, side - 1, (2, 2))
            points = np.linspace(*ends, 2 * side).round().astype(int)
            picture[tuple(points.T)] = rng.integers(1, 256)
    pictures[:1] = rng.integers(0, 256, pictures[:1].shape)
    return pictures


def convolutions(pictures, kernels, biases, last_relu, d, rounded=lambda x: x):
    """Convolutions of stride 2 with SAME padding, ReLUs, a maximum; in float64 NumPy.

    Args:
        pictures: uint8 (N, S, S).
        kernels: one (2, 2, C, D) for each layer.
        biases: one (D,) for each, or none at all.
        last_relu: whether the last layer has one.
        d: the gradient of the result, (N, D).
        rounded: what happens to the inputs of every product.

    Returns:
        The result (N, D), and the gradients of kernels and of biases.
    """
    kernels = [rounded(np.asarray(kernel, np.float64)) for kernel in kernels]
    x = pictures.astype(np.float64)[..., None] / 127.5 - 1
    relus = [True] * (len(kernels) - 1) + [last_relu]
    kept = []
    for layer, kernel in enumerate(kernels):
        odd = x.shape[1] % 2
        x = rounded(np.pad(x, ((0, 0), (0, odd), (0, odd), (0, 0))))
        half = x.shape[1] // 2
        windows = x.reshape(-1, half, 2, half, 2, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        x = np.tensordot(windows, kernel, 3)
        if biases:
            x = x + np.asarray(biases[layer], np.float64)
        open_ = x > 0 if relus[layer] else np.ones_like(x, bool)
        x = x * open_
        kept.append((windows, open_, odd))
    result = x.max(axis=(1, 2))
    is_largest = x == result[:, None, None]
    d = d[:, None, None] * is_largest / is_largest.sum(axis=(1, 2), keepdims=True)
    d_kernels, d_biases = [], []
    for kernel, (windows, open_, odd) in zip(kernels[::-1], kept[::-1], strict=True):
        d = d * open_
        d_biases.append(d.sum(axis=(0, 1, 2)))
        d = rounded(d)
        d_kernels.append(np.tensordot(windows, d, ([0, 1, 2], [0, 1, 2])))
        d = np.tensordot(d, kernel, (3, 3)).transpose(0, 1, 3, 2, 4, 5)
        d = d.reshape(len(d), 2 * d.shape[1], 2 * d.shape[1], -1)
        d = d[:, : d.shape[1] - odd, : d.shape[2] - odd]
    return result, d_kernels[::-1], d_biases[::-1] if biases else []


def both_of(encoder, pictures, **options):
    """Result and gradients of the encoder, and the reference's."""
    channels = encoder.filters[-1].shape[-1]
    d = np.random.default_rng(1).standard_normal((len(pictures), channels)).astype(np.float32)
    variables = [*encoder.filters, *encoder.biases]
    ours = gradients(lambda: ops.sum(encoder(pictures) * d), variables)
    result, d_kernels, d_biases = convolutions(
        pictures, encoder.filters, encoder.biases, encoder.relus[-1], d, **options
    )
    pairs = zip(variables, ours, d_kernels + d_biases, strict=True)
    return encoder(pictures), result, [(v.name, one, other) for v, one, other in pairs]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_encoder_is_the_convolutional_network(way, method, side):
    """Skipping and reordering cells changes neither vectors nor gradients, at any side."""
    encoder = PatchEncoder(**METHODS[method], seed=side + 1)  # with 200 two maxima nearly tie
    ours, theirs, pairs = both_of(encoder, drawn(side, seed=side))
    assert relative(ours, theirs) < FORWARD
    for name, one, other in pairs:
        assert relative(one, other) < GRADIENT, name


@pytest.mark.parametrize("side", [2, 64, 130, 256])
def test_convolutions_of_the_backend_agree(way, side):
    """The reference means by a convolution what Keras does."""
    encoder = PatchEncoder(seed=side)
    pictures = drawn(side)
    # In float64: a float32 convolution is itself off by more than the bound.
    x = ops.cast(pictures, "float64")[..., None] / 255 * 2 - 1
    for layer, kernel in enumerate(encoder.filters):
        kernel = ops.cast(kernel, "float64")
        x = ops.conv(x, kernel, strides=2, padding="same", data_format="channels_last")
        x = ops.relu(x) if layer < 6 else x
    x = ops.max_pool(x, 2, strides=2, padding="same", data_format="channels_last")
    assert x.shape[1:3] == (1, 1)
    assert relative(encoder(pictures), np.asarray(x).reshape(len(pictures), -1)) < FORWARD


@pytest.mark.parametrize("side", [64, 130])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_uniform_pictures_need_no_special_case(way, method, side):
    """Batches of nothing, of one, of blank and of full pictures alone: vectors and gradients."""
    encoder = PatchEncoder(**METHODS[method], seed=0)
    pictures = drawn(side, 3)
    together = np.asarray(encoder(pictures))
    assert encoder(pictures[:0]).shape == (0, together.shape[1])
    for i in range(3):
        assert relative(encoder(pictures[i : i + 1]), together[i]) < FORWARD
    for pixel in (0, 255):
        ours, theirs, pairs = both_of(encoder, np.full((5, side, side), pixel, np.uint8))
        assert relative(ours, theirs) < FORWARD
        for name, one, other in pairs:
            assert relative(one, other) < GRADIENT, name
        vectors = np.asarray(ours)
        if pixel == 0:
            np.testing.assert_array_equal(vectors, np.broadcast_to(vectors[0], vectors.shape))
    for gradient in gradients(lambda: ops.sum(encoder(pictures[:0])), encoder.trainable_variables):
        assert not np.asarray(gradient).any()


@pytest.mark.parametrize("side", [64, 130, 256])
def test_uniform_cells_cost_nothing(side):
    """What is computed are the cells with ink that are not full of it (where the side is not a
    power of two, all with ink), and a handful of uniform ones for all pictures."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("shapes may vary in TensorFlow alone")
    pictures = drawn(side, 30)[1:]
    pictures[10:] = 0
    pictures[20:] = 255

    def count(size):
        margin = -side % size
        padded = np.pad(pictures, ((0, 0), (0, margin), (0, margin)))
        across = (side + margin) // size
        cells = padded.reshape(-1, across, size, across, size)
        mixed = cells.any(axis=(2, 4)) & ~((cells == 255).all(axis=(2, 4)) & (side != 130))
        return mixed.sum() + (2 if side != 130 else 5)

    grid = Grid(side, len(CHANNELS))
    cells = MixedCells(grid, pictures, "float32")
    assert len(cells.pixels) == count(4)
    for layer, link in cells.links.items():
        if layer < len(CHANNELS):
            assert len(link.children) == count(2 ** (layer + 1))


@pytest.mark.slow
def test_one_program_for_any_amount_of_ink():
    """Other numbers of cells compile nothing again, nothing is scattered (which would be slow where
    it must be repeatable), and the same pictures give the same bits."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("about TensorFlow's programs")
    import tensorflow as tf

    encoder = PatchEncoder(seed=0)
    variables = [v.value for v in encoder.trainable_variables]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, 64, 64), tf.uint8)])
    def step(pictures):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.square(encoder(pictures)))
        return tape.gradient(value, variables)

    first = step(drawn(64))
    for pictures in (drawn(64, 7), np.zeros((3, 64, 64), np.uint8), drawn(64, 0)):
        step(pictures)
    assert step.experimental_get_tracing_count() == 1
    kinds = {op.type for op in step.get_concrete_function().graph.get_operations()}
    assert not [kind for kind in kinds if "Scatter" in kind or "Segment" in kind]
    for one, other in zip(first, step(drawn(64)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("side", [64, 100])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_mixed_precision_rounds_what_is_multiplied(way, method, side):
    """Activations, kernels and gradients have bfloat16's digits where they enter a product, and
    no sum has: neither the products', nor those of the biases, nor those of the blank cells."""
    encoder = PatchEncoder(**METHODS[method], seed=side, dtype="mixed_bfloat16")

    def rounded(x):
        return x.astype(ml_dtypes.bfloat16).astype(np.float64)

    ours, theirs, pairs = both_of(encoder, drawn(side), rounded=rounded)
    # A float32 sum that is off by its last digit may be rounded to the other neighbour, and is off
    # by 2^-8 then. Few are, forwards; backwards such a one is spread by all the layers below.
    norm = np.linalg.norm
    assert norm(np.asarray(ours) - theirs) < 2**-11 * norm(theirs)
    for name, one, other in pairs:
        assert norm(np.asarray(one) - other) < 2**-6 * norm(other), name
    assert ours.dtype == "float32" and {v.dtype for v in encoder.weights} == {"float32"}


def test_weights():
    """Names and shapes are those of the checkpoints; those with biases start as PyTorch's."""
    plain = PatchEncoder(seed=0)
    assert [v.name for v in plain.weights] == [f"conv{i}" for i in range(7)]
    biased = PatchEncoder(use_bias=True, seed=0)
    for i, (outputs, inputs) in enumerate(zip(CHANNELS, (1, *CHANNELS), strict=False)):
        assert plain.weights[i].shape == biased.filters[i].shape == (2, 2, inputs, outputs)
        assert (biased.filters[i].name, biased.biases[i].name) == (f"conv{i}", f"conv{i}_bias")
        bound = 1 / np.sqrt(4 * inputs)
        for weight in (biased.filters[i], biased.biases[i]):
            uniform = stats.uniform(-bound, 2 * bound)
            # A false alarm in one of a million runs, if the seed weren't fixed.
            assert stats.kstest(np.asarray(weight).ravel(), uniform.cdf).pvalue > 1e-6
