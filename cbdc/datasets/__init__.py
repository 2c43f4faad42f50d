"""Manifests of lesion images: the public data sets' layouts, splits by patient or lesion, leakage checks."""

from .dataset import LesionDataset, check_leakage

__all__ = ["LesionDataset", "check_leakage"]
