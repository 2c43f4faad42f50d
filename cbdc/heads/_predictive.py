"""Heads whose logits are Gaussian, and four ways from such logits to class probabilities."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma, entr, log_expit, log_ndtr, log_softmax, logsumexp
from scipy.stats import norm, qmc
from sklearn.utils._param_validation import Interval, StrOptions

from ..errors import ParameterError
from ._base import BayesianHead

__all__ = ["GaussianLogitsHead", "normal_points"]

_EXACT_CLASSES = 3
_PROBIT = np.pi / 8  # the logistic function is close to the normal one of argument sqrt(pi / 8)
_NODES = np.linspace(-9, 9, 37)  # of a standard normal variable: for logits whose variance is at most 1
_LOGITS = np.linspace(-60, 60, 201)  # for larger variances; poles at pi i leave an aliasing error of exp(-2 pi^2 / 0.6)
_REACH, _MOST_NODES = 8.5, 257  # of the trapezoidal rule in each of two normal variables


class GaussianLogitsHead(BayesianHead):
    """Classifier whose logits are jointly Gaussian for each row.

    A head implements `_logit_gaussians`. Logits are given in the gauge in which they sum to zero.

    Parameters
    ----------
    predictive : {"monte_carlo", "probit", "bridge", "exact"}, default="monte_carlo"
        How the softmax is averaged over the logits.
    n_draws : int, default=256
        Points of the quasi-Monte Carlo average.
    """

    _arrays = (*BayesianHead._arrays, "normal_points_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "predictive": [StrOptions({"monte_carlo", "probit", "bridge", "exact"})],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
    }

    predictive: str
    n_draws: int
    normal_points_: np.ndarray

    def _place_points(self) -> None:
        """When fitting, once the classes are known."""
        n_classes = len(self.classes_)
        if self.predictive == "exact" and n_classes > _EXACT_CLASSES:
            raise ParameterError(
                f"predictive='exact': quadrature is for two or three classes, y has {n_classes}. Fix: "
                "predictive='monte_carlo' with more n_draws."
            )
        self.normal_points_ = normal_points(self.n_draws, n_classes - 1, self.seed_)

    @abstractmethod
    def _logit_gaussians(self, E: ArrayLike) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Means (b, n_classes) and factors (b, n_classes, n_classes - 1) of blocks of rows; how many rows are real."""

    def logit_distribution(self, E: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Gaussian distribution of the logits of each row, in the gauge in which they sum to zero.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        mean : ndarray of shape (n, n_classes), float64
        covariance : ndarray of shape (n, n_classes, n_classes), float64
            Of rank n_classes - 1.
        """
        parts = [(mean[:n], (f @ f.transpose(0, 2, 1))[:n]) for mean, f, n in self._logit_gaussians(E)]
        return np.concatenate([mean for mean, _ in parts]), np.concatenate([covariance for _, covariance in parts])

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        for mean, factor, n_rows in self._logit_gaussians(E):
            draws = mean[:n_rows, None] + self.normal_points_ @ factor[:n_rows].transpose(0, 2, 1)
            yield log_softmax(draws, axis=2)

    def predict_log_proba(self, E: ArrayLike) -> np.ndarray:
        if self.predictive == "monte_carlo":
            return super().predict_log_proba(E)
        return self._closed(E, _LOG_PROBA)

    def mutual_information(self, E: ArrayLike) -> np.ndarray:
        if self.predictive == "monte_carlo":
            return super().mutual_information(E)
        if self.predictive == "probit":  # a point estimate of the average has no draws of its own
            return np.minimum(super().mutual_information(E), self.predictive_entropy(E))
        return self._closed(E, _INFORMATION)

    def predict_with_information(self, E: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        if self.predictive == "monte_carlo":
            return super().predict_with_information(E)
        return self.predict_log_proba(E), self.mutual_information(E)

    def _closed(self, E: ArrayLike, functions: dict[str, Callable]) -> np.ndarray:
        binary = self.predictive == "exact" and len(self.classes_) == 2
        function = functions["binary" if binary else self.predictive]
        return np.concatenate([function(mean[:n], factor[:n]) for mean, factor, n in self._logit_gaussians(E)])


def normal_points(n_points: int, dimension: int, seed: int) -> np.ndarray:
    """Standard normal points (n_points, dimension) that cover space evenly: a scrambled Sobol sequence."""
    n_doublings = int(np.ceil(np.log2(n_points)))
    return norm.ppf(qmc.Sobol(dimension, seed=seed).random_base2(n_doublings)[:n_points])


def _normalised(log_proba: np.ndarray) -> np.ndarray:
    return log_proba - logsumexp(log_proba, axis=1, keepdims=True)


# --- probit, pair by pair


def _probit(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """MacKay's probability of each class against each other one, joined as if they alone were compared."""
    gap = mean[:, :, None] - mean[:, None]
    variance = np.sum((factor[:, :, None] - factor[:, None]) ** 2, axis=3)
    return _normalised(-logsumexp(-gap / np.sqrt(1 + _PROBIT * variance), axis=2))


# --- Laplace bridge


def _log_concentration(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Log of the parameters of the Dirichlet distribution whose Laplace approximation has these logits."""
    n_classes = mean.shape[1]
    variance = np.sum(factor**2, axis=2)
    excess = np.maximum(variance.mean(axis=1, keepdims=True) / np.sqrt(n_classes / 2), 1.0)
    mean, variance = mean / np.sqrt(excess), variance / excess
    peak = mean + logsumexp(-mean, axis=1, keepdims=True) - 2 * np.log(n_classes)
    if n_classes > 2:
        peak = np.logaddexp(np.log1p(-2 / n_classes), peak)
    return peak - np.log(variance)


def _bridge(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return _normalised(_log_concentration(mean, factor))


def _bridge_information(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Of a label and the probabilities that it was drawn with, these having a Dirichlet distribution."""
    log_concentration = _log_concentration(mean, factor)
    log_proba = _normalised(log_concentration)
    gap = _digamma_of_next(log_concentration) - _digamma_of_next(logsumexp(log_concentration, axis=1, keepdims=True))
    return np.maximum(np.sum(np.exp(log_proba) * (gap - log_proba), axis=1), 0.0)


def _digamma_of_next(log_value: np.ndarray) -> np.ndarray:
    """digamma(a + 1) from log a, a of any size."""
    return np.where(log_value > 40, log_value, digamma(np.exp(np.minimum(log_value, 40)) + 1))


# --- quadrature


def _gap(mean: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the log-odds of the second of two classes."""
    return mean[:, 1] - mean[:, 0], np.sum((factor[:, 1] - factor[:, 0]) ** 2, axis=1)


def _log_expected_expit(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Log of the average of the logistic function over a normal variable.

    For variances up to one by the trapezoidal rule in the normal variable. Above, the probability that a logistic
    variable l stays below the normal one is taken by the trapezoidal rule in l down to -60, and below that, where the
    logistic density is exp(l), in closed form.
    """
    spread = np.sqrt(variance)[:, None]
    narrow = logsumexp(log_expit(mean[:, None] + spread * _NODES) - _NODES**2 / 2, axis=1)
    narrow -= logsumexp(-(_NODES**2) / 2)
    wide = log_expit(_LOGITS) + log_expit(-_LOGITS) + log_ndtr((mean[:, None] - _LOGITS) / np.maximum(spread, 1.0))
    wide[:, 0] -= np.log(2)
    wide += np.log(_LOGITS[1] - _LOGITS[0])
    mean, variance, spread = mean[:, None], np.maximum(variance, 1.0)[:, None], np.maximum(spread, 1.0)
    end = _LOGITS[0]
    below = [
        end + log_ndtr((mean - end) / spread),
        mean + variance / 2 + log_ndtr((end - mean - variance) / spread),
    ]
    return np.where(variance[:, 0] > 1, logsumexp(np.hstack([wide, *below]), axis=1), narrow)


def _binary(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    gap, variance = _gap(mean, factor)
    return _normalised(np.stack([_log_expected_expit(-gap, variance), _log_expected_expit(gap, variance)], axis=1))


def _binary_information(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    gap, variance = _gap(mean, factor)
    spread = np.sqrt(variance)[:, None]
    density = np.exp(-(_NODES**2) / 2)
    narrow = np.sum(_entropy_of_expit(gap[:, None] + spread * _NODES) * (density / density.sum()), axis=1)
    wide = np.sum(norm.pdf(_LOGITS, gap[:, None], np.maximum(spread, 1.0)) * _entropy_of_expit(_LOGITS), axis=1)
    wide *= _LOGITS[1] - _LOGITS[0]
    within = np.where(variance > 1, wide, narrow)
    return np.maximum(entr(np.exp(_binary(mean, factor))).sum(axis=1) - within, 0.0)


def _entropy_of_expit(logit: np.ndarray) -> np.ndarray:
    size = np.abs(logit)
    return size * np.exp(log_expit(-size)) - log_expit(size)


def _on_nodes(mean: np.ndarray, factor: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities (n_points, 3) of each row on a product of trapezoidal rules, and the logs of their weights.

    Along a standard normal variable the softmax has no pole nearer than pi / r, r the range of the logits' slopes.
    """
    n_nodes = np.clip(np.ceil(2 * _REACH * np.ptp(factor, axis=1) / 0.75), 33, _MOST_NODES).astype(int)
    for center, root, (n_first, n_second) in zip(mean, factor, n_nodes, strict=True):
        first, second = np.linspace(-_REACH, _REACH, n_first), np.linspace(-_REACH, _REACH, n_second)
        logits = center + np.multiply.outer(first, root[:, 0])[:, None] + np.multiply.outer(second, root[:, 1])
        log_weights = -np.add.outer(first**2, second**2).ravel() / 2
        yield log_softmax(logits.reshape(-1, 3), axis=1), log_weights - logsumexp(log_weights)


def _product(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    rows = [logsumexp(log_proba + w[:, None], axis=0) for log_proba, w in _on_nodes(mean, factor)]
    return _normalised(np.stack(rows))


def _product_information(mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    within = [-np.exp(w) @ np.sum(np.exp(log_p) * log_p, axis=1) for log_p, w in _on_nodes(mean, factor)]
    return np.maximum(entr(np.exp(_product(mean, factor))).sum(axis=1) - np.array(within), 0.0)


_LOG_PROBA: dict[str, Callable] = {"probit": _probit, "bridge": _bridge, "binary": _binary, "exact": _product}
_INFORMATION: dict[str, Callable] = {
    "bridge": _bridge_information,
    "binary": _binary_information,
    "exact": _product_information,
}
