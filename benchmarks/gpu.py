"""Training and sampling on a GPU, with JAX and without TensorFlow.

KERAS_BACKEND=jax python benchmarks/gpu.py [--json=FILE] [--tiny]

Takes four to six minutes on one card. Sketches are doodles that it makes itself. It prints the
time of an update at default sizes for each decoder and precision, as a share of the card's own
matrix rate, the time of an iteration with 1 to 8 workers that prepare batches, the rates of
encoding sketches and of drawing rows, and peak memory. `--tiny` does all of it at small sizes, to
try the script.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import common  # puts the project on the path, too

# isort: split
import numpy as np
from absl import flags

import batches
import dataset
import inference
import train
from doodles import write_doodles
from hparams import HParams
from model import Adam, SPGra2Seq
from support import cli, devices
from support.backend import compiled, keras, ops
from support.files import UserError, write_json
from support.workers import SLOTS

CATEGORIES = ("fish", "tree")
DEFAULT = {"max_seq_len": 100}  # doodles are shorter than the article's 250 rows
TINY = {
    "batch_size": 8,
    "dec_rnn_size": 16,
    "z_size": 8,
    "num_mixture": 4,
    "graph_number": 6,
    "graph_picture_size": 16,
    "max_seq_len": 100,
}


def matrix_rate(dtype: str, size: int, repeats: int = 5) -> float:
    """Multiplications a second of a square matrix product, result included."""
    import jax

    a = jax.numpy.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ a)
    return size**3 / common.seconds(lambda: product(a).block_until_ready(), repeats)


def products(hparams: HParams) -> float:
    """Multiplications of a forward pass over a batch; an update makes three times as many."""
    encoder = hparams.graph_number * common.encoder_products(hparams.graph_picture_size)
    decoder = hparams.max_seq_len * common.decoder_products(hparams)
    return hparams.batch_size * (encoder + common.graph_products(hparams) + decoder)


def updates(
    data: dataset.Dataset, decoders: list[str], sizes: dict, repeats: int, rates: dict
) -> Iterator[dict]:
    """Seconds of an update on a batch that the device has, for each decoder and precision."""
    for dec_model in decoders:
        for precision in ("float32", "mixed_bfloat16"):
            hparams = HParams(
                categories=CATEGORIES, dec_model=dec_model, precision=precision, **sizes
            )
            model = SPGra2Seq(hparams)
            model.compile(optimizer=Adam(hparams))
            stream = batches.training_batches(
                data.splits["train"], hparams, hparams.max_seq_len, workers=1
            )
            batch = devices.to_device(next(stream))
            stream.close()
            model.start_clusters(batch)
            step = common.seconds(lambda m=model, b=batch: train.update(m, b), repeats)
            rate = rates["float32" if precision == "float32" else "bfloat16"]
            yield {
                "decoder": dec_model,
                "precision": precision,
                "update_seconds": step,
                "sketches_per_second": hparams.batch_size / step,
                "share_of_matrix_rate": 3 * products(hparams) / rate / step,
            }


def waits(
    data: dataset.Dataset, sizes: dict, count: int, counts: tuple[int, ...]
) -> Iterator[dict]:
    """Seconds of an iteration of training, and how much of it is waiting for a batch.

    The first batches of each worker are not counted: memory that is used for the first time
    takes several times as long to fill.
    """
    hparams = HParams(categories=CATEGORIES, precision="mixed_bfloat16", **sizes)
    model = SPGra2Seq(hparams)
    model.compile(optimizer=Adam(hparams))
    for workers in counts:
        stream = devices.sent_ahead(
            batches.training_batches(
                data.splits["train"], hparams, hparams.max_seq_len, workers=workers
            )
        )
        for _ in range((SLOTS + 1) * workers):
            next(stream)
        train.update(model, next(stream))
        waited, start = 0.0, time.perf_counter()
        for _ in range(count):
            before = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - before
            train.update(model, batch)
        whole = time.perf_counter() - start
        stream.close()
        yield {
            "workers": workers,
            "iteration_seconds": whole / count,
            "wait_seconds": waited / count,
            "share": waited / whole,
        }


def sampling(data: dataset.Dataset, sizes: dict, count: int) -> dict:
    """Sketches encoded, cropping included, and rows drawn in a second."""
    hparams = HParams(categories=CATEGORIES, **sizes)
    model = SPGra2Seq(hparams)
    split = data.splits["train"]
    sketches = [split.sketch(i % len(split)) for i in range(count)]
    # What comes first waits for the compiler.
    first, start = count // 4, 0.0
    for i, _ in enumerate(inference.encode_sketches(model, sketches)):
        if i == first:
            start = time.perf_counter()
    seconds = time.perf_counter() - start
    # Sketches of an untrained model end after a few rows, so whole ones say little.
    draw = compiled(inference.chunk_function(model.decoder, 0.24, greedy=False), model)
    batch, rng = 256, np.random.default_rng(0)
    state = tuple(np.zeros((batch, n), np.float32) for n in model.decoder.cell.state_sizes)
    randoms = rng.random((batch, inference.CHUNK, inference.DRAWS), np.float32)
    z, rows = np.zeros((batch, hparams.z_size), np.float32), np.zeros((batch, 5), np.float32)

    def draw_chunk():
        ops.convert_to_numpy(draw(z, np.ones(batch, bool), rows, state, randoms)[2])

    return {
        "sketches_encoded_per_second": (count - first) / seconds,
        "rows_drawn_per_second": batch * inference.CHUNK / common.seconds(draw_chunk, 5),
    }


def peak_bytes() -> int | None:
    """Most memory of the device that was in use; None where the device does not say."""
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def main() -> None:
    """Measures and prints."""
    import jax

    if keras.backend.backend() != "jax":
        raise UserError("this benchmark is for JAX: set KERAS_BACKEND=jax")
    tiny = flags.FLAGS.tiny
    sizes, repeats, size = (TINY, 2, 64) if tiny else (DEFAULT, 10, 8192)
    found = {"device": str(jax.devices()[0].device_kind), "jax": jax.__version__}
    print(f"{found['device']}, JAX {found['jax']}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_doodles(folder, categories=CATEGORIES, train=24 if tiny else 400, valid=1, test=1)
        data = dataset.load_dataset(folder, HParams(categories=CATEGORIES, max_seq_len=100))
    rates = {dtype: matrix_rate(dtype, size) for dtype in ("float32", "bfloat16")}
    found["matrix_rate"] = rates
    print(", ".join(f"{name} {rate:.3g} multiplications a second" for name, rate in rates.items()))
    found["updates"] = []
    for row in updates(data, flags.FLAGS.decoders, sizes, repeats, rates):
        found["updates"].append(row)
        print(
            f"{row['decoder']:11} {row['precision']:15} {1e3 * row['update_seconds']:9.2f} ms, "
            f"{row['sketches_per_second']:8.1f} sketches/s, "
            f"{row['share_of_matrix_rate']:6.1%} of the matrix rate",
            flush=True,
        )
    found["waits"] = []
    for row in waits(data, sizes, *((3, (1, 2)) if tiny else (30, (1, 2, 4, 8)))):
        found["waits"].append(row)
        print(
            f"{row['workers']:2} workers: {1e3 * row['iteration_seconds']:7.2f} ms an iteration, "
            f"{1e3 * row['wait_seconds']:.2f} of it waiting for a batch ({row['share']:.1%})",
            flush=True,
        )
    found["sampling"] = sampling(data, sizes, 128 if tiny else 4096)
    for name, rate in found["sampling"].items():
        print(f"{name.replace('_', ' ')}: {rate:,.0f}")
    found["peak_bytes"] = peak_bytes()
    if found["peak_bytes"] is not None:
        print(f"peak memory of the device: {found['peak_bytes'] / 1e9:.2f} GB")
    if flags.FLAGS.json:
        write_json(flags.FLAGS.json, found)
    else:
        print(json.dumps(found))


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_bool("tiny", False, "Small sizes, to try the script.")
    flags.DEFINE_list("decoders", ["lstm", "layer_norm", "hyper"], "Decoders to train.")
    flags.DEFINE_string("json", "", "File for all numbers.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
