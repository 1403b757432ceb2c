"""Products in mixed precision: the same numbers on every device.

With a mixed policy a product has inputs rounded to the compute type and sums in float32, on every
device, and so have the products of its gradient. A GPU's matrix units work so. What a CPU makes of
`matmul` in bfloat16 depends on its library: Eigen, which TensorFlow uses where it leaves oneDNN
off, sums in float32, but cuts the results off instead of rounding them, and so shrinks each by
0.28 % on average, layer after layer. So on a CPU the rounded numbers stay in float32 and are
multiplied there. That buys the same results everywhere, and a rehearsal of what a GPU will
compute; it costs the rounding of each input, saves no memory, and is slower than the bfloat16
instructions of those CPUs that have them.
"""

from support.backend import keras, on_cpu, ops


class MixedLayer(keras.layers.Layer):
    """A layer that chooses itself what is computed in its policy's compute type.

    Keras would cast all inputs and all variables, and so also what needs float32's digits.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def add_weight(self, **kwargs):
        """As Keras's, and read as float32 everywhere."""
        return super().add_weight(autocast=False, **kwargs)

    def to_compute_dtype(self, x):
        """`x` as the layer's products take it."""
        return to_compute_dtype(x, self.compute_dtype)


def to_compute_dtype(x, dtype: str):
    """`x` rounded to `dtype`, as `mixed_matmul` takes it; gradients pass unrounded on a CPU.

    Args:
        x: a tensor or variable.
        dtype: a layer's compute type.

    Returns:
        A tensor of `x`'s shape; on a CPU it is float32, whatever `dtype`.
    """
    x = ops.convert_to_tensor(x)
    return _rounded_in_float32(x, dtype) if _stays_float32(dtype) else ops.cast(x, dtype)


def mixed_matmul(x, kernel, dtype: str):
    """`x` times `kernel`, with inputs rounded to `dtype` and sums in float32, of `x`'s type.

    Args:
        x: (..., M), rounded here if need be.
        kernel: (M, N) from `to_compute_dtype`: what is used at every step is rounded once.
        dtype: a layer's compute type.

    Returns:
        (..., N). The gradient that comes back is rounded, too, before it is multiplied.
    """
    if not _stays_float32(dtype):
        return ops.cast(ops.matmul(ops.cast(x, dtype), kernel), x.dtype)

    @ops.custom_gradient
    def multiply(x, kernel):
        x = _round(x, dtype)

        def gradient(*upstream):
            d = _round(upstream[-1], dtype)
            rows, d_rows = (ops.reshape(a, (-1, a.shape[-1])) for a in (x, d))
            return ops.matmul(d, ops.transpose(kernel)), ops.matmul(ops.transpose(rows), d_rows)

        return ops.matmul(x, kernel), gradient

    return multiply(ops.convert_to_tensor(x), kernel)


def _stays_float32(dtype: str) -> bool:
    return dtype != "float32" and on_cpu()


def _rounded_in_float32(x, dtype):
    @ops.custom_gradient
    def straight_through(x):
        return _round(x, dtype), lambda *upstream: upstream[-1]

    return straight_through(ops.cast(x, "float32"))


def _round(x, dtype):
    """float32 to float32, rounded to the digits of `dtype`."""
    if keras.backend.backend() == "jax":
        import jax

        # XLA leaves out a cast to fewer digits and back.
        format = jax.numpy.finfo(dtype)
        return jax.lax.reduce_precision(x, format.nexp, format.nmant)
    return ops.cast(ops.cast(x, dtype), "float32")
