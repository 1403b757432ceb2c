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
from support.workers import prefetch, reusable_buffer

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


# Memory that is used again.


def place(array):
    return array.__array_interface__["data"][0]


@pytest.fixture
def no_idle_memory(monkeypatch):
    """Buffers as in a process that has used none yet."""
    monkeypatch.setattr(workers, "_idle", [])


def test_notes_stay_with_the_memory(no_idle_memory):
    """A buffer that is given out again has its content and its notes; one that is new, or must
    grow, has none."""
    buffer, notes = reusable_buffer(1000)
    assert buffer.shape == (1000,) and buffer.dtype == np.uint8 and notes == {}
    where, notes["left"] = place(buffer), 7
    buffer[:] = 7
    other, other_notes = reusable_buffer(1000)  # while the first is in use
    assert not np.shares_memory(buffer, other) and other_notes == {}
    del buffer
    again, notes = reusable_buffer(600)
    assert place(again) == where and notes == {"left": 7} and (again == 7).all()
    del again
    larger, notes = reusable_buffer(1001)
    assert larger.shape == (1001,) and notes == {}
    del larger, other, other_notes


def test_a_view_keeps_the_memory(no_idle_memory):
    """Memory comes again only when the last view of it, or view of a view, is gone."""
    buffer, _ = reusable_buffer(1000)
    where, view = place(buffer), buffer[100:200].reshape(10, 10)[2:].T
    del buffer
    assert place(reusable_buffer(1000)[0]) != where
    del view
    assert where in {place(array) for array in [reusable_buffer(1000)[0] for _ in range(3)]}


def test_threads_get_memory_of_their_own(no_idle_memory):
    """No two threads ever have the same buffer, nor another buffer's notes."""

    def use(number):
        for turn in range(200):
            buffer, notes = reusable_buffer(2000 + 100 * (turn % 3))
            if notes:
                assert (buffer[: notes["size"]] == notes["value"]).all()
            buffer[:] = number
            notes.update(size=len(buffer), value=number)
            time.sleep(0)
            assert (buffer == number).all() and notes["value"] == number
        return number

    assert list(prefetch(use, range(16), 8)) == list(range(16))
    assert len(workers._idle) <= 8 + 1  # as many as were in use at the same time


def test_a_process_has_notes_in_each_place_of_its_results():
    """Results are written where the caller reads them; notes come with what they were written
    about, and no place is given out while the caller has the result that is in it."""
    made = prefetch(_numbered_buffer(), range(40), 2, processes=True)
    seen, kept = [], []
    for i, (buffer, earlier, content) in enumerate(made):
        assert (buffer == i).all()
        if earlier is not None:  # what the memory held is what its notes say
            assert content == earlier < i
            seen.append(earlier)
        if i % 9 == 0:
            kept.append((i, buffer))
        del buffer
    assert len(seen) >= 40 - 2 * workers.SLOTS - len(kept)
    for i, buffer in kept:
        assert (buffer == i).all()


def _numbered_buffer():
    """A function that other processes can be sent: it fills a buffer with the number it gets.

    Its result is the buffer, the number that the notes say was there, and the one that was.
    """
    return _Script(
        "from support.workers import reusable_buffer\n"
        "buffer, notes = reusable_buffer(50_000)\n"
        "earlier, content = notes.get('number'), int(buffer[-1])\n"
        "buffer[:] = notes['number'] = item\n"
        "result = buffer, earlier, content\n"
    )


class _Script:
    """Pickles as a function of `item` that runs a script and gives its `result`."""

    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        code = f"lambda item: (scope := {{'item': item}}, exec({self.text!r}, scope))[0]['result']"
        return eval, (code,)


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
