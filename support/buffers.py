"""Memory that is used again: fresh memory costs the system as much time as filling it."""

import weakref
from typing import Protocol

import numpy as np

ALIGNMENT = 64  # bytes; a backend uses memory that begins at a multiple of it without a copy

_idle: list[tuple[memoryview, dict]] = []  # memory that no array refers to, and its notes


class SharedMemory(Protocol):
    """Memory that a worker process shares with the process that it works for."""

    notes: dict

    def at_least(self, size: int) -> memoryview:
        """All of it, made larger where it has less than so many bytes."""


next_result: list[SharedMemory] = []  # in a worker process: where its next result goes


def reusable_buffer(size: int) -> tuple[np.ndarray, dict]:
    """Memory that was used before.

    It is given out again once no array refers to it. In a worker process, the first buffer that a
    call asks for is where its result goes, so that it need not be copied there.

    Returns:
        uint8 (size,), with any content, and notes: a dictionary that stays with the memory, where
        one user can tell the next what it left there.
    """
    if next_result:
        shared = next_result.pop()
        return np.frombuffer(shared.at_least(size), np.uint8, size), shared.notes
    memory, notes = _idle.pop() if _idle else (memoryview(b""), {})
    if memory.nbytes < size:
        whole = np.empty(size + ALIGNMENT, np.uint8)
        first = -whole.ctypes.data % ALIGNMENT
        memory, notes = memoryview(whole[first : first + size]), {}
    # All views of this array, and views of them, keep it alive, because it is not itself a view
    # of an array.
    owner = np.frombuffer(memory, np.uint8, size)
    weakref.finalize(owner, _idle.append, (memory, notes)).atexit = False
    return owner, notes


def picture_buffer(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures to fill, and which of them may not be blank.

    A user who wipes only these, and notes which it fills, mostly wipes nothing: blank pictures
    stand where blank ones stood before.

    Args:
        shape: (..., S, S).

    Returns:
        uint8 `shape`, with any content where the second, bool `shape[:-2]`, is true, and zero
        elsewhere. The second stays with the memory and must be kept true.
    """
    buffer, notes = reusable_buffer(int(np.prod(shape)))
    inked = notes.get(shape)
    if inked is None:
        notes.clear()
        inked = notes[shape] = np.ones(shape[:-2], bool)
    return buffer.reshape(shape), inked
