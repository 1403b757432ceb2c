"""Runs of arrays in a pickle, read at once, against the operations read one by one."""

import pickle
import pickletools
import random
import struct

import numpy as np
import pytest
from sketch_files import objects, random_sketches
from test_damaged_files import mutated

from support import pickled_arrays
from support.pickled_arrays import PickledArray, PickledType, UnsafePickle

LENGTHS = [3, 0, 1, 42, 43, 255, 256, 5, *range(2, 90), 70_000, 7, 8, *range(2, 40)]


def python2_pickle(arrays):
    """As NumPy under Python 2 wrote it: the first array in full, the others with places in the
    memo, which has two bytes up to 255 and five from there on."""

    def put(place):
        return b"q" + bytes([place]) if place < 256 else b"r" + struct.pack("<I", place)

    def text(content):
        long = b"T" + struct.pack("<i", len(content))
        return (b"U" + bytes([len(content)]) if len(content) < 256 else long) + content

    def number(n):
        if n < 65536:
            return b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n)
        return b"J" + struct.pack("<i", n)

    def dtype(code, order, flags, place):
        unknown = b"J\xff\xff\xff\xff"
        begin = text(code) + b"K\x00K\x01\x87R" + put(place)
        return begin + b"(K\x03" + text(order) + b"NNN" + 2 * unknown + b"K" + flags + b"tb"

    array = b"K\x00\x85U\x01b\x87R"
    parts = [b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02"]
    parts += [array + put(3) + b"(K\x01" + number(len(arrays)) + b"\x85cnumpy\ndtype\nq\x04"]
    parts += [dtype(b"O8", b"|", b"?", 5) + b"\x89]q\x06("]
    place = 7
    for i, a in enumerate(arrays):
        parts += [b"h\x01h\x02" + array + put(place) + b"(K\x01" + number(len(a)) + b"K\x03\x86"]
        place += 1
        parts += [b"h\x04" + dtype(b"i2", b"<", b"\x00", place) if i == 0 else b"h\x08"]
        place += i == 0
        parts += [b"\x89" + text(a.tobytes()) + b"tb"]
    return b"".join([*parts, b"etb."])


def with_memo(content):
    """The pickle of a pair: what it held, and a tuple of all that it remembers."""
    puts = [(op.name, arg) for op, arg, _ in pickletools.genops(content)]
    puts = [arg for name, arg in puts if name == "MEMOIZE" or "PUT" in name]
    places = range(len(puts)) if None in puts else puts
    gets = b"".join(b"j" + struct.pack("<I", place) for place in places)
    return content[:-1] + b"(" + gets + b"t\x86."


def plain(value):
    """What was read, as something that can be compared."""
    if isinstance(value, PickledArray):
        if value.dtype is None:
            return "array without a state"
        return "array", value.shape, value.dtype, value.order, plain(value.values)
    if isinstance(value, PickledType):
        return "type", value.dtype
    if isinstance(value, pickled_arrays._Global):
        return "global", value.name
    if isinstance(value, list | tuple):
        return type(value), [plain(item) for item in value]
    return value


def outcome(content):
    """What reading gives, or how it fails."""
    try:
        return plain(pickled_arrays.load(content))
    except (ValueError, UnsafePickle) as error:
        return "refused", type(error), str(error)


@pytest.fixture
def one_by_one(monkeypatch):
    """A function that reads without looking for runs, and counts the arrays that are found in
    runs otherwise."""
    read, found = pickled_arrays._read_alike, []

    def counted(*args):
        position, count = read(*args)
        found.append(count)
        return position, count

    def slow(content):
        with monkeypatch.context() as patch:
            patch.setattr(pickled_arrays, "_read_alike", lambda data, position, *_: (position, 0))
            return outcome(content)

    monkeypatch.setattr(pickled_arrays, "_read_alike", counted)
    slow.found = found
    return slow


def pickles(sketches):
    types = zip(sketches, 40 * ["i2", "i2", "i2", "f4", ">i4"], strict=False)
    mixed = [sketch.astype(dtype) for sketch, dtype in types]
    others = [sketches[0][:, :2], np.asfortranarray(sketches[4]), [1, 2, 3], None, sketches[3]]
    return {
        # Protocols below 3 have no bytes, and call a function for those of an empty array.
        **{f"protocol {n}": pickle.dumps(objects(sketches[2:]), protocol=n) for n in range(3)},
        **{f"protocol {n}": pickle.dumps(objects(sketches), protocol=n) for n in (3, 4)},
        "python 2": python2_pickle(sketches * 5),
        "types": pickle.dumps(objects(mixed), protocol=3),
        "others between": pickle.dumps(objects([*sketches[:60], *others, *sketches]), protocol=3),
        "same twice": pickle.dumps(objects([*sketches[:50], *sketches[9:50]]), protocol=4),
    }


SKETCHES = random_sketches(0, [n for n in LENGTHS if n])
SKETCHES[1:1] = [SKETCHES[0][:0]]
PICKLES = pickles(SKETCHES)


@pytest.mark.parametrize("kind", PICKLES)
def test_a_run_leaves_what_its_operations_would(kind, one_by_one):
    """Arrays, and all that later operations may refer to, are the same, whoever wrote the file."""
    content = PICKLES[kind]
    read = pickled_arrays.load(content)
    assert outcome(with_memo(content)) == one_by_one(with_memo(content))
    arrays = [a for a in read.values if isinstance(a, PickledArray)]
    theirs = [a for a in pickle.loads(content, encoding="latin1") if isinstance(a, np.ndarray)]
    for array, expected in zip(arrays, theirs, strict=True):
        np.testing.assert_array_equal(array.to_array(), expected)
    if kind in ("protocol 3", "protocol 4", "python 2"):
        # All but the first, those in whose middle a block of the file ends, and the longest.
        assert sum(one_by_one.found[: len(one_by_one.found) // 2]) > 0.5 * len(arrays)


@pytest.mark.parametrize("before", [b"K\0\x85\x94h", b"K\x03\x86\x94h"])
def test_an_array_that_refers_to_itself(before, one_by_one):
    """What an array remembers itself it may use, as the operations do it, one by one."""
    content = pickle.dumps(objects(random_sketches(0, [5, 6, 7, 8, 9])), protocol=4)
    # In the second array, where a run would begin.
    at = content.index(before, content.index(before) + 1) + len(before)
    ops = (op.name for op, _, place in pickletools.genops(content) if place < at)
    last = sum(name == "MEMOIZE" for name in ops) - 1
    content = content[:at] + bytes([last]) + content[at + 1 :]
    assert outcome(content) == one_by_one(content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["protocol 3", "protocol 4", "python 2", "types"])
def test_damaged_runs_fail_as_their_operations_would(kind, one_by_one):
    """Of 1,500 damaged files each is read alike, or refused for the same reason."""
    content = pickles(random_sketches(1, [*range(2, 60), 300]))[kind]
    rng, refused = random.Random(kind), 0
    for number in range(1500):
        broken = mutated(content, rng)
        ours = outcome(broken)
        assert ours == one_by_one(broken), f"mutation {number}"
        refused += isinstance(ours, tuple) and ours[0] == "refused"
    assert 100 < refused < 1400
