"""Bayesian heads: classifiers over embeddings whose predictions average a posterior."""

from typing import Any

from ..errors import ParameterError
from ._base import BayesianHead, hellinger
from ._registry import HEADS
from .dirichlet import DirichletHead
from .dropout import DropoutHead
from .ensemble import EnsembleHead
from .gp import RandomFeatureGPHead
from .laplace import LaplaceHead
from .linearized import LinearizedLaplaceHead
from .nuts import NUTSHead
from .pooled import PooledHead
from .pools import LinearPool, LogarithmicPool
from .scaling import TemperatureScaling, VectorScaling
from .swag import SWAGHead
from .variational import VariationalHead
from .venn_abers import VennAbersCalibrator

__all__ = [
    "HEADS",
    "BayesianHead",
    "DirichletHead",
    "DropoutHead",
    "EnsembleHead",
    "LaplaceHead",
    "LinearPool",
    "LinearizedLaplaceHead",
    "LogarithmicPool",
    "NUTSHead",
    "PooledHead",
    "RandomFeatureGPHead",
    "SWAGHead",
    "TemperatureScaling",
    "VariationalHead",
    "VectorScaling",
    "VennAbersCalibrator",
    "hellinger",
    "make_head",
]


def make_head(name: str, **parameters: Any) -> BayesianHead:
    """A head by its name.

    Parameters
    ----------
    name : str
        One of `HEADS`.
    **parameters
        Go to the constructor.

    Raises
    ------
    ParameterError
        If no head has that name.

    Examples
    --------
    >>> from cbdc.heads import make_head
    >>> make_head("laplace", random_state=0)
    LaplaceHead(random_state=0)
    """
    if name not in HEADS:
        raise ParameterError(f"head={name!r}: no such head; there is {', '.join(sorted(HEADS))}.")
    return HEADS[name](**parameters)
