"""Data that mean something else are told from good ones, and good ones are left alone.

Each wrong set is made of a good one, so that nothing but the fault tells them apart.
"""

import time

import cv2
import golden_data
import numpy as np
import pytest

import train
from dataset import SPLITS, load_dataset
from doodles import CATEGORIES, doodle
from hparams import HParams
from support import run_setup
from support.data_check import check_data, require_sensible, write_contact_sheet
from support.files import UserError

COUNT = 40  # sketches of a category


def doodles_of(name):
    return [doodle(name, np.random.default_rng((3, i))) for i in range(COUNT)]


def load(folder, **categories):
    """A loaded data set of some categories' sketches, all splits alike."""
    for name, sketches in categories.items():
        array = np.empty(len(sketches), object)
        for i, sketch in enumerate(sketches):
            array[i] = sketch
        np.savez(folder / f"{name}.npz", **dict.fromkeys(SPLITS, array))
    hparams = HParams(categories=tuple(categories), batch_size=4, num_mixture=3)
    return load_dataset(folder, hparams), hparams


def check(folder, **categories):
    data, hparams = load(folder, **categories)
    return check_data(data, hparams.categories)


def absolute(sketch, centered=False):
    """Points instead of offsets, from 0 on or around 0; the start is the first."""
    points = np.concatenate([[[0, 0]], np.cumsum(sketch[:, :2].astype(int), axis=0)])
    points -= (
        np.rint((points.max(0) + points.min(0)) / 2).astype(int) if centered else points.min(0)
    )
    return np.column_stack([points, np.append(0, sketch[:, 2])]).astype(np.int16)


def inverted(sketch):
    return sketch * np.array([1, 1, -1], np.int16) + np.array([0, 0, 1], np.int16)


def padded(sketch, rows=100):
    return np.concatenate([sketch, np.zeros((rows - len(sketch), 3), np.int16)])


def test_good_data_are_left_alone(tmp_path):
    """All doodles, together and alone."""
    good = {name: doodles_of(name) for name in CATEGORIES}
    assert check(tmp_path, **good) == []
    for name, sketches in good.items():
        assert check(tmp_path, **{name: sketches}) == []


@pytest.mark.parametrize("name", CATEGORIES)
@pytest.mark.parametrize(
    ("change", "part", "fatal"),
    [
        (absolute, "looks like absolute coordinates", True),
        (inverted, "pens look inverted", True),
        (padded, "end in rows of zeros", True),
        (lambda sketch: sketch * np.array([1, 1, 0], np.int16), "no row lifts the pen", False),
        (lambda sketch: sketch | np.array([0, 0, 1], np.int16), "every row lifts the pen", True),
        (lambda sketch: sketch * np.array([300, 300, 1]), "beyond 1000 and were cut off", False),
    ],
)
def test_wrong_data_are_told(tmp_path, name, change, part, fatal):
    """Every category of doodles, changed: one finding, with advice, refused where it must be."""
    wrong = [change(sketch) for sketch in doodles_of(name)]
    data, hparams = load(tmp_path, x=wrong)
    (finding,) = [found for found in check_data(data, ["x"]) if part in found.text]
    assert finding.category == "x" and finding.fatal == fatal
    if fatal:
        with pytest.raises(UserError, match=part):
            require_sensible(data, hparams.categories)
    assert any(part in line for line in require_sensible(data, ["x"], refuse=False))


def test_centred_coordinates_are_suspected(tmp_path):
    """Most categories of doodles stored as points around 0 are; none is as it should be."""
    suspected = 0
    for name in CATEGORIES:
        wrong = [absolute(sketch, centered=True) for sketch in doodles_of(name)]
        findings = check(tmp_path, x=wrong)
        suspected += any("may be absolute coordinates" in found.text for found in findings)
    assert suspected > len(CATEGORIES) // 2


def test_a_category_in_a_unit_of_its_own(tmp_path):
    """All its sketches become a dot; the one that differs is named, and by how much."""
    good = {name: doodles_of(name) for name in CATEGORIES[:4]}
    small = [
        (sketch * np.array([1 / 200, 1 / 200, 1])).astype(np.float32)
        for sketch in doodles_of(CATEGORIES[4])
    ]
    findings = check(tmp_path, **good, small=small)
    assert {found.category for found in findings} == {"small"}
    texts = " ".join(found.text for found in findings)
    assert f"{COUNT} of {COUNT} sketches reach the encoder as a dot" in texts
    assert "200 times smaller than the others" in texts
    assert any(found.fatal for found in findings)
    large = [sketch.astype(np.int32) * np.array([30, 30, 1]) for sketch in good[CATEGORIES[0]]]
    findings = check(tmp_path, large=large, **dict(list(good.items())[1:]))
    assert any(found.category == "large" and "larger" in found.text for found in findings)


def test_some_dots_are_counted(tmp_path):
    """A few are a note."""
    sketches = doodles_of("fish")
    sketches[3:5] = [np.array([[1, 1, 0], [2, 0, 0], [0, -1, 1]], np.int16)] * 2
    (finding,) = check(tmp_path, fish=sketches)
    assert "2 of 40 sketches reach the encoder as a dot" in finding.text and not finding.fatal


@pytest.mark.parametrize("name", ["aaron_sheep", "omniglot", "short_kanji"])
def test_published_sets(name):
    """Nothing wrong is found in them but Omniglot's 102 dots."""
    path = golden_data.sketch_set(f"sketch_rnn_datasets/{name}")
    data = load_dataset(path.parent, HParams(categories=(name,)))
    texts = [found.text for found in check_data(data, [name])]
    assert len(texts) == (name == "omniglot")
    assert all(text.startswith("102 of 30000 sketches reach") for text in texts)


def test_it_is_quick(tmp_path):
    """70,000 sketches take about a second on a fast machine; the bound allows for slow ones."""
    sketches = doodles_of("tree") * 1
    data, _ = load(tmp_path, tree=sketches)
    split = data.splits["train"]
    times = 70_000 // COUNT
    many = type(split)(
        rows=np.tile(split.rows, (times, 1)),
        ends=np.append(0, np.cumsum(np.tile(split.lengths, times))),
        category=np.zeros(times * COUNT, np.int32),
        index=np.arange(times * COUNT, dtype=np.int32),
        scale_factor=split.scale_factor,
    )
    data.splits["train"] = many
    start = time.process_time()
    assert check_data(data, ["tree"]) == []
    assert time.process_time() - start < 15


def test_the_contact_sheet(tmp_path):
    """A row of sketches for each category, drawn as the encoder sees them: dots are dots."""
    fish, dots = doodles_of("fish"), [np.array([[1, 1, 0], [2, 0, 0], [0, -1, 1]], np.int16)] * 3
    data, hparams = load(tmp_path, fish=fish, dots=dots)
    write_contact_sheet(tmp_path / "sheet.png", data, hparams, hparams.categories)
    picture = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)
    assert picture.shape == (2 * (24 + 128), 8 * 128)
    ink = [picture[y + 24 : y + 152, 2:126] < 100 for y in (0, 152)]
    assert ink[0].sum() > 400
    centre = ink[1][44:84, 42:82]  # a dot is enlarged until it fills its canvas
    assert centre.mean() > 0.9


def test_names_of_any_script_are_written(tmp_path):
    """A category's name stands over its sketches as it is, not with a question mark for what is
    not ASCII."""
    data, hparams = load(tmp_path, fish=doodles_of("fish"))
    sheets = {}
    for name in ("ñandú", "?and?"):
        write_contact_sheet(tmp_path / "sheet.png", data, hparams, [name])
        sheets[name] = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)
    ours, other = sheets.values()
    assert (ours[:24] < 100).sum() > 40 and (ours[:24] != other[:24]).any()
    np.testing.assert_array_equal(ours[24:], other[24:])


def test_the_contact_sheet_has_the_drawings_size(tmp_path):
    """Sketches are drawn as large as drawing_size says: lines of another share of the picture."""
    data, hparams = load(tmp_path, fish=doodles_of("fish"))
    ink = []
    for size in (hparams.drawing_size, 79):  # int(0.025 * 79) = 1 pixel a line, thinner than 2.5 %
        write_contact_sheet(
            tmp_path / "sheet.png", data, hparams.replace(drawing_size=size), hparams.categories
        )
        sheet = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)
        ink.append((sheet[24:] < 100).sum())
    assert ink[1] < 0.8 * ink[0]


def test_training_refuses_and_the_check_tells(tmp_path, capsys):
    """No update is made with data that can't be meant, and no run begun."""
    load(tmp_path, fish=[absolute(sketch) for sketch in doodles_of("fish")])
    options = "categories=[fish],batch_size=4,num_mixture=3"
    with pytest.raises(UserError, match="fish: looks like absolute coordinates.*convert.py"):
        train.train(tmp_path, tmp_path / "model", options)
    assert not (tmp_path / "model").exists()
    (finding,) = run_setup.check(tmp_path, tmp_path / "check", options)
    assert finding.fatal
    printed = capsys.readouterr().out
    assert "Wrong: fish: looks like absolute coordinates" in printed
    assert str(tmp_path / "check" / "data_check.png") in printed
    assert (tmp_path / "check" / "data_check.png").exists()
    load(tmp_path, fish=doodles_of("fish"))
    assert run_setup.check(tmp_path, tmp_path / "check", options) == []
    assert "Nothing looks wrong." in capsys.readouterr().out
