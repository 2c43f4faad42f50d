"""Upper bounds on the error of a classifier: PAC-Bayes, for one drawn from a posterior, and test-set bounds beside it.

A PAC-Bayes bound holds for every posterior at once, so the same cases may train and certify; a test-set bound takes
cases that were kept apart, and is usually tighter. Losses lie in [0, 1]; where several cases are of one patient or
lesion, `units` makes the patient the case: its loss is the mean over its images.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special

from .errors import ParameterError

__all__ = [
    "GaussianGibbsClassifier",
    "RiskBound",
    "binary_kl",
    "binary_kl_inverse",
    "catoni_bound",
    "chernoff_bound",
    "clopper_pearson_bound",
    "empirical_bernstein_bound",
    "gaussian_pac_bayes_bound",
    "group_weighted_bound",
    "pac_bayes_kl_bound",
]

_REACH = 6.0  # of the quadrature, in standard deviations: beyond lie 2e-9
_NODES, _NODES_OF_MANY = 33, 65  # of the trapezoidal rule, for up to 16 classes and for more: to 1e-8
_CELLS = 2**18
_TEMPERATURES = tuple(np.geomspace(0.05, 8, 16))


@dataclasses.dataclass(frozen=True)
class RiskBound:
    """An upper bound on a risk, with what it rests on; its text is ``str(bound)``.

    Attributes
    ----------
    method : str
    value : float
        The risk is at most this, with probability 1 - `delta` over the draw of the cases. At most 1.
    risk : float
        Mean loss on the cases: an estimate, no bound.
    n : int
        Independent cases it rests on: patients or lesions, where units were given.
    delta : float
    divergence : float or None
        Kullback-Leibler divergence of posterior and prior, nats; None for a test-set bound.
    """

    method: str
    value: float
    risk: float
    n: int
    delta: float
    divergence: float | None = None

    @property
    def vacuous(self) -> bool:
        """Whether it says nothing: a risk never exceeds 1."""
        return self.value >= 1

    def __str__(self) -> str:
        whose = " of one classifier drawn at random from the posterior" if self.divergence is not None else ""
        said = f"at most {self.value:.3f} with probability {1 - self.delta:g} over the draw of the cases"
        if self.vacuous:
            said = "bounded by 1, which is vacuous: it says nothing"
        rests = f"mean loss {self.risk:.3f} over {self.n} independent cases"
        if self.divergence is not None:
            rests += f", divergence from the prior {self.divergence:.1f} nats"
        return f"{self.method}: the risk{whose} is {said} ({rests})"


# --- the divergence of two coins, and its inverse


def binary_kl(q: ArrayLike, p: ArrayLike) -> np.ndarray:
    """Divergence kl(q || p) of coins that show heads with probability q and p, nats.

    Parameters
    ----------
    q, p : array-like of numbers in [0, 1], broadcast together

    Returns
    -------
    ndarray of float64
        Infinite where p is 0 or 1 and q is not.

    Examples
    --------
    >>> float(binary_kl(0.5, 0.5)), float(binary_kl(0.0, 1.0))
    (0.0, inf)
    """
    q, p = np.asarray(q, dtype=float), np.asarray(p, dtype=float)
    return special.rel_entr(q, p) + special.rel_entr(1 - q, 1 - p)


def binary_kl_inverse(q: ArrayLike, budget: ArrayLike) -> np.ndarray:
    """Largest p with kl(q || p) <= budget.

    Parameters
    ----------
    q : array-like of numbers in [0, 1]
    budget : array-like of numbers, 0 or more
        Broadcast with q.

    Returns
    -------
    ndarray of float64
        From q to 1, rounded up by the last step of a bisection: never below the exact value by more than 1e-16.

    References
    ----------
    Seeger, *PAC-Bayesian generalisation error bounds for Gaussian process classification*, JMLR 3, 2002.

    Examples
    --------
    >>> round(float(binary_kl_inverse(0.0, 0.1)), 6), round(float(1 - np.exp(-0.1)), 6)
    (0.095163, 0.095163)
    """
    q, budget = np.broadcast_arrays(np.asarray(q, dtype=float), np.asarray(budget, dtype=float))
    if not (np.all((q >= 0) & (q <= 1)) and np.all(budget >= 0)):
        raise ParameterError(f"got q from {q.min():g} to {q.max():g} and a budget of {budget.min():g}; q has to lie in "
                             "[0, 1] and the budget to be 0 or more.")  # fmt: skip
    low, high = q.copy(), np.ones_like(q)
    for _ in range(60):
        middle = (low + high) / 2
        inside = binary_kl(q, middle) <= budget
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return high


# --- bounds from losses on a test set


def clopper_pearson_bound(errors: ArrayLike, *, delta: float = 0.05) -> RiskBound:
    """Exact upper bound on an error rate from errors counted on cases kept apart.

    Parameters
    ----------
    errors : array-like of shape (n,), bool or 0/1
        Of independent cases: one image of each patient or lesion.
    delta : float, default=0.05

    Returns
    -------
    RiskBound

    Raises
    ------
    ParameterError
        If a value is neither 0 nor 1.

    Notes
    -----
    **Guarantee.** Assumption: the cases are independent draws from one population, and none had a part in training or
    in choosing the classifier. Statement: with probability at least 1 - delta over them, the error rate is at most
    `value`. What breaks it: choosing the classifier by these cases; several images of one patient; another population.

    References
    ----------
    Clopper and Pearson, Biometrika 26, 1934, doi:10.1093/biomet/26.4.404. Langford, *Tutorial on practical prediction
    theory for classification*, JMLR 6, 2005.

    Examples
    --------
    >>> bound = clopper_pearson_bound([0] * 59)
    >>> round(bound.value, 4), bound.risk  # 1 - 0.05 ** (1 / 59)
    (0.0495, 0.0)
    """
    losses = _losses(errors, None, delta)
    if not np.all((losses == 0) | (losses == 1)):
        raise ParameterError(
            "errors: they have to be 0 or 1, one for each independent case. Fix: draw one image of each patient, or "
            "call chernoff_bound(losses, units=...), which takes means."
        )
    n, k = len(losses), int(losses.sum())
    value = 1.0 if k == n else float(special.betainccinv(k + 1, n - k, delta))
    return RiskBound("Clopper-Pearson", value, k / n, n, delta)


def chernoff_bound(losses: ArrayLike, *, units: ArrayLike | None = None, delta: float = 0.05) -> RiskBound:
    """Upper bound on a mean loss from cases kept apart: the binary divergence inverted, without a prior.

    Parameters
    ----------
    losses : array-like of shape (n,), in [0, 1]
    units : array-like of shape (n,), optional
        Patient or lesion of each loss; the mean over each counts as one case.
    delta : float, default=0.05

    Returns
    -------
    RiskBound
        On the mean loss of a random case of a random unit.

    Notes
    -----
    **Guarantee.** As for `clopper_pearson_bound`, for any losses in [0, 1]; looser for errors, which are 0 or 1.

    References
    ----------
    Hoeffding, *Probability inequalities for sums of bounded random variables*, JASA 58, 1963, theorem 1.

    Examples
    --------
    >>> round(chernoff_bound([0] * 59).value, 4)
    0.0495
    """
    values = _losses(losses, units, delta)
    value = binary_kl_inverse(values.mean(), np.log(1 / delta) / len(values))
    return RiskBound("Chernoff", float(value), float(values.mean()), len(values), delta)


def empirical_bernstein_bound(losses: ArrayLike, *, units: ArrayLike | None = None, delta: float = 0.05) -> RiskBound:
    """Upper bound on a mean loss from cases kept apart, tighter where the losses vary little.

    mean + sqrt(2 V ln(2 / delta) / n) + 7 ln(2 / delta) / (3 (n - 1)), V being the sample variance.

    Parameters
    ----------
    losses : array-like of shape (n,), in [0, 1]
    units : array-like of shape (n,), optional
        As for `chernoff_bound`.
    delta : float, default=0.05

    Returns
    -------
    RiskBound

    Notes
    -----
    **Guarantee.** As for `chernoff_bound`.

    References
    ----------
    Maurer and Pontil, *Empirical Bernstein bounds and sample variance penalization*, COLT 2009, theorem 4,
    arXiv:0907.3740.

    Examples
    --------
    >>> round(empirical_bernstein_bound([0.5] * 1000).value, 4)  # 0.5 + 7 log(40) / (3 * 999)
    0.5086
    """
    values = _losses(losses, units, delta)
    n = len(values)
    if n < 2:
        raise ParameterError("losses: a variance takes at least two independent cases, got 1.")
    log = np.log(2 / delta)
    value = values.mean() + np.sqrt(2 * values.var(ddof=1) * log / n) + 7 * log / (3 * (n - 1))
    return RiskBound("empirical Bernstein", float(min(value, 1.0)), float(values.mean()), n, delta)


# --- PAC-Bayes


def pac_bayes_kl_bound(
    losses: ArrayLike, divergence: float, *, units: ArrayLike | None = None, delta: float = 0.05
) -> RiskBound:
    """PAC-Bayes-kl bound: the largest risk R with kl(mean loss || R) <= (KL(Q || P) + ln(2 sqrt(n) / delta)) / n.

    Parameters
    ----------
    losses : array-like of shape (n,), in [0, 1]
        Expected loss of each case under the posterior Q, exact: an average over some draws of Q is not.
    divergence : float
        KL(Q || P), nats.
    units : array-like of shape (n,), optional
        As for `chernoff_bound`; n counts them.
    delta : float, default=0.05

    Returns
    -------
    RiskBound

    Raises
    ------
    ParameterError
        With fewer than 8 cases, for which it is not proved.

    Notes
    -----
    **Guarantee.** Assumption: the units are independent draws from one population; the prior P was chosen without them
    (the posterior Q may be chosen by them, after them, and in any way). Statement: with probability at least 1 - delta
    over the units, the risk of a classifier drawn from Q, averaged over Q, is at most `value`, for every Q at once. It
    is a bound for the Gibbs classifier, not for the mean of the posterior. What breaks it: a prior,
    or a scaling of the features, that was learned from the same cases; images of one patient counted as cases.

    References
    ----------
    Maurer, *A note on the PAC Bayesian theorem*, arXiv:cs/0411099. Seeger, JMLR 3, 2002.

    Examples
    --------
    >>> print(round(pac_bayes_kl_bound([0.1] * 1000, divergence=20.0).value, 4))
    0.1839
    """
    values = _losses(losses, units, delta)
    n = len(values)
    if n < 8:
        raise ParameterError(f"losses: the bound is proved for 8 independent cases or more, got {n}.")
    budget = (_divergence(divergence) + np.log(2 * np.sqrt(n) / delta)) / n
    return RiskBound(
        "PAC-Bayes-kl", float(binary_kl_inverse(values.mean(), budget)), float(values.mean()), n, delta, divergence
    )


def catoni_bound(
    losses: ArrayLike,
    divergence: float,
    *,
    units: ArrayLike | None = None,
    delta: float = 0.05,
    temperatures: Sequence[float] = _TEMPERATURES,
) -> RiskBound:
    """Catoni's PAC-Bayes bound, the least over a list of temperatures fixed beforehand.

    For each a of the list: R <= (1 - exp(-a r - (KL(Q || P) + ln(m / delta)) / n)) / (1 - exp(-a)), r being the mean
    loss and m the length of the list, over which delta is shared out.

    Parameters
    ----------
    losses, divergence, units, delta
        As for `pac_bayes_kl_bound`.
    temperatures : sequence of float, above 0
        Chosen without the cases.

    Returns
    -------
    RiskBound

    Notes
    -----
    **Guarantee.** As for `pac_bayes_kl_bound`.

    References
    ----------
    Catoni, *PAC-Bayesian supervised classification*, IMS Lecture Notes 56, 2007, theorem 1.2.6, arXiv:0712.0248.

    Examples
    --------
    >>> print(round(catoni_bound([0.1] * 1000, divergence=20.0).value, 4))
    0.1817
    """
    values = _losses(losses, units, delta)
    a = np.asarray(temperatures, dtype=float)
    if a.ndim != 1 or not len(a) or not np.all((a > 0) & np.isfinite(a)):
        raise ParameterError(f"temperatures: got {temperatures!r}; expected numbers above 0.")
    cost = (_divergence(divergence) + np.log(len(a) / delta)) / len(values)
    value = np.min(np.expm1(-a * values.mean() - cost) / np.expm1(-a))
    return RiskBound("Catoni", float(min(value, 1.0)), float(values.mean()), len(values), delta, divergence)


def group_weighted_bound(bounds: Mapping[str, RiskBound], weights: Mapping[str, float]) -> RiskBound:
    """Bound for a population of which the groups and their shares are known: the shares' mean of the groups' bounds.

    Each group is bounded by its own cases, so the bound holds for the shares that are asked for, whatever those of the
    cases: another clinic's mix of skin types or diagnoses, for example.

    Parameters
    ----------
    bounds : mapping of str to RiskBound
        One a group; their deltas are added up.
    weights : mapping of str to float
        Share of each group, summing to 1, fixed without the cases.

    Returns
    -------
    RiskBound

    Raises
    ------
    ParameterError
        If a group has no bound, the shares do not sum to 1, the deltas sum to 1 or more, or some bounds are of a drawn
        classifier and others are not.

    Notes
    -----
    **Guarantee.** Assumption: that of each group's bound, the cases of a group being drawn from that group of the
    population, and the shares known. Statement: with probability at least 1 - the sum of the deltas, the risk in the
    population with these shares is at most `value`. What breaks it: cases of a group unlike those of the population's;
    estimated shares.

    Examples
    --------
    >>> groups = {"I-II": chernoff_bound([0.1] * 500, delta=0.025), "III-IV": chernoff_bound([0.3] * 50, delta=0.025)}
    >>> mixed = group_weighted_bound(groups, {"I-II": 0.5, "III-IV": 0.5})
    >>> round(mixed.value, 3), mixed.n, mixed.delta
    (0.315, 550, 0.05)
    """
    if missing := sorted(set(weights) - set(bounds)):
        raise ParameterError(f"weights: no bound for the group {missing[0]!r}; there are {sorted(bounds)}.")
    shares = np.array(list(weights.values()), dtype=float)
    if not (np.all(shares >= 0) and abs(shares.sum() - 1) < 1e-9):
        raise ParameterError(f"weights: {dict(weights)} sum to {shares.sum():g}; expected shares that sum to 1.")
    used = [bounds[name] for name in weights]
    delta = float(sum(bound.delta for bound in used))
    if delta >= 1:
        raise ParameterError(f"bounds: their deltas sum to {delta:g}; expected less than 1. Fix: share one delta out.")
    divergences = [float(bound.divergence) for bound in used if bound.divergence is not None]
    if 0 < len(divergences) < len(used):
        raise ParameterError(
            "bounds: some are of a drawn classifier (PAC-Bayes), some are not; a mean of both is about neither."
        )
    return RiskBound(
        f"{' and '.join(sorted({bound.method for bound in used}))}, weighted over {len(used)} groups",
        min(float(shares @ [bound.value for bound in used]), 1.0),
        float(shares @ [bound.risk for bound in used]),
        sum(bound.n for bound in used),
        delta,
        max(divergences) if divergences else None,
    )


@dataclasses.dataclass(frozen=True)
class GaussianGibbsClassifier:
    """Linear classifier whose weights are drawn anew for each prediction from a Gaussian of one variance.

    Given a row x its logits are independent Gaussians of standard deviation ``scale * |x|``, so that the probability of
    an error is an integral in one dimension, taken by quadrature: no draws, and no slack for them.

    Parameters
    ----------
    weights : ndarray of shape (n_features, n_classes)
        Mean of the Gaussian. Give the rows a feature that is 1, for an intercept.
    scale : float
        Standard deviation of every weight.

    Examples
    --------
    >>> gibbs = GaussianGibbsClassifier(np.array([[1.0, -1.0]]), scale=1.0)
    >>> gibbs.errors([[1.0]], [0]).round(4)  # the gap of the logits is N(2, 2): Phi(-2 / sqrt(2))
    array([0.0786])
    """

    weights: np.ndarray
    scale: float

    def __post_init__(self) -> None:
        shape = np.shape(self.weights)
        if len(shape) != 2 or not np.isfinite(self.weights).all():
            raise ParameterError(f"weights: got shape {shape}; expected finite numbers (n_features, n_classes).")
        if not 0 < self.scale < np.inf:
            raise ParameterError(f"scale={self.scale!r}: expected a number above 0.")

    def errors(self, X: ArrayLike, y: ArrayLike) -> np.ndarray:
        """Probability that a drawn classifier errs, of each row, within 1e-8 for up to a thousand classes.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,), int
            Column of the true class.

        Returns
        -------
        ndarray of shape (n,), float64
        """
        X, y = np.asarray(X, dtype=float), np.asarray(y)
        n_classes = self.weights.shape[1]
        if X.ndim != 2 or X.shape[1] != len(self.weights):
            raise ParameterError(f"X: got shape {X.shape}; expected (n, {len(self.weights)}).")
        if y.shape != (len(X),) or y.dtype.kind not in "iu" or not np.all((y >= 0) & (y < n_classes)):
            raise ParameterError(
                f"y: got shape {y.shape} of {y.dtype}; expected {len(X)} column numbers from 0 to {n_classes - 1}. "
                "Fix: for labels, np.searchsorted(classes, y) with the classes in the order of the columns."
            )
        spread = self.scale * np.linalg.norm(X, axis=1)
        if not (np.isfinite(spread).all() and np.all(spread > 0)):
            raise ParameterError("X: a row is 0, NaN or infinite. Fix: append a feature that is 1.")
        nodes = np.linspace(-_REACH, _REACH, _NODES if n_classes <= 16 else _NODES_OF_MANY)
        weights = np.exp(-(nodes**2) / 2)
        weights = weights / weights.sum()
        found = np.empty(len(X))
        step = max(1, _CELLS // n_classes)
        for start in range(0, len(X), step):
            rows = slice(start, start + step)
            logits = X[rows] @ self.weights
            own = np.arange(len(logits)), y[rows]
            gaps = (logits[own][:, None] - logits) / spread[rows, None]
            gaps[own] = np.inf  # the own logit is not compared with itself
            right = (w * special.ndtr(gaps + node).prod(axis=1) for node, w in zip(nodes, weights))
            found[rows] = 1 - sum(right)
        return np.clip(found, 0, 1)

    def divergence(self, prior: "GaussianGibbsClassifier") -> float:
        """KL(self || prior), nats."""
        ratio = (self.scale / prior.scale) ** 2
        moved = float(np.sum((self.weights - prior.weights) ** 2)) / prior.scale**2
        return 0.5 * (moved + self.weights.size * (ratio - 1 - np.log(ratio)))


def gaussian_pac_bayes_bound(
    X: ArrayLike,
    y: ArrayLike,
    weights: np.ndarray,
    *,
    prior_weights: np.ndarray | None = None,
    units: ArrayLike | None = None,
    delta: float = 0.05,
    scales: Sequence[float] = tuple(np.geomspace(1e-3, 10, 13)),
    steps: Sequence[float] = tuple(np.linspace(0, 1, 6)),
) -> tuple[RiskBound, GaussianGibbsClassifier]:
    """The tightest PAC-Bayes-kl bound of Gaussians around a linear classifier, and the one that has it.

    Prior and posterior have one scale, taken from `scales`, over which delta is shared out; the posterior's mean lies
    between the prior's and `weights`, at one of `steps`, for which nothing is due.

    Parameters
    ----------
    X : array-like of shape (n, n_features)
        With a feature that is 1, for an intercept.
    y : array-like of shape (n,), int
        Column of the true class.
    weights : ndarray of shape (n_features, n_classes)
        Learned from any cases, these too.
    prior_weights : ndarray of shape (n_features, n_classes), optional
        Learned without these cases; zero by default (a data-free prior).
    units : array-like of shape (n,), optional
        As for `chernoff_bound`.
    delta : float, default=0.05
    scales : sequence of float
        Fixed without these cases.
    steps : sequence of float in [0, 1]

    Returns
    -------
    bound : RiskBound
    gibbs : GaussianGibbsClassifier
        Whose risk it bounds.

    Notes
    -----
    **Guarantee.** That of `pac_bayes_kl_bound`, at 1 - delta over all scales and steps at once. It bounds the drawn
    classifier, not the linear one with the mean weights. The scaling of the features belongs to the prior: it must not
    be learned from these cases either.

    References
    ----------
    Ambroladze, Parrado-Hernandez and Shawe-Taylor, *Tighter PAC-Bayes bounds*, NeurIPS 2006 (priors from a part of the
    data). Foong, Bruinsma, Burt and Turner, *How tight can PAC-Bayes be in the small data regime?*, NeurIPS 2021,
    arXiv:2106.03542 (a test set does as well).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.utils import shuffle
    >>> X, y = shuffle(*load_digits(return_X_y=True), random_state=0)
    >>> X = np.column_stack([X / 16, np.ones(len(X))])
    >>> fit = lambda X, y: LogisticRegression(C=0.3, fit_intercept=False, max_iter=500).fit(X, y).coef_.T
    >>> bound, gibbs = gaussian_pac_bayes_bound(X[900:], y[900:], fit(X, y), prior_weights=fit(X[:900], y[:900]))
    >>> print(bound)
    PAC-Bayes-kl: the risk of one classifier drawn at random from the posterior is at most 0.073 with probability 0.95 \
over the draw of the cases (mean loss 0.038 over 897 independent cases, divergence from the prior 0.0 nats)
    """
    weights = np.asarray(weights, dtype=float)
    start = np.zeros_like(weights) if prior_weights is None else np.asarray(prior_weights, dtype=float)
    if not (np.isfinite(weights).all() and np.isfinite(start).all()):
        raise ParameterError("weights, prior_weights: NaN or infinity among them.")
    if start.shape != weights.shape or weights.ndim != 2:
        raise ParameterError(f"prior_weights: got shape {start.shape}; expected that of weights, {weights.shape}.")
    # softmax ignores what all classes share: it moves nothing, and would cost divergence
    weights, start = (w - w.mean(axis=1, keepdims=True) for w in (weights, start))
    found: tuple[RiskBound, GaussianGibbsClassifier] | None = None
    for scale in scales:
        prior = GaussianGibbsClassifier(start, float(scale))
        for step in steps:
            gibbs = GaussianGibbsClassifier(start + step * (weights - start), float(scale))
            bound = pac_bayes_kl_bound(
                gibbs.errors(X, y), gibbs.divergence(prior), units=units, delta=delta / len(scales)
            )
            if found is None or bound.value < found[0].value:
                found = bound, gibbs
    if found is None:
        raise ParameterError("scales, steps: at least one of each is needed.")
    return dataclasses.replace(found[0], delta=delta), found[1]


# --- shared


def _losses(losses: ArrayLike, units: ArrayLike | None, delta: float) -> np.ndarray:
    """Losses of independent cases, checked, (n_units,)."""
    if not 0 < delta < 1:
        raise ParameterError(f"delta={delta!r}: expected a number between 0 and 1.")
    values = np.asarray(losses, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ParameterError(f"losses: got shape {values.shape}; expected (n,), at least one case.")
    if not np.all((values >= 0) & (values <= 1)):  # NaN is neither
        raise ParameterError(f"losses: case {np.argmin((values >= 0) & (values <= 1))} is not in [0, 1].")
    if units is None:
        return values
    names = np.asarray(units)
    if names.shape != values.shape:
        raise ParameterError(f"units: got shape {names.shape}; expected one for each of the {len(values)} cases.")
    if len(missing := np.flatnonzero(pd.isna(names))):
        raise ParameterError(f"units: case {missing[0]} has none. Fix: leave it out, or name its patient.")
    codes = np.unique(names, return_inverse=True)[1]
    return np.bincount(codes, values) / np.bincount(codes)


def _divergence(divergence: float) -> float:
    if not divergence >= 0:
        raise ParameterError(f"divergence={divergence!r}: expected a number of nats, 0 or more.")
    return float(divergence)
