"""What the encoders of several methods share: nodes and edges of a batch of graphs, their layers.

Shapes: B batch, G graph nodes (the whole sketch and P = G - 1 patches), S picture side, E
embedding, Z code.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from support.backend import keras, ops
from support.precision import MixedLayer, mixed_matmul

EDGE_WEIGHTS = (1.0, 0.5, 0.2)  # of the most, second and third most similar patch
TEMPORAL_WEIGHTS = (0.5, 0.3, 0.2)  # of a patch and itself, its neighbour, that one's neighbour
PICTURE_EDGE = 0.5  # from a patch to the whole sketch
COSINE_EPSILON = 1e-30  # added to a product of norms; the cosine of a vector of zeros is 0


class Encoder(MixedLayer):
    """The interface of all encoders: a layer from the nodes of a batch to an `Encoding`.

    It is made with the options, a seed and Keras's usual arguments, and called with a dictionary of
    the arrays that the method's `make_nodes` returns (in training, of the whole batch).

    Attributes:
        clustered: E, if it gives embeddings to be clustered; else 0.
    """

    clustered = 0

    def multiply(self, x, kernel):
        """`x` times a kernel, in the compute type of the layer's policy."""
        return mixed_matmul(x, self.to_compute_dtype(kernel), self.compute_dtype)


class PatchGraphEncoder(Encoder):
    """An encoder whose nodes are pictures of patches.

    Attributes:
        patch_encoder: a `PatchEncoder`.
        graph_norm: the normalisation of the pooled graph.
    """

    def embed(self, patches):
        """uint8 (B, G, S, S) to embeddings (B, G, 512)."""
        return embed_patches(self.patch_encoder, patches)

    def read_out(self, pooled, training=False):
        """(B, 512) to the graph's features, (B, 512) in (-1, 1)."""
        return ops.tanh(self.graph_norm(pooled, training=training))


class Encoding(NamedTuple):
    """What an encoder makes of a batch.

    Attributes:
        mu: mean of the code (B, Z).
        log_var: log-variance of the code (B, Z).
        adjacency: (B, N, N), its edges, which are only drawn.
        embeddings: (B, P, E) of the patches, where they are to be clustered.
        counted: (B, P), 1 for the patches that count in the clustering, else 0.
    """

    mu: Any
    log_var: Any
    adjacency: Any
    embeddings: Any = None
    counted: Any = None


def embed_patches(patch_encoder, patches):
    """uint8 (B, G, S, S) to the embeddings (B, G, E) of a `PatchEncoder`."""
    patches = ops.convert_to_tensor(patches)
    embeddings = patch_encoder(ops.reshape(patches, (-1, *patches.shape[2:])))
    return ops.reshape(embeddings, (-1, patches.shape[1], embeddings.shape[-1]))


def batch_norm(name: str, shape: tuple, epsilon: float = 1e-5) -> keras.layers.Layer:
    """The batch normalisation of all encoders, of float32 of a shape as in (None, 512)."""
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=name)
    layer.build(shape)
    return layer


def add_linear_map(layer, name: str, inputs: int, outputs: int, seed):
    """A kernel and a bias of a layer, which start as in PyTorch."""
    kernel = layer.add_weight(
        shape=(inputs, outputs),
        initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed),
        name=name,
    )
    bound = 1 / math.sqrt(inputs)
    bias = layer.add_weight(
        shape=(outputs,),
        initializer=keras.initializers.RandomUniform(-bound, bound, seed=seed),
        name=f"{name}_bias",
    )
    return kernel, bias


def first_argmax(x):
    """Index of the largest entry along the last axis, the lowest among equals."""
    count = x.shape[-1]
    is_largest = ops.equal(x, ops.max(x, axis=-1, keepdims=True))
    return ops.min(ops.where(is_largest, ops.arange(count), count), axis=-1)


def one_hot_argmax(x):
    """One-hot of `first_argmax`."""
    return ops.one_hot(first_argmax(x), x.shape[-1], dtype=x.dtype)


def cosines(embeddings, epsilon: float = COSINE_EPSILON):
    """Pairwise cosines of the patch embeddings: (B, P, E) to (B, P, P).

    `epsilon` is added to the product of two norms.
    """
    norms = ops.sqrt(ops.sum(ops.square(embeddings), axis=-1))
    products = ops.matmul(embeddings, ops.swapaxes(embeddings, 1, 2))
    return products / (norms[:, :, None] * norms[:, None, :] + epsilon)


def synonymous_one_hots(embeddings, epsilon: float = COSINE_EPSILON):
    """One-hot rows of the three most similar patches of each patch, each (B, P, P).

    Blank and masked patches take part. Where all other cosines are negative the second choice
    repeats the first, as published.
    """
    e = ops.stop_gradient(embeddings)
    norms = ops.sqrt(ops.sum(ops.square(e), axis=-1))
    products = ops.sum(e[:, :, None, :] * e[:, None, :, :], axis=-1)
    c = products / (norms[:, :, None] * norms[:, None, :] + epsilon)
    # Equal patches must tie, however a compiler rounds their sums.
    equal_rows = ops.all(ops.equal(e[:, :, None, :], e[:, None, :, :]), axis=-1)
    c = ops.take_along_axis(c, first_argmax(ops.cast(equal_rows, "int32"))[:, None, :], axis=2)
    first = one_hot_argmax(c)
    second = one_hot_argmax(c - c * first)
    third = one_hot_argmax(c - c * (first + second))
    return first, second, third


def synonymous_edges(embeddings, epsilon: float = COSINE_EPSILON):
    """Weights from each patch to its most similar patches: (B, P, E) to (B, P, P)."""
    one_hots = synonymous_one_hots(embeddings, epsilon)
    weights = sum(w * one_hot for w, one_hot in zip(EDGE_WEIGHTS, one_hots, strict=True))
    return cosines(embeddings, epsilon) * weights


def temporal_edges(patches: int) -> np.ndarray:
    """Weights from each patch to those drawn shortly before and after it, float32 (P, P)."""
    edges = np.zeros((patches, patches), np.float32)
    for distance, weight in enumerate(TEMPORAL_WEIGHTS):
        steps = np.full(max(patches - distance, 0), weight, np.float32)
        if len(steps):
            edges += np.diag(steps, distance)
            edges += np.diag(steps, -distance) if distance else 0
    return edges


def link_to_picture(edges, graph_masks):
    """The adjacency of patches and the whole sketch, rows summing to 1.

    Args:
        edges: weights between patches (B, P, P).
        graph_masks: (B, P, P) from `utils.graph_mask`.

    Returns:
        (B, G, G); row and column 0 are the whole sketch.
    """
    edges = edges * graph_masks
    to_picture = PICTURE_EDGE * node_masks(graph_masks)[:, :, None]
    patch_rows = ops.concatenate([to_picture, edges], axis=2)
    picture_row = ops.one_hot(ops.zeros_like(patch_rows[:, :1, 0], "int32"), patch_rows.shape[2])
    rows = ops.concatenate([ops.cast(picture_row, patch_rows.dtype), patch_rows], axis=1)
    return rows / (ops.sum(rows, axis=2, keepdims=True) + 1e-10)


def synonymous_adjacency(embeddings, graph_masks, epsilon: float = COSINE_EPSILON):
    """Links each patch to its most similar patches, and to the whole sketch.

    Args:
        embeddings: (B, P, E) of the patches.
        graph_masks: (B, P, P) from `utils.graph_mask`.
        epsilon: see `cosines`.

    Returns:
        See `link_to_picture`.
    """
    return link_to_picture(synonymous_edges(embeddings, epsilon), graph_masks)


def node_masks(graph_masks):
    """Which patches count, (B, P): column 0 of the graph masks, as published."""
    return graph_masks[:, :, 0]
