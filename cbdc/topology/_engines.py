"""The programs that reduce boundary matrices: giotto-ph and gudhi, behind one function."""

import importlib.util

import numpy as np

from ..errors import ParameterError, require
from .distances import exponent_of

__all__ = ["ENGINES", "choose_engine", "run_engine"]

ENGINES = ("giotto", "gudhi")


def choose_engine(engine: str) -> str:
    """The engine that "auto" stands for: giotto-ph where it is installed, gudhi elsewhere."""
    if engine == "auto":
        return "giotto" if importlib.util.find_spec("gph") else "gudhi"
    if engine not in ENGINES:
        raise ParameterError(f"engine={engine!r}: no such engine; there is 'auto', 'giotto' and 'gudhi'.")
    return engine


def run_engine(engine: str, D: np.ndarray, max_dimension: int, max_edge_length: float, n_jobs: int) -> list[np.ndarray]:
    """Births and deaths (m, 2) of the classes of each dimension from 0 to `max_dimension`.

    Coefficients are integers modulo 2. Edges are never collapsed beforehand: on embeddings, of many dimensions, that
    takes far longer than it saves.
    """
    if engine == "giotto":
        gph = require("gph", "giotto")
        exponent = exponent_of(D)
        if abs(exponent) < 64:
            exponent = 0
        else:  # single precision ends at 2^128
            D = np.ldexp(D, -exponent)
        end = np.ldexp(max_edge_length, -exponent)
        found = gph.ripser_parallel(D, maxdim=max_dimension, thresh=end, metric="precomputed", n_threads=n_jobs)
        return [np.ldexp(pairs.astype(np.float64), exponent) for pairs in found["dgms"]]
    from gudhi.sklearn.rips_persistence import RipsPersistence

    rips = RipsPersistence(
        homology_dimensions=list(range(max_dimension + 1)),
        threshold=max_edge_length,
        input_type="full distance matrix",
        num_collapses=0,
        homology_coeff_field=2,
    )
    return [np.asarray(pairs, dtype=np.float64).reshape(-1, 2) for pairs in rips.fit_transform([D])[0]]
