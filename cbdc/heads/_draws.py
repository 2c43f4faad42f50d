"""Base of the heads whose posterior is a list of weights: samples of a chain, members of an ensemble, masks."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax
from sklearn.utils import check_random_state

from ._base import BayesianHead, padded_blocks

__all__ = ["DrawnHead"]


class DrawnHead(BayesianHead):
    """Softmax regressions drawn from a posterior when the head was fitted; predictions average over them.

    Attributes
    ----------
    weight_draws_ : ndarray of shape (n_draws, n_features + 1, n_classes), float32 or float64
        Weights of the standardised features, intercept last.
    """

    _arrays = (*BayesianHead._arrays, "weight_draws_")

    weight_draws_: np.ndarray

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        X = self._standardise(E)
        n_draws, height, n_classes = self.weight_draws_.shape
        flat = self.weight_draws_.transpose(1, 0, 2).reshape(height, n_draws * n_classes)
        for block, n_rows in padded_blocks(X):
            logits = block @ flat[:-1] + flat[-1]
            yield log_softmax(logits[:n_rows].reshape(n_rows, n_draws, n_classes).astype(float), axis=2)

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under draws of the weights: one draw is one classifier, the same for all rows.

        Parameters
        ----------
        E : array-like of shape (n, n_features)
        n_draws : int, default=64
            Beyond the number that the head keeps, draws repeat.
        random_state : int, RandomState instance or None, default=None
            Chooses among the draws kept; None takes the head's own.

        Returns
        -------
        ndarray of shape (n_draws, n, n_classes), float64
        """
        X = self._standardise(E)
        rng = check_random_state(self.seed_ if random_state is None else random_state)
        kept = len(self.weight_draws_)
        chosen = rng.choice(kept, n_draws, replace=n_draws > kept)
        logits = X @ self.weight_draws_[chosen, :-1] + self.weight_draws_[chosen, -1:]
        return np.exp(log_softmax(logits.astype(float), axis=2))
