"""Manifests of lesion images: the public data sets' layouts, splits by patient or lesion, leakage checks."""

from .dataset import LesionDataset, check_leakage
from .layouts import DATASETS, KNOWN_DUPLICATES, load_dataset

__all__ = ["DATASETS", "KNOWN_DUPLICATES", "LesionDataset", "check_leakage", "load_dataset"]
