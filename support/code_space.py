"""Numbers on codes and clusters that the figures show; nothing here draws or needs a model.

Everything random follows from a seed, and one thread computes, so that the last bits are the same
in every call on a machine.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

COMPONENTS = 50  # of the codes, that t-SNE is given
PERPLEXITY = 30
MIN_CODES = 5  # codes of which t-SNE makes a plane
NEIGHBOURS = 10


def plane(codes: np.ndarray, seed: int) -> np.ndarray:
    """Codes on a plane: PCA, then t-SNE (van der Maaten and Hinton, JMLR 2008).

    Args:
        codes: (N, Z), finite, N >= MIN_CODES.
        seed: of t-SNE.

    Returns:
        float64 (N, 2), in no unit.
    """
    codes = np.asarray(codes, np.float64)
    with threadpool_limits(1):
        with np.errstate(invalid="ignore"):  # of codes that are all equal, shares of no variance
            fewer = PCA(min(COMPONENTS, *codes.shape), svd_solver="full").fit_transform(codes)
        # Its own start, the first two components, takes two; PCA's sign and order are fixed.
        start = np.zeros((len(fewer), 2))
        start[:, : fewer.shape[1]] = fewer[:, :2]
        start *= 1e-4 / (fewer[:, 0].std() or 1.0)
        perplexity = min(PERPLEXITY, (len(codes) - 1) / 3)
        model = TSNE(perplexity=perplexity, init=start, random_state=_state(seed))
        return model.fit_transform(fewer).astype(np.float64)


def silhouette(codes: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette of labelled codes, -1 to 1 (Rousseeuw 1987); Euclidean distances.

    NaN where it is undefined: fewer than two labels, or as many as codes.
    """
    if not 1 < len(np.unique(labels)) < len(labels):
        return float("nan")
    with threadpool_limits(1):
        return float(silhouette_score(np.asarray(codes, np.float64), labels))


def neighbour_accuracy(codes: np.ndarray, labels: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of codes whose label is that of most of their k nearest others (leave-one-out).

    Of labels that are equally frequent, the one that has the nearest code is predicted.

    Args:
        codes: (N, Z), finite, N > k.
        labels: int (N,), 0 or more.
        k: at least 1.
    """
    with threadpool_limits(1):
        search = NearestNeighbors(n_neighbors=k, algorithm="brute")
        nearest = search.fit(np.asarray(codes, np.float64)).kneighbors(return_distance=False)
    found = labels[nearest]
    counts = np.stack([(found == label).sum(axis=1) for label in range(found.max() + 1)], axis=1)
    votes = np.take_along_axis(counts, found, axis=1)
    predicted = found[np.arange(len(found)), votes.argmax(axis=1)]
    return float(np.mean(predicted == labels))


def slerp(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """From one code to another along a great circle (White 2016, arXiv 1609.04468).

    Directions turn by equal angles, and lengths grow by equal amounts; for codes of equal length
    that is White's formula. The way to an opposite code turns towards the axis that the code has
    least of. A zero code has no direction: the way is straight then, as it is for Z = 1.

    Args:
        start: (Z,).
        end: (Z,).
        steps: how many codes, both ends included, at least 2.

    Returns:
        float64 (steps, Z).
    """
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    t = np.linspace(0, 1, steps)[:, None]
    lengths = np.linalg.norm(start), np.linalg.norm(end)
    if len(start) == 1 or not all(lengths):
        return (1 - t) * start + t * end
    p, q = start / lengths[0], end / lengths[1]
    cosine = p @ q
    aside = q - cosine * p
    sine = np.linalg.norm(aside)
    if sine < 1e-9:  # parallel or opposite: any direction aside will do
        axis = np.eye(len(p))[np.argmin(np.abs(p))]
        aside = axis - (axis @ p) * p
    aside /= np.linalg.norm(aside)
    angle = np.arctan2(sine, cosine) * t
    way = np.cos(angle) * p + np.sin(angle) * aside
    way *= (1 - t) * lengths[0] + t * lengths[1]
    way[0], way[-1] = start, end
    return way


def cosine_clusters(embeddings: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar centroid of each embedding, and the cosine of the two.

    Args:
        embeddings: (N, E).
        centroids: (K, E).

    Returns:
        int64 (N,) and float64 (N,).
    """
    with threadpool_limits(1):
        cosines = unit(embeddings) @ unit(centroids).T
    nearest = cosines.argmax(axis=1)
    return nearest, cosines[np.arange(len(nearest)), nearest]


def k_means(embeddings: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centroids of unit embeddings, at most `count` of them: float64 (K, E)."""
    vectors = unit(embeddings)
    count = min(count, len(np.unique(vectors, axis=0)))
    with threadpool_limits(1):
        found = KMeans(count, n_init=3, random_state=_state(seed)).fit(vectors)
    return found.cluster_centers_


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float64; zeros stay zeros."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of items whose label is the most frequent one of their cluster.

    A single cluster has the share of the most frequent label, which is the least there can be.

    Args:
        clusters: int (N,), N >= 1.
        labels: int (N,).
    """
    kinds, of = np.unique(labels, return_inverse=True)
    names, at = np.unique(clusters, return_inverse=True)
    counts = np.zeros((len(names), len(kinds)), np.int64)
    np.add.at(counts, (at, of), 1)
    return float(counts.max(axis=1).sum() / len(of))


def mutual_information(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information of clusters and labels over the mean of their entropies, 0 to 1."""
    return float(normalized_mutual_info_score(labels, clusters))


def one_of_each(
    order: Sequence[int], owners: np.ndarray, kinds: np.ndarray, count: int
) -> list[int]:
    """The first items of an order, at most one of an owner, the kinds taking turns.

    Args:
        order: items, best first.
        owners: of each item, (N,), by item.
        kinds: of each item, (N,), by item.
        count: how many are wanted; there may be fewer.

    Returns:
        Items in the order in which they were taken.
    """
    waiting: dict[int, list[int]] = {}
    seen = set()
    for item in order:
        if owners[item] not in seen:
            seen.add(owners[item])
            waiting.setdefault(int(kinds[item]), []).append(int(item))
    taken: list[int] = []
    while any(waiting.values()) and len(taken) < count:
        taken += [queue.pop(0) for queue in waiting.values() if queue]
    return taken[:count]


def at_quantiles(values: np.ndarray, quantiles: Sequence[float], seed: int) -> list[int]:
    """The items that stand at some quantiles of their values, so that none is chosen by hand.

    Of equal values chance decides. An item is chosen once at most.

    Args:
        values: (N,), N >= 1.
        quantiles: ascending, 0 (the least value) to 1 (the greatest).
        seed: of the chance.
    """
    shuffled = np.random.default_rng(seed).permutation(len(values))
    order = shuffled[np.argsort(values[shuffled], kind="stable")]
    places = np.rint(np.asarray(quantiles) * (len(values) - 1)).astype(int)
    return order[np.unique(places)].tolist()


def spread_out(points: np.ndarray, distance: float, max_count: int, seed: int) -> list[int]:
    """Some points of which no two are near, along x or along y.

    Args:
        points: (N, 2).
        distance: two points are near if neither x nor y differs by so much.
        max_count: how many are wanted at most.
        seed: of the order in which points are tried.
    """
    chosen: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(points)).tolist():
        if len(chosen) == max_count:
            break
        if (np.abs(points[chosen] - points[i]).max(axis=1) >= distance).all():
            chosen.append(i)
    return chosen


def choose_pairs(labels: np.ndarray, count: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of items, the first half of one label, the others of two, as far as there are such.

    Args:
        labels: int (N,), N >= 2.
        count: of pairs.
        seed: of the choice.

    Returns:
        At most `count` different pairs.
    """
    rng = np.random.default_rng(seed)
    found: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for alike, pairs in found.items():
        left = np.ones(len(labels), bool)
        for i in rng.permutation(len(labels)).tolist():
            others = np.flatnonzero(left & ((labels == labels[i]) == alike))
            others = others[others != i]
            if left[i] and len(others) and len(pairs) < count:
                pairs.append((i, int(rng.choice(others))))
                left[list(pairs[-1])] = False
    within = found[True][: max(count - count // 2, count - len(found[False]))]
    return within + found[False][: count - len(within)]


def _state(seed: int) -> np.random.RandomState:
    """scikit-learn's kind of random numbers, of any seed."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
