"""Base of the calibrators: a classifier, and a map of its log-probabilities fitted to cases it was not trained on."""

from abc import abstractmethod
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import _safe_indexing, check_random_state, get_tags, indexable
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from ..errors import ParameterError
from ._base import entropy_of

__all__ = ["CalibratedClassifier"]


class CalibratedClassifier(ClassifierMixin, BaseEstimator):
    """A classifier, and a map of its log-probabilities that was fitted to cases it was not trained on.

    A subclass implements `_fit_map` and `_mapped`.

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
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "estimator": [HasMethods(["fit", "predict_proba"])],
        "cv": [Interval(Integral, 2, None, closed="left"), None],
        "prefit": ["boolean"],
        "random_state": ["random_state"],
    }
    _fitted_map: tuple[str, ...] = ()

    estimator: Any
    cv: int | None
    prefit: bool
    random_state: int | np.random.RandomState | None
    classes_: np.ndarray

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags, tags.classifier_tags = inner.input_tags, inner.classifier_tags
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, groups: ArrayLike | None = None) -> Self:
        """Train the classifier on all cases, and fit the map to their cross-validated predictions.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        groups : array-like of shape (n,), optional
            Patient or lesion of each case: those of one stay in one fold.

        Returns
        -------
        Self
            With ``prefit=True`` or ``cv=None`` not calibrated: what an earlier calibration left is dropped.
        """
        self._validate_params()
        self._forget()
        if self.prefit:
            self._adopt(self.estimator)
            return self
        fitted = clone(self.estimator).fit(X, y)
        self._adopt(fitted)
        if self.cv is not None:
            codes = self._codes(np.asarray(y), _num_samples(X))
            log_proba, kept = self._held_out(X, codes, groups)
            self._fit_map(log_proba[kept], codes[kept], np.ones(int(kept.sum())))
        return self

    def calibrate(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the map anew, to cases that neither `fit` nor a conformal calibration sees.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        sample_weight : array-like of shape (n,), optional
            A case of weight 2 counts as two, one of weight 0 as none.

        Returns
        -------
        Self

        Raises
        ------
        ValueError
            If the classifier gives the label of a case the probability 0, or an input is not what it should be.
        """
        self._validate_params()
        self._forget()
        if self.prefit:
            self._adopt(self.estimator)
        check_is_fitted(self, "classes_")
        log_proba = self._log_proba(self.estimator_, X)
        codes = self._codes(y, len(log_proba))
        weights = _check_sample_weight(sample_weight, log_proba, dtype=np.float64, ensure_non_negative=True)
        kept = weights > 0
        if not kept.any():
            raise ParameterError("y: there is no case with a weight above 0 to calibrate on.")
        self._fit_map(log_proba[kept], codes[kept], weights[kept])
        return self

    def predict_log_proba(self, X: ArrayLike) -> np.ndarray:
        """Logarithms of the calibrated probabilities, (n, n_classes)."""
        self._check_calibrated()
        return self._mapped(self._log_proba(self.estimator_, X))

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Calibrated probabilities, (n, n_classes), columns in the order of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Class of the largest calibrated probability, (n,)."""
        best = np.argmax(self.predict_log_proba(X), axis=1)
        return self.classes_[best]

    def predictive_entropy(self, X: ArrayLike) -> np.ndarray:
        """Entropy of the calibrated probabilities, (n,), nats."""
        return entropy_of(self.predict_log_proba(X))

    # --- for subclasses

    @abstractmethod
    def _fit_map(self, log_proba: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> None:
        """Fit to log-probabilities (n, n_classes) of cases of the given columns and positive weights."""

    @abstractmethod
    def _mapped(self, log_proba: np.ndarray) -> np.ndarray:
        """Calibrated log-probabilities, along the last axis."""

    def _forget(self) -> None:
        for name in self._fitted_map:
            self.__dict__.pop(name, None)

    def _adopt(self, estimator: Any) -> None:
        check_is_fitted(estimator)
        self.estimator_, self.classes_ = estimator, np.asarray(estimator.classes_)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))

    def _check_calibrated(self) -> None:
        check_is_fitted(self, "classes_")
        if not hasattr(self, self._fitted_map[0]):
            raise NotFittedError(
                f"This {type(self).__name__} is not calibrated: call calibrate(X, y) with cases that fit never saw."
            )

    def _log_proba(self, estimator: Any, X: ArrayLike) -> np.ndarray:
        if hasattr(estimator, "predict_log_proba"):
            with np.errstate(divide="ignore"):  # the logarithm of 0 is meant to be minus infinity
                return np.asarray(estimator.predict_log_proba(X), dtype=float)
        with np.errstate(divide="ignore"):
            return np.log(np.asarray(estimator.predict_proba(X), dtype=float))

    def _codes(self, y: ArrayLike, n: int) -> np.ndarray:
        labels = column_or_1d(y, warn=True)
        if len(labels) != n:
            raise ParameterError(f"y: got {len(labels)} labels for {n} cases; give one for each.")
        column = {name: k for k, name in enumerate(self.classes_.tolist())}
        codes = np.array([column.get(name, -1) for name in labels.tolist()], dtype=np.intp)
        if len(unknown := np.flatnonzero(codes < 0)):
            raise ParameterError(
                f"y: case {unknown[0]} has the label {labels[unknown[0]]!r}, which the classifier does not know; its "
                f"classes are {self.classes_.tolist()}."
            )
        return codes

    def _held_out(self, X: ArrayLike, codes: np.ndarray, groups: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of every case by a classifier that has not seen it, and which cases have them.

        A case whose class is in its own fold alone is left out, since that classifier does not know it.
        """
        (X,), units = indexable(X), np.arange(len(codes))
        if groups is not None:
            check_consistent_length(codes, groups)
            units = np.unique(np.asarray(groups), return_inverse=True)[1]
        folds = _folds(units, codes, int(self.cv or 0), check_random_state(self.random_state or 0))
        found = np.full((len(codes), len(self.classes_)), -np.inf)
        kept = np.zeros(len(codes), dtype=bool)
        for fold in np.unique(folds):
            out = np.flatnonzero(folds == fold)
            rest = np.flatnonzero(folds != fold)
            known = np.unique(codes[rest])
            if len(known) < 2:
                continue
            part = clone(self.estimator).fit(_safe_indexing(X, rest), self.classes_[codes[rest]])
            found[np.ix_(out, known)] = self._log_proba(part, _safe_indexing(X, out))
            kept[out] = np.isin(codes[out], known)
        if not kept.any():
            raise ParameterError(
                f"y: cross-validation in {self.cv} folds leaves no case whose class is known without it. Fix: more "
                "cases, or cv=None and calibrate."
            )
        return found, kept


def _folds(units: np.ndarray, codes: np.ndarray, n_folds: int, rng: np.random.RandomState) -> np.ndarray:
    """Fold of each case, (n,): units whole, classes spread evenly by the class of each unit's first case."""
    _, firsts = np.unique(units, return_index=True)
    order = np.lexsort([rng.permutation(len(firsts)), codes[firsts]])
    fold_of_unit = np.empty(len(firsts), dtype=np.intp)
    fold_of_unit[order] = np.arange(len(firsts)) % n_folds
    return fold_of_unit[units]
