"""Runs on JAX: on one device, shared by two devices, shared by two processes."""

import signal
import time

import numpy as np
import pytest
from backend_runs import (
    ONE,
    WHOLE,
    arrays_of,
    assert_same_arrays,
    assert_same_evaluation,
    assert_same_first_update,
    assert_same_run,
    finish,
    output_of,
    printed,
    start,
    start_cluster,
    training,
)

pytestmark = pytest.mark.slow
LOOK_AT_FIRST = {"evaluate_first": True, "settings": {"save_minutes": 0}}


@pytest.fixture(scope="module")
def on_jax(runs, compiled):
    """Runs on one JAX device; the process's output."""
    tasks = [
        training(runs, "whole", WHOLE, **LOOK_AT_FIRST, copies={1: "one"}),
        training(runs, "part", WHOLE, interrupt_in=10, copies={"end": "part_10"}),
        training(runs, "part", WHOLE, interrupt_in=12, copies={"end": "part_12"}),
        training(runs, "part", WHOLE),
    ]
    return finish(start(compiled, tasks))[0]


def test_jax_compiles_few_times(on_jax):
    """All batches of training have one shape, whatever their sketches."""
    (updates, finished, counts), *_ = printed(on_jax, "ENDED")
    assert updates == 13 and finished
    assert counts["compiled"] in (1, 2)


def test_roll_back_and_resumption_on_jax(runs, on_jax):
    """What is read and assigned between updates counts, though their buffers are given away:
    a roll-back takes effect, and a run that was stopped twice equals one that never was."""
    assert [updates for updates, *_ in printed(on_jax, "ENDED")] == [13, 10, 12, 13]
    latest, best = arrays_of(runs / "part_10"), arrays_of(runs / "part_10", "best.npz")
    assert_same_arrays({name: latest[name] for name in best}, best)
    assert (latest["adam/schedule_step"], latest["adam/iteration"]) == (5, 10)
    later = arrays_of(runs / "part_12")
    assert (later["adam/schedule_step"], later["adam/iteration"]) == (7, 12)
    assert np.abs(later["decoder/fc"] - latest["decoder/fc"]).max() > 0
    assert_same_run(runs / "part", runs / "whole")


def test_two_devices_are_one(runs, compiled, on_jax):
    """Batch statistics, clusters and clipped gradients are those of the whole batch; what can't
    be shared evenly is refused in one line."""
    odd = ONE.replace("batch_size=8", "batch_size=7")
    tasks = [
        training(runs, "two", ONE),
        training(runs, "refused", odd),
        training(runs, "refused", ONE, settings={"num_devices": 3}),
        {"select": [1, 7]},
        training(runs, "first", ONE, settings={"num_devices": 1}),
    ]
    output = finish(start(compiled, tasks, logical_devices=2))[0]
    assert "cpu:0, cpu:1" in output
    assert printed(output, "SELECTED") == [["cpu:0"]]
    for name in ("two", "first"):
        assert_same_first_update(runs / name, runs / "one")
    assert_same_evaluation(output, on_jax)
    uneven, too_many = printed(output, "REFUSED")
    assert "batch_size=7 can't be shared evenly by 2 devices" in uneven
    assert "num_devices: 3 is not allowed; there are 2" in too_many
    assert "\n" not in uneven + too_many and not (runs / "refused").exists()
    assert len(printed(output, "ENDED")) == 2


def test_two_processes_are_one(runs, compiled, on_jax):
    """Each crops its half of every batch; they validate, roll back, stop and resume together,
    one of them writes, and a run that one was asked to stop equals one that none was."""
    tasks = [
        training(runs, "unstopped", WHOLE, **LOOK_AT_FIRST, copies={1: "cluster_one"}),
        training(runs, "stopped", WHOLE),
        training(runs, "stopped", WHOLE),
    ]
    asked = [dict(task) for task in tasks]
    asked[1]["interrupt_in"] = 11
    first, second = finish(*start_cluster(compiled, [tasks, asked]))
    ends = printed(first, "ENDED")
    # They agree at even updates.
    assert [updates for updates, *_ in ends] == [13, 12, 13]
    assert [end[:2] for end in ends] == [end[:2] for end in printed(second, "ENDED")]
    assert "Validation" in first and "Validation" not in second and "Categories" not in second
    assert_same_first_update(runs / "cluster_one", runs / "one")
    assert_same_evaluation(first, on_jax)
    assert_same_evaluation(second, on_jax)
    assert_same_run(runs / "stopped", runs / "unstopped")
    assert arrays_of(runs / "stopped")["adam/schedule_step"] == 8
    # Half of it, except for the clusters' first batches, which each draws, and batches made ahead.
    alone = printed(on_jax, "ENDED")[0][2]["drawn"]
    for output in (first, second):
        assert printed(output, "ENDED")[0][2]["drawn"] < 0.75 * alone


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others(runs, compiled, lost):
    """None waits for ever, the error says what happened, and what was saved is whole."""
    run = f"lost_{lost}"
    tasks = [[training(runs, run, WHOLE, settings={"save_minutes": 0})] for _ in range(2)]
    tasks[lost][0]["die_after"] = 3
    processes = start_cluster(compiled, tasks)
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
    assert survivor.returncode and not printed(output, "ENDED")
    # Ours, or JAX's own where it notices first that its service, in process 0, is gone.
    ours, theirs = "another process of this run is lost", "distributed service detected fatal"
    assert ours in output or (lost == 0 and theirs in output)
    assert arrays_of(runs / run)["adam/iteration"] in (2, 3)
