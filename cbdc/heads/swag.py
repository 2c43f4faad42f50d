"""`SWAGHead`: softmax regression whose posterior is the spread of stochastic gradient iterates."""

from collections.abc import Callable, Iterable
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from ._base import BayesianHead
from ._draws import DrawnHead
from ._softmax import contrasts
from ._training import choose_batches, find_start, merge_rows

__all__ = ["SWAGHead"]

_BURN_IN = 3  # epochs before the first iterate is kept; two of them shrink the start by exp(-4)
_FEWEST_BATCHES = 16  # an epoch; fewer would make the steps long
_LONGEST_STEP = 0.5  # of the way to the mode


class SWAGHead(DrawnHead):
    """Softmax regression whose posterior is the Gaussian of stochastic gradient iterates (SWA-Gaussian).

    Stochastic gradient descent with a constant step runs around the mode. The mean of its iterates, half their
    variances and half the covariance of the last few are the Gaussian from which the head draws.

    Steps are preconditioned with the curvature at the mode, and their size is that at which the iterates' stationary
    covariance equals the posterior's where data outweigh the prior: 2 / (1 + number of batches an epoch), at most 1/2.

    Parameters
    ----------
    n_iterates : int, default=100
        Iterates kept, one an epoch.
    max_rank : int, default=20
        Of the iterates, the last ones that are kept as they are.
    batch_size : int, default=128
        Rows a step; fewer where an epoch would have fewer than 16 batches.
    prior_precision : "evidence" or float, default="evidence"
        Of the weights of features with unit variance; ``"evidence"`` takes `LaplaceHead`'s.
    n_draws : int, default=64
        Draws of the Gaussian that predictions average over.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total.
    random_state : int, RandomState instance or None, default=None
        Draws batches and weights. None means 0: a head is deterministic.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    prior_precision_ : float
    step_size_ : float
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the embeddings.
    weight_draws_ : ndarray of shape (n_draws, n_features + 1, n_classes)
        Weights of the standardised features, intercept last.

    See Also
    --------
    LaplaceHead : The same mode with the curvature itself as precision.

    Notes
    -----
    **Which posterior.** Let H be the curvature and F the part of it that the data bring. The iterates' covariance
    tends to H^-1 F H^-1, not to H^-1: the prior makes no noise. Along directions that the data say little of SWAG is
    too sure, and along directions that they never show it does not vary at all. Far from the data it therefore is
    overconfident where `LaplaceHead` and `EnsembleHead` are not.

    Variances are taken along the principal axes of the embeddings and of the classes' curvature, where the posterior
    is nearly diagonal.

    References
    ----------
    Maddox et al., *A simple baseline for Bayesian uncertainty in deep learning*, arXiv:1902.02476. Mandt, Hoffman,
    Blei, *Stochastic gradient descent as approximate Bayesian inference*, arXiv:1704.04289.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import SWAGHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = SWAGHead(n_draws=16).fit(E, y)
    >>> head.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> head.weight_draws_.shape
    (16, 4, 2)
    """

    _scalars = (*BayesianHead._scalars, "prior_precision_", "step_size_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "n_iterates": [Interval(Integral, 2, None, closed="left")],
        "max_rank": [Interval(Integral, 2, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_iterates: int = 100,
        *,
        max_rank: int = 20,
        batch_size: int = 128,
        prior_precision: float | str = "evidence",
        n_draws: int = 64,
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_iterates = n_iterates
        self.max_rank = max_rank
        self.batch_size = batch_size
        self.prior_precision = prior_precision
        self.n_draws = n_draws
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
    ) -> "SWAGHead":
        """Find the mode, run stochastic gradient descent around it, and draw from the Gaussian of its iterates.

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
        SWAGHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        """
        training = merge_rows(self._prepare(E, y, sample_weight, groups))
        start = find_start(training, self.prior_precision)
        rng = check_random_state(self.seed_)
        Z, total = start.problem.Z, training.weights.sum()
        size = max(1, min(self.batch_size, int(total / _FEWEST_BATCHES)))
        epoch = max(1, round(total / size))
        self.step_size_ = min(float(2 / (1 + total / size)), _LONGEST_STEP)
        directions = (contrasts(start.problem.n_classes) @ start.class_axes).astype(Z.dtype)
        one_hot = np.eye(start.problem.n_classes, dtype=Z.dtype)

        def step(parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
            z = Z[rows]
            proba = softmax(z @ parameters.astype(Z.dtype) @ directions.T, axis=1)
            slope = z.T @ ((proba - one_hot[training.codes[rows]]) @ directions)
            gradient = total / size * slope.astype(float) + start.row_precision * parameters
            return self.step_size_ * gradient / start.curvature

        epochs = (choose_batches(rng, training.weights, epoch, size) for _ in range(_BURN_IN + self.n_iterates))
        iterates = sgd_iterates(step, start.parameters @ start.class_axes, epochs)[_BURN_IN:]
        draws = swag_draws(iterates, self.max_rank, self.n_draws, rng)
        weights = np.concatenate([start.axes.astype(float) @ draws[:, :-1], draws[:, -1:]], axis=1)
        self.weight_draws_ = (weights @ directions.T.astype(float)).astype(Z.dtype)
        self.prior_precision_ = start.prior_precision
        return self


def sgd_iterates(
    step: Callable[[np.ndarray, np.ndarray], np.ndarray], start: np.ndarray, epochs: Iterable[np.ndarray]
) -> np.ndarray:
    """Parameters after each epoch, (n_epochs, *start.shape).

    Parameters
    ----------
    step : callable
        From the parameters and the rows of a batch to what is subtracted from the parameters.
    start : ndarray
    epochs : iterable of ndarray of shape (n_batches, batch_size)
        Rows of the batches of each epoch.
    """
    parameters, kept = start, []
    for batches in epochs:
        for rows in batches:
            parameters = parameters - step(parameters, rows)
        kept.append(parameters)
    return np.stack(kept)


def swag_draws(iterates: np.ndarray, max_rank: int, n_draws: int, rng: np.random.RandomState) -> np.ndarray:
    """Draws (n_draws, *shape) of the Gaussian with the iterates' mean, half their variances and half the covariance of
    the last `max_rank` around the mean."""
    mean, spread = iterates.mean(axis=0), iterates.std(axis=0)
    last = iterates[-max_rank:] - mean
    along = rng.standard_normal((n_draws, len(last))) / np.sqrt(2 * (len(last) - 1))
    return mean + spread * rng.standard_normal((n_draws, *mean.shape)) / np.sqrt(2) + np.tensordot(along, last, axes=1)
