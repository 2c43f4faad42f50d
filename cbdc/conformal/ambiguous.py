"""Calibration on cases that several readers labelled differently."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval

from ..errors import ParameterError
from ..metrics import check_probabilities
from ._base import ScoringClassifier
from ._state import SavedCalibration, check_that
from ._weighted import WeightedScores
from .certificate import Certificate
from .patients import OF_EACH, one_of_each, repeats

__all__ = ["MonteCarloConformalClassifier", "plausibilities_from_differentials"]


def plausibilities_from_differentials(
    differentials: Sequence[Sequence[Sequence[Any]]], classes: Sequence[Any]
) -> np.ndarray:
    """Readers' ranked differentials of a case to a distribution over classes, by inverse rank normalisation.

    In each differential every condition of rank r weighs 1 / r, however many share the rank. The weights of all readers
    of a case are added, and divided by their sum: a reader who names more conditions counts for more.

    Parameters
    ----------
    differentials : sequence of cases, each a sequence of readers, each a sequence of ranks, each a sequence of classes
        The most likely rank first; conditions of one rank are equally likely.
    classes : sequence of length n_classes

    Returns
    -------
    ndarray of shape (n_cases, n_classes)
        Rows sum to 1.

    Raises
    ------
    ParameterError
        If a condition is no class, is named twice by one reader, or a case has no reader with a condition.

    References
    ----------
    Liu et al., *A deep learning system for differential diagnosis of skin diseases*, Nature Medicine 26, 2020,
    doi:10.1038/s41591-020-0842-3; Stutz et al., *Evaluating AI systems under uncertain ground truth: a case study in
    dermatology*, arXiv:2307.02191, whose published code (``aggregate_irn``) this is equal to.

    Examples
    --------
    >>> readers = [[["eczema"], ["psoriasis"]], [["psoriasis"]]]
    >>> plausibilities_from_differentials([readers], ["eczema", "psoriasis"]).round(3)
    array([[0.4, 0.6]])
    """
    column = {name: k for k, name in enumerate(classes)}
    found = np.zeros((len(differentials), len(column)))
    for i, readers in enumerate(differentials):
        for reader in readers:
            named: set[int] = set()
            for r, conditions in enumerate(reader, start=1):
                for name in conditions:
                    if name not in column:
                        raise ParameterError(f"differentials: case {i} names {name!r}, which is none of the classes.")
                    if column[name] in named:
                        raise ParameterError(f"differentials: a reader of case {i} names {name!r} twice.")
                    named.add(column[name])
                    found[i, column[name]] += 1 / r
        if not found[i].any():
            raise ParameterError(f"differentials: case {i} has no reader who names a condition. Fix: leave it out.")
        found[i] /= found[i].sum()
    return found


class MonteCarloConformalClassifier(SavedCalibration, ScoringClassifier):
    """Split-conformal sets whose guarantee is for what the readers think, not for their vote.

    Each calibration case has a plausibility of every class. A vote keeps only the largest, and sets calibrated on votes
    hold too few of the labels that readers would give. Here all labels of a case count, by their plausibilities.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    score, score_params, randomized, prefit, random_state
        As for `ConformalClassifier`.
    confidence_level : float, default=0.9
    n_draws : int or None, default=None
        Labels drawn for each case, as in the paper; None takes the limit of infinitely many, which is not random.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    calibration_ : WeightedScores
    n_calibration_ : int
    by_unit_ : bool
        Whether one calibration case was drawn of each unit.

    Notes
    -----
    **Guarantee.** Assumption: calibration cases and the new one are exchangeable, plausibilities included. Statement: a
    label drawn from the new case's plausibilities is in its set with probability at least confidence_level. The paper
    guarantees 2 * confidence_level - 1 for averaged p-values; but a case with its labels is a unit of exchangeable
    cases, and the average of p-values is that of hierarchical conformal prediction (arXiv:2306.06342), which is exact.
    What breaks it: readers who do not stand for those whose opinion counts; several calibration cases of one patient or
    lesion (give `units`); what breaks any conformal guarantee. It does not promise the truth, if readers err alike.

    References
    ----------
    Stutz, Roy, Matejovicova, Strachan, Cemgil and Doucet, *Conformal prediction under ambiguous ground truth*,
    arXiv:2307.09302.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> P = rng.dirichlet(np.ones(4), 600)
    >>> readers = np.array([rng.multinomial(3, row) / 3 for row in P])
    >>> clf = MonteCarloConformalClassifier().conformalize(P[:300], readers[:300])
    >>> covered = (clf.predict_set(P[300:]) * readers[300:]).sum(axis=1).mean()
    >>> bool(0.85 < covered < 0.95)
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **ScoringClassifier._parameter_constraints,
        "n_draws": [Interval(Integral, 1, None, closed="left"), None],
    }
    _kept = {"n_calibration_": int, "by_unit_": bool, "calibration_": WeightedScores}  # noqa: RUF012

    def __init__(
        self,
        estimator: Any = None,
        *,
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        confidence_level: float = 0.9,
        n_draws: int | None = None,
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.score = score
        self.score_params = score_params
        self.confidence_level = confidence_level
        self.n_draws = n_draws
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

    def conformalize(
        self, X: ArrayLike, plausibilities: ArrayLike, units: ArrayLike | None = None
    ) -> "MonteCarloConformalClassifier":
        """Calibrate on cases with a distribution over classes each. Only scores and weights are kept.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        plausibilities : array-like of shape (n, n_classes)
            Columns in the order of `classes_`; rows sum to 1. One-hot rows are labels.
        units : array-like of shape (n,), int or str, optional
            Patient or lesion of each case, where several cases may be of one; one case of each is drawn.

        Returns
        -------
        MonteCarloConformalClassifier
            Itself.

        Raises
        ------
        ValueError
            If a row is no distribution, or there is not one for each case.
        """
        self._prepare(X)
        values = self._values(X)
        shares = check_probabilities(plausibilities, "plausibilities").astype(float)
        if shares.shape != values.shape:
            raise ParameterError(f"plausibilities: got shape {shares.shape}; expected {values.shape}.")
        kept, self.by_unit_ = one_of_each(units, len(values), self.seed_), units is not None
        values, shares = values[kept], shares[kept]
        if self.n_draws is not None:
            rng = np.random.default_rng(self.seed_)
            shares = rng.multinomial(self.n_draws, shares / shares.sum(axis=1, keepdims=True)) / self.n_draws
        rows, columns = np.nonzero(shares)
        weights = shares[rows, columns] / shares.sum(axis=1)[rows]
        self.n_calibration_ = len(values)
        self.calibration_ = WeightedScores.from_cases(self._score_labels(values[rows], columns), weights)
        return self

    def _check_kept(self) -> None:
        total = self.calibration_.total * self.calibration_.unit
        check_that(np.isclose(total, self.n_calibration_), "calibration_", "weights that sum to the number of cases")

    def predict_set(self, X: ArrayLike, confidence_level: float | None = None) -> np.ndarray:
        """Prediction sets, bool (n, n_classes); nested in the level.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
            Default: that of the constructor.
        """
        level = self._level(confidence_level)
        values = self._values(X)
        limits = self.calibration_.thresholds(np.ones(1), level)
        return self._sets(values, limits[None, :])

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """Conformal p-values, averaged over the labels of each calibration case: (n, n_classes)."""
        self._check_conformalized()
        return self.calibration_.p_values(self._score_all(self._values(X)), np.ones(1))

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the sets promise."""
        level = self._level(confidence_level)
        return Certificate(
            f"a label drawn from what readers think of the case is in its set with probability at least {level:g}",
            (
                f"this case and the {self.n_calibration_} calibration cases{OF_EACH * self.by_unit_} are exchangeable, "
                "opinions included",
            ),
            (
                "readers who do not stand for those whose opinion counts",
                "another population than in calibration",
                *repeats(self.by_unit_),
            ),
            level,
            self.n_calibration_,
        )
