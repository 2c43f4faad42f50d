"""Groups by one attribute or several, and what becomes of those with too few cases."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ParameterError
from ._codes import check_groups, group_codes

__all__ = ["calibrated_codes", "group_names", "merge_small_groups", "renamed", "settle_small_groups"]


def group_names(groups: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Name of each case's group (n,), and its attributes (n, n_attributes).

    Of several attributes, the columns of a table, every combination is a group, named by the values: with the names of
    the columns where there are any, as in ``"sex=female, skin_type=V"``. A comma within a value is written ``"\\,"``,
    so that no two combinations have one name.
    """
    if not isinstance(groups, pd.DataFrame) and np.ndim(groups) < 2:
        names = check_groups(groups, n)
        return names, names[:, None]
    table = groups if isinstance(groups, pd.DataFrame) else pd.DataFrame(np.asarray(groups))
    if len(table) != n or table.shape[1] == 0:
        raise ParameterError(f"groups: got shape {table.shape}; expected ({n}, n_attributes), a row for each case.")
    columns = []
    for name in table.columns:
        values = check_groups(table[name].to_numpy(), n).astype(str)
        values = np.char.add(f"{name}=", values) if isinstance(name, str) else values
        columns.append(np.char.replace(np.char.replace(values, "\\", "\\\\"), ",", "\\,"))
    attributes = np.stack(columns, axis=1)
    return np.array([", ".join(row) for row in attributes]), attributes


def settle_small_groups(
    names: np.ndarray, attributes: np.ndarray, columns: np.ndarray, least: int
) -> tuple[dict[str, str], str]:
    """Merge the groups with fewer than `least` cases, of a column that has as many in all.

    Parameters
    ----------
    names : ndarray of shape (n,)
    attributes : ndarray of shape (n, n_attributes)
    columns : ndarray of shape (n,), int
        Class, or cluster of classes, that has a threshold of its own; 0 where there is one for all.
    least : int

    Returns
    -------
    merged : dict of str to str
        New name of every group that is merged.
    message : str
        What was done; empty if nothing.
    """
    possible = np.bincount(columns) >= least  # other columns no merging can help

    def is_small(cases: np.ndarray) -> bool:
        counts = np.bincount(columns[cases], minlength=len(possible))
        return len(cases) < least or bool((counts[possible] < least).any())

    if not any(is_small(np.flatnonzero(names == name)) for name in np.unique(names)):
        return {}, ""
    merged = merge_small_groups(names.astype(str), attributes, is_small)
    listed = "; ".join(f"{old!r} into {new!r}" for old, new in merged.items())
    message = f"Groups with too few cases are merged, and the guarantee holds for what they became: {listed}."
    if merged and len({merged.get(name, name) for name in names.astype(str).tolist()}) == 1:
        message += (
            " That is one group of all: no guarantee by group remains. Fix: calibrate on more cases of the rarest "
            "class or group, or condition on less."
        )
    return merged, message


def renamed(names: np.ndarray, merged: dict[str, str]) -> np.ndarray:
    """The names after merging."""
    return np.array([merged.get(name, name) for name in names.astype(str).tolist()]) if merged else names


def calibrated_codes(names: np.ndarray, known: np.ndarray, merged: dict[str, str]) -> np.ndarray:
    """Row of each case's group among the `known` ones after merging, by its name before it.

    The name of merged groups is none of a case: one that bears it by chance is of a group that was not calibrated.
    """
    if not merged:
        return group_codes(names, known)
    rows = {str(name): row for row, name in enumerate(known.tolist())}
    new = set(merged.values())
    rows_before = {name: row for name, row in rows.items() if name not in new}
    rows_before |= {old: rows[name] for old, name in merged.items()}
    before = np.array(sorted(rows_before))
    return np.array([rows_before[name] for name in before])[group_codes(names.astype(str), before)]


def merge_small_groups(
    names: np.ndarray, attributes: np.ndarray, is_small: Callable[[np.ndarray], bool]
) -> dict[str, str]:
    """New name of every group that is merged because it is too small; the others keep theirs.

    Small groups that agree in all attributes but the last are pooled first, then those that agree in all but the last
    two, and at last all that are left; so put the attribute that matters most first. What is still too small then joins
    the group that agrees with it in most leading attributes, of several the smallest.

    Parameters
    ----------
    names : ndarray of shape (n,)
    attributes : ndarray of shape (n, n_attributes)
    is_small : callable
        Takes the indices of the cases of a group.

    Returns
    -------
    dict of str to str
    """
    first = {str(name): attributes[i].astype(str) for name, i in zip(*np.unique(names, return_index=True))}
    members = {name: [name] for name in first}
    cases = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}

    def pool(parts: list[str], name: str) -> None:
        while name in first or name in members:  # a name that some group has already
            name += " (merged)"
        found = [member for part in parts for member in members.pop(part)]
        indices = np.concatenate([cases.pop(part) for part in parts])
        members[name], cases[name] = found, indices

    for depth in range(attributes.shape[1] - 1, -1, -1):
        small = [name for name in members if is_small(cases[name])]
        by_prefix: dict[tuple, list[str]] = {}
        for name in small:
            by_prefix.setdefault(tuple(first[members[name][0]][:depth]), []).append(name)
        for prefix, parts in by_prefix.items():
            if len(parts) > 1:
                pool(parts, ", ".join([*prefix, "other"]))
    while len(members) > 1 and (small := [name for name in members if is_small(cases[name])]):
        own = first[members[small[0]][0]]

        def distance(name: str, own: np.ndarray = own) -> tuple:
            return -int(np.cumprod(first[members[name][0]] == own).sum()), len(cases[name]), name

        nearest = min((name for name in members if name != small[0]), key=distance)
        pool([nearest, small[0]], f"{nearest} or {small[0]}")
    return {old: new for new, old_names in members.items() for old in old_names if old != new}
