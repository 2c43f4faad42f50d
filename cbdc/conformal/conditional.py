"""Coverage in many groups at once, which may overlap: every skin type, every sex, every age band."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import linprog

from ..errors import ParameterError
from ..metrics import exact_level
from ._base import ScoringClassifier
from ._codes import check_groups
from ._scale import to_scale
from ._state import SavedCalibration, check_that
from .certificate import Certificate
from .patients import OF_EACH, one_of_each, repeats

__all__ = ["ConditionalConformalClassifier"]

# Scores are counted in whole steps, which a programme tells apart: a step is a hundred times its tolerance.
_STEP = 2.0**-30  # of the scale
_UNIT = 2.0**-17  # in which the programme has a step
_ROUNDING = 0.01  # of a step; thresholds are sums of whole ones
_BELOW = 1e-6  # how far below the level the dual variable is put
_SOLVED, _INFEASIBLE = 0, 2  # status of a programme


class ConditionalConformalClassifier(SavedCalibration, ScoringClassifier):
    """Prediction sets that cover in each of several groups, of which a case may belong to many.

    With `ConformalClassifier` and several attributes every combination is a group, and combinations grow rare. Here
    each value of each attribute is one, and a case has a threshold made of those it belongs to.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    score, score_params, randomized, prefit, random_state
        As for `ConformalClassifier`.
    confidence_level : float, default=0.9

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    groups_ : list of str
        Names of the groups, the first of them "all".
    n_calibration_ : ndarray of shape (n_groups,), int
        Calibration cases of each.
    by_unit_ : bool
        Whether one calibration case was drawn of each unit.

    Notes
    -----
    **Guarantee.** Assumption: the calibration cases, with their groups, and the new one are exchangeable. Statement:
    for every group g at once, P(y in set given that the case is of g) >= confidence_level, over the draw of both. What
    breaks it: groups chosen after looking at the scores; a value that calibration does not have (an error); several
    calibration cases of one patient or lesion (give `units`); what breaks any conformal guarantee. Without ties a group
    is covered more than that by at most the number of groups over its cases; with them by more. A group with too few
    cases has full sets for its members. Sets of different levels need not be nested, since quantile regressions may
    cross.

    The threshold is a quantile regression of the scores on membership, fitted with the new case at the score that is
    tried: the dual of one linear programme for each pattern of membership. A regression adds and subtracts scores, so
    they stand on a fixed logarithmic scale, in steps of 2^-30, on which a programme tells them apart whatever the
    classifier's sharpness; a score of minus infinity is one like others. With groups that do not overlap the sets are
    those of ``condition_on="group"``.

    References
    ----------
    Gibbs, Cherian and Candes, *Conformal prediction with conditional guarantees*, arXiv:2305.12616.

    Examples
    --------
    >>> import pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> P = rng.dirichlet(np.ones(3), 300)
    >>> y = (P.cumsum(axis=1) < rng.random((300, 1))).sum(axis=1)
    >>> people = pd.DataFrame({"sex": rng.choice(["f", "m"], 300), "age": rng.choice(["<50", "50+"], 300)})
    >>> clf = ConditionalConformalClassifier().conformalize(P[:200], y[:200], people[:200])
    >>> clf.groups_
    ['all', 'sex=f', 'sex=m', 'age=50+', 'age=<50']
    >>> clf.predict_set(P[200:], people[200:]).shape
    (100, 3)
    """

    _calibrated = ("calibration_",)
    _kept = {  # noqa: RUF012
        "calibration_": [("f", "n"), ("f", "n", "n_groups")],
        "groups_": list,
        "n_calibration_": ("i", "n_groups"),
        "by_unit_": bool,
        "_attributes": dict,
    }
    _may_be_none = ("_attributes",)

    def __init__(
        self,
        estimator: Any = None,
        *,
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        confidence_level: float = 0.9,
        randomized: bool = True,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.score = score
        self.score_params = score_params
        self.confidence_level = confidence_level
        self.randomized = randomized
        self.prefit = prefit
        self.random_state = random_state

    def conformalize(
        self, X: ArrayLike, y: ArrayLike, groups: Any, units: ArrayLike | None = None
    ) -> "ConditionalConformalClassifier":
        """Calibrate on cases that `fit` never saw. Scores and memberships are kept.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        groups : bool array of shape (n, n_groups), or DataFrame of shape (n, n_attributes)
            Membership of each case; or attributes, each value of which is a group. A group of their own for missing
            values is up to you.
        units : array-like of shape (n,), int or str, optional
            Patient or lesion of each case, where several cases may be of one; one case of each is drawn.

        Returns
        -------
        ConditionalConformalClassifier
            Itself.

        Raises
        ------
        ValueError
            If an input is not what it should be.
        """
        self._prepare(X)
        values = self._values(X)
        steps = self._steps(self._score_labels(values, self._labels(y, len(values))))
        self._attributes = None
        if isinstance(groups, pd.DataFrame):
            self._attributes = {
                str(name): np.unique(check_groups(groups[name], len(values)).astype(str)).tolist() for name in groups
            }
        member = self._membership(groups, len(values))
        if self._attributes is None:
            self.groups_ = ["all", *map(str, range(member.shape[1] - 1))]
        else:
            self.groups_ = ["all", *(f"{name}={value}" for name, known in self._attributes.items() for value in known)]
        kept, self.by_unit_ = one_of_each(units, len(values), self.seed_), units is not None
        steps, member = steps[kept], member[kept]
        self.n_calibration_ = member.sum(axis=0).astype(int)
        self.calibration_ = steps, member
        self._kept_thresholds: dict[tuple[float, bytes], float] = {}
        return self

    def predict_set(self, X: ArrayLike, groups: Any, confidence_level: float | None = None) -> np.ndarray:
        """Prediction sets, bool (n, n_classes).

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        groups : as in `conformalize`, for these cases
        confidence_level : float, optional
            Default: that of the constructor.

        Raises
        ------
        ParameterError
            If a group is not as calibrated, or the linear programme of one is not solved.
        """
        level = self._level(confidence_level)
        values = self._values(X)
        patterns, place = np.unique(self._membership(groups, len(values)), axis=0, return_inverse=True)
        limits = np.array([self._threshold(pattern, level) for pattern in patterns])
        return self._steps(self._score_all(values)) >= limits[place.ravel()][:, None]

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the sets promise, and the cases that each group rests on."""
        level = self._level(confidence_level)
        named = zip(self.groups_, self.n_calibration_.tolist())
        counts = ", ".join(f"{name} {n}" for name, n in sorted(named, key=lambda pair: pair[1])[:12])
        n = int(self.n_calibration_[0])
        return Certificate(
            f"the set holds the true class with probability at least {level:g} in each of the groups (calibration "
            f"cases, the fewest first: {counts})",
            (f"this case and the {n} calibration cases, with their groups{OF_EACH * self.by_unit_} are exchangeable",),
            (
                "groups chosen after looking at the scores",
                "another population, camera or clinic than in calibration",
                *repeats(self.by_unit_),
            ),
            level,
            n,
        )

    def _check_kept(self) -> None:
        steps, member = self.calibration_
        check_that((steps == np.floor(steps)).all(), "calibration_", "whole steps")
        check_that(np.isin(member, (0, 1)).all() and member[:, 0].all(), "calibration_", "memberships of 0 or 1")
        check_that((member.sum(axis=0) == self.n_calibration_).all(), "n_calibration_", "the cases of each group")
        known = len(self.groups_) if self._attributes is None else 1 + sum(map(len, self._attributes.values()))
        check_that(len(self.groups_) == known == member.shape[1], "groups_", "a name for each group")
        self._kept_thresholds = {}

    def _steps(self, scores: np.ndarray) -> np.ndarray:
        """Scores in whole steps of the scale, as calibration cases and new ones alike are compared."""
        return np.floor(to_scale(scores, self.score_name_, self._log) / _STEP)

    def _membership(self, groups: Any, n: int) -> np.ndarray:
        """0 or 1, (n, 1 + n_groups), the first column all 1."""
        if self._attributes is None:
            member = np.asarray(groups)
            expected = self.calibration_[1].shape[1] - 1 if hasattr(self, "calibration_") else None
            if member.ndim != 2 or len(member) != n or not np.isin(member, (0, 1)).all():
                raise ParameterError(f"groups: got {member.dtype} {member.shape}; expected bool ({n}, n_groups).")
            if expected not in (None, member.shape[1]):
                raise ParameterError(f"groups: got {member.shape[1]} columns; {expected} were calibrated.")
            return np.hstack([np.ones((n, 1)), member.astype(float)])
        if not isinstance(groups, pd.DataFrame) or list(map(str, groups)) != list(self._attributes):
            raise ParameterError(f"groups: expected a table with the columns {list(self._attributes)}, as calibrated.")
        columns = [np.ones(n)]
        for name in groups:
            values = check_groups(groups[name], n, name=str(name)).astype(str)
            known = self._attributes[str(name)]
            if len(unknown := np.flatnonzero(~np.isin(values, known))):
                raise ParameterError(
                    f"groups: case {unknown[0]} has {name}={values[unknown[0]]}, not calibrated; known are {known}."
                )
            columns += [(values == value).astype(float) for value in known]
        return np.stack(columns, axis=1)

    def _threshold(self, pattern: np.ndarray, level: float) -> float:
        """Least step in the sets of cases of this membership; minus infinity where calibration says too little.

        The dual variable of the new case rises with its nonconformity, up to the level, which it reaches at the
        threshold. So it is put just below the level, and the threshold is what a change of it would cost.
        """
        key = level, pattern.tobytes()
        if key not in self._kept_thresholds:
            steps, member = self.calibration_
            quantile = float(exact_level(level))
            found = linprog(
                steps * _UNIT,  # of which the negative is nonconformity
                A_eq=member.T,
                b_eq=-(quantile - _BELOW) * pattern,
                bounds=(quantile - 1, quantile),
                method="highs-ds",
                options={"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-8},
            )
            if found.status not in (_SOLVED, _INFEASIBLE):
                raise ParameterError(
                    f"predict_set: the quantile regression on {len(steps)} calibration cases was not solved "
                    f"({found.message}). Fix: calibrate on other cases, or with fewer groups."
                )
            solved = found.status == _SOLVED
            threshold = float(pattern @ found.eqlin.marginals) / _UNIT - _ROUNDING if solved else -np.inf
            self._kept_thresholds[key] = threshold
        return self._kept_thresholds[key]
