"""Drawings: the rules of the pen, the fit, SVG and PNG alike, the patch graph, files."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import cv2
import numpy as np
import pytest
from sketch_graphs import link, masked_graph, some_sketches

import drawing
import utils
from support.files import UserError, write_file

SVG = "{http://www.w3.org/2000/svg}"
LINE = np.array([[30, 0, 0], [0, 10, 1]], np.int16)
DOT = np.zeros((3, 3), np.int16)


def random_rows(rng, n, dtype=np.float64):
    """Any rows, among them many lifts in a row, and flags that are neither 0 nor 1."""
    lifted = rng.choice([0, 0, 1, 1, 2], n)
    return np.column_stack([rng.normal(0, 20, (n, 2)), lifted]).astype(dtype)


def svg_paths(svg):
    """The points of an SVG's strokes, (k, 2) each."""
    (path,) = ElementTree.fromstring(svg).iter(f"{SVG}path")
    strokes = re.findall(r"M([^Ml]+)l([^Ml]+)", path.get("d"))
    assert "".join(f"M{start}l{steps}" for start, steps in strokes) == path.get("d")
    numbers = [re.findall(r"-?[0-9.]+", f"{start} {steps}") for start, steps in strokes]
    return [np.cumsum(np.array(n, np.float64).reshape(-1, 2), axis=0) for n in numbers]


def distances(paths, side):
    """How far each pixel's centre is from the strokes' centre lines, (side, side)."""
    y, x = np.mgrid[:side, :side] + 0.5
    nearest = np.full((side, side), np.inf)
    for path in paths:
        for (ax, ay), (bx, by) in pairwise(path.tolist()):
            length2 = (bx - ax) ** 2 + (by - ay) ** 2 or 1
            t = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length2, 0, 1)
            away = np.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay))
            nearest = np.minimum(nearest, away)
    return nearest


def ink_box(picture):
    """Left, top, right and bottom of the ink."""
    x, y, width, height = cv2.boundingRect(255 - picture)
    return x, y, x + width, y + height


# The pen.


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 50])
def test_the_pen_lifts_as_published(n, dtype):
    """A line for each row from the pen, but none for the row after a lift, whose flag is void."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        sketch = random_rows(rng, n, dtype)
        x = y = 0.0
        expected, moves = [], False
        for dx, dy, lifted in sketch.tolist():
            if moves:
                moves = False
            else:
                expected.append((x, y, x + dx, y + dy))
                moves = lifted == 1
            x, y = x + dx, y + dy
        paths = drawing.to_paths(sketch)
        pairs = [pair for path in paths for pair in pairwise(map(tuple, path.tolist()))]
        assert [(*a, *b) for a, b in pairs] == expected


def test_a_stroke_is_one_path():
    """Rows that are drawn on from the pen stay one polyline, so that their joins are round."""
    sketch = np.array([[1, 0, 0], [1, 0, 1], [5, 5, 0], [0, 1, 0], [0, 1, 0]])
    assert [path.tolist() for path in drawing.to_paths(sketch)] == [
        [[0, 0], [1, 0], [2, 0]],
        [[7, 5], [7, 6], [7, 7]],
    ]


def test_row_0_is_drawn():
    """The first row draws a line from the origin; the published SVG lost it."""
    (path,) = svg_paths(drawing.to_svg(LINE))
    assert len(path) == 3 and path[1, 0] - path[0, 0] == pytest.approx(225 * 0.88, abs=0.1)
    without = drawing.to_picture(LINE[1:])
    assert (without[:, 60] == 255).all() and (drawing.to_picture(LINE)[:, 60] < 128).any()


# The fit.


@pytest.mark.parametrize("margin", [0.02, 0.06, 0.25])
@pytest.mark.parametrize("side", [225, 64, 500])
def test_the_fit(side, margin):
    """The strokes' box is centred, keeps its aspect and fills the side except for the margin."""
    for sketch in some_sketches():
        given = np.concatenate(drawing.to_paths(sketch))
        fitted = np.concatenate(svg_paths(drawing.to_svg(sketch, side, margin)))
        low, high = fitted.min(axis=0), fitted.max(axis=0)
        extent = given.max(axis=0) - given.min(axis=0)
        np.testing.assert_allclose((low + high) / 2, side / 2, atol=0.11)
        np.testing.assert_allclose(
            high - low, extent / extent.max() * side * (1 - 2 * margin), atol=0.11
        )


def test_lines_stay_inside():
    """With the default margin no line, thick as it is, is cut by the picture's edge."""
    for sketch in some_sketches():
        for side in (64, 225, 450):
            left, top, right, bottom = ink_box(drawing.to_picture(sketch, side))
            assert min(left, top) >= 1 and max(right, bottom) <= side - 1
            assert max(right - left, bottom - top) >= 0.88 * side


def test_the_unit_does_not_matter():
    """Sketches in pixels, in model units or far larger ones look the same."""
    for sketch in some_sketches():
        picture = drawing.to_picture(sketch)
        for unit in (2.0**-9, 2.0**12):
            scaled = sketch * np.array([unit, unit, 1])
            np.testing.assert_array_equal(drawing.to_picture(scaled), picture)


def test_a_move_does_not_count_for_the_box():
    """A pen that moves away after the last stroke leaves the picture as it was."""
    lifted = np.array([[30, 0, 0], [0, 10, 1], [900, 900, 0]])
    np.testing.assert_array_equal(drawing.to_picture(lifted), drawing.to_picture(LINE))


# SVG and PNG.


def test_svg_is_valid():
    """A browser needs the name space; one path, round caps, and the stated view box and size."""
    root = ElementTree.fromstring(drawing.to_svg(some_sketches()[0]))
    assert root.tag == f"{SVG}svg"
    assert (root.get("viewBox"), root.get("width"), root.get("height")) == (
        "0 0 225 225",
        "225",
        "225",
    )
    paths = list(root.iter(f"{SVG}path"))
    assert len(paths) == 1
    assert paths[0].get("stroke-linecap") == paths[0].get("stroke-linejoin") == "round"
    assert paths[0].get("fill") == "none"


def test_line_width_follows_the_side():
    """A picture of twice the size has lines of about twice the width."""
    for side, width in ((225, 3), (450, 5), (1125, 11)):
        assert f'stroke-width="{width}"' in drawing.to_svg(LINE, side)


def test_svg_rounding_does_not_add_up():
    """Relative steps of one decimal lead to the right place, even after thousands of them."""
    sketch = random_rows(np.random.default_rng(1), 5000)
    exact = np.concatenate(drawing.to_paths(sketch))
    low = exact.min(axis=0)
    exact = (exact - low) / (exact.max(axis=0) - low).max() * 225 * 0.88
    read = np.concatenate(svg_paths(drawing.to_svg(sketch)))
    np.testing.assert_allclose(read - read.min(axis=0), exact, atol=0.11)


@pytest.mark.parametrize("side", [225, 100, 450])
def test_png_and_svg_agree(side):
    """The pixels are dark within the SVG's stroke width and white outside, up to the soft rim."""
    for sketch in [*some_sketches()[:4], LINE[:1], DOT]:
        svg = drawing.to_svg(sketch, side)
        width = float(re.search(r'stroke-width="([0-9.]+)"', svg)[1])
        away = distances(svg_paths(svg), side)
        picture = drawing.to_picture(sketch, side)
        assert (picture[away < width / 2 - 0.6] < 128).all()
        assert (picture[away > width / 2 + 1.1] > 220).all()
        assert (picture[away > width / 2 + 2] == 255).all()
        grey = picture[(picture > 0) & (picture < 255)]
        assert len(grey) > 0  # anti-aliased


def test_picture_is_deterministic_and_leaves_the_sketch_alone():
    """A classifier's input must not depend on who draws beside it."""
    sketches = some_sketches()
    copies = [sketch.copy() for sketch in sketches]
    expected = [drawing.to_picture(sketch) for sketch in sketches]
    with ThreadPoolExecutor(4) as pool:
        for i, picture in enumerate(pool.map(drawing.to_picture, sketches * 20)):
            np.testing.assert_array_equal(picture, expected[i % len(sketches)])
    for sketch, copy in zip(sketches, copies, strict=True):
        np.testing.assert_array_equal(sketch, copy)


# Little, much and nonsense.


def test_nothing_to_draw():
    """A generated sketch without rows is a white picture and a valid SVG with an empty path."""
    empty = np.zeros((0, 3))
    assert drawing.to_paths(empty) == []
    assert svg_paths(drawing.to_svg(empty)) == []
    picture = drawing.to_picture(empty)
    assert picture.shape == (225, 225) and picture.dtype == np.uint8 and (picture == 255).all()


@pytest.mark.parametrize("n", [1, 2, 40])
def test_a_dot_is_seen(n):
    """Offsets of zero give a dot in the middle, not a blank and not a division by zero."""
    dot = np.zeros((n, 3), np.float32)
    (path,) = svg_paths(drawing.to_svg(dot))
    np.testing.assert_allclose(path, 112.5, atol=0.1)
    for side in (32, 225):
        picture = drawing.to_picture(dot, side)
        assert picture[side // 2, side // 2] < 64 and 0 < (picture < 255).sum() < 40


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 0, 0], [np.nan, 0, 0]],
        [[0, 0, np.nan], [1, 0, 0]],
        [[np.inf, 0, 0]],
        [[-1e300, 0, 0], [-1e300, 0, 0]],
        [[1, 2], [3, 4]],
        [1, 2, 3],
        [[[1, 2, 0]]],
    ],
)
def test_bad_sketches_are_refused(rows):
    """One line says what is wrong, in place of a picture of nonsense."""
    for draw in (drawing.to_svg, drawing.to_picture):
        with pytest.raises(ValueError, match="sketch") as error:
            draw(np.array(rows, np.float64))
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "sketch",
    [
        random_rows(np.random.default_rng(2), 20_000),
        np.array([[32767, -32768, 0], [-32768, 32767, 0], [32767, 32767, 1]] * 30, np.int16),
        np.array([[9e99, 0, 0], [0, -9e99, 0]]),
        np.array([[3e38, 0, 0], [0, -3e38, 0]] * 5, np.float32),
        np.array([[5e-324, 0, 0], [0, 5e-324, 0]]),
        np.array([[1e-20, 0, 1], [1e90, 1e90, 0]]),
        np.array([[1, 0, 1]] * 9),
    ],
    ids=["long", "int16", "far", "float32", "tiny", "mixed", "lifts"],
)
def test_extreme_sketches(sketch):
    """Whatever is finite is drawn inside the picture, without a warning."""
    points = np.concatenate(svg_paths(drawing.to_svg(sketch)))
    assert points.min() >= 13 and points.max() <= 212
    assert (drawing.to_picture(sketch) < 128).any()


# The canvas and its graph.


def test_canvas_picture_is_the_canvas():
    """Without a sketch the whole canvas is shown, ink and paper changed places."""
    canvas = np.zeros((256, 256), np.uint8)
    canvas[:64, 128:] = 255
    expected = np.full((128, 128), 255, np.uint8)
    expected[:32, 64:] = 0
    np.testing.assert_array_equal(drawing.canvas_picture(canvas, 128), expected)


def test_canvas_lies_where_its_sketch_lies():
    """Original and corrupted canvas stand side by side in a gallery: no shift, the same size."""
    for sketch in some_sketches():
        canvas = utils.make_graph(sketch).patches[0]
        thin = np.array(ink_box(drawing.to_picture(sketch)))
        thick = np.array(ink_box(drawing.canvas_picture(canvas, 225, sketch)))
        # Thicker by 3 pixels; the canvas rounds each row's offset to whole pixels.
        assert np.abs(thin - thick).max() <= 5


def test_graph_leaves_out_what_is_no_link_of_two_patches():
    """Neither self-loops, nor links with the whole sketch or unused nodes, nor negative ones."""
    sketch = some_sketches()[0]
    graph = masked_graph(sketch)
    n = graph.n_patches
    assert 4 <= n < 20
    others = [(0, 0, 1), (2, 0, 0.5), (2, 2, 1), (3, n + 1, 1), (n + 1, 20, 1)]
    others += [(1, 3, -0.5), (3, 1, -0.5)]
    for one in ((), ((1, 4, 0.2), (1, 2, 0.1))):  # they must not pale these either
        plain = drawing.draw_graph(sketch, graph, link(*one))
        np.testing.assert_array_equal(drawing.draw_graph(sketch, graph, link(*others, *one)), plain)


def test_graph_shows_weights():
    """A link is drawn, whichever way it points, and the heavier one has more ink."""
    corners = np.array(
        [[9, 0, 1], [90, 90, 0], [9, 0, 1], [-99, 0, 0], [9, 0, 1], [90, -90, 0], [9, 0, 1]]
    )
    graph = utils.make_graph(corners)
    assert graph.n_patches == 4
    plain = drawing.draw_graph(corners, graph, link()).astype(int)

    def ink(*links):
        return np.abs(drawing.draw_graph(corners, graph, link(*links)) - plain).sum(axis=2)

    one, other = ink((1, 2, 1)), ink((3, 4, 1))
    assert (one > 0).sum() > 300 and (other > 0).sum() > 300
    both = ink((1, 2, 0.2), (3, 4, 0.5))
    apart = (one > 0) & (other == 0)
    assert both[apart].max() < 0.8 * one[apart].max()  # paler
    assert (both[apart] > 0).sum() < 0.8 * apart.sum()  # narrower
    heavy = (other > 0) & (one == 0)
    np.testing.assert_array_equal(both[heavy], other[heavy])
    np.testing.assert_array_equal(ink((2, 1, 0.2), (1, 2, 0.1), (4, 3, 0.5)), both)


@pytest.mark.parametrize("masked", [0, 3])
def test_graph_marks_exactly_what_is_erased(masked):
    """The red square covers the erased part of the canvas and no more."""
    for sketch in some_sketches():
        graph = masked_graph(sketch, [masked])
        assert graph.masked == [masked]
        # Without the other patches, whose discs would hide parts of the square.
        one = graph._replace(centers=graph.centers[graph.masked], masked=[0])
        plain = drawing.draw_graph(sketch, one._replace(masked=[]), link())
        red = (drawing.draw_graph(sketch, one, link()) != plain).any(axis=2).astype(np.uint8)
        intact = 255 - drawing.canvas_picture(utils.make_graph(sketch).patches[0], 450, sketch)
        corrupted = 255 - drawing.canvas_picture(graph.patches[0], 450, sketch)
        near = np.ones((9, 9), np.uint8)  # pixels are softened twice on their way
        inside, outside = cv2.erode(red, near) > 0, cv2.dilate(red, near) == 0
        assert intact[inside].any() and not corrupted[inside].any()
        np.testing.assert_array_equal(corrupted[outside], intact[outside])


@pytest.mark.parametrize("sketch", [DOT, LINE, LINE * np.array([-1, 0, 1])])
def test_graph_of_little(sketch):
    """A dot or a line has a graph too, with all of its patches masked or none."""
    for masked in ((), range(20)):
        picture = drawing.draw_graph(sketch, masked_graph(sketch, masked), link(), side=300)
        assert picture.shape == (300, 300, 3) and picture.dtype == np.uint8
        red = picture[..., 2].astype(int) - picture[..., 0] > 100
        assert red.any() == bool(masked)
    alone = drawing.canvas_picture(utils.make_graph(sketch).patches[0], 225, sketch)
    assert 0 < (alone < 128).sum() < 2000


# Files.


def test_png_round_trip(tmp_path):
    """Grey and colour come back as they were, under a name that is not a str, too."""
    grey = drawing.to_picture(some_sketches()[0])
    drawing.write_png(tmp_path / "grey.png", grey)
    read = cv2.imread(str(tmp_path / "grey.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read, grey)
    colour = drawing.draw_graph(LINE, masked_graph(LINE), link())
    drawing.write_png(str(tmp_path / "colour.png"), colour)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "colour.png")), colour)
    assert len(list(tmp_path.iterdir())) == 2


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    """A file is never half written: a failure leaves the old one, and no litter."""
    path = tmp_path / "a.svg"
    write_file(path, "old ü")
    write_file(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"

    def full(*_):
        assert len(list(tmp_path.iterdir())) == 2  # written beside it, then moved
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    for write, content in ((write_file, "newer"), (drawing.write_png, np.zeros((9, 9)))):
        with pytest.raises(UserError, match="a.svg: can't be written .no space left"):
            write(path, content)
    assert [p.name for p in tmp_path.iterdir()] == ["a.svg"]
    assert path.read_text(encoding="utf-8") == "new ü"


def test_unwritable_places(tmp_path):
    """A missing directory, or a file in its place, is one line that names the path."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "missing" / "a.svg", tmp_path / "file" / "a.svg"):
        with pytest.raises(UserError, match="a.svg: can't be written"):
            write_file(place, "x")


@pytest.mark.slow
def test_imports_little():
    """Drawing is of use without the model: it must not load Keras or TensorFlow."""
    code = (
        "import drawing, sys; assert 'matplotlib' not in sys.modules; import gallery; "
        "sys.exit(bool({'keras', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=drawing.__file__[:-10]).returncode == 0
