"""Sorted calibration scores, and all that is read off them: thresholds at any level, and conformal p-values."""

import dataclasses
import functools
import math

import numpy as np

from ..metrics import conformal_rank, exact_level

__all__ = ["CalibrationScores", "least_n"]


def least_n(confidence_level: float) -> int:
    """Fewest calibration cases that give a finite threshold.

    Examples
    --------
    >>> least_n(0.9), least_n(0.95), least_n(0.99)
    (9, 19, 99)
    """
    level = exact_level(confidence_level)
    return math.ceil(level / (1 - level))


@dataclasses.dataclass(frozen=True)
class CalibrationScores:
    """Scores of the calibration cases, by condition.

    A condition is a pair of a group and a class; where the guarantee is not split by groups (or by classes) there is
    one group (or one class) for all. So every table here is of shape (n_groups or 1, n_classes or 1).

    Parameters
    ----------
    scores : ndarray of shape (n,), float64
        Ascending within each condition, the conditions one after another, row by row of the table.
    counts : ndarray of shape (n_groups or 1, n_classes or 1), int64
        Cases of each condition.

    Examples
    --------
    >>> calibration = CalibrationScores.from_cases(np.arange(1.0, 10.0), np.zeros(9, dtype=int), (1, 1))
    >>> calibration.thresholds(0.9), calibration.thresholds(0.95)
    (array([[1.]]), array([[-inf]]))
    """

    scores: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_cases(cls, scores: np.ndarray, conditions: np.ndarray, shape: tuple[int, int]) -> "CalibrationScores":
        """Sort the scores (n,) of cases within their conditions, flat indices (n,) into a table of the given shape."""
        counts = np.bincount(conditions, minlength=math.prod(shape)).reshape(shape).astype(np.int64)
        ordered = np.sort(scores) if counts.size == 1 else scores[np.lexsort([scores, conditions])]
        return cls(ordered.astype(float), counts)

    @property
    def offsets(self) -> np.ndarray:
        """Where in `scores` each condition begins."""
        return (np.cumsum(self.counts) - self.counts.ravel()).reshape(self.counts.shape)

    def thresholds(self, confidence_level: float) -> np.ndarray:
        """Least score that is still in the set, a table; minus infinity where the cases are too few."""
        counts, place = np.unique(self.counts, return_inverse=True)
        ranks = np.array([conformal_rank(n, confidence_level) for n in counts])[place].reshape(self.counts.shape)
        places = np.maximum(self.offsets + self.counts - ranks, 0)  # the rank counts from the best score down
        return np.where(ranks > self.counts, -np.inf, np.append(self.scores, np.nan)[places])

    def p_values(self, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Share of the condition's cases, the new one among them, that conform no better: (n, n_classes).

        Parameters
        ----------
        scores : ndarray of shape (n, n_classes)
            Of every label of the new cases.
        groups : ndarray of shape (n,), int
            Row of the table of each new case.
        """
        values, shift, keys = self._search
        wanted = np.searchsorted(values, scores, side="right") - 1 + shift[groups]
        no_better = np.searchsorted(keys, wanted, side="right") - self.offsets[groups]
        return (no_better + 1) / (self.counts[groups] + 1)

    @functools.cached_property
    def _search(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What lets one sorted search serve all conditions: scores become ranks among all scores, and the ranks of a
        condition are shifted beyond those of the condition before."""
        values, ranks = np.unique(self.scores, return_inverse=True)
        shift = np.arange(self.counts.size).reshape(self.counts.shape) * (len(values) + 1)
        return values, shift, ranks + np.repeat(shift.ravel(), self.counts.ravel())


def round_up(thresholds: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Least numbers of the dtype that are not below the thresholds: comparing with them is as good, and quicker."""
    rounded = thresholds.astype(dtype)
    return np.where(rounded < thresholds, np.nextafter(rounded, dtype.type(np.inf)), rounded)
