"""Work ahead of its use: the same results in the same order, whoever does it."""

import functools
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import batches
import dataset
from doodles import write_doodles
from hparams import HParams
from support import workers
from support.files import UserError
from support.workers import prefetch

ROOT = Path(__file__).parents[1]


def children() -> list[int]:
    """Processes that this one started and that have not ended."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("no /proc here to look for processes")
    return [int(p) for t in tasks.iterdir() for p in (t / "children").read_text().split()]


@pytest.mark.parametrize(("count", "processes"), [(1, False), (3, False), (1, True), (3, True)])
def test_results_come_in_order_and_stay(count, processes):
    """However many results are kept, however large: none is overwritten by a later one."""
    sizes = [200_000, 3, 0, 50_000, 400_000, 7, *range(30_000, 60_000, 2_000)]
    kept = list(prefetch(np.arange, sizes, count, processes=processes))
    assert len(kept) > workers.SLOTS * count
    for size, result in zip(sizes, kept, strict=True):
        np.testing.assert_array_equal(result, np.arange(size))
        result[:] = 0  # they are the caller's own


def test_memory_is_used_again():
    """A result that nothing refers to any more makes room: no new memory for each."""
    made = prefetch(np.arange, iter(lambda: 100_000, None), 2, processes=True)
    addresses = {next(made).ctypes.data for _ in range(40)}
    made.close()
    assert len(addresses) <= 2 * workers.SLOTS


@pytest.mark.slow
def test_what_a_function_holds_is_shared(tmp_path):
    """Batches of processes are those of a thread, to the last bit, training and evaluation."""
    write_doodles(tmp_path, categories=("fish",), train=40, valid=9, test=1)
    hparams = HParams(categories=("fish",), batch_size=4, num_mixture=4, graph_picture_size=64)
    data = dataset.load_dataset(tmp_path, hparams)

    def made(count):
        splits = data.splits
        training = batches.training_batches(
            splits["train"], hparams, data.max_seq_len, workers=count
        )
        yield from (next(training) for _ in range(12))
        training.close()
        yield from batches.evaluation_batches(
            splits["valid"], hparams, stream="valid", workers=count
        )

    alone, together = list(made(1)), list(made(2))
    assert len(alone) == len(together) == 15
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_nothing_is_left():
    """Processes and open files are gone when the results are, or when no more are wanted."""
    before, files = children(), len(os.listdir("/proc/self/fd"))
    assert len(list(prefetch(np.arange, range(5), 2, processes=True))) == 5
    endless = prefetch(np.arange, iter(lambda: 99_999, None), 2, processes=True)
    next(endless)
    assert len(children()) == len(before) + 2
    endless.close()
    assert children() == before and len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("processes", [False, True])
def test_an_error_is_the_callers(processes):
    """What a function raises is raised where its result is asked for; those before it come."""
    made = prefetch(functools.partial(operator.floordiv, 6), [3, 0], 2, processes=processes)
    assert next(made) == 2
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_a_process_that_is_killed():
    """One line says so; nothing waits for ever."""
    with pytest.raises(UserError, match="was ended .status -9.") as error:
        list(prefetch(signal.raise_signal, [signal.SIGKILL], 2, processes=True))
    assert "\n" not in str(error.value)


def test_a_process_that_is_killed_while_idle():
    """Whoever asks next is told so in one line, and the other process ends too."""
    before = children()
    made = prefetch(np.arange, iter(lambda: 99_999, None), 2, processes=True)
    next(made)
    lost = next(p for p in children() if p not in before)
    os.kill(lost, signal.SIGKILL)
    with pytest.raises(UserError, match="was ended"):
        for _ in range(10):
            next(made)
    made.close()
    assert children() == before


def test_a_function_that_can_not_be_received():
    """Its error is told, not taken for the end of a process."""
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        list(prefetch(_local, [1, 2], 2, processes=True))


def _local(plan):
    """Of a module that other processes do not find."""
    return plan


@pytest.mark.slow
def test_processes_say_nothing_when_their_caller_is_killed():
    """A killed training leaves the terminal as it was, also where a batch was being made."""
    script = (
        "import sys, time\n"
        "from support import workers\n"
        "made = workers.prefetch(time.sleep, iter(lambda: 0.5, None), 2, processes=True)\n"
        "next(made); print('ready', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, text=True, **pipes)
    assert caller.stdout.readline() == "ready\n"
    caller.kill()
    # To its end, which is there when the last process has gone.
    assert caller.communicate(timeout=60)[1] == ""


@pytest.mark.slow
def test_processes_end_with_their_caller():
    """Processes end with a caller that is killed, and Ctrl-C is for it alone."""
    script = (
        "import signal, sys, numpy as np\n"
        "from support import workers\n"
        "made = workers.prefetch(np.arange, iter(lambda: 50_000, None), 2, processes=True)\n"
        "next(made); print('ready', flush=True); sys.stdin.read()"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert caller.stdout.readline() == "ready\n"
    path = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
    if not path.exists():
        caller.kill()
        pytest.skip("no /proc here to look for processes")
    started = [
        int(p) for t in path.parents[1].iterdir() for p in (t / "children").read_text().split()
    ]
    assert len(started) == 2
    assert os.getpgid(caller.pid) not in map(os.getpgid, started)  # whom Ctrl-C would reach
    caller.kill()
    caller.wait()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{process}").exists() for process in started):
        assert time.monotonic() < until
        time.sleep(0.05)
