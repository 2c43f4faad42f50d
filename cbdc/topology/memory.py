"""How much memory persistent homology will take, before it takes it."""

import numpy as np
from numpy.typing import ArrayLike

from ._engines import choose_engine, run_engine
from .distances import check_points, distance_matrix, enclosing_radius
from .h0 import WHOLE

__all__ = ["estimate_memory"]

# Fitted to peaks measured by `python benchmarks/topology_memory.py`.
_BYTES_PER_EDGE = {"giotto": 80, "gudhi": 115}
_BYTES_PER_EDGE_SPARSE = 125
_BYTES_PER_SIMPLEX = 12
_NOISE = 0.05  # share of all simplices that no class of a cloud without a pronounced shape lives through
_SAMPLE = 4_000  # points whose distances are looked at
_PILOT_POINTS = {1: 512, 2: 128}  # by dimension; the points of a pilot in higher ones are few
_PILOT_POINTS_ABOVE = 40


def estimate_memory(
    X: ArrayLike,
    homology_dimensions: tuple[int, ...] = (0, 1),
    engine: str = "auto",
    *,
    metric: str = "euclidean",
    max_edge_length: float = np.inf,
) -> int:
    """Bytes that `persistence_diagrams` will take at its peak, beyond X.

    What an engine takes grows with the edges, and with the simplices that join the complex while its most persistent
    class lives: the column of that class passes through them. A circle of 2,000 points so takes 4.4 GB where an
    embedding of 2,000 images takes 0.1 GB. The class is looked for in a sample of the points.

    Parameters
    ----------
    X : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`
    homology_dimensions : tuple of int, default=(0, 1)
    engine : {"auto", "giotto", "gudhi"}, default="auto"
    metric : {"euclidean", "precomputed"}, default="euclidean"
    max_edge_length : float, default=inf

    Returns
    -------
    int

    Notes
    -----
    An estimate, no bound: 62 of 63 runs took from 0.56 to 1.7 times as much (embeddings, blobs, squares, circles and
    spheres of 200 to 2,000 points, dimensions 0 to 2), and blobs in a ring a third of it. See docs/topology.md.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((600, 32))
    >>> 5e6 < estimate_memory(X) < 100e6
    True
    """
    points = check_points(X)
    n, given = len(points), 0 if metric == "precomputed" else 8 * len(points) ** 2
    if max(homology_dimensions) == 0 and engine == "auto":
        return min(given, 8 * WHOLE**2)
    chosen = np.sort(np.random.default_rng(0).permutation(n)[:_SAMPLE])
    D = distance_matrix(points[np.ix_(chosen, chosen)] if metric == "precomputed" else points[chosen], metric)
    return given + memory_of_engine(D, n, max(homology_dimensions), choose_engine(engine), max_edge_length)


def memory_of_engine(D: np.ndarray, n: int, max_dimension: int, engine: str, max_edge_length: float) -> int:
    """Bytes that the engine takes for n points beyond their distances, by the distances of all or some of them."""
    radius = enclosing_radius(D, "precomputed")
    reach = min(max_edge_length, radius)
    n_edges = sum(int((row <= reach).sum()) for row in D) / len(D) ** 2 * n**2 / 2
    per_edge = _BYTES_PER_EDGE_SPARSE if max_edge_length < radius else _BYTES_PER_EDGE[engine]
    lived = [_simplices_lived_through(D, n, k, engine, reach) for k in range(1, max_dimension + 1)]
    return int(per_edge * n_edges + _BYTES_PER_SIMPLEX * max(lived, default=0.0))


def _simplices_lived_through(D: np.ndarray, n: int, dimension: int, engine: str, reach: float) -> float:
    """How many simplices of one dimension more join during the longest life of a class, from a sample of the points."""
    size = min(len(D) // 2, _PILOT_POINTS.get(dimension, _PILOT_POINTS_ABOVE))
    chosen = np.sort(np.random.default_rng(0).permutation(len(D))[:size])  # a fixed one: the estimate can be repeated
    sample = np.ascontiguousarray(D[np.ix_(chosen, chosen)])
    if size < dimension + 2:
        return 0.0
    pairs = run_engine(engine, sample, dimension, reach, 1)[dimension]
    if len(pairs) == 0:
        return 0.0
    birth, death = pairs[np.argmax(np.minimum(pairs[:, 1], reach) - pairs[:, 0])]
    counts = [_n_cliques(sample <= scale, dimension + 2) for scale in (birth, min(death, reach), reach)]
    return max(0.0, counts[1] - counts[0] - _NOISE * counts[2]) * (n / size) ** (dimension + 2)


def _n_cliques(adjacent: np.ndarray, size: int) -> float:
    """Sets of `size` vertices that are adjacent to each other; the diagonal does not count."""
    above = np.triu(adjacent, 1)
    if size == 3:
        edges = above.astype(np.float32)  # a path has fewer than 2^24 middles: exact
        return float(((edges @ edges) * edges).sum(dtype=np.float64))
    neighbours = [np.flatnonzero(row) for row in above]
    return sum(_n_cliques(adjacent[np.ix_(near, near)], size - 1) for near in neighbours if len(near) >= size - 1)
