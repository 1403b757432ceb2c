"""Strokes to pictures: SVG and PNG files, the patch graph.

A sketch is a stroke-3 array (n, 3) of rows (dx, dy, lifted) in any unit, y pointing down; it may
have no rows. It is drawn by the rules of the canvas in `utils`, but unrounded, and fitted into a
square. Colour pictures are uint8 (height, width, 3), blue first, as OpenCV reads and writes them.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import utils
from support.files import write_file
from support.palette import EDGE_COLOUR, MASKED_COLOUR, bgr

SIDE = 225  # pixels of a picture
GRAPH_SIDE = 450  # of one with the patch graph on it
MARGIN = 0.06  # share of the side left free around a sketch
MAX_OFFSET = 1e100  # no offset may reach this far, so that sums of offsets stay finite
SUBPIXEL_BITS = 8  # OpenCV's coordinates below are integers in 1/256 pixel

Colour = tuple[int, ...]  # blue, green, red
EDGE, MASKED = bgr(EDGE_COLOUR), bgr(MASKED_COLOUR)
FONT = cv2.FONT_HERSHEY_SIMPLEX
SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])


def to_paths(sketch: np.ndarray) -> list[np.ndarray]:
    """The drawn strokes of a sketch as lists of points, in its own unit; see `utils.pen_paths`.

    Returns:
        float64 (at least 2, 2) each, x and y.

    Raises:
        ValueError: another shape; NaN, infinite values or offsets of 1e100 or more.
    """
    sketch = np.asarray(sketch)
    if sketch.ndim != 2 or sketch.shape[1] != 3:
        raise ValueError(f"a sketch is a stroke-3 array of shape (n, 3), not {sketch.shape}")
    if not (np.abs(sketch.astype(np.float64)) < MAX_OFFSET).all():  # false for NaN too
        raise ValueError("the sketch has NaN, infinite or absurdly large values")
    return utils.pen_paths(sketch, start=np.zeros(2))


def fitted_paths(sketch: np.ndarray, side: float, margin: float = MARGIN) -> list[np.ndarray]:
    """The drawn strokes of a sketch, centred and scaled into a square as `to_picture` has them.

    Args:
        sketch: stroke-3 (n, 3).
        side: of the square, in any unit.
        margin: share of the side left free on each side of the strokes' centre lines.

    Returns:
        As `to_paths`, from 0 to `side`.

    Raises:
        ValueError: see `to_paths`.
    """
    return _fit(to_paths(sketch), side, margin)


def to_svg(sketch: np.ndarray, side: int = SIDE, margin: float = MARGIN) -> str:
    """A sketch as a standalone SVG: one black path on white, fitted as in `to_picture`.

    Args:
        sketch: stroke-3 (n, 3). Without rows the path is empty; a dot is drawn as a dot.
        side: width and height in pixels.
        margin: share of the side left free on each side of the strokes' centre lines.

    Raises:
        ValueError: see `to_paths`.
    """
    strokes = []
    for path in fitted_paths(sketch, side, margin):
        # Rounded before the differences are taken, so that no error adds up.
        steps = np.diff(np.rint(path * 10), axis=0, prepend=0) / 10
        strokes.append(("M%g %gl" + " %g %g" * (len(path) - 1)) % tuple(steps.ravel().tolist()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}"'
        f' viewBox="0 0 {side} {side}"><rect width="{side}" height="{side}" fill="#fff"/>'
        f'<path fill="none" stroke="#000" stroke-width="{_line_width(side)}"'
        f' stroke-linecap="round" stroke-linejoin="round"'
        f' d="{"".join(strokes)}"/></svg>\n'
    )


def to_picture(sketch: np.ndarray, side: int = SIDE, margin: float = MARGIN) -> np.ndarray:
    """A sketch as pixels: uint8 (side, side), black (0) on white (255), anti-aliased.

    The drawn strokes are centred and scaled, their aspect kept, so that the longer side of their
    box fills the picture except for the margin. A sketch without rows is white, with a dot in the
    middle.

    Args:
        sketch: stroke-3 (n, 3).
        side: width and height in pixels.
        margin: share of the side left free on each side of the strokes' centre lines.

    Raises:
        ValueError: see `to_paths`.
    """
    picture = np.full((side, side), 255, np.uint8)
    _draw_lines(picture, fitted_paths(sketch, side, margin), 0, _line_width(side))
    return picture


def canvas_picture(
    canvas: np.ndarray, side: int = SIDE, sketch: np.ndarray | None = None
) -> np.ndarray:
    """A canvas as black ink on white, uint8 (side, side).

    Args:
        canvas: uint8 (S, S), ink 255 on 0: a whole canvas, intact or corrupted, in any resolution.
        side: width and height in pixels.
        sketch: stroke-3 (n, 3), n >= 2, whose canvas it is: then its strokes lie where
            `to_picture` puts them. Without it, the canvas fills the picture.

    Raises:
        ValueError: the sketch has fewer than two rows, NaN or infinite values.
    """
    inner, corner = side, (0, 0)
    if sketch is not None:
        inner, corner = _frame(utils.draw(sketch)[0], side, utils.DRAWING_SIZE)
    return 255 - _place(canvas, inner, corner, side)


def draw_graph(
    sketch: np.ndarray, graph: Any, adjacency: np.ndarray, side: int = GRAPH_SIDE
) -> np.ndarray:
    """The canvas of a sketch with its graph on it, framed like the sketch in `to_picture`.

    The centres of patches are discs, numbered like the nodes (1 = first patch), lattice points are
    dots. Arcs link them, wider and darker the heavier they are, the heaviest in full colour. An
    erased patch is a crossed red square, as large as what was erased; a dropped point is a red dot.

    Args:
        sketch: stroke-3 (n, 3), n >= 2, the one that the graph was made of.
        graph: `utils.SketchGraph` or `lattice.Lattice`.
        adjacency: float (N, N), whose first rows and columns up to the graph's `first_node` (the
            whole sketch) are not drawn, nor are self-loops. Between two nodes the heavier
            direction counts.
        side: width and height in pixels; the numbers are legible from about 400.

    Returns:
        uint8 (side, side, 3), blue first.

    Raises:
        ValueError: the sketch has fewer than two rows, NaN or infinite values.
    """
    canvas, _ = utils.draw(sketch, graph.drawing_size)
    inner, corner = _frame(canvas, side, graph.drawing_size)
    scale = inner / len(canvas)

    def place(points):
        return (points + 0.5) * scale + corner

    centers = place(graph.centers)
    half = graph.square_side / 2 * scale
    unit = side / 150
    marks = np.full((side, side, 3), 255, np.uint8)
    squares = [center + half * SQUARE for center in place(graph.erased)]
    for square in squares:
        cv2.fillConvexPoly(marks, _fixed(square), _tint(MASKED, 0.1), cv2.LINE_AA, SUBPIXEL_BITS)
    for square in squares:
        _draw_lines(marks, [square[:3:2], square[1::2]], _tint(MASKED, 0.45), 1)
        _draw_lines(marks, [square], _tint(MASKED, 0.8), 1)
    edges = _edges(adjacency, graph.first_node, len(centers))
    if graph.is_numbered:
        for a, b, weight in edges:
            arc = _arc(centers[a], centers[b])
            _draw_lines(marks, [arc], _tint(EDGE, 0.2 + 0.8 * weight), round(unit * (0.3 + weight)))
    else:  # thin and light: many thick links would hide all else; the lightest are hardly seen
        lightest = edges[0][2] if edges else 0
        for a, b, weight in edges:
            strength = (weight - lightest) / ((1 - lightest) or 1)
            _draw_lines(marks, [centers[[a, b]]], _tint(EDGE, 0.08 + 0.4 * strength**2), 1)
    paper = 255 - _place(canvas, inner, corner, side) // 5  # the strokes in light grey
    picture = cv2.multiply(marks, cv2.cvtColor(paper, cv2.COLOR_GRAY2BGR), scale=1 / 255)
    if graph.is_numbered:
        for i, center in enumerate(centers):
            _draw_disc(picture, center, str(i + 1), MASKED if i in graph.masked else EDGE, 3 * unit)
    else:
        for points, colour in ((place(graph.dropped_centers), MASKED), (centers, EDGE)):
            for point in points:
                _draw_disc(picture, point, "", colour, unit)
    return picture


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes a picture, grey or in colour with blue first, as `write_file` does."""
    write_file(path, png(picture), survives_power_loss=False)


def png(picture: np.ndarray) -> bytes:
    """A picture, grey or in colour with blue first, as a PNG file."""
    return cv2.imencode(".png", picture)[1].tobytes()


def _fit(paths: list[np.ndarray], side: float, margin: float) -> list[np.ndarray]:
    """Centres and scales paths into a square: x and y from 0 to side, pixel 0 being [0, 1)."""
    if not paths:
        return []
    points = np.concatenate(paths)
    low = points.min(axis=0)
    extent = points.max(axis=0) - low
    longest = extent.max() or 1.0
    room = side * (1 - 2 * margin)
    start = (side - extent / longest * room) / 2
    # Divided before it is multiplied: room / longest may overflow.
    points = (points - low) / longest * room + start
    ends = np.cumsum([0, *map(len, paths)]).tolist()
    return [points[a:b] for a, b in pairwise(ends)]


def _frame(canvas: np.ndarray, side: int, drawing_size: int) -> tuple[int, tuple[int, int]]:
    """Where an intact canvas goes in a picture, so that its strokes are fitted as by `_fit`.

    Args:
        canvas: from `utils.draw`.
        side: of the picture.
        drawing_size: of the drawing.

    Returns:
        Its width and height in pixels, and its left and top.
    """
    x, y, width, height = cv2.boundingRect(canvas)
    # The centre lines' longer side. A dot has none; it is shown about twice as large as usual.
    longest = max(max(width, height) - utils.line_width(drawing_size), drawing_size // 2)
    scale = side * (1 - 2 * MARGIN) / longest
    left, top = (round(side / 2 - scale * (p + d / 2)) for p, d in ((x, width), (y, height)))
    return round(scale * len(canvas)), (left, top)


def _place(canvas: np.ndarray, inner: int, corner: tuple[int, int], side: int) -> np.ndarray:
    """A canvas resized to `inner` pixels, its left and top at `corner` of a blank (side, side)."""
    way = cv2.INTER_AREA if inner < len(canvas) else cv2.INTER_LINEAR
    small = cv2.resize(canvas, (inner, inner), interpolation=way)
    shift = np.array([[1, 0, corner[0]], [0, 1, corner[1]]], np.float64)
    return cv2.warpAffine(small, shift, (side, side))


def _line_width(side: int) -> int:
    return 1 + 2 * max(1, round(side / SIDE))


def _fixed(points: np.ndarray) -> np.ndarray:
    """OpenCV's fixed-point coordinates, in which a pixel's centre is a whole number."""
    return np.rint((points - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)


def _draw_lines(
    picture: np.ndarray, paths: list[np.ndarray], colour: Colour | int, width: int
) -> None:
    """Draws anti-aliased lines of an odd width; an even one counts as one more."""
    # OpenCV's anti-aliased line is a pixel wider than an even thickness, and two than an odd one.
    thickness = max(width // 2 * 2, 1)
    lines = [_fixed(path) for path in paths]
    cv2.polylines(picture, lines, False, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_disc(
    picture: np.ndarray, center: np.ndarray, text: str, colour: Colour, radius: float
) -> None:
    """A disc with a white rim and, unless it is empty, a white text in its middle."""
    x, y = _fixed(center).tolist()
    for r, paint in ((radius + 1.5, (255, 255, 255)), (radius, colour)):
        r = round(r * 2**SUBPIXEL_BITS)
        cv2.circle(picture, (x, y), r, paint, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)
    if not text:
        return
    scale = radius / 24
    (width, height), _ = cv2.getTextSize(text, FONT, scale, 1)
    corner = round(center[0] - width / 2), round(center[1] + height / 2)
    cv2.putText(picture, text, corner, FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)


def _tint(colour: Colour, strength: float) -> Colour:
    """The colour on white paper, from 0 (white) to 1 (full)."""
    return tuple(round(255 - strength * (255 - part)) for part in colour)


def _edges(adjacency: np.ndarray, first: int, n: int) -> list[tuple[int, int, float]]:
    """Links of n nodes from the first on, lightest first: two indices and a weight in (0, 1]."""
    weights = np.asarray(adjacency, np.float64)[first : first + n, first : first + n]
    weights = np.triu(np.maximum(weights, weights.T), 1)
    weights /= weights.max(initial=0) or 1
    one, other = np.nonzero(weights > 0)
    found = weights[one, other]
    order = np.argsort(found, kind="stable")
    return list(zip(one[order], other[order], found[order].tolist(), strict=True))


def _arc(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A flat arc, so that a link is told apart from a straight stroke and from longer links."""
    t = np.linspace(0, 1, 17)[:, None]
    way = end - start
    return start + t * way + 0.6 * t * (1 - t) * np.array([way[1], -way[0]])
