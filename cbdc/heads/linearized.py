"""`LinearizedLaplaceHead`: Laplace posterior of a small network, or of the fine-tuned last block of one, linearised."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cholesky, eigh, solve_triangular
from scipy.optimize import minimize_scalar
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.special import log_softmax, softmax
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ..errors import ParameterError
from ._base import Training, padded_blocks
from ._predictive import GaussianLogitsHead
from ._softmax import contrasts
from ._training import merge_rows

if TYPE_CHECKING:
    from ._network import FlatNetwork

__all__ = ["LinearizedLaplaceHead"]

_BIAS_PRECISION = 1e-2  # a standard deviation of 10, as of the intercepts of `LaplaceHead`
_FULL_LIMIT = 2000  # parameters up to which covariance="auto" keeps the full matrix
_DENSE_LIMIT = 2000  # parameters up to which all eigenvectors are found, to keep some
_FULL_MOST = 20_000
_START = 1.0  # prior precision at which an own network is first trained
_ROUNDS = 6  # of training and of the evidence
_SETTLED = 0.1  # change of the logarithm of the prior precision that ends them
_SEARCH_ROWS = 2000  # rows behind the curvature of each round


@dataclass(frozen=True)
class VectorPosterior(ABC):
    """Gaussian deviation of all parameters (P,) from those of the network."""

    @abstractmethod
    def covariance(self, J: np.ndarray) -> np.ndarray:
        """Covariance (b, m, m) of what has the derivatives J (b, m, P)."""

    @abstractmethod
    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        """One deviation, (P,)."""


@dataclass(frozen=True)
class FullVectorPosterior(VectorPosterior):
    """Covariance: inverse of prior precision plus Gauss-Newton matrix; `posterior_factor` (P, P), F F' = covariance."""

    posterior_factor: np.ndarray

    def covariance(self, J: np.ndarray) -> np.ndarray:
        return _gram(J.astype(float) @ self.posterior_factor)

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        return self.posterior_factor @ rng.standard_normal(len(self.posterior_factor))


@dataclass(frozen=True)
class DiagonalVectorPosterior(VectorPosterior):
    """Independent parameters of precisions `posterior_precision` (P,)."""

    posterior_precision: np.ndarray

    def covariance(self, J: np.ndarray) -> np.ndarray:
        return _gram(J / np.sqrt(self.posterior_precision))

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        return rng.standard_normal(len(self.posterior_precision)) / np.sqrt(self.posterior_precision)


@dataclass(frozen=True)
class LowRankVectorPosterior(VectorPosterior):
    """The prior, of precisions `prior` (P,), shrunk along orthonormal `directions` (P, rank) of the whitened space."""

    prior: np.ndarray
    directions: np.ndarray
    eigenvalues: np.ndarray

    def covariance(self, J: np.ndarray) -> np.ndarray:
        white = J / np.sqrt(self.prior)
        seen = white @ self.directions
        return _gram(white) - _gram(seen * np.sqrt(self.eigenvalues / (1 + self.eigenvalues)))

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        noise = rng.standard_normal(len(self.prior))
        noise -= self.directions @ ((1 - 1 / np.sqrt(1 + self.eigenvalues)) * (self.directions.T @ noise))
        return noise / np.sqrt(self.prior)


_POSTERIORS: dict[str, type[VectorPosterior]] = {
    "full": FullVectorPosterior,
    "diagonal": DiagonalVectorPosterior,
    "low_rank": LowRankVectorPosterior,
}


class LinearizedLaplaceHead(GaussianLogitsHead):
    """Linearised Laplace posterior over all weights of a small network: one that it trains, or one that you trained.

    The posterior is a Gaussian around the network's parameters with the inverse of prior precision plus generalised
    Gauss-Newton matrix as its covariance. Predictions are those of the network linearised there, in which the
    Gauss-Newton matrix is the exact Hessian. Weights have the prior N(0, 1 / prior_precision), parameters of one
    dimension (biases, scales of normalisations) a weak one.

    Parameters
    ----------
    module : torch.nn.Module, optional
        The fine-tuned last block with its linear layer: from (n, ...) to logits (n, n_classes), classes in the sorted
        order of the labels. It is copied, put in evaluation mode and not trained further; parameters that require no
        gradient are certain. `fit` takes what goes into it, in the raw scale, of any number of dimensions. A head
        with a module has no state for a model file: keep the module's own `state_dict`.
    hidden_layer_sizes : sequence of int, default=(32,)
        Without a module: layers of ReLU units, trained to the mode of the posterior.
    prior_precision : "evidence" or float, default="evidence"
        ``"evidence"`` maximises the Laplace evidence at the network's parameters; an own network is trained again at
        the precision found, up to six times or until it settles.
    covariance : {"auto", "full", "diagonal", "low_rank"}, default="auto"
        ``"full"``: of all parameters, to 20,000 of them. ``"diagonal"``: of independent parameters. ``"low_rank"``:
        the prior's, shrunk along the `rank` directions that the data determine best; its prior precision maximises
        the evidence of ``"diagonal"``. ``"auto"``: full up to 2,000 parameters, beyond that low rank.
    rank : int, default=100
    predictive : {"monte_carlo", "probit", "bridge", "exact"}, default="monte_carlo"
        As of `LaplaceHead`.
    standardize : bool, default=False
        Divide each feature by its own standard deviation; without a module.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows.
    n_draws : int, default=256
        Points of the quasi-Monte Carlo average over the logits.
    max_iter : int, default=200
        Steps of L-BFGS each time that an own network is trained.
    device : str or None, default=None
        Of torch; None takes CUDA where it is there.
    random_state : int, RandomState instance or None, default=None
        First weights, points, draws. None means 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    input_shape_ : tuple of int
        Of one row of the input.
    prior_precision_ : float
    log_marginal_likelihood_ : float
        Laplace approximation of log p(y | X, prior_precision_), nats, with the determinant of the covariance chosen
        (of ``"diagonal"`` for ``"low_rank"``).
    n_iter_ : int
        Steps of L-BFGS, over all rounds; 0 with a module.
    covariance_ : {"full", "diagonal", "low_rank"}
    parameters_ : ndarray of shape (P,), float64
        Of the network, in the order of the module.
    posterior_ : VectorPosterior
        The Gaussian around them.

    See Also
    --------
    LaplaceHead : The same for one linear layer, with its mode, faster and with more covariances.

    Notes
    -----
    A row's prediction does not depend on the other rows of the call. Far from the data a ReLU network's logits and
    their standard deviations grow alike, so that its predictions stay away from certainty.

    The average over a Gaussian around the mode is underconfident, the more so the more of the covariance is left out;
    `LaplaceHead` corrects its centre for that, this head does not. Conformal sets of it are valid all the same.

    References
    ----------
    Immer, Korzepa, Bauer, *Improving predictions of Bayesian neural nets via local linearization*, arXiv:2008.08217.
    Daxberger et al., *Laplace redux*, arXiv:2106.14806. Kristiadi, Hein, Hennig, *Being Bayesian, even just a bit,
    fixes overconfidence in ReLU networks*, arXiv:2002.10118.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import LinearizedLaplaceHead
    >>> rng = np.random.default_rng(0)
    >>> E = rng.normal(size=(120, 2))
    >>> y = np.where(np.linalg.norm(E, axis=1) < 1, "inside", "outside")  # no line separates them
    >>> head = LinearizedLaplaceHead(hidden_layer_sizes=(16,)).fit(E, y)
    >>> head.predict([[0.0, 0.0], [2.0, 2.0]])
    array(['inside', 'outside'], dtype='<U7')

    A block that was trained elsewhere:

    >>> import torch
    >>> block = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> head = LinearizedLaplaceHead(block, prior_precision=1.0).fit(E, y)
    >>> head.predict_proba(E).shape
    (120, 2)
    """

    _arrays = (*GaussianLogitsHead._arrays, "parameters_")
    _scalars = (
        *GaussianLogitsHead._scalars,
        "input_shape_",
        "prior_precision_",
        "log_marginal_likelihood_",
        "n_iter_",
        "covariance_",
    )
    _parameter_constraints: dict = {  # noqa: RUF012
        **GaussianLogitsHead._parameter_constraints,
        "module": [HasMethods(["named_parameters", "state_dict"]), None],
        "hidden_layer_sizes": ["array-like"],
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "covariance": [StrOptions({"auto", *_POSTERIORS})],
        "rank": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "device": [str, None],
    }

    input_shape_: tuple[int, ...]
    posterior_: VectorPosterior

    def __init__(
        self,
        module: Any = None,
        *,
        hidden_layer_sizes: tuple[int, ...] = (32,),
        prior_precision: float | str = "evidence",
        covariance: str = "auto",
        rank: int = 100,
        predictive: str = "monte_carlo",
        standardize: bool = False,
        class_weight: str | dict | None = None,
        n_draws: int = 256,
        max_iter: int = 200,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.module = module
        self.hidden_layer_sizes = hidden_layer_sizes
        self.prior_precision = prior_precision
        self.covariance = covariance
        self.rank = rank
        self.predictive = predictive
        self.standardize = standardize
        self.class_weight = class_weight
        self.n_draws = n_draws
        self.max_iter = max_iter
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> "LinearizedLaplaceHead":
        """Fit the posterior, the prior precision unless it is given, and the network unless there is a module.

        Parameters
        ----------
        E : array-like of shape (n, n_features), float32 or float64; with a module of shape (n, ...)
            Embeddings, or what goes into the module.
        y : array-like of shape (n,)
            Labels: str, int or bool.
        sample_weight : array-like of shape (n,), optional
            A row of weight 2 counts as two rows, one of weight 0 as none.
        groups : array-like of shape (n,), optional
            Patient or lesion of each row: the rows of one share the weight of a row, the mean of theirs.

        Returns
        -------
        LinearizedLaplaceHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        ParameterError
            If the module's output is not (n, n_classes), or it is too large for a full covariance.
        """
        if self.module is not None:
            E = np.asarray(E)
            self.input_shape_ = E.shape[1:]
            E = E.reshape(len(E), -1) if E.ndim > 2 else E
        data = merge_rows(self._prepare(E, y, sample_weight, groups))
        if self.module is None:
            self.input_shape_ = (self.n_features_in_,)
        self._place_points()
        self.network_ = self._network()
        n_parameters = len(self.network_.vector)
        self.covariance_ = self.covariance
        if self.covariance == "auto":
            self.covariance_ = "full" if n_parameters <= _FULL_LIMIT else "low_rank"
        if self.covariance_ == "full" and n_parameters > _FULL_MOST:
            raise ParameterError(
                f"covariance='full': {n_parameters:,} parameters, at most {_FULL_MOST:,}. Fix: covariance='low_rank' "
                "or 'diagonal', or freeze more of the module."
            )
        self.n_iter_ = 0 if self.module is not None else self._train(data)
        self.parameters_ = self.network_.vector
        curvature, log_likelihood = self._curvature(data.X, data.weights), self._log_likelihood(data)
        if self.prior_precision == "evidence":
            self.prior_precision_ = self._best_precision(curvature, log_likelihood)
        else:
            self.prior_precision_ = float(self.prior_precision)
        self.log_marginal_likelihood_ = self._evidence(curvature, log_likelihood, self.prior_precision_)
        self.posterior_ = self._posterior(data, curvature)
        return self

    def _scale(self, rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.module is not None:
            return np.zeros(rows.shape[1]), np.ones(rows.shape[1])
        # of distinct rows, since training, which stops before it has settled, magnifies what rounding does to repeats
        some = merge_rows(Training(rows, np.zeros(len(rows), dtype=int), weights, np.arange(len(rows))))
        return super()._scale(some.X, some.weights)

    def _standardise(self, E: ArrayLike) -> np.ndarray:
        if self.module is not None:
            E = np.asarray(E)
            if E.ndim > 2 and E.shape[1:] != self.input_shape_:
                raise ValueError(f"E: rows of shape {E.shape[1:]}, the head was fitted on {self.input_shape_}.")
            E = E.reshape(len(E), -1) if E.ndim > 2 else E
        return super()._standardise(E)

    def _network(self) -> "FlatNetwork":
        import torch

        from ._network import FlatNetwork, multilayer_perceptron

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        K, module = len(self.classes_), self.module
        if module is None:
            sizes = [self.n_features_in_, *(int(size) for size in self.hidden_layer_sizes), K]
            module = multilayer_perceptron(sizes, self.dtype_, self.seed_)
        return FlatNetwork(module, self.input_shape_, K, device)

    def _train(self, data: Training) -> int:
        """Train the network, and find the prior precision in turn; how many steps it took."""
        searched = self.prior_precision == "evidence"
        precision = _START if searched else float(self.prior_precision)
        some = np.random.RandomState(self.seed_).permutation(len(data.X))[:_SEARCH_ROWS]
        weights = data.weights[some] * (data.weights.sum() / data.weights[some].sum())
        n_iter = 0
        for _ in range(_ROUNDS if searched else 1):
            n_iter += self.network_.fit(*data[:3], self._prior(precision), self.max_iter)
            if searched:
                before = precision
                precision = self._best_precision(self._curvature(data.X[some], weights), self._log_likelihood(data))
                if abs(np.log(precision / before)) < _SETTLED:
                    break
        return n_iter

    def _prior(self, precision: float) -> np.ndarray:
        return np.where(self.network_.is_weight, precision, _BIAS_PRECISION)

    def _curvature(self, X: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Gauss-Newton matrix, (P, P) for a full covariance, else its diagonal (P,)."""
        P = len(self.network_.vector)
        total = np.zeros((P, P) if self.covariance_ == "full" else P)
        for root in self.network_.curvature_roots(X, weights):
            flat = root.reshape(-1, P)
            total += flat.T @ flat if total.ndim == 2 else np.einsum("ip,ip->p", flat, flat)
        return total

    def _log_likelihood(self, data: Training) -> float:
        log_proba = log_softmax(self.network_.logits(data.X), axis=1)
        return float(data.weights @ log_proba[np.arange(len(data.codes)), data.codes])

    def _evidence(self, curvature: np.ndarray, log_likelihood: float, precision: float) -> float:
        """Laplace evidence at the network's parameters."""
        prior = self._prior(precision)
        if curvature.ndim == 2:
            log_determinant = 2 * np.log(np.diag(cholesky(curvature + np.diag(prior), lower=True))).sum()
        else:
            log_determinant = np.log(curvature + prior).sum()
        occam = (np.log(prior).sum() - log_determinant) / 2
        return float(log_likelihood - prior @ self.network_.vector**2 / 2 + occam)

    def _best_precision(self, curvature: np.ndarray, log_likelihood: float) -> float:
        """Maximiser of the evidence, whose curvature stays that of the network's parameters."""
        weights = self.network_.vector[self.network_.is_weight]
        near = np.log(len(weights) / max(weights @ weights, 1e-12))  # if the data determined every weight
        found = minimize_scalar(
            lambda s: -self._evidence(curvature, log_likelihood, np.exp(s)),
            bounds=(near - 8, near + 8),
            method="bounded",
            options={"xatol": 0.01},
        )
        return float(np.exp(found.x))

    def _posterior(self, data: Training, curvature: np.ndarray) -> VectorPosterior:
        prior = self._prior(self.prior_precision_)
        if self.covariance_ == "full":
            lower = cholesky(curvature + np.diag(prior), lower=True)
            inverse = solve_triangular(lower, np.eye(len(lower)), lower=True)
            return FullVectorPosterior(np.ascontiguousarray(inverse.T))
        if self.covariance_ == "diagonal":
            return DiagonalVectorPosterior(curvature + prior)
        white, P = 1 / np.sqrt(prior), len(prior)
        if P <= _DENSE_LIMIT or self.rank >= P - 1:
            roots = (root.reshape(-1, P) * white for root in self.network_.curvature_roots(data.X, data.weights))
            dense = sum((flat.T @ flat for flat in roots), np.zeros((P, P)))
            values, vectors = eigh(dense, subset_by_index=[max(P - self.rank, 0), P - 1])
        else:
            product = self.network_.curvature_product(data.X, data.weights)
            operator = LinearOperator((P, P), matvec=lambda v: white * product(white * v.ravel()), dtype=float)
            start = np.random.RandomState(0).standard_normal(P)
            values, vectors = eigsh(operator, k=self.rank, which="LA", v0=start, tol=1e-4)
        return LowRankVectorPosterior(prior, np.ascontiguousarray(vectors), np.maximum(values, 0.0))

    def _logit_gaussians(self, E: ArrayLike) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        X, B = self._standardise(E), contrasts(len(self.classes_))
        for block, n_rows in padded_blocks(X):
            mean = self.network_.logits(block) @ B @ B.T
            covariance = np.concatenate([self.posterior_.covariance(J) for J in self.network_.jacobian(block)])
            yield mean, B @ np.linalg.cholesky(covariance), n_rows

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under joint draws of the parameters, of the linearised network.

        Parameters
        ----------
        E : array-like of shape (n, n_features); with a module of shape (n, ...)
        n_draws : int, default=64
        random_state : int, RandomState instance or None, default=None
            None takes the head's own.

        Returns
        -------
        ndarray of shape (n_draws, n, n_classes), float64
        """
        X, B = self._standardise(E), contrasts(len(self.classes_))
        rng = check_random_state(self.seed_ if random_state is None else random_state)
        moves = np.stack([self.posterior_.draw(rng) for _ in range(n_draws)], axis=1)
        parts = []
        for block, n_rows in padded_blocks(X):
            turned = np.concatenate([J.astype(float) @ moves for J in self.network_.jacobian(block)])[:n_rows]
            logits = self.network_.logits(block)[:n_rows, :, None] + B @ turned
            parts.append(softmax(logits, axis=1).transpose(2, 0, 1))
        return np.concatenate(parts, axis=1)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if self.module is not None:
            raise ParameterError(
                "module: an adopted module has no state without pickle. Fix: keep its state_dict, build it again and "
                "fit this head on the same data; or let the head train its own network (hidden_layer_sizes)."
            )
        arrays, document = super().get_state()
        arrays |= {field.name: getattr(self.posterior_, field.name) for field in fields(self.posterior_)}
        document["input_shape_"] = list(self.input_shape_)
        document["parameters"]["hidden_layer_sizes"] = [int(size) for size in self.hidden_layer_sizes]
        return arrays, document

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> "LinearizedLaplaceHead":
        head = super().from_state(arrays, document)
        head.input_shape_ = tuple(document["input_shape_"])
        head.hidden_layer_sizes = tuple(head.hidden_layer_sizes)
        head.network_ = head._network()
        head.network_.vector = head.parameters_
        kind = _POSTERIORS[head.covariance_]
        head.posterior_ = kind(**{field.name: arrays[field.name] for field in fields(kind)})
        return head


def _gram(rows: np.ndarray) -> np.ndarray:
    """Products of the rows of each block, (b, m, m), float64."""
    rows = rows.astype(float)
    return rows @ rows.transpose(0, 2, 1)
