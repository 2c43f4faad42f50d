"""Softmax regression with a Gaussian prior: the mode of its posterior, and its curvature there.

Everything is written in contrasts. Logits f = B u with B (K, K - 1) orthonormal and orthogonal to the ones, so that the
one direction that softmax ignores is left out; an isotropic prior on u is the symmetric prior on the K rows of weights.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, helmert
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning

_CHUNK = 4096  # rows whose squares or products are held at once


@dataclass(frozen=True)
class SoftmaxProblem:
    """Data of the regression: features in an orthogonal basis with a last column of ones, labels, weights.

    Attributes
    ----------
    Z : ndarray of shape (n, p), float32 or float64
    codes : ndarray of shape (n,), int
    weights : ndarray of shape (n,), float64
    energy : ndarray of shape (p,), float64
        Weighted sum of squares of each column.
    n_classes : int
    """

    Z: np.ndarray
    codes: np.ndarray
    weights: np.ndarray
    energy: np.ndarray
    n_classes: int

    @property
    def contrasts(self) -> np.ndarray:
        """Orthonormal basis of the logits, (n_classes, n_classes - 1)."""
        return helmert(self.n_classes).T

    def log_proba(self, U: np.ndarray) -> np.ndarray:
        logits = (self.Z @ U.astype(self.Z.dtype)).astype(float) @ self.contrasts.T
        return logits - logsumexp(logits, axis=1, keepdims=True)

    def log_likelihood(self, log_proba: np.ndarray) -> float:
        return float(self.weights @ log_proba[np.arange(len(self.codes)), self.codes])

    def pull_back(self, residual: np.ndarray) -> np.ndarray:
        """Gradient in the parameters of a gradient in the logits, (p, n_classes - 1)."""
        return (self.Z.T @ (residual @ self.contrasts).astype(self.Z.dtype)).astype(float)

    def logit_curvature(self, proba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues and eigenvectors of the mean Hessian of the loss in the contrasts."""
        mean = (np.diag(self.weights @ proba) - (proba * self.weights[:, None]).T @ proba) / self.weights.sum()
        return eigh(self.contrasts.T @ mean @ self.contrasts)


def find_mode(
    problem: SoftmaxProblem, prior: np.ndarray, start: np.ndarray, *, max_iter: int, tol: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mode of the posterior by a truncated Newton method.

    Conjugate gradients solve for the step, preconditioned with the Kronecker-factored Hessian, which is diagonal in
    this basis.

    Parameters
    ----------
    problem : SoftmaxProblem
    prior : ndarray of shape (p, 1)
        Prior precision of each row of the parameters.
    start : ndarray of shape (p, n_classes - 1)
    max_iter : int
        Newton steps.
    tol : float
        Largest Newton decrement accepted: about the distance to the mode in posterior standard deviations.

    Returns
    -------
    mode : ndarray of shape (p, n_classes - 1), float64
    log_proba : ndarray of shape (n, n_classes), float64
    n_iter : int
    """

    def evaluate(U: np.ndarray) -> tuple[float, np.ndarray]:
        log_proba = problem.log_proba(U)
        return 0.5 * float(np.sum(prior * U**2)) - problem.log_likelihood(log_proba), log_proba

    U = start
    loss, log_proba = evaluate(U)
    one_hot = np.arange(problem.n_classes) == problem.codes[:, None]
    weights = problem.weights[:, None]
    for iteration in range(max_iter):
        proba = np.exp(log_proba)
        gradient = problem.pull_back(weights * (proba - one_hot)) + prior * U
        eigenvalues, Q = problem.logit_curvature(proba)
        diagonal = problem.energy[:, None] * np.maximum(eigenvalues, 0.0) + prior

        def precondition(G: np.ndarray, Q: np.ndarray = Q, diagonal: np.ndarray = diagonal) -> np.ndarray:
            return ((G @ Q) / diagonal) @ Q.T

        decrement = np.sqrt(np.sum(gradient * precondition(gradient)))
        if decrement <= tol:
            return U, log_proba, iteration

        def curve(V: np.ndarray, proba: np.ndarray = proba) -> np.ndarray:
            logits = (problem.Z @ V.astype(problem.Z.dtype)).astype(float) @ problem.contrasts.T
            push = proba * logits
            return problem.pull_back(weights * (push - proba * push.sum(axis=1, keepdims=True))) + prior * V

        step = _conjugate_gradients(curve, -gradient, precondition, tol=min(0.1, decrement))
        slope = float(np.sum(gradient * step))
        # the loss is known to its rounding only: below that, a Newton step of a convex function is taken as it is
        noise = 10 * np.finfo(problem.Z.dtype).eps * abs(loss)
        size = 1.0
        while True:
            new_loss, new_log_proba = evaluate(U + size * step)
            if new_loss <= loss + 1e-4 * size * slope + noise or size < 1e-6:
                break
            size /= 2
        U, loss, log_proba = U + size * step, new_loss, new_log_proba
    warnings.warn(
        f"the mode was not reached in max_iter={max_iter} Newton steps (decrement {decrement:.2g}, tol {tol:.2g}). Fix: "
        "raise max_iter, or tol; or give a larger prior_precision if the classes are perfectly separable.",
        ConvergenceWarning,
        stacklevel=2,
    )
    return U, log_proba, max_iter


def _conjugate_gradients(curve, target, precondition, *, tol: float, max_iter: int = 200) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Approximate solution S of curve(S) = target, to a relative residual of tol in the preconditioner's norm."""
    solution = np.zeros_like(target)
    residual = target
    direction = image = precondition(residual)
    norm = first = float(np.sum(residual * image))
    for _ in range(max_iter):
        curved = curve(direction)
        size = norm / float(np.sum(direction * curved))
        solution = solution + size * direction
        residual = residual - size * curved
        image = precondition(residual)
        norm, previous = float(np.sum(residual * image)), norm
        if norm <= tol**2 * first:
            break
        direction = image + (norm / previous) * direction
    return solution


def kronecker_curvature(problem: SoftmaxProblem, proba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Generalised Gauss-Newton matrix in its Kronecker eigenbasis, with the eigenvalues corrected to the exact diagonal.

    Returns
    -------
    curvature : ndarray of shape (p, n_classes - 1), float64
    Q : ndarray of shape (n_classes - 1, n_classes - 1)
        Eigenvectors of the classes' factor, in contrasts; the features' factor is already diagonal in this basis.
    """
    _, Q = problem.logit_curvature(proba)
    directions = problem.contrasts @ Q
    spread = problem.weights[:, None] * (proba @ directions**2 - (proba @ directions) ** 2)
    curvature = np.zeros((problem.Z.shape[1], problem.n_classes - 1))
    for rows in _chunks(len(problem.Z)):
        curvature += (problem.Z[rows] ** 2).T @ spread[rows].astype(problem.Z.dtype)
    return np.maximum(curvature, 0.0), Q


def full_curvature(problem: SoftmaxProblem, proba: np.ndarray) -> np.ndarray:
    """Generalised Gauss-Newton matrix, here the exact Hessian of the loss, ((n_classes - 1) p, (n_classes - 1) p)."""
    n, p = problem.Z.shape
    B = problem.contrasts
    J = B.shape[1]
    hessian = np.zeros((J, p, J, p))
    pushed = proba @ B
    for rows in _chunks(n):
        Z = problem.Z[rows].astype(float)
        for j in range(J):
            for k in range(j + 1):
                spread = proba[rows] @ (B[:, j] * B[:, k]) - pushed[rows, j] * pushed[rows, k]
                hessian[j, :, k] += Z.T @ (Z * (problem.weights[rows] * spread)[:, None])
    for j in range(J):
        for k in range(j):
            hessian[k, :, j] = hessian[j, :, k].T
    return hessian.reshape(J * p, J * p)


def _chunks(n: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]
