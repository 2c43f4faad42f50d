"""Labels and groups as integer codes, checked case by case."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import column_or_1d

from ..errors import ParameterError

_SHOWN = 20


def label_codes(y: Any, classes: np.ndarray, n: int) -> np.ndarray:
    """Column of each label, or an error that names the first label that is no class."""
    y = column_or_1d(y, warn=True)
    if len(y) != n:
        raise ParameterError(f"y: got {len(y)} labels for {n} cases; give one for each.")
    codes = _find(y, classes)
    if len(unknown := np.flatnonzero(codes < 0)):
        raise ParameterError(
            f"y: case {unknown[0]} has the label {_show(y[unknown[0]])}, which the classifier does not know; its "
            f"classes are {_some(classes)}. Fix: fit on every class, or leave these cases out and say so."
        )
    return codes


def group_codes(groups: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Row of each case's group, or an error that names the first group that was not calibrated."""
    codes = _find(groups, known)
    if len(unknown := np.flatnonzero(codes < 0)):
        raise ParameterError(
            f"groups: case {unknown[0]} is of group {_show(groups[unknown[0]])}, which was not calibrated; known are "
            f"{_some(known)}. Fix: calibrate on this group too, or merge it with another one before both steps."
        )
    return codes


def check_groups(groups: Any, n: int, name: str = "groups") -> np.ndarray:
    """The groups as an array (n,) of numbers or of names, none missing."""
    if groups is None:
        raise ParameterError("groups is missing: this condition_on needs the group of each case.")
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ParameterError(f"{name}: got shape {groups.shape}; expected ({n},), one for each case.")
    if len(missing := np.flatnonzero(pd.isna(groups))):
        raise ParameterError(
            f"{name}: case {missing[0]} has none. Fix: give such cases a name of their own, for example 'unknown', or "
            "leave them out and say so."
        )
    if groups.dtype == object:
        names = [isinstance(group, str) for group in groups]
        if any(names) and not all(names):
            raise ParameterError(f"{name}: numbers and names are mixed; give one or the other.")
        groups = groups.astype(str) if all(names) else np.array(groups.tolist())
    if groups.dtype.kind not in "iubfU":
        raise ParameterError(f"{name}: got {groups.dtype}; expected numbers or names.")
    return groups


def _find(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Place of each value in `names`, -1 where it is none of them."""
    if values.dtype == object and names.dtype.kind == "U":
        values = values.astype(str)
    if (values.dtype.kind in "US") != (names.dtype.kind in "US") and object not in (values.dtype, names.dtype):
        return np.full(len(values), -1)
    order = np.argsort(names)
    try:
        place = np.searchsorted(names, values, sorter=order)
    except TypeError:  # objects that have no order among them
        return np.full(len(values), -1)
    codes = order[np.minimum(place, len(order) - 1)]
    return np.where(names[codes] == values, codes, -1)


def _show(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)


def _some(names: np.ndarray) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN].tolist()))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
