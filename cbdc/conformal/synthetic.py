"""Few local cases, helped by many of another source, with a guarantee that does not depend on the latter."""

from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.utils._param_validation import Interval

from ..errors import ParameterError
from ..metrics import conformal_rank, exact_level
from ._base import ScoringClassifier
from ._state import SavedCalibration, check_ascending, check_that
from .certificate import Certificate
from .patients import OF_EACH, one_of_each, repeats

__all__ = ["SyntheticPoweredConformalClassifier", "guard_ranks"]


@lru_cache(maxsize=1024)
def guard_ranks(n: int, n_source: int, confidence_level: float, beta: float = 0.4) -> tuple[int, int]:
    """Ranks of the two local scores between which the threshold of the other source is kept.

    The r-th of n + 1 local scores takes, were both sources alike, a place among the `n_source` others that follows a
    Beta-binomial law; its central window of probability 1 - beta is what the other source may decide. Local scores
    whose window ends before the source's threshold are always covered, those whose window begins behind it never.

    Parameters
    ----------
    n, n_source : int
        Local cases, and those of the other source.
    confidence_level : float
    beta : float, default=0.4
        The smaller, the more the other source decides, and the lower the bound that holds whatever it is.

    Returns
    -------
    low, high : int
        Ranks, from the best conforming down, 0 <= low <= high <= n + 1; 0 for no guard, n + 1 for the infinite one. The
        coverage is between low / (n + 1) and high / (n + 1), the latter without ties.

    Examples
    --------
    >>> guard_ranks(20, 1000, 0.9)
    (18, 20)
    """
    level = exact_level(confidence_level)
    threshold = conformal_rank(n_source, float(level))
    ranks = np.arange(1, n + 2)
    # Places of the r-th of n + 1 among the others: 1 more than a Beta-binomial number
    ends = 1 + stats.betabinom.ppf(1 - beta / 2, n_source, ranks, n + 2 - ranks)
    starts = 1 + stats.betabinom.ppf(beta / 2, n_source, ranks, n + 2 - ranks)
    return int(np.sum(ends <= threshold)), int(np.sum(starts <= threshold))


class SyntheticPoweredConformalClassifier(SavedCalibration, ScoringClassifier):
    """Local recalibration from few cases, steadied by the threshold of a large calibration set from elsewhere.

    The threshold is that of the other source (another clinic, an earlier camera, made images), but kept between two
    scores of the local cases. Where both agree, coverage is as steady as with many cases; where they do not, the local
    cases still bound it.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    beta : float, default=0.4
        How far apart the two local scores are, see `guard_ranks`.
    score, score_params, randomized, prefit, random_state
        As for `ConformalClassifier`.
    confidence_level : float, default=0.9

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    calibration_ : tuple of two ndarray
        Scores of the local cases and of the source's, ascending.
    by_unit_ : bool
        Whether one local case was drawn of each unit.

    Notes
    -----
    **Guarantee.** Assumption: the n local cases and the new one are exchangeable. Statement: P(y in set) >=
    low / (n + 1), with low of `guard_ranks`, whatever the other source is; `certificate` prints it. If the source's
    scores are distributed like the local ones, P(y in set) >= confidence_level - beta, and in practice close to the
    level. What breaks it: local cases that were trained on, or several of one patient (give `units`). Made
    images alone calibrate nothing.

    References
    ----------
    Bashari, Lotan, Lee, Dobriban and Romano, *Synthetic-powered predictive inference*, arXiv:2505.13432. Their score
    transporter sends a local score to the nearest one of a window of the source's; compared with the source's
    threshold, this is the threshold between two local order statistics.

    Examples
    --------
    >>> from scipy.special import softmax
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 3, 2000)
    >>> P = softmax(2 * np.eye(3)[y] + rng.standard_normal((2000, 3)), axis=1)
    >>> clf = SyntheticPoweredConformalClassifier().conformalize(P[:20], y[:20], source=(P[20:1000], y[20:1000]))
    >>> print(round(clf.bounds()[0], 3), clf.predict_set(P[1000:]).shape)
    0.857 (1000, 3)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **ScoringClassifier._parameter_constraints,
        "beta": [Interval(Real, 0, 1, closed="neither")],
    }
    _kept = {"calibration_": [("f", "n"), ("f", "n_source")], "beta_": float, "by_unit_": bool}  # noqa: RUF012

    def __init__(
        self,
        estimator: Any = None,
        *,
        beta: float = 0.4,
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        confidence_level: float = 0.9,
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.beta = beta
        self.score = score
        self.score_params = score_params
        self.confidence_level = confidence_level
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

    def conformalize(
        self, X: ArrayLike, y: ArrayLike, source: tuple[ArrayLike, ArrayLike], units: ArrayLike | None = None
    ) -> "SyntheticPoweredConformalClassifier":
        """Calibrate on local cases, helped by cases of another source.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        source : tuple (X, y)
            Of the other source, which is not to be trusted.
        units : array-like of shape (n,), int or str, optional
            Patient or lesion of each local case, where several cases may be of one; one case of each is drawn.

        Returns
        -------
        SyntheticPoweredConformalClassifier
            Itself.

        Raises
        ------
        ValueError
            If there is no local case, or an input is not what it should be.
        """
        self._prepare(X)
        found = []
        for cases, labels in ((X, y), source):
            values = self._values(cases)
            found.append(self._score_labels(values, self._labels(labels, len(values))))
        if len(found[0]) == 0:
            raise ParameterError("X: no local case. Cases of another source alone promise nothing here.")
        self.beta_, self.by_unit_ = float(self.beta), units is not None
        local = found[0][one_of_each(units, len(found[0]), self.seed_)]
        self.calibration_ = np.sort(local), np.sort(found[1])
        return self

    def threshold(self, confidence_level: float | None = None) -> float:
        """Least score in the set."""
        level = self._level(confidence_level)
        local, source = self.calibration_
        low, high = guard_ranks(len(local), len(source), level, self.beta_)
        best_first = np.concatenate([[np.inf], local[::-1], [-np.inf]])
        rank = conformal_rank(len(source), level)
        wanted = -np.inf if rank > len(source) else source[len(source) - rank]
        return float(min(max(wanted, best_first[high]), best_first[low]))

    def bounds(self, confidence_level: float | None = None) -> tuple[float, float]:
        """Least and largest coverage, whatever the other source is; the latter 1 where local scores tie at it."""
        level = self._level(confidence_level)
        local, source = self.calibration_
        n = len(local)
        low, high = guard_ranks(n, len(source), level, self.beta_)
        tied = 0 < high <= n and np.sum(local == local[n - high]) > 1
        return low / (n + 1), 1.0 if tied else high / (n + 1)

    def _check_kept(self) -> None:
        for scores in self.calibration_:
            check_ascending("calibration_", scores)
        check_that(len(self.calibration_[0]) > 0, "calibration_", "one local case at least")

    def predict_set(self, X: ArrayLike, confidence_level: float | None = None) -> np.ndarray:
        """Prediction sets, bool (n, n_classes); nested in the level.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
            Default: that of the constructor.
        """
        self._check_conformalized()
        values = self._values(X)
        limits = np.array([[self.threshold(confidence_level)]])
        return self._sets(values, limits)

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the sets promise with and without trust in the other source."""
        level = self._level(confidence_level)
        low, high = self.bounds(level)
        n = len(self.calibration_[0])
        return Certificate(
            f"the set holds the true class with probability between {low:.3f} and {high:.3f} whatever the other source "
            f"is; {level:g} is what the {len(self.calibration_[1])} cases of the other source aim at",
            (f"this case and the {n} local calibration cases{OF_EACH * self.by_unit_} are exchangeable",),
            ("local cases that were trained on", *repeats(self.by_unit_)),
            level,
            n,
        )
