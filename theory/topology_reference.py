"""Oracle for the topology of clouds: every definition written down. Imports numpy and scipy only.

Statements and proofs are in `topology.md`, beside this file. A diagram here is an array (m, 2) of births and deaths.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching


def distances(points):
    """Euclidean distances, each rounded once."""
    return np.array([[math.dist(p, q) for q in points] for p in points])


def enclosing_radius(D):
    return min(max(row) for row in D)


def distortion(D, D_after):
    return max(
        abs(a - b) for row, row_after in zip(D, D_after, strict=True) for a, b in zip(row, row_after, strict=True)
    )


def death_times(D):
    """Edges of a minimum spanning tree, ascending: Kruskal's algorithm."""
    n = len(D)
    component = list(range(n))
    deaths = []
    for i, j in sorted(itertools.combinations(range(n), 2), key=lambda edge: D[edge]):
        if component[i] != component[j]:
            deaths.append(D[i, j])
            old = component[j]
            component = [component[i] if c == old else c for c in component]
    return deaths


def rips_diagrams(D, max_dimension):
    """Diagrams of dimensions 0 to `max_dimension`: the boundary matrix of all simplices, reduced column by column."""
    n = len(D)
    simplices = [
        (max((D[i, j] for i, j in itertools.combinations(vertices, 2)), default=0.0), len(vertices), vertices)
        for size in range(1, max_dimension + 3)
        for vertices in itertools.combinations(range(n), size)
    ]
    simplices.sort()
    place = {vertices: i for i, (_, _, vertices) in enumerate(simplices)}
    columns, paired, diagrams = {}, set(), [[] for _ in range(max_dimension + 2)]
    for i, (scale, size, vertices) in enumerate(simplices):
        column = {place[face] for face in itertools.combinations(vertices, size - 1)} if size > 1 else set()
        while column and max(column) in columns:
            column = column ^ columns[max(column)][1]
        if column:
            low = max(column)
            columns[low] = i, column
            paired |= {low, i}
            diagrams[simplices[low][1] - 1].append((simplices[low][0], scale))
    for i, (scale, size, _) in enumerate(simplices):
        if i not in paired:
            diagrams[size - 1].append((scale, math.inf))
    return [np.array([p for p in pairs if p[0] < p[1]]).reshape(-1, 2) for pairs in diagrams[: max_dimension + 1]]


def bottleneck(a, b):
    """Least c with a perfect matching of cost c, by Hopcroft and Karp's algorithm and bisection over all costs.

    Each diagram is joined by the diagonal points of the other; two diagonal points match for nothing. Classes that
    never die are tried against each other in every order.
    """
    costs = _costs(a, b)
    if costs is None:
        return math.inf
    shift, table = costs
    candidates = np.unique(table)
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        matched = maximum_bipartite_matching(csr_matrix(table <= candidates[middle]))
        low, high = (low, middle) if (matched >= 0).all() else (middle + 1, high)
    return max(min(map(max, shift)), candidates[low] if len(candidates) else 0.0)


def wasserstein(a, b, order):
    """Root of the least sum of costs to the power `order`: assignment over both diagrams and their diagonal points."""
    costs = _costs(a, b)
    if costs is None:
        return math.inf
    shift, table = costs
    table = table**order
    total = table[linear_sum_assignment(table)].sum() + min(sum(s**order for s in shifts) for shifts in shift)
    return total ** (1 / order)


def _costs(a, b):
    """Shifts of the births of the classes that never die, for every way to match them, and the costs of the others."""
    a, b = (np.asarray(pairs, dtype=float).reshape(-1, 2) for pairs in (a, b))
    births = [pairs[np.isinf(pairs[:, 1]), 0] for pairs in (a, b)]
    if len(births[0]) != len(births[1]):
        return None
    shift = [[0.0, *(abs(s - t) for s, t in zip(births[0], order))] for order in itertools.permutations(births[1])]
    a, b = (pairs[np.isfinite(pairs[:, 1])] for pairs in (a, b))
    m, k = len(a), len(b)
    table = np.zeros((m + k, m + k))
    for i, (birth, death) in enumerate(a):
        table[i, :k] = [max(abs(birth - other[0]), abs(death - other[1])) for other in b]
        table[i, k:] = (death - birth) / 2
    for j, (birth, death) in enumerate(b):
        table[m:, j] = (death - birth) / 2
    return shift, table


def batch_probability(n, k, m):
    """P(all of m new scores are at most the k-th smallest of n), by going through the places of the new among all."""
    good = 0
    for new in itertools.combinations(range(n + m), m):
        old = [place for place in range(n + m) if place not in new]
        good += max(new) < old[k - 1]
    return Fraction(good, math.comb(n + m, m))
