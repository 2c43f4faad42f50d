"""Networks by name, and images to embeddings."""

from .embedder import ImageEmbedder
from .finetune import FineTuner
from .lipschitz import LipschitzReport, convolution_norm, lipschitz_report
from .networks import Backbone, backbone_of, create_backbone, list_backbones, network_arrays

__all__ = [
    "Backbone",
    "FineTuner",
    "ImageEmbedder",
    "LipschitzReport",
    "backbone_of",
    "convolution_norm",
    "create_backbone",
    "lipschitz_report",
    "list_backbones",
    "network_arrays",
]
