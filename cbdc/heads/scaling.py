"""Temperature and vector scaling: affine maps of a classifier's log-probabilities."""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, logsumexp
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if

from ..errors import ParameterError
from ._base import BayesianHead, entropy_of
from ._calibrated import CalibratedClassifier

__all__ = ["TemperatureScaling", "VectorScaling", "fit_temperature"]

_SLOPES = (0.01, 100.0)  # of the log-probabilities: temperatures from 100 down to 0.01


def _has_posterior(calibrator: Any) -> bool:
    return hasattr(calibrator.estimator, "predict_posterior")


def _is_head(calibrator: Any) -> bool:
    return isinstance(calibrator.estimator, BayesianHead)


class _ScaledClassifier(CalibratedClassifier):
    """Base of those whose map is an affine function of the log-probabilities, and so applies to each draw."""

    @available_if(_has_posterior)
    def predict_posterior(
        self, X: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """The estimator's draws, each through the map that was fitted to their average.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        n_draws : int, default=64
        random_state : int, RandomState instance or None, default=None

        Returns
        -------
        ndarray of shape (n_draws, n, n_classes)
            Their average is near `predict_proba` and not equal to it, since the map is not linear. The calibration is a
            statement about the latter.
        """
        self._check_calibrated()
        draws = self.estimator_.predict_posterior(X, n_draws, random_state=random_state)
        with np.errstate(divide="ignore"):
            return np.exp(self._mapped(np.log(draws)))

    @available_if(_is_head)
    def mutual_information(self, X: ArrayLike) -> np.ndarray:
        """Mutual information of the label and the model under the mapped draws, (n,), nats.

        The map says that predictions were too sure, or not enough; it does not say whether the posterior was too narrow
        or the likelihood too sharp. Mapping each draw shares the correction between the two in the proportion it finds.
        """
        self._check_calibrated()
        found = []
        for block in self.estimator_._log_draws(X):
            draws = self._mapped(block)
            mean = logsumexp(draws, axis=1) - np.log(draws.shape[1])
            found.append(entropy_of(mean) - entropy_of(draws).mean(axis=1))
        return np.maximum(np.concatenate(found), 0.0)


class TemperatureScaling(_ScaledClassifier):
    """Divides all log-probabilities by one temperature: calibrated sureness, the same predicted classes.

    Parameters
    ----------
    estimator : classifier with `predict_proba`
        `predict_log_proba` is preferred where it is there: logarithms stay apart where probabilities underflow.
    cv : int or None, default=5
        Folds of the cross-validation by which `fit` obtains predictions of cases that were not trained on. None: `fit`
        trains only, and `calibrate` has to follow.
    prefit : bool, default=False
        The estimator is already fitted, and used as it is; `calibrate` has to follow.
    random_state : int, RandomState instance or None, default=None
        Of the folds; None stands for 0.

    Attributes
    ----------
    temperature_ : float
        Above 1 where the classifier was too sure. Between 0.01 and 100; the ends stand for beyond.
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
    n_features_in_ : int

    Notes
    -----
    The temperature minimises the negative log-likelihood, a convex function of its inverse, to rounding. Probabilities
    carry no guarantee: wrap in `ConformalClassifier`, and calibrate that on cases which neither `fit` nor `calibrate`
    sees. Its own `fit` and `conformalize` keep them apart.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger, *On calibration of modern neural networks*, arXiv:1706.04599.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from cbdc.heads import TemperatureScaling
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 600)
    >>> X = (y + rng.standard_normal(600))[:, None] + np.zeros(5)  # five copies, which naive Bayes counts five times
    >>> print(f"{TemperatureScaling(GaussianNB()).fit(X, y).temperature_:.1f}")
    5.0
    """

    _fitted_map = ("temperature_",)

    def __init__(
        self,
        estimator: Any,
        *,
        cv: int | None = 5,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.cv = cv
        self.prefit = prefit
        self.random_state = random_state

    def _fit_map(self, log_proba: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> None:
        self.temperature_ = fit_temperature(log_proba, codes, weights)

    def _mapped(self, log_proba: np.ndarray) -> np.ndarray:
        return log_softmax(log_proba / self.temperature_, axis=-1)


class VectorScaling(_ScaledClassifier):
    """A slope and an offset of the log-probability of each class, held together so that rare classes stay sane.

    Parameters
    ----------
    penalty : float, default=1.0
        Half of it multiplies the squared offsets and the squared differences of the slopes from their mean, beside the
        negative log-likelihood: a prior of variance 1 / penalty for each. As it grows the map becomes
        `TemperatureScaling`.
    estimator, cv, prefit, random_state
        As for `TemperatureScaling`.

    Attributes
    ----------
    slopes_, offsets_ : ndarray of shape (n_classes,)
        Slopes lie between 0.01 and 100.
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
    n_features_in_ : int

    Notes
    -----
    The objective is convex. A class without calibration cases gets a lower offset, which the penalty keeps finite. The
    probabilities carry no guarantee: wrap in `ConformalClassifier`, and calibrate that on yet other cases.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger, *On calibration of modern neural networks*, arXiv:1706.04599. Kull et al., *Beyond
    temperature scaling*, arXiv:1910.12656, who penalise too.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from cbdc.heads import VectorScaling
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1, 2], [300, 200, 20])
    >>> X = rng.standard_normal((520, 3)) + np.eye(3)[y]
    >>> balanced = LogisticRegression(class_weight="balanced")
    >>> VectorScaling(balanced).fit(X, y).offsets_.round(1)  # undoes the balance
    array([ 1. ,  0.7, -1.6])
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **CalibratedClassifier._parameter_constraints,
        "penalty": [Interval(Real, 0, None, closed="neither")],
    }
    _fitted_map = ("slopes_", "offsets_")

    def __init__(
        self,
        estimator: Any,
        *,
        penalty: float = 1.0,
        cv: int | None = 5,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.penalty = penalty
        self.cv = cv
        self.prefit = prefit
        self.random_state = random_state

    def _fit_map(self, log_proba: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> None:
        _own(log_proba, codes)
        n_classes, penalty = log_proba.shape[1], float(self.penalty)
        one_hot = np.arange(n_classes) == codes[:, None]
        finite = np.where(np.isneginf(log_proba), 0.0, log_proba)  # where it is not, the residual below is 0

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            slopes, offsets = parameters[:n_classes], parameters[n_classes:]
            mapped = log_softmax(_affine(log_proba, slopes, offsets), axis=1)
            residual = weights[:, None] * (np.exp(mapped) - one_hot)
            spread = slopes - slopes.mean()
            value = -weights @ mapped[one_hot] + penalty / 2 * (spread @ spread + offsets @ offsets)
            gradient = [np.sum(residual * finite, axis=0) + penalty * spread, residual.sum(axis=0) + penalty * offsets]
            return float(value), np.concatenate(gradient)

        start = np.repeat([1.0, 0.0], n_classes)
        bounds = [_SLOPES] * n_classes + [(None, None)] * n_classes
        options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-9 * max(1.0, weights.sum())}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        self.slopes_, self.offsets_ = found[:n_classes], found[n_classes:]

    def _mapped(self, log_proba: np.ndarray) -> np.ndarray:
        return log_softmax(_affine(log_proba, self.slopes_, self.offsets_), axis=-1)


def fit_temperature(log_proba: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> float:
    """Of the greatest likelihood, between 0.01 and 100.

    Parameters
    ----------
    log_proba : ndarray of shape (n, n_classes)
    codes : ndarray of shape (n,)
        Column of each case's label.
    weights : ndarray of shape (n,)

    Raises
    ------
    ParameterError
        If a label has probability 0.
    """
    own = _own(log_proba, codes)

    def slope(log_inverse: float) -> float:
        """Of the negative log-likelihood in the inverse temperature."""
        proba = np.exp(log_softmax(np.exp(log_inverse) * log_proba, axis=1))
        return float(weights @ (_expected(proba, log_proba) - own))

    low, high = np.log(_SLOPES)
    if slope(low) >= 0:
        log_inverse = low
    elif slope(high) <= 0:
        log_inverse = high
    else:
        log_inverse = brentq(slope, low, high, xtol=1e-13)
    return float(np.exp(-log_inverse))


def _own(log_proba: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Log-probability of each case's label, finite."""
    own = np.take_along_axis(log_proba, codes[:, None], axis=1)[:, 0]
    if len(bad := np.flatnonzero(~np.isfinite(own))):
        raise ParameterError(
            f"estimator: it gives calibration case {bad[0]}'s label the probability {np.exp(own[bad[0]]):g}, which no "
            "scaling can mend. Fix: a classifier without probabilities of 0, or VennAbersCalibrator."
        )
    return own


def _affine(log_proba: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return log_proba * slopes + offsets


def _expected(proba: np.ndarray, log_proba: np.ndarray) -> np.ndarray:
    """Mean of the log-probabilities under other probabilities, where a label of probability 0 counts nothing."""
    return np.sum(proba * np.where(proba > 0, log_proba, 0.0), axis=1)
