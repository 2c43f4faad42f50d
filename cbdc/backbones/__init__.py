"""Networks by name, and images to embeddings."""

from .embedder import ImageEmbedder
from .lipschitz import LipschitzReport, convolution_norm, lipschitz_report
from .networks import Backbone, create_backbone, list_backbones

__all__ = [
    "Backbone",
    "ImageEmbedder",
    "LipschitzReport",
    "convolution_norm",
    "create_backbone",
    "lipschitz_report",
    "list_backbones",
]
