"""What the benchmarks share: timing, the calibration kernels, the floor, the data.

Times of the published implementation were taken on another machine. They are scaled by what the
calibration kernels take here, in the same process: a Python loop for what ran in Python, a matrix
product for what ran in TensorFlow, a memory copy for the ranking of codes.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import dataset
import doodles
from encoders import CHANNELS
from hparams import HParams
from methods.sp_gra2seq import EMBEDDING
from model import OUTPUT_WIDTH
from rnn import ROW_WIDTH

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SHARED = Path(__file__).parents[2] / "shared"
# Those that the published implementation was timed at.
TIMED = {"batch_size": 16, "dec_rnn_size": 512, "num_mixture": 50, "max_seq_len": 100}
SIZES = {
    "timed": TIMED,
    "timed layer_norm": TIMED | {"dec_model": "layer_norm"},
    "timed hyper": TIMED | {"dec_model": "hyper"},
    "default": {"max_seq_len": 250},
    "demo": {
        "batch_size": 32,
        "graph_picture_size": 64,
        "dec_model": "layer_norm",
        "dec_rnn_size": 256,
        "z_size": 32,
        "max_seq_len": 100,
    },
}
SKETCHES = {
    "aaron_sheep": ("sketch_rnn_datasets", "aaron_sheep"),  # every patch node is filled
    "quickdraw": ("sketch_rnn_sampled", "bird"),  # about 12 of 20 are
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


def python_loop() -> None:
    """A calibration kernel."""
    total = 0
    for i in range(2_000_000):
        total += i * i


def calibration() -> dict[str, float]:
    """Seconds of the kernels that published_timings.json gives, on this machine."""
    matrix = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    source, target = np.ones(2**26, np.uint8), np.ones(2**26, np.uint8)
    return {
        "python_loop": seconds(python_loop),
        "matmul_2048_float32": seconds(lambda: matrix @ matrix, 7),
        "copy_64MiB": seconds(lambda: np.copyto(target, source), 7),
    }


def published() -> dict:
    """Times of the published implementation."""
    return json.loads((GOLDEN / "published_timings.json").read_text())


def scaled(published_seconds: float, kernel: str, kernels: dict[str, float]) -> float:
    """What the published implementation would take on this machine.

    Args:
        published_seconds: what it took there.
        kernel: the calibration kernel that is closest to what it did.
        kernels: from `calibration`.
    """
    return published_seconds * kernels[kernel] / published()["calibration"][kernel][0]


def floor_seconds(products: float, kernels: dict[str, float]) -> float:
    """Time of so many multiplications and additions as a bare matrix product."""
    return products * kernels["matmul_2048_float32"] / 2048**3


def encoder_products(side: int) -> float:
    """Multiplications that the patch encoder makes for one picture."""
    total, inputs = 0, 1
    for outputs in CHANNELS:
        side = -(-side // 2)
        total += side * side * 4 * inputs * outputs
        inputs = outputs
    return total


def pictures_with_ink(patches: np.ndarray) -> int:
    """How many of the pictures (B, G, S, S) are not blank."""
    return int(np.count_nonzero(patches.any(axis=(2, 3))))


def graph_products(hparams: HParams) -> float:
    """Multiplications of the graph convolutions and the code of one sketch."""
    nodes = hparams.graph_number
    return nodes * EMBEDDING * (nodes + 2 * EMBEDDING) + 2 * EMBEDDING * hparams.z_size


def decoder_products(hparams: HParams) -> float:
    """Multiplications of one step of the decoder for one sketch, the code's part left out."""
    units = hparams.dec_rnn_size
    return 4 * units * (units + ROW_WIDTH) + units * OUTPUT_WIDTH


def has_sketches(kind: str) -> bool:
    """Whether the sketches of a kind in `SKETCHES` are there, or doodles stand in for them."""
    return (SHARED / "data" / SKETCHES[kind][0]).is_dir()


def load(kind: str, count: int, max_seq_len: int) -> dataset.Dataset:
    """Sketches of a kind in `SKETCHES`, or doodles where these are absent.

    Args:
        kind: aaron_sheep or quickdraw.
        count: most training sketches.
        max_seq_len: longer ones are left out.
    """
    folder, name = SKETCHES[kind]
    folder = SHARED / "data" / folder
    if not has_sketches(kind):
        folder = Path("/tmp/sp_gra2seq_benchmark")
        name = "house"
        doodles.write_doodles(folder, categories=[name], train=1000)
    hparams = HParams(categories=(name,), num_per_category=count, max_seq_len=max_seq_len)
    return dataset.load_dataset(folder, hparams)
