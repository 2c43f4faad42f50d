"""Oracle for two classes: Gibbs sampling of Bayesian logistic regression, Polya-Gamma augmented. Imports numpy only.

Polson, Scott, Windle, *Bayesian inference for logistic models using Polya-Gamma latent variables*, arXiv:1205.0310.
"""

import numpy as np


def polya_gamma(shape, tilt, rng, terms=200):
    """Draws of PG(shape, tilt), arrays of one length, as its series of gamma variables.

    The series ends after `terms`; what is left has a standard deviation below 1e-5 times the root of `shape` and is
    replaced by its mean.
    """
    k = np.arange(1, terms + 1) - 0.5
    rates = 2 * np.pi**2 * (k**2 + (tilt[:, None] / (2 * np.pi)) ** 2)
    draws = rng.standard_gamma(shape[:, None], size=rates.shape)
    return np.sum(draws / rates, axis=1) + mean(shape, tilt) - shape * np.sum(1 / rates, axis=1)


def mean(shape, tilt):
    """Mean of PG(shape, tilt): shape tanh(tilt / 2) / (2 tilt)."""
    small = np.abs(tilt) < 1e-6
    safe = np.where(small, 1.0, tilt)
    return shape * np.where(small, 0.25, np.tanh(safe / 2) / (2 * safe))


def gibbs(Z, y, weights, prior, n_draws, rng, burn_in=100):
    """Draws (n_draws, p) of b given p(y = 1 | z) = 1 / (1 + exp(-z'b)) with weights, and b ~ N(0, 1 / prior)."""
    kappa = Z.T @ (weights * (y - 0.5))
    b, draws = np.zeros(Z.shape[1]), np.empty((n_draws, Z.shape[1]))
    for i in range(-burn_in, n_draws):
        omega = polya_gamma(weights, Z @ b, rng)
        lower = np.linalg.cholesky(Z.T @ (Z * omega[:, None]) + np.diag(prior))
        centre = np.linalg.solve(lower, kappa)
        b = np.linalg.solve(lower.T, centre + rng.standard_normal(len(b)))
        if i >= 0:
            draws[i] = b
    return draws
