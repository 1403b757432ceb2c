"""Model directories: written whole or not at all, read whole or refused."""

import errno
import os

import numpy as np
import pytest

import checkpoints
from checkpoints import RunState
from hparams import HParams, write_config
from model import Adam, SPGra2Seq
from support.files import UserError

SMALL = HParams(batch_size=2, dec_rnn_size=6, z_size=4, num_mixture=3, graph_number=4)


@pytest.fixture
def trained():
    """A model and an optimiser whose variables all differ from their initial values."""
    model = SPGra2Seq(SMALL)
    optimizer = Adam(SMALL)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for variable in [*model.weights, *optimizer.variables]:
        variable.assign((5 * rng.random(variable.shape)).astype(variable.dtype))
    return model, optimizer


def values(variables):
    return {v.path: np.asarray(v) + 0 for v in variables}


def assert_values(variables, expected):
    for variable in variables:
        np.testing.assert_array_equal(variable, expected[variable.path], err_msg=variable.path)


def test_the_whole_state_comes_back(tmp_path, trained):
    """latest.npz restores weights, moments, counters and the run's state in a fresh model."""
    model, optimizer = trained
    state = RunState(
        total_steps=9, total_epochs=3, batch=2, global_step=7, epoch=2, best_loss=1.5, failures=1
    )
    checkpoints.save_latest(tmp_path, model, optimizer, state)
    fresh, fresh_optimizer = SPGra2Seq(SMALL), Adam(SMALL)
    fresh_optimizer.build(fresh.trainable_variables)
    assert checkpoints.restore_latest(tmp_path, fresh, fresh_optimizer) == state
    assert_values(
        [*fresh.weights, *fresh_optimizer.variables], values([*model.weights, *optimizer.variables])
    )


def test_older_files_can_be_read(tmp_path, trained):
    """The names of a run's counters in a file stay what they were in the first version."""
    state = RunState(total_steps=9, total_epochs=3, global_step=7, epoch=2, batch=1)
    checkpoints.save_latest(tmp_path, *trained, state)
    _, held = checkpoints.read_arrays(tmp_path / "latest.npz")
    assert held == {
        "updates": 9,
        "passes": 3,
        "batch": 1,
        "step": 7,
        "epoch": 2,
        "best_loss": float("inf"),
        "failures": 0,
        "finished": "",
        "data": "",
    }
    path = tmp_path / "latest.npz"
    assert RunState.from_file(held, path) == state
    for wrong in ({}, {**held, "more": 1}, {**held, "total_steps": held.pop("updates")}, [1]):
        with pytest.raises(UserError, match="latest.npz: holds no training state"):
            RunState.from_file(wrong, path)


def test_a_model_comes_back(tmp_path, trained):
    """load_model gives the best weights with the directory's options."""
    model, _ = trained
    write_config(tmp_path / "model_config.json", SMALL, 3.0)
    checkpoints.save_best(tmp_path, model, RunState())
    loaded = checkpoints.load_model(tmp_path)
    assert loaded.hparams == SMALL
    assert_values(loaded.weights, values(model.weights))


def test_roll_back_leaves_the_optimiser(tmp_path, trained):
    """Weights, epoch and step go back; moments, iterations and other counters stay."""
    model, optimizer = trained
    before = values(model.weights)
    checkpoints.save_best(tmp_path, model, RunState(global_step=4, epoch=2, total_steps=4))
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape))
    moments = values(optimizer.variables)
    state = RunState(global_step=8, epoch=3, total_steps=8, total_epochs=3, failures=1)
    checkpoints.roll_back(tmp_path, model, optimizer, state)
    assert_values(model.weights, before)
    assert int(optimizer.schedule_step) == 4
    moments["adam/schedule_step"] = 4
    assert_values(optimizer.variables, moments)
    assert state == RunState(global_step=4, epoch=2, total_steps=8, total_epochs=3, failures=1)


def cut(at):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(at * len(content))])

    return damage


def flip(at):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(at * len(content))] ^= 0x10
        path.write_bytes(content)

    return damage


def edit(change):
    def damage(path):
        arrays = dict(np.load(path))
        change(arrays)
        np.savez(path, **arrays)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(0), "damaged"),
        (cut(0.01), "damaged"),
        (cut(0.5), "damaged"),
        (cut(0.999), "damaged"),
        (flip(0.3), "damaged"),
        (flip(0.7), "damaged"),
        (lambda path: path.write_text("no archive"), "damaged"),
        (lambda path: path.unlink(), "not found"),
        (edit(lambda a: a.pop("meta")), "damaged"),
        (edit(lambda a: a.pop("cell/W_hh")), "has no value for the variable cell/W_hh"),
        (edit(lambda a: a.update(more=np.zeros(2))), "more does not belong"),
        (edit(lambda a: a.update({"cell/bias": np.zeros(3)})), r"cell/bias has the shape \(3,\)"),
    ],
)
def test_damage_is_one_line_and_nothing_changes(tmp_path, trained, damage, message):
    """A damaged or foreign file is named, and not one variable is assigned."""
    model, optimizer = trained
    checkpoints.save_latest(tmp_path, model, optimizer, RunState())
    damage(tmp_path / "latest.npz")
    fresh, fresh_optimizer = SPGra2Seq(SMALL), Adam(SMALL)
    fresh_optimizer.build(fresh.trainable_variables)
    variables = [*fresh.weights, *fresh_optimizer.variables]
    before = values(variables)
    with pytest.raises(UserError, match=message) as error:
        checkpoints.restore_latest(tmp_path, fresh, fresh_optimizer)
    assert "latest.npz" in str(error.value) and "\n" not in str(error.value)
    assert_values(variables, before)


@pytest.mark.parametrize("at", ["savez", "fsync"])
def test_a_full_disk_leaves_the_earlier_file(tmp_path, trained, monkeypatch, at):
    """What can't be written is one line; the earlier checkpoint stays, and no rest beside it."""
    model, optimizer = trained
    checkpoints.save_latest(tmp_path, model, optimizer, RunState(total_steps=1))
    before = (tmp_path / "latest.npz").read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((np, "savez") if at == "savez" else (os, "fsync")), full)
    with pytest.raises(UserError, match="can't be written .No space left on device"):
        checkpoints.save_latest(tmp_path, model, optimizer, RunState(total_steps=2))
    assert (tmp_path / "latest.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["latest.npz"]


def test_a_directory_without_a_model(tmp_path):
    """load_model says which file is missing."""
    with pytest.raises(UserError, match="model_config.json"):
        checkpoints.load_model(tmp_path)
    write_config(tmp_path / "model_config.json", SMALL)
    with pytest.raises(UserError, match="best.npz: not found"):
        checkpoints.load_model(tmp_path)
