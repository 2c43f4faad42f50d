"""How much importance weights are worth: Pareto k of their tail, and the effective sample size."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from ..errors import ParameterError

__all__ = ["effective_sample_size", "pareto_k"]

_LEAST_TAIL = 5  # weights that a tail can be fitted to
_CELLS = 2**22  # numbers that one temporary array may hold


def effective_sample_size(weights: ArrayLike) -> np.ndarray:
    """Draws without weights that would be worth as much: (sum of weights)**2 / sum of squared weights.

    Parameters
    ----------
    weights : array-like of shape (..., n_draws)
        0 or more, on any scale.

    Returns
    -------
    ndarray of shape (...)
        From 1 to n_draws; 0 where all weights are 0.

    References
    ----------
    Kong, *A note on importance sampling using standardized weights*, 1992.

    Examples
    --------
    >>> effective_sample_size([[1, 1, 1, 1], [1, 0, 0, 0]])
    array([4., 1.])
    """
    weights = _checked(weights)
    top = weights.max(axis=-1, keepdims=True)
    scaled = weights / np.where(top > 0, top, 1)
    squares = np.sum(scaled**2, axis=-1)
    return np.sum(scaled, axis=-1) ** 2 / np.where(squares > 0, squares, 1)


def pareto_k(weights: ArrayLike) -> np.ndarray:
    """Shape k of the generalised Pareto law that fits the largest importance weights.

    Averages by weights of k < 1/2 have a finite variance, beyond 0.7 they are worth nothing at any affordable number of
    draws.

    Parameters
    ----------
    weights : array-like of shape (..., n_draws)
        0 or more, on any scale. The tail is the largest 3 sqrt(n_draws) of them, or a fifth if that is less.

    Returns
    -------
    ndarray of shape (...)
        Minus infinity where the largest weights are all equal, infinity where fewer than five exceed the cutoff.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, arXiv:1507.02646. Zhang and
    Stephens, *A new and efficient estimation method for the generalized Pareto distribution*, Technometrics 51(3),
    2009, doi:10.1198/tech.2009.08017.

    Examples
    --------
    >>> u = (np.arange(4000) + 0.5) / 4000
    >>> pareto_k([u**-0.2, u**-0.9]).round(1)
    array([0.2, 0.9])
    """
    weights = _checked(weights)
    n_draws = weights.shape[-1]
    tail = int(min(n_draws / 5, 3 * np.sqrt(n_draws)))
    if tail < 1:
        return np.full(weights.shape[:-1], np.inf)
    rows = weights.reshape(-1, n_draws)
    found = np.empty(len(rows))
    step = max(1, _CELLS // (tail * _n_points(tail)))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        largest = np.sort(np.partition(block, n_draws - tail - 1, axis=1)[:, n_draws - tail - 1 :], axis=1)
        found[start : start + step] = _shape(largest[:, 1:] - largest[:, :1])
    return found.reshape(weights.shape[:-1])


def _n_points(tail: int) -> int:
    return 30 + int(np.sqrt(tail))


def _shape(x: np.ndarray) -> np.ndarray:
    """Shape of the generalised Pareto law from exceedances (n, tail), ascending: a posterior mean by quadrature.

    Weights that tie with the cutoff exceed it by 0 and are no exceedances. They add nothing to the sums below.
    """
    counts = np.count_nonzero(x, axis=1)
    found = np.where(counts == 0, -np.inf, np.inf)
    enough = counts >= _LEAST_TAIL
    if not enough.any():
        return found
    x, n = x[enough] / x[enough, -1:], counts[enough][:, None]
    tail = x.shape[1]
    m = _n_points(tail)
    points = 1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))
    quartile = np.take_along_axis(x, tail - n + (n / 4 + 0.5).astype(int) - 1, axis=1)
    b = 1 + points / (3 * quartile)
    b[b == 0] = np.finfo(float).eps  # an exponential tail, whose k is a limit
    k = np.log1p(-b[:, :, None] * x[:, None, :]).sum(axis=2) / n
    log_likelihood = n * (np.log(-b / k) - k - 1)
    mass = np.exp(log_likelihood - logsumexp(log_likelihood, axis=1, keepdims=True))
    k = np.log1p(-np.sum(b * mass, axis=1, keepdims=True) * x).sum(axis=1, keepdims=True) / n
    found[enough] = ((n * k + 10 * 0.5) / (n + 10))[:, 0]  # a weak prior at 0.5, as heavy as ten weights
    return found


def _checked(weights: ArrayLike) -> np.ndarray:
    weights = np.asarray(weights, dtype=float)
    if weights.ndim < 1 or weights.shape[-1] == 0:
        raise ParameterError(f"weights: got shape {weights.shape}; expected (..., n_draws), one or more draws.")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ParameterError("weights: they must be finite numbers, 0 or more.")
    return weights
