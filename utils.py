"""Strokes to canvas to patches and graph mask: the front end of SP-gra2seq.

A sketch is drawn on a square canvas and cropped around its key points into patches; patches may
be erased. All of it is integer work on uint8 pixels, and identical to the published
implementation pixel for pixel (with the OpenCV release pinned in requirements.txt).
"""

from typing import NamedTuple

import cv2
import numpy as np

DRAWING_SIDE = 640  # pixels of a sketch's longer side
THICKNESS = int(DRAWING_SIDE * 0.025)
MARGIN = THICKNESS + 1
ROWS_PER_PATCH = 4
MASKING_APPROACHES = ("patch", "sketchhealer")
BLANK = -1


class SketchGraph(NamedTuple):
    """The pictures of one sketch's nodes: the whole sketch and its patches.

    Attributes:
        patches: uint8 (G, S, S), 0 = background, 255 = ink. Node 0 is the whole sketch; unused
            nodes and patches whose square leaves the bordered canvas are zero.
        n_patches: how many patches were placed, 0 to G - 1.
        masked: indices of the erased patches, 0 = first patch.
        centers: int64 (n_patches, 2), x and y on the canvas without its border.
    """

    patches: np.ndarray
    n_patches: int
    masked: list[int]
    centers: np.ndarray


def make_graph(
    sketch: np.ndarray,
    *,
    graph_number: int = 21,
    graph_picture_size: int = 256,
    mask_prob: float = 0.0,
    seeds: np.ndarray | None = None,
    masking: str = "patch",
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

    Raises:
        ValueError: a sketch of fewer than two rows, with NaN or infinite values or of another
            shape; too few seeds; an unknown masking approach.
    """
    canvas, centers = draw(sketch)
    centers = centers[: graph_number - 1]
    erase = choose_erased(len(centers), mask_prob, seeds)
    slots = np.empty((graph_number, graph_picture_size, graph_picture_size), np.uint8)
    pictures, masked = cut_nodes(canvas, centers, erase, slots, masking=masking)
    patches = slots
    if BLANK in pictures:  # a later picture sits in an earlier slot
        patches = np.zeros_like(slots)
        for node, slot in enumerate(pictures):
            if slot != BLANK:
                patches[node] = slots[slot]
    patches[len(pictures) :] = 0
    return SketchGraph(patches, len(centers), masked, centers)


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
    mask = np.zeros((graph_number - 1, graph_number - 1), np.float32)
    mask[: n_patches + 1, : n_patches + 1] = 1
    mask[masked] = 0
    mask[:, masked] = 0
    return mask


def draw(sketch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws a stroke-3 sketch on a canvas just large enough for it.

    Args:
        sketch: stroke-3 (n, 3), n >= 2, in model units, of its own dtype.

    Returns:
        The canvas, uint8 (side, side) with ink 255, and the patch centres, int64 (k, 2) x and y
        in drawing order: the pen before every fourth row of each stroke.

    Raises:
        ValueError: fewer than two rows, NaN or infinite values, another shape.
    """
    pixels = _to_pixels(sketch)
    low, high = _bounds(pixels)
    side = int((high - low).max()) + 2 * MARGIN
    canvas = np.zeros((side, side), np.uint8)
    strokes = pen_paths(pixels, start=MARGIN - low - pixels[0, :2])
    cv2.polylines(canvas, [path.astype(np.int32) for path in strokes], False, 255, THICKNESS)
    return canvas, np.concatenate([path[:-1:ROWS_PER_PATCH] for path in strokes])


def count_patches(sketch: np.ndarray, graph_number: int = 21) -> int:
    """How many patches `make_graph` places, and thus how many seeds it consumes, undrawn."""
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
    moves: list[int] = []
    for row in np.flatnonzero(rows[:-1, 2] == 1).tolist():
        if not moves or moves[-1] != row:
            moves.append(row + 1)
    points = np.empty((len(rows) + 1, 2), start.dtype)
    points[0] = start
    np.cumsum(rows[:, :2], axis=0, dtype=start.dtype, out=points[1:])
    points[1:] += start
    paths = np.split(points, np.asarray(moves, int) + 1)
    return [path for path in paths if len(path) > 1]


def choose_erased(n_patches: int, mask_prob: float, seeds: np.ndarray | None) -> np.ndarray:
    """Boolean (n_patches,): the patches to erase, one seed consumed for each patch.

    Raises:
        ValueError: mask_prob is positive and there are fewer than n_patches seeds.
    """
    if mask_prob <= 0:
        return np.zeros(n_patches, bool)
    if seeds is None or len(seeds) < n_patches:
        given = 0 if seeds is None else len(seeds)
        raise ValueError(f"masking {n_patches} patches takes {n_patches} seeds, {given} given")
    # A float32 seed must not round the probability to float32.
    return np.asarray(seeds[:n_patches], np.float64) < mask_prob


def cut_nodes(
    canvas: np.ndarray,
    centers: np.ndarray,
    erase: np.ndarray,
    slots: np.ndarray,
    *,
    masking: str = "patch",
) -> tuple[list[int], list[int]]:
    """Cuts the whole sketch and its patches, without storing blank pictures.

    Args:
        canvas: uint8 (side, side), without border; the erased squares are set to zero in it.
        centers: int (n, 2), x and y of the patches.
        erase: boolean (n,), the patches to erase; one whose square leaves the bordered canvas
            is not erased.
        slots: uint8 (at least n + 1, S, S), filled from the front.
        masking: see `make_graph`.

    Returns:
        For each of the n + 1 nodes the slot that holds its picture, or BLANK; and the indices of
        the masked patches.

    Raises:
        ValueError: an unknown masking approach.
    """
    if masking not in MASKING_APPROACHES:
        raise ValueError(f"masking is one of {', '.join(MASKING_APPROACHES)}, not {masking!r}")
    size = slots.shape[1]
    squares = [_square(center, size, canvas.shape[0]) for center in centers.tolist()]
    masked = [i for i, square in enumerate(squares) if erase[i] and square is not None]
    in_turn = masking == "sketchhealer"
    if not in_turn:
        for i in masked:
            _erase(canvas, squares[i], size)
    # In turn, the whole sketch is seen after the walk: its slot, the first, is filled last.
    filled = 1
    pictures = [0]
    for i, square in enumerate(squares):
        if in_turn and i in masked:
            _erase(canvas, square, size)
            pictures.append(BLANK)
        elif square is not None and _cut(canvas, square, slots[filled]):
            pictures.append(filled)
            filled += 1
        else:
            pictures.append(BLANK)
    cv2.resize(canvas, (size, size), dst=slots[0])
    if cv2.countNonZero(slots[0]) == 0:  # everything is erased
        pictures[0] = BLANK
    return pictures, masked


def _to_pixels(sketch: np.ndarray) -> np.ndarray:
    """Scales the offsets so that the longer side has DRAWING_SIDE pixels, int16 (n, 3)."""
    sketch = np.asarray(sketch)
    if sketch.ndim != 2 or sketch.shape[1] != 3:
        raise ValueError(f"a sketch is a stroke-3 array of shape (n, 3), not {sketch.shape}")
    if len(sketch) < 2:
        raise ValueError(f"a sketch needs at least two rows, this one has {len(sketch)}")
    if not np.isfinite(sketch).all():
        raise ValueError("the sketch has NaN or infinite values")
    low, high = _bounds(sketch)
    # The published code truncates height and width in model units; its weights expect that.
    longest = max(int(extent) for extent in high - low)
    if longest == 0:
        pixels = np.zeros(sketch.shape, np.int16)
        pixels[:, 2] = sketch[:, 2]
        return pixels
    unit = np.array([longest, longest, 1], np.float64)
    pixels_per_unit = np.array([DRAWING_SIDE, DRAWING_SIDE, 1], np.float64)
    with np.errstate(invalid="ignore"):  # a first offset far away overflows, as published
        return (sketch / unit * pixels_per_unit).astype(np.int16)


def _bounds(sketch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest (x, y) of the points that rows 1.. lead to; where row 0 leads is (0, 0).

    That point itself is left out, as published: a sketch may reach outside its box.
    """
    offsets = sketch[1:, :2]
    points = np.cumsum(offsets, axis=0, dtype=offsets.dtype if offsets.dtype.kind == "f" else int)
    return points.min(axis=0), points.max(axis=0)


def _square(center: list[int], size: int, side: int) -> tuple[int, int] | None:
    """Left and top, on the canvas, of the square around a centre; None if it is not inside.

    Inside means inside the canvas with its border of 1.5 times the square, as array slicing
    sees it: a square that lies before the first pixel in an axis is counted from the far end.
    """
    border = int(1.5 * size)
    corner = []
    for position in center:
        first = position + border - size // 2
        if -(side + 2 * border) <= first and first + size < 0:
            first += side + 2 * border
        if first < 0 or first + size > side + 2 * border:
            return None
        corner.append(first - border)
    return corner[0], corner[1]


def _overlap(first: int, size: int, side: int) -> tuple[slice, slice]:
    """Where [first, first + size) meets [0, side): in canvas and in square coordinates."""
    low, high = max(first, 0), max(min(first + size, side), 0)
    low = min(low, high)
    return slice(low, high), slice(low - first, high - first)


def _erase(canvas: np.ndarray, square: tuple[int, int], size: int) -> None:
    columns, _ = _overlap(square[0], size, len(canvas))
    rows, _ = _overlap(square[1], size, len(canvas))
    canvas[rows, columns] = 0


def _cut(canvas: np.ndarray, square: tuple[int, int], slot: np.ndarray) -> bool:
    """Copies a square into `slot`; False if nothing is drawn in it."""
    size = len(slot)
    columns, slot_columns = _overlap(square[0], size, len(canvas))
    rows, slot_rows = _overlap(square[1], size, len(canvas))
    part = canvas[rows, columns]
    if part.size == 0 or cv2.countNonZero(part) == 0:
        return False
    if part.shape != slot.shape:
        slot.fill(0)
    slot[slot_rows, slot_columns] = part
    return True
