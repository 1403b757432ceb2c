"""SketchLattice's encoder: points on a lattice, linked by distance (Qi et al., ICCV 2021)."""

import math

import numpy as np

import graphs
from graphs import Encoding
from hparams import HParams
from lattice import SIDE
from support.backend import keras, ops

COORDINATE = 64  # width of a coordinate's embedding
EMBEDDING = 2 * COORDINATE
HIDDEN = 192
DROPOUT = 0.1
MAX_SQUARED_DISTANCE = 5202  # of two points that are linked: 0.2 of the diagonal
DROPOUT_STREAM = 1  # another one than the decoder's


class Encoder(graphs.Encoder):
    """One round of messages between near points, a perceptron, pooled into the latent code.

    The perceptron is computed in the compute type of its policy.

    Args:
        hparams: the options.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, hparams: HParams, seed=None, **kwargs):
        super().__init__(**kwargs)

        def table(name):
            return self.add_weight(
                shape=(SIDE, COORDINATE), initializer=TableInitializer(seed), name=name
            )

        def kernel(name, inputs, outputs, initializer):
            return self.add_weight(shape=(inputs, outputs), initializer=initializer, name=name)

        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)
        normal = keras.initializers.RandomNormal(0.0, 0.02, seed=seed)
        self.x_table, self.y_table = table("x"), table("y")
        self.kernel_1 = kernel("perceptron_1", EMBEDDING, HIDDEN, uniform)
        self.kernel_2 = kernel("perceptron_2", HIDDEN, EMBEDDING, uniform)
        self.graph_norm = graphs.batch_norm("graph_norm", (None, EMBEDDING))
        self.mu_kernel = kernel("mu", EMBEDDING, hparams.z_size, normal)
        self.log_var_kernel = kernel("log_var", EMBEDDING, hparams.z_size, normal)
        self.mu_bias, self.log_var_bias = (
            self.add_weight(shape=(hparams.z_size,), initializer="zeros", name=f"{name}_bias")
            for name in ("mu", "log_var")
        )
        self.dropout_seeds = keras.random.SeedGenerator(hparams.seed)
        self.built = True

    def call(self, nodes, training=False):
        """What `lattice.make_nodes` makes for the encoder, to an `Encoding`.

        In training, `dropout_seed` of the batch, int32 (B,) >= 0, decides by its first what is
        dropped; without it the random stream goes on.
        """
        points = ops.convert_to_tensor(nodes["points"])
        adjacency = self.adjacency(points, nodes["n_points"])
        masks = self.dropout_masks(points, nodes.get("dropout_seed")) if training else None
        pooled = self.pool(self.embed(points), adjacency, masks)
        features = self.read_out(pooled, training)
        return Encoding(
            ops.matmul(features, self.mu_kernel) + self.mu_bias,
            ops.matmul(features, self.log_var_kernel) + self.log_var_bias,
            adjacency,
        )

    def embed(self, points):
        """uint8 (B, V, 2), x and y, to embeddings (B, V, 128). A coordinate of 0 has zeros."""
        counts = (np.arange(SIDE) > 0).astype(np.float32)[:, None]
        points = ops.cast(points, "int32")
        return ops.concatenate(
            [
                ops.take(self.x_table * counts, points[:, :, 0], axis=0),
                ops.take(self.y_table * counts, points[:, :, 1], axis=0),
            ],
            axis=2,
        )

    def adjacency(self, points, n_points):
        """uint8 (B, V, 2), of which the first n_points (B,) are there, to (B, V, V)."""
        x, y = ops.cast(points[:, :, 0], "int32"), ops.cast(points[:, :, 1], "int32")
        squares = ops.square(x[:, :, None] - x[:, None]) + ops.square(y[:, :, None] - y[:, None])
        squares = ops.minimum(squares, MAX_SQUARED_DISTANCE + 1)
        places = np.arange(points.shape[1], dtype=np.int32)
        there = places < ops.cast(n_points, "int32")[:, None]
        linked = there[:, :, None] & there[:, None] & (places[:, None] != places)
        return ops.take(distance_weights(), squares, axis=0) * ops.cast(linked, "float32")

    def dropout_masks(self, points, dropout_seed=None):
        """What each of the two passes through the perceptron keeps, (B, V, 192), scaled."""
        if dropout_seed is not None:
            first = dropout_seed[0]
            start = ops.stack([first, ops.full_like(first, DROPOUT_STREAM << 16)])
            self.dropout_seeds.state.assign(ops.cast(start, self.dropout_seeds.state.dtype))
        ones = ops.ones((*ops.shape(points)[:2], HIDDEN), dtype=self.variable_dtype)
        return [keras.random.dropout(ones, DROPOUT, seed=self.dropout_seeds) for _ in range(2)]

    def pool(self, embeddings, adjacency, masks=None):
        """(B, V, 128) and (B, V, V) to the sum over the points, (B, 128).

        As published, the perceptron comes twice, with the same weights, after one round of
        messages. `masks` are those of `dropout_masks`.
        """
        messages = ops.matmul(adjacency, embeddings) + embeddings
        x = messages
        for number in range(2):
            x = ops.relu(self.multiply(x, self.kernel_1))
            x = x * masks[number] if masks else x
            x = ops.relu(self.multiply(x, self.kernel_2))
        return ops.sum(x + messages, axis=1)

    def read_out(self, pooled, training=False):
        """(B, 128) to the graph's features, (B, 128) in (-1, 1)."""
        return ops.tanh(self.graph_norm(pooled, training=training))


class TableInitializer(keras.initializers.RandomNormal):
    """Standard normal, but zeros for the coordinate 0, which stands for no point."""

    def __init__(self, seed=None):
        super().__init__(0.0, 1.0, seed=seed)

    def __call__(self, shape, dtype=None):
        counts = (np.arange(shape[0]) > 0).astype(np.float32)[:, None]
        return super().__call__(shape, dtype) * ops.cast(counts, dtype or "float32")


def distance_weights() -> np.ndarray:
    """The weight of a link by the squared distance of its ends, float32 (limit + 2,).

    1 less the distance as a share of the picture's diagonal, cut to whole percents as published;
    0 beyond the limit, MAX_SQUARED_DISTANCE.
    """
    distances = np.sqrt(np.arange(MAX_SQUARED_DISTANCE + 2, dtype=np.float64))
    percents = np.floor((1 - distances / ((SIDE - 1) * math.sqrt(2))) * 100)
    percents[MAX_SQUARED_DISTANCE + 1] = 0
    return (percents / 100).astype(np.float32)
