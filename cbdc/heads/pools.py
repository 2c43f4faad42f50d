"""Opinion pools: one posterior predictive of several classifiers of the same cases."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import ParameterError
from ..modelfile import part_of
from ._base import BayesianHead, case_weights, padded_blocks
from ._mixture import Mixture
from ._nested import head_from, state_of
from .scaling import fit_temperature

__all__ = ["LinearPool", "LogarithmicPool"]


class LogarithmicPool(BayesianHead):
    """A Bayesian head and the classifier that a network was trained with: the geometric mean of their probabilities.

    A network that is fine-tuned has a linear classifier of its own, which saw far more lesions than the head, which is
    fitted on those that were held out, but does not know how sure it may be of new ones. Its temperature is fitted on
    the same lesions as the head. The two err on different cases, and their pool has a better likelihood than either:
    see docs/fine_tuning.md.

    Parameters
    ----------
    head : BayesianHead
        It is cloned.
    coef : array-like of shape (n_classes, n_features)
    intercept : array-like of shape (n_classes,)
        The classifier: softmax of ``E @ coef.T + intercept``, rows in the order of the sorted labels.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    head_ : BayesianHead
    coef_, intercept_ : ndarrays of shape (n_classes, n_features) and (n_classes,)
    temperature_ : float
        Of the network's classifier.

    Notes
    -----
    Each draw of the head's posterior is pooled, with equal weights: p is proportional to the root of p_draw * p_network
    (a logarithmic opinion pool, or product of experts), and the prediction is the mean over the draws; a head's
    `predictive` that takes none has no say. The network's classifier has no posterior, so that the mutual information
    is what the head does not know, halved in the log-odds. Both have to speak of the same prevalence: a head with a
    class_weight is refused.

    References
    ----------
    Genest and Zidek, *Combining probability distributions: a critique and an annotated bibliography*, Statistical
    Science 1(1), 1986, doi:10.1214/ss/1177013825. Hinton, *Training products of experts by minimizing contrastive
    divergence*, Neural Computation 14(8), 2002, doi:10.1162/089976602760128018.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import LaplaceHead, LogarithmicPool
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> pool = LogarithmicPool(LaplaceHead(), coef=[[9, 9, 9], [0, 0, 0]], intercept=[-13.5, 0]).fit(E, y)
    >>> print(f"{pool.temperature_:.0f}")  # the classifier is far too sure
    7
    >>> pool.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    """

    head_: BayesianHead
    coef_: np.ndarray
    intercept_: np.ndarray
    temperature_: float

    def __init__(self, head: BayesianHead, coef: ArrayLike, intercept: ArrayLike) -> None:
        self.head = head
        self.coef = coef
        self.intercept = intercept

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the head, and the temperature of the network's classifier.

        Parameters
        ----------
        E : array-like of shape (n, n_features)
            Embeddings of cases that the network was not trained on.
        y : array-like of shape (n,)
            Labels, of all of the classifier's classes.
        sample_weight, groups : array-like of shape (n,), optional
            As the head takes them.

        Returns
        -------
        LogarithmicPool
            Itself.

        Raises
        ------
        ParameterError
            If the classifier is not of the labels' classes or of the embeddings' features.
        """
        if not isinstance(self.head, BayesianHead):
            raise ParameterError(f"head: got {self.head!r}; expected a head of cbdc.heads, such as LaplaceHead().")
        if self.head.class_weight is not None:
            raise ParameterError(
                f"head: its class_weight is {self.head.class_weight!r}; it speaks of another prevalence than the "
                "network's classifier. Fix: a head without, or the head alone."
            )
        rows, labels = validate_data(self, E, y, dtype=np.float64)
        weights = case_weights(rows, sample_weight, groups)[0]
        self.head_ = clone(self.head).fit(E, y, sample_weight=sample_weight, groups=groups)
        self.classes_ = self.head_.classes_
        self.coef_, self.intercept_ = np.array(self.coef, dtype=float), np.array(self.intercept, dtype=float)
        shape = len(self.classes_), rows.shape[1]
        if self.coef_.shape != shape or self.intercept_.shape != shape[:1]:
            raise ParameterError(
                f"coef, intercept: of shape {self.coef_.shape} and {self.intercept_.shape}; with {shape[0]} classes "
                f"in y and {shape[1]} features they have to be {shape} and {shape[:1]}."
            )
        if not (np.isfinite(self.coef_).all() and np.isfinite(self.intercept_).all()):
            raise ParameterError("coef, intercept: they hold NaN or infinity. Fix: train the network again.")
        kept = weights > 0
        log_proba = log_softmax(rows[kept] @ self.coef_.T + self.intercept_, axis=1)
        codes = np.searchsorted(self.classes_, labels[kept])
        self.temperature_ = fit_temperature(log_proba, codes, weights[kept])
        return self

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under draws of the head, each pooled, (n_draws, n, n_classes).

        Parameters
        ----------
        E : array-like of shape (n, n_features)
        n_draws : int, default=64
        random_state : int, RandomState instance or None, default=None
            None takes the head's own.
        """
        check_is_fitted(self)
        with np.errstate(divide="ignore"):  # the logarithm of a probability that underflowed
            draws = np.log(self.head_.predict_posterior(E, n_draws, random_state=random_state))
        return np.exp(log_softmax((draws + self.network_log_proba(E)) / 2, axis=2))

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        own, start = self.network_log_proba(E)[:, None], 0
        for block in self.head_._log_draws(E):
            yield log_softmax((block + own[start : start + len(block)]) / 2, axis=2)
            start += len(block)

    def network_log_proba(self, E: ArrayLike) -> np.ndarray:
        """Log-probabilities of the network's classifier alone, at its temperature.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, n_classes), float64
        """
        check_is_fitted(self)
        rows = validate_data(self, E, dtype=np.float64, reset=False)
        parts = [(block @ self.coef_.T + self.intercept_)[:n_rows] for block, n_rows in padded_blocks(rows)]
        return log_softmax(np.concatenate(parts) / self.temperature_, axis=1)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        check_is_fitted(self)
        arrays, document = state_of(self.head_)
        arrays = {f"head.{name}": array for name, array in arrays.items()}
        return arrays | {"coef": self.coef_, "intercept": self.intercept_}, {
            "head": document,
            "temperature": self.temperature_,
        }

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> Self:
        head = head_from(part_of(arrays, "head."), document["head"])
        pool = cls(head, arrays["coef"], arrays["intercept"])
        pool.head_, pool.classes_, pool.n_features_in_ = head, head.classes_, head.n_features_in_
        pool.coef_, pool.intercept_, pool.temperature_ = arrays["coef"], arrays["intercept"], document["temperature"]
        return pool


class LinearPool(Mixture):
    """Mean of the probabilities of several heads, each of which reads columns of its own: a deep ensemble.

    Parameters
    ----------
    heads : sequence of BayesianHead
        Fitted heads are used as they are by `of`; `fit` clones them.
    widths : sequence of int
        Number of columns of each, from left to right.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    heads_ : list of BayesianHead

    Notes
    -----
    The posterior is the mixture of the heads' posteriors with equal weights, so that the mutual information also counts
    what the heads do not agree on.

    References
    ----------
    Lakshminarayanan, Pritzel and Blundell, *Simple and scalable predictive uncertainty estimation using deep
    ensembles*, arXiv:1612.01474.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import LaplaceHead, LinearPool
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 5)) + (y == "mel")[:, None]
    >>> pool = LinearPool([LaplaceHead(), LaplaceHead()], widths=[3, 2]).fit(E, y)
    >>> apart = [head.predict_proba(E[:, columns]) for head, columns in zip(pool.heads_, [slice(3), slice(3, 5)])]
    >>> bool(np.allclose(pool.predict_proba(E), np.mean(apart, axis=0)))
    True
    """

    def __init__(self, heads: Sequence[BayesianHead], widths: Sequence[int]) -> None:
        self.heads = heads
        self.widths = widths

    @classmethod
    def of(cls, heads: Sequence[BayesianHead]) -> Self:
        """Pool heads that are fitted already, each perhaps on cases of its own.

        Parameters
        ----------
        heads : sequence of fitted BayesianHead

        Returns
        -------
        LinearPool

        Raises
        ------
        ParameterError
            If they do not know the same classes.
        """
        for head in heads:
            check_is_fitted(head)
        pool = cls(list(heads), [head.n_features_in_ for head in heads])
        pool._take(list(heads))
        pool.n_features_in_ = sum(pool.widths)
        return pool

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit each head on its columns of the same rows.

        Parameters
        ----------
        E : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        sample_weight, groups : array-like of shape (n,), optional
            As the heads take them.

        Returns
        -------
        LinearPool
            Itself.
        """
        rows, labels = validate_data(self, E, y, dtype=[np.float32, np.float64])
        if len(self.widths) != len(self.heads) or min(self.widths, default=0) < 1 or sum(self.widths) != rows.shape[1]:
            raise ParameterError(
                f"widths: got {list(self.widths)} for {len(self.heads)} heads and {rows.shape[1]} features; give one "
                "number of columns, above 0, for each head; they sum to the features."
            )
        parts = np.split(rows, np.cumsum(self.widths)[:-1], axis=1)
        self._take(
            [
                clone(head).fit(part, labels, sample_weight=sample_weight, groups=groups)
                for head, part in zip(self.heads, parts, strict=True)
            ]
        )
        return self

    def _inputs(self, E: ArrayLike) -> list[np.ndarray]:
        check_is_fitted(self)
        rows = validate_data(self, E, dtype=[np.float32, np.float64], reset=False)
        return np.split(rows, np.cumsum([head.n_features_in_ for head in self.heads_])[:-1], axis=1)

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> Self:
        return cls.of(cls._heads_from(arrays, document))
