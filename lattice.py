"""Sketches to nodes: where the lines of a lattice meet the strokes (SketchLattice, ICCV 2021).

A sketch is drawn on a picture of 256 x 256 pixels. A node is a pixel where a stroke begins on one
of the lattice's rows, from the left, or columns, from the top.
"""

import functools
from typing import Any, NamedTuple

import cv2
import numpy as np

import utils
from hparams import HParams
from utils import Layout

SIDE = 256  # pixels of the picture, and of the drawing's longer side
MARGINS = 3  # one on the left and on the top, two on the right and at the bottom
# Erased squares are those of the patch methods at their default sizes, at the lattice's scale.
MAX_PATCHES = 20
SQUARE = 2 * int(256 / 2 * SIDE / utils.DRAWING_SIZE)
MASKING_APPROACHES = ("patch", "lattice")
NO_POINTS = np.zeros((0, 2), np.uint8)


class Lattice(NamedTuple):
    """The nodes of one sketch, as `drawing.draw_graph` shows them.

    Attributes:
        points: uint8 (k, 2), x and y in the picture, in the order of the scan.
        dropped: uint8 (d, 2), the points that masking took away one by one.
        layout: the drawing, or None for a blank picture.
        masked: numbers of the erased squares of the layout, 0 = first.
        hole: the rectangle that was blanked, or None.
    """

    points: np.ndarray
    dropped: np.ndarray
    layout: Layout | None
    masked: list[int]
    hole: utils.Box | None

    drawing_size = SIDE
    first_node = 0  # place of the first centre's node among all nodes
    is_numbered = False
    square_side = SQUARE

    @property
    def centers(self) -> np.ndarray:
        """The points on the canvas of `utils.draw`, float64 (k, 2)."""
        return self._on_canvas(self.points)

    @property
    def dropped_centers(self) -> np.ndarray:
        """The dropped points on that canvas, float64 (d, 2)."""
        return self._on_canvas(self.dropped)

    @property
    def erased(self) -> np.ndarray:
        """The centres of the erased squares on that canvas, int64 (k, 2)."""
        return self.layout.centers[self.masked] if self.layout else np.zeros((0, 2), np.int64)

    def _on_canvas(self, points: np.ndarray) -> np.ndarray:
        scale = self.layout.side / SIDE if self.layout else 1.0
        return (points + 0.5) * scale - 0.5

    @property
    def picture(self) -> np.ndarray:
        """What the encoder sees of the sketch, uint8 (256, 256), with equal margins.

        Without dropped points that is the drawing; with them, dots where points are left.
        """
        picture = np.zeros((SIDE, SIDE), np.uint8)
        if self.layout is None:
            return picture
        side = self.layout.side - (MARGINS - 2) * (self.layout.thickness + 1)
        if len(self.dropped):
            centers = np.rint((self.centers + 0.5) * SIDE / side - 0.5).astype(int)
            for x, y in centers.tolist():
                cv2.circle(picture, (x, y), 2, 255, cv2.FILLED)
            return picture
        canvas = _draw(self.layout, self.masked, self.hole)[:side, :side]
        cv2.resize(canvas, (SIDE, SIDE), picture, interpolation=cv2.INTER_AREA)
        canvas.fill(0)
        return picture


def make_lattice(
    sketch: np.ndarray,
    *,
    lattice_size: int = 32,
    lattice_nodes: int = 150,
    mask_prob: float = 0.0,
    seeds: np.ndarray | None = None,
    masking: str = "patch",
) -> Lattice:
    """Draws one sketch and finds its lattice's points.

    Args:
        sketch: stroke-3 (n, 3), rows (dx, dy, lifted), of its own dtype; see `utils.make_graph`.
        lattice_size: lines in each direction.
        lattice_nodes: V, the most points kept.
        mask_prob: the probability that a square, or a point, is erased, in [0, 1].
        seeds: 1-D, uniform in [0, 1); not needed when mask_prob is 0.
        masking: "patch" erases squares around the centres of patches, as `utils.make_graph` does
            with the same numbers; "lattice" drops points, with one number for each of those kept.

    Raises:
        ValueError: as `utils.make_graph`.
    """
    layouts = utils.lay_out([sketch], SQUARE, drawing_size=SIDE, margins=MARGINS)
    seeds = None if seeds is None else [seeds]
    _, _, (found,) = _find_nodes(
        layouts, lattice_size, lattice_nodes, mask_prob, seeds, masking, [None]
    )
    return found


def make_nodes(
    sketches: list[np.ndarray],
    hparams: HParams,
    *,
    mask_prob: float = 0.0,
    seeds: list[np.ndarray] | None = None,
    masking: str = "patch",
    holes: list[utils.Box | None] | None = None,
) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Draws B sketches and finds their points; as `make_lattice` one by one, but faster.

    Args:
        sketches: stroke-3 in model units; one of fewer than two rows has no points.
        hparams: lattice_size and lattice_nodes are read.
        mask_prob: see `make_lattice`.
        seeds: for each sketch its uniform numbers, see `make_lattice`.
        masking: see `make_lattice`.
        holes: for each sketch a rectangle to blank, see `utils.Box`; None: none.

    Returns:
        What the encoder takes: points, uint8 (B, V, 2), x and y, zero after a sketch's last;
        n_points, int32 (B,). And for each sketch its `Lattice`.
    """
    drawn = [i for i, sketch in enumerate(sketches) if len(sketch) > 1]
    found = utils.lay_out([sketches[i] for i in drawn], SQUARE, drawing_size=SIDE, margins=MARGINS)
    layouts: list[Layout | None] = [None] * len(sketches)
    for i, layout in zip(drawn, found, strict=True):
        layouts[i] = layout
    points, counts, lattices = _find_nodes(
        layouts,
        hparams.lattice_size,
        hparams.lattice_nodes,
        mask_prob,
        seeds,
        masking,
        holes or [None] * len(sketches),
    )
    return {"points": points, "n_points": counts}, lattices


def _find_nodes(
    layouts: list[Layout | None],
    size: int,
    max_points: int,
    mask_prob: float,
    seeds: list[np.ndarray] | None,
    masking: str,
    holes: list[utils.Box | None],
) -> tuple[np.ndarray, np.ndarray, list[Lattice]]:
    """Points (B, V, 2) and their number (B,), uint8 and int32, and a Lattice for each sketch."""
    if masking not in MASKING_APPROACHES:
        raise ValueError(f"masking is one of {', '.join(MASKING_APPROACHES)}, not {masking!r}")
    step = SIDE // size
    lines = np.zeros((len(layouts), 2, size, SIDE), np.uint8)
    masked: list[list[int]] = [[] for _ in layouts]
    for i, layout in enumerate(layouts):
        if layout is None:
            continue
        if masking == "patch" and mask_prob > 0:
            number = min(len(layout.centers), MAX_PATCHES)
            erase = utils.choose_erased(number, mask_prob, seeds[i] if seeds else None)
            masked[i] = np.flatnonzero(erase & (layout.squares[:number, 0] >= 0)).tolist()
        canvas, source = _draw(layout, masked[i], holes[i]), _nearest(layout.side)
        of_lines = source[step // 2 :: step][:size]
        # Only the picture's lines are made.
        lines[i, 0] = canvas.take(of_lines, axis=0).take(source, axis=1)
        lines[i, 1] = canvas.take(of_lines, axis=1).take(source, axis=0).T
        canvas.fill(0)
    sketch, points = _scan(lines, step)
    counts = np.bincount(sketch, minlength=len(layouts))
    firsts = np.cumsum(counts) - counts
    keep = np.ones(len(points), bool)
    for i in np.flatnonzero(counts > max_points).tolist():
        keep[firsts[i] : firsts[i] + counts[i]] = False
        keep[firsts[i] + _chosen(int(counts[i]), max_points)] = True
    sketch, points = sketch[keep], points[keep]
    dropped = np.zeros(len(points), bool)
    if masking == "lattice" and mask_prob > 0:
        ends = np.cumsum(np.bincount(sketch, minlength=len(layouts)))
        for i, (first, end) in enumerate(zip([0, *ends.tolist()], ends.tolist(), strict=False)):
            numbers = seeds[i] if seeds else None
            dropped[first:end] = utils.choose_erased(end - first, mask_prob, numbers, "points")
    lost = _parts(sketch[dropped], points[dropped], len(layouts))
    sketch, points = sketch[~dropped], points[~dropped]
    counts = np.bincount(sketch, minlength=len(layouts))
    padded = np.zeros((len(layouts), max_points, 2), np.uint8)
    padded[sketch, np.arange(len(points)) - (np.cumsum(counts) - counts)[sketch]] = points
    lattices = [
        Lattice(padded[i, :count], lost[i], layouts[i], masked[i], holes[i])
        for i, count in enumerate(counts.tolist())
    ]
    return padded, counts.astype(np.int32), lattices


@functools.cache
def _nearest(side: int) -> np.ndarray:
    """For each pixel of the picture that of the canvas which OpenCV's nearest resizing takes."""
    places = np.arange(side, dtype=np.float32)[None]
    resized = cv2.resize(places, (SIDE, 1), interpolation=cv2.INTER_NEAREST)
    return resized[0].astype(np.intp)


def _draw(layout: Layout, masked: list[int], hole: utils.Box | None) -> np.ndarray:
    """The canvas of a sketch without what is erased, to be wiped after use."""
    canvas = utils.blank_canvas(layout.side)
    utils.draw_paths(canvas, layout)
    if hole is not None:
        utils.blank_hole(canvas, layout, hole, 0)
    for left, top in (layout.squares[masked] - utils.border_width(SQUARE)).tolist():
        canvas[max(top, 0) : max(top + SQUARE, 0), max(left, 0) : max(left + SQUARE, 0)] = 0
    return canvas


def _scan(lines: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Where strokes begin on the lines of a lattice.

    Args:
        lines: uint8 (B, 2, n, 256), rows and then columns of the pictures, ink 255 on 0.
        step: pixels between two lines.

    Returns:
        For each point its sketch, int64 (N,), in order, and x and y, uint8 (N, 2).
    """
    begins = np.empty(lines.shape, bool)
    np.greater(lines[..., 1:], lines[..., :-1], out=begins[..., 1:])
    begins[..., 0] = lines[..., 0]
    line, along = np.divmod(np.flatnonzero(begins), SIDE)
    size = lines.shape[2]
    across = step // 2 + step * (line % size)
    is_row = line // size % 2 == 0
    points = np.where(is_row[:, None], np.column_stack([along, across]), 0)
    points += np.where(is_row[:, None], 0, np.column_stack([across, along]))
    return line // (2 * size), points.astype(np.uint8)


@functools.cache
def _chosen(count: int, max_points: int) -> np.ndarray:
    """Which of more points than fit are kept: as if at random, but the same each time."""
    # Every second one, say, would leave the left edges of double outlines alone.
    return np.sort(np.random.RandomState(count).permutation(count)[:max_points])


def _parts(sketch: np.ndarray, points: np.ndarray, count: int) -> list[np.ndarray]:
    """The points of each sketch."""
    ends = np.cumsum(np.bincount(sketch, minlength=count))
    return np.split(points, ends[:-1])
