"""Mixed-precision products against float64 products of the rounded numbers."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from autodiff import gradients

import rnn
import unroll
from support.backend import keras, on_cpu, ops
from support.precision import mixed_matmul, to_compute_dtype

ROOT = Path(__file__).parents[1]
MIXED = "bfloat16"

# In a process of its own, compiled: compilers may see that a cast is undone at once.
PROGRAM = """
import sys
from support.backend import keras, ops
import numpy as np
from autodiff import gradients
from support.precision import mixed_matmul, to_compute_dtype

def step(x, kernel, d):
    def total(x, kernel):
        return ops.sum(mixed_matmul(x, to_compute_dtype(kernel, "bfloat16"), "bfloat16") * d)
    y = mixed_matmul(x, to_compute_dtype(kernel, "bfloat16"), "bfloat16")
    return y, *gradients(total, [], [x, kernel])

if keras.backend.backend() == "jax":
    import jax
    step = jax.jit(step)
    rounds = jax.config.jax_default_matmul_precision != "highest"
else:
    import tensorflow
    step = tensorflow.function(step, autograph=False)
    rounds = tensorflow.config.experimental.tensor_float_32_execution_enabled()
arrays = dict(np.load(sys.argv[1]))
found = map(np.asarray, step(arrays["x"], arrays["kernel"], arrays["d"]))
np.savez(sys.argv[1], *found, rounds=rounds)
"""


def rounded(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def operands(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def assert_product(ours, a, b):
    """`ours` is the float32 product of the rounded (M, K) and (K, N): a sum of K numbers is off
    by K roundings at most, each of half a last digit of what the magnitudes sum up to."""
    a, b = rounded(a), rounded(b)
    bound = a.shape[1] * 2.0**-24 * (np.abs(a) @ np.abs(b))
    ours = np.asarray(ours)
    assert ours.dtype == np.float32
    assert (np.abs(ours.reshape(bound.shape) - a @ b) <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"KERAS_BACKEND": "tensorflow"},
        # As on CPUs where TensorFlow has no bfloat16 instructions to use.
        {"KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": "0"},
        {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
    ],
    ids=["tensorflow", "without oneDNN", "jax"],
)
def test_compiled_products(environment, tmp_path):
    """Products and both gradients have rounded inputs and float32 sums with every library, and
    no GPU may round what is float32 (to see what it does takes one)."""
    x, kernel, d = operands((7, 30, 300), (300, 40), (7, 30, 40))
    np.savez(tmp_path / "a.npz", x=x, kernel=kernel, d=d)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "a.npz"],
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""} | environment,
        check=True,
    )
    found = np.load(tmp_path / "a.npz")
    assert not found["rounds"]
    y, d_x, d_kernel = (found[f"arr_{i}"] for i in range(3))
    assert y.shape == d.shape and d_x.shape == x.shape
    rows, d_rows = x.reshape(-1, 300), d.reshape(-1, 40)
    assert_product(y, rows, kernel)
    assert_product(d_x, d_rows, kernel.T)
    assert_product(d_kernel, rows.T, d_rows)


@pytest.mark.skipif(not on_cpu(), reason="a GPU's products are its own")
def test_kernels_are_rounded_and_their_gradients_are_not():
    """A kernel has bfloat16's digits, its gradient float32's: it goes into further sums."""
    kernel, d = operands((20, 30), (20, 30))
    rounded_kernel = to_compute_dtype(kernel, MIXED)
    np.testing.assert_array_equal(rounded_kernel, rounded(kernel))
    (gradient,) = gradients(lambda k: ops.sum(to_compute_dtype(k, MIXED) * d), [], [kernel])
    np.testing.assert_array_equal(gradient, d)


def test_float32_stays_what_it_is():
    """Without a mixed policy a product is the backend's, to the bit."""
    x, kernel = operands((5, 30), (30, 8))
    ours = mixed_matmul(ops.convert_to_tensor(x), to_compute_dtype(kernel, "float32"), "float32")
    np.testing.assert_array_equal(ours, ops.matmul(x, kernel))


@pytest.mark.skipif(not on_cpu(), reason="a GPU's products are its own")
def test_kernel_gradients_of_a_recurrence_are_summed_in_float32():
    """The sum over all steps and sketches is one float32 sum."""
    inputs, d = operands((50, 6, 10), (50, 6, 20))
    ours = unroll._kernel_gradient(ops.convert_to_tensor(inputs), ops.convert_to_tensor(d), MIXED)
    assert_product(ours, inputs.reshape(-1, 10).T, d.reshape(-1, 20))


def unrolled(projected, kernel, c, h):
    """An LSTM in float64, with the inputs of its product rounded."""
    hs = []
    for gates in np.asarray(projected, np.float64):
        gates = gates + rounded(h) @ rounded(kernel)
        i, j, f, o = np.split(gates, 4, axis=1)
        sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs)


@pytest.mark.skipif(not on_cpu(), reason="a GPU's products are its own")
def test_a_recurrence_rounds_its_hidden_vectors_and_nothing_else():
    """In mixed precision an LSTM is float64's with rounded factors."""
    units = 12
    cell = rnn.LSTMCell(8, units, seed=0, dtype="mixed_bfloat16")
    projected, c, h = operands((6, 3, 4 * units), (3, units), (3, units))
    hs, _ = unroll.unroll(cell, ops.convert_to_tensor(projected), (c, h))
    theirs = unrolled(projected, keras.ops.convert_to_numpy(cell.recurrent_kernel), c, h)
    # One hidden number may be rounded to its other neighbour, off by 2^-8 of itself, and then
    # counts by a weight of about 0.3; a product in bfloat16 would be off by that at every step.
    difference = np.abs(np.asarray(hs) - theirs)
    assert np.median(difference) < 1e-6 and difference.max() < 2e-3
