"""Sorted calibration scores, and all that is read off them: thresholds at any level, and conformal p-values."""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from ..metrics import conformal_rank, exact_level

__all__ = ["CalibrationScores", "least_n"]


def least_n(confidence_level: float) -> int:
    """Fewest calibration cases that give a finite threshold.

    Parameters
    ----------
    confidence_level : float

    Returns
    -------
    int
        The smallest n for which ``ceil((n + 1) * confidence_level) <= n``, the level taken exactly.

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

    A condition is a pair of a group and a column: a class, or a cluster of classes; where the guarantee is not split by
    groups (or by classes) there is one group (or one column) for all. So every table here is of shape (n_groups or 1,
    n_columns or 1).

    Parameters
    ----------
    scores : ndarray of shape (n,), float64
        Ascending within each condition, the conditions one after another, row by row of the table.
    counts : ndarray of shape (n_groups or 1, n_columns or 1), int64
        Cases of each condition.
    units : ndarray of shape (n,), int64, or None
        Number of the patient or lesion of each case; None where every case is its own. The cases of one unit in a
        condition then share the weight of one case (hierarchical conformal prediction, arXiv:2306.06342).

    Examples
    --------
    >>> calibration = CalibrationScores.from_cases(np.arange(1.0, 10.0), np.zeros(9, dtype=int), (1, 1))
    >>> calibration.thresholds(0.9), calibration.thresholds(0.95)
    (array([[1.]]), array([[-inf]]))
    """

    scores: np.ndarray
    counts: np.ndarray
    units: np.ndarray | None = None

    @classmethod
    def from_cases(
        cls,
        scores: np.ndarray,
        conditions: np.ndarray | None,
        shape: tuple[int, int],
        *,
        units: np.ndarray | None = None,
    ) -> "CalibrationScores":
        """Sort the scores (n,) of cases within their conditions, flat indices (n,) into a table of the given shape.

        None for the conditions: there is one.
        """
        if conditions is None and units is None:
            return _Unsorted(scores)
        conditions = np.zeros(len(scores), dtype=np.intp) if conditions is None else conditions
        counts = np.bincount(conditions, minlength=math.prod(shape)).reshape(shape).astype(np.int64)
        if units is None:
            ordered = np.sort(scores) if counts.size == 1 else scores[np.lexsort([scores, conditions])]
            return cls(ordered.astype(float), counts)
        order = np.lexsort([units, scores, conditions])
        return cls(scores[order].astype(float), counts, units[order].astype(np.int64))

    @property
    def offsets(self) -> np.ndarray:
        """Where in `scores` each condition begins."""
        return (np.cumsum(self.counts) - self.counts.ravel()).reshape(self.counts.shape)

    @functools.cached_property
    def kept(self) -> dict:
        """Thresholds that were asked for, by whatever they depend on."""
        return {}

    @property
    def conditions(self) -> np.ndarray:
        """Flat index of the condition of each score, (n,)."""
        return np.repeat(np.arange(self.counts.size), self.counts.ravel())

    @functools.cached_property
    def n_units(self) -> np.ndarray:
        """Units of each condition, a table: what a threshold rests on."""
        return self.counts if self.units is None else self._shares[2]

    def thresholds(self, confidence_level: float) -> np.ndarray:
        """Least score that is still in the set, a table; minus infinity where the cases are too few."""
        if self.units is not None:
            return self._weighted_thresholds(confidence_level)
        return self.at_ranks(self.ranks(lambda n: conformal_rank(n, confidence_level)))

    def ranks(self, rank: Callable[[int], int]) -> np.ndarray:
        """A rank for each condition by its number of units, a table."""
        n_units = self.n_units.ravel().tolist()
        found = {n: rank(n) for n in set(n_units)}
        return np.array([found[n] for n in n_units]).reshape(self.counts.shape)

    def at_ranks(self, ranks: np.ndarray) -> np.ndarray:
        """The scores of these ranks, from the best down, a table; minus infinity where a rank exceeds the cases."""
        found, finite = np.full(ranks.shape, -np.inf), ranks <= self.counts
        found[finite] = self.scores[(self.offsets + self.counts - ranks)[finite]]
        return found

    def p_values(self, scores: np.ndarray, groups: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Share of the condition's units, the new one among them, that conform no better: (n, n_classes).

        Parameters
        ----------
        scores : ndarray of shape (n, n_classes)
            Of every label of the new cases.
        groups : ndarray of shape (n,), int
            Row of the table of each new case.
        columns : ndarray of shape (n_classes,), int, optional
            Column of the table of each class; None where there is one for each class, or one for all.
        """
        columns = np.arange(self.counts.shape[1]) if columns is None else columns
        values, shift, keys = self._search
        cells = groups[:, None], columns[None, :]
        wanted = np.searchsorted(values, scores, side="right") - 1 + shift[cells]
        ends = np.searchsorted(keys, wanted, side="right")
        if self.units is None:
            return (ends - self.offsets[cells] + 1) / (self.counts[cells] + 1)
        one, below, n_units = self._shares
        return (below[ends] - below[self.offsets[cells]] + one) / (one * (n_units[cells] + 1))

    @functools.cached_property
    def _search(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What lets one sorted search serve all conditions: scores become ranks among all scores, and the ranks of a
        condition are shifted beyond those of the condition before."""
        values, ranks = np.unique(self.scores, return_inverse=True)
        shift = np.arange(self.counts.size).reshape(self.counts.shape) * (len(values) + 1)
        return values, shift, ranks + np.repeat(shift.ravel(), self.counts.ravel())

    @functools.cached_property
    def _shares(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Weight of a unit, sums of the weights of the scores below each place (n + 1,), and units of each condition.

        Whole numbers, so that no sum is rounded across a rank: a unit weighs the least common multiple of the numbers
        of cases. Where that is so large that a float64 could not hold the sums, its j best cases weigh what is due to
        them rounded down, which is conservative, and all of them exactly the unit's weight.
        """
        assert self.units is not None
        n = len(self.scores)
        names, units = np.unique(self.units, return_inverse=True)
        keys = self.conditions * len(names) + units
        order = np.argsort(keys, kind="stable")  # unit by unit, the scores of each ascending
        _, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)
        one = min(math.lcm(*sizes.tolist()), 2**52 // (n + 1))
        size = np.repeat(sizes, sizes)
        place = np.repeat(starts + sizes, sizes) - np.arange(n)  # within the unit, from 1 for the best
        weights = np.empty(n, dtype=np.int64)
        weights[order] = place * one // size - (place - 1) * one // size
        n_units = np.bincount(self.conditions[order[starts]], minlength=self.counts.size).reshape(self.counts.shape)
        return one, np.concatenate([[0], np.cumsum(weights)]), n_units

    def _weighted_thresholds(self, confidence_level: float) -> np.ndarray:
        """The last places from which the scores up to the best weigh enough."""
        one, below, _ = self._shares
        level = exact_level(confidence_level)
        needed = self.ranks(lambda n_units: math.ceil(level * (n_units + 1) * one))
        places = np.searchsorted(below, below[self.offsets + self.counts] - needed, side="right") - 1
        return np.where(places >= self.offsets, np.append(self.scores, np.nan)[places], -np.inf)


class _Unsorted(CalibrationScores):
    """Scores of one condition, sorted only when more than a threshold is asked: selecting one takes a third of that."""

    def __init__(self, cases: np.ndarray) -> None:
        self.__dict__.update(cases=cases, counts=np.full((1, 1), len(cases), dtype=np.int64), units=None)

    @functools.cached_property
    def scores(self) -> np.ndarray:
        return np.sort(self.__dict__["cases"]).astype(float)

    def at_ranks(self, ranks: np.ndarray) -> np.ndarray:
        cases, rank = self.__dict__["cases"], int(ranks[0, 0])
        if "scores" in self.__dict__ or rank > len(cases):
            return super().at_ranks(ranks)
        return np.partition(cases, len(cases) - rank)[len(cases) - rank].astype(float).reshape(1, 1)


def round_up(thresholds: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Least numbers of the dtype that are not below the thresholds: comparing with them is as good, and quicker."""
    if thresholds.dtype == dtype:
        return thresholds
    rounded = thresholds.astype(dtype)
    return np.where(rounded < thresholds, np.nextafter(rounded, dtype.type(np.inf)), rounded)
