"""The certificate of a `ConformalClassifier`, and the want of cases, in words."""

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics import conformal_rank, exact_level
from .certificate import Certificate, Condition
from .patients import approximate_band
from .scores import SCORES

if TYPE_CHECKING:
    from .classifier import ConformalClassifier

_LISTED = 12  # conditions named one by one; of more, the smallest


def make_certificate(clf: "ConformalClassifier", level: float) -> Certificate:
    """Assumptions, statement, and the 90% band of the coverage given the calibration cases, for each condition."""
    exact_level(level)
    calibration = clf.calibration_
    n, units = int(calibration.counts.sum()), calibration.units
    n_units = n if units is None else len(np.unique(units))
    holds = f"the set holds the true class with probability at least {level:g}{_among(clf)}"
    if clf.guarantee_ == "pac":
        over, more = "in the long run", ""
        if clf.window_ is not None:
            over, more = f"among the next {clf.window_} cases", " and those"
        holds = (
            f"with probability at least {1 - clf.delta_:g} over the calibration cases{more}, a share of at least "
            f"{level:g} of the sets holds the true class {over}{_among(clf)}"
        )
        if len(clf.thresholds(level).ravel()) > 1:
            holds += " (that probability is of each threshold on its own)"
    return Certificate(
        statement=holds + _of_a_new_unit(clf),
        assumptions=(_assumption(clf, n_units),),
        broken_by=_broken_by(clf),
        confidence_level=float(level),
        n_calibration=n_units,
        conditions=tuple(_conditions(clf, level)),
        delta=clf.delta_ if clf.guarantee_ == "pac" else None,
        hashes={"calibration_scores_sha256": _digest(calibration.scores, calibration.counts)},
    )


def _assumption(clf: "ConformalClassifier", n: int) -> str:
    """Who is exchangeable with whom; for a PAC threshold and the coverage in the long run independence is needed."""
    unseen = "none of them trained or tuned on"
    if clf.repeated_ == "hierarchical":
        return (
            f"this case's patient or lesion and the {n} of the calibration are exchangeable (independent patients or "
            f"lesions of the same population, the cases of each exchangeable among themselves, {unseen})"
        )
    what = "patients or lesions" if clf.repeated_ == "one" else "cases"
    drawn = ", each drawn from a patient or lesion of its own," if clf.repeated_ == "one" else ""
    if clf.guarantee_ == "pac" and clf.window_ is None:
        return f"the {n} calibration cases{drawn} and those to come are independent and of one population ({unseen})"
    return (
        f"this case and the {n} calibration cases{drawn} are exchangeable (independent {what} of the same population, "
        f"{unseen})"
    )


def _of_a_new_unit(clf: "ConformalClassifier") -> str:
    """Whose case is meant, where calibration cases came in units."""
    if clf.repeated_ is None:
        return ""
    new = "drawn at random from a new patient or lesion"
    if clf.repeated_ == "one":
        return f", for a case {new}"
    kinds = {None: "", "group": " of that group", "cluster": " of that cluster"}
    of = kinds.get(clf.condition_on_, " of that class")
    return f", for a case{of} {new}" + " that has one" * (clf.condition_on_ is not None)


def describe_small_conditions(clf: "ConformalClassifier", level: float, needed: int) -> str:
    """Which conditions have too few cases, and what follows; empty if none."""
    by_class, by_group = clf.columns_ is not None, clf.groups_ is not None
    small = sorted((n, name) for name, n, _ in _cells(clf) if n < needed)
    if not small:
        return ""
    effect = "so every set " + ("there " if by_group else "") + "holds "
    effect += "every class" if not by_class else "this class" if by_group else "it"
    listed = "; ".join(f"{name or 'calibration'}: {n} case{'s' * (n != 1)}, {effect}" for n, name in small[:_LISTED])
    more = f"; and {len(small) - _LISTED} more" if len(small) > _LISTED else ""
    fix = "calibrate on more cases, or lower the level"
    if by_class or by_group:
        fix += ", or condition on less"
    if by_group and clf.small_groups != "merge":
        fix += ", or merge groups (small_groups='merge')"
    return (
        f"Too few calibration cases for a finite threshold at confidence level {level:g}, which takes "
        f"{needed}. {listed}{more}. Fix: {fix}."
    )


def _among(clf: "ConformalClassifier") -> str:
    found = {
        None: " on average over all cases",
        "class": " among the cases of each class",
        "group": " among the cases of each group",
        "class_and_group": " among the cases of each class in each group",
        "cluster": " among the cases of each cluster of classes",
    }[clf.condition_on_]
    if clf.groups_ is not None and clf.merged_groups_:
        if len(clf.groups_) == 1:
            of = "each class" if clf.columns_ is not None else "all groups"
            return f" among the cases of {of} together (all groups were merged, and none has a guarantee of its own)"
        found += " (small groups were merged: it holds for what they became, not for each of them)"
    return found


def _group_name(clf: "ConformalClassifier", group: Any) -> str:
    """A group in words, with those that were merged into it."""
    members = sorted(old for old, new in clf.merged_groups_.items() if new == str(group))
    shown = ", ".join(map(repr, members[:_LISTED])) + f" and {len(members) - _LISTED} more" * (len(members) > _LISTED)
    return f"group {group!r}" + (f" (merged: {shown})" if members else "")


def _broken_by(clf: "ConformalClassifier") -> tuple[str, ...]:
    found = ["another population, camera or clinic than in calibration"]
    if clf.condition_on_ not in ("class", "class_and_group"):
        found.append("another prevalence of the classes")
    if clf.repeated_ is None:
        found.append("several calibration cases of one patient or lesion")
    return (*found, "choosing the level after looking at the sets")


def _cells(clf: "ConformalClassifier") -> list[tuple[str, int, tuple[int, int]]]:
    """Name, number of units, and place in the tables of each condition."""
    cells = []
    for (g, k), n in np.ndenumerate(clf.calibration_.n_units):
        names = []
        if clf.columns_ is not None:
            members = [repr(name) for name in clf.classes_[clf.columns_ == k].tolist()]
            names.append(f"class{'es' * (len(members) > 1)} {', '.join(members)}")
        if clf.groups_ is not None:
            names.append(_group_name(clf, clf.groups_[g].item()))
        cells.append((" in ".join(names), int(n), (g, k)))
    return cells


def _conditions(clf: "ConformalClassifier", level: float) -> list[Condition]:
    calibration = clf.calibration_
    thresholds, found = clf.thresholds(level), []
    for name, n, cell in _cells(clf):
        start = int(calibration.offsets[cell])
        cases = slice(start, start + int(calibration.counts[cell]))
        scores = calibration.scores[cases]
        if calibration.units is None or n == calibration.counts[cell]:  # one case of each unit
            condition, limit = Condition.from_rank(name, n, clf.rank(n, level)), thresholds[cell]
            if SCORES[clf.score_name_].ties or limit == -np.inf or np.sum(scores == limit) > 1:
                condition = dataclasses.replace(condition, high=1.0)  # with ties coverage is stochastically larger
            found.append(condition)
            continue
        condition = Condition(name, n, n + 1, 1.0, 1.0, approximate=True)
        if np.isfinite(thresholds[cell]):
            covered, units = scores >= thresholds[cell], calibration.units[cases]
            low, high = approximate_band(covered, units)
            rank = min(n, conformal_rank(n, level))
            condition = dataclasses.replace(condition, rank=rank, low=low, high=high)
        found.append(condition)
    return found


def _digest(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
