"""Figures of codes: where they lie, and what is drawn from codes between and beside them."""

import math

import numpy as np

import inference
from support import code_space
from support.figure_material import Figure, Material
from support.plots import GREY, SMALL, WIDE, Page, colour

THUMBNAILS = 40  # on the plane of codes, at most
PAIRS, STEPS, ANALOGIES = 6, 10, 3


def draw_codes(material: Material) -> Figure:
    """The codes on a plane, coloured by category, with some of the sketches."""
    codes, labels = material.codes, material.labels
    points = code_space.plane(codes, material.seed)
    silhouette = code_space.silhouette(codes, labels)
    k, accuracy = min(code_space.NEIGHBOURS, len(codes) - 1), math.nan
    if len(np.unique(labels)) > 1:
        accuracy = code_space.neighbour_accuracy(codes, labels, k)
    side, room = 0.34, np.array([5.6, 5.2])
    low, extent = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-9)
    scale = ((room - side) / extent).min()
    body = max(scale * extent[1] + side, 2.0)
    title = (
        f"Codes of {material.scope}; PCA, then t-SNE.\nIn the space of codes: silhouette by "
        f"category {_number(silhouette)}; the {k} nearest neighbours tell the category of "
        f"{_number(100 * accuracy, ' %')} (leave-one-out)."
    )
    page = Page(WIDE, body + 0.15, title)
    top = page.top + 0.1
    places = (points - low) * scale + side / 2 + (0.05, top)
    page.points(places, labels)
    shown = code_space.spread_out(places, 1.4 * side, THUMBNAILS, material.seed)
    for i in shown:
        x, y = places[i] - side / 2
        page.thumbnail(x, y, side, material.sketch(i), colour(labels[i]))
    page.legend(scale * extent[0] + side + 0.3, top + 0.1, top + body, material.names)
    numbers = {"codes": codes, "plane": points, "labels": labels, "thumbnails": np.array(shown)}
    return page, numbers | {"silhouette": silhouette, "neighbours": k, "accuracy": accuracy}


def draw_interpolation(material: Material) -> Figure:
    """Sketches drawn on the way from one code to another, and from sums of codes."""
    labels, codes = material.labels, material.codes
    pairs = code_space.choose_pairs(labels, PAIRS, material.seed)
    ways = np.stack([code_space.slerp(codes[a], codes[b], STEPS) for a, b in pairs])
    triples = _triples(labels, material.seed)
    sums = np.stack([codes[a].astype(np.float64) - codes[b] + codes[c] for a, b, c in triples])
    drawn = _draw(material, [*ways.reshape(-1, ways.shape[2]), *sums])
    cell, gap, line = 0.52, 0.05, 0.15
    step = (WIDE - 0.1) / (STEPS + 2)
    title = (
        f"Spherical interpolation between the codes of two sketches (left and right, framed): what "
        f"is drawn from {STEPS} codes.\nPairs by chance among {material.scope}. Temperature "
        f"{inference.DEFAULT_TEMPERATURE}, the same random numbers for all."
    )
    page = Page(WIDE, 0.73 + len(pairs) * (cell + line + gap), title)

    def original(x, y, side, i):
        page.sketch(x, y, side, material.sketch(i))
        page.frame(x, y, side, colour(labels[i]), 1)

    for row, (a, b) in enumerate(pairs):
        y = page.top + row * (cell + line + gap)
        names = f"{material.names[labels[a]]} → {material.names[labels[b]]}"
        page.text(0.05, y + line / 2, names, SMALL, room=WIDE - 0.1, color=GREY)
        original(0.05, y + line, cell, a)
        original(0.05 + (STEPS + 1) * step, y + line, cell, b)
        for column in range(STEPS):
            x = 0.05 + (1 + column) * step
            page.sketch(x, y + line, cell, drawn[row * STEPS + column])
    y = page.top + len(pairs) * (cell + line + gap) + 0.08
    page.text(0.05, y, "Sums of codes: a − b + c.")
    y += 0.12
    wide, step, cell = WIDE / ANALOGIES, 0.56, 0.44
    for i, triple in enumerate(triples):
        left = 0.05 + i * wide
        for column, (j, sign) in enumerate(zip(triple, "−+=", strict=True)):
            original(left + column * step, y, cell, j)
            page.text(left + column * step + (step + cell) / 2, y + cell / 2, sign, 8, ha="center")
        page.sketch(left + 3 * step, y, cell, drawn[len(pairs) * STEPS + i])
    return page, {
        "pairs": np.array(pairs),
        "codes": ways,
        "analogies": np.array(triples),
        "analogy_codes": sums,
        "strokes": np.concatenate(drawn),
        "stroke_ends": np.cumsum([0, *map(len, drawn)]),
    }


def _draw(material: Material, codes: list[np.ndarray]) -> list[np.ndarray]:
    """A sketch from each code, stroke-3 (n, 3), n >= 0; only their codes make them differ."""
    codes = [code.astype(np.float32) for code in codes]
    # One key for all: they get the same random numbers.
    made = inference.generate(
        material.model,
        (((0,), code) for code in codes),
        material.steps,
        seed=material.seed,
        batch_size=32,
    )
    of_code = {found.code.tobytes(): found.sketch for found in made}
    return [of_code[code.tobytes()] for code in codes]


def _triples(labels: np.ndarray, seed: int) -> list[tuple[int, int, int]]:
    """a, b and c: where possible, a of one category, b and c of another."""
    pairs = [
        (b, c)
        for b, c in code_space.choose_pairs(labels, 2 * ANALOGIES, seed + 1)
        if labels[b] == labels[c]
    ] or code_space.choose_pairs(labels, ANALOGIES, seed + 1)
    rng = np.random.default_rng([seed, 1])
    triples = []
    for b, c in pairs[:ANALOGIES]:
        others = np.setdiff1d(np.arange(len(labels)), [b, c, *[a for a, _, _ in triples]])
        different = others[labels[others] != labels[b]]
        if len(others):
            triples.append((int(rng.choice(different if len(different) else others)), b, c))
    return triples


def _number(value: float, unit: str = "") -> str:
    """Two decimals, or one of a percentage; n/a for NaN."""
    if math.isnan(value):
        return "n/a"
    return f"{value:.1f}{unit}" if unit else f"{value:.2f}"
