"""`LaplaceHead`: Bayesian softmax regression with a Laplace posterior and an evidence-tuned prior."""

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import norm, qmc
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ._base import BayesianHead, padded_blocks
from ._gaussian import FullPosterior, GaussianPosterior, KroneckerPosterior
from ._softmax import SoftmaxProblem, contrasts, find_mode

__all__ = ["LaplaceHead"]

_INTERCEPT_PRECISION = 1e-2  # a standard deviation of 10 in log-odds: weak, yet proper when the classes separate
_FULL_LIMIT = 1000  # parameters up to which covariance="auto" keeps the full matrix
_CORRECTION_POINTS = 64

_POSTERIORS: dict[str, tuple[type[GaussianPosterior], tuple[str, ...]]] = {
    "full": (FullPosterior, ("posterior_factor",)),
    "kronecker": (KroneckerPosterior, ("posterior_precision", "class_axes")),
}


class LaplaceHead(BayesianHead):
    """Bayesian softmax regression over embeddings, with a Laplace posterior.

    Weights have the prior N(0, 1 / prior_precision), intercepts a weak one. The posterior is a Gaussian with the
    curvature of the log-posterior at its mode; predictions average over it. The prior precision maximises the marginal
    likelihood (evidence) of the training data, so nothing is held out for tuning.

    Parameters
    ----------
    prior_precision : "evidence" or float, default="evidence"
        Of the weights of features with unit variance.
    covariance : {"auto", "full", "kronecker"}, default="auto"
        Posterior covariance: the inverse of the whole Hessian, or of its diagonal along the eigenvectors of the
        Kronecker factorisation classes x features. ``"auto"``: full up to 1,000 parameters.
    mean_correction : bool, default=True
        Centre the posterior on the mean that best fits in the variational sense instead of on the mode, which
        underfits: with wide posteriors the average over a Gaussian around the mode is underconfident.
    standardize : bool, default=False
        Divide each feature by its own standard deviation. By default all are divided by one, since in an embedding
        the spread of a feature tells its importance. True for features of different units.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total. It tilts the
        probabilities towards rare classes: they then are those of a population with that prevalence.
    n_draws : int, default=256
        Points of the quasi-Monte Carlo average over the logits.
    max_iter : int, default=100
        Newton steps of each search for the mode.
    tol : float, default=1e-4
        Accepted distance to the mode, in posterior standard deviations, root mean square over the parameters.
    random_state : int, RandomState instance or None, default=None
        Scrambles the quasi-Monte Carlo points and is the default of `predict_posterior`. None means 0: a head is
        deterministic.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    prior_precision_ : float
    log_marginal_likelihood_ : float
        Laplace approximation of log p(y | X, prior_precision_), nats.
    n_iter_ : int
        Newton steps, over the whole search.
    covariance_ : {"full", "kronecker"}
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the embeddings.
    components_ : ndarray of shape (n_features, r)
        Orthonormal principal axes of the standardised embeddings.
    mode_, posterior_mean_ : ndarray of shape (r + 1, n_classes - 1)
        Parameters along the axes, intercept last, in contrasts of the classes: at the posterior's mode, and where the
        Gaussian is centred.
    posterior_ : FullPosterior or KroneckerPosterior
        The Gaussian around `posterior_mean_`.
    normal_points_ : ndarray of shape (n_draws, n_classes - 1)
        Quasi-Monte Carlo points of the predictive.

    See Also
    --------
    cbdc.ConformalClassifier : Prediction sets with a guarantee, over this head or any other.

    Notes
    -----
    A row's prediction does not depend on the other rows of the call, bit for bit. Predicting reads arrays only, so any
    number of threads may share a head. Images of one lesion are not independent and make the evidence count too much
    data; `groups` or `sample_weight` can discount them.

    The probabilities are those of the model. They carry no guarantee: that is the conformal wrapper's job.

    References
    ----------
    MacKay, *The evidence framework applied to classification networks*, Neural Computation 4(5), 1992,
    10.1162/neco.1992.4.5.720. Ritter, Botev, Barber, *A scalable Laplace approximation for neural networks*, ICLR 2018.
    George et al., *Fast approximate natural gradient descent in a Kronecker-factored eigenbasis*, arXiv:1806.03884. van
    Niekerk, Rue, *Low-rank variational Bayes correction to the Laplace method*, arXiv:2111.12945.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc import LaplaceHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = LaplaceHead().fit(E, y)
    >>> head.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> head.predict_posterior([[1.0, 1.0, 1.0]], n_draws=10).shape
    (10, 1, 2)
    >>> bool(head.mutual_information([[9.0, -9.0, 9.0]]) > head.mutual_information([[1.0, 1.0, 1.0]]))
    True
    """

    _arrays = (*BayesianHead._arrays, "components_", "mode_", "posterior_mean_", "normal_points_")
    _scalars = (*BayesianHead._scalars, "prior_precision_", "log_marginal_likelihood_", "n_iter_", "covariance_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "covariance": [StrOptions({"auto", *_POSTERIORS})],
        "mean_correction": ["boolean"],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        prior_precision: float | str = "evidence",
        *,
        covariance: str = "auto",
        mean_correction: bool = True,
        standardize: bool = False,
        class_weight: str | dict | None = None,
        n_draws: int = 256,
        max_iter: int = 100,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.prior_precision = prior_precision
        self.covariance = covariance
        self.mean_correction = mean_correction
        self.standardize = standardize
        self.class_weight = class_weight
        self.n_draws = n_draws
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> "LaplaceHead":
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
            Patient or lesion of each row: the rows of one share the weight of a row.

        Returns
        -------
        LaplaceHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        """
        X, codes, weights, _ = self._prepare(E, y, sample_weight, groups)
        self.components_, energy = _principal_axes(X, weights)
        Z = np.column_stack([X @ self.components_, np.ones(len(X), dtype=X.dtype)])
        problem = SoftmaxProblem(Z, codes, weights, np.append(energy, weights.sum()), len(self.classes_))
        self._fit_posterior(problem)
        self.normal_points_ = _normal_points(self.n_draws, len(self.classes_) - 1, self.seed_)
        return self

    def _fit_posterior(self, problem: SoftmaxProblem) -> None:
        p, J = problem.Z.shape[1], problem.n_classes - 1
        small = self.covariance == "auto" and J * p <= _FULL_LIMIT
        self.covariance_ = "full" if small else "kronecker" if self.covariance == "auto" else self.covariance
        kind, _ = _POSTERIORS[self.covariance_]
        self.mode_, self.n_iter_ = np.zeros((p, J)), 0

        def negative_evidence(log_precision: float) -> float:
            """Also moves `mode_` and `posterior_` there; the next search starts from them."""
            prior = _prior(np.exp(log_precision), p)
            self.mode_, proba, log_posterior, n_iter = find_mode(
                problem, prior, self.mode_, max_iter=self.max_iter, tol=self.tol
            )
            self.n_iter_ += n_iter
            self.posterior_: GaussianPosterior = kind.at(problem, proba, prior)
            return -log_posterior - 0.5 * J * float(np.log(prior).sum()) + 0.5 * self.posterior_.log_determinant

        if self.prior_precision == "evidence":
            middle = np.log(problem.weights.sum() / problem.n_classes)  # about where data and prior weigh the same
            found = minimize_scalar(
                negative_evidence, bounds=(middle - 8, middle + 8), method="bounded", options={"xatol": 0.02}
            )
            self.prior_precision_ = float(np.exp(found.x))
        else:
            self.prior_precision_ = float(self.prior_precision)
        self.log_marginal_likelihood_ = -negative_evidence(np.log(self.prior_precision_))
        self.posterior_mean_ = self._corrected_mean(problem) if self.mean_correction else self.mode_

    def _corrected_mean(self, problem: SoftmaxProblem) -> np.ndarray:
        """Mean that maximises the variational bound, the covariance being Laplace's."""
        points = _normal_points(_CORRECTION_POINTS, problem.n_classes - 1, seed=0)
        points -= points.mean(axis=0)
        mean, _, _, n_iter = find_mode(
            problem,
            _prior(self.prior_precision_, len(self.mode_)),
            self.mode_,
            max_iter=self.max_iter,
            tol=self.tol,
            log_likelihood=lambda logits: problem.expected_log_likelihood(logits, self.posterior_.logit_factor, points),
        )
        self.n_iter_ += n_iter
        return mean

    @property
    def coef_(self) -> np.ndarray:
        """Posterior mode of the weights, in the units of the embeddings, (n_classes, n_features); columns sum to 0."""
        check_is_fitted(self)
        weights = self.components_.astype(float) @ self.mode_[:-1] / self.scale_[:, None]
        return contrasts(len(self.classes_)) @ weights.T

    @property
    def intercept_(self) -> np.ndarray:
        """Posterior mode of the intercepts, (n_classes,)."""
        check_is_fitted(self)
        return contrasts(len(self.classes_)) @ self.mode_[-1] - self.coef_ @ self.mean_

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under joint draws of the weights: one draw is one classifier, the same for all rows.

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
        V, J = self.components_, len(self.classes_) - 1
        Z = np.column_stack([X @ V, np.ones(len(X))])
        unseen = X - Z[:, :-1] @ V.T if V.shape[1] < V.shape[0] else np.zeros((len(X), 0))
        proba = np.empty((n_draws, len(X), J + 1))
        for draw in proba:
            logits = Z @ (self.posterior_mean_ + self.posterior_.draw(rng))
            logits += unseen @ rng.standard_normal((unseen.shape[1], J)) / np.sqrt(self.prior_precision_)
            draw[:] = np.exp(log_softmax(logits @ contrasts(J + 1).T, axis=1))
        return proba

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        X = self._standardise(E)
        B = contrasts(len(self.classes_))
        for block, n_rows in padded_blocks(X):
            Z = np.column_stack([block @ self.components_, np.ones(len(block))])
            # directions that training never showed keep their prior variance
            unseen = np.sum(block.astype(float) ** 2, axis=1) - np.sum(Z[:, :-1] ** 2, axis=1)
            factor = self.posterior_.logit_factor(Z, np.maximum(unseen, 0.0) / self.prior_precision_)
            mean = Z @ self.posterior_mean_ @ B.T
            draws = mean[:n_rows, None] + self.normal_points_ @ factor[:n_rows].transpose(0, 2, 1)
            yield log_softmax(draws, axis=2)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, document = super().get_state()
        _, names = _POSTERIORS[self.covariance_]
        return arrays | {name: np.ascontiguousarray(getattr(self.posterior_, name)) for name in names}, document

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> "LaplaceHead":
        head = super().from_state(arrays, document)
        kind, names = _POSTERIORS[head.covariance_]
        head.posterior_ = kind(*[arrays[name] for name in names])
        return head


def _prior(precision: float, p: int) -> np.ndarray:
    """Prior precision of each row of parameters, (p, 1); the last is the intercept's."""
    return np.append(np.full(p - 1, precision), _INTERCEPT_PRECISION)[:, None]


def _principal_axes(X: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal axes (n_features, r) of the weighted rows, and the weighted sum of squares along each, (r,)."""
    n, d = X.shape
    rows = X * np.sqrt(weights).astype(X.dtype)[:, None]
    if d <= n:
        energy, axes = eigh((rows.T @ rows).astype(float))
        return np.ascontiguousarray(axes.astype(X.dtype)), np.maximum(energy, 0.0)
    rows = rows.astype(float)
    energy, left = eigh(rows @ rows.T)
    kept = energy > 1e-10 * energy[-1]
    axes = rows.T @ (left[:, kept] / np.sqrt(energy[kept]))
    return np.ascontiguousarray(axes.astype(X.dtype)), energy[kept]


def _normal_points(n_points: int, dimension: int, seed: int) -> np.ndarray:
    """Standard normal points (n_points, dimension) that cover space evenly: a scrambled Sobol sequence."""
    n_doublings = int(np.ceil(np.log2(n_points)))
    return norm.ppf(qmc.Sobol(dimension, seed=seed).random_base2(n_doublings)[:n_points])
