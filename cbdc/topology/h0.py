"""Persistent homology of dimension 0: a minimum spanning tree, and a bottleneck distance in closed form."""

import itertools

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from ..errors import ParameterError
from .distances import check_metric, check_points, distance_matrix, exponent_of, scaled, subtracted

__all__ = ["h0_bottleneck", "h0_death_times"]

WHOLE = 5_000  # points whose matrix (200 MB) is formed at once
_CANDIDATES = 8  # for each point; where single precision leaves more of them, double precision is quicker
_MOST_FEATURES = 2**18  # for which the bound of its rounding is proved


def h0_death_times(X: ArrayLike, metric: str = "euclidean") -> np.ndarray:
    """When the components of the Vietoris-Rips complex merge: the edges of a minimum spanning tree.

    Parameters
    ----------
    X : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`
    metric : {"euclidean", "precomputed"}, default="euclidean"

    Returns
    -------
    ndarray of shape (n - 1,), float64
        Ascending. All births are 0, and one component more never dies. Zeros are kept: points that coincide.

    Notes
    -----
    Prim's algorithm, n steps of n operations. From points it runs on distances in single precision, with a bound of
    their rounding; the few edges that may be in a tree are measured in double precision, and the tree is made of those:
    no death is off by more than the rounding of a distance, ties or not. Where they are not few, as beside an outlier a
    thousand times farther than the rest, double precision does it all. From 5,000 points on the cloud is cut in parts,
    and the trees of the unions of two parts are joined: a minimum spanning tree of a graph lies in the union of those
    of subgraphs that together hold all of its edges. So memory does not grow with n^2. Proofs: theory/topology.md,
    section 3.

    References
    ----------
    Prim, *Shortest connection networks and some generalizations*, 1957, doi:10.1002/j.1538-7305.1957.tb01515.x.

    Examples
    --------
    >>> h0_death_times([[0.0], [1.0], [3.0], [7.0]])
    array([1., 2., 4.])
    """
    if check_metric(metric) == "precomputed":
        return h0_of_matrix(distance_matrix(X, metric))
    points = check_points(X)
    n_parts = 1 if len(points) <= WHOLE else -(-2 * len(points) // WHOLE)
    parts = np.array_split(np.arange(len(points)), n_parts)
    unions = [np.concatenate(two) for two in itertools.combinations(parts, 2)] or parts
    found = [(both, *_edges(points[both])) for both in unions]
    ends = np.concatenate([both[edges] for both, edges, _ in found])
    return _join(ends, np.concatenate([weights for *_, weights in found]), len(points))


def h0_bottleneck(a: ArrayLike, b: ArrayLike) -> float:
    """Bottleneck distance of two diagrams whose births are all 0, from their death times.

    Padded with zeros to one length and sorted downwards, it is max over i of min(|a_i - b_i|, max(a_i, b_i) / 2).

    Parameters
    ----------
    a, b : array-like of shape (m,)
        Death times, infinite for classes that never die; the lengths may differ.

    Returns
    -------
    float
        Infinite if the numbers of classes that never die differ.

    Notes
    -----
    The proof is in theory/topology.md, section 3. No numbers but the given ones, their differences and halves occur, so
    that the result is the exact one rounded once.

    Examples
    --------
    >>> h0_bottleneck([1.0, 2.0, 4.0], [1.5, 2.0])
    2.0
    >>> h0_bottleneck([1.0, np.inf], [1.0])
    inf
    """
    deaths = [np.sort(_check_deaths(values, name))[::-1] for values, name in ((a, "a"), (b, "b"))]
    n_essential = [int(np.isinf(values).sum()) for values in deaths]
    if n_essential[0] != n_essential[1]:
        return np.inf
    longest = max(map(len, deaths))
    first, second = (np.concatenate([values[n_essential[0] :], np.zeros(longest - len(values))]) for values in deaths)
    return float(np.minimum(np.abs(first - second), np.maximum(first, second) / 2).max(initial=0.0))


def h0_of_matrix(D: np.ndarray) -> np.ndarray:
    """Death times, ascending, from a matrix that is known to be one of distances."""
    return np.sort(_prim(D)[0])


def _edges(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends (m, 2) and weights (m,) of edges among which a minimum spanning tree lies."""
    points, exponent = scaled(points)
    ends = _candidates(points)
    if ends is None:
        weights, ends = _prim(distance_matrix(points))
    else:
        weights = subtracted(points, *ends.T)
    return ends, np.ldexp(weights, exponent)


def _candidates(points: np.ndarray) -> np.ndarray | None:
    """Edges (m, 2) among which every minimum spanning tree lies, by single precision; None if they are not few.

    Prim's algorithm on half the squares of the distances. When it adds a vertex, the path in its tree from there to an
    older vertex has for its heaviest edge the heaviest that was added since: an edge that is heavier, by more than the
    rounding of both, closes a cycle as its heaviest and is in no minimum spanning tree.
    """
    n, d = points.shape
    if d > _MOST_FEATURES:
        return None
    centred = points - points.mean(axis=0)
    np.ldexp(centred, -exponent_of(centred), out=centred)
    squares = np.einsum("ij,ij->i", centred, centred) / 2
    slack = np.float32(4.2 * (d + 12) * 2.0**-24 * squares.max())  # twice the rounding: theory/topology.md, section 3
    single = centred.astype(np.float32)
    products, halves = single @ single.T, squares.astype(np.float32)
    taken = np.zeros(n, dtype=np.float32)  # infinite for the vertices of the tree
    nearest = np.full(n, np.inf, dtype=np.float32)  # from the tree
    limits = np.full(n, -np.inf, dtype=np.float32)  # of the vertices of the tree: how long an edge to the last may be
    order = np.zeros(n, dtype=np.intp)
    steps: list[tuple[int, float]] = []  # place in the order from which on the limit is that, descending
    found, n_found, row = [], 0, np.empty(n, dtype=np.float32)
    for k in range(n):
        vertex = order[k] = int(nearest.argmin()) if k else 0
        limit, start = nearest[vertex] + slack, k
        while steps and steps[-1][1] <= limit:
            start = steps.pop()[0]
        if k:
            start = min(start, k - 1)  # the last vertex of the tree has had no limit yet
            steps.append((start, limit))
            limits[order[start:k]] = limit
        np.subtract(halves, products[vertex], out=row)
        row += halves[vertex]
        older = (row <= limits).nonzero()[0]
        found.append(older)
        n_found += len(older)
        if n_found > _CANDIDATES * n:
            return None
        taken[vertex] = nearest[vertex] = np.inf
        np.maximum(row, taken, out=row)
        np.minimum(nearest, row, out=nearest)
    newer = np.repeat(order, [len(older) for older in found])
    return np.column_stack([np.concatenate(found), newer])


def _prim(D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n - 1,) and ends (n - 1, 2) of the edges of a minimum spanning tree, in the order of their discovery."""
    n = len(D)
    weights, ends = np.empty(n - 1), np.empty((n - 1, 2), dtype=np.intp)
    taken = np.zeros(n)  # infinite for the vertices of the tree, which thereby are never nearest again
    nearest = np.full(n, np.inf)  # distance to the tree
    parent = np.zeros(n, dtype=np.intp)
    row = np.empty(n)
    vertex = 0
    for k in range(n - 1):
        taken[vertex] = nearest[vertex] = np.inf
        np.maximum(D[vertex], taken, out=row)
        parent[row < nearest] = vertex
        np.minimum(nearest, row, out=nearest)
        new = int(nearest.argmin())
        weights[k], ends[k] = nearest[new], (parent[new], new)
        vertex = new
    return weights, ends


def _join(edges: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Weights of a minimum spanning tree of these edges, ascending."""
    order = np.argsort(weights, kind="stable")
    low, high = np.sort(edges[order], axis=1).T
    _, first = np.unique(low * n + high, return_index=True)  # of an edge found twice the lighter
    ranks = np.arange(1.0, len(order) + 1)  # of the weights: scipy takes a weight of zero for no edge
    graph = csr_array((ranks[first], (low[first], high[first])), shape=(n, n))
    tree = minimum_spanning_tree(graph).data.astype(np.intp)
    return weights[order][np.sort(tree) - 1]


def _check_deaths(values: ArrayLike, name: str) -> np.ndarray:
    deaths = np.asarray(values, dtype=np.float64)
    if deaths.ndim != 1 or not (deaths >= 0).all():
        raise ParameterError(f"{name}: expected a list of death times, none negative or NaN; got shape {deaths.shape}.")
    return deaths
