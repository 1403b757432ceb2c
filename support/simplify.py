"""Drawings simplified as Quick, Draw! simplifies its own, and strokes to stroke-3 rows.

The steps are those that Google's Quick, Draw! data set describes for its simplified files
(https://github.com/googlecreativelab/quickdraw-dataset). A stroke is a float64 array (n, 2),
n >= 1, of points, y pointing down.
"""

from collections.abc import Collection, Sequence

import numpy as np

STEPS = ("align", "scale", "resample", "rdp", "round")
EXTENT = 255  # the longer side of a simplified drawing
MAX_LENGTH = 1_000_000  # of all lines together, in the units that they are resampled in
EPSILON = 2.0


class TooLong(ValueError):
    """The lines of a drawing are too long to be resampled."""


def simplify(
    strokes: Sequence[np.ndarray],
    *,
    steps: Collection[str] = STEPS,
    epsilon: float = EPSILON,
) -> list[np.ndarray]:
    """Simplifies one drawing.

    Args:
        strokes: at least one, in any unit.
        steps: which of `STEPS` to take; always in that order: align moves the drawing to the
            corner, so that its smallest x and y are 0; scale makes its longer side 255 and keeps
            its aspect; resample puts points at a distance of 1 along the lines; rdp leaves out
            points that are not needed; round makes coordinates whole numbers, and one of
            neighbouring points that become the same.
        epsilon: how far a point that rdp leaves out may be from the line that stays.

    Returns:
        As many strokes, float64.

    Raises:
        TooLong: the lines are longer than `MAX_LENGTH`.
    """
    points = np.concatenate(strokes)
    low = points.min(axis=0)
    extent = float((points.max(axis=0) - low).max())
    shift = low if "align" in steps else np.zeros(2)
    factor = EXTENT / extent if "scale" in steps and extent else 1.0
    strokes = [(stroke - shift) * factor for stroke in strokes]
    if "resample" in steps:
        if sum(float(np.hypot(*np.diff(s, axis=0).T).sum()) for s in strokes) > MAX_LENGTH:
            raise TooLong
        strokes = [resample(stroke) for stroke in strokes]
    if "rdp" in steps:
        strokes = [ramer_douglas_peucker(stroke, epsilon) for stroke in strokes]
    if "round" in steps:
        strokes = [_without_repeats(np.rint(stroke)) for stroke in strokes]
    return strokes


def resample(stroke: np.ndarray) -> np.ndarray:
    """Points at a distance of 1 along a stroke, from its first point on, and its last point."""
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(stroke, axis=0).T))])
    if length[-1] == 0:
        return stroke[[0, -1]]
    at = np.arange(0, length[-1])
    resampled = np.column_stack([np.interp(at, length, stroke[:, axis]) for axis in (0, 1)])
    return np.concatenate([resampled, stroke[-1:]])


def ramer_douglas_peucker(stroke: np.ndarray, epsilon: float) -> np.ndarray:
    """The points of a stroke that its shape needs (Ramer 1972, Douglas and Peucker 1973).

    Of a piece of the stroke only its ends stay, if no point between them is farther than epsilon
    from the straight line through them; else it is divided at the farthest point. (OpenCV's
    approxPolyDP goes on and drops some of the points that stay here.)
    """
    keep = np.zeros(len(stroke), bool)
    keep[[0, -1]] = True
    pieces = [(0, len(stroke) - 1)]
    while pieces:
        first, last = pieces.pop()
        if last - first < 2:
            continue
        way = stroke[last] - stroke[first]
        between = stroke[first + 1 : last] - stroke[first]
        length = np.hypot(*way)
        if length == 0:
            distance = np.hypot(*between.T)
        else:
            distance = np.abs(between[:, 0] * way[1] - between[:, 1] * way[0]) / length
        farthest = int(distance.argmax())
        if distance[farthest] > epsilon:
            middle = first + 1 + farthest
            keep[middle] = True
            pieces += [(first, middle), (middle, last)]
    return stroke[keep]


def to_stroke3(strokes: Sequence[np.ndarray]) -> np.ndarray:
    """Strokes as rows (dx, dy, lifted), from the first point to the second and on.

    A stroke of a single point becomes a tap of the pen: a row without way.

    Returns:
        float64 (n, 3).
    """
    points, lifted = [], []
    for stroke in strokes:
        if len(stroke) == 1:
            stroke = stroke[[0, 0]]
        points.append(stroke)
        lifted.append(np.arange(len(stroke)) == len(stroke) - 1)
    rows = np.column_stack([np.concatenate(points), np.concatenate(lifted)])
    rows[1:, :2] -= rows[:-1, :2].copy()
    return rows[1:]


def _without_repeats(stroke: np.ndarray) -> np.ndarray:
    moved = np.any(np.diff(stroke, axis=0) != 0, axis=1)
    return stroke[np.append(True, moved)]
