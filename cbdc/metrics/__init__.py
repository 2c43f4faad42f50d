"""Figures of merit for prediction sets and probabilities, each with the exact law of its noise where one is known."""

from .bands import clopper_pearson, cluster_interval, conformal_rank, coverage_band, design_effect, exact_level
from .calibration import (
    classwise_ece,
    ece_noise_floor,
    expected_calibration_error,
    reliability_curve,
)
from .probabilities import (
    aurc,
    auroc,
    balanced_accuracy,
    brier_score,
    check_codes,
    check_probabilities,
    class_table,
    negative_log_likelihood,
    risk_coverage_curve,
)
from .sets import (
    class_coverage,
    coverage,
    coverage_table,
    empty_rate,
    mean_set_size,
    set_size_histogram,
    singleton_rate,
    size_stratified_coverage,
)

__all__ = [
    "aurc",
    "auroc",
    "balanced_accuracy",
    "brier_score",
    "check_codes",
    "check_probabilities",
    "class_coverage",
    "class_table",
    "classwise_ece",
    "clopper_pearson",
    "cluster_interval",
    "conformal_rank",
    "coverage",
    "coverage_band",
    "coverage_table",
    "design_effect",
    "ece_noise_floor",
    "empty_rate",
    "exact_level",
    "expected_calibration_error",
    "mean_set_size",
    "negative_log_likelihood",
    "reliability_curve",
    "risk_coverage_curve",
    "set_size_histogram",
    "singleton_rate",
    "size_stratified_coverage",
]
