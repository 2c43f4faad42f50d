"""`Diagnosis`: all that the classifier says of one image, and how it comes to say it."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import entr

from .errors import ImageError
from .heads import BayesianHead
from .images import LesionImage, image_name, read_images
from .quality import assess_quality

__all__ = ["Diagnosis", "diagnose_batch"]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What the classifier says of one image. Decision support for a clinician, not a diagnosis by a device.

    Attributes
    ----------
    image : str
        File name, or ``"image 3"`` for an array; never a folder, which may name a person.
    status : {"ok", "refused"}
        A refused image has a `reason` and an empty everything else.
    reason : str
    sha256 : str
        Of the file as it was read.
    prediction_set : tuple of str
        Diagnoses that cannot be excluded at `confidence_level`, most probable first.
    probabilities, p_values : dict of str to float
        Posterior predictive probability and conformal p-value of each class. A class is in the set when its p-value
        exceeds ``1 - confidence_level``.
    entropy, mutual_information : float
        In nats: total uncertainty, and the part that more training data could remove.
    confidence_level : float
    stability : float
        P-value of a `cbdc.topology.StabilityDiagnostic`: small if the embedding moves unusually far when the photograph
        is perturbed. NaN where none was asked.
    quality : {"accept", "retake", ""}
    quality_reasons : tuple of str
    guarantee : str
        The guarantee in words, with its assumption and the number of cases that it rests on.
    names : dict of str to str
        Full English name of each class.
    malignant : dict of str to bool or None
        Whether each class is malignant; None where the taxonomy does not say.

    See Also
    --------
    cbdc.CBDCClassifier.diagnose : Makes them, and states the guarantee.

    Examples
    --------
    >>> from cbdc import Diagnosis
    >>> print(Diagnosis("a.png", "refused", reason="empty file"))
    a.png: refused. empty file
    >>> Diagnosis("a.png", "refused", reason="empty file").to_dict()["entropy"] is None
    True
    """

    image: str
    status: str
    reason: str = ""
    sha256: str = ""
    prediction_set: tuple[str, ...] = ()
    probabilities: dict[str, float] = dataclasses.field(default_factory=dict)
    p_values: dict[str, float] = dataclasses.field(default_factory=dict)
    entropy: float = math.nan
    mutual_information: float = math.nan
    confidence_level: float = math.nan
    stability: float = math.nan
    quality: str = ""
    quality_reasons: tuple[str, ...] = ()
    guarantee: str = ""
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    malignant: dict[str, bool | None] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; a NaN becomes None."""
        record = dataclasses.asdict(self)
        return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in record.items()}

    def __str__(self) -> str:
        if self.status == "refused":
            return f"{self.image}: refused. {self.reason}"
        alpha = 1 - self.confidence_level
        lines = [f"{self.image}: {{{', '.join(self.prediction_set)}}} at confidence level {self.confidence_level:g}"]
        for label in sorted(self.probabilities, key=self.probabilities.__getitem__, reverse=True):
            inside = label in self.prediction_set
            name = self.names.get(label, label) + (" (malignant)" if self.malignant.get(label) else "")
            lines.append(
                f"  {'+' if inside else '-'} {label:<8} {name:<56} "
                f"probability {self.probabilities[label]:.3f}   p-value {self.p_values[label]:.3f} "
                f"{'> ' if inside else '<='} {alpha:.3g}"
            )
        lines.append(f"  uncertainty {self.entropy:.2f} nats, {self.mutual_information:.2f} of it from little data")
        if not math.isnan(self.stability):
            lines.append(
                f"  stability p-value {self.stability:.3f}: small if the image moves unusually far when perturbed"
            )
        lines.append(f"  image quality: {', '.join((self.quality, *self.quality_reasons))}")
        return "\n".join([*lines, f"  {self.guarantee}"])


def diagnose_batch(
    clf: Any, sources: Sequence, start: int, level: float, groups: Any, stability: Any
) -> list[Diagnosis]:
    """Diagnoses of a few images by a calibrated `CBDCClassifier`, in their order; they are numbered from `start`."""
    names = [image_name(source, start + i) for i, source in enumerate(sources)]
    decoded = read_images(sources, n_jobs=clf.n_jobs)
    reasons = [str(item) if isinstance(item, ImageError) else "" for item in decoded]
    if groups is not None:
        known = np.asarray(clf.conformal_.groups_).tolist()
        for i, group in enumerate(groups):
            if group not in known:
                why = f"group {group!s}: not calibrated; known are {', '.join(map(str, known))}"
                reasons[i] = reasons[i] or why
    rows = [Diagnosis(name, "refused", reason=why) if why else None for name, why in zip(names, reasons)]
    good = {i: item for i, item in enumerate(decoded) if isinstance(item, LesionImage) and not reasons[i]}
    if not good:
        return [row for row in rows if row is not None]
    embeddings = clf.embedder_.transform(list(good.values()))
    groups = None if groups is None else np.asarray(groups)[list(good)]
    predicted = _Predicted(clf.head_, embeddings)
    probabilities, entropy, information = predicted.predict_proba(), predicted.entropy, predicted.information
    conformal = copy.copy(clf.conformal_)
    conformal.estimator_ = predicted
    sets = conformal.predict_set(embeddings, level, groups=groups)
    p_values = conformal.p_values(embeddings, groups=groups)
    pixels = [image.pixels for image in good.values()]
    stable = [math.nan] * len(good) if stability is None else stability.p_values(pixels).tolist()
    guarantee = str(clf.certificate(level))
    full_names, malignant = _meaning(clf)
    labels = [str(label) for label in clf.classes_]
    for j, (i, image) in enumerate(good.items()):
        order = np.argsort(-probabilities[j], kind="stable")
        quality = assess_quality(image.pixels)
        rows[i] = Diagnosis(
            names[i],
            "ok",
            sha256=image.sha256,
            prediction_set=tuple(labels[k] for k in order if sets[j, k]),
            probabilities=dict(zip(labels, probabilities[j].tolist(), strict=True)),
            p_values=dict(zip(labels, p_values[j].tolist(), strict=True)),
            entropy=float(entropy[j]),
            mutual_information=float(information[j]),
            confidence_level=level,
            stability=stable[j],
            quality=quality.verdict,
            quality_reasons=quality.reasons,
            guarantee=guarantee,
            names=full_names,
            malignant=malignant,
        )
    return [row for row in rows if row is not None]


def _meaning(clf: Any) -> tuple[dict[str, str], dict[str, bool | None]]:
    """Full name and malignancy of each class, as far as the taxonomy knows them."""
    labels, tree = [str(label) for label in clf.classes_], clf.taxonomy_
    if tree is None:
        return {c: c for c in labels}, dict.fromkeys(labels)
    return {c: tree.describe(c) for c in labels}, {c: tree.malignant(c) for c in labels}


class _Predicted:
    """What a head says of one batch, so that it is asked once; entropies in nats, NaN where a head has no posterior."""

    def __init__(self, head: Any, embeddings: np.ndarray) -> None:
        self.classes_ = head.classes_
        self.information = np.full(len(embeddings), np.nan)
        if isinstance(head, BayesianHead):
            self._log_proba, self.information = head.predict_with_information(embeddings)
            self._proba = np.exp(self._log_proba)
        else:
            self._proba = head.predict_proba(embeddings)
            if hasattr(head, "predict_log_proba"):
                self._log_proba = head.predict_log_proba(embeddings)
            if hasattr(head, "mutual_information"):
                self.information = head.mutual_information(embeddings)
        self.entropy = entr(self._proba).sum(axis=1)

    def predict_proba(self, X: Any = None) -> np.ndarray:
        return self._proba

    def predict_log_proba(self, X: Any = None) -> np.ndarray:
        return self._log_proba
