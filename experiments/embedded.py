"""A data set with its embeddings, for experiments that split it again and again."""

from pathlib import Path

import numpy as np

from cbdc import ImageEmbedder, LaplaceHead, LesionDataset, load_dataset, make_lesions


class Embedded:
    """Embeddings and labels of any part of a data set, as codes into its classes (or those of `like`)."""

    def __init__(self, data: LesionDataset, embedder: ImageEmbedder, like: "Embedded | None" = None) -> None:
        self.data = data
        self.embeddings = embedder.fit_transform(data.images) if like is None else embedder.transform(data.images)
        self.classes = np.array(data.classes) if like is None else like.classes
        self.row = {name: i for i, name in enumerate(data.frame["image"])}

    def of(self, part: LesionDataset) -> tuple[np.ndarray, np.ndarray]:
        chosen = [self.row[name] for name in part.frame["image"]]
        return self.embeddings[chosen], np.searchsorted(self.classes, part.labels)

    def one_per_unit(self, part: LesionDataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """One image of each lesion or patient."""
        return self.of(part.one_per(random_state=seed))

    def head(self, train: LesionDataset, seed: int) -> LaplaceHead:
        return LaplaceHead(random_state=seed).fit(*self.of(train))

    @property
    def malignant(self) -> np.ndarray:
        return np.array([bool(self.data.taxonomy.malignant(c)) for c in self.classes])


def ham10000(root: Path | None, cache: Path | None) -> tuple[Embedded, ImageEmbedder]:
    """HAM10000; without a root made lesions, for a quick run."""
    embedder = ImageEmbedder(cache_dir=cache)
    data = (
        make_lesions(900, image_size=96, random_state=0)
        if root is None
        else load_dataset("ham10000", root / "ham10000")
    )
    return Embedded(data, embedder), embedder
