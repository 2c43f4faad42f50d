"""Heads for experiments: draws of the exact posterior, and draws that are too narrow."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, log_expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin

from cbdc import LaplaceHead

_GRID = np.stack(np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-5, 5, 41)), axis=-1).reshape(-1, 2)


class BinaryHead(ClassifierMixin, BaseEstimator):
    """Logistic regression of labels 0 and 1 by weights (n_kept, n_features + 1), intercept first."""

    def predict_posterior(self, X: ArrayLike, n_draws: int = 64, random_state: Any = None) -> np.ndarray:
        rng = np.random.RandomState(random_state)
        again = np.ptp(self.mass_) > 0 or n_draws > len(self.mass_)  # of equal draws each is taken once first
        chosen = rng.choice(len(self.mass_), n_draws, replace=again, p=self.mass_)
        p = expit(_with_ones(X) @ self.weights_[chosen].T).T
        return np.stack([1 - p, p], axis=2)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        p = expit(_with_ones(X) @ self.weights_.T) @ self.mass_
        return np.stack([1 - p, p], axis=1)

    def predict(self, X: ArrayLike) -> np.ndarray:
        return self.predict_proba(X).argmax(axis=1)


class GridHead(BinaryHead):
    """One feature; the posterior on a grid, from standard normal priors of the intercept and of half the slope.

    Parameters
    ----------
    slope : float or None, default=None
        A slope that the model is sure of.
    """

    def __init__(self, slope: float | None = None) -> None:
        self.slope = slope

    def fit(self, X: ArrayLike, y: ArrayLike) -> "GridHead":
        self.classes_, self.n_features_in_ = np.array([0, 1]), 1
        self.weights_ = _GRID if self.slope is None else _GRID[_GRID[:, 1] == self.slope]
        logits = _with_ones(X) @ self.weights_.T
        log_mass = log_expit(np.where(np.asarray(y)[:, None] == 1, logits, -logits)).sum(axis=0)
        self.mass_ = softmax(log_mass - np.sum((self.weights_ / [1, 2]) ** 2, axis=1) / 2)
        return self


class PolyaGammaHead(BinaryHead):
    """Gibbs sampling of the posterior under normal priors, by Polya-Gamma variables.

    Parameters
    ----------
    prior_precision : float
        Of the weights; the intercept's is 0.01.
    n_kept, thin, burn_in : int
        Draws kept, steps from one to the next, steps before the first.
    random_state : int

    References
    ----------
    Polson, Scott and Windle, *Bayesian inference for logistic models using Polya-Gamma latent variables*,
    arXiv:1205.0310. The series of exponential variables is cut after 60, and the mean of the rest added.
    """

    def __init__(
        self, prior_precision: float, *, n_kept: int = 500, thin: int = 2, burn_in: int = 100, random_state: int = 0
    ) -> None:
        self.prior_precision = prior_precision
        self.n_kept = n_kept
        self.thin = thin
        self.burn_in = burn_in
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "PolyaGammaHead":
        self.classes_, self.n_features_in_ = np.array([0, 1]), np.shape(X)[1]
        rng = np.random.default_rng(self.random_state)
        Z = _with_ones(X)
        prior = np.diag(np.append(0.01, np.full(self.n_features_in_, self.prior_precision)))
        target = Z.T @ (np.asarray(y) - 0.5)
        squares = (np.arange(60) + 0.5) ** 2
        weights, kept = np.zeros(Z.shape[1]), []
        for step in range(self.burn_in + self.n_kept * self.thin):
            rates = squares + (Z @ weights)[:, None] ** 2 / (4 * np.pi**2)
            omega = (np.sum(rng.exponential(size=rates.shape) / rates, axis=1) + 1 / 60) / (2 * np.pi**2)
            root = np.linalg.cholesky(Z.T * omega @ Z + prior)
            weights = np.linalg.solve(root.T, np.linalg.solve(root, target) + rng.standard_normal(len(target)))
            if step >= self.burn_in and (step - self.burn_in) % self.thin == 0:
                kept.append(weights)
        self.weights_, self.mass_ = np.array(kept), np.full(len(kept), 1 / len(kept))
        return self


class PlugInHead(LaplaceHead):
    """A posterior mistaken for a point: every draw is the prediction itself."""

    def predict_posterior(self, E: ArrayLike, n_draws: int = 64, random_state: Any = None) -> np.ndarray:
        return np.repeat(self.predict_proba(E)[None], n_draws, axis=0)


def _with_ones(X: ArrayLike) -> np.ndarray:
    X = np.asarray(X, dtype=float)
    return np.column_stack([np.ones(len(X)), X])
