"""Conformity scores: pure functions of probabilities, higher for a label that conforms better.

The values are probabilities, or their logarithms: the order of the scores is the same, but logarithms stay apart where
probabilities underflow. A score may be any increasing function of the published one's negative; it is chosen so that
labels of tiny probability stay apart. A score is either elementwise, or `ranked`: a function of a whole row in
ascending order, whose result rises, weakly, along the row and is the same for equal values. Then a permutation of the
classes permutes the scores (those of calibration cases but for a rounding, see `masses_of`). To add one, write the
function and enter it in `SCORES`; the last functions apply any.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import ParameterError
from ._rows import (
    TIE,
    at,
    least_masses,
    lowered,
    mass_below,
    mass_of_others,
    masses_of,
    penalised,
    ranks_of,
    running_masses,
    sorted_rows,
)
from ._uniform import content_uniform

__all__ = [
    "SCORES",
    "TIE",
    "Score",
    "aps",
    "check_score_params",
    "lac",
    "margin",
    "rank",
    "raps",
    "saps",
    "score_all",
    "score_dtype",
    "score_labels",
    "sets_from",
    "topk",
    "truncated",
]

Params = dict[str, Any]


def lac(values: np.ndarray, *, u: np.ndarray | None = None, log: bool = False, slack: float = 0.0) -> np.ndarray:
    """Least ambiguous sets: the (log-)probability of the label.

    It gives the smallest sets on average; a case of which no label is probable enough has an empty set.

    Parameters
    ----------
    values : ndarray
        Probabilities, or their logarithms.
    u, log
        Without effect: the score is not randomised, and serves on either scale.
    slack : float, default=0.0
        Share by which the score is lowered; for calibration cases.

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
    return lowered(values, slack, log)


def aps(ascending: np.ndarray, *, u: np.ndarray | None = None, log: bool = False, slack: float = 0.0) -> np.ndarray:
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
    slack : float, default=0.0
        Share by which the mass is lowered; for calibration cases.

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
    return lowered(mass_below(ascending, u, log), slack, log)


def raps(
    ascending: np.ndarray,
    *,
    u: np.ndarray | None = None,
    log: bool = False,
    slack: float = 0.0,
    penalty: float = 0.1,
    k_reg: int = 2,
) -> np.ndarray:
    """Regularised adaptive prediction sets: `aps` with a penalty on every rank beyond `k_reg`.

    With c = mass below and 1 - u of the label's own, minus ``penalty * max(0, rank - k_reg)``, the score is an
    increasing function of c that keeps apart what lies just above a multiple of the penalty, where tiny masses are.

    Parameters
    ----------
    ascending : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms, each row in ascending order.
    u, log, slack
        As for `aps`.
    penalty : float, default=0.1
        0 or more; 0 gives `aps`.
    k_reg : int, default=2
        Ranks without penalty.

    Returns
    -------
    ndarray of shape (n, n_classes), float64

    References
    ----------
    Angelopoulos, Bates, Malik and Jordan, *Uncertainty sets for image classifiers using conformal prediction*,
    arXiv:2009.14193.

    Examples
    --------
    >>> raps(np.array([[0.125, 0.25, 0.625]]), penalty=0.5, k_reg=1).round(3)
    array([[-2.   , -0.002,  1.   ]])
    """
    return _penalise_raps(aps(ascending, u=u, log=log, slack=slack), ranks_of(ascending), log, penalty, k_reg)


def saps(
    ascending: np.ndarray,
    *,
    u: np.ndarray | None = None,
    log: bool = False,
    slack: float = 0.0,
    weight: float = 0.2,
) -> np.ndarray:
    """Sorted adaptive prediction sets: of the probabilities only the largest counts, and beyond it the rank.

    The published score is u times the largest probability for the label ranked first, and the largest probability plus
    ``weight * (rank - 2 + u)`` for the others; this one falls where it rises.

    Parameters
    ----------
    ascending : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms, each row in ascending order.
    u, log, slack
        As for `aps`.
    weight : float, default=0.2
        Of each rank; more than 0.

    Returns
    -------
    ndarray of shape (n, n_classes), float64

    References
    ----------
    Huang, Xi, Zhang, Yao, Qiu and Wei, *Conformal prediction for deep classifier via label ranking*, arXiv:2310.06430.

    Examples
    --------
    >>> saps(np.array([[0.125, 0.25, 0.625]]), u=np.array([0.5]), weight=0.2).round(4)
    array([[-0.925 , -0.725 , -0.3125]])
    """
    ranks = ranks_of(ascending)
    if u is None:  # -(p_max + weight * (rank - 1)), and 1 - p_max is the mass of the others
        others = np.repeat(mass_of_others(ascending, log)[:, None], ascending.shape[1], axis=1)
        return penalised(lowered(others, slack, log), ranks - 1, weight, log)
    largest = ascending[:, -1:].astype(float)
    largest = np.exp(largest) if log else largest
    first, u = ranks == 1, u[:, None].astype(float)
    return -np.where(first, u * largest, largest + weight * (ranks - 2 + u)) * (1 + slack)


def margin(ascending: np.ndarray, *, u: np.ndarray | None = None, log: bool = False, slack: float = 0.0) -> np.ndarray:
    """Probability of the label minus the largest of the others.

    With c this difference the score is log(1 + c) where c is negative and -log(1 - c) elsewhere, both of them made of
    sums of small probabilities, which keeps apart what differs from -1 or 1 by less than a rounding.

    Parameters
    ----------
    ascending : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms, each row in ascending order.
    u
        Without effect: the score is not randomised.
    log, slack
        As for `aps`.

    Returns
    -------
    ndarray of shape (n, n_classes), float64

    References
    ----------
    Johansson, Linusson, Lofstrom and Bostrom, *Model-agnostic nonconformity functions for conformal classification*,
    IJCNN 2017, doi:10.1109/IJCNN.2017.7966105.

    Examples
    --------
    >>> margin(np.array([[0.125, 0.25, 0.625]])).round(3)  # of -0.5, -0.375 and 0.375
    array([[-0.693, -0.47 ,  0.47 ]])
    """
    ascending = ascending.astype(float)
    add = np.logaddexp if log else np.add
    others = mass_of_others(ascending, log)
    gap = add(others[:, None], ascending)  # 1 + c for all but the first
    if ascending.shape[1] > 1:
        gap[:, -1] = add(others, ascending[:, -2])  # 1 - c for the first
    else:
        gap[:, -1] = others
    with np.errstate(divide="ignore"):
        found = np.minimum(gap if log else np.log(gap), 0)
    found[:, -1] = np.minimum(-found[:, -1], _LARGEST)
    first = ascending == ascending[:, -1:]
    return lowered(np.where(first, found[:, -1:], found), slack, log=True)


def topk(ascending: np.ndarray, *, u: np.ndarray | None = None, log: bool = False, slack: float = 0.0) -> np.ndarray:
    """Minus the rank of the label: sets of the k most probable labels, the same k for every case.

    Parameters
    ----------
    ascending : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms, each row in ascending order.
    u, log, slack
        Without effect: ranks are neither randomised nor rounded. So they tie, and coverage exceeds its level.

    Returns
    -------
    ndarray of shape (n, n_classes), float64

    References
    ----------
    Angelopoulos, Bates, Malik and Jordan, arXiv:2009.14193, section 2.

    Examples
    --------
    >>> topk(np.array([[0.125, 0.25, 0.625]]))
    array([[-3., -2., -1.]])
    """
    return -ranks_of(ascending).astype(float)


def rank(ascending: np.ndarray, *, u: np.ndarray | None = None, log: bool = False, slack: float = 0.0) -> np.ndarray:
    """Rank first, and the label's probability among labels of one rank.

    Like `topk`, but the last rank is taken in only where its probability is large enough, so that ranks do not tie.

    Parameters
    ----------
    ascending : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms, each row in ascending order.
    u
        Without effect: the score is not randomised.
    log, slack
        As for `aps`.

    Returns
    -------
    ndarray of shape (n, n_classes), float64

    References
    ----------
    Luo and Zhou, *Trustworthy classification through rank-based conformal prediction sets*, arXiv:2407.04407.

    Examples
    --------
    >>> rank(np.array([[0.125, 0.25, 0.625]])).round(3)
    array([[-2.003e+00, -1.002e+00, -1.000e-03]])
    """
    return penalised(lowered(ascending, slack, log), ranks_of(ascending), 1.0, log)


class Score(NamedTuple):
    """A score, and what holds of it.

    Parameters
    ----------
    function : callable
    ranked : bool
        A function of the whole row in ascending order.
    narrow : bool
        Computed in the dtype of the values; otherwise in float64.
    infinite : bool
        It may be minus infinity on the linear scale too.
    summed : bool
        A sum in the dtype of the values, whose rounding grows with the number of classes.
    ties : bool
        Cases that differ tie: it takes a few values.
    defaults : dict
        Its numbers.
    """

    function: Callable[..., np.ndarray]
    ranked: bool = True
    narrow: bool = False
    infinite: bool = False
    summed: bool = False
    ties: bool = False
    defaults: Params = {}  # noqa: RUF012


SCORES = {
    "lac": Score(lac, ranked=False, narrow=True),
    "aps": Score(aps, narrow=True, summed=True),
    "raps": Score(raps, summed=True, defaults={"penalty": 0.1, "k_reg": 2}),
    "saps": Score(saps, defaults={"weight": 0.2}),
    "margin": Score(margin, infinite=True),
    "topk": Score(topk, ties=True),
    "rank": Score(rank),
}

_LARGEST = 1e30  # stands for infinity, which is kept for thresholds


def check_score_params(name: str, params: Params | None) -> Params:
    """The score's numbers, its defaults where none are given.

    Raises
    ------
    ParameterError
        If the score has no such number, or it is out of range.

    Examples
    --------
    >>> check_score_params("raps", {"penalty": 0.5})
    {'penalty': 0.5, 'k_reg': 2}
    """
    defaults = SCORES[name].defaults
    if unknown := sorted(set(params or {}) - set(defaults)):
        allowed = f"it takes {', '.join(defaults)}" if defaults else "it takes none; pass None"
        raise ParameterError(f"score_params: the score {name!r} has no {unknown[0]!r}: {allowed}.")
    found = defaults | (params or {})
    for key, value in found.items():
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        least = np.nextafter(0, 1) if key == "weight" else 0
        if not number or not least <= value < np.inf or (key == "k_reg" and value != int(value)):
            kind = {"k_reg": "a whole number, 0 or more", "penalty": "a number, 0 or more", "weight": "more than 0"}[
                key
            ]
            raise ParameterError(f"score_params: {key} is {value!r}; expected {kind}.")
        found[key] = int(value) if key == "k_reg" else float(value)
    return found


def score_dtype(name: str, dtype: np.dtype) -> np.dtype:
    """In what the score of values of this dtype is computed."""
    return np.dtype(dtype) if SCORES[name].narrow else np.dtype(np.float64)


def slack_of(name: str, values: np.ndarray) -> float:
    """Share by which a calibration score is lowered, so that what differs by rounding counts as tied.

    Sums of new cases are made in the dtype of the values: with K classes they are rounded K + 2 times, by up to half a
    last place each, and the probabilities may differ by a last place themselves. The share is twice that.
    """
    rounding = (values.shape[1] + 4) * float(np.finfo(values.dtype).eps) if SCORES[name].summed else 0.0
    return max(TIE, rounding)


def score_all(
    name: str, values: np.ndarray, *, log: bool = False, seed: int | None = None, params: Params | None = None
) -> np.ndarray:
    """Scores of all labels, (n, n_classes), in `score_dtype`; randomised where a seed is given."""
    if not SCORES[name].ranked:
        return SCORES[name].function(values, log=log, **params or {})
    n, n_classes = values.shape
    order = np.argsort(values, axis=1)
    order += np.arange(0, n * n_classes, n_classes)[:, None]
    scores = np.empty(n * n_classes, dtype=score_dtype(name, values.dtype))
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
    calibration: bool = False,
) -> np.ndarray:
    """Score of one label a row, (n,): that of `score_all`, to the bit; of calibration cases lowered by a rounding."""
    own = values.take(labels + np.arange(0, values.size, values.shape[1]))  # quicker than indexing by two arrays
    slack = slack_of(name, values) if calibration else 0.0
    if not SCORES[name].ranked:
        return SCORES[name].function(own, log=log, slack=slack, **params or {})
    if calibration and SCORES[name].summed and not log:
        u = None if seed is None else content_uniform(sorted_rows(values), seed).astype(values.dtype)
        mass, ranks = masses_of(values, own, u)
        mass = lowered(mass, slack, log)
        return mass if name == "aps" else _penalise_raps(mass, ranks, log, **params or SCORES[name].defaults)
    ascending = sorted_rows(values)
    place = np.arange(len(values)), np.sum(ascending < own[:, None], axis=1)
    if name == "raps":  # penalises one label a row, not all
        ranks = ranks_of(ascending)[place]
        mass = _score_ranked("aps", ascending, log, seed, None, slack)[place]
        return _penalise_raps(mass, ranks, log, **params or SCORES[name].defaults)
    return _score_ranked(name, ascending, log, seed, params, slack)[place]


def sets_from(
    name: str,
    values: np.ndarray,
    limits: np.ndarray,
    *,
    log: bool = False,
    seed: int | None = None,
    params: Params | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Labels whose score is at least its limit, bool (n, n_classes): ``score_all(...) >= limits``, to the bit.

    `limits` is an array of shape (1 or n, 1 or n_classes); the sets are written to `out` where it is given.
    """
    if not SCORES[name].ranked or limits.shape[1] > 1:
        return np.greater_equal(score_all(name, values, log=log, seed=seed, params=params), limits, out=out)
    # With one limit a row, the labels in the set are those at least as probable as the least probable one in it.
    ascending = sorted_rows(values)
    last = values.shape[1] - 1
    if SCORES[name].summed and not log and (name == "aps" or limits.size == 1):
        outside = _n_outside(name, ascending, limits, seed, params)
        # Where none is outside, the place before is another row's; at worst the row is counted again for nothing.
        torn = at(ascending, outside - 1) == at(ascending, np.minimum(outside, last))
        if torn.any():
            torn &= outside <= last
            own = limits[torn] if len(limits) > 1 else limits
            outside[torn] = (_score_ranked(name, ascending[torn], log, seed, params) < own).sum(axis=1)
    else:
        outside = (_score_ranked(name, ascending, log, seed, params) < limits).sum(axis=1)
    least = at(ascending, np.minimum(outside, last))
    least[outside > last] = np.inf
    return np.greater_equal(values, least[:, None], out=out)


def truncated(scores: np.ndarray, values: np.ndarray, labels: np.ndarray | None, limits: np.ndarray) -> np.ndarray:
    """Scores, but minus infinity for a label ranked lower than its class is allowed (rank-calibrated sets).

    Parameters
    ----------
    scores : ndarray of shape (n,) or (n, n_classes)
        Of one label a row, or of all.
    values : ndarray of shape (n, n_classes)
    labels : ndarray of shape (n,) or None
        The label scored in each row; None for all.
    limits : ndarray of shape (n_classes,), int
        Lowest rank allowed of each class; a rank is one more than the number of labels strictly more probable.
    """
    if labels is not None:
        own = values[np.arange(len(values)), labels]
        return np.where(np.sum(values > own[:, None], axis=1) < limits[labels], scores, -np.inf)
    order = np.argsort(values, axis=1)
    ranks = np.empty(values.shape, dtype=np.intp)
    np.put_along_axis(ranks, order, ranks_of(np.take_along_axis(values, order, axis=1)), axis=1)
    return np.where(ranks <= limits, scores, -np.inf)


def _penalise_raps(mass: np.ndarray, ranks: np.ndarray, log: bool, penalty: float, k_reg: int) -> np.ndarray:
    return penalised(mass, np.maximum(ranks - k_reg, 0), penalty, log)


def _n_outside(
    name: str, ascending: np.ndarray, limits: np.ndarray, seed: int | None, params: Params | None
) -> np.ndarray:
    """Number of labels of each row whose `aps` or `raps` is below the limit, (n,), as if no probabilities were equal.

    It is right for a row unless it tears labels of equal probability apart.
    """
    u = None if seed is None else content_uniform(ascending, seed).astype(ascending.dtype)
    least = limits
    if name == "raps":
        numbers = params or SCORES[name].defaults
        least = least_masses(float(limits[0, 0]), ascending.shape[1], dtype=ascending.dtype.str, **numbers)[None]
    masses = running_masses(ascending)
    if u is not None:
        weighed = masses * (1 - u)[:, None]
        weighed[:, 1:] += masses[:, :-1] * u[:, None]
        return (weighed < least).sum(axis=1)
    outside = (masses[:, :-1] < (least[:, 1:] if least.shape[1] > 1 else least)).sum(axis=1)
    outside += least[:, 0] > 0  # no mass lies below the first
    return outside


def _score_ranked(
    name: str, ascending: np.ndarray, log: bool, seed: int | None, params: Params | None, slack: float = 0.0
) -> np.ndarray:
    u = None if seed is None else content_uniform(ascending, seed, log=log).astype(ascending.dtype)
    if slack:  # in float64, where so small a share is not rounded away
        ascending = ascending.astype(float)
    return SCORES[name].function(ascending, u=u, log=log, slack=slack, **params or {})
