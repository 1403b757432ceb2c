"""Files to sketches to batches: nothing in a file runs, the numbers are the published ones,
augmentation obeys its rules, and batches depend on (seed, pass, sketch) and on nothing else.

Comparisons are exact unless a test says otherwise.
"""

import codecs
import contextlib
import io
import itertools
import math
import os
import pickle
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import golden_data
import numpy as np
import pytest

import dataset
import doodles
import utils
from dataset import (
    augment,
    evaluation_batches,
    load_dataset,
    make_batch,
    pack_graphs,
    read_sketch_file,
    to_stroke5,
    training_batches,
)
from hparams import HParams
from support.files import UserError

SPLITS = ("train", "valid", "test")


def options(**changes):
    """Small options: pictures of 16 pixels, 8 nodes, batches of 4."""
    small = {
        "categories": ("a",),
        "batch_size": 4,
        "graph_number": 8,
        "graph_picture_size": 16,
        "z_size": 5,
        "num_mixture": 3,
    }
    return HParams(**{**small, **changes})


def refusal(call, *args, **kwargs):
    """The text of the UserError that the call must raise, checked to be one printable line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text and text.splitlines() == [text] and text.isprintable()
    return text


def objects(entries):
    """A 1-D object array of anything."""
    array = np.empty(len(entries), object)
    for i, entry in enumerate(entries):
        array[i] = entry
    return array


def random_sketch(rng, n, dtype=np.int16):
    rows = np.column_stack([rng.integers(-60, 60, (n, 2)), rng.random(n) < 0.2])
    rows[-1, 2] = 1
    return rows.astype(dtype)


def random_sketches(seed, lengths, dtype=np.int16):
    rng = np.random.default_rng(seed)
    return [random_sketch(rng, n, dtype) for n in lengths]


def write(directory, category="a", **splits):
    """`<directory>/<category>.npz`; a split not given holds two sketches."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{category}.npz"
    given = {
        split: splits.get(split, random_sketches(place, (5, 6)))
        for place, split in enumerate(SPLITS)
    }
    arrays = {k: v if isinstance(v, np.ndarray) else objects(v) for k, v in given.items()}
    np.savez_compressed(path, **arrays)
    return path


def split_of(lengths=(6, 9, 4, 12, 7, 5, 8, 10, 3, 11, 6), seed=1):
    """A split whose sketches can be told apart by their first row alone."""
    sketches = random_sketches(seed, lengths)
    for i, sketch in enumerate(sketches):
        sketch[0, 0] = 100 + i
    return dataset.Split(
        rows=np.concatenate(sketches),
        ends=np.append(0, np.cumsum(lengths)),
        category=np.zeros(len(lengths), np.int32),
        index=np.arange(len(lengths), dtype=np.int32),
        scale_factor=31.7,
    )


def who(batch, split):
    """Which sketches of a `split_of` are in a batch, in order."""
    first = [split.sketch(i)[0, 0] for i in range(len(split))]
    return [first.index(value) for value in batch["strokes"][:, 1, 0].tolist()]


def take(batches, count):
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_same_batches(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert np.array_equal(one[name], other[name]), name


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


# Reading files.


@pytest.mark.parametrize(
    "name",
    [
        "quickdraw_real/cat",
        "quickdraw_real/The Great Wall of China",
        "sketch_rnn_sampled/sheep",
        "sketch_rnn_datasets/aaron_sheep",
        "sketch_rnn_datasets/omniglot",
        "sketch_rnn_datasets/short_kanji",
    ],
)
def test_real_files(name):
    """Files of people, written by Python 2 and by Python 3, read as NumPy itself reads them."""
    path = golden_data.sketch_set(name)
    arrays = read_sketch_file(path)
    assert set(arrays) == set(SPLITS)
    with np.load(path, allow_pickle=True, encoding="latin1") as file:
        for split in SPLITS:
            expected = list(file[split])
            assert len(arrays[split]) == len(expected) > 0
            for ours, theirs in zip(arrays[split], expected, strict=True):
                assert ours.dtype == theirs.dtype == np.int16
                assert np.array_equal(ours, theirs)


def npy(pickled, count=1):
    """An object array as .npy holds it: a header and a pickle of whatever bytes."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + pickled


def write_raw(path, **members):
    """An .npz of members given as bytes; a split not given holds two sound sketches."""
    sound = pickle.dumps(objects(random_sketches(0, (5, 6))), protocol=3)
    with zipfile.ZipFile(path, "w") as archive:
        for split in SPLITS:
            archive.writestr(f"{split}.npy", members.get(split, npy(sound, 2)))
    return path


def python2_pickle(arrays):
    """A pickle as NumPy under Python 2 wrote it: numbers stand in byte strings (opcodes U, T)."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"

    def dtype(code, order, flags):
        state = b"(K\x03U\x01" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + flags + b"tb"
        return b"cnumpy\ndtype\nU\x02" + code + b"K\x00K\x01\x87R" + state

    def number(n):
        return b"J" + struct.pack("<i", n)

    entries = b"".join(
        array
        + b"(K\x01"
        + number(len(a))
        + b"K\x03\x86"
        + dtype(b"i2", b"<", b"\x00")
        + b"\x89"
        + (b"T" + struct.pack("<i", a.nbytes) if a.nbytes > 255 else b"U" + bytes([a.nbytes]))
        + a.tobytes()
        + b"tb"
        for a in arrays
    )
    state = b"(K\x01" + number(len(arrays)) + b"\x85" + dtype(b"O8", b"|", b"?")
    return b"\x80\x02" + array + state + b"\x89](" + entries + b"etb."


def test_python_2_pickles(tmp_path):
    """The official files are Python 2 pickles, whose byte strings must be read as latin1."""
    sketches = random_sketches(3, (4, 70, 3))
    assert sketches[0].min() < 0  # so that bytes above 127 occur
    path = write_raw(tmp_path / "a.npz", train=npy(python2_pickle(sketches), 3))
    read = read_sketch_file(path)["train"]
    with np.load(path, allow_pickle=True, encoding="latin1") as file:
        expected = list(file["train"])
    for ours, theirs, sketch in zip(read, expected, sketches, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        assert np.array_equal(ours, sketch)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_every_layout_of_arrays(tmp_path, protocol):
    """Other dtypes, byte orders and memory orders, whatever the pickle's protocol."""
    sketch = random_sketch(np.random.default_rng(4), 6)
    entries = [sketch.astype(t) for t in ("i1", "<i2", ">i2", "i4", "i8", "u2", "f2", "f4", ">f8")]
    entries += [np.asfortranarray(sketch), sketch[::2], sketch[:, :2], sketch[0], sketch]
    pickled = pickle.dumps(objects(entries), protocol=protocol)
    path = write_raw(tmp_path / "a.npz", train=npy(pickled, len(entries)))
    read = read_sketch_file(path)["train"]
    for ours, entry in zip(read, entries, strict=True):
        # NumPy may turn the byte order into the machine's own.
        assert ours.dtype.newbyteorder("=") == entry.dtype.newbyteorder("=")
        assert np.array_equal(ours, entry)


@pytest.mark.parametrize("order", ["C", "F"])
def test_sketches_of_one_length_in_a_plain_array(tmp_path, order):
    """NumPy saves sketches of equal lengths as numbers, without a pickle, in either order."""
    stack = np.array(random_sketches(5, (4, 4, 4)), order=order)
    read = read_sketch_file(write(tmp_path, train=stack))["train"]
    assert len(read) == 3
    for ours, sketch in zip(read, stack, strict=True):
        assert ours.dtype == np.int16 and np.array_equal(ours, sketch)


def test_only_the_splits_asked_for_are_read(tmp_path):
    """A script that needs one split is not held up by the others."""
    path = write_raw(tmp_path / "a.npz", valid=b"broken")
    assert set(read_sketch_file(path, ("train", "test"))) == {"train", "test"}
    refusal(read_sketch_file, path)


# Files that mean harm. Each payload leaves a file behind if it runs, and does so when the
# standard unpickler reads it: a payload that could do no harm would prove nothing.


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def named(module, name, *args):
    """A pickle that calls module.name(*args), of protocol 4: the name may be a dotted path."""

    def text(value):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    pushed = b"".join(pickle.dumps(arg, protocol=2)[2:-1] for arg in args)
    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + pushed + b"tR."


def system(marker):
    return pickle.dumps(Calls(os.system, f"touch '{marker}'"))


def protocol_0(marker):
    return f"cos\nsystem\n(S\"touch '{marker}'\"\ntR.".encode()


def inst_opcode(marker):
    return f"(S\"touch '{marker}'\"\nios\nsystem\n.".encode()


def obj_opcode(marker):
    return f"(cos\nsystem\nS\"touch '{marker}'\"\no.".encode()


def evaluated(marker):
    return pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w').close()"))


def python_2_eval(marker):
    return pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w').close()"), protocol=2)


def opened(marker):
    return pickle.dumps(Calls(open, str(marker), "w"))


def numpy_memmap(marker):
    return named("numpy", "memmap", str(marker), "uint8", "w+", 0, 4)


def numpy_save(marker):
    return named("numpy", "savetxt", str(marker), [1, 2])


def numpy_exec(marker):
    return named("numpy.testing._private.utils", "runstring", f"open({str(marker)!r}, 'w')", {})


def through_ndarray(marker):
    """numpy.ndarray is allowed, its attributes are not."""
    array = np.zeros(2)
    return (
        b"\x80\x04X\x05\x00\x00\x00numpyX\x0e\x00\x00\x00ndarray.tofile\x93("
        + pickle.dumps(array, protocol=2)[2:-1]
        + pickle.dumps(str(marker), protocol=2)[2:-1]
        + b"tR."
    )


def nested(marker):
    """Behind sound sketches, inside an array in an array."""
    inner = objects([1, Calls(os.system, f"touch '{marker}'")])
    return pickle.dumps(objects([random_sketch(np.random.default_rng(0), 5), inner]), protocol=3)


def in_an_arrays_state(marker):
    """As the number of rows of an array."""

    class Forged:
        def __reduce__(self):
            call = Calls(os.system, f"touch '{marker}'")
            made = np._core.multiarray._reconstruct
            return made, (np.ndarray, (0,), b"b"), (1, (call,), np.dtype("i2"), False, b"")

    return pickle.dumps(Forged(), protocol=2)


def through_a_codec(marker):
    """_codecs.encode is allowed; another codec is a program that is looked up and run."""
    return named("_codecs", "encode", "text", "marking")


def through_a_decoder(marker):
    return named("_codecs", "lookup", "marking")


PAYLOADS = [
    system,
    protocol_0,
    inst_opcode,
    obj_opcode,
    evaluated,
    python_2_eval,
    opened,
    numpy_memmap,
    numpy_save,
    numpy_exec,
    through_ndarray,
    nested,
    in_an_arrays_state,
    through_a_codec,
    through_a_decoder,
]


@pytest.fixture
def marker(tmp_path):
    """The file that a payload leaves; the codec `marking` leaves it when it is looked up."""
    marker = tmp_path / "it ran"

    def search(name):
        if name == "marking":
            marker.touch()
        return None

    codecs.register(search)
    yield marker
    codecs.unregister(search)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_file_runs(tmp_path, marker, payload):
    """Whatever a stranger's file asks to be called is refused with one line, and is not called."""
    pickled = payload(marker)
    for split in SPLITS:
        path = write_raw(tmp_path / "a.npz", **{split: npy(pickled)})
        assert "refused" in refusal(read_sketch_file, path)
        assert str(path) in refusal(load_dataset, tmp_path, options())
        assert not marker.exists()
    with contextlib.suppress(Exception):  # some end in an error, after their harm is done
        pickle.loads(pickled)
    assert marker.exists()


def test_an_array_saved_with_a_payload_in_it(tmp_path, marker):
    """The same in a file as `numpy.savez` itself writes it, that `numpy.load` would run."""
    payload = Calls(os.system, f"touch '{marker}'")
    path = write(tmp_path, valid=[random_sketch(np.random.default_rng(0), 5), payload])
    assert "system" in refusal(read_sketch_file, path)
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as file:
        file["valid"]
    assert marker.exists()


@pytest.mark.parametrize(
    "call",
    [
        ("_codecs", "encode", "text", "utf-8"),
        ("_codecs", "encode", "text", "rot13"),
        ("_codecs", "decode", "text", "latin1"),
        ("numpy", "load", "x"),
        ("numpy", "frombuffer", "x"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "fromfile", "x"),
        ("numpy.core.multiarray", "_reconstruct.__class__"),
        ("dataset", "read_sketch_file", "x"),
        ("numpy", "dtype", "V8"),
        ("numpy", "dtype", "i2,O"),
        ("numpy", "dtype", ["O"]),
        ("builtins", "getattr", "x", "y"),
        ("no such module", "x"),
        ("a\nb", "c\x1b[2J"),
    ],
    ids=ascii,
)
def test_names_beyond_arrays_are_refused(tmp_path, call):
    """Only what arrays of numbers need is admitted, of NumPy too; the rest is refused by name."""
    path = write_raw(tmp_path / "a.npz", test=npy(named(*call)))
    assert f"{path}: refused, its pickle asks for" in refusal(read_sketch_file, path)


def test_forged_memory(tmp_path):
    """A forged dtype must not turn the file's bytes into addresses of objects.

    NumPy's own `__setstate__` accepts such a state and crashes, or worse, when an entry is used;
    hence a process of its own.
    """

    class Type:
        def __reduce__(self):  # objects that say they are none
            return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)

    class Array:
        def __reduce__(self):
            made = np._core.multiarray._reconstruct
            return made, (np.ndarray, (0,), b"b"), (1, (2,), Type(), False, b"A" * 16)

    path = write_raw(tmp_path / "a.npz", train=npy(pickle.dumps(Array(), protocol=2), 2))
    script = (
        "import sys, dataset\n"
        "try:\n"
        "    print(dataset.read_sketch_file(sys.argv[1]))\n"
        "except dataset.UserError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        capture_output=True,
        text=True,
        cwd=Path(dataset.__file__).parent,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "refused\n")


# Files that are broken or missing.


def test_truncated_files(tmp_path):
    """A download that broke off anywhere is refused with one line that names the file."""
    path = write(tmp_path)
    whole = path.read_bytes()
    for end in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:end])
        assert str(path) in refusal(read_sketch_file, path)
    path.write_bytes(whole)
    read_sketch_file(path)


def test_truncated_pickles(tmp_path):
    """A pickle that breaks off is refused too, its archive being sound."""
    sound = pickle.dumps(objects(random_sketches(0, (5, 6))), protocol=3)
    for end in range(len(sound)):
        path = write_raw(tmp_path / "a.npz", train=npy(sound[:end], 2))
        assert str(path) in refusal(read_sketch_file, path)


def long_header():
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(12000) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"no array",
        b"\x93NUMPY\x03\x00",
        long_header(),  # NumPy refuses it in several lines
        npy(b""),
        npy(pickle.dumps(None)),
        npy(pickle.dumps([1, 2, 3])),
        npy(pickle.dumps(np.array(None, object), protocol=3)),
        npy(b"\x80\x02cnumpy\nndarray\n."),
        npy(b"\x80\x02cnumpy\nndarray\n)R."),
        npy(b"\x80\x02P0\n."),  # a persistent id
        npy(b"\x80\x02\x82\x01."),  # a registered extension
    ],
)
def test_broken_arrays(tmp_path, member):
    """What is no array of sketches is refused with one line, whatever fails inside."""
    path = write_raw(tmp_path / "a.npz", valid=member)
    assert str(path) in refusal(read_sketch_file, path)


def test_not_a_zip_file(tmp_path):
    """An empty file, a text, a bare .npy under the name of an .npz."""
    path = tmp_path / "a.npz"
    for content in (b"", b"<html>404</html>", npy(pickle.dumps(None))):
        path.write_bytes(content)
        assert str(path) in refusal(read_sketch_file, path)
        assert str(path) in refusal(load_dataset, tmp_path, options())


def test_unreadable_paths(tmp_path):
    """A file that is missing or a directory is one line with the system's reason."""
    assert "No such file" in refusal(read_sketch_file, tmp_path / "none.npz")
    assert "directory" in refusal(read_sketch_file, tmp_path)


def test_missing_array(tmp_path):
    """A file without one of the splits says which it lacks."""
    for split in SPLITS:
        arrays = {name: objects(random_sketches(0, (5, 6))) for name in SPLITS if name != split}
        np.savez(tmp_path / "a.npz", **arrays)
        assert refusal(read_sketch_file, tmp_path / "a.npz").endswith(f"has no array '{split}'")
        assert len(read_sketch_file(tmp_path / "a.npz", tuple(arrays))) == 2


def test_missing_directory(tmp_path):
    """The line names the file that was looked for and the directory that is not there."""
    text = refusal(load_dataset, tmp_path / "nowhere", options())
    assert str(tmp_path / "nowhere" / "a.npz") in text and "no directory" in text
    (tmp_path / "file").touch()
    assert "no directory" in refusal(load_dataset, tmp_path / "file", options())


def test_missing_category(tmp_path):
    """The line names the file that was looked for and what is there instead, not without end."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no .npz files" in refusal(load_dataset, empty, options())
    (empty / "a.npz").mkdir()  # a directory of that name is no file
    assert str(empty / "a.npz") in refusal(load_dataset, empty, options())
    for name in ("bee", "The Great Wall of China", "a"):
        write(tmp_path, name)
    (tmp_path / "notes.txt").touch()
    text = refusal(load_dataset, tmp_path, options(categories=("a", "bus")))
    assert str(tmp_path / "bus.npz") in text
    assert "bee.npz" in text and "The Great Wall of China.npz" in text and "notes" not in text
    for i in range(300):
        (tmp_path / f"filler {i}.npz").touch()
    text = refusal(load_dataset, tmp_path, options(categories=("a", "bus")))
    assert "more" in text and len(text) < 500


# Sketches, scale and lengths.


def test_unusable_sketches_are_skipped_and_counted(tmp_path):
    """One bad sketch spoils nothing: it is counted, and the others keep their index."""
    good = random_sketches(6, (5, 7, 6))
    bad = [
        np.zeros((1, 3), np.int16),
        np.zeros((0, 3), np.int16),
        np.zeros((5, 2), np.int16),
        np.zeros((5, 4), np.int16),
        np.zeros(6, np.int16),
        np.zeros((2, 2, 3), np.int16),
        np.array([(0, 0, 0), (np.nan, 1, 0)]),
        np.array([(0, 0, 0), (1, np.inf, 0)], np.float32),
        np.array([(0, 0, 0), (1, 1, None)], object),
        np.zeros((4, 3), bool),
        None,
        "text",
        [(0, 0, 0), (1, 1, 1)],
    ]
    entries = [good[0], *bad[:6], good[1], *bad[6:], good[2]]
    write(tmp_path, "a", train=entries)
    write(tmp_path, "b", train=good[:2], valid=[bad[0], good[2]])
    data = load_dataset(tmp_path, options(categories=("a", "b")))
    train, valid = data.splits["train"], data.splits["valid"]
    assert train.index.tolist() == [0, 7, len(entries) - 1, 0, 1]
    assert train.category.tolist() == [0, 0, 0, 1, 1]
    assert valid.index.tolist() == [0, 1, 1] and valid.category.tolist() == [0, 0, 1]
    for i, sketch in enumerate([*good, *good[:2]]):
        assert np.array_equal(train.rows[train.ends[i] : train.ends[i + 1]], sketch)
    (remark,) = data.remarks
    assert remark.startswith(f"{len(bad) + 1} sketches skipped")


def test_nothing_to_remark(tmp_path):
    """Where nothing is left out nothing is said."""
    write(tmp_path)
    assert load_dataset(tmp_path, options()).remarks == ()


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_left_empty(tmp_path, split):
    """A split without sketches, or with unusable or too long ones only, is named and refused."""
    for entries in ([], [np.zeros((1, 3), np.int16)], random_sketches(0, (20, 20))):
        write(tmp_path, **{split: entries})
        text = refusal(load_dataset, tmp_path, options(max_seq_len=10))
        assert f"the {split} split" in text and str(tmp_path) in text
        others = tuple(other for other in SPLITS if other != split)
        load_dataset(tmp_path, options(max_seq_len=10), splits=others, scale_factor=1.0)


def formula(raw, scale_factor):
    """The specification's: clip, make float32, divide in float32."""
    sketch = np.clip(raw, -1000, 1000).astype(np.float32)
    sketch[:, :2] /= np.float32(scale_factor)
    return sketch


def test_scale_and_clipping(tmp_path):
    """Standard deviation of all raw values used, in float64; then clipped and divided in float32.

    The factor has 1e-13 of room, for the order of summation: float32 sums, or a sample's instead
    of a population's deviation, are off by far more. The sketches themselves are exact.
    """
    raw = random_sketches(7, (30, 40, 50, 12))
    raw[1][3] = (5000, -30000, 0)
    raw[2][5] = (1000, -1000, 0)
    other = random_sketches(8, (20,))
    write(tmp_path, "a", train=raw, valid=other)
    write(tmp_path, "b", train=other)
    data = load_dataset(tmp_path, options(categories=("a", "b")))
    values = np.concatenate([*raw, *other]).astype(np.float64)
    assert math.isclose(data.scale_factor, np.std(values), rel_tol=1e-13)
    rounding = 0
    for split, sketches in (("train", [*raw, *other]), ("valid", other)):
        assert data.splits[split].scale_factor == data.scale_factor
        for i, sketch in enumerate(sketches):
            ours, expected = data.splits[split].sketch(i), formula(sketch, data.scale_factor)
            assert ours.dtype == np.float32 and np.array_equal(ours, expected)
            wide = (np.clip(sketch, -1000, 1000) / data.scale_factor).astype(np.float32)
            rounding += np.count_nonzero(wide[:, :2] != ours[:, :2])
    assert rounding > 0  # dividing in float64 would have shown
    assert np.abs(data.splits["train"].sketch(1)[3, :2] * data.scale_factor).max() < 1001


def test_scale_of_raw_values_of_other_types(tmp_path):
    """Files of float or wide integer sketches follow the same formula."""
    for dtype in (np.float64, np.float32, np.int64, np.int8):
        raw = random_sketches(9, (30, 40), dtype)
        raw[0][2:4, 0] *= 1 if dtype == np.int8 else 400
        if np.dtype(dtype).kind == "f":
            raw[1][:, :2] += dtype(0.123456789)
        write(tmp_path, train=raw)
        data = load_dataset(tmp_path, options())
        expected = np.std(np.concatenate(raw).astype(np.float64))
        assert math.isclose(data.scale_factor, expected, rel_tol=1e-13)
        for i, sketch in enumerate(raw):
            assert np.array_equal(
                data.splits["train"].sketch(i), formula(sketch, data.scale_factor)
            )


def test_files_of_different_types(tmp_path):
    """Categories of whole and of broken numbers make one set; each keeps its values."""
    types = {"a": np.int16, "b": np.float64, "c": np.int8, "d": ">i2"}
    raw = [random_sketches(i, (30, 4), types[name]) for i, name in enumerate(types)]
    raw[0][0][2, :2] = 3000
    raw[1][0][:, :2] += 0.123456789
    for name, sketches in zip(types, raw, strict=True):
        write(tmp_path, name, train=sketches)
    data = load_dataset(tmp_path, options(categories=tuple(types)))
    everything = [sketch for sketches in raw for sketch in sketches]
    values = np.concatenate(everything).astype(np.float64)
    assert math.isclose(data.scale_factor, np.std(values), rel_tol=1e-13)
    for i, sketch in enumerate(everything):
        assert np.array_equal(data.splits["train"].sketch(i), formula(sketch, data.scale_factor))
    whole = load_dataset(tmp_path, options(categories=("a", "d")))
    assert whole.splits["train"].rows.dtype == np.int16


def test_scale_of_many_sketches():
    """Large sets are summed in parts; the parts add up (1e-13, as above)."""
    sketches = random_sketches(10, [3, 2] * 60 + [900]) * 500
    assert len(sketches) > 60_000
    expected = np.std(np.concatenate(sketches).astype(np.float64))
    split = dataset.Split(
        rows=np.concatenate(sketches),
        ends=np.append(0, np.cumsum([len(sketch) for sketch in sketches])),
        category=np.zeros(len(sketches), np.int32),
        index=np.arange(len(sketches), dtype=np.int32),
        scale_factor=math.nan,
    )
    assert math.isclose(dataset._scale_factor(split), expected, rel_tol=1e-13)


def test_num_per_category(tmp_path):
    """The first k training sketches of each category, in file order, make the set and its scale."""
    first, second = random_sketches(11, (5, 6, 30, 40)), random_sketches(12, (4,))
    write(tmp_path, "a", train=first, valid=random_sketches(13, (5, 6, 7)))
    write(tmp_path, "b", train=second)
    data = load_dataset(tmp_path, options(categories=("a", "b"), num_per_category=2))
    train = data.splits["train"]
    assert train.category.tolist() == [0, 0, 1] and train.index.tolist() == [0, 1, 0]
    used = np.concatenate([*first[:2], *second]).astype(np.float64)
    assert math.isclose(data.scale_factor, np.std(used), rel_tol=1e-13)
    assert len(data.splits["valid"]) == 5  # three and two: other splits stay whole
    assert data.max_seq_len == 7  # those left out don't count


def test_a_given_scale_factor_is_used(tmp_path):
    """Scripts use the training run's scale, whatever is in their files."""
    raw = random_sketches(14, (6, 8))
    write(tmp_path, test=raw)
    data = load_dataset(tmp_path, options(), scale_factor=12.5, splits=("test",))
    assert set(data.splits) == {"test"} and data.scale_factor == 12.5
    assert np.array_equal(data.splits["test"].sketch(1), formula(raw[1], 12.5))


def test_a_scale_of_zero(tmp_path):
    """Values that are all the same give no scale; dividing by it would give NaN."""
    write(tmp_path, train=[np.ones((4, 3), np.int16)] * 3)
    assert "are the same" in refusal(load_dataset, tmp_path, options())


@pytest.mark.parametrize("longest", SPLITS)
def test_max_seq_len_from_the_data(tmp_path, longest):
    """T is the longest sketch of any split and category."""
    write(tmp_path, "a")
    write(tmp_path, "b", **{longest: random_sketches(15, (3, 23, 9))})
    assert load_dataset(tmp_path, options(categories=("a", "b"))).max_seq_len == 23


def test_max_seq_len_given(tmp_path):
    """A given T stays; sketches of exactly T rows too; longer ones go and are counted."""
    raw = random_sketches(16, (9, 10, 11, 3, 40))
    write(tmp_path, train=raw, valid=raw)
    data = load_dataset(tmp_path, options(max_seq_len=10))
    assert data.max_seq_len == 10
    for split in ("train", "valid"):
        assert data.splits[split].index.tolist() == [0, 1, 3]
        assert data.splits[split].lengths.tolist() == [9, 10, 3]
    assert data.remarks == ("4 sketches left out: more than 10 rows",)
    used = np.concatenate([raw[0], raw[1], raw[3]]).astype(np.float64)
    assert math.isclose(data.scale_factor, np.std(used), rel_tol=1e-13)
    assert load_dataset(tmp_path, options(max_seq_len=77)).max_seq_len == 77


def test_recorded_scale_factor():
    """The published data preparation's scale factor of 4,000 sketches, within 1e-13."""
    curve = golden_data.load_json("curve.json")
    categories = tuple(curve["data"]["categories"])
    paths = [golden_data.sketch_set(f"{curve['data']['folder']}/{name}") for name in categories]
    data = load_dataset(paths[0].parent, options(categories=categories, num_per_category=2000))
    assert len(data.splits["train"]) == 4000
    assert math.isclose(data.scale_factor, curve["scale_factor"], rel_tol=1e-13)


def test_recorded_sketches(tmp_path, dirty_memory):
    """Six recorded sketches, one of exactly T rows: scaled and padded as the published code does.

    The scale factor has 1e-13 of room for the order of summation, the rest is exact.
    """
    recorded = golden_data.load("model_lstm.npz")
    raw = [recorded[f"stroke3_raw_{i}"] for i in range(6)]
    write(tmp_path, train=raw, valid=raw, test=raw)
    data = load_dataset(tmp_path, options())
    assert math.isclose(data.scale_factor, float(recorded["scale_factor"]), rel_tol=1e-13)
    assert data.max_seq_len == 60 == max(map(len, raw))
    sketches = [data.splits["train"].sketch(i) for i in range(6)]
    for i, sketch in enumerate(sketches):
        assert sketch.dtype == np.float32
        assert np.array_equal(sketch, recorded[f"stroke3_scaled_{i}"])
    strokes = to_stroke5(sketches, 60)
    assert strokes.dtype == np.float32 and np.array_equal(strokes, recorded["input_seqs"])


def test_a_sketch_is_a_copy():
    """Changing a sketch leaves the split as it was."""
    split = split_of()
    before = split.sketch(2).copy()
    split.sketch(2)[:] = 0
    assert np.array_equal(split.sketch(2), before)


def test_stroke5(dirty_memory):
    """Start row, the sketch with its last lift, end rows; a sketch of T rows has no end row."""
    steps = 12
    sketches = random_sketches(17, (12, 2, 11, 5), np.float32)
    expected = []
    for sketch in sketches:
        rows = [[0, 0, 1, 0, 0]]
        for dx, dy, lifted in sketch.tolist():
            rows.append([dx, dy, 0, 1, 0] if lifted else [dx, dy, 1, 0, 0])
        while len(rows) < steps + 1:
            rows.append([0, 0, 0, 0, 1])
        expected.append(rows)
    strokes = to_stroke5(sketches, steps)
    assert strokes.dtype == np.float32 and strokes.tolist() == expected
    assert strokes[0, -1].tolist()[2:] == [0, 1, 0]
    with pytest.raises(ValueError):
        to_stroke5(sketches, steps - 1)


# Augmentation.


def test_no_augmentation_by_default():
    """Both options are off by default: the same values, and no random number is drawn."""
    rng, untouched = np.random.default_rng(1), np.random.default_rng(1)
    sketch = random_sketch(rng, 20, np.float32)
    random_sketch(untouched, 20)
    assert np.array_equal(augment(sketch, options(), rng), sketch)
    assert rng.random() == untouched.random()
    split = split_of()
    (batch,) = take(training_batches(split, options(mask_prob=0.0), 12), 1)
    plain = to_stroke5([split.sketch(i) for i in who(batch, split)], 12)
    assert np.array_equal(batch["strokes"], plain)


def test_stretching():
    """dx and dy of a whole sketch get a factor each, uniform in [1 - r, 1 + r], independent.

    Bounds at five standard errors of 4,000 draws: of a mean, sd / sqrt(n); of a uniform's
    variance, var * sqrt(0.8 / n); of a correlation of zero, 1 / sqrt(n).
    """
    r, n = 0.2, 4000
    sketch = np.array([(1, 1, 0), (-2, 3, 1), (4, -0.5, 0)], np.float32)
    before = sketch.copy()
    hparams, rng = options(random_scale_factor=r), np.random.default_rng(2)
    factors = np.empty((n, 2))
    for i in range(n):
        stretched = augment(sketch, hparams, rng)
        factors[i] = stretched[0, :2]
        assert stretched.dtype == np.float32 and stretched.shape == sketch.shape
        assert np.array_equal(stretched[:, :2], sketch[:, :2] * stretched[0, :2])
        assert np.array_equal(stretched[:, 2], sketch[:, 2])
    assert np.array_equal(sketch, before)
    variance = (2 * r) ** 2 / 12
    assert (np.abs(factors.mean(0) - 1) < 5 * np.sqrt(variance / n)).all()
    assert (np.abs(factors.var(0) / variance - 1) < 5 * np.sqrt(0.8 / n)).all()
    assert abs(np.corrcoef(factors.T)[0, 1]) < 5 / np.sqrt(n)
    # Rounding to float32 may pass the ends of the interval by half a unit in the last place.
    assert factors.min() >= 1 - r - 1e-7 and factors.max() <= 1 + r + 1e-7


def drop_rows(sketch, uniforms, prob):
    """Dropping, rule by rule: a list of rows, each with its number in its run of unlifted rows."""
    kept, number = [], 0
    for (dx, dy, lifted), u in zip(sketch.tolist(), uniforms, strict=True):
        previous_lifts = not kept or kept[-1][2] == 1
        number = 0 if lifted == 1 or previous_lifts else number + 1
        if number >= 3 and u < prob:
            kept[-1][0] += dx
            kept[-1][1] += dy
        else:
            kept.append([dx, dy, lifted])
    return kept


@pytest.mark.parametrize("prob", [0.1, 0.5, 1.0])
def test_dropping(prob):
    """Rows go exactly where the rule says, by the same uniform numbers: one a row.

    Whole numbers, so that float32 sums are exact.
    """
    hparams, dropped = options(augment_stroke_prob=prob), 0
    for i in range(60):
        sketch = random_sketch(np.random.default_rng([3, i]), 2 + i, np.float32)
        before = sketch.copy()
        shorter = augment(sketch, hparams, np.random.default_rng([4, i]))
        uniforms = np.random.default_rng([4, i]).random(len(sketch))
        assert shorter.dtype == np.float32
        assert shorter.tolist() == drop_rows(sketch, uniforms, prob)
        assert np.array_equal(sketch, before)
        dropped += len(sketch) - len(shorter)
    assert dropped > 0


def test_merged_rows_are_added_in_order():
    """Rows that go are added to the one that stays first to last, which decides the rounding."""
    rng = np.random.default_rng(14)
    sketch = rng.normal(0, 1, (60, 3)).astype(np.float32)
    sketch[:, 2] = 0
    kept = augment(sketch, options(augment_stroke_prob=1.0), rng)
    assert len(kept) == 3
    expected = sketch[2, :2].copy()
    for row in sketch[3:, :2]:
        expected += row
    assert np.array_equal(kept[2, :2], expected)
    assert not np.array_equal(sketch[2:, :2].sum(axis=0, dtype=np.float64), expected)


def test_dropping_keeps_the_drawing():
    """All strokes stay, and each begins and ends where it did; a short stroke is left alone."""
    hparams, rng = options(augment_stroke_prob=1.0), np.random.default_rng(5)

    def ends(sketch):
        points = np.cumsum(sketch[:, :2], axis=0)
        lifted = np.flatnonzero(sketch[:, 2])
        starts = [row + 1 for row in lifted if row + 1 < len(sketch)]
        return points[lifted].tolist(), points[starts].tolist(), points[-1].tolist()

    for i in range(40):
        sketch = random_sketch(rng, 2 + 2 * i, np.float32)
        assert ends(augment(sketch, hparams, rng)) == ends(sketch)
    # The first three rows of a stroke and its lifting row can't go; the two between them do.
    stroke = [(1, 0, 0), (2, 0, 0), (4, 0, 0), (8, 0, 0), (16, 0, 0), (32, 0, 1)]
    twice = np.array([*stroke, *stroke], np.float32)
    short = [[1, 0, 0], [2, 0, 0], [28, 0, 0], [32, 0, 1]]
    assert augment(twice, hparams, rng).tolist() == [*short, *short]
    assert augment(twice[:3], hparams, rng).tolist() == twice[:3].tolist()


def test_share_of_rows_dropped():
    """Of the rows that may go, a share p goes: within five standard errors of a binomial."""
    p, rows = 0.3, 4003
    sketch = np.zeros((rows, 3), np.float32)
    gone = rows - len(augment(sketch, options(augment_stroke_prob=p), np.random.default_rng(6)))
    may_go = rows - 3
    assert abs(gone - p * may_go) < 5 * math.sqrt(may_go * p * (1 - p))


def test_stretching_comes_before_dropping():
    """Merged rows are stretched as a whole sketch is, and pictures show the augmented sketch."""
    both = options(random_scale_factor=0.3, augment_stroke_prob=0.6, mask_prob=0.0, batch_size=5)
    sketch = random_sketch(np.random.default_rng(7), 50, np.float32)
    stretched = augment(sketch, options(random_scale_factor=0.3), np.random.default_rng(8))
    rng = np.random.default_rng(8)
    rng.random(2)  # the two factors
    expected = augment(stretched, options(augment_stroke_prob=0.6), rng)
    assert np.array_equal(augment(sketch, both, np.random.default_rng(8)), expected)
    assert 3 < len(expected) < 50

    split = split_of((40, 45, 50, 42, 47))
    (batch,) = take(training_batches(split, both, 50), 1)
    for strokes, nodes in zip(batch["strokes"], batch["nodes"], strict=True):
        length = int(strokes[1:, 4].argmax()) if strokes[1:, 4].any() else 50
        drawn = np.column_stack([strokes[1 : length + 1, :2], strokes[1 : length + 1, 3]])
        graph = utils.make_graph(drawn, graph_number=8, graph_picture_size=16)
        assert np.array_equal(batch["pictures"][nodes], graph.patches)
        assert length < 50


# Batches.


ALL_RANDOM = {"mask_prob": 0.4, "random_scale_factor": 0.2, "augment_stroke_prob": 0.3}


@pytest.mark.parametrize("workers", [2, 3, 9])
def test_batches_do_not_depend_on_the_workers(workers):
    """Threads only change the speed: 1 and more give the same batches, over several passes."""
    split, hparams = split_of(), options(**ALL_RANDOM)
    one, many = (
        take(training_batches(split, hparams, 12, workers=count), 7) for count in (1, workers)
    )
    assert_same_batches(one, many)
    one, many = (
        list(evaluation_batches(split, hparams, stream="valid", workers=count))
        for count in (1, workers)
    )
    assert_same_batches(one, many)


def test_resuming_at_any_batch():
    """A run taken up at (pass, batch) sees the very batches that it would have seen."""
    split, hparams = split_of(), options(**ALL_RANDOM)
    per_pass = len(split) // hparams.batch_size
    assert per_pass == 2
    whole = take(training_batches(split, hparams, 12), 8)
    for done in range(6):
        number, batch = divmod(done, per_pass)
        starts = [(number, batch)] + ([(number - 1, per_pass)] if number and not batch else [])
        for first_pass, first_batch in starts:  # the end of a pass is the start of the next
            resumed = training_batches(
                split, hparams, 12, first_pass=first_pass, first_batch=first_batch, workers=2
            )
            assert_same_batches(take(resumed, 8 - done), whole[done:])


def test_a_pass_has_every_sketch_at_most_once():
    """Only the rest that fills no batch is left out of a pass, another rest each time."""
    split, hparams = split_of(), options(mask_prob=0.5)
    batches = take(training_batches(split, hparams, 12), 20)
    rests = set()
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        members = who(first, split) + who(second, split)
        assert len(set(members)) == len(members) == 8
        rests |= set(range(len(split))) - set(members)
    assert rests == set(range(len(split)))  # in ten passes nobody is left out always
    exact = split_of((6, 9, 4, 12, 7, 5, 8, 10))
    members = sum((who(b, exact) for b in take(training_batches(exact, hparams, 12), 2)), [])
    assert sorted(members) == list(range(8))


def test_passes_differ():
    """Each pass has an order, masks, noise and stretching of its own."""
    split = split_of((9,) * 8)
    plain = options(mask_prob=0.4, batch_size=8)
    passes = take(training_batches(split, plain, 12), 2)
    orders = [who(batch, split) for batch in passes]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert orders[0] != orders[1] and list(range(8)) not in orders
    masks = [
        batch["graph_masks"][np.argsort(order)] for batch, order in zip(passes, orders, strict=True)
    ]
    assert sum(not np.array_equal(*pair) for pair in zip(*masks, strict=True)) > 2
    assert not np.isin(passes[0]["eps"], passes[1]["eps"]).any()
    assert not np.isin(passes[0]["dropout_seed"], passes[1]["dropout_seed"]).any()
    # Without stretching both passes have the same first offsets, with it none is the same.
    for r in (0.0, 0.2):
        stretched = plain.replace(random_scale_factor=r)
        first, second = (
            batch["strokes"][:, 1, 0] for batch in take(training_batches(split, stretched, 12), 2)
        )
        assert np.isin(first, second).all() if r == 0 else not np.isin(first, second).any()


def test_the_seed_decides():
    """Another seed changes order and random numbers; the same seed nothing."""
    split = split_of()
    same = [take(training_batches(split, options(seed=3), 12), 2) for _ in range(2)]
    assert_same_batches(*same)
    other = take(training_batches(split, options(seed=4), 12), 2)
    assert [who(b, split) for b in other] != [who(b, split) for b in same[0]]
    assert not np.isin(other[0]["eps"], same[0][0]["eps"]).any()


def test_random_numbers_are_the_sketchs_own():
    """Mask, noise and dropout seed of a sketch don't depend on the batch that it is in."""
    split = split_of()
    seen = []
    for size in (2, 5, 11):
        own = {}
        hparams = options(mask_prob=0.5, batch_size=size)
        for batch in take(training_batches(split, hparams, 12), len(split) // size):
            for place, i in enumerate(who(batch, split)):
                own[i] = [
                    batch[name][place].tolist() for name in ("eps", "graph_masks", "dropout_seed")
                ] + [batch["pictures"][batch["nodes"][place]].tolist()]
        seen.append(own)
    assert len(seen[2]) == 11
    for own in seen[:2]:
        assert len(own) == 10
        for i, numbers in own.items():
            assert numbers == seen[2][i]


def test_noise_and_masks_have_their_distributions():
    """eps is standard normal, mask_prob the share of patches that is erased: at five standard
    errors (mean 1 / sqrt(n), variance sqrt(2 / n), share sqrt(p q / n)); seeds all differ."""
    p = 0.3
    split = split_of((40,) * 50)
    hparams = options(mask_prob=p, batch_size=50, z_size=64)
    batches = take(training_batches(split, hparams, 40), 4)
    eps = np.concatenate([batch["eps"].ravel() for batch in batches]).astype(np.float64)
    assert abs(eps.mean()) < 5 / math.sqrt(eps.size)
    assert abs(eps.var() - 1) < 5 * math.sqrt(2 / eps.size)
    kept = np.concatenate([np.diagonal(b["graph_masks"], 0, 1, 2).ravel() for b in batches])
    assert kept.size == 4 * 50 * 7  # sketches of 40 rows fill all patches
    assert abs(1 - kept.mean() - p) < 5 * math.sqrt(p * (1 - p) / kept.size)
    seeds = np.concatenate([batch["dropout_seed"] for batch in batches])
    assert seeds.dtype == np.int32 and seeds.min() >= 0
    assert np.unique(seeds).size == seeds.size and seeds.max() > 2**30


def test_evaluation_has_every_sketch_once_in_order(dirty_memory):
    """Nothing is left out, masked or augmented, whatever the options of training say."""
    split, hparams = split_of(), options(**ALL_RANDOM)
    batches = list(evaluation_batches(split, hparams, stream="valid", workers=1))
    assert [len(batch["eps"]) for batch in batches] == [4, 4, 3]
    assert sum((who(batch, split) for batch in batches), []) == list(range(11))
    for start, batch in zip((0, 4, 8), batches, strict=True):
        sketches = [split.sketch(i) for i in range(start, start + len(batch["eps"]))]
        assert np.array_equal(batch["strokes"], to_stroke5(sketches, max(map(len, sketches))))
        for place, sketch in enumerate(sketches):
            graph = utils.make_graph(sketch, graph_number=8, graph_picture_size=16)
            assert np.array_equal(batch["pictures"][batch["nodes"][place]], graph.patches)
            mask = utils.graph_mask(graph.n_patches, [], 8)
            assert np.array_equal(batch["graph_masks"][place], mask)


def test_evaluation_is_independent_of_the_batch_size():
    """The noise of a sketch comes from (seed, split, index): a loss is the same in any batch."""
    split = split_of()

    def noise(stream="valid", **changes):
        batches = evaluation_batches(split, options(**changes), stream=stream)
        return np.concatenate([batch["eps"] for batch in batches])

    reference = noise()
    assert np.unique(reference).size == reference.size == 11 * 5
    for size in (1, 3, 11, 40):
        assert np.array_equal(noise(batch_size=size), reference)
    assert not np.isin(noise("test"), reference).any()
    assert not np.isin(noise(seed=9), reference).any()
    trained = take(training_batches(split, options(), 12), 6)
    assert not any(np.isin(batch["eps"], reference).any() for batch in trained)


def test_closing_ends_the_threads():
    """Endless batches end when their reader has enough: no thread is left behind."""
    before = set(threading.enumerate())
    batches = training_batches(split_of(), options(), 12, workers=3)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    assert not set(threading.enumerate()) - before


def test_a_failure_reaches_the_reader(monkeypatch):
    """What goes wrong in a thread is raised where the batches are read, not swallowed."""

    def broken(sketches, size):
        raise ValueError("no canvas")

    monkeypatch.setattr("utils.lay_out", broken)
    with pytest.raises(ValueError, match="no canvas"):
        list(evaluation_batches(split_of((6, 7, 5)), options(), stream="test", workers=1))


def test_a_sketch_of_one_row_is_a_blank_canvas():
    """Generated sketches may be that short; they have blank nodes and no patches."""
    packed = pack_graphs([np.zeros((1, 3)), np.zeros((0, 3))], options(graph_number=5))
    assert packed["pictures"].shape[0] == 1 and not packed["pictures"].any()
    assert not packed["nodes"].any()
    for mask in packed["graph_masks"]:
        np.testing.assert_array_equal(mask, utils.graph_mask(0, [], 5))


@pytest.mark.parametrize(
    "view",
    [
        lambda pictures: pictures,
        lambda pictures: pictures[1:3],
        lambda pictures: pictures.reshape(-1)[5:].view(np.int8),
        lambda pictures: memoryview(pictures),
        lambda pictures: np.asarray(memoryview(pictures)).T,
    ],
)
def test_memory_comes_again_when_nobody_has_it(view):
    """Pictures stay while any view of them is held; then their memory serves later ones."""
    hparams = options(graph_picture_size=64)
    sketches = random_sketches(22, (9, 30), np.float32)

    def pictures():
        return pack_graphs(sketches, hparams)["pictures"]

    def place(array):
        return array.__array_interface__["data"][0]

    first = pictures()
    where, held = place(first), view(first)
    before = bytes(np.ascontiguousarray(held))
    del first
    others = [pictures() for _ in range(4)]
    assert where not in map(place, others)
    for other in others:
        other[:] = 9
    assert bytes(np.ascontiguousarray(held)) == before
    del held, others, other
    assert where in [place(again) for again in [pictures() for _ in range(5)]]


def batch_of(sketches, mask_prob, hparams, seed=0):
    rngs = [np.random.default_rng([seed, i]) for i in range(len(sketches))]
    return make_batch(sketches, hparams, max(map(len, sketches)), rngs, mask_prob)


@pytest.mark.parametrize("size", [16, 64, 256])
@pytest.mark.parametrize("mask_prob", [0.0, 0.4, 1.0])
def test_batches_have_make_graphs_pictures(size, mask_prob, dirty_memory):
    """Expanded, the shared pictures are `make_graph`'s patches for the same masks, exactly.

    Which patches are masked is read from the graph masks, so the random stream does not matter.
    """
    hparams = options(graph_number=11, graph_picture_size=size)
    sketches = [
        formula(doodles.doodle(name, np.random.default_rng([9, i])), 31.7)
        for i, name in enumerate(doodles.CATEGORIES[:4])
    ]
    sketches += [formula(sketch, 31.7) for sketch in random_sketches(20, (2, 5, 30))]
    sketches.append(np.zeros((2, 3), np.float32))  # a dot
    batch = batch_of(sketches, mask_prob, hparams)
    assert batch["pictures"].dtype == np.uint8 and batch["nodes"].dtype == np.int32
    assert batch["graph_masks"].dtype == np.float32 and batch["eps"].dtype == np.float32
    masked_patches = 0
    for i, sketch in enumerate(sketches):
        n = utils.make_graph(sketch, graph_number=11, graph_picture_size=size).n_patches
        masked = [k for k in range(n) if batch["graph_masks"][i, k, k] == 0]
        seeds = np.ones(n)
        seeds[masked] = 0
        graph = utils.make_graph(
            sketch, graph_number=11, graph_picture_size=size, mask_prob=0.5, seeds=seeds
        )
        assert graph.masked == masked
        assert np.array_equal(batch["pictures"][batch["nodes"][i]], graph.patches)
        assert np.array_equal(batch["graph_masks"][i], utils.graph_mask(n, masked, 11))
        masked_patches += len(masked)
    assert (masked_patches > 0) == (mask_prob > 0)


@pytest.mark.parametrize("mask_prob", [0.0, 0.4, 1.0])
def test_no_blank_picture_is_stored_twice(mask_prob, dirty_memory):
    """Picture 0 is blank and serves all blank nodes; every other is inked and used once."""
    hparams = options(graph_number=11, graph_picture_size=64)
    sketches = [formula(sketch, 31.7) for sketch in random_sketches(21, (2, 5, 30, 9))]
    sketches += [np.zeros((2, 3), np.float32)] * 2  # dots, blank altogether when erased
    batch = batch_of(sketches, mask_prob, hparams)
    pictures, nodes = batch["pictures"], batch["nodes"]
    assert pictures.shape[1:] == (64, 64)
    inked = pictures.any(axis=(1, 2))
    assert not inked[0] and inked[1:].all()
    assert (nodes == 0).any()
    assert np.sort(nodes[nodes > 0]).tolist() == list(range(1, len(pictures)))
    blank_nodes = np.count_nonzero(~pictures[nodes].any(axis=(2, 3)))
    assert blank_nodes == np.count_nonzero(nodes == 0)
