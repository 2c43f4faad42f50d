"""Photometric and morphological perturbations of a photograph, each with five severities and a bound of its size."""

from ._base import Perturbation
from .apply import (
    PERTURBATIONS,
    SEVERITIES,
    draw_perturbation,
    list_perturbations,
    perturb,
    perturbation_bound,
)

__all__ = [
    "PERTURBATIONS",
    "SEVERITIES",
    "Perturbation",
    "draw_perturbation",
    "list_perturbations",
    "perturb",
    "perturbation_bound",
]
