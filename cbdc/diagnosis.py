"""`Diagnosis`: all that the classifier says of one image."""

import dataclasses
import math
from typing import Any

__all__ = ["Diagnosis"]


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
