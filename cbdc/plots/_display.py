"""What all displays share: their colours, and where they draw."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Told apart under every common kind of colour blindness (Okabe and Ito), and by lightness in print.
COLORS = {"observed": "#0072b2", "missed": "#d55e00", "expected": "#c3ccd6", "reference": "#6b7683"}


class Display:
    """Where a display draws."""

    ax_: Axes
    figure_: Any

    def _start(self, ax: Axes | None, figsize: tuple[float, float] = (5.0, 4.0)) -> Axes:
        self.ax_ = Figure(figsize=figsize, layout="constrained").add_subplot() if ax is None else ax
        self.figure_ = self.ax_.figure
        self.ax_.spines[["top", "right"]].set_visible(False)
        return self.ax_
