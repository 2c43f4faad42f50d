"""Oracle for the risk bounds: roots, adaptive integrals, sums over all outcomes. Imports numpy and scipy only."""

import math

import numpy as np
from scipy import integrate, optimize, stats


def kl(q, p):
    """kl(q || p) of two coins, p in (0, 1)."""
    found = 0.0
    if q > 0:
        found += q * math.log(q / p)
    if q < 1:
        found += (1 - q) * math.log((1 - q) / (1 - p))
    return found


def kl_inverse(q, budget):
    """Largest p with kl(q || p) <= budget."""
    if q == 1:
        return 1.0
    top = 1 - 1e-15
    if kl(q, top) <= budget:
        return 1.0
    return optimize.brentq(lambda p: kl(q, p) - budget, max(q, 1e-300), top, xtol=1e-15)


def exponential_moment(n, risk):
    """E exp(n kl(k / n || risk)) for k ~ Binomial(n, risk): Maurer's inequality says at most 2 sqrt(n)."""
    return sum(stats.binom.pmf(k, n, risk) * math.exp(n * kl(k / n, risk)) for k in range(n + 1))


def pac_bayes_kl(mean_loss, divergence, n, delta):
    return kl_inverse(mean_loss, (divergence + math.log(2 * math.sqrt(n) / delta)) / n)


def catoni(mean_loss, divergence, n, delta, temperature):
    cost = (divergence + math.log(1 / delta)) / n
    return (1 - math.exp(-temperature * mean_loss - cost)) / (1 - math.exp(-temperature))


def gibbs_error(x, weights, scale, label):
    """Probability that label has not the largest of the logits x'W, W ~ N(weights, scale^2), integrated."""
    mean, spread = weights.T @ x, scale * np.linalg.norm(x)

    def density(t):
        others = [stats.norm.cdf((mean[label] + spread * t - m) / spread) for k, m in enumerate(mean) if k != label]
        return stats.norm.pdf(t) * math.prod(others)

    return 1 - integrate.quad(density, -12, 12, epsabs=1e-12, limit=400)[0]


def gaussian_kl(mean, covariance, prior_mean, prior_covariance):
    """KL between two Gaussians, by dense algebra."""
    inverse = np.linalg.inv(prior_covariance)
    gap = prior_mean - mean
    logs = np.linalg.slogdet(prior_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * (np.trace(inverse @ covariance) + gap @ inverse @ gap - len(mean) + logs)
