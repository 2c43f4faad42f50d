"""Arithmetic on rows of probabilities, or their logarithms, in ascending order."""

import functools

import numpy as np

# Calibration scores are lowered by a last place of float32, or more (`scores.slack_of`), so that what differs by less
# counts as tied, and a tie conforms: the size of the batch, or the order in which an ensemble sums its votes, may move
# a probability that much, and must not move a case out of its set.
TIE = 2.0**-23

_FEW_CLASSES = 8  # up to which whole columns are exchanged quicker than rows are sorted one by one
_FEW = 200  # rows, below which numpy's accumulate is quicker than one addition a column; the sums are the same


def sorted_rows(values: np.ndarray) -> np.ndarray:
    """The values, each row in ascending order."""
    n, n_classes = values.shape
    if n_classes > _FEW_CLASSES or n < 128 * n_classes:
        return np.sort(values, axis=1)
    columns = np.array(values.T, order="C")
    low = np.empty_like(columns[0])
    for turn in range(n_classes):  # neighbours are put in order, those at even and at odd places in turn
        for k in range(turn % 2, n_classes - 1, 2):
            np.minimum(columns[k], columns[k + 1], out=low)
            np.maximum(columns[k], columns[k + 1], out=columns[k + 1])
            columns[k] = low
    return columns.T


def at(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The value of each row in one column, (n,), of a matrix whole in memory by rows or by columns.

    Several times quicker than indexing by two arrays.
    """
    n, n_columns = matrix.shape
    if matrix.flags.c_contiguous:
        return matrix.ravel().take(columns + np.arange(0, n * n_columns, n_columns))
    return matrix.T.ravel().take(columns * n + np.arange(n))


def lowered(values: np.ndarray, slack: float, log: bool) -> np.ndarray:
    """Masses, or their logarithms, less a share."""
    if not slack:
        return values
    if not log:
        return values * (1 - slack)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(values), values, values - slack * np.maximum(1, np.abs(values)))


def running_masses(ascending: np.ndarray, log: bool = False) -> np.ndarray:
    """Sums of the probabilities of each row, from the first up to each, (n, n_classes)."""
    add = np.logaddexp if log else np.add
    if len(ascending) < _FEW:
        return add.accumulate(ascending, axis=1)
    columns = np.array(ascending.T, order="C")  # adding whole columns, next to each other, is far quicker
    for k in range(1, len(columns)):
        add(columns[k - 1], columns[k], out=columns[k])
    return columns.T


def mass_below(ascending: np.ndarray, u: np.ndarray | None, log: bool) -> np.ndarray:
    """Probability of all labels ranked below, and 1 - u of the label's own rank; none of the latter without u."""
    add = np.logaddexp if log else np.add
    through = running_masses(ascending, log)
    before = np.empty_like(through)
    before[:, 0] = -np.inf if log else 0
    before[:, 1:] = through[:, :-1]
    rises = ascending[:, 1:] != ascending[:, :-1]
    if not rises.all():
        first, last = runs(rises)
        before, through = np.take_along_axis(before, first, axis=1), np.take_along_axis(through, last, axis=1)
    if u is not None:
        _weigh(before, u, log)
        _weigh(through, 1 - u, log)
        add(before, through, out=before)
    return before


def masses_of(values: np.ndarray, own: np.ndarray, u: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`mass_below` and `ranks_of` one label a row, its probability given, both (n,), float64.

    Rows need no order for that, which is several times quicker. Summed in the order of the columns, the mass is the
    same to the bit in any batch; another order of the classes may move it by a last place of float64, a small part of
    the share by which calibration scores are lowered.
    """
    own = own[:, None]
    mass = np.einsum("ij->i", (values * (values < own)).astype(float))
    if u is not None:
        n_tied = np.count_nonzero(values == own, axis=1)
        mass = mass * u + (mass + n_tied * own[:, 0].astype(float)) * (1 - u)
    return mass, 1 + np.count_nonzero(values > own, axis=1)


def mass_of_others(ascending: np.ndarray, log: bool) -> np.ndarray:
    """Probability of all labels but the first, (n,), float64, summed from the smallest up."""
    add = np.logaddexp if log else np.add
    if len(ascending) < _FEW and ascending.shape[1] > 1:
        return add.accumulate(ascending[:, :-1].astype(float), axis=1)[:, -1]
    total = np.full(len(ascending), -np.inf if log else 0.0)
    for k in range(ascending.shape[1] - 1):
        add(total, ascending[:, k], out=total)
    return total


def penalised(mass: np.ndarray, steps: np.ndarray, penalty: float, log: bool) -> np.ndarray:
    """An increasing function of mass - penalty * steps, for masses in [0, 1] and whole steps.

    Tiny masses lie just above a multiple of the penalty, where that difference would round them away. So the whole
    number q of penalties and the rest above it are kept apart: -q, and a function of the rest that rises from 0 to 1
    like its logarithm.
    """
    mass = mass.astype(float) + 0.0  # one zero, not two, since bits are read below
    if penalty == 0:
        return mass
    q = steps.astype(float)
    if log:
        large = mass > np.log(penalty)
        linear = np.exp(mass[large])
        more = np.ceil(linear / penalty) - 1
        q[large] -= more
        mass = np.array(mass)
        with np.errstate(divide="ignore"):
            mass[large] = np.log(np.clip(linear - penalty * more, 0, penalty))
        return 1 / (1 + np.log(penalty) - mass) - q
    if penalty < 1:
        more = np.maximum(np.ceil(mass / penalty) - 1, 0)
        q -= more
        more *= penalty
        mass = np.clip(mass - more, 0, penalty)
    # Read as a whole number, the bits of a positive float rise with it, and much like its logarithm.
    return mass.view(np.int64) / np.float64(penalty).view(np.int64) - q


@functools.lru_cache(maxsize=256)
def least_masses(limit: float, n_classes: int, k_reg: int, penalty: float, dtype: str) -> np.ndarray:
    """Least mass of the dtype whose `penalised` value reaches the limit, for each rank from the last up, (n_classes,).

    Comparing masses with these is comparing the penalised values with the limit, to the bit, and much quicker. They are
    found by bisection: positive floats are in the order of their bits.
    """
    steps = np.maximum(np.arange(n_classes, 0, -1) - k_reg, 0)
    whole = np.dtype(dtype.replace("f", "i"))
    low = np.full(n_classes, -1, dtype=np.int64)
    high = np.full(n_classes, np.array(2, dtype).view(whole), dtype=np.int64)  # no mass is as large
    for _ in range(8 * whole.itemsize):
        middle = (low + high) // 2
        reached = penalised(np.maximum(middle, 0).astype(whole).view(dtype), steps, penalty, log=False) >= limit
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high.astype(whole).view(dtype)


def ranks_of(ascending: np.ndarray) -> np.ndarray:
    """One more than the number of strictly larger values, for each value of the rows."""
    n, n_classes = ascending.shape
    ranks = np.broadcast_to(np.arange(n_classes, 0, -1), (n, n_classes))
    rises = ascending[:, 1:] != ascending[:, :-1]
    return ranks if rises.all() else n_classes - runs(rises)[1]


def runs(rises: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
