"""Saved calibrations, checked before they are trusted: one that was damaged could promise what it does not keep."""

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..errors import ParameterError
from ..metrics import exact_level
from ._weighted import WeightedScores
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


class SavedCalibration:
    """`get_state` and `from_state` of an estimator that says in `_kept` what its calibration leaves.

    `_kept` gives the kind of each such attribute: ``int``, ``bool``, ``float``, ``dict`` or ``list`` (of what JSON
    has); for an array a tuple, the kind of its dtype and its axes, of which those named alike are of one length and
    "n_classes" is that of the classes; `WeightedScores`; or a list of kinds for a tuple of values. Attributes that are
    None are left out, if they are in `_may_be_none`. `_check_kept` refuses what `_kept` cannot, and makes what follows.
    """

    _kept: ClassVar[dict[str, Any]]
    _may_be_none: ClassVar[tuple[str, ...]] = ()
    _not_saved: ClassVar[tuple[str, ...]] = ("estimator", "prefit", "random_state")

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and a JSON-able document from which `from_state` restores this object, but for the estimator."""
        me: Any = self
        me._check_conformalized()
        arrays: dict[str, np.ndarray] = {}
        values: dict[str, Any] = {}
        for name, kind in self._kept.items():
            if getattr(self, name) is not None:
                _write(name, kind, getattr(self, name), arrays, values)
        return arrays, {
            "estimator": type(self).__name__,
            "parameters": {name: _plain(value) for name, value in self._saved_parameters().items()},
            "kept": values,
            "log": me._log,
            "seed": getattr(self, "seed_", 0),
            "n_classes": len(me.classes_),
        }

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any], estimator: Any = None) -> Self:
        """The calibrated object again, over the same fitted estimator: it predicts the same bits.

        Raises
        ------
        ValueError
            If the state is not one that `get_state` gives, or the estimator has another number of classes or no
            logarithms where they were calibrated.
        """
        me: Any = cls
        kinds = {"parameters": dict, "kept": dict, "log": bool, "seed": int, "n_classes": int}
        check_kinds(document, cls.__name__, kinds)
        parameters = document["parameters"]
        if set(parameters) != set(me._get_param_names()) - set(cls._not_saved):
            raise ParameterError(f"document: its parameters {sorted(parameters)} are not those of {cls.__name__}.")
        if document["seed"] < 0 or document["n_classes"] < 1:
            raise ParameterError("document: seed and n_classes must not be negative, and there is one class at least.")
        found = me(estimator, prefit=estimator is not None, **parameters)
        found._restore(estimator, document["n_classes"], log=document["log"], seed=document["seed"])
        axes = {"n_classes": document["n_classes"]}
        for name, kind in cls._kept.items():
            setattr(found, name, _read(name, kind, arrays, document["kept"], axes, name in cls._may_be_none))
        found._check_kept()
        return found

    def _saved_parameters(self) -> dict[str, Any]:
        """Those of the constructor, as they were when it was calibrated."""
        me: Any = self
        given = {k: v for k, v in me.get_params(deep=False).items() if k not in self._not_saved}
        calibrated = {name: getattr(self, f"{name}_", value) for name, value in given.items()}
        if "score" in given:
            calibrated |= {"score": me.score_name_}
        return calibrated

    def _check_kept(self) -> None:
        """Raise where the attributes do not fit each other."""


def check_kinds(document: dict[str, Any], estimator: str, kinds: dict[str, type]) -> None:
    """Raise unless the document is of this estimator, and its entries are of these kinds."""
    if document.get("estimator") != estimator:
        raise ParameterError(f"document: it is of {document.get('estimator')!r}; expected {estimator!r}.")
    for name, kind in kinds.items():
        if type(document.get(name)) is not kind:
            raise ParameterError(f"document: {name} is {document.get(name)!r}; expected {kind.__name__}.")


def array_of(name: str, kind: Any, arrays: dict[str, np.ndarray], axes: dict[str, int] | None = None) -> Any:
    """The array (or the float) of this name, if it is of this kind, as `SavedCalibration` has them."""
    return _read(name, kind, arrays, {}, {} if axes is None else axes, False)


def check_ascending(name: str, values: np.ndarray) -> None:
    """Raise unless scores are in order, and none is NaN."""
    if not (values[1:] >= values[:-1]).all() or np.isnan(values).any():
        raise ParameterError(f"{name}: the scores are not in ascending order, or one is NaN.")


def check_that(holds: Any, name: str, expected: str) -> None:
    """Raise unless a kept value is what it can be."""
    if not holds:
        raise ParameterError(f"{name}: expected {expected}. Fix: save it again with get_state.")


def _write(name: str, kind: Any, value: Any, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
    if kind is WeightedScores:
        arrays |= {f"{name}.scores": value.scores, f"{name}.weights": value.weights}
        arrays[f"{name}.unit"] = np.array(value.unit, dtype=float)
    elif isinstance(kind, list):
        for i, (one, part) in enumerate(zip(kind, value, strict=True)):
            _write(f"{name}.{i}", one, part, arrays, values)
    elif isinstance(kind, tuple) or kind is float:
        arrays[name] = np.asarray(value, dtype=float if kind is float else None)  # a float may be infinite
    else:
        values[name] = _plain(value)


def _read(
    name: str, kind: Any, arrays: dict[str, np.ndarray], values: dict[str, Any], axes: dict[str, int], optional: bool
) -> Any:
    """The value of this name, if it is of this kind."""
    if kind is WeightedScores:
        scores = _read(f"{name}.scores", ("f", name), arrays, values, axes, False)
        weights = _read(f"{name}.weights", ("f", name), arrays, values, axes, False)
        unit = _read(f"{name}.unit", float, arrays, values, axes, False)
        check_ascending(name, scores)
        check_that(((weights >= 0) & (weights <= 1)).all() and 0 < unit < np.inf, name, "weights from 0 to 1")
        return WeightedScores(scores, weights, unit)
    if isinstance(kind, list):
        if optional and f"{name}.0" not in arrays:
            return None
        return tuple(_read(f"{name}.{i}", one, arrays, values, axes, False) for i, one in enumerate(kind))
    is_array = isinstance(kind, tuple) or kind is float
    if name not in (arrays if is_array else values):
        if optional:
            return None
        raise ParameterError(f"state: {name!r} is missing. Fix: save it again with get_state.")
    if not is_array:
        check_that(type(values[name]) is kind, name, kind.__name__)
        return values[name]
    array = np.asarray(arrays[name])
    dtype, shape = ("f", ()) if kind is float else (kind[0], kind[1:])
    expected = f"an array of kind {dtype!r}, of shape {shape}"
    check_that(array.dtype.kind == dtype and array.ndim == len(shape), name, expected)
    for axis, length in zip(shape, array.shape):
        check_that(length == (axis if isinstance(axis, int) else axes.setdefault(axis, length)), name, expected)
    return float(array) if kind is float else array


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value
