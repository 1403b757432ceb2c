"""Pictures to vectors by strided convolutions.

Shapes: N pictures, S a picture's side, C and D channels of a layer's inputs and outputs.

A convolution of kernel 2 x 2 and stride 2 sees each window of four neighbours alone, so that it can
be computed cell by cell: for all cells (`dense_cells`) or, where shapes may vary, only for those
that are neither blank nor full of ink (`mixed_cells`). The layers are here, and the same for both.
"""

import math

from dense_cells import DenseCells, Grid
from mixed_cells import MixedCells
from support.backend import keras, on_cpu, ops
from support.precision import MixedLayer

CHANNELS = (8, 32, 64, 128, 256, 512, 512)  # of SP-gra2seq


def skips_uniform_cells() -> bool:
    """Whether uniform cells are left out: only where shapes may vary, and pay off."""
    return keras.backend.backend() == "tensorflow" and on_cpu()


class PatchEncoder(MixedLayer):
    """Convolutions of kernel 2 and stride 2, ReLUs, and the maximum over all windows left.

    SP-gra2seq (Zang et al., AAAI 2023) has seven, without biases, and no ReLU after the last.
    The products are made in the compute type of the layer's policy.

    Args:
        channels: outputs of each convolution, at least two.
        use_bias: each convolution has a bias.
        last_relu: the last one has a ReLU after it, too.
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
        # Numbers of mixed cells are known to no compiler.
        self.supports_jit = not skips_uniform_cells()
        self.relus = [True] * (len(channels) - 1) + [last_relu]
        self.filters, self.biases = [], []
        if use_bias and not isinstance(seed, keras.random.SeedGenerator):
            # From one and the same number biases would start as kernels of their size do.
            seed = keras.random.SeedGenerator(seed)
        inputs = 1
        for layer, outputs in enumerate(channels):
            if use_bias:  # as PyTorch starts its convolutions
                initializer = keras.initializers.VarianceScaling(
                    1 / 3, "fan_in", "uniform", seed=seed
                )
            else:
                # A ReLU halves the variance.
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
        if pictures.shape[0] == 0:
            return ops.zeros((0, self.filters[-1].shape[-1]), self.variable_dtype)
        grid = Grid(pictures.shape[1], len(self.filters))
        cells = (MixedCells if skips_uniform_cells() else DenseCells)(
            grid, pictures, self.compute_dtype
        )
        x = cells.pixels
        for layer, kernel in enumerate(self.filters):
            x = cells.multiply(x, layer, self.to_compute_dtype(kernel))
            if self.biases:
                x = cells.add(ops.cast(x, "float32"), layer, self.biases[layer][:])
            x = ops.relu(x) if self.relus[layer] else x
        return ops.cast(cells.pool(x), self.variable_dtype)
