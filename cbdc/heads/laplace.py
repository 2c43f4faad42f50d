"""`LaplaceHead`: Bayesian softmax regression with a Laplace posterior and an evidence-tuned prior."""

from collections.abc import Iterator
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from scipy.special import log_softmax
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..errors import ParameterError
from ._base import padded_blocks
from ._evidence import evidence_gradient, maximise
from ._gaussian import DiagonalPosterior, FullPosterior, GaussianPosterior, KroneckerPosterior, LowRankPosterior
from ._predictive import GaussianLogitsHead, normal_points
from ._softmax import Prior, SoftmaxProblem, contrasts, find_mode, signs

__all__ = ["LaplaceHead"]

_FULL_LIMIT = 1000  # parameters up to which covariance="auto" keeps the full matrix
_CORRECTION_POINTS = 64

_POSTERIORS: dict[str, type[GaussianPosterior]] = {
    "full": FullPosterior,
    "kronecker": KroneckerPosterior,
    "diagonal": DiagonalPosterior,
    "low_rank": LowRankPosterior,
}
_SEARCHED: dict[str, type[FullPosterior] | type[KroneckerPosterior]] = {
    "full": FullPosterior,
    "diagonal": DiagonalPosterior,
}


class LaplaceHead(GaussianLogitsHead):
    """Bayesian softmax regression over embeddings, with a Laplace posterior.

    Weights have the prior N(0, 1 / prior_precision), intercepts a weak one. The posterior is a Gaussian with the
    curvature of the log-posterior at its mode; predictions average over it. The prior precision maximises the marginal
    likelihood (evidence) of the training data, so nothing is held out for tuning.

    Parameters
    ----------
    prior_precision : {"evidence", "evidence_per_class"}, float or array-like of shape (n_classes,), default="evidence"
        Of the weights of features with unit variance: one for all classes, or one for each. Of two classes only the
        sum of the prior variances counts, so that one for each is one for all.
    covariance : {"auto", "full", "kronecker", "diagonal", "low_rank"}, default="auto"
        Of the posterior. ``"full"``: the inverse of the whole Hessian, here equal to the generalised Gauss-Newton
        matrix. ``"kronecker"``: of its diagonal along the eigenvectors of the Kronecker factorisation classes x
        features. ``"diagonal"``: of its diagonal along the features themselves. ``"low_rank"``: of the prior's
        precision and the part of the Hessian of the given rank that moves the posterior furthest from the prior; the
        prior precision then maximises the evidence of ``"kronecker"``, since a determinant of few directions favours
        weak priors. ``"auto"``: full up to 1,000 parameters, beyond that Kronecker.
    rank : int, default=100
        Of ``covariance="low_rank"``.
    predictive : {"monte_carlo", "probit", "bridge", "exact"}, default="monte_carlo"
        How the softmax is averaged over the Gaussian logits of a row. ``"monte_carlo"``: over quasi-random points.
        ``"probit"``: MacKay's formula for each pair of classes, joined. ``"bridge"``: the mean of the Dirichlet
        distribution that the Laplace bridge finds, its variances scaled down where they are too large for it.
        ``"exact"``: quadrature to 1e-10, for two classes, or for three where no log-odds has a standard deviation
        above 11.
    mean_correction : bool, default=True
        Centre the posterior on the mean that best fits in the variational sense instead of on the mode, which
        underfits: with wide posteriors the average over a Gaussian around the mode is underconfident.
    standardize : bool, default=False
        Divide each feature by its own standard deviation. By default all are divided by one, since in an embedding
        the spread of a feature tells its importance. True for features of different units.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total. It tilts the
        probabilities towards rare classes: they then are those of a population with that prevalence.
    n_draws : int, default=256
        Points of the quasi-Monte Carlo average over the logits, also behind the mutual information of ``"probit"``.
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
    prior_precision_ : float or ndarray of shape (n_classes,)
    log_marginal_likelihood_ : float
        Laplace approximation of log p(y | X, prior_precision_), nats, with the determinant of the covariance chosen
        (of ``"kronecker"`` for ``"low_rank"``).
    n_iter_ : int
        Newton steps, over the whole search.
    covariance_ : {"full", "kronecker", "diagonal", "low_rank"}
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the embeddings.
    components_ : ndarray of shape (n_features, r)
        Orthonormal principal axes of the standardised embeddings.
    mode_, posterior_mean_ : ndarray of shape (r + 1, n_classes - 1)
        Parameters along the axes, intercept last, in contrasts of the classes: at the posterior's mode, and where the
        Gaussian is centred.
    posterior_ : GaussianPosterior
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
    Niekerk, Rue, *Low-rank variational Bayes correction to the Laplace method*, arXiv:2111.12945. Spantini et al.,
    *Optimal low-rank approximations of Bayesian linear inverse problems*, arXiv:1407.3463. Lu, Ie, Sha, *Mean-field
    approximation to Gaussian-softmax integral*, arXiv:2006.07584. Hobbhahn, Kristiadi, Hennig, *Fast predictive
    uncertainty for classification with Bayesian deep networks*, arXiv:2003.01227.

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

    _arrays = (*GaussianLogitsHead._arrays, "components_", "mode_", "posterior_mean_")
    _scalars = (*GaussianLogitsHead._scalars, "log_marginal_likelihood_", "n_iter_", "covariance_")
    prior_precision_: float | np.ndarray
    posterior_: GaussianPosterior

    _parameter_constraints: dict = {  # noqa: RUF012
        **GaussianLogitsHead._parameter_constraints,
        "prior_precision": [
            StrOptions({"evidence", "evidence_per_class"}),
            Interval(Real, 0, None, closed="neither"),
            "array-like",
        ],
        "covariance": [StrOptions({"auto", *_POSTERIORS})],
        "rank": [Interval(Integral, 1, None, closed="left")],
        "mean_correction": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        prior_precision: float | str | ArrayLike = "evidence",
        *,
        covariance: str = "auto",
        rank: int = 100,
        predictive: str = "monte_carlo",
        mean_correction: bool = True,
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        n_draws: int = 256,
        max_iter: int = 100,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.prior_precision = prior_precision
        self.covariance = covariance
        self.rank = rank
        self.predictive = predictive
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
            Patient or lesion of each row: the rows of one share the weight of a row, the mean of theirs.

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
        self._place_points()
        self.components_, energy = _principal_axes(X, weights)
        Z = np.column_stack([X @ self.components_, np.ones(len(X), dtype=X.dtype)])
        problem = SoftmaxProblem(Z, codes, weights, np.append(energy, weights.sum()), len(self.classes_))
        small = self.covariance == "auto" and Z.shape[1] * (problem.n_classes - 1) <= _FULL_LIMIT
        self.covariance_ = "full" if small else "kronecker" if self.covariance == "auto" else self.covariance
        own = problem
        if not _POSTERIORS[self.covariance_].along_axes:
            rows = np.column_stack([X, np.ones(len(X), dtype=X.dtype)])
            own = SoftmaxProblem(rows, codes, weights, weights @ rows**2, problem.n_classes)
        self._fit_posterior(problem, own)
        return self

    def _fit_posterior(self, problem: SoftmaxProblem, own: SoftmaxProblem) -> None:
        """Mode, posterior and prior precision; `own` is the problem in the features that the posterior takes."""
        p, K = problem.Z.shape[1], problem.n_classes
        searched = _SEARCHED.get(self.covariance_, KroneckerPosterior)
        self.mode_, self.n_iter_ = np.zeros((p, K - 1)), 0

        def fit_at(prior: Prior) -> tuple[float, np.ndarray, FullPosterior | KroneckerPosterior]:
            """Evidence, training probabilities and posterior; moves `mode_` there from where the last search ended."""
            self.mode_, proba, log_posterior, n_iter = find_mode(
                problem, prior, self.mode_, max_iter=self.max_iter, tol=self.tol
            )
            self.n_iter_ += n_iter
            posterior = searched.at(own, proba, prior)
            occam = prior.log_determinant(own.Z.shape[1]) - posterior.log_determinant
            return log_posterior + occam / 2, proba, posterior

        def evidence(log_precisions: np.ndarray) -> tuple[float, np.ndarray]:
            prior = Prior(np.broadcast_to(np.exp(log_precisions), K))
            value, proba, posterior = fit_at(prior)
            gradient = evidence_gradient(problem, own, prior, self.mode_, proba, posterior)
            return value, gradient if len(log_precisions) > 1 else gradient.sum(keepdims=True)

        if isinstance(self.prior_precision, str):
            middle = np.log(problem.weights.sum() / K)  # about where data and prior weigh the same
            found, inverse = maximise(evidence, np.full(1, middle))
            self.prior_precision_ = float(np.exp(found[0]))
            if self.prior_precision == "evidence_per_class":
                found, _ = maximise(evidence, np.full(K, found[0]), K * inverse[0, 0] * np.eye(K))
                self.prior_precision_ = np.exp(found)
        else:
            self.prior_precision_ = self._given_precision(K)
        self.log_marginal_likelihood_, proba, self.posterior_ = fit_at(self._prior)
        if self.covariance_ == "low_rank":
            self.posterior_ = LowRankPosterior.at(problem, proba, self._prior, self.rank)
        self.posterior_mean_ = self._corrected_mean(problem, own) if self.mean_correction else self.mode_

    def _given_precision(self, n_classes: int) -> float | np.ndarray:
        if isinstance(self.prior_precision, Real):
            return float(self.prior_precision)
        given = np.array(self.prior_precision, dtype=float)
        if given.shape != (n_classes,) or not (np.isfinite(given).all() and (given > 0).all()):
            raise ParameterError(
                f"prior_precision: got {given}; it has to be a number above 0 or one for each of the {n_classes} "
                "classes, in the order of `classes_`."
            )
        return given

    @property
    def _prior(self) -> Prior:
        return Prior(np.broadcast_to(self.prior_precision_, len(self.classes_)).astype(float))

    def _corrected_mean(self, problem: SoftmaxProblem, own: SoftmaxProblem) -> np.ndarray:
        """Mean that maximises the variational bound, the covariance being Laplace's."""
        points = normal_points(_CORRECTION_POINTS, problem.n_classes - 1, seed=0)
        points -= points.mean(axis=0)

        def logit_factor(rows: slice) -> np.ndarray:
            return self.posterior_.logit_factor(own.Z[rows])

        mean, _, _, n_iter = find_mode(
            problem,
            self._prior,
            self.mode_,
            max_iter=self.max_iter,
            tol=self.tol,
            log_likelihood=lambda logits: problem.expected_log_likelihood(logits, logit_factor, points),
        )
        self.n_iter_ += n_iter
        return mean

    @property
    def coef_(self) -> np.ndarray:
        """Posterior mode of the weights, (n_classes, n_features), in the units of the embeddings, mapped where they are
        mapped; columns sum to 0."""
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
        J = len(self.classes_) - 1
        Z, own, unseen = self._rows(X)
        root = np.linalg.cholesky(self._prior.covariance)
        proba = np.empty((n_draws, len(X), J + 1))
        for draw in proba:
            logits = Z @ self.posterior_mean_ + own @ self.posterior_.draw(rng)
            logits += unseen @ rng.standard_normal((unseen.shape[1], J)) @ root.T
            draw[:] = np.exp(log_softmax(logits @ contrasts(J + 1).T, axis=1))
        return proba

    def _rows(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows along the axes, rows as the posterior takes them, and what of X lies outside these."""
        Z = np.column_stack([X @ self.components_, np.ones(len(X))])
        if not self.posterior_.along_axes:
            return Z, np.column_stack([X, np.ones(len(X))]), np.zeros((len(X), 0))
        V = self.components_
        return Z, Z, X - Z[:, :-1] @ V.T if V.shape[1] < V.shape[0] else np.zeros((len(X), 0))

    def _logit_gaussians(self, E: ArrayLike) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        X = self._standardise(E)
        B, prior_covariance = contrasts(len(self.classes_)), self._prior.covariance
        for block, n_rows in padded_blocks(X):
            Z, own, unseen = self._rows(block)
            # directions that training never showed keep their prior variance
            outside = np.multiply.outer(np.sum(unseen**2, axis=1), prior_covariance)
            yield Z @ self.posterior_mean_ @ B.T, self.posterior_.logit_factor(own, outside), n_rows

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, document = super().get_state()
        names = [field.name for field in fields(_POSTERIORS[self.covariance_])]
        arrays |= {name: np.ascontiguousarray(getattr(self.posterior_, name)) for name in names}
        document["prior_precision_"] = np.asarray(self.prior_precision_).tolist()
        if not isinstance(self.prior_precision, str | Real):
            document["parameters"]["prior_precision"] = np.asarray(self.prior_precision).tolist()
        return arrays, document

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> "LaplaceHead":
        head = super().from_state(arrays, document)
        found = document["prior_precision_"]
        head.prior_precision_ = np.array(found) if isinstance(found, list) else found
        kind = _POSTERIORS[head.covariance_]
        head.posterior_ = kind(**{field.name: arrays[field.name] for field in fields(kind)})
        return head


def _principal_axes(X: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal axes (n_features, r) of the weighted rows, and the weighted sum of squares along each, (r,).

    Equal data give equal axes, whatever the order of the rows, so that draws from one seed can be compared.
    """
    n, d = X.shape
    rows = X * np.sqrt(weights).astype(X.dtype)[:, None]
    if d <= n:
        energy, axes = eigh((rows.T @ rows).astype(float))
        energy = np.maximum(energy, 0.0)
    else:
        rows = rows.astype(float)
        energy, left = eigh(rows @ rows.T)
        kept = energy > 1e-10 * energy[-1]
        energy, axes = energy[kept], rows.T @ (left[:, kept] / np.sqrt(energy[kept]))
    return np.ascontiguousarray((axes * signs(axes)).astype(X.dtype)), energy
