"""Pictures to vectors by strided convolutions.

Shapes: N pictures, S a picture's side, D the last convolution's channels.
"""

import math

import numpy as np

from support.backend import MixedLayer, keras, ops

CHANNELS = (8, 32, 64, 128, 256, 512, 512)  # of SP-gra2seq
CELL = 4  # side, in pixels, of what the first convolution sees at a time


class PatchEncoder(MixedLayer):
    """Strided convolutions and a max-pool over what is left: one vector a picture.

    All is computed in the compute type of its policy.

    Args:
        channels: outputs of each convolution.
        use_bias: each convolution has a bias.
        last_relu: a ReLU follows the last convolution too.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = CHANNELS,
        use_bias: bool = False,
        last_relu: bool = False,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.relus = [True] * (len(channels) - 1) + [last_relu]
        self.filters, self.biases = [], []
        inputs = 1
        for layer, outputs in enumerate(channels):
            if use_bias:  # as PyTorch starts its convolutions
                initializer = keras.initializers.VarianceScaling(
                    1 / 3, "fan_in", "uniform", seed=seed
                )
            else:  # a ReLU halves the variance
                initializer = keras.initializers.VarianceScaling(
                    1.0 + self.relus[layer], "fan_in", "untruncated_normal", seed=seed
                )
            self.filters.append(
                self.add_weight(
                    shape=(2, 2, inputs, outputs), initializer=initializer, name=f"conv{layer}"
                )
            )
            if use_bias:
                bound = 1 / math.sqrt(4 * inputs)
                self.biases.append(
                    self.add_weight(
                        shape=(outputs,),
                        initializer=keras.initializers.RandomUniform(-bound, bound, seed=seed),
                        name=f"conv{layer}_bias",
                    )
                )
            inputs = outputs
        self.built = True

    def call(self, pictures):
        """uint8 (N, S, S), S at most 256, 0 = background and 255 = ink, to float32 (N, D)."""
        side = pictures.shape[1]
        padded = max(CELL, 2 ** math.ceil(math.log2(side)))
        if side == padded:
            x = self._scale(_to_cells(pictures))
        else:
            # Zeros after the edges are what SAME padding would put there, layer by layer.
            margin = (0, padded - side)
            x = _to_cells(ops.pad(self._scale(pictures), ((0, 0), margin, margin)))
        # In quadtree order a 2 x 2 window of stride 2 is four neighbours: each convolution is a
        # matrix product without any rearrangement, many times as fast backwards as a general one.
        windows = (padded // 2) ** 2
        for layer, kernel in enumerate(map(self.to_compute_dtype, self.filters)):
            if layer == 0:
                kernel = _cell_kernel(kernel)
            elif windows == 1:  # of a single pixel's window, SAME padding fills the rest
                kernel = kernel[0, 0]
            else:
                kernel = ops.reshape(kernel, (-1, kernel.shape[-1]))
                windows //= 4
            x = ops.matmul(ops.reshape(x, (-1, kernel.shape[0])), kernel)
            if self.biases:
                bias = self.to_compute_dtype(self.biases[layer])
                x = ops.reshape(x, (-1, bias.shape[0])) + bias
            if self.relus[layer]:
                x = ops.relu(x)
        pooled = ops.max(ops.reshape(x, (-1, windows, x.shape[-1])), axis=1)
        return ops.cast(pooled, self.variable_dtype)

    def _scale(self, pixels):
        # The same bits as v / 255 * 2 - 1: a factor of two changes no rounding.
        return ops.cast(pixels, self.compute_dtype) / 127.5 - 1


def _to_cells(pictures):
    """(N, S, S), S a power of two, to (cells, 16): cells of 4 x 4 pixels, in quadtree order.

    In that order every quadrant is contiguous at every level. Inside a cell pixels stay row by
    row: moving whole rows of a cell takes a quarter of the time.
    """
    side = pictures.shape[1]
    count = side // CELL
    order = np.arange(count * count, dtype=np.int32).reshape(count, count)
    for level in range(int(math.log2(count))):
        half = count >> (level + 1)
        order = order.reshape(-1, 2, half, 2, half).swapaxes(2, 3)
    rows = np.arange(side * count, dtype=np.int32).reshape(count, CELL, count).swapaxes(1, 2)
    rows = rows.reshape(-1, CELL)[order.reshape(-1)].reshape(-1)
    pieces = ops.take(ops.reshape(pictures, (-1, side * count, CELL)), rows, axis=1)
    return ops.reshape(pieces, (-1, CELL * CELL))


def _cell_kernel(kernel):
    """The first convolution's kernel (2, 2, 1, C) as it acts on a cell: (16, 4 C).

    Of the cell's four windows each sees its own four pixels; zeros stand for the others.
    """
    channels = kernel.shape[-1]
    source = np.full((CELL, CELL, 2, 2, channels), 4 * channels, np.int32)
    for y, x in np.ndindex(CELL, CELL):
        pixel = 2 * (y % 2) + x % 2
        source[y, x, y // 2, x // 2] = pixel * channels + np.arange(channels)
    values = ops.reshape(kernel, (-1,))
    values = ops.concatenate([values, ops.zeros_like(values[:1])])
    return ops.take(values, source.reshape(CELL * CELL, 4 * channels))
