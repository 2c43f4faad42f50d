"""Flags for malignancy, with a controlled rate of missed ones."""

import dataclasses
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions

from ..errors import CalibrationSizeWarning, ParameterError
from ..metrics import conformal_rank, exact_level
from ._base import ProbabilityClassifier, seed_of
from ._state import SavedCalibration, check_that
from .certificate import Certificate, Condition
from .pac import pac_least_n, pac_rank
from .patients import draw_one, unit_codes
from .scores import TIE
from .thresholds import CalibrationScores, least_n

__all__ = ["MalignancyClassifier", "MalignancyScorer"]


class MalignancyScorer(SavedCalibration, ProbabilityClassifier):
    """Base of those that decide by the probability of malignancy.

    Parameters
    ----------
    malignant : sequence of class names
        Their probabilities are summed; without an estimator column numbers. None stands for the second of two classes.
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **ProbabilityClassifier._parameter_constraints,
        "malignant": ["array-like", None],
    }

    malignant: Sequence | None
    malignant_: np.ndarray

    def malignancy(self, X: ArrayLike) -> np.ndarray:
        """Probability of malignancy, (n,)."""
        own = self._probabilities(X)[:, malignant_columns(self.malignant, self.classes_)]
        return own.cumsum(axis=1)[:, -1]  # one by one, where sum would round a batch otherwise than a case alone

    def _saved_parameters(self) -> dict[str, Any]:
        return super()._saved_parameters() | {"malignant": self.classes_[self.malignant_].tolist()}

    def _check_kept(self) -> None:
        of_parameter = malignant_columns(self.malignant, self.classes_)
        check_that((self.malignant_ == of_parameter).all(), "malignant_", "the columns of the classes in malignant")

    @property
    def _malignant_names(self) -> str:
        """The classes that count as malignant, for a certificate."""
        names = self.classes_[self.malignant_].tolist()
        return f"class{'es' * (len(names) > 1)} {', '.join(map(repr, names))}"

    def _scored(self, X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Probability of malignancy of calibration cases, and whether they are malignant."""
        scores = self.malignancy(X)
        self.malignant_ = malignant_columns(self.malignant, self.classes_)
        return scores, self.malignant_[self._labels(y, len(scores))]


class MalignancyClassifier(MalignancyScorer):
    """Flags the cases in which malignancy cannot be ruled out, with a controlled rate of missed malignancies.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    malignant : sequence of class names
        Their probabilities are summed; without an estimator column numbers. None stands for the second of two classes;
        of more they must be named.
    method : {"crc", "rcps"}, default="crc"
        Whether the rate is kept on average over calibrations, or with probability 1 - `delta` given this one.
    risk_level : float, default=0.05
        Largest rate of malignant cases that are not flagged: one minus the sensitivity.
    delta : float, default=0.05
        Probability, over the calibration cases, with which the sensitivity of "rcps" may be lower.
    prefit : bool, default=False
    random_state : int, RandomState instance or None, default=None
        Of the draw of one malignant case a unit.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    threshold_ : float
        Least probability of malignancy that is flagged; minus infinity where the malignant cases are too few.
    n_malignant_ : int
        Malignant calibration cases, one of each unit, that the guarantee rests on.
    by_unit_ : bool
        Whether they were drawn from units.
    condition_ : Condition
        Rank of the threshold among them, and the 90% band of the sensitivity in the long run.

    Notes
    -----
    **Guarantee.** Assumption: the malignant calibration cases and a new malignant case are exchangeable; for "rcps"
    independent and of one population. Statement: the new one is flagged with probability at least 1 - risk_level; for
    "rcps" the sensitivity is at least that with probability 1 - delta over the calibration cases. With `units` the new
    case is one drawn from the malignant ones of a new unit. Nothing is promised of benign cases. What breaks it: other
    malignancies, stages or cameras than in calibration; several calibration cases of one patient or lesion without
    `units`; not another prevalence.

    References
    ----------
    arXiv:2208.02814 (CRC), arXiv:2101.02703 (RCPS). For this loss they are class-conditional conformal prediction, and
    its PAC form.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 400)
    >>> p = 1 / (1 + np.exp(-(2 * y - 1 + rng.standard_normal(400))))
    >>> clf = MalignancyClassifier(malignant=[1]).conformalize(np.stack([1 - p, p], axis=1), y)
    >>> bool(clf.flag(np.array([[0.01, 0.99]]))[0])
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **MalignancyScorer._parameter_constraints,
        "method": [StrOptions({"crc", "rcps"})],
        "risk_level": [Interval(Real, 0, 1, closed="neither")],
        "delta": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }
    _calibrated = ("threshold_", "condition_")
    _kept = {  # noqa: RUF012
        "threshold_": float,
        "malignant_": ("b", "n_classes"),
        "n_malignant_": int,
        "by_unit_": bool,
        "_tied": bool,
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        malignant: Sequence | None = None,
        method: str = "crc",
        risk_level: float = 0.05,
        delta: float = 0.05,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.malignant = malignant
        self.method = method
        self.risk_level = risk_level
        self.delta = delta
        self.prefit = prefit
        self.random_state = random_state

    def conformalize(self, X: ArrayLike, y: ArrayLike, units: ArrayLike | None = None) -> "MalignancyClassifier":
        """Choose the threshold on cases that `fit` never saw.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        units : array-like of shape (n,), optional
            Patient or lesion of each case; of the malignant cases one of each is drawn.

        Returns
        -------
        MalignancyClassifier
            Itself.

        Raises
        ------
        ValueError
            If a class of `malignant` is unknown, or an input is not what it should be.

        Warns
        -----
        CalibrationSizeWarning
            If the malignant cases are too few for a finite threshold, so that every case is flagged.
        """
        self._prepare(X)
        scores, malignant = self._scored(X, y)
        places = np.flatnonzero(malignant)
        if units is not None:
            codes = unit_codes(units, len(scores))
            places = places[draw_one(codes[places], np.random.RandomState(seed_of(self.random_state)))]
        self.risk_level_, self.method_, self.delta_ = float(self.risk_level), self.method, float(self.delta)
        self.n_malignant_, self.by_unit_ = len(places), units is not None
        level, delta, n, rank = self._level, self.delta_, self.n_malignant_, self._rank()
        lowered = np.sort(scores[places] * (1 - TIE))
        calibration = CalibrationScores(lowered, np.array([[n]]))
        self.threshold_ = float(calibration.at_ranks(np.array([[rank]]))[0, 0])
        self._tied = bool(np.sum(lowered == self.threshold_) > 1)
        self.condition_ = self._condition(rank)
        if rank > n:
            needed = pac_least_n(level, delta) if self.method == "rcps" else least_n(level)
            warnings.warn(
                f"Too few malignant calibration cases for a sensitivity of {level:g}, which takes {needed}: {n}; so "
                "every case is flagged. Fix: calibrate on more malignant cases, or raise risk_level.",
                CalibrationSizeWarning,
                stacklevel=2,
            )
        return self

    def _check_kept(self) -> None:
        super()._check_kept()
        self.risk_level_, self.method_, self.delta_ = float(self.risk_level), self.method, float(self.delta)
        check_that(self.n_malignant_ >= 0, "n_malignant_", "0 or more")
        self.condition_ = self._condition(self._rank())
        full = self.threshold_ == -np.inf
        check_that(full == self.condition_.is_vacuous, "threshold_", "minus infinity exactly if the cases are too few")

    @property
    def _level(self) -> float:
        return float(1 - exact_level(self.risk_level_))

    def _rank(self) -> int:
        n, level = self.n_malignant_, self._level
        return pac_rank(n, level, self.delta_) if self.method_ == "rcps" else conformal_rank(n, level)

    def _condition(self, rank: int) -> Condition:
        found = Condition.from_rank("malignant cases", self.n_malignant_, rank)
        return dataclasses.replace(found, high=1.0) if self._tied else found  # with ties it is stochastically larger

    def flag(self, X: ArrayLike) -> np.ndarray:
        """Whether malignancy cannot be ruled out, bool (n,)."""
        self._check_conformalized()
        return self.malignancy(X) >= self.threshold_

    def certificate(self) -> Certificate:
        """What the flag promises."""
        self._check_conformalized()
        level, n, rcps = self._level, self.n_malignant_, self.method_ == "rcps"
        case = "malignant case drawn from a new patient or lesion that has one" if self.by_unit_ else "malignant case"
        statement = f"a {case} is flagged with probability at least {level:g}"
        if rcps:
            statement = (
                f"with probability at least {1 - self.delta_:g} over the calibration cases, a {case} is flagged with "
                f"probability at least {level:g}, in the long run"
            )
        if self.condition_.is_vacuous:
            statement += f" (every case is flagged: {n} malignant cases are too few for less)"
        cases = f"the {n} malignant calibration cases ({self._malignant_names}"
        cases += ", one of each patient or lesion)" if self.by_unit_ else ")"
        law = "independent and of one population" if rcps else "exchangeable"
        broken_by = ["other malignancies, stages or cameras than in calibration"]
        broken_by += [] if self.by_unit_ else ["several calibration cases of one patient or lesion"]
        return Certificate(
            statement,
            (f"{cases} and a new one are {law} (none of them trained on)",),
            tuple(broken_by),
            level,
            n,
            conditions=(self.condition_,),
            delta=self.delta_ if rcps else None,
        )


def malignant_columns(malignant: Any, classes: np.ndarray) -> np.ndarray:
    """Bool (n_classes,): which columns count as malignant."""
    if malignant is None and len(classes) == 2:
        return np.array([False, True])
    if malignant is None:
        raise ParameterError(
            f"malignant: None stands for the second of two classes; here are {len(classes)}: {classes.tolist()}. Fix: "
            "name those that count as malignant."
        )
    unknown = [name for name in malignant if name not in classes.tolist()]
    columns = np.isin(classes, list(malignant))
    if unknown or columns.all() or not columns.any():
        problem = f"{unknown[0]!r} is no class" if unknown else "there must be malignant and benign classes"
        raise ParameterError(f"malignant: {problem}; the classes are {classes.tolist()}.")
    return columns
