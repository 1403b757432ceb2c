"""DC-gra2seq's encoder: synonymous edges and positions in the drawing (Zang et al., CVIU 2025)."""

import math

import numpy as np

import graphs
from encoders import CHANNELS, PatchEncoder
from graphs import Encoding
from hparams import HParams
from support.backend import keras, ops

EMBEDDING = CHANNELS[-1]
COSINE_EPSILON = 1e-10
PICTURE_POSITION = -1.1  # stands for the position of the whole sketch


class Encoder(graphs.PatchGraphEncoder):
    """A graph convolution of two layers over embeddings and positions, pooled into the code.

    Convolutions and graph convolutions are computed in the compute type of its policy.

    Args:
        hparams: the options.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, hparams: HParams, seed=None, **kwargs):
        super().__init__(**kwargs)
        patches, z_size = hparams.graph_number - 1, hparams.z_size
        self.patch_encoder = PatchEncoder(
            CHANNELS, use_bias=True, seed=seed, dtype=self.dtype_policy, name="encoder"
        )
        self.node_norm = graphs.batch_norm("node_norm", (None, None, EMBEDDING))
        self.graph_norm = graphs.batch_norm("graph_norm", (None, EMBEDDING))
        self.relative = self.add_weight(
            shape=(patches, EMBEDDING),
            initializer=keras.initializers.RandomNormal(
                0.0, math.sqrt(2 / (EMBEDDING + patches)), seed=seed
            ),
            name="relative_positions",
        )

        def linear_map(name, outputs):
            return graphs.add_linear_map(self, name, EMBEDDING, outputs, seed)

        self.kernel_1, self.bias_1 = linear_map("gcn_1", EMBEDDING)
        self.kernel_2, self.bias_2 = linear_map("gcn_2", EMBEDDING)
        self.mu_kernel, self.mu_bias = linear_map("mu", z_size)
        self.log_var_kernel, self.log_var_bias = linear_map("log_var", z_size)
        self.built = True

    def call(self, nodes, training=False):
        """What `patches.make_nodes` makes for the encoder, to an `Encoding`."""
        embeddings = self.embed(nodes["patches"])
        masks = nodes["graph_masks"]
        adjacency = graphs.synonymous_adjacency(embeddings[:, 1:], masks, COSINE_EPSILON)
        pooled = self.pool(embeddings, adjacency, graphs.node_masks(masks), training)
        features = self.read_out(pooled, training)
        return Encoding(
            ops.matmul(features, self.mu_kernel) + self.mu_bias,
            ops.matmul(features, self.log_var_kernel) + self.log_var_bias,
            adjacency,
        )

    def relative_terms(self, embeddings):
        """How each patch (the row) sees the place of each other: (B, P, 512) to (B, P, P)."""
        places = np.arange(embeddings.shape[1], dtype=np.int32)
        by_distance = ops.matmul(embeddings, ops.transpose(self.relative))
        return ops.tanh(
            ops.take_along_axis(by_distance, np.abs(places[:, None] - places)[None], axis=2)
        )

    def pool(self, embeddings, adjacency, node_masks, training=False):
        """(B, G, 512), (B, G, G) and (B, P) to the sum over the graph's nodes, (B, 512)."""
        h = self.node_norm(ops.relu(embeddings), training=training)
        relative = ops.sum(
            adjacency[:, 1:, 1:] * self.relative_terms(embeddings[:, 1:]), axis=2, keepdims=True
        )
        positions = node_masks[:, :, None] * place_encodings(embeddings.shape[1] - 1) + relative
        picture = PICTURE_POSITION * ops.ones_like(positions[:, :1])
        g0 = ops.matmul(adjacency, h) + ops.concatenate([picture, positions], axis=1)
        g1 = ops.relu(self.multiply(g0, self.kernel_1) + self.bias_1)
        g2 = ops.relu(self.multiply(g1, self.kernel_2) + self.bias_2)
        return ops.sum(g0 + g2, axis=1)


def place_encodings(patches: int) -> np.ndarray:
    """Sines and cosines of each patch's place, float32 (P, 512) (arXiv 1706.03762)."""
    rates = np.exp(-np.arange(0, EMBEDDING, 2) * (math.log(10000) / EMBEDDING))
    angles = np.arange(patches)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(patches, -1).astype("float32")
