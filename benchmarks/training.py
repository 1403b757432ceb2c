"""A training iteration: its step, the wait for its input, evaluation; beside the floor."""

import time
from collections.abc import Iterator
from unittest import mock

import common
import numpy as np

import batches
import encoders
import rnn
import train
import unroll
from dataset import Dataset
from hparams import HParams
from model import Adam, SPGra2Seq, stroke_losses
from support.backend import make_deterministic


def _start(
    kind: str, size: str, count: int
) -> tuple[HParams, Dataset, SPGra2Seq, Iterator[batches.Batch]]:
    """Options, at most `count` sketches, a model to train, and its batches."""
    hparams = HParams(**common.SIZES[size])
    data = common.load(kind, count, hparams.max_seq_len)
    model = SPGra2Seq(hparams)
    model.compile(optimizer=Adam(hparams))
    stream = batches.training_batches(data.splits["train"], hparams, data.max_seq_len)
    return hparams, data, model, stream


def training(kind: str, size: str, iterations: int) -> dict:
    """Times of training, in seconds.

    Args:
        kind: of sketches, see `common.SKETCHES`.
        size: see `common.SIZES`.
        iterations: training iterations that are counted.

    Returns:
        iteration: median of a whole one, as `train.py` makes it.
        step: median of one on a batch that is there already.
        wait: their difference, the cost of preparing batches beside the step.
        floor: the step's matrix products at the rate of a bare one.
        published: the published iteration, scaled; None where it was not timed: at other sizes, on
            doodles.
    """
    make_deterministic(0)
    hparams, data, model, stream = _start(kind, size, 4000)
    steps = data.max_seq_len
    first = next(stream)
    model.start_clusters(first)
    step = common.seconds(lambda: train.update(model, first), max(3, iterations // 2))
    before = common.calibration()
    ends = []
    for _ in range(iterations + 2):
        train.update(model, next(stream))
        ends.append(time.perf_counter())
    stream.close()
    iteration = float(np.median(np.diff(ends)[1:]))
    kernels = common.calibration()
    kernels = {name: (kernels[name] + before[name]) / 2 for name in kernels}

    start = time.perf_counter()
    split = data.splits["test"]
    train.evaluate(model, split, hparams, "test")
    evaluation = (time.perf_counter() - start) / len(split)

    filled = common.pictures_with_ink(first["patches"]) / hparams.batch_size
    products = filled * common.encoder_products(hparams.graph_picture_size)
    products += common.graph_products(hparams) + steps * common.decoder_products(hparams)
    floor = common.floor_seconds(3 * hparams.batch_size * products, kernels)
    reference = None
    if size == "timed" and common.has_sketches(kind):
        runs = common.published()["training_iteration"]
        name = {"aaron_sheep": "aaron_sheep", "quickdraw": "bird"}[kind]
        total = np.median([run["total_s"][0] for run in runs if name in run["data"]])
        reference = common.scaled(float(total), "matmul_2048_float32", kernels)
    return {
        "sketches": kind,
        "size": size,
        "pictures_per_sketch": filled,
        "iteration": iteration,
        "step": step,
        "wait": iteration - step,
        "floor": floor,
        "published": reference,
        "sketches_per_second": hparams.batch_size / iteration,
        "evaluation_sketches_per_second": 1 / evaluation,
    }


def unrolling(dec_model: str, batch: int = 16, units: int = 512, steps: int = 100) -> dict:
    """Forward and backward through all steps of a cell, in seconds (TensorFlow).

    Returns:
        here: `unroll.unroll`; autodiff: a scan of the cell's `step`, differentiated
        automatically; and for lstm keras: Keras's own layer.
    """
    import tensorflow as tf

    hparams = HParams()
    cell = rnn.CELLS[dec_model](rnn.ROW_WIDTH + hparams.z_size, units, seed=0)
    rng = np.random.default_rng(0)
    rows = tf.constant(rng.standard_normal((steps, batch, rnn.ROW_WIDTH)), tf.float32)
    z = tf.constant(rng.standard_normal((batch, hparams.z_size)), tf.float32)
    state = tuple(tf.zeros((batch, size)) for size in cell.state_sizes)

    def ours():
        return unroll.unroll(cell, cell.project(rows, cell.project_code(z)), state)[0]

    def plain():
        def step(carry, projected):
            return cell.step(projected, carry[1])

        projected = cell.project(rows, cell.project_code(z))
        first = (tf.zeros((batch, units)), state)
        return tf.scan(step, projected, first)[0]

    ways = {"here": ours, "autodiff": plain}
    if dec_model == "lstm":
        run = unroll.keras_lstm(cell)
        codes = tf.zeros_like(rows[:, :, :1]) + z
        ways["keras"] = lambda: run(tf.concat([rows, codes], axis=-1), state)[0]

    def gradients(way):
        def run():
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(tf.square(way()))
            weights = [v.value for v in cell.trainable_variables]
            return tape.gradient(total, weights, unconnected_gradients="zero")

        compiled = tf.function(run, autograph=False)
        return lambda: compiled()[0].numpy()

    return {name: common.seconds(gradients(way), 5) for name, way in ways.items()}


def profile(kind: str, size: str) -> dict[str, dict[str, float]]:
    """Where the time of a step goes: seconds of its parts, each alone, and the floor of each.

    Args:
        kind: of sketches, see `common.SKETCHES`.
        size: see `common.SIZES`.

    Returns:
        For the patch encoder (that of training, and with all cells computed), the graph, the
        decoder (each forward, and forward and backward), the optimiser and the whole step: `here`
        and `floor`, the bare matrix products; those of the encoder for all cells of the pictures
        that are not blank.
    """
    import tensorflow as tf

    hparams, data, model, stream = _start(kind, size, 1000)
    steps = data.max_seq_len
    batch = next(stream)
    stream.close()
    train.update(model, batch)
    filled = common.pictures_with_ink(batch["patches"])
    batch = {name: tf.constant(value) for name, value in batch.items()}
    network = model.encoder
    embeddings = network.embed(batch["patches"])
    rows = tf.transpose(batch["strokes"], (1, 0, 2))
    z = batch["eps"]
    count = hparams.batch_size

    def encoder(patches):
        return network.embed(patches)

    def dense_encoder(patches):
        with mock.patch.object(encoders, "skips_uniform_cells", lambda: False):
            return network.embed(patches)

    def graph(embeddings):
        adjacency = network.adjacency(embeddings, batch)
        pooled = network.pool(embeddings, adjacency, training=True)
        features = network.read_out(pooled, training=True)
        return features @ network.mu_kernel + features @ network.log_var_kernel

    def decoder(z):
        return stroke_losses(model.decoder(z, rows[:-1], training=True), rows[1:], True)

    def forward(part):
        return tf.function(lambda x: tf.reduce_sum(part(x)), autograph=False)

    def both(part, weights):
        def run(x):
            inputs = [x] if x.dtype.is_floating else []
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                result = tf.reduce_sum(part(x))
            return tape.gradient(result, [*weights, *inputs], unconnected_gradients="zero")

        return tf.function(run, autograph=False)

    all_cells = filled * common.encoder_products(hparams.graph_picture_size)
    parts = {
        "patch encoder": (encoder, batch["patches"], network.patch_encoder, all_cells),
        "patch encoder, all cells": (
            dense_encoder,
            batch["patches"],
            network.patch_encoder,
            all_cells,
        ),
        "graph": (graph, embeddings, network, count * common.graph_products(hparams)),
        "decoder and losses": (
            decoder,
            z,
            model.decoder,
            count * steps * common.decoder_products(hparams),
        ),
    }
    found, kernels = {}, common.calibration()
    for name, (part, x, layer, products) in parts.items():
        weights = [v.value for v in layer.trainable_variables]
        for way, run, factor in (("forward", forward(part), 1), ("step", both(part, weights), 3)):
            found[f"{name}, {way}"] = {
                "here": common.seconds(lambda r=run, x=x: tf.nest.flatten(r(x))[0].numpy(), 5),
                "floor": common.floor_seconds(factor * products, kernels),
            }
    gradients = [tf.ones(v.shape) for v in model.trainable_variables]
    apply = tf.function(lambda: model.optimizer.apply(gradients), autograph=False)
    found["optimiser"] = {"here": common.seconds(apply, 5), "floor": 0.0}
    found["whole step"] = {
        "here": common.seconds(lambda: train.update(model, batch), 5),
        "floor": common.floor_seconds(
            3 * sum(part[3] for name, part in parts.items() if "all cells" not in name), kernels
        ),
    }
    return found
