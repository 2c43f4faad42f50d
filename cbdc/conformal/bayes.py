"""Conformal Bayes: full-conformal sets from draws of a posterior, without a calibration split."""

import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ..errors import ParameterError, PosteriorWarning
from ..metrics import check_probabilities, coverage_band, exact_level
from ._base import ProbabilityClassifier, seed_of
from .certificate import Certificate
from .pareto import effective_sample_size, pareto_k
from .scores import TIE
from .thresholds import CalibrationScores

__all__ = ["ConformalBayesClassifier"]

_CELLS = 2**22  # numbers that one temporary array may hold
_FALSE_ALARM = 0.001  # probability of the check's alarm about a sound posterior


class ConformalBayesClassifier(ProbabilityClassifier):
    """Full-conformal prediction sets from posterior draws: every case trains, and every case calibrates.

    For each label of a new case the posterior is brought up to date with the pair by importance weights, the likelihood
    of the label under each draw. The label's p-value is the rank of its predictive probability among those of the
    training cases, all under the updated posterior. No case is set aside, and nothing is fitted again.

    Parameters
    ----------
    estimator : classifier with ``predict_posterior(X, n_draws, random_state) -> (n_draws, n, n_classes)``
        For example `cbdc.LaplaceHead`. One draw has to be one classifier, the same in every call with the same
        `random_state`. It must not weigh cases or classes: the weights take each case to count once.
    condition_on : {None, "class"}, default=None
        For whom the guarantee holds: on average over all cases, or within every class.
    confidence_level : float, default=0.9
        Level of the sets; `predict_set` may be asked another.
    n_draws : int, default=500
        At least 25.
    fallback : {"split"} or None, default="split"
        Also fit the estimator to one half of the cases and calibrate it on the other. Split-conformal p-values then
        stand in for all labels where a check of the posterior fails, and otherwise beside those of labels whose weights
        degenerate; see the notes. None: one fit, no check.
    max_k : float, default=0.7
        Pareto k from which on weights count as degenerate. Like the level it may be set after fitting.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws and of the halves; None stands for 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
        Fitted to all cases.
    likelihoods_ : ndarray of shape (n_draws, n)
        Of the training cases, ordered by class. No case itself is kept.
    counts_ : ndarray of shape (n_classes,)
        Training cases of each class.
    held_out_coverage_ : float
        Share of one half's cases whose full-conformal set, from the other half alone, holds their class. NaN without
        the fallback.
    held_out_band_ : float
        Least share that the check accepts.
    fell_back_ : bool
        Whether that check failed, so that every p-value is split conformal's.
    n_features_in_ : int
    feature_names_in_ : ndarray
        If X had names.

    Notes
    -----
    **Guarantee.** Assumption: training cases and the new one are exchangeable, and the draws are of the exact posterior
    of a model in which cases are independent given the parameters, with a prior that was not chosen on the cases; the
    model may be wrong. Statement: as n_draws grows, P(y in set) >= confidence_level, over the draw of all cases; with
    ``condition_on="class"`` given the class. What breaks it: several images of one patient or lesion, on either side
    (take one of each: there is no version for units); draws that are too narrow, since training cases then look better
    fitted than a new one. Pareto k is blind to that, a point mass has perfect weights; it is what the held-out check is
    for. A prior precision fitted to the cases and a Laplace approximation are such departures: small while the cases
    outnumber the features, and measured in the guide.

    With the fallback, labels are only added where weights degenerate, so all this stands; where the check fails the
    sets are split conformal's, with its guarantee, whatever the draws. Choosing between the two by the training cases
    costs at most the chance that one more case, or other halves, would turn the choice. Statements and proofs:
    theory/conformal_bayes.md.

    References
    ----------
    Fong and Holmes, *Conformal Bayesian computation*, arXiv:2106.06137. Vehtari et al., *Pareto smoothed importance
    sampling*, arXiv:1507.02646.

    Examples
    --------
    >>> from cbdc import LaplaceHead
    >>> from cbdc.conformal import ConformalBayesClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 3, 300)
    >>> X = rng.standard_normal((300, 4)) + 2 * np.eye(3, 4)[y]
    >>> clf = ConformalBayesClassifier(LaplaceHead()).fit(X[:200], y[:200])
    >>> sets = clf.predict_set(X[200:])
    >>> sets.shape, bool(sets[np.arange(100), y[200:]].mean() > 0.8)
    ((100, 3), True)
    """

    _calibrated = ("counts_",)
    _parameter_constraints: dict = {  # noqa: RUF012
        "estimator": [HasMethods(["fit", "predict_proba", "predict_posterior"])],
        "condition_on": [StrOptions({"class"}), None],
        "confidence_level": [Interval(Real, 0, 1, closed="neither")],
        "n_draws": [Interval(Integral, 25, None, closed="left")],
        "fallback": [StrOptions({"split"}), None],
        "max_k": [Real],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        condition_on: str | None = None,
        confidence_level: float = 0.9,
        n_draws: int = 500,
        fallback: str | None = "split",
        max_k: float = 0.7,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.condition_on = condition_on
        self.confidence_level = confidence_level
        self.n_draws = n_draws
        self.fallback = fallback
        self.max_k = max_k
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> "ConformalBayesClassifier":
        """Train the estimator on all cases, and keep their likelihood under each draw.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            One image of each patient or lesion.
        y : array-like of shape (n,)

        Returns
        -------
        ConformalBayesClassifier
            Itself, ready for `predict_set`.

        Raises
        ------
        ValueError
            If the estimator weighs classes, or its draws change from call to call.

        Warns
        -----
        PosteriorWarning
            If the held-out check fails.
        """
        self._validate_params()
        exact_level(self.confidence_level)
        if getattr(self.estimator, "class_weight", None) is not None:
            raise ParameterError(
                f"estimator: class_weight={self.estimator.class_weight!r} makes a case count more or less than once in "
                "its posterior, which the weights do not know. Fix: class_weight=None, and condition_on='class'."
            )
        self.seed_ = seed_of(self.random_state)
        self.condition_on_, self.n_draws_ = self.condition_on, int(self.n_draws)
        self._adopt(clone(self.estimator).fit(X, y))
        (X,) = indexable(X)
        labels = self._labels(np.asarray(y), _n_rows(X))
        self._updated = _UpdatedPosterior(self.estimator_, X, labels, self.n_draws_, self.seed_, self.condition_on_)
        self.likelihoods_, self.counts_ = self._updated.likelihoods, self._updated.counts
        self._split: _SplitConformal | None = None
        self.fell_back_, self.held_out_coverage_, self.held_out_band_ = False, np.nan, np.nan
        if self.fallback is not None:
            self._fit_halves(X, labels)
        return self

    def predict_set(self, X: ArrayLike, confidence_level: float | None = None) -> np.ndarray:
        """Prediction sets, bool (n, n_classes); nested in the level.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        confidence_level : float, optional
            Default: that of the constructor.
        """
        level = self.confidence_level if confidence_level is None else confidence_level
        return self.p_values(X) > float(1 - exact_level(level))

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """Conformal p-value of every label, (n, n_classes): a label is in the set where it exceeds 1 - level."""
        self._check_conformalized()
        (X,) = indexable(X)
        if self.fell_back_:
            assert self._split is not None
            return self._split.p_values(X)
        found = np.empty((_n_rows(X), len(self.classes_)))
        degenerate = np.zeros(found.shape, dtype=bool)
        for rows, weights, labels in self._updated.candidates(X):
            found[rows] = self._updated.p_values(weights, labels).reshape(-1, found.shape[1])
            if self._split is not None:
                degenerate[rows] = (pareto_k(weights) > self.max_k).reshape(-1, found.shape[1])
        if (some := degenerate.any(axis=1)).any():
            assert self._split is not None
            other = self._split.p_values(_safe_indexing(X, np.flatnonzero(some)))
            found[some] = np.where(degenerate[some], np.maximum(found[some], other), found[some])
        return found

    def weight_diagnostics(self, X: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """How well each label's weights stand for the updated posterior.

        Parameters
        ----------
        X : array-like of shape (n, n_features)

        Returns
        -------
        pareto_k : ndarray of shape (n, n_classes)
            Degenerate above `max_k`.
        effective_sample_size : ndarray of shape (n, n_classes)
            At least n_draws times the label's predictive probability, since a likelihood is at most 1.
        """
        self._check_conformalized()
        (X,) = indexable(X)
        shape = (_n_rows(X), len(self.classes_))
        k, size = np.empty(shape), np.empty(shape)
        for rows, weights, _ in self._updated.candidates(X):
            k[rows] = pareto_k(weights).reshape(-1, shape[1])
            size[rows] = effective_sample_size(weights).reshape(-1, shape[1])
        return k, size

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the sets promise, and what it rests on."""
        self._check_conformalized()
        level = self.confidence_level if confidence_level is None else confidence_level
        exact_level(level)
        n = int(self.counts_.sum())
        among = " among the cases of each class" if self.condition_on_ == "class" else " on average over all cases"
        assumptions = [f"this case and the {n} training cases are exchangeable (one image of each patient)"]
        broken_by = ["another population than in training", "several images of one patient"]
        if self.fell_back_:
            assumptions.append("the check of the posterior would have failed with one case more, too")
        else:
            assumptions.append("the draws are of the exact posterior of the model, right or wrong, and many")
            broken_by.append("draws that are narrower than the posterior")
        return Certificate(
            f"the set holds the true class with probability at least {level:g}{among}",
            tuple(assumptions),
            tuple(broken_by),
            float(level),
            n,
        )

    def _fit_halves(self, X: ArrayLike, labels: np.ndarray) -> None:
        """Split conformal from halves of the cases, and the check of the posterior."""
        order = np.random.RandomState(self.seed_).permutation(len(labels))
        middle = (len(order) + 1) // 2
        train, rest = np.sort(order[:middle]), np.sort(order[middle:])
        X_train, X_rest = _safe_indexing(X, train), _safe_indexing(X, rest)
        known = np.unique(labels[train])
        half = clone(self.estimator).fit(X_train, self.classes_[labels[train]]) if len(known) > 1 else None
        self._split = _SplitConformal(half, known, X_rest, labels[rest], self.classes_, self.condition_on_)
        tried = np.flatnonzero(np.isin(labels[rest], known))
        if half is not None and len(tried):
            own = np.searchsorted(known, labels[train])
            posterior = _UpdatedPosterior(half, X_train, own, self.n_draws_, self.seed_, self.condition_on_)
            self._check(posterior, _safe_indexing(X_rest, tried), np.searchsorted(known, labels[rest][tried]))

    def _check(self, posterior: "_UpdatedPosterior", X: ArrayLike, labels: np.ndarray) -> None:
        """Compare the coverage of cases that a posterior has not seen with the least to be expected of a sound one."""
        pairs = posterior.candidates(X, labels)
        p_values = np.concatenate([posterior.p_values(weights, own) for _, weights, own in pairs])
        level, counts = self.confidence_level, np.bincount(labels, minlength=len(posterior.counts))
        n_train, n_tried = (posterior.counts, counts) if posterior.by_class else (posterior.counts.sum(), counts.sum())
        self.held_out_coverage_ = float(np.mean(p_values > float(1 - exact_level(level))))
        self.held_out_band_, _ = coverage_band(n_train, n_tried, level, probability=1 - 2 * _FALSE_ALARM)
        self.fell_back_ = self.held_out_coverage_ < self.held_out_band_
        if self.fell_back_:
            warnings.warn(
                f"full-conformal sets from one half of the cases hold the class of {self.held_out_coverage_:.3f} of "
                f"the other half; at level {level:g} it should be {self.held_out_band_:.3f} at least. So the draws of "
                f"{type(self.estimator).__name__} are not those of its posterior, most likely too narrow. Split "
                "conformal is used in place. Fix: more exact draws, fewer features, or ConformalClassifier.",
                PosteriorWarning,
                stacklevel=4,
            )


class _UpdatedPosterior:
    """Draws of a posterior given n cases, brought up to date with one more.

    Parameters
    ----------
    estimator : classifier with `predict_posterior`, fitted to the cases
    X, labels
        The cases, and their columns.
    """

    def __init__(
        self, estimator: Any, X: ArrayLike, labels: np.ndarray, n_draws: int, seed: int, condition_on: str | None
    ) -> None:
        self.estimator, self.n_draws, self.seed, self.by_class = estimator, n_draws, seed, condition_on == "class"
        self.counts = np.bincount(labels, minlength=len(estimator.classes_))
        own = np.concatenate([weights for _, weights, _ in self.candidates(X, labels)])
        again = next(self.candidates(_safe_indexing(X, [len(labels) - 1]), labels[-1:]))[1]
        if not np.allclose(again[0], own[-1], rtol=0, atol=1e-4):
            raise ParameterError(
                f"estimator: the draws of {type(estimator).__name__} change with the rows they are asked for, so that "
                "those of training and new cases do not belong together. Fix: an estimator whose draws are "
                "classifiers, the same in every call with the same random_state."
            )
        self.likelihoods = np.ascontiguousarray(own[np.argsort(labels, kind="stable")].T)

    def candidates(
        self, X: ArrayLike, labels: np.ndarray | None = None
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Blocks of rows; the likelihood of pairs of a row and a label under each draw, (n_pairs, n_draws); the labels.

        The pairs are each row with every class, or with its own label where these are given.
        """
        n, n_classes = _n_rows(X), len(self.counts)
        step = max(1, _CELLS // (n_classes * max(self.n_draws, int(self.counts.sum()))))
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            draws = self._draws(_safe_indexing(X, np.arange(rows.start, rows.stop)))
            if labels is None:
                pairs = draws.transpose(1, 2, 0).reshape(-1, self.n_draws)
                yield rows, pairs, np.tile(np.arange(n_classes), draws.shape[1])
            else:
                yield rows, draws[:, np.arange(draws.shape[1]), labels[rows]].T, labels[rows]

    def p_values(self, weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Rank of each pair's predictive probability among those of the training cases, (n_pairs,).

        The weights are likelihoods as they are: dividing them by their sum would change no rank.
        """
        top = weights.max(axis=1, keepdims=True)
        scaled = np.where(top > 0, weights / np.where(top > 0, top, 1), 1)
        limits = np.sum(scaled * weights, axis=1) / (1 - TIE)
        if not self.by_class:
            return _ranked(scaled, limits, self.likelihoods)
        found, ends = np.empty(len(labels)), np.cumsum(self.counts)
        for k in np.unique(labels):
            pairs = labels == k
            peers = self.likelihoods[:, ends[k] - self.counts[k] : ends[k]]
            found[pairs] = _ranked(scaled[pairs], limits[pairs], peers)
        return found

    def _draws(self, X: ArrayLike) -> np.ndarray:
        draws = np.asarray(self.estimator.predict_posterior(X, self.n_draws, random_state=self.seed), dtype=float)
        shape = (self.n_draws, _n_rows(X), len(self.counts))
        if draws.shape != shape:
            raise ParameterError(f"predict_posterior: got shape {draws.shape}; expected {shape}, draws first.")
        check_probabilities(draws.reshape(-1, shape[2]), "predict_posterior")
        return draws


class _SplitConformal:
    """Split-conformal p-values of a classifier that may not know every class; without a classifier they are 1."""

    def __init__(
        self,
        estimator: Any,
        known: np.ndarray,
        X: ArrayLike,
        labels: np.ndarray,
        classes: np.ndarray,
        condition_on: str | None,
    ) -> None:
        self.estimator, self.known, self.n_classes = estimator, known, len(classes)
        by_class = condition_on == "class"
        if estimator is not None and len(labels):
            own = self._proba(X)[np.arange(len(labels)), labels] * (1 - TIE)
            conditions = labels if by_class else np.zeros(len(labels), dtype=int)
            shape = (1, self.n_classes if by_class else 1)
            self.calibration = CalibrationScores.from_cases(own, conditions, shape)
        else:
            self.estimator = None

    def p_values(self, X: ArrayLike) -> np.ndarray:
        n = _n_rows(X)
        if self.estimator is None:
            return np.ones((n, self.n_classes))
        return self.calibration.p_values(self._proba(X), np.zeros(n, dtype=int))

    def _proba(self, X: ArrayLike) -> np.ndarray:
        proba = np.zeros((_n_rows(X), self.n_classes))
        proba[:, self.known] = check_probabilities(self.estimator.predict_proba(X), "predict_proba")
        return proba


def _ranked(weights: np.ndarray, limits: np.ndarray, likelihoods: np.ndarray) -> np.ndarray:
    """P-values of pairs (m,) whose weighted likelihood is the limit, among cases (n_draws, n)."""
    no_better = np.count_nonzero(weights @ likelihoods <= limits[:, None], axis=1)
    return (1 + no_better) / (1 + likelihoods.shape[1])


def _n_rows(X: Any) -> int:
    return X.shape[0] if hasattr(X, "shape") else len(X)
