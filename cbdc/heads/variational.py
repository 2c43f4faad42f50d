"""`VariationalHead`: Bayesian softmax regression whose posterior maximises the evidence lower bound (Pyro)."""

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, ndtri
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..errors import ConvergenceError, ParameterError
from ._base import BayesianHead, Training
from ._draws import DrawnHead
from ._horseshoe import horseshoe_parameters, horseshoe_scales, horseshoe_start
from ._softmax import SoftmaxProblem, contrasts
from ._whitening import Whitening, feature_weights, laplace_start
from .laplace import LaplaceHead

__all__ = ["VariationalHead"]

_SLAB_SCALE = 2.0  # a relevant feature's weight is N(0, 2^2) at most, in log-odds per standard deviation
_SLAB_FREEDOM = 4.0
_FULL_LIMIT = 2000  # latent variables of the horseshoe up to which their covariance is kept whole
_SHRINKAGE_DRAWS = 1024
_CHUNK = 64  # classifiers at a time in `predict_posterior`


class VariationalHead(DrawnHead):
    """Bayesian softmax regression over embeddings, with a variational posterior found by Pyro.

    The model and its priors are those of `LaplaceHead`, and with ``prior="normal"`` the ascent begins at that head's
    posterior, along its axes. Predictions average over draws of the guide.

    Parameters
    ----------
    prior_precision : "evidence" or float, default="evidence"
        Of the weights of features with unit variance. ``"evidence"`` is that of `LaplaceHead` on the same data, so that
        the two approximate one posterior. Without effect on the horseshoe, which finds its scales itself.
    guide : {"mean_field", "low_rank", "full", "radial"}, default="mean_field"
        Family of the posterior: independent normals along the principal axes of the embeddings and of the classes;
        with `rank` common factors on top; with the whole covariance of the 1,000 parameters along the axes of largest
        variance; or a random direction times a half-normal radius.
    prior : {"normal", "horseshoe"}, default="normal"
        The regularised horseshoe shrinks most features to nothing and leaves the others alone; axes are then the
        features themselves.
    rank : int, default=10
        Of ``guide="low_rank"``.
    n_relevant : int or None, default=None
        With the horseshoe: a guess of the number of features that matter. None: a tenth of them.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one. True for features of different units.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total. It tilts the
        probabilities towards rare classes: they then are those of a population with that prevalence.
    batch_size : int or None, default=None
        Rows of each step, drawn anew; None takes all.
    learning_rate : float, default=0.02
        Of Adam, in posterior standard deviations of `LaplaceHead`. The horseshoe has further to go: 0.05 suits it.
    max_iter : int, default=6400
        Steps at most.
    tol : float, default=1e-3
        Rise of the bound, in nats a parameter, that counts as none.
    n_draws : int, default=256
        Draws of the weights that predictions average over; quasi-random, best a power of two.
    device : str or None, default=None
        Where torch fits; None takes CUDA where there is one. Predicting needs no torch.
    verbose : bool, default=False
        Show a progress bar.
    random_state : int, RandomState instance or None, default=None
        Seeds the fit and the draws. None means 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    prior_precision_ : float or None
        None with the horseshoe.
    elbo_ : float
        Evidence lower bound of the posterior found, nats: at most log p(y | X), prior precision given.
    elbo_history_ : ndarray of shape (n_iter_,)
        Its estimate, from one draw, at each step.
    n_iter_ : int
    converged_ : bool
    shrinkage_ : ndarray of shape (n_features,)
        Posterior mean of the factor by which the prior pulls each feature's weights to zero. With the horseshoe near 0
        for a feature that matters and near 1 for one that does not; with the normal prior the variance of the feature
        alone decides.
    n_effective_features_ : float
        Sum of 1 - `shrinkage_`.
    weight_draws_ : ndarray of shape (n_draws, n_features + 1, n_classes)
        Weights of the standardised features, intercept last.
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the embeddings.
    components_ : ndarray of shape (n_features, r)
        Orthonormal axes of the standardised embeddings.
    directions_ : ndarray of shape (n_classes, n_classes - 1)
        Orthonormal axes of the logits.
    guide_mean_, guide_scale_ : ndarray of shape (size,)
        Mean of the latent variables, and scale of their independent noise.
    guide_factor_ : ndarray of shape (rows, k)
        Of noise that the last latent variables share.

    See Also
    --------
    LaplaceHead : Faster, with nearly the same posterior where the data are many.
    NUTSHead : Slower, with the posterior itself.

    Notes
    -----
    Adam raises Pyro's `Trace_ELBO`, and the parameters are averaged over the last half of the steps. A normal guide is
    too narrow where the posterior is correlated along its axes, the more so the fewer correlations it can express.
    `elbo_` compares guides on the same data and prior: the highest is the closest to the posterior.

    Fitting leaves Pyro's parameter store and the generators of torch and numpy as they were. Predicting reads arrays
    only, so any number of threads may share a head. Fits in several threads take turns.

    References
    ----------
    Kucukelbir et al., *Automatic differentiation variational inference*, arXiv:1603.00788. Farquhar, Osborne, Gal,
    *Radial Bayesian neural networks*, arXiv:1907.00865. Piironen, Vehtari, *Sparsity information and regularization in
    the horseshoe and other shrinkage priors*, arXiv:1707.01694. Roeder, Wu, Duvenaud, *Sticking the landing*,
    arXiv:1703.09194. Dhaka et al., *Robust, accurate stochastic optimization for variational inference*,
    arXiv:2009.00666.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import VariationalHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = VariationalHead().fit(E, y)
    >>> head.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> head.predict_posterior([[1.0, 1.0, 1.0]], n_draws=10).shape
    (10, 1, 2)
    """

    _arrays = (
        *DrawnHead._arrays,
        "components_",
        "directions_",
        "guide_mean_",
        "guide_scale_",
        "guide_factor_",
        "elbo_history_",
        "shrinkage_",
    )
    _scalars = (*DrawnHead._scalars, "prior_precision_", "elbo_", "n_iter_", "converged_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "guide": [StrOptions({"mean_field", "low_rank", "full", "radial"})],
        "prior": [StrOptions({"normal", "horseshoe"})],
        "rank": [Interval(Integral, 1, None, closed="left")],
        "n_relevant": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "device": [str, None],
        "verbose": ["boolean"],
    }

    prior_precision_: float | None

    def __init__(
        self,
        prior_precision: float | str = "evidence",
        *,
        guide: str = "mean_field",
        prior: str = "normal",
        rank: int = 10,
        n_relevant: int | None = None,
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        batch_size: int | None = None,
        learning_rate: float = 0.02,
        max_iter: int = 6400,
        tol: float = 1e-3,
        n_draws: int = 256,
        device: str | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.prior_precision = prior_precision
        self.guide = guide
        self.prior = prior
        self.rank = rank
        self.n_relevant = n_relevant
        self.standardize = standardize
        self.feature_map = feature_map
        self.class_weight = class_weight
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.tol = tol
        self.n_draws = n_draws
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> "VariationalHead":
        """Fit the posterior and, unless it is given, the prior precision.

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
        VariationalHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        ParameterError
            If `n_relevant` is no less than the number of features, or the whole covariance too large.
        ConvergenceError
            If the bound becomes NaN.
        """
        training = self._prepare(E, y, sample_weight, groups)
        weights, J = training.weights, len(self.classes_) - 1
        share = np.bincount(training.codes, weights) / weights.sum()
        information = (
            weights.sum() * (1 - share @ share) / J
        )  # of the weight of a unit feature, before anything is known
        if self.prior == "normal":
            laplace = LaplaceHead(
                self.prior_precision,
                standardize=self.standardize,
                feature_map=self.feature_map,
                class_weight=self.class_weight,
                n_draws=1,
            )
            self._fit_normal(laplace.fit(E, y, sample_weight, groups), training)
            scales = np.full((1, self.n_features_in_), laplace.prior_precision_**-0.5)
        else:
            self._fit_horseshoe(training, information)
            noise = _even_normals(_SHRINKAGE_DRAWS, sum(self._noise_sizes), self.seed_)
            scales = horseshoe_scales(self._latent(noise), self.n_features_in_)
        variance = weights @ training.X.astype(float) ** 2 / weights.sum()
        self.shrinkage_ = np.mean(1 / (1 + information * variance * scales**2), axis=0)
        self.weight_draws_ = self._draw(_even_normals(self.n_draws, sum(self._noise_sizes), self.seed_))
        return self

    def _fit_normal(self, laplace: LaplaceHead, training: Training) -> None:
        from . import _pyro

        start = laplace_start(laplace, training)
        self.prior_precision_ = float(laplace.prior_precision_)
        self.components_, self.directions_ = start.components, start.directions
        whitening = start.whitening(joint=self.guide == "full")
        factor = start.widest(self.rank) if self.guide == "low_rank" else None
        with _pyro.isolated(self.seed_, self.device) as device:
            regression = _pyro.Regression(start.problem, start.directions, device)
            self._ascend(_pyro.NormalModel(regression, start.prior, whitening), whitening, factor)

    def _fit_horseshoe(self, training: Training, information: float) -> None:
        from . import _pyro

        if self.guide == "radial":
            raise ParameterError(
                "guide='radial' with the horseshoe: its radius varies too much for the logarithms of scales. Fix: "
                "guide='mean_field', 'low_rank' or 'full', or prior='normal'."
            )
        X, codes, weights, _ = training
        (n, d), J = X.shape, len(self.classes_) - 1
        relevant = min(max(d / 10, 1), d / 2) if self.n_relevant is None else self.n_relevant
        if relevant >= d:
            raise ParameterError(
                f"n_relevant={self.n_relevant}: there are {d} features; the horseshoe expects some of them to be "
                "irrelevant. Fix: fewer, or prior='normal'."
            )
        size = d * J + J + d + 2
        if self.guide == "full" and size > _FULL_LIMIT:
            raise ParameterError(
                f"guide='full' with the horseshoe: {size} latent variables, at most {_FULL_LIMIT} are allowed. Fix: "
                "guide='low_rank' or 'mean_field', or fewer features."
            )
        global_scale = relevant / (d - relevant) / np.sqrt(information)
        whitening = horseshoe_start(d, J, global_scale, _SLAB_SCALE, joint=self.guide == "full")
        self.prior_precision_ = None
        self.components_, self.directions_ = np.eye(d, dtype=X.dtype), contrasts(J + 1).copy()
        Z = np.column_stack([X, np.ones(n, dtype=X.dtype)])
        problem = SoftmaxProblem(Z, codes, weights, np.einsum("n,np,np->p", weights, Z, Z), J + 1)
        factor = None
        if self.guide == "low_rank":
            factor = 0.01 * check_random_state(self.seed_).standard_normal((size, min(self.rank, size)))
        with _pyro.isolated(self.seed_, self.device) as device:
            model = _pyro.HorseshoeModel(
                _pyro.Regression(problem, self.directions_, device),
                whitening,
                global_scale=global_scale,
                slab_scale=_SLAB_SCALE,
                slab_freedom=_SLAB_FREEDOM,
            )
            self._ascend(model, whitening, factor)

    def _ascend(self, model: Any, whitening: Whitening, factor: np.ndarray | None) -> None:
        """Raise the bound from the standard normal in whitened positions, and keep the guide found."""
        from . import _pyro

        guide = _pyro.Guide(model, self.guide, whitening.centre.size, len(whitening.block), factor)
        ascent = _pyro.maximise_elbo(
            guide,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            max_iter=self.max_iter,
            tol=self.tol,
            verbose=self.verbose,
        )
        if not np.isfinite(ascent.elbo):
            raise ConvergenceError(
                f"the evidence lower bound became {ascent.history[-1]} after {len(ascent.history)} steps. Fix: a "
                f"smaller learning_rate, got {self.learning_rate}."
            )
        if not ascent.converged:
            warnings.warn(
                f"the evidence lower bound still rose by {ascent.rise:.2g} nats a parameter in the last half of "
                f"max_iter={self.max_iter} steps, tol={self.tol:.2g}. Fix: raise max_iter, or learning_rate where "
                "elbo_history_ climbs steadily; a larger batch_size where it is mostly noise.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.elbo_, self.elbo_history_, self.converged_ = ascent.elbo, ascent.history, ascent.converged
        self.n_iter_ = len(ascent.history)
        mean, scale, factor = guide.state()
        cut = whitening.unit.size
        self.guide_mean_ = whitening.parameters(mean[None]).ravel()
        self.guide_scale_ = np.concatenate([scale[:cut] * whitening.unit.ravel(), scale[cut:]])
        if self.guide == "full":
            factor = whitening.block @ factor
        elif self.guide == "low_rank":
            factor = whitening.unit.reshape(-1, 1) * factor
        self.guide_factor_ = factor

    @property
    def n_effective_features_(self) -> float:
        """Sum of 1 - `shrinkage_`: how many features the weights are, in effect, those of."""
        check_is_fitted(self)
        return float(np.sum(1 - self.shrinkage_))

    @property
    def _noise_sizes(self) -> tuple[int, int, int, int]:
        """Standard normals that a draw takes: a variable's own, shared ones, for the radius, for unseen directions."""
        d, r = self.components_.shape
        return (
            len(self.guide_mean_),
            self.guide_factor_.shape[1],
            int(self.guide == "radial"),
            d * (len(self.classes_) - 1) if r < d else 0,
        )

    def _latent(self, noise: np.ndarray) -> np.ndarray:
        """Draws of the guide, (n_draws, size), from standard normals (n_draws, sum of `_noise_sizes`)."""
        own, shared, radius, _ = np.split(noise, np.cumsum(self._noise_sizes)[:-1], axis=1)
        if self.guide == "radial":
            own = own * radius / np.linalg.norm(own, axis=1, keepdims=True)
        deviation = self.guide_scale_ * own
        deviation[:, own.shape[1] - len(self.guide_factor_) :] += shared @ self.guide_factor_.T
        return self.guide_mean_ + deviation

    def _draw(self, noise: np.ndarray) -> np.ndarray:
        """Weights of the standardised features, (n_draws, n_features + 1, n_classes), from standard normals."""
        (d, r), J = self.components_.shape, len(self.classes_) - 1
        latent = self._latent(noise)
        unseen = np.zeros(0)
        if self.prior == "horseshoe":
            parameters = horseshoe_parameters(latent, d, J)
        else:
            parameters = latent.reshape(-1, r + 1, J)
            if r < d:
                assert self.prior_precision_ is not None
                unseen = noise[:, -d * J :].reshape(-1, d, J) / np.sqrt(self.prior_precision_)
        return feature_weights(parameters, self.components_, self.directions_, unseen, self.dtype_)

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under new joint draws of the weights: one draw is one classifier, the same for all rows.

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
        rng = check_random_state(self.seed_ if random_state is None else random_state)
        proba = np.empty((n_draws, len(X), len(self.classes_)))
        for start in range(0, n_draws, _CHUNK):
            chunk = proba[start : start + _CHUNK]
            weights = self._draw(rng.standard_normal((len(chunk), sum(self._noise_sizes))))
            chunk[:] = np.exp(log_softmax((X @ weights[:, :-1] + weights[:, -1:]).astype(float), axis=2))
        return proba


def _even_normals(n: int, dimension: int, seed: int) -> np.ndarray:
    """Standard normals (n, dimension) that cover space evenly: scrambled Sobol points, up to their last dimension."""
    n_even = min(dimension, qmc.Sobol.MAXDIM)
    sobol = qmc.Sobol(n_even, seed=seed).random_base2(int(np.ceil(np.log2(n))))[:n]
    rest = np.random.RandomState(seed).standard_normal((n, dimension - n_even))
    return np.concatenate([ndtri(sobol), rest], axis=1)
