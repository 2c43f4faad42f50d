"""`StabilityDiagnostic`: does an embedding, and what is decided on it, keep its shape when the photograph changes?"""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from ..errors import ImageError, LeakageError, LeakageWarning, ParameterError
from ..images import LesionImage, image_name, read_images, resize
from ..metrics import cluster_interval, exact_level
from ..perturb import SEVERITIES, list_perturbations, perturb
from .certificates import displacement, stability_bounds
from .cloud import Cloud
from .conformal import ConformalStabilityBound, cloud_scores, patient_clouds

__all__ = ["StabilityCertificate", "StabilityDiagnostic", "StabilityReport"]

_BATCH = 32  # images decoded at once; of each batch every perturbation is embedded before the next is read
_LEAST = 10  # patients below which the rate of a class or group is not told
_CLOUD_TO_NEIGHBOURS = 5  # images for each neighbour, below which neighbours are kept by chance


@dataclasses.dataclass(frozen=True)
class StabilityReport:
    """What each perturbation did, at each severity. Its text is ``str(report)``.

    Attributes
    ----------
    overall : DataFrame
        A row for each perturbation and severity. ``displacement``: median length by which an embedding moved;
        ``displacement_90``: 90% quantile; ``H0``, ``H1``: bottleneck distances of the persistence diagrams (NaN where
        the certificate made them unnecessary); ``capped``, ``distortion``, ``twice_displacement``: certificates of
        these. All of them in units of `scale`. ``neighbours_kept``: share of the nearest neighbours that still are,
        NaN with fewer than five images for each neighbour, among which many would be kept by chance.
        With a classifier: ``flips`` (predicted labels that changed) with a 95% interval that counts patients,
        ``sets_changed``, ``set_overlap`` (mean Jaccard index of the prediction sets), ``set_size``, and, where labels
        are known, ``coverage`` of the sets, which on perturbed images nothing guarantees.
    by_class, by_group : DataFrame
        For each class or group: number of images ``n`` and of ``units``, median ``displacement``, and ``flips`` with
        its interval. NaN where there are fewer than ten units.
    scale : float
        Median distance of two embeddings: the unit of length.
    n_images, n_units : int
    """

    overall: pd.DataFrame
    by_class: pd.DataFrame
    by_group: pd.DataFrame
    scale: float
    n_images: int
    n_units: int

    def __str__(self) -> str:
        worst = self.overall.loc[self.overall.groupby("perturbation", sort=False)["severity"].idxmax()]
        columns = ["perturbation", "severity", "displacement", "H0", "capped", "twice_displacement", "neighbours_kept"]
        columns += [name for name in ("flips", "sets_changed", "coverage") if name in worst]
        table = worst[columns].sort_values("displacement", ascending=False)
        return (
            f"{self.n_images} images of {self.n_units} patients, at the highest severity; lengths in units of the "
            f"median distance of two images, {self.scale:.4g}\n\n{_text(table)}\n\n"
            "H0 <= capped <= twice_displacement bounds how far the persistence diagrams moved; displacement is that of "
            "the median image, twice_displacement two times that of the farthest. They say that the shape is stable, "
            "not that it stays the same, and nothing about a single image."
        )


@dataclasses.dataclass(frozen=True)
class StabilityCertificate:
    """Bounds that the instability of a new cloud stays below; the text is ``str(certificate)``.

    Attributes
    ----------
    bounds : DataFrame
        A row for each perturbation and severity, a column for each score, in units of `scale`; infinite where the
        clouds are too few for the level.
    n_clouds, units_per_cloud : int
    confidence_level : float
    scale : float
    """

    bounds: pd.DataFrame
    n_clouds: int
    units_per_cloud: int
    confidence_level: float
    scale: float

    def __str__(self) -> str:
        level = exact_level(self.confidence_level)
        least = math.ceil(level / (1 - level))
        advice = f" A finite bound takes {least} clouds: lower units_per_cloud, or the level."
        return (
            f"If the {self.n_clouds} clouds of {self.units_per_cloud} patients each and a new one are exchangeable, "
            "every score of the new one is at most its bound below, with probability at least "
            f"{self.confidence_level:g} for each perturbation and score by itself. It breaks with another camera, "
            "clinic or perturbation, and with patients under two names. Lengths are in units of the median distance "
            f"of two images, {self.scale:.4g}.{advice if self.n_clouds < least else ''}\n\n{_text(self.bounds)}"
        )


class StabilityDiagnostic(BaseEstimator):
    """How far an embedding, its topology, and the decisions made on it move when photographs are perturbed.

    Parameters
    ----------
    embedder : transformer, or fitted CBDCClassifier
        With ``transform(images) -> (n, n_features)``, fitted, such as `cbdc.ImageEmbedder`. A calibrated CBDCClassifier
        brings its embedder and its prediction sets.
    perturbations : {"photometric", "morphological", "all"} or sequence of str, default="photometric"
        Names as in `cbdc.perturb.list_perturbations`.
    classifier : classifier over embeddings, optional
        Fitted; with `predict`, and `predict_set` where its sets are looked at, such as a calibrated
        `cbdc.ConformalClassifier`.
    severities : sequence of int, default=(1, 3, 5)
        From 1 (slight) to 5.
    homology_dimensions : sequence of int, default=(0,)
        Of the diagrams that are compared. Dimension 1 costs seconds for each perturbation of a thousand images.
    tolerance : float, optional
        In units of the median distance. Diagrams of dimension 1 and above are computed only where the certificate does
        not already say that they moved less.
    n_neighbors : int, default=10
    max_side : int or None, default=512
        Larger photographs are reduced, so that their longer side has as many pixels, before they are perturbed.
    engine : {"auto", "giotto", "gudhi"}, default="auto"
        See `persistence_diagrams`.
    random_state : int, default=0
        Of what is random in a perturbation, of the clouds, and of the one image of a patient that `p_values` keeps.
    verbose : bool, default=False

    Attributes
    ----------
    embeddings_ : ndarray of shape (n, n_features), float32
        Of the images as they are.
    perturbed_ : dict of (str, int) to ndarray of shape (n, n_features)
        Of the perturbed ones, by name and severity.
    displacement_ : ndarray of shape (n, n_settings), float64
        How far each image moved under each, in the order of `perturbed_`.
    scale_ : float
        Median distance of two embeddings.
    units_, labels_, groups_ : ndarray of shape (n,), or None where not given
    scores_ : ndarray of shape (n_units,)
        Largest displacement of one image of each unit, ascending; for `p_values`.

    Notes
    -----
    **Guarantee.** The chain ``H0, H1 <= capped <= distortion <= twice_displacement`` holds for these images, whatever
    they are (see `stability_bounds`). `certify` is about new clouds and `p_values` about a new image; both assume that
    the images, by patient, and the new ones are exchangeable, and that the embedding was not trained on them. What
    breaks them: another camera or clinic, training images, patients under two names. Rates of flips are estimates with
    intervals, no guarantees. Nothing here promises that a decision stays the same: it tells how often it did not.

    References
    ----------
    Chazal, de Silva and Oudot, *Persistence stability for geometric complexes*, arXiv:1207.3885. Hendrycks and
    Dietterich, *Benchmarking neural network robustness to common corruptions*, arXiv:1903.12261.

    Examples
    --------
    >>> from cbdc import ImageEmbedder, make_lesions
    >>> from cbdc.topology import StabilityDiagnostic
    >>> lesions = make_lesions(24, image_size=96, random_state=0)
    >>> embedder = ImageEmbedder().fit(lesions.images)
    >>> diagnostic = StabilityDiagnostic(embedder, ["brightness", "blur"], severities=[1, 5]).fit(lesions)
    >>> overall = diagnostic.report().overall
    >>> bool((overall["H0"] <= overall["capped"]).all() and (overall["capped"] <= overall["distortion"]).all())
    True
    >>> diagnostic.p_values(lesions.images[:1]).shape
    (1,)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "embedder": [HasMethods(["transform"]), HasMethods(["predict_set"])],
        "perturbations": [StrOptions({"photometric", "morphological", "all"}), list, tuple],
        "classifier": [HasMethods(["predict"]), None],
        "severities": [list, tuple],
        "homology_dimensions": [list, tuple],
        "tolerance": [Interval(Real, 0, None, closed="left"), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "max_side": [Interval(Integral, 16, None, closed="left"), None],
        "engine": [StrOptions({"auto", "giotto", "gudhi"})],
        "random_state": [Interval(Integral, 0, None, closed="left")],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        embedder: Any,
        perturbations: str | Sequence[str] = "photometric",
        *,
        classifier: Any = None,
        severities: Sequence[int] = (1, 3, 5),
        homology_dimensions: Sequence[int] = (0,),
        tolerance: float | None = None,
        n_neighbors: int = 10,
        max_side: int | None = 512,
        engine: str = "auto",
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.embedder = embedder
        self.perturbations = perturbations
        self.classifier = classifier
        self.severities = severities
        self.homology_dimensions = homology_dimensions
        self.tolerance = tolerance
        self.n_neighbors = n_neighbors
        self.max_side = max_side
        self.engine = engine
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: Any, y: ArrayLike | None = None, units: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> "StabilityDiagnostic":
        """Embed the images, as they are and perturbed.

        Parameters
        ----------
        X : LesionDataset, or sequence of n images
            Paths, encoded bytes or uint8 arrays (H, W, 3); none that the network or the classifier was trained on.
        y : array-like of shape (n,), optional
            Labels; a data set brings its own.
        units : array-like of shape (n,), optional
            Patient or lesion of each image; a data set brings its own. Otherwise every image is its own.
        groups : array-like of shape (n,), optional
            For example the Fitzpatrick skin type.

        Returns
        -------
        StabilityDiagnostic
            Itself.

        Raises
        ------
        ImageError
            If an image cannot be used; the message names it.

        Warns
        -----
        LeakageWarning
            If a CBDCClassifier was trained or calibrated on some of them.
        """
        self._validate_params()
        self._settings = self._check_settings()
        embedder, self._classifier = self._parts()
        if hasattr(self.embedder, "check_unseen") and hasattr(X, "fingerprint"):
            try:
                self.embedder.check_unseen(X)
            except LeakageError as error:
                warnings.warn(
                    f"{error} What was trained on moves less than new images do, and flips less often.",
                    LeakageWarning,
                    stacklevel=2,
                )
        images = list(getattr(X, "images", X))
        if len(images) < 3:
            raise ParameterError(f"X: got {len(images)} images; the shape of a cloud takes three at least.")
        if hasattr(X, "images"):
            y, units = (X.labels if y is None else y), (X.groups() if units is None else units)
        self.labels_ = None if y is None else _column(y, "y", len(images))
        self.units_ = np.arange(len(images)) if units is None else _column(units, "units", len(images))
        self.groups_ = None if groups is None else _column(groups, "groups", len(images))
        found: list[list[np.ndarray]] = [[] for _ in range(1 + len(self._settings))]
        for batch in self._batches(images):
            for parts, pixels in zip(found, self._versions(batch), strict=True):
                parts.append(np.asarray(embedder.transform(pixels)))
        self.embeddings_, *moved = (np.concatenate(parts) for parts in found)
        self.perturbed_ = dict(zip(self._settings, moved))
        self.displacement_ = np.stack([displacement(self.embeddings_, after) for after in moved], axis=1)
        self._cloud = Cloud(self.embeddings_)
        n = len(images)
        self.scale_ = float(np.median(self._cloud.distances[np.triu_indices(n, 1)])) or 1.0
        order = check_random_state(self.random_state).permutation(n)
        chosen = order[np.unique(self.units_[order], return_index=True)[1]]
        self.scores_ = np.sort(self.displacement_[chosen].max(axis=1))
        return self

    def report(self) -> StabilityReport:
        """What each perturbation did to the cloud, the decisions, the classes and the groups.

        Returns
        -------
        StabilityReport
        """
        check_is_fitted(self, "perturbed_")
        decisions = self._decisions(self.embeddings_)
        overall: list[dict[str, Any]] = []
        parts: dict[str, list[dict[str, Any]]] = {"class": [], "group": []}
        for column, ((name, severity), after) in enumerate(self.perturbed_.items()):
            row: dict[str, Any] = {"perturbation": name, "severity": severity}
            moved = self.displacement_[:, column] / self.scale_
            row |= {"displacement": np.median(moved), "displacement_90": np.quantile(moved, 0.9)}
            row |= self._shape(Cloud(after))
            changes = self._changes(decisions, self._decisions(after))
            row |= {key: value for key, value in changes.items() if np.ndim(value) == 0}
            overall.append(row)
            for kind, names in (("class", self.labels_), ("group", self.groups_)):
                for value in [] if names is None else np.unique(names):
                    rows = np.flatnonzero(names == value)
                    setting = {"perturbation": name, "severity": severity, kind: value}
                    parts[kind].append(setting | self._part(rows, moved, changes.get("flipped")))
        return StabilityReport(
            pd.DataFrame(overall),
            pd.DataFrame(parts["class"]),
            pd.DataFrame(parts["group"]),
            self.scale_,
            len(self.embeddings_),
            len(np.unique(self.units_)),
        )

    def certify(
        self,
        confidence_level: float = 0.9,
        *,
        units_per_cloud: int = 10,
        scores: Sequence[str] = ("H0", "capped", "twice_displacement"),
    ) -> StabilityCertificate:
        """The conformal topological certificate: what a new cloud's instability stays below.

        The images are cut into clouds of as many patients each; the k-th smallest score of them bounds a new one's.

        Parameters
        ----------
        confidence_level : float, default=0.9
            At 0.9, 0.95 and 0.99 it takes 9, 19 and 99 clouds for a finite bound.
        units_per_cloud : int, default=10
            Patients, or images where no units were given.
        scores : sequence of str, default=("H0", "capped", "twice_displacement")
            As in `cloud_scores`.

        Returns
        -------
        StabilityCertificate

        Notes
        -----
        **Guarantee.** That of `ConformalStabilityBound`.
        """
        check_is_fitted(self, "perturbed_")
        clouds = patient_clouds(self.units_, units_per_cloud, random_state=self.random_state)
        rows = []
        for (name, severity), after in self.perturbed_.items():
            found = cloud_scores(self.embeddings_, after, clouds, scores, engine=self.engine)
            bound = ConformalStabilityBound(confidence_level).fit(found).bound() / self.scale_
            rows.append({"perturbation": name, "severity": severity, **dict(zip(scores, bound))})
        return StabilityCertificate(
            pd.DataFrame(rows), len(clouds), units_per_cloud, float(confidence_level), self.scale_
        )

    def p_values(self, images: Any) -> np.ndarray:
        """Stability p-value of new images: small for one that moves unusually far when it is perturbed.

        Parameters
        ----------
        images : LesionDataset, or sequence of n images

        Returns
        -------
        ndarray of shape (n,), float64
            Share of the units of `fit`, the new image among them, whose largest displacement is no smaller.

        Raises
        ------
        ImageError
            If an image cannot be used.

        Notes
        -----
        **Guarantee.** Assumption: one image of each unit of `fit` and the new image are exchangeable. Statement: the
        p-value is at most a with probability at most a, for every a. What breaks it: as for the class. A large one does
        not say that the prediction is right.
        """
        check_is_fitted(self, "perturbed_")
        embedder, _ = self._parts()
        found = []
        for batch in self._batches(list(getattr(images, "images", images))):
            before, *moved = (np.asarray(embedder.transform(pixels)) for pixels in self._versions(batch))
            found.append(np.max([displacement(before, after) for after in moved], axis=0))
        if not found:
            return np.empty(0)
        n = len(self.scores_)
        return (1 + n - np.searchsorted(self.scores_, np.concatenate(found), side="left")) / (1 + n)

    # --- the images

    def _check_settings(self) -> list[tuple[str, int]]:
        if isinstance(self.perturbations, str):
            names = list_perturbations(None if self.perturbations == "all" else self.perturbations)
        else:
            names = list(self.perturbations)
        if unknown := [name for name in names if name not in list_perturbations()]:
            raise ParameterError(
                f"perturbations: no perturbation is called {unknown[0]!r}. Allowed: {', '.join(list_perturbations())}."
            )
        severities = list(self.severities)
        if not names or not severities or not set(severities) <= set(SEVERITIES):
            raise ParameterError(f"severities: got {self.severities!r}; expected some of {SEVERITIES}, and a name.")
        # flipping knows no severity
        return [(name, s) for name in names for s in (severities[-1:] if name == "flip" else severities)]

    def _parts(self) -> tuple[Any, Any]:
        """The transformer of images, and the classifier over embeddings."""
        if hasattr(self.embedder, "embedder_"):
            decides = getattr(self.embedder, "conformal_", self.embedder.head_)
            return self.embedder.embedder_, decides if self.classifier is None else self.classifier
        return self.embedder, self.classifier

    def _batches(self, images: list[Any]) -> Iterator[list[np.ndarray]]:
        """Pixels of a few images at a time."""
        starts = range(0, len(images), _BATCH)
        for start in tqdm(starts, desc="perturb and embed", disable=not self.verbose or len(starts) < 2):
            batch = []
            for i, item in enumerate(read_images(images[start : start + _BATCH])):
                if not isinstance(item, LesionImage):
                    raise ImageError(f"{image_name(images[start + i], start + i)}: {item}")
                batch.append(self._reduced(item.pixels))
            yield batch

    def _reduced(self, pixels: np.ndarray) -> np.ndarray:
        side = max(pixels.shape[:2])
        if self.max_side is None or side <= self.max_side:
            return pixels
        height, width = (max(1, round(length * self.max_side / side)) for length in pixels.shape[:2])
        return resize(pixels, (height, width))

    def _versions(self, batch: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """The images as they are, then each setting's."""
        yield batch
        for name, severity in self._settings:
            yield [perturb(pixels, name, severity, self.random_state) for pixels in batch]

    # --- what changed

    def _shape(self, after: Cloud) -> dict[str, float]:
        """Chain of certificates and diagrams, in units of the scale, and the neighbours kept."""
        always = [k for k in self.homology_dimensions if k == 0]
        costly = [k for k in self.homology_dimensions if k > 0]
        found = stability_bounds(self._cloud, after, always, self.engine)
        moved = {f"H{k}": value / self.scale_ for k, value in found.bottleneck.items()}
        moved |= {f"H{k}": np.nan for k in costly}
        if costly and (self.tolerance is None or found.capped > self.tolerance * self.scale_):
            more = stability_bounds(self._cloud, after, costly, self.engine).bottleneck
            moved |= {f"H{k}": value / self.scale_ for k, value in more.items()}
        return moved | {
            "capped": found.capped / self.scale_,
            "distortion": found.distortion / self.scale_,
            "twice_displacement": found.twice_displacement / self.scale_,
            "neighbours_kept": float(np.mean(_shared_neighbours(self._cloud, after, self.n_neighbors))),
        }

    def _decisions(self, E: np.ndarray) -> dict[str, np.ndarray]:
        if self._classifier is None:
            return {}
        found = {"label": np.asarray(self._classifier.predict(E))}
        if hasattr(self._classifier, "predict_set"):
            by_group = getattr(self._classifier, "groups_", None) is not None
            found["set"] = self._classifier.predict_set(E, **({"groups": self.groups_} if by_group else {}))
        return found

    def _changes(self, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, Any]:
        if not before:
            return {}
        flipped = before["label"] != after["label"]
        low, high = cluster_interval(flipped, self.units_)
        changes: dict[str, Any] = {"flips": flipped.mean(), "flips_low": low, "flips_high": high, "flipped": flipped}
        if "set" in before:
            one, other = before["set"], after["set"]
            union = (one | other).sum(axis=1)
            overlap = np.where(union, (one & other).sum(axis=1) / np.maximum(union, 1), 1.0)
            changes |= {
                "sets_changed": (one != other).any(axis=1).mean(),
                "set_overlap": overlap.mean(),
                "set_size": other.sum(axis=1).mean(),
            }
            if self.labels_ is not None:
                classes = list(self._classifier.classes_)
                known = np.flatnonzero(np.isin(self.labels_, classes))
                columns = [classes.index(label) for label in self.labels_[known].tolist()]
                changes["coverage"] = other[known, columns].mean() if len(known) else np.nan
        return changes

    def _part(self, rows: np.ndarray, moved: np.ndarray, flipped: np.ndarray | None) -> dict[str, Any]:
        """Figures of one class or group; NaN where its patients are few."""
        n_units = len(np.unique(self.units_[rows]))
        told = n_units >= _LEAST
        found = {"n": len(rows), "units": n_units, "displacement": np.median(moved[rows]) if told else np.nan}
        if flipped is not None:
            low, high = cluster_interval(flipped[rows], self.units_[rows]) if told else (np.nan, np.nan)
            found |= {"flips": flipped[rows].mean() if told else np.nan, "flips_low": low, "flips_high": high}
        return found


def _text(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format="{:.3f}".format)


def _column(values: ArrayLike, name: str, n: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (n,):
        raise ParameterError(f"{name}: got shape {found.shape}; expected ({n},), one for each image.")
    return found


def _shared_neighbours(before: Cloud, after: Cloud, n_neighbors: int) -> np.ndarray:
    """Share of each point's nearest neighbours that are among its nearest in the other cloud too, (n,)."""
    k = n_neighbors
    if len(before) < _CLOUD_TO_NEIGHBOURS * k:
        return np.full(len(before), np.nan)
    nearest = []
    for cloud in (before, after):
        distances = cloud.distances.copy()
        np.fill_diagonal(distances, np.inf)
        inside = np.zeros(distances.shape, dtype=bool)
        np.put_along_axis(inside, np.argpartition(distances, k - 1, axis=1)[:, :k], True, axis=1)
        nearest.append(inside)
    return (nearest[0] & nearest[1]).sum(axis=1) / k
