"""Risks other than miscoverage, controlled by the choice of one number: CRC, RCPS and Learn-then-Test."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from sklearn.utils._param_validation import Interval, StrOptions

from ..errors import ParameterError
from ._base import ScoringClassifier
from .certificate import Certificate

__all__ = ["MalignancyClassifier", "crc_index", "ltt_indices", "rcps_index", "risk_p_values"]


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
    losses = _checked(losses, largest)
    if (np.diff(losses, axis=1) > 0).any():
        raise ParameterError("losses: they rise from one setting to the next. Fix: reverse the settings, or use LTT.")
    enough = (losses.sum(axis=0) + largest) / (len(losses) + 1) <= risk_level
    return int(np.argmax(enough)) if enough.any() else losses.shape[1]


def risk_p_values(losses: ArrayLike, risk_level: float) -> np.ndarray:
    """P-value of each setting for "its risk exceeds the level".

    Exact binomial where all losses are 0 or 1, Hoeffding-Bentkus for other losses in [0, 1].

    Parameters
    ----------
    losses : array-like of shape (n, m)
    risk_level : float

    Returns
    -------
    ndarray of shape (m,)

    References
    ----------
    Bates, Angelopoulos, Lei, Malik and Jordan, *Distribution-free, risk-controlling prediction sets*, arXiv:2101.02703.

    Examples
    --------
    >>> risk_p_values(np.zeros((29, 1)), 0.1).round(4)
    array([0.0471])
    """
    losses = _checked(losses, 1.0)
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
    losses = _checked(losses, 1.0)
    if (np.diff(losses, axis=1) > 0).any():
        raise ParameterError("losses: they rise from one setting to the next. Fix: reverse the settings, or use LTT.")
    fails = risk_p_values(losses, risk_level) > delta
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
    if correction == "bonferroni":
        return np.flatnonzero(p_values <= delta / len(p_values))
    if correction != "fixed_sequence" or starts < 1:
        raise ParameterError(f"correction: got {correction!r}, starts {starts}; expected fixed_sequence or bonferroni.")
    found: set[int] = set()
    for first in np.unique(np.arange(starts) * len(p_values) // starts):
        fails = np.flatnonzero(p_values[first:] > delta / starts)
        found |= set(range(first, first + int(fails[0]) if len(fails) else len(p_values)))
    return np.array(sorted(found), dtype=int)


class MalignancyClassifier(ScoringClassifier):
    """Flags the cases in which malignancy cannot be ruled out, with a controlled rate of missed malignancies.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    malignant : sequence of class names
        Their probabilities are summed; without an estimator column numbers. None stands for the last class.
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
        **{k: v for k, v in ScoringClassifier._parameter_constraints.items() if k in ("estimator", "prefit")},
        "malignant": ["array-like", None],
        "method": [StrOptions({"crc", "rcps"})],
        "risk_level": [Interval(Real, 0, 1, closed="neither")],
        "delta": [Interval(Real, 0, 1, closed="neither")],
    }
    _calibrated: tuple[str, ...] = ("threshold_",)
    # The base's settings of a score, which this one does not have
    score_params, randomized = None, False
    random_state: Any = None

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
        self.__dict__["score"] = "lac"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: value for name, value in super().get_params(deep).items() if name != "score"}

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
        values = self._values(X)
        labels = self._labels(y, len(values))
        self.malignant_ = malignant_columns(self.malignant, self.classes_)
        scores = self.malignancy(X)[self.malignant_[labels]]
        self.n_malignant_ = len(scores)
        settings = np.unique(scores)[::-1]
        threshold = -np.inf
        if len(scores):
            missed = scores[:, None] < settings
            level, delta = self.risk_level, self.delta
            index = crc_index(missed, level) if self.method == "crc" else rcps_index(missed, level, delta)
            threshold = settings[index] * (1 - 2.0**-23) if index < len(settings) else -np.inf
        self.risk_level_, self.method_, self.delta_ = float(self.risk_level), self.method, float(self.delta)
        self.threshold_ = float(threshold)
        return self

    def malignancy(self, X: ArrayLike) -> np.ndarray:
        """Probability of malignancy, (n,)."""
        values = self._values(X)
        columns = malignant_columns(self.malignant, self.classes_)
        return (np.exp(values) if self._log else values.astype(float))[:, columns].sum(axis=1)

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
            (f"the {n} malignant calibration cases and a new one are exchangeable",),
            ("other malignancies, stages or cameras than in calibration",),
            1 - level,
            n,
            delta=self.delta_ if self.method_ == "rcps" else None,
        )


def malignant_columns(malignant: Any, classes: np.ndarray) -> np.ndarray:
    """Bool (n_classes,): which columns count as malignant."""
    if malignant is None:
        return np.arange(len(classes)) == len(classes) - 1
    unknown = [name for name in malignant if name not in classes.tolist()]
    columns = np.isin(classes, list(malignant))
    if unknown or columns.all() or not columns.any():
        problem = f"{unknown[0]!r} is no class" if unknown else "there must be malignant and benign classes"
        raise ParameterError(f"malignant: {problem}; the classes are {classes.tolist()}.")
    return columns


def _checked(losses: ArrayLike, largest: float) -> np.ndarray:
    losses = np.asarray(losses, dtype=float)
    if losses.ndim != 2 or 0 in losses.shape:
        raise ParameterError(f"losses: got shape {losses.shape}; expected (n, m), a row for each of n > 0 cases.")
    if not ((losses >= 0) & (losses <= largest)).all():
        raise ParameterError(f"losses: they must lie between 0 and {largest:g}, none missing.")
    return losses
