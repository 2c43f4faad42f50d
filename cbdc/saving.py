"""`CBDCClassifier` to a model file and back: no pickle, no image, and a golden prediction that must be repeated."""

from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from . import __version__
from .backbones import FineTuner
from .backbones.networks import backbone_of, network_arrays
from .backbones.union import joined
from .conformal import ConformalClassifier
from .errors import MissingWeightsError, ModelFileError
from .heads import LinearPool, LogarithmicPool
from .heads._nested import head_from, state_of
from .modelfile import part_of, read_modelfile, write_modelfile
from .parts import embedders_of
from .taxonomy import Taxonomy

__all__ = ["load_classifier", "save_classifier"]

_OF_THE_MACHINE = ("cache_dir", "engine", "n_jobs", "verbose")


def save_classifier(clf: Any, path: Path, notes: dict[str, Any]) -> Path:
    """Write a calibrated classifier to one file; see `CBDCClassifier.save`."""
    head_arrays, head_document = state_of(clf.head_)
    conformal_arrays, conformal_document = clf.conformal_.get_state()
    golden = clf.embedder_.transform([_golden_image()])
    arrays = {f"head.{name}": array for name, array in head_arrays.items()}
    arrays |= {f"conformal.{name}": array for name, array in conformal_arrays.items()}
    arrays |= {"golden.embedding": golden, **_golden_prediction(clf, golden)}
    parameters = clf.get_params(deep=False)
    if not isinstance(clf.head, str):
        parameters["head"] = None  # it is made again from the fitted one
    embedders = getattr(clf.embedder_, "embedders_", [clf.embedder_])
    names = [embedder.backbone for embedder in embedders]
    parameters["backbone"] = names if len(names) > 1 else names[0]
    parameters["fine_tune"] = None
    if "fine_tuning" in clf.provenance_:
        for j, embedder in enumerate(embedders):
            arrays |= {f"network.{j}.{name}": value for name, value in network_arrays(embedder.backbone_).items()}
        (tuner, *_) = getattr(clf, "fine_tuners_", [clf.fine_tune])
        parameters["fine_tune"] = _settings_of(tuner or FineTuner())
    for name in _OF_THE_MACHINE:
        del parameters[name]
    if not isinstance(parameters["random_state"], Integral | None):
        parameters["random_state"] = None
    if clf.weights not in ("default", "random"):
        parameters["weights"] = "file"  # where it lies is of the machine, and may name a person
    document = {
        "cbdc_version": __version__,
        "classes": [str(label) for label in clf.classes_],
        "parameters": parameters,
        "head": head_document,
        "conformal": conformal_document,
        "embedder_fingerprint": clf.embedder_.fingerprint_,
        "taxonomy": clf.taxonomy_.to_dict() if clf.taxonomy_ is not None else None,
        "provenance": clf.provenance_,
        "notes": notes,
    }
    return write_modelfile(path, arrays, document)


def load_classifier(cls: type, path: Path, parameters: dict[str, Any]) -> Any:
    """Read a classifier of a class from a file; see `CBDCClassifier.load`."""
    arrays, document = read_modelfile(path)
    allowed = {*_OF_THE_MACHINE, "weights"}
    if unknown := set(parameters) - allowed:
        raise TypeError(
            f"{', '.join(sorted(unknown))}: part of the model; only {', '.join(sorted(allowed))} may be given."
        )
    if "parameters" not in document:
        raise ModelFileError(f"{path.name}: no model of CBDCClassifier, perhaps a checkpoint of its training.")
    network = part_of(arrays, "network.")
    if not network and document["parameters"].get("weights") == "file" and "weights" not in parameters:
        raise MissingWeightsError(f"{path.name}: its network's weights came from a file. Fix: load(..., weights=FILE).")
    try:
        known = document["parameters"] | parameters
        if known.get("fine_tune"):
            known["fine_tune"] = FineTuner(**known["fine_tune"])
        clf = cls(**known)
        clf.head_ = head_from(part_of(arrays, "head."), document["head"])
        clf.classes_ = clf.head_.classes_
        if clf.head is None:
            clf.head = _asked_head(clf.head_)
        if [str(label) for label in clf.classes_] != document["classes"]:
            raise ModelFileError(f"{path.name}: the head's classes are in another order than the model's. Fit again.")
        clf.conformal_ = ConformalClassifier.from_state(
            part_of(arrays, "conformal."), document["conformal"], estimator=clf.head_
        )
        taxonomy = document["taxonomy"]
        clf.taxonomy_ = Taxonomy.from_dict(taxonomy) if taxonomy is not None else None
        clf.provenance_, clf.notes_ = document["provenance"], document["notes"]
        golden, fingerprint = arrays["golden.embedding"], document["embedder_fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path.name}: a part is missing or of another kind ({error}). Fit again.") from error
    clf._seen = {}
    embedders = []
    for j, embedder in enumerate(embedders_of(clf)):
        if network:
            arrays_of = part_of(network, f"{j}.")
            embedders.append(embedder.use(backbone_of(embedder.backbone, arrays_of, image_size=clf.image_size)))
        else:
            embedders.append(embedder.fit())
    clf.embedder_ = joined(embedders)
    if clf.embedder_.fingerprint_ != fingerprint:
        raise ModelFileError(
            f"{path.name}: fitted on other weights or preprocessing of {clf.backbone} than this machine has. Fix: give "
            "the same weights file with weights=, or fit again."
        )
    _replay(clf, path.name, arrays, golden)
    return clf


def _asked_head(head: Any) -> Any:
    """The head that was given, unfitted, from what became of it."""
    while isinstance(head, LinearPool | LogarithmicPool):
        head = head.heads_[0] if isinstance(head, LinearPool) else head.head_
    return clone(head)


def _replay(clf: Any, name: str, arrays: dict[str, np.ndarray], golden: np.ndarray) -> None:
    """Raise unless this machine repeats the saved embedding, probabilities and p-values of the golden image."""
    here = clf.embedder_.transform([_golden_image()])
    if not np.allclose(here, golden, rtol=1e-3, atol=1e-3 * np.abs(golden).max()):
        raise ModelFileError(
            f"{name}: this machine embeds the golden image differently (by {np.abs(here - golden).max():.2g}); its "
            "predictions would not be the calibrated ones. Fix: try engine='torch', or fit again."
        )
    for key, value in _golden_prediction(clf, golden).items():
        if not np.allclose(value, arrays[key], rtol=1e-5, atol=1e-7):
            raise ModelFileError(f"{name}: {key} is not repeated by this version of the library. Fit again.")


def _golden_prediction(clf: Any, embedding: np.ndarray) -> dict[str, np.ndarray]:
    known = clf.conformal_.groups_
    p_values = clf.conformal_.p_values(embedding, groups=None if known is None else known[:1])
    return {"golden.probabilities": clf.head_.predict_proba(embedding), "golden.p_values": p_values}


def _golden_image() -> np.ndarray:
    """A fixed picture made of integers: the same bytes on every machine."""
    y, x = np.mgrid[0:224, 0:224]
    disc = ((x - 118) ** 2 + (y - 104) ** 2 < 60**2) * 90
    return np.stack(
        [225 - disc - (x // 9) % 7, 180 - disc - (y // 7) % 9, 160 - disc - (x * y // 99) % 11], axis=-1
    ).astype(np.uint8)


def _settings_of(tuner: Any) -> dict[str, Any]:
    """Parameters of a `FineTuner`, without those of the machine."""
    settings = tuner.get_params(deep=False)
    for name in ("embedder", "checkpoint", "verbose"):
        del settings[name]
    if not isinstance(settings["random_state"], int | None):
        settings["random_state"] = None
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
