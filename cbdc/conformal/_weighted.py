"""Weighted calibration scores: what label shift and covariate shift have in common."""

import dataclasses

import numpy as np

from ..errors import ParameterError
from ..metrics import exact_level

__all__ = ["WeightedScores", "check_weights", "effective_size"]

_OUTWEIGHS = 1e100  # a weight that all others together are nothing beside


@dataclasses.dataclass(frozen=True)
class WeightedScores:
    """Calibration scores in ascending order, each with a weight.

    The new case has a weight too, and stands at minus infinity with it: then the set holds a label exactly if the share
    of all the weight that conforms no better, the new case's own included, exceeds 1 - level.

    Parameters
    ----------
    scores, weights : ndarray of shape (n,), float64
        Weights in units of `unit`, the largest 1, so that no sum of them overflows.
    unit : float, default=1.0
        Of the weights: that of a new case is given as it is.

    Examples
    --------
    >>> scores = WeightedScores.from_cases(np.arange(9.0), np.ones(9))
    >>> scores.thresholds(np.array([1.0, 10.0]), 0.9)
    array([  0., -inf])
    """

    scores: np.ndarray
    weights: np.ndarray
    unit: float = 1.0

    @classmethod
    def from_cases(cls, scores: np.ndarray, weights: np.ndarray) -> "WeightedScores":
        order = np.argsort(scores, kind="stable")
        unit = float(weights.max(initial=0.0)) or 1.0
        return cls(scores[order].astype(float), weights[order] / unit, unit)

    @property
    def total(self) -> float:
        return float(self.weights.sum())

    def thresholds(self, own: np.ndarray, confidence_level: float) -> np.ndarray:
        """Least score in the set, for new cases of these weights; minus infinity where one outweighs the others."""
        alpha = float(1 - exact_level(confidence_level))
        own = self._in_units(own)
        needed = alpha * (self.total + own) - own
        through = np.cumsum(self.weights)
        # A sum that meets the bound but for rounding counts as meeting it, as it does with equal weights.
        slack = 1e-12 * (self.total + own)
        places = np.searchsorted(through, needed + slack, side="right")
        found = np.append(self.scores, np.inf)[np.minimum(places, len(self.scores))]
        return np.where(needed < -slack, -np.inf, found)

    def p_values(self, scores: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Share of the weight that conforms no better than each score; `own` is broadcast with the scores."""
        own = self._in_units(own)
        below = np.concatenate([[0.0], np.cumsum(self.weights)])
        places = np.searchsorted(self.scores, scores, side="right")
        return np.minimum((below[places] + own) / (self.total + own), 1.0)

    def _in_units(self, own: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.minimum(np.asarray(own) / self.unit, _OUTWEIGHS)


def check_weights(weights: np.ndarray, n: int, name: str = "weights") -> np.ndarray:
    """The weights as float64 (n,), or an error that names the first that cannot be one."""
    weights = np.asarray(weights, dtype=float)
    if weights.shape != (n,):
        raise ParameterError(f"{name}: got shape {weights.shape}; expected ({n},), one for each case.")
    if len(wrong := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))):
        raise ParameterError(f"{name}: case {wrong[0]} has {weights[wrong[0]]}; expected a finite number, 0 or more.")
    return weights


def effective_size(weights: np.ndarray) -> float:
    """Number of cases of equal weight that would be as precise (Kish): square of the sum over sum of squares."""
    if not weights.any():
        return 0.0
    shares = weights / weights.max()  # whose squares do not overflow
    return float(shares.sum() ** 2 / np.sum(shares**2))
