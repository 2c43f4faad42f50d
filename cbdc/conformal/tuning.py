"""What a score or a condition leaves open, chosen on cases apart from calibration: numbers only, no case is kept."""

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import KMeans

from ..errors import ParameterError
from ..metrics import conformal_rank, exact_level
from .scores import score_all, score_labels, sets_from
from .thresholds import CalibrationScores, least_n

if TYPE_CHECKING:
    from .classifier import ConformalClassifier

__all__ = ["TUNED_SCORES", "choose", "cluster_classes", "rank_limits", "tune_score"]

_PENALTIES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
_WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
TUNED_SCORES = ("raps", "saps")


def choose(clf: "ConformalClassifier", values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What the parameters of a prepared classifier leave open; its later choices build on the score's numbers.

    Raises
    ------
    ParameterError
        If they leave nothing open.
    """
    level, n_classes = clf.confidence_level, len(clf.classes_)
    found: dict[str, Any] = {}
    if clf.score_params is None and clf.score_name_ in TUNED_SCORES:
        found["score"] = clf.score_name_
        found["score_params"] = tune_score(
            clf.score_name_, values, labels, confidence_level=level, log=clf._log, seed=clf._scoring["seed"]
        )
        clf.score_params_ = found["score_params"]
    if clf.condition_on == "cluster":
        found["columns"] = cluster_classes(
            clf._score_labels(values, labels), labels, n_classes, confidence_level=level, random_state=clf.seed_
        )
    if clf.rank_calibrated:
        found["rank_limits"] = rank_limits(values, labels, n_classes, confidence_level=level, **clf._scoring)
    if not found:
        raise ParameterError(
            f"tune: nothing to choose for score={clf.score_name_!r} and condition_on={clf.condition_on!r}. It is for "
            "score 'raps' or 'saps' without score_params, condition_on='cluster', and rank_calibrated=True."
        )
    return found


def tune_score(
    name: str, values: np.ndarray, labels: np.ndarray, *, confidence_level: float, log: bool, seed: int | None
) -> dict[str, float]:
    """The numbers of "raps" or "saps" that give the smallest sets: calibrated on one half, counted on the other.

    Parameters
    ----------
    name : {"raps", "saps"}
    values : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms, of cases that calibration does not see.
    labels : ndarray of shape (n,), int
    confidence_level : float
    log : bool
    seed : int or None
        Of the randomised score.

    Returns
    -------
    dict
        ``{"penalty", "k_reg"}`` or ``{"weight"}``.

    References
    ----------
    Angelopoulos et al., arXiv:2009.14193, appendix E: k_reg is the rank that covers the level, the penalty the one of a
    grid with the smallest sets.

    Examples
    --------
    >>> from scipy.special import softmax
    >>> rng = np.random.default_rng(0)
    >>> P = softmax(2 * rng.standard_normal((400, 5)), axis=1)
    >>> y = (P.cumsum(axis=1) < rng.random((400, 1))).sum(axis=1)
    >>> sorted(tune_score("raps", P, y, confidence_level=0.9, log=False, seed=0))
    ['k_reg', 'penalty']
    """
    if name == "raps":
        ranks = np.sort(_ranks_of(values, labels))
        k_reg = int(ranks[min(conformal_rank(len(ranks), confidence_level), len(ranks)) - 1])
        candidates = [{"penalty": penalty, "k_reg": k_reg} for penalty in _PENALTIES]
    else:
        candidates = [{"weight": weight} for weight in _WEIGHTS]
    halves = np.arange(len(labels)) % 2 == 0
    sizes = []
    for params in candidates:
        size = 0
        for half in (halves, ~halves):
            scoring: dict[str, Any] = {"log": log, "seed": seed, "params": params}
            scores = score_labels(name, values[half], labels[half], calibration=True, **scoring)
            calibration = CalibrationScores.from_cases(scores, np.zeros(len(scores), dtype=int), (1, 1))
            size += sets_from(name, values[~half], calibration.thresholds(confidence_level), **scoring).sum()
        sizes.append(size)
    return candidates[int(np.argmin(sizes))]


def cluster_classes(
    scores: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    *,
    confidence_level: float,
    n_clusters: int | None = None,
    random_state: int | None = None,
) -> np.ndarray:
    """Clusters of classes whose scores are distributed alike, for cluster-conditional sets.

    Every class with enough cases is described by quantiles of its scores' ranks, and weighted k-means groups them. The
    classes with too few cases for a finite threshold form a cluster of their own: pooled, they keep the guarantee of a
    cluster, which the marginal threshold that the paper gives them does not.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Conformity scores at the labels, of cases that calibration does not see.
    labels : ndarray of shape (n,), int
    n_classes : int
    confidence_level : float
    n_clusters : int, optional
        Default: half the number of cases of the least class that has enough, at most half the number of such classes.
    random_state : int, optional

    Returns
    -------
    ndarray of shape (n_classes,), int
        Cluster of each class, from 0 on without a gap.

    References
    ----------
    Ding, Angelopoulos, Bates, Jordan and Tibshirani, *Class-conditional conformal prediction with many classes*,
    arXiv:2306.09335.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1, 2, 3, 4], [100, 100, 100, 100, 3])
    >>> scores = rng.uniform(size=403) + np.isin(labels, [1, 3])
    >>> cluster_classes(scores, labels, 5, confidence_level=0.9, n_clusters=2, random_state=0)
    array([0, 1, 0, 1, 2])
    """
    counts = np.bincount(labels, minlength=n_classes)
    enough = np.flatnonzero(counts >= least_n(confidence_level))
    clusters = np.full(n_classes, -1, dtype=np.intp)
    if len(enough):
        if n_clusters is None:
            n_clusters = min(int(counts[enough].min()) // 2, len(enough) // 2)
        ranks = np.unique(scores, return_inverse=True)[1] / len(scores)  # of any increasing function the same
        levels = 1 - np.array([0.5, 0.6, 0.7, 0.8, 0.9, float(exact_level(confidence_level))])
        features = np.array([np.quantile(ranks[labels == k], levels) for k in enough])
        order = np.lexsort(features.T)  # so that the numbers of the classes do not matter
        n_clusters = int(np.clip(n_clusters, 1, len(np.unique(features, axis=0))))
        means = KMeans(n_clusters, n_init=10, random_state=random_state)
        found = means.fit_predict(features[order], sample_weight=np.sqrt(counts[enough[order]]))
        clusters[enough[order]] = found
    clusters[clusters < 0] = n_classes  # the rare ones, pooled
    _, first, place = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place]


def rank_limits(
    values: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    *,
    confidence_level: float,
    name: str,
    log: bool,
    seed: int | None,
    params: dict,
) -> np.ndarray:
    """Lowest rank at which each class is still allowed in a set, chosen for small class-conditional sets.

    Calibrated with scores that are minus infinity beyond that rank (`truncated`), the sets are exactly
    class-conditional, whatever the limits: they come from other cases. (The paper calibrates both on the same cases,
    and adds up the two errors.)

    Parameters
    ----------
    values : ndarray of shape (n, n_classes)
        Probabilities, or their logarithms, of cases that calibration does not see.
    labels : ndarray of shape (n,), int
    n_classes : int
    confidence_level : float
    name, log, seed, params
        The conformity score and its settings.

    Returns
    -------
    ndarray of shape (n_classes,), int
        `n_classes`, which is no limit, for a class with too few cases to choose one.

    References
    ----------
    Shi, Ghosh, Belkhouja, Doppa and Yan, *Conformal prediction for class-wise coverage via augmented label rank
    calibration*, arXiv:2406.06818.

    Examples
    --------
    >>> from scipy.special import softmax
    >>> rng = np.random.default_rng(0)
    >>> P = softmax(2 * rng.standard_normal((900, 6)), axis=1)
    >>> y = (P.cumsum(axis=1) < rng.random((900, 1))).sum(axis=1)
    >>> bool(rank_limits(P, y, 6, confidence_level=0.9, name="aps", log=False, seed=0, params={}).max() <= 6)
    True
    """
    every = score_all(name, values, log=log, seed=seed, params=params)
    limits = np.full(n_classes, n_classes, dtype=np.intp)
    level = float(exact_level(confidence_level))
    for k in range(n_classes):
        own = np.flatnonzero(labels == k)
        needed, room = conformal_rank(len(own), confidence_level), conformal_rank(len(own), 1 - (1 - level) / 2)
        if room > len(own):
            continue
        ranks = np.sum(values > values[:, [k]], axis=1) + 1
        # With a limit that alone loses the share alpha the threshold would be infinite; it may lose half of that here,
        # since on the calibration cases it may lose more.
        least = int(np.sort(ranks[own])[room - 1])
        best = None
        for limit in np.unique(np.append(ranks[own][ranks[own] >= least], n_classes))[::-1]:
            scores = np.where(ranks <= limit, every[:, k], -np.inf)
            threshold = np.sort(scores[own])[::-1][needed - 1]
            size = np.sum((scores >= threshold) & (ranks <= limit))
            if best is None or size < best:
                best, limits[k] = size, limit
    return limits


def _ranks_of(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    own = values[np.arange(len(labels)), labels]
    return np.sum(values > own[:, None], axis=1) + 1
