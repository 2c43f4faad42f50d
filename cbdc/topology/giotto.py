"""giotto-tda's transformers of persistence diagrams on current scikit-learn and numpy.

giotto-tda 0.6.2 asks for scikit-learn 1.3.2 and no later release of it exists; installed without its pins it fails on
scikit-learn 1.8 and numpy 2 through one keyword and one function that are gone. Both are put back here inside
giotto-tda's own modules, and nowhere else: scikit-learn and numpy stay as they are.

    from cbdc.topology.giotto import PersistenceEntropy

giotto-tda, giotto-ph and pyflagser are licensed under the AGPL-3: software that you pass on, or offer over a network,
and that uses this module or `engine="giotto"`, comes under it. Nothing else of cbdc does.

Leave `n_jobs` at None, or use joblib's threads: processes that joblib starts import giotto-tda anew, unrepaired.
"""

import importlib
import inspect
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import MissingDependencyError

_HOME = {
    "Amplitude": "diagrams",
    "BettiCurve": "diagrams",
    "PairwiseDistance": "diagrams",
    "PersistenceEntropy": "diagrams",
    "PersistenceImage": "diagrams",
    "PersistenceLandscape": "diagrams",
    "VietorisRipsPersistence": "homology",
}
__all__ = [*_HOME]

_INSTALL = "pip install 'cbdc[giotto]' && pip install --no-deps giotto-tda==0.6.2"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(_load(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _load(room: str) -> ModuleType:
    """A module of giotto-tda, repaired."""
    try:
        module = importlib.import_module(f"gtda.{room}")
        validation: Any = importlib.import_module("gtda.utils.validation")
        metrics: Any = importlib.import_module("gtda.diagrams._metrics")
    except ImportError as error:
        raise MissingDependencyError(
            f"giotto-tda cannot be imported ({error}). Fix: {_INSTALL} (AGPL-3; Python 3.10 to 3.12). "
            "persistence_diagrams, bottleneck_distance and wasserstein_distance do without it."
        ) from error
    if "force_all_finite" not in inspect.signature(validation.check_array).parameters:
        validation.check_array = _renamed(validation.check_array)
    if not hasattr(metrics.np, "product"):
        metrics.np = _NumpyWithProduct()
    return module


def _renamed(check_array: Any) -> Any:
    """scikit-learn's `check_array` under the keyword that it had until 1.8."""

    def check_array_as_before(*args: Any, force_all_finite: bool | str = True, **options: Any) -> Any:
        return check_array(*args, ensure_all_finite=force_all_finite, **options)

    return check_array_as_before


class _NumpyWithProduct:
    """numpy, with the name that `prod` also had until numpy 2."""

    product = staticmethod(np.prod)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
