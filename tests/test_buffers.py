"""Memory that is used again: never two users at a time, and notes that stay true."""

import time

import numpy as np
import pytest

from support import buffers, workers
from support.buffers import picture_buffer, reusable_buffer
from support.workers import prefetch


def place(array):
    return array.__array_interface__["data"][0]


@pytest.fixture
def no_idle_memory(monkeypatch):
    """Buffers as in a process that has used none yet."""
    monkeypatch.setattr(buffers, "_idle", [])


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
    assert len(buffers._idle) <= 8 + 1  # as many as were in use at the same time


def test_a_process_has_notes_in_each_place_of_its_results():
    """Results are written where the caller reads them; notes come with what they were written
    about, and no place is given out while the caller has the result that is in it."""
    made = prefetch(_numbered_buffer(), range(40), 2, processes=True)
    seen, kept = [], []
    for i, (buffer, earlier, content, _) in enumerate(made):
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


def test_small_arrays_of_a_result_leave_its_notes():
    """A process need not write all of a place again because of what came after the buffer in it:
    every result but the first of a place finds notes there."""
    made = prefetch(_numbered_buffer(800_000, 20_000), range(40), 2, processes=True)
    places, again = set(), 0
    for i, (buffer, earlier, _, other) in enumerate(made):
        assert (buffer == i).all() and (other == i).all()
        if place(buffer) in places:
            assert earlier is not None
            again += 1
        places.add(place(buffer))
        del buffer, other
    assert again >= 40 - 2 * workers.SLOTS


def _numbered_buffer(size=50_000, other=0):
    """A function that other processes can be sent: it fills a buffer with the number it gets.

    Its result is the buffer, the number that the notes say was there, the one that was, and
    another array.
    """
    return _Script(
        "import numpy as np\n"
        "from support.buffers import reusable_buffer\n"
        f"buffer, notes = reusable_buffer({size})\n"
        "earlier, content = notes.get('number'), int(buffer[-1])\n"
        "buffer[:] = notes['number'] = item\n"
        f"result = buffer, earlier, content, np.full({other}, item, np.uint8)\n"
    )


class _Script:
    """Pickles as a function of `item` that runs a script and gives its `result`."""

    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        code = f"lambda item: (scope := {{'item': item}}, exec({self.text!r}, scope))[0]['result']"
        return eval, (code,)


def test_pictures_that_are_not_marked_are_blank(no_idle_memory):
    """Pictures whose user marked them as filled are marked for the next; what another shape left
    is all marked, as is new memory."""
    pictures, inked = picture_buffer(2, 3, 4, 4)
    assert pictures.shape == (2, 3, 4, 4) and inked.shape == (2, 3) and inked.all()
    where = place(pictures)
    pictures[:] = 0
    pictures[0, 1], inked[:] = 7, False
    inked[0, 1] = True
    del pictures
    pictures, inked = picture_buffer(2, 3, 4, 4)
    assert place(pictures) == where and not pictures[~inked].any()
    assert np.argwhere(inked).tolist() == [[0, 1]]
    del pictures
    pictures, inked = picture_buffer(6, 4, 4)
    assert place(pictures) == where and inked.shape == (6,) and inked.all()
    del pictures
    assert picture_buffer(2, 3, 4, 4)[1].all()
