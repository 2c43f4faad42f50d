"""Made lesions: dermoscopy images painted from concepts, with the exact posterior of the diagnosis."""

from .law import CLASSES, CONCEPTS, DEFAULT_PRIOR, Concept, class_posterior, concept_tables
from .make import make_lesions

__all__ = ["CLASSES", "CONCEPTS", "DEFAULT_PRIOR", "Concept", "class_posterior", "concept_tables", "make_lesions"]
