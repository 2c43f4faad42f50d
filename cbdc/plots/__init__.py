"""`*Display` objects in scikit-learn's pattern: arrays in the constructor, `plot(ax)` draws them.

A figure made here belongs to no window and to no global state: it needs no screen and is freed like any other object.
"""

from ._display import COLORS
from .evaluation import (
    ClassCoverageDisplay,
    CoverageLevelDisplay,
    ReliabilityDisplay,
    RiskCoverageDisplay,
    SetSizeDisplay,
)
from .stability import PersistenceDiagramDisplay, StabilityMapDisplay, StabilityProfileDisplay

__all__ = [
    "COLORS",
    "ClassCoverageDisplay",
    "CoverageLevelDisplay",
    "PersistenceDiagramDisplay",
    "ReliabilityDisplay",
    "RiskCoverageDisplay",
    "SetSizeDisplay",
    "StabilityMapDisplay",
    "StabilityProfileDisplay",
]
