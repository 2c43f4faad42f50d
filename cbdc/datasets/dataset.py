"""`LesionDataset`: images, labels and what is known of each, in one object that every room takes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DatasetError
from ..taxonomy import Taxonomy, suggestion

__all__ = ["LesionDataset"]


class LesionDataset:
    """Images of lesions with their labels and whatever else is known.

    Parameters
    ----------
    images : sequence of path-like, or sequence or array of uint8 (H, W, 3)
        One entry an image; paths are not opened.
    labels : array-like of str, shape (n,)
        Diagnosis of each image.
    name : str, default="lesions"
        Name of the data set.
    classes : sequence of str, optional
        All class names, also those that no image has; by default the labels that occur. Kept sorted.
    frame : DataFrame of n rows, optional
        What is known of each image. Canonical columns, where known: image (unique name), label, patient_id, lesion_id,
        skin_type (Fitzpatrick, 1-6), age (years), sex, site; further columns are kept as they are.
    taxonomy : Taxonomy, optional
        Tree that holds every class; by default flat.
    posterior : array-like of shape (n, n_classes), optional
        p(class given image) where it is known, columns in the order of `classes`.
    duplicates : iterable of (str, str), default=()
        Pairs of image names that show one photograph; `split` keeps them together.
    synthetic : bool, default=False
        Whether the lesions are made, not photographed.

    Raises
    ------
    DatasetError
        If lengths differ, an image name appears twice, or a label is no class.

    Examples
    --------
    >>> lesions = LesionDataset(["a.jpg", "b.jpg", "c.jpg"], ["nv", "mel", "nv"])
    >>> len(lesions), lesions.classes, lesions.unit
    (3, ('mel', 'nv'), 'image')
    >>> lesions.take([2, 0]).images
    [PosixPath('c.jpg'), PosixPath('a.jpg')]
    """

    def __init__(
        self,
        images: Sequence[Any] | np.ndarray,
        labels: Any,
        *,
        name: str = "lesions",
        classes: Sequence[str] | None = None,
        frame: pd.DataFrame | None = None,
        taxonomy: Taxonomy | None = None,
        posterior: Any = None,
        duplicates: Iterable[tuple[str, str]] = (),
        synthetic: bool = False,
    ) -> None:
        self.name = name
        self.images = _as_images(images)
        self.labels = np.asarray([str(label) for label in labels], dtype=str)
        self.classes = tuple(sorted(set(self.labels.tolist() if classes is None else classes)))
        self.frame = _as_frame(frame, self.images, self.labels)
        self.taxonomy = Taxonomy.flat(self.classes, name=name) if taxonomy is None else taxonomy
        self.posterior = None if posterior is None else np.asarray(posterior, dtype=np.float64)
        self.duplicates = tuple(duplicates)
        self.synthetic = bool(synthetic)
        self._check()

    def _check(self) -> None:
        n = len(self.images)
        if len(self.labels) != n:
            raise DatasetError(f"{self.name}: {n} images but {len(self.labels)} labels; expected as many.")
        unknown = sorted(set(self.labels.tolist()) - set(self.classes))
        if unknown:
            raise DatasetError(f"{self.name}: unknown label {unknown[0]!r}{suggestion(unknown[0], self.classes)}.")
        strange = [c for c in self.classes if c not in self.taxonomy]
        if strange:
            raise DatasetError(f"{self.name}: class {strange[0]!r} is not in {self.taxonomy!r}.")
        if self.posterior is not None and self.posterior.shape != (n, len(self.classes)):
            raise DatasetError(
                f"{self.name}: posterior of shape {self.posterior.shape}; expected ({n}, {len(self.classes)})."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def unit(self) -> str:
        """Coarsest unit that is known: "patient", "lesion" or "image"."""
        return next((u for u in ("patient", "lesion") if f"{u}_id" in self.frame), "image")

    def groups(self, by: str | None = None) -> np.ndarray:
        """Int codes of shape (n,) of the unit that each image belongs to."""
        column = {"patient": "patient_id", "lesion": "lesion_id", "image": "image"}[by or self.unit]
        return pd.factorize(self.frame[column])[0]

    def take(self, indices: Any) -> "LesionDataset":
        """Data set of the images at integer positions, in that order; everything else is kept."""
        indices = np.asarray(indices)
        return self._replace(
            images=self.images[indices] if isinstance(self.images, np.ndarray) else [self.images[i] for i in indices],
            labels=self.labels[indices],
            frame=self.frame.iloc[indices].reset_index(drop=True),
            posterior=None if self.posterior is None else self.posterior[indices],
        )

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest, as hex: names, labels and identifiers, not pixels."""
        columns = [c for c in ("image", "label", "patient_id", "lesion_id") if c in self.frame]
        text = self.frame[columns].to_csv(index=False, lineterminator="\n")
        return hashlib.sha256(f"{self.name}\n{self.classes}\n{text}".encode()).hexdigest()

    def _replace(self, **changes: Any) -> "LesionDataset":
        kept: Mapping[str, Any] = {
            k: getattr(self, k)
            for k in (
                "images", "labels", "name", "classes", "frame", "taxonomy", "posterior", "duplicates", "synthetic",
            )
        }
        return LesionDataset(**{**kept, **changes})


def _as_images(images: Sequence[Any] | np.ndarray) -> list[Any] | np.ndarray:
    if isinstance(images, np.ndarray):
        return images
    return [Path(image) if isinstance(image, str) else image for image in images]


def _as_frame(frame: pd.DataFrame | None, images: list[Any] | np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(index=range(len(images))) if frame is None else frame.reset_index(drop=True).copy()
    if "image" not in frame:
        frame["image"] = [p.name if isinstance(p, Path) else f"image_{i}" for i, p in enumerate(images)]
    frame["label"] = labels
    return frame
