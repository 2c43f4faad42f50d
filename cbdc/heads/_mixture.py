"""`Mixture`: base of heads whose posterior is the mixture of several heads' with equal weights."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from ..errors import ParameterError
from ..modelfile import part_of
from ._base import BayesianHead, entropy_of
from ._nested import head_from, state_of

__all__ = ["Mixture"]

_ROWS = 32  # a block of draws


class Mixture(BayesianHead):
    """Mean of the probabilities of several heads.

    A subclass fits `heads_`, hands them to `_take`, and implements `_inputs`.
    """

    heads_: list[BayesianHead]

    @abstractmethod
    def _inputs(self, E: ArrayLike) -> list[np.ndarray]:
        """What each head reads of the checked rows."""

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Draws of the heads in turn, each head's from its own posterior, (n_draws, n, n_classes).

        A multiple of the number of heads gives each the same weight.

        Parameters
        ----------
        E : array-like of shape (n, n_features)
        n_draws : int, default=64
        random_state : int, RandomState instance or None, default=None
            None takes the heads' own.
        """
        parts, m = self._inputs(E), len(self.heads_)
        draws = np.empty((n_draws, len(parts[0]), len(self.classes_)))
        for j, (head, part) in enumerate(zip(self.heads_, parts, strict=True)):
            if len(draws[j::m]):
                draws[j::m] = head.predict_posterior(part, len(draws[j::m]), random_state=random_state)
        return draws

    def predict_log_proba(self, E: ArrayLike) -> np.ndarray:
        parts = self._inputs(E)
        apart = [head.predict_log_proba(part) for head, part in zip(self.heads_, parts, strict=True)]
        return np.logaddexp.reduce(apart, axis=0) - np.log(len(apart))

    def mutual_information(self, E: ArrayLike) -> np.ndarray:
        """Entropy of the mean less the mean entropy under the heads' draws, (n,), nats."""
        return self.predict_with_information(E)[1]

    def predict_with_information(self, E: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        parts = self._inputs(E)
        found = [head.predict_with_information(part) for head, part in zip(self.heads_, parts, strict=True)]
        log_proba = np.logaddexp.reduce([own for own, _ in found], axis=0) - np.log(len(found))
        given_model = np.mean([entropy_of(own) - information for own, information in found], axis=0)
        return log_proba, np.maximum(entropy_of(log_proba) - given_model, 0.0)

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        """The heads' draws side by side, repeated so that each head has as many."""
        parts = self._inputs(E)
        for start in range(0, len(parts[0]), _ROWS):
            blocks = [
                np.concatenate(list(head._log_draws(part[start : start + _ROWS])))
                for head, part in zip(self.heads_, parts, strict=True)
            ]
            n = np.lcm.reduce([block.shape[1] for block in blocks])
            yield np.concatenate([np.repeat(block, n // block.shape[1], axis=1) for block in blocks], axis=1)

    def _take(self, heads: list[BayesianHead]) -> None:
        if not heads:
            raise ParameterError("heads: got none; a pool takes at least one.")
        known = [head.classes_ for head in heads]
        if any(own.dtype.kind != known[0].dtype.kind or own.tolist() != known[0].tolist() for own in known):
            shown = ", ".join(str(own.tolist()) for own in known)
            raise ParameterError(f"heads: of different classes, {shown}; a pool is of classifiers of the same.")
        self.heads_, self.classes_ = heads, heads[0].classes_

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        check_is_fitted(self)
        states = [state_of(head) for head in self.heads_]
        arrays = {f"{j}.{name}": array for j, state in enumerate(states) for name, array in state[0].items()}
        return arrays, {"heads": [document for _, document in states]}

    @staticmethod
    def _heads_from(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> list[BayesianHead]:
        return [head_from(part_of(arrays, f"{j}."), inner) for j, inner in enumerate(document["heads"])]
