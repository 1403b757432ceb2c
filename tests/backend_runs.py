"""Processes that work off tasks on a backend and devices of their own; what their runs left.

A backend and the devices are chosen once, when Keras is loaded. On JAX the processes find no
TensorFlow. All share a cache of compiled programs.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import checkpoints

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "categories=[fish,tree],batch_size=8,dec_rnn_size=16,z_size=8,num_mixture=5,graph_number=6,"
    "graph_picture_size=16,mask_prob=0.3,augment_stroke_prob=0.2,max_seq_len=60"
)
WHOLE, ONE = OPTIONS + ",num_steps=13", OPTIONS + ",num_steps=1"  # 5 updates an epoch
# Reconstruction losses of the validations: the best, then a roll-back, then an improvement.
SCRIPT = {"5": 9.0, "10": 10.0, "13": 8.0}

# The preview, which has tests elsewhere, takes a new process on JAX long.
PROGRAM = """
import importlib.abc, json, logging, os, shutil, signal, sys

class NoTensorFlow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorboard"):
            raise ImportError(f"{name} is not installed")

on_jax = os.environ["KERAS_BACKEND"] == "jax"
if on_jax:
    sys.meta_path.insert(0, NoTensorFlow())

import numpy as np

import checkpoints, sample, train, utils
from support import cli, devices
from support.files import UserError

save, start = checkpoints.save_latest, train.start_or_resume
crop_patches, evaluate, update = utils.crop_patches, train.evaluate, train.update
counts, task = {}, {}

def counted_crop_patches(*args, **options):
    counts["drawn"] += 1
    return crop_patches(*args, **options)

def scripted_evaluate(model, split, hparams, name, *more):
    losses = evaluate(model, split, hparams, name, *more)
    updates = int(model.optimizer.iterations)
    print("EVALUATED", json.dumps([name, updates, losses]))
    if name == "valid" and updates > 1:
        losses = losses | {"reconstruction": task["script"][str(updates)]}
    return losses

def interrupted_update(model, batch):
    updates = int(model.optimizer.iterations)
    if updates + 1 == task.get("interrupt_in"):
        os.kill(os.getpid(), signal.SIGTERM)
    if updates == task.get("die_after"):
        os.kill(os.getpid(), signal.SIGKILL)
    losses = update(model, batch)
    if updates == 0 and task.get("evaluate_first"):
        data, hparams, group = task["run"]
        for name in ("valid", "test"):
            train.evaluate(model, data.splits[name], hparams, name, 1, group)
    return losses

def watched_start(data, hparams, log_root, group, *more, **options):
    task["run"] = data, hparams, group
    return start(data, hparams, log_root, group, *more, **options)

def copying_save(log_root, model, optimizer, state):
    save(log_root, model, optimizer, state)
    if str(state.total_steps) in task["copies"]:
        shutil.copytree(log_root, task["copies"][str(state.total_steps)])

class CountCompilations(logging.Handler):
    def emit(self, record):
        counts["compiled"] += record.getMessage().startswith("Compiling jit(train_step)")

checkpoints.save_latest = copying_save
utils.crop_patches, train.evaluate = counted_crop_patches, scripted_evaluate
train.update, train.start_or_resume = interrupted_update, watched_start
train.draw_preview = lambda *_: np.zeros((2, 2, 3), np.uint8)
train.AGREED_EVERY = 2
if on_jax:
    import jax
    jax.config.update("jax_log_compiles", True)
    logging.getLogger("jax").propagate = False
    logging.getLogger("jax").addHandler(CountCompilations())

tasks = json.loads(sys.argv[1])
if len(sys.argv) > 2:
    coordinator, count, number = sys.argv[2:]
    devices.initialize_distributed(coordinator, int(count), int(number), timeout=10)
    # Only process 0 would keep its compiled programs, and the others compile theirs for each task.
    from jax._src import compiler, distributed
    write_program, place = compiler._cache_write, distributed.global_state

    def write_as_first(*args):
        own, place.process_id = place.process_id, 0
        try:
            write_program(*args)
        finally:
            place.process_id = own

    compiler._cache_write = write_as_first
for task in tasks:
    counts.update(drawn=0, compiled=0)
    try:
        if "select" in task:
            print("SELECTED", json.dumps(devices.select_devices(*task["select"]).devices))
        elif "sample" in task:
            sample.sample(*task["sample"], num_per_category=3, prob=0.0, pictures=())
        else:
            state = train.train(*task["train"], resume=True, workers=1, **task["settings"])
            print("ENDED", json.dumps([state.total_steps, state.finished, counts]))
            if "end" in task["copies"]:
                shutil.copytree(task["train"][1], task["copies"]["end"])
    except UserError as error:
        print("REFUSED", json.dumps(str(error)), flush=True)
        if len(sys.argv) > 2:
            with cli.ending_at_once():
                raise
"""


def training(folder, name, options, *, copies=None, settings=None, **more):
    """A task: to start or resume the run `name`.

    Args:
        folder: holds `data` and all runs.
        name: the run's directory.
        options: of the run.
        copies: names of copies of the directory, of when so many updates were saved, or of the
            "end".
        settings: further arguments of `train.train`.
        more: `interrupt_in` and `die_after`, updates; `evaluate_first`, whether both splits are
            evaluated after the first update.
    """
    task = {"train": [str(folder / "data"), str(folder / name), options], "script": SCRIPT} | more
    copies = {str(when): str(folder / copy) for when, copy in (copies or {}).items()}
    return task | {"settings": settings or {}, "copies": copies}


def sampling(folder, model, drawn):
    """A task: to redraw sketches with the model of a run."""
    return {"sample": [str(folder / name) for name in ("data", model, drawn)]}


def environment(compiled, backend="jax", logical_devices=1):
    """Variables of a process on a backend, which keeps what JAX compiles in a directory."""
    return os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        # Programs that are compiled for a few updates need not be fast.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={logical_devices} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }


def start(compiled, tasks, *cluster, backend="jax", logical_devices=1):
    """A process that works off tasks."""
    # A pipe that is not read would fill up.
    printed = tempfile.TemporaryFile("w+")  # noqa: SIM115
    command = [sys.executable, "-c", PROGRAM, json.dumps(tasks), *cluster]
    variables = environment(compiled, backend, logical_devices)
    process = subprocess.Popen(command, env=variables, stdout=printed, stderr=printed)
    process.printed = printed
    return process


def output_of(process):
    process.printed.seek(0)
    return process.printed.read()


def finish(*processes, seconds=600):
    """What processes print, whose tasks must all be worked off."""
    try:
        for process in processes:
            process.wait(timeout=seconds)
    finally:
        for process in processes:
            process.kill()
    outputs = [output_of(process) for process in processes]
    assert not any(process.returncode for process in processes), "\n\n".join(outputs)
    return outputs


def start_cluster(compiled, tasks_of_processes):
    """Processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    count = str(len(tasks_of_processes))
    return [
        start(compiled, tasks, address, count, str(number))
        for number, tasks in enumerate(tasks_of_processes)
    ]


def printed(output, word):
    """What was printed on the lines that begin with a word, from JSON."""
    lines = [line for line in output.splitlines() if line.startswith(word + " ")]
    return [json.loads(line.removeprefix(word)) for line in lines]


def arrays_of(log_root, name="latest.npz"):
    return checkpoints.read_arrays(log_root / name)[0]


def losses_of(log_root):
    """Both losses of each update, (n, 2)."""
    rows = [line.split(",") for line in (log_root / "metrics.csv").read_text().splitlines()]
    return np.array([[float(x) for x in row[3:5]] for row in rows if row[2] == "train"])


def assert_same_arrays(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def assert_same_run(one, other):
    for name in ("best.npz", "latest.npz"):
        assert_same_arrays(arrays_of(one, name), arrays_of(other, name))
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def assert_same_first_update(one, other, loss=1e-5, gradient=2e-4):
    """Losses and gradients of the first update agree, the latter by Adam's first moments.

    Losses differ by float32 sums in another order; in gradients batch normalisation over 8
    sketches magnifies that, as in test_model.py. Later updates drift apart: Adam's first steps
    follow the signs of the gradients, even of those that are mere rounding.
    """
    np.testing.assert_allclose(losses_of(one)[0], losses_of(other)[0], rtol=loss)
    ours, theirs = arrays_of(one), arrays_of(other)
    moments = [name for name in ours if name.endswith("_momentum")]
    assert len(moments) > 10
    for name in moments:
        difference = np.linalg.norm(ours[name] - theirs[name])
        assert difference <= gradient * np.linalg.norm(theirs[name]), name


def assert_same_evaluation(output, other):
    """Of the whole splits, after the first task's one update: rounding, once through Adam."""
    for (split, *_, ours), (_, *_, theirs), name in zip(
        printed(output, "EVALUATED"), printed(other, "EVALUATED"), ("valid", "test"), strict=False
    ):
        assert split == name
        assert ours == pytest.approx(theirs, rel=1e-3), name
