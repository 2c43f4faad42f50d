"""Oracle for the Laplace head: dense, slow and plain. Imports numpy and scipy only."""

import itertools

import numpy as np
from scipy.linalg import helmert
from scipy.optimize import minimize
from scipy.special import logsumexp


def log_joint(U, Z, codes, weights, prior):
    """log p(y | U) + log p(U) of softmax regression in contrasts; U (p, K - 1), prior (p,) precisions."""
    logits = Z @ U @ helmert(U.shape[1] + 1)
    log_proba = logits - logsumexp(logits, axis=1, keepdims=True)
    likelihood = sum(w * row[c] for w, row, c in zip(weights, log_proba, codes, strict=True))
    return likelihood - 0.5 * np.sum(prior[:, None] * U**2) + 0.5 * np.sum(np.log(prior / (2 * np.pi))) * U.shape[1]


def hessian(U, Z, codes, weights, prior):
    """Minus the Hessian of `log_joint`, row by row; parameters ordered by contrast, then by feature."""
    J = U.shape[1]
    B = helmert(J + 1).T
    total = np.kron(np.eye(J), np.diag(prior))
    for z, w in zip(Z, weights, strict=True):
        logits = B @ (U.T @ z)
        q = np.exp(logits - logsumexp(logits))
        total += w * np.kron(B.T @ (np.diag(q) - np.outer(q, q)) @ B, np.outer(z, z))
    return total


def mode(Z, codes, weights, prior, n_classes):
    """Maximiser of `log_joint`: quasi-Newton, then Newton to rounding."""
    p, J = Z.shape[1], n_classes - 1

    def flat(u):
        return -log_joint(u.reshape(J, p).T, Z, codes, weights, prior)

    u = minimize(flat, np.zeros(p * J)).x
    B = helmert(n_classes).T
    for _ in range(20):
        U = u.reshape(J, p).T
        logits = Z @ U @ B.T
        q = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        residual = (q - np.eye(n_classes)[codes]) * weights[:, None]
        gradient = Z.T @ residual @ B + prior[:, None] * U
        u = u - np.linalg.solve(hessian(U, Z, codes, weights, prior), gradient.T.ravel())
    return u.reshape(J, p).T


def laplace_evidence(Z, codes, weights, prior, n_classes):
    """Laplace approximation of log p(y)."""
    U = mode(Z, codes, weights, prior, n_classes)
    _, log_determinant = np.linalg.slogdet(hessian(U, Z, codes, weights, prior))
    return log_joint(U, Z, codes, weights, prior) + 0.5 * U.size * np.log(2 * np.pi) - 0.5 * log_determinant


def exact_posterior(Z, codes, weights, prior, n_classes, *, points=31, width=9.0):
    """Grid quadrature of the posterior.

    Returns
    -------
    log_evidence : float
    grid : ndarray of shape (m, p, n_classes - 1)
    mass : ndarray of shape (m,), sums to 1
    """
    U = mode(Z, codes, weights, prior, n_classes)
    root = np.linalg.cholesky(np.linalg.inv(hessian(U, Z, codes, weights, prior)))
    axis = np.linspace(-width, width, points)
    offsets = np.array(list(itertools.product(axis, repeat=U.size)))
    flat = U.T.ravel() + offsets @ root.T
    grid = flat.reshape(-1, U.shape[1], U.shape[0]).transpose(0, 2, 1)
    logits = np.einsum("np,mpj->mnj", Z, grid) @ helmert(n_classes)
    log_proba = logits - logsumexp(logits, axis=2, keepdims=True)
    value = log_proba[:, np.arange(len(codes)), codes] @ weights
    value += -0.5 * np.einsum("p,mpj->m", prior, grid**2)
    value += 0.5 * U.shape[1] * np.sum(np.log(prior / (2 * np.pi)))
    cell = U.size * np.log(axis[1] - axis[0]) + np.log(np.diag(root)).sum()
    return float(logsumexp(value) + cell), grid, np.exp(value - logsumexp(value))


def exact_predictive(Z_new, grid, mass):
    """Posterior predictive probabilities under a quadrature of the posterior."""
    logits = np.einsum("np,mpj->mnj", Z_new, grid) @ helmert(grid.shape[2] + 1)
    return np.einsum("m,mnk->nk", mass, np.exp(logits - logsumexp(logits, axis=2, keepdims=True)))
