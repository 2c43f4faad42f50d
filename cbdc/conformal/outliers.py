"""Images of another kind: conformal p-values for outliers, and false-discovery control over a batch."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import ParameterError
from ._state import array_of, check_ascending, check_kinds, check_that
from .certificate import Certificate
from .pac import pac_p_values
from .patients import draw_one, unit_codes

__all__ = ["ConformalOutlierDetector", "benjamini_hochberg"]


def benjamini_hochberg(p_values: ArrayLike, fdr: float = 0.1) -> np.ndarray:
    """Which of the p-values are discoveries, the expected share of false ones among them being at most `fdr`.

    Parameters
    ----------
    p_values : array-like of shape (m,)
    fdr : float, default=0.1

    Returns
    -------
    ndarray of shape (m,), bool

    Notes
    -----
    **Guarantee.** Assumption: the p-values are independent, or positively dependent as conformal ones of one
    calibration set are (PRDS). Statement: the false discovery rate is at most `fdr` times the share of inliers.

    References
    ----------
    Benjamini and Hochberg, 1995, doi:10.1111/j.2517-6161.1995.tb02031.x. Bates, Candes, Lei, Romano and Sesia,
    arXiv:2104.08279, theorem 2.

    Examples
    --------
    >>> benjamini_hochberg([0.001, 0.03, 0.04, 0.5], fdr=0.1)
    array([ True,  True,  True, False])
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ParameterError("p_values: expected a list of numbers between 0 and 1.")
    if not 0 < fdr < 1:
        raise ParameterError(f"fdr: got {fdr!r}; expected a number strictly between 0 and 1, for example 0.1.")
    ordered = np.sort(p)
    passed = np.flatnonzero(ordered <= fdr * np.arange(1, len(p) + 1) / max(len(p), 1) * (1 + 1e-12))
    return p <= (ordered[passed[-1]] if len(passed) else -1.0)


class ConformalOutlierDetector(OutlierMixin, BaseEstimator):
    """Tells images that are not of the kind that the model was calibrated on, with a controlled rate of false alarms.

    `fit` learns what embeddings look like, `conformalize` calibrates on others, and `p_values` says how usual a new one
    is: small for an outlier.

    Parameters
    ----------
    scorer : {"knn", "mahalanobis"} or estimator with `fit` and `score_samples`, default="knn"
        Minus the mean distance to the nearest neighbours (which keeps the embeddings of `fit`), minus the Mahalanobis
        distance under a shrunk covariance, or the estimator's score, higher for what is more usual.
    n_neighbors : int, default=10
        Of "knn".
    alpha : float, default=0.05
        Rate of false alarms of `predict`, for one image at a time.
    delta : float or None, default=None
        With a number, p-values that hold given the calibration cases, each with probability 1 - delta over them; None
        for those that hold on average.
    random_state : int, RandomState instance or None, default=None
        Of the draw of one case a unit.

    Attributes
    ----------
    calibration_scores_ : ndarray of shape (n,)
        Ascending.
    n_features_in_ : int

    Notes
    -----
    **Guarantee.** Assumption: calibration cases and a new inlier are exchangeable, and `fit` has seen neither.
    Statement: P(p-value <= a) <= a for every a; so `predict` calls at most a share alpha of the inliers outliers, and
    `discoveries` holds on average at most a share `fdr` of inliers. Nothing is promised of finding outliers. What
    breaks it: calibrating on cases that `fit` saw; several cases of one patient (give `units`).

    References
    ----------
    Bates, Candes, Lei, Romano and Sesia, *Testing for outliers with conformal p-values*, arXiv:2104.08279.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> E = rng.standard_normal((600, 5))
    >>> detector = ConformalOutlierDetector().fit(E[:300]).conformalize(E[300:])
    >>> detector.predict(np.array([[0.0] * 5, [9.0] * 5]))
    array([ 1, -1])
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "scorer": [StrOptions({"knn", "mahalanobis"}), HasMethods(["fit", "score_samples"])],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "delta": [Interval(Real, 0, 1, closed="neither"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        scorer: Any = "knn",
        *,
        n_neighbors: int = 10,
        alpha: float = 0.05,
        delta: float | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.scorer = scorer
        self.n_neighbors = n_neighbors
        self.alpha = alpha
        self.delta = delta
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> "ConformalOutlierDetector":
        """Learn what is usual.

        Without `conformalize` the second half of the cases calibrates, and the first is learned from.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : ignored

        Returns
        -------
        ConformalOutlierDetector
            Itself.
        """
        self._validate_params()
        E = np.asarray(validate_data(self, X, dtype=np.float64, ensure_min_samples=2))
        order = check_random_state(self.random_state).permutation(len(E))
        first = np.sort(order[: (len(E) + 1) // 2])
        self._learn(E[first])
        self.calibration_scores_ = np.sort(self._score(np.delete(E, first, axis=0)))
        self._learn_whole: np.ndarray | None = E  # dropped as soon as other cases calibrate
        return self

    def conformalize(self, X: ArrayLike, units: ArrayLike | None = None) -> "ConformalOutlierDetector":
        """Calibrate on inliers that `fit` never saw, so that all of the fitted cases can be learned from.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        units : array-like of shape (n,), optional
            Patient or lesion of each case; one case of each is drawn.

        Returns
        -------
        ConformalOutlierDetector
            Itself.
        """
        check_is_fitted(self, "calibration_scores_")
        E = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        if self._learn_whole is not None:
            self._learn(self._learn_whole)
            self._learn_whole = None
        if units is not None:
            rng = np.random.RandomState(check_random_state(self.random_state).randint(2**31 - 1))
            E = E[draw_one(unit_codes(units, len(E)), rng)]
        self.calibration_scores_ = np.sort(self._score(E))
        return self

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """Share of the calibration cases, the new one too, that are no more usual: (n,), small for outliers.

        Raises
        ------
        ParameterError
            If the scorer gives NaN for a case.
        """
        check_is_fitted(self, "calibration_scores_")
        scores = self._score(validate_data(self, X, dtype=np.float64, reset=False))
        calibration = self.calibration_scores_
        slack = 1e-9 * np.where(np.isfinite(calibration), np.abs(calibration), 0)
        no_better = np.searchsorted(calibration - slack, scores, side="right")
        found = (1 + no_better) / (1 + len(calibration))
        return found if self.delta is None else pac_p_values(found, np.array(len(calibration)), self.delta)

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """The p-values, as scikit-learn's outlier detectors call what is higher for the usual."""
        return self.p_values(X)

    @property
    def offset_(self) -> float:
        """What `decision_function` takes off: just above alpha, since a p-value of alpha is an outlier's."""
        return float(np.nextafter(self.alpha, 1))

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """P-value minus alpha, (n,): negative for outliers."""
        return self.p_values(X) - self.offset_

    def predict(self, X: ArrayLike) -> np.ndarray:
        """1 for inliers, -1 for outliers at the rate of false alarms alpha, (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def discoveries(self, X: ArrayLike, fdr: float = 0.1) -> np.ndarray:
        """Outliers of a batch with false-discovery control, bool (n,); see `benjamini_hochberg`."""
        return benjamini_hochberg(self.p_values(X), fdr)

    def certificate(self) -> Certificate:
        """What the p-values promise."""
        check_is_fitted(self, "calibration_scores_")
        n = len(self.calibration_scores_)
        given = (
            "" if self.delta is None else f", with probability at least {1 - self.delta:g} over the calibration cases"
        )
        return Certificate(
            f"an image of the same kind has a p-value up to {self.alpha:g} with probability up to {self.alpha:g}{given}"
            f" (the least p-value is 1 / {n + 1})",
            (f"it and the {n} calibration cases are exchangeable, none of them learned from",),
            ("several calibration cases of one patient", "cases that were learned from"),
            1 - self.alpha,
            n,
            delta=self.delta,
        )

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and a JSON-able document from which `from_state` restores this object, but for a scorer of yours.

        Those of "knn" hold the embeddings of `fit`.
        """
        check_is_fitted(self, "calibration_scores_")
        arrays = {"calibration_scores": self.calibration_scores_}
        if self.scorer == "knn":
            arrays["reference"] = self._reference
        elif self.scorer == "mahalanobis":
            arrays |= {"location": self.scorer_[0], "scale": self.scorer_[1]}
        return arrays, {
            "estimator": type(self).__name__,
            "scorer": self.scorer if isinstance(self.scorer, str) else "",
            "n_neighbors": int(self.n_neighbors),
            "alpha": float(self.alpha),
            "delta": None if self.delta is None else float(self.delta),
            "n_features": int(self.n_features_in_),
        }

    @classmethod
    def from_state(
        cls, arrays: dict[str, np.ndarray], document: dict[str, Any], scorer: Any = None
    ) -> "ConformalOutlierDetector":
        """The calibrated object again: it gives the same bits.

        Parameters
        ----------
        arrays, document
            What `get_state` gave.
        scorer : fitted estimator with `score_samples`, optional
            The `scorer_` where it is one of yours, which is not saved.

        Raises
        ------
        ValueError
            If the state is not one that `get_state` gives, or `scorer` is missing.
        """
        check_kinds(document, cls.__name__, {"scorer": str, "n_neighbors": int, "alpha": float, "n_features": int})
        own = document["scorer"] == ""
        check_that(own == (scorer is not None), "scorer", "the fitted scorer where it is one of yours, else none")
        found = cls(
            scorer if own else document["scorer"],
            n_neighbors=document["n_neighbors"],
            alpha=document["alpha"],
            delta=document.get("delta"),
        )
        found._validate_params()
        found.n_features_in_, found._learn_whole = document["n_features"], None
        axes = {"d": document["n_features"]}
        found.calibration_scores_ = array_of("calibration_scores", ("f", "n"), arrays)
        check_ascending("calibration_scores", found.calibration_scores_)
        if own:
            found.scorer_ = scorer
        elif document["scorer"] == "knn":
            found._learn(array_of("reference", ("f", "m", "d"), arrays, axes))
        else:
            location = array_of("location", ("f", "d"), arrays, axes)
            found.scorer_ = location, array_of("scale", ("f", "d", "d"), arrays, axes)
        return found

    def _learn(self, X: np.ndarray) -> None:
        if self.scorer == "knn":
            self._reference = X
            self.scorer_: Any = NearestNeighbors(n_neighbors=min(self.n_neighbors, len(X))).fit(X)
        elif self.scorer == "mahalanobis":
            from sklearn.covariance import LedoitWolf

            covariance = LedoitWolf().fit(X)
            scale = linalg.cholesky(
                covariance.covariance_ + 1e-12 * max(np.trace(covariance.covariance_), 1e-300) * np.eye(X.shape[1]),
                lower=True,
            )
            self.scorer_ = covariance.location_, scale
        else:
            self.scorer_ = clone(self.scorer).fit(X)

    def _score(self, X: np.ndarray) -> np.ndarray:
        scores = self._usualness(X)
        if len(wrong := np.flatnonzero(np.isnan(scores))):
            raise ParameterError(
                f"scorer: score_samples gave NaN for case {wrong[0]}, which is no outlier's score nor an inlier's. "
                "Fix: give a scorer that scores every case, or leave the case out and say so."
            )
        return scores

    def _usualness(self, X: np.ndarray) -> np.ndarray:
        if self.scorer == "knn":
            return -self.scorer_.kneighbors(X)[0].mean(axis=1)
        if self.scorer == "mahalanobis":
            mean, scale = self.scorer_
            return -np.linalg.norm(linalg.solve_triangular(scale, (X - mean).T, lower=True), axis=0)
        return np.asarray(self.scorer_.score_samples(X), dtype=float)
