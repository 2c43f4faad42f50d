"""The shape of an embedding: persistence diagrams, their distances, and certificates of their stability."""

from .certificates import StabilityBounds, displacement, distortion, stability_bounds
from .cloud import Cloud
from .conformal import ConformalStabilityBound, cloud_scores, patient_clouds
from .diagram_distances import bottleneck_distance, wasserstein_distance
from .diagrams import persistence_diagrams, stack_diagrams
from .distances import distance_blocks, distance_matrix, enclosing_radius
from .h0 import h0_bottleneck, h0_death_times
from .memory import estimate_memory
from .stability import StabilityCertificate, StabilityDiagnostic, StabilityReport

__all__ = [
    "Cloud",
    "ConformalStabilityBound",
    "StabilityBounds",
    "StabilityCertificate",
    "StabilityDiagnostic",
    "StabilityReport",
    "bottleneck_distance",
    "cloud_scores",
    "displacement",
    "distance_blocks",
    "distance_matrix",
    "distortion",
    "enclosing_radius",
    "estimate_memory",
    "h0_bottleneck",
    "h0_death_times",
    "patient_clouds",
    "persistence_diagrams",
    "stability_bounds",
    "stack_diagrams",
    "wasserstein_distance",
]
