"""Each stage of sample.py, and the ranking of Ret."""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import common
import numpy as np

import inference
import retrieval
from batches import make_graphs
from hparams import HParams
from model import SPGra2Seq
from support import devices
from support.backend import compiled, ops
from support.sample_files import PICTURES, write_sample
from support.workers import prefetch

KERNELS = {
    "crop": "python_loop",
    "encode": "matmul_2048_float32",
    "decode": "matmul_2048_float32",
    "write": "python_loop",
}
PUBLISHED = {
    "crop": "crop_s",
    "encode": "encode_s",
    "decode": "decode_s",
    "write": "write_svg_npy_s",
}


def sampling(size: str, count: int) -> dict:
    """Seconds a sketch of each stage, every sketch drawn to its last step as by the published code.

    In use sketches end earlier and cost less.

    Args:
        size: see `common.SIZES`.
        count: sketches, drawn at a time.

    Returns:
        Per stage (crop, encode, decode, write, whole) seconds here, the published implementation's
        scaled (None at sizes where it was not timed), and the floor of encode and decode. `whole`
        is all stages as sample.py does them, writing beside the rest.
    """
    hparams = HParams(**common.SIZES[size])
    steps = hparams.max_seq_len
    split = common.load("quickdraw", count, steps).splits["train"]
    sketches = [split.sketch(i % len(split)) for i in range(count)]
    model = SPGra2Seq(hparams)
    rng = np.random.default_rng(0)
    seeds = [rng.random(hparams.graph_number - 1) for _ in sketches]
    starts = range(0, count, inference.ENCODING_BATCH)

    def crop():
        return [
            make_graphs(
                sketches[i : i + inference.ENCODING_BATCH],
                hparams,
                mask_prob=0.1,
                seeds=seeds[i : i + inference.ENCODING_BATCH],
            )[0]
            for i in starts
        ]

    packed = crop()
    encode_nodes = compiled(lambda nodes: model.encode_nodes(nodes).mu, model)

    def encode():
        for nodes in packed:
            ops.convert_to_numpy(encode_nodes(devices.to_device(nodes)))

    z = rng.standard_normal((count, hparams.z_size)).astype(np.float32)
    draw = compiled(
        inference.chunk_function(model.decoder, inference.DEFAULT_TEMPERATURE, False), model
    )

    def decode():
        rows = np.zeros((count, 5), np.float32)
        state = tuple(np.zeros((count, n), np.float32) for n in model.decoder.cell.state_sizes)
        fresh = np.ones(count, bool)
        for _ in range(0, steps, inference.CHUNK):
            randoms = rng.random((count, inference.CHUNK, inference.DRAWS), np.float32)
            rows, state, chunk = draw(z, fresh, rows, state, randoms)
            ops.convert_to_numpy(chunk)
            fresh = np.zeros(count, bool)

    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()

        def write_to_new_directory():
            directory = Path(folder) / str(next(numbers))
            directory.mkdir()
            return lambda i, sketch: write_sample(directory, (0, i), sketch, z[i], PICTURES)

        def write():
            write_one = write_to_new_directory()
            for i, sketch in enumerate(sketches):
                write_one(i, sketch)

        stages = {"crop": crop, "encode": encode, "decode": decode, "write": write}
        here = {stage: common.seconds(function) / count for stage, function in stages.items()}
        here["whole"] = _whole(model, 3 * sketches, 3 * seeds, count, write_to_new_directory())
    kernels = common.calibration()
    pictures = sum(common.pictures_with_ink(batch["patches"]) for batch in packed) / count
    floors = {
        "encode": pictures * common.encoder_products(hparams.graph_picture_size)
        + common.graph_products(hparams),
        "decode": steps * common.decoder_products(hparams),
    }
    theirs = _published(hparams.dec_rnn_size, steps, kernels)
    if theirs:
        theirs["whole"] = sum(theirs.values())
    stages = {
        stage: {
            "here": time,
            "published": theirs.get(stage),
            "floor": common.floor_seconds(floors[stage], kernels) if stage in floors else None,
        }
        for stage, time in here.items()
    }
    return {"size": size, "stages": stages}


def _whole(
    model: SPGra2Seq,
    sketches: list[np.ndarray],
    seeds: list[np.ndarray],
    count: int,
    write: Callable[[int, np.ndarray], None],
) -> float:
    """Seconds a sketch from when the first `count` are drawn until all are, those before the last
    `count` being written meanwhile."""
    draw_rows, times = inference.sample_rows, []

    def unending_rows(*args):
        rows = draw_rows(*args)
        return ops.concatenate([rows[:, :4], ops.zeros_like(rows[:, 4:])], axis=1)

    def draw():
        encoded = inference.encode_sketches(
            model, sketches, mask_prob=0.1, seeds=seeds, keys=[(i,) for i in range(len(sketches))]
        )
        codes = ((found.key, found.code) for found in encoded)
        for found in inference.generate(model, codes, model.hparams.max_seq_len, batch_size=count):
            times.append(time.perf_counter())
            yield found

    def write_drawn(found):
        write(found.key[0] % count, found.sketch)

    with mock.patch.object(inference, "sample_rows", unending_rows):
        for _ in prefetch(write_drawn, draw(), workers=1, ahead=count):
            pass
    return (times[-1] - times[count - 1]) / (len(sketches) - count)


def _published(units: int, steps: int, kernels: dict[str, float]) -> dict[str, float]:
    """The published implementation's seconds a sketch, scaled; the fastest of its runs."""
    timings = common.published()
    runs = [
        run
        for run in timings["sample_per_sketch"]
        if (run["dec_rnn_size"], run["max_seq_len"]) == (units, steps)
    ]
    if not runs:
        return {}
    run = min(runs, key=lambda run: run["whole_s"][0])
    return {
        stage: common.scaled(run[name][0], KERNELS[stage], kernels)
        for stage, name in PUBLISHED.items()
    }


def ranking(counts: tuple[int, ...]) -> dict:
    """Seconds and memory of ranking N codes of 128 numbers, as Ret does.

    Returns:
        For each N seconds here, and the published implementation's scaled (None where it was not
        timed).
    """
    timings = common.published()
    theirs = {run["N"]: run["seconds"][0] for run in timings["ret"]}
    found = {}
    rng = np.random.default_rng(0)
    for count in counts:
        originals = rng.standard_normal((count, 128), np.float32)
        generated = originals + 2 * rng.standard_normal(originals.shape, np.float32)
        time = common.seconds(lambda g=generated, o=originals: retrieval.ret(g, o), 1)
        kernels = common.calibration()
        reference = theirs.get(count)
        found[count] = {
            "here": time,
            "published": reference and common.scaled(reference, "copy_64MiB", kernels),
        }
    return found
