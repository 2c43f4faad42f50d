"""`PooledHead`: two nonlinear heads and a kernel head, averaged."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import ParameterError
from ._base import BayesianHead
from ._mixture import Mixture
from .dropout import DropoutHead
from .gp import RandomFeatureGPHead

__all__ = ["PooledHead"]


class PooledHead(Mixture):
    """Mean of the probabilities of two `DropoutHead` and a `RandomFeatureGPHead`: the default for images.

    The two networks start from different seeds and err on different cases; the Gaussian process knows how far a case is
    from those that it was fitted to. On HAM10000 and PAD-UFES-20 their mean has a better likelihood than each of them,
    on PH2 about that of the best: see docs/heads.md, with its cost and the averages that were compared.

    Parameters
    ----------
    heads : sequence of BayesianHead or None, default=None
        Other heads to average. They are cloned; of the three parameters below it one that is given is set on each, one
        that is left at its default stays their own.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total.
    random_state : int, RandomState instance or None, default=None
        Draws a seed for each head. None means 0, and a head of `heads` that has a random_state keeps it.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    heads_ : list of BayesianHead

    Notes
    -----
    **Which posterior.** The mixture of the heads' posteriors with equal weights, a linear opinion pool. The mutual
    information also counts what the heads do not agree on. A mean of probabilities is more careful than its parts are
    on average. On PAD-UFES-20 that cancels: a network is too sure there, the process too careful.

    References
    ----------
    Genest and Zidek, *Combining probability distributions: a critique and an annotated bibliography*, Statistical
    Science 1(1), 1986, doi:10.1214/ss/1177013825. Gneiting and Ranjan, *Combining predictive distributions*, Electronic
    Journal of Statistics 7, 2013, doi:10.1214/13-EJS823. Lakshminarayanan, Pritzel and Blundell, *Simple and scalable
    predictive uncertainty estimation using deep ensembles*, arXiv:1612.01474.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import PooledHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = PooledHead().fit(E, y)
    >>> head.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> apart = [one.predict_proba(E) for one in head.heads_]
    >>> bool(np.allclose(head.predict_proba(E), np.mean(apart, axis=0)))
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "heads": [list, tuple, None],
    }
    _scalars = ("n_features_in_", "dtype_")
    _shared = ("standardize", "feature_map", "class_weight")

    def __init__(
        self,
        heads: Sequence[BayesianHead] | None = None,
        *,
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.heads = heads
        self.standardize = standardize
        self.feature_map = feature_map
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit each head.

        Parameters
        ----------
        E : array-like of shape (n, n_features), float32 or float64
            Embeddings; computed in their precision.
        y : array-like of shape (n,)
            Labels: str, int or bool.
        sample_weight : array-like of shape (n,), optional
            A row of weight 2 counts as two rows, one of weight 0 as none.
        groups : array-like of shape (n,), optional
            Patient or lesion of each row: the rows of one share the weight of a row, the mean of theirs.

        Returns
        -------
        PooledHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        ParameterError
            If `heads` are no heads of cbdc.heads, or one of them lacks a parameter that is given.
        """
        self._validate_params()
        heads = [DropoutHead(), DropoutHead(), RandomFeatureGPHead()] if self.heads is None else list(self.heads)
        if not heads or not all(isinstance(head, BayesianHead) for head in heads):
            raise ParameterError(f"heads: got {self.heads!r}; expected heads of cbdc.heads, at least one.")
        given = {name: getattr(self, name) for name in self._given()}
        rng = check_random_state(0 if self.random_state is None else self.random_state)
        fitted = []
        for head, seed in zip(heads, rng.randint(2**31 - 1, size=len(heads)).tolist(), strict=True):
            known, own = head.get_params(deep=False), dict(given)
            if self.random_state is not None or known.get("random_state", seed) is None:
                own["random_state"] = seed
            if unknown := sorted(set(own) - set(known)):
                raise ParameterError(
                    f"heads: {type(head).__name__} has no {unknown[0]}. Fix: leave {unknown[0]} out, or that head."
                )
            fitted.append(clone(head).set_params(**own))
        rows, labels = validate_data(self, E, y, dtype=[np.float32, np.float64])
        self.dtype_ = rows.dtype.str
        for head in fitted:
            head.fit(rows, labels, sample_weight=sample_weight, groups=groups)
        self._take(fitted)
        return self

    def _given(self) -> list[str]:
        """Names of the parameters that are set on the heads."""
        return [name for name in self._shared if getattr(self, name) is not None and getattr(self, name) is not False]

    def _inputs(self, E: ArrayLike) -> list[np.ndarray]:
        check_is_fitted(self)
        return [validate_data(self, E, dtype=self.dtype_, reset=False)] * len(self.heads_)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, document = super().get_state()
        scalars = {name: getattr(self, name) for name in self._scalars}
        seed = None if isinstance(self.random_state, np.random.RandomState) else self.random_state
        own = {"is_default": self.heads is None, "given": self._given(), "random_state": seed}
        return arrays, document | scalars | own

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> Self:
        heads = cls._heads_from(arrays, document)
        shared = {name: getattr(heads[0], name) for name in document["given"]}
        head = cls(None if document["is_default"] else heads, random_state=document["random_state"], **shared)
        head._take(heads)
        for name in cls._scalars:
            setattr(head, name, document[name])
        return head
