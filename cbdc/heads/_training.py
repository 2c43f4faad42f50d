"""What the heads that draw at random in training share: the order of the data, where they start, batches, device."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import ParameterError
from ._base import Training
from ._gaussian import KroneckerPosterior
from ._softmax import Prior, SoftmaxProblem, row_chunks
from .laplace import LaplaceHead

if TYPE_CHECKING:
    import torch

__all__ = ["Mode", "choose_batches", "find_start", "merge_rows", "torch_device"]


class Mode(NamedTuple):
    """Softmax regression at the mode of its posterior.

    Attributes
    ----------
    problem : SoftmaxProblem
        Along the principal axes of the training data.
    axes : ndarray of shape (n_features, r)
    parameters : ndarray of shape (r + 1, n_classes - 1)
        In contrasts, intercept last.
    prior_precision : float
        Of the weights; it maximises the evidence unless it was given.
    class_axes : ndarray of shape (n_classes - 1, n_classes - 1)
        Orthonormal eigenvectors of the classes' curvature, in contrasts.
    curvature : ndarray of shape (r + 1, n_classes - 1)
        Diagonal of the Hessian, prior included, along the axes of the features and of the classes.
    """

    problem: SoftmaxProblem
    axes: np.ndarray
    parameters: np.ndarray
    prior_precision: float
    class_axes: np.ndarray
    curvature: np.ndarray

    @property
    def prior(self) -> Prior:
        return Prior(np.full(self.problem.n_classes, self.prior_precision))

    @property
    def row_precision(self) -> np.ndarray:
        """Prior precision of each row of parameters, (r + 1, 1)."""
        return _row_precision(self.prior, len(self.parameters))


def merge_rows(training: Training) -> Training:
    """The same data in an order of their own, equal rows as one of their total weight.

    What is drawn for a row then depends on the row and not on its place, and a row of weight 2 is two rows. Rows of a
    group of several are merged only with each other. Groups are numbered in the order of their rows.
    """
    X, codes, weights, groups = training
    n, d = X.shape
    groups = np.where(np.bincount(groups)[groups] > 1, groups, -1)
    generic = np.cos(np.arange(1.0, d + 1))  # no two different rows have the same product with it, but by chance
    place = np.concatenate([np.sum(X[rows] * generic, axis=1) for rows in row_chunks(n, d)])
    order = np.lexsort((groups, codes, place))
    X, codes, weights, groups = X[order], codes[order], weights[order], groups[order]
    same = (codes[1:] == codes[:-1]) & (groups[1:] == groups[:-1])
    same[same] = np.all(X[1:][same] == X[:-1][same], axis=1)
    first = np.flatnonzero(np.append(True, ~same))
    X, codes, weights, groups = X[first], codes[first], np.add.reduceat(weights, first), groups[first]
    groups = np.where(groups < 0, -1 - np.arange(len(groups)), groups)  # alone: a group of its own
    _, start, number = np.unique(groups, return_index=True, return_inverse=True)
    return Training(X, codes, weights, np.argsort(np.argsort(start))[number])


def find_start(training: Training, prior_precision: float | str) -> Mode:
    """Mode of the regression on all training data."""
    X, codes, weights, _ = training
    laplace = LaplaceHead(prior_precision, covariance="kronecker", mean_correction=False)
    laplace.fit(X, codes, sample_weight=weights)
    Z = np.column_stack([X @ laplace.components_, np.ones(len(X), dtype=X.dtype)])
    energy = np.array([weights @ column.astype(float) ** 2 for column in Z.T])
    problem = SoftmaxProblem(Z, codes, weights, energy, len(laplace.classes_))
    precision, posterior = float(laplace.prior_precision_), laplace.posterior_
    assert isinstance(posterior, KroneckerPosterior)
    rows = _row_precision(Prior(np.full(problem.n_classes, precision)), len(energy))
    # the posterior's axes and precisions are in units of the prior's, which is the same for all classes
    axes = posterior.class_axes[0] * np.sqrt(precision)
    return Mode(problem, laplace.components_, laplace.mode_, precision, axes, rows * posterior.posterior_precision)


def _row_precision(prior: Prior, n_rows: int) -> np.ndarray:
    return np.append(np.full(n_rows - 1, prior.class_precision[0]), prior.intercept_precision)[:, None]


def choose_batches(rng: np.random.RandomState, weights: np.ndarray, n_batches: int, size: int) -> np.ndarray:
    """Rows of each batch, (n_batches, size), drawn with replacement, each as often as its weight says."""
    cumulated = np.cumsum(weights)
    return np.searchsorted(cumulated / cumulated[-1], rng.random_sample((n_batches, size)), side="right")


def torch_device(name: str | None) -> "torch.device":
    """The device of that name; None takes the first GPU where there is one.

    Raises
    ------
    ParameterError
        If this machine has no such device.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without CUDA
        raise ParameterError(f"device={name!r}: torch finds no such device here. Fix: device=None or 'cpu'.") from error
