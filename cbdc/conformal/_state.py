"""Saved calibrations, checked before they are trusted: one that was damaged could promise what it does not keep."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ParameterError
from ..metrics import exact_level
from .scores import SCORES
from .thresholds import CalibrationScores

if TYPE_CHECKING:
    from .classifier import ConformalClassifier

# Parameters that a saved calibration restores
SETTINGS = (
    "score",
    "score_params",
    "condition_on",
    "rank_calibrated",
    "confidence_level",
    "guarantee",
    "delta",
    "window",
    "randomized",
)
_ALLOWED = {
    "score": tuple(SCORES),
    "condition_on": (None, "class", "group", "class_and_group", "cluster"),
    "guarantee": ("marginal", "pac"),
    "repeated": (None, "one", "hierarchical"),
}
_KINDS: dict[str, tuple] = {
    "score_params": (dict,),
    "rank_calibrated": (bool,),
    "confidence_level": (float,),
    "delta": (float,),
    "window": (int, type(None)),
    "randomized": (bool,),
    "log": (bool,),
    "seed": (int,),
    "n_classes": (int,),
}


def state_of(clf: "ConformalClassifier") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and a JSON-able document of a calibrated classifier."""
    arrays = {"scores": clf.calibration_.scores, "counts": clf.calibration_.counts}
    document = {
        "score": clf.score_name_,
        "score_params": clf.score_params_,
        "condition_on": clf.condition_on_,
        "rank_calibrated": clf.rank_limits_ is not None,
        "confidence_level": float(clf.confidence_level),
        "guarantee": clf.guarantee_,
        "delta": clf.delta_,
        "window": clf.window_,
        "randomized": clf.randomized_,
        "repeated": clf.repeated_,
        "log": clf._log,
        "seed": clf.seed_,
        "n_classes": len(clf.classes_),
        "certificate": clf.certificate().to_dict(),  # to be read; it is made anew from the rest
    }
    if clf.calibration_.units is not None:
        arrays["units"] = clf.calibration_.units
    if clf.condition_on_ == "cluster":
        assert clf.columns_ is not None
        arrays["columns"] = clf.columns_
    if clf.rank_limits_ is not None:
        arrays["rank_limits"] = clf.rank_limits_
    if clf.groups_ is not None:
        document |= {"groups": clf.groups_.tolist(), "groups_dtype": clf.groups_.dtype.str}
        document |= {"merged_groups": clf.merged_groups_}
    return arrays, document


def check_document(document: dict[str, Any]) -> None:
    """Raise unless every entry is there and of its kind."""
    if absent := [name for name in (*_ALLOWED, *_KINDS) if name not in document]:
        raise ParameterError(f"document: {absent[0]!r} is missing. Fix: save it again with get_state.")
    for name, allowed in _ALLOWED.items():
        if document[name] not in allowed:
            raise ParameterError(f"document: {name} is {document[name]!r}; expected one of {allowed}.")
    for name, kinds in _KINDS.items():
        if type(document[name]) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ParameterError(f"document: {name} is {document[name]!r}; expected {expected}.")
    exact_level(document["confidence_level"])
    if document["seed"] < 0 or document["n_classes"] < 1:
        raise ParameterError("document: seed and n_classes must not be negative, and there is one class at least.")


def check_groups_of(document: dict[str, Any]) -> tuple[np.ndarray | None, dict[str, str]]:
    """Names of the calibrated groups, None where the guarantee is not by group; and what was merged."""
    by_group = document["condition_on"] in ("group", "class_and_group")
    if by_group != ("groups" in document):
        raise ParameterError(f"document: condition_on is {document['condition_on']!r}, which does not fit its groups.")
    if not by_group:
        return None, {}
    groups = np.array(document["groups"], dtype=document["groups_dtype"])
    if groups.ndim != 1 or groups.dtype.kind not in "iubfU" or len(np.unique(groups)) != len(groups):
        raise ParameterError("document: groups must be a list of numbers or names, each of them once.")
    merged = document.get("merged_groups", {})
    if not isinstance(merged, dict) or not set(merged.values()) <= {str(name) for name in groups.tolist()}:
        raise ParameterError("document: merged_groups must lead to the groups.")
    return groups, merged


def check_classes_of(
    arrays: dict[str, np.ndarray], document: dict[str, Any]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Column of the tables of each class, and its lowest rank; None where there is none."""
    n_classes, condition = document["n_classes"], document["condition_on"]
    columns = np.arange(n_classes) if condition in ("class", "class_and_group") else None
    if condition == "cluster":
        columns = _whole_numbers(arrays, "columns", n_classes, 0)
        if len(np.unique(columns)) != columns.max() + 1:
            raise ParameterError("columns: the clusters must be numbered from 0, none left out.")
    limits = _whole_numbers(arrays, "rank_limits", n_classes, 1) if document["rank_calibrated"] else None
    return columns, limits


def _whole_numbers(arrays: dict[str, np.ndarray], name: str, n: int, least: int) -> np.ndarray:
    if name not in arrays:
        raise ParameterError(f"arrays: {name!r} is missing. Fix: save it again with get_state.")
    found = np.asarray(arrays[name])
    if found.shape != (n,) or found.dtype.kind not in "iu" or (found < least).any():
        raise ParameterError(f"{name}: expected {n} whole numbers, {least} or more.")
    return found.astype(np.intp)


def check_scores(arrays: dict[str, np.ndarray], shape: tuple[int, int], score: str, *, log: bool) -> CalibrationScores:
    """The table of scores, if it is one of the given shape, (n_groups or 1, n_columns or 1)."""
    if absent := {"scores", "counts"} - set(arrays):
        raise ParameterError(f"arrays: {min(absent)!r} is missing. Fix: save it again with get_state.")
    scores, counts = np.asarray(arrays["scores"]), np.asarray(arrays["counts"])
    if scores.ndim != 1 or scores.dtype != np.float64:
        raise ParameterError(f"scores: got {scores.dtype} {scores.shape}; expected float64 (n,).")
    if counts.shape != shape or counts.dtype.kind not in "iu":
        raise ParameterError(f"counts: got {counts.dtype} {counts.shape}; expected whole numbers {shape}.")
    counts = counts.astype(np.int64)
    if (counts < 0).any() or counts.sum() != len(scores):
        raise ParameterError(f"counts: they must be 0 or more and sum to the {len(scores)} scores; got {counts.sum()}.")
    # Minus infinity: the logarithm of a probability of 0, a label beyond the lowest rank of its class
    may_be_infinite = log or "rank_limits" in arrays or SCORES[score].infinite
    allowed = np.isfinite(scores) | (may_be_infinite & np.isneginf(scores))
    if not allowed.all():
        raise ParameterError(f"scores: number {np.flatnonzero(~allowed)[0]} is {scores[~allowed][0]}.")
    ascends = scores[1:] >= scores[:-1]
    firsts = np.cumsum(counts)
    ascends[firsts[(firsts > 0) & (firsts < len(scores))] - 1] = True  # from one condition to the next it may fall
    if not ascends.all():
        raise ParameterError(f"scores: number {np.flatnonzero(~ascends)[0] + 1} is out of order within its condition.")
    units = None if "units" not in arrays else _whole_numbers(arrays, "units", len(scores), 0)
    return CalibrationScores(scores, counts, units)
