"""Oracles for the ensemble, SWAG, dropout and Dirichlet heads: closed forms and loops. Imports numpy and scipy only."""

import numpy as np
from scipy.integrate import quad
from scipy.linalg import helmert, solve_discrete_lyapunov
from scipy.optimize import minimize
from scipy.special import betaln, digamma, gammaln
from scipy.stats import beta


def gaussian_posterior(X, y, noise_variance, prior_precision):
    """Mean (d,) and covariance (d, d) of Bayesian linear regression with the prior N(0, I / prior_precision)."""
    precision = X.T @ X / noise_variance + prior_precision * np.eye(X.shape[1])
    covariance = np.linalg.inv(precision)
    return covariance @ X.T @ y / noise_variance, covariance


def randomised_map(X, y, noise_variance, prior_precision, rng):
    """Minimiser of the squared error of noisy targets plus the distance to a draw of the prior."""
    targets = y + np.sqrt(noise_variance) * rng.normal(size=len(y))
    anchor = rng.normal(size=X.shape[1]) / np.sqrt(prior_precision)
    precision = X.T @ X / noise_variance + prior_precision * np.eye(X.shape[1])
    return np.linalg.solve(precision, X.T @ targets / noise_variance + prior_precision * anchor)


def logit_posterior(Z, codes, weights, prior, n_classes, U):
    """Mean and precision, parameters ordered by contrast then feature, of the Gaussian model tangent to softmax
    regression at U: working responses with the curvature of the likelihood there."""
    p, J = Z.shape[1], n_classes - 1
    B = helmert(n_classes).T
    precision, pull = np.kron(np.eye(J), np.diag(prior)), np.zeros(J * p)
    for z, c, w in zip(Z, codes, weights, strict=True):
        logits = B @ (U.T @ z)
        q = np.exp(logits - logits.max())
        q /= q.sum()
        curvature = B.T @ (np.diag(q) - np.outer(q, q)) @ B
        precision += w * np.kron(curvature, np.outer(z, z))
        pull += w * np.kron(curvature @ (U.T @ z) + B.T @ (np.eye(n_classes)[c] - q), z)
    return np.linalg.solve(precision, pull), precision


def score_covariance(Z, codes, weights, U):
    """Weighted sum of the outer products of the rows' scores; parameters ordered by contrast then feature."""
    n_classes = U.shape[1] + 1
    B = helmert(n_classes).T
    total = 0
    for z, c, w in zip(Z, codes, weights, strict=True):
        logits = B @ (U.T @ z)
        q = np.exp(logits - logits.max())
        q /= q.sum()
        score = np.kron(B.T @ (np.eye(n_classes)[c] - q), z)
        total = total + w * np.outer(score, score)
    return total


def stationary_covariance(step, noise):
    """Covariance S of x <- x - step x + e with E e e' = noise: S = (I - step) S (I - step)' + noise."""
    return solve_discrete_lyapunov(np.eye(len(step)) - step, noise)


def dropout_average(x, hidden_weights, output_weights, dropout):
    """Exact predictive of a network with one hidden layer over all masks of a few features and units."""
    W, V = hidden_weights, output_weights
    n_features, n_hidden = len(W) - 1, len(V) - 1
    total = 0
    for number in range(2 ** (n_features + n_hidden)):
        mask = np.array([number >> i & 1 for i in range(n_features + n_hidden)], dtype=float)
        weight = np.prod(np.where(mask > 0, 1 - dropout, dropout))
        hidden = np.maximum((x * mask[:n_features]) @ W[:-1] + W[-1], 0) * mask[n_features:]
        logits = hidden @ V[:-1] + V[-1]
        p = np.exp(logits - logits.max())
        total = total + weight * p / p.sum()
    return total


def dirichlet_loss(alpha, own, kl_weight):
    """Evidential loss of one row, each expectation by quadrature over the Beta marginals of the Dirichlet."""
    total = alpha.sum()
    cross_entropy = _beta_mean(lambda p: -np.log(p), alpha[own], total - alpha[own])
    misleading = np.where(np.arange(len(alpha)) == own, 1.0, alpha)
    rest = misleading.sum() - misleading
    logs = [_beta_mean(np.log, a, b) for a, b in zip(misleading, rest, strict=True)]
    log_density = gammaln(misleading.sum()) - gammaln(misleading).sum() + (misleading - 1) @ np.array(logs)
    return cross_entropy + kl_weight * (log_density - gammaln(len(alpha)))


def dirichlet_information(alpha):
    """Mutual information of the label and the probabilities, the expected entropy by quadrature."""
    mean = alpha / alpha.sum()
    rest = alpha.sum() - alpha
    inner = sum(_beta_mean(lambda p: -p * np.log(p), a, b) for a, b in zip(alpha, rest, strict=True))
    return -mean @ np.log(mean) - inner


def _beta_mean(function, a, b):
    log_norm = betaln(a, b)

    def integrand(p):
        return function(p) * np.exp((a - 1) * np.log(p) + (b - 1) * np.log1p(-p) - log_norm)

    middle = float(beta.median(a, b))
    return quad(integrand, 0, middle, limit=200)[0] + quad(integrand, middle, 1, limit=200)[0]


def best_constant_concentration(shares, kl_weight):
    """Concentrations that minimise the evidential loss where all rows look the same; `shares` of the classes."""

    def loss(log_evidence):
        alpha = 1 + np.exp(log_evidence)
        value = 0.0
        for own, share in enumerate(shares):
            misleading = np.where(np.arange(len(shares)) == own, 1.0, alpha)
            total = misleading.sum()
            divergence = gammaln(total) - gammaln(misleading).sum() - gammaln(len(shares))
            divergence += (misleading - 1) @ (digamma(misleading) - digamma(total))
            value += share * (digamma(alpha.sum()) - digamma(alpha[own]) + kl_weight * divergence)
        return value

    return 1 + np.exp(minimize(loss, np.zeros(len(shares)), tol=1e-12).x)
