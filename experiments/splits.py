"""A figure over several random splits of one data set: its mean, and a standard error that knows that they overlap."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TEST_SHARE, TRAIN_SHARE = 0.2, 0.6  # of `LesionDataset.split`


def over_splits(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard error of a figure.

    The splits part the same cases anew, so that their figures are not independent and the usual error, the standard
    deviation over the root of their number, is too small: it would fall to zero with ever more splits of the same
    cases. Nadeau and Bengio, *Inference for the generalization error*, Machine Learning 52, 2003,
    doi:10.1023/A:1024068626366: the variance over the splits times (1 / number + test cases / training cases).
    """
    n = len(values)
    factor = np.sqrt(1 / n + TEST_SHARE / TRAIN_SHARE)
    return {
        "mean": float(np.mean(values)),
        "error": float(np.std(values, ddof=1) * factor) if n > 1 else 0.0,  # of one split it is not known
        "splits": n,
    }


def shown(found: dict[str, float] | None, digits: int) -> str:
    if found is None:
        return ""
    error = f" ± {found['error']:.{digits}f}" if found["splits"] > 1 else ""
    return f"{found['mean']:.{digits}f}{error}"


def table(
    name: str, figures: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]], digits: Mapping[str, int]
) -> str:
    """A row a model, a column a figure; `digits` are three where they are not given."""
    lines = [
        f"| {label} | " + " | ".join(shown(of.get(figure), digits.get(figure, 3)) for figure in figures) + " |"
        for label, of in rows.items()
    ]
    return "\n".join([f"| {name} | {' | '.join(figures.values())} |", "|---" * (len(figures) + 1) + "|", *lines])
