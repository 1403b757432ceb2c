"""The recurrent cells of the decoder.

A cell turns the decoder's input (stroke-5 row and latent code) and its state into the next
hidden vector. Its input weights are applied outside of the recurrence: `project_code` once per
sketch, `project` for all steps at once or for one, so that the constant code is multiplied once.
Sequences are time-major here, (T, B, ...).
"""

import keras
from keras import ops

ROW_WIDTH = 5


class OrthogonalPerGate(keras.initializers.Initializer):
    """Each gate's (rows, units) block of a recurrent kernel is orthogonal on its own."""

    def __init__(self, gates: int = 4, seed=None):
        self.gates = gates
        self.orthogonal = keras.initializers.Orthogonal(seed=seed)

    def __call__(self, shape, dtype=None):
        rows, columns = shape
        blocks = [
            self.orthogonal((rows, columns // self.gates), dtype=dtype) for _ in range(self.gates)
        ]
        return ops.concatenate(blocks, axis=1)


class LSTMCell(keras.layers.Layer):
    """LSTM with forget bias 1 (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Gate columns are input, candidate, forget, output, as in the published weights; the state is
    (c, h), each (B, units).

    Args:
        input_width: width of a stroke-5 row and a code together, 5 + Z.
        units: R, width of the hidden vector and of the memory.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, input_width: int, units: int, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.state_sizes = (units, units)
        self.input_kernel = self.add_weight(
            shape=(input_width, 4 * units),
            initializer=keras.initializers.GlorotUniform(seed=seed),
            name="W_xh",
        )
        self.recurrent_kernel = self.add_weight(
            shape=(units, 4 * units), initializer=OrthogonalPerGate(seed=seed), name="W_hh"
        )
        self.bias = self.add_weight(shape=(4 * units,), initializer="zeros", name="bias")
        self.built = True

    def project_code(self, z):
        """The part of the gates that is the same at every step: (B, Z) to (B, 4 R)."""
        return ops.matmul(z, self.input_kernel[ROW_WIDTH:]) + self.bias

    def project(self, rows, code_part):
        """Adds the rows' part: (..., B, 5) and (B, 4 R) to (..., B, 4 R)."""
        return ops.matmul(rows, self.input_kernel[:ROW_WIDTH]) + code_part

    def step(self, projected, state):
        """One step: (B, 4 R) and (c, h) to h, (c, h)."""
        c, h = state
        gates = projected + ops.matmul(h, self.recurrent_kernel)
        c, h, _ = _lstm_gates(gates, c)
        return h, (c, h)

    def unroll(self, projected, state):
        """All steps: (T, B, 4 R) and (c, h) to the hidden vectors (T, B, R) and the last state."""
        return _lstm_unroll(projected, self.recurrent_kernel, *state)


def _lstm_gates(gates, c):
    i, j, f, o = ops.split(gates, 4, axis=-1)
    i, j, f, o = ops.sigmoid(i), ops.tanh(j), ops.sigmoid(f + 1.0), ops.sigmoid(o)
    c = c * f + i * j
    return c, o * ops.tanh(c), (i, j, f, o)


def _lstm_unroll(projected, recurrent_kernel, c0, h0):
    """Unrolls an LSTM; the recurrent kernel's gradient is one product over all steps.

    Automatic differentiation would add a whole kernel's gradient at each step, which costs more
    memory traffic than the products themselves.
    """

    @ops.custom_gradient
    def run(projected, kernel, c0, h0):
        def forward(carry, gates):
            c, h, _ = carry
            c, h, activated = _lstm_gates(gates + ops.matmul(h, kernel), c)
            carry = (c, h, ops.concatenate(activated, axis=-1))
            return carry, carry

        start = (c0, h0, ops.zeros_like(projected[0]))
        (c_last, h_last, _), (cs, hs, gates) = ops.scan(forward, start, projected)

        def gradient(*upstream):
            d_hs, d_c, d_h = upstream
            kernel_t = ops.transpose(kernel)

            def backward(carry, step):
                d_c, d_gates = carry
                d_h, gates, c, c_before = step
                i, j, f, o = ops.split(gates, 4, axis=-1)
                d_h = d_h + ops.matmul(d_gates, kernel_t)
                tanh_c = ops.tanh(c)
                d_c = d_c + d_h * o * (1.0 - tanh_c * tanh_c)
                d_gates = ops.concatenate(
                    [
                        d_c * j * i * (1.0 - i),
                        d_c * i * (1.0 - j * j),
                        d_c * c_before * f * (1.0 - f),
                        d_h * tanh_c * o * (1.0 - o),
                    ],
                    axis=-1,
                )
                carry = (d_c * f, d_gates)
                return carry, carry

            d_hs = ops.concatenate([d_hs[:-1], (d_hs[-1] + d_h)[None]], axis=0)
            cs_before = ops.concatenate([c0[None], cs[:-1]], axis=0)
            hs_before = ops.concatenate([h0[None], hs[:-1]], axis=0)
            (d_c0, d_gates0), (_, d_projected) = ops.scan(
                backward,
                (d_c, ops.zeros_like(projected[0])),
                (d_hs, gates, cs, cs_before),
                reverse=True,
            )
            units, columns = kernel.shape
            d_kernel = ops.matmul(
                ops.transpose(ops.reshape(hs_before, (-1, units))),
                ops.reshape(d_projected, (-1, columns)),
            )
            return d_projected, d_kernel, d_c0, ops.matmul(d_gates0, kernel_t)

        return (hs, c_last, h_last), gradient

    hs, c, h = run(projected, recurrent_kernel[:], c0, h0)  # [:]: a tensor, not a variable
    return hs, (c, h)


CELLS = {"lstm": LSTMCell}
