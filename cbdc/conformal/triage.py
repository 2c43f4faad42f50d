"""Triage: release, defer or urgent, with predictive values that were asked for."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats
from sklearn.utils._param_validation import Interval

from ..metrics import clopper_pearson
from ._base import seed_of
from ._state import check_that
from .certificate import Certificate
from .malignancy import MalignancyScorer
from .patients import draw_one, unit_codes
from .risk import ltt_indices

__all__ = ["ConformalTriage"]

# Probabilities of malignancy that are tried, the same for all data: evenly spaced in log-odds
_GRID = special.expit(np.linspace(-9, 9, 181))
_STARTS = 10


class ConformalTriage(MalignancyScorer):
    """Release, defer or urgent: the negative and positive predictive values hold with probability 1 - delta.

    A case is released where its probability of malignancy is at most one threshold, urgent where it is at least
    another, and deferred to a reader in between. Where the calibration cases cannot certify a threshold nothing is
    released, or nothing is urgent, and `certificate` says so.

    Parameters
    ----------
    estimator : classifier or None, default=None
        As for `ConformalClassifier`.
    malignant : sequence of class names
        As for `MalignancyClassifier`.
    npv : float, default=0.98
        Least share of benign cases among the released.
    ppv : float, default=0.8
        Least share of malignant cases among the urgent.
    delta : float, default=0.05
        Probability, over the calibration cases, that one of the two is not reached.
    prefit : bool, default=False
    random_state : int, RandomState instance or None, default=None
        Of the draw of one case a unit.

    Attributes
    ----------
    release_threshold_, urgent_threshold_ : float
        Minus and plus infinity where none is certified.
    n_calibration_, n_malignant_ : int
        Calibration cases, one of each unit; and how many of them are malignant.
    by_unit_ : bool
        Whether they were drawn from units.

    Notes
    -----
    **Guarantee.** Assumption: calibration cases and the cases to come are independent and of one population, prevalence
    included. Statement: with probability at least 1 - delta over the calibration cases, the negative predictive value
    among the released is at least `npv`, and the positive one among the urgent at least `ppv`. What breaks it: another
    prevalence above all, since predictive values depend on it; several cases of one patient or lesion (give `units`; it
    is then of a case drawn from a new one).

    Each threshold of a fixed grid is tested with the exact binomial law of the errors in its pile, in order from the
    safe end, begun at ten places that share delta / 2 (Learn-then-Test). A pile holds the same cases in calibration and
    later, those at its threshold too: votes and other scores that tie are certified as they are.

    References
    ----------
    Angelopoulos, Pomerantz, Do et al., *Conformal triage for medical imaging AI deployment*, medRxiv 2024,
    doi:10.1101/2024.02.09.24302543. Angelopoulos et al., *Learn then test*, arXiv:2110.01052.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = (rng.random(2000) < 0.2).astype(int)
    >>> p = 1 / (1 + np.exp(1.4 - 3 * (2 * y - 1) - rng.standard_normal(2000)))
    >>> triage = ConformalTriage(malignant=[1]).conformalize(np.stack([1 - p, p], axis=1), y)
    >>> print(f"release up to {triage.release_threshold_:.2f}, urgent from {triage.urgent_threshold_:.2f}")
    release up to 0.06, urgent from 0.07
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **MalignancyScorer._parameter_constraints,
        "delta": [Interval(Real, 0, 1, closed="neither")],
        "npv": [Interval(Real, 0, 1, closed="neither")],
        "ppv": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }
    _calibrated = ("release_threshold_", "urgent_threshold_")
    _kept = {  # noqa: RUF012
        "release_threshold_": float,
        "urgent_threshold_": float,
        "malignant_": ("b", "n_classes"),
        "n_calibration_": int,
        "n_malignant_": int,
        "by_unit_": bool,
        "_urgent_took_all": bool,
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        malignant: Sequence | None = None,
        npv: float = 0.98,
        ppv: float = 0.8,
        delta: float = 0.05,
        prefit: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.malignant = malignant
        self.npv = npv
        self.ppv = ppv
        self.delta = delta
        self.prefit = prefit
        self.random_state = random_state

    def conformalize(self, X: ArrayLike, y: ArrayLike, units: ArrayLike | None = None) -> "ConformalTriage":
        """Certify the two thresholds on cases that `fit` never saw.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        units : array-like of shape (n,), optional
            Patient or lesion of each case; one case of each is drawn.

        Returns
        -------
        ConformalTriage
            Itself.

        Raises
        ------
        ValueError
            If a class of `malignant` is unknown, or an input is not what it should be.
        """
        self._prepare(X)
        scores, malignant = self._scored(X, y)
        self.by_unit_ = units is not None
        if units is not None:
            rng = np.random.RandomState(seed_of(self.random_state))
            kept = draw_one(unit_codes(units, len(scores)), rng)
            malignant, scores = malignant[kept], scores[kept]
        self.n_calibration_, self.n_malignant_ = len(scores), int(malignant.sum())
        self.npv_, self.ppv_, self.delta_ = float(self.npv), float(self.ppv), float(self.delta)
        released = self._certified(scores[:, None] <= _GRID, malignant, 1 - self.npv_)
        urgent = self._certified(scores[:, None] >= _GRID[::-1], ~malignant, 1 - self.ppv_)
        self.urgent_threshold_ = float(_GRID[::-1][urgent[-1]]) if len(urgent) else np.inf
        # Where both are certified, urgent comes first: a pile without its urgent cases was not tested
        self._urgent_took_all = bool(len(released) and _GRID[released[0]] >= self.urgent_threshold_)
        released = released[_GRID[released] < self.urgent_threshold_]
        self.release_threshold_ = float(_GRID[released[-1]]) if len(released) else -np.inf
        return self

    def _check_kept(self) -> None:
        super()._check_kept()
        self.npv_, self.ppv_, self.delta_ = float(self.npv), float(self.ppv), float(self.delta)
        check_that(self.release_threshold_ < self.urgent_threshold_, "release_threshold_", "less than the urgent one")
        check_that(0 <= self.n_malignant_ <= self.n_calibration_, "n_malignant_", "0 to the number of cases")

    def predict_triage(self, X: ArrayLike) -> np.ndarray:
        """ "release", "defer" or "urgent" for each case, (n,)."""
        self._check_conformalized()
        scores = self.malignancy(X)
        names = np.array(["release", "defer", "urgent"])
        return names[1 - (scores <= self.release_threshold_) + (scores >= self.urgent_threshold_)]

    def report(self, X: ArrayLike, y: ArrayLike, probability: float = 0.95) -> pd.DataFrame:
        """The piles of labelled cases: their sizes, and what is in them with exact intervals.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,)
        probability : float, default=0.95
            Of the Clopper-Pearson intervals, which are for independent cases.

        Returns
        -------
        DataFrame
            A row for each pile: ``pile``, ``n``, ``malignant``, ``share_malignant``, ``low``, ``high``, and
            ``share_of_malignant``, the share of all malignant cases that are in it. NaN where there are none.
        """
        piles = self.predict_triage(X)
        malignant = self.malignant_[self._labels(y, len(piles))]
        rows = []
        for pile in ("release", "defer", "urgent"):
            inside = piles == pile
            n, k = int(inside.sum()), int(malignant[inside].sum())
            low, high = clopper_pearson(k, n, probability)
            rows.append(
                {
                    "pile": pile,
                    "n": n,
                    "malignant": k,
                    "share_malignant": k / n if n else np.nan,
                    "low": float(low),
                    "high": float(high),
                    "share_of_malignant": k / malignant.sum() if malignant.any() else np.nan,
                }
            )
        return pd.DataFrame(rows)

    def flag(self, X: ArrayLike) -> np.ndarray:
        """Whether a case is not released, bool (n,)."""
        return self.predict_triage(X) != "release"

    def certificate(self) -> Certificate:
        """What the piles promise, or that nothing could be certified."""
        self._check_conformalized()
        parts = []
        if np.isfinite(self.release_threshold_):
            parts.append(f"among released cases at least {self.npv_:g} are benign")
        elif self._urgent_took_all:
            parts.append("nothing is released, since all that could be certified is urgent already")
        else:
            parts.append(f"nothing is released, since no threshold could be certified for {self.npv_:g} benign")
        if np.isfinite(self.urgent_threshold_):
            parts.append(f"among urgent cases at least {self.ppv_:g} are malignant")
        else:
            parts.append(f"nothing is urgent, since no threshold could be certified for {self.ppv_:g} malignant")
        cases = f"the {self.n_calibration_} calibration cases"
        cases += ", one of each patient or lesion," if self.by_unit_ else ""
        cases += f" ({self.n_malignant_} malignant: {self._malignant_names}) and those to come"
        cases += ", drawn likewise," if self.by_unit_ else ""
        broken_by = ["another prevalence of malignancy"]
        broken_by += [] if self.by_unit_ else ["several calibration cases of one patient or lesion"]
        return Certificate(
            f"with probability at least {1 - self.delta_:g} over the calibration cases, " + ", and ".join(parts),
            (f"{cases} are independent and of one population, prevalence included (none of them trained on)",),
            tuple(broken_by),
            min(self.npv_, self.ppv_),
            self.n_calibration_,
            delta=self.delta_,
        )

    def _certified(self, piles: np.ndarray, wrong: np.ndarray, risk_level: float) -> np.ndarray:
        """Places of the grid whose pile has an error rate of at most the level."""
        n, errors = piles.sum(axis=0), (piles & wrong[:, None]).sum(axis=0)
        p_values = np.where(n > 0, stats.binom.cdf(errors, n, risk_level), 1.0)
        return ltt_indices(p_values, self.delta_ / 2, starts=_STARTS)
