"""Oracle for the linearised Laplace head: a ReLU network by hand, differences in place of derivatives. numpy and scipy
only."""

import itertools

import numpy as np
from scipy.linalg import helmert
from scipy.special import logsumexp


def logits(theta, x, sizes):
    """Of one row, of a network whose layers hold weights (out, in) and biases one after the other in theta."""
    start = 0
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        W = theta[start : start + n_in * n_out].reshape(n_out, n_in)
        b = theta[start + n_in * n_out : start + n_in * n_out + n_out]
        start += n_in * n_out + n_out
        x = W @ x + b
        if layer < len(sizes) - 2:
            x = np.maximum(x, 0)
    return x


def jacobian(theta, x, sizes, step=1e-6):
    """Derivatives of the logits (K, P) by central differences."""
    columns = [
        (logits(theta + step * e, x, sizes) - logits(theta - step * e, x, sizes)) / (2 * step)
        for e in np.eye(len(theta))
    ]
    return np.stack(columns, axis=1)


def gauss_newton(theta, X, weights, sizes):
    """Sum over the rows of w J' (diag p - p p') J."""
    total = np.zeros((len(theta), len(theta)))
    for x, w in zip(X, weights, strict=True):
        f, J = logits(theta, x, sizes), jacobian(theta, x, sizes)
        p = np.exp(f - logsumexp(f))
        total += w * J.T @ (np.diag(p) - np.outer(p, p)) @ J
    return total


def covariance(theta, curvature, prior, structure, rank=None):
    """Posterior covariance (P, P) of the parameters."""
    if structure == "diagonal":
        return np.diag(1 / (prior + np.diag(curvature)))
    if structure == "low_rank":
        root = np.sqrt(prior)
        values, vectors = np.linalg.eigh(curvature / np.outer(root, root))
        values, vectors = values[-rank:], vectors[:, -rank:] * root[:, None]
        return np.linalg.inv(np.diag(prior) + (vectors * values) @ vectors.T)
    return np.linalg.inv(np.diag(prior) + curvature)


def logit_gaussian(theta, x, sizes, parameter_covariance):
    """Mean and covariance of the logits of one row, less their mean over the classes, of the linearised network."""
    B = helmert(sizes[-1]).T
    J = B @ B.T @ jacobian(theta, x, sizes)
    return B @ B.T @ logits(theta, x, sizes), J @ parameter_covariance @ J.T


def evidence(theta, X, codes, weights, prior, sizes, determinant_of):
    """Laplace evidence, with the determinant of `determinant_of` (P, P), a posterior precision."""
    rows = [logits(theta, x, sizes) for x in X]
    value = sum(w * (f[c] - logsumexp(f)) for w, f, c in zip(weights, rows, codes, strict=True))
    _, log_determinant = np.linalg.slogdet(determinant_of)
    return value - 0.5 * prior @ theta**2 + 0.5 * np.sum(np.log(prior)) - 0.5 * log_determinant
