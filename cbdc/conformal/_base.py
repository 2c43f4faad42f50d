"""What the conformal estimators of this room share: a classifier, and the conformity scores of its probabilities."""

import functools
import inspect
import warnings
from collections.abc import Iterator
from numbers import Real
from typing import Any, Self, TypeGuard

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import LeakageWarning, ParameterError
from ..metrics import check_codes, check_probabilities, exact_level
from ..metrics.probabilities import CELLS
from ._codes import label_codes
from ._seen import count_seen, row_hashes
from .scores import SCORES, check_score_params, score_all, score_dtype, score_labels, sets_from
from .thresholds import round_up

__all__ = ["ProbabilityClassifier", "ScoringClassifier"]

_CELLS_RANKED = 2**15  # scored at once: few enough for these, and what is made on the way, to stay in the cache
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class ProbabilityClassifier(ClassifierMixin, BaseEstimator):
    """Base of all: it trains a classifier, or adopts one, and hands out its probabilities, checked.

    A subclass calls `_prepare` first when it calibrates, and names what a calibration leaves in `_calibrated`.

    Parameters
    ----------
    estimator : classifier or None, default=None
        None: X is the (n, n_classes) matrix of probabilities itself, and y holds column numbers.
    prefit : bool, default=False
        The estimator is already fitted, and used as it is; so is a `FrozenEstimator`.
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "estimator": [HasMethods(["fit", "predict_proba"]), None],
        "prefit": ["boolean"],
    }
    _calibrated: tuple[str, ...] = ("calibration_",)

    estimator: Any
    prefit: bool
    _log: bool

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.estimator is not None:
            inner = get_tags(self.estimator)
            tags.input_tags, tags.classifier_tags = inner.input_tags, inner.classifier_tags
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Train the classifier; with ``prefit=True`` or without an estimator there is nothing to train.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)

        Returns
        -------
        Self
            Not calibrated: what an earlier calibration left is dropped.
        """
        self._check_parameters()
        self._forget()
        self._seen: dict[str, np.ndarray] = {}
        if self.estimator is None:
            self._adopt_columns(X)
        elif self._is_prefit:
            self._adopt(self.estimator)
        else:
            self._adopt(clone(self.estimator).fit(X, y))
            self._seen["trained"] = row_hashes(X)
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities of the classifier, (n, n_classes), untouched by calibration."""
        check_is_fitted(self, "classes_")
        return self._values(X) if self.estimator_ is None else self.estimator_.predict_proba(X)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Class that the classifier predicts, (n,); it need not be in the set."""
        check_is_fitted(self, "classes_")
        if self.estimator_ is None:
            return self.classes_[self._values(X).argmax(axis=1)]
        return self.estimator_.predict(X)

    # --- for subclasses

    @property
    def _is_prefit(self) -> bool:
        return self.prefit or isinstance(self.estimator, FrozenEstimator)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_seen"}  # hashes of cases stay out of copies

    def _check_parameters(self) -> None:
        # Defaults need no check; checking all takes longer than calibrating on a thousand cases
        given = {k: v for k, v in self.get_params(deep=False).items() if v is not self._defaults()[k]}
        validate_parameter_constraints(self._parameter_constraints, given, caller_name=type(self).__name__)

    @classmethod
    @functools.cache
    def _defaults(cls) -> dict[str, Any]:
        return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}

    @classmethod
    @functools.cache  # reading the signature anew takes longer than calibrating on a thousand cases
    def _get_param_names(cls) -> list[str]:
        return super()._get_param_names()

    def _forget(self) -> None:
        """Drop what a calibration left."""
        for name in self._calibrated:
            self.__dict__.pop(name, None)

    def _prepare(self, X: ArrayLike, *, calibrates: bool = True) -> None:
        """Before calibrating: checked parameters, a fitted estimator, nothing left of an earlier calibration."""
        self._check_parameters()
        self._forget()  # should this calibration fail, no old thresholds are left beside new settings
        if self.estimator is None:
            self._adopt_columns(X)
        elif self._is_prefit:
            self._adopt(self.estimator)
        if not hasattr(self, "classes_"):
            raise NotFittedError(
                f"This {type(self).__name__} is not fitted: call fit(X, y) first, or give prefit=True if its estimator "
                "is fitted already."
            )
        if calibrates:
            self._warn_of_seen(X)
        self._settle()

    def _settle(self) -> None:
        """Freeze what a calibration rests on."""

    def _warn_of_seen(self, X: ArrayLike) -> None:
        """Warn if calibration cases are among those of `fit` or `tune`."""
        seen = getattr(self, "_seen", {})
        hashes = row_hashes(X) if seen else np.empty(0)
        for what, of in seen.items():
            if found := count_seen(hashes, of):
                warnings.warn(
                    f"{found} of {len(hashes)} calibration cases are rows that this {type(self).__name__} was {what} "
                    "on: the thresholds promise nothing for new cases. Fix: conformalize on cases that neither fit nor "
                    "tune saw.",
                    LeakageWarning,
                    stacklevel=4,
                )

    def _restore(self, estimator: Any, n_classes: int, *, log: bool, seed: int) -> None:
        """As `_prepare` left it when a calibration of so many classes was saved."""
        self._check_parameters()
        if estimator is None:
            self._adopt_columns(np.empty((1, n_classes)))
        else:
            self._adopt(estimator)
        if len(self.classes_) != n_classes:
            raise ParameterError(f"estimator: it has {len(self.classes_)} classes, but {n_classes} were calibrated.")
        if log and not self._log:
            raise ParameterError("estimator: the calibration took its predict_log_proba, which this one has not.")
        self._log = log

    def _check_conformalized(self) -> None:
        if not hasattr(self, self._calibrated[0]):
            check_is_fitted(self, "classes_")
            raise NotFittedError(
                f"This {type(self).__name__} is not calibrated: call conformalize(X, y) with cases that fit never saw."
            )

    def _adopt(self, estimator: Any) -> None:
        """Take over a fitted estimator."""
        check_is_fitted(estimator)
        self.estimator_, self.classes_ = estimator, np.asarray(estimator.classes_)
        self._log = hasattr(estimator, "predict_log_proba")
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))

    def _adopt_columns(self, X: ArrayLike) -> None:
        """Without an estimator the columns of X are the classes."""
        if type(X) is np.ndarray and X.ndim == 2:
            self.n_features_in_ = X.shape[1]  # all that validate_data finds, in a tenth of the time
            self.__dict__.pop("feature_names_in_", None)
        else:
            validate_data(self, X, skip_check_array=True)
        self.estimator_, self.classes_, self._log = None, np.arange(self.n_features_in_), False

    def _values(self, X: ArrayLike) -> np.ndarray:
        """Probabilities, or logarithms of them, checked: (n, n_classes)."""
        if self._is_plain(X):
            return check_probabilities(X, "X")  # validate_data would find nothing, and take most of the time
        if self.estimator_ is None:
            X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=False, reset=False)
            return check_probabilities(X, "X")
        if not self._log:
            return check_probabilities(self.estimator_.predict_proba(X), "predict_proba")
        with np.errstate(divide="ignore"):  # the logarithm of 0 is meant to be minus infinity
            values = np.asarray(self.estimator_.predict_log_proba(X), dtype=float)
        check_probabilities(np.exp(values), "predict_proba")
        return values

    def _probabilities(self, X: ArrayLike) -> np.ndarray:
        """Probabilities, (n, n_classes), float64."""
        values = self._values(X)
        return np.exp(values) if self._log else values.astype(float)

    def _labels(self, y: ArrayLike, n: int) -> np.ndarray:
        """Column of each label, (n,)."""
        return check_codes(y, n, len(self.classes_)) if self.estimator_ is None else label_codes(y, self.classes_, n)

    def _is_plain(self, X: Any) -> TypeGuard[np.ndarray]:
        """Whether X is the matrix of probabilities itself, so far as its type and shape can tell."""
        plain = self.estimator_ is None and type(X) is np.ndarray and X.dtype in _FLOATS and X.ndim == 2 and len(X) > 0
        return plain and X.shape[1] == self.n_features_in_ and not hasattr(self, "feature_names_in_")


class ScoringClassifier(ProbabilityClassifier):
    """Base of those that score labels by their probabilities, and make sets at a level.

    From `_prepare` on the settings that scores depend on are frozen, in `score_name_`, `score_params_`, `randomized_`
    and `seed_`, since scores of one setting say nothing about another's.

    Parameters
    ----------
    score : str, default="lac"
        A name in `cbdc.conformal.SCORES`.
    score_params : dict or None, default=None
        Numbers of the score; None stands for its defaults.
    confidence_level : float, default=0.9
    randomized : bool, default=True
    random_state : int, RandomState instance or None, default=None
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **ProbabilityClassifier._parameter_constraints,
        "score": [StrOptions(set(SCORES))],
        "score_params": [dict, None],
        "confidence_level": [Interval(Real, 0, 1, closed="neither")],
        "randomized": ["boolean"],
        "random_state": ["random_state"],
    }

    score_params: dict[str, float] | None
    confidence_level: float
    randomized: bool
    random_state: int | np.random.RandomState | None

    # The parameter `score` names a conformity score, and a classifier's method `score` is its accuracy: the instance
    # keeps the name, the attribute gives the method, and both work as scikit-learn expects.
    @property
    def score(self) -> Any:
        """Method: accuracy of `predict` on (X, y). The conformity score's name is ``get_params()["score"]``."""
        return super().score

    @score.setter
    def score(self, name: str) -> None:
        self.__dict__["score"] = name

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return super().get_params(deep) | {"score": self.__dict__["score"]}

    def _check_parameters(self) -> None:
        super()._check_parameters()
        exact_level(self.confidence_level)
        check_score_params(self.__dict__["score"], self.score_params)

    def _settle(self) -> None:
        self._freeze()
        self.seed_ = seed_of(self.random_state)

    def _freeze(self) -> None:
        self.score_name_, self.randomized_ = self.__dict__["score"], bool(self.randomized)
        self.score_params_ = check_score_params(self.score_name_, self.score_params)

    def _restore(self, estimator: Any, n_classes: int, *, log: bool, seed: int) -> None:
        super()._restore(estimator, n_classes, log=log, seed=seed)
        self._freeze()
        self.seed_ = seed

    def _level(self, confidence_level: float | None) -> float:
        """The level asked for, or the constructor's, of a calibrated estimator."""
        self._check_conformalized()
        level = self.confidence_level if confidence_level is None else confidence_level
        exact_level(level)
        return float(level)

    @property
    def _scoring(self) -> dict[str, Any]:
        return {
            "name": self.score_name_,
            "params": self.score_params_,
            "log": self._log,
            "seed": self.seed_ if self.randomized_ else None,
        }

    def _score_labels(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Conformity score of one label a row, (n,), float64, lowered by a rounding as calibration scores are."""
        blocks = self._blocks(*values.shape)
        found = [
            score_labels(values=values[rows], labels=labels[rows], calibration=True, **self._scoring) for rows in blocks
        ]
        return found[0] if len(found) == 1 else np.concatenate(found) if found else np.empty(0)

    def _score_all(self, values: np.ndarray) -> np.ndarray:
        """Conformity scores of all labels, (n, n_classes)."""
        blocks = self._blocks(*values.shape)
        found = [score_all(values=values[rows], **self._scoring) for rows in blocks]
        return np.concatenate(found) if found else np.empty(values.shape)

    def _sets(self, values: np.ndarray, limits: np.ndarray, *, check: bool = False) -> np.ndarray:
        """Labels whose score is at least its limit, bool (n, n_classes); limits of shape (1 or n, 1 or n_classes).

        With `check` the values are checked on the way: they are read from memory once.
        """
        limits = round_up(limits, score_dtype(self.score_name_, values.dtype))
        if values.size <= _CELLS_RANKED:
            if check:
                check_probabilities(values, "X")
            return sets_from(values=values, limits=limits, **self._scoring)
        sets = np.empty(values.shape, dtype=bool)
        for rows in self._blocks(*values.shape):
            if check:
                check_probabilities(values[rows], "X", first_row=rows.start)
            own = limits[rows] if len(limits) > 1 else limits
            sets_from(values=values[rows], limits=own, out=sets[rows], **self._scoring)
        return sets

    def _blocks(self, n: int, n_classes: int) -> Iterator[slice]:
        step = max(1, (_CELLS_RANKED if SCORES[self.score_name_].ranked else CELLS) // n_classes)
        return (slice(start, start + step) for start in range(0, n, step))


def seed_of(random_state: int | np.random.RandomState | None) -> int:
    """A seed that stays with the calibration."""
    return 0 if random_state is None else int(check_random_state(random_state).randint(2**31 - 1))
