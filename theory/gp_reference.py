"""Oracle for the Gaussian process head: dense Laplace approximation of Rasmussen and Williams (2006), algorithms 3.1,
3.3 and 3.4, on the exact kernel. Imports numpy only."""

import numpy as np


def rbf(A, B, length_scale):
    """exp(-|a - b|^2 / (2 l^2)), pair by pair."""
    return np.array([[np.exp(-np.sum((a - b) ** 2) / (2 * length_scale**2)) for b in B] for a in A])


def softmax(F):
    """Along the first axis."""
    E = np.exp(F - F.max(axis=0))
    return E / E.sum(axis=0)


class MulticlassLaplace:
    """K latent functions, each with the prior GP(0, k); labels are softmax distributed.

    Attributes
    ----------
    f : ndarray of shape (K n,)
        Latent values at the mode, class by class.
    log_evidence : float
        log q(y | X), equation (3.44).
    """

    def __init__(self, kernel, codes, n_classes, weights=None):
        n = len(codes)
        weights = np.ones(n) if weights is None else weights
        self.n_classes, self.n = n_classes, n
        self.K = np.kron(np.eye(n_classes), kernel)
        y = np.array([codes == c for c in range(n_classes)], dtype=float)
        f = np.zeros(n_classes * n)
        for _ in range(100):  # Newton, equation (3.39)
            p = softmax(f.reshape(n_classes, n))
            W = self._curvature(p, weights)
            b = W @ f + (weights * (y - p)).ravel()
            new = self.K @ np.linalg.solve(np.eye(len(f)) + W @ self.K, b)
            done = np.max(np.abs(new - f)) < 1e-12
            f = new
            if done:
                break
        p = softmax(f.reshape(n_classes, n))
        self.f, self.W = f, self._curvature(p, weights)
        self.a = (weights * (y - p)).ravel()  # K^-1 f at the mode
        _, log_determinant = np.linalg.slogdet(np.eye(len(f)) + self.W @ self.K)
        log_likelihood = np.sum(weights * np.log(p[codes, np.arange(n)]))
        self.log_evidence = log_likelihood - 0.5 * self.a @ f - 0.5 * log_determinant

    def _curvature(self, p, weights):
        """diag(pi) - Pi Pi', equation (3.38)."""
        n, K = self.n, self.n_classes
        W = np.zeros((K, n, K, n))
        for i in range(n):
            W[:, i, :, i] = weights[i] * (np.diag(p[:, i]) - np.outer(p[:, i], p[:, i]))
        return W.reshape(K * n, K * n)

    def latent(self, cross, prior_variance):
        """Mean (K,) and covariance (K, K) of the latent values at a new row (algorithm 3.4).

        Parameters
        ----------
        cross : ndarray of shape (n,)
            Kernel between the row and the training rows.
        prior_variance : float
        """
        Q = np.kron(np.eye(self.n_classes), cross[:, None])
        inner = np.linalg.solve(np.eye(len(self.W)) + self.W @ self.K, self.W)
        return Q.T @ self.a, prior_variance * np.eye(self.n_classes) - Q.T @ inner @ Q

    def predict_proba(self, cross, prior_variance, normal_points):
        """Average of softmax over the latent Gaussian at standard normal points (m, K)."""
        mean, covariance = self.latent(cross, prior_variance)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0))
        return softmax(mean[:, None] + root @ normal_points.T).mean(axis=1)


def binary_laplace(kernel, signs):
    """Algorithm 3.1 for the logistic likelihood, labels -1 and +1: latent mode (n,), log evidence (equation 3.32)."""
    n = len(signs)
    f = np.zeros(n)
    for _ in range(100):
        pi = 1 / (1 + np.exp(-f))
        root = np.sqrt(pi * (1 - pi))
        B = np.eye(n) + root[:, None] * kernel * root
        b = root**2 * f + (signs + 1) / 2 - pi
        a = b - root * np.linalg.solve(B, root * (kernel @ b))
        new = kernel @ a
        done = np.max(np.abs(new - f)) < 1e-12
        f = new
        if done:
            break
    _, log_determinant = np.linalg.slogdet(B)
    return f, -0.5 * a @ f - np.sum(np.log1p(np.exp(-signs * f))) - 0.5 * log_determinant
