"""`ConformalClassifier`: prediction sets with a coverage guarantee over any classifier."""

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import Interval, StrOptions

from ..errors import CalibrationSizeWarning, ParameterError
from ..metrics import check_probabilities, conformal_rank
from ._base import ScoringClassifier
from ._codes import group_codes
from ._coverage import coverage_table_of
from ._seen import row_hashes
from ._state import SETTINGS, check_classes_of, check_document, check_groups_of, check_scores, state_of
from ._words import describe_small_conditions, make_certificate
from .certificate import Certificate
from .groups import calibrated_codes, group_names, renamed, settle_small_groups
from .pac import pac_least_n, pac_p_values, pac_rank
from .patients import draw_one, unit_codes
from .scores import score_dtype, truncated
from .thresholds import CalibrationScores, least_n, round_up

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
    score : {"lac", "aps", "raps", "saps", "margin", "topk", "rank"}, default="lac"
        Conformity score, one of `cbdc.conformal.SCORES`: "lac" gives the smallest sets on average, "aps" sets that grow
        with the difficulty of the case.
    score_params : dict or None, default=None
        Numbers of the score: ``{"penalty": ..., "k_reg": ...}`` of "raps", ``{"weight": ...}`` of "saps". None stands
        for what `tune` chose, or for the score's defaults.
    condition_on : {None, "class", "group", "class_and_group", "cluster"}, default=None
        For whom the guarantee holds: on average over all cases, within every class, within every group (Mondrian),
        within every class of every group, or within every cluster of classes that `tune` found alike. The finer, the
        more calibration cases are needed.
    rank_calibrated : bool, default=False
        With ``condition_on="class"``: leave out labels that rank lower than their class ever needs, as `tune` found
        (RC3P). Its coverage is exact; smaller sets it did not give in what was measured, see the guide.
    confidence_level : float, default=0.9
        Level of the sets; `predict_set` may be asked another.
    guarantee : {"marginal", "pac"}, default="marginal"
        Whether the level is reached on average over the calibration cases, or, with probability 1 - `delta`, given
        them; see `cbdc.conformal.pac_rank`.
    delta : float, default=0.05
        Probability over the calibration cases that a PAC threshold covers less; for each threshold on its own.
    window : int or None, default=None
        With ``guarantee="pac"``: the coverage of so many cases to come, counted, instead of the long run.
    repeated : {"hierarchical", "one"}, default="hierarchical"
        What is done about several cases of one patient or lesion, where `conformalize` is told of them: all of them
        share the weight of one, or one of each is drawn, which PAC thresholds take.
    small_groups : {"warn", "refuse", "merge"}, default="warn"
        What is done about too few cases for a finite threshold at `confidence_level`: sets hold every class there (or
        that class), with a warning; an error, under any condition; or small groups are merged with others, under the
        group-wise conditions, see `merged_groups_`.
    randomized : bool, default=True
        Whether a score that can be randomised draws a uniform number for each case, from its probabilities and the
        seed. It makes the sets of "aps" and "raps" smaller and removes ties, but only between rows of probabilities
        that differ: the number is a fixed function of the row, so that equal rows tie. Without effect on "lac",
        "margin", "topk" and "rank".
    prefit : bool, default=False
        The estimator is already fitted, and used as it is; so is a `sklearn.frozen.FrozenEstimator` without it.
    random_state : int, RandomState instance or None, default=None
        Seed of the randomised score and of the draw of one case a unit; None stands for 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier or None
    score_name_, score_params_, condition_on_, guarantee_, delta_, window_, randomized_
        Values of the parameters that `conformalize` calibrated for. They hold until it is called again; of the
        parameters set since then only `confidence_level` counts.
    calibration_ : CalibrationScores
        Sorted scores by condition.
    repeated_ : {None, "hierarchical", "one"}
        What was done about several cases of one unit; None where no units were given.
    groups_ : ndarray of shape (n_groups,) or None
        Groups of the calibration cases, in the order of the rows of the tables.
    merged_groups_ : dict of str to str
        New name of every group that was merged; cases are given by the old one.
    columns_ : ndarray of shape (n_classes,), int, or None
        Column of the tables of each class, which for ``condition_on="cluster"`` is its cluster; None where there is one
        column for all.
    rank_limits_ : ndarray of shape (n_classes,), int, or None
        Lowest rank at which each class is still allowed; None unless `rank_calibrated`.
    n_calibration_ : int, ndarray of shape (n_classes,), or dict of either by group
        Calibration cases (units, where cases were repeated) behind the threshold of all or of each class; classes of
        one cluster share theirs.
    n_features_in_ : int
    feature_names_in_ : ndarray
        If X had names.

    Notes
    -----
    **Guarantee.** Assumption: calibration cases and the new case are exchangeable, and none was used to fit, to choose
    or to tune the classifier. Statement: P(y in set) >= confidence_level, and <= confidence_level + 1 / (n + 1) where
    scores do not tie, over the draw of both; with `condition_on`, given the class, the group, or both. Given the
    calibration cases the coverage is itself random, and `certificate` prints the band that holds it with probability
    0.9 (where scores tie at the threshold, its lower end); with ``guarantee="pac"`` it is at least confidence_level
    with probability 1 - delta over them. What breaks it: another population than the calibration cases (for None also
    another prevalence; for "class" not prevalence alone); several images of one lesion or patient; calibrating on
    training data; choosing the level after looking at the sets. It is a statement about many cases, not about this one.
    It does not rest on the uniformity of the number that "aps" draws, which is a fixed function of the case; equal
    cases get equal numbers, and ties only add to coverage.

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

    _calibrated = ("calibration_", "rank_limits_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **ScoringClassifier._parameter_constraints,
        "condition_on": [StrOptions({"class", "group", "class_and_group", "cluster"}), None],
        "rank_calibrated": ["boolean"],
        "guarantee": [StrOptions({"marginal", "pac"})],
        "delta": [Interval(Real, 0, 1, closed="neither")],
        "window": [Interval(Integral, 1, None, closed="left"), None],
        "repeated": [StrOptions({"one", "hierarchical"})],
        "small_groups": [StrOptions({"warn", "refuse", "merge"})],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        condition_on: str | None = None,
        rank_calibrated: bool = False,
        confidence_level: float = 0.9,
        guarantee: str = "marginal",
        delta: float = 0.05,
        window: int | None = None,
        repeated: str = "hierarchical",
        small_groups: str = "warn",
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.score = score
        self.score_params = score_params
        self.condition_on = condition_on
        self.rank_calibrated = rank_calibrated
        self.confidence_level = confidence_level
        self.guarantee = guarantee
        self.delta = delta
        self.window = window
        self.repeated = repeated
        self.small_groups = small_groups
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> "ConformalClassifier":
        """Train the classifier; with ``prefit=True`` or without an estimator there is nothing to train.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)

        Returns
        -------
        ConformalClassifier
            Itself, neither calibrated nor tuned.
        """
        self.__dict__.pop("tuned_", None)  # for another classifier
        return super().fit(X, y)

    def tune(self, X: ArrayLike, y: ArrayLike) -> "ConformalClassifier":
        """Choose what the score and the condition leave open, on cases that neither `fit` nor `conformalize` sees.

        The two numbers of "raps" or the one of "saps" where `score_params` is None, the clusters of classes for
        ``condition_on="cluster"``, the lowest ranks for `rank_calibrated`. Nothing else of the cases is kept. It holds
        for the calibrations that follow, until the next `tune` or `fit`.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)

        Returns
        -------
        ConformalClassifier
            Itself, not calibrated.

        Raises
        ------
        ValueError
            If there is nothing to choose: the parameters set leave nothing open.
        """
        from .tuning import choose

        self.__dict__.pop("tuned_", None)
        self._prepare(X, calibrates=False)
        values = self._values(X)
        self.tuned_ = choose(self, values, self._labels(y, len(values)))
        self._seen = {**getattr(self, "_seen", {}), "tuned": row_hashes(X)}
        return self

    def conformalize(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, units: ArrayLike | None = None
    ) -> "ConformalClassifier":
        """Calibrate on cases that `fit` never saw. Only their scores are kept.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        groups : array-like of shape (n,) or (n, n_attributes), int or str, optional
            Group of each case; for the group-wise conditions. Of several attributes, given as the columns of a table,
            every combination is a group.
        units : array-like of shape (n,), int or str, optional
            Patient or lesion of each case, where several cases may be of one; see `repeated`.

        Returns
        -------
        ConformalClassifier
            Itself.

        Raises
        ------
        ValueError
            If a label or a probability is not what it should be (the message names the row), groups are missing, or
            there are too few cases of a condition and ``small_groups="refuse"``.

        Warns
        -----
        CalibrationSizeWarning
            If a class or group has too few cases for a finite threshold at `confidence_level`, or groups were merged.
        LeakageWarning
            If cases are rows that `fit` or `tune` of this object saw. Only their hashes are kept, in no copy of it.
        """
        self._prepare(X)
        values = self._values(X)
        labels = self._labels(y, len(values))
        self.columns_, self.rank_limits_ = self._chosen_columns(), self._chosen_limits()
        scores = self._score_labels(values, labels)
        kept: Any = slice(None)
        codes = None
        self.repeated_ = None if units is None else self.repeated
        if units is not None:
            codes = unit_codes(units, len(values))
            if self.guarantee_ == "pac" and self.repeated == "hierarchical":
                raise ParameterError(
                    "units: guarantee='pac' counts independent cases, which those sharing a unit's weight are not. "
                    "Fix: repeated='one'."
                )
            if self.repeated == "one":
                kept, codes = draw_one(codes, np.random.RandomState(self.seed_)), None
        columns = None if self.columns_ is None else self.columns_[labels[kept]]
        n_columns = 1 if self.columns_ is None else int(self.columns_.max()) + 1
        rows = self._calibrate_groups(groups, len(values), kept, columns)
        conditions = columns if rows is None else rows * n_columns + (0 if columns is None else columns)
        shape = (1 if self.groups_ is None else len(self.groups_), n_columns)
        self.calibration_ = CalibrationScores.from_cases(scores[kept], conditions, shape, units=codes)
        self._settle_small_conditions()
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
        level = self._level(confidence_level)
        if level != self.confidence_level:
            self._warn_of_small_conditions(level)
        plain = self._is_plain(X)
        values = np.asarray(X if plain else self._values(X))
        thresholds = self._limits(level, score_dtype(self.score_name_, values.dtype))
        if self.groups_ is not None:
            thresholds = thresholds[self._group_codes(groups, len(values))]
        return self._sets(values, thresholds, check=plain)

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
        columns = np.zeros(1, dtype=np.intp) if self.columns_ is None else self.columns_
        found = np.empty(values.shape)
        for rows in self._blocks(*values.shape):
            p_values = self.calibration_.p_values(self._score_all(values[rows]), codes[rows], columns)
            if self.guarantee_ == "pac":
                n = self.calibration_.counts[codes[rows]][:, columns]
                p_values = pac_p_values(p_values, n, self.delta_, self.window_)
            found[rows] = p_values
        return found

    def thresholds(self, confidence_level: float | None = None) -> np.ndarray:
        """Least score still in the set, (n_groups or 1, n_columns or 1); minus infinity where cases are too few."""
        return self._table(self._level(confidence_level))

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the sets promise: assumptions, statement, the cases it rests on, and the band of the realised coverage.

        Parameters
        ----------
        confidence_level : float, optional
            Default: that of the constructor.

        Returns
        -------
        Certificate
            Its text is ``str(certificate)``.
        """
        return make_certificate(self, self._level(confidence_level))

    def coverage_table(
        self,
        X: ArrayLike,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        confidence_level: float | None = None,
        *,
        least_n: int = 10,
        probability: float = 0.95,
    ) -> pd.DataFrame:
        """Coverage on test cases: all, each class, each group, beside the band of each row that has a guarantee.

        It knows what `cbdc.metrics.coverage_table` would have to be told: the ranks of PAC thresholds, the classes of
        one cluster, the groups that were merged, and where scores tie, which leaves the band open above (1). There is
        no band where calibration cases share the weight of a unit: its law is not known.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        groups : array-like of shape (n,) or (n, n_attributes), optional
            For the group-wise conditions; for the others the table then has rows for these groups, without a band.
        confidence_level : float, optional
            Default: that of the constructor.
        least_n, probability
            As for `cbdc.metrics.coverage_table`.

        Returns
        -------
        DataFrame
            As `cbdc.metrics.coverage_table` gives it.
        """
        level = self._level(confidence_level)
        sets = self.predict_set(X, level, groups)
        return coverage_table_of(self, sets, y, groups, level, least_n=least_n, probability=probability)

    @property
    def n_calibration_(self) -> Any:
        self._check_conformalized()
        table = self.calibration_.n_units
        if self.columns_ is not None:
            table = table[:, self.columns_]
        rows = [row if self.columns_ is not None else int(row[0]) for row in table]
        return rows[0] if self.groups_ is None else dict(zip(self.groups_.tolist(), rows))

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and a JSON-able document from which `from_state` restores this object, but for the estimator."""
        self._check_conformalized()
        return state_of(self)

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
        settings = {name: document[name] for name in SETTINGS} | {"repeated": document["repeated"] or "hierarchical"}
        found = cls(estimator, prefit=estimator is not None, **settings)
        found._restore(estimator, document["n_classes"], log=document["log"], seed=document["seed"])
        found.groups_, found.merged_groups_ = check_groups_of(document)
        found.columns_, found.rank_limits_ = check_classes_of(arrays, document)
        n_columns = 1 if found.columns_ is None else int(found.columns_.max()) + 1
        shape = (1 if found.groups_ is None else len(found.groups_), n_columns)
        found.repeated_ = document["repeated"]
        found.calibration_ = check_scores(arrays, shape, found.score_name_, log=found._log)
        if (found.calibration_.units is not None) != (found.repeated_ == "hierarchical"):
            raise ParameterError(f"units: they go with repeated='hierarchical'; got {found.repeated_!r}.")
        return found

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.rank_calibrated and self.condition_on != "class":
            raise ParameterError(f"rank_calibrated: it goes with condition_on='class'; got {self.condition_on!r}.")
        if self.window is not None and self.guarantee != "pac":
            raise ParameterError("window: it goes with guarantee='pac'.")
        if self.small_groups == "merge" and self.condition_on not in ("group", "class_and_group"):
            raise ParameterError(
                f"small_groups='merge': it goes with condition_on='group' or 'class_and_group'; got "
                f"{self.condition_on!r}, under which there are no groups to merge."
            )

    def _freeze(self) -> None:
        super()._freeze()
        tuned = getattr(self, "tuned_", {})
        if self.score_params is None and tuned.get("score") == self.score_name_:
            self.score_params_ = tuned["score_params"]
        self.condition_on_, self.guarantee_ = self.condition_on, self.guarantee
        self.delta_, self.window_ = float(self.delta), self.window

    def _chosen_columns(self) -> np.ndarray | None:
        if self.condition_on_ == "cluster":
            return self._tuned("columns", "condition_on='cluster'")
        return np.arange(len(self.classes_)) if self.condition_on_ in ("class", "class_and_group") else None

    def _chosen_limits(self) -> np.ndarray | None:
        return self._tuned("rank_limits", "rank_calibrated=True") if self.rank_calibrated else None

    def _tuned(self, name: str, setting: str) -> np.ndarray:
        chosen = getattr(self, "tuned_", {}).get(name)
        if chosen is None or len(chosen) != len(self.classes_):
            raise NotFittedError(
                f"{setting} takes tune(X, y) before conformalize, with cases that neither fit nor conformalize sees."
            )
        return chosen

    def _calibrate_groups(self, groups: Any, n: int, kept: Any, columns: np.ndarray | None) -> np.ndarray | None:
        """Row of the tables of each case that is kept, None where there is one; sets `groups_`, `merged_groups_`."""
        self.groups_: np.ndarray | None = None
        self.merged_groups_: dict[str, str] = {}
        if not self._by_group:
            if groups is not None:
                raise ParameterError(
                    f"groups: condition_on={self.condition_on_!r} takes none. Fix: condition_on='group' or "
                    "'class_and_group', or leave them out."
                )
            return None
        names, attributes = group_names(groups, n)
        names, attributes = names[kept], attributes[kept]
        if self.small_groups == "merge":
            least = self._least_n(self.confidence_level)
            columns = np.zeros(len(names), dtype=np.intp) if columns is None else columns
            self.merged_groups_, message = settle_small_groups(names, attributes, columns, least)
            if message:
                warnings.warn(message, CalibrationSizeWarning, stacklevel=3)
        names = renamed(names, self.merged_groups_)
        self.groups_ = np.unique(names)
        return group_codes(names, self.groups_)

    def _group_codes(self, groups: Any, n: int) -> np.ndarray:
        if self.groups_ is None:
            return np.zeros(n, dtype=np.intp)
        return calibrated_codes(group_names(groups, n)[0], self.groups_, self.merged_groups_)

    def _score_labels(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self._truncated(super()._score_labels(values, labels), values, labels)

    def _score_all(self, values: np.ndarray) -> np.ndarray:
        return self._truncated(super()._score_all(values), values, None)

    def _sets(self, values: np.ndarray, limits: np.ndarray, *, check: bool = False) -> np.ndarray:
        if self.rank_limits_ is None:
            return super()._sets(values, limits, check=check)
        if check:
            check_probabilities(values, "X")
        sets = np.empty(values.shape, dtype=bool)
        for rows in self._blocks(*values.shape):
            sets[rows] = self._score_all(values[rows]) >= (limits[rows] if len(limits) > 1 else limits)
        return sets

    def _truncated(self, scores: np.ndarray, values: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        limits = getattr(self, "rank_limits_", None)
        return scores if limits is None else truncated(scores, values, labels, limits)

    @property
    def _by_group(self) -> bool:
        return self.condition_on_ in ("group", "class_and_group")

    def rank(self, n: int, confidence_level: float | None = None) -> int:
        """Rank of the threshold among n calibration cases, from the best conforming down; n + 1 if it is infinite."""
        level = self._level(confidence_level)
        if self.guarantee_ == "pac":
            return pac_rank(n, level, self.delta_, self.window_)
        return conformal_rank(n, level)

    def _least_n(self, level: float) -> int:
        return pac_least_n(level, self.delta_, self.window_) if self.guarantee_ == "pac" else least_n(level)

    def _table(self, level: float) -> np.ndarray:
        """Thresholds by condition."""
        if self.guarantee_ == "marginal":
            return self.calibration_.thresholds(level)
        return self.calibration_.at_ranks(self.calibration_.ranks(lambda n: self.rank(n, level)))

    def _limits(self, level: float, dtype: np.dtype) -> np.ndarray:
        """Thresholds by group and class, rounded up; kept, since a case alone takes less time than they do."""
        kept = self.calibration_.kept
        if (level, dtype) not in kept:
            thresholds = round_up(self._table(level), dtype)
            kept[level, dtype] = thresholds if self.columns_ is None else thresholds[:, self.columns_]
        return kept[level, dtype]

    def _settle_small_conditions(self) -> None:
        message = describe_small_conditions(self, self.confidence_level, self._least_n(self.confidence_level))
        if message and self.small_groups == "refuse":
            self._forget()
            raise ParameterError(f"small_groups='refuse': {message[0].lower()}{message[1:]}")
        if message:
            warnings.warn(message, CalibrationSizeWarning, stacklevel=3)

    def _warn_of_small_conditions(self, level: float) -> None:
        message = describe_small_conditions(self, level, self._least_n(level))
        if message:
            warnings.warn(message, CalibrationSizeWarning, stacklevel=3)
