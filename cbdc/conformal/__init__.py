"""Conformal prediction sets over any classifier: scores, thresholds, and the meta-estimator that joins them."""

from .certificate import Certificate, Condition
from .classifier import ConformalClassifier
from .hierarchical import HierarchicalConformalClassifier
from .scores import SCORES, aps, content_uniform, lac
from .thresholds import CalibrationScores, least_n

__all__ = [
    "SCORES",
    "CalibrationScores",
    "Certificate",
    "Condition",
    "ConformalClassifier",
    "HierarchicalConformalClassifier",
    "aps",
    "content_uniform",
    "lac",
    "least_n",
]
