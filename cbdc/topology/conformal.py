"""The conformal topological certificate: what the instability of a new cloud stays below, with a chosen probability."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import ParameterError
from ..metrics import exact_level
from .certificates import stability_bounds
from .cloud import Cloud

__all__ = ["ConformalStabilityBound", "batch_rank", "cloud_scores", "patient_clouds"]

_SCORES = ("capped", "distortion", "twice_displacement")


class ConformalStabilityBound(BaseEstimator):
    """Bound that the instability of a new cloud (or of each of several new images) stays below, with a probability.

    Whatever the instability is measured by, the k-th smallest of B measured ones bounds a new one with probability at
    least k / (B + 1): a certificate for images that nobody has perturbed.

    Parameters
    ----------
    confidence_level : float, default=0.9
        Of `bound`, where none is given there.

    Attributes
    ----------
    scores_ : ndarray of shape (n_clouds, n_scores)
        Ascending in each column.
    n_features_in_ : int
        Number of scores.

    Notes
    -----
    **Guarantee.** Assumption: the B clouds (or images) of `fit` and the new ones are exchangeable, with their
    perturbations, and neither the embedding nor the score was chosen by them. Statement: with probability at least
    `confidence_level`, over all of them, the score of a new cloud is at most its `bound`; and all of n_new new scores
    are at most ``bound(n_new=n_new)``. In particular the largest of n_new is at most the largest of B with probability
    at least B / (B + n_new). It holds for each score by itself, not for several at once. What breaks it: clouds that
    share a patient (see `patient_clouds`), images of one patient among the B or new ones, another camera, clinic or
    perturbation. It is about stability, that the shape changes little, and not about invariance, that it does not.

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic learning in a random world*, 2005, doi:10.1007/b106715. Proofs:
    theory/topology.md, section 5.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> E = rng.standard_normal((1200, 8))
    >>> perturbed = E + 0.05 * rng.standard_normal(E.shape)
    >>> clouds = patient_clouds(np.arange(1200), patients_per_cloud=12, random_state=0)
    >>> scores = cloud_scores(E, perturbed, clouds, scores=("H0", "distortion"))
    >>> ConformalStabilityBound(confidence_level=0.9).fit(scores[:99]).bound().round(2)
    array([0.14, 0.22])
    """

    _parameter_constraints: dict = {"confidence_level": [Interval(Real, 0, 1, closed="neither")]}  # noqa: RUF012

    def __init__(self, confidence_level: float = 0.9) -> None:
        self.confidence_level = confidence_level

    def fit(self, X: ArrayLike, y: Any = None) -> "ConformalStabilityBound":
        """Keep the scores of the clouds.

        Parameters
        ----------
        X : array-like of shape (n_clouds, n_scores)
            As of `cloud_scores`; or of images instead of clouds, such as ``displacement(X, Y)[:, None]``.
        y : ignored

        Returns
        -------
        ConformalStabilityBound
            Itself.
        """
        self._validate_params()
        self.scores_ = np.sort(np.asarray(validate_data(self, X, dtype=np.float64)), axis=0)
        return self

    def bound(self, confidence_level: float | None = None, n_new: int = 1) -> np.ndarray:
        """What all of `n_new` new scores stay below.

        Parameters
        ----------
        confidence_level : float, optional
            Without it that of the constructor.
        n_new : int, default=1

        Returns
        -------
        ndarray of shape (n_scores,)
            Infinite where the clouds are too few: of n_new = 1 it takes 9, 19 and 99 at 0.9, 0.95 and 0.99.
        """
        check_is_fitted(self, "scores_")
        level = self.confidence_level if confidence_level is None else confidence_level
        rank = batch_rank(len(self.scores_), level, n_new)
        if rank > len(self.scores_):
            return np.full(self.n_features_in_, np.inf)
        return self.scores_[rank - 1].copy()

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """Share of the clouds, the new one among them, that are no more stable: small for an unusually unstable one.

        Parameters
        ----------
        X : array-like of shape (n, n_scores)

        Returns
        -------
        ndarray of shape (n, n_scores)
            At most a with probability at most a, for every a. A score is at most its bound at a level exactly if its
            p-value exceeds 1 - level.
        """
        check_is_fitted(self, "scores_")
        scores = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        n = len(self.scores_)
        below = [np.searchsorted(column, new, side="left") for column, new in zip(self.scores_.T, scores.T)]
        return (1 + n - np.stack(below, axis=1)) / (1 + n)

    def guarantee(self, confidence_level: float | None = None, n_new: int = 1) -> str:
        """What the bound promises, in words."""
        bounds = self.bound(confidence_level, n_new)
        level = self.confidence_level if confidence_level is None else confidence_level
        what = "the score of a new cloud is" if n_new == 1 else f"the scores of {n_new} new ones are all"
        few = "" if np.isfinite(bounds).all() else " There are too few for a finite bound."
        return (
            f"If the {len(self.scores_)} clouds measured and the new ones are exchangeable, {what} at most "
            f"{', '.join(f'{bound:.3g}' for bound in bounds)} with probability at least {level:g}, each score by "
            f"itself.{few} It breaks with clouds that share patients, and with another camera, clinic or perturbation. "
            "It bounds how much the shape changes; it does not say that the shape stays the same."
        )


def batch_rank(n: int, confidence_level: float, n_new: int = 1) -> int:
    """Rank, among n scores, of the one that bounds m = n_new new ones: least k with C(k+m-1, m) / C(n+m, m) >= level.

    Parameters
    ----------
    n : int
        Scores that were measured.
    confidence_level : float
        Between 0 and 1, exclusive; taken exactly, as by `cbdc.metrics.exact_level`.
    n_new : int, default=1

    Returns
    -------
    int
        From 1 to n + 1; n + 1, for an infinite bound, if n / (n + n_new) is below the level.

    Examples
    --------
    >>> batch_rank(9, 0.9), batch_rank(8, 0.9), batch_rank(900, 0.9, n_new=100), batch_rank(900, 0.5, n_new=100)
    (9, 9, 900, 895)
    """
    level = exact_level(confidence_level)
    if n < 0 or not isinstance(n_new, Integral) or n_new < 1:
        raise ParameterError(f"n and n_new: got {n!r} and {n_new!r}; expected whole numbers, at least 0 and 1.")
    needed = level.numerator * math.comb(n + n_new, n_new)
    low, high = 1, n + 1
    while low < high:
        k = (low + high) // 2
        if level.denominator * math.comb(k + n_new - 1, n_new) >= needed:
            high = k
        else:
            low = k + 1
    return low


def cloud_scores(
    X: ArrayLike,
    Y: ArrayLike,
    clouds: Sequence[ArrayLike],
    scores: Sequence[str] = ("distortion",),
    *,
    engine: str = "auto",
    **options: Any,
) -> np.ndarray:
    """How unstable each of several clouds is.

    Parameters
    ----------
    X, Y : array-like of shape (n, n_features)
        Embeddings of the images and of the perturbed images, row by row.
    clouds : sequence of array-like of int
        Rows of each cloud, as of `patient_clouds`.
    scores : sequence of {"H0", "H1", ..., "capped", "distortion", "twice_displacement"}, default=("distortion",)
        Bottleneck distance of the diagrams of a dimension, or one of the certificates of `stability_bounds`.
    engine : {"auto", "giotto", "gudhi"}, default="auto"
        Of "H1" and above.
    **options
        Go to `persistence_diagrams`.

    Returns
    -------
    ndarray of shape (n_clouds, n_scores)

    Examples
    --------
    >>> E = np.array([[0.0], [1.0], [5.0], [6.0]])
    >>> cloud_scores(E, E + [[0.0], [0.5], [0.0], [0.0]], [[0, 1], [2, 3]], ("H0", "twice_displacement"))
    array([[0.5, 1. ],
           [0. , 0. ]])
    """
    before, after = Cloud(X), Cloud(Y)
    if before.points.shape != after.points.shape:
        raise ParameterError(
            f"X and Y: got shapes {before.points.shape} and {after.points.shape}; expected the same rows and features."
        )
    wanted = {name: int(name[1:]) for name in scores if name[:1] == "H" and name[1:].isdigit()}
    unknown = [name for name in scores if name not in wanted and name not in _SCORES]
    if unknown or not scores:
        raise ParameterError(f"scores: got {scores!r}; expected a list of 'H0', 'H1', ... and {', '.join(_SCORES)}.")
    everything = np.arange(len(before))
    rows: list[list[float]] = []
    for cloud in clouds:
        chosen = np.asarray(cloud)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not np.isin(chosen, everything).all():
            raise ParameterError(
                f"clouds[{len(rows)}]: expected row numbers from 0 to {len(everything) - 1}, one at least."
            )
        found = stability_bounds(
            before.points[chosen], after.points[chosen], sorted(wanted.values()), engine, **options
        )
        rows.append([found.bottleneck[wanted[name]] if name in wanted else getattr(found, name) for name in scores])
    return np.array(rows, dtype=np.float64).reshape(len(clouds), len(scores))


def patient_clouds(
    patients: ArrayLike, patients_per_cloud: int, random_state: int | np.random.RandomState | None = None
) -> list[np.ndarray]:
    """Clouds of the images of as many patients each, no patient in two of them: exchangeable ones.

    Parameters
    ----------
    patients : array-like of shape (n,)
        Patient of each image.
    patients_per_cloud : int
    random_state : int, RandomState instance or None, default=None
        Of the order of the patients. Those left over at the end are in no cloud.

    Returns
    -------
    list of ndarray of int
        Rows of each cloud, ascending.

    Notes
    -----
    **Guarantee.** Assumption: the patients, each with all of their images, are exchangeable. Statement: so are the
    clouds. What breaks it: one patient under two names; as many images, instead of patients, a cloud.

    Examples
    --------
    >>> [cloud.tolist() for cloud in patient_clouds(["a", "a", "b", "c", "d"], 2, random_state=0)]
    [[3, 4], [0, 1, 2]]
    """
    names = np.asarray(patients)
    if names.ndim != 1 or len(names) == 0:
        raise ParameterError(f"patients: got shape {names.shape}; give one name for each image.")
    if len(missing := np.flatnonzero(pd.isna(names))):
        raise ParameterError(f"patients: image {missing[0]} has none. Fix: leave it out, or name its patient.")
    codes, n = np.unique(names, return_inverse=True)[1], len(np.unique(names))
    if not isinstance(patients_per_cloud, Integral) or not 1 <= patients_per_cloud <= n:
        raise ParameterError(f"patients_per_cloud: got {patients_per_cloud!r}; expected a whole number from 1 to {n}.")
    order = check_random_state(random_state).permutation(n)
    parts = [order[start : start + patients_per_cloud] for start in range(0, n, patients_per_cloud)]
    return [np.flatnonzero(np.isin(codes, part)) for part in parts if len(part) == patients_per_cloud]
