"""What every Bayesian head shares: training data checked and standardised, and from draws of the posterior to a
predictive distribution, its uncertainty, and a state without pickle."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted, validate_data

from ..errors import ParameterError
from ._softmax import row_chunks

__all__ = ["BayesianHead", "Training", "case_weights", "entropy_of", "hellinger", "padded_blocks"]

_BLOCK = 32  # rows a block in prediction; fixed, so that the result of a row does not depend on its neighbours
_FARTHEST = 1e15  # standardised features beyond this overflow when squared in float32


class Training(NamedTuple):
    """Checked training data; rows of weight zero are left out.

    Attributes
    ----------
    X : ndarray of shape (n, n_features), float32 or float64
        Standardised.
    codes : ndarray of shape (n,), int
        Column of each label.
    weights : ndarray of shape (n,), float64
        Above zero.
    groups : ndarray of shape (n,), int
        Number of each row's patient or lesion; of the row itself where no groups were given.
    """

    X: np.ndarray
    codes: np.ndarray
    weights: np.ndarray
    groups: np.ndarray


class BayesianHead(ClassifierMixin, BaseEstimator):
    """Classifier over embeddings whose predictions average a posterior.

    A head fits in its own way and implements `_log_draws` and `predict_posterior`; the rest is derived here. What it
    predicts with is named in `_arrays` and `_scalars`, which also are its state in a model file.

    Parameters
    ----------
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total. It tilts the
        probabilities towards rare classes: they then are those of a population with that prevalence.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one.
    feature_map : {"hellinger"} or None, default=None
        `hellinger` of the embeddings, before they are standardised.
    random_state : int, RandomState instance or None, default=None
        None means 0.
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "feature_map": [StrOptions({"hellinger"}), None],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "standardize": ["boolean"],
        "random_state": ["random_state"],
    }
    _arrays: tuple[str, ...] = ("mean_", "scale_")
    _scalars: tuple[str, ...] = ("n_features_in_", "dtype_", "seed_")

    class_weight: str | dict | None
    feature_map: str | None = None  # of heads that have no such parameter
    standardize: bool
    random_state: int | np.random.RandomState | None
    classes_: np.ndarray
    n_features_in_: int
    mean_: np.ndarray
    scale_: np.ndarray
    dtype_: str
    seed_: int

    def _prepare(
        self, E: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, groups: ArrayLike | None
    ) -> Training:
        """Before fitting: checked parameters and data, the classes, the scale of the features, the seed."""
        self._validate_params()
        rows, labels = validate_data(self, E, y, dtype=[np.float32, np.float64])
        rows = self._mapped(rows)
        check_classification_targets(labels)
        weights, units = case_weights(rows, sample_weight, groups)
        if not weights.all():
            kept = weights > 0
            rows, labels, weights, units = rows[kept], labels[kept], weights[kept], units[kept]
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y: there have to be at least two classes, got one class or none: {self.classes_.tolist()}. Fix: "
                "give cases of all classes, with weights above 0."
            )
        weights = weights * self._class_factors(codes, weights)[codes]
        self.mean_, self.scale_ = self._scale(rows, weights)
        self.dtype_ = rows.dtype.str
        self.seed_ = 0 if self.random_state is None else int(check_random_state(self.random_state).randint(2**31 - 1))
        return Training(((rows - self.mean_) / self.scale_).astype(rows.dtype), codes, weights, units)

    def _mapped(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.feature_map is None else hellinger(rows)

    def _scale(self, rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is taken from each feature, and by what it then is divided."""
        return _moments(rows, weights, each=self.standardize)

    def _class_factors(self, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Factor of the weights of each class's rows, (n_classes,)."""
        if self.class_weight is None:
            return np.ones(len(self.classes_))
        if isinstance(self.class_weight, str):
            return weights.sum() / len(self.classes_) / np.bincount(codes, weights)
        unknown = set(self.class_weight) - set(self.classes_.tolist())
        if unknown:
            raise ParameterError(
                f"class_weight: {sorted(map(str, unknown))} are no classes of y; there are {self.classes_.tolist()}."
            )
        factors = np.array([self.class_weight.get(name, 1.0) for name in self.classes_.tolist()], dtype=float)
        if not (np.isfinite(factors).all() and (factors > 0).all()):
            raise ParameterError(f"class_weight: got {self.class_weight}; every weight has to be finite and above 0.")
        return factors

    def _standardise(self, E: ArrayLike) -> np.ndarray:
        """Rows to predict, checked, on the scale and in the precision of the training data."""
        check_is_fitted(self)
        X = (self._mapped(validate_data(self, E, dtype=self.dtype_, reset=False)) - self.mean_) / self.scale_
        far = np.flatnonzero(np.abs(X).max(axis=1, initial=0.0) > _FARTHEST)
        if len(far):
            raise ValueError(
                f"E: row {far[0]} lies more than {_FARTHEST:.0e} standard deviations from the training data, too far "
                "to compute with. Fix: check that it was embedded as the training data were."
            )
        return X.astype(self.dtype_)

    @abstractmethod
    def _log_draws(self, E: ArrayLike) -> Iterator[np.ndarray]:
        """Log-probabilities under the posterior, in blocks of rows: (n_block, n_draws, n_classes), float64."""

    @abstractmethod
    def predict_posterior(
        self, E: ArrayLike, n_draws: int = 64, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Class probabilities under draws of the whole model, (n_draws, n, n_classes)."""

    def predict_log_proba(self, E: ArrayLike) -> np.ndarray:
        """Log of the posterior predictive, exact where the probability itself underflows.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, n_classes), float64
        """
        log_proba = np.concatenate([_log_mean_exp(block) for block in self._log_draws(E)])
        return log_proba - logsumexp(log_proba, axis=1, keepdims=True)

    def predict_with_information(self, E: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """`predict_log_proba` and `mutual_information`, to the bit, in the time of one of them.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        log_proba : ndarray of shape (n, n_classes), float64
        information : ndarray of shape (n,), nats
        """
        return self._from_draws(E)

    def _from_draws(self, E: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        means, information = [], []
        for block in self._log_draws(E):
            means.append(_log_mean_exp(block))
            information.append(entropy_of(means[-1]) - entropy_of(block).mean(axis=1))
        log_proba = np.concatenate(means)
        log_proba = log_proba - logsumexp(log_proba, axis=1, keepdims=True)
        return log_proba, np.maximum(np.concatenate(information), 0.0)

    def predict_proba(self, E: ArrayLike) -> np.ndarray:
        """Posterior predictive p(y | x, data).

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, n_classes), float64
            Columns in the order of `classes_`; rows sum to 1.
        """
        return np.exp(self.predict_log_proba(E))

    def predict(self, E: ArrayLike) -> np.ndarray:
        """Most probable class of each row.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n,)
        """
        best = np.argmax(self.predict_log_proba(E), axis=1)
        return self.classes_[best]

    def predictive_entropy(self, E: ArrayLike) -> np.ndarray:
        """Entropy of the posterior predictive: the whole uncertainty of a prediction.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n,), nats, from 0 to log(n_classes)
        """
        return entropy_of(self.predict_log_proba(E))

    def mutual_information(self, E: ArrayLike) -> np.ndarray:
        """Mutual information of the label and the model: the part of the entropy that more data could remove.

        Parameters
        ----------
        E : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n,), nats, from 0 to `predictive_entropy`

        References
        ----------
        Houlsby et al., *Bayesian active learning for classification and preference learning*, arXiv:1112.5745.
        """
        return self._from_draws(E)[1]

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The fitted head as arrays and a JSON-able dict, for a model file.

        Returns
        -------
        arrays : dict of str to ndarray
            Those that it predicts with.
        document : dict
            ``parameters``, ``classes``, ``classes_dtype``, and the scalars that the head lists as attributes.
        """
        check_is_fitted(self)
        parameters = self.get_params()
        if isinstance(parameters["random_state"], np.random.RandomState):
            parameters["random_state"] = None
        if isinstance(parameters.get("class_weight"), dict):  # keys of JSON are text
            parameters["class_weight"] = {str(key): value for key, value in parameters["class_weight"].items()}
        document = {name: getattr(self, name) for name in self._scalars} | {
            "parameters": parameters,
            "classes": self.classes_.tolist(),
            "classes_dtype": self.classes_.dtype.str,
        }
        return {name: np.ascontiguousarray(getattr(self, name)) for name in self._arrays}, document

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> Self:
        """The head that `get_state` wrote down; it predicts the same bits.

        Parameters
        ----------
        arrays : dict of str to ndarray
        document : dict

        Raises
        ------
        KeyError
            If a part is missing.
        """
        classes = np.array(document["classes"], dtype=document["classes_dtype"])
        parameters = dict(document["parameters"])
        if isinstance(given := parameters.get("class_weight"), dict):
            parameters["class_weight"] = {name: given[str(name)] for name in classes.tolist() if str(name) in given}
        head = cls(**parameters)
        head.classes_ = classes
        for name in cls._arrays:
            setattr(head, name, arrays[name])
        for name in cls._scalars:
            setattr(head, name, document[name])
        return head


def hellinger(E: ArrayLike) -> np.ndarray:
    """Signed square root of each row divided by the sum of its absolute values: rows of length 1.

    The Euclidean distance of two mapped rows, none negative, is the square root of 2 times Hellinger's. A channel that
    fires strongly counts for less, and the overall strength of a row for nothing. The average activations that a
    convolutional network ends with are easier to tell apart so; features of which the size matters are not.

    Parameters
    ----------
    E : array-like of shape (n, n_features)
        A row of zeros stays one.

    Returns
    -------
    ndarray of shape (n, n_features), float32 or float64 as `E`

    Raises
    ------
    ValueError
        If E is not two-dimensional, or holds NaN or infinity.

    References
    ----------
    Perronnin, Sanchez and Mensink, *Improving the Fisher kernel for large-scale image classification*, ECCV 2010,
    doi:10.1007/978-3-642-15561-1_11. Arandjelovic and Zisserman, *Three things everyone should know to improve object
    retrieval*, CVPR 2012, doi:10.1109/CVPR.2012.6248018.

    Examples
    --------
    >>> hellinger([[9.0, 16.0], [0.0, -4.0]])
    array([[ 0.6,  0.8],
           [ 0. , -1. ]])
    """
    E = check_array(E, dtype=[np.float64, np.float32], ensure_min_samples=0, input_name="E")
    peak = np.abs(E).max(axis=1, keepdims=True, initial=0)
    shares = E / np.where(peak > 0, peak, 1)  # their sum cannot overflow
    total = np.abs(shares).sum(axis=1, keepdims=True)
    return np.sign(E) * np.sqrt(np.abs(shares) / np.where(total > 0, total, 1))


def case_weights(
    rows: np.ndarray, sample_weight: ArrayLike | None, groups: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of each row, the rows of one group sharing that of a row, and the number of each row's group."""
    weights = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
    if groups is None:
        return weights, np.arange(len(rows))
    check_consistent_length(rows, groups)
    if n_missing := int(pd.isna(np.asarray(groups, dtype=object)).sum()):
        raise ValueError(
            f"groups: {n_missing} of {len(rows)} rows have none. Fix: leave these rows out, or number them one by one."
        )
    units = np.unique(np.asarray(groups), return_inverse=True)[1]
    return weights / np.maximum(np.bincount(units, weights > 0), 1)[units], units


def padded_blocks(X: np.ndarray, size: int = _BLOCK) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of a fixed number of rows, the last filled up with zeros, and how many rows of each are real."""
    for start in range(0, len(X), size):
        block = X[start : start + size]
        n_rows = len(block)
        if n_rows < size:
            block = np.concatenate([block, np.zeros((size - n_rows, X.shape[1]), dtype=X.dtype)])
        yield block, n_rows


def _log_mean_exp(log_proba: np.ndarray) -> np.ndarray:
    return logsumexp(log_proba, axis=1) - np.log(log_proba.shape[1])


def entropy_of(log_proba: np.ndarray) -> np.ndarray:
    """Along the last axis, nats; a probability of 0 counts nothing."""
    return -np.sum(np.exp(log_proba) * np.maximum(log_proba, np.finfo(log_proba.dtype).min), axis=-1)


def _moments(E: np.ndarray, weights: np.ndarray, *, each: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of the features, float64; the latter of each, or pooled over all.

    Features that are constant up to rounding get the scale 1.
    """
    chunks = list(row_chunks(*E.shape))
    mean = sum(weights[rows] @ E[rows].astype(float) for rows in chunks) / weights.sum()
    variance = sum(weights[rows] @ (E[rows] - mean) ** 2 for rows in chunks) / weights.sum()
    constant = np.sqrt(variance) <= 10 * np.finfo(E.dtype).eps * np.abs(mean)
    if each:
        return mean, np.where(constant, 1.0, np.sqrt(variance))
    pooled = 1.0 if constant.all() else np.sqrt(variance[~constant].mean())
    return mean, np.full(len(mean), pooled)
