"""PAC thresholds: coverage that holds given the calibration cases, but for a probability delta over them.

Given n calibration scores without ties, the coverage of the threshold of rank k follows Beta(k, n + 1 - k), and the
number of covered cases among the next m a Beta-binomial law. A PAC threshold takes the least k for which that law
leaves at most delta below the level.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import special, stats

from ..errors import ParameterError
from ..metrics import exact_level

__all__ = ["pac_least_n", "pac_p_values", "pac_rank"]


@lru_cache(maxsize=4096)
def pac_rank(n: int, confidence_level: float, delta: float = 0.05, window: int | None = None) -> int:
    """Rank of the PAC threshold among n sorted calibration scores: the counterpart of `cbdc.metrics.conformal_rank`.

    Parameters
    ----------
    n : int
        Number of calibration cases.
    confidence_level : float
        Coverage that is to be reached.
    delta : float, default=0.05
        Probability, over the calibration cases, of not reaching it.
    window : int, optional
        Coverage of the next `window` cases, counted (small-sample Beta correction), where None stands for the coverage
        in the long run.

    Returns
    -------
    int
        From 1 to n + 1. A rank above n means an infinite threshold: too few cases for this level and delta.

    Raises
    ------
    ParameterError
        If the level or delta is not strictly between 0 and 1, n is negative, or the window is not positive.

    Notes
    -----
    **Guarantee.** Assumption: calibration cases and the cases to come are independent and identically distributed (for
    a window: exchangeable). Statement: with probability at least 1 - delta over the calibration cases (for a window:
    over both), the coverage is at least `confidence_level`. With ties coverage only grows. What breaks it: what breaks
    the marginal guarantee; and a delta that is spent on several thresholds holds for each of them, not for all at once.

    References
    ----------
    Vovk, *Conditional validity of inductive conformal predictors*, 2012, arXiv:1209.2673. Park, Bastani, Matni and Lee,
    *PAC confidence sets for deep neural networks via calibrated prediction*, arXiv:2001.00106. For windows: Zwart,
    *Probabilistic conformal coverage guarantees in small-data settings*, arXiv:2509.15349.

    Examples
    --------
    >>> [pac_rank(n, 0.9) for n in (28, 29, 500, 1000)]
    [29, 29, 462, 916]
    >>> pac_rank(500, 0.9, window=100)
    472
    """
    level = float(exact_level(confidence_level))
    _check(n, delta, window)
    low, high = 1, n + 1  # rank n + 1 always reaches the level; bisection for the least that does
    while low < high:
        k = (low + high) // 2
        if _shortfall(n, k, level, window) <= delta:
            high = k
        else:
            low = k + 1
    return low


def pac_least_n(confidence_level: float, delta: float = 0.05, window: int | None = None) -> int:
    """Fewest calibration cases that give a finite PAC threshold.

    Parameters
    ----------
    confidence_level : float
    delta : float, default=0.05
        Greatest probability, over the calibration cases, that the coverage is below the level.
    window : int, optional
        Number of cases whose coverage is meant; without it that of all cases to come.

    Returns
    -------
    int
        Without a window the smallest n for which ``confidence_level ** n <= delta``.

    Raises
    ------
    ParameterError
        If that takes more than 10**9 cases.

    References
    ----------
    Vovk, *Conditional validity of inductive conformal predictors*, 2012, arXiv:1209.2673.

    Examples
    --------
    >>> pac_least_n(0.9), pac_least_n(0.95), pac_least_n(0.99)
    (29, 59, 299)
    """
    low, high = 1, 1
    while pac_rank(high, confidence_level, delta, window) > high:
        low, high = high + 1, 2 * high
        if high > 10**9:
            raise ParameterError(
                f"confidence_level, delta, window: {confidence_level}, {delta} and {window} take more than 10**9 cases."
            )
    while low < high:
        n = (low + high) // 2
        if pac_rank(n, confidence_level, delta, window) <= n:
            high = n
        else:
            low = n + 1
    return low


def pac_p_values(p_values: np.ndarray, n: np.ndarray, delta: float = 0.05, window: int | None = None) -> np.ndarray:
    """Conformal p-values that hold given the calibration cases: the upper Clopper-Pearson limits of what they estimate.

    Parameters
    ----------
    p_values : ndarray
        (1 + c) / (n + 1), where c of the n calibration cases conform no better.
    n : ndarray, broadcast with `p_values`
    delta : float, default=0.05
    window : int, optional

    Returns
    -------
    ndarray
        The label is in the PAC set at a level exactly if this exceeds ``float(1 - cbdc.metrics.exact_level(level))``.

    References
    ----------
    Bates, Candes, Lei, Romano and Sesia, *Testing for outliers with conformal p-values*, arXiv:2104.08279, section 3.

    Examples
    --------
    >>> pac_p_values(np.array([0.01, 1.0]), 99).round(4)
    array([0.0298, 1.    ])
    """
    _check(0, delta, window)
    n = np.broadcast_to(n, p_values.shape)
    c = np.rint(p_values * (n + 1)).astype(np.int64) - 1
    if window is None:
        return np.where(c >= n, 1.0, special.betaincinv(c + 1, np.maximum(n - c, 1), 1 - delta))
    # The largest share of the window that the threshold just above the label's score reaches too seldom
    pairs, place = np.unique(np.stack([c.ravel(), n.ravel()]), axis=1, return_inverse=True)
    reached = [0 if a >= b else int(stats.betabinom.ppf(delta, window, b - a, a + 1)) for a, b in pairs.T]
    reached = [
        j + 1 if a < b and stats.betabinom.cdf(j, window, b - a, a + 1) <= delta else j
        for j, (a, b) in zip(reached, pairs.T)
    ]
    return ((window - np.array(reached)) / window)[place.ravel()].reshape(p_values.shape)


def _shortfall(n: int, k: int, level: float, window: int | None) -> float:
    """Probability that the threshold of rank k covers less than the level."""
    if k > n:
        return 0.0
    if window is None:
        return float(special.betainc(k, n + 1 - k, level))
    needed = math.ceil(window * exact_level(level))
    return float(stats.betabinom.cdf(needed - 1, window, k, n + 1 - k))


def _check(n: int, delta: float, window: int | None) -> None:
    if n < 0:
        raise ParameterError(f"n: got {n} calibration cases; expected 0 or more.")
    if not 0 < delta < 1:
        raise ParameterError(f"delta: got {delta!r}; expected a number strictly between 0 and 1, for example 0.05.")
    if window is not None and window < 1:
        raise ParameterError(f"window: got {window!r}; expected a whole number of cases, 1 or more, or None.")
