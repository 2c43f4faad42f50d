"""The number that randomises the score of a case: a function of the case itself."""

import functools

import numpy as np

__all__ = ["content_uniform"]

_N_DIGESTED = 4  # the largest probabilities of a row stand for its content
_FREQUENCY = 64.0  # phase for a factor e between two of them; rounding of 1e-7 then moves u by about 1e-5


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
    frequencies, start = _frequencies(seed, top.shape[1])
    top *= frequencies
    phase = top.sum(axis=1)
    phase += start
    phase -= np.floor(phase)
    phase *= 2
    phase -= 1
    return np.abs(phase, out=phase)  # folded, so that it is continuous where the phase wraps


@functools.cache
def _frequencies(seed: int, n: int) -> tuple[np.ndarray, float]:
    """Factors of the logarithms of the n largest probabilities, and where the phase starts.

    The factors add up to zero: a sum of log-odds has no stationary point, where phases would crowd.
    """
    rng = np.random.default_rng(seed)
    of_odds = rng.uniform(_FREQUENCY, 2 * _FREQUENCY, _N_DIGESTED - 1)[: n - 1][::-1]
    return np.append(-of_odds, of_odds.sum()), float(rng.random())
