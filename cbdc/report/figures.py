"""From arrays to the figures of an evaluation; intervals that know which images belong together."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import check_random_state

from .. import metrics

__all__ = [
    "GUARANTEED",
    "TITLES",
    "group_columns",
    "interval",
    "number",
    "percent",
    "plain",
    "probability_figures",
    "set_figures",
]

_PROBABILITY = 0.95  # of every interval and band
_N_BINS = 15
GUARANTEED = "groups of the guarantee"
_AGES = {"0 to 29": 0, "30 to 44": 30, "45 to 59": 45, "60 to 74": 60, "75 and over": 75}  # from, in years

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC, mean over classes",
    "ece": "ECE",
    "classwise_ece": "classwise ECE",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
    "aurc": "AURC",
}


def group_columns(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Groups of each row by column, as text; None where unknown."""
    columns = {}
    for name in dict.fromkeys(names):
        if name in frame and frame[name].notna().any():
            values = frame[name]
            if name == "age":
                values = pd.cut(values.astype(float), [*_AGES.values(), math.inf], right=False, labels=list(_AGES))
            known = values.notna().to_numpy()
            texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
            columns[name] = np.array([t if k else None for t, k in zip(texts, known)], dtype=object)
    return columns


def probability_figures(
    proba: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    lesions: np.ndarray,
    n_resamples: int,
    random_state: int | None,
) -> dict[str, Any]:
    """Figures over all images; intervals from the units, the noise of the calibration error from the lesions."""
    right = proba.argmax(axis=1) == labels
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "balanced_accuracy": metrics.balanced_accuracy,
        "auroc": metrics.auroc,
        "brier": metrics.brier_score,
        "nll": metrics.negative_log_likelihood,
        "aurc": metrics.aurc,
    }
    low, high = metrics.cluster_interval(right, units, _PROBABILITY)
    figures: dict[str, Any] = {"accuracy": {"value": right.mean(), "low": low, "high": high}}
    intervals = _bootstrap(measures, proba, labels, units, n_resamples, random_state)
    for name, measure in measures.items():
        low, high = intervals[name]
        figures[name] = {"value": measure(proba, labels), "low": low, "high": high}
    # no bootstrap interval: resampling adds the very noise that these errors are biased by; the floor says more
    for name, error in [("ece", metrics.expected_calibration_error), ("classwise_ece", metrics.classwise_ece)]:
        figures[name] = {"value": error(proba, labels, _N_BINS), "low": None, "high": None}
    floor = metrics.ece_noise_floor(proba, _N_BINS, units=lesions, quantile=_PROBABILITY, random_state=random_state)
    figures = {name: figures[name] for name in TITLES}
    return {**figures, "ece_noise_mean": floor[0], "ece_noise_floor": floor[1], "n": len(labels), "n_bins": _N_BINS}


def _bootstrap(
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]],
    proba: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    n_resamples: int,
    random_state: int | None,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over resamples of whole units."""
    if units.max() == units.min():  # one unit says nothing of how they spread
        return dict.fromkeys(measures, (math.nan, math.nan))
    rng = check_random_state(random_state)
    order = np.argsort(units, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(n_resamples):
        rows = np.concatenate([members[u] for u in rng.randint(len(members), size=len(members))])
        for name, measure in measures.items():
            found[name].append(measure(proba[rows], labels[rows]))
    tail = (1 - _PROBABILITY) / 2
    return {name: _quantiles(values, [tail, 1 - tail]) for name, values in found.items()}


def _quantiles(values: list[float], at: list[float]) -> tuple[float, float]:
    """Quantiles of what is defined; no interpolation, which fails at infinity."""
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return math.nan, math.nan
    low, high = np.quantile(defined, at, method="inverted_cdf")
    return float(low), float(high)


def set_figures(
    sets: np.ndarray,
    labels: np.ndarray,
    *,
    sample: np.ndarray,
    units: np.ndarray,
    classes: tuple[str, ...],
    columns: dict[str, np.ndarray],
    groups: np.ndarray | None,
    n_calibration: Any,
    rank: Callable[[int], int],
    confidence_level: float,
    least_n: int,
) -> dict[str, Any]:
    """Figures of the sets at one level: of one image a unit, and, beside them, of every image."""
    one, truth = sets[sample], labels[sample]

    def table(groups: np.ndarray | None, n_calibration: Any = None) -> pd.DataFrame:
        return metrics.coverage_table(
            one,
            truth,
            classes=classes,
            groups=None if groups is None else groups[sample],
            n_calibration=n_calibration,
            confidence_level=None if n_calibration is None else confidence_level,
            rank=rank,
            least_n=least_n,
            probability=_PROBABILITY,
        )

    def rows(table: pd.DataFrame, by: str) -> list[dict[str, Any]]:
        return table[table["by"] == by].drop(columns="by").to_dict("records")

    conditional = table(groups, n_calibration)  # the cells that have thresholds of their own
    by_group = {column: rows(table(values), "group") for column, values in columns.items()}
    if groups is not None:
        by_group = {GUARANTEED: rows(conditional, "group"), **by_group}
    covered, every = one[np.arange(len(truth)), truth], sets[np.arange(len(labels)), labels]
    low, high = metrics.clopper_pearson(covered.sum(), len(covered), _PROBABILITY)
    low_all, high_all = metrics.cluster_interval(every, units, _PROBABILITY)
    band = conditional.loc[0, ["band_low", "band_high"]].to_list()
    return {
        "coverage": {"value": covered.mean(), "low": low, "high": high, "covered": covered.sum(), "n": len(covered)},
        "band": None if np.isnan(band).any() else band,
        "coverage_all_images": {"value": every.mean(), "low": low_all, "high": high_all, "n": len(every)},
        "mean_set_size": metrics.mean_set_size(one),
        "singleton_rate": metrics.singleton_rate(one),
        "empty_rate": metrics.empty_rate(one),
        "set_sizes": metrics.set_size_histogram(one),
        "by_class": rows(conditional, "class"),
        "by_group": by_group,
    }


def plain(value: Any) -> Any:
    """JSON-able: plain numbers, None for NaN, the word for infinity."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinite"
    return value


def number(value: float | str | None, digits: int = 3) -> str:
    """A figure for a reader; a dash where it is not defined."""
    return value if isinstance(value, str) else "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A rate in percent; a dash where it is not defined."""
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def interval(low: float | str | None, high: float | str | None, *, rate: bool = True) -> str:
    """Both ends, of a rate in percent; a dash where they are not defined."""
    if low is None or high is None:
        return "-"
    if not rate or isinstance(low, str) or isinstance(high, str):
        return f"{number(low)} to {number(high)}"
    return f"{100 * low:.1f} to {100 * high:.1f}%"
