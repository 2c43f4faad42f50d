"""Flags for malignancy, with a controlled rate of missed ones."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions

from ..errors import ParameterError
from ..metrics import conformal_rank, exact_level
from ._base import ProbabilityClassifier
from .certificate import Certificate
from .pac import pac_rank
from .scores import TIE
from .thresholds import CalibrationScores

__all__ = ["MalignancyClassifier", "MalignancyScorer"]


class MalignancyScorer(ProbabilityClassifier):
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

    def malignancy(self, X: ArrayLike) -> np.ndarray:
        """Probability of malignancy, (n,)."""
        own = self._probabilities(X)[:, malignant_columns(self.malignant, self.classes_)]
        return own.cumsum(axis=1)[:, -1]  # one by one, where sum would round a batch otherwise than a case alone

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
    prefit : bool, default=False

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    threshold_ : float
        Least probability of malignancy that is flagged; minus infinity where the malignant cases are too few.
    n_malignant_ : int
        Calibration cases that the guarantee rests on.

    Notes
    -----
    **Guarantee.** Assumption: the malignant calibration cases and a new malignant case are exchangeable. Statement: the
    new one is flagged with probability at least 1 - risk_level; for "rcps" the sensitivity is at least that with
    probability 1 - delta over the calibration cases. Nothing is promised of benign cases. What breaks it: other
    malignancies, stages or cameras than in calibration; not another prevalence.

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
    }
    _calibrated = ("threshold_",)

    def __init__(
        self,
        estimator: Any = None,
        *,
        malignant: Sequence | None = None,
        method: str = "crc",
        risk_level: float = 0.05,
        delta: float = 0.05,
        prefit: bool = False,
    ) -> None:
        self.estimator = estimator
        self.malignant = malignant
        self.method = method
        self.risk_level = risk_level
        self.delta = delta
        self.prefit = prefit

    def conformalize(self, X: ArrayLike, y: ArrayLike) -> "MalignancyClassifier":
        """Choose the threshold on cases that `fit` never saw.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)

        Returns
        -------
        MalignancyClassifier
            Itself.

        Raises
        ------
        ValueError
            If a class of `malignant` is unknown, or an input is not what it should be.
        """
        self._prepare(X)
        scores, malignant = self._scored(X, y)
        level = float(1 - exact_level(self.risk_level))
        n = int(malignant.sum())
        rank = pac_rank(n, level, float(self.delta)) if self.method == "rcps" else conformal_rank(n, level)
        lowered = scores[malignant] * (1 - TIE)
        calibration = CalibrationScores.from_cases(lowered, np.zeros(n, dtype=int), (1, 1))
        self.risk_level_, self.method_, self.delta_ = float(self.risk_level), self.method, float(self.delta)
        self.n_malignant_ = n
        self.threshold_ = float(calibration.at_ranks(np.array([[rank]]))[0, 0])
        return self

    def flag(self, X: ArrayLike) -> np.ndarray:
        """Whether malignancy cannot be ruled out, bool (n,)."""
        self._check_conformalized()
        return self.malignancy(X) >= self.threshold_

    def certificate(self) -> Certificate:
        """What the flag promises."""
        self._check_conformalized()
        level, n = self.risk_level_, self.n_malignant_
        statement = f"a malignant case is flagged with probability at least {1 - level:g}"
        if self.method_ == "rcps":
            statement = (
                f"with probability at least {1 - self.delta_:g} over the calibration cases, a share of at least "
                f"{1 - level:g} of the malignant cases is flagged in the long run"
            )
        if self.threshold_ == -np.inf:
            statement += f" (every case is flagged: {n} malignant cases are too few for less)"
        return Certificate(
            statement,
            (f"the {n} malignant calibration cases ({self._malignant_names}) and a new one are exchangeable",),
            ("other malignancies, stages or cameras than in calibration",),
            1 - level,
            n,
            delta=self.delta_ if self.method_ == "rcps" else None,
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
