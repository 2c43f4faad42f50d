"""`ConformalClassifier`: prediction sets with a coverage guarantee over any classifier."""

import warnings
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import CalibrationSizeWarning, ParameterError
from ..metrics import check_codes, check_probabilities, exact_level
from ._codes import check_groups, group_codes, label_codes
from ._state import check_document, check_groups_of, check_scores
from ._words import describe_guarantee, describe_small_conditions
from .scores import SCORES, score_all, score_labels, sets_from
from .thresholds import CalibrationScores, round_up

__all__ = ["ConformalClassifier"]

# Cells scored at once: few enough for what a ranked score makes on the way to stay in the cache
_CELLS_RANKED, _CELLS = 2**15, 2**19


class ConformalClassifier(ClassifierMixin, BaseEstimator):
    """Split-conformal prediction sets over any classifier that gives probabilities.

    `fit` trains the classifier, `conformalize` calibrates it on cases that `fit` never saw and keeps their sorted
    scores only, `predict_set` then gives sets at any level.

    Parameters
    ----------
    estimator : classifier or None, default=None
        Classifier with `predict_proba` (`predict_log_proba` is preferred where it is there: logarithms stay apart where
        probabilities underflow). None: bring your own softmax; X is the (n, n_classes) matrix of probabilities itself,
        y holds column numbers, and `fit` is not needed.
    score : {"lac", "aps"}, default="lac"
        Conformity score: `cbdc.conformal.lac` gives the smallest sets on average, `cbdc.conformal.aps` sets that grow
        with the difficulty of the case.
    condition_on : {None, "class", "group", "class_and_group"}, default=None
        For whom the guarantee holds: on average over all cases, within every class, within every group (Mondrian), or
        within every class of every group. The finer, the more calibration cases are needed.
    confidence_level : float, default=0.9
        Level of the sets; `predict_set` may be asked another.
    randomized : bool, default=True
        Whether "aps" draws a uniform number for each case, from its probabilities and the seed. It makes the sets
        smaller and removes ties, but only between rows of probabilities that differ: the number is a fixed function
        of the row, so that equal rows tie. Without effect on "lac".
    prefit : bool, default=False
        The estimator is already fitted, and used as it is.
    random_state : int, RandomState instance or None, default=None
        Seed of the randomised score; None stands for 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier or None
    score_name_, condition_on_, randomized_
        Values of the parameters that `conformalize` calibrated for. They hold until it is called again; of the
        parameters set since then only `confidence_level` counts.
    calibration_ : CalibrationScores
        Sorted scores by condition.
    groups_ : ndarray of shape (n_groups,) or None
        Groups of the calibration cases, in the order of the rows of the tables.
    n_calibration_ : int, ndarray of shape (n_classes,), or dict of either by group
        Calibration cases behind each threshold, as `cbdc.metrics.coverage_table` takes them.
    n_features_in_ : int
    feature_names_in_ : ndarray
        If X had names.

    Notes
    -----
    **Guarantee.** Assumption: calibration cases and the new case are exchangeable, and none was used to fit, to choose
    or to tune the classifier. Statement: P(y in set) >= confidence_level, and <= confidence_level + 1 / (n + 1) where
    scores do not tie, over the draw of both; with `condition_on`, given the class, the group, or both. Given the
    calibration cases the coverage is itself random, and `guarantee` prints its exact band. What breaks it: another
    population than the calibration cases (for None also another prevalence; for "class" not prevalence alone); several
    images of one lesion or patient; calibrating on training data; choosing the level after looking at the sets. It is a
    statement about many cases, not about this one. It does not rest on the uniformity of the number that "aps" draws,
    which is a fixed function of the case; equal cases get equal numbers, and ties only add to coverage.

    Empty sets are possible (no label conforms at this level) and are kept: filling them would hide what they say.

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005. Vovk, *Conditional validity of inductive
    conformal predictors*, arXiv:1209.2673. Angelopoulos and Bates, *A gentle introduction to conformal prediction*,
    arXiv:2107.07511.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.utils import shuffle
    >>> from cbdc import ConformalClassifier
    >>> X, y = shuffle(*load_digits(return_X_y=True), random_state=0)
    >>> clf = ConformalClassifier(LogisticRegression(C=1e-4, max_iter=500), confidence_level=0.95)
    >>> clf = clf.fit(X[:700], y[:700]).conformalize(X[700:1200], y[700:1200])
    >>> sets = clf.predict_set(X[1200:])
    >>> sets.shape, bool(sets[np.arange(597), y[1200:]].mean() > 0.9)
    ((597, 10), True)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "estimator": [HasMethods(["fit", "predict_proba"]), None],
        "score": [StrOptions(set(SCORES))],
        "condition_on": [StrOptions({"class", "group", "class_and_group"}), None],
        "confidence_level": [Interval(Real, 0, 1, closed="neither")],
        "randomized": ["boolean"],
        "prefit": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        score: str = "lac",
        condition_on: str | None = None,
        confidence_level: float = 0.9,
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.score = score
        self.condition_on = condition_on
        self.confidence_level = confidence_level
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.estimator is not None:
            inner = get_tags(self.estimator)
            tags.input_tags, tags.classifier_tags = inner.input_tags, inner.classifier_tags
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> "ConformalClassifier":
        """Train the classifier; with ``prefit=True`` or without an estimator there is nothing to train.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)

        Returns
        -------
        ConformalClassifier
            Itself, not calibrated: scores of an earlier `conformalize` are dropped.
        """
        self._check_parameters()
        self.__dict__.pop("calibration_", None)
        if self.estimator is None:
            self._adopt_columns(X)
        else:
            self._adopt(self.estimator if self.prefit else clone(self.estimator).fit(X, y))
        return self

    def conformalize(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> "ConformalClassifier":
        """Calibrate on cases that `fit` never saw. Only their scores are kept.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        groups : array-like of shape (n,), int or str, optional
            Group of each case; for the group-wise conditions.

        Returns
        -------
        ConformalClassifier
            Itself.

        Raises
        ------
        ValueError
            If a label or a probability is not what it should be (the message names the row), or groups are missing.

        Warns
        -----
        CalibrationSizeWarning
            If a class or group has too few cases for a finite threshold at `confidence_level`.
        """
        self._check_parameters()
        self.__dict__.pop("calibration_", None)  # should this fail, no old scores are left beside new settings
        if self.estimator is None:
            self._adopt_columns(X)
        elif self.prefit:
            self._adopt(self.estimator)
        check_is_fitted(self, "classes_")
        values = self._values(X)
        labels = (
            check_codes(y, *values.shape) if self.estimator_ is None else label_codes(y, self.classes_, len(values))
        )
        self._freeze()
        n_classes = len(self.classes_) if self._by_class else 1
        self.groups_ = np.unique(check_groups(groups, len(values))) if self._by_group else None
        conditions = self._group_codes(groups, len(values)) * n_classes + (labels if self._by_class else 0)
        self.seed_ = 0 if self.random_state is None else int(check_random_state(self.random_state).randint(2**31 - 1))
        scores = [
            score_labels(values=values[rows], labels=labels[rows], **self._scoring)
            for rows in self._blocks(*values.shape)
        ]
        shape = (1 if self.groups_ is None else len(self.groups_), n_classes)
        self.calibration_ = CalibrationScores.from_cases(np.concatenate(scores), conditions, shape, log=self._log)
        self._warn_of_small_conditions(self.confidence_level)
        return self

    def predict_set(
        self, X: ArrayLike, confidence_level: float | None = None, groups: ArrayLike | None = None
    ) -> np.ndarray:
        """Prediction sets.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
            Default: that of the constructor. Sets are nested in it.
        groups : array-like of shape (n,), optional
            Group of each case; for the group-wise conditions.

        Returns
        -------
        ndarray of shape (n, n_classes), bool
            Columns in the order of `classes_`. A set may be empty.

        Raises
        ------
        ValueError
            If a group was not among the calibration cases, or a row of probabilities is not what it should be.

        Warns
        -----
        CalibrationSizeWarning
            If a class or group has too few cases for a finite threshold at another level than the constructor's.
        """
        self._check_conformalized()
        level = self.confidence_level if confidence_level is None else confidence_level
        thresholds = self.calibration_.thresholds(level)
        if level != self.confidence_level:
            self._warn_of_small_conditions(level)
        values = self._values(X)
        codes = self._group_codes(groups, len(values))
        thresholds = round_up(thresholds, values.dtype)
        sets = np.empty(values.shape, dtype=bool)
        for rows in self._blocks(*values.shape):
            limits = thresholds[codes[rows]] if len(thresholds) > 1 else thresholds
            sets[rows] = sets_from(values=values[rows], limits=limits, **self._scoring)
        return sets

    def p_values(self, X: ArrayLike, groups: ArrayLike | None = None) -> np.ndarray:
        """Conformal p-value of every label: the share of calibration cases, the new one too, that conform no better.

        A label is in the set at a level exactly if its p-value exceeds alpha = 1 - level, taken exactly: at 0.9 that is
        0.1, where the float ``1 - 0.9`` is less, and would let a p-value of 1/10 pass. For any level it is
        ``float(1 - cbdc.metrics.exact_level(level))``. If the label is the true one, then P(p-value <= a) <= a for
        every a, over the draw of the calibration cases and the new one.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        groups : array-like of shape (n,), optional

        Returns
        -------
        ndarray of shape (n, n_classes), float64
            From 1 / (n_calibration + 1) to 1.
        """
        self._check_conformalized()
        values = self._values(X)
        codes = self._group_codes(groups, len(values))
        found = np.empty(values.shape)
        for rows in self._blocks(*values.shape):
            found[rows] = self.calibration_.p_values(score_all(values=values[rows], **self._scoring), codes[rows])
        return found

    def thresholds(self, confidence_level: float | None = None) -> np.ndarray:
        """Least score still in the set, (n_groups or 1, n_classes or 1); minus infinity where cases are too few."""
        self._check_conformalized()
        return self.calibration_.thresholds(self.confidence_level if confidence_level is None else confidence_level)

    def guarantee(self, confidence_level: float | None = None) -> str:
        """What the sets promise, in words: assumption, statement, cases, and the band of the realised coverage."""
        self._check_conformalized()
        level = self.confidence_level if confidence_level is None else confidence_level
        return describe_guarantee(self.calibration_.counts, self._class_names, self._group_names, level)

    @property
    def n_calibration_(self) -> Any:
        self._check_conformalized()
        rows = [row if len(row) > 1 or self._by_class else int(row[0]) for row in self.calibration_.counts]
        return rows[0] if self.groups_ is None else dict(zip(self.groups_.tolist(), rows))

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

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and a JSON-able document from which `from_state` restores this object, but for the estimator."""
        self._check_conformalized()
        arrays = {"scores": self.calibration_.scores, "counts": self.calibration_.counts}
        document = {"score": self.score_name_, "condition_on": self.condition_on_, "randomized": self.randomized_}
        document |= {"confidence_level": float(self.confidence_level), "log": self._log, "seed": self.seed_}
        document |= {"n_classes": len(self.classes_)}
        if self.groups_ is not None:
            document |= {"groups": self.groups_.tolist(), "groups_dtype": self.groups_.dtype.str}
        return arrays, document

    @classmethod
    def from_state(
        cls, arrays: dict[str, np.ndarray], document: dict[str, Any], estimator: Any = None
    ) -> "ConformalClassifier":
        """The calibrated object again, over the same fitted estimator.

        Raises
        ------
        ValueError
            If the estimator has another number of classes, or the state is not one that `get_state` gives: an unknown
            score, a missing number, counts that do not fit the scores, scores out of order.
        """
        check_document(document)
        names = ("score", "condition_on", "randomized", "confidence_level")
        found = cls(estimator, prefit=estimator is not None, **{name: document[name] for name in names})
        if estimator is None:
            found._adopt_columns(np.empty((1, document["n_classes"])))
        else:
            found._adopt(estimator)
        n_classes = len(found.classes_)
        if n_classes != document["n_classes"]:
            raise ParameterError(f"estimator: it has {n_classes} classes, but {document['n_classes']} were calibrated.")
        if document["log"] and not found._log:
            raise ParameterError("estimator: the calibration took its predict_log_proba, which this one has not.")
        found._freeze()
        found._log, found.seed_ = document["log"], document["seed"]
        found.groups_ = check_groups_of(document)
        shape = (1 if found.groups_ is None else len(found.groups_), n_classes if found._by_class else 1)
        found.calibration_ = check_scores(arrays, shape, log=found._log)
        return found

    def _check_parameters(self) -> None:
        self._validate_params()
        exact_level(self.confidence_level)

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
        validate_data(self, X, skip_check_array=True)
        self.estimator_, self.classes_, self._log = None, np.arange(self.n_features_in_), False

    def _freeze(self) -> None:
        """Keep the parameters that scores depend on: scores of one setting say nothing about sets of another."""
        self.score_name_, self.condition_on_ = self.__dict__["score"], self.condition_on
        self.randomized_ = bool(self.randomized)

    def _values(self, X: ArrayLike) -> np.ndarray:
        """Probabilities, or logarithms of them, checked: (n, n_classes)."""
        if self.estimator_ is None:
            X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=False, reset=False)
            return check_probabilities(X, "X")
        if not self._log:
            return check_probabilities(self.estimator_.predict_proba(X), "predict_proba")
        with np.errstate(divide="ignore"):  # the logarithm of 0 is meant to be minus infinity
            values = np.asarray(self.estimator_.predict_log_proba(X), dtype=float)
        check_probabilities(np.exp(values), "predict_proba")
        return values

    @property
    def _scoring(self) -> dict[str, Any]:
        return {"name": self.score_name_, "log": self._log, "seed": self.seed_ if self.randomized_ else None}

    def _blocks(self, n: int, n_classes: int) -> Iterator[slice]:
        step = max(1, (_CELLS_RANKED if SCORES[self.score_name_].ranked else _CELLS) // n_classes)
        return (slice(start, start + step) for start in range(0, n, step))

    def _group_codes(self, groups: Any, n: int) -> np.ndarray:
        return np.zeros(n, dtype=np.intp) if self.groups_ is None else group_codes(groups, self.groups_, n)

    @property
    def _by_class(self) -> bool:
        return self.condition_on_ in ("class", "class_and_group")

    @property
    def _by_group(self) -> bool:
        return self.condition_on_ in ("group", "class_and_group")

    @property
    def _class_names(self) -> list | None:
        return self.classes_.tolist() if self._by_class else None

    @property
    def _group_names(self) -> list | None:
        return None if self.groups_ is None else self.groups_.tolist()

    def _warn_of_small_conditions(self, level: float) -> None:
        message = describe_small_conditions(self.calibration_.counts, self._class_names, self._group_names, level)
        if message:
            warnings.warn(message, CalibrationSizeWarning, stacklevel=3)

    def _check_conformalized(self) -> None:
        check_is_fitted(self, "classes_")
        if not hasattr(self, "calibration_"):
            raise NotFittedError(
                "This ConformalClassifier is not calibrated: call conformalize(X, y) with cases that fit never saw."
            )
