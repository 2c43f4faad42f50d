"""Saved calibrations, checked before they are trusted: one that was damaged could promise what it does not keep."""

from typing import Any

import numpy as np

from ..errors import ParameterError
from ..metrics import exact_level
from .scores import SCORES
from .thresholds import CalibrationScores

_CONDITIONS = (None, "class", "group", "class_and_group")
_KINDS = {"randomized": bool, "log": bool, "seed": int, "n_classes": int, "confidence_level": float}


def check_document(document: dict[str, Any]) -> None:
    """Raise unless every entry is there and of its kind."""
    if absent := [name for name in ("score", "condition_on", *_KINDS) if name not in document]:
        raise ParameterError(f"document: {absent[0]!r} is missing. Fix: save it again with get_state.")
    for name, allowed in (("score", tuple(SCORES)), ("condition_on", _CONDITIONS)):
        if document[name] not in allowed:
            raise ParameterError(f"document: {name} is {document[name]!r}; expected one of {allowed}.")
    for name, kind in _KINDS.items():
        if type(document[name]) is not kind:
            raise ParameterError(f"document: {name} is {document[name]!r}; expected {kind.__name__}.")
    exact_level(document["confidence_level"])
    if document["seed"] < 0 or document["n_classes"] < 1:
        raise ParameterError("document: seed and n_classes must not be negative, and there is one class at least.")


def check_groups_of(document: dict[str, Any]) -> np.ndarray | None:
    """Names of the calibrated groups; None where the guarantee is not by group."""
    by_group = document["condition_on"] in ("group", "class_and_group")
    if by_group != ("groups" in document):
        raise ParameterError(f"document: condition_on is {document['condition_on']!r}, which does not fit its groups.")
    if not by_group:
        return None
    groups = np.array(document["groups"], dtype=document["groups_dtype"])
    if groups.ndim != 1 or groups.dtype.kind not in "iubfU" or len(np.unique(groups)) != len(groups):
        raise ParameterError("document: groups must be a list of numbers or names, each of them once.")
    return groups


def check_scores(arrays: dict[str, np.ndarray], shape: tuple[int, int], *, log: bool) -> CalibrationScores:
    """The table of scores, if it is one of the given shape, (n_groups or 1, n_classes or 1)."""
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
    allowed = np.isfinite(scores) | (log & np.isneginf(scores))  # the logarithm of a probability of 0
    if not allowed.all():
        raise ParameterError(f"scores: number {np.flatnonzero(~allowed)[0]} is {scores[~allowed][0]}.")
    ascends = scores[1:] >= scores[:-1]
    firsts = np.cumsum(counts)
    ascends[firsts[(firsts > 0) & (firsts < len(scores))] - 1] = True  # from one condition to the next it may fall
    if not ascends.all():
        raise ParameterError(f"scores: number {np.flatnonzero(~ascends)[0] + 1} is out of order within its condition.")
    return CalibrationScores(scores, counts)
