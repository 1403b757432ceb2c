"""People's own drawings as sketches in a model's units, and what is drawn from them put back.

A stroke is a float64 array (n, 2), n >= 1, of points in a drawing's own coordinates.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support import simplify, svg
from support.drawings import Drawing, find_drawings, read_drawings
from support.files import UserError
from support.palette import EDGE_COLOUR, MASKED_COLOUR
from utils import Box

LINE_WIDTH = 0.012  # share of a drawing's longer side
SAMPLES = 500  # points along the longer side by which lines are searched for in a rectangle

Rectangle = tuple[float, float, float, float]  # left, top, width, height


class OwnDrawing(NamedTuple):
    """A drawing and its sketch.

    Attributes:
        name: unique among those read together, fit for a file.
        drawing: as it was read.
        rows: stroke-3 (n, 3), float64, n >= 2, in a data file's units.
    """

    name: str
    drawing: Drawing
    rows: np.ndarray


def load_own(
    paths: Sequence[str | Path], *, max_per_file: int, absolute: bool = False
) -> tuple[list[OwnDrawing], list[str]]:
    """Reads and simplifies drawings.

    Args:
        paths: files and directories, see `support.drawings.find_drawings`.
        max_per_file: the first so many drawings of each file.
        absolute: see `support.drawings.read_drawings`.

    Returns:
        The drawings, and what was left out, a line each.

    Raises:
        UserError: no usable drawing, or a damaged file.
    """
    found, skipped = find_drawings(paths)
    notes = [f"{path}: holds no drawings, skipped" for path in skipped]
    own: list[OwnDrawing] = []
    for path in (path for files in found.values() for path in files):
        drawings = list(islice(read_drawings(path, absolute=absolute), max_per_file))
        for number, drawing in enumerate(drawings):
            rows = _rows(drawing)
            if isinstance(rows, str):
                notes.append(f"{drawing.source}: {rows}")
                continue
            stem = path.name.partition(".")[0] or path.name
            name = stem if len(drawings) == 1 else f"{stem}_{number}"
            while any(name == other.name for other in own):
                name += "-2"
            own.append(OwnDrawing(name, drawing, rows))
            if drawing.not_strokes:
                notes.append(
                    f"{drawing.source}: {drawing.not_strokes} filled shapes, texts or images are "
                    "no strokes and left out"
                )
    if not own:
        raise UserError(notes[0] if notes else f"{paths[0]}: no drawing in it")
    return own, notes


def _rows(drawing: Drawing) -> np.ndarray | str:
    """A drawing as stroke-3 (n, 3), or why it can't be one."""
    if not drawing.strokes and drawing.not_strokes:
        return "holds filled shapes, texts or images, but no strokes: lines with a stroke colour"
    if not drawing.strokes or not np.ptp(np.concatenate(drawing.strokes), axis=0).any():
        return "is empty, or a dot"
    rows = drawing.rows
    if rows is None:
        rows = simplify.to_stroke3(simplify.simplify(drawing.strokes))
    return rows if len(rows) > 1 else "is a single line, too little for a sketch"


def find_hole(own: OwnDrawing, rectangle: Rectangle) -> Box:
    """A rectangle of the drawing's own coordinates as part of its sketch.

    Raises:
        UserError: no line lies in it, or all lines do.
    """
    points = np.concatenate(own.drawing.strokes)
    low, high = points.min(axis=0), points.max(axis=0)
    longest = (high - low).max()
    corner, size = np.array(rectangle[:2]), np.array(rectangle[2:])
    fine = [simplify.resample((s - low) / longest * SAMPLES) for s in own.drawing.strokes]
    ink = np.concatenate(fine) / SAMPLES * longest + low
    inside = ((ink >= corner) & (ink <= corner + size)).all(axis=1)
    if not inside.any() or inside.all():
        spans = [f"{axis} from {a:g} to {b:g}" for axis, a, b in zip("xy", low, high, strict=True)]
        what = "touches no line of" if not inside.any() else "leaves nothing of"
        raise UserError(f"erase: {what} {own.drawing.source}, which has {' and '.join(spans)}")
    box = np.concatenate([corner - low, corner + size - low]) / longest
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom


def fit_over(paths: Sequence[np.ndarray], strokes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Moves and scales paths so that they lie over strokes: same centre, same longer side."""
    if not paths:
        return []
    own, other = np.concatenate(paths), np.concatenate(strokes)
    (low, high), (other_low, other_high) = (
        (points.min(axis=0), points.max(axis=0)) for points in (own, other)
    )
    scale = (other_high - other_low).max() / ((high - low).max() or 1)
    shift = (other_low + other_high) / 2 - scale * (low + high) / 2
    return [path * scale + shift for path in paths]


def healed_svg(own: OwnDrawing, healed: Sequence[np.ndarray]) -> str:
    """Healed strokes alone, in the coordinates and the size of the drawing."""
    layer = svg.Layer(healed, "#000", _line_width(own))
    return svg.write_svg([layer], _frame(own))


def overlay_svg(
    own: OwnDrawing, healed: Sequence[np.ndarray], rectangle: Rectangle | None = None
) -> str:
    """Healed strokes in blue over the drawing in grey, and in red the rectangle that was erased."""
    width, erased = _line_width(own), ""
    if rectangle is not None:
        x, y, w, h = rectangle
        erased = (
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{MASKED_COLOUR}"'
            ' fill-opacity="0.12"/>'
        )
    layers = [
        svg.Layer(own.drawing.strokes, "#bbb", 2 * width),
        svg.Layer(healed, EDGE_COLOUR, width),
    ]
    return svg.write_svg(layers, _frame(own), erased)


def _frame(own: OwnDrawing) -> dict[str, str]:
    frame = own.drawing.frame
    return svg.frame_around(own.drawing.strokes) if frame is None else frame


def _line_width(own: OwnDrawing) -> float:
    return LINE_WIDTH * float(np.ptp(np.concatenate(own.drawing.strokes), axis=0).max())
