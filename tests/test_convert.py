"""convert.py: what people have, in each format, becomes the strokes that they drew."""

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import HPARAMS

import convert
import dataset
import drawing
import utils
from doodles import doodle
from support import simplify
from support.drawings import find_drawings, read_drawings
from support.files import UserError

ROOT = Path(__file__).parents[1]


def simplified_by_hand(strokes, epsilon=2.0):
    """Quick, Draw!'s steps in plain Python, from their description, for one drawing."""
    points = [point for stroke in strokes for point in stroke]
    left, top = min(x for x, _ in points), min(y for _, y in points)
    longest = max(max(x for x, _ in points) - left, max(y for _, y in points) - top)
    return [
        [
            (round(x), round(y))
            for x, y in rdp(
                walk([((x - left) * 255 / longest, (y - top) * 255 / longest) for x, y in stroke]),
                epsilon,
            )
        ]
        for stroke in strokes
    ]


def walk(stroke):
    """Points at a distance of 1 along a stroke, and its last."""
    found, at, reached = [], 0.0, 0.0
    for (x0, y0), (x1, y1) in zip(stroke, stroke[1:], strict=False):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        while at < reached + length:
            share = (at - reached) / length
            found.append((x0 + share * (x1 - x0), y0 + share * (y1 - y0)))
            at += 1
        reached += length
    return [*found, stroke[-1]]


def rdp(stroke, epsilon):
    """The recursive definition."""
    (x0, y0), (x1, y1) = stroke[0], stroke[-1]
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    if length:
        far = [abs((x1 - x0) * (y0 - y) - (x0 - x) * (y1 - y0)) / length for x, y in stroke]
    else:
        far = [((x - x0) ** 2 + (y - y0) ** 2) ** 0.5 for x, y in stroke]
    middle = max(range(len(stroke)), key=far.__getitem__)
    if far[middle] <= epsilon:
        return [stroke[0], stroke[-1]]
    return rdp(stroke[: middle + 1], epsilon)[:-1] + rdp(stroke[middle:], epsilon)


def mouse_strokes(rng):
    """Curved strokes as a mouse gives them, at any scale and place."""
    scale, shift = rng.uniform(0.3, 4), rng.uniform(-50, 400, 2)
    strokes = []
    for _ in range(rng.integers(2, 6)):
        steps = rng.normal(0, 3, (int(rng.integers(12, 60)), 2)).cumsum(axis=0).cumsum(axis=0)
        strokes.append((steps * scale + shift).round(2).tolist())
    return strokes


def line(strokes, times=False, **values):
    """An ndjson line."""
    parts = [[list(axis) for axis in zip(*stroke, strict=True)] for stroke in strokes]
    if times:
        parts = [[*part, list(range(len(part[0])))] for part in parts]
    return json.dumps({"word": "cat", "recognized": True, **values, "drawing": parts}) + "\n"


def binary(strokes, recognized=1):
    """A drawing as in Quick, Draw!'s binary files."""
    data = struct.pack("<Q2sbIH", 5, b"US", recognized, 1488326400, len(strokes))
    for stroke in strokes:
        xs, ys = zip(*stroke, strict=True)
        data += struct.pack("<H", len(stroke)) + bytes(xs) + bytes(ys)
    return data


def converted(path, out, **options):
    """All sketches of a conversion, in the order of the file."""
    done = convert.convert([path], out, **{"category": "cat", "splits": (0, 0, 1)} | options)
    sketches = dataset.read_sketch_file(out / "cat.npz")["test"]
    assert len(sketches) == len(done["cat"].sketches)
    return sketches


def paths(sketch):
    return utils.pen_paths(np.asarray(sketch), np.zeros(2))


@pytest.fixture(scope="module")
def drawings():
    rng = np.random.default_rng(4)
    return [mouse_strokes(rng) for _ in range(12)]


def test_raw_and_simplified_give_the_same_strokes(drawings, tmp_path):
    """Raw drawings come out as the plain walk through the published steps simplifies them.

    To a pixel: whole numbers, and a half may be rounded the other way.
    """
    simplified = [simplified_by_hand(strokes) for strokes in drawings]
    (tmp_path / "raw").write_text("".join(line(s, times=True) for s in drawings))
    with gzip.open(tmp_path / "simplified", "wt") as file:
        file.write("".join(map(line, simplified)))
    (tmp_path / "binary").write_bytes(b"".join(map(binary, simplified)))
    raw = converted(tmp_path / "raw", tmp_path / "a")
    for other in ("simplified", "binary"):
        same = converted(tmp_path / other, tmp_path / other[0])
        assert len(raw) == len(same) == len(drawings)
        for ours, theirs, by_hand in zip(raw, same, simplified, strict=True):
            assert ours.dtype == theirs.dtype == np.int16
            assert len(paths(ours)) == len(paths(theirs)) == len(by_hand)
            for a, b, c in zip(paths(ours), paths(theirs), by_hand, strict=True):
                start = np.array(by_hand[0][0])
                np.testing.assert_array_equal(b + start, c)  # unchanged
                assert len(a) == len(b)
                np.testing.assert_allclose(a, b, atol=1)


def test_opencv_keeps_no_more(drawings):
    """approxPolyDP, an implementation of its own, keeps a part of the same points.

    (It drops some more, in a last pass of its own.)
    """
    for stroke in (np.array(s) for strokes in drawings for s in strokes):
        kept = {tuple(p) for p in simplify.ramer_douglas_peucker(stroke, 4.0).tolist()}
        theirs = cv2.approxPolyDP(stroke.astype(np.float32)[:, None], 4.0, False)[:, 0]
        ours = np.array(sorted(kept))
        nearest = np.abs(theirs[:, None] - ours[None]).max(axis=2).min(axis=1)
        assert nearest.max() < 1e-3 and len(theirs) <= len(ours) <= 1.5 * len(theirs)


def test_steps_can_be_left_out(drawings, tmp_path):
    """Without any step the offsets are the drawing's own; without rounding they are no integers."""
    small = [[[x / 9, y / 9] for x, y in stroke] for stroke in drawings[0]]
    (tmp_path / "raw").write_text(line(small, times=True))
    (own,) = converted(tmp_path / "raw", tmp_path / "a", steps=())
    for path, stroke in zip(paths(own), small, strict=True):
        np.testing.assert_allclose(path + small[0][0], stroke, atol=1e-3)  # float32 sums
    (fine,) = converted(tmp_path / "raw", tmp_path / "b", steps=("scale", "resample"))
    assert fine.dtype == np.float32
    steps = np.hypot(*fine[fine[:, 2] == 0, :2].T)
    assert (steps[:-1] < 1.001).mean() > 0.9  # all but the moves between strokes
    (coarse,) = converted(tmp_path / "raw", tmp_path / "c", epsilon=20.0)
    (usual,) = converted(tmp_path / "raw", tmp_path / "d")
    assert len(coarse) < len(usual) < len(fine)


def test_data_files_pass_unchanged(tmp_path):
    """stroke-3 and stroke-5 of whole numbers, as .npy or .npz, arrays or lists: the same rows."""
    sketch = doodle("fish", np.random.default_rng(1))
    five = np.column_stack([sketch[:, :2], 1 - sketch[:, 2], sketch[:, 2], 0 * sketch[:, 2]])
    padded = np.concatenate([[[0, 0, 1, 0, 0]], five, [[0, 0, 0, 0, 1]] * 5])
    np.save(tmp_path / "a.npy", sketch)
    np.save(tmp_path / "b.npy", padded.astype(np.float64))
    np.save(tmp_path / "c.npy", np.stack([padded, padded]))
    for kind in ("float", "list"):
        arrays = {}
        for split in dataset.SPLITS:
            arrays[split] = np.empty(2, object)
            arrays[split][0] = sketch.astype(float) if kind == "float" else sketch.tolist()
            arrays[split][1] = five if kind == "float" else five.tolist()
        np.savez(tmp_path / f"{kind}.npz", **arrays)
    for number, name in enumerate(("a.npy", "b.npy", "c.npy")):
        for found in converted(tmp_path / name, tmp_path / str(number)):
            np.testing.assert_array_equal(found, sketch)
    for kind in ("float", "list"):
        convert.convert([tmp_path / f"{kind}.npz"], tmp_path / kind)
        found = dataset.read_sketch_file(tmp_path / kind / f"{kind}.npz")
        for split in dataset.SPLITS:  # which stay what they were
            assert len(found[split]) == 2
            for entry in found[split]:
                np.testing.assert_array_equal(entry, sketch)


def test_absolute_coordinates(tmp_path):
    """--absolute: the numbers are points, and a lift stands with the last point of a stroke."""
    strokes = [[(3, 4), (10, 4), (10, 9)], [(0, 0), (255, 250)]]
    table = [(*p, p == stroke[-1]) for stroke in strokes for p in stroke]
    np.save(tmp_path / "a.npy", np.array(table, float))
    (found,) = converted(tmp_path / "a.npy", tmp_path / "out", absolute=True)
    for path, stroke in zip(paths(found), strokes, strict=True):
        np.testing.assert_array_equal(path + (3, 4), stroke)


def test_model_units_are_scaled(tmp_path):
    """What sample.py leaves, in model units, becomes a sketch of 255."""
    sketch = doodle("house", np.random.default_rng(2)).astype(np.float64)
    sketch[:, :2] /= 31.7
    np.save(tmp_path / "stroke_0_0.npy", sketch[None])
    (found,) = converted(tmp_path / "stroke_0_0.npy", tmp_path / "out")
    points = np.concatenate(paths(found))
    assert np.ptp(points, axis=0).max() == 255


def test_what_is_left_out_is_counted(tmp_path, capsys):
    """Each reason has a count; unrecognized drawings come if asked for."""
    good = [[(0, 0), (0, 200), (255, 90)], [(9, 9), (200, 9)]]
    text = line(good) * 3 + line(good, recognized=False) * 2 + line([]) + line([[(5, 5)]])
    text += line([[(0, 0), (255, 0)]]) + "\n"
    text += line([[(i % 2 * 255, i % 250) for i in range(300)]])
    (tmp_path / "cat.ndjson").write_text(text)
    done = convert.convert([tmp_path / "cat.ndjson"], tmp_path / "a", max_rows=250)["cat"]
    assert done.read == 9 and len(done.sketches) == 3
    assert done.left_out == {
        "not recognized": 2,
        "empty or a dot": 2,
        "a single line": 1,
        "more than 250 rows": 1,
    }
    shown = capsys.readouterr().out
    assert "9 drawings read (Quick, Draw! simplified ndjson), 3 taken" in shown
    assert "left out: 2 (not recognized)" in shown
    done = convert.convert([tmp_path / "cat.ndjson"], tmp_path / "b", unrecognized=True)["cat"]
    assert len(done.sketches) == 6 and "long: 1 of more than 250 rows" in capsys.readouterr().out


def test_taps_stay(tmp_path):
    """A dot, as for an eye, is a stroke of two equal points; the others stay where they are."""
    strokes = [
        [(0, 0), (255, 0), (255, 100)],
        [(40, 50)],
        [(90, 50), (90, 50)],
        [(9, 60), (70, 60)],
    ]
    for times in (False, True):
        (tmp_path / "f").write_text(line(strokes, times=times))
        (found,) = converted(tmp_path / "f", tmp_path / f"out{times}")
        expected = [strokes[0], [(40, 50)] * 2, [(90, 50)] * 2, strokes[3]]
        assert [path.tolist() for path in paths(found)] == [[list(p) for p in s] for s in expected]


def test_the_splits(tmp_path):
    """Shares, all three of them not empty, every drawing in one, by the seed."""
    shapes = [[[(0, 0), (0, 200 + i), (255, 90)], [(9, 9), (200, 9)]] for i in range(40)]
    (tmp_path / "cat.ndjson").write_text("".join(map(line, shapes)))
    seen = []
    for seed in (0, 0, 1):
        convert.convert([tmp_path / "cat.ndjson"], tmp_path / "out", seed=seed)
        arrays = dataset.read_sketch_file(tmp_path / "out" / "cat.npz")
        assert [len(arrays[split]) for split in dataset.SPLITS] == [32, 4, 4]
        seen.append([int(s[0, 1]) for split in dataset.SPLITS for s in arrays[split]])
        assert sorted(seen[-1]) == [200 + i for i in range(40)]
    assert seen[0] == seen[1] != seen[2]
    (tmp_path / "few.ndjson").write_text("".join(map(line, shapes[:3])))
    convert.convert([tmp_path / "few.ndjson"], tmp_path / "few")
    arrays = dataset.read_sketch_file(tmp_path / "few" / "few.npz")
    assert [len(arrays[split]) for split in dataset.SPLITS] == [1, 1, 1]
    (tmp_path / "two.ndjson").write_text("".join(map(line, shapes[:2])))
    with pytest.raises(UserError, match="2 usable drawings are too few"):
        convert.convert([tmp_path / "two.ndjson"], tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_directories(tmp_path):
    """Files are categories, folders are, and single drawings beside one another are one."""
    folder = tmp_path / "zoo"
    (folder / "dog").mkdir(parents=True)
    (folder / "empty").mkdir()
    good = line([[(0, 0), (0, 200), (255, 90)]])
    (folder / "cat.ndjson.x").write_text(good)
    (folder / "dog" / "1.ndjson").write_text(good)
    (folder / "dog" / "2.ndjson").write_text(good)
    (folder / "a.svg").write_text("<svg/>")
    (folder / "b.svg").write_text("<svg/>")
    (folder / "notes.txt").write_text("no drawing")
    (folder / ".hidden").write_text("")
    found, skipped = find_drawings([folder])
    names = {name: [path.name for path in files] for name, files in found.items()}
    assert names == {
        "cat": ["cat.ndjson.x"],
        "dog": ["1.ndjson", "2.ndjson"],
        "zoo": ["a.svg", "b.svg"],
    }
    assert [path.name for path in skipped] == ["notes.txt"]
    found, _ = find_drawings([folder / "a.svg", folder / "dog"], "pet")
    assert [path.name for path in found["pet"]] == ["a.svg", "1.ndjson", "2.ndjson"]


def test_the_contact_sheet(tmp_path):
    """The first 40, each where it belongs and the right way up."""
    corner = [[(0, 0), (0, 255), (40, 255)]]  # an L
    (tmp_path / "cat.ndjson").write_text(line(corner) * 43)
    convert.convert([tmp_path / "cat.ndjson"], tmp_path / "out")
    sheet = cv2.imread(str(tmp_path / "out" / "cat.png"))
    assert sheet.shape == (5 * 128, 8 * 128, 3)
    cell = sheet[128:256, 256:384, :].min(axis=2) < 200
    rows, columns = np.nonzero(cell[4:-4, 4:-4])
    left = columns < columns.min() + 8
    assert np.ptp(rows[left]) > 100  # a long line at the left
    assert rows[~left].min() > 100  # a short one at the bottom


def test_the_result_feeds_training(tmp_path):
    """load_dataset takes it as it is, all sketches usable."""
    rng = np.random.default_rng(3)
    for name in HPARAMS.categories:
        drawn = [[p.tolist() for p in paths(doodle(name, rng) * [1.5, 1.5, 1])] for _ in range(9)]
        text = "".join(line(strokes, times=True) for strokes in drawn)
        (tmp_path / f"{name}.ndjson").write_text(text)
    inputs = [tmp_path / f"{name}.ndjson" for name in HPARAMS.categories]
    convert.convert(inputs, tmp_path / "out")
    data = dataset.load_dataset(tmp_path / "out", HPARAMS.replace(max_seq_len=-1))
    assert not data.warnings and sum(map(len, data.splits.values())) == 18


def test_others_files_are_safe(tmp_path):
    """A data file that convert.py did not write is not replaced; its own are."""
    (tmp_path / "cat.ndjson").write_text(line([[(0, 0), (0, 200), (255, 90)]]) * 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cat.npz").write_bytes(b"mine")
    with pytest.raises(UserError, match="cat.npz: is not of this program"):
        convert.convert([tmp_path / "cat.ndjson"], tmp_path / "out")
    assert (tmp_path / "out" / "cat.npz").read_bytes() == b"mine"
    for _ in range(2):
        convert.convert([tmp_path / "cat.ndjson"], tmp_path / "other")


GOOD = line([[(0, 0), (0, 200), (255, 90)]])
BAD_FILES = {
    "empty": b"",
    "spaces": b" \n",
    "other": b"some text",
    "latin1.ndjson": b'{"drawing": [[[1,2],[3,4]]], "word": "caf\xe9"}\n',
    "utf16.ndjson": GOOD.encode("utf-16"),
    "cut.ndjson": GOOD.encode() + GOOD.encode()[:-20],
    "nothing.ndjson": b'{"word": "cat"}\n',
    "table.ndjson": b'{"drawing": 5}\n',
    "uneven.ndjson": b'{"drawing": [[[1,2],[3]]]}\n',
    "words.ndjson": b'{"drawing": [[["a","b"],["c","d"]]]}\n',
    "nested.ndjson": b'{"drawing": [[[[1],[2]],[[3],[4]]]]}\n',
    "deep.ndjson": b'{"drawing": ' + b"[" * 100_000,
    "nan.ndjson": b'{"drawing": [[[1,NaN],[3,4]]]}\n',
    "infinite.ndjson": b'{"drawing": [[[1,1e999],[3,4]]]}\n',
    "large.ndjson": b'{"drawing": [[[1,1e30],[3,4]]]}\n',
    "integer.ndjson": b'{"drawing": [[[1,1' + b"0" * 400 + b"],[3,4]]]}\n",
    "digits.ndjson": b'{"drawing": [[[1,1' + b"0" * 5000 + b"],[3,4]]]}\n",
    "null.ndjson": b'{"drawing": [[[1,null],[3,4]]]}\n',
    "gzip": gzip.compress(GOOD.encode() * 50)[:-12],
    "gzip_head": gzip.compress(GOOD.encode())[:9],
    "cut.bin": binary([[(0, 0), (9, 9)]])[:-1],
    "head.bin": binary([[(0, 0), (9, 9)]]) + binary([[(0, 0), (9, 9)]])[:12],
    "state.bin": binary([[(0, 0), (9, 9)]]) + binary([[(0, 0), (9, 9)]], recognized=7),
    "none.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "cut.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0L1',
    "html.svg": b"<html><body/></html>",
    "latin1.svg": '<?xml version="1.0" encoding="utf-8"?><svg><!-- é --></svg>'.encode("latin1"),
    "laughs.svg": b'<!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;">]><svg><text>&b;</text></svg>',
    "file.svg": b'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
    "large.svg": b'<svg><path stroke="red" d="M0 0L1e30 5"/></svg>',
    "infinite.svg": b'<svg><path stroke="red" d="M0 0L1e999 5"/></svg>',
    "nan.svg": b'<svg><path stroke="red" d="M0 0Lnan 5"/></svg>',
    "shape.svg": b'<svg><circle stroke="red" r="wide"/></svg>',
    "filled.svg": b'<svg><path d="M0 0L9 0L9 9z"/></svg>',
    "cut.npy": b"\x93NUMPY\x01\x00v\x00{'descr'",
    "cut.npz": b"PK\x03\x04 and no more",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    """One line that names the file, and nothing is written."""
    path = tmp_path / name
    path.write_bytes(BAD_FILES[name])
    with pytest.raises(UserError, match=name) as error:
        convert.convert([path], tmp_path / "out", splits=(0, 0, 1))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not (tmp_path / "out").exists()


BAD_ARRAYS = {
    "shape": np.zeros((3, 4)),
    "one": np.zeros(3),
    "four": np.zeros((2, 2, 2, 3)),
    "nan": np.array([[1, np.nan, 0], [1, 1, 1]]),
    "large": np.array([[1, 1e300, 0], [1, 1, 1]]),
    "pens": np.array([[1, 1, 0.5], [1, 1, 1]]),
    "states": np.array([[1, 1, 1, 1, 0], [1, 1, 0, 1, 0]]),
    "words": np.array([["a", "b", "c"]]),
    "complex": np.ones((3, 3), complex),
    "object": np.array([[1, None, 0]], object),
    "none": np.zeros((0, 3)),
}


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(tmp_path, name, kind):
    """As above, for arrays that are no sketch."""
    path = tmp_path / f"{name}.{kind}"
    if kind == "npy":
        np.save(path, BAD_ARRAYS[name])
    else:
        entries = np.empty(1, object)
        entries[0] = BAD_ARRAYS[name]
        np.savez(path, train=entries, valid=entries, test=entries)
    with pytest.raises(UserError, match=name) as error:
        convert.convert([path], tmp_path / "out")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": (0.5, 0.1, 0.1)}, "splits: 0.5,0.1,0.1 is not allowed"),
        ({"splits": (1.0,)}, "splits: 1 is not allowed"),
        ({"splits": (float("nan"), 0, 1)}, "splits: nan,0,1 is not allowed"),
        ({"steps": ("smooth",)}, "steps: 'smooth' is not allowed"),
        ({"epsilon": -1.0}, "epsilon: -1.0 is not allowed"),
        ({"epsilon": float("nan")}, "epsilon: nan is not allowed"),
        ({"max_rows": -5}, "max_rows: -5 is not allowed"),
        ({"category": "a/b"}, "'a/b' can't be a category"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    """One line names the option, the value and what is allowed."""
    (tmp_path / "cat.ndjson").write_text(GOOD)
    with pytest.raises(UserError, match=message):
        convert.convert([tmp_path / "cat.ndjson"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_places_without_drawings(tmp_path):
    """No such file, a directory without drawings, no place to write."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no drawing")
    (tmp_path / "good").write_text(GOOD * 5)
    with pytest.raises(UserError, match="absent: there is no such file"):
        convert.convert([tmp_path / "absent"], tmp_path / "out")
    with pytest.raises(UserError, match="folder: a directory without drawings"):
        convert.convert([tmp_path / "folder"], tmp_path / "out")
    with pytest.raises(UserError, match="can't be written to"):
        convert.convert([tmp_path / "good"], tmp_path / "good" / "out")
    assert not (tmp_path / "out").exists()


def test_lines_too_long_to_resample(tmp_path):
    """Without scaling, a drawing of a million pixels is left out, not resampled."""
    (tmp_path / "cat").write_text(line([[(0, 0), (9e5, 9e5), (0, 9e5)]], times=True))
    with pytest.raises(UserError, match="lines too long"):
        convert.convert([tmp_path / "cat"], tmp_path / "out", steps=("resample", "rdp"))


@pytest.mark.slow
def test_the_command_line(tmp_path):
    """The flags arrive, SVG of sample.py's kind included; a mistake is one line and status 1."""
    for i in range(3):
        sketch = doodle("fish", np.random.default_rng(i))
        (tmp_path / f"fish{i}.svg").write_text(drawing.to_svg(sketch))
    files = ",".join(str(tmp_path / f"fish{i}.svg") for i in range(3))
    command = [sys.executable, str(ROOT / "convert.py"), f"--data_dir={tmp_path / 'out'}"]
    command += [f"--input={files}", "--category=fish"]
    done = subprocess.run([*command, "--epsilon=1.5"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fish: 3 drawings read (SVG), 3 taken" in done.stdout
    done = subprocess.run([*command, "--splits=1,2"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("convert.py: splits") and done.stderr.count("\n") == 1


def test_reading_is_lazy(tmp_path):
    """Drawings come one by one: a large file need not fit into memory."""
    (tmp_path / "cat").write_text(GOOD + "damaged")
    found = read_drawings(tmp_path / "cat")
    assert len(next(found).strokes) == 1
    with pytest.raises(UserError, match="cat, line 2: damaged"):
        next(found)
