"""A tiny model and its data, for the tests of the commands; a place for runs on any backend."""

import os
import signal

import numpy as np
import pytest

import checkpoints
from checkpoints import RunState
from doodles import write_doodles
from hparams import HParams, write_config
from model import SPGra2Seq

# A shell that starts the tests in the background has them ignore Ctrl-C, and the processes that
# they start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HPARAMS = HParams(
    categories=("fish", "tree"),
    batch_size=4,
    dec_rnn_size=12,
    z_size=5,
    num_mixture=3,
    graph_number=8,
    graph_picture_size=128,
    max_seq_len=70,
)

# Files that take half a minute of a CPU or more, the longest first.
LONG = ("cluster", "train", "backends", "methods", "rec_classifier", "benchmarks", "recognition")


def pytest_collection_modifyitems(config, items):
    """Workers that share the files begin with the long ones, so that they end together.

    Without `--no-loadscope-reorder`, pytest-xdist hands out the files with the most tests first,
    and leaves the few long runs of some files, one after the other, to a single worker.
    """
    if hasattr(config, "workerinput"):
        places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
        items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture
def dirty_memory(monkeypatch):
    """Memory that NumPy need not clear comes filled, so that an entry never written shows."""
    empty = np.empty

    def filled(*args, **kwargs):
        array = empty(*args, **kwargs)
        if array.dtype != object:
            array.fill(77)
        return array

    monkeypatch.setattr(np, "empty", filled)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Eight test sketches a category, of which the third fish is not a sketch."""
    folder = tmp_path_factory.mktemp("data")
    for path in write_doodles(folder, categories=("fish", "tree"), train=6, valid=2, test=8):
        arrays = dict(np.load(path, allow_pickle=True))
        if path.stem == "fish":
            arrays["test"][2] = arrays["test"][2][:1]
        np.savez(path, **arrays)
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """An untrained model: what is drawn doesn't matter here."""
    folder = tmp_path_factory.mktemp("model")
    write_config(folder / "model_config.json", HPARAMS, 30.0)
    checkpoints.save_best(folder, SPGra2Seq(HPARAMS), RunState())
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory for runs, in which `data` holds sketches for 5 updates an epoch."""
    folder = tmp_path_factory.mktemp("runs")
    write_doodles(folder / "data", categories=("fish", "tree"), train=22, valid=5, test=3)
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A directory for programs that JAX compiles, the same for all workers of this test run."""
    root = tmp_path_factory.getbasetemp()
    return (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "compiled"
