"""Risks other than miscoverage, controlled by the choice of one number: CRC, RCPS and Learn-then-Test."""

from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from ..errors import ParameterError

__all__ = ["crc_index", "ltt_indices", "rcps_index", "risk_p_values"]


def crc_index(losses: ArrayLike, risk_level: float, *, largest: float = 1.0) -> int:
    """Conformal risk control: the first setting whose expected loss is at most the level.

    Parameters
    ----------
    losses : array-like of shape (n, m)
        Loss of each calibration case at each of m settings, which never rises from one setting to the next.
    risk_level : float
    largest : float, default=1
        Bound of every loss.

    Returns
    -------
    int
        From 0 to m; m if no setting will do.

    Raises
    ------
    ParameterError
        If a loss is missing or out of range, losses rise, or a number is not positive.

    Notes
    -----
    **Guarantee.** Assumption: calibration cases and the new one are exchangeable, losses are monotone and at most
    `largest`, and the setting m, beyond the last, has no loss. Statement: the expected loss of the new case is at most
    `risk_level`. What breaks it: losses that are not monotone, another population.

    References
    ----------
    Angelopoulos, Bates, Fisch, Lei and Schuster, *Conformal risk control*, arXiv:2208.02814.

    Examples
    --------
    >>> crc_index([[1, 1, 0], [1, 0, 0], [1, 0, 0]], 0.5)
    1
    """
    _check_number("largest", largest, np.inf)
    _check_number("risk_level", risk_level, np.inf)
    losses = check_monotone(check_losses(losses, largest))
    enough = (losses.sum(axis=0) + largest) / (len(losses) + 1) <= risk_level
    return int(np.argmax(enough)) if enough.any() else losses.shape[1]


def risk_p_values(losses: ArrayLike, risk_level: float) -> np.ndarray:
    """P-value of each setting for "its risk exceeds the level".

    Exact binomial where all losses are 0 or 1, Hoeffding-Bentkus for other losses in [0, 1].

    Parameters
    ----------
    losses : array-like of shape (n, m)
    risk_level : float
        Strictly between 0 and 1.

    Returns
    -------
    ndarray of shape (m,)

    Raises
    ------
    ParameterError
        If a loss is missing or out of range, or the level is.

    References
    ----------
    Bates, Angelopoulos, Lei, Malik and Jordan, *Distribution-free, risk-controlling prediction sets*, arXiv:2101.02703.

    Examples
    --------
    >>> risk_p_values(np.zeros((29, 1)), 0.1).round(4)
    array([0.0471])
    """
    _check_number("risk_level", risk_level, 1)
    losses = check_losses(losses, 1.0)
    n, mean = len(losses), losses.mean(axis=0)
    if np.isin(losses, (0, 1)).all():
        return stats.binom.cdf(np.rint(losses.sum(axis=0)), n, risk_level)
    low = np.minimum(mean, risk_level)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = special.xlogy(low, low / risk_level) + special.xlogy(1 - low, (1 - low) / (1 - risk_level))
    bentkus = np.e * stats.binom.cdf(np.ceil(n * mean - 1e-9), n, risk_level)
    return np.where(mean >= risk_level, 1.0, np.minimum(np.minimum(np.exp(-n * entropy), bentkus), 1.0))


def rcps_index(losses: ArrayLike, risk_level: float, delta: float = 0.05) -> int:
    """Risk-controlling prediction sets: the first setting from which on the risk is at most the level, with confidence.

    Parameters
    ----------
    losses : array-like of shape (n, m)
        In [0, 1]; they never rise from one setting to the next.
    risk_level : float
    delta : float, default=0.05

    Returns
    -------
    int
        From 0 to m; m if no setting will do.

    Raises
    ------
    ParameterError
        If a loss is missing or out of range, losses rise, or `risk_level` or `delta` is not strictly between 0 and 1.

    Notes
    -----
    **Guarantee.** Assumption: independent cases of one population, monotone losses. Statement: with probability at
    least 1 - delta over the calibration cases, the risk is at most `risk_level`.

    References
    ----------
    Bates, Angelopoulos, Lei, Malik and Jordan, arXiv:2101.02703.

    Examples
    --------
    >>> rcps_index(np.repeat([[1, 0]], 29, axis=0), 0.1)
    1
    """
    _check_number("delta", delta, 1)
    losses = check_monotone(check_losses(losses, 1.0))
    fails = ~(risk_p_values(losses, risk_level) <= delta)
    return int(np.flatnonzero(fails).max(initial=-1)) + 1


def ltt_indices(
    p_values: ArrayLike, delta: float = 0.05, *, correction: str = "fixed_sequence", starts: int = 1
) -> np.ndarray:
    """Learn-then-Test: the settings whose risk is certified, all at once.

    Parameters
    ----------
    p_values : array-like of shape (m,)
        For "the risk of this setting exceeds its level"; of several risks, the largest of their p-values.
    delta : float, default=0.05
    correction : {"fixed_sequence", "bonferroni"}, default="fixed_sequence"
        Test in the given order until the first failure, or each at delta / m.
    starts : int, default=1
        Places, evenly spaced, where a fixed sequence is begun, each with its share of delta: if the first settings have
        too few cases to be certified, later ones may still be.

    Returns
    -------
    ndarray of int
        Ascending; empty if none.

    Raises
    ------
    ParameterError
        If a p-value is missing or outside [0, 1], or `delta`, `correction` or `starts` is not what it should be.

    Notes
    -----
    **Guarantee.** Assumption: the p-values are valid, and settings, order and starts do not depend on the calibration
    cases. Statement: with probability at least 1 - delta every setting returned has its risk at most the level.

    References
    ----------
    Angelopoulos, Bates, Candes, Jordan and Lei, *Learn then test*, arXiv:2110.01052.

    Examples
    --------
    >>> ltt_indices([0.01, 0.04, 0.3, 0.001])
    array([0, 1])
    """
    p_values = np.asarray(p_values, dtype=float)
    if p_values.ndim != 1:
        raise ParameterError(f"p_values: got shape {p_values.shape}; expected (m,), one for each setting.")
    if len(wrong := np.flatnonzero(~((p_values >= 0) & (p_values <= 1)))):
        raise ParameterError(f"p_values: number {wrong[0]} is {p_values[wrong[0]]}; expected a number from 0 to 1.")
    _check_number("delta", delta, 1)
    if correction == "bonferroni":
        return np.flatnonzero(p_values <= delta / max(len(p_values), 1))
    if correction != "fixed_sequence":
        raise ParameterError(f"correction: got {correction!r}; expected 'fixed_sequence' or 'bonferroni'.")
    if not isinstance(starts, Integral) or starts < 1:
        raise ParameterError(f"starts: got {starts!r}; expected a whole number, 1 or more.")
    found: set[int] = set()
    for first in np.unique(np.arange(starts) * len(p_values) // starts):
        fails = np.flatnonzero(~(p_values[first:] <= delta / starts))
        found |= set(range(first, first + int(fails[0]) if len(fails) else len(p_values)))
    return np.array(sorted(found), dtype=int)


def _check_number(name: str, value: float, bound: float) -> None:
    """Raise unless the value is a number strictly between 0 and the bound."""
    if not isinstance(value, Real) or not 0 < value < bound:
        raise ParameterError(f"{name}: got {value!r}; expected a number strictly between 0 and {bound}.")


def check_losses(losses: ArrayLike, largest: float) -> np.ndarray:
    """Losses (n, m), float64, each from 0 to the largest."""
    losses = np.asarray(losses, dtype=float)
    if losses.ndim != 2 or 0 in losses.shape:
        raise ParameterError(f"losses: got shape {losses.shape}; expected (n, m), a row for each of n > 0 cases.")
    if not ((losses >= 0) & (losses <= largest)).all():
        raise ParameterError(f"losses: they must lie between 0 and {largest:g}, none missing.")
    return losses


def check_monotone(losses: np.ndarray) -> np.ndarray:
    """The losses, if they never rise from one setting to the next."""
    if (np.diff(losses, axis=1) > 0).any():
        raise ParameterError("losses: they rise from one setting to the next. Fix: reverse the settings, or use LTT.")
    return losses
