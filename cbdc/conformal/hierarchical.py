"""`HierarchicalConformalClassifier`: answers that are nodes of a tree of diagnoses, with a coverage guarantee.

For every case the probabilities fix a nested family of sets of classes, each of them a node of the tree or a few nodes,
from the predicted class up to the root. The conformity score of a class is read off the step at which the family takes
it in, so that thresholding the scores gives a member of the family, and coverage is split conformal prediction's.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions

from ..errors import CalibrationSizeWarning, ParameterError
from ..metrics import conformal_rank, exact_level
from ..taxonomy import Taxonomy, get_taxonomy
from ._base import ScoringClassifier
from ._codes import check_groups, group_codes
from ._nested import Tree, check_leaves, nested_scores
from ._state import check_groups_of, check_scores
from ._uniform import content_uniform
from .certificate import Certificate, Condition
from .scores import TIE
from .thresholds import CalibrationScores, least_n

__all__ = ["HierarchicalConformalClassifier"]

_CELLS = 2**20  # nodes times classes times cases at once
_SAVED = ("score", "mode", "max_nodes", "condition_on", "confidence_level", "allow_empty", "randomized")


class HierarchicalConformalClassifier(ScoringClassifier):
    """Prediction sets that are nodes of a taxonomy: one node, a few nodes, or a set for every level of the tree.

    Parameters
    ----------
    estimator : classifier or None, default=None
        Classifier with `predict_proba`. None: X is the (n, n_classes) matrix of probabilities itself, and y holds
        column numbers.
    taxonomy : Taxonomy, str or None, default=None
        Tree whose leaves are the classes, or the name of a known one, such as ``"ham10000"`` (see
        `cbdc.taxonomy.get_taxonomy`). None: all classes under one root.
    leaves : sequence of str or None, default=None
        Leaf of each class, in the order of `classes_`. None: the classes bear the names of their leaves; without an
        estimator, the columns are all leaves of the tree in their sorted order. Leaves of the tree that are no class
        are left out of it.
    mode : {"node", "antichain", "levels"}, default="node"
        "node": one node, on the path from the predicted class up to the root. "antichain": at most `max_nodes` nodes,
        none above another. "levels": every level of the tree has a threshold of its own, and a class is in the set if
        at every level its ancestor passes; the set may then be empty.
    max_nodes : int or None, default=None
        With ``mode="antichain"``; None: no bound, and the answer is the flat set in as few nodes as name it.
    score : {"aps", "lac"}, default="aps"
        "aps": the probability that is left outside before a class is taken in; in node mode the answer is then the
        lowest node of more than a calibrated probability. "lac": the mean probability of the classes that are taken in
        together, which gives the fewest classes on average.
    condition_on : {None, "class", "group"}, default=None
        For whom the guarantee holds: on average, within every class, or within every group. For "class" with a bound on
        the nodes, the answer is the least member of the family with all classes that conform, so that coverage may far
        exceed the level.
    confidence_level : float, default=0.9
        Level of the answers; the methods may be asked another.
    allow_empty : bool, default=False
        Whether a case may have no answer. If not, the predicted class is in every set (but for ``mode="levels"``), and
        a classifier that is right more often than the level asks has a coverage above the level.
    randomized : bool, default=False
        Whether "aps" counts a random share of what a step takes in: coverage given the case then varies less, and a
        case may be answered one step lower than its like. The number is a function of the probabilities and the seed.
    prefit : bool, default=False
        The estimator is already fitted, and used as it is; so is a `sklearn.frozen.FrozenEstimator` without it.
    random_state : int, RandomState instance or None, default=None
        Seed of the randomised score; None stands for 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier or None
    taxonomy_ : Taxonomy
    leaves_ : tuple of str
        Leaf of each class.
    nodes_ : tuple of str
        Nodes that an answer may hold, the root first. Of nodes with the same classes below, only the lowest.
    level_nodes_ : tuple of tuple of str
        Nodes at each depth of the tree, from the root on; a leaf that ends earlier stands for itself further down.
    calibration_ : CalibrationScores
        Sorted scores by condition.
    groups_ : ndarray of shape (n_groups,) or None
    n_calibration_ : int, ndarray of shape (n_classes,), or dict by group
    n_features_in_ : int
    feature_names_in_ : ndarray
        If X had names.

    Notes
    -----
    **Guarantee.** Assumption: calibration cases and the new case are exchangeable, and none was used to fit, to choose
    or to tune the classifier; the taxonomy is fixed beforehand. Statement: the true class is below the nodes of the
    answer with probability >= confidence_level, given the class or the group where `condition_on` says so; at every
    depth at once the projected answer then holds the true ancestor. Without ties the coverage given the calibration
    cases has the law of any split-conformal set, but for "levels" and for "class" with a bound on the nodes; the one
    tie that is made is that of the predicted classes, if `allow_empty` is False. What breaks it: another population;
    several images of one lesion or patient; calibrating on training data; a taxonomy or level chosen after looking at
    the answers. It is no statement about a single case, and none about answers of one kind: among those that are
    leaves, say, coverage may be higher or lower.

    Probabilities below 1e-308 count as 0 here: they tie, which only adds to coverage.

    References
    ----------
    Mortier, Javanmardi, Sale, Huellermeier and Waegeman, *Conformal prediction in hierarchical classification with
    constrained representation complexity*, arXiv:2501.19038. Den Hengst, Blin, Mohammadi, Shah and Younesian,
    *Hierarchical conformal classification*, arXiv:2508.13288. For "levels": Timans, Straehle, Sakmann and Nalisnick,
    *Max-rank: efficient multiple testing for conformal prediction*, arXiv:2311.10900.

    Examples
    --------
    >>> from cbdc.taxonomy import Taxonomy
    >>> tree = Taxonomy({"lesion": None, "pigmented": "lesion", "mel": "pigmented", "nv": "pigmented", "bcc": "lesion"})
    >>> rng = np.random.default_rng(0)
    >>> P = rng.dirichlet([1, 1, 1], 500)                  # columns: bcc, mel, nv
    >>> y = (P.cumsum(axis=1) < rng.random((500, 1))).sum(axis=1)
    >>> clf = HierarchicalConformalClassifier(taxonomy=tree, confidence_level=0.8).conformalize(P, y)
    >>> clf.predict_nodes(np.array([[0.01, 0.97, 0.02], [0.05, 0.45, 0.5], [0.4, 0.3, 0.3]]))
    [('mel',), ('pigmented',), ('lesion',)]
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **{k: v for k, v in ScoringClassifier._parameter_constraints.items() if k != "score_params"},
        "taxonomy": [Taxonomy, str, None],
        "leaves": ["array-like", None],
        "mode": [StrOptions({"node", "antichain", "levels"})],
        "max_nodes": [Interval(Integral, 1, None, closed="left"), None],
        "score": [StrOptions({"aps", "lac"})],
        "condition_on": [StrOptions({"class", "group"}), None],
        "allow_empty": ["boolean"],
    }
    _calibrated = ("calibration_", "level_scores_", "groups_")

    def __init__(
        self,
        estimator: Any = None,
        *,
        taxonomy: Taxonomy | str | None = None,
        leaves: Sequence[str] | None = None,
        mode: str = "node",
        max_nodes: int | None = None,
        score: str = "aps",
        condition_on: str | None = None,
        confidence_level: float = 0.9,
        allow_empty: bool = False,
        randomized: bool = False,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.taxonomy = taxonomy
        self.leaves = leaves
        self.mode = mode
        self.max_nodes = max_nodes
        self.score = score
        self.condition_on = condition_on
        self.confidence_level = confidence_level
        self.allow_empty = allow_empty
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Train the classifier, if there is one to train, and check that its classes are leaves of the tree.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)

        Returns
        -------
        Self
            Not calibrated.
        """
        super().fit(X, y)
        self._plant()
        return self

    def conformalize(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Calibrate on cases that `fit` never saw. Only their scores are kept.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        groups : array-like of shape (n,), int or str, optional
            Group of each case; for ``condition_on="group"``.

        Returns
        -------
        HierarchicalConformalClassifier
            Itself.

        Raises
        ------
        ValueError
            If a label or a probability is not what it should be (the message names the row), a class is no leaf of the
            tree, or groups are missing.

        Warns
        -----
        CalibrationSizeWarning
            If there are too few cases, of a class or of a group, for a threshold at `confidence_level`.
        """
        self._prepare(X)
        if groups is not None and self.condition_on_ != "group":
            raise ParameterError(f"groups: condition_on={self.condition_on_!r} takes none. Fix: condition_on='group'.")
        values = self._values(X)
        n, labels = len(values), self._labels(y, len(values))
        self.groups_ = np.unique(check_groups(groups, n)) if self.condition_on_ == "group" else None
        scores = self._family_scores(values)[np.arange(n), :, labels] * (1 - TIE)
        self.level_scores_ = np.sort(scores, axis=0) if self.mode_ == "levels" else None
        if self.level_scores_ is not None:
            scores = self._counts(scores[:, :, None]) - 1  # a case is not counted among those that it is compared with
        rows = self._group_codes(groups, n)
        columns = labels if self.condition_on_ == "class" else 0
        n_columns = len(self.classes_) if self.condition_on_ == "class" else 1
        shape = (1 if self.groups_ is None else len(self.groups_), n_columns)
        self.calibration_ = CalibrationScores.from_cases(scores[:, 0], rows * n_columns + columns, shape)
        self._warn_of_few_cases(self.confidence_level)
        return self

    def p_values(self, X: ArrayLike, groups: ArrayLike | None = None) -> np.ndarray:
        """P-value of every class: it is in the answer at a level exactly if this exceeds ``1 - exact_level(level)``.

        Along the family of a case they never rise, so that the classes above any limit are a member of the family; only
        with ``condition_on="class"`` and no bound on the nodes they may, where any set can be named.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        groups : array-like of shape (n,), optional

        Returns
        -------
        ndarray of shape (n, n_classes), float64
        """
        self._check_conformalized()
        values = self._values(X)
        rows = self._group_codes(groups, len(values))
        found = np.empty(values.shape)
        for block in self._blocks_of(len(values)):
            scores = self._score_all(values[block])
            p = self.calibration_.p_values(scores, rows[block])
            if self._closes:  # a class comes with all that the family takes in before it
                later = scores[:, None, :] <= scores[:, :, None]
                p = np.where(later, p[:, None, :], 0).max(axis=2)
            found[block] = p
        return found

    def predict_set(
        self, X: ArrayLike, confidence_level: float | None = None, groups: ArrayLike | None = None
    ) -> np.ndarray:
        """Classes below the nodes of the answer.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
            Default: that of the constructor. Answers are nested in it.
        groups : array-like of shape (n,), optional

        Returns
        -------
        ndarray of shape (n, n_classes), bool
            Columns in the order of `classes_`.

        Warns
        -----
        CalibrationSizeWarning
            If there are too few cases for a threshold at another level than the constructor's.
        """
        level = self._level(confidence_level)
        limit = float(1 - exact_level(level))
        if level != self.confidence_level:
            self._warn_of_few_cases(level)
        return self.p_values(X, groups) > limit

    def predict_node_set(
        self, X: ArrayLike, confidence_level: float | None = None, groups: ArrayLike | None = None
    ) -> np.ndarray:
        """Nodes of the answer: the fewest below which are exactly the classes of `predict_set`.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
        groups : array-like of shape (n,), optional

        Returns
        -------
        ndarray of shape (n, n_nodes), bool
            Columns in the order of `nodes_`. In node mode one a row.
        """
        sets = self.predict_set(X, confidence_level, groups)
        return self._tree.top_nodes(self._tree.sums(~sets.T, int) == 0).T

    def predict_nodes(
        self, X: ArrayLike, confidence_level: float | None = None, groups: ArrayLike | None = None
    ) -> list[tuple[str, ...]]:
        """Names of the nodes of `predict_node_set`, a tuple for each case, higher nodes first."""
        found = self.predict_node_set(X, confidence_level, groups)
        return [tuple(self.nodes_[i] for i in np.flatnonzero(row)) for row in found]

    def predict_levels(
        self, X: ArrayLike, confidence_level: float | None = None, groups: ArrayLike | None = None
    ) -> list[np.ndarray]:
        """The answer at each depth of the tree: nodes there with a class of `predict_set` at or below them.

        A node is in the set of its depth exactly if one of its children is in that of the next, and with the true class
        all its ancestors are: the guarantee holds at every depth at once.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
        groups : array-like of shape (n,), optional

        Returns
        -------
        list of ndarray of shape (n, n_nodes_of_the_depth), bool
            From the root on; columns in the order of `level_nodes_`.
        """
        held = self._tree.sums(self.predict_set(X, confidence_level, groups).T, int) > 0
        return [held[rows].T for rows in self._level_rows]

    @property
    def n_calibration_(self) -> Any:
        self._check_conformalized()
        counts = self.calibration_.counts
        if self.groups_ is not None:
            return dict(zip(self.groups_.tolist(), counts[:, 0].tolist()))
        return counts[0] if self.condition_on_ == "class" else int(counts[0, 0])

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the answers promise: assumptions, statement, and the band of the coverage given the calibration cases.

        For ``mode="levels"`` no law of the coverage given the calibration cases is known, and no band is named.
        """
        level = self._level(confidence_level)
        among = {None: "on average over all cases", "class": "among the cases of each class"}.get(
            self.condition_on_, "among the cases of each group"
        )
        n = int(self.calibration_.counts.sum())
        broken_by = ["another population, camera or clinic than in calibration"]
        broken_by += ["another prevalence of the classes"] * (self.condition_on_ != "class")
        return Certificate(
            statement=f"the true class is below the nodes of the answer with probability at least {level:g} {among}, "
            "and its ancestors are then in the answer at every level of the tree",
            assumptions=(
                f"this case and the {n} calibration cases are exchangeable (independent cases of the same population, "
                "none of them trained on)",
                "the tree was fixed before they were seen",
            ),
            broken_by=(
                *broken_by,
                "several calibration cases of one patient or lesion",
                "choosing the level after looking at the answers",
            ),
            confidence_level=level,
            n_calibration=n,
            conditions=() if self.mode_ == "levels" else tuple(self._conditions(level)),
        )

    # --- saved

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and a JSON-able document from which `from_state` restores this object, but for the estimator."""
        self._check_conformalized()
        arrays = {"scores": self.calibration_.scores, "counts": self.calibration_.counts}
        if self.level_scores_ is not None:
            arrays["level_scores"] = self.level_scores_
        document = {name: getattr(self, f"{name}_") for name in _SAVED if name not in ("score", "confidence_level")}
        document |= {"score": self.score_name_, "confidence_level": float(self.confidence_level), "log": self._log}
        document |= {"seed": self.seed_, "taxonomy": self.taxonomy_.to_dict(), "leaves": list(self.leaves_)}
        if self.groups_ is not None:
            document |= {"groups": self.groups_.tolist(), "groups_dtype": self.groups_.dtype.str}
        return arrays, document

    @classmethod
    def from_state(
        cls, arrays: dict[str, np.ndarray], document: dict[str, Any], estimator: Any = None
    ) -> "HierarchicalConformalClassifier":
        """The calibrated object again, over the same fitted estimator.

        Raises
        ------
        ValueError
            If the state is not one that `get_state` gives, or the estimator has other classes or no logarithms where
            they were calibrated.
        """
        if absent := [k for k in (*_SAVED, "log", "seed", "taxonomy", "leaves") if k not in document]:
            raise ParameterError(f"document: {absent[0]!r} is missing. Fix: save it again with get_state.")
        tree = Taxonomy.from_dict(document["taxonomy"])
        settings = {name: document[name] for name in _SAVED}
        found = cls(estimator, prefit=estimator is not None, taxonomy=tree, leaves=document["leaves"], **settings)
        n_classes = len(document["leaves"] if estimator is None else estimator.classes_)  # other leaves: see _plant
        found._restore(estimator, n_classes, log=bool(document["log"]), seed=int(document["seed"]))
        found.groups_, _ = check_groups_of(document)
        n_columns = len(found.classes_) if found.condition_on_ == "class" else 1
        shape = (1 if found.groups_ is None else len(found.groups_), n_columns)
        found.calibration_ = check_scores(arrays, shape, "lac", log=False)
        found.level_scores_ = None
        if found.mode_ == "levels":
            table = np.asarray(arrays.get("level_scores"))
            expected = (len(found.calibration_.scores), len(found._depths))
            if table.shape != expected or not np.isfinite(table).all() or (np.diff(table, axis=0) < 0).any():
                raise ParameterError(f"level_scores: expected {expected} finite numbers, each column ascending.")
            found.level_scores_ = table
        return found

    # --- inside

    def _check_parameters(self) -> None:
        self._validate_params()
        exact_level(self.confidence_level)
        if self.max_nodes is not None and self.mode != "antichain":
            raise ParameterError(
                f"max_nodes: it goes with mode='antichain'; got mode={self.mode!r}. Fix: leave it out."
            )

    def _freeze(self) -> None:
        self.score_name_, self.randomized_ = self.__dict__["score"], bool(self.randomized)
        self.mode_, self.max_nodes_ = self.mode, None if self.max_nodes is None else int(self.max_nodes)
        self.condition_on_, self.allow_empty_ = self.condition_on, bool(self.allow_empty)
        self._plant()

    def _plant(self) -> None:
        """The tree over the classes of the classifier."""
        names = [str(name) for name in self.classes_.tolist()]
        if self.taxonomy is None:
            tree = Taxonomy.flat(names)
        else:
            tree = get_taxonomy(self.taxonomy) if isinstance(self.taxonomy, str) else self.taxonomy
        if self.leaves is not None:
            names = [str(leaf) for leaf in self.leaves]
        elif self.estimator_ is None and self.taxonomy is not None:
            names = list(tree.leaves)
        self.taxonomy_, self.leaves_ = tree, check_leaves(names, tree, self.classes_)
        self._tree, self.nodes_ = Tree.of_taxonomy(tree, self.leaves_)
        codes = tree.level_codes[:, [tree.leaves.index(leaf) for leaf in self.leaves_]]
        found = [np.unique(row, return_inverse=True) for row in codes]
        self.level_nodes_ = tuple(tuple(tree.nodes[i] for i in rows) for rows, _ in found)
        self._level_codes = [inverse for _, inverse in found]
        row = {below.tobytes(): i for i, below in enumerate(self._tree.members)}
        self._level_rows = [
            [row[(codes == i).tobytes()] for i in range(codes.max() + 1)] for codes in self._level_codes
        ]
        # Depths that differ from the one before: below the root, if there is more than one class
        different = [d for d in range(1, len(found)) if len(found[d][0]) > len(found[d - 1][0])]
        self._depths = different or [0]

    def _blocks_of(self, n: int) -> Iterator[slice]:
        step = max(1, _CELLS // (len(self.nodes_) * len(self.classes_)))
        return (slice(start, start + step) for start in range(0, n, step))

    def _score_all(self, values: np.ndarray) -> np.ndarray:
        """Conformity scores of all classes, (n, n_classes), float64."""
        scores = self._family_scores(values)
        return scores[:, 0] if self.level_scores_ is None else self._counts(scores)

    def _counts(self, scores: np.ndarray) -> np.ndarray:
        """Calibration cases that conform no better than each class, at the depth where they are fewest: (n, K)."""
        assert self.level_scores_ is not None
        columns = enumerate(self.level_scores_.T)
        return np.min([np.searchsorted(column, scores[:, d], side="right") for d, column in columns], axis=0) * 1.0

    def _family_scores(self, values: np.ndarray) -> np.ndarray:
        """Score of each class by the family of nested sets, (n, 1, n_classes); for "levels" by that of each depth."""
        found = [self._block_scores(values[block]) for block in self._blocks_of(len(values))]
        n_families = len(self._depths) if self.mode_ == "levels" else 1
        return np.concatenate(found) if found else np.empty((0, n_families, len(self.classes_)))

    def _block_scores(self, values: np.ndarray) -> np.ndarray:
        p = np.exp(values) if self._log else values.astype(float)
        u = np.zeros(len(p))
        if self.randomized_:
            u = content_uniform(np.sort(values, axis=1), self.seed_, log=self._log)
        options: dict[str, Any] = {"u": u, "score": self.score_name_, "allow_empty": self.allow_empty_}
        if self.mode_ != "levels":
            bound = 1 if self.mode_ == "node" else self.max_nodes_
            return nested_scores(p.T, self._tree, bound, **options)[:, None]
        mass = self._tree.sums(p.T)
        scores = []
        for depth in self._depths:
            rows = self._level_rows[depth]
            found = nested_scores(mass[rows], Tree.flat(len(rows)), None, **options)
            scores.append(found[:, self._level_codes[depth]])
        return np.stack(scores, axis=1)

    @property
    def _closes(self) -> bool:
        """Whether the classes that conform, each by its own class's threshold, need not be a member of the family."""
        return self.condition_on_ == "class" and (self.mode_ == "node" or self.max_nodes_ is not None)

    def _group_codes(self, groups: Any, n: int) -> np.ndarray:
        if self.groups_ is None:
            return np.zeros(n, dtype=np.intp)
        return group_codes(check_groups(groups, n), self.groups_)

    def _cells(self) -> list[tuple[str, int, np.ndarray]]:
        """Name, number of cases and scores of each condition."""
        calibration = self.calibration_
        names = [""]
        if self.condition_on_ is not None:
            members = self.classes_ if self.groups_ is None else self.groups_
            names = [f"{self.condition_on_} {name!r}" for name in members.tolist()]
        counts = calibration.counts.ravel()
        parts = np.split(calibration.scores, np.cumsum(counts)[:-1])
        return [(name, int(n), part) for name, n, part in zip(names, counts, parts, strict=True)]

    def _conditions(self, level: float) -> Iterator[Condition]:
        for name, n, scores in self._cells():
            condition = Condition.from_rank(name, n, conformal_rank(n, level))
            tied = not condition.is_vacuous and bool(np.sum(scores == scores[n - condition.rank]) > 1)
            # With ties, or where an answer holds more than the classes that conform, coverage may be larger
            yield dataclasses.replace(condition, high=1.0) if tied or self._closes else condition

    def _warn_of_few_cases(self, level: float) -> None:
        needed = least_n(level)
        if small := [f"{name or 'calibration'}: {n}" for name, n, _ in self._cells() if n < needed]:
            effect = "every answer holds " + ("it" if self.condition_on_ == "class" else "every class, it is the root")
            message = (
                f"Too few calibration cases for a threshold at confidence level {level:g}, which takes {needed}. "
                f"{'; '.join(small)}; there {effect}. Fix: calibrate on more cases, lower the level, or condition on "
                "less."
            )
            warnings.warn(message, CalibrationSizeWarning, stacklevel=3)
