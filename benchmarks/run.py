"""How fast every stage is, beside the published implementation and beside the floor.

python benchmarks/run.py [--only=crop,train] [--json=FILE] [--full]

`published~` is an estimate: the published implementation's times on another machine, scaled by
what simple loops, products and copies take on both. The floor is the time of the same
multiplications as bare matrix products (of the patch encoder those of all cells of the pictures
that are not blank, though uniform cells are skipped where that pays), or of copying the same
bytes. Every stage runs in a process of its own, which gives its peak memory. Run it on a machine
that has nothing else to do, and read ratios: they vary less than times.
"""

import datetime
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import NamedTuple

import common  # noqa: F401, puts the project on the path

# isort: split
import loading
import sampling
import training
from absl import flags

from support import cli
from support.backend import keras
from support.files import UserError, write_json


class Row(NamedTuple):
    """A line of the table; times in seconds."""

    what: str
    here: float
    published: float | None = None
    floor: float | None = None
    note: str = ""


def crop() -> Iterator[Row]:
    for kind, found in loading.cropping().items():
        yield Row(f"crop a sketch, {kind}", found["here"], found["published"], found["copy"])
    for kind, seconds in loading.lattices().items():
        yield Row(f"lattice of a sketch, {kind}", seconds, note=f"{1 / seconds:,.0f}/s")


def load(per_category: int) -> Callable[[], Iterator[Row]]:
    def rows():
        found = loading.loading(per_category)
        note = f"{found['mean_rows']:.0f} rows each, at most {found['peak_mb']:,.0f} MB"
        yield Row(f"load {found['sketches']:,} sketches", found["seconds"], note=note)

    return rows


def batches() -> Iterator[Row]:
    for workers, rate in loading.batch_rate().items():
        yield Row(f"a sketch of a batch, {workers} workers", 1 / rate, note=f"{rate:,.0f}/s")


def train(kind: str, size: str, iterations: int) -> Callable[[], Iterator[Row]]:
    def rows():
        found = training.training(kind, size, iterations)
        name = f"{kind}, {size} size"
        note = (
            f"{found['pictures_per_sketch']:.1f} pictures a sketch, "
            f"{found['sketches_per_second']:.1f} sketches/s"
        )
        yield Row(
            f"training iteration, {name}",
            found["iteration"],
            found["published"],
            found["floor"],
            note,
        )
        yield Row("  its step", found["step"], floor=found["floor"])
        share = found["wait"] / found["iteration"]
        yield Row("  waiting for input", found["wait"], note=f"{share:.1%} of the iteration")
        yield Row("  evaluation, a sketch", 1 / found["evaluation_sketches_per_second"])

    return rows


def profile() -> Iterator[Row]:
    if keras.backend.backend() != "tensorflow":
        return  # which alone runs the parts of a step one by one
    for part, times in training.profile("quickdraw", "timed").items():
        note = "floor: all cells of pictures with ink" if "encoder" in part else ""
        yield Row(f"  {part}", times["here"], floor=times["floor"] or None, note=note)


def unroll() -> Iterator[Row]:
    for dec_model in ("lstm", "layer_norm", "hyper"):
        found = training.unrolling(dec_model)
        others = [f"automatic differentiation {1e3 * found['autodiff']:,.0f} ms"]
        if "keras" in found:
            others.append(f"Keras's LSTM {1e3 * found['keras']:,.0f} ms")
        yield Row(f"unroll {dec_model}, step", found["here"], note=", ".join(others))


def sample(size: str, count: int) -> Callable[[], Iterator[Row]]:
    def rows():
        found = sampling.sampling(size, count)
        for stage, times in found["stages"].items():
            name = "sample" if stage == "whole" else f"  {stage}"
            yield Row(
                f"{name} a sketch, {size} size", times["here"], times["published"], times["floor"]
            )

    return rows


def ret() -> Iterator[Row]:
    for count, times in sampling.ranking((12500, 20000)).items():
        yield Row(f"Ret of {count:,} codes", times["here"], times["published"])


STAGES: dict[str, Callable[[], Iterator[Row]]] = {
    "crop": crop,
    "batches": batches,
    "load": load(1000),
    "train-aaron": train("aaron_sheep", "timed", 12),
    "train-quickdraw": train("quickdraw", "timed", 12),
    "profile": profile,
    "train-demo": train("quickdraw", "demo", 20),
    "train-layer_norm": train("quickdraw", "timed layer_norm", 6),
    "train-hyper": train("quickdraw", "timed hyper", 6),
    "unroll": unroll,
    "sample": sample("timed", 256),
    "sample-demo": sample("demo", 256),
    "ret": ret,
}
# These take minutes.
FULL_STAGES = {
    "load-article": load(70000),
    "train-default": train("aaron_sheep", "default", 3),
    "sample-default": sample("default", 256),
}


def run_stage(name: str) -> None:
    """Runs a stage and prints its rows and its peak memory as JSON."""
    rows = [row._asdict() for row in (STAGES | FULL_STAGES)[name]()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e3
    )
    print(json.dumps({"rows": rows, "peak_mb": peak}))


def machine() -> dict[str, str]:
    """What the numbers were taken with."""
    backend = keras.backend.backend()
    packages = (backend, "keras", "numpy", "opencv-python-headless")
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    } | {package: version(package) for package in packages}


def line(row: dict, peak: str) -> str:
    """A row of the table."""
    here, published, floor = row["here"], row["published"], row["floor"]

    def shown(value):
        return (
            "" if value is None else f"{1e3 * value:,.2f}" if value < 10 else f"{1e3 * value:,.0f}"
        )

    times = f"{published / here:.1f}x" if published else ""
    over = f"{here / floor:.2f}x" if floor else ""
    return (
        f"{row['what']:38} {shown(here):>10} {shown(published):>11} {times:>7} "
        f"{shown(floor):>9} {over:>7} {peak:>8}  {row['note']}"
    ).rstrip()


def main() -> None:
    """Prints the table."""
    values = flags.FLAGS
    if values.stage:
        run_stage(values.stage)
        return
    stages = [*STAGES, *(FULL_STAGES if values.full else {})]
    if values.only:
        stages = [s for s in (*STAGES, *FULL_STAGES) if any(s.startswith(o) for o in values.only)]
    if not stages:
        raise UserError(f"--only: stages are {', '.join((*STAGES, *FULL_STAGES))}")
    metadata = machine()
    print(", ".join(f"{name} {value}" for name, value in metadata.items()))
    print(
        f"{'times in ms':38} {'here':>10} {'published~':>11} {'faster~':>7} {'floor':>9} "
        f"{'over':>7} {'peak MB':>8}"
    )
    results = {}
    for stage in stages:
        done = subprocess.run(
            [sys.executable, __file__, f"--stage={stage}"], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise UserError(f"the stage {stage} failed")
        results[stage] = json.loads(done.stdout.splitlines()[-1])
        for i, row in enumerate(results[stage]["rows"]):
            print(line(row, "" if i else f"{results[stage]['peak_mb']:,.0f}"), flush=True)
    if values.json:
        content = {"machine": metadata, "stages": results}
        write_json(values.json, content)


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_list("only", [], "Stages to run, by how their names begin.")
    flags.DEFINE_bool("full", False, "Also the stages at default sizes, which take minutes.")
    flags.DEFINE_string("json", None, "File for all numbers.")
    flags.DEFINE_string("stage", None, "Runs one stage and prints it as JSON.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
