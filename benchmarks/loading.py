"""Cropping, preparing batches and loading a data set.

Cropping is measured on one core, in processor time: the least of many runs is what the work takes
when nothing disturbs it. The published time is scaled by a Python loop's on both machines; the
floor is copying the bytes that a batch's pictures have.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import numpy as np

import batches
import dataset
import doodles
from hparams import HParams

SHARED = Path(__file__).parents[2] / "shared"
BATCH = 128
MAX_KEPT = 4  # batches of a worker at a time, more than there ever are in use
CATEGORIES = tuple(f"category {i}" for i in range(17))  # as many as in the article's largest set


def least(functions: dict[str, Callable[[], object]], repeats: int = 15) -> dict[str, float]:
    """Least processor seconds of each function, run in turn so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.thread_time()
            function()
            times[name].append(time.thread_time() - start)
    return {name: min(seconds) for name, seconds in times.items()}


def some_doodles(count: int, seed: int = 0) -> list[np.ndarray]:
    """Sketches of all embedded categories, int16 stroke-3."""
    names = doodles.CATEGORIES
    return [
        doodles.doodle(names[i % len(names)], np.random.default_rng((seed, i)))
        for i in range(count)
    ]


def sketches_of_kinds() -> dict[str, list[np.ndarray]]:
    """A batch of each kind of sketch, in model units; doodles where no files are."""
    folders = {
        "aaron_sheep": [SHARED / "data" / "sketch_rnn_datasets" / "aaron_sheep.npz"],
        "quickdraw": sorted((SHARED / "data" / "quickdraw_real").glob("*.npz")),
    }
    raw = {}
    for name, paths in folders.items():
        if paths and all(path.exists() for path in paths):
            each = -(-BATCH // len(paths))
            files = (dataset.read_sketch_file(path, ("train",))["train"] for path in paths)
            raw[name] = [sketch for sketches in files for sketch in sketches[:each]][:BATCH]
    return {name: _scaled(sketches) for name, sketches in raw.items()} or {
        "doodles": _scaled(some_doodles(BATCH))
    }


def _scaled(raw: list[np.ndarray]) -> list[np.ndarray]:
    unit = np.array([*2 * [np.std(np.concatenate(raw).astype(np.float64))], 1], np.float32)
    return [sketch.astype(np.float32) / unit for sketch in raw]


def cropping() -> dict[str, dict[str, float | None]]:
    """Seconds a sketch of `batches.make_graphs`, for each kind of sketch.

    Returns:
        For each kind `here`, `copy`, and `published`, scaled, None where it is not known.
    """
    import common  # brings TensorFlow, whose memory `load` is not to count

    timings = common.published()
    hparams, rng, results = HParams(), np.random.default_rng(0), {}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for name, sketches in sketches_of_kinds().items():
        seeds = [rng.random(hparams.graph_number - 1) for _ in sketches]

        def pack(sketches=sketches, seeds=seeds):
            return batches.make_graphs(sketches, hparams, mask_prob=0.1, seeds=seeds)[0]["patches"]

        pictures = pack()
        copy = np.ones_like(pictures)
        seconds = least(
            {
                "pack": pack,
                "copy": lambda to=copy, pictures=pictures: np.copyto(to, pictures),
                "loop": common.python_loop,
            }
        )
        results[name] = {
            "here": seconds["pack"] / len(sketches),
            "copy": seconds["copy"] / len(sketches),
            "published": None,
        }
        if name in timings["crop_per_sketch_ms"]:
            theirs = 1e-3 * timings["crop_per_sketch_ms"][name][0]
            loop = {"python_loop": seconds["loop"]}
            results[name]["published"] = common.scaled(theirs, "python_loop", loop)
    cv2.setNumThreads(threads)
    return results


def lattices() -> dict[str, float]:
    """Seconds a sketch of the nodes of a lattice, for each kind of sketch."""
    hparams, found = HParams(method="sketchlattice"), {}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for name, sketches in sketches_of_kinds().items():
        seconds = least({"": lambda sketches=sketches: batches.make_graphs(sketches, hparams)})
        found[name] = seconds[""] / len(sketches)
    cv2.setNumThreads(threads)
    return found


def batch_rate(max_workers: int | None = None, count: int = 40) -> dict[int, float]:
    """Sketches a second of `batches.training_batches`, for 1 to as many workers as cores."""
    raw = some_doodles(4 * BATCH)
    hparams = HParams(batch_size=BATCH)
    lengths = [len(sketch) for sketch in raw]
    split = dataset.Split(
        rows=np.concatenate(raw),
        ends=np.cumsum([0, *lengths]),
        category=np.zeros(len(raw), np.int32),
        index=np.arange(len(raw), dtype=np.int32),
        scale_factor=30.0,
    )
    rates = {}
    for workers in range(1, (max_workers or os.cpu_count() or 1) + 1):
        made = batches.training_batches(split, hparams, max(lengths), workers=workers)
        # Kept at the same time, so that all memory that batches are made in has been written:
        # the first time takes the system longer than making the batch.
        kept = [next(made) for _ in range(MAX_KEPT * workers)]
        del kept
        for _ in range(MAX_KEPT * workers):
            next(made)
        start = time.perf_counter()
        for _ in range(count):
            next(made)
        rates[workers] = count * BATCH / (time.perf_counter() - start)
        made.close()
    return rates


def loading(per_category: int = 1000) -> dict[str, float]:
    """Seconds and peak memory of loading 17 categories of as many training sketches each.

    One file serves all categories. A twenty-eighth more sketches are for validation, and for test.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = some_doodles(min(per_category, 2000), seed=1)
        arrays = {}
        for split, size in zip(
            dataset.SPLITS, (per_category, *2 * [-(-per_category // 28)]), strict=True
        ):
            arrays[split] = np.empty(size, object)
            for i in range(size):
                arrays[split][i] = base[i % len(base)].copy()
        np.savez_compressed(Path(folder) / "file.npz", **arrays)
        for name in CATEGORIES:
            (Path(folder) / f"{name}.npz").symlink_to("file.npz")
        # A process of its own, because the peak is a process's.
        script = "import json, sys, loading; print(json.dumps(loading.load(sys.argv[1])))"
        command = [sys.executable, "-c", script, folder]
        done = subprocess.run(
            command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=True, text=True
        )
        return json.loads(done.stdout)


def load(folder: str) -> dict[str, float]:
    """What `loading` returns, of files that are there; to be called in a fresh process."""
    start = time.perf_counter()
    data = dataset.load_dataset(folder, HParams(categories=CATEGORIES))
    seconds = time.perf_counter() - start
    return {
        "sketches": sum(map(len, data.splits.values())),
        "mean_rows": float(data.splits["train"].lengths.mean()),
        "seconds": seconds,
        "peak_mb": _peak_kib() / 1024,
    }


def _peak_kib() -> int:
    """Most memory that this process held; getrusage's also counts the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
