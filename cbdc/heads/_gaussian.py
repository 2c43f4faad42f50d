"""Gaussian posteriors of softmax regression: the whole covariance, factored, diagonal, or the prior's plus low rank."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from scipy.linalg import cholesky, eigh, solve_triangular
from scipy.sparse.linalg import LinearOperator, eigsh

from ._softmax import Prior, SoftmaxProblem, contrasts, curvature_product, row_chunks

__all__ = ["DiagonalPosterior", "FullPosterior", "GaussianPosterior", "KroneckerPosterior", "LowRankPosterior"]

_DENSE_LIMIT = 1000  # parameters up to which all eigenvectors are found, to keep some
_EIGENVECTOR_TOLERANCE = 1e-5  # relative; products in float32 allow no more


@dataclass(frozen=True)
class GaussianPosterior(ABC):
    """Deviation of the parameters (p, n_classes - 1), intercept last, from the centre of the posterior.

    Attributes
    ----------
    along_axes : bool
        Whether the rows that it takes are given along principal axes; else they are the features themselves.
    """

    along_axes: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def at(cls, problem: SoftmaxProblem, proba: np.ndarray, prior: Prior) -> Self:
        """Posterior where the model gives the training rows the probabilities `proba`."""

    @property
    @abstractmethod
    def log_determinant(self) -> float:
        """Of the precision."""

    @abstractmethod
    def contrast_covariance(self, Z: np.ndarray) -> np.ndarray:
        """Covariance of the contrasts of each row (n, p), (n, n_classes - 1, n_classes - 1)."""

    @abstractmethod
    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        """One deviation of the parameters from their centre, (p, n_classes - 1)."""

    def logit_factor(self, Z: np.ndarray, outside: np.ndarray | float = 0.0) -> np.ndarray:
        """Factor (n, n_classes, n_classes - 1) of the covariance of each row's logits.

        Parameters
        ----------
        Z : ndarray of shape (n, p)
        outside : ndarray, broadcast to (n, n_classes - 1, n_classes - 1)
            Covariance of the contrasts that is added: of the features that lie outside the axes.
        """
        covariance = self.contrast_covariance(Z) + outside
        return contrasts(covariance.shape[1] + 1) @ np.linalg.cholesky(covariance)


@dataclass(frozen=True)
class FullPosterior(GaussianPosterior):
    """Covariance: the inverse Hessian.

    Attributes
    ----------
    posterior_factor : ndarray of shape (n_classes - 1, p, (n_classes - 1) * p), float64
        Upper triangular F with F F' = covariance, parameters ordered by contrast, then by feature.
    """

    posterior_factor: np.ndarray

    @classmethod
    def at(cls, problem: SoftmaxProblem, proba: np.ndarray, prior: Prior) -> Self:
        p, J = problem.Z.shape[1], problem.n_classes - 1
        precision = full_curvature(problem, proba).reshape(J, p, J, p)
        features = np.arange(p - 1)
        precision[:, features, :, features] += prior.precision
        precision[:, -1, :, -1] += prior.intercept_precision * np.eye(J)
        lower = cholesky(precision.reshape(J * p, J * p), lower=True)
        inverse = solve_triangular(lower, np.eye(J * p), lower=True)
        return cls(np.ascontiguousarray(inverse.T).reshape(J, p, J * p))

    @property
    def log_determinant(self) -> float:
        size = self.posterior_factor.shape[2]
        return -2 * float(np.log(np.diag(self.posterior_factor.reshape(size, size))).sum())

    def determinant_slopes(
        self, problem: SoftmaxProblem, proba: np.ndarray, prior: Prior
    ) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of `log_determinant`: in the prior's precision of a feature, and in the training rows' logits.

        Returns
        -------
        in_prior : ndarray of shape (n_classes - 1, n_classes - 1)
        in_logits : ndarray of shape (n, n_classes)
        """
        weights = self.posterior_factor[:, :-1].reshape(len(self.posterior_factor), -1)
        covariance = contrasts(problem.n_classes) @ self.contrast_covariance(problem.Z) @ contrasts(problem.n_classes).T
        with_draw = np.einsum("nkl,nl->nk", covariance, proba)
        slope = _in_logits(np.einsum("nkk->nk", covariance) - 2 * with_draw, proba, problem.weights)
        return weights @ weights.T, slope

    def contrast_covariance(self, Z: np.ndarray) -> np.ndarray:
        J, p, size = self.posterior_factor.shape
        flat = self.posterior_factor.transpose(1, 0, 2).reshape(p, J * size)
        covariance = np.empty((len(Z), J, J))
        for rows in row_chunks(len(Z), J * size):
            root = (Z[rows].astype(float) @ flat).reshape(-1, J, size)
            covariance[rows] = root @ root.transpose(0, 2, 1)
        return covariance

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        return (self.posterior_factor @ rng.standard_normal(self.posterior_factor.shape[2])).T


@dataclass(frozen=True)
class KroneckerPosterior(GaussianPosterior):
    """Independent along the eigenvectors of the Kronecker-factored Hessian.

    Attributes
    ----------
    posterior_precision : ndarray of shape (p, n_classes - 1), float64
        In units of the prior's: one plus the exact second derivative along each eigenvector.
    class_axes : ndarray of shape (2, n_classes - 1, n_classes - 1), float64
        Eigenvectors of the classes' factor, in contrasts, of length one under the prior's precision: those of a
        feature, and those of the intercept. The features' factor is diagonal along the problem's axes.
    """

    posterior_precision: np.ndarray
    class_axes: np.ndarray

    @classmethod
    def at(cls, problem: SoftmaxProblem, proba: np.ndarray, prior: Prior) -> Self:
        _, axes = prior.axes(problem.class_curvature(proba, problem.weights))
        return cls(1 + axis_curvature(problem, proba, axes), axes)

    @property
    def log_determinant(self) -> float:
        p = len(self.posterior_precision)
        volumes = np.linalg.slogdet(self.class_axes)[1]
        return float(np.log(self.posterior_precision).sum() - 2 * ((p - 1) * volumes[0] + volumes[1]))

    def _variances(self, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Along the axes of the classes, from the features and from the intercept: (n, n_classes - 1) each."""
        squares, variance = Z**2, 1 / self.posterior_precision
        return (squares[:, :-1] @ variance[:-1].astype(Z.dtype)).astype(float), squares[:, -1:] * variance[-1]

    def contrast_covariance(self, Z: np.ndarray) -> np.ndarray:
        first, second = ((Q * v[:, None]) @ Q.T for Q, v in zip(self.class_axes, self._variances(Z), strict=True))
        return first + second

    def determinant_slopes(
        self, problem: SoftmaxProblem, proba: np.ndarray, prior: Prior
    ) -> tuple[np.ndarray, np.ndarray]:
        """As of `FullPosterior`; with the diagonal, the axes turn."""
        B, (Q, _) = contrasts(problem.n_classes), self.class_axes
        axes = B @ self.class_axes
        drawn = proba @ axes
        slope, overlap = np.zeros_like(proba), np.zeros_like(Q)
        for rows in row_chunks(len(proba), problem.Z.shape[1]):
            variances = self._variances(problem.Z[rows])
            for G, along, variance in zip(axes, drawn[:, rows], variances, strict=True):
                slope[rows] += variance @ (G**2).T - 2 * (variance * along) @ G.T
            weighted = problem.weights[rows, None] * proba[rows]
            overlap += axes[0].T @ ((weighted.T @ variances[0]) * axes[0])
            overlap -= (problem.weights[rows, None] * drawn[0, rows]).T @ (drawn[0, rows] * variances[0])
        values, _ = prior.axes(problem.class_curvature(proba, problem.weights))
        gap = values[0] - values[0][:, None]
        turn = 2 * overlap * gap / (gap**2 + (1e-6 * values[0].max()) ** 2)
        turned = Q @ (turn + turn.T) @ Q.T / (2 * problem.weights.sum())
        slope += np.diag(B @ turned @ B.T) - 2 * proba @ B @ turned @ B.T
        turn *= values[0]
        in_prior = np.diag((1 / self.posterior_precision[:-1]).sum(axis=0)) - (turn + turn.T) / 2
        return Q @ in_prior @ Q.T, _in_logits(slope, proba, problem.weights)

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        noise = rng.standard_normal(self.posterior_precision.shape) / np.sqrt(self.posterior_precision)
        return _along(self.class_axes, noise)


@dataclass(frozen=True)
class DiagonalPosterior(KroneckerPosterior):
    """Independent along the features themselves and, within each, along the eigenvectors of the classes' factor."""

    along_axes: ClassVar[bool] = False


@dataclass(frozen=True)
class LowRankPosterior(GaussianPosterior):
    """The prior, shrunk along the directions in which the data say most.

    Attributes
    ----------
    prior_roots : ndarray of shape (2, n_classes - 1, n_classes - 1), float64
        R with R R' = prior covariance of the contrasts: of a feature, of the intercept.
    directions : ndarray of shape (p, n_classes - 1, rank), float64
        Orthonormal eigenvectors of the curvature in units of the prior, those of the largest eigenvalues.
    eigenvalues : ndarray of shape (rank,), float64
    """

    prior_roots: np.ndarray
    directions: np.ndarray
    eigenvalues: np.ndarray

    @classmethod
    def at(cls, problem: SoftmaxProblem, proba: np.ndarray, prior: Prior, rank: int = 100) -> Self:
        p, J = problem.Z.shape[1], problem.n_classes - 1
        roots = np.stack([np.linalg.cholesky(prior.covariance), np.eye(J) / np.sqrt(prior.intercept_precision)])
        if rank >= p * J - 1 or p * J <= _DENSE_LIMIT:
            dense = full_curvature(problem, proba).reshape(J, p, J, p).transpose(1, 0, 3, 2)
            rows = np.where((np.arange(p) < p - 1)[:, None, None], *roots)
            dense = np.einsum("iab,iajc,jcd->ibjd", rows, dense, rows, optimize=True).reshape(p * J, p * J)
            values, vectors = eigh(dense, subset_by_index=[max(p * J - rank, 0), p * J - 1])
        else:
            curve = curvature_product(problem, proba, problem.weights)

            def whitened(x: np.ndarray) -> np.ndarray:
                return _along(roots.transpose(0, 2, 1), curve(_along(roots, x.reshape(p, J)))).ravel()

            start = np.random.RandomState(0).standard_normal(p * J)
            operator = LinearOperator((p * J, p * J), matvec=whitened, dtype=float)
            values, vectors = eigsh(operator, k=rank, which="LA", v0=start, tol=_EIGENVECTOR_TOLERANCE)
        return cls(roots, np.ascontiguousarray(vectors).reshape(p, J, -1), np.maximum(values, 0.0))

    @property
    def log_determinant(self) -> float:
        volumes = np.linalg.slogdet(self.prior_roots)[1]
        return float(np.log1p(self.eigenvalues).sum() - 2 * ((len(self.directions) - 1) * volumes[0] + volumes[1]))

    @property
    def _shrinkage(self) -> np.ndarray:
        return self.eigenvalues / (1 + self.eigenvalues)

    def contrast_covariance(self, Z: np.ndarray) -> np.ndarray:
        Z = Z.astype(float)
        p, J, rank = self.directions.shape
        R, R_intercept = self.prior_roots
        squares = np.sum(Z[:, :-1] ** 2, axis=1), Z[:, -1] ** 2
        covariance = np.multiply.outer(squares[0], R @ R.T) + np.multiply.outer(squares[1], R_intercept @ R_intercept.T)
        for rows in row_chunks(len(Z), J * rank):
            seen = R @ (Z[rows, :-1] @ self.directions[:-1].reshape(p - 1, J * rank)).reshape(-1, J, rank)
            seen += np.multiply.outer(Z[rows, -1], R_intercept @ self.directions[-1])
            covariance[rows] -= (seen * self._shrinkage) @ seen.transpose(0, 2, 1)
        return covariance

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        noise = rng.standard_normal(self.directions.shape[:2])
        shorter = (1 - 1 / np.sqrt(1 + self.eigenvalues)) * np.tensordot(noise, self.directions, axes=2)
        return _along(self.prior_roots, noise - self.directions @ shorter)


def _along(roots: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The first of two matrices times every row but the last, the second times the last, (p, n_classes - 1)."""
    found = rows @ roots[0].T
    found[-1] = roots[1] @ rows[-1]
    return found


def _in_logits(slope: np.ndarray, proba: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """From derivatives in the probabilities to those in the logits, times the weights."""
    return weights[:, None] * proba * (slope - np.sum(proba * slope, axis=1, keepdims=True))


def full_curvature(problem: SoftmaxProblem, proba: np.ndarray) -> np.ndarray:
    """Hessian of the negative log-likelihood, equal to the generalised Gauss-Newton matrix, (J p, J p)."""
    n, p = problem.Z.shape
    B = contrasts(problem.n_classes)
    J = B.shape[1]
    hessian = np.empty((J, p, J, p))
    mean = proba @ B
    for j in range(J):
        for k in range(j + 1):
            spread = problem.weights * (proba @ (B[:, j] * B[:, k]) - mean[:, j] * mean[:, k])
            block = np.zeros((p, p))
            for rows in row_chunks(n, p):
                Z = problem.Z[rows].astype(float)
                block += Z.T @ (Z * spread[rows, None])
            hessian[j, :, k], hessian[k, :, j] = block, block.T
    return hessian.reshape(J * p, J * p)


def axis_curvature(problem: SoftmaxProblem, proba: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Exact second derivatives of the negative log-likelihood, (p, J), along feature i and class axis j.

    Parameters
    ----------
    problem : SoftmaxProblem
    proba : ndarray of shape (n, n_classes)
    axes : ndarray of shape (2, J, J)
        In columns: of a feature, of the intercept.
    """
    n, p = problem.Z.shape
    directions = contrasts(problem.n_classes) @ np.concatenate(list(axes), axis=1)
    spread = problem.weights[:, None] * (proba @ directions**2 - (proba @ directions) ** 2)
    curvature = np.zeros((p, directions.shape[1]))
    for rows in row_chunks(n, p):
        curvature += (problem.Z[rows] ** 2).T @ spread[rows].astype(problem.Z.dtype)
    J = problem.n_classes - 1
    curvature[-1, :J] = curvature[-1, J:]
    return np.maximum(curvature[:, :J], 0.0)
