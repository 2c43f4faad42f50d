"""The posterior of a risk given the losses of calibration cases, by Bayesian quadrature."""

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ParameterError
from .risk import check_losses, check_monotone

__all__ = ["quadrature_bound", "quadrature_index", "risk_exceedance"]

_HALVINGS = 60


def risk_exceedance(losses: ArrayLike, risk_level: float, *, largest: float = 1.0) -> np.ndarray:
    """Posterior probability, at each setting, that the risk exceeds the level; the least favourable prior being taken.

    Sorted losses l_1 <= ... <= l_n with l_{n+1} = `largest` cut the quantile function of the loss at places whose
    spacings U are uniform on the simplex; whatever it does in between, the risk is at most the sum of U_i l_i.

    Parameters
    ----------
    losses : array-like of shape (n, m)
        Loss of each calibration case at each of m settings.
    risk_level : float
    largest : float, default=1
        Bound of every loss.

    Returns
    -------
    ndarray of shape (m,)
        P(sum of U_i l_i > risk_level), exactly: for losses of 0 and 1 the binomial p-value of `risk_p_values`.

    Notes
    -----
    The law of that sum is a B-spline with the losses as knots, summed here by de Boor's recursion, whose terms are all
    positive: no Monte Carlo, no cancellation. It takes as many steps as losses up to the level times losses above it.

    References
    ----------
    Snell and Griffiths, *Conformal prediction as Bayesian quadrature*, arXiv:2502.13228. Curry and Schoenberg, *On
    Polya frequency functions IV*, 1966, doi:10.1007/BF02788653.

    Examples
    --------
    >>> risk_exceedance(np.zeros((29, 1)), 0.1).round(4)
    array([0.0471])
    """
    losses = check_losses(losses, largest)
    return np.array([_exceedance(np.append(column, largest), risk_level) for column in losses.T])


def quadrature_bound(losses: ArrayLike, delta: float = 0.05, *, largest: float = 1.0) -> np.ndarray:
    """Upper bound of the risk at each setting, of posterior probability 1 - delta.

    Parameters
    ----------
    losses : array-like of shape (n, m)
    delta : float, default=0.05
    largest : float, default=1
        Bound of every loss.

    Returns
    -------
    ndarray of shape (m,)

    Notes
    -----
    **Guarantee.** Assumption: independent cases of one population, losses between 0 and `largest`. Statement: for any
    prior over the law of the loss, the posterior probability that the risk is at most the bound is at least 1 - delta,
    as the paper shows. Over repeated calibrations the bound is Gaffke's: at least 1 - delta of
    them hold is a theorem for losses of two values, where it is that of Clopper and Pearson, and a conjecture without a
    known counterexample for others; the guide measures it. What breaks it: several cases of one patient, another
    population.

    References
    ----------
    Snell and Griffiths, arXiv:2502.13228. Learned-Miller and Thomas, *A new confidence interval for the mean of a
    bounded random variable*, arXiv:1905.06208, who give Gaffke's bound.

    Examples
    --------
    >>> quadrature_bound(np.zeros((29, 1)), 0.05).round(4)
    array([0.0981])
    """
    losses = check_losses(losses, largest)
    _check_delta(delta)
    low, high = np.zeros(losses.shape[1]), np.full(losses.shape[1], float(largest))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        exceeds = [_exceedance(np.append(column, largest), a) > delta for column, a in zip(losses.T, middle)]
        low, high = np.where(exceeds, middle, low), np.where(exceeds, high, middle)
    return high


def quadrature_index(losses: ArrayLike, risk_level: float, delta: float = 0.05, *, largest: float = 1.0) -> int:
    """The first setting whose risk is at most the level with posterior probability 1 - delta.

    Parameters
    ----------
    losses : array-like of shape (n, m)
        Never rising from one setting to the next.
    risk_level : float
    delta : float, default=0.05
    largest : float, default=1
        Bound of every loss.

    Returns
    -------
    int
        From 0 to m; m if no setting will do.

    Notes
    -----
    **Guarantee.** That of `quadrature_bound` at the setting returned. For losses of 0 and 1 the setting is that of
    `rcps_index`, so the risk is at most the level with probability 1 - delta over the calibration cases. With the mean
    of the posterior in place of its tail it would be that of `crc_index`.

    References
    ----------
    Snell and Griffiths, *Conformal prediction as Bayesian quadrature*, arXiv:2502.13228.

    Examples
    --------
    >>> quadrature_index(np.repeat([[1, 0.5, 0]], 29, axis=0), 0.1)
    2
    """
    losses = check_monotone(check_losses(losses, largest))
    _check_delta(delta)
    low, high = 0, losses.shape[1]
    while low < high:  # the probability never rises from one setting to the next
        middle = (low + high) // 2
        if _exceedance(np.append(losses[:, middle], largest), risk_level) <= delta:
            high = middle
        else:
            low = middle + 1
    return low


def _exceedance(knots: np.ndarray, a: float) -> float:
    """P(sum of U_i knots_i > a) for uniform spacings U.

    With the s knots next to a on its left and the t next to it on its right it is V(s, t): 1 without any on the left, 0
    without any on the right, and else the mean of V(s - 1, t) and V(s, t - 1), weighted by the distances of the t-th on
    the right and of the s-th on the left. The loop runs over s + t.
    """
    left, right = np.sort(a - knots[knots <= a]), np.sort(knots[knots > a] - a)
    p, q = len(left), len(right)
    value = np.zeros(p + 1)  # V(s, t) for s = 0..p along one s + t
    value[0] = q > 0
    for total in range(2, p + q + 1):
        s = np.arange(max(1, total - q), min(p, total - 1) + 1)
        far, near = right[total - s - 1], left[s - 1]
        value[s] = (far * value[s - 1] + near * value[s]) / (far + near)
    return float(value[p])


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ParameterError(f"delta: got {delta!r}; expected a number strictly between 0 and 1, for example 0.05.")
