"""`ConformalClassifier`: prediction sets with a coverage guarantee over any classifier."""

import warnings
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions

from ..errors import CalibrationSizeWarning, ParameterError
from ..metrics import exact_level
from ._base import ScoringClassifier
from ._codes import check_groups, group_codes
from ._state import check_document, check_groups_of, check_scores
from ._words import describe_guarantee, describe_small_conditions
from .scores import relaxed
from .thresholds import CalibrationScores, round_up

__all__ = ["ConformalClassifier"]


class ConformalClassifier(ScoringClassifier):
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
        **ScoringClassifier._parameter_constraints,
        "condition_on": [StrOptions({"class", "group", "class_and_group"}), None],
        "confidence_level": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        condition_on: str | None = None,
        confidence_level: float = 0.9,
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.score = score
        self.score_params = score_params
        self.condition_on = condition_on
        self.confidence_level = confidence_level
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

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
        self._prepare(X)
        values = self._values(X)
        labels = self._labels(y, len(values))
        n_classes = len(self.classes_) if self._by_class else 1
        self.groups_ = np.unique(check_groups(groups, len(values))) if self._by_group else None
        conditions = self._group_codes(groups, len(values)) * n_classes + (labels if self._by_class else 0)
        shape = (1 if self.groups_ is None else len(self.groups_), n_classes)
        scores = relaxed(self.score_name_, self._score_labels(values, labels), log=self._log)
        self.calibration_ = CalibrationScores.from_cases(scores, conditions, shape)
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
        return self._sets(values, thresholds[codes] if len(thresholds) > 1 else thresholds)

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
            found[rows] = self.calibration_.p_values(self._score_all(values[rows]), codes[rows])
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
        super()._check_parameters()
        exact_level(self.confidence_level)

    def _freeze(self) -> None:
        super()._freeze()
        self.condition_on_ = self.condition_on

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
