"""Venn-Abers: isotonic regression with the new case as 0, and as 1."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ParameterError
from ._calibrated import CalibratedClassifier

__all__ = ["VennAbersCalibrator", "venn_abers"]


class VennAbersCalibrator(CalibratedClassifier):
    """Venn-Abers probabilities: for each class a pair, of which one is calibrated whatever the classifier.

    Each class is told from the rest by its log-probability. Isotonic regression on the calibration cases and the new
    one, once as a case of the rest and once as one of the class, gives the pair.

    Parameters
    ----------
    estimator, cv, prefit, random_state
        As for `TemperatureScaling`.

    Attributes
    ----------
    tables_ : list of (n_classes) tuples of ndarray
        For each class its distinct scores, and the pair of probabilities between them.
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
    n_features_in_ : int

    Notes
    -----
    **Guarantee.** Assumption: the cases that `calibrate` was given and the new one are exchangeable. Statement: of the
    pair (p0, p1) of a class the one that belongs to the new case's label Y (1 if it is of the class) is perfectly
    calibrated, P(Y = 1 | p_Y) = p_Y. Width p1 - p0 is what is not known. What breaks it: what breaks any conformal
    guarantee; cross-validated predictions, as of `fit`, for which it holds only nearly; and `predict_proba`, which
    makes one number of each pair, p1 / (1 - p0 + p1), and divides by their sum if there are more than two classes.

    There are no mapped draws of a posterior: the map is a step function fitted to the average. Equal probabilities are
    frequent, hence ties of conformity scores; a conformal wrapper is better put on the classifier itself.

    References
    ----------
    Vovk and Petej, *Venn-Abers predictors*, arXiv:1211.0025. Vovk, Petej and Fedorova, *Large-scale probabilistic
    predictors with and without guarantees of validity*, arXiv:1511.00213. Manokhin, *Multi-class probabilistic
    classification using inductive and cross Venn-Abers predictors*, PMLR 60, 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from cbdc.heads import VennAbersCalibrator
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 400)
    >>> X = y[:, None] + rng.standard_normal((400, 1))
    >>> clf = VennAbersCalibrator(LogisticRegression(), cv=None).fit(X[:200], y[:200]).calibrate(X[200:], y[200:])
    >>> clf.predict_interval([[0.5]])[0, 1].round(2)  # of class 1
    array([0.6 , 0.65])
    """

    _fitted_map = ("tables_",)

    def __init__(
        self,
        estimator: Any,
        *,
        cv: int | None = 5,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.cv = cv
        self.prefit = prefit
        self.random_state = random_state

    def calibrate(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the tables to cases that neither `fit` nor a conformal calibration sees.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        sample_weight : None
            Not supported: the guarantee is for exchangeable cases, which weigh the same.

        Returns
        -------
        Self
        """
        if sample_weight is not None:
            raise ParameterError("sample_weight: Venn-Abers needs cases that weigh the same. Fix: leave it out.")
        return super().calibrate(X, y)

    def predict_interval(self, X: ArrayLike) -> np.ndarray:
        """The pairs (p0, p1), (n, n_classes, 2): ascending, from 0 to 1."""
        self._check_calibrated()
        return self._pairs(self._log_proba(self.estimator_, X))

    def _fit_map(self, log_proba: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> None:
        self.tables_ = [venn_abers(log_proba[:, k], codes == k) for k in range(log_proba.shape[1])]

    def _pairs(self, log_proba: np.ndarray) -> np.ndarray:
        pairs = np.empty((*log_proba.shape, 2))
        for k, (distinct, as_zero, as_one) in enumerate(self.tables_):
            pairs[..., k, 0] = as_zero[np.searchsorted(distinct, log_proba[..., k], side="right")]
            pairs[..., k, 1] = as_one[np.searchsorted(distinct, log_proba[..., k], side="left")]
        return pairs

    def _mapped(self, log_proba: np.ndarray) -> np.ndarray:
        pairs = self._pairs(log_proba)
        proba = pairs[..., 1] / (1 - pairs[..., 0] + pairs[..., 1])
        return np.log(proba / proba.sum(axis=-1, keepdims=True))


def venn_abers(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tables from which the pair of probabilities of any new score is read.

    Parameters
    ----------
    scores : ndarray of shape (n,)
    labels : ndarray of shape (n,), bool

    Returns
    -------
    distinct : ndarray of shape (m,)
        Distinct scores, ascending.
    as_zero, as_one : ndarray of shape (m + 1,)
        ``as_zero[i]`` is the isotonic fit at a new case labelled 0 that i of the distinct scores are not above,
        ``as_one[i]`` at one labelled 1 that i of them are below.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    counts = np.bincount(place)
    ones = np.bincount(place, weights=labels)
    as_one = np.append(_as_one(counts, ones), 1.0)
    as_zero = np.append(0.0, 1 - _as_one(counts[::-1], (counts - ones)[::-1])[::-1])
    return distinct, as_zero, as_one


def _as_one(counts: np.ndarray, ones: np.ndarray) -> np.ndarray:
    """Isotonic fit at a case labelled 1 placed just before each score.

    It is the slope, there, of the greatest convex minorant of the cumulated ones over the cumulated counts. From one
    place to the next the case's own step moves behind the score's, which moves one point of the curve; a stack holds
    the corners ahead. (Vovk, Petej and Fedorova, arXiv:1511.00213, algorithms 1 and 2.)
    """
    x, y = np.cumsum(counts).tolist(), np.cumsum(ones).tolist()
    ahead: list[tuple[float, float]] = []
    for point in [(-1.0, -1.0), (0.0, 0.0), *zip(x, y)]:
        while len(ahead) > 1 and not _turns_left(ahead[-2], ahead[-1], point):
            ahead.pop()
        ahead.append(point)
    ahead.reverse()
    found = np.empty(len(x))
    for i in range(len(x)):
        (x0, y0), (x1, y1) = ahead[-1], ahead[-2]
        found[i] = (y1 - y0) / (x1 - x0)
        moved = (x[i] - 1, y[i] - 1)
        if (moved[1] - y0) * (x1 - x0) >= (y1 - y0) * (moved[0] - x0):
            continue
        ahead.pop()
        while len(ahead) > 1 and not _turns_left(moved, ahead[-1], ahead[-2]):
            ahead.pop()
        ahead.append(moved)
    return found


def _turns_left(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - b[1]) > (b[1] - a[1]) * (c[0] - b[0])
