"""A tiny model and its data, for the tests of the commands."""

import numpy as np
import pytest

import checkpoints
from checkpoints import RunState
from doodles import write_doodles
from hparams import HParams, write_config
from model import SPGra2Seq

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
    """Eight test sketches a category, of which the third fish is no sketch."""
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
