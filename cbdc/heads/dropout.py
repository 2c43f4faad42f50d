"""`DropoutHead`: a network with one hidden layer whose posterior is the choice of units that are dropped."""

import math
from collections.abc import Iterator
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from ._base import BayesianHead, Training, padded_blocks
from ._training import choose_batches, merge_rows, torch_device

__all__ = ["DropoutHead"]

_PASSES, _MOST_STEPS = 60, 1200  # over the data, of Adam
_ROWS = 8  # a block in prediction, which also is multiplied by the masks


class DropoutHead(BayesianHead):
    """Network with one hidden layer, trained and used with dropout (Monte Carlo dropout).

    Features and hidden units are left out at random, each with probability `dropout`, in training and in prediction.
    Predictions average over masks that are drawn when the head is fitted and kept.

    Parameters
    ----------
    hidden_layer_size : int, default=256
        Rectified linear units.
    dropout : float, default=0.4
        Probability that a feature or a hidden unit is left out.
    prior_precision : float, default=0.01
        Of a layer's weights, a unit of its inputs: they have the prior N(0, 1 / (prior_precision * n_inputs)), so that
        the prior of what a layer gives does not depend on its width.
    n_steps : int or "auto", default="auto"
        Steps of Adam. ``"auto"`` passes over the data 60 times, in at most 1,200 steps: on a few hundred rows more
        would make the network too sure.
    batch_size : int, default=128
    learning_rate : float, default=2e-3
        At the start; it falls to zero along a cosine.
    n_draws : int, default=32
        Masks that predictions average over.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total.
    device : str or None, default=None
        Where torch trains; None takes a GPU where there is one. Predictions read arrays.
    random_state : int, RandomState instance or None, default=None
        Draws the start, batches and masks. None means 0: a head is deterministic on one machine.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the embeddings.
    hidden_weights_ : ndarray of shape (n_features + 1, hidden_layer_size)
        Of the features that a mask keeps, intercept last.
    output_weights_ : ndarray of shape (hidden_layer_size + 1, n_classes)
        Of the hidden units that a mask keeps, intercept last.
    feature_masks_ : ndarray of shape (n_draws, n_features), bool
    hidden_masks_ : ndarray of shape (n_draws, hidden_layer_size), bool

    Notes
    -----
    **Which posterior.** Training maximises a variational bound of the network's posterior; the variational
    distribution of a row of weights is "the row m, or zero with probability `dropout`". With m the weights of a kept
    unit and tau their prior precision, the bound's prior term is (1 - dropout) tau / 2 times the sum of squares of m
    (Gal and Ghahramani, weight decay (1 - dropout) tau / (2 n) of the mean loss). Its spread is that of the masks:
    **it is set by `dropout`, not by the number of data, and does not vanish as they grow.** Far from the data a
    network of this kind is confident.

    Like `RandomFeatureGPHead` it is not linear in the embedding.

    References
    ----------
    Gal and Ghahramani, *Dropout as a Bayesian approximation: representing model uncertainty in deep learning*,
    arXiv:1506.02142. Osband, *Risk versus uncertainty in deep learning: Bayes, bootstrap and the dangers of dropout*,
    NIPS workshop on Bayesian deep learning, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import DropoutHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = DropoutHead(hidden_layer_size=32, n_steps=200).fit(E, y)
    >>> head.predict([[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> head.predict_posterior([[1.0, 1.0, 1.0]], n_draws=10).shape
    (10, 1, 2)
    """

    _arrays = (*BayesianHead._arrays, "hidden_weights_", "output_weights_", "feature_masks_", "hidden_masks_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "hidden_layer_size": [Interval(Integral, 1, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="neither")],
        "prior_precision": [Interval(Real, 0, None, closed="neither")],
        "n_steps": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "device": [str, None],
    }

    hidden_weights_: np.ndarray
    output_weights_: np.ndarray
    feature_masks_: np.ndarray
    hidden_masks_: np.ndarray

    def __init__(
        self,
        hidden_layer_size: int = 256,
        *,
        dropout: float = 0.4,
        prior_precision: float = 0.01,
        n_steps: int | str = "auto",
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        n_draws: int = 32,
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden_layer_size = hidden_layer_size
        self.dropout = dropout
        self.prior_precision = prior_precision
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.n_draws = n_draws
        self.standardize = standardize
        self.feature_map = feature_map
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> "DropoutHead":
        """Train the network and draw the masks.

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
        DropoutHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        """
        training = merge_rows(self._prepare(E, y, sample_weight, groups))
        rng = check_random_state(self.seed_)
        self.hidden_weights_, self.output_weights_ = self._train(training, rng)
        self.feature_masks_, self.hidden_masks_ = self._draw_masks(self.n_draws, rng)
        return self

    def _train(self, training: Training, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        import torch

        device = torch_device(self.device)
        X, codes = torch.as_tensor(training.X, device=device), torch.as_tensor(training.codes, device=device)
        n_features, n_hidden, n_classes = X.shape[1], self.hidden_layer_size, len(self.classes_)
        total, kept = float(training.weights.sum()), 1 - self.dropout
        start = [
            rng.standard_normal((n_features, n_hidden)) * np.sqrt(2 / n_features),
            np.zeros(n_hidden),
            np.zeros((n_hidden, n_classes)),
            np.log(np.bincount(training.codes, training.weights) / total),
        ]
        layers = [torch.as_tensor(a, dtype=X.dtype, device=device).requires_grad_() for a in start]
        W, b, V, c = layers
        n_steps = self.n_steps
        if isinstance(n_steps, str):
            n_steps = math.ceil(min(_MOST_STEPS, _PASSES * max(1.0, total / self.batch_size)))
        optimizer = torch.optim.Adam(layers, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        size = min(self.batch_size, len(X))
        batches = torch.as_tensor(choose_batches(rng, training.weights, n_steps, size), device=device)
        generator = torch.Generator(device).manual_seed(rng.randint(2**31 - 1))
        for rows in batches:
            features = torch.rand(size, n_features, generator=generator, device=device) < kept
            units = torch.rand(size, n_hidden, generator=generator, device=device) < kept
            hidden = torch.relu((X[rows] * features) @ W + b)
            loss = torch.nn.functional.cross_entropy((hidden * units) @ V + c, codes[rows])
            squares = n_features * (W**2).sum() + n_hidden * (V**2).sum()
            loss = loss + kept * self.prior_precision / (2 * total) * squares
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found = [layer.detach().cpu().numpy() for layer in layers]
        return np.vstack(found[:2]), np.vstack(found[2:])

    def _draw_masks(self, n_draws: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        kept = 1 - self.dropout
        return (
            rng.random_sample((n_draws, self.n_features_in_)) < kept,
            rng.random_sample((n_draws, len(self.output_weights_) - 1)) < kept,
        )

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under new masks: one draw is one network, the same for all rows.

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
        X = self._standardise(E)
        masks = self._draw_masks(n_draws, check_random_state(self.seed_ if random_state is None else random_state))
        return np.exp(log_softmax(np.stack([self._logits(X, *mask) for mask in zip(*masks)]).astype(float), axis=2))

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        X = self._standardise(E)
        features, units = self.feature_masks_[:, None], self.hidden_masks_[:, None]
        for block, n_rows in padded_blocks(X, _ROWS):
            logits = self._logits(block, features, units)[:, :n_rows].transpose(1, 0, 2)
            yield log_softmax(logits.astype(float, order="C"), axis=2)

    def _logits(self, X: np.ndarray, features: np.ndarray, units: np.ndarray) -> np.ndarray:
        hidden = np.maximum((X * features) @ self.hidden_weights_[:-1] + self.hidden_weights_[-1], 0)
        return (hidden * units) @ self.output_weights_[:-1] + self.output_weights_[-1]
