"""Persistence diagrams of Vietoris-Rips filtrations, in the layout of giotto-tda."""

import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ParameterError
from ._engines import choose_engine, run_engine
from .distances import check_points, distance_matrix
from .h0 import h0_death_times
from .memory import estimate_memory, memory_of_engine

__all__ = ["check_diagram", "check_dimensions", "persistence_diagrams", "stack_diagrams"]


def persistence_diagrams(
    X: ArrayLike,
    homology_dimensions: Sequence[int] = (0, 1),
    engine: str = "auto",
    *,
    metric: str = "euclidean",
    max_edge_length: float = np.inf,
    reduced_homology: bool = True,
    max_memory: float = 4e9,
    n_jobs: int = 1,
) -> np.ndarray:
    """When components, loops and voids of a cloud appear and disappear as its points are joined at growing scales.

    At scale t the Vietoris-Rips complex holds every set of points of which no two are farther apart than t.

    Parameters
    ----------
    X : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`
    homology_dimensions : sequence of int, default=(0, 1)
        0 for components, 1 for loops, 2 for voids.
    engine : {"auto", "giotto", "gudhi"}, default="auto"
        "giotto" is giotto-ph (AGPL-3, `pip install 'cbdc[giotto]'`), in single precision; "gudhi" is gudhi's Ripser
        (MIT), in double precision; "auto" takes dimension 0 from our own minimum spanning tree, in double precision,
        and the others from giotto-ph where it is installed, from gudhi elsewhere.
    metric : {"euclidean", "precomputed"}, default="euclidean"
    max_edge_length : float, default=inf
        Scale at which to stop. Classes that live then have an infinite death.
    reduced_homology : bool, default=True
        Leave out the one component that never dies, as giotto-tda does. With False it is the row (0, inf, 0).
    max_memory : float, default=4e9
        Bytes. A run that would take more, by `estimate_memory`, is refused.
    n_jobs : int, default=1
        Threads of giotto-ph.

    Returns
    -------
    ndarray of shape (m, 3), float64
        Birth, death and dimension of each class; by dimension, then birth, then death. Classes that die as they are
        born are left out.

    Raises
    ------
    ParameterError
        If X or an option is not allowed, or the run would take more than `max_memory`.
    MissingDependencyError
        If `engine="giotto"` and giotto-ph is not installed.

    Notes
    -----
    **Guarantee.** Whatever X, the diagrams are those of distances within a relative 1e-10 (6e-8 for "giotto", which
    rounds to single precision) of the true ones, so that by the stability theorem they are within as much of the
    largest distance, in bottleneck distance, of the true diagrams.

    References
    ----------
    Edelsbrunner, Letscher and Zomorodian, *Topological persistence and simplification*, 2002,
    doi:10.1007/s00454-002-2885-2. Perez, Hauke, Lupo, Caorsi and Dassatti, *giotto-ph*, arXiv:2107.05412. Bauer,
    *Ripser*, doi:10.1007/s41468-021-00071-5.

    Examples
    --------
    Four corners of a square: three components die, and one loop lives from the side to the diagonal.

    >>> persistence_diagrams([[0, 0], [1, 0], [1, 1], [0, 1]], engine="gudhi").round(3)
    array([[0.   , 1.   , 0.   ],
           [0.   , 1.   , 0.   ],
           [0.   , 1.   , 0.   ],
           [1.   , 1.414, 1.   ]])
    """
    dimensions = check_dimensions(homology_dimensions)
    if np.isnan(max_edge_length) or max_edge_length < 0:
        raise ParameterError(f"max_edge_length: got {max_edge_length!r}; expected a number, 0 or more.")
    program = choose_engine(engine)
    if engine == "auto" and dimensions == [0]:
        found = {0: _components(X, metric, max_edge_length)}
    else:
        D = _distances_if_allowed(X, metric, dimensions, program, max_edge_length, max_memory)
        found = dict(enumerate(run_engine(program, D, dimensions[-1], max_edge_length, n_jobs)))
        if engine == "auto":
            found[0] = _components(D, "precomputed", max_edge_length)
    if reduced_homology and 0 in dimensions:
        found[0] = found[0][np.argsort(found[0][:, 1], kind="stable")[:-1]]
    diagram = np.concatenate([np.column_stack([found[k], np.full(len(found[k]), float(k))]) for k in dimensions])
    diagram = diagram[diagram[:, 0] < diagram[:, 1]]
    return diagram[np.lexsort([diagram[:, 1], diagram[:, 0], diagram[:, 2]])]


def stack_diagrams(
    diagrams: Sequence[np.ndarray], homology_dimensions: Sequence[int] | None = None, *, infinity: float | None = None
) -> np.ndarray:
    """Diagrams of several clouds as one array, in the layout that giotto-tda's transformers take.

    Parameters
    ----------
    diagrams : sequence of ndarray of shape (m_i, 3)
    homology_dimensions : sequence of int, optional
        Without it those that occur.
    infinity : float, optional
        Death to write for classes that never die. Without it they are refused: no transformer takes them.

    Returns
    -------
    ndarray of shape (n, m, 3), float64
        Dimension by dimension, ascending. Shorter diagrams are filled up with points of the diagonal, whose birth and
        death are the least birth of that dimension in the batch; they mean nothing.

    Examples
    --------
    >>> a, b = np.array([[0, 1, 0], [0, 2, 0], [3, 4, 1]]), np.array([[0, 5, 0]])
    >>> stack_diagrams([a, b])[1]
    array([[0., 5., 0.],
           [0., 0., 0.],
           [3., 3., 1.]])
    """
    checked = [check_diagram(diagram, f"diagrams[{i}]") for i, diagram in enumerate(diagrams)]
    if not checked:
        raise ParameterError("diagrams: got none; give at least one.")
    present = [*np.unique(np.concatenate([diagram[:, 2] for diagram in checked])).astype(int)]
    dimensions = present if homology_dimensions is None else check_dimensions(homology_dimensions)
    blocks = []
    for k in dimensions:
        parts = [diagram[diagram[:, 2] == k] for diagram in checked]
        width = max(1, *map(len, parts))
        least = min((part[:, 0].min() for part in parts if len(part)), default=0.0)
        block = np.empty((len(parts), width, 3))
        block[:] = least, least, k
        for i, part in enumerate(parts):
            block[i, : len(part)] = part
        blocks.append(block)
    stacked = np.concatenate(blocks, axis=1) if blocks else np.empty((len(checked), 0, 3))
    infinite = np.isinf(stacked[:, :, 1])
    if infinite.any() and infinity is None:
        raise ParameterError(
            f"diagrams[{np.flatnonzero(infinite.any(axis=1))[0]}] holds a class that never dies. Fix: give "
            "infinity=..., a death to write for it, or make the diagram with reduced_homology=True and no "
            "max_edge_length."
        )
    stacked[infinite, 1] = infinity
    return stacked


def check_diagram(diagram: ArrayLike, name: str = "diagram") -> np.ndarray:
    """The diagram as float64 (m, 3) without the points of the diagonal that fill it up."""
    rows = np.asarray(diagram, dtype=np.float64)
    if rows.size == 0:
        return np.empty((0, 3))
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise ParameterError(f"{name}: got shape {rows.shape}; expected (m, 3): birth, death, dimension.")
    births, deaths, dimensions = rows.T
    wrong = ~(np.isfinite(births) & (births <= deaths) & (dimensions >= 0) & (dimensions % 1 == 0))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ParameterError(
            f"{name}: row {i} is {rows[i].tolist()}; expected a finite birth, a death that is not below it, and a "
            "dimension 0, 1, 2, ..."
        )
    return rows[births < deaths]


def check_dimensions(homology_dimensions: Sequence[int]) -> list[int]:
    dimensions = list(homology_dimensions)
    if not dimensions or not all(isinstance(k, Integral) and k >= 0 for k in dimensions):
        raise ParameterError(
            f"homology_dimensions: got {homology_dimensions!r}; expected whole numbers, such as (0, 1)."
        )
    return sorted({int(k) for k in dimensions})


def _components(X: ArrayLike, metric: str, max_edge_length: float) -> np.ndarray:
    """Births and deaths (n, 2) of the classes of dimension 0, that of the one that never dies too."""
    deaths = h0_death_times(X, metric)
    deaths = np.append(np.where(deaths <= max_edge_length, deaths, np.inf), np.inf)
    return np.column_stack([np.zeros(len(deaths)), deaths])


def _distances_if_allowed(
    X: ArrayLike, metric: str, dimensions: list[int], engine: str, max_edge_length: float, max_memory: float
) -> np.ndarray:
    """The matrix of distances, unless it or what comes after would take too much memory."""
    n = len(check_points(X))
    given = 0 if metric == "precomputed" else 8 * n**2
    D = distance_matrix(X, metric) if given <= max_memory else None
    if D is not None and given + 65 * n**2 + 24 * math.comb(n, dimensions[-1] + 2) <= max_memory:
        return D  # no cloud of n points takes as much
    if D is None:
        needed = estimate_memory(X, tuple(dimensions), engine, metric=metric, max_edge_length=max_edge_length)
    else:
        needed = given + memory_of_engine(D, n, dimensions[-1], engine, max_edge_length)
        if needed <= max_memory:
            return D
    raise ParameterError(
        f"max_memory: homology up to dimension {dimensions[-1]} of these {n:,} points would take about "
        f"{needed / 1e9:.1f} GB, and {max_memory / 1e9:.1f} GB are allowed. Fix: homology_dimensions=(0,) with "
        "engine='auto' takes little; or leave out points (the same ones of every cloud that is compared), stop at a "
        "smaller max_edge_length, or allow more with max_memory."
    )
