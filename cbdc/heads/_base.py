"""What every Bayesian head shares: from draws of the posterior to a predictive distribution and its uncertainty."""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin

__all__ = ["BayesianHead"]


class BayesianHead(ClassifierMixin, BaseEstimator):
    """Classifier over embeddings whose predictions average a posterior.

    A head fits in its own way and implements `_log_draws` and `predict_posterior`; the rest is derived here.
    """

    classes_: np.ndarray

    @abstractmethod
    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        """Log-probabilities under the posterior, in blocks of rows: (n_block, n_draws, n_classes), float64."""

    @abstractmethod
    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under draws of the whole model, (n_draws, n, n_classes)."""

    def predict_log_proba(self, E: ArrayLike) -> np.ndarray:
        """Log of the posterior predictive, exact where the probability itself underflows.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, n_classes), float64
        """
        log_proba = np.concatenate([_log_mean_exp(block) for block in self._log_draws(E)])
        return log_proba - logsumexp(log_proba, axis=1, keepdims=True)

    def predict_proba(self, E: ArrayLike) -> np.ndarray:
        """Posterior predictive p(y | x, data).

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, n_classes), float64
            Columns in the order of `classes_`; rows sum to 1.
        """
        return np.exp(self.predict_log_proba(E))

    def predict(self, E: ArrayLike) -> np.ndarray:
        """Most probable class of each row.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n,)
        """
        best = np.argmax(self.predict_log_proba(E), axis=1)
        return self.classes_[best]

    def predictive_entropy(self, E: ArrayLike) -> np.ndarray:
        """Entropy of the posterior predictive: the whole uncertainty of a prediction.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n,), nats, from 0 to log(n_classes)
        """
        return _entropy(self.predict_log_proba(E))

    def mutual_information(self, E: ArrayLike) -> np.ndarray:
        """Mutual information of the label and the model: the part of the entropy that more data could remove.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n,), nats, from 0 to `predictive_entropy`

        References
        ----------
        Houlsby et al., *Bayesian active learning for classification and preference learning*, arXiv:1112.5745.
        """
        blocks = [_entropy(_log_mean_exp(block)) - _entropy(block).mean(axis=1) for block in self._log_draws(E)]
        return np.maximum(np.concatenate(blocks), 0.0)


def _log_mean_exp(log_proba: np.ndarray) -> np.ndarray:
    return logsumexp(log_proba, axis=1) - np.log(log_proba.shape[1])


def _entropy(log_proba: np.ndarray) -> np.ndarray:
    return -np.sum(np.exp(log_proba) * log_proba, axis=-1)
