"""The heads by name."""

from ._base import BayesianHead
from .dirichlet import DirichletHead
from .dropout import DropoutHead
from .ensemble import EnsembleHead
from .gp import RandomFeatureGPHead
from .laplace import LaplaceHead
from .linearized import LinearizedLaplaceHead
from .nuts import NUTSHead
from .pooled import PooledHead
from .swag import SWAGHead
from .variational import VariationalHead

__all__ = ["HEADS"]

HEADS: dict[str, type[BayesianHead]] = {
    "dirichlet": DirichletHead,
    "dropout": DropoutHead,
    "ensemble": EnsembleHead,
    "gp": RandomFeatureGPHead,
    "laplace": LaplaceHead,
    "linearized_laplace": LinearizedLaplaceHead,
    "nuts": NUTSHead,
    "pooled": PooledHead,
    "swag": SWAGHead,
    "variational": VariationalHead,
}
