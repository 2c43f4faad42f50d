"""Prediction sets over a stream of cases whose labels arrive later."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions

from ..metrics import conformal_rank
from ._base import ScoringClassifier
from .certificate import Certificate, Condition

__all__ = ["OnlineConformalClassifier"]


class OnlineConformalClassifier(ScoringClassifier):
    """Sets for the next case, from all cases labelled so far.

    `predict_set` is asked for the next cases, and `partial_conformalize` is told their labels, in order, when they are
    known.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    method : {"expanding", "aci", "pid"}, default="expanding"
        The calibration set grows by each labelled case; or, besides, the level is raised after a miss and lowered after
        a cover (adaptive conformal inference); or a threshold on the p-value's scale follows the misses (quantile
        tracking with an error integrator).
    gamma : float, default=0.01
        Step of "aci" and "pid".
    window : int or None, default=None
        Cases kept for calibration, the last ones; None keeps all.
    score, score_params, randomized, prefit, random_state
        As for `ConformalClassifier`.
    confidence_level : float, default=0.9

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    alpha_ : float
        Rate of misses that the next sets aim at; for "aci" and "pid" it moves, and may leave [0, 1].
    n_calibration_ : int
    n_seen_, n_missed_ : int
        Cases told to `partial_conformalize`, and those whose set, at the time of telling, missed the label.

    Notes
    -----
    **Guarantee.** "expanding": assumption: all cases so far and the next are exchangeable. Statement: the next set
    holds its class with probability at least confidence_level; the events are independent where scores do not tie.
    "aci" and "pid": no assumption at all; statement: after T cases |misses / T - alpha| is at most `long_run_bound`,
    (max(alpha, 1 - alpha) + gamma) / (gamma T) for "aci", and the like for "pid". It is a statement about the long run
    of this stream, not about any group, day or case, and it is bought with sets that are at times empty or full. What
    breaks it: labels told out of order, or only of some cases.

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005. Gibbs and Candes, *Adaptive conformal
    inference under distribution shift*, arXiv:2106.00170. Angelopoulos, Candes and Tibshirani, *Conformal PID control
    for time series prediction*, arXiv:2307.16895.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> P = rng.dirichlet(np.ones(3), 500)
    >>> y = (P.cumsum(axis=1) < rng.random((500, 1))).sum(axis=1)
    >>> clf = OnlineConformalClassifier(method="aci").conformalize(P[:100], y[:100])
    >>> for i in range(100, 500):
    ...     sets = clf.predict_set(P[i : i + 1])
    ...     clf = clf.partial_conformalize(P[i : i + 1], y[i : i + 1])
    >>> bool(0.07 < clf.n_missed_ / clf.n_seen_ < 0.13)
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **ScoringClassifier._parameter_constraints,
        "method": [StrOptions({"expanding", "aci", "pid"})],
        "gamma": [Interval(Real, 0, None, closed="neither")],
        "window": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        method: str = "expanding",
        gamma: float = 0.01,
        window: int | None = None,
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        confidence_level: float = 0.9,
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.method = method
        self.gamma = gamma
        self.window = window
        self.score = score
        self.score_params = score_params
        self.confidence_level = confidence_level
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

    def conformalize(self, X: ArrayLike, y: ArrayLike) -> "OnlineConformalClassifier":
        """Begin with labelled cases that `fit` never saw; the stream starts after them.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)

        Returns
        -------
        OnlineConformalClassifier
            Itself.
        """
        self._prepare(X)
        values = self._values(X)
        scores = self._score_labels(values, self._labels(y, len(values)))
        self.method_, self.gamma_, self.window_ = self.method, float(self.gamma), self.window
        self.level_ = float(self.confidence_level)
        self._recent = scores if self.window is None else scores[-self.window :]  # in order of arrival
        self.calibration_ = np.sort(self._recent)
        self.n_seen_ = self.n_missed_ = 0
        self._errors = 0.0  # misses beyond those aimed at, summed
        self._tracked = 1 - self.level_
        self.alpha_ = 1 - self.level_
        return self

    def partial_conformalize(self, X: ArrayLike, y: ArrayLike) -> "OnlineConformalClassifier":
        """Tell the labels of the next cases, in order. A batch is told one case after the other.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)

        Returns
        -------
        OnlineConformalClassifier
            Itself.
        """
        self._check_conformalized()
        values = self._values(X)
        labels = self._labels(y, len(values))
        told = self._score_labels(values, labels)
        asked = self._score_all(values)[np.arange(len(values)), labels]
        for low, score in zip(told, asked):  # each changes the threshold of the next
            missed = not score >= self.threshold()
            self.n_seen_ += 1
            self.n_missed_ += missed
            self._insert(low)
            self._step(missed)
        return self

    def predict_set(self, X: ArrayLike) -> np.ndarray:
        """Sets of the next cases, bool (n, n_classes), all of them by what is known now."""
        self._check_conformalized()
        values = self._values(X)
        limits = np.array([[self.threshold()]])
        return self._sets(values, limits)

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """Conformal p-values by the cases kept, (n, n_classes)."""
        self._check_conformalized()
        below = np.searchsorted(self.calibration_, self._score_all(self._values(X)), side="right")
        return (1 + below) / (1 + len(self.calibration_))

    def threshold(self) -> float:
        """Least score in the next set: infinity for the empty set, minus infinity for the full one."""
        self._check_conformalized()
        n = len(self.calibration_)
        if self.method_ == "expanding":
            rank = conformal_rank(n, self.level_)
        elif self.alpha_ >= 1:
            return np.inf
        elif self.alpha_ <= 0:
            return -np.inf
        else:  # the level moves by floats, so that its last places mean nothing
            rank = max(1, int(np.ceil((n + 1) * (1 - self.alpha_) - 1e-9)))
        return -np.inf if rank > n else float(self.calibration_[n - rank])

    @property
    def n_calibration_(self) -> int:
        self._check_conformalized()
        return len(self.calibration_)

    def certificate(self) -> Certificate:
        """What the next set, or the run of them, promises."""
        self._check_conformalized()
        n, level = len(self.calibration_), self.level_
        told = f"so far {self.n_missed_} of {self.n_seen_} cases were missed"
        if self.method_ == "expanding":
            return Certificate(
                f"the next set holds the true class with probability at least {level:g} ({told})",
                (f"the {n} cases kept and the next one are exchangeable",),
                ("a change of population or camera in the stream", "several cases of one patient"),
                level,
                n,
                (Condition.from_rank("all", n, conformal_rank(n, level)),),
            )
        bound = self.long_run_bound()
        return Certificate(
            f"the share of misses is {1 - level:.3g} in the long run, within {bound:.3f} after these cases ({told})",
            ("every case is told, in order",),
            ("cases whose label is never told", "reading it as a statement about a group, a day or a class"),
            level,
            n,
        )

    def long_run_bound(self) -> float:
        """How far the share of misses may be from its aim after the cases seen, whatever they were."""
        self._check_conformalized()
        if self.n_seen_ == 0 or self.method_ == "expanding":
            return 1.0
        alpha = 1 - self.level_
        if self.method_ == "aci":
            return min(1.0, (max(alpha, 1 - alpha) + self.gamma_) / (self.gamma_ * self.n_seen_))
        return min(1.0, (max(alpha, 1 - alpha) / self.gamma_ + 1) / self.n_seen_)

    def _insert(self, score: float) -> None:
        self._recent = np.append(self._recent, score)
        self.calibration_ = np.insert(self.calibration_, np.searchsorted(self.calibration_, score), score)
        if self.window_ is not None and len(self._recent) > self.window_:
            old, self._recent = self._recent[0], self._recent[1:]
            self.calibration_ = np.delete(self.calibration_, np.searchsorted(self.calibration_, old))

    def _step(self, missed: bool) -> None:
        alpha = 1 - self.level_
        self._errors += missed - alpha
        if self.method_ == "aci":
            self.alpha_ += self.gamma_ * (alpha - missed)
        elif self.method_ == "pid":
            # Proportional and integral terms; the latter is infinite, which forces a full or an empty set, once the
            # misses are off by 1 / gamma. So they never are by much more.
            self._tracked += self.gamma_ * (alpha - missed)
            push = 1 / self.gamma_ * max(alpha, 1 - alpha)
            integral = -np.sign(self._errors) * np.inf if abs(self._errors) >= push else -self._errors * self.gamma_ / 2
            self.alpha_ = self._tracked + integral
