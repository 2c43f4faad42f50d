"""Networks by name, and images to embeddings."""

from .embedder import ImageEmbedder
from .finetune import FineTuner
from .lipschitz import LipschitzReport, convolution_norm, lipschitz_report
from .networks import Backbone, create_backbone, list_backbones
from .union import EmbedderUnion

__all__ = [
    "Backbone",
    "EmbedderUnion",
    "FineTuner",
    "ImageEmbedder",
    "LipschitzReport",
    "convolution_norm",
    "create_backbone",
    "lipschitz_report",
    "list_backbones",
]
