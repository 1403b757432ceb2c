"""sample.py input: people's own drawings in, healed ones out in the same coordinates."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import batches
import checkpoints
import sample
import utils
from doodles import doodle
from hparams import read_config
from support import svg
from support.files import UserError
from support.heal import heal, read_rectangle
from support.mask_seeds import RANDOM_SEED
from support.own_drawings import find_hole, fit_over, load_own

ROOT = Path(__file__).parents[1]
PAGE = {"width": "200mm", "height": "100mm", "viewBox": "-10 -20 400 200"}


def strokes_of(category, seed, scale=0.5, shift=(30, 10)):
    sketch = doodle(category, np.random.default_rng(seed))
    paths = utils.pen_paths(sketch, np.zeros(2))
    low = np.concatenate(paths).min(axis=0)
    return [(path - low) * scale + shift for path in paths]


def write(path, strokes):
    path.write_text(svg.write_svg([svg.Layer(strokes, "#000", 1.0)], PAGE))
    return path


def box(strokes):
    points = np.concatenate(strokes)
    return points.min(axis=0), points.max(axis=0)


def names(folder):
    return {path.name for path in folder.iterdir()} - {".manifest.json", ".lock"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A fish as SVG, a tree as stroke-3."""
    folder = tmp_path_factory.mktemp("drawings")
    np.save(folder / "tree.npy", doodle("tree", np.random.default_rng(1)))
    return [write(folder / "my fish.svg", strokes_of("fish", 0)), folder / "tree.npy"]


@pytest.fixture(scope="module")
def whole(files, model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "healed"
    heal(files, model_dir, folder, prob=0.3)
    return folder


def test_what_is_left(files, whole):
    """For each drawing its healed SVG and PNG and the overlay; galleries, arrays, metadata."""
    expected = {"healed.json", "gallery.png", "index.html"}
    for i, name in enumerate(("my fish", "tree")):
        expected |= {f"{name}_healed.svg", f"{name}_overlay.svg", f"{name}_healed.png"}
        expected |= {f"stroke_{i}_0.npy", f"code_{i}_0.npy"}
    assert names(whole) == expected
    metadata = json.loads((whole / "healed.json").read_text())
    assert metadata["prob"] == 0.3 and metadata["erase"] is None
    assert metadata["drawings"][0]["source"] == str(files[0])
    page = (whole / "index.html").read_text()
    assert "my fish" in page and page.count("<article>") == 2


def test_it_lies_over_the_drawing(files, whole):
    """The page is the input's; the healed strokes have its centre and its longer side."""
    drawn = svg.read_svg(files[0].read_bytes(), "in")
    healed = svg.read_svg((whole / "my fish_healed.svg").read_bytes(), "out")
    assert healed.frame == drawn.frame == PAGE
    (low, high), (own_low, own_high) = box(drawn.strokes), box(healed.strokes)
    np.testing.assert_allclose((own_low + own_high) / 2, (low + high) / 2, atol=1e-3)  # 6 digits
    np.testing.assert_allclose((own_high - own_low).max(), (high - low).max(), atol=1e-3)
    overlay = svg.read_svg((whole / "my fish_overlay.svg").read_bytes(), "over")
    expected = [*drawn.strokes, *healed.strokes]
    assert overlay.frame == PAGE and len(overlay.strokes) == len(expected)
    for ours, theirs in zip(overlay.strokes, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_drawing_without_a_page_gets_one(whole):
    """In its own coordinates, with a margin around."""
    healed = svg.read_svg((whole / "tree_healed.svg").read_bytes(), "out")
    left, top, width, height = map(float, healed.frame["viewBox"].split())
    low, high = box(utils.pen_paths(doodle("tree", np.random.default_rng(1)), np.zeros(2)))
    longest = (high - low).max()
    np.testing.assert_allclose([left, top], low - 0.06 * longest)
    np.testing.assert_allclose([width, height], high - low + 0.12 * longest)


def test_the_same_as_a_data_set_gives(files, model_dir, whole):
    """A drawing in a data file's units has the code of the same sketch, its own seeds erased."""
    hparams = read_config(model_dir / "model_config.json").hparams
    sketch = doodle("tree", np.random.default_rng(1)).astype(np.float32)
    sketch[:, :2] /= np.float32(30.0)
    (fish,), _ = load_own(files[:1], max_per_file=1)
    scaled = (fish.rows / [30.0, 30.0, 1]).astype(np.float32)
    start = utils.count_patches(scaled, hparams.graph_number)
    graph = utils.make_graph(
        sketch,
        graph_number=hparams.graph_number,
        graph_picture_size=hparams.graph_picture_size,
        mask_prob=0.3,
        seeds=np.load(RANDOM_SEED)[start:],
    )
    mask = utils.graph_mask(graph.n_patches, graph.masked, hparams.graph_number)
    mu, _ = checkpoints.load_model(model_dir).encode(graph.patches[None], mask[None])
    np.testing.assert_allclose(np.load(whole / "code_1_0.npy"), mu, atol=1e-4)  # another batch


def test_a_rectangle_is_erased(files, model_dir):
    """What lies in it is gone from all pictures, the rest stays; patches centred in it are masked.

    Checked pixel by pixel on the canvas that the rectangle is mapped to.
    """
    hparams = read_config(model_dir / "model_config.json").hparams
    (own,), _ = load_own(files[:1], max_per_file=1)
    low, high = box(own.drawing.strokes)
    rectangle = (low[0] - 5, low[1] - 5, 5 + 0.4 * (high[0] - low[0]), 500.0)
    hole = find_hole(own, rectangle)
    np.testing.assert_allclose(hole[2], 0.4)  # the fish lies: x is its longer side
    sketch = (own.rows / [30, 30, 1]).astype(np.float32)
    packed, (before,) = batches.make_graphs([sketch], hparams)
    intact = packed["patches"][0].copy()
    packed, (after,) = batches.make_graphs([sketch], hparams, holes=[hole])
    blank = packed["patches"][0].copy()
    canvas, _ = utils.draw(sketch)
    margin = utils.line_width(utils.DRAWING_SIZE) + 1
    limit = margin + 0.4 * (len(canvas) - 2 * margin)
    side = hparams.graph_picture_size
    edge = limit * side / len(canvas)
    assert not blank[0, :, : int(edge) - 1].any() and intact[0, :, : int(edge) - 1].any()
    np.testing.assert_array_equal(blank[0, :, int(edge) + 2 :], intact[0, :, int(edge) + 2 :])
    inside = [i for i in range(after.n_patches) if after.centers[i, 0] < round(limit)]
    assert after.masked == inside and 0 < len(inside) < after.n_patches and not before.masked
    for i, (x, _) in enumerate(after.centers):
        cut = round(min(max(limit - x + side // 2, 0), side))
        if i in inside:
            assert not blank[i + 1].any()
        else:
            assert not blank[i + 1, :, : max(cut - 2, 0)].any()
            np.testing.assert_array_equal(blank[i + 1, :, cut + 2 :], intact[i + 1, :, cut + 2 :])


@pytest.mark.slow
def test_erasing_changes_the_code(files, model_dir, tmp_path):
    """--erase takes the place of the random patches; the rectangle is shown in the overlay."""
    low, high = box(svg.read_svg(files[0].read_bytes(), "in").strokes)
    rectangle = (*low.tolist(), *(0.5 * (high - low)).tolist())
    metadata = heal(files[:1], model_dir, tmp_path / "a", erase=rectangle, pictures=("svg",))
    heal(files[:1], model_dir, tmp_path / "b", prob=0, pictures=("svg",))
    assert metadata["prob"] == 0
    codes = [np.load(tmp_path / name / "code_0_0.npy") for name in "ab"]
    assert np.abs(codes[0] - codes[1]).max() > 1e-3
    assert '<rect x="30"' in (tmp_path / "a" / "my fish_overlay.svg").read_text()
    assert "<rect" not in (tmp_path / "b" / "my fish_overlay.svg").read_text()


@pytest.mark.parametrize(
    ("rectangle", "message"),
    [
        ((0.0, 0.0, 5.0, 5.0), "touches no line of .*fish.svg, which has x from 30 to"),
        ((-1e3, -1e3, 1e4, 1e4), "leaves nothing of .*fish.svg"),
    ],
)
def test_rectangles_that_make_no_sense(files, model_dir, tmp_path, rectangle, message):
    """One line that says where the drawing is."""
    with pytest.raises(UserError, match=message):
        heal(files[:1], model_dir, tmp_path / "out", erase=rectangle)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_variants(files, model_dir, tmp_path):
    """Several sketches from one code, all different, the first the same as alone."""
    heal(files[:1], model_dir, tmp_path / "a", variants=3, temperature=1.0)
    heal(files[:1], model_dir, tmp_path / "b", temperature=1.0)
    drawn = [np.load(tmp_path / "a" / f"stroke_0_{v}.npy")[0] for v in range(3)]
    assert not any(np.array_equal(drawn[a], drawn[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    alone = np.load(tmp_path / "b" / "stroke_0_0.npy")[0]
    assert len(alone) == len(drawn[0])
    np.testing.assert_allclose(drawn[0], alone, atol=1e-4)  # another batch
    assert {f"my fish_v{v}_healed.svg" for v in (1, 2, 3)} < names(tmp_path / "a")
    with pytest.raises(UserError, match="variants: 3 is not allowed"):
        heal(files[:1], model_dir, tmp_path / "c", variants=3, greedy=True)


@pytest.mark.slow
def test_once_more_into_the_same_directory(files, model_dir, tmp_path):
    """What an earlier call left is replaced; other people's files stay, or are not overwritten."""
    out = tmp_path / "out"
    heal(files[:1], model_dir, out, variants=2)
    (out / "note.txt").write_text("mine")
    heal(files[1:], model_dir, out)
    assert not any("fish" in name for name in names(out)) and "note.txt" in names(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tree_healed.svg").write_text("mine")
    with pytest.raises(UserError, match="tree_healed.svg: is not of this program"):
        heal(files[1:], model_dir, tmp_path / "other")
    assert names(tmp_path / "other") == {"tree_healed.svg"}


def test_drawings_of_the_same_name(tmp_path):
    """Each gets a name of its own; many in one file are numbered; what can't be used is named."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "x.svg", strokes_of("fish", 3))
    sketch = doodle("fish", np.random.default_rng(1))
    np.save(tmp_path / "a" / "many.npy", np.stack([sketch] * 3))
    write(tmp_path / "b" / "line.svg", [np.array([[0.0, 0], [5, 5]])])
    own, notes = load_own([tmp_path / "a", tmp_path / "b"], max_per_file=2)
    assert [one.name for one in own] == ["many_0", "many_1", "x", "x-2"]
    assert len(notes) == 1 and re.search("line.svg: is a single line", notes[0])
    for one in own[:2]:
        np.testing.assert_array_equal(one.rows, sketch)


def test_fitting():
    """Centre and longer side; a dot goes to the centre; nothing stays nothing."""
    strokes = [np.array([[10.0, 0], [30, 8]])]
    (path,) = fit_over([np.array([[0.0, 0], [1, 4]])], strokes)
    np.testing.assert_allclose(path, [[17.5, -6], [22.5, 14]])
    np.testing.assert_allclose(fit_over([np.ones((2, 2))], strokes)[0], [[20, 4]] * 2)
    assert fit_over([], strokes) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("<svg/>", "is empty, or a dot"),
        ('<svg><path d="M0 0L9 0L9 9z"/></svg>', "filled shapes, texts or images, but no strokes"),
        ('<svg><path stroke="red" d="M0 0h1"/></svg>', "is a single line"),
        ('<svg><path stroke="red" d="M0 0h1e12"/></svg>', "a coordinate is not a number"),
        ("<svg", "damaged"),
    ],
)
def test_drawings_that_can_not_be_healed(model_dir, tmp_path, content, message):
    """One line, and nothing is written."""
    (tmp_path / "x.svg").write_text(content)
    with pytest.raises(UserError, match=f"x.svg.*{message}") as error:
        heal([tmp_path / "x.svg"], model_dir, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_line(files, model_dir, tmp_path):
    """The flags arrive; --data_dir and --input exclude one another; one line for each mistake."""
    command = [sys.executable, str(ROOT / "sample.py"), f"--model_dir={model_dir}"]
    command += [f"--output_dir={tmp_path / 'out'}"]
    given = [f"--input={files[0]}", "--erase=30,10,20,200", "--variants=2", "--pictures=svg"]
    # Set for this process by support/backend.py; it would make TensorFlow talk in another.
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([*command, *given], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    metadata = json.loads((tmp_path / "out" / "healed.json").read_text())
    assert metadata["erase"] == [30, 10, 20, 200] and len(metadata["drawings"]) == 2
    done = subprocess.run(
        [*command, *given, "--data_dir=x"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "--data_dir" in done.stderr and "exclude one another" in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input", "data_dir"}, "exclude one another"),
        (set(), "--data_dir .* and --input .* give one of them"),
        ({"data_dir", "variants"}, "variants: goes with --input only"),
        ({"input", "split"}, "split: goes with --data_dir only"),
    ],
)
def test_flags_that_do_not_go_together(given, message):
    """A flag that would do nothing is an error."""
    with pytest.raises(UserError, match=message):
        sample.check_together(given)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,nan", "1,2,-3,4", "1,2,inf,4", "a,b,c,d"])
def test_rectangles_that_are_none(text):
    """One line that says how a rectangle is written."""
    with pytest.raises(UserError, match=f"erase: '{text}' is not allowed; x,y,width,height"):
        read_rectangle(text)
    assert read_rectangle("1,2,3,4.5") == (1, 2, 3, 4.5)
    assert read_rectangle("") is None
