"""Files from unknown sources: what they claim takes no memory, other layouts of sketches are
read where it is certain what they are, and a split is told why nothing is left of it.

Comparisons are exact: nothing is computed but offsets.
"""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sketch_files import npy, objects, refusal

import dataset
import utils
from dataset import SPLITS, load_dataset, read_sketch_file
from hparams import HParams, parse_hparams
from support.checks import check_real, check_whole, check_workers
from support.files import is_of_type, read_json, read_npy, read_npz
from support.layouts import to_stroke3

ROOT = Path(dataset.__file__).parent
MAX_GROWTH = 256  # MiB that a file of at most 16 MiB unpacked may take
MAX_SECONDS = 20  # for one file; a slow machine needs a few


def some_sketches(count=8, rows=12, seed=0):
    """Stroke-3 sketches of rows to rows + 3 rows."""
    rng = np.random.default_rng(seed)
    sketches = []
    for i in range(count):
        n = rows + i % 4
        pens = rng.random(n) < 0.2
        pens[-1] = True
        sketches.append(np.column_stack([rng.integers(-60, 60, (n, 2)), pens]).astype(np.int16))
    return sketches


def write(directory, name="star", **splits):
    """`<directory>/<name>.npz`; a split not given holds eight sketches."""
    given = {split: splits.get(split, objects(some_sketches(seed=3))) for split in SPLITS}
    np.savez(directory / f"{name}.npz", **given)


def archive(path, train, method=zipfile.ZIP_DEFLATED):
    """An .npz whose train member is given as bytes."""
    sound = npy(pickle.dumps(objects(some_sketches()), protocol=2), 8)
    with zipfile.ZipFile(path, "w", method) as file:
        for split in SPLITS:
            file.writestr(f"{split}.npy", train if split == "train" else sound)


def options(**changes):
    return HParams(**{"categories": ("star",), "batch_size": 4, "num_mixture": 3, **changes})


# Bombs: small files that claim much.

ARRAY = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87R"
)
OBJECT = (
    b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
)


def number(n):
    return b"J" + struct.pack("<i", n)


def object_array(count, items):
    """A pickled 1-D array of `count` objects, its items pickled already."""
    return ARRAY + b"(K\x01" + number(count) + b"\x85" + OBJECT + b"\x89](" + items + b"etb."


def same_sketch_again(count):
    """One sketch of 1000 rows, stored once and named again and again."""
    sketch = pickle.dumps(np.ones((1000, 3), np.int16), protocol=2)[2:-1]
    return object_array(count, sketch + b"q\xff" + b"h\xff" * (count - 1))


def doubling(levels):
    """Arrays of two arrays of two arrays ...: 2**levels in all, each stored once."""
    made = b"K\x01"
    for level in range(levels):
        inner = ARRAY[2:] + b"(K\x01K\x02\x85" + OBJECT + b"\x89](" + made
        made = inner + b"q" + bytes([9 + level]) + b"h" + bytes([9 + level]) + b"etb"
    return object_array(2, made + b"q\xf0h\xf0")


def fill(byte, size=15 * 2**20):
    return npy(b"\x80\x02" + byte * (size // len(byte)) + b".")


PICKLES = {
    "a place far away in the memo": npy(b"\x80\x02Nr\xff\xff\xff\x7f."),
    "every place in the memo": npy(
        b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", 2 * i) for i in range(10**6)) + b"."
    ),
    "empty lists": fill(b"]"),
    "lists in lists": fill(b"](") + b"e",
    "tuples in tuples": fill(b")\x85"),
    "marks": fill(b"("),
    "the same again": fill(b"N2"),
    "numbers": npy(object_array(10**6, b"M\x01\x80" * 10**6), 10**6),
    "one sketch again and again": npy(same_sketch_again(10**6), 10**6),
    "arrays that multiply": npy(doubling(60), 2),
    "10**8 entries of nothing": npy(
        ARRAY + b"(K\x02J\x00\xe1\xf5\x05K\x00\x86" + OBJECT + b"\x89]tb.", 10**8, 0
    ),
    "a text of 2**60 bytes": npy(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x."),
    "bytes of 2**60 bytes": npy(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x."),
    "bytes of 4 GB": npy(b"\x80\x02T\xff\xff\xff\xffx."),
    "a number of a million digits": npy(b"I" + b"9" * 10**6 + b"\n."),
    "a number of 200 MB": npy(b"\x80\x02\x8b\xff\xff\xff\x0c."),
    "a frame of 2**60 bytes": npy(b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N."),
}


def header(descr, shape, data=b""):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


HEADERS = {
    "10**8 sketches without rows": header("<i2", (10**8, 0)),
    "2**60 numbers": header("<i2", (2**60,)),
    "2**200 numbers": header("<i2", (2**100, 2**100)),
    "texts of no characters": header("<U0", (10**9,)),
    "texts of a gigabyte": header("<U999999999", (3,)),
    "many dimensions": header("<i2", (1,) * 33, b"xx"),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xffx",
    "parentheses": b"\x93NUMPY\x01\x00\xff\x3f" + b"(" * 0x3FFF,
}


def patched(path, **changes):
    """Changes fields of the first entry of a zip file's list of members."""
    places = {"flags": (8, "<H"), "packed": (20, "<I"), "unpacked": (24, "<I")}
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    for name, value in changes.items():
        place, form = places[name]
        struct.pack_into(form, content, entry + place, value)
    path.write_bytes(content)


def write_bombs(folder):
    """Many small files that claim much."""
    for i, payload in enumerate([*PICKLES.values(), *HEADERS.values()]):
        archive(folder / f"{i}.npz", payload)
    archive(folder / "ratio.npz", b"\0" * (40 * 2**20))
    archive(folder / "bzip2.npz", b"\0" * (10 * 2**20), zipfile.ZIP_BZIP2)
    archive(folder / "claims.npz", npy(b"N."))
    patched(folder / "claims.npz", unpacked=2**31 - 1)
    archive(folder / "claims_both.npz", npy(b"N."))
    patched(folder / "claims_both.npz", unpacked=2**31 - 1, packed=2**31 - 1)
    archive(folder / "encrypted.npz", npy(b"N."))
    patched(folder / "encrypted.npz", flags=1)
    with pytest.warns(UserWarning), zipfile.ZipFile(folder / "twice.npz", "w") as file:
        for name in (*SPLITS, "train"):
            file.writestr(f"{name}.npy", npy(b"N."))
    with zipfile.ZipFile(folder / "members.npz", "w") as file:
        for i in range(5_000):
            file.writestr(f"{'n' * 1000}{i}", b"")


CHILD = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
import dataset
from hparams import HParams
from pathlib import Path
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
begin = peak()
for path in sorted(Path(sys.argv[2]).glob("*.npz")):
    start = time.perf_counter()
    try:
        dataset.load_dataset(path.parent, HParams(categories=(path.stem,)))
        message = "read"
    except dataset.UserError as error:
        message = str(error)
    print(json.dumps([path.stem, message, time.perf_counter() - start, peak() - begin]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured on Linux")
@pytest.mark.slow
def test_bombs_take_neither_memory_nor_time(tmp_path):
    """Each is refused with a line, in a process whose peak of memory is measured."""
    write_bombs(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, ROOT, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(list(tmp_path.glob("*.npz"))) > 30
    for name, message, seconds, growth in found:
        assert message != "read" and message.splitlines() == [message], (name, message)
        assert f"{name}.npz" in message
        assert seconds < MAX_SECONDS, (name, message)
        assert growth < MAX_GROWTH, (name, message)


def test_bombs_are_refused_for_what_they_are(tmp_path):
    """The lines name the cause, so that a user whose file is sound can tell."""
    expected = {
        "a place far away in the memo": "remembers entry",
        "empty lists": "more lists than its bytes account for",
        "one sketch again and again": "over and over",
        "10**8 entries of nothing": "without any values",
        "bytes of 4 GB": "breaks off",
        "a number of a million digits": "too large",
    }
    for name, part in expected.items():
        archive(tmp_path / "star.npz", PICKLES[name])
        assert part in refusal(load_dataset, tmp_path, options()), name
    archive(tmp_path / "star.npz", b"\0" * (30 * 2**20))
    assert "claims to unpack" in refusal(load_dataset, tmp_path, options())
    archive(tmp_path / "star.npz", npy(b"N."))
    patched(tmp_path / "star.npz", flags=1)
    assert "encrypted" in refusal(load_dataset, tmp_path, options())
    archive(tmp_path / "star.npz", npy(b"N."), zipfile.ZIP_BZIP2)
    assert "not packed as NumPy does it" in refusal(load_dataset, tmp_path, options())


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_what_picklers_write_is_read(tmp_path, protocol):
    """Any protocol, entries shared or not, texts and numbers of all sizes beside sketches."""
    sketch = some_sketches()[0]
    entries = [
        sketch,
        sketch,
        *some_sketches(40),
        None,
        True,
        2**40,
        -7,
        300,
        1.5,
        "é",
        (1, 2),
        [[1, 2, 0], [3, -4000, 1]],
        np.asfortranarray(sketch),
        objects([1, 2]),
    ]
    payload = pickle.dumps(objects(entries), protocol=protocol)
    archive(tmp_path / "star.npz", npy(payload, len(entries)))
    read = read_sketch_file(tmp_path / "star.npz")["train"]
    assert len(read) == len(entries)
    for ours, entry in zip(read, entries, strict=True):
        if isinstance(entry, np.ndarray):
            assert np.array_equal(ours, entry) and ours.dtype.kind == entry.dtype.kind
        else:
            assert ours == entry and type(ours) is type(entry)


# Other layouts of sketches.


def as_lists(sketch):
    return sketch.tolist()


def as_objects(sketch):
    return sketch.astype(object)


def as_tuples(sketch):
    return tuple(map(tuple, sketch.tolist()))


def as_list_of_rows(sketch):
    return list(sketch)


def stroke5(sketch, end=True):
    rows = np.zeros((len(sketch) + end, 5), np.int16)
    rows[: len(sketch), :2] = sketch[:, :2]
    rows[: len(sketch), 2] = 1 - sketch[:, 2]
    rows[: len(sketch), 3] = sketch[:, 2]
    if end:
        rows[-1, 4] = 1
    return rows


def stroke5_padded(sketch):
    rows = np.zeros((40, 5), np.float32)
    rows[:, 4] = 1
    whole = stroke5(sketch, False)
    rows[: len(whole)] = whole
    return rows


def stroke5_end_on_the_last(sketch):
    rows = stroke5(sketch, False)
    rows[-1, 4] = 1
    return rows


def padded4(sketch):
    rows = np.full((40, 4), -1.0)
    rows[: len(sketch)] = stroke5(sketch, False)[:, :4]
    return rows


LAYOUTS = [
    as_lists,
    as_tuples,
    as_objects,
    as_list_of_rows,
    stroke5,
    stroke5_padded,
    stroke5_end_on_the_last,
    padded4,
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_give_the_same_sketches(tmp_path, layout):
    """Where it is certain what they are, they are the same data, with a note."""
    sketches = some_sketches()
    write(tmp_path, "plain", train=objects(sketches))
    write(tmp_path, "other", train=objects([layout(sketch) for sketch in sketches]))
    plain = load_dataset(tmp_path, options(categories=("plain",)))
    other = load_dataset(tmp_path, options(categories=("other",)))
    for i, sketch in enumerate(sketches):
        expected = sketch.astype(np.float32)
        expected[:, :2] /= np.float32(plain.scale_factor)
        assert np.array_equal(other.splits["train"].sketch(i), expected)
    assert other.scale_factor == plain.scale_factor and plain.warnings == ()
    (note,) = other.warnings
    assert note.startswith("8 sketches read as stroke-3 from ")


@pytest.mark.parametrize("count", [1, 5])
def test_equally_long_sketches_in_one_object_array(tmp_path, count):
    """NumPy turns them into an array of shape (N, n, 3), of which rows are no entries."""
    sketches = [some_sketches(1, seed=i)[0] for i in range(count)]
    stacked = np.array([sketch.tolist() for sketch in sketches], dtype=object)
    assert stacked.shape == (count, 12, 3)
    for array in (stacked, np.stack(sketches), np.asfortranarray(np.stack(sketches))):
        write(tmp_path, train=array)
        split = load_dataset(tmp_path, options()).splits["train"]
        assert split.lengths.tolist() == [12] * count
        assert np.array_equal(split.rows, np.concatenate(sketches))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (np.zeros((9, 4)), "are of shape (n, 4), not (n, 3)"),
        (np.ones((9, 5)), "are of shape (n, 5), not (n, 3)"),
        (stroke5(some_sketches()[0])[:, ::-1], "are of shape (n, 5), not (n, 3)"),
        (np.zeros((9, 2)), "are of shape (n, 2), not (n, 3)"),
        (np.zeros(9), "have 1 dimensions, not the shape (n, 3)"),
        (np.zeros((9, 3), bool), "are of type bool, not of numbers"),
        ([[1, 2], [3, 4]], "are lists, but not of rows of three numbers"),
        ([1, 2, 3], "are lists, but not of rows of three numbers"),
        ([[1, 2, "0"]] * 3, "are lists, but not of rows of three numbers"),
        ([[1, 2, 2**63 - 1], [1, 2, 0.5, 1]], "are lists, but not of rows of three numbers"),
        (np.array([[1, 2, None]] * 3, object), "are arrays of objects, not of numbers"),
        (None, "are no arrays, but of type NoneType"),
        ("text", "are no arrays, but of type str"),
    ],
    ids=repr,
)
def test_what_can_be_anything_is_refused_with_the_reason(tmp_path, entry, reason):
    """A split of such entries names how many there are and what they are."""
    if isinstance(entry, np.ndarray):
        assert to_stroke3(entry) == (None, reason)
    write(tmp_path, valid=objects([entry, entry, np.zeros((1, 3), np.int16)]))
    text = refusal(load_dataset, tmp_path, options())
    assert "the valid split" in text
    if "numbers" not in reason or not isinstance(entry, list):
        assert f"2 {reason}" in text
    assert "1 have fewer than two rows" in text


def with_pens(*values):
    rng = np.random.default_rng(1)
    sketches = some_sketches()
    for sketch in sketches:
        sketch[:, 2] = rng.choice(values, len(sketch))
        sketch[:2, 2] = values[:2]
    return sketches


@pytest.mark.parametrize("values", [(-1, 1), (0, 255), (0, 2), (0, -1)])
def test_other_pens_are_refused_with_a_count(tmp_path, values):
    """They would all count as "not lifted"; which value is which can't be known."""
    write(tmp_path, train=objects(with_pens(*values)))
    text = refusal(load_dataset, tmp_path, options())
    assert "8 have pen values other than 0 (drawing) and 1" in text
    assert ", ".join(str(value) for value in sorted(values)) in text
    mixed = [*some_sketches(), *with_pens(*values)[:3]]
    write(tmp_path, train=objects(mixed))
    data = load_dataset(tmp_path, options())
    assert len(data.splits["train"]) == 8
    (warning,) = data.warnings
    assert warning.startswith("3 sketches skipped: 3 have pen values")


def test_pens_of_floats_and_booleans(tmp_path):
    """0.0 and 1.0, False and True are 0 and 1; what lies between is refused."""
    sketches = some_sketches()
    floats = [sketch.astype(np.float64) for sketch in sketches]
    booleans = [[[x, y, bool(pen)] for x, y, pen in sketch.tolist()] for sketch in sketches]
    for entries in (floats, booleans):
        write(tmp_path, train=objects(entries))
        rows = load_dataset(tmp_path, options()).splits["train"].rows
        assert np.array_equal(rows, np.concatenate(sketches))
    floats[2][3, 2] = 0.5
    write(tmp_path, train=objects(floats))
    (warning,) = load_dataset(tmp_path, options()).warnings
    assert warning.startswith("1 sketches skipped: 1 have pen values")


def test_a_split_emptied_by_the_length(tmp_path):
    """How many, why, and what the shortest has."""
    write(tmp_path, train=objects(some_sketches(rows=30)))
    text = refusal(load_dataset, tmp_path, options(max_seq_len=20))
    assert text.endswith("8 have more rows than max_seq_len, the shortest of them 30")
    write(tmp_path, train=objects([]))
    assert refusal(load_dataset, tmp_path, options()).endswith(": it is empty")


@pytest.mark.parametrize("value", [1e200, 1e10, -1e38])
def test_offsets_beyond_all_measure(tmp_path, value):
    """The line is about the sketches, and not about the scale factor's file."""
    sketches = [sketch.astype(np.float64) for sketch in some_sketches()]
    for sketch in sketches:
        sketch[3, 0] = value
    write(tmp_path, train=objects(sketches))
    assert "8 have offsets above 1,000,000,000" in refusal(load_dataset, tmp_path, options())
    for sketch in sketches:
        sketch[:, :2] *= 1e-300
        sketch[:, 2] = 0
    write(tmp_path, train=objects(sketches))
    refusal(load_dataset, tmp_path, options())


# A file with training sketches only.


def test_a_file_with_training_sketches_only(tmp_path):
    """It is refused unless asked for; then no sketch is in two splits, and all are in one."""
    sketches = some_sketches(50)
    for i, sketch in enumerate(sketches):
        sketch[0, 0] = 100 + i  # tells them apart
    np.savez(tmp_path / "star.npz", train=objects(sketches))
    assert "split_train" in refusal(load_dataset, tmp_path, options())
    hparams = parse_hparams("split_train=0.1", options(seed=5))
    data = load_dataset(tmp_path, hparams)

    def who(data, split):
        split = data.splits[split]
        return [int(split.rows[split.ends[i], 0]) - 100 for i in range(len(split))]

    parts = {split: who(data, split) for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [40, 5, 5]
    assert sorted(sum(parts.values(), [])) == list(range(50))
    assert data.splits["test"].index.tolist() == list(range(5))
    # One split alone, another number of training sketches, other categories: the same parts.
    alone = load_dataset(tmp_path, hparams, splits=("test",), scale_factor=1.0)
    assert who(alone, "test") == parts["test"]
    fewer = load_dataset(tmp_path, hparams.replace(num_per_category=7))
    assert who(fewer, "train") == parts["train"][:7] and who(fewer, "valid") == parts["valid"]
    write(tmp_path, "a")
    both = load_dataset(tmp_path, hparams.replace(categories=("a", "star")))
    star = both.splits["test"].category == 1
    assert star.sum() == 5 and both.splits["valid"].lengths[:8].tolist() == [12, 13, 14, 15] * 2
    other = load_dataset(tmp_path, hparams.replace(seed=6))
    assert who(other, "test") != parts["test"]


# Single files.


@pytest.mark.parametrize("value", [np.arange(12.0).reshape(3, 4), np.array("text"), np.zeros(0)])
def test_arrays_come_back(tmp_path, value):
    """What NumPy writes is read as NumPy reads it."""
    np.save(tmp_path / "a.npy", value)
    read = read_npy(tmp_path / "a.npy")
    assert read.dtype == value.dtype and np.array_equal(read, value)
    np.savez_compressed(tmp_path / "a.npz", one=value, two=value.T)
    read = read_npz(tmp_path / "a.npz")
    assert list(read) == ["one", "two"]
    assert np.array_equal(read["one"], value) and np.array_equal(read["two"], value.T)


def test_objects_are_not_read_as_numbers(tmp_path):
    """A checkpoint, a sketch or the seeds hold numbers; nothing is unpickled for them."""
    np.save(tmp_path / "a.npy", objects([1, 2]))
    assert "objects" in refusal(read_npy, tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=objects([1, 2]))
    assert "objects" in refusal(read_npz, tmp_path / "a.npz")


def test_what_is_no_file(tmp_path):
    """A directory, a file that is not there, one without an end."""
    for read in (read_npy, read_npz, read_json):
        assert str(tmp_path) in refusal(read, tmp_path)
        assert "No such file" in refusal(read, tmp_path / "none")
    for read in (read_npy, read_json):
        assert "not a regular file" in refusal(read, "/dev/zero")


def test_types_of_json_values():
    """Each kind takes its own values and no others; numbers are finite."""
    good = [(3, int), (3, float), (1.5, float), ("a", str), (None, int | None), (["a"], list[str])]
    good += [({"a": 1}, dict[str, int]), (True, bool), (None, None | str)]
    bad = [(True, int), (-1, int), (2**63, int), ("3", int), (1.0, int), (float("nan"), float)]
    bad += [(float("inf"), float), (10**400, float), (1, str), (None, str), ([1], list[str])]
    bad += [("a", list[str]), ({"a": "b"}, dict[str, int]), ([], dict[str, int]), (1, bool)]
    assert [pair for pair in good if not is_of_type(*pair)] == []
    assert [pair for pair in bad if is_of_type(*pair)] == []


def test_numbers_of_calls():
    """Arguments are checked like flags, with a line that names them."""
    assert "seed: -1 is not allowed; at least 0" in refusal(check_whole, "seed", -1, 0)
    assert "at most 9" in refusal(check_whole, "seed", 10**400, 0, 9)
    assert "whole" in refusal(check_whole, "seed", 1.5, 0) + refusal(check_whole, "seed", True, 0)
    assert "at least 0" in refusal(check_real, "p", float("nan"), 0, 1)
    assert "at most 1" in refusal(check_real, "p", float("inf"), 0, 1)
    assert "a number" in refusal(check_real, "p", "0.5", 0, 1)
    assert "workers: -3" in refusal(check_workers, -3)
    check_workers(None)
    check_whole("seed", np.int64(4), 0)
    check_real("p", 1, 0, 1)


@pytest.mark.parametrize("extreme", [-(2**63), 2**63 - 1, 2**62, -(2**62), 2**32])
def test_whole_numbers_too_large_to_be_drawn(extreme):
    """Sums of 64-bit numbers overflow; a canvas for them would take terabytes."""
    sketch = some_sketches()[0].astype(np.int64)
    for place in (0, 1, 5):
        for values in ([extreme, 0], [extreme, -extreme - 1], [3, extreme]):
            broken = sketch.copy()
            broken[place, :2] = values
            broken[place + 1, :2] = [7, extreme]
            with pytest.raises(ValueError, match="too large"):
                utils.make_graph(broken)
    graph = utils.make_graph(sketch)
    assert np.array_equal(graph.patches, utils.make_graph(sketch.astype(np.int16)).patches)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"save_minutes": -1}, "save_minutes: -1 is not allowed; at least 0"),
        ({"save_minutes": float("nan")}, "save_minutes: nan"),
        ({"workers": -3}, "workers: -3 is not allowed; at least 0"),
        ({"num_devices": 1.5}, "num_devices: 1.5 is not allowed; a whole number"),
    ],
)
def test_calls_of_train_are_checked_like_its_flags(tmp_path, options, part):
    """A line before anything is read or written."""
    import train  # brings TensorFlow, which the other tests here do without

    assert part in refusal(train.train, tmp_path / "none", tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()
