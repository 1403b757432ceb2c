"""Work done ahead of its use, by threads or by processes.

OpenCV and large NumPy copies release the interpreter's lock, but handing it to and fro costs about
what a second thread gains where each such piece is short, as in cropping. Processes have a lock
each. One gets the function to call, with all data that it holds, in memory that all of them share,
and leaves its results in memory that it shares with the caller: what is large is never sent.
"""

import signal

if __name__ == "__main__":
    # A service that is stopped may signal all of its processes; the caller decides when to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

import contextlib
import mmap
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import numpy as np

from hparams import UserError

MOST_WORKERS = 16
SLOTS = 3  # results of a process that may be in use at the same time without being copied
LARGE = 2**14  # bytes from which on an array is shared and not sent
ALIGNMENT = 64
PATIENCE = 10  # seconds that a process gets to end


def prefetch(
    prepare: Callable[[Any], Any],
    plans: Iterable[Any],
    workers: int | None = None,
    *,
    processes: bool = False,
) -> Iterator[Any]:
    """Results of `prepare` over `plans`, in order, computed ahead.

    Args:
        prepare: makes a result from a plan; for processes it must be possible to pickle it.
        plans: what to make, which may go on for ever.
        workers: how many results to work on at a time; None: half as many as there are cores.
        processes: whether several workers are processes; otherwise, or alone, they are threads.

    Raises:
        UserError: a process was ended from outside.
    """
    workers = workers or max(1, min((os.cpu_count() or 1) // 2, MOST_WORKERS))
    with ExitStack() as stack:
        if processes and workers > 1:
            prepare = stack.enter_context(_Processes(prepare, workers))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        waiting = deque()
        try:
            for plan in plans:
                waiting.append(pool.submit(prepare, plan))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_idle: list[memoryview] = []
_offered: list["_Memory"] = []  # in a process, where its next result will go


def used_memory(size: int) -> np.ndarray:
    """Memory that was used before, uint8 (size,), full of anything.

    It comes again once no array refers to it. In a process that works for another, the first that
    a call asks for is where its result goes, so that it need not be copied there.
    """
    if _offered:
        return np.frombuffer(_offered.pop().at_least(size), np.uint8, size)
    try:
        memory = _idle.pop()
    except IndexError:
        memory = memoryview(b"")
    if memory.nbytes < size:
        memory = memoryview(np.empty(size, np.uint8))
    # All views of this array, and views of them, keep it alive, for it is no view of an array.
    owner = np.frombuffer(memory, np.uint8, size)
    weakref.finalize(owner, _idle.append, memory).atexit = False
    return owner


class Feed:
    """An iterator that another thread may be reading when it is closed, and that keeps its error.

    TensorFlow reads what `fit` is given in a thread of its own, never lets go of it, and wraps
    what it raises.

    Args:
        source: a generator.

    Attributes:
        error: what the source raised, or None.
    """

    def __init__(self, source: Iterator[Any]):
        self.source, self.error = source, None
        self.closed, self.lock = False, threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self.lock:
            if self.closed:
                raise StopIteration
            try:
                return next(self.source)
            except UserError as error:
                self.error = error
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Closes the source; raises what it raised in place of what became of that."""
        with self.lock:
            self.closed = True
            self.source.close()
        if isinstance(error, Exception) and self.error is not None:
            raise self.error from None


class _Packed(NamedTuple):
    """A pickled object, and where in a memory each of its large arrays is: first and last + 1."""

    pickled: bytes
    spans: list[tuple[int, int]]

    def load(self, memory: memoryview) -> Any:
        buffers = [memory[first:last] for first, last in self.spans]
        return pickle.loads(self.pickled, buffers=buffers)


class _Memory:
    """Memory that processes share, without a name and gone with the last of them.

    Args:
        descriptor: of the file behind it; None makes one.
    """

    def __init__(self, descriptor: int | None = None):
        self.descriptor = _nameless_file() if descriptor is None else descriptor
        self.map = None

    def at_least(self, size: int) -> mmap.mmap:
        """A map of it that has so many bytes; it never shrinks."""
        if self.map is None or len(self.map) < size:
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, size)
            self.map = mmap.mmap(self.descriptor, 0)
        return self.map

    def pack(self, thing: Any) -> _Packed:
        """Pickles a thing, its large arrays into this memory, unless they are there already."""
        large: list[memoryview] = []

        def is_small(buffer):
            raw = buffer.raw()
            if raw.nbytes >= LARGE:
                large.append(raw)
            return raw.nbytes < LARGE

        pickled = pickle.dumps(thing, protocol=5, buffer_callback=is_small)
        firsts = [self._place(raw) for raw in large]
        end = max(
            (f + raw.nbytes for f, raw in zip(firsts, large, strict=True) if f is not None),
            default=0,
        )
        spans, copies = [], []
        for first, raw in zip(firsts, large, strict=True):
            if first is None:
                first = -(-end // ALIGNMENT) * ALIGNMENT
                end = first + raw.nbytes
                copies.append((first, raw))
            spans.append((first, first + raw.nbytes))
        if copies:
            memory = memoryview(self.at_least(end))
            for first, raw in copies:
                memory[first : first + raw.nbytes] = raw
        return _Packed(pickled, spans)

    def _place(self, raw: memoryview) -> int | None:
        """Where in this memory an array begins that is in it."""
        if self.map is None:
            return None
        start = np.frombuffer(self.map, np.uint8).ctypes.data
        first = np.frombuffer(raw, np.uint8).ctypes.data - start
        return first if 0 <= first < len(self.map) else None

    def size(self, packed: _Packed) -> int:
        """How many bytes of it a packed thing takes."""
        return max((last for _, last in packed.spans), default=0)


class _Processes:
    """Calls a function in other processes, as many at a time as there are.

    Args:
        function: can be pickled.
        count: how many processes.
    """

    def __init__(self, function: Callable[[Any], Any], count: int):
        self.function, self.count = function, count
        self.idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()

    def __enter__(self) -> Callable[[Any], Any]:
        memory = _Memory()
        packed = memory.pack(self.function)
        self.all = [_Process(memory, packed) for _ in range(self.count)]
        os.close(memory.descriptor)
        for process in self.all:
            self.idle.put(process)
        return self.call

    def __exit__(self, *_):
        for process in self.all:
            process.dismiss()
        for process in self.all:
            process.end()

    def call(self, plan: Any) -> Any:
        """What the function makes of a plan."""
        process = self.idle.get()
        try:
            return process.call(plan)
        finally:
            self.idle.put(process)


class _Process:
    """Another Python that runs this module, and the memory that its results come in.

    Args:
        memory: holds the large arrays of the function.
        function: packed into it.
    """

    def __init__(self, memory: _Memory, function: _Packed):
        self.slots = [_Memory() for _ in range(SLOTS)]
        self.free = list(range(SLOTS))  # the last used first: it may do with fewer
        shared = [memory.descriptor, *(slot.descriptor for slot in self.slots)]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *map(str, shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=shared,
            start_new_session=True,  # Ctrl-C is the caller's to handle
        )
        self._send(function)

    def call(self, plan: Any) -> Any:
        """What the function makes of a plan; its large arrays stay where they are."""
        slot = self.free.pop() if self.free else None
        self._send((plan, slot))
        try:
            packed, error = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):  # it ended before its answer did
            raise self._lost() from None
        if error is not None:
            raise error
        if not packed.spans:
            if slot is not None:
                self.free.append(slot)
            return packed.load(memoryview(b""))
        memory = self.slots[slot]
        # Every array in it keeps this one alive, which at its end makes room for another result.
        owner = np.frombuffer(memory.at_least(memory.size(packed)), np.uint8)
        weakref.finalize(owner, self.free.append, slot).atexit = False
        return packed.load(memoryview(owner))

    def dismiss(self) -> None:
        """Lets it end when it has done what it is at."""
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.close()

    def end(self) -> None:
        """Waits for its end; results that are in use keep their memory."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        for slot in self.slots:
            os.close(slot.descriptor)

    def _send(self, thing: Any) -> None:
        try:
            pickle.dump(thing, self.process.stdin, protocol=5)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _lost(self) -> UserError:
        status = self.process.wait()
        return UserError(
            f"a process that prepares batches was ended (status {status}), perhaps for lack of "
            "memory; try fewer --workers"
        )


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("results")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _serve(descriptors: list[int]) -> None:
    """The life of a process: gets a function, then plans, until its caller goes away."""
    received, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not come between the results
    memory, *slots = map(_Memory, descriptors)
    packed, function = pickle.load(received), None
    nowhere = _Packed(b"", [])
    while True:
        try:
            plan, slot = pickle.load(received)
        except EOFError:
            return
        try:
            if function is None:
                shared = memoryview(memory.at_least(1)) if packed.spans else memoryview(b"")
                function = packed.load(shared)
            _offered[:] = [] if slot is None else [slots[slot]]
            result = function(plan)
            answer = _sent(result) if slot is None else slots[slot].pack(result)
            pickle.dump((answer, None), results, protocol=5)
        except Exception as error:
            pickle.dump((nowhere, error), results, protocol=5)
        results.flush()


def _sent(thing: Any) -> _Packed:
    return _Packed(pickle.dumps(thing, protocol=5), [])


if __name__ == "__main__":
    # Under its own name, by which what is received refers to it.
    import workers

    workers._serve([int(argument) for argument in sys.argv[1:]])
