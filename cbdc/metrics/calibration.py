"""Calibration of probabilities: binned errors, and the error that a perfect model would show for noise alone."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from .probabilities import check, check_probabilities

__all__ = ["classwise_ece", "ece_noise_floor", "expected_calibration_error", "reliability_curve"]

_CELLS = 2**22  # random numbers held at once


def expected_calibration_error(proba: ArrayLike, y: ArrayLike, n_bins: int = 15, *, strategy: str = "uniform") -> float:
    """Expected calibration error of the top label.

    Cases are binned by their largest probability; the error is the mean over cases of
    abs(accuracy - mean largest probability) of their bin.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
        Among equal probabilities the first column counts as the prediction.
    y : array-like of shape (n,), int
        Column of the true class.
    n_bins : int, default=15
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width, ((b - 1) / n_bins, b / n_bins], or of equal numbers of cases (equal values share a bin).

    Returns
    -------
    float
        NaN without cases. It is never 0 for a finite sample of a calibrated model: print `ece_noise_floor` beside it.

    References
    ----------
    Naeini et al., AAAI 2015; Guo et al., *On calibration of modern neural networks*, arXiv:1706.04599.

    Examples
    --------
    >>> proba = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]
    >>> round(expected_calibration_error(proba, [0, 0, 1, 0]), 3)
    0.1
    """
    proba, y = check(proba, y)
    if not len(y):
        return float("nan")
    confidence = proba.max(axis=1).astype(float)
    bins = _bins(confidence, _edges(confidence, n_bins, strategy))
    return float(np.abs(np.bincount(bins, (proba.argmax(axis=1) == y) - confidence)).sum() / len(y))


def reliability_curve(proba: ArrayLike, y: ArrayLike, n_bins: int = 15, *, strategy: str = "uniform") -> pd.DataFrame:
    """Accuracy against the largest probability, bin by bin: the picture behind `expected_calibration_error`.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    y : array-like of shape (n,), int
    n_bins : int, default=15
    strategy : {"uniform", "quantile"}, default="uniform"

    Returns
    -------
    DataFrame
        One row a bin: ``lower`` and ``upper`` edge, ``n``, ``correct``, ``confidence`` (mean largest probability) and
        ``accuracy``, both NaN in an empty bin.

    Examples
    --------
    >>> curve = reliability_curve([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1], n_bins=2)
    >>> print(curve.round(2).to_string(index=False))
     lower  upper  n  correct  confidence  accuracy
       0.0    0.5  0        0         NaN       NaN
       0.5    1.0  3        2        0.77      0.67
    """
    proba, y = check(proba, y)
    confidence = proba.max(axis=1).astype(float)
    edges = _edges(confidence, n_bins, strategy)
    bins = _bins(confidence, edges)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    correct = np.bincount(bins, proba.argmax(axis=1) == y, len(counts)).astype(int)
    total = np.bincount(bins, confidence, len(counts))
    return pd.DataFrame(
        {
            "lower": edges[:-1],
            "upper": edges[1:],
            "n": counts,
            "correct": correct,
            "confidence": np.divide(total, counts, out=np.full(len(counts), np.nan), where=counts > 0),
            "accuracy": np.divide(correct, counts, out=np.full(len(counts), np.nan), where=counts > 0),
        }
    )


def classwise_ece(proba: ArrayLike, y: ArrayLike, n_bins: int = 15) -> float:
    """Calibration error of every column, not of the top label alone, averaged over classes.

    For each class, cases are binned by its probability, in bins of equal width; its error is the mean over cases of
    abs(frequency of the class - mean probability) of their bin.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    y : array-like of shape (n,), int
    n_bins : int, default=15

    Returns
    -------
    float
        NaN without cases.

    References
    ----------
    Kull et al., *Beyond temperature scaling*, arXiv:1910.12656.

    Examples
    --------
    >>> round(classwise_ece([[0.9, 0.1], [0.9, 0.1]], [0, 1]), 3)
    0.4
    """
    proba, y = check(proba, y)
    if not len(y):
        return float("nan")
    n_classes = proba.shape[1]
    edges = _edges(proba, n_bins, "uniform")
    cells = _bins(proba, edges) + np.arange(n_classes) * n_bins
    gap = np.bincount(cells.ravel(), proba.ravel(), n_classes * n_bins)
    gap -= np.bincount(cells[np.arange(len(y)), y], minlength=n_classes * n_bins)
    return float(np.abs(gap).sum() / proba.size)


def ece_noise_floor(
    proba: ArrayLike,
    n_bins: int = 15,
    *,
    units: ArrayLike | None = None,
    strategy: str = "uniform",
    n_resamples: int = 200,
    quantile: float = 0.95,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[float, float]:
    """Expected calibration error that a perfectly calibrated model with these probabilities shows, by chance alone.

    Labels are drawn again and again from the probabilities themselves.

    Parameters
    ----------
    proba : array-like of shape (n, n_classes)
    n_bins : int, default=15
    units : array-like of shape (n,), optional
        Lesion of each case: images of one lesion have one label, so that they are right or wrong together, and chance
        has a larger part than with as many lesions. Without units each case is one.
    strategy : {"uniform", "quantile"}, default="uniform"
    n_resamples : int, default=200
    quantile : float, default=0.95
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    mean : float
    quantile : float
        An error above it is evidence, at level 1 - quantile, that the model is not calibrated. Both NaN without cases.

    Raises
    ------
    ValueError
        If there is not one unit for each case.

    Notes
    -----
    The images of a unit share one exponential number for each class, E_k, and an image has the label of the least
    E_k / p_k. Each image then has its own probabilities, two images with the same ones have the same label, and others
    agree in most draws. Real images of a lesion always do: where the model does not, the floor is still rather low. Of
    different lesions of a patient it is rather high, so that patients are no units for this.

    References
    ----------
    Widmann et al., *Calibration tests in multi-class classification*, arXiv:1910.11385; Broecker and Smith,
    *Increasing the reliability of reliability diagrams*, Weather and Forecasting 22, 2007. The shared race of
    exponential numbers is that of consistent weighted sampling (Ioffe, *Improved consistent sampling, weighted minhash
    and L1 sketching*, ICDM 2010).

    Examples
    --------
    >>> mean, high = ece_noise_floor(np.full((300, 2), 0.5), random_state=0)
    >>> 0.01 < mean < 0.04 < high < 0.08
    True
    >>> of_lesions = ece_noise_floor(np.full((300, 2), 0.5), units=np.arange(300) // 3, random_state=0)
    >>> of_lesions[0] > 1.5 * mean  # three images each: a hundred lesions
    True
    """
    proba = check_probabilities(proba)
    if units is not None:
        units = np.asarray(units)
        if units.shape != (len(proba),):
            raise ValueError(f"units: got shape {units.shape}; give one for each of the {len(proba)} cases.")
        if n_missing := int(pd.isna(units).sum()):
            raise ValueError(f"units: {n_missing} of {len(proba)} cases have none. Fix: number these one by one.")
    if not len(proba):
        return float("nan"), float("nan")
    rng = check_random_state(random_state)
    order = np.argsort(proba.max(axis=1), kind="stable")
    proba = proba[order].astype(float)
    confidence, top = proba.max(axis=1), proba.argmax(axis=1)
    starts = np.flatnonzero(np.diff(_bins(confidence, _edges(confidence, n_bins, strategy)), prepend=-1))
    number = None if units is None else np.unique(units, return_inverse=True)[1][order]
    errors = []
    cells = proba.shape[0] if number is None else proba.size
    for first in range(0, n_resamples, step := max(1, _CELLS // cells)):
        n = min(step, n_resamples - first)
        if number is None:
            right = rng.random_sample((n, len(proba))) < confidence
        else:
            numbers = rng.standard_exponential((n, number.max() + 1, proba.shape[1]))[:, number]
            with np.errstate(divide="ignore"):  # a class of probability 0 never wins
                right = np.argmin(numbers / proba, axis=2) == top
        gaps = np.add.reduceat(right - confidence, starts, axis=1)
        errors.append(np.abs(gaps).sum(axis=1) / len(confidence))
    found = np.concatenate(errors)
    return float(found.mean()), float(np.quantile(found, quantile))


def _edges(values: np.ndarray, n_bins: int, strategy: str) -> np.ndarray:
    if n_bins < 1:
        raise ValueError(f"n_bins: got {n_bins}; expected 1 or more.")
    if strategy == "uniform":
        return np.linspace(0, 1, n_bins + 1)
    if strategy == "quantile":
        quantiles = np.quantile(values, np.linspace(0, 1, n_bins + 1)[1:-1]) if len(values) else np.zeros(0)
        return np.unique(np.concatenate([[0.0], quantiles, [1.0]]))
    raise ValueError(f"strategy: got {strategy!r}; expected 'uniform' or 'quantile'.")


def _bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Number of the bin (lower, upper] of each value; 0 falls in the first, a hair above 1 in the last."""
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)
