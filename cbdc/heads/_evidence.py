"""Evidence of softmax regression in the Laplace approximation: gradient and maximum in the prior's precisions."""

from collections.abc import Callable

import numpy as np

from ._gaussian import FullPosterior, KroneckerPosterior
from ._softmax import Prior, SoftmaxProblem, contrasts, hessian_solve

__all__ = ["evidence_gradient", "maximise"]

_SOLVE = 0.02  # relative residual of the linear equation behind the gradient
_GAIN = 1e-3  # nats: a step that promises less is not taken
_STEP = 2.0  # longest step, in natural logarithms
_RANGE = 8.0  # to each side of the start
_EVALUATIONS = 60


def evidence_gradient(
    problem: SoftmaxProblem,
    own: SoftmaxProblem,
    prior: Prior,
    mode: np.ndarray,
    proba: np.ndarray,
    posterior: FullPosterior | KroneckerPosterior,
) -> np.ndarray:
    """Derivatives of the log-evidence in the logarithms of the classes' prior precisions, (n_classes,).

    MacKay's terms, which hold the curvature fixed, and the one by which the mode moves and the curvature with it.

    Parameters
    ----------
    problem : SoftmaxProblem
    own : SoftmaxProblem
        The same in the features that `posterior` takes.
    prior : Prior
    mode : ndarray of shape (p, n_classes - 1)
    proba : ndarray of shape (n, n_classes)
        At the mode.
    posterior : FullPosterior or KroneckerPosterior
        At the mode.
    """
    B = contrasts(problem.n_classes)
    in_prior, in_logits = posterior.determinant_slopes(own, proba, prior)
    reach = prior.precision @ B.T  # the prior's precision moves with that of class k by the dyad of column k
    weights = mode[:-1] @ reach
    n_features = own.Z.shape[1] - 1
    fixed = n_features * np.einsum("kj,jk->k", B, reach) - np.sum(weights**2, axis=0)
    fixed -= np.einsum("jk,jl,lk->k", reach, in_prior, reach)
    response = hessian_solve(problem, prior, proba, problem.weights, problem.pull_back(in_logits), tol=_SOLVE)
    moved = np.sum((response[:-1] @ reach) * weights, axis=0)
    return (fixed + moved) / (2 * prior.class_precision)


def maximise(
    evidence: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, inverse: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum of the evidence by a quasi-Newton method (BFGS) that trusts gradients more than values.

    The mode is found to a tolerance, and values differ by more than late steps gain.

    Parameters
    ----------
    evidence : callable
        From logarithms of precisions, (n,), to its value and gradient.
    start : ndarray of shape (n,)
    inverse : ndarray of shape (n, n), optional
        First guess at minus the inverse of the second derivatives; without it the first step has length one.

    Returns
    -------
    found : ndarray of shape (n,)
    inverse : ndarray of shape (n, n)
        Minus the inverse of the second derivatives there, as estimated.
    """
    at = start
    value, gradient = evidence(at)
    unscaled = inverse is None
    if inverse is None:
        inverse = np.eye(len(start)) / max(float(np.linalg.norm(gradient)), 1.0)
    for _ in range(_EVALUATIONS):
        step = inverse @ gradient
        step *= min(1.0, _STEP / max(float(np.linalg.norm(step)), 1e-300))
        step = np.clip(at + step, start - _RANGE, start + _RANGE) - at
        promised = float(gradient @ step) / 2
        if promised < _GAIN:
            break
        new_value, new_gradient = evidence(at + step)
        bend = gradient - new_gradient
        curvature = float(bend @ step)
        if curvature > 0:
            if unscaled:
                inverse, unscaled = np.eye(len(start)) * curvature / float(bend @ bend), False
            turn = np.eye(len(start)) - np.outer(step, bend) / curvature
            inverse = turn @ inverse @ turn.T + np.outer(step, step) / curvature
        if new_value > value - promised:
            at, value, gradient = at + step, new_value, new_gradient
        elif curvature <= 0:
            inverse = inverse / 4
    return at, inverse
