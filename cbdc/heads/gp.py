"""`RandomFeatureGPHead`: Gaussian process classification on random features, with a Laplace posterior."""

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import euclidean_distances
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from ._base import BayesianHead, padded_blocks
from ._gaussian import FullPosterior, GaussianPosterior, KroneckerPosterior
from ._predictive import normal_points
from ._softmax import Prior, SoftmaxProblem, contrasts, find_mode, signs
from ._training import merge_rows
from .laplace import _principal_axes

__all__ = ["RandomFeatureGPHead"]

_FULL_LIMIT = 1000  # parameters up to which the covariance is the whole matrix
_CORRECTION_POINTS = 64
_MEDIAN_ROWS = 1000

_POSTERIORS: dict[str, tuple[type[GaussianPosterior], tuple[str, ...]]] = {
    "full": (FullPosterior, ("posterior_factor",)),
    "kronecker": (KroneckerPosterior, ("posterior_precision", "class_axes")),
}


class RandomFeatureGPHead(BayesianHead):
    """Gaussian process classifier that knows how far a row lies from the data; its kernel is built of random features.

    Each class has a latent function with the prior GP(0, k / prior_precision), k(x, x') = exp(-|x - x'|^2 / (2 l^2)),
    and the label is softmax distributed. The kernel is approximated by `n_features` random features and the posterior
    by Laplace's method. Where the kernel sees no training row the latent functions keep their prior, so that the
    probabilities there tend to those of no knowledge: uniform.

    Parameters
    ----------
    n_features : int, default=2048
    features : {"landmarks", "fourier"}, default="landmarks"
        Kernel values at random training rows (Nystrom; exact once there are as many as rows), or random Fourier
        features (cosines and sines in random directions; unbiased, error 1 / sqrt(n_features)).
    length_scale : "median" or float, default="median"
        l, in units of the standardised features; ``"median"`` is the median distance of two training rows.
    prior_precision : "evidence" or float, default="evidence"
        One over the prior variance of a latent value; ``"evidence"`` maximises the marginal likelihood.
    mean_correction : bool, default=True
        Centre the posterior on the mean that best fits in the variational sense, as `LaplaceHead` does.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total.
    n_draws : int, default=256
        Points of the quasi-Monte Carlo average over the logits.
    max_iter : int, default=100
        Newton steps of each search for the mode.
    tol : float, default=1e-3
        Accepted distance to the mode, in posterior standard deviations, root mean square over the parameters.
    random_state : int, RandomState instance or None, default=None
        Draws the features. None means 0: a head is deterministic.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    length_scale_, prior_precision_ : float
    log_marginal_likelihood_ : float
        Laplace approximation of log p(y | X), nats.
    n_iter_ : int
        Newton steps, over the whole search.
    covariance_ : {"full", "kronecker"}
        Of the posterior: whole up to 1,000 parameters.
    mean_, scale_ : ndarray of shape (n_features_in_,)
        Standardisation of the embeddings.
    anchors_ : ndarray of shape (m, n_features_in_)
        Landmarks, or frequencies.
    projection_ : ndarray of shape (n_features, r)
        From kernel values at the landmarks, or cosines and sines, to orthogonal features of which the kernel is the
        inner product.
    mode_, posterior_mean_ : ndarray of shape (r, n_classes - 1)
        Parameters in contrasts of the classes: at the posterior's mode, and where the Gaussian is centred.
    posterior_ : FullPosterior or KroneckerPosterior
    normal_points_ : ndarray of shape (n_draws, n_classes - 1)

    Notes
    -----
    **Which posterior.** Laplace's of the Gaussian process with the approximate kernel. Kernel variance that the
    features miss, 1 - |phi(x)|^2, is kept as prior variance (the "FITC" correction), so that a row far from the
    landmarks is never taken for known.

    Distance is that in the embedding: an image of something else that embeds close to lesions is close. A length
    scale that is too large makes the head linear, one too small makes all rows far.

    References
    ----------
    Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006, algorithms 3.3 and 3.4. Liu et al.,
    *Simple and principled uncertainty estimation with deterministic deep learning via distance awareness*,
    arXiv:2006.10108. Rahimi and Recht, *Random features for large-scale kernel machines*, NIPS 2007. Yang et al.,
    *Nystrom method vs random Fourier features*, NIPS 2012.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import RandomFeatureGPHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = RandomFeatureGPHead().fit(E, y)
    >>> head.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> head.predict_proba([[99.0, 99.0, 99.0]]).round(2)
    array([[0.5, 0.5]])
    """

    _arrays = (
        *BayesianHead._arrays,
        "anchors_",
        "projection_",
        "mode_",
        "posterior_mean_",
        "normal_points_",
    )
    _scalars = (
        *BayesianHead._scalars,
        "length_scale_",
        "prior_precision_",
        "log_marginal_likelihood_",
        "n_iter_",
        "covariance_",
    )
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "n_features": [Interval(Integral, 2, None, closed="left")],
        "features": [StrOptions({"landmarks", "fourier"})],
        "length_scale": [StrOptions({"median"}), Interval(Real, 0, None, closed="neither")],
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "mean_correction": ["boolean"],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
    }

    anchors_: np.ndarray
    projection_: np.ndarray

    def __init__(
        self,
        n_features: int = 2048,
        *,
        features: str = "landmarks",
        length_scale: float | str = "median",
        prior_precision: float | str = "evidence",
        mean_correction: bool = True,
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        n_draws: int = 256,
        max_iter: int = 100,
        tol: float = 1e-3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_features = n_features
        self.features = features
        self.length_scale = length_scale
        self.prior_precision = prior_precision
        self.mean_correction = mean_correction
        self.standardize = standardize
        self.feature_map = feature_map
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
    ) -> "RandomFeatureGPHead":
        """Draw the features and fit the posterior.

        Parameters
        ----------
        E : array-like of shape (n, n_features_in_), float32 or float64
            Embeddings; computed in their precision.
        y : array-like of shape (n,)
            Labels: str, int or bool.
        sample_weight : array-like of shape (n,), optional
            A row of weight 2 counts as two rows, one of weight 0 as none.
        groups : array-like of shape (n,), optional
            Patient or lesion of each row: the rows of one share the weight of a row, the mean of theirs.

        Returns
        -------
        RandomFeatureGPHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        """
        X, codes, weights, _ = merge_rows(self._prepare(E, y, sample_weight, groups))
        rng = check_random_state(self.seed_)
        self.length_scale_ = _median_distance(X, rng) if self.length_scale == "median" else float(self.length_scale)
        features = self._draw_features(X, rng)
        axes, energy = _principal_axes(features, weights)
        self.projection_ = self.projection_ @ axes
        Z = features @ axes
        self._fit_posterior(SoftmaxProblem(Z, codes, weights, energy, len(self.classes_)))
        self.normal_points_ = normal_points(self.n_draws, len(self.classes_) - 1, self.seed_)
        return self

    def _draw_features(self, X: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        """Features of the training rows; sets `anchors_` and `projection_`."""
        n, d = X.shape
        if self.features == "fourier":
            self.anchors_ = (rng.standard_normal((self.n_features // 2, d)) / self.length_scale_).astype(X.dtype)
            self.projection_ = np.eye(2 * len(self.anchors_), dtype=X.dtype)
        else:
            self.anchors_ = X[rng.choice(n, min(self.n_features, n), replace=False)]
            kernel = _kernel(self.anchors_, self.anchors_, self.length_scale_)
            values, vectors = _eigenvectors(kernel)
            self.projection_ = (vectors / np.sqrt(values)).astype(X.dtype)
        return self._features(X)

    def _features(self, X: np.ndarray) -> np.ndarray:
        if self.features == "fourier":
            angles = X @ self.anchors_.T
            raw = np.hstack([np.cos(angles), np.sin(angles)]) / np.sqrt(len(self.anchors_)).astype(X.dtype)
        else:
            raw = _kernel(X, self.anchors_, self.length_scale_)
        return raw @ self.projection_

    def _fit_posterior(self, problem: SoftmaxProblem) -> None:
        p, J = problem.Z.shape[1], problem.n_classes - 1
        self.covariance_ = "full" if J * p <= _FULL_LIMIT else "kronecker"
        kind, _ = _POSTERIORS[self.covariance_]
        self.mode_, self.n_iter_ = np.zeros((p, J)), 0

        def negative_evidence(log_precision: float) -> float:
            """Also moves `mode_` and `posterior_` there; the next search starts from them."""
            prior = _prior(float(np.exp(log_precision)), J + 1)
            self.mode_, proba, log_posterior, n_iter = find_mode(
                problem, prior, self.mode_, max_iter=self.max_iter, tol=self.tol
            )
            self.n_iter_ += n_iter
            self.posterior_: GaussianPosterior = kind.at(problem, proba, prior)
            return -log_posterior - 0.5 * J * p * log_precision + 0.5 * self.posterior_.log_determinant

        if self.prior_precision == "evidence":
            found = minimize_scalar(negative_evidence, bounds=(-10, 5), method="bounded", options={"xatol": 0.05})
            self.prior_precision_ = float(np.exp(found.x))
        else:
            self.prior_precision_ = float(self.prior_precision)
        self.log_marginal_likelihood_ = -float(negative_evidence(np.log(self.prior_precision_)))
        self.posterior_mean_ = self._corrected_mean(problem) if self.mean_correction else self.mode_

    def _corrected_mean(self, problem: SoftmaxProblem) -> np.ndarray:
        """Mean that maximises the variational bound, the covariance being Laplace's."""
        points = normal_points(_CORRECTION_POINTS, problem.n_classes - 1, seed=0)
        points -= points.mean(axis=0)

        def logit_factor(rows: slice) -> np.ndarray:
            return self._logit_factor(problem.Z[rows])

        mean, _, _, n_iter = find_mode(
            problem,
            _prior(self.prior_precision_, problem.n_classes),
            self.mode_,
            max_iter=self.max_iter,
            tol=self.tol,
            log_likelihood=lambda logits: problem.expected_log_likelihood(logits, logit_factor, points),
        )
        self.n_iter_ += n_iter
        return mean

    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under draws of the latent functions.

        The kernel variance that the features miss is drawn once for all rows: each row's distribution is right, and a
        row's draws do not depend on the others.

        Parameters
        ----------
        E : array-like of shape (n, n_features_in_)
        n_draws : int, default=64
        random_state : int, RandomState instance or None, default=None
            None takes the head's own.

        Returns
        -------
        ndarray of shape (n_draws, n, n_classes), float64
        """
        blocks = padded_blocks(self._standardise(E))
        Z = np.concatenate([self._features(block)[:n_rows] for block, n_rows in blocks])
        rng = check_random_state(self.seed_ if random_state is None else random_state)
        missed = np.sqrt(self._missed(Z))[:, None]
        n_classes = len(self.classes_)
        proba = np.empty((n_draws, len(Z), n_classes))
        for draw in proba:
            logits = Z @ (self.posterior_mean_ + self.posterior_.draw(rng)) + missed * rng.standard_normal(
                n_classes - 1
            )
            draw[:] = np.exp(log_softmax(logits @ contrasts(n_classes).T, axis=1))
        return proba

    def _logit_factor(self, Z: np.ndarray) -> np.ndarray:
        """Factor of the covariance of each row's logits, with the variance that the features do not carry."""
        missed = self._missed(Z)[:, None, None] * np.eye(len(self.classes_) - 1)
        return self.posterior_.logit_factor(Z, missed)

    def _missed(self, Z: np.ndarray) -> np.ndarray:
        """Prior variance of the latent values that the features do not carry, (n,)."""
        return np.maximum(1 - np.sum(Z.astype(float) ** 2, axis=1), 0.0) / self.prior_precision_

    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        X = self._standardise(E)
        B = contrasts(len(self.classes_))
        for block, n_rows in padded_blocks(X):
            Z = self._features(block)
            factor = self._logit_factor(Z)
            mean = Z @ self.posterior_mean_ @ B.T
            draws = mean[:n_rows, None] + self.normal_points_ @ factor[:n_rows].transpose(0, 2, 1)
            yield log_softmax(draws, axis=2)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, document = super().get_state()
        _, names = _POSTERIORS[self.covariance_]
        return arrays | {name: np.ascontiguousarray(getattr(self.posterior_, name)) for name in names}, document

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> "RandomFeatureGPHead":
        head = super().from_state(arrays, document)
        kind, names = _POSTERIORS[head.covariance_]
        head.posterior_ = kind(*[arrays[name] for name in names])
        return head


def _kernel(A: np.ndarray, B: np.ndarray, length_scale: float) -> np.ndarray:
    """exp(-|a - b|^2 / (2 l^2)) of all pairs of rows, in their precision."""
    squares = np.sum(A**2, axis=1)[:, None] + np.sum(B**2, axis=1) - 2 * A @ B.T
    return np.exp(np.maximum(squares, 0) / (-2 * length_scale**2))


def _prior(precision: float, n_classes: int) -> Prior:
    """Of the features' weights; there is no intercept, and the last row is a feature's too."""
    return Prior(np.full(n_classes, precision), intercept_precision=precision)


def _median_distance(X: np.ndarray, rng: np.random.RandomState) -> float:
    """Median distance of two different training rows, of up to 1,000 rows; 1 where all are equal."""
    rows = X if len(X) <= _MEDIAN_ROWS else X[rng.choice(len(X), _MEDIAN_ROWS, replace=False)]
    distances = euclidean_distances(rows.astype(float))
    apart = distances[np.triu_indices(len(rows), 1)]
    apart = apart[apart > 1e-6 * apart.max(initial=0.0)]
    return float(np.median(apart)) if len(apart) else 1.0


def _eigenvectors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (r,) and eigenvectors (p, r) of a positive semidefinite matrix, without those lost in rounding."""
    smallest = max(10 * float(np.finfo(matrix.dtype).eps), 1e-10)
    values, vectors = eigh(matrix.astype(float))
    kept = values > smallest * values[-1]
    vectors = vectors[:, kept]
    return values[kept], np.ascontiguousarray((vectors * signs(vectors)).astype(matrix.dtype))
