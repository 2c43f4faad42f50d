"""`EmbedderUnion`: several networks side by side."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ImageError
from .embedder import ImageEmbedder, as_sources, listed

__all__ = ["EmbedderUnion", "joined"]


class EmbedderUnion:
    """Embeddings of several fitted embedders, side by side.

    scikit-learn's `FeatureUnion`, but for images that are refused: all networks refuse the same ones.

    Parameters
    ----------
    embedders : sequence of fitted ImageEmbedder

    Attributes
    ----------
    embedders_ : list of ImageEmbedder
    fingerprint_ : str
        Sha256 (hex) of theirs.

    Examples
    --------
    >>> from cbdc import ImageEmbedder, make_lesions
    >>> from cbdc.backbones import EmbedderUnion
    >>> union = EmbedderUnion([ImageEmbedder(image_size=side).fit() for side in (32, 64)])
    >>> union.transform(make_lesions(2, image_size=64, random_state=0).images).shape
    (2, 2560)
    """

    def __init__(self, embedders: Sequence[ImageEmbedder]) -> None:
        self.embedders_ = list(embedders)

    @property
    def fingerprint_(self) -> str:
        return hashlib.sha256("".join(one.fingerprint_ for one in self.embedders_).encode()).hexdigest()

    def transform(self, X: Any) -> np.ndarray:
        """As `ImageEmbedder.transform`: float32 (n, sum of the networks' features)."""
        embeddings, refusals = self.embed(X)
        if refusals:
            raise ImageError(listed(refusals, len(embeddings)))
        return embeddings

    def embed(self, X: Any) -> tuple[np.ndarray, dict[int, ImageError]]:
        """As `ImageEmbedder.embed`."""
        sources = as_sources(X)
        parts = [one.embed(sources) for one in self.embedders_]
        return np.hstack([embeddings for embeddings, _ in parts]), parts[0][1]


def joined(embedders: Sequence[ImageEmbedder]) -> ImageEmbedder | EmbedderUnion:
    """The one embedder, or the union of several."""
    return embedders[0] if len(embedders) == 1 else EmbedderUnion(embedders)
