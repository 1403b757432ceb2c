"""SP-gra2seq's encoder: patches linked by what they show (Zang et al., AAAI 2023).

Other edges can take the place of the synonymous ones, all else being the same.
"""

import numpy as np

import graphs
from encoders import CHANNELS, PatchEncoder
from graphs import Encoding
from hparams import HParams
from support.backend import keras, ops

EMBEDDING = CHANNELS[-1]


class Encoder(graphs.PatchGraphEncoder):
    """A graph convolution of two layers over patch embeddings, pooled into the latent code.

    Convolutions and graph convolutions are computed in the compute type of its policy.

    Args:
        hparams: the options.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    clustered = EMBEDDING

    def __init__(self, hparams: HParams, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.edges = hparams.edge_kind
        self.patch_encoder = PatchEncoder(seed=seed, dtype=self.dtype_policy, name="encoder")
        # The published fused kernel raises its epsilon of 1e-5 to this.
        self.node_norm = graphs.batch_norm("BatchNorm", (None, None, EMBEDDING), 1.001e-5)
        self.graph_norm = graphs.batch_norm("BatchNorm_1", (None, EMBEDDING), 1.001e-5)

        def kernel(name, outputs, scale):
            return self.add_weight(
                shape=(EMBEDDING, outputs),
                initializer=keras.initializers.VarianceScaling(
                    scale, "fan_in", "untruncated_normal", seed=seed
                ),
                name=name,
            )

        self.kernel_1 = kernel("gcn_weight_1", EMBEDDING, 2.0)
        self.kernel_2 = kernel("gcn_weight_2", EMBEDDING, 2.0)
        self.mu_kernel = kernel("fc_mu", hparams.z_size, 1.0)
        self.log_var_kernel = kernel("fc_sigma2", hparams.z_size, 1.0)
        self.built = True

    def call(self, nodes, training=False):
        """What `patches.make_nodes` makes for the encoder, to an `Encoding`."""
        embeddings = self.embed(nodes["patches"])
        adjacency = self.adjacency(embeddings, nodes)
        features = self.read_out(self.pool(embeddings, adjacency, training), training)
        return Encoding(
            ops.matmul(features, self.mu_kernel),
            ops.matmul(features, self.log_var_kernel),
            adjacency,
            embeddings[:, 1:],
            graphs.node_masks(nodes["graph_masks"]),
        )

    def adjacency(self, embeddings, nodes):
        """Embeddings (B, G, 512), and nodes as in `call`, to (B, G, G), rows summing to 1."""
        count = embeddings.shape[1] - 1
        if self.edges == "synonymous":
            edges = graphs.synonymous_edges(embeddings[:, 1:])
        elif self.edges == "temporal":
            edges = graphs.temporal_edges(count)
        elif self.edges == "spatial":
            edges = nodes["edge_weights"]
        else:
            edges = np.eye(count, dtype=np.float32)
        return graphs.link_to_picture(edges, nodes["graph_masks"])

    def pool(self, embeddings, adjacency, training=False):
        """(B, G, 512) and (B, G, G) to the sum over the graph's nodes, (B, 512)."""
        h = self.node_norm(ops.relu(embeddings), training=training)
        g0 = ops.matmul(adjacency, h)
        g1 = ops.relu(self.multiply(g0, self.kernel_1))
        g2 = ops.relu(self.multiply(g1, self.kernel_2))
        return ops.sum(g0 + g2, axis=1)
