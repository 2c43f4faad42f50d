"""Prediction sets over a stream of cases whose labels arrive later."""

import dataclasses
import hashlib
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.utils._param_validation import Interval, StrOptions

from ..metrics import conformal_rank
from ._base import ScoringClassifier
from ._scale import from_scale, to_scale
from ._state import SavedCalibration, check_ascending, check_that
from .certificate import Certificate, Condition

__all__ = ["OnlineConformalClassifier"]

_AWAITED = 100_000  # cases asked for whose label may be awaited; of more, the first are forgotten
_SPREAD = 0.05, 0.95  # quantiles of the scores, whose distance is the unit of a threshold that is tracked


class OnlineConformalClassifier(SavedCalibration, ScoringClassifier):
    """Sets for the next case, from all cases labelled so far.

    `predict_set` is asked for the next cases, and `partial_conformalize` is told their labels when they are known: at
    once, or many cases later. A miss is one of the set that was seen, and moves the next ones.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    method : {"expanding", "aci", "pid"}, default="expanding"
        The calibration set grows by each labelled case; or, besides, the level is raised after a miss and lowered after
        a cover (adaptive conformal inference); or the threshold itself is, and pushed by the misses in excess (quantile
        tracking with an error integrator, from conformal PID control, without a forecast of scores).
    gamma : float, default=0.01
        Step of "aci", a probability; of "pid", in units of the spread of the kept scores (their 5% to 95% range on a
        logarithmic scale).
    window : int or None, default=None
        Cases kept for calibration, the last ones; None keeps all.
    score, score_params, randomized, prefit, random_state
        As for `ConformalClassifier`.
    confidence_level : float, default=0.9

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    alpha_ : float
        Rate of misses that the next sets aim at; for "aci" it moves, and may leave [0, 1].
    n_calibration_ : int
    n_seen_, n_missed_ : int
        Cases told to `partial_conformalize`, and those whose set missed the label.
    n_unasked_ : int
        Cases told for which `predict_set` was not asked: theirs is the set of the time of telling.
    delay_ : int
        Most cases that were told between the asking for a case and the telling of it.

    Notes
    -----
    **Guarantee.** "expanding": assumption: all cases so far and the next are exchangeable. Statement: the next set
    holds its class with probability at least confidence_level; the events are independent where scores do not tie and
    every label is told before the next case is asked for. "aci" and "pid": no assumption at all; statement: after T
    cases |misses / T - alpha| is at most `long_run_bound`. With a = max(alpha, 1 - alpha) and D the `delay_` it is
    a (1 / gamma + 1 + D) / T for "aci", and (sqrt(T + 1) + a (1 + D)) / T for "pid". It is a statement about the long
    run of this stream, not about any group, day or case, and it is bought with sets that are at times empty or full.
    What breaks it: cases whose label is never told; for "expanding", telling some labels sooner than others.

    The threshold of "pid" is that of quantile tracking, q + gamma * spread * (miss - alpha) after each case on the
    scale of nonconformity, plus an integrator of the excess of misses E after t cases, spread / 2 * tan(pi / 2 * E /
    sqrt(t + 1)), which is infinite where E leaves sqrt(t + 1): the paper's, with C_sat = 2 / pi and the square root for
    its t / log t. The scale is logarithmic and fixed, whatever the score.

    A case that is asked for is known again by a digest of its row of X; nothing else of it is kept, and the digest
    until it is told.

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005. Gibbs and Candes, *Adaptive conformal
    inference under distribution shift*, arXiv:2106.00170. Angelopoulos, Candes and Tibshirani, *Conformal PID control
    for time series prediction*, arXiv:2307.16895, section 2.

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
    _kept = {  # noqa: RUF012
        "_recent": ("f", "n"),
        "level_": float,
        "alpha_": float,
        "n_seen_": int,
        "n_missed_": int,
        "n_unasked_": int,
        "delay_": int,
        "_excess": float,
        "_tracked": float,
        "_asked": [("u", "n_awaited", 16), ("f", "n_awaited"), ("i", "n_awaited")],
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
        self.n_seen_ = self.n_missed_ = self.n_unasked_ = self.delay_ = 0
        self._awaited: dict[bytes, list[tuple[float, int]]] = {}  # threshold and number told, at the asking
        self._excess = 0.0  # misses beyond those aimed at, summed
        self.alpha_ = 1 - self.level_
        self._tracked = 0.0  # threshold of "pid" on the scale, without the integrator
        if len(scores):
            rank = conformal_rank(len(scores), self.level_)
            self._tracked = float(self._scaled(np.sort(scores)[max(len(scores) - rank, 0)]))
        return self

    def partial_conformalize(self, X: ArrayLike, y: ArrayLike) -> "OnlineConformalClassifier":
        """Tell the labels of the next cases, in order. A batch is told one case after the other.

        A case counts as missed if the set that `predict_set` gave for it, when it was asked, does not hold the label.
        One that was never asked for has the set of the time of telling.

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
        asked = self._score_all(values)[np.arange(len(values)), labels].astype(float)
        for low, score, digest in zip(told, asked, _digests(X)):  # each changes the threshold of the next
            limit, since = self._recall(digest)
            missed = not score >= limit
            self.delay_ = max(self.delay_, self.n_seen_ - since)
            self.n_seen_ += 1
            self.n_missed_ += int(missed)
            self._insert(low)
            self._step(missed)
        return self

    def predict_set(self, X: ArrayLike) -> np.ndarray:
        """Sets of the next cases, bool (n, n_classes), all of them by what is known now; they are remembered."""
        self._check_conformalized()
        values = self._values(X)
        limit = self.threshold()
        for digest in _digests(X):
            self._awaited.setdefault(digest, []).append((limit, self.n_seen_))
        while len(self._awaited) > _AWAITED:
            del self._awaited[next(iter(self._awaited))]
        return self._sets(values, np.array([[limit]]))

    def conformity_scores(self, X: ArrayLike, y: ArrayLike) -> np.ndarray:
        """Conformity scores of labelled cases, (n,), for the `update_scores` of a `DriftMonitor`."""
        self._check_conformalized()
        values = self._values(X)
        return self._score_all(values)[np.arange(len(values)), self._labels(y, len(values))].astype(float)

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """Conformal p-values by the cases kept, (n, n_classes)."""
        self._check_conformalized()
        below = np.searchsorted(self.calibration_, self._score_all(self._values(X)), side="right")
        return (1 + below) / (1 + len(self.calibration_))

    def threshold(self) -> float:
        """Least score in the next set: infinity for the empty set, minus infinity for the full one."""
        self._check_conformalized()
        n = len(self.calibration_)
        if self.method_ == "pid":
            return from_scale(self._tracked - self._integral(), self.score_name_, self._log)
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
        if self.n_unasked_:
            told += f"; for {self.n_unasked_} no set was asked before the label was told, and theirs is that of then"
        if self.method_ == "expanding":
            return Certificate(
                f"the next set holds the true class with probability at least {level:g} ({told})",
                (f"the {n} cases kept and the next one are exchangeable",),
                ("a change of population or camera in the stream", "several cases of one patient"),
                level,
                n,
                (self._condition(n),),
            )
        late = f", its label no more than {self.delay_} others after the asking" * (self.delay_ > 0)
        return Certificate(
            f"the share of misses is {1 - level:.3g} in the long run, within {self.long_run_bound():.3f} after these "
            f"cases ({told})",
            (f"every case is told{late}",),
            (
                "cases whose label is never told",
                "labels that come later and later",
                "reading it as a statement about a group, a day or a class",
            ),
            level,
            n,
        )

    def long_run_bound(self) -> float:
        """How far the share of misses may be from its aim after the cases seen, whatever they were."""
        self._check_conformalized()
        if self.n_seen_ == 0 or self.method_ == "expanding":
            return 1.0
        worst = max(self.level_, 1 - self.level_)
        held = worst / self.gamma_ if self.method_ == "aci" else _saturation(self.n_seen_)
        return min(1.0, (held + worst * (1 + self.delay_)) / self.n_seen_)

    @property
    def _asked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The cases awaited as arrays: digests, thresholds, and numbers told at the asking."""
        rows = [(digest, *asking) for digest, askings in self._awaited.items() for asking in askings]
        digests = np.frombuffer(b"".join(row[0] for row in rows), dtype=np.uint8).reshape(-1, 16)
        return digests, np.array([row[1] for row in rows], float), np.array([row[2] for row in rows], np.int64)

    @_asked.setter
    def _asked(self, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        self._awaited = {}
        for digest, limit, since in zip(*rows):
            self._awaited.setdefault(digest.tobytes(), []).append((float(limit), int(since)))

    def _saved_parameters(self) -> dict[str, Any]:
        return super()._saved_parameters() | {"confidence_level": self.level_}

    def _check_kept(self) -> None:
        self.method_, self.gamma_, self.window_ = self.method, float(self.gamma), self.window
        self.calibration_ = np.sort(self._recent)
        check_ascending("_recent", self.calibration_)
        check_that(self.window_ is None or len(self._recent) <= self.window_, "_recent", "no more than the window")
        check_that(self.level_ == self.confidence_level, "level_", "that of the parameters")
        counts = self.n_missed_, self.n_unasked_, self.delay_
        check_that(all(0 <= count <= self.n_seen_ for count in counts), "n_missed_", "counts up to those seen")

    def _condition(self, n: int) -> Condition:
        found = Condition.from_rank("all", n, conformal_rank(n, self.level_))
        tied = not found.is_vacuous and np.sum(self.calibration_ == self.calibration_[n - found.rank]) > 1
        return dataclasses.replace(found, high=1.0) if tied else found  # with ties coverage may be larger

    def _recall(self, digest: bytes) -> tuple[float, int]:
        """Threshold of a case, and how many had been told, when it was asked for; now, if it never was."""
        if digest not in self._awaited:
            self.n_unasked_ += 1
            return self.threshold(), self.n_seen_
        found = self._awaited[digest].pop(0)
        if not self._awaited[digest]:
            del self._awaited[digest]
        return found

    def _insert(self, score: float) -> None:
        self._recent = np.append(self._recent, score)
        self.calibration_ = np.insert(self.calibration_, np.searchsorted(self.calibration_, score), score)
        if self.window_ is not None and len(self._recent) > self.window_:
            old, self._recent = self._recent[0], self._recent[1:]
            self.calibration_ = np.delete(self.calibration_, np.searchsorted(self.calibration_, old))

    def _step(self, missed: bool) -> None:
        alpha = 1 - self.level_
        self._excess += missed - alpha
        if self.method_ == "aci":
            self.alpha_ += self.gamma_ * (alpha - missed)
        elif self.method_ == "pid":
            self._tracked += self.gamma_ * self._spread() * (alpha - missed)

    def _integral(self) -> float:
        share = self._excess / _saturation(self.n_seen_)
        return self._spread() / 2 * np.tan(np.pi / 2 * share) if abs(share) < 1 else np.sign(share) * np.inf

    def _spread(self) -> float:
        """Of the scores kept, on the scale; 1 where all are the same."""
        places = (np.array(_SPREAD) * (len(self.calibration_) - 1)).round().astype(int)
        return float(np.ptp(self._scaled(self.calibration_[places]))) or 1.0 if len(self.calibration_) else 1.0

    def _scaled(self, scores: np.ndarray) -> np.ndarray:
        return to_scale(scores, self.score_name_, self._log)


def _saturation(n: int) -> float:
    """Misses in excess at which the integrator is infinite, after n cases."""
    return float(np.sqrt(n + 1))


def _digests(X: Any) -> list[bytes]:
    """A digest of each row, the same alone and in a batch."""
    rows = X.toarray() if sparse.issparse(X) else X.to_numpy() if hasattr(X, "to_numpy") else X
    return [_digest(np.asarray(row)) for row in rows]


def _digest(row: np.ndarray) -> bytes:
    numbers = row.dtype.kind in "biuf"
    content = np.ascontiguousarray(row, dtype=float).tobytes() if numbers else repr(row.tolist()).encode()
    return hashlib.blake2b(content, digest_size=16).digest()
