"""The guarantee, and the want of one, in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from ..metrics import conformal_rank
from .thresholds import least_n

_LISTED = 12  # conditions named one by one; of more, the smallest


def describe_guarantee(
    counts: np.ndarray, classes: Sequence[Any] | None, groups: Sequence[Any] | None, confidence_level: float
) -> str:
    """Assumption, statement, and the 90% band of the coverage given the calibration cases, for each condition."""
    among = {
        (False, False): "on average over all cases",
        (True, False): "among the cases of each class",
        (False, True): "among the cases of each group",
        (True, True): "among the cases of each class in each group",
    }[classes is not None, groups is not None]
    cells = _cells(counts, classes, groups)
    bands = []
    for name, _, n in cells[:_LISTED]:
        rank = conformal_rank(n, confidence_level)
        if rank > n:
            bands.append(f"{name or 'all'} (n = {n}): 1, always in the set")
        else:
            low, high = stats.beta.ppf([0.05, 0.95], rank, n + 1 - rank)
            bands.append(f"{name or 'all'} (n = {n}): {low:.3f} to {high:.3f}")
    more = f"; {len(cells) - _LISTED} more have more cases" if len(cells) > _LISTED else ""
    return (
        f"If this case and the {int(counts.sum())} calibration cases are exchangeable (independent cases of the same "
        f"population, none of them trained on), the set holds the true class with probability at least "
        f"{confidence_level:g} {among}. With these calibration cases the coverage in the long run lies, with "
        f"probability 0.9, within: {'; '.join(bands)}{more}. It is no statement about a single case."
    )


def describe_small_conditions(
    counts: np.ndarray, classes: Sequence[Any] | None, groups: Sequence[Any] | None, confidence_level: float
) -> str:
    """Which conditions have too few cases, and what follows; empty if none."""
    needed = least_n(confidence_level)
    small = [cell for cell in _cells(counts, classes, groups) if cell[2] < needed]
    if not small:
        return ""
    listed = "; ".join(
        f"{name or 'calibration'}: {n} case{'s' * (n != 1)}, so {effect}" for name, effect, n in small[:_LISTED]
    )
    more = f"; and {len(small) - _LISTED} more" if len(small) > _LISTED else ""
    fix = "calibrate on more cases, or lower the level"
    if classes is not None or groups is not None:
        fix += ", or condition on less"
    return (
        f"Too few calibration cases for a finite threshold at confidence level {confidence_level:g}, which takes "
        f"{needed}. {listed}{more}. Fix: {fix}."
    )


def _cells(
    counts: np.ndarray, classes: Sequence[Any] | None, groups: Sequence[Any] | None
) -> list[tuple[str, str, int]]:
    """Name, effect of an infinite threshold, and number of cases of each condition, the fewest cases first."""
    cells = []
    for (g, k), n in np.ndenumerate(counts):
        names = [f"class {classes[k]!r}"] if classes is not None else []
        names += [f"group {groups[g]!r}"] if groups is not None else []
        effect = "every set " + ("" if groups is None else "there ") + "holds "
        effect += (
            "it" if classes is not None and groups is None else "this class" if classes is not None else "every class"
        )
        cells.append((" in ".join(names), effect, int(n)))
    return sorted(cells, key=lambda cell: cell[2])
