"""`LaplaceHead`: Bayesian softmax regression with a Laplace posterior and an evidence-tuned prior."""

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cholesky, eigh, helmert, solve_triangular
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import norm, qmc
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ._base import BayesianHead
from ._softmax import SoftmaxProblem, find_mode, full_curvature, kronecker_curvature

__all__ = ["LaplaceHead"]

_INTERCEPT_PRECISION = 1e-2  # a standard deviation of 10 in log-odds: weak, and yet bounded when classes separate
_FULL_LIMIT = 1000  # parameters up to which covariance="auto" keeps the full matrix
_LOG_PRECISIONS = (np.log(1e-4), np.log(1e6))  # where the evidence is searched; features have unit variance
_BLOCK = 32  # rows a block in prediction; fixed, so that a row's result does not depend on its neighbours


class LaplaceHead(BayesianHead):
    """Bayesian softmax regression over embeddings."""

    _parameter_constraints: dict = {  # noqa: RUF012
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "covariance": [StrOptions({"auto", "full", "kronecker"})],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        prior_precision: float | str = "evidence",
        *,
        covariance: str = "auto",
        n_draws: int = 256,
        max_iter: int = 100,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.prior_precision = prior_precision
        self.covariance = covariance
        self.n_draws = n_draws
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, E: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "LaplaceHead":
        self._validate_params()
        E, y = validate_data(self, E, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, E, dtype=np.float64, ensure_non_negative=True)
        kept = weights > 0
        if not kept.all():
            E, y, weights = E[kept], y[kept], weights[kept]
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y: LaplaceHead needs samples of at least two classes, got one class: {self.classes_.tolist()}."
            )
        self.mean_ = np.average(E, axis=0, weights=weights)
        self.scale_ = _scale(E, self.mean_, weights)
        X = ((E - self.mean_) / self.scale_).astype(E.dtype, copy=False)
        self.components_, energy = _principal_axes(X, weights)
        Z = np.concatenate([X @ self.components_, np.ones((len(X), 1), dtype=X.dtype)], axis=1)
        problem = SoftmaxProblem(Z, codes, weights, np.append(energy, weights.sum()), len(self.classes_))
        self._fit_posterior(problem)
        seed = 0 if self.random_state is None else check_random_state(self.random_state).randint(2**31 - 1)
        self.normal_draws_ = _normal_draws(self.n_draws, len(self.classes_) - 1, seed)
        self.seed_ = int(seed)
        return self

    def _fit_posterior(self, problem: SoftmaxProblem) -> None:
        J = problem.n_classes - 1
        p = problem.Z.shape[1]
        full = self.covariance == "full" or (self.covariance == "auto" and J * p <= _FULL_LIMIT)
        state: dict[str, Any] = {"U": np.zeros((p, J)), "n_iter": 0}

        def negative_evidence(log_precision: float) -> float:
            prior = np.full((p, 1), np.exp(log_precision))
            prior[-1] = _INTERCEPT_PRECISION
            U, log_proba, n_iter = find_mode(problem, prior, state["U"], max_iter=self.max_iter, tol=self.tol)
            state["U"], state["n_iter"] = U, state["n_iter"] + n_iter
            evidence = problem.log_likelihood(log_proba) - 0.5 * np.sum(prior * U**2) + 0.5 * J * np.log(prior).sum()
            if full:
                precision = full_curvature(problem, np.exp(log_proba))
                precision[np.diag_indices(J * p)] += np.tile(prior[:, 0], J)
                state["factor"] = cholesky(precision, lower=True)
                evidence -= np.log(np.diag(state["factor"])).sum()
            else:
                curvature, state["Q"] = kronecker_curvature(problem, np.exp(log_proba))
                state["precision"] = curvature + prior
                evidence -= 0.5 * np.log(state["precision"]).sum()
            state["evidence"] = float(evidence)
            return -float(evidence)

        if self.prior_precision == "evidence":
            found = minimize_scalar(
                negative_evidence, bounds=_LOG_PRECISIONS, method="bounded", options={"xatol": 0.02}
            )
            log_precision = float(found.x)
        else:
            log_precision = float(np.log(self.prior_precision))
        negative_evidence(log_precision)
        self.prior_precision_ = float(np.exp(log_precision))
        self.log_marginal_likelihood_ = state["evidence"]
        self.n_iter_ = state["n_iter"]
        self.weights_ = state["U"]
        self.covariance_ = "full" if full else "kronecker"
        if full:
            inverse = solve_triangular(state["factor"], np.eye(J * p), lower=True)
            self.posterior_factor_ = inverse.T.reshape(J, p, J * p)
        else:
            self.posterior_precision_ = state["precision"]
            self.class_axes_ = state["Q"]

    @property
    def coef_(self) -> np.ndarray:
        """Posterior mode of the weights in the units of the embeddings, (n_classes, n_features)."""
        check_is_fitted(self)
        return ((self.components_ @ self.weights_[:-1]) @ self._contrasts.T / self.scale_[:, None]).T

    @property
    def intercept_(self) -> np.ndarray:
        """Posterior mode of the intercepts, (n_classes,)."""
        check_is_fitted(self)
        return self._contrasts @ self.weights_[-1] - self.coef_ @ self.mean_

    @property
    def _contrasts(self) -> np.ndarray:
        return helmert(len(self.classes_)).T

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        for mean, factor in self._logit_blocks(E):
            logits = mean[:, None] + self.normal_draws_ @ factor.transpose(0, 2, 1)
            yield log_softmax(logits, axis=2)

    def _logit_blocks(self, E: ArrayLike) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Gaussian of each row's logits, in blocks: mean (n_block, K), factor (n_block, K, K - 1) of the covariance."""
        X_all = self._standardise(E)
        B = self._contrasts
        for X, n_rows in _blocks(X_all):
            Z = np.concatenate([X @ self.components_, np.ones((len(X), 1), dtype=X.dtype)], axis=1).astype(float)
            outside = np.maximum(np.sum(X.astype(float) ** 2, axis=1) - np.sum(Z[:, :-1] ** 2, axis=1), 0.0)
            outside /= self.prior_precision_  # features that training never showed keep their prior variance
            mean = (Z @ self.weights_) @ B.T
            if self.covariance_ == "full":
                root = np.matmul(Z, self.posterior_factor_).transpose(1, 0, 2)
                covariance = root @ root.transpose(0, 2, 1) + outside[:, None, None] * np.eye(B.shape[1])
                factor = B @ np.linalg.cholesky(covariance)
            else:
                variance = Z**2 @ (1 / self.posterior_precision_) + outside[:, None]
                Q = self.class_axes_
                factor = B @ ((Q * np.sqrt(variance)[:, None, :]) @ Q.T)
            yield mean[:n_rows], factor[:n_rows]

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        X = self._standardise(E).astype(float)
        rng = np.random.RandomState(self.seed_) if random_state is None else check_random_state(random_state)
        J = len(self.classes_) - 1
        V, tau = self.components_.astype(float), self.prior_precision_
        if self.covariance_ == "full":
            p = V.shape[1] + 1
            noise = rng.standard_normal((n_draws, J * p))
            inside = np.einsum("jpm,sm->spj", self.posterior_factor_, noise)
        else:
            noise = rng.standard_normal((n_draws, V.shape[1] + 1, J))
            inside = (noise / np.sqrt(self.posterior_precision_)) @ self.class_axes_.T
        weights = self.weights_ + inside
        draws = V @ weights[:, :-1]
        if V.shape[1] < V.shape[0]:
            free = rng.standard_normal((n_draws, V.shape[0], J)) / np.sqrt(tau)
            draws += free - V @ (V.T @ free)
        logits = (X @ draws + weights[:, -1:]) @ self._contrasts.T
        return np.exp(log_softmax(logits, axis=2))

    def _standardise(self, E: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        dtype = self.components_.dtype
        E = validate_data(self, E, dtype=dtype, reset=False)
        return ((E - self.mean_) / self.scale_).astype(dtype, copy=False)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        check_is_fitted(self)
        kind = "full" if self.covariance_ == "full" else "kronecker"
        arrays = {name: getattr(self, name) for name in (*_ARRAYS, *_POSTERIOR_ARRAYS[kind])}
        document = {name: getattr(self, name) for name in _SCALARS}
        document |= {"classes": self.classes_.tolist(), "classes_dtype": self.classes_.dtype.str}
        return arrays, document

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> "LaplaceHead":
        head = cls()
        for name in (*_ARRAYS, *_POSTERIOR_ARRAYS[document["covariance_"]]):
            setattr(head, name, arrays[name])
        for name in _SCALARS:
            setattr(head, name, document[name])
        head.classes_ = np.array(document["classes"], dtype=document["classes_dtype"])
        return head


_ARRAYS = ("mean_", "scale_", "components_", "weights_", "normal_draws_")
_POSTERIOR_ARRAYS = {"full": ("posterior_factor_",), "kronecker": ("posterior_precision_", "class_axes_")}
_SCALARS = ("n_features_in_", "prior_precision_", "log_marginal_likelihood_", "n_iter_", "covariance_", "seed_")


def _scale(E: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted standard deviation of each feature; 1 where it is constant up to rounding."""
    scale = np.sqrt(np.average((E - mean) ** 2, axis=0, weights=weights))
    constant = scale <= 10 * np.finfo(E.dtype).eps * np.maximum(np.abs(mean), np.abs(E).max(axis=0))
    return np.where(constant, 1.0, scale)


def _principal_axes(X: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal axes (n_features, r) of the weighted features and the weighted sum of squares along each, (r,)."""
    n, d = X.shape
    root = (X * np.sqrt(weights)[:, None]).astype(X.dtype)
    if d <= n:
        energy, axes = eigh((root.T @ root).astype(float))
        return axes[:, ::-1].astype(X.dtype), np.maximum(energy[::-1], 0.0)
    root = root.astype(float)
    energy, left = eigh(root @ root.T)
    kept = energy > 1e-10 * max(energy[-1], np.finfo(float).tiny)
    energy, left = energy[kept][::-1], left[:, kept][:, ::-1]
    return (root.T @ left / np.sqrt(energy)).astype(X.dtype), energy


def _normal_draws(n_draws: int, dimension: int, seed: int) -> np.ndarray:
    """Standard normal points (n_draws, dimension), spread evenly: a scrambled Sobol sequence."""
    n_bits = int(np.ceil(np.log2(max(n_draws, 2))))
    points = qmc.Sobol(dimension, rng=np.random.default_rng(seed)).random_base2(n_bits)[:n_draws]
    return norm.ppf(points)


def _blocks(X: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of `_BLOCK` rows and how many of them are real: the last block is filled up with zeros."""
    for start in range(0, len(X), _BLOCK):
        block = X[start : start + _BLOCK]
        n_rows = len(block)
        if n_rows < _BLOCK:
            block = np.concatenate([block, np.zeros((_BLOCK - n_rows, X.shape[1]), dtype=X.dtype)])
        yield block, n_rows
