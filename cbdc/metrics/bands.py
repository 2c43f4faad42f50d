"""Exact laws: the rank of a conformal threshold, the band of realised coverage, and intervals for a rate."""

import math
from fractions import Fraction
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import ArrayLike
from scipy import signal, special, stats

from ..errors import ParameterError

__all__ = ["clopper_pearson", "cluster_interval", "conformal_rank", "coverage_band", "design_effect", "exact_level"]


@lru_cache(maxsize=1024)
def exact_level(confidence_level: float) -> Fraction:
    """The nearest fraction with a denominator up to 10**9: 0.9 means 9/10, which no float is.

    Raises
    ------
    ParameterError
        If the level, or that fraction, is not strictly between 0 and 1.

    Examples
    --------
    >>> exact_level(0.9), 1 - exact_level(0.9)
    (Fraction(9, 10), Fraction(1, 10))
    """
    _check_share(confidence_level, "confidence_level")
    level = Fraction(float(confidence_level)).limit_denominator(10**9)
    if not 0 < level < 1:
        raise ParameterError(
            f"confidence_level: got {confidence_level!r}, which is {level} to nine digits; expected a number strictly "
            "between 0 and 1, for example 0.9."
        )
    return level


def conformal_rank(n: int, confidence_level: float) -> int:
    """Rank of the conformal threshold among n sorted calibration scores: ceil((n + 1) * confidence_level), exactly.

    A rank above n means an infinite threshold: too few cases for this level.

    Parameters
    ----------
    n : int
        Number of calibration cases.
    confidence_level : float
        Between 0 and 1, exclusive. A float stands for its `exact_level`, so that 0.9 means 9/10, whose product with 10
        is 9 and not a hair more.

    Returns
    -------
    int
        From 1 to n + 1.

    Raises
    ------
    ValueError
        If the level is not strictly between 0 and 1, to nine digits, or n is negative.

    Examples
    --------
    >>> conformal_rank(9, 0.9), conformal_rank(8, 0.9)
    (9, 9)
    """
    level = exact_level(confidence_level)
    if n < 0:
        raise ValueError(f"n: got {n} calibration cases; expected 0 or more.")
    return math.ceil((int(n) + 1) * level)


def coverage_band(
    n_calibration: ArrayLike,
    n_test: ArrayLike,
    confidence_level: float,
    *,
    probability: float = 0.9,
    ranks: ArrayLike | None = None,
) -> tuple[float, float]:
    """Exact central band of the coverage that a split-conformal predictor realises on a test set.

    Given the calibration set, the coverage of a marginal predictor follows Beta(k, n + 1 - k) with
    k = `conformal_rank(n, confidence_level)`, so that the number of covered test cases is Beta-binomial. Thresholds of
    classes (or of any disjoint cells) are independent, and the law of the total is the convolution of their laws.

    Parameters
    ----------
    n_calibration, n_test : int, or array-like of shape (n_cells,)
        Cases in calibration and test; for class-conditional thresholds one number a class.
    confidence_level : float
        Nominal level of the sets.
    probability : float, default=0.9
        Probability of the band.
    ranks : like `n_calibration`, optional
        Ranks of the thresholds, where they are not those of the level: PAC thresholds, for example.

    Returns
    -------
    low, high : float
        Each tail outside has a probability of at most ``(1 - probability) / 2``. (1, 1) where every threshold is
        infinite; NaN without test cases.

    Raises
    ------
    ValueError
        If the shapes differ, a count is negative, or a share lies outside (0, 1).

    Notes
    -----
    **Guarantee.** Assumption: calibration and test cases are exchangeable and their scores have no ties: continuous
    ones, or randomised APS where all rows of probabilities differ (its number is a fixed function of the row, so that
    equal rows tie). With ties the coverage is stochastically larger, and only the lower end holds. Images of one lesion
    break it: count lesions.

    References
    ----------
    Vovk, *Conditional validity of inductive conformal predictors*, 2012, arXiv:1209.2673.

    Examples
    --------
    >>> low, high = coverage_band(500, 2000, 0.9)
    >>> print(f"{low:.3f} {high:.3f}")
    0.875 0.923
    """
    exact_level(confidence_level)
    _check_share(probability, "probability")
    cells = [np.atleast_1d(np.asarray(n)) for n in (n_calibration, n_test)]
    if cells[0].shape != cells[1].shape or cells[0].ndim != 1:
        raise ValueError(
            f"n_calibration and n_test: got shapes {cells[0].shape} and {cells[1].shape}; give one number each, or one "
            "for each class."
        )
    if any(n.dtype.kind not in "iu" or (n < 0).any() for n in cells):
        raise ValueError("n_calibration and n_test must be whole numbers, 0 or more.")
    total = int(cells[1].sum())
    if total == 0:
        return math.nan, math.nan
    if ranks is None:
        ranks = [conformal_rank(int(n), confidence_level) for n in cells[0]]
    elif np.shape(np.atleast_1d(ranks)) != cells[0].shape:
        raise ValueError(f"ranks: got shape {np.shape(ranks)}; give one for each of n_calibration.")
    laws = [_covered_law(int(n), int(m), int(k)) for n, m, k in zip(*cells, np.atleast_1d(ranks))]
    distribution = np.cumsum(np.clip(reduce(signal.convolve, laws), 0, None))
    distribution /= distribution[-1]
    tail = (1 - probability) / 2
    low, high = np.searchsorted(distribution, [tail, 1 - tail])
    return float(low / total), float(high / total)


def _covered_law(n_calibration: int, n_test: int, rank: int) -> np.ndarray:
    """Probabilities of 0..n_test covered cases."""
    if rank > n_calibration:
        return np.eye(1, n_test + 1, n_test)[0]
    return stats.betabinom.pmf(np.arange(n_test + 1), n_test, rank, n_calibration + 1 - rank)


def clopper_pearson(k: ArrayLike, n: ArrayLike, confidence_level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Exact interval for a rate of which k in n independent cases were counted.

    Parameters
    ----------
    k, n : array-like, broadcast together
        Counts, 0 <= k <= n. They need not be whole: an effective sample size is allowed.
    confidence_level : float, default=0.95

    Returns
    -------
    low, high : ndarray
        NaN where n is 0.

    References
    ----------
    Clopper and Pearson, *The use of confidence or fiducial limits*, Biometrika 26, 1934, doi:10.1093/biomet/26.4.404.

    Examples
    --------
    >>> low, high = clopper_pearson(90, 100)
    >>> print(f"{low:.4f} {high:.4f}")
    0.8238 0.9510
    """
    _check_share(confidence_level, "confidence_level")
    k, n = np.broadcast_arrays(np.asarray(k, dtype=float), np.asarray(n, dtype=float))
    if (wrong := ~((k >= 0) & (k <= n))).any():
        i = tuple(np.argwhere(wrong)[0])
        raise ValueError(f"got k = {k[i]:g} of n = {n[i]:g}; expected 0 <= k <= n.")
    tail = (1 - confidence_level) / 2
    low = np.where(k == 0, 0.0, special.betaincinv(np.where(k == 0, 1, k), n - k + 1, tail))
    high = np.where(k == n, 1.0, special.betaincinv(k + 1, np.where(k == n, 1, n - k), 1 - tail))
    return np.where(n == 0, np.nan, low), np.where(n == 0, np.nan, high)


def cluster_interval(values: ArrayLike, groups: ArrayLike, confidence_level: float = 0.95) -> tuple[float, float]:
    """Approximate interval for a rate over cases in clusters: the images of a lesion, the lesions of a patient.

    Clopper-Pearson at the effective sample size that the spread between clusters leaves (Korn and Graubard), the number
    of clusters being Kish's effective one, ``(sum of sizes)**2 / sum of squared sizes``: one large cluster among small
    ones counts for little more than itself. Where the clusters do not differ the effective size is that number.

    Parameters
    ----------
    values : array-like of shape (n,), bool or 0/1
        For example whether each image is covered.
    groups : array-like of shape (n,)
        Cluster of each case.
    confidence_level : float, default=0.95

    Returns
    -------
    low, high : float
        NaN with fewer than two clusters, which say nothing of their spread.

    Raises
    ------
    ValueError
        If a value is not 0 or 1, or the lengths differ.

    References
    ----------
    Korn and Graubard, *Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data*, Survey Methodology 24, 1998. Kish, *Survey Sampling*, 1965.

    Examples
    --------
    >>> covered = [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
    >>> lesion = [0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 6]
    >>> low, high = cluster_interval(covered, lesion)
    >>> print(f"{low:.2f} {high:.2f}")
    0.21 0.99
    """
    _check_share(confidence_level, "confidence_level")
    values, codes = _check_clusters(values, groups)
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError("values: cluster_interval is for a rate; every value must be 0 or 1.")
    n, n_clusters = len(values), codes.max(initial=-1) + 1
    if n_clusters < 2:
        return math.nan, math.nan
    rate, variance = values.mean(), _cluster_variance(values, codes)
    kish = min(n_clusters, n**2 / np.sum(np.bincount(codes) ** 2))
    if variance > 0:
        tail = (1 + confidence_level) / 2
        effective = rate * (1 - rate) / variance * (stats.t.ppf(tail, n - 1) / stats.t.ppf(tail, kish - 1)) ** 2
        effective = min(n, effective)
    else:
        effective = kish
    if not effective > 0:  # next to all cases are in one cluster
        return 0.0, 1.0
    low, high = clopper_pearson(rate * effective, effective, confidence_level)
    return float(low), float(high)


def design_effect(values: ArrayLike, groups: ArrayLike) -> float:
    """How many times larger the variance of a mean is because cases come in clusters; n over it is the effective size.

    Parameters
    ----------
    values : array-like of shape (n,)
    groups : array-like of shape (n,)
        Cluster of each case.

    Returns
    -------
    float
        NaN where it is undefined: fewer than two clusters, or all values alike.

    References
    ----------
    Kish, *Survey Sampling*, 1965.

    Examples
    --------
    >>> round(design_effect([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3]), 2)
    2.33
    """
    values, codes = _check_clusters(values, groups)
    if codes.max(initial=-1) < 1 or np.ptp(values) == 0:
        return math.nan
    return float(_cluster_variance(values, codes) / (values.var(ddof=1) / len(values)))


def _cluster_variance(values: np.ndarray, codes: np.ndarray) -> float:
    """Variance of the mean as a ratio of cluster totals to cluster sizes."""
    totals = np.bincount(codes, values - values.mean())
    return len(totals) / (len(totals) - 1) * np.sum(totals**2) / len(values) ** 2


def _check_clusters(values: ArrayLike, groups: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape:
        raise ValueError(f"got values {values.shape} and groups {groups.shape}; give one group for each value.")
    if not np.isfinite(values).all():
        raise ValueError(f"values[{np.flatnonzero(~np.isfinite(values))[0]}] is not finite.")
    return values, np.unique(groups, return_inverse=True)[1]


def _check_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ParameterError(f"{name}: got {value!r}; expected a number strictly between 0 and 1, for example 0.9.")
