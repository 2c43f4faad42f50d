"""How an embedding moves when photographs are perturbed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..topology import StabilityReport, persistence_diagrams
from ._display import COLORS, Display

__all__ = ["PersistenceDiagramDisplay", "StabilityMapDisplay", "StabilityProfileDisplay"]

_DIMENSION_COLORS = (COLORS["reference"], COLORS["observed"], COLORS["missed"])
_LABELS = {
    "displacement": "median displacement",
    "displacement_90": "displacement, 90% quantile",
    "H0": "bottleneck distance, dimension 0",
    "H1": "bottleneck distance, dimension 1",
    "capped": "certificate: capped distortion",
    "distortion": "certificate: distortion",
    "twice_displacement": "certificate: 2 x largest displacement",
    "neighbours_kept": "nearest neighbours kept",
    "flips": "labels changed",
    "sets_changed": "prediction sets changed",
    "set_overlap": "overlap of prediction sets",
    "set_size": "mean set size",
    "coverage": "coverage of the sets",
}
_LENGTHS = ("displacement", "displacement_90", "H0", "H1", "capped", "distortion", "twice_displacement")


class PersistenceDiagramDisplay:
    """Persistence diagrams side by side, on one scale.

    Parameters
    ----------
    diagrams : sequence of ndarray of shape (m, 3)
        Birth, death and dimension, as of `cbdc.topology.persistence_diagrams`.
    names : sequence of str, optional
        Title of each.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> E = rng.standard_normal((40, 5))
    >>> display = PersistenceDiagramDisplay.from_embeddings([E, E + 0.1], names=["before", "after"])
    >>> [ax.get_title() for ax in display.axes_]
    ['before', 'after']
    """

    def __init__(self, diagrams: Sequence[np.ndarray], *, names: Sequence[str] | None = None) -> None:
        self.diagrams = [np.asarray(diagram, dtype=float) for diagram in diagrams]
        self.names = [""] * len(self.diagrams) if names is None else list(names)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Sequence[ArrayLike],
        *,
        names: Sequence[str] | None = None,
        homology_dimensions: Sequence[int] = (0, 1),
        engine: str = "auto",
        axes: Sequence[Axes] | None = None,
    ) -> "PersistenceDiagramDisplay":
        """Compute the diagrams of several clouds and draw them.

        Parameters
        ----------
        embeddings : sequence of array-like of shape (n, n_features)
        names : sequence of str, optional
        homology_dimensions : sequence of int, default=(0, 1)
        engine : {"auto", "giotto", "gudhi"}, default="auto"
        axes : sequence of matplotlib Axes, optional
        """
        diagrams = [persistence_diagrams(E, homology_dimensions, engine) for E in embeddings]
        return cls(diagrams, names=names).plot(axes)

    def plot(self, axes: Sequence[Axes] | None = None) -> "PersistenceDiagramDisplay":
        """Draw on `axes`, one for each diagram, or on a new figure."""
        n = len(self.diagrams)
        if axes is None:
            figure = Figure(figsize=(4.2 * n, 4.2), layout="constrained")
            axes = figure.subplots(1, n, squeeze=False)[0]
        self.axes_ = np.array(axes, dtype=object)
        self.figure_: Any = self.axes_[0].figure
        finite = np.concatenate([diagram[:, 1] for diagram in self.diagrams])
        top = 1.05 * float(np.max(finite[np.isfinite(finite)], initial=0.0)) or 1.0
        for ax, diagram, name in zip(self.axes_, self.diagrams, self.names, strict=True):
            ax.spines[["top", "right"]].set_visible(False)
            ax.plot([0, top], [0, top], color=COLORS["expected"], linewidth=1)
            for k in np.unique(diagram[:, 2]).astype(int):
                birth, death, _ = diagram[diagram[:, 2] == k].T
                color = _DIMENSION_COLORS[k % len(_DIMENSION_COLORS)]
                death = np.minimum(death, top)  # a class that never dies lies on the upper edge
                ax.scatter(birth, death, s=14, color=color, alpha=0.6, linewidths=0, label=f"dimension {k}")
            ax.set(xlim=(-0.03 * top, top), ylim=(-0.03 * top, 1.02 * top), xlabel="birth", ylabel="death", title=name)
            ax.set_aspect("equal")
        self.axes_[-1].legend(loc="lower right", fontsize="small", frameon=False)
        return self


class StabilityProfileDisplay(Display):
    """One figure of a stability report against the severity, a line for each perturbation.

    Parameters
    ----------
    overall : DataFrame
        ``overall`` of a `cbdc.topology.StabilityReport`.
    figure_of_merit : str, default="displacement"
        A column of it.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> overall = pd.DataFrame({"perturbation": ["blur"] * 2, "severity": [1, 5], "flips": [0.02, 0.3]})
    >>> StabilityProfileDisplay(overall, "flips").plot().ax_.get_ylabel()
    'labels changed'
    """

    def __init__(self, overall: pd.DataFrame, figure_of_merit: str = "displacement") -> None:
        self.overall = overall
        self.figure_of_merit = figure_of_merit

    @classmethod
    def from_report(
        cls, report: StabilityReport, figure_of_merit: str = "displacement", *, ax: Axes | None = None
    ) -> "StabilityProfileDisplay":
        """Draw a column of a report.

        Parameters
        ----------
        report : StabilityReport
        figure_of_merit : str, default="displacement"
        ax : matplotlib Axes, optional
        """
        return cls(report.overall, figure_of_merit).plot(ax)

    def plot(self, ax: Axes | None = None) -> "StabilityProfileDisplay":
        """Draw on `ax`, or on a new figure."""
        ax = self._start(ax, (6.0, 4.5))
        ends = []
        for name, rows in self.overall.groupby("perturbation", sort=False):
            rows = rows.sort_values("severity")
            x, y = rows["severity"].to_numpy(), rows[self.figure_of_merit].to_numpy(dtype=float)
            ax.plot(x, y, "o-", color=COLORS["observed"], markersize=3.5, linewidth=1, alpha=0.75)
            if np.isfinite(y[-1]):
                ends.append((float(y[-1]), float(x[-1]), str(name).replace("_", " ")))
        low, high = ax.get_ylim()
        place = -np.inf
        for y_end, x_end, name in sorted(ends):  # names beside the ends of their lines, moved up where they would meet
            place = max(y_end, place + 0.042 * (high - low))
            line = {"arrowstyle": "-", "color": COLORS["reference"], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            at = x_end + 0.08 * max(np.ptp(self.overall["severity"]), 1)
            ax.annotate(name, (x_end, y_end), (at, place), fontsize="small", va="center", arrowprops=line)
        severities = np.unique(self.overall["severity"])
        unit = ", in median distances of two images" if self.figure_of_merit in _LENGTHS else ""
        ax.set(
            xlabel="severity",
            ylabel=_LABELS.get(self.figure_of_merit, self.figure_of_merit) + unit,
            xticks=severities,
            xlim=(severities[0] - 0.2, severities[-1] + 0.38 * max(np.ptp(severities), 1)),
            ylim=(low, max(high, place + 0.03 * (high - low))),
        )
        return self


class StabilityMapDisplay(Display):
    """Which perturbation hurts which class, or which skin type: a table in colours.

    Parameters
    ----------
    table : DataFrame
        ``by_class`` or ``by_group`` of a `cbdc.topology.StabilityReport`.
    figure_of_merit : {"flips", "displacement"}, default="flips"
    severity : int, optional
        Default: the largest.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> rows = [("blur", 5, "mel", 40, 31, 0.2), ("blur", 5, "df", 9, 8, np.nan)]
    >>> table = pd.DataFrame(rows, columns=["perturbation", "severity", "class", "n", "units", "flips"])
    >>> [text.get_text() for text in StabilityMapDisplay(table).plot().ax_.texts]
    ['few', '.20']
    """

    def __init__(self, table: pd.DataFrame, figure_of_merit: str = "flips", *, severity: int | None = None) -> None:
        self.table = table
        self.figure_of_merit = figure_of_merit
        self.severity = severity

    @classmethod
    def from_report(
        cls,
        report: StabilityReport,
        by: str = "class",
        figure_of_merit: str = "flips",
        *,
        severity: int | None = None,
        ax: Axes | None = None,
    ) -> "StabilityMapDisplay":
        """Draw the classes or the groups of a report.

        Parameters
        ----------
        report : StabilityReport
        by : {"class", "group"}, default="class"
        figure_of_merit : {"flips", "displacement"}, default="flips"
        severity : int, optional
        ax : matplotlib Axes, optional

        Raises
        ------
        ValueError
            If the report knows no classes, or no groups.
        """
        table = {"class": report.by_class, "group": report.by_group}[by]
        if table.empty:
            given = {"class": "y", "group": "groups"}[by]
            raise ValueError(f"by={by!r}: the report has none. Fix: give {given}= to StabilityDiagnostic.fit.")
        return cls(table, figure_of_merit, severity=severity).plot(ax)

    def plot(self, ax: Axes | None = None) -> "StabilityMapDisplay":
        """Draw on `ax`, or on a new figure."""
        by = "class" if "class" in self.table else "group"
        # at its own largest severity, a perturbation that knows one only is shown too
        chosen = self.table["severity"] == (
            self.table.groupby("perturbation")["severity"].transform("max") if self.severity is None else self.severity
        )
        rows = self.table[chosen]
        values = rows.pivot_table(self.figure_of_merit, "perturbation", by, sort=False, dropna=False)
        values = values[sorted(values.columns)]
        order = values.mean(axis=1).sort_values(ascending=False).index
        values = values.loc[order]
        counts = rows.groupby(by)["units"].first()
        labels = [str(name).replace("_", "\n") for name in values.columns]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        ax = self._start(ax, (1.5 + max(0.62, 0.11 * longest) * len(labels), 1.2 + 0.3 * values.shape[0]))
        ax.spines[["left", "bottom"]].set_visible(False)
        top = float(np.nanmax(values.to_numpy(dtype=float), initial=1e-12))
        ax.imshow(values.to_numpy(dtype=float), cmap="Blues", vmin=0, vmax=top, aspect="auto")
        for (i, j), value in np.ndenumerate(values.to_numpy(dtype=float)):
            told = np.isfinite(value)
            text = f"{value:.2f}".removeprefix("0") if told else "few"
            color = "white" if told and value > 0.6 * top else COLORS["reference"] if not told else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize="small", color=color)
        ax.set_xticks(
            range(values.shape[1]), [f"{label}\n{counts[name]}" for label, name in zip(labels, values.columns)]
        )
        ax.set_yticks(range(values.shape[0]), [str(name).replace("_", " ") for name in values.index])
        ax.tick_params(length=0)
        ax.set_xlabel(f"{by}, and its number of patients")
        at = "the largest severity" if self.severity is None else f"severity {self.severity}"
        ax.set_title(f"{_LABELS.get(self.figure_of_merit, self.figure_of_merit)}, {at}", fontsize="medium")
        return self
