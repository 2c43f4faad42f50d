"""Euclidean distance matrices by matrix multiplication, in double precision and without cancellation."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

from ..errors import ParameterError

__all__ = ["check_points", "distance_blocks", "distance_matrix", "enclosing_radius"]

RELATIVE_ERROR = 1e-10  # of a distance from the matrix product; below it the coordinates are subtracted
_BLOCK = 2**18  # distances computed at a time: 2 MB, which the cache holds
_LARGEST = 1e300  # coordinate
_SQUARE = 256  # side of the squares in which a matrix is compared with its transpose


def distance_matrix(X: ArrayLike, metric: str = "euclidean") -> np.ndarray:
    """All distances between the points of a cloud.

    Parameters
    ----------
    X : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`
    metric : {"euclidean", "precomputed"}, default="euclidean"
        "precomputed" checks that X is a matrix of distances and hands it back.

    Returns
    -------
    ndarray of shape (n, n), float64
        Symmetric to the bit, zero on the diagonal.

    Raises
    ------
    ParameterError
        If X has no point, holds NaN or infinity, or is not a matrix of distances where it should be one.

    Notes
    -----
    **Guarantee.** Every entry is within a relative 1e-10 of the distance of the points as given, whatever their number,
    position and scale: |x - y|^2 = |x|^2 + |y|^2 - 2 x.y is used where rounding can be bounded by that, after centring,
    and the coordinates are subtracted where it cannot (points next to each other). What breaks it: distances below
    1e-150 of the largest coordinate, whose squares vanish. The proof is in theory/topology.md, section 1.

    Examples
    --------
    >>> distance_matrix([[0.0, 0.0], [3.0, 4.0], [0.0, 1e-9]])
    array([[0.e+00, 5.e+00, 1.e-09],
           [5.e+00, 0.e+00, 5.e+00],
           [1.e-09, 5.e+00, 0.e+00]])
    """
    if metric == "precomputed":
        return _check_distances(X)
    points = check_points(X)
    D = np.empty((len(points), len(points)))
    for rows, block in distance_blocks(points, metric):
        D[rows, rows.start :] = block
        D[rows.start :, rows] = block.T
    return D


def distance_blocks(X: ArrayLike, metric: str = "euclidean") -> Iterator[tuple[slice, np.ndarray]]:
    """The upper triangle of the distance matrix, some rows at a time, for clouds whose matrix is too large.

    Parameters
    ----------
    X : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`
    metric : {"euclidean", "precomputed"}, default="euclidean"

    Yields
    ------
    rows : slice
    block : ndarray of shape (n_rows, n - rows.start), float64
        Distances from the points of `rows` to those from `rows.start` on; the first columns form a symmetric square.

    Examples
    --------
    >>> [(rows, block.shape) for rows, block in distance_blocks(np.zeros((4, 2)))]
    [(slice(0, 4, None), (4, 4))]
    """
    if check_metric(metric) == "precomputed":
        yield from matrix_blocks(_check_distances(X))
        return
    points, exponent = scaled(check_points(X))
    centred = points - points.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    for rows in _row_blocks(len(points)):
        columns = slice(rows.start, None)
        yield rows, np.ldexp(_block(points, centred, squares, rows, columns), exponent)


def _block(points: np.ndarray, centred: np.ndarray, squares: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    scale = squares[rows, None] + squares[None, columns]
    block = centred[rows] @ centred[columns].T
    block *= -2
    block += scale
    # The product, the squares and the sums err by at most 2 (d + 8) u (|x|^2 + |y|^2), u = 2^-53, in any order of
    # summation. A square above this share of |x|^2 + |y|^2 so gives its root to RELATIVE_ERROR.
    scale *= (points.shape[1] + 8) * 2.0**-53 / RELATIVE_ERROR
    near = block < scale
    n_rows = block.shape[0]
    np.maximum(block, 0, out=block)
    np.sqrt(block, out=block)
    if near.sum() > block.size // 8:
        block = cdist(points[rows], points[columns])
    else:
        i, j = np.nonzero(near)
        block[i, j] = subtracted(points, rows.start + i, rows.start + j)
    square = np.triu(block[:, :n_rows], 1)
    block[:, :n_rows] = square + square.T
    return block


def scaled(points: np.ndarray) -> tuple[np.ndarray, int]:
    """The points divided by two to an exponent: exact, and no square of a coordinate overflows."""
    exponent = exponent_of(points)
    return np.ldexp(points, -exponent), exponent


def exponent_of(points: np.ndarray) -> int:
    """Least e such that all coordinates are below 2^e."""
    return int(np.frexp(max(points.max(initial=0.0), -points.min(initial=0.0)))[1])


def subtracted(points: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Distances between the points of rows i and those of rows j, (m,), from the differences of their coordinates."""
    found = np.empty(len(i))
    for part in np.array_split(np.arange(len(i)), 1 + len(i) * points.shape[1] // _BLOCK):
        difference = points[i[part]] - points[j[part]]
        found[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return found


def matrix_blocks(D: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The blocks of `distance_blocks`, as views of a matrix that is there."""
    for rows in _row_blocks(len(D)):
        yield rows, D[rows, rows.start :]


def _row_blocks(n: int) -> list[slice]:
    """Rows of the upper triangle in parts of about `_BLOCK` entries."""
    blocks, start = [], 0
    while start < n:
        stop = min(n, start + max(1, _BLOCK // (n - start)))
        blocks.append(slice(start, stop))
        start = stop
    return blocks


def enclosing_radius(X: ArrayLike, metric: str = "euclidean") -> float:
    """Least r such that one point of the cloud is within r of all: min over i of max over j of the distance.

    From there on the Vietoris-Rips complex is a cone, so that no class of any dimension but the one of H0 that never
    dies lives longer.

    Parameters
    ----------
    X : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`
    metric : {"euclidean", "precomputed"}, default="euclidean"

    Returns
    -------
    float

    Examples
    --------
    >>> enclosing_radius([[0.0], [1.0], [3.0]])
    2.0
    """
    return radius_of_blocks(distance_blocks(X, metric))


def radius_of_blocks(blocks: Iterable[tuple[slice, np.ndarray]]) -> float:
    """The enclosing radius, from the blocks of the upper triangle."""
    farthest = np.empty(0)
    for rows, block in blocks:
        if rows.start == 0:
            farthest = np.zeros(block.shape[1])
        farthest[rows] = np.maximum(farthest[rows], block.max(axis=1))
        farthest[rows.start :] = np.maximum(farthest[rows.start :], block.max(axis=0))
    return float(farthest.min())


def check_metric(metric: str) -> str:
    if metric not in ("euclidean", "precomputed"):
        raise ParameterError(f"metric={metric!r}: there is 'euclidean' and 'precomputed'.")
    return metric


def check_points(X: ArrayLike, name: str = "X") -> np.ndarray:
    """The cloud as float64 of shape (n, n_features), finite, with a point at least."""
    points = _check_numbers(X, name)
    _check_finite(points, name)
    return points


def _check_distances(X: ArrayLike) -> np.ndarray:
    D = _check_numbers(X, "X")
    if D.shape[0] != D.shape[1]:
        raise ParameterError(f"X: got shape {D.shape}; metric='precomputed' takes a square matrix of distances.")
    _check_finite(D, "X")
    symmetric = all(
        (D[a : a + _SQUARE, b : b + _SQUARE] == D[b : b + _SQUARE, a : a + _SQUARE].T).all()
        for a in range(0, len(D), _SQUARE)
        for b in range(0, a + 1, _SQUARE)
    )
    if D.min() < 0 or np.diagonal(D).any() or not symmetric:
        raise ParameterError(
            "X: metric='precomputed' takes distances: none negative, zero on the diagonal, and symmetric to the bit. "
            "Fix: D = np.maximum(D, D.T); np.fill_diagonal(D, 0)."
        )
    return D


def _check_numbers(X: ArrayLike, name: str) -> np.ndarray:
    table = np.asarray(X)
    if table.ndim != 2 or len(table) == 0 or table.dtype.kind not in "biuf":
        raise ParameterError(
            f"{name}: got an array of shape {table.shape} and type {table.dtype}; expected numbers (n, n_features), "
            "one row for each of 1 or more points."
        )
    return table.astype(np.float64, copy=False)


def _check_finite(table: np.ndarray, name: str) -> None:
    largest = max(table.max(initial=0.0), -table.min(initial=0.0))
    if not np.isfinite(largest):
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise ParameterError(f"{name}: row {row} holds NaN or infinity; leave that point out of both clouds.")
    if largest > _LARGEST:
        raise ParameterError(f"{name}: got {largest:g}; distances overflow from {_LARGEST:g} on. Fix: divide by it.")
