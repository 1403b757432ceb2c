"""support/svg.py: lines as a browser draws them, and files that must do no harm."""

import contextlib
import time

import numpy as np
import pytest

import drawing
from doodles import doodle
from support import svg
from support.files import UserError

XML = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def read(body, attributes="", before=""):
    return svg.read_svg(f"{before}<svg {XML} {attributes}>{body}</svg>".encode(), "x.svg")


def ends(found):
    """First and last points of all strokes."""
    return [[np.round(stroke[i], 6).tolist() for i in (0, -1)] for stroke in found.strokes]


@pytest.mark.parametrize("seed", range(5))
def test_what_sample_writes_is_read_back(seed):
    """The strokes, in order, to the tenth of a pixel that the file keeps, without the paper."""
    sketch = doodle("house", np.random.default_rng(seed))
    found = svg.read_svg(drawing.to_svg(sketch).encode(), "x.svg")
    expected = drawing._fit(drawing.to_paths(sketch), drawing.SIDE, drawing.MARGIN)
    assert found.not_strokes == 0 and len(found.strokes) == len(expected)
    for ours, theirs in zip(found.strokes, expected, strict=True):
        assert len(ours) == len(theirs)
        # Half a tenth, and the sums of rounded steps.
        np.testing.assert_allclose(ours, theirs, atol=0.051)


def test_written_and_read():
    """The writer's own files, to six digits, and the frame is kept."""
    strokes = [np.array([[1.5, 2], [3, -4e3]]), np.array([[7.0, 7], [7, 7], [1e-3, 0]])]
    frame = svg.frame_around(strokes) | {"preserveAspectRatio": 'a"<'}
    text = svg.write_svg([svg.Layer(strokes, "#000", 2.0)], frame)
    found = svg.read_svg(text.encode(), "x.svg")
    assert found.frame == frame
    for ours, theirs in zip(found.strokes, strokes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_transforms_and_units():
    """Nested transforms, a viewBox that begins elsewhere, lengths in mm, percent and px.

    All in user units of the outermost viewBox, whatever size the page has.
    """
    body = """<g transform="translate(10,20)"><g transform="rotate(90)">
      <line x1="0" y1="0" x2="5" y2="0" stroke="red" transform="scale(2)"/></g></g>
      <line x1="1in" y1="1mm" x2="50%" y2="3px" stroke="red"/>
      <svg x="50" y="60" width="20" height="20" viewBox="0 0 10 10">
        <line x1="0" y1="0" x2="10" y2="5" stroke="red"/></svg>"""
    found = read(body, 'width="200mm" height="100mm" viewBox="-10 -20 200 100"')
    assert ends(found)[0] == [[10, 20], [10, 30]]
    np.testing.assert_allclose(ends(found)[1], [[96, 96 / 25.4], [100, 3]], rtol=1e-5)
    assert ends(found)[2] == [[50, 60], [70, 70]]
    assert found.frame == {"width": "200mm", "height": "100mm", "viewBox": "-10 -20 200 100"}


def test_all_shapes_in_the_order_of_the_document():
    """Lines, polylines, polygons, rectangles, circles, ellipses, paths of several strokes."""
    body = """<polyline points="0,0 1,1 2,0"/><path d="m0 0h5zm1 1l2 3v-1q1 1 2 0t2 0"/>
      <circle cx="10" cy="10" r="5"/><ellipse cx="0" cy="0" rx="4" ry="2"/>
      <rect x="1" y="2" width="3" height="4"/><polygon points="0 0 9 0 9 9"/>
      <path d="M0 0H4ZL7 7"/><path d=""/><path/>"""
    found = read(f'<g fill="none" stroke="black">{body}</g>')
    assert [stroke[-1].tolist() for stroke in found.strokes[:3]] == [[2, 0], [0, 0], [7, 3]]
    circle, ellipse, rect, polygon, closed, after = found.strokes[3:]
    radius = np.hypot(*(circle - 10).T)
    np.testing.assert_allclose(radius, 5, rtol=1e-9)
    np.testing.assert_allclose((ellipse / (4, 2)) ** 2 @ (1, 1), 1, rtol=1e-9)
    assert [len(rect), len(polygon), closed.tolist()] == [5, 4, [[0, 0], [4, 0], [0, 0]]]
    assert after.tolist() == [[0, 0], [7, 7]]


def test_curves_are_followed():
    """Bezier curves and arcs, relative too, point by point on the curve of their formula."""
    body = """<path d="M10 20c30 40 50 -60 70 5" stroke="red"/>
      <path d="M10,20 a30,15 0 1 1 40,0" stroke="red"/>"""
    cubic, arc = read(body).strokes
    t = np.linspace(0, 1, 5001)[:, None]
    control = np.array([[10, 20], [40, 60], [60, -40], [80, 25]])
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    exact = weights @ control
    distance = np.hypot(*(cubic[:, None] - exact[None]).transpose(2, 0, 1))
    assert distance.min(axis=1).max() < 0.02  # points on the curve
    assert np.hypot(*np.diff(cubic, axis=0).T).max() < 1  # and close to one another
    x, y = arc.T - [[30], [0]]  # its centre lies above or below the middle of its ends
    b = (20 - np.array([20 + 15 * (1 - 4 / 9) ** 0.5, 20 - 15 * (1 - 4 / 9) ** 0.5])).tolist()
    off = [np.abs((x / 30) ** 2 + ((y - 20 + c) / 15) ** 2 - 1).max() for c in b]
    assert min(off) < 1e-6


@pytest.mark.parametrize(
    ("transform", "inverse"),
    [
        ("rotate(30)", [[0.75**0.5, 0.5], [-0.5, 0.75**0.5]]),
        ("skewX(45)", [[1, -1], [0, 1]]),
        ("scale(2 -0.5)", [[0.5, 0], [0, -2]]),
    ],
)
@pytest.mark.parametrize(
    "shape", ['ellipse rx="30" ry="15"', 'path d="M30 0A30 15 0 0 1 -30 0 30 15 0 0 1 30 0"']
)
def test_round_shapes_are_transformed(shape, transform, inverse):
    """Transformed back by hand, all points lie on the ellipse."""
    (stroke,) = read(f'<{shape} stroke="red" transform="{transform}"/>').strokes
    x, y = np.array(inverse) @ stroke.T
    np.testing.assert_allclose((x / 30) ** 2 + (y / 15) ** 2, 1, rtol=1e-9)
    assert np.hypot(np.diff(x), np.diff(y)).max() < 1


def test_habits_of_inkscape_and_illustrator():
    """Styles, layers, foreign elements, style sheets, a doctype, definitions and uses."""
    body = """<sodipodi:namedview xmlns:sodipodi="s"><path d="M0 0h9" stroke="red"/>
      </sodipodi:namedview><metadata><a/></metadata>
      <defs><style type="text/css"> /* a { } comment */ @font-face { src: url(data:,x) }
        .st0 , .st1 { fill : none ; stroke : #231F20 } </style>
        <path id="p" class="st0" d="M0 0h3"/><marker id="m"><path class="st0" d="M0 0h7"/></marker>
        <clipPath id="c"><rect class="st0" width="1" height="1"/></clipPath></defs>
      <g clip-path="url(#c)" style="fill:none;stroke:#000000;stroke-width:0.26458332">
        <path d="m 1,1 2,0 0,2" marker-end="url(#m)"/></g>
      <switch><foreignObject/><g><path class="st1" d="M5 5V9"/></g></switch>
      <use xlink:href="#p" x="10" y="1"/><use href="#s" transform="translate(0 50)"/>
      <symbol id="s"><path class="st0" d="M1 0h1"/></symbol>
      <path class="st0" d="M0 0h1" style="display:none"/>
      <path class="st0" d="M0 0h1" visibility="hidden"/>
      <path class="st0" stroke-width="0" d="M0 0h1"/>
    """
    doctype = '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd">'
    found = read(body, before=doctype)
    assert ends(found) == [
        [[1, 1], [3, 3]],
        [[5, 5], [5, 9]],
        [[10, 1], [13, 1]],
        [[1, 50], [2, 50]],
    ]
    assert found.not_strokes == 1  # the foreignObject


def test_what_is_no_stroke_is_counted():
    """Filled outlines, texts, images; the paper behind the drawing is none of them."""
    body = """<rect width="100%" height="100%" fill="white"/><path d="M0 0L9 0L9 9z"/>
      <text>hello</text><image href="x.png"/><path d="M0 0h5" fill="white" stroke="black"/>
      <path d="M0 0h5" fill="none"/>"""
    found = read(body, 'viewBox="0 0 100 100"')
    assert len(found.strokes) == 1 and found.not_strokes == 3


def test_nothing_outside_is_touched(tmp_path, monkeypatch):
    """References to other files draw nothing and open nothing."""
    (tmp_path / "other.svg").write_text(f'<svg {XML}><path id="p" stroke="red" d="M0 0h9"/></svg>')
    body = """<use href="other.svg#p"/><use href="/etc/passwd"/><image href="http://127.0.0.1:9/"/>
      <style>@import url(other.css);</style><path stroke="red" d="M0 0h1"/>"""
    monkeypatch.chdir(tmp_path)
    assert len(read(body).strokes) == 1


LAUGHS = "".join(
    f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' if i else '<!ENTITY a0 "ha">' for i in range(10)
)
USES = "".join(f'<g id="g{i}">{f"""<use href="#g{i - 1}"/>""" * 10}</g>' for i in range(1, 12))


@pytest.mark.parametrize(
    ("body", "before", "message"),
    [
        ("<text>&a9;</text>", f"<!DOCTYPE svg [{LAUGHS}]>", "declares XML entities"),
        (
            "&x;",
            '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
            "declares XML entities",
        ),
        ('<path id="g0" stroke="red" d="M0 0h1"/>' + USES, "", "more than 100,000 elements"),
        ('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>', "", "refers to itself"),
        ("<g>" * 5000 + "</g>" * 5000, "", "elements lie in more than 100 others"),
        (f'<path d="{"l1 1 " * 900_000}"/>', "", "characters of path data are too many"),
        (" " * 20_000_000, "", "bytes are too many"),
    ],
)
def test_bombs(body, before, message):
    """Small files that would become large: refused at once."""
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        read(body, before=before)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", [" " * 100_000, "a" * 100_000 + "{}", "/*" * 50_000, "{" * 50_000])
def test_style_sheets_that_take_for_ever(text):
    """Damaged style sheets are skipped; svgelements alone would search them for hours."""
    start = time.monotonic()
    found = read(f'<style>{text}</style><path stroke="red" d="M0 0h1"/>')
    assert len(found.strokes) == 1 and time.monotonic() - start < 5


@pytest.mark.parametrize(
    "attribute",
    [
        f'points="{"1" * 100_000}"',
        f'transform="{"translate(" * 900}"',
        f'clip-path="{"url(" * 9_000}"',
    ]
    + [f'style="stroke:{"rgb(1," * 2_000}"', f'd="M0 0h{"1" * 100_000}"'],
)
def test_attributes_that_take_for_ever(attribute):
    """The same, for attributes: read, skipped or refused at once."""
    start = time.monotonic()
    with contextlib.suppress(UserError):
        read(f"<polyline {attribute}/><path {attribute}/>")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("body", "attributes"),
    [
        ("", 'viewBox="0 0 nan 5"'),
        ("", 'viewBox="0 0 0 5"'),
        ("", 'viewBox="0 0 5"'),
        ('<path stroke="red" d="M0 0 L 1 x"/>', ""),
        ('<path stroke="red" d="M0 0 C 1"/>', ""),
        ('<circle stroke="red" r="5" transform="rotate(abc)"/>', ""),
        ('<path stroke="red" d="M0 0 A 1e300 1e300 0 0 1 5 5"/>', ""),
        ('<path stroke="red" d="M0 0 Q 1e308 -1e308 5 5"/><path stroke="red" d="M0 0H1e309"/>', ""),
    ],
)
def test_damaged_numbers(body, attributes):
    """One line."""
    with pytest.raises(UserError, match="^x.svg: damaged, ") as error:
        read(body, attributes)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
