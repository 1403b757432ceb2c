"""Time of each stage of sample.py, beside the published implementation's.

python benchmarks/sampling.py [--units=512] [--steps=100] [--sketches=256] [--published=FILE]

Every sketch is drawn to the last of its steps, as the published code does; in use sketches end
earlier and cost less. The published times are scaled by what the same machine takes for the
calibration kernels: matrix products for encoding and decoding, a Python loop for the rest.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cli

import numpy as np
from absl import flags
from keras import ops

import dataset
import doodles
import inference
import sample
from hparams import HParams
from model import SPGra2Seq

SCALE_FACTOR = 30.0
KERNEL_OF_STAGE = {
    "crop": "python_loop",
    "encode": "matmul_2048_float32",
    "decode": "matmul_2048_float32",
    "write": "python_loop",
}


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def calibration() -> dict[str, float]:
    """Seconds of the kernels that published_timings.json gives, on this machine."""

    def python_loop():
        total = 0
        for i in range(2_000_000):
            total += i * i

    matrix = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    return {
        "python_loop": seconds(python_loop),
        "matmul_2048_float32": seconds(lambda: matrix @ matrix),
    }


def stages(units: int, steps: int, count: int) -> dict[str, float]:
    """Seconds a sketch of each stage."""
    hparams = HParams(dec_rnn_size=units)
    model = SPGra2Seq(hparams)
    rng = np.random.default_rng(0)
    sketches = []
    for i in range(count):
        sketch = doodles.doodle(doodles.CATEGORIES[i % len(doodles.CATEGORIES)], rng)
        sketch = sketch.astype(np.float32)
        sketch[:, :2] /= np.float32(SCALE_FACTOR)
        sketches.append(sketch)
    seeds = [rng.random(hparams.graph_number - 1) for _ in sketches]
    size = sample.ENCODING_BATCH
    batches = range(0, count, size)

    def crop():
        return [
            dataset.pack_graphs(
                sketches[i : i + size], hparams, mask_prob=0.1, seeds=seeds[i : i + size]
            )
            for i in batches
        ]

    packed = crop()
    encode = inference.compiled(
        lambda pictures, nodes, masks: model.encode_embeddings(model.embed(pictures, nodes), masks)[
            0
        ],
        model,
    )

    def encode_all():
        for graphs in packed:
            code = encode(graphs["pictures"], graphs["nodes"], graphs["graph_masks"])
            ops.convert_to_numpy(code)

    z = rng.standard_normal((count, hparams.z_size)).astype(np.float32)
    draw = inference.compiled(
        inference.chunk_function(model.decoder, inference.DEFAULT_TEMPERATURE, False), model
    )

    def decode():
        rows = np.zeros((count, 5), np.float32)
        state = tuple(np.zeros((count, n), np.float32) for n in model.decoder.cell.state_sizes)
        fresh = np.ones(count, bool)
        for start in range(0, steps, inference.CHUNK):
            randoms = rng.random((count, inference.CHUNK, inference.DRAWS), np.float32)
            rows, state, chunk = draw(z, fresh, rows, state, randoms)
            ops.convert_to_numpy(chunk)
            fresh = np.full(count, start < 0)

    def write():
        with tempfile.TemporaryDirectory() as folder:
            for i, sketch in enumerate(sketches):
                sample.write_sample(Path(folder), (0, i), sketch, z[i], sample.PICTURES)

    functions = {"crop": crop, "encode": encode_all, "decode": decode, "write": write}
    return {stage: seconds(function) / count for stage, function in functions.items()}


def published(path: Path, units: int, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds a sketch of each stage, and of the calibration kernels."""
    timings = json.loads(path.read_text())
    runs = [
        run
        for run in timings["sample_per_sketch"]
        if (run["dec_rnn_size"], run["max_seq_len"]) == (units, steps)
    ]
    if not runs:
        return {}, {}
    run = min(runs, key=lambda run: run["whole_s"][0])
    names = {
        "crop": "crop_s",
        "encode": "encode_s",
        "decode": "decode_s",
        "write": "write_svg_npy_s",
    }
    kernels = {name: value[0] for name, value in timings["calibration"].items() if name != "what"}
    return {stage: run[name][0] for stage, name in names.items()}, kernels


def main() -> None:
    """Prints the table."""
    values = flags.FLAGS
    kernels = calibration()
    ours = stages(values.units, values.steps, values.sketches)
    path = Path(values.published)
    theirs, their_kernels = (
        published(path, values.units, values.steps) if path.exists() else ({}, {})
    )
    scaled = {
        stage: time_ * kernels[KERNEL_OF_STAGE[stage]] / their_kernels[KERNEL_OF_STAGE[stage]]
        for stage, time_ in theirs.items()
    }
    print(f"{values.units} units, {values.steps} steps, ms a sketch")
    print(f"{'stage':8} {'here':>9} {'published, scaled':>18} {'ratio':>7}")
    for stage, time_ in [*ours.items(), ("whole", sum(ours.values()))]:
        reference = sum(scaled.values()) if stage == "whole" else scaled.get(stage)
        line = f"{stage:8} {1e3 * time_:9.3f}"
        if reference:
            line += f" {1e3 * reference:18.1f} {reference / time_:7.0f}"
        print(line)


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_integer("units", 512, "dec_rnn_size.", 1)
    flags.DEFINE_integer("steps", 100, "max_seq_len.", 1)
    flags.DEFINE_integer("sketches", 256, "How many sketches.", 1)
    default = Path(__file__).parents[2] / "shared" / "golden" / "published_timings.json"
    flags.DEFINE_string("published", str(default), "Times of the published implementation.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
