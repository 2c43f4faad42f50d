"""Gaussian posteriors of softmax regression: the whole covariance, or a Kronecker-factored one."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from ._softmax import SoftmaxProblem, contrasts, row_chunks

__all__ = ["FullPosterior", "GaussianPosterior", "KroneckerPosterior"]


@dataclass(frozen=True)
class FullPosterior:
    """Deviation from the centre with the inverse Hessian as its covariance.

    Attributes
    ----------
    posterior_factor : ndarray of shape (n_classes - 1, p, (n_classes - 1) * p), float64
        Upper triangular F with F F' = covariance, parameters ordered by contrast, then by feature.
    """

    posterior_factor: np.ndarray

    @classmethod
    def at(cls, problem: SoftmaxProblem, proba: np.ndarray, prior: np.ndarray) -> "FullPosterior":
        """Posterior where the model gives the training rows the probabilities `proba`."""
        precision = full_curvature(problem, proba)
        size = len(precision)
        J = problem.n_classes - 1
        precision[np.diag_indices(size)] += np.tile(prior[:, 0], J)
        lower = cholesky(precision, lower=True)
        inverse = solve_triangular(lower, np.eye(size), lower=True)
        return cls(np.ascontiguousarray(inverse.T).reshape(J, -1, size))

    @property
    def log_determinant(self) -> float:
        """Of the precision."""
        size = self.posterior_factor.shape[2]
        return -2 * float(np.log(np.diag(self.posterior_factor.reshape(size, size))).sum())

    def logit_factor(self, Z: np.ndarray, outside: np.ndarray | float = 0.0) -> np.ndarray:
        """Factor (n, n_classes, n_classes - 1) of the covariance of each row's logits.

        Parameters
        ----------
        Z : ndarray of shape (n, p)
        outside : ndarray of shape (n,), or float
            Variance of each contrast that is added: of the features that lie outside the axes.
        """
        J, p, size = self.posterior_factor.shape
        root = (Z.astype(float) @ self.posterior_factor.transpose(1, 0, 2).reshape(p, J * size)).reshape(-1, J, size)
        covariance = root @ root.transpose(0, 2, 1) + np.multiply.outer(outside, np.eye(J))
        return contrasts(J + 1) @ np.linalg.cholesky(covariance)

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        """One deviation of the parameters from their centre, (p, n_classes - 1)."""
        return (self.posterior_factor @ rng.standard_normal(self.posterior_factor.shape[2])).T


@dataclass(frozen=True)
class KroneckerPosterior:
    """Deviation from the centre, independent along the eigenvectors of the Kronecker-factored Hessian.

    Attributes
    ----------
    posterior_precision : ndarray of shape (p, n_classes - 1), float64
        Prior precision plus the exact second derivative along each eigenvector.
    class_axes : ndarray of shape (n_classes - 1, n_classes - 1), float64
        Eigenvectors of the classes' factor, in contrasts. The features' factor is diagonal along the problem's axes.
    """

    posterior_precision: np.ndarray
    class_axes: np.ndarray

    @classmethod
    def at(cls, problem: SoftmaxProblem, proba: np.ndarray, prior: np.ndarray) -> "KroneckerPosterior":
        """Posterior where the model gives the training rows the probabilities `proba`."""
        curvature, axes = kronecker_curvature(problem, proba)
        return cls(curvature + prior, axes)

    @property
    def log_determinant(self) -> float:
        """Of the precision."""
        return float(np.log(self.posterior_precision).sum())

    def logit_factor(self, Z: np.ndarray, outside: np.ndarray | float = 0.0) -> np.ndarray:
        """Factor (n, n_classes, n_classes - 1) of the covariance of each row's logits; see `FullPosterior`."""
        Q = self.class_axes
        variance = Z.astype(float) ** 2 @ (1 / self.posterior_precision) + np.reshape(outside, (-1, 1))
        # the symmetric root, times a fixed basis, depends on no sign or order of the eigenvectors
        return (contrasts(len(Q) + 1) @ Q * np.sqrt(variance)[:, None, :]) @ Q.T

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        """One deviation of the parameters from their centre, (p, n_classes - 1)."""
        noise = rng.standard_normal(self.posterior_precision.shape)
        return (noise / np.sqrt(self.posterior_precision)) @ self.class_axes.T


GaussianPosterior = FullPosterior | KroneckerPosterior


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


def kronecker_curvature(problem: SoftmaxProblem, proba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact diagonal (p, J) of the Hessian along the Kronecker eigenvectors, and the classes' eigenvectors (J, J)."""
    n, p = problem.Z.shape
    _, axes = problem.class_curvature(proba, problem.weights)
    directions = contrasts(problem.n_classes) @ axes
    spread = problem.weights[:, None] * (proba @ directions**2 - (proba @ directions) ** 2)
    curvature = np.zeros((p, problem.n_classes - 1))
    for rows in row_chunks(n, p):
        curvature += (problem.Z[rows] ** 2).T @ spread[rows].astype(problem.Z.dtype)
    return np.maximum(curvature, 0.0), axes
