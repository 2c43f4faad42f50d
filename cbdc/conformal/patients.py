"""Cases that come in units: the images of a lesion, the lesions of a patient."""

import numpy as np
from scipy import stats

from ..errors import ParameterError
from ._codes import check_groups

__all__ = ["approximate_band", "draw_one", "effective_n", "unit_codes"]


OF_EACH = ", one of each patient or lesion,"  # of calibration cases, in a certificate


def repeats(by_unit: bool) -> tuple[str, ...]:
    """What breaks the guarantee of a certificate where no units were given."""
    return () if by_unit else ("several calibration cases of one patient or lesion",)


def unit_codes(units: object, n: int) -> np.ndarray:
    """Number of each case's unit, (n,)."""
    return np.unique(check_groups(units, n, name="units"), return_inverse=True)[1]


def one_of_each(units: object, n: int, seed: int) -> np.ndarray:
    """Indices of one case of each unit, drawn as `draw_one` does; of all cases where no units are given."""
    return np.arange(n) if units is None else draw_one(unit_codes(units, n), np.random.RandomState(seed))


def draw_one(units: np.ndarray, random_state: np.random.RandomState) -> np.ndarray:
    """Indices of one case of each unit, drawn evenly among its cases, ascending.

    Parameters
    ----------
    units : ndarray of shape (n,)
    random_state : RandomState

    Returns
    -------
    ndarray of shape (n_units,), int

    Examples
    --------
    >>> chosen = draw_one(np.array([0, 0, 1, 2, 2]), np.random.RandomState(0))
    >>> len(chosen), 2 in chosen
    (3, True)
    """
    order = random_state.permutation(len(units))
    return np.sort(order[np.unique(units[order], return_index=True)[1]])


def effective_n(covered: np.ndarray, units: np.ndarray) -> float:
    """Number of independent cases that would tell as much of a rate as these cases in units do.

    The rate is that of a random case of a random unit: every unit counts alike, whatever its number of cases.

    Parameters
    ----------
    covered : ndarray of shape (n,), bool
    units : ndarray of shape (n,)

    Returns
    -------
    float
        Between 1 and n; the number of units where the spread between them is not seen (all covered, or none).

    Raises
    ------
    ParameterError
        If the lengths differ or there is no case.

    Examples
    --------
    >>> effective_n(np.array([1, 0, 1, 1], dtype=bool), np.array([0, 0, 1, 1])) <= 4
    True
    >>> round(effective_n(np.array([1, 1, 0, 0] * 50, dtype=bool), np.arange(200) // 2), 1)  # alike within a unit
    100.0
    """
    means = _shares(covered, units)
    rate, n_units = means.mean(), len(means)
    if n_units < 2 or not 0 < rate < 1:
        return float(n_units)
    variance = means.var()  # over their number, not one less: so one case a unit gives the number of units
    if variance == 0:
        return float(len(units))
    return float(np.clip(rate * (1 - rate) * n_units / variance, 1, len(units)))


def approximate_band(covered: np.ndarray, units: np.ndarray, probability: float = 0.9) -> tuple[float, float]:
    """Band of the coverage in the long run, from the share of the calibration cases that a threshold covers.

    As exact for one case a unit, but with the effective number of cases in place of their number; so it is approximate.

    Parameters
    ----------
    covered : ndarray of shape (n,), bool
    units : ndarray of shape (n,)
    probability : float, default=0.9

    Returns
    -------
    low, high : float
        NaN where nothing is covered.

    Raises
    ------
    ParameterError
        If the lengths differ or there is no case.

    Notes
    -----
    **Guarantee.** Assumption: independent units, and a threshold that hierarchical conformal prediction chose on these
    cases. Statement: for many units the band holds the coverage of a random case of a new unit with about
    `probability`; exactly so where every unit has one case, or cases that are all alike. What breaks it: few units (90%
    bands held 85% of the time for 30, 89% for 100), or a rate so near 0 or 1 that the spread between units is not seen.

    Examples
    --------
    >>> low, high = approximate_band(np.arange(1000) < 909, np.repeat(np.arange(500), 2))
    >>> print(f"{low:.2f} {high:.2f}")
    0.89 0.93
    """
    share, effective = float(_shares(covered, units).mean()), effective_n(covered, units)
    tails = [(1 - probability) / 2, (1 + probability) / 2]
    low, high = stats.beta.ppf(tails, share * effective, effective + 1 - share * effective)
    return float(low), float(high)


def _shares(covered: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Share of each unit's cases that is covered, (n_units,)."""
    if len(covered) != len(units) or len(units) == 0:
        raise ParameterError(
            f"got {len(covered)} cases and {len(units)} units; give one unit for each of 1 or more cases."
        )
    codes, sizes = np.unique(units, return_inverse=True, return_counts=True)[1:]
    return np.bincount(codes, covered) / sizes
