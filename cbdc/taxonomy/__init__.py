"""Trees of diagnoses: what a label means, whether it is malignant, and how the public label sets map."""

from .known import TAXONOMIES, get_taxonomy, map_labels
from .tree import Taxonomy

__all__ = ["TAXONOMIES", "Taxonomy", "get_taxonomy", "map_labels"]
