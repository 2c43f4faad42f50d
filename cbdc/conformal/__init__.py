"""Conformal prediction sets over any classifier: scores, thresholds, and the meta-estimator that joins them."""

from .certificate import Certificate, Condition
from .classifier import ConformalClassifier
from .covariate_shift import CovariateShiftConformalClassifier
from .hierarchical import HierarchicalConformalClassifier
from .label_shift import LabelShiftConformalClassifier
from .pac import pac_least_n, pac_p_values, pac_rank
from .patients import approximate_band, draw_one, effective_n
from .scores import SCORES, aps, content_uniform, lac, margin, rank, raps, saps, topk
from .synthetic import SyntheticPoweredConformalClassifier, guard_ranks
from .thresholds import CalibrationScores, least_n

__all__ = [
    "SCORES",
    "CalibrationScores",
    "Certificate",
    "Condition",
    "ConformalClassifier",
    "CovariateShiftConformalClassifier",
    "HierarchicalConformalClassifier",
    "LabelShiftConformalClassifier",
    "SyntheticPoweredConformalClassifier",
    "approximate_band",
    "aps",
    "content_uniform",
    "draw_one",
    "effective_n",
    "guard_ranks",
    "lac",
    "least_n",
    "margin",
    "pac_least_n",
    "pac_p_values",
    "pac_rank",
    "rank",
    "raps",
    "saps",
    "topk",
]
