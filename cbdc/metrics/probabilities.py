"""Probabilities against the truth: proper scores, ranking, and what is gained by deferring the doubtful."""

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata

__all__ = [
    "aurc",
    "auroc",
    "balanced_accuracy",
    "brier_score",
    "check_codes",
    "check_probabilities",
    "class_table",
    "negative_log_likelihood",
    "risk_coverage_curve",
]

CELLS = 2**19  # of a chunk: what is read twice is still in the cache
_ROWS = 2**14  # of a product with ones: with few columns and more rows it takes three times as long
_WIDE = 64  # columns, from which einsum is quicker than such a product
_SUM_TOLERANCE = 1e-4  # a float32 softmax over thousands of classes stays well within it
_ROUNDED = 0.02  # a sum nearer to 1 is one of rounded probabilities


def check_probabilities(proba: ArrayLike, name: str = "proba", *, first_row: int = 0) -> np.ndarray:
    """The probabilities as a float array (n, n_classes), float32 kept, or an error that names the row.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    name : str, default="proba"
        What the message calls them.
    first_row : int, default=0
        Number of the first row, in the message.

    Raises
    ------
    ValueError
        If the array is not two-dimensional, or a row has a value that is NaN, infinite or negative, or does not sum
        to one.

    Examples
    --------
    >>> check_probabilities([[0.5, 0.6]])
    Traceback (most recent call last):
    ...
    ValueError: proba: row 0 sums to 1.1; expected 1. Give softmax probabilities, not logits.
    """
    proba = np.asarray(proba)
    if proba.ndim != 2 or proba.shape[1] == 0:
        raise ValueError(f"{name}: got shape {proba.shape}; expected (n, n_classes), one row a case.")
    if proba.dtype not in (np.float32, np.float64):
        try:
            proba = proba.astype(float)
        except (TypeError, ValueError):
            raise ValueError(f"{name}: got {proba.dtype}; expected numbers.") from None
    ones = _ones(proba.shape[1], proba.dtype) if proba.shape[1] < _WIDE else None
    step = min(_ROWS, max(1, CELLS // proba.shape[1]))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(proba), step):
            rows = proba[start : start + step]
            # Both several times quicker than `sum`
            sums = np.einsum("ij->i", rows) if ones is None else np.matmul(rows, ones)
            # Each is false of NaN, which a row's sum inherits
            if not (rows.min() >= 0 and sums.max() - 1 <= _SUM_TOLERANCE and 1 - sums.min() <= _SUM_TOLERANCE):
                _refuse(rows, sums, first_row + start, name)
    return proba


@functools.cache
def _ones(n: int, dtype: np.dtype) -> np.ndarray:
    return np.ones(n, dtype=dtype)


def _refuse(rows: np.ndarray, sums: np.ndarray, start: int, name: str) -> NoReturn:
    if len(wrong := np.flatnonzero(~np.isfinite(sums))):
        raise ValueError(
            f"{name}: row {start + wrong[0]} holds NaN or infinity; leave such a case out, or mend its model."
        )
    if len(cells := np.argwhere(rows < 0)):
        row, column = cells[0]
        raise ValueError(f"{name}: row {start + row} holds {rows[row, column]:g}; a probability is not negative.")
    row = np.flatnonzero(np.abs(sums - 1) > _SUM_TOLERANCE)[0]
    fix = "Give softmax probabilities, not logits."
    if abs(sums[row] - 1) < _ROUNDED:
        fix = "If they were rounded, in float16 for example, divide each row by its sum, in float32 or float64."
    raise ValueError(f"{name}: row {start + row} sums to {sums[row]:.6g}; expected 1. {fix}")


def check_codes(y: ArrayLike, n: int, n_classes: int) -> np.ndarray:
    """The true classes as integer columns (n,), or an error that names the case."""
    y = np.asarray(y)
    if y.shape != (n,):
        raise ValueError(f"y: got shape {y.shape}; expected ({n},), one class for each row.")
    if y.dtype.kind not in "iub":
        if y.size:
            raise ValueError(f"y: got {y.dtype}; expected whole numbers, the column of each true class.")
        y = y.astype(int)
    if y.size and not (y.min() >= 0 and y.max() < n_classes):
        wrong = np.flatnonzero((y < 0) | (y >= n_classes))
        raise ValueError(f"y: case {wrong[0]} has class {y[wrong[0]]}; the columns are 0 to {n_classes - 1}.")
    return y.astype(np.intp, copy=False)


def check(proba: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    proba = check_probabilities(proba)
    return proba, check_codes(y, *proba.shape)


def brier_score(proba: ArrayLike, y: ArrayLike) -> float:
    """Mean squared distance of the probabilities from the truth, summed over classes: 0 (best) to 2.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    y : array-like of shape (n,), int
        Column of the true class.

    Returns
    -------
    float
        NaN without cases.

    References
    ----------
    Brier, *Verification of forecasts expressed in terms of probability*, Monthly Weather Review 78, 1950.

    Examples
    --------
    >>> round(brier_score([[0.5, 0.5], [0.8, 0.2]], [0, 0]), 3)
    0.29
    """
    proba, y = check(proba, y)
    if not len(y):
        return float("nan")
    true = proba[np.arange(len(y)), y].astype(float)
    return float(np.mean(np.sum(proba**2, axis=1, dtype=float) - true**2 + (1 - true) ** 2))


def negative_log_likelihood(proba: ArrayLike, y: ArrayLike) -> float:
    """Mean of -log p(true class), nats; infinite if a true class was given probability 0, for nothing is clipped.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    y : array-like of shape (n,), int

    Returns
    -------
    float
        NaN without cases.

    Examples
    --------
    >>> round(negative_log_likelihood([[0.5, 0.5], [0.8, 0.2]], [0, 0]), 3)
    0.458
    >>> negative_log_likelihood([[0.0, 1.0]], [0])
    inf
    """
    proba, y = check(proba, y)
    if not len(y):
        return float("nan")
    with np.errstate(divide="ignore"):
        return float(-np.mean(np.log(proba[np.arange(len(y)), y], dtype=float)))


def balanced_accuracy(proba: ArrayLike, y: ArrayLike) -> float:
    """Mean over the classes that occur of the share of their cases whose most probable class is the true one.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
        Among equal probabilities the first column counts as the prediction.
    y : array-like of shape (n,), int

    Returns
    -------
    float
        NaN without cases.

    Examples
    --------
    >>> balanced_accuracy([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]], [0, 0, 0, 1])
    0.3333333333333333
    """
    proba, y = check(proba, y)
    present = np.bincount(y, minlength=proba.shape[1]) > 0
    return float(_recall(proba, y)[present].mean()) if len(y) else float("nan")


def auroc(proba: ArrayLike, y: ArrayLike, *, average: str | None = "macro") -> Any:
    """Area under the ROC curve, each class against the rest; ties count one half.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    y : array-like of shape (n,), int
    average : {"macro", None}, default="macro"
        The plain mean over the classes for which it is defined, or one number a class.

    Returns
    -------
    float, or ndarray of shape (n_classes,)
        NaN for a class that no case or every case has (`class_table` shows the counts), and for the mean if no class
        is left.

    References
    ----------
    Hanley and McNeil, Radiology 143, 1982, doi:10.1148/radiology.143.1.7063747.

    Examples
    --------
    >>> proba = [[0.7, 0.3, 0.0], [0.4, 0.6, 0.0], [0.5, 0.5, 0.0], [0.2, 0.8, 0.0]]
    >>> auroc(proba, [0, 0, 1, 1], average=None)
    array([0.75, 0.75,  nan])
    """
    if average not in ("macro", None):
        raise ValueError(f"average: got {average!r}; expected 'macro' or None.")
    proba, y = check(proba, y)
    n_classes = proba.shape[1]
    positive = np.bincount(y, minlength=n_classes).astype(float)
    pairs = positive * (len(y) - positive)
    ranks = rankdata(proba, axis=0)[np.arange(len(y)), y] if len(y) else np.zeros(0)
    wins = np.bincount(y, ranks, n_classes) - positive * (positive + 1) / 2
    areas = np.divide(wins, pairs, out=np.full(n_classes, np.nan), where=pairs > 0)
    if average is None:
        return areas
    return float(areas[pairs > 0].mean()) if (pairs > 0).any() else float("nan")


def class_table(proba: ArrayLike, y: ArrayLike, *, classes: Sequence[Any] | np.ndarray | None = None) -> pd.DataFrame:
    """Each class: its number of cases, recall, and area under the ROC curve; NaN where that is undefined.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    y : array-like of shape (n,), int
    classes : sequence of length n_classes, optional
        Names; default: the column numbers.

    Returns
    -------
    DataFrame
        Columns ``name``, ``n``, ``recall``, ``auroc``.

    Examples
    --------
    >>> print(class_table([[0.7, 0.3, 0.0], [0.4, 0.6, 0.0], [0.2, 0.8, 0.0]], [0, 0, 1]).to_string(index=False))
     name  n  recall  auroc
        0  2     0.5    1.0
        1  1     1.0    1.0
        2  0     NaN    NaN
    """
    proba, y = check(proba, y)
    names = np.arange(proba.shape[1]) if classes is None else classes
    if len(names) != proba.shape[1]:
        raise ValueError(f"classes: got {len(names)} names for {proba.shape[1]} columns.")
    counts = np.bincount(y, minlength=proba.shape[1])
    return pd.DataFrame(
        {"name": list(names), "n": counts, "recall": _recall(proba, y), "auroc": auroc(proba, y, average=None)}
    )


def risk_coverage_curve(
    proba: ArrayLike, y: ArrayLike, *, confidence: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Error rate among the most confident cases, as more and more of them are accepted.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    y : array-like of shape (n,), int
    confidence : array-like of shape (n,), optional
        Cases are accepted in falling order of it; default: the largest probability. Give, for example, the negative
        mutual information.

    Returns
    -------
    coverage : ndarray of shape (n,)
        Share accepted, 1/n to 1.
    risk : ndarray of shape (n,)
        Error rate among them; within a tie, its mean over all orders.

    References
    ----------
    Geifman and El-Yaniv, *Selective classification for deep neural networks*, arXiv:1705.08500.

    Examples
    --------
    >>> coverage, risk = risk_coverage_curve([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1])
    >>> risk.round(3)
    array([0.   , 0.   , 0.333])
    """
    proba, y = check(proba, y)
    if confidence is None:
        confidence = proba.max(axis=1)
    confidence = np.asarray(confidence, dtype=float)
    if confidence.shape != y.shape or np.isnan(confidence).any():
        raise ValueError(f"confidence: expected one number for each of {len(y)} cases, none NaN.")
    # the mean error of a tie, given to each of its members, makes the curve the mean over all orders of the tie
    tie = np.unique(-confidence, return_inverse=True)[1]
    error = (proba.argmax(axis=1) != y).astype(float)
    mean_error = np.bincount(tie, error) / np.bincount(tie)
    accepted = np.arange(1, len(y) + 1)
    return accepted / len(y), np.cumsum(mean_error[np.sort(tie)]) / accepted


def aurc(proba: ArrayLike, y: ArrayLike, *, confidence: ArrayLike | None = None) -> float:
    """Area under the risk-coverage curve: mean error rate over all shares of accepted cases; 0 is best.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    y : array-like of shape (n,), int
    confidence : array-like of shape (n,), optional
        See `risk_coverage_curve`.

    Returns
    -------
    float
        NaN without cases.

    Examples
    --------
    >>> round(aurc([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]), 3)
    0.111
    """
    risk = risk_coverage_curve(proba, y, confidence=confidence)[1]
    return float(risk.mean()) if len(risk) else float("nan")


def _recall(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    n_classes = proba.shape[1]
    counts = np.bincount(y, minlength=n_classes)
    hits = np.bincount(y, proba.argmax(axis=1) == y, n_classes)
    return np.divide(hits, counts, out=np.full(n_classes, np.nan), where=counts > 0)
