"""Prediction sets under another prevalence of the classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.utils._param_validation import StrOptions

from ..errors import ParameterError
from ._base import ScoringClassifier
from ._state import SavedCalibration, check_ascending, check_that
from ._weighted import WeightedScores, effective_size
from .certificate import Certificate
from .patients import OF_EACH, one_of_each, repeats

__all__ = ["LabelShiftConformalClassifier"]

_MANY = 64  # classes beyond which the covariances of their probabilities would fill the memory
_SINGULAR = 1e-3  # smallest singular value of the confusion matrix below which its inverse is noise


class LabelShiftConformalClassifier(SavedCalibration, ScoringClassifier):
    """Prediction sets for a clinic where the classes are as before, but not as frequent as in calibration.

    `conformalize` calibrates on labelled cases of the source; `adapt` is told the prevalences of the target, or
    estimates them from cases of it without labels.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    score, score_params, randomized, prefit, random_state
        As for `ConformalClassifier`.
    confidence_level : float, default=0.9
    method : {"bbse", "em"}, default="bbse"
        How `adapt` estimates prevalences: black-box shift estimation from mean probabilities, which needs no calibrated
        classifier and gives an interval; or maximum likelihood by expectation maximisation, which needs one.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    source_prevalence_ : ndarray of shape (n_classes,)
        Of the calibration cases, or as given.
    prevalence_ : ndarray of shape (n_classes,)
        Of the target.
    prevalence_interval_ : ndarray of shape (n_classes, 2)
        95% interval of an estimated prevalence, by the delta method; equal ends where it was given, NaN for "em" and
        for more than 64 classes.
    weights_ : ndarray of shape (n_classes,)
        Ratio of the two prevalences.
    coverage_loss_ : float
        By how much the coverage may fall short of `confidence_level`, the sum of two losses. Of the target's
        prevalences: half the sum of their largest changes within the intervals; 0 where they were given, NaN where
        there is no interval. Of the source's, where they are the shares of the calibration cases: ``1 -
        confidence_level`` times the largest ratio of a class's prevalence to its number of calibration cases; 0 where
        they were given, or the target has them too.
    effective_n_ : float
        Number of calibration cases of equal weight that would be as precise.
    by_unit_ : bool
        Whether one calibration case was drawn of each unit.

    Notes
    -----
    **Guarantee.** Assumption: within each class, calibration and target cases are of the same distribution, and the
    prevalences are right. Statement: P(y in set) >= confidence_level for a target case, over the draw of both. With the
    shares of the calibration cases as the source's prevalences it is at least confidence_level minus (1 -
    confidence_level) max_k prevalence_k / n_k, given the n_k calibration cases of each class k. With the target's
    estimated it is approximate: less half the sum of their absolute errors, which `coverage_loss_` bounds by the
    intervals' ends. What breaks it: cases of a class that look otherwise in the target (camera, stage of disease); a
    class of the target that calibration does not have. Class-conditional sets of `ConformalClassifier` need none of
    this, but are larger. Several calibration cases of one patient or lesion break it too (give `units`; it is then of a
    case drawn from a new one). No PAC threshold is offered: weighted scores have no Beta law.

    References
    ----------
    Podkopaev and Ramdas, *Distribution-free uncertainty quantification for classification under label shift*,
    arXiv:2103.03323. Lipton, Wang and Smola, *Detecting and correcting for label shift with black box predictors*,
    arXiv:1802.03916. Saerens, Latinne and Decaestecker, Neural Computation 14, 2002, doi:10.1162/089976602753284446.

    Examples
    --------
    >>> from scipy.special import softmax
    >>> rng = np.random.default_rng(0)
    >>> y = rng.choice(2, 900, p=[0.9, 0.1])
    >>> P = softmax(1.5 * np.eye(2)[y] + rng.standard_normal((900, 2)), axis=1)
    >>> clf = LabelShiftConformalClassifier().conformalize(P[:500], y[:500]).adapt(prevalence=[0.6, 0.4])
    >>> clf.weights_.round(1)
    array([0.7, 3.4])
    >>> clf.predict_set(P[500:]).shape
    (400, 2)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **ScoringClassifier._parameter_constraints,
        "method": [StrOptions({"bbse", "em"})],
    }
    _kept = {  # noqa: RUF012
        "calibration_": [("f", "n"), ("i", "n")],
        "source_prevalence_": ("f", "n_classes"),
        "prevalence_": ("f", "n_classes"),
        "prevalence_interval_": ("f", "n_classes", 2),
        "coverage_loss_": float,
        "_means": ("f", "n_classes", "n_classes"),
        "_covariances": ("f", "n_classes", "n_classes", "n_classes"),
        "_counts": ("i", "n_classes"),
        "_source_given": bool,
        "by_unit_": bool,
        "_losses": [float, float],
    }
    _may_be_none = ("_covariances",)

    def __init__(
        self,
        estimator: Any = None,
        *,
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        confidence_level: float = 0.9,
        method: str = "bbse",
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.score = score
        self.score_params = score_params
        self.confidence_level = confidence_level
        self.method = method
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

    def conformalize(
        self,
        X: ArrayLike,
        y: ArrayLike,
        source_prevalence: ArrayLike | Mapping | None = None,
        units: ArrayLike | None = None,
    ) -> "LabelShiftConformalClassifier":
        """Calibrate on labelled cases of the source; the target has its prevalences until `adapt` is called.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        source_prevalence : array-like of shape (n_classes,) or mapping of class to share, optional
            Where it is known; default: the shares of the calibration cases.
        units : array-like of shape (n,), int or str, optional
            Patient or lesion of each case, where several cases may be of one; one case of each is drawn.

        Returns
        -------
        LabelShiftConformalClassifier
            Itself.

        Raises
        ------
        ValueError
            If a label, a probability or a prevalence is not what it should be.
        """
        self._prepare(X)
        values = self._values(X)
        labels = self._labels(y, len(values))
        kept = one_of_each(units, len(values), self.seed_)
        values, labels, self.by_unit_ = values[kept], labels[kept], units is not None
        counts = np.bincount(labels, minlength=len(self.classes_))
        if source_prevalence is None:
            self.source_prevalence_ = counts / len(labels)
        else:
            self.source_prevalence_ = self._prevalence(source_prevalence, "source_prevalence")
        P = np.exp(values) if self._log else values.astype(float)
        # What estimating needs of the cases: the mean and the covariance of each class's probabilities
        shape = len(self.classes_), len(self.classes_)
        many = len(self.classes_) > _MANY
        self._means, self._covariances = np.zeros(shape), None if many else np.zeros((*shape, shape[1]))
        for k in np.flatnonzero(counts):
            self._means[k] = P[labels == k].mean(axis=0)
            if counts[k] > 1 and self._covariances is not None:
                self._covariances[k] = np.cov(P[labels == k].T, bias=True) / counts[k]
        self._counts, self._source_given = counts, source_prevalence is not None
        scores = self._score_labels(values, labels)
        order = np.argsort(scores, kind="stable")
        self.calibration_ = scores[order], labels[order]
        self._use(self.source_prevalence_, np.stack([self.source_prevalence_] * 2, axis=1))
        self._set_loss(source=0.0)  # all weigh the same
        return self

    def adapt(
        self, X: ArrayLike | None = None, *, prevalence: ArrayLike | Mapping | None = None
    ) -> "LabelShiftConformalClassifier":
        """Turn to a target: by its prevalences, or by cases of it without labels.

        Parameters
        ----------
        X : array-like of shape (n, n_features), optional
            Cases of the target; not those whose sets are then counted.
        prevalence : array-like of shape (n_classes,) or mapping of class to share, optional

        Returns
        -------
        LabelShiftConformalClassifier
            Itself.

        Raises
        ------
        ParameterError
            If both or neither are given, the shares are none, a class of the target has no calibration case, or the
            classifier tells the classes too little apart for an estimate.
        """
        self._check_conformalized()
        if (X is None) == (prevalence is None):
            raise ParameterError("adapt: give either X, cases of the target, or prevalence.")
        if X is None:
            shares = self._prevalence(prevalence, "prevalence")
            self._use(shares, np.stack([shares, shares], axis=1))
        elif self.method == "em":
            shares = _maximum_likelihood(self._probabilities(X), self.source_prevalence_)
            self._use(shares, np.full((len(shares), 2), np.nan))
        else:
            self._use(*self._black_box(self._probabilities(X)))
        known = self.prevalence_ > 0
        worst = (self.prevalence_[known] / np.maximum(self._counts[known], 1)).max()
        self._set_loss(source=0.0 if self._source_given else float(worst))
        return self

    def predict_set(self, X: ArrayLike, confidence_level: float | None = None) -> np.ndarray:
        """Prediction sets for cases of the target, bool (n, n_classes); nested in the level.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
            Default: that of the constructor.
        """
        self._check_conformalized()
        values = self._values(X)
        limits = self.thresholds(confidence_level)
        return self._sets(values, limits[None, :])

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """Weighted conformal p-values, (n, n_classes)."""
        self._check_conformalized()
        values = self._values(X)
        return self._weighted.p_values(self._score_all(values), self.weights_[None, :])

    def thresholds(self, confidence_level: float | None = None) -> np.ndarray:
        """Least score in the set of each class, (n_classes,): the weight of the class that is tried counts too."""
        level = self._level(confidence_level)
        return self._weighted.thresholds(self.weights_, level)

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the sets promise, and what an estimated prevalence may cost."""
        level = self._level(confidence_level)
        statement = f"the set holds the true class of a target case with probability at least {level:g}"
        of_target, of_source = self._losses
        if of_target != 0:
            loss = "an unknown amount" if np.isnan(of_target) else f"{np.ceil(1000 * of_target) / 1000:.3f}"
            statement += f", less {loss} for the estimate of the prevalences (95% intervals)"
        if of_source != 0:
            loss = f"{np.ceil(1000 * (1 - level) * of_source) / 1000:.3f}"
            statement += f", less {loss} for those of the source, which are the shares of the calibration cases"
        return Certificate(
            statement,
            (
                f"the cases of each class are of one distribution in the {len(self.calibration_[0])} calibration cases"
                f"{OF_EACH * self.by_unit_} and in the target (weighted, they count as {self.effective_n_:.0f})",
                "the prevalences are right",
            ),
            (
                "cases of a class that look otherwise in the target",
                "a class that calibration does not have",
                *repeats(self.by_unit_),
            ),
            level,
            len(self.calibration_[0]),
        )

    def _check_kept(self) -> None:
        scores, labels = self.calibration_
        check_ascending("calibration_", scores)
        check_that(((labels >= 0) & (labels < len(self.classes_))).all(), "calibration_", "columns of classes")
        counts = np.bincount(labels, minlength=len(self.classes_))
        check_that((counts == self._counts).all(), "_counts", "the calibration cases of each class")
        self.source_prevalence_ = self._prevalence(self.source_prevalence_, "source_prevalence_", exact=True)
        self._use(self._prevalence(self.prevalence_, "prevalence_", exact=True), self.prevalence_interval_)

    def _use(self, shares: np.ndarray, interval: np.ndarray) -> None:
        absent = (self.source_prevalence_ == 0) & (shares > 0)
        if absent.any():
            name = self.classes_[np.argmax(absent)].item()
            raise ParameterError(
                f"prevalence: class {name!r} has a share of {shares[np.argmax(absent)]:.3g} in the target, but no "
                "calibration case. Fix: calibrate on some."
            )
        source = self.source_prevalence_
        self.prevalence_, self.prevalence_interval_ = shares, interval
        self.weights_ = np.divide(shares, source, out=np.zeros_like(shares), where=source > 0)
        scores, labels = self.calibration_
        self._weighted = WeightedScores.from_cases(scores, self.weights_[labels])
        self.effective_n_ = effective_size(self._weighted.weights)

    def _set_loss(self, source: float) -> None:
        changes = np.abs(self.prevalence_interval_ - self.prevalence_[:, None]).max(axis=1)
        self._losses = float(changes.sum() / 2), source
        self.coverage_loss_ = self._losses[0] + (1 - float(self.confidence_level)) * source

    def _prevalence(self, shares: Any, name: str, *, exact: bool = False) -> np.ndarray:
        """Shares that sum to 1; exactly those given, if they were made to before."""
        if isinstance(shares, Mapping):
            known = self.classes_.tolist()
            if set(shares) != set(known):
                raise ParameterError(
                    f"{name}: got classes {sorted(map(str, shares))}; expected a share for each of {known}."
                )
            shares = [shares[c] for c in known]
        found = np.asarray(shares, dtype=float)
        if found.shape != (len(self.classes_),) or not (found >= 0).all() or abs(found.sum() - 1) > 1e-6:
            raise ParameterError(
                f"{name}: got {np.asarray(shares).tolist()}; expected {len(self.classes_)} shares that sum to 1."
            )
        return found if exact else found / found.sum()

    def _black_box(self, P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prevalences that explain the mean probabilities of the target, and their 95% interval."""
        present = self._counts > 0
        A = self._means[present].T  # mean probability of each class (rows), by true class (columns)
        least = np.linalg.svd(A, compute_uv=False).min()
        if least < _SINGULAR:
            raise ParameterError(
                f"adapt: the classifier tells some classes not apart (smallest singular value {least:.1g} of its mean "
                "probabilities by class); no prevalence can be estimated. Fix: give prevalence=, or method='em'."
            )
        inverse = np.linalg.pinv(A)
        raw = inverse @ P.mean(axis=0)
        if self._covariances is None:
            found = np.zeros(len(present))
            found[present] = np.clip(raw, 0, None)
            return found / found.sum(), np.full((len(present), 2), np.nan)
        noise = np.cov(P.T, bias=True) / len(P) + np.tensordot(raw**2, self._covariances[present], axes=1)
        error = np.sqrt(np.maximum(np.diag(inverse @ noise @ inverse.T), 0))
        shares = np.zeros(len(present))
        shares[present] = np.clip(raw, 0, None)
        shares /= shares.sum()
        interval = np.stack([shares, shares], axis=1)
        z = stats.norm.ppf(0.975)
        interval[present, 0] = np.minimum(np.clip(raw - z * error, 0, 1), shares[present])
        interval[present, 1] = np.maximum(np.clip(raw + z * error, 0, 1), shares[present])
        return shares, interval


def _maximum_likelihood(P: np.ndarray, source: np.ndarray, tolerance: float = 1e-8) -> np.ndarray:
    """Prevalences under which the target's probabilities, reweighted, average to themselves."""
    shares = source.copy()
    for _ in range(10_000):
        ratio = np.divide(shares, source, out=np.zeros_like(shares), where=source > 0)
        weighted = P * ratio
        total = weighted.sum(axis=1, keepdims=True)
        found = np.divide(weighted, total, out=np.broadcast_to(shares, P.shape).copy(), where=total > 0).mean(axis=0)
        if np.abs(found - shares).max() < tolerance:
            return found
        shares = found
    raise ParameterError("adapt: expectation maximisation did not converge in 10,000 steps; use method='bbse'.")
