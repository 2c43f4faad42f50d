"""`evaluate`: every figure of a classifier on a data set it has never seen."""

import dataclasses
import json
import platform
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import NotFittedError

from .. import __version__, metrics
from ..datasets import LesionDataset
from ..errors import CalibrationSizeWarning, DatasetError
from ..images import image_name, refusal_message
from .figures import TITLES, group_columns, interval, number, percent, plain, probability_figures, set_figures

if TYPE_CHECKING:  # torch costs seconds at import, and a page of arrays needs none of it
    from ..classifier import CBDCClassifier

__all__ = ["Evaluation", "evaluate"]

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "onnxruntime")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures of a classifier on a data set, and the predictions behind them.

    Attributes
    ----------
    figures : dict
        Every figure, nested: ``model``, ``data``, ``refused``, ``probabilities``, ``classes``, ``sets`` (by confidence
        level) and ``versions``. JSON-able; None where a figure is not defined.
    classes : tuple of str
        Order of the columns.
    names : dict of str to str
        Full English name of each class.
    malignant : dict of str to bool or None
    confidence_level : float
        Level of `sets`.
    labels : ndarray of shape (n,), int
        Column of the true class of each image that could be used.
    units : ndarray of shape (n,)
        Lesion or patient of each image.
    proba, p_values : ndarray of shape (n, n_classes)
    sets : ndarray of shape (n, n_classes), bool
    sample : ndarray of shape (n_units,), int
        Rows of the one image drawn from each unit.
    images : sequence
        Where the images are; for thumbnails.
    image_names : tuple of str
    """

    figures: dict[str, Any]
    classes: tuple[str, ...]
    names: dict[str, str]
    malignant: dict[str, bool | None]
    confidence_level: float
    labels: np.ndarray = dataclasses.field(repr=False)
    units: np.ndarray = dataclasses.field(repr=False)
    proba: np.ndarray = dataclasses.field(repr=False)
    p_values: np.ndarray = dataclasses.field(repr=False)
    sets: np.ndarray = dataclasses.field(repr=False)
    sample: np.ndarray = dataclasses.field(repr=False)
    images: Sequence[Any] | np.ndarray = dataclasses.field(repr=False)
    image_names: tuple[str, ...] = dataclasses.field(repr=False)

    @property
    def headline(self) -> str:
        """The outcome in words."""
        data, chosen = self.figures["data"], self.figures["sets"][f"{self.confidence_level:g}"]
        coverage, units = chosen["coverage"], _plural(data["n_units"], data["unit"])
        one_each = "" if data["unit"] == "image" else ", one image drawn from each"
        text = (
            f"On {units} of {data['dataset']}{one_each}, the {100 * self.confidence_level:g}% prediction sets hold the "
            f"true diagnosis in {percent(coverage['value'])} "
            f"(95% interval {interval(coverage['low'], coverage['high'])})"
        )
        if chosen["band"] is not None:
            low, high = chosen["band"]
            place = "below" if coverage["value"] < low else "above" if coverage["value"] > high else "inside"
            text += f", {place} the band of {interval(low, high)} that calibration leads to expect"
            text += " of its own population; nothing is guaranteed of this one" if data["external"] else ""
        return (
            f"{text}. A set names {chosen['mean_set_size']:.2f} of {len(self.classes)} diagnoses on average; "
            f"{percent(chosen['singleton_rate'])} of the sets name exactly one."
        )

    def to_json(self, path: str | Path) -> Path:
        """Write the figures as JSON; what is not defined is null."""
        path = Path(path)
        text = json.dumps(self.figures, indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    def __str__(self) -> str:
        data, sets = self.figures["data"], self.figures["sets"]
        units = "" if data["unit"] == "image" else f" of {_plural(data['n_units'], data['unit'])}"
        images = f"{_plural(data['n_images'], 'image')}{units}, {data['n_refused']} refused"
        lines = [f"{data['dataset']}: {images}", ""]
        floor = self.figures["probabilities"]["ece_noise_floor"]
        for name, row in self.figures["probabilities"].items():
            if isinstance(row, dict):
                low, high = row["low"], row["high"]
                spread = "" if low is None else f"   95% interval {interval(low, high, rate=False)}"
                spread = f"   noise alone: up to {number(floor)}" if name == "ece" else spread
                lines.append(f"  {TITLES[name]:<32}{number(row['value']):>8}{spread}")
        lines.append("")
        lines.append(f"  {'level':>7}{'coverage':>10}{'expected':>17}{'set size':>10}{'single':>9}{'empty':>9}")
        for level, row in sets.items():
            band = interval(*(row["band"] or (None, None)))
            lines.append(
                f"  {100 * float(level):>6g}%{percent(row['coverage']['value']):>10}{band:>17}"
                f"{row['mean_set_size']:>10.2f}{percent(row['singleton_rate']):>9}{percent(row['empty_rate']):>9}"
            )
        lines += ["", f"  coverage by class at {100 * self.confidence_level:g}%:"]
        for row in sets[f"{self.confidence_level:g}"]["by_class"]:
            found = (
                row["reason"]
                if row["coverage"] is None
                else f"{percent(row['coverage'])} ({interval(row['low'], row['high'])})"
            )
            lines.append(f"  {row['name']:<12}{row['n']:>6}   {found}")
        return "\n".join([*lines, "", " ".join([self.headline, *unchecked(self)])])


def unchecked(evaluation: Evaluation) -> list[str]:
    """The sentence that is due where the model knows no image of its own, and the data set is another."""
    data = evaluation.figures["data"]
    if data["checked_unseen"] or not data["external"]:
        return []
    return [
        f"It could not be checked whether images of {data['dataset']} were trained on: a model file names none of its "
        "images. If some were, these figures are too good."
    ]


def evaluate(
    classifier: "CBDCClassifier",
    dataset: LesionDataset,
    *,
    confidence_level: float | None = None,
    levels: Sequence[float] = (0.8, 0.9, 0.95, 0.99),
    groups: Any = None,
    unit: str | None = None,
    group_by: Sequence[str] = ("skin_type", "sex", "age"),
    least_n: int = 10,
    n_resamples: int = 200,
    random_state: int | None = 0,
) -> Evaluation:
    """Evaluate a calibrated classifier on a data set that it has never seen.

    The coverage counts one image of each patient or lesion, drawn at random, since images of one lesion are not
    exchangeable; beside it stands the exact band that the calibration leads to expect. Figures of the probabilities
    use every image, with intervals that know of the units. An image that cannot be used is listed with its reason.

    Parameters
    ----------
    classifier : CBDCClassifier
        Fitted and conformalized.
    dataset : LesionDataset
        If its labels are not those of the model, they are mapped by the taxonomy (`LesionDataset.relabel`), and the
        figures say so.
    confidence_level : float, optional
        Level that the report speaks of. Default: the classifier's.
    levels : sequence of float, default=(0.8, 0.9, 0.95, 0.99)
        Further levels.
    groups : array-like of shape (n,), optional
        Group of each image, for a classifier with group-wise guarantees. Default: the column it was calibrated by.
    unit : {"patient", "lesion", "image"}, optional
        Default: the coarsest that the data set knows.
    group_by : sequence of str, default=("skin_type", "sex", "age")
        Columns whose groups get figures of their own, where the data set has them.
    least_n : int, default=10
        A class or group with fewer units gets no rate, but a reason.
    n_resamples : int, default=200
        Bootstrap resamples of the units, for the intervals of figures whose law is not known.
    random_state : int or None, default=0
        Seeds the draw of one image a unit, the bootstrap and the noise floor.

    Returns
    -------
    Evaluation

    Raises
    ------
    LeakageError
        If the data set is, or shares units with, what the model was trained or calibrated on, as far as that is known.
    DatasetError
        If a label has no counterpart among the model's classes, or no image can be used.

    Notes
    -----
    **Guarantee.** Of the band: assumption: the units of calibration and of this data set are exchangeable. Statement:
    the coverage lies in it with a probability of 95%. What breaks it: another clinic, camera or case mix, as in every
    external test; there the band shows what would have been expected without that change.

    References
    ----------
    Vovk, arXiv:1209.2673, for the band; Efron, *Bootstrap methods*, Annals of Statistics 7, 1979.

    Examples
    --------
    >>> from cbdc import CBDCClassifier, make_lesions
    >>> train, calibration, test = make_lesions(240, image_size=96, random_state=0).split(random_state=0)
    >>> clf = CBDCClassifier(confidence_level=0.8, condition_on=None, random_state=0)
    >>> evaluation = evaluate(clf.fit(train).conformalize(calibration), test)
    >>> evaluation.figures["data"]["n_images"] == len(test)
    True
    """
    if not hasattr(classifier, "conformal_"):
        raise NotFittedError("classifier: not calibrated yet; call fit(training) and conformalize(calibration) first.")
    level = classifier.confidence_level if confidence_level is None else confidence_level
    classifier.check_unseen(dataset)
    mapped = _in_words_of(classifier, dataset)
    given = classifier._groups(mapped, groups)
    embeddings, refusals = classifier.embedder_.embed(mapped.images)
    kept = np.array([i for i in range(len(mapped)) if i not in refusals], dtype=int)
    if not len(kept):
        first = next(iter(refusals.values()), "it is empty.")
        raise DatasetError(f"{dataset.name}: none of its {len(dataset)} images can be used; the first: {first}")
    usable, embeddings = mapped.take(kept), embeddings[kept]
    given = None if given is None else given[kept]
    unit = unit or usable.unit
    drawn = set(usable.one_per(unit, random_state=random_state).frame["image"])
    sample = np.flatnonzero(usable.frame["image"].isin(drawn))

    classes = tuple(str(label) for label in classifier.classes_)
    labels = np.array([classes.index(label) for label in usable.labels.tolist()], dtype=int)
    proba = classifier.head_.predict_proba(embeddings)
    units = usable.groups(unit)
    has_lesions = "lesion_id" in usable.frame and usable.frame["lesion_id"].notna().any()
    lesions = usable.groups("lesion") if has_lesions else units
    columns = group_columns(usable.frame, [c for c in group_by if given is None or c != classifier.group_by])
    by_level, notes = _sets(classifier, embeddings, sorted({*levels, level}), given)
    n_calibration = classifier.conformal_.n_calibration_
    figures = {
        "headline_level": level,
        "model": _model(classifier, level),
        "data": _data(classifier, dataset, mapped, unit, len(kept), len(sample), random_state),
        "refused": [{"image": _name(mapped, i), "reason": _reason(mapped, i, refusals[i])} for i in sorted(refusals)],
        "probabilities": probability_figures(proba, labels, units, lesions, n_resamples, random_state),
        "classes": metrics.class_table(proba, labels, classes=classes).to_dict("records"),
        "sets": {
            f"{value:g}": {"notes": notes[value]}
            | set_figures(
                sets,
                labels,
                sample=sample,
                units=units,
                classes=classes,
                columns=columns,
                groups=given,
                n_calibration=n_calibration,
                rank=partial(classifier.conformal_.rank, confidence_level=value),
                confidence_level=value,
                least_n=least_n,
            )
            for value, sets in by_level.items()
        },
        "least_n": least_n,
        "versions": _versions(),
    }
    taxonomy = classifier.taxonomy_
    return Evaluation(
        figures=plain(figures),
        classes=classes,
        names={c: c if taxonomy is None else taxonomy.describe(c) for c in classes},
        malignant={c: None if taxonomy is None else taxonomy.malignant(c) for c in classes},
        confidence_level=level,
        labels=labels,
        units=units,
        proba=proba,
        p_values=classifier.conformal_.p_values(embeddings, groups=given),
        sets=by_level[level],
        sample=sample,
        images=usable.images,
        image_names=tuple(_name(usable, i) for i in range(len(usable))),
    )


def _sets(
    classifier: "CBDCClassifier", embeddings: np.ndarray, levels: Sequence[float], groups: np.ndarray | None
) -> tuple[dict[float, np.ndarray], dict[float, list[str]]]:
    """Sets at each level, and what was warned of."""
    sets, notes = {}, {}
    for level in levels:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CalibrationSizeWarning)
            sets[level] = classifier.conformal_.predict_set(embeddings, level, groups=groups)
        notes[level] = [str(warning.message) for warning in caught]
    return sets, notes


def _in_words_of(classifier: "CBDCClassifier", dataset: LesionDataset) -> LesionDataset:
    """The data set with the labels of the model."""
    classes = {str(label) for label in classifier.classes_}
    if set(dataset.labels.tolist()) <= classes:
        return dataset
    if classifier.taxonomy_ is None:
        raise DatasetError(
            f"{dataset.name}: labels {sorted(set(dataset.labels.tolist()) - classes)[:5]} are none of the model's, "
            f"which knows {sorted(classes)} and no taxonomy to map by. Fix: LesionDataset.relabel with a mapping."
        )
    mapped = dataset.relabel(classifier.taxonomy_.name)
    if lost := sorted(set(mapped.labels.tolist()) - classes):
        raise DatasetError(
            f"{dataset.name}: the model was not fitted on {', '.join(map(repr, lost))}; it knows {sorted(classes)}. "
            "Fix: leave those images out, or fit on a data set that has them."
        )
    return mapped


def _reason(dataset: LesionDataset, i: int, error: Exception) -> str:
    """One line that does not name the image again."""
    return " ".join(str(error).split()).removeprefix(refusal_message(dataset.images[i], i, ""))


def _name(dataset: LesionDataset, i: int) -> str:
    """File name, never a folder."""
    image = dataset.images[i]
    return image_name(dataset.frame["image"].iloc[i] if isinstance(image, np.ndarray | bytes) else image, i)


def _model(classifier: "CBDCClassifier", level: float) -> dict[str, Any]:
    seed, certificate = classifier.random_state, classifier.certificate(level)
    return {
        "backbone": classifier.backbone if isinstance(classifier.backbone, str) else " + ".join(classifier.backbone),
        "embedder_sha256": classifier.embedder_.fingerprint_,
        "head": type(classifier.head_).__name__,
        "score": classifier.get_params()["score"],
        "condition_on": classifier.condition_on,
        "group_by": classifier.group_by,
        "random_state": seed if isinstance(seed, int | None) else "RandomState",
        "n_classes": len(classifier.classes_),
        "provenance": classifier.provenance_,
        "split": getattr(classifier, "notes_", {}).get("split"),
        "guarantee": str(certificate),
        "certificate": certificate.to_dict(),
    }


def _data(
    classifier: "CBDCClassifier",
    dataset: LesionDataset,
    mapped: LesionDataset,
    unit: str,
    n_used: int,
    n_units: int,
    random_state: int | None,
) -> dict[str, Any]:
    pairs = sorted({(old, new) for old, new in zip(dataset.labels.tolist(), mapped.labels.tolist()) if old != new})
    calibrated_on = classifier.provenance_.get("calibration", {}).get("dataset")
    return {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "synthetic": dataset.synthetic,
        "external": calibrated_on is not None and calibrated_on != dataset.name,
        "checked_unseen": bool(classifier._seen),
        "label_map": dict(pairs),
        "unit": unit,
        "n_given": len(dataset),
        "n_images": n_used,
        "n_refused": len(dataset) - n_used,
        "n_units": n_units,
        "random_state": random_state,
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"cbdc": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = None
    return found


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
