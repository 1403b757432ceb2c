"""The figure of patches: what the clusters have learnt, and which patches are linked."""

import math
from collections.abc import Iterable

import numpy as np

from support import code_space
from support.backend import ops
from support.figure_material import Figure, Material
from support.files import UserError
from support.plots import GREY, SMALL, WIDE, Page, colour

CLUSTERS_SHOWN = 20  # in two columns
MEMBERS_SHOWN = 8  # of a cluster
SKETCHES_SHOWN = 3  # of which linked patches are shown
LINKS_SHOWN = 4  # of a patch
PARTS = 5  # of the order of drawing, that clusters are compared with
CELL, GAP = 0.33, 0.035  # inches: a patch, and between two
BLOCK = 1.02  # height of a sketch's linked patches, two rows of them
EMPTY = -1  # in tables, where there are fewer


def draw_synonyms(material: Material) -> Figure:
    """What the clusters of patches show, and which patches are linked.

    A patch that shows no ink counts nowhere. Without clusters of the model, k-means finds some.

    Raises:
        UserError: no patch shows ink.
    """
    if not material.patches:
        raise UserError("figures: synonyms can't be drawn: no patch of these sketches shows ink")
    owners, places = np.array(material.patches).T
    kinds = material.labels[owners]
    centroids, made = _centroids(material)
    cluster, cosine = code_space.cosine_clusters(material.embeddings, centroids)
    sizes = np.bincount(cluster, minlength=len(centroids))
    there = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    nearest = {}
    for c in there[:CLUSTERS_SHOWN]:
        of = np.flatnonzero(cluster == c)
        order = of[np.argsort(-cosine[of], kind="stable")]
        nearest[c] = code_space.one_of_each(order.tolist(), owners, kinds, MEMBERS_SHOWN)
    parts = PARTS * places // material.counts[owners]
    measures, messages = {}, []
    for name, labels, what in (
        ("category", kinds, "categories"),
        ("part", parts, "fifths of the order of drawing"),
    ):
        purity, information = (
            measure(cluster, labels)
            for measure in (code_space.purity, code_space.mutual_information)
        )
        least = code_space.purity(np.zeros_like(cluster), labels)
        messages.append(
            f"{what}: purity {purity:.2f} (one cluster: {least:.2f}), NMI {information:.3f}"
        )
        measures |= {f"purity_{name}": purity, f"least_purity_{name}": least}
        measures[f"nmi_{name}"] = information

    half = math.ceil(len(nearest) / 2)
    shown = _choose(material, owners)
    title = (
        f"{len(owners):,} patches of {material.scope}; {made}.\n{len(nearest)} of {len(there)} "
        "clusters with patches, largest first: size, patches nearest to the centroid (one of a "
        f"sketch, categories in turn), shares of categories.\nClusters and {'; '.join(messages)}."
    )
    body = 0.22 + half * (CELL + 0.1)
    page = Page(WIDE, body + 0.15 + len(shown) * BLOCK, title)
    page.names_in_row(0.05, page.top + 0.05, {material.names[k]: int(k) for k in np.unique(kinds)})
    for row, (c, members) in enumerate(nearest.items()):
        x, y = 0.05 + row // half * WIDE / 2, page.top + 0.18 + row % half * (CELL + 0.1)
        page.text(x + 0.36, y + CELL / 2, f"{sizes[c]:,}", SMALL, ha="right")
        shares = np.bincount(kinds[cluster == c]) / sizes[c]
        length = MEMBERS_SHOWN * (CELL + GAP) - GAP
        page.bar(x + 0.42, y + CELL + 0.02, length, 0.04, shares)
        _draw_row(page, x + 0.42, y, material, members, [colour(kinds[i]) for i in members])
    links = _draw_links(page, page.top + body, material, owners, places, shown)
    padded = [members + [EMPTY] * (MEMBERS_SHOWN - len(members)) for members in nearest.values()]
    return page, {
        "patches": np.array(material.patches),
        "cluster": cluster,
        "cosine": cosine,
        "sizes": sizes,
        "shown": np.array(list(nearest)),
        "nearest": np.array(padded),
        "links": np.array(links).reshape(-1, 5),
        **measures,
    }


def _centroids(material: Material) -> tuple[np.ndarray, str]:
    """Centroids (K, E) of the model's clusters or, failing that, of k-means; how they came."""
    clusters, method = material.model.clusters, material.model.hparams.method
    if clusters is not None:
        centroids = ops.convert_to_numpy(clusters.centroids)
        return centroids, f"the model's {len(centroids)} clusters"
    found = code_space.k_means(
        material.embeddings, material.model.hparams.num_mixture, material.seed
    )
    return found, f"{method} has no clusters: {len(found)} by k-means"


def _choose(material: Material, owners: np.ndarray) -> list[int]:
    """Some sketches of two or more patches, of different categories where there are such."""
    able = np.flatnonzero(np.bincount(owners, minlength=len(material.members)) > 1)
    order = np.random.default_rng(material.seed).permutation(able).tolist()
    every = np.arange(len(material.members))
    return code_space.one_of_each(order, every, material.labels, SKETCHES_SHOWN)


def _draw_row(
    page: Page, x: float, y: float, material: Material, members: Iterable[int], paints: list
) -> None:
    """Patches side by side, framed in colours."""
    pictures = material.pictures([material.patches[i] for i in members])
    for column, (picture, paint) in enumerate(zip(pictures, paints, strict=True)):
        page.picture(x + column * (CELL + GAP), y, CELL, picture)
        page.frame(x + column * (CELL + GAP), y, CELL, paint, 0.8)


def _draw_links(
    page: Page,
    y: float,
    material: Material,
    owners: np.ndarray,
    places: np.ndarray,
    shown: list[int],
) -> list[tuple[float, ...]]:
    """Beside each patch of some sketches those that it is linked to.

    Returns:
        For each link drawn: sketch, place of the patch, place of the other, weight, cosine.
    """
    hparams = material.model.hparams
    found = {s: links_of(material, np.flatnonzero(owners == s), places) for s in shown}
    max_links = max((len(links) for of in found.values() for links in of.values()), default=0)
    kind = f"{hparams.method}, edges={hparams.edge_kind}" if hparams.edge_kind else hparams.method
    page.text(
        0.05,
        y,
        f"Patches and those that they are linked to ({kind}), strongest first, with the cosines of "
        "their embeddings."
        if max_links
        else f"No patches are linked ({kind}).",
    )
    left = 1.1
    group = (1 + max_links) * (CELL - 0.02 + GAP) + 0.08
    per_row = max(1, int((WIDE - left) / group))
    table = []
    for block, s in enumerate(shown):
        top = y + 0.12 + block * BLOCK
        items = list(found[s].items())
        kept = items[: 2 * per_row]
        page.numbered(0.05, top, 0.7, material.sketch(s), hparams, places[[i for i, _ in kept]])
        count = f"{len(kept)} of {len(items)}" if len(kept) < len(items) else f"{len(items)}"
        text = f"{material.names[material.labels[s]]}\n{count} patches"
        page.text(0.05, top + 0.84, text, SMALL, room=0.95)
        for n, (i, links) in enumerate(kept):
            x, row_y = left + n % per_row * group, top + n // per_row * 0.47
            step = CELL - 0.02 + GAP
            pictures = material.pictures([material.patches[j] for j in (i, *links)])
            for column, picture in enumerate(pictures):
                page.picture(x + column * step, row_y, CELL - 0.02, picture)
                page.frame(x + column * step, row_y, CELL - 0.02, "black" if not column else "0.7")
            below = row_y + CELL + 0.04
            page.text(x + CELL / 2, below, str(places[i] + 1), SMALL, ha="center", weight="bold")
            for column, j in enumerate(links, 1):
                a, b = code_space.unit(material.embeddings[[i, j]])
                weight = material.adjacency[s, 1 + places[i], 1 + places[j]]
                table.append((s, places[i], places[j], weight, a @ b))
                text = f"{a @ b:.3f}".replace("-", "−")
                page.text(x + column * step + CELL / 2, below, text, SMALL, ha="center", color=GREY)
    return table


def links_of(material: Material, items: np.ndarray, places: np.ndarray) -> dict[int, list[int]]:
    """For each patch of a sketch the others that it is linked to, strongest first.

    Args:
        material: has the adjacency.
        items: the sketch's patches.
        places: of all patches.
    """
    if not len(items):
        return {}
    at = 1 + places[items]
    weights = material.adjacency[material.patches[items[0]].sketch][np.ix_(at, at)].copy()
    np.fill_diagonal(weights, 0)
    found = {}
    for item, row in zip(items.tolist(), weights, strict=True):
        order = np.argsort(-np.abs(row), kind="stable")[:LINKS_SHOWN]
        found[item] = [int(items[j]) for j in order if row[j]]
    return found
