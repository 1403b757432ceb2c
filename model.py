"""A sketch's nodes to a code, the code to strokes, and the losses (Zang et al., AAAI 2023).

The encoder is the method's own, see `methods`; all else is SP-gra2seq's.

Shapes: B batch, G graph nodes (the whole sketch and P = G - 1 patches), S picture side, E
embedding, K centroids, M = 20 output mixtures, Z code, R decoder units, T steps.
"""

import math
from collections.abc import Callable
from typing import Any

import methods
import rnn
import unroll
from graphs import COSINE_EPSILON, Encoding, first_argmax, one_hot_argmax
from hparams import HParams
from support.backend import keras, ops
from support.precision import MixedLayer

MIXTURES = 20
OUTPUT_WIDTH = 3 + 6 * MIXTURES
CLUSTERING_WEIGHT = 0.25
CENTROID_MOMENTUM = 0.75
LIKELIHOOD_FLOOR = 1e-6


class Clusters(keras.layers.Layer):
    """The centroids that embeddings of synonymous patches are drawn to.

    Args:
        num_mixture: K, the number of centroids.
        width: E, the length of an embedding.
    """

    def __init__(self, num_mixture: int, width: int = 512, **kwargs):
        super().__init__(**kwargs)
        self.centroids = self.add_weight(
            shape=(num_mixture, width), initializer="zeros", trainable=False, name="latent_mu"
        )
        self.built = True

    def assign(self, embeddings):
        """One-hot of each patch's most similar centroid: (N, E) to (N, K)."""
        e, q = ops.stop_gradient(embeddings), self.centroids
        norms = ops.sqrt(ops.sum(ops.square(e), 1))[:, None] * ops.sqrt(ops.sum(ops.square(q), 1))
        c = ops.matmul(e, ops.transpose(q)) / (norms + COSINE_EPSILON)
        # Equal centroids must tie, however a matrix product rounds their columns.
        equal_rows = ops.all(ops.equal(q[:, None, :], q[None, :, :]), axis=-1)
        return one_hot_argmax(ops.take(c, first_argmax(ops.cast(equal_rows, "int32")), axis=1))

    def call(self, embeddings, counted, training=False):
        """The clustering loss.

        Args:
            embeddings: (N, E) of all patches.
            counted: (N,), 1 for the patches that count, else 0.
            training: keep the centroids' update.

        Returns:
            Half the mean squared distance of the counted patches to their (updated, constant)
            centroids, a scalar; 0 where none counts.
        """
        members = self.assign(embeddings) * counted[:, None]
        sums = ops.matmul(ops.transpose(members), ops.stop_gradient(embeddings))
        means = sums / (ops.sum(members, axis=0)[:, None] + 1e-10)
        updated = CENTROID_MOMENTUM * self.centroids + (1 - CENTROID_MOMENTUM) * means
        if training:
            self.centroids.assign(updated)
        distances = ops.sum(ops.square(embeddings - ops.matmul(members, updated)), axis=1)
        return 0.5 * ops.sum(distances * counted) / ops.maximum(ops.sum(counted), 1.0)


class Decoder(MixedLayer):
    """The recurrent network that redraws a sketch from its code, row by row.

    Args:
        hparams: dec_model, dec_rnn_size, z_size, seed and the dropout options are read.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(self, hparams: HParams, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.cell = rnn.CELLS[hparams.dec_model](
            rnn.ROW_WIDTH + hparams.z_size,
            hparams.dec_rnn_size,
            seed=seed,
            dtype=self.dtype_policy,
            name="cell",
        )
        self.state_kernel = self.add_weight(
            shape=(hparams.z_size, sum(self.cell.state_sizes)),
            initializer=keras.initializers.VarianceScaling(
                5 / 3, "fan_in", "untruncated_normal", seed=seed
            ),
            name="init_state",
        )
        self.output_kernel = self.add_weight(
            shape=(hparams.dec_rnn_size, OUTPUT_WIDTH),
            initializer=keras.initializers.VarianceScaling(
                1.0, "fan_in", "untruncated_normal", seed=seed
            ),
            name="fc",
        )
        keep = {
            place: getattr(hparams, f"{place}_dropout_prob")
            for place in ("input", "recurrent", "output")
            if getattr(hparams, f"use_{place}_dropout")
        }
        self.keep = {place: probability for place, probability in keep.items() if probability < 1}
        self.dropout_seeds = keras.random.SeedGenerator(hparams.seed) if self.keep else None
        self.fused_lstm = unroll.fused_lstm(self.cell)
        self.built = True

    def initial_state(self, z):
        """The cell's first state, a tuple of (B, ·) in the published order, from (B, Z)."""
        flat = ops.tanh(ops.matmul(z, self.state_kernel))
        ends = [sum(self.cell.state_sizes[: i + 1]) for i in range(len(self.cell.state_sizes) - 1)]
        return tuple(ops.split(flat, ends, axis=-1))

    def call(self, z, rows, training=False, dropout_seed=None):
        """Teacher-forced raw outputs, time-major.

        Args:
            z: the codes (B, Z).
            rows: stroke-5 (T, B, 5).
            training: whether to drop what the options say, with a new mask at every step.
            dropout_seed: int32 (B,) >= 0, of which the first decides what is dropped; without it
                the random stream goes on.

        Returns:
            (T, B, 3 + 6 M).
        """
        state = self.initial_state(z)
        keep = self.keep if training else {}
        if keep and dropout_seed is not None:
            start = ops.stack([dropout_seed[0], ops.zeros_like(dropout_seed[0])])
            self.dropout_seeds.state.assign(ops.cast(start, self.dropout_seeds.state.dtype))
        if "input" in keep:
            codes = ops.zeros_like(rows[:, :, :1]) + z
            inputs = self._drop(ops.concatenate([rows, codes], axis=-1), keep["input"])
            rows, z = inputs[:, :, : rnn.ROW_WIDTH], inputs[:, :, rnn.ROW_WIDTH :]
        if self.fused_lstm and "recurrent" not in keep:
            codes = ops.zeros_like(rows[:, :, :1]) + z
            hidden, _ = self.fused_lstm(ops.concatenate([rows, codes], axis=-1), state)
        else:
            projected = self.cell.project(rows, self.cell.project_code(z))
            masks = None
            if "recurrent" in keep:
                units = self.output_kernel.shape[0]
                ones = ops.ones((*ops.shape(rows)[:2], units), dtype=self.variable_dtype)
                masks = self._drop(ones, keep["recurrent"])
            hidden, _ = unroll.unroll(self.cell, projected, state, masks)
        if "output" in keep:
            hidden = self._drop(hidden, keep["output"])
        return ops.matmul(hidden, self.output_kernel)

    def _drop(self, x, keep):
        return keras.random.dropout(x, 1 - keep, seed=self.dropout_seeds)


def split_outputs(outputs):
    """Raw outputs (..., 3 + 6 M) to pen logits (..., 3) and the mixture's raw parameters.

    Returns:
        pen, pi, mu_x, mu_y, log_sigma_x, log_sigma_y, rho: pi as logits, rho before its tanh,
        all but pen (..., M).
    """
    pen = outputs[..., :3]
    return (pen, *ops.split(outputs[..., 3:], 6, axis=-1))


def stroke_losses(outputs, targets, count_padding: bool):
    """The reconstruction loss of each sketch (sketch-rnn, arXiv 1704.03477).

    Args:
        outputs: raw decoder outputs (T, B, 3 + 6 M).
        targets: stroke-5 rows (T, B, 5).
        count_padding: whether the pen term counts after the sketch's end too, as in training.

    Returns:
        (B,): summed over the steps.
    """
    pen, pi, mu_x, mu_y, log_sigma_x, log_sigma_y, rho = split_outputs(outputs)
    zx = (targets[..., 0:1] - mu_x) * ops.exp(-log_sigma_x)
    zy = (targets[..., 1:2] - mu_y) * ops.exp(-log_sigma_y)
    # log(1 - tanh(x)^2) without cancellation.
    log_residual = 2 * (math.log(2) - rho - ops.softplus(-2 * rho))
    quadratic = ops.square(zx - ops.tanh(rho) * zy) * ops.exp(-log_residual) + ops.square(zy)
    log_density = -0.5 * (quadratic + log_residual) - log_sigma_x - log_sigma_y
    log_density = log_density - math.log(2 * math.pi)
    log_likelihood = ops.logsumexp(ops.log_softmax(pi, axis=-1) + log_density, axis=-1)
    drawn = 1.0 - targets[..., 4]
    offset_term = -ops.logaddexp(log_likelihood, math.log(LIKELIHOOD_FLOOR)) * drawn
    pen_term = -ops.sum(targets[..., 2:] * ops.log_softmax(pen, axis=-1), axis=-1)
    if not count_padding:
        pen_term = pen_term * drawn
    return ops.sum(offset_term + pen_term, axis=0)


class SPGra2Seq(keras.Model):
    """The whole network, with the encoder of any method.

    Args:
        hparams: the options; max_seq_len is not used here.
    """

    def __init__(self, hparams: HParams, **kwargs):
        super().__init__(name="sp_gra2seq", **kwargs)
        self.hparams = hparams
        seed = keras.random.SeedGenerator(hparams.seed)
        dtype = hparams.precision
        make_encoder = methods.load(f"methods.{hparams.method}.Encoder")
        self.encoder = make_encoder(hparams, seed=seed, dtype=dtype, name="graph")
        self.clusters = None
        if self.encoder.clustered:
            self.clusters = Clusters(hparams.num_mixture, self.encoder.clustered, name="clusters")
        self.decoder = Decoder(hparams, seed=seed, dtype=dtype, name="decoder")
        self.reconstruction_metric = keras.metrics.Mean(name="reconstruction")
        self.clustering_metric = keras.metrics.Mean(name="clustering")
        self.counted_metric = keras.metrics.Sum(name="counted")
        self.built = True

    def encode_nodes(self, nodes: dict[str, Any]) -> Encoding:
        """What `batches.make_graphs` makes for the encoder, to codes and edges."""
        return self.encoder({name: ops.convert_to_tensor(x) for name, x in nodes.items()})

    def encode(self, patches, graph_masks, **others):
        """uint8 (B, G, S, S) and (B, P, P) to mu and log_var, both (B, Z).

        `others` are what else a method's nodes consist of; without patches see `encode_nodes`.
        """
        return self.encode_nodes({"patches": patches, "graph_masks": graph_masks, **others})[:2]

    def adjacency(self, patches, graph_masks, **others):
        """uint8 (B, G, S, S) and (B, P, P) to the adjacency (B, G, G); see `encode`."""
        nodes = {"patches": patches, "graph_masks": graph_masks, **others}
        return self.encode_nodes(nodes).adjacency

    def decode(self, z, rows):
        """Teacher-forced raw outputs: (B, Z) and stroke-5 (B, T, 5) to (B, T, 3 + 6 M)."""
        outputs = self.decoder(ops.convert_to_tensor(z), ops.swapaxes(rows, 0, 1))
        return ops.swapaxes(outputs, 0, 1)

    def losses_from_encoding(
        self,
        encoding: Encoding,
        strokes,
        z=None,
        eps=None,
        training=False,
        dropout_seed=None,
    ):
        """The two losses, updating the centroids if `training`.

        Args:
            encoding: what the encoder made of the batch.
            strokes: stroke-5 (B, T + 1, 5), the first row being (0, 0, 1, 0, 0).
            z: the codes (B, Z); drawn with `eps` if None.
            eps: standard normal (B, Z).
            training: batch statistics, dropout, and padding counted in the pen term.
            dropout_seed: see `Decoder.call`.

        Returns:
            A dict of two scalars: reconstruction and clustering, the latter 0 without clusters.
        """
        if z is None:
            z = encoding.mu + ops.exp(encoding.log_var / 2) * eps
        rows = ops.swapaxes(strokes, 0, 1)
        outputs = self.decoder(z, rows[:-1], training=training, dropout_seed=dropout_seed)
        reconstruction = ops.mean(stroke_losses(outputs, rows[1:], count_padding=training))
        if self.clusters is None:
            return {"reconstruction": reconstruction, "clustering": ops.zeros(())}
        clustering = self.clusters(
            ops.reshape(encoding.embeddings, (-1, self.encoder.clustered)),
            ops.reshape(encoding.counted, (-1,)),
            training=training,
        )
        return {"reconstruction": reconstruction, "clustering": clustering}

    def losses_of_nodes(self, nodes: dict[str, Any], strokes, z=None, training=False):
        """The two losses of any method's nodes; see `losses`."""
        nodes = {name: ops.convert_to_tensor(x) for name, x in nodes.items()}
        with keras.StatelessScope():
            encoding = self.encoder(nodes, training=training)
            eps = keras.random.normal((encoding.mu.shape[0], self.hparams.z_size))
            return self.losses_from_encoding(
                encoding,
                ops.convert_to_tensor(strokes),
                z=None if z is None else ops.convert_to_tensor(z),
                eps=eps,
                training=training,
            )

    def losses(self, patches, graph_masks, strokes, z=None, training=False, **others):
        """The two losses of a batch; no state changes.

        Args:
            patches: uint8 (B, G, S, S).
            graph_masks: (B, P, P).
            strokes: stroke-5 (B, T + 1, 5), the first row being (0, 0, 1, 0, 0).
            z: the codes (B, Z); drawn at random if None.
            training: batch statistics, dropout, and padding counted in the pen term.
            others: see `encode`.

        Returns:
            A dict of two scalars: reconstruction and clustering.
        """
        nodes = {"patches": patches, "graph_masks": graph_masks, **others}
        return self.losses_of_nodes(nodes, strokes, z=z, training=training)

    def call(self, batch, training=False):
        """Both losses of a batch of `batches.make_batch`, and how many patches were clustered.

        Returns:
            A dict of three scalars: reconstruction, clustering and counted.
        """
        encoding = self.encoder(batch, training=training)
        losses = self.losses_from_encoding(
            encoding,
            batch["strokes"],
            eps=batch["eps"],
            training=training,
            dropout_seed=batch.get("dropout_seed"),
        )
        counted = ops.zeros(()) if self.clusters is None else ops.sum(encoding.counted)
        return {**losses, "counted": counted}

    def stateless_call(self, *args, return_losses=False, **kwargs):
        """As Keras's, which however would take `losses` for a list of layers' penalties."""
        results = super().stateless_call(*args, **kwargs)
        return (*results, []) if return_losses else results

    def start_clusters(self, batch):
        """Sets the centroids to the first K patch embeddings of a batch, sketch by sketch."""
        if self.clusters is None:
            return
        num_mixture, nodes = self.hparams.num_mixture, self.hparams.graph_number
        sketches = -(-num_mixture // (nodes - 1))
        embeddings = self.encoder({k: v[:sketches] for k, v in batch.items()}).embeddings
        embeddings = ops.reshape(embeddings, (-1, self.encoder.clustered))
        self.clusters.centroids.assign(embeddings[:num_mixture])

    def compute_loss(self, x, y=None, y_pred=None, sample_weight=None, training=True):
        """Reconstruction + 0.25 clustering, and the means and the number that are shown.

        In training they are the last batch's; in evaluation means over all sketches, and over
        all counted patches.
        """
        metrics = (self.reconstruction_metric, self.clustering_metric, self.counted_metric)
        if training:
            for metric in metrics:
                metric.reset_state()
        sketches = ops.cast(ops.shape(x["strokes"])[0], "float32")
        self.reconstruction_metric.update_state(y_pred["reconstruction"], sketches)
        self.clustering_metric.update_state(y_pred["clustering"], y_pred["counted"])
        self.counted_metric.update_state(y_pred["counted"])
        return y_pred["reconstruction"] + CLUSTERING_WEIGHT * y_pred["clustering"]


def learning_rate(hparams: HParams, step: Any, exp: Callable = math.exp) -> Any:
    """The rate of the update that comes after `step` others.

    Args:
        hparams: learning_rate, min_learning_rate and decay_rate are read.
        step: a number, or with `exp=ops.exp` a tensor.
        exp: the exponential function of its kind.
    """
    low, high = hparams.min_learning_rate, hparams.learning_rate
    # exp(step log r) keeps the rate's digits that a float32 r to the step would lose.
    return (high - low) * exp(step * math.log(hparams.decay_rate)) + low


class Adam(keras.optimizers.Adam):
    """Adam whose learning rate decays with a step counter of its own.

    `schedule_step` counts the updates from 0 but may be set back (with the weights, to the best
    checkpoint), while Adam's moments and bias correction go on.

    Args:
        hparams: learning_rate, min_learning_rate, decay_rate and grad_clip are read.
    """

    def __init__(self, hparams: HParams):
        super().__init__(
            name="adam",
            learning_rate=hparams.learning_rate,
            epsilon=1e-8,
            clipnorm=hparams.grad_clip,
        )
        self.hparams = hparams

    def build(self, variables):
        super().build(variables)
        self.schedule_step = self.add_variable((), name="schedule_step", dtype="int")

    def _get_current_learning_rate(self):
        step = ops.cast(self.schedule_step, "float32")
        return learning_rate(self.hparams, step, exp=ops.exp)

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        self.schedule_step.assign_add(1)
