"""Strokes to canvas to patches and graph mask: the front end of SP-gra2seq.

A sketch is drawn on a square canvas and cropped around its key points into patches; patches may
be erased. All of it is integer work on uint8 pixels, and identical to the published
implementation pixel for pixel (with the OpenCV release pinned in requirements.txt).
"""

import threading
from typing import NamedTuple

import cv2
import numpy as np

from support.buffers import reusable_buffer

DRAWING_SIZE = 640  # pixels of a sketch's longer side
ROWS_PER_PATCH = 4
MAX_WHOLE = 2**31  # largest offset, in whole numbers of 64 bits
MASKING_APPROACHES = ("patch", "sketchhealer")


# Left, top, right, bottom of a rectangle, measured from the left and top of a sketch's drawn
# strokes, in units of their longer side.
Box = tuple[float, float, float, float]


class SketchGraph(NamedTuple):
    """The pictures of one sketch's nodes: the whole sketch and its patches.

    Attributes:
        patches: uint8 (G, S, S), 0 = background, 255 = ink. Node 0 is the whole sketch; unused
            nodes and patches whose square leaves the bordered canvas are zero.
        n_patches: how many patches were placed, 0 to G - 1.
        masked: indices of the erased patches, 0 = first patch.
        centers: int64 (n_patches, 2), x and y on the canvas without its border.
        drawing_size: pixels of the sketch's longer side on that canvas.
    """

    patches: np.ndarray
    n_patches: int
    masked: list[int]
    centers: np.ndarray
    drawing_size: int = DRAWING_SIZE

    # What `drawing.draw_graph` shows of a graph of any kind.

    first_node = 1  # place of the first centre's node among all nodes
    is_numbered = True

    @property
    def picture(self) -> np.ndarray:
        """The whole sketch, uint8 (S, S)."""
        return self.patches[0]

    @property
    def erased(self) -> np.ndarray:
        """The centres of the erased squares, int64 (k, 2)."""
        return self.centers[self.masked]

    @property
    def square_side(self) -> int:
        """The side of a patch, in pixels of the canvas."""
        return self.patches.shape[1]


class Layout(NamedTuple):
    """Where everything of one sketch goes, in pixels.

    Attributes:
        side: of the canvas without its border.
        thickness: of the lines.
        paths: the drawn strokes, int32 (at least 2, 2) each, x and y on that canvas.
        centers: of all patches, int64 (k, 2), x and y on that canvas.
        squares: of all patches, int64 (k, 2), left and top on the bordered canvas; -1 where the
            square leaves that.
        extent: columns and rows of the canvas beyond which nothing is drawn.
    """

    side: int
    thickness: int
    paths: list[np.ndarray]
    centers: np.ndarray
    squares: np.ndarray
    extent: list[int]


def make_graph(
    sketch: np.ndarray,
    *,
    graph_number: int = 21,
    graph_picture_size: int = 256,
    mask_prob: float = 0.0,
    seeds: np.ndarray | None = None,
    masking: str = "patch",
    drawing_size: int = DRAWING_SIZE,
) -> SketchGraph:
    """Draws one sketch and crops it into the pictures of its graph's nodes.

    Args:
        sketch: stroke-3 (n, 3), rows (dx, dy, lifted), in model units. It is not cast: its dtype
            decides the last bit of the scaling.
        graph_number: G, the number of nodes: the whole sketch and up to G - 1 patches.
        graph_picture_size: S, the pictures' side in pixels, even.
        mask_prob: the probability that a patch is erased, in [0, 1].
        seeds: 1-D, uniform in [0, 1); exactly the first `n_patches` are consumed. Not needed
            when mask_prob is 0.
        masking: "patch" erases all chosen patches, then crops (the article's approach);
            "sketchhealer" crops and erases in turn (SketchHealer, BMVC 2020), so that an early
            patch still shows what a later one loses.
        drawing_size: pixels of the drawing's longer side; SketchHealer draws on 512.

    Raises:
        ValueError: a sketch of fewer than two rows, with NaN or infinite values or of another
            shape; too few seeds; an unknown masking approach.
    """
    (layout,) = lay_out([sketch], graph_picture_size, drawing_size=drawing_size)
    centers = layout.centers[: graph_number - 1]
    erase = choose_erased(len(centers), mask_prob, seeds)
    shape = (graph_number, graph_picture_size, graph_picture_size)
    buffer, notes = reusable_buffer(int(np.prod(shape)))
    notes.clear()  # what the caller does with the pictures is not known
    patches = buffer.reshape(shape)
    inked = np.ones(graph_number, bool)
    masked = crop_patches(layout, erase, patches, inked, masking=masking)
    return SketchGraph(patches, len(centers), masked, centers, drawing_size)


def graph_mask(n_patches: int, masked: list[int], graph_number: int = 21) -> np.ndarray:
    """Which pairs of patch nodes may be linked.

    Args:
        n_patches: patches placed, 0 to graph_number - 1.
        masked: indices of the erased patches, 0 = first patch.
        graph_number: G, P = G - 1.

    Returns:
        float32 (P, P) of zeros and ones. One blank node beyond the last patch takes part, as in
        the published implementation, whose weights were trained with it.
    """
    linked = linked_nodes(n_patches, masked, graph_number)
    return linked[:, None] * linked


def linked_nodes(n_patches: int, masked: list[int], graph_number: int) -> np.ndarray:
    """Which patch nodes may be linked at all, float32 (P,) of zeros and ones; see `graph_mask`."""
    linked = np.zeros(graph_number - 1, np.float32)
    linked[: n_patches + 1] = 1
    if masked:
        linked[masked] = 0
    return linked


def draw(sketch: np.ndarray, drawing_size: int = DRAWING_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draws a stroke-3 sketch on a canvas just large enough for it.

    Args:
        sketch: stroke-3 (n, 3), n >= 2, in model units, of its own dtype.
        drawing_size: pixels of the drawing's longer side.

    Returns:
        The canvas, uint8 (side, side) with ink 255, and the patch centres, int64 (k, 2) x and y
        in drawing order: the pen before every fourth row of each stroke.

    Raises:
        ValueError: fewer than two rows, NaN or infinite values or sums, another shape.
    """
    (layout,) = lay_out([sketch], drawing_size=drawing_size)
    canvas = np.zeros((layout.side, layout.side), np.uint8)
    draw_paths(canvas, layout)
    return canvas, layout.centers


def count_patches(sketch: np.ndarray, graph_number: int = 21) -> int:
    """How many patches `make_graph` places, and so how many seeds it takes; nothing is drawn."""
    strokes = pen_paths(np.asarray(sketch).astype(np.int16), start=np.zeros(2, np.int64))
    return min(sum(-(-(len(path) - 1) // ROWS_PER_PATCH) for path in strokes), graph_number - 1)


def pen_paths(rows: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
    """The drawn strokes as lists of points.

    Every row draws a line from the pen; only the row right after a lifting row moves the pen
    without drawing, and its own lift flag is not looked at.

    Args:
        rows: stroke-3 (n, 3).
        start: x and y of the pen before row 0, int64 or float64: the points' dtype.

    Returns:
        (at least 2, 2) each, x and y.
    """
    points = np.empty((len(rows) + 1, 2), start.dtype)
    points[0] = start
    np.cumsum(rows[:, :2], axis=0, dtype=start.dtype, out=points[1:])
    points[1:] += start
    paths = np.split(points, _moves(rows[:, 2] == 1) + 1)
    return [path for path in paths if len(path) > 1]


def line_width(drawing_size: int) -> int:
    """Thickness of the lines of a drawing whose longer side has so many pixels."""
    return int(drawing_size * 0.025)


def lay_out(
    sketches: list[np.ndarray],
    graph_picture_size: int = 256,
    *,
    drawing_size: int = DRAWING_SIZE,
    margins: int = 2,
) -> list[Layout]:
    """Scales sketches to pixels and finds their strokes and patches, all at once.

    Args:
        sketches: as for `draw`.
        graph_picture_size: S, see `make_graph`.
        drawing_size: pixels of a drawing's longer side.
        margins: the canvas is so many margins longer than the drawing. One is on the left and on
            the top, the others on the right and at the bottom.

    Raises:
        ValueError: as for `draw`.
    """
    sketches = [_checked(sketch) for sketch in sketches]
    if len({sketch.dtype for sketch in sketches}) != 1:  # a dtype decides the last bit
        options = {"drawing_size": drawing_size, "margins": margins}
        return [lay_out([sketch], graph_picture_size, **options)[0] for sketch in sketches]
    # A sketch of n rows has n + 1 points. A row of zeros stands for the first, where it starts.
    start = np.zeros((1, 3), sketches[0].dtype)
    rows = np.concatenate([part for sketch in sketches for part in (start, sketch)])
    if not np.isfinite(rows).all():
        raise ValueError("the sketch has NaN or infinite values")
    is_wide = rows.dtype.itemsize == 8 and rows.dtype.kind in "iu"
    if is_wide and (rows.max() > MAX_WHOLE or rows.min() < -MAX_WHOLE):  # sums would overflow
        raise ValueError("the sketch is too large for its type of numbers")
    counts = np.array([len(sketch) + 1 for sketch in sketches])
    ends = np.cumsum(counts)
    pixels = _to_pixels(rows[:, :2], sketches, counts, drawing_size)
    points = np.cumsum(pixels, axis=0, dtype=np.int64)
    thickness = line_width(drawing_size)
    sides, extents = _place(points, counts, ends, drawing_size, margins)
    # At least as much as gives the resized picture a pixel.
    extents = np.maximum(extents, -(-sides // graph_picture_size)[:, None])

    path_firsts, path_ends = _find_paths(rows[:, 2], ends)
    at = _find_centers(path_firsts, path_ends)
    centers = points[at]
    center_ends = np.searchsorted(at, ends)
    center_sides = np.repeat(sides, np.diff(center_ends, prepend=0))
    squares = _squares(centers, center_sides[:, None], graph_picture_size)
    drawn = path_ends - path_firsts > 1
    path_firsts, path_ends = path_firsts[drawn], path_ends[drawn]
    vertices = points.astype(np.int32)
    paths = [
        vertices[first:end]
        for first, end in zip(path_firsts.tolist(), path_ends.tolist(), strict=True)
    ]
    path_parts = _slices(np.searchsorted(path_ends, ends, side="right"))
    return [
        Layout(side, thickness, paths[strokes], centers[patches], squares[patches], extent)
        for side, strokes, patches, extent in zip(
            sides.tolist(), path_parts, _slices(center_ends), extents.tolist(), strict=True
        )
    ]


def choose_erased(
    count: int, mask_prob: float, seeds: np.ndarray | None, what: str = "patches"
) -> np.ndarray:
    """Boolean (count,): the patches (or `what` there is) to erase, one seed consumed for each.

    Raises:
        ValueError: mask_prob is positive and there are fewer than `count` seeds.
    """
    if mask_prob <= 0:
        return np.zeros(count, bool)
    if seeds is None or len(seeds) < count:
        given = 0 if seeds is None else len(seeds)
        raise ValueError(f"masking {count} {what} takes {count} seeds, {given} given")
    # A float32 seed must not round the probability to float32.
    return np.asarray(seeds[:count], np.float64) < mask_prob


def crop_patches(
    layout: Layout,
    erase: np.ndarray,
    out: np.ndarray,
    inked: np.ndarray,
    *,
    masking: str = "patch",
    hole: Box | None = None,
) -> list[int]:
    """Draws a sketch and writes the pictures of its nodes: the whole and its first n patches.

    Args:
        layout: from `lay_out`, for the pictures' S.
        erase: boolean (n,), the patches to erase; one whose square leaves the bordered canvas
            is not erased.
        out: uint8 (G, S, S), n < G; takes the pictures. Unused nodes are zero.
        inked: boolean (G,), which pictures of `out` may not be zero: before, so that only these
            are wiped, and then after the call.
        masking: see `make_graph`.
        hole: a rectangle to blank before all else, see `Box`; patches whose centre it holds are
            masked, without a square of their own being erased.

    Returns:
        The indices of the masked patches.

    Raises:
        ValueError: an unknown masking approach.
    """
    if masking not in MASKING_APPROACHES:
        raise ValueError(f"masking is one of {', '.join(MASKING_APPROACHES)}, not {masking!r}")
    size = out.shape[1]
    border = border_width(size)
    bordered = blank_canvas(layout.side + 2 * border)
    canvas = bordered[border : border + layout.side, border : border + layout.side]
    inside = canvas[: layout.extent[1], : layout.extent[0]]
    was_inked, filled = inked.tolist(), {0}
    inked.fill(True)  # in case of an error on the way
    try:
        draw_paths(canvas, layout)
        hidden = [] if hole is None else blank_hole(canvas, layout, hole, len(erase))
        squares = [
            None if left < 0 else bordered[top : top + size, left : left + size]
            for left, top in layout.squares[: len(erase)].tolist()
        ]
        masked = [i for i in erase.nonzero()[0].tolist() if squares[i] is not None]
        in_turn = masking == "sketchhealer"
        if not in_turn:
            for i in masked:
                squares[i].fill(0)
        for i, square in enumerate(squares):
            if i in masked:
                if in_turn:
                    square.fill(0)
            elif square is not None and i not in hidden:
                out[i + 1] = square
                filled.add(i + 1)
        # In turn, the whole sketch is seen after the walk.
        _shrink(inside, layout.side, out[0])
    finally:
        inside.fill(0)
    for node, was in enumerate(was_inked):
        if node not in filled:
            inked[node] = False
            if was:
                out[node].fill(0)
    return sorted({*masked, *hidden})


_threads = threading.local()


def blank_canvas(length: int) -> np.ndarray:
    """The thread's own canvas, wiped by each caller after use: its memory stays in the cache."""
    canvas = getattr(_threads, "canvas", None)
    if canvas is None or len(canvas) < length:
        canvas = _threads.canvas = np.zeros((length, length), np.uint8)
    return canvas[:length, :length]


def blank_hole(canvas: np.ndarray, layout: Layout, hole: Box, n_patches: int) -> list[int]:
    """Blanks a rectangle of the canvas; returns the patches whose centre is in it."""
    points = np.concatenate(layout.paths)
    low = points.min(axis=0)
    longest = (points.max(axis=0) - low).max()
    left, top, right, bottom = (
        np.clip(np.rint(np.tile(low, 2) + np.array(hole) * longest), 0, layout.side).astype(int)
    ).tolist()
    canvas[top:bottom, left:right] = 0
    centers = layout.centers[:n_patches]
    inside = (centers >= (left, top)) & (centers < (right, bottom))
    return np.flatnonzero(inside.all(axis=1)).tolist()


def draw_paths(canvas: np.ndarray, layout: Layout) -> None:
    """Draws the strokes, 255, on a canvas without its border."""
    cv2.polylines(canvas, layout.paths, False, 255, layout.thickness)


def _shrink(inside: np.ndarray, side: int, picture: np.ndarray) -> None:
    """Resizes a canvas that is blank outside its corner `inside`."""
    scale = len(picture) / side
    # Rounded as OpenCV rounds it, so that it writes into the picture itself.
    height, width = round(inside.shape[0] * scale), round(inside.shape[1] * scale)
    cv2.resize(inside, None, picture[:height, :width], scale, scale)
    picture[height:] = 0
    picture[:height, width:] = 0


def _checked(sketch: np.ndarray) -> np.ndarray:
    sketch = np.asarray(sketch)
    if sketch.ndim != 2 or sketch.shape[1] != 3:
        raise ValueError(f"a sketch is a stroke-3 array of shape (n, 3), not {sketch.shape}")
    if len(sketch) < 2:
        raise ValueError(f"a sketch needs at least two rows, this one has {len(sketch)}")
    return sketch


def _to_pixels(
    offsets: np.ndarray, sketches: list[np.ndarray], counts: np.ndarray, drawing_size: int
) -> np.ndarray:
    """Scales offsets so that each sketch's longer side has drawing_size pixels, int16 (N, 2).

    Args:
        offsets: (N, 2), of the sketches, one after the other.
        sketches: they themselves.
        counts: how many of the N belong to each sketch.
        drawing_size: in pixels.
    """
    # Sketches from their second row on, padded: each is summed from left to right, as it would be
    # alone, so that its rounding is the same.
    table = np.zeros((len(sketches), 2, counts.max() - 2), offsets.dtype)
    for padded, sketch in zip(table, sketches, strict=True):
        padded[:, : len(sketch) - 1] = sketch[1:, :2].T
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.cumsum(table, axis=2, dtype=table.dtype if table.dtype.kind == "f" else int)
        extents = np.ptp(points, axis=2)
    if not np.isfinite(extents).all():
        raise ValueError("the sketch is too large for its type of numbers")
    # The published code truncates height and width in model units; its weights expect that.
    longest = np.trunc(extents).max(axis=1).astype(np.float64)
    longest[longest == 0] = np.inf  # all offsets count as zero
    with np.errstate(invalid="ignore"):  # a first offset far away overflows, as published
        return (offsets / np.repeat(longest, counts)[:, None] * drawing_size).astype(np.int16)


def _place(
    points: np.ndarray, counts: np.ndarray, ends: np.ndarray, drawing_size: int, margins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moves each sketch's points into its canvas, in place.

    Returns:
        The canvases' sides, (B,), and the columns and rows that have ink, (B, 2).
    """
    firsts = ends - counts
    # The box holds the points from the third on, as published: a sketch may reach outside it.
    boxed = np.column_stack([firsts + 2, ends]).ravel()[:-1]
    low = np.minimum.reduceat(points, boxed)[::2]
    high = np.maximum.reduceat(points, boxed)[::2]
    # Twice the size where the extent was truncated from nearly 2 to 1, and a pixel a row.
    if ((high - low) > 2 * drawing_size + counts[:, None]).any():
        raise ValueError("the sketch is too large for its type of numbers")
    margin = line_width(drawing_size) + 1
    sides = (high - low).max(axis=1) + margins * margin
    points += np.repeat(margin - low, counts, axis=0)
    return sides, np.minimum(np.maximum.reduceat(points, firsts) + margin, sides[:, None])


def _find_paths(lifted: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First points of all paths, and the points after their last; some are of one point."""
    lifts = lifted.astype(np.int16) == 1
    lifts[ends - 1] = False
    begins = np.zeros(len(lifts), bool)
    begins[0] = begins[ends[:-1]] = begins[_moves(lifts)] = True
    firsts = np.flatnonzero(begins)
    return firsts, np.append(firsts[1:], len(lifts))


def _find_centers(path_firsts: np.ndarray, path_ends: np.ndarray) -> np.ndarray:
    """The points from which every fourth line of a path is drawn."""
    places = np.arange(path_ends[-1]) - np.repeat(path_firsts, path_ends - path_firsts)
    is_center = places % ROWS_PER_PATCH == 0
    is_center[path_ends - 1] = False
    return np.flatnonzero(is_center)


def _moves(lifts: np.ndarray) -> np.ndarray:
    """The rows that only move the pen: those right after a lifting row.

    Their own lift is not looked at, so of lifting rows in a run every other one counts.
    """
    rows = np.flatnonzero(lifts[:-1])
    run_starts = np.maximum.accumulate(np.where(np.diff(rows, prepend=-2) != 1, rows, 0))
    return rows[(rows - run_starts) % 2 == 0] + 1


def _slices(ends: np.ndarray) -> list[slice]:
    return [slice(*pair) for pair in zip([0, *ends.tolist()], ends.tolist(), strict=False)]


def border_width(size: int) -> int:
    """Pixels of background around a canvas whose patches have so many pixels a side."""
    return int(1.5 * size)


def _squares(centers: np.ndarray, sides: np.ndarray, size: int) -> np.ndarray:
    """Left and top, on the bordered canvas, of the squares around centres; -1 if not inside.

    Inside means inside the canvas with its border, as array slicing sees it: a square that lies
    before the first pixel in an axis is counted from the far end.
    """
    lengths = sides + 2 * border_width(size)
    corners = centers + (border_width(size) - size // 2)
    corners += np.where((corners >= -lengths) & (corners + size < 0), lengths, 0)
    outside = ((corners < 0) | (corners + size > lengths)).any(axis=1)
    corners[outside] = -1
    return corners
