"""The recurrent cells of the decoder, step by step.

A cell turns the decoder's input (stroke-5 row and latent code) and its state into the next
hidden vector. Its input weights are applied outside of the recurrence: `project_code` once per
sketch, `project` for all steps at once or for one, so that the constant code is multiplied once.
`step` makes one step; `unroll.unroll` makes all of them. Gate columns are input, candidate,
forget, output, as in the published weights.

With a mixed dtype policy the products of the recurrence, and the gradients of their kernels, are
made in its compute type; memories, gates and everything else stay float32.
"""

from typing import Any, NamedTuple

from support.backend import keras, ops
from support.precision import MixedLayer, mixed_matmul, to_compute_dtype

ROW_WIDTH = 5
GATES = "ijfo"
FORGET_BIAS = 1.0
LAYER_NORM_EPSILON = 1e-3
HYPER_UNITS = 256
HYPER_EMBEDDING = 32
HYPER_SCALE = 0.1  # of each scaled pre-activation, at the start


class OrthogonalPerGate(keras.initializers.Initializer):
    """Each gate's (rows, units) block of a recurrent kernel is orthogonal on its own."""

    def __init__(self, seed=None):
        # With a plain number every block would be the same.
        self.orthogonal = keras.initializers.Orthogonal(seed=_seed_generator(seed))

    def __call__(self, shape, dtype=None):
        rows, columns = shape
        block = (rows, columns // len(GATES))
        return ops.concatenate([self.orthogonal(block, dtype=dtype) for _ in GATES], axis=1)


class _GatedCell(MixedLayer):
    """What the two LSTM cells share: the kernels, and what is applied outside of the recurrence.

    Args:
        input_width: width of a stroke-5 row and a code together, 5 + Z.
        units: R, width of the hidden vector and of the memory.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, input_width: int, units: int, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.state_sizes = (units, units)
        self.input_kernel, self.recurrent_kernel = _add_kernels(self, input_width, units, seed)

    def project_code(self, z):
        """The part of the gates that is the same at every step: (..., Z) to (..., 4 R)."""
        return ops.matmul(z, self.input_kernel[ROW_WIDTH:])

    def project(self, rows, code_part):
        """Adds the rows' part: (..., B, 5) and (B, 4 R) to (..., B, 4 R)."""
        return ops.matmul(rows, self.input_kernel[:ROW_WIDTH]) + code_part

    def add_recurrent(self, projected, h):
        """The gates' pre-activations of one step: (B, 4 R) and (B, R) to (B, 4 R)."""
        kernel = self.to_compute_dtype(self.recurrent_kernel)
        return projected + mixed_matmul(h, kernel, self.compute_dtype)


class LSTMCell(_GatedCell):
    """LSTM with forget bias 1 (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    The state is (c, h), each (B, units).

    Args:
        input_width: width of a stroke-5 row and a code together, 5 + Z.
        units: R, width of the hidden vector and of the memory.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, input_width: int, units: int, seed=None, **kwargs):
        super().__init__(input_width, units, seed=seed, **kwargs)
        self.bias = self.add_weight(shape=(4 * units,), initializer="zeros", name="bias")
        self.built = True

    def project_code(self, z):
        """The part of the gates that is the same at every step: (..., Z) to (..., 4 R)."""
        return super().project_code(z) + self.bias

    def step(self, projected, state):
        """One step: (B, 4 R) and (c, h) to h, (c, h)."""
        c, h = state
        c, h, _ = lstm_gates(self.add_recurrent(projected, h), c, (), ())
        return h, (c, h)


class LayerNormLSTMCell(_GatedCell):
    """LSTM with layer normalisation of each gate and of the new memory (arXiv 1607.06450).

    There is no bias: the norm's shift takes its place. The forget bias of 1 is added after
    the norm. The state is (h, c), each (B, units).

    Args:
        input_width: width of a stroke-5 row and a code together, 5 + Z.
        units: R, width of the hidden vector and of the memory.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, input_width: int, units: int, seed=None, **kwargs):
        super().__init__(input_width, units, seed=seed, **kwargs)
        self.gains = _add_gains(self, units)
        self.built = True

    def step(self, projected, state):
        """One step: (B, 4 R) and (h, c) to h, (h, c)."""
        h, c = state
        gates = self.add_recurrent(projected, h)
        c, h, _ = layer_norm_gates(gates, c, (), tensors(self.gains))
        return h, (h, c)


class HyperLSTMCell(MixedLayer):
    """Layer-norm LSTM whose gates are scaled by a smaller one (HyperLSTM, arXiv 1609.09106).

    The hyper cell, a `LayerNormLSTMCell`, sees the input and the main cell's previous hidden
    vector. From its new hidden vector come, for each gate, a scale of the input's part, a scale
    of the recurrent part and a shift, each by way of an embedding. The state is
    (h, hyper h, c, hyper c); `projected` is the main and the hyper cell's.

    Args:
        input_width: width of a stroke-5 row and a code together, 5 + Z.
        units: R, width of the hidden vector and of the memory.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, input_width: int, units: int, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.state_sizes = (units, HYPER_UNITS, units, HYPER_UNITS)
        self.input_width = input_width
        seed = _seed_generator(seed)
        self.input_kernel, self.recurrent_kernel = _add_kernels(self, input_width, units, seed)
        self.bias = self.add_weight(shape=(4 * units,), initializer="zeros", name="bias")
        self.hyper_cell = LayerNormLSTMCell(
            input_width + units, HYPER_UNITS, seed=seed, dtype=self.dtype_policy, name="hyper_cell"
        )

        def embedding(name, initializer):
            return self.add_weight(
                shape=(HYPER_UNITS, HYPER_EMBEDDING), initializer=initializer, name=f"{name}_w"
            )

        def expansion(name, value):
            return self.add_weight(
                shape=(HYPER_EMBEDDING, units),
                initializer=keras.initializers.Constant(value),
                name=f"{name}_w",
            )

        self.scale_embeddings, self.scale_biases, self.scale_expansions = [], [], []
        self.shift_embeddings, self.shift_expansions = [], []
        for part in "xh":
            for gate in GATES:
                name = f"hyper_{gate}{part}"
                self.scale_embeddings.append(embedding(f"{name}_zw", "zeros"))
                self.scale_biases.append(
                    self.add_weight(
                        shape=(HYPER_EMBEDDING,), initializer="ones", name=f"{name}_zw_b"
                    )
                )
                self.scale_expansions.append(
                    expansion(f"{name}_alpha", HYPER_SCALE / HYPER_EMBEDDING)
                )
                if part == "h":
                    normal = keras.initializers.RandomNormal(stddev=0.01, seed=seed)
                    self.shift_embeddings.append(embedding(f"{name}_zb", normal))
                    self.shift_expansions.append(expansion(f"{name}_beta", 0.0))
        self.gains = _add_gains(self, units)
        self.built = True

    def project_code(self, z):
        """What is the same at every step: (..., Z) to (..., 4 R) and the hyper cell's."""
        hyper_kernel = self.hyper_cell.input_kernel[ROW_WIDTH : self.input_width]
        return ops.matmul(z, self.input_kernel[ROW_WIDTH:]), ops.matmul(z, hyper_kernel)

    def project(self, rows, code_part):
        """Adds the rows' part: (..., B, 5) to (..., B, 4 R) and the hyper cell's."""
        main, hyper = code_part
        return (
            ops.matmul(rows, self.input_kernel[:ROW_WIDTH]) + main,
            ops.matmul(rows, self.hyper_cell.input_kernel[:ROW_WIDTH]) + hyper,
        )

    def step(self, projected, state):
        """One step: (B, 4 R), the hyper cell's, and the state to h and the state."""
        weights = to_dtype(self.weights_of_steps(), self.compute_dtype)
        state, _ = hyper_step(projected, state, weights, (), self.compute_dtype)
        return state[0], state

    def weights_of_steps(self) -> "HyperWeights":
        """The weights as `hyper_step` uses them."""
        scale_biases = tensors(self.scale_biases)
        no_biases = [ops.zeros_like(bias) for bias in scale_biases[: len(GATES)]]
        embeddings = tensors(self.scale_embeddings + self.shift_embeddings)
        expansions = tensors(self.scale_expansions + self.shift_expansions)
        return HyperWeights(
            recurrent=self.recurrent_kernel[:],
            bias=self.bias[:],
            gains=tensors(self.gains),
            hyper_input=self.hyper_cell.input_kernel[self.input_width :],
            hyper_recurrent=self.hyper_cell.recurrent_kernel[:],
            hyper_gains=tensors(self.hyper_cell.gains),
            embedding=ops.concatenate(embeddings, axis=1),
            embedding_bias=ops.concatenate([*scale_biases, *no_biases], axis=0),
            expansion=ops.stack(expansions),
        )


CELLS = {"lstm": LSTMCell, "layer_norm": LayerNormLSTMCell, "hyper": HyperLSTMCell}
Cell = LSTMCell | LayerNormLSTMCell | HyperLSTMCell


def _seed_generator(seed):
    if isinstance(seed, keras.random.SeedGenerator):
        return seed
    return keras.random.SeedGenerator(seed)


def _add_kernels(cell, input_width, units, seed):
    """The weights of the input and of the previous hidden vector."""
    seed = _seed_generator(seed)
    return (
        cell.add_weight(
            shape=(input_width, 4 * units),
            initializer=keras.initializers.GlorotUniform(seed=seed),
            name="W_xh",
        ),
        cell.add_weight(
            shape=(units, 4 * units), initializer=OrthogonalPerGate(seed=seed), name="W_hh"
        ),
    )


def _add_gains(cell, units):
    """Gain and shift of the gates' norm (4 R,) and of the memory's (R,)."""
    return [
        cell.add_weight(shape=(width,), initializer=initializer, name=f"{norm}_{name}")
        for norm, width in (("ln_all", 4 * units), ("ln_c", units))
        for name, initializer in (("gamma", "ones"), ("beta", "zeros"))
    ]


def tensors(variables) -> tuple:
    """The values of variables, as tensors."""
    return tuple(variable[:] for variable in variables)


def lstm_gates(gates, c, mask, gains):
    """One step of an LSTM after its products.

    Args:
        gates: pre-activations (B, 4 R).
        c: the memory (B, R).
        mask: holds the factor of the candidate (B, R), or nothing.
        gains: none.

    Returns:
        The new c and h, and what the gradient starts from, (B, 4 R).
    """
    i, j, f, o = activate(gates)
    c = c * f + i * drop(j, mask)
    return c, o * ops.tanh(c), ops.concatenate([i, j, f, o], axis=-1)


def layer_norm_gates(gates, c, mask, gains):
    """As `lstm_gates`, with layer normalisation; `gains` are those of `_add_gains`."""
    gain, shift, c_gain, c_shift = gains
    normal, _ = normalise(split_gates(gates))
    i, j, f, o = activate(join_gates(normal) * gain + shift)
    c = c * f + i * drop(j, mask)
    normal_c, _ = normalise(c)
    return c, o * ops.tanh(normal_c * c_gain + c_shift), gates


def activate(gates):
    """The opened gates and the candidate, each (B, R), from pre-activations (B, 4 R)."""
    i, j, f, o = ops.split(gates, 4, axis=-1)
    return ops.sigmoid(i), ops.tanh(j), ops.sigmoid(f + FORGET_BIAS), ops.sigmoid(o)


def drop(candidate, mask):
    """Recurrent dropout "without memory loss" (arXiv 1603.05118)."""
    return candidate * mask[0] if mask else candidate


def split_gates(gates):
    """(B, 4 R) to (B, 4, R)."""
    return ops.reshape(gates, (-1, 4, gates.shape[-1] // 4))


def join_gates(gates):
    """(B, n, R) to (B / 4 * n, 4 R): four gates side by side."""
    return ops.reshape(gates, (-1, 4 * gates.shape[-1]))


def normalise(x):
    """Zero mean and unit variance along the last axis; also the factor applied."""
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    factor = ops.rsqrt(variance + LAYER_NORM_EPSILON)
    return centred * factor, factor


class HyperWeights(NamedTuple):
    """The HyperLSTM's weights as its steps use them, or their gradients; E = 32.

    The twelve modulations stand in the order: scales of the input's part, scales of the recurrent
    part, shifts; each i, j, f, o.
    """

    recurrent: Any  # (R, 4 R)
    bias: Any  # (4 R,)
    gains: tuple  # see `_add_gains`
    hyper_input: Any  # (R, 4 * 256), from the main cell's hidden vector
    hyper_recurrent: Any  # (256, 4 * 256)
    hyper_gains: tuple
    embedding: Any  # (256, 12 E)
    embedding_bias: Any  # (12 E,)
    expansion: Any  # (12, E, R)


def to_dtype(weights: HyperWeights, dtype: str) -> HyperWeights:
    """The weights, the kernels of the recurrence as products in `dtype` take them."""
    return weights._replace(
        recurrent=to_compute_dtype(weights.recurrent, dtype),
        hyper_input=to_compute_dtype(weights.hyper_input, dtype),
        hyper_recurrent=to_compute_dtype(weights.hyper_recurrent, dtype),
    )


def hyper_step(projected, state, weights, mask, dtype):
    """To the next state, and the two pre-activations that the gradient starts from."""
    x, hyper_x = projected
    h, hyper_h, c, hyper_c = state
    hyper_gates = mixed_matmul(hyper_h, weights.hyper_recurrent, dtype)
    hyper_gates = hyper_gates + mixed_matmul(h, weights.hyper_input, dtype) + hyper_x
    hyper_c, hyper_h, _ = layer_norm_gates(hyper_gates, hyper_c, (), weights.hyper_gains)
    recurrent = mixed_matmul(h, weights.recurrent, dtype)
    x_scale, scale, shift = modulations(hyper_h, weights)
    gates = x_scale * x + scale * recurrent + shift + weights.bias
    c, h, _ = layer_norm_gates(gates, c, mask, weights.gains)
    return (h, hyper_h, c, hyper_c), (hyper_gates, recurrent)


def embed(hyper_h, weights):
    """(..., 256) to (N, 12, E)."""
    flat = ops.matmul(hyper_h, weights.embedding) + weights.embedding_bias
    return ops.reshape(flat, (-1, weights.expansion.shape[0], HYPER_EMBEDDING))


def modulations(hyper_h, weights):
    """(B, 256) to the scales of the two parts and the shift, each (B, 4 R)."""
    all_of_them = ops.einsum("bme,mer->bmr", embed(hyper_h, weights), weights.expansion)
    return [join_gates(part) for part in ops.split(all_of_them, 3, axis=1)]
