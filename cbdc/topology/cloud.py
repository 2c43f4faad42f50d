"""A cloud of points with what is computed from it once, for comparing it with several others."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .diagrams import persistence_diagrams
from .distances import check_metric, check_points, distance_blocks, distance_matrix, matrix_blocks, radius_of_blocks
from .h0 import h0_death_times, h0_of_matrix

__all__ = ["Cloud"]

_KEPT = 4_000  # points whose distances (128 MB) are kept; of more they are formed whenever they are needed


class Cloud:
    """A cloud of points that keeps its distances, its enclosing radius and its diagrams once they are asked for.

    Every function of this module that compares two clouds takes one of these for either of them: an embedding that is
    compared with twenty perturbed ones is then worked on once.

    Parameters
    ----------
    X : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`
    metric : {"euclidean", "precomputed"}, default="euclidean"

    Attributes
    ----------
    points : ndarray of shape (n, n_features), float64

    Examples
    --------
    >>> cloud = Cloud([[0.0], [1.0], [3.0]])
    >>> cloud.radius, cloud.h0_deaths
    (2.0, array([1., 2.]))
    """

    def __init__(self, X: ArrayLike, metric: str = "euclidean") -> None:
        self.metric = check_metric(metric)
        self.points = distance_matrix(X, metric) if metric == "precomputed" else check_points(X)
        self._diagrams: dict[tuple, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def of(cls, X: "ArrayLike | Cloud", metric: str = "euclidean") -> "Cloud":
        """X itself where it is a cloud already."""
        return X if isinstance(X, Cloud) else cls(X, metric)

    @cached_property
    def distances(self) -> np.ndarray:
        """All distances between the points, (n, n)."""
        return self.points if self.metric == "precomputed" else distance_matrix(self.points)

    @property
    def blocks(self) -> Iterable[tuple[slice, np.ndarray]]:
        """The upper triangle of the distances, some rows at a time."""
        return matrix_blocks(self.distances) if self._is_kept else distance_blocks(self.points)

    @cached_property
    def radius(self) -> float:
        """The enclosing radius."""
        return radius_of_blocks(self.blocks)

    @cached_property
    def h0_deaths(self) -> np.ndarray:
        """Death times of the components, (n - 1,), ascending."""
        return h0_of_matrix(self.distances) if self._is_kept else h0_death_times(self.points)

    def diagram(self, dimension: int, engine: str = "auto", **options: Any) -> np.ndarray:
        """Persistence diagram of one dimension above 0, (m, 3); the options are those of `persistence_diagrams`."""
        key = dimension, engine, *sorted(options.items())
        if key not in self._diagrams:
            X, metric = (self.distances, "precomputed") if self._is_kept else (self.points, self.metric)
            self._diagrams[key] = persistence_diagrams(X, (dimension,), engine, metric=metric, **options)
        return self._diagrams[key]

    @property
    def _is_kept(self) -> bool:
        return self.metric == "precomputed" or len(self) <= _KEPT
