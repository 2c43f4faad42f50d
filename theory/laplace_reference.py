"""Oracle for the Laplace head: dense, slow and plain. Imports numpy and scipy only."""

import itertools

import numpy as np
from scipy.linalg import eigh, helmert
from scipy.optimize import minimize
from scipy.special import digamma, logsumexp
from scipy.stats import norm


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


# --- one prior precision for each class: everything over the K rows of weights, the direction that softmax ignores too


def rows_hessian(W, Z, weights, prior):
    """Minus the Hessian of the log-joint in the rows W (K, p), ordered by class; prior (K, p) precisions."""
    total = np.diag(prior.ravel())
    for z, w in zip(Z, weights, strict=True):
        q = np.exp(W @ z - logsumexp(W @ z))
        total += w * np.kron(np.diag(q) - np.outer(q, q), np.outer(z, z))
    return total


def rows_mode(Z, codes, weights, prior):
    """Mode of the log-joint in the rows, by damped Newton steps."""

    def loss(W):
        logits = Z @ W.T
        own = logits[np.arange(len(codes)), codes] - logsumexp(logits, axis=1)
        return 0.5 * np.sum(prior * W**2) - weights @ own

    W = np.zeros(prior.shape)
    for _ in range(200):
        logits = Z @ W.T
        q = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        gradient = ((q - np.eye(len(prior))[codes]) * weights[:, None]).T @ Z + prior * W
        step = np.linalg.solve(rows_hessian(W, Z, weights, prior), gradient.ravel()).reshape(W.shape)
        size = 1.0
        while loss(W - size * step) > loss(W) + 1e-12 * abs(loss(W)) and size > 1e-8:
            size /= 2
        W = W - size * step
        if np.abs(step).max() < 1e-13:
            break
    return W, -loss(W)


def rows_evidence(Z, codes, weights, prior):
    """Laplace approximation of log p(y)."""
    W, value = rows_mode(Z, codes, weights, prior)
    _, log_determinant = np.linalg.slogdet(rows_hessian(W, Z, weights, prior))
    return value + 0.5 * np.sum(np.log(prior)) - 0.5 * log_determinant


def rows_logit_covariance(Z_new, Z, codes, weights, prior):
    """Covariance of the logits, less their mean over the classes, of each new row, (m, K, K)."""
    W, _ = rows_mode(Z, codes, weights, prior)
    K, p = prior.shape
    covariance = np.linalg.inv(rows_hessian(W, Z, weights, prior)).reshape(K, p, K, p)
    center = np.eye(K) - 1 / K
    return np.array([center @ np.einsum("i,kilj,j->kl", z, covariance, z) @ center for z in Z_new])


# --- structured covariances, from the dense Hessian; parameters ordered by contrast, then by feature


def class_axes(proba, weights, class_prior):
    """Q with Q' P Q = I that diagonalises the weighted sum of diag(p) - p p' in contrasts."""
    B = helmert(proba.shape[1]).T
    total = sum(w * B.T @ (np.diag(q) - np.outer(q, q)) @ B for w, q in zip(weights, proba, strict=True))
    return eigh(total, class_prior)[1]


def factored_covariance(likelihood_hessian, proba, weights, class_prior, intercept_prior, axes):
    """Inverse of the Hessian's diagonal along class axes (x) feature axes (p - 1, p - 1); the intercept by itself."""
    J, p = len(class_prior), len(axes) + 1
    precision = likelihood_hessian + prior_precision(class_prior, intercept_prior, p)
    Q = class_axes(proba, weights, class_prior)
    Q_intercept = class_axes(proba, weights, intercept_prior * np.eye(J))
    vectors = [np.kron(q, np.append(v, 0)) for q in Q.T for v in axes.T]
    vectors += [np.kron(q, np.eye(p)[-1]) for q in Q_intercept.T]
    return sum(np.outer(t, t) / (t @ precision @ t) for t in vectors)


def low_rank_covariance(likelihood_hessian, class_prior, intercept_prior, rank):
    """Inverse of prior precision + the eigenvectors of the Hessian in units of the prior with largest eigenvalues."""
    prior = prior_precision(class_prior, intercept_prior, len(likelihood_hessian) // len(class_prior))
    values, vectors = eigh(likelihood_hessian, prior)
    kept = prior @ vectors[:, len(values) - rank :]
    return np.linalg.inv(prior + (kept * values[len(values) - rank :]) @ kept.T)


def prior_precision(class_prior, intercept_prior, p):
    """Dense prior precision of all parameters."""
    feature, intercept = np.diag(np.arange(p) < p - 1), np.diag(np.arange(p) == p - 1)
    return np.kron(class_prior, feature) + np.kron(intercept_prior * np.eye(len(class_prior)), intercept)


# --- the softmax of Gaussian logits


def softmax_average(mean, covariance, *, points=1201, width=12.0):
    """Average of the softmax, and of its entropy, over N(mean, covariance) on a dense grid; two or three classes."""
    B = helmert(len(mean)).T
    root = np.linalg.cholesky(B.T @ covariance @ B)
    axis = np.linspace(-width, width, points)
    nodes = np.array(list(itertools.product(axis, repeat=len(mean) - 1)))
    mass = norm.pdf(nodes).prod(axis=1)
    logits = mean + nodes @ (B @ root).T
    log_proba = logits - logsumexp(logits, axis=1, keepdims=True)
    proba = np.exp(log_proba)
    return mass @ proba / mass.sum(), -(mass @ np.sum(proba * log_proba, axis=1)) / mass.sum()


def pairwise_probit(mean, covariance):
    """MacKay's formula for each pair of classes, joined (Lu, Ie, Sha, arXiv:2006.07584)."""
    K = len(mean)
    found = np.zeros(K)
    for k in range(K):
        odds = 0.0
        for i in range(K):
            variance = covariance[k, k] + covariance[i, i] - 2 * covariance[k, i]
            odds += np.exp(-(mean[k] - mean[i]) / np.sqrt(1 + np.pi / 8 * variance))
        found[k] = 1 / odds
    return found / found.sum()


def bridge(mean, covariance):
    """Parameters of the Dirichlet distribution of the Laplace bridge (Hobbhahn et al., arXiv:2003.01227)."""
    K, variance = len(mean), np.diag(covariance)
    scale = max(variance.mean() / np.sqrt(K / 2), 1)
    mean, variance = mean / np.sqrt(scale), variance / scale
    return np.array([(1 - 2 / K + np.exp(mean[k]) / K**2 * np.exp(-mean).sum()) / variance[k] for k in range(K)])


def dirichlet_information(alpha):
    """Mutual information of a label and the probabilities that it was drawn with, these Dirichlet(alpha)."""
    p = alpha / alpha.sum()
    return -np.sum(p * (np.log(p) - digamma(alpha + 1) + digamma(alpha.sum() + 1)))
