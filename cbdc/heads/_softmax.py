"""Softmax regression with a Gaussian prior: the mode of its posterior.

Everything is written in contrasts: logits f = B u with B (K, K - 1) orthonormal and orthogonal to the ones, so that the
one direction that softmax ignores is left out. An isotropic prior on u is the symmetric prior on the K rows of weights.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.linalg import eigh, helmert
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning

__all__ = [
    "Prior",
    "SoftmaxProblem",
    "contrasts",
    "curvature_product",
    "find_mode",
    "hessian_solve",
    "row_chunks",
    "signs",
]

_CELLS = 2**22  # numbers that one temporary array may hold
_INTERCEPT_PRECISION = 1e-2  # a standard deviation of 10 in log-odds: weak, yet proper when the classes separate


@lru_cache(maxsize=8)
def contrasts(n_classes: int) -> np.ndarray:
    """Orthonormal basis of the logits that sum to zero, (n_classes, n_classes - 1); read only."""
    basis = np.ascontiguousarray(helmert(n_classes).T)
    basis.flags.writeable = False
    return basis


def row_chunks(n: int, width: int) -> Iterator[slice]:
    """Slices of rows, short enough that an array of that many rows and `width` columns stays small."""
    step = max(1, _CELLS // max(width, 1))
    return (slice(start, start + step) for start in range(0, n, step))


def signs(columns: np.ndarray) -> np.ndarray:
    """1 or -1 for each column, so that its largest entry becomes positive: eigenvectors come with either sign."""
    largest = np.take_along_axis(columns, np.abs(columns).argmax(axis=0)[None], 0)[0]
    return np.where(largest < 0, -1, 1).astype(columns.dtype)


@dataclass(frozen=True)
class Prior:
    """Gaussian prior with mean zero: the weights of a class share a precision, and the intercepts a weak one.

    The weights are independent; in contrasts those of one feature are not, unless all classes have one precision.

    Attributes
    ----------
    class_precision : ndarray of shape (n_classes,)
    intercept_precision : float
    """

    class_precision: np.ndarray
    intercept_precision: float = _INTERCEPT_PRECISION

    @cached_property
    def covariance(self) -> np.ndarray:
        """Of the contrasts of one feature, (n_classes - 1, n_classes - 1)."""
        B = contrasts(len(self.class_precision))
        return B.T @ (B / self.class_precision[:, None])

    @cached_property
    def precision(self) -> np.ndarray:
        """Inverse of `covariance`."""
        return np.linalg.inv(self.covariance)

    def times(self, U: np.ndarray) -> np.ndarray:
        """Product of the precision with parameters (p, n_classes - 1), intercept last."""
        product = U @ self.precision
        product[-1] = self.intercept_precision * U[-1]
        return product

    def log_determinant(self, p: int) -> float:
        """Of the precision of p rows of parameters."""
        J = len(self.precision)
        return (p - 1) * float(np.linalg.slogdet(self.precision)[1]) + J * float(np.log(self.intercept_precision))

    def axes(self, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Axes Q that make the prior of a row the identity, Q' precision Q = I, and a curvature of contrasts diagonal.

        Returns
        -------
        eigenvalues : ndarray of shape (2, n_classes - 1)
            Of the curvature along the axes: of a feature, of the intercept.
        axes : ndarray of shape (2, n_classes - 1, n_classes - 1)
            In columns.
        """
        own, Q = eigh(curvature)
        Q = Q * signs(Q)
        c = self.intercept_precision
        if np.ptp(self.class_precision) == 0:
            tau = self.class_precision[0]
            return np.stack([own / tau, own / c]), np.array([Q / np.sqrt(tau), Q / np.sqrt(c)], order="C")
        values, axes = eigh(curvature, self.precision)
        return np.stack([values, own / c]), np.array([axes * signs(axes), Q / np.sqrt(c)], order="C")


@dataclass(frozen=True)
class SoftmaxProblem:
    """Data of the regression.

    Attributes
    ----------
    Z : ndarray of shape (n, p), float32 or float64
        Features along orthogonal axes, and a last column of ones.
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

    def logits(self, U: np.ndarray) -> np.ndarray:
        return (self.Z @ U.astype(self.Z.dtype)).astype(float) @ contrasts(self.n_classes).T

    def pull_back(self, residual: np.ndarray) -> np.ndarray:
        """Gradient in the parameters from a gradient in the logits, (p, n_classes - 1)."""
        return ((residual @ contrasts(self.n_classes)).T.astype(self.Z.dtype) @ self.Z).T.astype(float)

    def log_likelihood(self, logits: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Weighted log-likelihood; probabilities p (n, n_classes); weights (n,) of the curvatures diag(p) - p p'."""
        log_proba = log_softmax(logits, axis=1)
        own = np.take_along_axis(log_proba, self.codes[:, None], 1)[:, 0]
        return float(self.weights @ own), np.exp(log_proba), self.weights

    def expected_log_likelihood(
        self, logits: np.ndarray, logit_factor: Callable[[slice], np.ndarray], points: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Like `log_likelihood`, in expectation over Gaussian logits.

        The expected curvature is taken as a multiple, of the right trace, of diag(p) - p p' at the expected p.

        Parameters
        ----------
        logits : ndarray of shape (n, n_classes)
            Their means.
        logit_factor : callable
            From a slice of rows to a factor (n_rows, n_classes, n_classes - 1) of the logits' covariance.
        points : ndarray of shape (n_points, n_classes - 1)
            Standard normal points with mean zero.
        """
        value, expected, curvature_weights = 0.0, np.empty_like(logits), np.empty(len(logits))
        for rows in row_chunks(len(logits), len(points) * self.n_classes):
            proba = logits[rows, None] + points @ logit_factor(rows).transpose(0, 2, 1)
            largest = proba.max(axis=2, keepdims=True)
            proba -= largest
            np.exp(proba, out=proba)
            total = proba.sum(axis=2, keepdims=True)
            proba /= total
            log_norm = (largest + np.log(total))[:, :, 0]
            mean = expected[rows] = proba.mean(axis=1)
            own = np.take_along_axis(logits[rows], self.codes[rows, None], 1)[:, 0]
            value += float(self.weights[rows] @ (own - log_norm.mean(axis=1)))
            trace = 1 - np.einsum("nsk,nsk->n", proba, proba) / len(points)
            bound = np.sum(mean * (1 - mean), axis=1)
            ratio = np.divide(trace, bound, out=np.ones_like(trace), where=bound > 0)
            curvature_weights[rows] = self.weights[rows] * ratio
        return value, expected, curvature_weights

    def class_curvature(self, proba: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted sum of diag(p) - p p' per unit of data, in contrasts, (n_classes - 1, n_classes - 1)."""
        B = contrasts(self.n_classes)
        total = np.diag(weights @ proba) - (proba * weights[:, None]).T @ proba
        return B.T @ total @ B / self.weights.sum()


def find_mode(
    problem: SoftmaxProblem,
    prior: Prior,
    start: np.ndarray,
    *,
    max_iter: int,
    tol: float,
    log_likelihood: Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]] | None = None,
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Mode of the posterior by a truncated Newton method.

    Conjugate gradients find each step, preconditioned with the Kronecker-factored Hessian, which is diagonal along the
    problem's axes.

    Parameters
    ----------
    problem : SoftmaxProblem
    prior : Prior
    start : ndarray of shape (p, n_classes - 1)
    max_iter : int
        Newton steps.
    tol : float
        Distance to the mode at which to stop: in posterior standard deviations, root mean square over parameters.
    log_likelihood : callable, optional
        In place of `problem.log_likelihood`, for example its expectation.

    Returns
    -------
    mode : ndarray of shape (p, n_classes - 1), float64
    proba : ndarray of shape (n, n_classes), float64
    log_posterior : float
        At the mode: log-likelihood minus half the prior's quadratic form.
    n_iter : int
    """
    log_likelihood = log_likelihood or problem.log_likelihood

    def evaluate(U: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value, proba, weights = log_likelihood(problem.logits(U))
        return 0.5 * float(np.sum(prior.times(U) * U)) - value, proba, weights

    one_hot = np.arange(problem.n_classes) == problem.codes[:, None]
    U = start
    loss, proba, weights = evaluate(U)
    for iteration in range(max_iter + 1):
        gradient = problem.pull_back(problem.weights[:, None] * (proba - one_hot)) + prior.times(U)
        precondition = _kronecker_inverse(problem, prior, proba, weights)
        distance = float(np.sqrt(np.mean(gradient * precondition(gradient))))
        if distance <= tol:
            return U, proba, -loss, iteration
        if iteration == max_iter:
            break
        # as exact as makes the steps converge quadratically, and no more exact than the last of them needs
        exact = float(np.clip(max(distance, 0.3 * tol / distance), 1e-4, 0.1))
        step = _conjugate_gradients(
            _hessian_product(problem, prior, proba, weights), -gradient, precondition, tol=exact
        )
        slope = float(np.sum(gradient * step))
        # the loss cannot show a smaller decrease; ten times as much lets steps through that lead away again
        rounding = float(np.finfo(problem.Z.dtype).eps) * abs(loss)
        size = 1.0
        while True:
            new_loss, new_proba, new_weights = evaluate(U + size * step)
            if new_loss <= loss + 1e-4 * size * slope + rounding or size < 1e-6:
                break
            size /= 2
        U, loss, proba, weights = U + size * step, new_loss, new_proba, new_weights
    warnings.warn(
        f"the posterior's mode was not reached in max_iter={max_iter} Newton steps: it is about {distance:.2g} "
        f"posterior standard deviations away, tol={tol:.2g}. Fix: raise max_iter or tol, or a larger prior_precision.",
        ConvergenceWarning,
        stacklevel=2,
    )
    return U, proba, -loss, max_iter


def _kronecker_inverse(
    problem: SoftmaxProblem, prior: Prior, proba: np.ndarray, weights: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Product with the inverse of the Kronecker-factored Hessian."""
    values, (Q, Q_intercept) = prior.axes(problem.class_curvature(proba, weights))
    shrink = 1 + problem.energy[:, None] * np.maximum(values[[0]], 0.0)
    shrink[-1] = 1 + problem.energy[-1] * np.maximum(values[1], 0.0)

    def solve(G: np.ndarray) -> np.ndarray:
        solution = ((G @ Q) / shrink) @ Q.T
        solution[-1] = Q_intercept @ ((G[-1] @ Q_intercept) / shrink[-1])
        return solution

    return solve


def curvature_product(
    problem: SoftmaxProblem, proba: np.ndarray, weights: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Product with the Hessian of the negative log-likelihood."""

    def curve(V: np.ndarray) -> np.ndarray:
        push = proba * problem.logits(V)
        return problem.pull_back(weights[:, None] * (push - proba * push.sum(axis=1, keepdims=True)))

    return curve


def hessian_solve(
    problem: SoftmaxProblem, prior: Prior, proba: np.ndarray, weights: np.ndarray, target: np.ndarray, *, tol: float
) -> np.ndarray:
    """Solution S of Hessian S = target, to a residual of `tol` of the target in the preconditioner's norm."""
    precondition = _kronecker_inverse(problem, prior, proba, weights)
    return _conjugate_gradients(_hessian_product(problem, prior, proba, weights), target, precondition, tol=tol)


def _hessian_product(
    problem: SoftmaxProblem, prior: Prior, proba: np.ndarray, weights: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    curve = curvature_product(problem, proba, weights)
    return lambda V: curve(V) + prior.times(V)


def _conjugate_gradients(
    curve: Callable[[np.ndarray], np.ndarray],
    target: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    *,
    tol: float,
    max_iter: int = 200,
) -> np.ndarray:
    """Solution S of curve(S) = target, to a residual of `tol` of the first in the preconditioner's norm."""
    solution = np.zeros_like(target)
    residual = target
    direction = image = precondition(residual)
    norm = first = float(np.sum(residual * image))
    for _ in range(max_iter if first > 0 else 0):
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
