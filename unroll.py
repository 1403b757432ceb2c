"""The loops of the recurrent cells over time, with gradients of their own.

Automatic differentiation would keep every intermediate result of every step, and would add a
whole kernel's gradient at each step, which costs more memory traffic than the products
themselves. Here the backward loop starts from the pre-activations, and each kernel's gradient is
one product over all steps. On two CPU cores (batches of 16, 512 units, 100 steps) this was
measured 3 to 4 times faster than automatic differentiation for lstm, 2 to 5 times for layer_norm,
twice for hyper, and faster than Keras's own LSTM: `benchmarks/run.py --only=unroll`.

Sequences are time-major, (T, B, ...).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import rnn
from support.backend import has_gpu, keras, ops
from support.precision import mixed_matmul, to_compute_dtype


def unroll(cell: rnn.Cell, projected: Any, state: tuple, masks: Any = None) -> tuple[Any, tuple]:
    """All steps of a cell.

    Args:
        cell: one of `rnn.CELLS`.
        projected: (T, B, 4 R), from `cell.project`; of a HyperLSTM also the hyper cell's.
        state: the cell's state before the first step.
        masks: (T, B, R), factors of the main cell's candidates (recurrent dropout), or None.

    Returns:
        The hidden vectors (T, B, R) and the last state.
    """
    dtype = cell.compute_dtype
    if isinstance(cell, rnn.HyperLSTMCell):
        return _unroll_hyper(projected, state, cell.weights_of_steps(), masks, dtype)
    kernel = cell.recurrent_kernel
    if isinstance(cell, rnn.LayerNormLSTMCell):
        gates = rnn.layer_norm_gates, _layer_norm_gates_gradient
        h, c = state
        gains = rnn.tensors(cell.gains)
        hs, c, h = _unroll_gates(*gates, projected, kernel, c, h, masks, gains, dtype=dtype)
        return hs, (h, c)
    gates = rnn.lstm_gates, _lstm_gates_gradient
    c, h = state
    hs, c, h = _unroll_gates(*gates, projected, kernel, c, h, masks, dtype=dtype)
    return hs, (c, h)


def fused_lstm(cell: rnn.Cell) -> Callable[[Any, tuple], tuple[Any, tuple]] | None:
    """All steps of an LSTM by Keras's own, which on a GPU is one cuDNN kernel.

    Returns:
        A function from rows and codes (T, B, 5 + Z) and the state (c, h) before the first step to
        the hidden vectors (T, B, R) and the last state; None where that kernel can't be used.
    """
    # The fused kernel keeps c in the compute type, and works on one device alone.
    usable = isinstance(cell, rnn.LSTMCell) and cell.compute_dtype == "float32"
    if not usable or keras.distribution.distribution() or not has_gpu():
        return None
    return keras_lstm(cell)


def keras_lstm(cell: rnn.LSTMCell) -> Callable[[Any, tuple], tuple[Any, tuple]]:
    """See `fused_lstm`; also where it brings no gain."""
    layer = keras.layers.LSTM(
        cell.state_sizes[0],
        return_sequences=True,
        return_state=True,
        recurrent_initializer="zeros",
        kernel_initializer="zeros",
    )
    layer.build((None, None, cell.input_kernel.shape[0]))

    # A function, so that no model tracks the layer's own weights, which are not used.
    def run(inputs, state):
        c, h = state
        # Keras's gates are input, forget, candidate, output, and its forget bias is a variable.
        kernel, recurrent_kernel, bias = (
            ops.concatenate([ops.split(weight[:], 4, axis=-1)[i] for i in (0, 2, 1, 3)], axis=-1)
            for weight in (cell.input_kernel, cell.recurrent_kernel, cell.bias)
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

    return run


def _lstm_gates_gradient(activated, c_before, c, d_c, d_h, mask, gains):
    i, j, f, o = ops.split(activated, 4, axis=-1)
    tanh_c = ops.tanh(c)
    d_c = d_c + d_h * o * (1.0 - tanh_c * tanh_c)
    return d_c * f, _activate_gradient((i, j, f, o), c_before, d_c, d_h * tanh_c, mask)


def _layer_norm_gates_gradient(gates, c_before, c, d_c, d_h, mask, gains):
    gain, shift, c_gain, c_shift = gains
    split_normal, factor = rnn.normalise(rnn.split_gates(gates))
    normal = rnn.join_gates(split_normal)
    i, j, f, o = rnn.activate(normal * gain + shift)
    normal_c, factor_c = rnn.normalise(c)
    tanh_c = ops.tanh(normal_c * c_gain + c_shift)

    d_shifted_c = d_h * o * (1.0 - tanh_c * tanh_c)
    d_c = d_c + _normalise_gradient(d_shifted_c * c_gain, normal_c, factor_c)
    d_shifted = _activate_gradient((i, j, f, o), c_before, d_c, d_h * tanh_c, mask)
    d_gates = _normalise_gradient(rnn.split_gates(d_shifted * gain), split_normal, factor)
    return (
        d_c * f,
        rnn.join_gates(d_gates),
        ops.sum(d_shifted * normal, axis=0),
        ops.sum(d_shifted, axis=0),
        ops.sum(d_shifted_c * normal_c, axis=0),
        ops.sum(d_shifted_c, axis=0),
    )


def _activate_gradient(activated, c_before, d_c, d_o, mask):
    """From the gradients of the new memory and of the opened output gate."""
    i, j, f, o = activated
    return ops.concatenate(
        [
            d_c * rnn.drop(j, mask) * i * (1.0 - i),
            rnn.drop(d_c, mask) * i * (1.0 - j * j),
            d_c * c_before * f * (1.0 - f),
            d_o * o * (1.0 - o),
        ],
        axis=-1,
    )


def _normalise_gradient(d_normal, normal, factor):
    along = normal * ops.mean(d_normal * normal, axis=-1, keepdims=True)
    return factor * (d_normal - ops.mean(d_normal, axis=-1, keepdims=True) - along)


def _unroll_gates(gate_fn, gate_gradient, projected, kernel, c0, h0, masks, gains=(), *, dtype):
    """Unrolls a cell whose gates are `projected` + h `kernel`.

    Args:
        gate_fn: `rnn.lstm_gates` or `rnn.layer_norm_gates`.
        gate_gradient: its gradient.
        projected: (T, B, 4 R).
        kernel: (R, 4 R).
        c0: (B, R), the memory before the first step.
        h0: (B, R), the hidden vector before the first step.
        masks: (T, B, R) or None.
        gains: further weights that `gate_fn` takes.
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
            return gate_fn(gates + mixed_matmul(h, kernel, dtype), c, mask, gains)

        start = (c0, h0, ops.zeros_like(projected[0]))
        (c_last, h_last, _), (cs, hs, saved) = _scan(forward, start, (projected, *masks))

        def gradient(*upstream):
            d_hs, d_c, d_h = keras.tree.flatten(upstream)  # one tuple or three tensors, by backend
            kernel_t = ops.transpose(kernel)

            def backward(carry, inputs):
                d_c, d_gates, *_ = carry
                d_h, saved, c_before, c, *mask = inputs
                d_h = d_h + mixed_matmul(d_gates, kernel_t, dtype)
                return gate_gradient(saved, c_before, c, d_c, d_h, mask, gains)

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
        carry = step(carry, keras.tree.map_structure(lambda sequence: sequence[t], sequences))
        return carry, carry

    length = ops.shape(keras.tree.flatten(sequences)[0])[0]
    return ops.scan(at, start, ops.arange(length), reverse=reverse)


def _before(start, sequence):
    """What a state was before each step, from its start and what it was after each step."""
    return ops.concatenate([start[None], sequence[:-1]], axis=0)


def _add_last(sequence, last):
    return ops.concatenate([sequence[:-1], (sequence[-1] + last)[None]], axis=0)


def _kernel_gradient(inputs, d_outputs, dtype="float32"):
    """Of a product made in `dtype` at every step: (T, B, M) and (T, B, N) to (M, N)."""
    inputs = ops.reshape(inputs, (-1, inputs.shape[-1]))
    d_outputs = ops.reshape(d_outputs, (-1, d_outputs.shape[-1]))
    return mixed_matmul(ops.transpose(inputs), to_compute_dtype(d_outputs, dtype), dtype)


class _HyperSteps(NamedTuple):
    """What the backward loop needs to know of a step; `c` and `hyper_h` are those after it."""

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
    x_scale, scale, shift = rnn.modulations(step.hyper_h, weights)
    gates = x_scale * step.x + scale * step.recurrent + shift + weights.bias
    d_c, d_gates, *d_gains = _layer_norm_gates_gradient(
        gates, step.c_before, step.c, d_c, d_h, mask, weights.gains
    )
    parts = [d_gates * step.x, d_gates * step.recurrent, d_gates]
    d_modulations = ops.concatenate([rnn.split_gates(part) for part in parts], axis=1)
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


def _unroll_hyper(projected, state, weights, masks, dtype):
    """Unrolls the HyperLSTM.

    Args:
        projected: (T, B, 4 R) and (T, B, 4 * 256).
        state: (h, hyper h, c, hyper c) before the first step.
        weights: a `rnn.HyperWeights`.
        masks: (T, B, R) or None.
        dtype: what the products with the kernels of the recurrence are made in.

    Returns:
        All hidden vectors (T, B, R) and the last state.
    """
    masks = () if masks is None else (masks,)
    count = len(keras.tree.flatten(weights))

    @ops.custom_gradient
    def run(x, hyper_x, h0, hyper_h0, c0, hyper_c0, *rest):
        w, masks = keras.tree.pack_sequence_as(weights, rest[:count]), rest[count:]
        w = rnn.to_dtype(w, dtype)

        def forward(carry, inputs):
            x, hyper_x, *mask = inputs
            state, saved = rnn.hyper_step((x, hyper_x), carry[:4], w, mask, dtype)
            return (*state, *saved)

        start = (h0, hyper_h0, c0, hyper_c0, ops.zeros_like(hyper_x[0]), ops.zeros_like(x[0]))
        last, steps = _scan(forward, start, (x, hyper_x, *masks))
        hs, hyper_hs, cs, hyper_cs, hyper_gates, recurrent = steps

        def gradient(*upstream):
            d_hs, d_h, d_hyper_h, d_c, d_hyper_c = keras.tree.flatten(upstream)
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
            embedded = ops.split(rnn.embed(hyper_hs, w), 3, axis=1)
            d_parts = (d.gates * x, d.gates * recurrent, d.gates)
            d_weights = rnn.HyperWeights(
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
                        ops.einsum("nge,ngr->ger", e, rnn.split_gates(d_part))
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
                *keras.tree.flatten(d_weights),
                *[ops.zeros_like(mask) for mask in masks],
            )

        return (hs, *last[:4]), gradient

    hs, *state = run(*projected, *state, *keras.tree.flatten(weights), *masks)
    return hs, tuple(state)
