"""The embedded data: procedural sketches that must look like QuickDraw files to every reader."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl import flags

import doodles
from support.files import UserError

SIZES = {"train": 3, "valid": 2, "test": 1}


@pytest.fixture(scope="module")
def sketches():
    """Two hundred sketches of each category, drawn once for all tests that only look at them."""
    return {
        category: [
            doodles.doodle(category, np.random.default_rng((7, position, index)))
            for index in range(200)
        ]
        for position, category in enumerate(doodles.CATEGORIES)
    }


def load(path):
    with np.load(path, allow_pickle=True) as file:
        return {split: file[split] for split in file.files}


def is_move(sketch):
    """Which rows come right after a pen lift."""
    return np.append(False, sketch[:-1, 2] == 1)


def pen_path(sketch):
    """All points, the origin included, from 0 upwards."""
    path = np.concatenate([np.zeros((1, 2), int), np.cumsum(sketch[:, :2].astype(int), axis=0)])
    return path - path.min(axis=0)


def strokes_of(sketch):
    # The row after a lift leads to a new stroke's first point; the last lift ends the sketch.
    return np.split(pen_path(sketch), np.flatnonzero(sketch[:-1, 2]) + 2)


def raster(sketch):
    canvas = np.zeros((256, 256), np.uint8)
    offset = (255 - pen_path(sketch).max(axis=0)) // 2
    for stroke in strokes_of(sketch):
        cv2.polylines(canvas, [(stroke + offset).astype(np.int32)], False, 255, 16)
    return cv2.resize(canvas, (16, 16), interpolation=cv2.INTER_AREA).ravel() / 255


def command_line(*options, cwd):
    script = Path(doodles.__file__).resolve()
    return subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, cwd=cwd, timeout=60
    )


def test_same_seed_same_bytes(tmp_path):
    """The demo and the tests rely on the same data everywhere; another seed gives other data."""
    first, again = tmp_path / "first", tmp_path / "again"
    options = {"categories": ["fish", "tree"], **SIZES}
    for path in doodles.write_doodles(first, seed=5, **options):
        doodles.write_doodles(again, seed=5, **options)
        assert path.read_bytes() == (again / path.name).read_bytes()
    (path, _) = doodles.write_doodles(again, seed=6, **options)
    assert path.read_bytes() != (first / path.name).read_bytes()


def test_larger_sizes_begin_with_the_same_sketches(tmp_path):
    """A sketch depends on nothing but seed, category, split and index."""
    (small,) = doodles.write_doodles(tmp_path / "small", categories=["house"], **SIZES)
    larger = {split: 2 * size for split, size in SIZES.items()}
    large = doodles.write_doodles(tmp_path / "large", categories=["smiley", "house"], **larger)[1]
    small, large = load(small), load(large)
    for split, size in SIZES.items():
        assert len(small[split]) == size and len(large[split]) == 2 * size
        for few, many in zip(small[split], large[split], strict=False):
            np.testing.assert_array_equal(few, many)
    firsts = {small[split][0].tobytes() for split in SIZES}
    assert len(firsts) == len(SIZES), "splits share sketches"


def test_files_have_the_quickdraw_layout(tmp_path):
    """Readers expect three 1-D object arrays of int16 (n, 3), also when a split is empty."""
    paths = doodles.write_doodles(tmp_path, train=2, valid=1, test=0)
    assert [path.name for path in paths] == [f"{name}.npz" for name in doodles.CATEGORIES]
    there = {path.name for path in tmp_path.glob("[!.]*")}
    assert there == {path.name for path in paths}, "something else is left"
    for path in paths:
        splits = load(path)
        assert {split: array.shape for split, array in splits.items()} == {
            "train": (2,),
            "valid": (1,),
            "test": (0,),
        }
        assert all(array.dtype == object for array in splits.values())
        assert all(
            sketch.dtype == np.int16 and sketch.shape[1:] == (3,) for sketch in splits["train"]
        )


@pytest.mark.parametrize("category", doodles.CATEGORIES)
def test_rows_are_as_in_quickdraw(sketches, category):
    """Pen column, moves and extent follow the real files, on which patches and losses depend."""
    for sketch in sketches[category]:
        assert sketch.dtype == np.int16 and sketch.ndim == 2 and sketch.shape[1] == 3
        assert np.isin(sketch[:, 2], (0, 1)).all()
        assert sketch[-1, 2] == 1
        moves = is_move(sketch)
        assert not sketch[moves, 2].any(), "a stroke without a drawn row"
        assert sketch[~moves, :2].any(axis=1).all(), "a drawn row of length zero"
        assert pen_path(sketch).max() == 255


def test_sizes_are_as_in_quickdraw(sketches):
    """Sketches short enough to learn in minutes and long enough to have patches."""
    every = [sketch for of_category in sketches.values() for sketch in of_category]
    rows = np.array([len(sketch) for sketch in every])
    strokes = np.array([sketch[:, 2].sum() for sketch in every])
    assert rows.min() >= 15 and rows.max() <= 90
    assert np.mean((rows >= 20) & (rows <= 80)) > 0.95
    assert strokes.min() >= 2 and strokes.max() <= 8


@pytest.mark.parametrize("category", doodles.CATEGORIES)
def test_sketches_vary(sketches, category):
    """No sketch comes twice, and numbers of strokes, places and drawing orders differ."""
    several = sketches[category]
    assert len({sketch.tobytes() for sketch in several}) == len(several)
    assert len({int(sketch[:, 2].sum()) for sketch in several}) >= 3
    strokes = [strokes_of(sketch) for sketch in several]
    # The largest stroke comes at different turns.
    turns = [int(np.argmax([np.ptp(s, axis=0).sum() for s in each])) for each in strokes]
    assert np.bincount(turns).max() < 0.9 * len(several)
    # The pen sets out to the left and to the right, upwards and downwards.
    steps = np.sign([sketch[0, :2] for sketch in several])
    for way in (-1, 1):
        assert ((steps == way).mean(axis=0) > 0.05).all()


def test_a_move_is_kept_even_where_it_goes_nowhere(sketches):
    """Without its row, the next stroke's first line would be taken for the move."""
    every = [sketch for of_category in sketches.values() for sketch in of_category]
    assert any(not sketch[is_move(sketch), :2].any(axis=1).all() for sketch in every)


def test_fish_swim_both_ways(sketches):
    """Sketches are mirrored: the eye, the smallest stroke, is left or right of the middle."""
    eyes = [
        min(strokes_of(sketch), key=lambda s: np.ptp(s, axis=0).sum())
        for sketch in sketches["fish"]
    ]
    assert 0.2 < np.mean([eye[:, 0].mean() < 127 for eye in eyes]) < 0.8


def test_closed_strokes_go_both_ways_round(sketches):
    """A circle has no fixed direction and no fixed starting point."""
    circles = [max(strokes_of(sketch), key=len) for sketch in sketches["smiley"]]
    areas = [np.sum(c[:-1, 0] * c[1:, 1] - c[1:, 0] * c[:-1, 1]) for c in circles]
    assert 0.1 < np.mean(np.array(areas) > 0) < 0.9
    starts = np.array([circle[0] - circle.mean(axis=0) for circle in circles])
    assert np.ptp(np.degrees(np.arctan2(starts[:, 1], starts[:, 0]))) > 60


def test_categories_can_be_told_apart(sketches):
    """Nearest class mean of 16 x 16 pictures, the plainest of classifiers, hardly ever fails."""
    pictures = np.array([[raster(sketch) for sketch in each] for each in sketches.values()])
    means = pictures[:, :100].mean(axis=1)
    distances = np.square(pictures[:, 100:, None] - means).sum(axis=-1)
    hits = distances.argmin(axis=-1) == np.arange(len(means))[:, None]
    assert hits.mean() > 0.95
    assert hits.mean(axis=1).min() > 0.8, dict(zip(sketches, hits.mean(axis=1), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["fish", "cat"]}, "must be among fish, .*umbrella; got 'cat'"),
        ({"categories": []}, "must be among fish, .*; got none"),
        ({"valid": -1}, "valid must be at least 0; got -1"),
        ({"seed": -3}, "seed must be at least 0; got -3"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, options, message):
    """A mistake is one clear line and leaves no half-made data directory."""
    with pytest.raises(ValueError, match=message) as error:
        doodles.write_doodles(tmp_path / "data", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_doodle_refuses_an_unknown_category():
    """The name is checked where a single sketch is drawn, too."""
    with pytest.raises(ValueError, match="got 'cat'"):
        doodles.doodle("cat", np.random.default_rng(0))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Files are replaced whole or not at all, and no temporary file stays."""
    (path,) = doodles.write_doodles(tmp_path, categories=["fish"], **SIZES)
    before = path.read_bytes()

    def full_disk(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(UserError, match="fish.npz: can't be written .No space left on device"):
        doodles.write_doodles(tmp_path, categories=["fish"], seed=1, **SIZES)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("[!.]*")) == [path] and not list(tmp_path.rglob("*.tmp"))


def test_importing_defines_no_flags():
    """Programs that import the module have flags of the same names."""
    assert not flags.FLAGS.flags_by_module_dict().get("doodles")


def test_command_line_writes_what_the_function_writes(tmp_path):
    """Options reach the function, and one line is printed per file."""
    options = ("--categories=umbrella,fish", "--train=3", "--valid=2", "--test=1", "--seed=4")
    result = command_line("--data_dir=data", *options, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines == [f"data/{c}.npz: 3 train, 2 valid, 1 test" for c in ("umbrella", "fish")]
    for path in doodles.write_doodles(
        tmp_path / "expected", categories=["umbrella", "fish"], seed=4, **SIZES
    ):
        assert (tmp_path / "data" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "data_dir"),
        (("--data_dir=",), "must name a directory"),
        (("--data_dir=data", "--categories=cat"), "got 'cat'"),
        (("--data_dir=data", "--train=many"), "--train=many"),
        (("--data_dir=data", "--trian=5"), "trian"),
        (("--data_dir=data", "fish"), "'fish' is not an option"),
        (("--data_dir=occupied",), "occupied"),
    ],
)
def test_command_line_mistakes_take_one_line(tmp_path, options, message):
    """A user's mistake gives one line on standard error and a non-zero exit, no traceback."""
    (tmp_path / "occupied").write_text("a file")
    result = command_line(*options, cwd=tmp_path)
    assert result.returncode != 0
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("doodles.py: ")
    assert not (tmp_path / "data").exists()
