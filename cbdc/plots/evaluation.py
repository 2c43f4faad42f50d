"""How good the probabilities and the prediction sets are."""

from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from .. import metrics
from ._display import COLORS, Display

__all__ = [
    "ClassCoverageDisplay",
    "CoverageLevelDisplay",
    "ReliabilityDisplay",
    "RiskCoverageDisplay",
    "SetSizeDisplay",
]


class ReliabilityDisplay(Display):
    """Accuracy against confidence, bin by bin, with the expected calibration error and its noise floor.

    Parameters
    ----------
    confidence, accuracy : array-like of shape (n_bins,)
        Mean largest probability and share of right predictions in each bin; NaN in an empty bin.
    counts : array-like of shape (n_bins,), int
        Cases in each bin.
    ece : float, optional
        Expected calibration error.
    noise_floor : float, optional
        The error that a calibrated model stays under with a probability of 95%.
    intervals : array-like of shape (n_bins, 2), optional
        Of each accuracy; by default exact ones, of independent cases.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    cbdc.metrics.reliability_curve : The numbers.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> proba = rng.dirichlet([1, 1, 1], 500)
    >>> y = [rng.choice(3, p=p) for p in proba]
    >>> display = ReliabilityDisplay.from_predictions(proba, y, random_state=0)
    >>> display.ax_.get_xlabel()
    'confidence (largest probability)'
    """

    def __init__(
        self,
        confidence: ArrayLike,
        accuracy: ArrayLike,
        counts: ArrayLike,
        *,
        ece: float | None = None,
        noise_floor: float | None = None,
        intervals: ArrayLike | None = None,
    ) -> None:
        self.confidence = np.asarray(confidence, dtype=float)
        self.accuracy = np.asarray(accuracy, dtype=float)
        self.counts = np.asarray(counts)
        self.ece = ece
        self.noise_floor = noise_floor
        self.intervals = None if intervals is None else np.asarray(intervals, dtype=float)

    @classmethod
    def from_predictions(
        cls,
        proba: ArrayLike,
        y: ArrayLike,
        *,
        n_bins: int = 15,
        units: ArrayLike | None = None,
        noise_floor: float | None = None,
        strategy: str = "uniform",
        random_state: int | np.random.RandomState | None = None,
        ax: Axes | None = None,
        **plot_options: Any,
    ) -> "ReliabilityDisplay":
        """Draw the reliability of probabilities (n, n_classes) for true columns y (n,).

        `n_bins`, `units`, `strategy` and `random_state` are those of `expected_calibration_error` and
        `ece_noise_floor`, which gives the `noise_floor` unless it is given; with units the intervals are those of
        `cluster_interval`.
        """
        curve = metrics.reliability_curve(proba, y, n_bins, strategy=strategy)
        ece = metrics.expected_calibration_error(proba, y, n_bins, strategy=strategy)
        if noise_floor is None:
            noise_floor = metrics.ece_noise_floor(
                proba, n_bins, units=units, strategy=strategy, random_state=random_state
            )[1]
        intervals = None if units is None else _cluster_intervals(np.asarray(proba), np.asarray(y), units, curve)
        columns = curve["confidence"], curve["accuracy"], curve["n"]
        display = cls(*columns, ece=ece, noise_floor=noise_floor, intervals=intervals)
        return display.plot(ax, **plot_options)

    def plot(self, ax: Axes | None = None, *, name: str = "accuracy in bin") -> "ReliabilityDisplay":
        """Draw on `ax`, or on a new figure; `name` stands in the legend."""
        ax = self._start(ax)
        there = self.counts > 0
        x, y, n = self.confidence[there], self.accuracy[there], self.counts[there]
        if self.intervals is None:
            low, high = metrics.clopper_pearson(np.rint(y * n), n)
        else:
            low, high = self.intervals[there].T
        share = 0.16 * n / max(n.max(initial=1), 1)
        ax.bar(x, share, width=0.022, color=COLORS["expected"], label="cases in bin")
        for xi, height, count in zip(x, share, n):
            ax.annotate(f"{count}", (xi, height), (0, 2), textcoords="offset points", ha="center", fontsize=7)
        ax.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=COLORS["reference"], label="calibrated")
        ax.vlines(x, low, high, color=COLORS["observed"], linewidth=1.4)
        ax.plot(x, y, "o", color=COLORS["observed"], markersize=5.5, label=f"{name}, 95% interval")
        floor = "" if self.noise_floor is None else f" (noise alone: up to {self.noise_floor:.3f})"
        title = None if self.ece is None else f"ECE {self.ece:.3f}{floor}"
        ax.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="confidence (largest probability)", ylabel="accuracy")
        style = {"fontsize": "small", "title_fontsize": "small", "alignment": "left", "frameon": False}
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, title=title, **style)
        return self


def _cluster_intervals(proba: np.ndarray, y: np.ndarray, units: ArrayLike, curve: pd.DataFrame) -> np.ndarray:
    """Interval of the accuracy in each bin of a reliability curve, (n_bins, 2); NaN with fewer than two units."""
    right, units = proba.argmax(axis=1) == y, np.asarray(units)
    bins = np.minimum(np.searchsorted(curve["upper"], proba.max(axis=1)), len(curve) - 1)
    return np.array([metrics.cluster_interval(right[bins == b], units[bins == b]) for b in range(len(curve))])


class ClassCoverageDisplay(Display):
    """Coverage of each class or group: rate and exact interval, and the band that the guarantee leads to expect.

    Parameters
    ----------
    labels : sequence of str
        Names of the rows.
    n, covered : array-like of shape (n_rows,), int
        Cases, and those whose set holds the true class.
    bands : array-like of shape (n_rows, 2), optional
        Expected band of each row; NaN where nothing is guaranteed of it.
    confidence_level : float, optional
        Nominal level of the sets.
    least_n : int, default=10
        Rows of fewer cases are drawn hollow and marked.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    cbdc.metrics.coverage_table : The numbers.

    Examples
    --------
    >>> display = ClassCoverageDisplay(["melanoma", "nevus"], [40, 4], [36, 4], confidence_level=0.9).plot()
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['melanoma\\nn = 40', 'nevus\\nn = 4, too small']
    """

    def __init__(
        self,
        labels: Sequence[Any],
        n: ArrayLike,
        covered: ArrayLike,
        *,
        bands: ArrayLike | None = None,
        confidence_level: float | None = None,
        least_n: int = 10,
    ) -> None:
        self.labels = [str(label) for label in labels]
        self.n = np.asarray(n)
        self.covered = np.asarray(covered)
        self.bands = np.full((len(self.n), 2), np.nan) if bands is None else np.asarray(bands, dtype=float)
        self.confidence_level = confidence_level
        self.least_n = least_n

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        *,
        confidence_level: float | None = None,
        least_n: int = 10,
        ax: Axes | None = None,
        **plot_options: Any,
    ) -> "ClassCoverageDisplay":
        """Draw rows of `cbdc.metrics.coverage_table`."""
        bands = table[["band_low", "band_high"]].to_numpy(float)
        display = cls(
            table["name"].tolist(),
            table["n"],
            table["covered"],
            bands=bands,
            confidence_level=confidence_level,
            least_n=least_n,
        )
        return display.plot(ax, **plot_options)

    @classmethod
    def from_predictions(
        cls,
        sets: ArrayLike,
        y: ArrayLike,
        *,
        classes: Sequence[Any] | None = None,
        groups: ArrayLike | None = None,
        n_calibration: Any = None,
        confidence_level: float | None = None,
        least_n: int = 10,
        ax: Axes | None = None,
        **plot_options: Any,
    ) -> "ClassCoverageDisplay":
        """Draw the coverage of prediction sets (n, n_classes) by class, or by group where `groups` (n,) are given.

        The arguments are those of `cbdc.metrics.coverage_table`.
        """
        table = metrics.coverage_table(
            sets,
            y,
            classes=classes,
            groups=groups,
            n_calibration=n_calibration,
            confidence_level=None if n_calibration is None else confidence_level,
            least_n=least_n,
        )
        rows = table[table["by"] == ("class" if groups is None else "group")]
        return cls.from_table(rows, confidence_level=confidence_level, least_n=least_n, ax=ax, **plot_options)

    def plot(self, ax: Axes | None = None) -> "ClassCoverageDisplay":
        """Draw on `ax`, or on a new figure, one row for each class."""
        ax = self._start(ax, (7.6, 1.4 + 0.45 * len(self.labels)))
        rows = np.arange(len(self.labels))
        enough = self.n >= max(self.least_n, 1)
        banded = np.isfinite(self.bands).all(axis=1)
        # a band of no width (an infinite threshold: every class is in the set) is still to be seen
        low, high = self.bands[banded].T
        ax.barh(rows[banded], np.maximum(high - low, 0.003), left=low, height=0.56, color=COLORS["expected"])
        if self.confidence_level is not None:
            ax.axvline(self.confidence_level, linestyle="--", linewidth=1, color=COLORS["reference"])
        there = self.n > 0
        rate = np.divide(self.covered, self.n, out=np.full(len(rows), np.nan), where=there)
        low, high = metrics.clopper_pearson(self.covered, self.n)
        for some, style, face in [(enough, "-", COLORS["observed"]), (there & ~enough, ":", "none")]:
            ax.hlines(rows[some], low[some], high[some], color=COLORS["observed"], linewidth=1.6, linestyle=style)
            ax.plot(rate[some], rows[some], "o", color=COLORS["observed"], markerfacecolor=face, markersize=6)
        texts = [
            f"{shorten(label, 48, placeholder=' ...')}\nn = {n:,}{'' if big else ', too small'}"
            for label, n, big in zip(self.labels, self.n, enough)
        ]
        ax.set_yticks(rows, texts, parse_math=False)
        lowest = np.nanmin(np.concatenate([low, self.bands.ravel(), [0.75]]))
        ax.set(xlim=(max(0.0, np.floor(lowest * 20) / 20 - 0.02), 1.012), ylim=(len(rows) - 0.5, -0.5))
        ax.set_xlabel("coverage: share of cases whose set holds the true class")
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.tick_params(axis="y", length=0)
        self._legend(ax, bool(banded.any()), bool((there & ~enough).any()))
        return self

    def _legend(self, ax: Axes, banded: bool, hollow: bool) -> None:
        blue = COLORS["observed"]
        handles: list[Any] = [Line2D([], [], marker="o", color=blue, label="observed, 95% interval")]
        if hollow:
            style: dict[str, Any] = {"linestyle": ":", "markerfacecolor": "none"}
            handles.append(Line2D([], [], marker="o", color=blue, label="n too small to judge", **style))
        if banded:
            handles.append(Patch(color=COLORS["expected"], label="expected, 95% band"))
        if self.confidence_level is not None:
            text = f"nominal {100 * self.confidence_level:g}%"
            handles.append(Line2D([], [], linestyle="--", color=COLORS["reference"], label=text))
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small", frameon=False)


class SetSizeDisplay(Display):
    """How many prediction sets there are of each size, and in how many of them the true class is missing.

    Parameters
    ----------
    counts : array-like of shape (n_classes + 1,), int
        Number of sets of each size, empty sets first.
    missed : array-like of shape (n_classes + 1,), int, optional
        How many of them do not hold the true class.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    cbdc.metrics.set_size_histogram : The numbers.

    Examples
    --------
    >>> display = SetSizeDisplay.from_predictions([[True, False], [True, True], [True, True]], y=[1, 0, 1])
    >>> display.counts.tolist(), display.missed.tolist()
    ([0, 1, 2], [0, 1, 0])
    """

    def __init__(self, counts: ArrayLike, *, missed: ArrayLike | None = None) -> None:
        self.counts = np.asarray(counts)
        self.missed = None if missed is None else np.asarray(missed)

    @classmethod
    def from_predictions(
        cls, sets: ArrayLike, y: ArrayLike | None = None, *, ax: Axes | None = None, **plot_options: Any
    ) -> "SetSizeDisplay":
        """Draw the sizes of prediction sets (n, n_classes); the true columns y (n,) add where they miss."""
        counts, missed = metrics.set_size_histogram(sets), None
        if y is not None:
            covered = np.nan_to_num(metrics.size_stratified_coverage(sets, y), nan=1.0)
            missed = counts - np.rint(covered * counts).astype(int)
        return cls(counts, missed=missed).plot(ax, **plot_options)

    def plot(self, ax: Axes | None = None) -> "SetSizeDisplay":
        """Draw on `ax`, or on a new figure."""
        ax = self._start(ax)
        sizes, total = np.arange(len(self.counts)), max(self.counts.sum(), 1)
        missed = np.zeros_like(self.counts) if self.missed is None else self.missed
        names = ("sets", None) if self.missed is None else ("true class in the set", "true class missing")
        ax.bar(sizes, self.counts - missed, color=COLORS["observed"], label=names[0])
        if self.missed is not None:
            ax.bar(sizes, missed, bottom=self.counts - missed, color=COLORS["missed"], label=names[1])
            ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small", frameon=False)
        for size, count in zip(sizes, self.counts):
            text = f"{100 * count / total:.0f}%" if count else "0"
            ax.annotate(text, (size, count), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        ax.set(xlabel="classes in the prediction set", ylabel="cases", ylim=(0, 1.12 * max(self.counts.max(), 1)))
        ax.set_xticks(sizes if len(sizes) <= 16 else sizes[:: len(sizes) // 10])
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        return self


class CoverageLevelDisplay(Display):
    """Realised coverage against the nominal confidence level, with the exact band that chance allows.

    Parameters
    ----------
    confidence_levels, coverage : array-like of shape (n_levels,)
        Nominal levels, and the coverage of the sets at each.
    bands : array-like of shape (n_levels, 2), optional
        Expected band at each level.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    cbdc.metrics.coverage_band : The band.

    Examples
    --------
    >>> CoverageLevelDisplay([0.8, 0.9], [0.81, 0.9], bands=[[0.75, 0.85], [0.86, 0.94]]).plot().ax_.get_ylabel()
    'coverage'
    """

    def __init__(self, confidence_levels: ArrayLike, coverage: ArrayLike, *, bands: ArrayLike | None = None) -> None:
        self.confidence_levels = np.asarray(confidence_levels, dtype=float)
        self.coverage = np.asarray(coverage, dtype=float)
        self.bands = None if bands is None else np.asarray(bands, dtype=float)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        confidence_levels: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
        n_calibration: int | ArrayLike | None = None,
        ax: Axes | None = None,
        **plot_options: Any,
    ) -> "CoverageLevelDisplay":
        """Draw the coverage of a conformal classifier's `predict_set` on X with labels y (n,) at each level.

        Parameters
        ----------
        estimator : ConformalClassifier, CBDCClassifier or the like
        X : array-like or images
        y : array-like of shape (n,)
            Labels as in `estimator.classes_`.
        confidence_levels : sequence of float
        n_calibration : int or array-like of shape (n_classes,), optional
            Calibration cases, for the band; see `cbdc.metrics.coverage_table`.
        ax : matplotlib Axes, optional
        **plot_options
            Of `plot`.
        """
        position = {label: k for k, label in enumerate(estimator.classes_.tolist())}
        if unknown := set(np.asarray(y).tolist()) - set(position):
            raise ValueError(f"y: label {unknown.pop()!r} is not among the classes {list(position)}.")
        codes = np.array([position[label] for label in np.asarray(y).tolist()], dtype=int)
        tables = [
            metrics.coverage_table(
                estimator.predict_set(X, level),
                codes,
                n_calibration=n_calibration,
                confidence_level=None if n_calibration is None else level,
                least_n=1,
            ).iloc[0]
            for level in confidence_levels
        ]
        bands = None if n_calibration is None else [[row["band_low"], row["band_high"]] for row in tables]
        return cls(confidence_levels, [row["coverage"] for row in tables], bands=bands).plot(ax, **plot_options)

    def plot(self, ax: Axes | None = None, *, name: str = "observed") -> "CoverageLevelDisplay":
        """Draw on `ax`, or on a new figure; `name` stands in the legend."""
        ax = self._start(ax)
        order = np.argsort(self.confidence_levels)
        x, y = self.confidence_levels[order], self.coverage[order]
        if self.bands is not None:
            low, high = self.bands[order].T
            ax.fill_between(x, low, high, color=COLORS["expected"], linewidth=0, label="expected, 95% band")
        seen = [x, y] if self.bands is None else [x, y, self.bands.ravel()]
        left, lowest = x.min() - 0.03, float(np.nanmin(np.concatenate(seen))) - 0.03
        ax.plot([left, 1], [left, 1], linestyle="--", linewidth=1, color=COLORS["reference"], label="nominal")
        ax.plot(x, y, "o-", color=COLORS["observed"], markersize=5.5, linewidth=1.4, label=name)
        ax.set(xlim=(left, 1.01), ylim=(min(left, lowest), 1.01), xlabel="confidence level", ylabel="coverage")
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.legend(loc="best", fontsize="small", frameon=False)
        return self


class RiskCoverageDisplay(Display):
    """Error rate among the most confident cases, against the share of cases that is kept.

    Parameters
    ----------
    kept : array-like of shape (n,)
        Share of cases kept, rising to 1.
    risk : array-like of shape (n,)
        Error rate among them.
    aurc : float, optional
        Area under the curve.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    cbdc.metrics.risk_coverage_curve : The numbers.

    Examples
    --------
    >>> display = RiskCoverageDisplay.from_predictions([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1])
    >>> round(display.aurc, 3)
    0.111
    """

    def __init__(self, kept: ArrayLike, risk: ArrayLike, *, aurc: float | None = None) -> None:
        self.kept = np.asarray(kept, dtype=float)
        self.risk = np.asarray(risk, dtype=float)
        self.aurc = aurc

    @classmethod
    def from_predictions(
        cls,
        proba: ArrayLike,
        y: ArrayLike,
        *,
        confidence: ArrayLike | None = None,
        ax: Axes | None = None,
        **plot_options: Any,
    ) -> "RiskCoverageDisplay":
        """Draw the curve of probabilities (n, n_classes) for true columns y (n,); see `risk_coverage_curve`."""
        kept, risk = metrics.risk_coverage_curve(proba, y, confidence=confidence)
        return cls(kept, risk, aurc=metrics.aurc(proba, y, confidence=confidence)).plot(ax, **plot_options)

    def plot(self, ax: Axes | None = None, *, name: str = "most confident first") -> "RiskCoverageDisplay":
        """Draw on `ax`, or on a new figure; `name` stands in the legend."""
        ax = self._start(ax)
        label = name if self.aurc is None else f"{name}, AURC {self.aurc:.3f}"
        ax.plot(self.kept, self.risk, color=COLORS["observed"], linewidth=1.6, label=label)
        if len(self.risk):
            everything = f"in any order: error rate {self.risk[-1]:.3f}"
            ax.axhline(self.risk[-1], linestyle="--", linewidth=1, color=COLORS["reference"], label=everything)
        top = 1.3 * max(self.risk.max(initial=0.0), 0.05)
        ax.set(xlim=(0, 1.01), ylim=(0, top), xlabel="share of cases kept", ylabel="error rate among them")
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.legend(loc="upper left", fontsize="small", frameon=False)
        return self
