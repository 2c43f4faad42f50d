"""The Laplace posterior as origin and unit of length: coordinates in which the exact posterior is nearly N(0, I)."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, eigh, solve_triangular
from scipy.special import log_softmax

from ._base import Training
from ._gaussian import full_curvature
from ._softmax import SoftmaxProblem, contrasts, signs
from .laplace import LaplaceHead

__all__ = ["INTERCEPT_PRECISION", "LaplaceStart", "Whitening", "feature_weights", "laplace_start"]

INTERCEPT_PRECISION = 1e-2  # that of LaplaceHead
_UNSEEN = 1e-10  # energy of an axis, relative to the largest, below which training says nothing about it
_BLOCK_LIMIT = 1000  # parameters whose covariance is kept whole


@dataclass(frozen=True)
class Whitening:
    """Affine map from whitened positions to parameters along the principal axes and the classes' axes.

    A position is a vector of p x (n_classes - 1) numbers, parameter by parameter of each axis.

    Attributes
    ----------
    centre : ndarray of shape (p, n_classes - 1)
    unit : ndarray of shape (p - m, n_classes - 1)
        Standard deviations along the first axes, of little variance, where the prior rules.
    block : ndarray of shape (m (n_classes - 1), m (n_classes - 1))
        Factor of the covariance along the last m axes, the intercept among them.
    """

    centre: np.ndarray
    unit: np.ndarray
    block: np.ndarray

    @property
    def log_determinant(self) -> float:
        return float(np.log(self.unit).sum() + np.linalg.slogdet(self.block)[1])

    def parameters(self, positions: np.ndarray) -> np.ndarray:
        """Positions (n_draws, p (n_classes - 1)) -> parameters (n_draws, p, n_classes - 1)."""
        cut = self.unit.size
        deviation = np.concatenate([positions[:, :cut] * self.unit.ravel(), positions[:, cut:] @ self.block.T], axis=1)
        return self.centre + deviation.reshape(-1, *self.centre.shape)


@dataclass(frozen=True)
class LaplaceStart:
    """What a fitted `LaplaceHead` says of the posterior that another head is to approximate.

    Attributes
    ----------
    problem : SoftmaxProblem
        Features along the principal axes, intercept last.
    components : ndarray of shape (n_features, p - 1)
    directions : ndarray of shape (n_classes, n_classes - 1)
        Orthonormal; from the classes' axes to the logits.
    prior : ndarray of shape (p, 1)
        Prior precision of each row of parameters.
    mean : ndarray of shape (p, n_classes - 1)
        Centre of the Laplace posterior along the classes' axes.
    curvature : ndarray of shape (p, n_classes - 1)
        Diagonal of the Hessian, prior included, at the mode.
    proba : ndarray of shape (n, n_classes)
        At the mode.
    """

    problem: SoftmaxProblem
    components: np.ndarray
    directions: np.ndarray
    prior: np.ndarray
    mean: np.ndarray
    curvature: np.ndarray
    proba: np.ndarray

    @property
    def n_leading(self) -> int:
        """Axes, counted from the last, whose joint covariance is small enough to be kept whole."""
        p, J = self.mean.shape
        return min(p, max(1, _BLOCK_LIMIT // J))

    def whitening(self, *, joint: bool) -> Whitening:
        """Coordinates independent in the Laplace posterior: along each axis, or jointly for the leading ones."""
        unit = 1 / np.sqrt(self.curvature)
        if not joint:
            return Whitening(self.mean, unit, np.zeros((0, 0)))
        lower = cholesky(self._leading_precision(), lower=True)
        root = solve_triangular(lower, np.eye(len(lower)), lower=True).T
        return Whitening(self.mean, unit[: len(unit) - self.n_leading], np.ascontiguousarray(root))

    def widest(self, rank: int) -> np.ndarray:
        """Directions along which an independent posterior is narrowest, (p (n_classes - 1), rank).

        In units along each axis; their outer product plus the identity is the Laplace covariance along them.
        """
        precision = self._leading_precision()
        unit = 1 / np.sqrt(np.diag(precision))
        size = len(precision)
        rank = min(rank, size)
        values, vectors = eigh(unit[:, None] * precision * unit, subset_by_index=(0, rank - 1))
        found = np.zeros((self.mean.size, rank))
        found[-size:] = vectors * np.sqrt(np.maximum(1 / values - 1, 0.0))
        return found

    def _leading_precision(self) -> np.ndarray:
        """Hessian, prior included, of the parameters along the leading axes."""
        problem, m = self.problem, self.n_leading
        J = problem.n_classes - 1
        part = SoftmaxProblem(problem.Z[:, -m:], problem.codes, problem.weights, problem.energy[-m:], J + 1)
        hessian = full_curvature(part, self.proba).reshape(J, m, J, m)
        turn = contrasts(J + 1).T @ self.directions
        hessian = np.einsum("jamb,jk,ml->akbl", hessian, turn, turn, optimize=True).reshape(m * J, m * J)
        hessian[np.diag_indices(m * J)] += np.repeat(self.prior[-m:, 0], J)
        return hessian


def laplace_start(laplace: LaplaceHead, training: Training) -> LaplaceStart:
    """The posterior of a fitted `LaplaceHead`, along those of its axes that the training rows reach.

    Equal data give equal axes, whatever the order of the rows, so that draws from one seed can be compared.

    Parameters
    ----------
    laplace : LaplaceHead
        Fitted to the same data.
    training : Training
        Those data.
    """
    X, codes, weights, _ = training
    energy = weights @ (X @ laplace.components_) ** 2
    seen = energy > _UNSEEN * energy.max(initial=0.0)
    components, rows = np.ascontiguousarray(laplace.components_[:, seen]), np.append(seen, True)
    mode, mean = laplace.mode_[rows], laplace.posterior_mean_[rows]

    Z = np.column_stack([X @ components, np.ones(len(X), dtype=X.dtype)])
    problem = SoftmaxProblem(Z, codes, weights, np.append(energy[seen], weights.sum()), len(laplace.classes_))
    prior = np.append(np.full(Z.shape[1] - 1, laplace.prior_precision_), INTERCEPT_PRECISION)[:, None]
    proba = np.exp(log_softmax(problem.logits(mode), axis=1))
    B = contrasts(problem.n_classes)
    _, axes = eigh(B.T @ (np.diag(weights @ proba) - (proba.T * weights) @ proba) @ B)
    axes = axes * signs(B @ axes)
    directions = B @ axes
    spread = weights[:, None] * (proba @ directions**2 - (proba @ directions) ** 2)
    curvature = np.maximum((Z**2).T @ spread.astype(Z.dtype), 0.0) + prior
    return LaplaceStart(problem, components, directions, prior, mean @ axes, curvature, proba)


def feature_weights(
    parameters: np.ndarray, components: np.ndarray, directions: np.ndarray, unseen: np.ndarray, dtype: str
) -> np.ndarray:
    """Parameters along the axes -> weights of the standardised features in all classes.

    Parameters
    ----------
    parameters : ndarray of shape (n_draws, p, n_classes - 1)
    components : ndarray of shape (n_features, p - 1)
    directions : ndarray of shape (n_classes, n_classes - 1)
    unseen : ndarray of shape (n_draws, n_features, n_classes - 1), or of size 0
        Draws of the prior; the part orthogonal to the axes is kept.
    dtype : str

    Returns
    -------
    ndarray of shape (n_draws, n_features + 1, n_classes)
        Intercept last.
    """
    n_draws, p, J = parameters.shape
    V = components
    along = parameters[:, :-1].transpose(1, 0, 2).reshape(p - 1, n_draws * J).astype(V.dtype)
    if unseen.size:
        outside = unseen.transpose(1, 0, 2).reshape(len(V), n_draws * J).astype(V.dtype)
        features = V @ (along - V.T @ outside) + outside
    else:
        features = V @ along
    features = features.reshape(len(V), n_draws, J).transpose(1, 0, 2)
    return (np.concatenate([features, parameters[:, -1:]], axis=1) @ directions.T).astype(dtype)
