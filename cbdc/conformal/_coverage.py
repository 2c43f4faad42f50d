"""The realised coverage of a `ConformalClassifier`, row by row beside the band that its thresholds lead to expect."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..metrics import coverage_table
from ._words import make_certificate
from .groups import group_names

if TYPE_CHECKING:
    from .classifier import ConformalClassifier


def coverage_table_of(
    clf: "ConformalClassifier", sets: np.ndarray, y: Any, groups: Any, level: float, **options: Any
) -> pd.DataFrame:
    """`coverage_table` with the cells of the calibration: groups after merging, clusters, ranks and ties."""
    calibration, conditions = clf.calibration_, make_certificate(clf, level).conditions
    open_ended = np.array([c.high == 1 and not c.is_vacuous for c in conditions]).reshape(calibration.counts.shape)
    names = groups
    if clf.groups_ is not None:
        names = clf.groups_[clf._group_codes(groups, len(sets))]
    elif groups is not None and (isinstance(groups, pd.DataFrame) or np.ndim(groups) > 1):
        names = group_names(groups, len(sets))[0]
    if any(condition.approximate for condition in conditions):  # several cases of a unit: no exact law
        return coverage_table(sets, clf._labels(y, len(sets)), classes=clf.classes_, groups=names, **options)

    def by_condition(table: np.ndarray) -> Any:
        rows = table if clf.columns_ is not None else table[:, 0]
        return rows[0] if clf.groups_ is None else dict(zip(clf.groups_.tolist(), rows))

    return coverage_table(
        sets,
        clf._labels(y, len(sets)),
        classes=clf.classes_,
        groups=names,
        n_calibration=by_condition(calibration.n_units),
        columns=clf.columns_,
        open_ended=by_condition(open_ended),
        confidence_level=level,
        rank=lambda n: clf.rank(n, level),
        **options,
    )
