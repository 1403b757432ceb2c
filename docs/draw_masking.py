"""Draws docs/masking.png: the four masking approaches on one sketch, with the same numbers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import numpy as np

import doodles
import drawing
import utils
from lattice import make_lattice

SIDE = 450
SHARE = 0.3  # erased
STILL_SHOWN = (0, 140, 255)  # blue, green, red


def columns(sketch: np.ndarray) -> dict[str, np.ndarray]:
    """For each approach its nodes above what is left, uint8 (2 SIDE, SIDE, 3)."""
    rng = np.random.default_rng(3)
    options = {"mask_prob": SHARE, "seeds": rng.random(150)}
    of_points = {"mask_prob": SHARE, "seeds": rng.random(150), "masking": "lattice"}
    return {
        "(a) patch": _column(sketch, utils.make_graph(sketch, **options)),
        "(b) sketchhealer": _column(
            sketch, utils.make_graph(sketch, **options, masking="sketchhealer")
        ),
        "(c) lattice": _column(sketch, make_lattice(sketch, **of_points)),
        "(d) patch, of a lattice": _column(sketch, make_lattice(sketch, **options)),
    }


def _column(sketch, graph) -> np.ndarray:
    nodes = drawing.draw_graph(sketch, graph, np.zeros((200, 200)), SIDE)
    left = cv2.cvtColor(drawing.canvas_picture(graph.picture, SIDE, sketch), cv2.COLOR_GRAY2BGR)
    if isinstance(graph, utils.SketchGraph):
        shown = drawing.canvas_picture(_patches_together(sketch, graph), SIDE, sketch)
        extra = left[:, :, 0].astype(int) - shown
        left[(extra > 60)] = STILL_SHOWN
    return np.vstack([nodes, left])


def _patches_together(sketch, graph) -> np.ndarray:
    """All that any patch shows, each in its place on the canvas: uint8 (S, S)."""
    side = len(utils.draw(sketch)[0])
    border = utils.border_width(graph.square_side)
    canvas = np.zeros((side + 2 * border,) * 2, np.uint8)
    for patch, (x, y) in zip(graph.patches[1:], graph.centers, strict=False):
        left, top = x + border - len(patch) // 2, y + border - len(patch) // 2
        place = canvas[top : top + len(patch), left : left + len(patch)]
        np.maximum(place, patch, out=place)
    inner = canvas[border : border + side, border : border + side]
    return np.maximum(cv2.resize(inner, graph.picture.shape), graph.picture)


def main() -> None:
    """Writes the picture beside this file."""
    sketch = doodles.doodle("house", np.random.default_rng(1)).astype(np.float32)
    parts = []
    for title, column in columns(sketch).items():
        header = np.full((44, SIDE, 3), 255, np.uint8)
        cv2.putText(header, title, (12, 30), drawing.FONT, 0.8, (60, 60, 60), 1, cv2.LINE_AA)
        framed = cv2.copyMakeBorder(
            np.vstack([header, column]), 0, 0, 0, 2, cv2.BORDER_CONSTANT, value=(215,) * 3
        )
        parts.append(framed)
    picture = cv2.resize(np.hstack(parts), None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    drawing.write_png(Path(__file__).with_name("masking.png"), picture)


if __name__ == "__main__":
    main()
