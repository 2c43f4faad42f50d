"""Prediction sets against the truth: coverage, size, and both by class and by group."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .bands import clopper_pearson, coverage_band
from .probabilities import check_codes

__all__ = [
    "class_coverage",
    "coverage",
    "coverage_table",
    "empty_rate",
    "mean_set_size",
    "set_size_histogram",
    "singleton_rate",
    "size_stratified_coverage",
]


def coverage(sets: ArrayLike, y: ArrayLike) -> float:
    """Share of cases whose set holds the true class.

    Parameters
    ----------
    sets : array-like of shape (n, n_classes), bool
    y : array-like of shape (n,), int
        Column of the true class.

    Returns
    -------
    float
        NaN without cases.

    Examples
    --------
    >>> coverage([[True, False], [True, True], [False, True]], [0, 1, 0])
    0.6666666666666666
    """
    return _mean(_covered(*_check(sets, y)))


def class_coverage(sets: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Coverage among the cases of each class.

    Parameters
    ----------
    sets : array-like of shape (n, n_classes), bool
    y : array-like of shape (n,), int

    Returns
    -------
    ndarray of shape (n_classes,)
        NaN for a class without cases.

    Examples
    --------
    >>> class_coverage([[True, False, False], [True, True, True], [False, True, False]], [0, 1, 0])
    array([0.5, 1. , nan])
    """
    sets, y = _check(sets, y)
    return _ratio(np.bincount(y, _covered(sets, y), sets.shape[1]), np.bincount(y, minlength=sets.shape[1]))


def mean_set_size(sets: ArrayLike) -> float:
    """Mean number of classes in a set; NaN without cases.

    Examples
    --------
    >>> mean_set_size([[True, False], [True, True]])
    1.5
    """
    return _mean(check_sets(sets).sum(axis=1))


def set_size_histogram(sets: ArrayLike) -> np.ndarray:
    """Number of sets of each size, (n_classes + 1,): empty sets first.

    Examples
    --------
    >>> set_size_histogram([[True, False], [True, True], [True, True]])
    array([0, 1, 2])
    """
    sets = check_sets(sets)
    return np.bincount(sets.sum(axis=1), minlength=sets.shape[1] + 1)


def singleton_rate(sets: ArrayLike) -> float:
    """Share of sets that hold exactly one class; NaN without cases.

    Examples
    --------
    >>> singleton_rate([[True, False], [True, True]])
    0.5
    """
    return _mean(check_sets(sets).sum(axis=1) == 1)


def empty_rate(sets: ArrayLike) -> float:
    """Share of empty sets; NaN without cases. LAC gives one where no class is probable enough.

    Examples
    --------
    >>> empty_rate([[True, False], [False, False]])
    0.5
    """
    return _mean(check_sets(sets).sum(axis=1) == 0)


def size_stratified_coverage(sets: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Coverage among the sets of each size; far apart, they show that easy and hard cases are treated unequally.

    Parameters
    ----------
    sets : array-like of shape (n, n_classes), bool
    y : array-like of shape (n,), int

    Returns
    -------
    ndarray of shape (n_classes + 1,)
        Empty sets first; NaN for a size that does not occur. The counts are `set_size_histogram`.

    References
    ----------
    Angelopoulos et al., *Uncertainty sets for image classifiers using conformal prediction*, arXiv:2009.14193.

    Examples
    --------
    >>> size_stratified_coverage([[True, False], [True, True], [False, True]], [0, 1, 0])
    array([nan, 0.5, 1. ])
    """
    sets, y = _check(sets, y)
    sizes = set_size_histogram(sets)
    return _ratio(np.bincount(sets.sum(axis=1), _covered(sets, y), len(sizes)), sizes)


def coverage_table(
    sets: ArrayLike,
    y: ArrayLike,
    *,
    classes: Sequence[Any] | np.ndarray | None = None,
    groups: ArrayLike | None = None,
    n_calibration: int | ArrayLike | Mapping[Hashable, Any] | None = None,
    confidence_level: float | None = None,
    rank: Callable[[int], int] | None = None,
    columns: ArrayLike | None = None,
    open_ended: ArrayLike | Mapping[Hashable, Any] | None = None,
    least_n: int = 10,
    probability: float = 0.95,
) -> pd.DataFrame:
    """Coverage and set size: all cases, each class, each group, with an exact interval and the expected band.

    Parameters
    ----------
    sets : array-like of shape (n, n_classes), bool
    y : array-like of shape (n,), int or str
        Column of the true class, or its name among `classes`.
    classes : sequence of length n_classes, optional
        Names of the classes; default: their numbers.
    groups : array-like of shape (n,), optional
        For example the skin type; a missing value gets a row ``"missing"`` of its own.
    n_calibration : int, array-like of shape (n_classes,), or mapping, optional
        Calibration cases behind each threshold: one number for a marginal predictor, one a class, ``{group: number}``,
        or ``{group: one a class}``. With `confidence_level` it gives the expected band of each row that the guarantee
        speaks of; the band of every other row is NaN. `ConformalClassifier.coverage_table` fills in all of these.
    confidence_level : float, optional
        Nominal level of the sets.
    rank : callable, optional
        Rank of the threshold among so many calibration cases; None stands for `conformal_rank` at the level.
    columns : array-like of shape (n_classes,), int, optional
        Which threshold each class has, where classes share one: `n_calibration` then has one number for each of them.
    open_ended : bool, array-like or mapping, optional
        Like `n_calibration`: where scores tie at a threshold, the upper end of a band that rests on it is 1.
    least_n : int, default=10
        A row of fewer cases keeps its counts; its rates are NaN, and `reason` says so.
    probability : float, default=0.95
        Probability of the interval and of the band.

    Returns
    -------
    DataFrame
        Columns ``by`` ("all", "class", "group"), ``name``, ``n``, ``covered``, ``coverage``, ``low`` and ``high``
        (Clopper-Pearson; for independent cases, see `cluster_interval` for others), ``mean_set_size``, ``band_low`` and
        ``band_high`` (`coverage_band`), ``reason``.

    Raises
    ------
    ValueError
        If lengths do not fit each other.

    Examples
    --------
    >>> sets = np.ones((40, 2), dtype=bool)
    >>> y = np.repeat([0, 1], [35, 5])
    >>> sets[:3, 0] = False
    >>> table = coverage_table(sets, y, classes=["nevus", "melanoma"])
    >>> print(table[["name", "n", "covered", "coverage"]].round(3).to_string(index=False))
        name  n  covered  coverage
         all 40       37     0.925
       nevus 35       32     0.914
    melanoma  5        5       NaN
    >>> table["reason"].iloc[-1]
    '5 cases; at least 10 needed'
    """
    n_classes = check_sets(sets).shape[1]
    names = list(range(n_classes)) if classes is None else list(classes)
    if len(names) != n_classes:
        raise ValueError(f"classes: got {len(names)} names for {n_classes} columns.")
    sets, y = _check(sets, _codes_of(y, names))
    rows: list[tuple[str, Any, np.ndarray]] = [("all", "all", np.ones(len(y), dtype=bool))]
    rows += [("class", name, y == k) for k, name in enumerate(names)]
    group_codes, group_names = _group_codes(groups, len(y))
    rows += [("group", name, group_codes == g) for g, name in enumerate(group_names if groups is not None else [])]
    if (n_calibration is None) != (confidence_level is None):
        raise ValueError("n_calibration and confidence_level: the expected band needs both.")
    column = y if columns is None else _check_columns(columns, n_classes)[y]
    n_columns = n_classes if columns is None else int(np.max(columns)) + 1
    tables = [table for table in (n_calibration, open_ended) if table is not None]
    cells = [_cells(table, column, group_codes, group_names, n_columns) for table in tables]
    covered, size = _covered(sets, y), sets.sum(axis=1)
    records = []
    for by, name, inside in rows:
        n, k = int(inside.sum()), int(covered[inside].sum())
        enough = n >= max(least_n, 1)
        low, high = clopper_pearson(k, n, probability) if enough else (np.nan, np.nan)
        band = (np.nan, np.nan)
        if cells and confidence_level is not None and enough:
            band = _band(inside, *cells[0], confidence_level, probability, rank)
            if len(cells) == 2 and not np.isnan(band[0]) and cells[1][1][cells[1][0][inside]].any():
                band = band[0], 1.0
        records.append(
            {
                "by": by,
                "name": name,
                "n": n,
                "covered": k,
                "coverage": k / n if enough else np.nan,
                "low": float(low),
                "high": float(high),
                "mean_set_size": size[inside].mean() if enough else np.nan,
                "band_low": band[0],
                "band_high": band[1],
                "reason": "" if enough else f"{n} cases; at least {max(least_n, 1)} needed",
            }
        )
    return pd.DataFrame(records)


def check_sets(sets: ArrayLike) -> np.ndarray:
    """The sets as bool (n, n_classes), or an error that says what they are."""
    sets = np.asarray(sets)
    if sets.ndim != 2 or sets.shape[1] == 0:
        raise ValueError(f"sets: got shape {sets.shape}; expected (n, n_classes), one row a case.")
    if sets.dtype != bool:
        raise ValueError(f"sets: got {sets.dtype}; expected bool, as predict_set gives it.")
    return sets


def _check(sets: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    sets = check_sets(sets)
    return sets, check_codes(y, *sets.shape)


def _covered(sets: np.ndarray, y: np.ndarray) -> np.ndarray:
    return sets[np.arange(len(y)), y]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _group_codes(groups: ArrayLike | None, n: int) -> tuple[np.ndarray, list]:
    """Codes and sorted names; the cases without a group come last, as "missing"."""
    if groups is None:
        return np.zeros(n, dtype=int), ["all"]
    if np.shape(groups) != (n,):
        raise ValueError(f"groups: got shape {np.shape(groups)}; expected ({n},), one for each case.")
    codes, names = pd.factorize(pd.Series(np.asarray(groups)), sort=True)
    names = list(names)
    if (codes < 0).any():
        codes = np.where(codes < 0, len(names), codes)
        names.append("missing")
    return codes, names


def _codes_of(y: ArrayLike, names: list) -> ArrayLike:
    """Columns of names of classes; columns stay as they are."""
    y = np.asarray(y)
    if y.dtype.kind not in "OUS":
        return y
    column = {str(name): k for k, name in enumerate(names)}
    given = y.ravel().tolist()
    if unknown := [i for i, name in enumerate(given) if str(name) not in column]:
        raise ValueError(f"y: case {unknown[0]} is {given[unknown[0]]!r}; classes are {', '.join(column)}.")
    return np.array([column[str(name)] for name in given], dtype=int).reshape(y.shape)


def _check_columns(columns: ArrayLike, n_classes: int) -> np.ndarray:
    columns = np.asarray(columns)
    if columns.shape != (n_classes,) or columns.dtype.kind not in "iu" or (columns < 0).any():
        raise ValueError(f"columns: got {columns.dtype} {columns.shape}; expected {n_classes} whole numbers from 0.")
    return columns


def _cells(
    n_calibration: Any, y: np.ndarray, group_codes: np.ndarray, group_names: list, n_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each case, and the number of calibration cases behind each cell's threshold."""
    if isinstance(n_calibration, Mapping):
        if absent := [name for name in group_names if name not in n_calibration]:
            raise ValueError(f"n_calibration: no number for group {absent[0]!r}; it has {list(n_calibration)}.")
        counts = np.array([n_calibration[name] for name in group_names])
        if counts.ndim == 1:
            return group_codes, counts
        if counts.shape[1] == n_classes:
            return group_codes * n_classes + y, counts.ravel()
    else:
        counts = np.atleast_1d(n_calibration)
        if counts.shape == (1,) and np.ndim(n_calibration) == 0:
            return np.zeros(len(y), dtype=int), counts
        if counts.shape == (n_classes,):
            return y, counts
    raise ValueError(f"n_calibration: got shape {counts.shape}; expected one number a class, {n_classes}.")


def _band(
    inside: np.ndarray,
    cells: np.ndarray,
    counts: np.ndarray,
    confidence_level: float,
    probability: float,
    rank: Callable[[int], int] | None,
) -> tuple[float, float]:
    """Band of a row that consists of whole cells; NaN for any other row, of which nothing is guaranteed."""
    n_test = np.bincount(cells[inside], minlength=len(counts))
    whole = np.bincount(cells, minlength=len(counts))
    present = n_test > 0
    if (n_test[present] != whole[present]).any():
        return np.nan, np.nan
    ranks = None if rank is None else [rank(int(n)) for n in counts[present]]
    return coverage_band(counts[present], n_test[present], confidence_level, probability=probability, ranks=ranks)
