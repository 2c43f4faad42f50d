"""Conformal Bayesian dermatological classifier: calibrated prediction sets for skin lesion images."""

from importlib import import_module

__version__ = "0.1.0"

# Handed out lazily: importing torch costs seconds, and `cbdc --help` or a metric needs none of it.
_HOME = {
    "CBDCClassifier": "classifier",
    "ConformalClassifier": "conformal",
    "Diagnosis": "diagnosis",
    "ImageEmbedder": "backbones",
    "LaplaceHead": "heads",
    "LesionDataset": "datasets",
    "create_backbone": "backbones",
    "load_dataset": "datasets",
    "make_lesions": "phantom",
    "read_image": "images",
    "read_images": "images",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'cbdc' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"cbdc.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
