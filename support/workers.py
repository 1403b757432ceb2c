"""Work done ahead of its use, by threads or by processes.

OpenCV and large NumPy copies release the interpreter's lock, but passing it between threads costs
about what a second thread gains where each such piece is short, as in cropping. Processes have a
lock each. One gets the function to call, with all data that it holds, in memory that all of them
share, and leaves its results in memory that it shares with the caller: large arrays are never
sent. (multiprocessing would import the main script, and with it TensorFlow, in every process.)
"""

import contextlib
import mmap
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from support import buffers
from support.buffers import ALIGNMENT
from support.checks import check_workers
from support.files import UserError

DEFAULT_MAX_WORKERS = 16  # where the caller gives no number
SLOTS = 3  # results of a process that may be in use at the same time without being copied
MIN_SHARED = 2**14  # bytes from which on an array is shared and not sent
SECONDS_TO_END = 10  # that a process gets
ROOT = str(Path(__file__).parents[1])
# A service that is stopped may signal all of its processes; the caller decides when to end.
CHILD = """import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.path.insert(0, sys.argv[1])
from support import workers
workers.serve([int(argument) for argument in sys.argv[2:]])
"""


def prefetch(
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    workers: int | None = None,
    *,
    processes: bool = False,
    ahead: int | None = None,
) -> Iterator[Any]:
    """Results of `fn` for `items`, in order, computed ahead.

    Args:
        fn: makes a result from an item; for processes it must be possible to pickle it.
        items: may go on for ever.
        workers: how many results to work on at a time; None or 0: half as many as there are
            cores.
        processes: whether several workers are processes; otherwise, or alone, they are threads.
        ahead: most results that are waiting or being worked on; None: one for each worker.

    Raises:
        UserError: a process was ended from outside.
    """
    check_workers(workers)
    workers = workers or max(1, min((os.cpu_count() or 1) // 2, DEFAULT_MAX_WORKERS))
    with ExitStack() as stack:
        if processes and workers > 1:
            fn = stack.enter_context(_ProcessPool(fn, workers))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        pending = deque()
        try:
            for item in items:
                pending.append(pool.submit(fn, item))
                if len(pending) > (ahead or workers):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Packed(NamedTuple):
    """A pickled object, and where in a memory each of its large arrays is: first and last + 1."""

    pickled: bytes
    spans: list[tuple[int, int]]

    def load(self, memory: memoryview) -> Any:
        buffers = [memory[first:last] for first, last in self.spans]
        return pickle.loads(self.pickled, buffers=buffers)


class _SharedMemory:
    """Memory that processes share, without a name and gone with the last of them.

    Args:
        descriptor: of the file that holds it; None makes one.
    """

    def __init__(self, descriptor: int | None = None):
        self.descriptor = _anonymous_file() if descriptor is None else descriptor
        self.map = None
        self.notes: dict = {}  # see `buffers.reusable_buffer`; of its size now

    def at_least(self, size: int) -> mmap.mmap:
        """A map of it that has so many bytes or more; it never shrinks."""
        if self.map is None or len(self.map) < size:
            if os.fstat(self.descriptor).st_size < size:
                # A result's small arrays come after its large ones. A new map for them would cost
                # as much as writing all of it again.
                os.ftruncate(self.descriptor, size + size // 8)
            self.map = mmap.mmap(self.descriptor, 0)
            self.notes = {}
        return self.map

    def pack(self, obj: Any) -> _Packed:
        """Pickles an object, its large arrays into this memory, unless they are there already."""
        large: list[memoryview] = []

        def is_small(buffer):
            raw = buffer.raw()
            if raw.nbytes >= MIN_SHARED:
                large.append(raw)
            return raw.nbytes < MIN_SHARED

        pickled = pickle.dumps(obj, protocol=5, buffer_callback=is_small)
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
        """How many bytes of it a packed object takes."""
        return max((last for _, last in packed.spans), default=0)


class _ProcessPool:
    """Calls a function in other processes, as many at a time as there are.

    Args:
        function: can be pickled.
        count: how many processes.
    """

    def __init__(self, function: Callable[[Any], Any], count: int):
        self.function, self.count = function, count
        self.idle: queue.SimpleQueue[_WorkerProcess] = queue.SimpleQueue()

    def __enter__(self) -> Callable[[Any], Any]:
        memory = _SharedMemory()
        packed = memory.pack(self.function)
        self.all = [_WorkerProcess(memory, packed) for _ in range(self.count)]
        os.close(memory.descriptor)
        for process in self.all:
            self.idle.put(process)
        return self.call

    def __exit__(self, *_):
        for process in self.all:
            process.dismiss()
        for process in self.all:
            process.end()

    def call(self, item: Any) -> Any:
        """What the function makes of an item."""
        process = self.idle.get()
        try:
            return process.call(item)
        finally:
            self.idle.put(process)


class _WorkerProcess:
    """Another Python that runs `serve`, and the memory that its results come in.

    Args:
        memory: holds the large arrays of the function.
        function: packed into it.
    """

    def __init__(self, memory: _SharedMemory, function: _Packed):
        self.slots = [_SharedMemory() for _ in range(SLOTS)]
        self.free = list(range(SLOTS))  # the last used first, so that few are ever used
        shared = [memory.descriptor, *(slot.descriptor for slot in self.slots)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, ROOT, *map(str, shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=shared,
            start_new_session=True,  # Ctrl-C is the caller's to handle
        )
        self._send(function)

    def call(self, item: Any) -> Any:
        """What the function makes of an item; its large arrays stay where they are."""
        slot = self.free.pop() if self.free else None
        self._send((item, slot))
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
        """Lets the process end once it is done with its present item."""
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.close()

    def end(self) -> None:
        """Waits for its end; results that are in use keep their memory."""
        try:
            self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        for slot in self.slots:
            os.close(slot.descriptor)

    def _send(self, obj: Any) -> None:
        try:
            pickle.dump(obj, self.process.stdin, protocol=5)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _lost(self) -> UserError:
        status = self.process.wait()
        return UserError(
            f"a process that prepares batches was ended (status {status}), perhaps for lack of "
            "memory; try fewer workers"
        )


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("results")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def serve(descriptors: list[int]) -> None:
    """What a worker process runs: it gets a function, then items, until its caller ends."""
    received, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not come between the results
    memory, *slots = map(_SharedMemory, descriptors)

    def next_message():
        try:
            return pickle.load(received)
        except (EOFError, pickle.UnpicklingError):  # the caller has gone, or was killed
            os._exit(0)

    packed, function = next_message(), None
    nowhere = _Packed(b"", [])
    while True:
        item, slot = next_message()
        try:
            if function is None:
                shared = memoryview(memory.at_least(1)) if packed.spans else memoryview(b"")
                function = packed.load(shared)
            buffers.next_result[:] = [] if slot is None else [slots[slot]]
            result = function(item)
            answer = _sent(result) if slot is None else slots[slot].pack(result), None
        except Exception as error:
            answer = nowhere, error
        try:
            pickle.dump(answer, results, protocol=5)
            results.flush()
        except BrokenPipeError:  # the same; a traceback would only disturb its terminal
            os._exit(1)


def _sent(obj: Any) -> _Packed:
    return _Packed(pickle.dumps(obj, protocol=5), [])
