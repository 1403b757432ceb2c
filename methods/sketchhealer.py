"""SketchHealer's encoder: patches linked by the order of drawing (Su et al., BMVC 2020)."""

import numpy as np

import graphs
from encoders import PatchEncoder
from graphs import Encoding
from hparams import HParams
from support.backend import keras, ops

CHANNELS = (8, 32, 64, 128, 256, 512)
EMBEDDING = CHANNELS[-1]
RING_WEIGHTS = {-2: 0.2, -1: 0.3, 0: 0.5, 1: 0.3, 2: 0.2}  # by distance in the order of drawing
PICTURE_EDGE = 0.5  # from every node to the whole sketch, added to the others


class Encoder(graphs.PatchGraphEncoder):
    """One linear graph convolution over patch embeddings, pooled into the latent code.

    Convolutions and the graph convolution are computed in the compute type of its policy.

    Args:
        hparams: the options.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, hparams: HParams, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.edges = hparams.edge_kind
        self.patch_encoder = PatchEncoder(
            CHANNELS,
            use_bias=True,
            last_relu=True,
            seed=seed,
            dtype=self.dtype_policy,
            name="encoder",
        )
        self.node_norm = graphs.batch_norm("node_norm", (None, None, EMBEDDING))
        self.graph_norm = graphs.batch_norm("graph_norm", (None, EMBEDDING))
        self.kernel = self.add_weight(
            shape=(EMBEDDING, EMBEDDING),
            initializer=keras.initializers.RandomNormal(0.0, 1.0, seed=seed),
            name="gcn",
        )
        self.mu_kernel, self.mu_bias = graphs.add_linear_map(
            self, "mu", EMBEDDING, hparams.z_size, seed
        )
        self.log_var_kernel, self.log_var_bias = graphs.add_linear_map(
            self, "log_var", EMBEDDING, hparams.z_size, seed
        )
        self.built = True

    def call(self, nodes, training=False):
        """What `patches.make_nodes` makes for the encoder, to an `Encoding`."""
        embeddings = self.embed(nodes["patches"])
        adjacency = self.adjacency(embeddings, nodes)
        features = self.read_out(self.pool(embeddings, adjacency, training), training)
        return Encoding(
            ops.matmul(features, self.mu_kernel) + self.mu_bias,
            ops.matmul(features, self.log_var_kernel) + self.log_var_bias,
            adjacency,
        )

    def adjacency(self, embeddings, nodes):
        """Embeddings (B, G, 512), and nodes as in `call`, to (B, G, G), not normalised."""
        if self.edges == "spatial":
            edges = nodes["edge_weights"]
            own = ops.diagonal(edges, axis1=1, axis2=2)[:, :, None]
            rows = ops.concatenate([own, edges], axis=2)
            first = ops.one_hot(ops.zeros_like(rows[:, :1, 0], "int32"), rows.shape[2])
            return ops.concatenate([PICTURE_EDGE * ops.cast(first, rows.dtype), rows], axis=1)
        # The diagonal of the graph mask says which patches take part; the whole sketch always does.
        linked = ops.diagonal(nodes["graph_masks"], axis1=1, axis2=2)
        linked = ops.concatenate([ops.ones_like(linked[:, :1]), linked], axis=1)
        return ring_adjacency(embeddings.shape[1]) * linked[:, :, None] * linked[:, None, :]

    def pool(self, embeddings, adjacency, training=False):
        """(B, G, 512) and (B, G, G) to the sum over the graph's nodes, (B, 512)."""
        h = self.node_norm(embeddings, training=training)
        # Nothing but sums follows, and so the nodes can be summed first.
        summed = ops.matmul(ops.sum(adjacency, axis=1, keepdims=True), h)[:, 0]
        return self.multiply(summed, self.kernel)


def ring_adjacency(nodes: int) -> np.ndarray:
    """The edges of a graph without masked or unused nodes, float32 (G, G), as published.

    The order of drawing is closed to a ring through node 0, the whole sketch, which has no
    neighbours of its own.
    """
    adjacency = np.zeros((nodes, nodes), np.float32)
    adjacency[0, 0] = 1
    for i in range(1, nodes):
        for distance, weight in RING_WEIGHTS.items():
            adjacency[i, (i + distance) % nodes] = weight
    adjacency[:, 0] += np.float32(PICTURE_EDGE)
    return adjacency
