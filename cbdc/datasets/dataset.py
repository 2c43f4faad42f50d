"""`LesionDataset`: images, labels and what is known of each, in one object that every room takes."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DatasetError, LeakageError, suggestion
from ..taxonomy import Taxonomy, get_taxonomy, map_labels
from .splits import (
    UNITS,
    assign_parts,
    coarsest_unit,
    count_straddling,
    draw_one_per,
    group_codes,
    joined_codes,
    merged_codes,
)

__all__ = ["LesionDataset", "check_leakage"]

Pairs = Iterable[tuple[str, str]]


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
    >>> lesions
    LesionDataset('lesions', 3 images, classes: mel 1, nv 2)
    >>> [image.name for image in lesions.take([2, 0]).images]
    ['c.jpg', 'a.jpg']
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
        duplicates: Pairs = (),
        synthetic: bool = False,
    ) -> None:
        self.name = name
        self.images = _as_images(images)
        self.labels = np.asarray([str(label) for label in labels], dtype=str)
        self.classes = tuple(sorted(set(self.labels.tolist() if classes is None else classes)))
        _check_lengths(name, len(self.images), labels=self.labels, frame=frame, posterior=posterior)
        self.frame = _as_frame(frame, self.images, self.labels)
        self.taxonomy = Taxonomy.flat(self.classes, name=name) if taxonomy is None else taxonomy
        self.posterior = None if posterior is None else np.asarray(posterior, dtype=np.float64)
        self.duplicates = tuple((str(a), str(b)) for a, b in duplicates)
        self.synthetic = bool(synthetic)
        self._check()

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        counts = pd.Series(self.labels).value_counts()
        shown = ", ".join(f"{label} {counts.get(label, 0):,}" for label in self.classes[:12])
        more = f", ... ({len(self.classes)} in all)" if len(self.classes) > 12 else ""
        units = (
            "".join(f" of {self.groups(u).max() + 1:,} {u}s" for u in UNITS[:2] if self._knows(u)) if len(self) else ""
        )
        made = ", synthetic" if self.synthetic else ""
        return f"LesionDataset({self.name!r}, {len(self):,} images{units}, classes: {shown}{more}{made})"

    @property
    def unit(self) -> str:
        """Coarsest unit that is known: "patient", "lesion" or "image"."""
        return coarsest_unit(self.frame)

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest as hex: classes, names, labels and identifiers, and the pixels of images in memory."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for column in ("image", "label", "patient_id", "lesion_id"):
            if column in self.frame:
                values = self.frame[column]
                digest.update(repr([column, *values.where(values.notna(), "").astype(str)]).encode())
        for image in self.images:
            if isinstance(image, np.ndarray):
                digest.update(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()

    def groups(self, by: str | None = None) -> np.ndarray:
        """Int codes of shape (n,) of the unit ("patient", "lesion", "image"; the coarsest known) of each image.

        An image without an identifier is a unit of its own. A lesion identifier that several patients have is read
        within the patient. Images known to show one photograph are of one unit.
        """
        return merged_codes(self.frame, by or self.unit, self.duplicates)

    def take(self, indices: Any) -> "LesionDataset":
        """Data set of the images at integer positions, in that order, or where a bool mask of shape (n,) holds."""
        return self._replace(**self._rows(_as_positions(indices, len(self))))

    def one_per(self, unit: str | None = None, *, random_state: Any = None) -> "LesionDataset":
        """Data set of one image of every unit, drawn uniformly at random from it.

        Several images of one lesion or patient are not exchangeable with single images of others; one of each is.
        Images known to show one photograph count as one unit.

        Parameters
        ----------
        unit : {"patient", "lesion", "image"}, optional
            By default the coarsest known.
        random_state : int, RandomState instance or None, default=None
            Seed of the draw. The draw depends on the image names, not on the order of the rows.
        """
        return self.take(draw_one_per(self.groups(unit), self.frame["image"].tolist(), random_state))

    def split(
        self,
        by: str | None = None,
        sizes: Sequence[float] = (0.6, 0.2, 0.2),
        stratify: bool = True,
        random_state: Any = None,
        *,
        duplicates: Pairs = (),
        allow_leakage: bool = False,
    ) -> tuple["LesionDataset", ...]:
        """Part the data set at random so that no unit has images in two parts.

        Parameters
        ----------
        by : {"patient", "lesion", "image"}, optional
            Unit that stays whole; by default the coarsest known.
        sizes : sequence of float, default=(0.6, 0.2, 0.2)
            Fraction of each part; they sum to 1.
        stratify : bool, default=True
            Keep the share of every class, in images and in units, as near to `sizes` as whole units allow.
        random_state : int, RandomState instance or None, default=None
            Seed of the split. The split depends on the image names, not on the order of the rows.
        duplicates : iterable of (str, str), default=()
            Further pairs of image names that show one photograph, besides those the data set knows.
        allow_leakage : bool, default=False
            Let coarser units than `by` be on several sides, to show what that does.

        Returns
        -------
        tuple of LesionDataset
            One a size, each in the order of this data set. Their images are all the images, each once.

        Raises
        ------
        DatasetError
            If a fraction is no fraction, a part would be empty, or no image has the identifier that `by` names.
        LeakageError
            If a patient, lesion or photograph would be in two parts.

        Guarantee
        ---------
        Assumption: the identifiers and the duplicates known are right and complete. Statement: no patient, lesion or
        photograph is in two parts. What breaks it: photographs of one lesion under two identifiers that nobody listed.

        Examples
        --------
        >>> frame = pd.DataFrame({"lesion_id": ["L1", "L1", "L2", "L3"]})
        >>> lesions = LesionDataset(["a", "b", "c", "d"], ["nv"] * 4, frame=frame)
        >>> train, test = lesions.split(sizes=(0.5, 0.5), random_state=0)
        >>> set(train.frame["lesion_id"]) & set(test.frame["lesion_id"])
        set()
        """
        by = by or self.unit
        sizes = _checked_sizes(sizes)
        pairs = (*self.duplicates, *self._checked_pairs(duplicates))
        units = merged_codes(self.frame, by, pairs)
        strata = self.labels if stratify else np.zeros(len(self), dtype=int)
        part = assign_parts(units, strata, self.frame["image"].tolist(), sizes, random_state)
        empty = set(range(len(sizes))) - set(part.tolist())
        if empty:
            raise DatasetError(
                f"{self.name}: part {min(empty)} of sizes={sizes} would be empty; there are {units.max() + 1} units "
                f"(by={by!r}). Fix: fewer or larger parts, or another random_state."
            )
        if not allow_leakage:
            self._refuse_leakage(by, part)
        return tuple(self.take(np.flatnonzero(part == p)) for p in range(len(sizes)))

    def relabel(self, to: str | Mapping[str, str], *, taxonomy: Taxonomy | None = None) -> "LesionDataset":
        """Data set with the labels of another label set.

        Parameters
        ----------
        to : str or mapping of str to str
            Name of a registered label set (see `cbdc.taxonomy.map_labels`), or a new label for every class.
        taxonomy : Taxonomy, optional
            Tree of the new labels; by default that of the named set, or flat for a mapping.

        Raises
        ------
        DatasetError
            If a class that occurs, or has posterior mass, has no counterpart.

        Examples
        --------
        >>> from cbdc.taxonomy import get_taxonomy
        >>> ph2 = LesionDataset(["a", "b"], ["common_nevus", "melanoma"], taxonomy=get_taxonomy("ph2"))
        >>> ph2.relabel("ham10000").labels.tolist()
        ['nv', 'mel']
        """
        mass = np.zeros(len(self.classes)) if self.posterior is None else self.posterior.sum(axis=0)
        needed = sorted({*self.labels.tolist(), *(c for c, m in zip(self.classes, mass) if m > 0)})
        if isinstance(to, str):
            mapping = dict(zip(needed, map_labels(needed, self.taxonomy, to)))
            taxonomy = taxonomy or get_taxonomy(to)
        else:
            lost = [label for label in needed if label not in to]
            if lost:
                raise DatasetError(f"{self.name}: the mapping has no entry for {', '.join(map(repr, lost[:5]))}.")
            mapping = {str(old): str(new) for old, new in to.items()}
        classes = tuple(sorted({*mapping.values(), *(taxonomy.leaves if taxonomy else ())}))
        posterior = None
        if self.posterior is not None:
            posterior = np.zeros((len(self), len(classes)))
            for label in needed:
                posterior[:, classes.index(mapping[label])] += self.posterior[:, self.classes.index(label)]
        labels = [mapping[label] for label in self.labels.tolist()]
        return self._replace(labels=labels, classes=classes, taxonomy=taxonomy, posterior=posterior)

    def _refuse_leakage(self, by: str, part: np.ndarray) -> None:
        for unit in UNITS[: UNITS.index(by)]:
            straddling = count_straddling(self.groups(unit), part) if self._knows(unit) else 0
            if straddling:
                of_all = f"{straddling:,} of {self.groups(unit).max() + 1:,} {unit}s"
                raise LeakageError(
                    f"{self.name}: split(by={by!r}) would put {of_all} on several sides. Fix: by={unit!r}, "
                    "or allow_leakage=True to show what that does."
                )

    def _checked_pairs(self, pairs: Pairs) -> list[tuple[str, str]]:
        pairs = [(str(a), str(b)) for a, b in pairs]
        names = set(self.frame["image"])
        if pairs and not any(a in names or b in names for a, b in pairs):
            raise DatasetError(
                f"{self.name}: none of the {len(pairs)} pairs in `duplicates` names an image of this data set. Names "
                f"here look like {self.frame['image'].iloc[0]!r}, in the pairs like {pairs[0][0]!r}."
            )
        return pairs

    def _knows(self, unit: str) -> bool:
        return f"{unit}_id" in self.frame and bool(self.frame[f"{unit}_id"].notna().any())

    def _rows(self, positions: np.ndarray) -> dict[str, Any]:
        in_memory = isinstance(self.images, np.ndarray)
        return {
            "images": self.images[positions] if in_memory else [self.images[i] for i in positions],
            "labels": self.labels[positions],
            "frame": self.frame.iloc[positions],
            "posterior": None if self.posterior is None else self.posterior[positions],
        }

    def _replace(self, **changes: Any) -> "LesionDataset":
        kept = {
            key: getattr(self, key)
            for key in (
                "images",
                "labels",
                "name",
                "classes",
                "frame",
                "taxonomy",
                "posterior",
                "duplicates",
                "synthetic",
            )
        }
        return LesionDataset(**{**kept, **changes})

    def _check(self) -> None:
        unknown = sorted(set(self.labels.tolist()) - set(self.classes))
        if unknown:
            raise DatasetError(f"{self.name}: unknown label {unknown[0]!r}{suggestion(unknown[0], self.classes)}.")
        strange = [c for c in self.classes if c not in self.taxonomy]
        if strange:
            raise DatasetError(
                f"{self.name}: class {strange[0]!r} is not in the taxonomy {self.taxonomy.name!r}"
                f"{suggestion(strange[0], self.taxonomy.nodes)}."
            )
        twice = self.frame["image"][self.frame["image"].duplicated()]
        if len(twice):
            raise DatasetError(
                f"{self.name}: {twice.nunique()} image names appear more than once (first: {twice.iloc[0]!r}). Names "
                "must be unique, for splits go by them."
            )
        if self.posterior is not None and self.posterior.shape[1:] != (len(self.classes),):
            raise DatasetError(
                f"{self.name}: posterior of shape {self.posterior.shape}; expected ({len(self)}, {len(self.classes)})."
            )


def check_leakage(*datasets: LesionDataset, content: bool = False) -> None:
    """Refuse data sets that share a patient, a lesion or a photograph.

    Images are the same if they have one name or are one file; images in memory without a name, if their pixels are.

    Parameters
    ----------
    *datasets : LesionDataset
        Two or more, for example the parts of a split. Identifiers are compared as text; if two sources number their
        patients alike, give the identifiers a prefix first.
    content : bool, default=False
        Also compare the sha256 of every file (or of the pixels in memory), which reads every image.

    Raises
    ------
    LeakageError
        With the number of units shared, and of each kind.

    Examples
    --------
    >>> a = LesionDataset(["a.jpg", "b.jpg"], ["nv", "nv"], frame=pd.DataFrame({"lesion_id": ["L1", "L2"]}))
    >>> check_leakage(a.take([0]), a.take([1]))
    >>> check_leakage(a, a.take([1]))
    Traceback (most recent call last):
    ...
    cbdc.errors.LeakageError: lesions, lesions: shared between data sets: 1 lesion, 1 image. Fix: ...
    """
    frame = pd.concat([d.frame for d in datasets], ignore_index=True)
    part = np.repeat(np.arange(len(datasets)), [len(d) for d in datasets])
    images = [image for d in datasets for image in d.images]
    for column in {"patient_id", "lesion_id"} & set(frame):
        frame[column] = frame[column].map(_id_text, na_action="ignore")
    names = [_name_or_none(image, name) for image, name in zip(images, frame["image"])]
    places = [_content(i) if name is None else _resolved(i) for i, name in zip(images, names)]
    same = joined_codes(names, places).astype(str)
    now = dict(zip(frame["image"], same))
    pairs = [(now.get(a, a), now.get(b, b)) for d in datasets for a, b in d.duplicates]
    frame["image"] = same
    shared = {
        unit: count_straddling(group_codes(frame, unit), part)
        for unit in UNITS
        if unit == "image" or (f"{unit}_id" in frame and frame[f"{unit}_id"].notna().any())
    }
    shared["duplicate photograph"] = count_straddling(merged_codes(frame, "image", pairs), part) - shared["image"]
    if content:
        digests = [_content(image) for image in images]
        shared["identical file"] = count_straddling(pd.factorize(np.array(digests))[0], part)
    found = [f"{n:,} {unit}{'s' if n > 1 else ''}" for unit, n in shared.items() if n > 0]
    if found:
        raise LeakageError(
            f"{', '.join(d.name for d in datasets)}: shared between data sets: {', '.join(found)}. Fix: split them "
            "together with LesionDataset.split, or drop the shared images from one of them."
        )


def _id_text(identifier: Any) -> Any:
    """The identifier as text: 1, 1.0 (integers beside a missing value), "1" and "1 " are one."""
    if isinstance(identifier, float) and identifier.is_integer():
        identifier = int(identifier)
    return str(identifier).strip() or np.nan


def _name_or_none(image: Any, name: str) -> str | None:
    """The image's name, or None for one that only counts the images in memory of its own data set."""
    return None if isinstance(image, np.ndarray) and re.fullmatch(r"image_\d+", name) else name


def _resolved(image: Any) -> str | None:
    return str(image.resolve()) if isinstance(image, Path) else None


def _content(image: Any) -> str:
    if not isinstance(image, np.ndarray):
        try:
            return hashlib.sha256(Path(image).read_bytes()).hexdigest()
        except OSError as error:
            raise DatasetError(f"{Path(image).name}: cannot be read ({error.strerror}).") from error
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _as_images(images: Sequence[Any] | np.ndarray) -> list[Any] | np.ndarray:
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OUS":
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise DatasetError(
                f"images: array of shape {images.shape} and type {images.dtype}; expected uint8 of (n, H, W, 3)."
            )
        return images
    return [Path(image) if isinstance(image, str) else image for image in images]


def _as_frame(frame: pd.DataFrame | None, images: list[Any] | np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(index=range(len(images))) if frame is None else frame.reset_index(drop=True)
    names = [str(p) if isinstance(p, Path) else f"image_{i}" for i, p in enumerate(images)]
    first = {"image": frame["image"].astype(str) if "image" in frame else names, "label": labels.astype(object)}
    rest = {column: frame[column] for column in frame.columns if column not in first}
    return pd.DataFrame({**first, **rest}, index=frame.index)


def _check_lengths(name: str, n: int, **others: Any) -> None:
    for what, values in others.items():
        if values is not None and len(values) != n:
            raise DatasetError(f"{name}: {n} images but {what} of length {len(values)}; expected as many.")


def _as_positions(indices: Any, n: int) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.dtype == bool:
        if indices.shape != (n,):
            raise DatasetError(f"mask of shape {indices.shape}; expected ({n},).")
        return np.flatnonzero(indices)
    indices = indices.astype(np.int64) if indices.size == 0 else indices
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise DatasetError(
            f"indices of shape {indices.shape} and type {indices.dtype}; expected integers of shape (m,)."
        )
    if indices.size and (indices.min() < -n or indices.max() >= n):
        raise DatasetError(f"index {indices.max() if indices.max() >= n else indices.min()} is outside of {n} images.")
    indices = indices % n if indices.size else indices
    if len(np.unique(indices)) != len(indices):
        raise DatasetError("an index is repeated; a data set holds each image once.")
    return indices


def _checked_sizes(sizes: Sequence[float]) -> tuple[float, ...]:
    sizes = tuple(float(size) for size in sizes)
    if not sizes or any(not 0 < size <= 1 for size in sizes) or abs(sum(sizes) - 1) > 1e-9:
        raise DatasetError(f"sizes={sizes}; expected fractions above 0 that sum to 1, got a sum of {sum(sizes):g}.")
    return sizes
