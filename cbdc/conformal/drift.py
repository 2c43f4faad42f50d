"""A drift alarm over a stream of conformal p-values, with a controlled rate of false alarms."""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from ..errors import ParameterError
from ._base import seed_of
from ._state import array_of, check_ascending, check_kinds, check_that
from .certificate import Certificate

__all__ = ["DriftMonitor", "smoothed_p_values"]

_HISTORY = 10_000
_JUMP = 0.01  # share of its capital that the simple jumper moves between bets at each step
_BETS = np.array([-1.0, 0.0, 1.0])
_EPSILON = np.linspace(0.02, 1.0, 50)  # of the mixture of power martingales


def smoothed_p_values(scores: ArrayLike, random_state: int | None = None) -> np.ndarray:
    """P-value of each score among those up to it, ties and the new one itself shared by chance.

    The scores of the whole stream are given at once; `DriftMonitor.update_scores` takes them as they come.

    Parameters
    ----------
    scores : array-like of shape (n,)
        Conformity scores in order of arrival.
    random_state : int, optional

    Returns
    -------
    ndarray of shape (n,)

    Raises
    ------
    ParameterError
        If a score is NaN.

    Notes
    -----
    **Guarantee.** If the scores are exchangeable, these are independent and uniform on [0, 1].

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005, theorem 8.1.

    Examples
    --------
    >>> bool((smoothed_p_values(np.arange(100.0), random_state=0)[50:] > 0.9).all())
    True
    """
    return _Arrivals(random_state).p_values(scores)


class _Arrivals:
    """The scores so far, in ascending order, and the chance by which ties are shared."""

    def __init__(self, random_state: int | None) -> None:
        self.rng = np.random.default_rng(random_state)
        self.kept: np.ndarray = np.empty(0)

    def p_values(self, scores: ArrayLike) -> np.ndarray:
        """Of the next scores, which are then among those so far."""
        scores = np.atleast_1d(np.asarray(scores, dtype=float))
        if scores.ndim != 1:
            raise ParameterError(f"scores: got shape {scores.shape}; expected (n,), one for each case.")
        if len(wrong := np.flatnonzero(np.isnan(scores))):
            raise ParameterError(f"scores: number {wrong[0]} is NaN. Fix: leave the case out and say so.")
        found = np.empty(len(scores))
        for i, (score, u) in enumerate(zip(scores, self.rng.random(len(scores)))):
            below, through = np.searchsorted(self.kept, score, side="left"), np.searchsorted(self.kept, score, "right")
            found[i] = (below + u * (through - below + 1)) / (len(self.kept) + 1)
            self.kept = np.insert(self.kept, below, score)
        return found


class DriftMonitor(BaseEstimator):
    """Watches whether the cases of a stream still are like those before, by betting against their p-values.

    Under exchangeability the p-values are independent and uniform, and no bet wins in the long run: the capital exceeds
    1 / alpha with probability at most alpha, ever. So a large capital is evidence of a change.

    Parameters
    ----------
    alpha : float, default=0.01
        Probability of a false alarm over the whole stream.
    betting : {"jumper", "power"}, default="jumper"
        Bets on p-values that lie low or high, changing sides now and then; or on small ones.
    random_state : int, RandomState instance or None, default=None
        Of the shares of ties in `update_scores`.

    Attributes
    ----------
    log_martingale_ : float
        Natural logarithm of the capital.
    alarm_time_ : int or None
        Number of p-values at which the alarm was given first.
    history_ : list of float
        The last 10,000 values of `log_martingale_`.
    n_seen_ : int

    Notes
    -----
    **Guarantee.** Assumption: the p-values are independent and uniform, as smoothed ones of an exchangeable stream are,
    or at least conservative for "power". Statement: the probability of ever giving an alarm is at most alpha (Ville).
    What breaks it: several cases of one patient in a row; p-values against a fixed calibration set, which share it and
    so are not independent: those of `OnlineConformalClassifier.p_values` of several cases at once, for example. Give
    scores to `update_scores`, in order, or all of them to `smoothed_p_values`.

    References
    ----------
    Vovk, *Testing randomness online*, Statistical Science 36, 2021, doi:10.1214/20-STS817. Fedorova, Gammerman,
    Nouretdinov and Vovk, *Plug-in martingales for testing exchangeability on-line*, arXiv:1204.3251.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> monitor = DriftMonitor().update(rng.random(500))
    >>> monitor.alarm_time_ is None
    True
    >>> bool(500 < monitor.update(rng.random(300) ** 3).alarm_time_ < 600)
    True

    Scores as they come, for example `OnlineConformalClassifier.conformity_scores`:

    >>> monitor = DriftMonitor(random_state=0)
    >>> for score in np.concatenate([rng.standard_normal(500), rng.standard_normal(300) - 2]):
    ...     monitor = monitor.update_scores([score])
    >>> bool(500 < monitor.alarm_time_ < 600)
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "betting": [StrOptions({"jumper", "power"})],
        "random_state": ["random_state"],
    }

    log_martingale_: float
    alarm_time_: int | None
    history_: list[float]
    n_seen_: int
    _scale: float
    _capital: np.ndarray
    _logs: np.ndarray
    _arrivals: _Arrivals

    def __init__(
        self,
        alpha: float = 0.01,
        *,
        betting: str = "jumper",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.alpha = alpha
        self.betting = betting
        self.random_state = random_state

    def update(self, p_values: ArrayLike) -> "DriftMonitor":
        """Bet on the next p-values, in order.

        Parameters
        ----------
        p_values : array-like of shape (n,)

        Returns
        -------
        DriftMonitor
            Itself.

        Raises
        ------
        ParameterError
            If a p-value is no number between 0 and 1.
        """
        self._validate_params()
        p_values = np.atleast_1d(np.asarray(p_values, dtype=float))
        if len(wrong := np.flatnonzero(~((p_values >= 0) & (p_values <= 1)))):
            raise ParameterError(f"p_values: number {wrong[0]} is {p_values[wrong[0]]}; expected 0 to 1.")
        if not hasattr(self, "n_seen_"):
            self.reset()
        for p in p_values:
            self.n_seen_ += 1
            if self.betting == "jumper":
                self._capital = (1 - _JUMP) * self._capital + _JUMP * self._capital.mean()
                self._capital = self._capital * (1 + _BETS * (p - 0.5))
            else:
                self._logs = self._logs + np.log(_EPSILON) + (_EPSILON - 1) * np.log(max(p, 1e-300))
                top = self._logs.max()
                self._capital = np.exp(self._logs - top) * len(_BETS) / len(_EPSILON)
                self._scale = top
            total = self._capital.sum()
            self.log_martingale_ = float(self._scale + np.log(total / len(_BETS)))
            if self.betting == "jumper" and not 1e-100 < total < 1e100:
                self._scale += float(np.log(total))
                self._capital = self._capital / total
            self.history_.append(self.log_martingale_)
            del self.history_[:-_HISTORY]
            if self.alarm_time_ is None and self.log_martingale_ >= -np.log(self.alpha):
                self.alarm_time_ = self.n_seen_
        return self

    def update_scores(self, scores: ArrayLike) -> "DriftMonitor":
        """Bet on the smoothed p-values of the next scores, in order, among all since the beginning.

        However the stream is cut into calls, the p-values are those of `smoothed_p_values` of the whole, with the same
        seed.

        Parameters
        ----------
        scores : array-like of shape (n,)
            Conformity scores: high for what is usual. The first ones may be of calibration cases.

        Returns
        -------
        DriftMonitor
            Itself.

        Raises
        ------
        ParameterError
            If a score is NaN.
        """
        self._validate_params()
        if not hasattr(self, "n_seen_"):
            self.reset()
        return self.update(self._arrivals.p_values(scores))

    def reset(self) -> "DriftMonitor":
        """Begin anew, for example after the alarm was looked into; alpha then counts from here."""
        self.n_seen_, self.alarm_time_ = 0, None
        self.log_martingale_, self.history_ = 0.0, []
        self._scale = 0.0
        self._capital = np.ones(len(_BETS))
        self._logs = np.zeros(len(_EPSILON))
        seed = self.random_state
        self._arrivals = _Arrivals(seed if isinstance(seed, int) else seed_of(seed))
        return self

    @property
    def alarm_(self) -> bool:
        """Whether the alarm was given."""
        return getattr(self, "alarm_time_", None) is not None

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and a JSON-able document from which `from_state` goes on where this object is."""
        if not hasattr(self, "n_seen_"):
            self.reset()
        arrays = {"kept": self._arrivals.kept, "capital": self._capital, "logs": self._logs}
        arrays |= {"history": np.array(self.history_, dtype=float), "scale": np.array(self._scale, dtype=float)}
        arrays["log_martingale"] = np.array(self.log_martingale_, dtype=float)
        return arrays, {
            "estimator": type(self).__name__,
            "alpha": float(self.alpha),
            "betting": self.betting,
            "random_state": self.random_state if isinstance(self.random_state, int) else None,
            "n_seen": self.n_seen_,
            "alarm_time": self.alarm_time_,
            "generator": self._arrivals.rng.bit_generator.state,
        }

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> "DriftMonitor":
        """The monitor again, with its capital, and the scores and the chance by which ties are shared.

        Raises
        ------
        ValueError
            If the state is not one that `get_state` gives.
        """
        check_kinds(document, cls.__name__, {"alpha": float, "betting": str, "n_seen": int, "generator": dict})
        found = cls(document["alpha"], betting=document["betting"], random_state=document.get("random_state"))
        found._validate_params()
        found.reset()
        found.n_seen_, found.alarm_time_ = document["n_seen"], document.get("alarm_time")
        found._capital = array_of("capital", ("f", len(_BETS) if found.betting == "jumper" else "n"), arrays)
        found._logs = array_of("logs", ("f", len(_EPSILON)), arrays)
        found._scale, found.log_martingale_ = (
            array_of("scale", float, arrays),
            array_of("log_martingale", float, arrays),
        )
        found.history_ = array_of("history", ("f", "n"), arrays).tolist()
        found._arrivals.kept = array_of("kept", ("f", "n"), arrays)
        check_ascending("kept", found._arrivals.kept)
        check_that(len(found.history_) == min(found.n_seen_, _HISTORY), "history", "the capital at each p-value")
        alarm = found.alarm_time_
        check_that(alarm is None or 0 < alarm <= found.n_seen_, "alarm_time", "one of the p-values seen, or none")
        found._arrivals.rng.bit_generator.state = document["generator"]
        return found

    def certificate(self) -> Certificate:
        """What an alarm means."""
        return Certificate(
            f"the probability of ever giving a false alarm is at most {self.alpha:g}",
            ("the cases of the stream are exchangeable until the change",),
            ("several cases of one patient in a row", "p-values that share a fixed calibration set"),
            1 - self.alpha,
            getattr(self, "n_seen_", 0),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_seen_")
