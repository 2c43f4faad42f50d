"""Conformity scores: pure functions of a row of probabilities, higher for a label that conforms less.

Every score has the signature ``score(values, labels=None, *, log=False, seed=None)``. `values` holds probabilities, or
their logarithms with ``log=True``; the order of the scores is the same, but logarithms stay apart where probabilities
underflow. With `labels` only the score of one label of each row is computed, bit for bit that of all labels at that
label. A permutation of the columns permutes the scores. To add a score, write the function and enter it in `SCORES`.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["SCORES", "aps", "content_uniform", "lac"]

_N_DIGESTED = 4  # the largest probabilities of a row stand for its content
_FREQUENCY = 64.0  # turns of the phase for a factor e of a probability; rounding of 1e-7 then moves u by about 1e-4


def lac(
    values: np.ndarray, labels: np.ndarray | None = None, *, log: bool = False, seed: int | None = None
) -> np.ndarray:
    """Least ambiguous sets: minus the (log-)probability of the label.

    It gives the smallest sets on average; a case of which no label is probable enough has an empty set.

    Parameters
    ----------
    values : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms.
    labels : ndarray of shape (n,), int, optional
        One column for each row; default: all.
    log, seed
        Without effect: the score is monotone in either scale, and not randomised.

    Returns
    -------
    ndarray of shape (n, n_classes), or (n,) with `labels`
        In the dtype of `values`.

    References
    ----------
    Sadinle, Lei and Wasserman, *Least ambiguous set-valued classifiers with bounded error levels*, arXiv:1609.00451.

    Examples
    --------
    >>> lac(np.array([[0.25, 0.75]]))
    array([[-0.25, -0.75]])
    """
    return -values if labels is None else -values[np.arange(len(values)), labels]


def aps(
    values: np.ndarray, labels: np.ndarray | None = None, *, log: bool = False, seed: int | None = None
) -> np.ndarray:
    """Adaptive prediction sets: the probability of the labels ranked above, and u of the label's own.

    The score s is kept as its complement, -(1 - s): minus the mass ranked below and (1 - u) of the label's own. Summed
    from the smallest probability up, this mass keeps its relative accuracy down to the least number of the dtype, where
    s itself is long rounded to 1. Equal probabilities share one rank, as one label of their joint mass.

    Parameters
    ----------
    values : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms.
    labels : ndarray of shape (n,), int, optional
        One column for each row; default: all.
    log : bool, default=False
        `values` are logarithms, and so is the mass in the result.
    seed : int, optional
        Randomise with `content_uniform`. None: u = 1, the label's own probability counts as ranked above.

    Returns
    -------
    ndarray of shape (n, n_classes), or (n,) with `labels`
        In the dtype of `values`.

    References
    ----------
    Romano, Sesia and Candes, *Classification with valid and adaptive coverage*, arXiv:2006.02544.

    Examples
    --------
    >>> aps(np.array([[0.125, 0.625, 0.25]])) + 1.0
    array([[1.   , 0.625, 0.875]])
    """
    n, n_classes = values.shape
    rows = np.arange(n)[:, None]
    if labels is None:
        order = np.argsort(values, axis=1)
        order += rows * n_classes
        ascending = values.ravel().take(order)
    else:
        ascending = np.sort(values, axis=1)
    u = None if seed is None else content_uniform(ascending[:, -_N_DIGESTED:], seed, log=log)
    mass = np.logaddexp.accumulate(ascending, axis=1) if log else np.cumsum(ascending, axis=1)
    if labels is not None:
        own = values[rows, labels[:, None]]
        ends = [np.sum(ascending < own, axis=1, keepdims=True), np.sum(ascending <= own, axis=1, keepdims=True)]
        return -_tail_mass(mass, ends, u, log)[:, 0]
    scores = np.empty(n * n_classes, dtype=values.dtype)
    scores[order] = -_tail_mass(mass, _tie_ends(ascending), u, log)
    return scores.reshape(n, n_classes)


SCORES: dict[str, Callable[..., np.ndarray]] = {"lac": lac, "aps": aps}


def content_uniform(values: np.ndarray, seed: int, *, log: bool = False) -> np.ndarray:
    """A number in [0, 1] for each row, a fixed function of the row's largest probabilities and the seed.

    The same case gets the same number alone, in a batch and on repetition, whatever the order of its columns. The
    function is continuous, so that rounding differences of about 1e-7 move it by about 1e-4, where a hash of the bits
    would jump. Over rows that differ it is spread evenly; equal rows get equal numbers.

    Parameters
    ----------
    values : ndarray of shape (n, m)
        Probabilities or their logarithms, ascending in each row; the last four are used.
    seed : int
    log : bool, default=False
        `values` are logarithms.

    Returns
    -------
    ndarray of shape (n,), float64

    Examples
    --------
    >>> u = content_uniform(np.array([[0.2, 0.8], [0.3, 0.7], [0.2, 0.8]]), seed=0)
    >>> bool(u[0] == u[2] and u[0] != u[1])
    True
    """
    top = values[:, -_N_DIGESTED:].astype(float)
    top = np.maximum(top, -1e5) if log else np.log(np.maximum(top, 1e-300))
    rng = np.random.default_rng(seed)
    frequencies = rng.uniform(_FREQUENCY, 2 * _FREQUENCY, _N_DIGESTED)
    phase = np.full(len(values), rng.random())
    for column, frequency in zip(top.T[::-1], frequencies):
        phase += frequency * column
    phase -= np.floor(phase)
    return np.abs(2 * phase - 1)  # folded, so that it is continuous where the phase wraps


def _tie_ends(ascending: np.ndarray) -> list[np.ndarray | slice]:
    """Where in `mass`, with a zero before it, the run of values equal to each one begins and ends."""
    n_classes = ascending.shape[1]
    rises = ascending[:, 1:] != ascending[:, :-1]
    if rises.all():
        return [slice(0, n_classes), slice(1, n_classes + 1)]
    edge = np.ones((len(ascending), 1), dtype=bool)
    places = np.arange(n_classes)
    first = np.maximum.accumulate(np.where(np.hstack([edge, rises]), places, 0), axis=1)
    last = np.where(np.hstack([rises, edge]), places, n_classes)[:, ::-1]
    return [first, np.minimum.accumulate(last, axis=1)[:, ::-1] + 1]


def _tail_mass(mass: np.ndarray, ends: list, u: np.ndarray | None, log: bool) -> np.ndarray:
    """u of the mass before each run of equal values and 1 - u of the mass through it."""
    nothing = np.full((len(mass), 1), -np.inf if log else 0, dtype=mass.dtype)
    padded = np.concatenate([nothing, mass], axis=1)
    before, through = (
        padded[:, end] if isinstance(end, slice) else np.take_along_axis(padded, end, axis=1) for end in ends
    )
    if u is None:
        return before
    u = u[:, None]
    if log:
        with np.errstate(divide="ignore"):
            return np.logaddexp(np.log(u) + before, np.log1p(-u) + through)
    u = u.astype(mass.dtype)
    return u * before + (1 - u) * through
