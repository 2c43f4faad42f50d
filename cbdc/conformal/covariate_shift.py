"""Prediction sets under another distribution of the images, with the same distribution of labels given the image."""

import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array
from sklearn.utils._param_validation import HasMethods, Interval

from ..errors import CalibrationSizeWarning, ParameterError
from ..metrics import check_probabilities, exact_level
from ._base import ScoringClassifier
from ._state import SavedCalibration, check_that
from ._weighted import WeightedScores, check_weights, effective_size
from .certificate import Certificate
from .patients import OF_EACH, one_of_each, repeats
from .thresholds import least_n

__all__ = ["CovariateShiftConformalClassifier"]

_OUTSIDE = 0.5  # share of the target beyond all calibration cases that is worth a warning


class CovariateShiftConformalClassifier(SavedCalibration, ScoringClassifier):
    """Weighted conformal prediction: calibration cases count by how likely they would be in the target.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    domain_classifier : classifier or None, default=None
        Tells source from target by X; its odds are the weights, recalibrated on cases that it has not seen. None:
        logistic regression on standardised features.
    cv : int, default=5
        Folds in which the calibration cases are weighed by a domain classifier that has not seen them.
    score, score_params, randomized, prefit, random_state
        As for `ConformalClassifier`.
    confidence_level : float, default=0.9

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    weights_ : ndarray of shape (n,)
        Of the calibration cases.
    effective_n_ : float
        Number of calibration cases of equal weight that would be as precise.
    domain_auroc_ : float
        How well source and target are told apart, by cases not seen: near 1 there is no overlap, and nothing here can
        help. NaN for weights that were given.
    outside_ : float
        Share of the target cases that weigh more than every calibration case. NaN for weights that were given.
    by_unit_ : bool
        Whether one calibration case was drawn of each unit.

    Notes
    -----
    **Guarantee.** Assumption: P(y given x) is the same in source and target, the weights are proportional to the ratio
    of their densities, and calibration cases are independent. Statement: P(y in set) >= confidence_level for a target
    case, over the draw of both. With estimated weights it is approximate, short by at most half the mean absolute error
    of the normalised weights. What breaks it: another prevalence or definition of the classes; no overlap (`outside_`,
    `domain_auroc_`), where weights cannot be estimated; several calibration cases of one patient or lesion (give
    `units`). A case that outweighs the calibration cases gets the full set. No PAC threshold is offered: weighted
    scores have no Beta law.

    Forests and neighbours say 1 where no training case disagreed, which is no odds. So the domain classifier gives the
    order only, and an isotonic regression on the cases of all folds the probability, kept 1 / (m + 2) away from 0 and
    1, where m cases were told apart.

    References
    ----------
    Tibshirani, Barber, Candes and Ramdas, *Conformal prediction under covariate shift*, arXiv:1904.06019.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((900, 2))
    >>> y = (X[:, 0] + rng.standard_normal(900) > 0).astype(int)
    >>> clf = CovariateShiftConformalClassifier(LogisticRegression()).fit(X[:300], y[:300])
    >>> clf = clf.conformalize(X[300:], y[300:], target=rng.standard_normal((400, 2)) + [1, 0])
    >>> bool(200 < clf.effective_n_ < 500), bool(0.6 < clf.domain_auroc_ < 0.9)
    (True, True)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **ScoringClassifier._parameter_constraints,
        "domain_classifier": [HasMethods(["fit", "predict_proba"]), None],
        "cv": [Interval(Integral, 2, None, closed="left")],
    }
    _kept = {  # noqa: RUF012
        "calibration_": WeightedScores,
        "weights_": ("f", "n"),
        "effective_n_": float,
        "domain_auroc_": float,
        "outside_": float,
        "by_unit_": bool,
        "_recalibration": [("f", "n_steps"), ("f", "n_steps")],
        "_logistic": [("f", "d"), ("f", "d"), ("f", 1, "d"), ("f", 1)],
    }
    _may_be_none = ("_recalibration", "_logistic")
    _not_saved = (*SavedCalibration._not_saved, "domain_classifier")

    def __init__(
        self,
        estimator: Any = None,
        *,
        domain_classifier: Any = None,
        cv: int = 5,
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        confidence_level: float = 0.9,
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.domain_classifier = domain_classifier
        self.cv = cv
        self.score = score
        self.score_params = score_params
        self.confidence_level = confidence_level
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

    def conformalize(
        self,
        X: ArrayLike,
        y: ArrayLike,
        target: ArrayLike | None = None,
        *,
        weights: Callable[[np.ndarray], np.ndarray] | None = None,
        units: ArrayLike | None = None,
    ) -> "CovariateShiftConformalClassifier":
        """Calibrate on labelled cases of the source, weighed for the target. No case is kept.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        target : array-like of shape (m, n_features), optional
            Cases of the target without labels; not those whose sets are then counted.
        weights : callable, optional
            In place of `target`: the known ratio of densities, up to a factor, of cases (n, n_features) to (n,).
        units : array-like of shape (n,), int or str, optional
            Patient or lesion of each case, where several cases may be of one; one case of each is drawn.

        Returns
        -------
        CovariateShiftConformalClassifier
            Itself.

        Raises
        ------
        ValueError
            If both or neither of `target` and `weights` are given, or an input is not what it should be.

        Warns
        -----
        CalibrationSizeWarning
            If the calibration cases that are left, weighted, are too few for a finite threshold, one of them outweighs
            the misses allowed, or half of the target is unlike all of them.
        """
        self._prepare(X)
        if (target is None) == (weights is None):
            raise ParameterError(
                "conformalize: give either target, cases of the target, or weights, a function of cases."
            )
        values = self._values(X)
        labels = self._labels(y, len(values))
        kept, self.by_unit_ = one_of_each(units, len(values), self.seed_), units is not None
        values, labels, cases = values[kept], labels[kept], _as_array(X)[kept]
        self.domain_auroc_ = self.outside_ = float("nan")
        self._recalibration: tuple[np.ndarray, np.ndarray] | None = None
        if weights is not None:
            self._weigh, found = weights, weights(cases)
        else:
            found = self._fit_weights(cases, _as_array(target, "target"))
        self.weights_ = check_weights(found, len(values))
        if not self.weights_.any():
            raise ParameterError("weights: all are 0; nothing is left to calibrate on.")
        self.calibration_ = WeightedScores.from_cases(self._score_labels(values, labels), self.weights_)
        self.effective_n_ = effective_size(self.weights_)
        least = least_n(self.confidence_level)
        heaviest = float(self.calibration_.weights.max() / self.calibration_.total)
        alpha = float(1 - exact_level(self.confidence_level))
        if not self.effective_n_ >= least or heaviest > alpha or self.outside_ > _OUTSIDE:
            beyond = f"; {100 * self.outside_:.0f}% of the target weigh more than any of them" * (target is not None)
            warnings.warn(
                f"The calibration cases say little of the target: weighted, the {len(values)} count as "
                f"{self.effective_n_:.1f} (a finite threshold at {self.confidence_level:g} takes {least}), and one of "
                f"them has {100 * heaviest:.0f}% of the weight{beyond}. Fix: label some of the target.",
                CalibrationSizeWarning,
                stacklevel=2,
            )
        return self

    def predict_set(self, X: ArrayLike, confidence_level: float | None = None) -> np.ndarray:
        """Prediction sets for cases of the target, bool (n, n_classes); nested in the level.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
            Default: that of the constructor.
        """
        level = self._level(confidence_level)
        values = self._values(X)
        limits = self.calibration_.thresholds(self._weights_of(X, len(values)), level)
        return self._sets(values, limits[:, None])

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """Weighted conformal p-values, (n, n_classes)."""
        self._check_conformalized()
        values = self._values(X)
        return self.calibration_.p_values(self._score_all(values), self._weights_of(X, len(values))[:, None])

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the sets promise, and how much of the calibration is left for the target."""
        level = self._level(confidence_level)
        n = len(self.weights_)
        assumptions = [
            "the distribution of the class given the image is the same in calibration and target",
            f"the weights of the {n} calibration cases{OF_EACH * self.by_unit_} are the ratio of the densities (they "
            f"count as {self.effective_n_:.0f})",
        ]
        if not np.isnan(self.domain_auroc_):
            assumptions[1] += (
                f"; they are estimated, source and target being told apart with AUROC {self.domain_auroc_:.2f}"
            )
        return Certificate(
            f"the set holds the true class of a target case with probability at least {level:g}",
            tuple(assumptions),
            (
                "another prevalence or definition of the classes",
                "target cases unlike all calibration cases",
                *repeats(self.by_unit_),
            ),
            level,
            n,
        )

    @classmethod
    def from_state(
        cls, arrays: dict[str, np.ndarray], document: dict[str, Any], estimator: Any = None, *, weigh: Any = None
    ) -> "CovariateShiftConformalClassifier":
        """The calibrated object again, over the same fitted estimator: it predicts the same bits.

        Parameters
        ----------
        arrays, document
            What `get_state` gave.
        estimator : fitted classifier, optional
        weigh : callable or fitted classifier, optional
            The function that was given as `weights`, or the fitted `domain_classifier_` if one was given: these are
            not saved. The default one is.

        Raises
        ------
        ValueError
            As for `ConformalClassifier`, or if `weigh` is missing.
        """
        found = super().from_state(arrays, document, estimator)
        if found._recalibration is None:
            check_that(callable(weigh), "weigh", "the function of cases that was given as weights")
            found._weigh = weigh
            return found
        if found._logistic is None:
            check_that(hasattr(weigh, "predict_proba"), "weigh", "the fitted domain_classifier_")
            found.domain_classifier_ = weigh
        found._weigh = found._odds_of
        return found

    @property
    def _logistic(self) -> tuple[np.ndarray, ...] | None:
        """Numbers of the default domain classifier; None for another."""
        if self._recalibration is None or not self._is_default:
            return None
        scaler, regression = self.domain_classifier_
        return scaler.mean_, scaler.scale_, regression.coef_, regression.intercept_

    @_logistic.setter
    def _logistic(self, numbers: tuple[np.ndarray, ...] | None) -> None:
        self._is_default = numbers is not None
        if numbers is None:
            return
        scaler, regression = StandardScaler(), LogisticRegression(max_iter=2000)
        scaler.mean_, scaler.scale_, regression.coef_, regression.intercept_ = numbers
        scaler.n_features_in_ = regression.n_features_in_ = len(numbers[0])
        regression.classes_ = np.array([0, 1])
        self.domain_classifier_ = make_pipeline(scaler, regression)

    def _check_kept(self) -> None:
        check_weights(self.weights_, len(self.calibration_.scores))
        if self._recalibration is not None:
            raw, p = self._recalibration
            rises = (np.diff(raw) > 0).all() and (np.diff(p) >= 0).all()
            check_that(rises and ((p > 0) & (p < 1)).all(), "_recalibration", "probabilities that rise")

    def _fit_weights(self, X: np.ndarray, target: np.ndarray) -> np.ndarray:
        if target.ndim != 2 or target.shape[1] != X.shape[1] or len(target) < self.cv or len(X) < self.cv:
            raise ParameterError(
                f"target: got shape {target.shape}; expected (m, {X.shape[1]}), with at least cv = {self.cv} cases."
            )
        domain = self.domain_classifier
        self._is_default = domain is None
        if domain is None:
            domain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        both, is_target = np.concatenate([X, target]), np.repeat([0, 1], [len(X), len(target)])
        folds = StratifiedKFold(self.cv, shuffle=True, random_state=self.seed_)
        unseen = cross_val_predict(clone(domain), both, is_target, cv=folds, method="predict_proba")
        unseen = check_probabilities(unseen, "domain_classifier")[:, 1]
        self.domain_classifier_ = clone(domain).fit(both, is_target)
        least = 1 / (len(both) + 2)
        steps = IsotonicRegression(y_min=least, y_max=1 - least).fit(unseen, is_target)
        self._recalibration = np.asarray(steps.X_thresholds_, float), np.asarray(steps.y_thresholds_, float)
        self._weigh = self._odds_of
        self.domain_auroc_ = float(roc_auc_score(is_target, unseen))
        odds = self._odds(unseen)
        self.outside_ = float(np.mean(odds[len(X) :] > odds[: len(X)].max()))
        return odds[: len(X)]

    def _odds(self, raw: np.ndarray) -> np.ndarray:
        assert self._recalibration is not None
        p = np.interp(raw, *self._recalibration)
        return p / (1 - p)

    def _odds_of(self, X: np.ndarray) -> np.ndarray:
        return self._odds(check_probabilities(self.domain_classifier_.predict_proba(X), "domain_classifier")[:, 1])

    def _weights_of(self, X: ArrayLike, n: int) -> np.ndarray:
        return check_weights(self._weigh(_as_array(X)), n)


def _as_array(X: Any, name: str = "X") -> np.ndarray:
    return check_array(X, ensure_min_samples=0, input_name=name)
