"""JAX beside TensorFlow, several devices, several processes, and mixed precision.

A backend and the devices are chosen once, when Keras is loaded, so most runs are made by
processes of their own, each of which works off a few tasks; they share a cache of compiled
programs. On JAX they find no TensorFlow.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from autodiff import gradients

import checkpoints
import dataset
import graphs
import model as network
import unroll
from batches import training_batches
from doodles import write_doodles
from hparams import parse_hparams
from model import Adam, SPGra2Seq
from support import devices
from support.backend import keras
from support.files import UserError

pytestmark = pytest.mark.slow
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

save = checkpoints.save_latest
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
    return update(model, batch)

def copying_save(log_root, model, optimizer, state):
    save(log_root, model, optimizer, state)
    if state.total_steps == 0 and "copy_begun" in task:
        shutil.copytree(log_root, task["copy_begun"])

class CountCompilations(logging.Handler):
    def emit(self, record):
        counts["compiled"] += record.getMessage().startswith("Compiling jit(train_step)")

checkpoints.save_latest = copying_save
utils.crop_patches, train.evaluate = counted_crop_patches, scripted_evaluate
train.update = interrupted_update
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
for task in tasks:
    counts.update(drawn=0, compiled=0)
    try:
        if "sample" in task:
            sample.sample(*task["sample"], num_per_category=3, prob=0.0, pictures=())
        else:
            state = train.train(*task["train"], resume=True, workers=1, **task["settings"])
            print("ENDED", json.dumps([state.total_steps, state.finished, counts]))
            if "copy" in task:
                shutil.copytree(task["train"][1], task["copy"])
    except UserError as error:
        print("REFUSED", json.dumps(str(error)), flush=True)
        if len(sys.argv) > 2:
            with cli.ending_at_once():
                raise
"""


def training(data_dir, log_root, options, *, copy=None, settings=None, **more):
    """A task: to start or resume a run, and to copy its directory afterwards."""
    task = {"train": [str(data_dir), str(log_root), options], "script": SCRIPT} | more
    return task | {"settings": settings or {}} | ({"copy": str(copy)} if copy else {})


def start(cache, tasks, *cluster, backend="jax", logical_devices=1):
    """A process that works off tasks."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        # Programs that are compiled for a few updates need not be fast.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={logical_devices} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    # A pipe that is not read would fill up.
    printed = tempfile.TemporaryFile("w+")  # noqa: SIM115
    command = [sys.executable, "-c", PROGRAM, json.dumps(tasks), *cluster]
    process = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)
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


def start_cluster(cache, tasks_of_processes):
    """Processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    count = str(len(tasks_of_processes))
    return [
        start(cache, tasks, address, count, str(number))
        for number, tasks in enumerate(tasks_of_processes)
    ]


def said(output, word):
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
        said(output, "EVALUATED"), said(other, "EVALUATED"), ("valid", "test"), strict=False
    ):
        assert split == name
        assert ours == pytest.approx(theirs, rel=1e-3), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def data_dir(folder):
    write_doodles(folder / "data", categories=("fish", "tree"), train=22, valid=5, test=3)
    return folder / "data"


@pytest.fixture(scope="module")
def on_jax(folder, data_dir):
    """Runs on one JAX device; the process's output."""
    part = folder / "part"
    tasks = [
        training(data_dir, folder / "one", ONE),
        training(data_dir, folder / "whole", WHOLE),
        training(data_dir, part, WHOLE, interrupt_in=10, copy=folder / "part_10"),
        training(data_dir, part, WHOLE, interrupt_in=12, copy=folder / "part_12"),
        training(data_dir, part, WHOLE),
    ]
    return finish(start(folder / "cache", tasks))[0]


@pytest.fixture(scope="module")
def on_both(folder, data_dir):
    """Runs begun on TensorFlow, some of which go on on JAX; the outputs of both processes."""
    mixed = ONE + ",precision=mixed_bfloat16"
    one, one_mixed, moving = (folder / name for name in ("one_tf", "mixed_tf", "moving"))
    tasks = [
        training(data_dir, one, ONE, copy_begun=str(folder / "one_jax")),
        training(data_dir, one_mixed, mixed, copy_begun=str(folder / "mixed_jax")),
        training(data_dir, moving, WHOLE, interrupt_in=1, copy=folder / "staying"),
    ]
    by_tensorflow = finish(start(folder / "cache", tasks, backend="tensorflow"))[0]
    tasks = [
        training(data_dir, folder / "one_jax", ONE),
        training(data_dir, folder / "mixed_jax", mixed),
        training(data_dir, moving, WHOLE, interrupt_in=6, copy=folder / "moved"),
        {"sample": [str(data_dir), str(moving), str(folder / "drawn_jax")]},
    ]
    return by_tensorflow, finish(start(folder / "cache", tasks))[0]


def test_jax_compiles_few_times(on_jax):
    """All batches of training have one shape, whatever their sketches."""
    _, (updates, finished, counts), *_ = said(on_jax, "ENDED")
    assert updates == 13 and finished
    assert counts["compiled"] in (1, 2)


def test_roll_back_and_resumption_on_jax(folder, on_jax):
    """What is read and assigned between updates counts, though their buffers are given away:
    a roll-back takes effect, and a run that was stopped twice equals one that never was."""
    assert [updates for updates, *_ in said(on_jax, "ENDED")] == [1, 13, 10, 12, 13]
    latest, best = arrays_of(folder / "part_10"), arrays_of(folder / "part_10", "best.npz")
    assert_same_arrays({name: latest[name] for name in best}, best)
    assert (latest["adam/schedule_step"], latest["adam/iteration"]) == (5, 10)
    later = arrays_of(folder / "part_12")
    assert (later["adam/schedule_step"], later["adam/iteration"]) == (7, 12)
    assert np.abs(later["decoder/fc"] - latest["decoder/fc"]).max() > 0
    assert_same_run(folder / "part", folder / "whole")


def test_backends_compute_the_same(folder, on_both):
    """From the same weights: losses, gradients and evaluation of one update."""
    assert_same_first_update(folder / "one_jax", folder / "one_tf")
    assert_same_evaluation(*on_both)
    # bfloat16 keeps 8 bits, and the backends round other sums; compare test_mixed_precision_*.
    assert_same_first_update(folder / "mixed_jax", folder / "mixed_tf", loss=0.01, gradient=0.5)


def test_a_run_moves_to_the_other_backend(folder, data_dir, on_both):
    """JAX goes on where TensorFlow stopped and the reverse, the optimiser's state included, and
    both draw the same sketches from the same model."""
    moving, drawn = folder / "moving", [folder / "drawn_jax", folder / "drawn_tf"]
    assert [updates for updates, *_ in said(on_both[1], "ENDED")] == [1, 1, 6]
    moved, begun = arrays_of(folder / "moved"), arrays_of(folder / "staying")
    assert {k: v.shape for k, v in moved.items()} == {k: v.shape for k, v in begun.items()}
    assert (moved["adam/schedule_step"], moved["adam/iteration"]) == (6, 6)
    tasks = [
        {"sample": [str(data_dir), str(moving), str(drawn[1])]},
        training(data_dir, folder / "staying", WHOLE, interrupt_in=3),
        training(data_dir, moving, WHOLE),
    ]
    output = finish(start(folder / "cache", tasks, backend="tensorflow"))[0]
    assert [updates for updates, *_ in said(output, "ENDED")] == [3, 13]
    # The next update from one checkpoint, and the one after it, which Adam's state decides too.
    ours, theirs = losses_of(moving), losses_of(folder / "staying")
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-3)
    names = sorted(path.name for path in drawn[0].glob("*.npy"))
    assert len(names) >= 8 and names == sorted(path.name for path in drawn[1].glob("*.npy"))
    assert sum(np.load(drawn[0] / name).size for name in names if "stroke" in name) > 0
    for name in names:
        ours, theirs = (np.load(path / name) for path in drawn)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)


def test_two_devices_are_one(folder, data_dir, on_jax):
    """Batch statistics, clusters and clipped gradients are those of the whole batch; what can't
    be shared evenly is refused in one line."""
    odd = ONE.replace("batch_size=8", "batch_size=7")
    tasks = [
        training(data_dir, folder / "two", ONE),
        training(data_dir, folder / "refused", odd),
        training(data_dir, folder / "refused", ONE, settings={"num_devices": 3}),
        training(data_dir, folder / "first", odd, settings={"num_devices": 1}),
    ]
    output = finish(start(folder / "cache", tasks, logical_devices=2))[0]
    assert "cpu:0, cpu:1" in output
    assert_same_first_update(folder / "two", folder / "one")
    assert_same_evaluation(output, on_jax)
    uneven, too_many = said(output, "REFUSED")
    assert "batch_size=7 can't be shared evenly by 2 devices" in uneven
    assert "num_devices: 3 is not allowed; there are 2" in too_many
    assert "\n" not in uneven + too_many and not (folder / "refused").exists()
    assert len(said(output, "ENDED")) == 2


def test_two_processes_are_one(folder, data_dir, on_jax):
    """Each crops its half of every batch; they validate, roll back, stop and resume together,
    one of them writes, and a run that one was asked to stop equals one that none was."""
    run, unstopped = folder / "cluster", folder / "cluster_whole"
    tasks = [
        training(data_dir, folder / "cluster_one", ONE),
        training(data_dir, unstopped, WHOLE),
        training(data_dir, run, WHOLE),
        training(data_dir, run, WHOLE),
    ]
    asked = [dict(task) for task in tasks]
    asked[2]["interrupt_in"] = 11
    first, second = finish(*start_cluster(folder / "cache", [tasks, asked]))
    ends = said(first, "ENDED")
    # They agree at even updates.
    assert [updates for updates, *_ in ends] == [1, 13, 12, 13]
    assert [end[:2] for end in ends] == [end[:2] for end in said(second, "ENDED")]
    assert "Validation" in first and "Validation" not in second and "Categories" not in second
    assert_same_first_update(folder / "cluster_one", folder / "one")
    assert_same_evaluation(first, on_jax)
    assert_same_evaluation(second, on_jax)
    assert_same_run(run, unstopped)
    assert arrays_of(run)["adam/schedule_step"] == 8
    # Half of it, but for the clusters' first batches, which each draws, and batches made ahead.
    alone = said(on_jax, "ENDED")[1][2]["drawn"]
    for output in (first, second):
        assert said(output, "ENDED")[1][2]["drawn"] < 0.75 * alone


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others(folder, data_dir, lost):
    """None waits for ever, the error says what happened, and what was saved is whole."""
    run = folder / f"lost_{lost}"
    tasks = [[training(data_dir, run, WHOLE, settings={"save_minutes": 0})] for _ in range(2)]
    tasks[lost][0]["die_after"] = 3
    processes = start_cluster(folder / "cache", tasks)
    survivor = processes[1 - lost]
    try:
        processes[lost].wait(timeout=300)
        at = time.monotonic()
        survivor.wait(timeout=120)
        assert time.monotonic() - at < 100
    finally:
        for process in processes:
            process.kill()
    assert processes[lost].returncode == -signal.SIGKILL
    output = output_of(survivor)
    assert survivor.returncode and not said(output, "ENDED")
    # Ours, or JAX's own where it notices first that its service, in process 0, is gone.
    ours, theirs = "another process of this run is lost", "distributed service detected fatal"
    assert ours in output or (lost == 0 and theirs in output)
    assert arrays_of(run)["adam/iteration"] in (2, 3)


def test_tensorflow_takes_one_device():
    """More is refused in one line that names the backend to use."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("about TensorFlow")
    assert devices.select_devices(1, 8) == devices.select_devices(0, 8) == devices.DeviceGroup()
    with pytest.raises(UserError, match="num_devices: 2 devices need .*KERAS_BACKEND=jax"):
        devices.select_devices(2, 8)
    with pytest.raises(UserError, match="several processes need .*KERAS_BACKEND=jax"):
        devices.initialize_distributed("localhost:1", 2, 0)


# Mixed precision.


@pytest.fixture(scope="module")
def data(data_dir):
    return dataset.load_dataset(data_dir, parse_hparams(OPTIONS))


@pytest.mark.parametrize("dec_model", ["lstm", "layer_norm", "hyper"])
def test_mixed_precision_is_nearly_float32(data, dec_model, monkeypatch):
    """Losses and gradients are those of float32 within bfloat16's rounding, and not float32's.

    The similar patches are float32's in both: where two are as similar but for rounding, another
    choice alone, all else in float32, may move the loss by twice the bound. Weights and batch are
    such that gradients are well conditioned: with others, batch normalisation over a few tiny
    pictures turns float32's own gradients as far, if the embeddings move by bfloat16's rounding.
    """
    options = OPTIONS.replace("batch_size=8", "batch_size=32,seed=1")
    found = []
    for precision in ("float32", "mixed_bfloat16"):
        hparams = parse_hparams(f"{options},dec_model={dec_model},precision={precision}")
        model = SPGra2Seq(hparams)
        batch = next(training_batches(data.splits["train"], hparams, 60, workers=1))
        model.start_clusters(batch)
        start = np.asarray(model.clusters.centroids) + 0
        if precision == "float32":
            patches = model.encoder.embed(batch["patches"])[:, 1:]
            winners = graphs.synonymous_winners(patches)

        def total(model=model, batch=batch):
            losses = model(batch, training=True)
            return losses["reconstruction"] + network.CLUSTERING_WEIGHT * losses["clustering"]

        with monkeypatch.context() as patch:
            patch.setattr(graphs, "synonymous_winners", lambda *_, fixed=winners: fixed)
            losses = {k: float(v) for k, v in model(batch, training=True).items()}
            model.clusters.centroids.assign(start)
            found.append((losses, gradients(total, model.trainable_variables), model))
    (exact, exact_gradients, _), (mixed, mixed_gradients, model) = found
    # A product is off by 2^-9 at most, and errors of both signs average out in a sum. Gradients
    # of the encoder pass many products.
    assert mixed["reconstruction"] == pytest.approx(exact["reconstruction"], rel=4e-3)
    assert mixed["reconstruction"] != exact["reconstruction"]
    for variable, ours, theirs in zip(
        model.trainable_variables, mixed_gradients, exact_gradients, strict=True
    ):
        ours, theirs = np.asarray(ours, np.float64).ravel(), np.asarray(theirs).ravel()
        if np.abs(theirs).max() > 1e-6:
            cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
            assert cosine > 0.8, variable.path


@pytest.mark.parametrize("dec_model", ["lstm", "layer_norm", "hyper"])
def test_mixed_precision_keeps_float32_where_it_counts(dec_model):
    """Weights, moments, embeddings, codes, memories and outputs have float32's digits."""
    hparams = parse_hparams(f"{OPTIONS},dec_model={dec_model},precision=mixed_bfloat16")
    model = SPGra2Seq(hparams)
    optimizer = Adam(hparams)
    optimizer.build(model.trainable_variables)
    assert {v.dtype for v in model.weights} == {"float32"}
    assert {v.dtype for v in optimizer.variables} <= {"float32", "int32", "int64"}
    assert (
        model.encoder.patch_encoder.compute_dtype == model.decoder.cell.compute_dtype == "bfloat16"
    )
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (2, 6, 16, 16)).astype(np.uint8)
    found = model.encode_nodes({"patches": patches, "graph_masks": np.ones((2, 5, 5), np.float32)})
    mu, log_var, embeddings = found.mu, found.log_var, found.embeddings
    z = rng.standard_normal((2, 8)).astype(np.float32)
    rows = np.tile(np.array([[[0.3, -0.2, 1, 0, 0]]], np.float32), (4, 2, 1))
    outputs = model.decoder(z, rows)
    cell = model.decoder.cell
    projected = cell.project(rows, cell.project_code(z))
    _, state = unroll.unroll(cell, projected, model.decoder.initial_state(z))
    precise = [mu, log_var, outputs, *state]
    assert {keras.backend.standardize_dtype(x.dtype) for x in [embeddings, *precise]} == {"float32"}
    for x in precise:
        assert (np.asarray(x).view(np.uint32) & 0xFFFF).any()  # not rounded on the way
