"""Oracle for the variational head, two classes: the best normal guide by fixed points and quadrature.

Imports numpy and scipy only.
"""

import numpy as np
from scipy.special import expit, log_expit

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def expectations(Z, y, mean, covariance):
    """Of log p(y | f), p(y = 1 | f) and its derivative in f, for f = z'b with b normal; (n,) each."""
    spread = np.sqrt(np.einsum("np,pq,nq->n", Z, covariance, Z))
    f = (Z @ mean)[:, None] + spread[:, None] * NODES
    sign = np.where(y == 1, 1, -1)[:, None]
    p = expit(f)
    return log_expit(sign * f) @ WEIGHTS, p @ WEIGHTS, (p * (1 - p)) @ WEIGHTS


def best_normal(Z, y, weights, prior, *, independent, n_iter=500):
    """Mean, covariance and bound of the normal that maximises the evidence lower bound.

    At the optimum the expected gradient is zero and the inverse covariance is the expected Hessian; with independent
    parameters its diagonal. Damped Newton steps on both.

    Parameters
    ----------
    Z : ndarray of shape (n, p)
    y : ndarray of shape (n,), 0 or 1
    weights : ndarray of shape (n,)
    prior : ndarray of shape (p,)
        Precisions of b; p(y = 1 | z) = 1 / (1 + exp(-z'b)).
    independent : bool
    """
    p = Z.shape[1]
    mean, precision = np.zeros(p), np.diag(prior) + Z.T @ Z / 4
    for _ in range(n_iter):
        covariance = np.linalg.inv(precision)
        _, proba, slope = expectations(Z, y, mean, covariance)
        hessian = Z.T @ (Z * (weights * slope)[:, None]) + np.diag(prior)
        gradient = Z.T @ (weights * (y - proba)) - prior * mean
        mean = mean + 0.5 * np.linalg.solve(hessian, gradient)
        precision = 0.5 * precision + 0.5 * (np.diag(np.diag(hessian)) if independent else hessian)
    covariance = np.linalg.inv(precision)
    likelihood, _, _ = expectations(Z, y, mean, covariance)
    divergence = 0.5 * (
        np.sum(prior * (np.diag(covariance) + mean**2)) - p - np.log(prior).sum() - np.linalg.slogdet(covariance)[1]
    )
    return mean, covariance, float(weights @ likelihood - divergence)
