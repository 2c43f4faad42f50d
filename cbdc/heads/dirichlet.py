"""`DirichletHead`: evidential classification; each row has its own Dirichlet distribution over class probabilities."""

import warnings
from collections.abc import Iterator
from math import lgamma
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma, gammaincinv, log_softmax
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from ._base import BayesianHead, Training, padded_blocks
from ._training import find_start, torch_device

if TYPE_CHECKING:
    import torch

__all__ = ["DirichletHead"]

_LARGEST = 30.0  # log of a concentration from which on a draw equals its mean to six digits
_POINTS = 256


class DirichletHead(BayesianHead):
    """Evidential classifier: a linear map gives each row the concentrations of a Dirichlet distribution.

    A row's class probabilities have the distribution Dirichlet(1 + exp(w_k' x)): the exponential is the evidence, as
    if so many cases of class k had been seen at x. The weights minimise the expected cross-entropy under the Dirichlet
    plus `kl_weight` times the divergence of its misleading part from the uniform one. Predictions need no sampling.

    Parameters
    ----------
    kl_weight : float, default=0.01
        How strongly evidence for wrong classes is pulled to none. It, and not the number of data, sets how much
        evidence the head claims.
    prior_precision : "evidence" or float, default="evidence"
        Of the weights of features with unit variance; ``"evidence"`` takes `LaplaceHead`'s.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total.
    max_iter : int, default=200
        Steps of L-BFGS.
    tol : float, default=0.02
        Largest accepted gradient, in approximate posterior standard deviations of a weight.
    device : str or None, default=None
        Where torch computes the fit; None takes a GPU where there is one. Predictions read arrays.
    random_state : int, RandomState instance or None, default=None
        Default of `predict_posterior`; the fit and the probabilities do without. None means 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    prior_precision_ : float
    n_iter_ : int
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the embeddings.
    weights_ : ndarray of shape (n_features + 1, n_classes)
        Of the log-evidence, intercept last.

    Notes
    -----
    **Which posterior.** For ``kl_weight=1`` the loss is nearly the variational bound of a model in which every row has
    class probabilities of its own, with a uniform prior, and is seen once. The number of rows plays no part: **the
    mutual information does not vanish as data grow**, and no evidence is learnt about the weights. Read it as a score
    of how unusual a row is, at best, and not as the part of the uncertainty that data would remove.

    Far from the data the evidence is exponential in the distance along some direction, so that a far-away row may get
    any concentration.

    Sensoy et al. prefer the expected squared error and ``kl_weight=1``; the cross-entropy (their equation 4) and less
    of the divergence give better probabilities.

    References
    ----------
    Sensoy, Kaplan, Kandemir, *Evidential deep learning to quantify classification uncertainty*, arXiv:1806.01768. Shen
    et al., *Are uncertainty quantification capabilities of evidential deep learning a mirage?*, arXiv:2402.06160.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import DirichletHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = DirichletHead().fit(E, y)
    >>> head.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> alpha = head.predict_concentration(E)
    >>> np.allclose(head.predict_proba(E), alpha / alpha.sum(axis=1, keepdims=True))
    True
    """

    _arrays = (*BayesianHead._arrays, "weights_")
    _scalars = (*BayesianHead._scalars, "prior_precision_", "n_iter_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "kl_weight": [Interval(Real, 0, None, closed="left")],
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "device": [str, None],
    }

    weights_: np.ndarray

    def __init__(
        self,
        kl_weight: float = 0.01,
        *,
        prior_precision: float | str = "evidence",
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        max_iter: int = 200,
        tol: float = 0.02,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.kl_weight = kl_weight
        self.prior_precision = prior_precision
        self.standardize = standardize
        self.feature_map = feature_map
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> "DirichletHead":
        """Find the weights of the evidence.

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
        DirichletHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        """
        self._minimise(self._prepare(E, y, sample_weight, groups))
        return self

    def _minimise(self, training: Training) -> None:
        import torch

        device = torch_device(self.device)
        start = find_start(training, self.prior_precision)
        Z, codes, weights, prior, energy = (
            torch.as_tensor(array, device=device)
            for array in (start.problem.Z, training.codes, training.weights, start.row_precision, start.problem.energy)
        )
        n_classes = len(self.classes_)
        scale = 1 / torch.sqrt(energy[:, None] / n_classes**2 + prior)  # about the posterior's standard deviations
        scaled = torch.zeros(len(scale), n_classes, dtype=scale.dtype, device=device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [scaled],
            max_iter=self.max_iter,
            max_eval=2 * self.max_iter,
            tolerance_grad=self.tol,
            tolerance_change=0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def objective() -> "torch.Tensor":
            optimizer.zero_grad()
            parameters = scale * scaled
            log_evidence = (Z @ parameters.to(Z.dtype)).double()
            loss = weights @ evidential_loss(log_evidence, codes, self.kl_weight)
            loss = loss + 0.5 * (prior * parameters**2).sum()
            loss.backward()
            return loss

        optimizer.step(objective)
        self.n_iter_ = int(optimizer.state[scaled]["n_iter"])
        objective()
        assert scaled.grad is not None
        largest = float(scaled.grad.abs().max())
        if largest > self.tol:
            warnings.warn(
                f"DirichletHead: the loss was not minimised in max_iter={self.max_iter} steps: its largest gradient is "
                f"{largest:.2g}, tol={self.tol:.2g}. Fix: raise max_iter or tol, or a larger prior_precision.",
                ConvergenceWarning,
                stacklevel=3,
            )
        found = (scale * scaled.detach()).cpu().numpy()
        weights_ = np.vstack([start.axes.astype(float) @ found[:-1], found[-1:]])
        self.weights_ = weights_.astype(training.X.dtype)
        self.prior_precision_ = start.prior_precision

    def _log_concentration(self, E: ArrayLike) -> np.ndarray:
        """log(1 + evidence), (n, n_classes), float64."""
        X = self._standardise(E)
        blocks = [
            (block @ self.weights_[:-1] + self.weights_[-1])[:n_rows].astype(float)
            for block, n_rows in padded_blocks(X)
        ]
        return np.logaddexp(0.0, np.concatenate(blocks))

    def predict_concentration(self, E: ArrayLike) -> np.ndarray:
        """Concentrations of each row's Dirichlet distribution: 1 + evidence.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, n_classes), float64, at least 1
        """
        return np.exp(self._log_concentration(E))

    def predict_log_proba(self, E: ArrayLike) -> np.ndarray:
        """Log of the mean of each row's Dirichlet distribution, in closed form.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, n_classes), float64
        """
        return log_softmax(self._log_concentration(E), axis=1)

    def predict_with_information(self, E: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        return self.predict_log_proba(E), self.mutual_information(E)

    def mutual_information(self, E: ArrayLike) -> np.ndarray:
        """Mutual information of the label and the class probabilities under the row's Dirichlet, in closed form.

        It does not vanish as data grow: see Notes.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n,), nats, from 0 to `predictive_entropy`
        """
        log_alpha = np.minimum(self._log_concentration(E), _LARGEST)
        alpha, log_proba = np.exp(log_alpha), log_softmax(log_alpha, axis=1)
        expected = digamma(alpha + 1) - digamma(alpha.sum(axis=1, keepdims=True) + 1)
        return np.maximum(np.sum(np.exp(log_proba) * (expected - log_proba), axis=1), 0.0)

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities drawn from each row's Dirichlet distribution.

        The rows have no joint distribution: one draw is the same quantile of every row, so that a row's draws do not
        depend on the others.

        Parameters
        ----------
        E : array-like of shape (n, n_features)
        n_draws : int, default=64
        random_state : int, RandomState instance or None, default=None
            None takes the head's own.

        Returns
        -------
        ndarray of shape (n_draws, n, n_classes), float64
        """
        log_alpha = self._log_concentration(E)
        rng = check_random_state(self.seed_ if random_state is None else random_state)
        levels = rng.uniform(1e-12, 1 - 1e-12, (n_draws, 1, log_alpha.shape[1]))
        return np.exp(_dirichlet_draws(log_alpha, levels))

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        log_alpha = self._log_concentration(E)
        n_classes = log_alpha.shape[1]
        levels = qmc.Sobol(n_classes, seed=self.seed_).random_base2(_POINTS.bit_length() - 1)
        levels = np.clip(levels, 1e-12, 1 - 1e-12)
        for start in range(0, len(log_alpha), 32):
            yield _dirichlet_draws(log_alpha[start : start + 32, None], levels)


def evidential_loss(log_evidence: "torch.Tensor", codes: "torch.Tensor", kl_weight: float) -> "torch.Tensor":
    """Expected cross-entropy of each row under Dirichlet(1 + evidence), plus a multiple of a divergence, (n,).

    The divergence is that of the Dirichlet distribution without its true class's evidence from the uniform one.
    """
    import torch

    alpha = 1 + torch.exp(log_evidence.clamp(max=_LARGEST))
    own = alpha.gather(1, codes[:, None])
    loss = (torch.digamma(alpha.sum(dim=1, keepdim=True)) - torch.digamma(own))[:, 0]
    if kl_weight == 0:
        return loss
    misleading = alpha.scatter(1, codes[:, None], 1.0)
    total, n_classes = misleading.sum(dim=1), alpha.shape[1]
    divergence = torch.lgamma(total) - lgamma(n_classes) - torch.lgamma(misleading).sum(dim=1)
    slope = torch.digamma(misleading) - torch.digamma(total)[:, None]
    return loss + kl_weight * (divergence + ((misleading - 1) * slope).sum(dim=1))


def _dirichlet_draws(log_alpha: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Log-probabilities: gamma quantiles of the levels, made to sum to one over the last axis."""
    alpha = np.exp(np.minimum(log_alpha, _LARGEST))
    log_gamma = np.log(gammaincinv(alpha, levels)) + (log_alpha - np.log(alpha))
    return log_softmax(log_gamma, axis=-1)
