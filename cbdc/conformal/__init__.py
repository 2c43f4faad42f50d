"""Conformal prediction sets over any classifier: scores, thresholds, and the meta-estimator that joins them."""

from ._uniform import content_uniform
from .ambiguous import MonteCarloConformalClassifier, plausibilities_from_differentials
from .bayes import ConformalBayesClassifier
from .certificate import Certificate, Condition
from .classifier import ConformalClassifier
from .conditional import ConditionalConformalClassifier
from .covariate_shift import CovariateShiftConformalClassifier
from .drift import DriftMonitor, smoothed_p_values
from .hierarchical import HierarchicalConformalClassifier
from .label_shift import LabelShiftConformalClassifier
from .malignancy import MalignancyClassifier
from .outliers import ConformalOutlierDetector, benjamini_hochberg
from .pac import pac_least_n, pac_p_values, pac_rank
from .pareto import effective_sample_size, pareto_k
from .patients import approximate_band, draw_one, effective_n
from .quadrature import quadrature_bound, quadrature_index, risk_exceedance
from .risk import crc_index, ltt_indices, rcps_index, risk_p_values
from .scores import SCORES, aps, lac, margin, rank, raps, saps, topk
from .stream import OnlineConformalClassifier
from .synthetic import SyntheticPoweredConformalClassifier, guard_ranks
from .thresholds import CalibrationScores, least_n
from .triage import ConformalTriage

__all__ = [
    "SCORES",
    "CalibrationScores",
    "Certificate",
    "Condition",
    "ConditionalConformalClassifier",
    "ConformalBayesClassifier",
    "ConformalClassifier",
    "ConformalOutlierDetector",
    "ConformalTriage",
    "CovariateShiftConformalClassifier",
    "DriftMonitor",
    "HierarchicalConformalClassifier",
    "LabelShiftConformalClassifier",
    "MalignancyClassifier",
    "MonteCarloConformalClassifier",
    "OnlineConformalClassifier",
    "SyntheticPoweredConformalClassifier",
    "approximate_band",
    "aps",
    "benjamini_hochberg",
    "content_uniform",
    "crc_index",
    "draw_one",
    "effective_n",
    "effective_sample_size",
    "guard_ranks",
    "lac",
    "least_n",
    "ltt_indices",
    "margin",
    "pac_least_n",
    "pac_p_values",
    "pac_rank",
    "pareto_k",
    "plausibilities_from_differentials",
    "quadrature_bound",
    "quadrature_index",
    "rank",
    "raps",
    "rcps_index",
    "risk_exceedance",
    "risk_p_values",
    "saps",
    "smoothed_p_values",
    "topk",
]
