"""Networks by name, and images to embeddings."""

from .embedder import ImageEmbedder
from .networks import Backbone, create_backbone, list_backbones

__all__ = ["Backbone", "ImageEmbedder", "create_backbone", "list_backbones"]
