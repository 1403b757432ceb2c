"""Sketches to nodes: pictures of patches, which of them are linked, and constant edges.

The nodes of SP-gra2seq, SketchHealer and DC-gra2seq.
"""

from typing import Any

import numpy as np

import methods
import utils
from hparams import HParams
from support.buffers import picture_buffer

NO_CENTERS = np.zeros((0, 2), np.int64)
NO_SQUARES = NO_CENTERS
NEAR = 0.2  # share of a length within which patches are neighbours
NEIGHBOUR_WEIGHT, OWN_WEIGHT = 0.3, 0.5  # of SketchHealer's spatial edges


def make_nodes(
    sketches: list[np.ndarray],
    hparams: HParams,
    *,
    mask_prob: float = 0.0,
    seeds: list[np.ndarray] | None = None,
    masking: str = "patch",
    holes: list[utils.Box | None] | None = None,
) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Draws and crops B sketches; as `utils.make_graph` one by one, but faster.

    Args:
        sketches: stroke-3 in model units; one of fewer than two rows is a blank canvas.
        hparams: graph_number, graph_picture_size, drawing_size and edges are read.
        mask_prob: see `utils.make_graph`.
        seeds: for each sketch its uniform numbers, see `utils.make_graph`.
        masking: see `utils.make_graph`.
        holes: for each sketch a rectangle to blank, see `utils.Box`; None: none.

    Returns:
        What the encoder takes: patches, uint8 (B, G, S, S), and graph_masks, float32 (B, P, P);
        and edge_weights, float32 (B, P, P), where the method's edges are constant but not the
        same for all sketches. And for each sketch its `utils.SketchGraph`, whose patches are a
        view.
    """
    graph, side = hparams.graph_number, hparams.graph_picture_size
    patches, inked = picture_buffer(len(sketches), graph, side, side)
    linked = np.zeros((len(sketches), graph - 1), np.float32)
    edge_function = hparams.traits.edges.get(hparams.edge_kind)
    weigh = methods.load(edge_function) if edge_function else None
    weights = np.zeros((len(sketches), graph - 1, graph - 1), np.float32)
    drawn = [i for i, sketch in enumerate(sketches) if len(sketch) > 1]
    found = utils.lay_out([sketches[i] for i in drawn], side, drawing_size=hparams.drawing_size)
    layouts = dict(zip(drawn, found, strict=True))
    graphs = []
    for i in range(len(sketches)):
        centers, squares, masked, length = NO_CENTERS, NO_SQUARES, [], 1
        if i in layouts:
            centers = layouts[i].centers[: graph - 1]
            squares = layouts[i].squares[: graph - 1]
            length = layouts[i].side + 2 * utils.border_width(side)
            erase = utils.choose_erased(len(centers), mask_prob, seeds[i] if seeds else None)
            masked = utils.crop_patches(
                layouts[i],
                erase,
                patches[i],
                inked[i],
                masking=masking,
                hole=holes[i] if holes else None,
            )
        else:
            patches[i][inked[i]] = 0
            inked[i] = False
        linked[i] = utils.linked_nodes(len(centers), masked, graph)
        if weigh:
            filled = (squares[:, 0] >= 0) & ~np.isin(np.arange(len(centers)), masked)
            weights[i] = weigh(centers, filled, length, graph - 1)
        graphs.append(
            utils.SketchGraph(patches[i], len(centers), masked, centers, hparams.drawing_size)
        )
    nodes = {"patches": patches, "graph_masks": linked[:, :, None] * linked[:, None]}
    if weigh:
        nodes["edge_weights"] = weights
    return nodes, graphs


def canvas_neighbours(
    centers: np.ndarray, filled: np.ndarray, length: int, patches: int
) -> np.ndarray:
    """SP-gra2seq's spatial edges: patches nearer than a fifth of the canvas, by their distance.

    Args:
        centers: of the n patches, int (n, 2), in pixels.
        filled: bool (n,), which of them show anything: they are not erased, and their square is
            inside the canvas. Not needed here.
        length: side of the canvas with its border, in pixels.
        patches: P.

    Returns:
        float32 (P, P), 1 minus the distance as a share of the length; 1 for a patch and itself.
    """
    weights = np.eye(patches, dtype=np.float32)
    distances = _distances(centers) / length
    weights[: len(centers), : len(centers)] = np.where(distances < NEAR, 1 - distances, 0)
    return weights


def relative_neighbours(
    centers: np.ndarray, filled: np.ndarray, length: int, patches: int
) -> np.ndarray:
    """SketchHealer's spatial edges, of its newer code: a fifth of the largest distance is near.

    Args:
        centers: see `canvas_neighbours`.
        filled: see `canvas_neighbours`; the others are linked to nothing.
        length: not needed here.
        patches: P.

    Returns:
        float32 (P, P), 0.5 for a patch and itself, 0.3 for near ones.
    """
    weights = np.zeros((patches, patches), np.float32)
    places = np.flatnonzero(filled)
    if len(places):
        distances = _distances(centers[places])
        near = distances <= NEAR * distances.max()
        weights[np.ix_(places, places)] = np.where(near, NEIGHBOUR_WEIGHT, 0)
        weights[places, places] = OWN_WEIGHT
    return weights


def _distances(centers: np.ndarray) -> np.ndarray:
    offsets = centers[:, None] - centers[None]
    return np.sqrt(np.square(offsets).sum(axis=2).astype(np.float64))
