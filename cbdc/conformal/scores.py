"""Conformity scores: pure functions of probabilities, higher for a label that conforms better.

The values are probabilities, or their logarithms: the order of the scores is the same, but logarithms stay apart where
probabilities underflow. A score is either elementwise, or `ranked`: a function of a whole row in ascending order, whose
result rises, weakly, along the row and is the same for equal values. Then a permutation of the classes permutes the
scores. To add a score, write the function and enter it in `SCORES`; the functions at the end apply any of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import ParameterError

__all__ = [
    "SCORES",
    "Score",
    "aps",
    "check_score_params",
    "content_uniform",
    "lac",
    "relaxed",
    "score_all",
    "score_labels",
    "sets_from",
]

_N_DIGESTED = 4  # the largest probabilities of a row stand for its content
_FREQUENCY = 64.0  # phase for a factor e between two of them; rounding of 1e-7 then moves u by about 1e-5

# Scores that differ by a last place of float32 count as tied, and a tie conforms: the size of the batch, or the order
# in which an ensemble sums its votes, may move a probability that much, and must not move a case out of its set.
_TIE = 2.0**-23

Params = dict[str, Any]


def lac(values: np.ndarray, *, u: np.ndarray | None = None, log: bool = False) -> np.ndarray:
    """Least ambiguous sets: the (log-)probability of the label.

    It gives the smallest sets on average; a case of which no label is probable enough has an empty set.

    Parameters
    ----------
    values : ndarray
        Probabilities, or their logarithms.
    u, log
        Without effect: the score is not randomised, and serves on either scale.

    Returns
    -------
    ndarray, like `values`

    References
    ----------
    Sadinle, Lei and Wasserman, *Least ambiguous set-valued classifiers with bounded error levels*, arXiv:1609.00451.

    Examples
    --------
    >>> lac(np.array([[0.25, 0.75]]))
    array([[0.25, 0.75]])
    """
    return values


def aps(ascending: np.ndarray, *, u: np.ndarray | None = None, log: bool = False) -> np.ndarray:
    """Adaptive prediction sets: the probability of all labels ranked below, and 1 - u of the label's own.

    The usual score, the mass ranked above and u of the label's own, is one minus this, and a set that takes it up to a
    threshold is one that takes this from a threshold on. But summed from the smallest probability up, this keeps its
    relative accuracy down to the least number of the dtype, where the other is long rounded to 1. Equal probabilities
    share one rank, as one label of their joint mass.

    Parameters
    ----------
    ascending : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms, each row in ascending order.
    u : ndarray of shape (n,), optional
        Numbers in [0, 1] that randomise the score; None stands for u = 1, all of the label's own probability.
    log : bool, default=False
        `ascending` holds logarithms, and so will the mass.

    Returns
    -------
    ndarray, like `ascending`

    References
    ----------
    Romano, Sesia and Candes, *Classification with valid and adaptive coverage*, arXiv:2006.02544.

    Examples
    --------
    >>> aps(np.array([[0.125, 0.25, 0.625]]))
    array([[0.   , 0.125, 0.375]])
    """
    add = np.logaddexp if log else np.add
    ascending = np.asfortranarray(ascending)  # adding whole columns, next to each other, is far quicker than cumsum
    through, before = np.empty_like(ascending), np.empty_like(ascending)
    through[:, 0] = ascending[:, 0]
    for k in range(1, ascending.shape[1]):
        add(through[:, k - 1], ascending[:, k], out=through[:, k])
    before[:, 0] = -np.inf if log else 0
    before[:, 1:] = through[:, :-1]
    rises = ascending[:, 1:] != ascending[:, :-1]
    if not rises.all():
        first, last = _runs(rises)
        before, through = np.take_along_axis(before, first, axis=1), np.take_along_axis(through, last, axis=1)
    if u is not None:
        _weigh(before, u, log)
        _weigh(through, 1 - u, log)
        add(before, through, out=before)
    return before


class Score(NamedTuple):
    """A score, and whether it is a function of the whole row in ascending order."""

    function: Callable[..., np.ndarray]
    ranked: bool


SCORES = {"lac": Score(lac, ranked=False), "aps": Score(aps, ranked=True)}


def check_score_params(name: str, params: Params | None) -> Params:
    """The score's numbers, its defaults where none are given.

    Raises
    ------
    ParameterError
        If the score has no such number.
    """
    if params:
        raise ParameterError(f"score_params: got {params!r}, but the score {name!r} has no parameters. Fix: pass None.")
    return {}


def relaxed(name: str, scores: np.ndarray, *, log: bool) -> np.ndarray:
    """Scores of calibration cases as float64, lowered by what rounding may move them."""
    scores = scores.astype(float)
    return scores - _TIE if log else scores * (1 - _TIE)  # no score of the linear scale is negative


def content_uniform(ascending: np.ndarray, seed: int, *, log: bool = False) -> np.ndarray:
    """A number in [0, 1] for each row, a fixed function of the row's largest probabilities and the seed.

    The same case gets the same number alone, in a batch and on repetition, whatever the order of the classes. The
    function is continuous: a rounding difference moves it a little, where a hash of the bits would jump. Over rows that
    differ it is spread evenly; equal rows get equal numbers.

    Parameters
    ----------
    ascending : ndarray of shape (n, n_classes)
        Probabilities or their logarithms, each row in ascending order.
    seed : int
    log : bool, default=False
        `ascending` holds logarithms.

    Returns
    -------
    ndarray of shape (n,), float64

    Examples
    --------
    >>> u = content_uniform(np.array([[0.2, 0.8], [0.3, 0.7], [0.2, 0.8]]), seed=0)
    >>> bool(u[0] == u[2] and u[0] != u[1])
    True
    """
    top = ascending[:, -_N_DIGESTED:].astype(float)
    top = np.maximum(top, -1e5) if log else np.log(np.maximum(top, 1e-300))
    frequencies, start = _frequencies(seed)
    phase = np.full(len(top), start)
    for column, frequency in zip(top.T[-2::-1], frequencies):
        phase += frequency * (top[:, -1] - column)  # log-odds have no stationary point, where phases would crowd
    phase -= np.floor(phase)
    return np.abs(2 * phase - 1)  # folded, so that it is continuous where the phase wraps


@functools.cache
def _frequencies(seed: int) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng(seed)
    return rng.uniform(_FREQUENCY, 2 * _FREQUENCY, _N_DIGESTED - 1), float(rng.random())


def score_all(
    name: str, values: np.ndarray, *, log: bool = False, seed: int | None = None, params: Params | None = None
) -> np.ndarray:
    """Scores of all labels, (n, n_classes), in the dtype of `values`; randomised where a seed is given."""
    params = params or {}
    if not SCORES[name].ranked:
        return SCORES[name].function(values, log=log, **params)
    n, n_classes = values.shape
    order = np.argsort(values, axis=1)
    order += np.arange(0, n * n_classes, n_classes)[:, None]
    scores = np.empty(n * n_classes, dtype=values.dtype)
    scores[order] = _score_ranked(name, values.ravel().take(order), log, seed, params)
    return scores.reshape(n, n_classes)


def score_labels(
    name: str,
    values: np.ndarray,
    labels: np.ndarray,
    *,
    log: bool = False,
    seed: int | None = None,
    params: Params | None = None,
) -> np.ndarray:
    """Score of one label a row, (n,): that of `score_all`, to the bit."""
    params = params or {}
    rows = np.arange(len(values))
    own = values[rows, labels]
    if not SCORES[name].ranked:
        return SCORES[name].function(own, log=log, **params)
    ascending = np.sort(values, axis=1)
    return _score_ranked(name, ascending, log, seed, params)[rows, np.sum(ascending < own[:, None], axis=1)]


def sets_from(
    name: str,
    values: np.ndarray,
    limits: np.ndarray,
    *,
    log: bool = False,
    seed: int | None = None,
    params: Params | None = None,
) -> np.ndarray:
    """Labels whose score is at least its limit, bool (n, n_classes): ``score_all(...) >= limits``, to the bit.

    `limits` is an array of shape (1 or n, 1 or n_classes).
    """
    if not SCORES[name].ranked or limits.shape[1] > 1:
        return score_all(name, values, log=log, seed=seed, params=params) >= limits
    # With one limit a row, the labels in the set are those at least as probable as the least probable one in it.
    ascending = np.sort(values, axis=1)
    outside = np.sum(_score_ranked(name, ascending, log, seed, params or {}) < limits, axis=1)
    last = values.shape[1] - 1
    least = np.where(outside > last, np.inf, ascending[np.arange(len(values)), np.minimum(outside, last)])
    return values >= least.astype(values.dtype)[:, None]


def _score_ranked(name: str, ascending: np.ndarray, log: bool, seed: int | None, params: Params) -> np.ndarray:
    u = None if seed is None else content_uniform(ascending, seed, log=log).astype(ascending.dtype)
    return SCORES[name].function(ascending, u=u, log=log, **params)


def _runs(rises: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last place of the run of equal values that each place of a row belongs to."""
    n, n_rises = rises.shape
    edge = np.ones((n, 1), dtype=bool)
    places = np.arange(n_rises + 1)
    first = np.where(np.hstack([edge, rises]), places, 0)
    last = np.where(np.hstack([rises, edge]), places, n_rises)[:, ::-1]
    return np.maximum.accumulate(first, axis=1), np.minimum.accumulate(last, axis=1)[:, ::-1]


def _weigh(mass: np.ndarray, weights: np.ndarray, log: bool) -> None:
    """Multiply the mass of each row by its weight, in place."""
    if log:
        with np.errstate(divide="ignore"):
            mass += np.log(weights)[:, None]
    else:
        mass *= weights[:, None]
