"""Have the chains of a sampler forgotten where they began, and how many independent draws are they worth?

Vehtari, Gelman, Simpson, Carpenter, Buerkner, *Rank-normalization, folding, and localization: an improved R-hat*,
Bayesian Analysis 16(2), 2021, arXiv:1903.08008.
"""

from collections.abc import Callable

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtri
from scipy.stats import f as f_distribution
from scipy.stats import rankdata

__all__ = ["bulk_ess", "chance_r_hat", "r_hat"]

_COLUMNS = 512  # quantities at a time, so that temporary arrays stay small


def r_hat(draws: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat, the larger of location and scale (folded).

    Parameters
    ----------
    draws : ndarray of shape (n_chains, n_draws, ...)
        At least four draws.

    Returns
    -------
    ndarray of shape (...)
        1 where the chains agree; NaN where draws are not finite.
    """
    return _by_column(draws, lambda halves: np.maximum(_r_hat(_normal_scores(halves)), _r_hat(_folded(halves))))


def bulk_ess(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of the mean of the rank-normalised draws, over all chains.

    Autocorrelations are summed by Geyer's initial monotone sequence. Draws that alternate around their mean are worth
    more than independent ones, up to n log10(n).

    Parameters
    ----------
    draws : ndarray of shape (n_chains, n_draws, ...)
        At least four draws.

    Returns
    -------
    ndarray of shape (...)
    """
    return _by_column(draws, lambda halves: _ess(_normal_scores(halves)))


def chance_r_hat(n_chains: int, n_draws: int, n_quantities: int, probability: float = 0.01) -> float:
    """R-hat that the worst of many quantities exceeds by chance alone, with this probability at most.

    For independent draws, n (R-hat^2 - 1) + 1 follows an F distribution but for the ranks; Bonferroni over the
    quantities, each of which is tested twice.

    Parameters
    ----------
    n_chains, n_draws : int
        Draws a chain.
    n_quantities : int
    probability : float, default=0.01

    Examples
    --------
    >>> [round(chance_r_hat(4, n_draws, 7686), 3) for n_draws in (250, 1000)]
    [1.02, 1.005]
    """
    halves, n = 2 * n_chains, n_draws // 2
    ratio = f_distribution.isf(probability / (2 * n_quantities), halves - 1, halves * (n - 1))
    return float(np.sqrt(1 + (ratio - 1) / n))


def _by_column(draws: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    n_chains, n_draws = draws.shape[:2]
    n = n_draws // 2
    flat = draws.reshape(n_chains, n_draws, -1)
    halves = np.concatenate([flat[:, :n], flat[:, n_draws - n :]])
    found = [statistic(halves[:, :, i : i + _COLUMNS]) for i in range(0, halves.shape[2], _COLUMNS)]
    return np.concatenate(found).reshape(draws.shape[2:])


def _normal_scores(halves: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks over all chains, shape kept."""
    ranks = rankdata(halves.reshape(-1, halves.shape[2]), axis=0).reshape(halves.shape)
    return ndtri((ranks - 0.375) / (halves.shape[0] * halves.shape[1] + 0.25))


def _folded(halves: np.ndarray) -> np.ndarray:
    return _normal_scores(np.abs(halves - np.median(halves, axis=(0, 1))))


def _r_hat(scores: np.ndarray) -> np.ndarray:
    n = scores.shape[1]
    within = scores.var(axis=1, ddof=1).mean(axis=0)
    between = n * scores.mean(axis=1).var(axis=0, ddof=1)
    stuck = np.where(between > 0, np.inf, 1.0)  # chains that never moved: apart, or all at one place
    ratio = np.divide(between, within, out=np.ones_like(within), where=within > 0)
    return np.where(within > 0, np.sqrt((n - 1) / n + ratio / n), stuck)


def _ess(scores: np.ndarray) -> np.ndarray:
    n_chains, n, _ = scores.shape
    total = n_chains * n
    within = scores.var(axis=1, ddof=1).mean(axis=0)
    pooled = (n - 1) / n * within + scores.mean(axis=1).var(axis=0, ddof=1)
    correlation = 1 - (within - _autocovariance(scores).mean(axis=0)) / np.where(pooled > 0, pooled, 1.0)
    correlation[0] = 1
    pairs = correlation[: n - n % 2].reshape(n // 2, 2, -1).sum(axis=1)  # Geyer: positive and decreasing
    positive = np.cumprod(pairs > 0, axis=0, dtype=bool)
    sums = np.where(positive, np.minimum.accumulate(np.where(positive, pairs, np.inf), axis=0), 0.0)
    time = np.maximum(2 * sums.sum(axis=0) - 1, 1 / np.log10(total))
    return np.where(pooled > 0, total / time, float(total))


def _autocovariance(scores: np.ndarray) -> np.ndarray:
    """(n_chains, n, columns), lag along axis 1."""
    n = scores.shape[1]
    size = next_fast_len(2 * n)
    spectrum = rfft(scores - scores.mean(axis=1, keepdims=True), size, axis=1)
    return irfft(np.abs(spectrum) ** 2, size, axis=1)[:, :n] / n
