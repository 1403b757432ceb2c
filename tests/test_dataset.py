"""Files to sketches: they are read as NumPy reads them, and the numbers are the published ones.

Comparisons are exact unless a test says otherwise. What an unknown file may hold beyond
sketches: see test_unsafe_pickles.py.
"""

import math
import pickle
import struct

import golden_data
import numpy as np
import pytest
from sketch_files import (
    formula,
    npy,
    objects,
    options,
    random_sketch,
    random_sketches,
    refusal,
    split_of,
    write,
    write_raw,
)

import dataset
from batches import to_stroke5
from dataset import SPLITS, load_dataset, read_sketch_file

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
    """What is not an array of sketches is refused with one line, whatever fails inside."""
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
        assert f"has no array '{split}'" in refusal(read_sketch_file, tmp_path / "a.npz")
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
    (empty / "a.npz").mkdir()  # a directory of that name is not a file
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
        [(0, 0), (1, 1)],
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
    (warning,) = data.warnings
    assert warning.startswith(f"{len(bad) + 1} sketches skipped")


def test_no_warnings(tmp_path):
    """Where nothing is left out nothing is said."""
    write(tmp_path)
    assert load_dataset(tmp_path, options()).warnings == ()


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_left_empty(tmp_path, split):
    """A split without sketches, or with unusable or too long ones only, is named and refused."""
    for entries in ([], [np.zeros((1, 3), np.int16)], random_sketches(0, (20, 20))):
        write(tmp_path, **{split: entries})
        text = refusal(load_dataset, tmp_path, options(max_seq_len=10))
        assert f"the {split} split" in text and str(tmp_path) in text
        others = tuple(other for other in SPLITS if other != split)
        load_dataset(tmp_path, options(max_seq_len=10), splits=others, scale_factor=1.0)


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
    assert data.warnings == ("4 sketches left out: more than 10 rows",)
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
