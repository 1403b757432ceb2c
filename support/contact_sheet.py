"""One picture of many drawings, which shows each stroke, its order and where it begins."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

import drawing
from support.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, bgr

CELL = 128  # pixels of a drawing, its margins included
MARGIN = 12
COLUMNS = 8
BITS = 4  # OpenCV's coordinates below are integers in 1/16 pixel
# Of the first stroke, the second, ..., and again from the first on.
COLOURS = tuple(map(bgr, (BLUE, VERMILION, GREEN, PURPLE, ORANGE, BLACK)))


def contact_sheet(sketches: Sequence[np.ndarray]) -> np.ndarray:
    """Draws sketches side by side, each fitted into its cell.

    Args:
        sketches: at least one, stroke-3 (n, 3) in any unit.

    Returns:
        uint8 (height, width, 3), blue first. Strokes are coloured by their order, and a dot
        marks the beginning of each.
    """
    columns = min(COLUMNS, len(sketches))
    rows = math.ceil(len(sketches) / columns)
    sheet = np.full((rows * CELL, columns * CELL, 3), 255, np.uint8)
    for place, sketch in enumerate(sketches):
        top, left = CELL * (place // columns), CELL * (place % columns)
        _draw(sheet[top : top + CELL, left : left + CELL], sketch)
    return sheet


def _draw(cell: np.ndarray, sketch: np.ndarray) -> None:
    cv2.rectangle(cell, (0, 0), (CELL - 1, CELL - 1), (225, 225, 225))
    for order, path in enumerate(drawing.fitted_paths(sketch, CELL, MARGIN / CELL)):
        colour = COLOURS[order % len(COLOURS)]
        fixed = np.rint(path * 2**BITS).astype(np.int32)
        cv2.polylines(cell, [fixed], False, colour, 1, cv2.LINE_AA, BITS)
        x, y = fixed[0].tolist()
        cv2.circle(cell, (x, y), int(2.2 * 2**BITS), colour, cv2.FILLED, cv2.LINE_AA, BITS)
