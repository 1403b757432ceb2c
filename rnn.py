"""The recurrent cells of the decoder.

A cell turns the decoder's input (stroke-5 row and latent code) and its state into the next
hidden vector. Its input weights are applied outside of the recurrence: `project_code` once per
sketch, `project` for all steps at once or for one, so that the constant code is multiplied once.
`step` makes one step, `unroll` all of them. Sequences are time-major here, (T, B, ...); gate
columns are input, candidate, forget, output, as in the published weights.

With a mixed dtype policy the products of the recurrence, and the gradients of their kernels, are
made in its compute type; memories, gates and everything else stay float32.

The loops over the steps have gradients of their own. Automatic differentiation would keep every
intermediate result of every step, and would add a whole kernel's gradient at each step, which
costs more memory traffic than the products themselves. Here the backward loop starts from the
pre-activations, and each kernel's gradient is one product over all steps.
"""

from typing import Any, NamedTuple

import keras
from keras import ops, tree

from support.backend import MixedLayer, mixed_matmul, to_compute_dtype

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


class LSTMCell(MixedLayer):
    """LSTM with forget bias 1 (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    The state is (c, h), each (B, units).

    Args:
        input_width: width of a stroke-5 row and a code together, 5 + Z.
        units: R, width of the hidden vector and of the memory.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, input_width: int, units: int, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.state_sizes = (units, units)
        self.input_kernel, self.recurrent_kernel = _add_kernels(self, input_width, units, seed)
        self.bias = self.add_weight(shape=(4 * units,), initializer="zeros", name="bias")
        # The fused kernel keeps c in the compute type, and works on one device alone.
        fused = self.compute_dtype == "float32" and not keras.distribution.distribution()
        self.fused_layer = _untracked_lstm(input_width, units) if fused and _has_gpu() else None
        self.built = True

    def project_code(self, z):
        """The part of the gates that is the same at every step: (..., Z) to (..., 4 R)."""
        return ops.matmul(z, self.input_kernel[ROW_WIDTH:]) + self.bias

    def project(self, rows, code_part):
        """Adds the rows' part: (..., B, 5) and (B, 4 R) to (..., B, 4 R)."""
        return ops.matmul(rows, self.input_kernel[:ROW_WIDTH]) + code_part

    def step(self, projected, state):
        """One step: (B, 4 R) and (c, h) to h, (c, h)."""
        c, h = state
        gates = projected + mixed_matmul(
            h, self.to_compute_dtype(self.recurrent_kernel), self.compute_dtype
        )
        c, h, _ = _lstm_gates(gates, c, (), ())
        return h, (c, h)

    def unroll(self, projected, state, masks=None):
        """All steps.

        Args:
            projected: (T, B, 4 R).
            state: (c, h) before the first step.
            masks: (T, B, R), factors of the candidates (recurrent dropout), or None.

        Returns:
            The hidden vectors (T, B, R) and the last state.
        """
        c, h = state
        hs, c, h = _unroll(
            _lstm_gates,
            _lstm_gates_gradient,
            projected,
            self.recurrent_kernel,
            c,
            h,
            masks,
            dtype=self.compute_dtype,
        )
        return hs, (c, h)

    def unroll_fused(self, inputs, state):
        """As `project` and `unroll`, by Keras's LSTM, which on a GPU is one cuDNN kernel.

        Args:
            inputs: rows and codes (T, B, 5 + Z).
            state: (c, h) before the first step.

        Returns:
            The hidden vectors (T, B, R) and the last state.
        """
        layer = self.fused_layer()
        c, h = state
        # Keras's gates are input, forget, candidate, output, and its forget bias is a variable.
        kernel, recurrent_kernel, bias = (
            ops.concatenate([ops.split(weight[:], 4, axis=-1)[i] for i in (0, 2, 1, 3)], axis=-1)
            for weight in (self.input_kernel, self.recurrent_kernel, self.bias)
        )
        units = h.shape[-1]
        forget = ops.cast(ops.arange(4 * units) // units == 1, bias.dtype)
        (hs, h, c), _ = layer.stateless_call(
            [kernel, recurrent_kernel, bias + forget],
            [v.value for v in layer.non_trainable_variables],
            ops.swapaxes(inputs, 0, 1),
            initial_state=[h, c],
        )
        return ops.swapaxes(hs, 0, 1), (c, h)


class LayerNormLSTMCell(MixedLayer):
    """LSTM with layer normalisation of each gate and of the new memory (arXiv 1607.06450).

    There is no bias: the norm's shift takes its place. The forget bias of 1 comes behind the
    norm. The state is (h, c), each (B, units).

    Args:
        input_width: width of a stroke-5 row and a code together, 5 + Z.
        units: R, width of the hidden vector and of the memory.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, input_width: int, units: int, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.state_sizes = (units, units)
        self.input_kernel, self.recurrent_kernel = _add_kernels(self, input_width, units, seed)
        self.gains = _add_gains(self, units)
        self.built = True

    def project_code(self, z):
        """The part of the gates that is the same at every step: (..., Z) to (..., 4 R)."""
        return ops.matmul(z, self.input_kernel[ROW_WIDTH:])

    def project(self, rows, code_part):
        """Adds the rows' part: (..., B, 5) and (B, 4 R) to (..., B, 4 R)."""
        return ops.matmul(rows, self.input_kernel[:ROW_WIDTH]) + code_part

    def step(self, projected, state):
        """One step: (B, 4 R) and (h, c) to h, (h, c)."""
        h, c = state
        gates = projected + mixed_matmul(
            h, self.to_compute_dtype(self.recurrent_kernel), self.compute_dtype
        )
        c, h, _ = _layer_norm_gates(gates, c, (), _tensors(self.gains))
        return h, (h, c)

    def unroll(self, projected, state, masks=None):
        """All steps.

        Args:
            projected: (T, B, 4 R).
            state: (h, c) before the first step.
            masks: (T, B, R), factors of the candidates (recurrent dropout), or None.

        Returns:
            The hidden vectors (T, B, R) and the last state.
        """
        h, c = state
        hs, c, h = _unroll(
            _layer_norm_gates,
            _layer_norm_gates_gradient,
            projected,
            self.recurrent_kernel,
            c,
            h,
            masks,
            _tensors(self.gains),
            dtype=self.compute_dtype,
        )
        return hs, (h, c)


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
        weights = _lowered(self._weights(), self.compute_dtype)
        state, _ = _hyper_step(projected, state, weights, (), self.compute_dtype)
        return state[0], state

    def unroll(self, projected, state, masks=None):
        """All steps.

        Args:
            projected: (T, B, 4 R), and the hyper cell's (T, B, 4 * 256).
            state: (h, hyper h, c, hyper c) before the first step.
            masks: (T, B, R), factors of the main cell's candidates (recurrent dropout), or None.

        Returns:
            The hidden vectors (T, B, R) and the last state.
        """
        return _hyper_unroll(projected, state, self._weights(), masks, self.compute_dtype)

    def _weights(self):
        scale_biases = _tensors(self.scale_biases)
        no_biases = [ops.zeros_like(bias) for bias in scale_biases[: len(GATES)]]
        embeddings = _tensors(self.scale_embeddings + self.shift_embeddings)
        expansions = _tensors(self.scale_expansions + self.shift_expansions)
        return _HyperWeights(
            recurrent=self.recurrent_kernel[:],
            bias=self.bias[:],
            gains=_tensors(self.gains),
            hyper_input=self.hyper_cell.input_kernel[self.input_width :],
            hyper_recurrent=self.hyper_cell.recurrent_kernel[:],
            hyper_gains=_tensors(self.hyper_cell.gains),
            embedding=ops.concatenate(embeddings, axis=1),
            embedding_bias=ops.concatenate([*scale_biases, *no_biases], axis=0),
            expansion=ops.stack(expansions),
        )


CELLS = {"lstm": LSTMCell, "layer_norm": LayerNormLSTMCell, "hyper": HyperLSTMCell}


def _has_gpu() -> bool:
    # Asking JAX for GPUs where there are none is an error.
    return any(name.lower().startswith("gpu") for name in keras.distribution.list_devices())


def _untracked_lstm(input_width, units):
    """Keras's LSTM in a function, so that its own, unused weights are nobody's."""
    layer = keras.layers.LSTM(
        units,
        return_sequences=True,
        return_state=True,
        recurrent_initializer="zeros",
        kernel_initializer="zeros",
    )
    layer.build((None, None, input_width))
    return lambda: layer


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


def _tensors(variables):
    return tuple(variable[:] for variable in variables)


# Between the products: pre-activations of the gates (B, 4 R) and the memory c (B, R) to the new c
# and h, and what the gradient needs to know, of the gates' shape. `mask` holds the factor of the
# candidate, or nothing. The gradients are those of c, of the gates and of each of the gains.


def _lstm_gates(gates, c, mask, gains):
    i, j, f, o = _activate(gates)
    c = c * f + i * _drop(j, mask)
    return c, o * ops.tanh(c), ops.concatenate([i, j, f, o], axis=-1)


def _lstm_gates_gradient(activated, c_before, c, d_c, d_h, mask, gains):
    i, j, f, o = ops.split(activated, 4, axis=-1)
    tanh_c = ops.tanh(c)
    d_c = d_c + d_h * o * (1.0 - tanh_c * tanh_c)
    return d_c * f, _activate_gradient((i, j, f, o), c_before, d_c, d_h * tanh_c, mask)


def _layer_norm_gates(gates, c, mask, gains):
    gain, shift, c_gain, c_shift = gains
    normal, _ = _normalise(_split_gates(gates))
    i, j, f, o = _activate(_join_gates(normal) * gain + shift)
    c = c * f + i * _drop(j, mask)
    normal_c, _ = _normalise(c)
    return c, o * ops.tanh(normal_c * c_gain + c_shift), gates


def _layer_norm_gates_gradient(gates, c_before, c, d_c, d_h, mask, gains):
    gain, shift, c_gain, c_shift = gains
    split_normal, factor = _normalise(_split_gates(gates))
    normal = _join_gates(split_normal)
    i, j, f, o = _activate(normal * gain + shift)
    normal_c, factor_c = _normalise(c)
    tanh_c = ops.tanh(normal_c * c_gain + c_shift)

    d_shifted_c = d_h * o * (1.0 - tanh_c * tanh_c)
    d_c = d_c + _normalise_gradient(d_shifted_c * c_gain, normal_c, factor_c)
    d_shifted = _activate_gradient((i, j, f, o), c_before, d_c, d_h * tanh_c, mask)
    d_gates = _normalise_gradient(_split_gates(d_shifted * gain), split_normal, factor)
    return (
        d_c * f,
        _join_gates(d_gates),
        ops.sum(d_shifted * normal, axis=0),
        ops.sum(d_shifted, axis=0),
        ops.sum(d_shifted_c * normal_c, axis=0),
        ops.sum(d_shifted_c, axis=0),
    )


def _activate(gates):
    i, j, f, o = ops.split(gates, 4, axis=-1)
    return ops.sigmoid(i), ops.tanh(j), ops.sigmoid(f + FORGET_BIAS), ops.sigmoid(o)


def _activate_gradient(activated, c_before, d_c, d_o, mask):
    """From the gradients of the new memory and of the opened output gate."""
    i, j, f, o = activated
    return ops.concatenate(
        [
            d_c * _drop(j, mask) * i * (1.0 - i),
            _drop(d_c, mask) * i * (1.0 - j * j),
            d_c * c_before * f * (1.0 - f),
            d_o * o * (1.0 - o),
        ],
        axis=-1,
    )


def _drop(candidate, mask):
    return candidate * mask[0] if mask else candidate


def _split_gates(gates):
    return ops.reshape(gates, (-1, 4, gates.shape[-1] // 4))


def _join_gates(gates):
    return ops.reshape(gates, (-1, 4 * gates.shape[-1]))


def _normalise(x):
    """Zero mean and unit variance along the last axis; also the factor applied."""
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    factor = ops.rsqrt(variance + LAYER_NORM_EPSILON)
    return centred * factor, factor


def _normalise_gradient(d_normal, normal, factor):
    along = normal * ops.mean(d_normal * normal, axis=-1, keepdims=True)
    return factor * (d_normal - ops.mean(d_normal, axis=-1, keepdims=True) - along)


def _unroll(between, between_gradient, projected, kernel, c0, h0, masks, gains=(), *, dtype):
    """Unrolls a cell whose gates are `projected` + h `kernel`.

    Args:
        between: `_lstm_gates` or `_layer_norm_gates`.
        between_gradient: its gradient.
        projected: (T, B, 4 R).
        kernel: (R, 4 R).
        c0: (B, R), the memory before the first step.
        h0: (B, R), the hidden vector before the first step.
        masks: (T, B, R) or None.
        gains: further weights that `between` takes.
        dtype: what the products with `kernel` are made in.

    Returns:
        All hidden vectors (T, B, R), the last c and the last h.
    """
    masks = () if masks is None else (masks,)
    count = len(gains)

    @ops.custom_gradient
    def run(projected, kernel, c0, h0, *rest):
        gains, masks = rest[:count], rest[count:]
        kernel = to_compute_dtype(kernel, dtype)

        def forward(carry, inputs):
            c, h, _ = carry
            gates, *mask = inputs
            return between(gates + mixed_matmul(h, kernel, dtype), c, mask, gains)

        start = (c0, h0, ops.zeros_like(projected[0]))
        (c_last, h_last, _), (cs, hs, saved) = _scan(forward, start, (projected, *masks))

        def gradient(*upstream):
            d_hs, d_c, d_h = tree.flatten(upstream)  # one tuple or three tensors, by backend
            kernel_t = ops.transpose(kernel)

            def backward(carry, inputs):
                d_c, d_gates, *_ = carry
                d_h, saved, c_before, c, *mask = inputs
                d_h = d_h + mixed_matmul(d_gates, kernel_t, dtype)
                return between_gradient(saved, c_before, c, d_c, d_h, mask, gains)

            (d_c0, d_gates0, *_), (_, d_projected, *d_gains) = _scan(
                backward,
                (d_c, ops.zeros_like(projected[0]), *[ops.zeros_like(gain) for gain in gains]),
                (_add_last(d_hs, d_h), saved, _before(c0, cs), cs, *masks),
                reverse=True,
            )
            return (
                d_projected,
                _kernel_gradient(_before(h0, hs), d_projected, dtype),
                d_c0,
                mixed_matmul(d_gates0, kernel_t, dtype),
                *[ops.sum(d_gain, axis=0) for d_gain in d_gains],
                *[ops.zeros_like(mask) for mask in masks],
            )

        return (hs, c_last, h_last), gradient

    return run(projected, kernel[:], c0, h0, *gains, *masks)  # [:]: a tensor, not a variable


def _scan(step, start, sequences, reverse=False):
    """`step`(carry, inputs) to the next carry, for all steps: the last carry, and all of them.

    TensorFlow's `ops.scan` keeps nothing but what is like the carry, and takes several sequences
    only if their length is known beforehand; so it is given the places in them instead.
    """

    def at(carry, t):
        carry = step(carry, tree.map_structure(lambda sequence: sequence[t], sequences))
        return carry, carry

    length = ops.shape(tree.flatten(sequences)[0])[0]
    return ops.scan(at, start, ops.arange(length), reverse=reverse)


def _before(start, sequence):
    """What a state was before each step, from its start and what it was behind each step."""
    return ops.concatenate([start[None], sequence[:-1]], axis=0)


def _add_last(sequence, last):
    return ops.concatenate([sequence[:-1], (sequence[-1] + last)[None]], axis=0)


def _kernel_gradient(inputs, d_outputs, dtype="float32"):
    """Of a product made in `dtype` at every step: (T, B, M) and (T, B, N) to (M, N)."""
    inputs = ops.reshape(inputs, (-1, inputs.shape[-1]))
    d_outputs = ops.reshape(d_outputs, (-1, d_outputs.shape[-1]))
    return mixed_matmul(ops.transpose(inputs), to_compute_dtype(d_outputs, dtype), dtype)


class _HyperWeights(NamedTuple):
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


def _lowered(weights, dtype):
    """The weights with the kernels of the recurrence as products in `dtype` take them."""
    return weights._replace(
        recurrent=to_compute_dtype(weights.recurrent, dtype),
        hyper_input=to_compute_dtype(weights.hyper_input, dtype),
        hyper_recurrent=to_compute_dtype(weights.hyper_recurrent, dtype),
    )


def _hyper_step(projected, state, weights, mask, dtype):
    """To the next state, and the two pre-activations that the gradient starts from."""
    x, hyper_x = projected
    h, hyper_h, c, hyper_c = state
    hyper_gates = mixed_matmul(hyper_h, weights.hyper_recurrent, dtype)
    hyper_gates = hyper_gates + mixed_matmul(h, weights.hyper_input, dtype) + hyper_x
    hyper_c, hyper_h, _ = _layer_norm_gates(hyper_gates, hyper_c, (), weights.hyper_gains)
    recurrent = mixed_matmul(h, weights.recurrent, dtype)
    x_scale, scale, shift = _modulations(hyper_h, weights)
    gates = x_scale * x + scale * recurrent + shift + weights.bias
    c, h, _ = _layer_norm_gates(gates, c, mask, weights.gains)
    return (h, hyper_h, c, hyper_c), (hyper_gates, recurrent)


def _embed(hyper_h, weights):
    """(..., 256) to (N, 12, E)."""
    flat = ops.matmul(hyper_h, weights.embedding) + weights.embedding_bias
    return ops.reshape(flat, (-1, weights.expansion.shape[0], HYPER_EMBEDDING))


def _modulations(hyper_h, weights):
    """(B, 256) to the scales of the two parts and the shift, each (B, 4 R)."""
    all_of_them = ops.einsum("bme,mer->bmr", _embed(hyper_h, weights), weights.expansion)
    return [_join_gates(part) for part in ops.split(all_of_them, 3, axis=1)]


class _HyperSteps(NamedTuple):
    """What the backward loop needs to know of a step; `c` and `hyper_h` are those behind it."""

    x: Any
    recurrent: Any
    c_before: Any
    c: Any
    hyper_gates: Any
    hyper_h: Any
    hyper_c_before: Any
    hyper_c: Any


class _HyperGradients(NamedTuple):
    """What the backward loop finds at a step."""

    c_before: Any
    hyper_c_before: Any
    x: Any
    recurrent: Any
    gates: Any
    hyper_gates: Any
    embedded: Any
    gains: tuple
    hyper_gains: tuple


def _hyper_step_gradient(step, d_h, d_hyper_h, d_c, d_hyper_c, weights, mask):
    x_scale, scale, shift = _modulations(step.hyper_h, weights)
    gates = x_scale * step.x + scale * step.recurrent + shift + weights.bias
    d_c, d_gates, *d_gains = _layer_norm_gates_gradient(
        gates, step.c_before, step.c, d_c, d_h, mask, weights.gains
    )
    parts = [d_gates * step.x, d_gates * step.recurrent, d_gates]
    d_modulations = ops.concatenate([_split_gates(part) for part in parts], axis=1)
    d_embedded = ops.einsum("bmr,mer->bme", d_modulations, weights.expansion)
    d_embedded = ops.reshape(d_embedded, (-1, weights.embedding.shape[1]))
    d_hyper_h = d_hyper_h + ops.matmul(d_embedded, ops.transpose(weights.embedding))
    d_hyper_c, d_hyper_gates, *d_hyper_gains = _layer_norm_gates_gradient(
        step.hyper_gates,
        step.hyper_c_before,
        step.hyper_c,
        d_hyper_c,
        d_hyper_h,
        (),
        weights.hyper_gains,
    )
    return _HyperGradients(
        c_before=d_c,
        hyper_c_before=d_hyper_c,
        x=d_gates * x_scale,
        recurrent=d_gates * scale,
        gates=d_gates,
        hyper_gates=d_hyper_gates,
        embedded=d_embedded,
        gains=tuple(d_gains),
        hyper_gains=tuple(d_hyper_gains),
    )


def _hyper_unroll(projected, state, weights, masks, dtype):
    """Unrolls the HyperLSTM.

    Args:
        projected: (T, B, 4 R) and (T, B, 4 * 256).
        state: (h, hyper h, c, hyper c) before the first step.
        weights: a `_HyperWeights`.
        masks: (T, B, R) or None.
        dtype: what the products with the kernels of the recurrence are made in.

    Returns:
        All hidden vectors (T, B, R) and the last state.
    """
    masks = () if masks is None else (masks,)
    count = len(tree.flatten(weights))

    @ops.custom_gradient
    def run(x, hyper_x, h0, hyper_h0, c0, hyper_c0, *rest):
        w, masks = tree.pack_sequence_as(weights, rest[:count]), rest[count:]
        w = _lowered(w, dtype)

        def forward(carry, inputs):
            x, hyper_x, *mask = inputs
            state, between = _hyper_step((x, hyper_x), carry[:4], w, mask, dtype)
            return (*state, *between)

        start = (h0, hyper_h0, c0, hyper_c0, ops.zeros_like(hyper_x[0]), ops.zeros_like(x[0]))
        last, steps = _scan(forward, start, (x, hyper_x, *masks))
        hs, hyper_hs, cs, hyper_cs, hyper_gates, recurrent = steps

        def gradient(*upstream):
            d_hs, d_h, d_hyper_h, d_c, d_hyper_c = tree.flatten(upstream)
            recurrent_t = ops.transpose(w.recurrent)
            hyper_input_t = ops.transpose(w.hyper_input)
            hyper_recurrent_t = ops.transpose(w.hyper_recurrent)

            def h_gradients(d):
                """Of both hidden vectors before a step."""
                d_h = mixed_matmul(d.recurrent, recurrent_t, dtype)
                d_h = d_h + mixed_matmul(d.hyper_gates, hyper_input_t, dtype)
                return d_h, mixed_matmul(d.hyper_gates, hyper_recurrent_t, dtype)

            def backward(d, inputs):
                d_h, d_hyper_h, step, *mask = inputs
                later_d_h, later_d_hyper_h = h_gradients(d)
                d_h, d_hyper_h = d_h + later_d_h, d_hyper_h + later_d_hyper_h
                return _hyper_step_gradient(
                    step, d_h, d_hyper_h, d.c_before, d.hyper_c_before, w, mask
                )

            zeros, hyper_zeros = ops.zeros_like(x[0]), ops.zeros_like(hyper_x[0])
            start = _HyperGradients(
                c_before=d_c,
                hyper_c_before=d_hyper_c,
                x=zeros,
                recurrent=zeros,
                gates=zeros,
                hyper_gates=hyper_zeros,
                embedded=ops.zeros_like(ops.matmul(hyper_h0, w.embedding)),
                gains=tuple(ops.zeros_like(gain) for gain in w.gains),
                hyper_gains=tuple(ops.zeros_like(gain) for gain in w.hyper_gains),
            )
            steps = _HyperSteps(
                x=x,
                recurrent=recurrent,
                c_before=_before(c0, cs),
                c=cs,
                hyper_gates=hyper_gates,
                hyper_h=hyper_hs,
                hyper_c_before=_before(hyper_c0, hyper_cs),
                hyper_c=hyper_cs,
            )
            d_hyper_hs = _add_last(ops.zeros_like(hyper_hs), d_hyper_h)
            inputs = (_add_last(d_hs, d_h), d_hyper_hs, steps, *masks)
            first, d = _scan(backward, start, inputs, reverse=True)

            hs_before, hyper_hs_before = _before(h0, hs), _before(hyper_h0, hyper_hs)
            embedded = ops.split(_embed(hyper_hs, w), 3, axis=1)
            d_parts = (d.gates * x, d.gates * recurrent, d.gates)
            d_weights = _HyperWeights(
                recurrent=_kernel_gradient(hs_before, d.recurrent, dtype),
                bias=ops.sum(d.gates, axis=(0, 1)),
                gains=tuple(ops.sum(gain, axis=0) for gain in d.gains),
                hyper_input=_kernel_gradient(hs_before, d.hyper_gates, dtype),
                hyper_recurrent=_kernel_gradient(hyper_hs_before, d.hyper_gates, dtype),
                hyper_gains=tuple(ops.sum(gain, axis=0) for gain in d.hyper_gains),
                embedding=_kernel_gradient(hyper_hs, d.embedded),
                embedding_bias=ops.sum(d.embedded, axis=(0, 1)),
                expansion=ops.concatenate(
                    [
                        ops.einsum("nge,ngr->ger", e, _split_gates(d_part))
                        for e, d_part in zip(embedded, d_parts, strict=True)
                    ],
                    axis=0,
                ),
            )
            return (
                d.x,
                d.hyper_gates,
                *h_gradients(first),
                first.c_before,
                first.hyper_c_before,
                *tree.flatten(d_weights),
                *[ops.zeros_like(mask) for mask in masks],
            )

        return (hs, *last[:4]), gradient

    hs, *state = run(*projected, *state, *tree.flatten(weights), *masks)
    return hs, tuple(state)
