"""Rows that an estimator was trained or tuned on, remembered by hashes, to notice them among the calibration cases."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

__all__ = ["count_seen", "row_hashes"]


def row_hashes(X: Any) -> np.ndarray:
    """A 64-bit hash of each row (n,), equal for equal rows of this process; empty where rows have no plain content.

    A data frame and an array of the same numbers have the same hashes, in float32 and float64 too.
    """
    none = np.empty(0, dtype=np.int64)
    if sparse.issparse(X):
        return none
    try:
        table = np.asarray(X)
        if table.dtype.kind in "biuf" and table.ndim > 0:
            rows = np.ascontiguousarray(table.reshape(len(table), -1), dtype=float) + 0.0  # one zero, not two
            return np.fromiter((hash(row.tobytes()) for row in rows), np.int64, len(rows))
        frame = pd.DataFrame(X if isinstance(X, pd.DataFrame) else table.reshape(len(table), -1))
        return pd.util.hash_pandas_object(frame, index=False).to_numpy().view(np.int64)
    except (TypeError, ValueError):  # cells that are lists or arrays
        return none


def count_seen(hashes: np.ndarray, seen: np.ndarray) -> int:
    """How many rows are among those seen; 0 where as many may be by chance.

    Of cases like those seen the share that repeats one of them is that of those seen that repeat each other: votes and
    other coarse rows coincide. Three more are allowed, since none may be seen to repeat where some do, and then three
    standard deviations.
    """
    if len(hashes) == 0 or len(seen) == 0:
        return 0
    _, place, counts = np.unique(seen, return_inverse=True, return_counts=True)
    by_chance = len(hashes) * (np.sum(counts[place] > 1) + 3) / len(seen)
    found = int(np.isin(hashes, seen).sum())
    return found if found > by_chance + 3 * math.sqrt(by_chance) else 0
