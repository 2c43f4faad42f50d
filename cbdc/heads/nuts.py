"""`NUTSHead`: Bayesian softmax regression sampled by the No-U-Turn sampler (Pyro), the reference for other heads."""

import warnings
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from tqdm import tqdm

from ..errors import ConvergenceError
from ._base import BayesianHead
from ._chains import bulk_ess, chance_r_hat, r_hat
from ._draws import DrawnHead
from ._whitening import feature_weights, laplace_start
from .laplace import LaplaceHead

__all__ = ["NUTSHead"]


class NUTSHead(DrawnHead):
    """Bayesian softmax regression over embeddings, its posterior sampled by the No-U-Turn sampler of Pyro.

    The model and its priors are those of `LaplaceHead`, whose posterior also gives the sampler its origin and its unit
    of length. What is sampled is the exact posterior: the head is slow, and the reference for the others.

    Parameters
    ----------
    prior_precision : "evidence" or float, default="evidence"
        Of the weights of features with unit variance. ``"evidence"`` is that of `LaplaceHead` on the same data, so that
        the two approximate one posterior.
    n_chains : int, default=4
        Run one after the other, each from a draw of the Laplace posterior of its own.
    n_draws : int, default=1000
        Of each chain; the diagnostics use them all.
    n_warmup : int, default=150
        Draws before those, in which the step size is adapted.
    thinning : int, default=4
        Predictions use every so many-th draw: consecutive ones say little more, and cost as much again.
    max_tree_depth : int, default=10
        Doublings of a trajectory at most: up to 2 ** max_tree_depth - 1 gradients a draw.
    target_accept : float, default=0.8
        Mean acceptance to which the step size is adapted; higher means smaller steps.
    on_bad_chains : {"warn", "refuse"}, default="warn"
        What happens when a chain diverges, when R-hat is above `max_r_hat` or when the effective sample size is below
        `min_ess`: a ConvergenceWarning or a ConvergenceError.
    max_r_hat : float, default=1.01
        Raised, where there are many parameters, to what chance alone exceeds in the worst of them once in a hundred
        fits.
    min_ess : float or None, default=None
        Of the worst parameter, over all chains. None: 100 a chain.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one. True for features of different units.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total. It tilts the
        probabilities towards rare classes: they then are those of a population with that prevalence.
    device : str or None, default=None
        Where torch samples; None takes CUDA where there is one. Predicting needs no torch.
    verbose : bool, default=False
        Show a progress bar.
    random_state : int, RandomState instance or None, default=None
        Seeds the chains. None means 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    prior_precision_ : float
    r_hat_ : ndarray of shape (r + 1, n_classes - 1)
        Rank-normalised split R-hat of each parameter, along the axes, intercept last.
    ess_ : ndarray of shape (r + 1, n_classes - 1)
        Bulk effective sample size of each parameter, over all chains.
    n_divergences_ : int
        Trajectories that left the posterior numerically.
    weight_draws_ : ndarray of shape (n_chains * n_draws / thinning, n_features + 1, n_classes)
        Weights of the standardised features, intercept last, chain by chain.
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the embeddings.

    See Also
    --------
    LaplaceHead : Much faster.

    Notes
    -----
    **Guarantee.** Assumption: the chains have converged. Statement: averages over the draws estimate those over the
    posterior, that of a parameter with a standard error of its posterior standard deviation over sqrt(`ess_`). What
    breaks it: chains that have not converged and agree by chance, which no diagnostic excludes; the posterior is
    log-concave and has one mode, which makes that unlikely. Of the model's truth it says nothing.

    Fitting leaves Pyro's parameter store and the generators of torch and numpy as they were. Predicting reads arrays
    only, so any number of threads may share a head. Fits in several threads take turns.

    References
    ----------
    Hoffman, Gelman, *The No-U-Turn sampler*, arXiv:1111.4246. Vehtari et al., *Rank-normalization, folding, and
    localization: an improved R-hat for assessing convergence of MCMC*, arXiv:1903.08008.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import NUTSHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = NUTSHead(n_chains=2, n_draws=500, n_warmup=50).fit(E, y)
    >>> head.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> bool(head.r_hat_.max() < 1.05), head.n_divergences_
    (True, 0)
    """

    _arrays = (*DrawnHead._arrays, "r_hat_", "ess_")
    _scalars = (*DrawnHead._scalars, "prior_precision_", "n_divergences_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "n_chains": [Interval(Integral, 1, None, closed="left")],
        "n_draws": [Interval(Integral, 4, None, closed="left")],
        "n_warmup": [Interval(Integral, 1, None, closed="left")],
        "thinning": [Interval(Integral, 1, None, closed="left")],
        "max_tree_depth": [Interval(Integral, 1, None, closed="left")],
        "target_accept": [Interval(Real, 0, 1, closed="neither")],
        "on_bad_chains": [StrOptions({"warn", "refuse"})],
        "max_r_hat": [Interval(Real, 1, None, closed="left")],
        "min_ess": [Interval(Real, 0, None, closed="left"), None],
        "device": [str, None],
        "verbose": ["boolean"],
    }

    def __init__(
        self,
        prior_precision: float | str = "evidence",
        *,
        n_chains: int = 4,
        n_draws: int = 1000,
        n_warmup: int = 150,
        thinning: int = 4,
        max_tree_depth: int = 10,
        target_accept: float = 0.8,
        on_bad_chains: str = "warn",
        max_r_hat: float = 1.01,
        min_ess: float | None = None,
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        device: str | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.prior_precision = prior_precision
        self.n_chains = n_chains
        self.n_draws = n_draws
        self.n_warmup = n_warmup
        self.thinning = thinning
        self.max_tree_depth = max_tree_depth
        self.target_accept = target_accept
        self.on_bad_chains = on_bad_chains
        self.max_r_hat = max_r_hat
        self.min_ess = min_ess
        self.standardize = standardize
        self.feature_map = feature_map
        self.class_weight = class_weight
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> "NUTSHead":
        """Sample the posterior and, unless it is given, choose the prior precision.

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
        NUTSHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        ConvergenceError
            If the chains are bad and ``on_bad_chains="refuse"``.
        """
        from . import _pyro

        training = self._prepare(E, y, sample_weight, groups)
        laplace = LaplaceHead(
            self.prior_precision,
            standardize=self.standardize,
            feature_map=self.feature_map,
            class_weight=self.class_weight,
            n_draws=1,
        ).fit(E, y, sample_weight, groups)
        self.prior_precision_ = laplace.prior_precision_
        start = laplace_start(laplace, training)
        whitening = start.whitening(joint=True)
        chains, self.n_divergences_ = [], 0
        n_steps = self.n_chains * (self.n_warmup + self.n_draws)
        with (
            _pyro.isolated(self.seed_, self.device) as device,
            tqdm(total=n_steps, desc="NUTS", disable=not self.verbose) as bar,
        ):
            regression = _pyro.Regression(start.problem, start.directions, device)
            model = _pyro.NormalModel(regression, start.prior, whitening)
            for _ in range(self.n_chains):
                positions, n_diverged = _pyro.sample_chain(
                    model,
                    n_warmup=self.n_warmup,
                    n_draws=self.n_draws,
                    max_tree_depth=self.max_tree_depth,
                    target_accept=self.target_accept,
                    tick=bar.update,
                )
                chains.append(whitening.parameters(positions))
                self.n_divergences_ += n_diverged
        draws = np.stack(chains)
        self.r_hat_, self.ess_ = r_hat(draws), bulk_ess(draws)
        self._check_chains()
        parameters = draws[:, :: self.thinning].reshape(-1, *draws.shape[2:])
        (d, r), J = start.components.shape, draws.shape[3]
        unseen = np.zeros(0)
        if r < d:
            rng = check_random_state(self.seed_)
            unseen = rng.standard_normal((len(parameters), d, J)) / np.sqrt(self.prior_precision_)
        self.weight_draws_ = feature_weights(parameters, start.components, start.directions, unseen, self.dtype_)
        return self

    def _check_chains(self) -> None:
        limit = max(self.max_r_hat, chance_r_hat(self.n_chains, self.n_draws, self.r_hat_.size))
        least = 100 * self.n_chains if self.min_ess is None else self.min_ess
        worst, smallest = float(self.r_hat_.max()), float(self.ess_.min())
        found = []
        if not worst <= limit:
            found.append(f"R-hat is {worst:.3f} in the worst parameter, at most {limit:.3f} is accepted")
        if not smallest >= least:
            found.append(
                f"the effective sample size is {smallest:.0f} in the worst parameter, at least {least:.0f} needed"
            )
        if self.n_divergences_:
            found.append(f"{self.n_divergences_} trajectories diverged")
        if not found:
            return
        message = f"bad chains: {'; '.join(found)}. Fix: raise n_draws and n_warmup; target_accept where they diverged."
        if self.on_bad_chains == "refuse":
            raise ConvergenceError(message)
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
