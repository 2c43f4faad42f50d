"""How far the persistence diagrams of a cloud can have moved, bounded by how far its points did."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ParameterError
from .cloud import Cloud
from .diagram_distances import bottleneck_distance
from .diagrams import check_dimensions
from .distances import scaled
from .h0 import h0_bottleneck

__all__ = ["StabilityBounds", "displacement", "distortion", "stability_bounds"]


def displacement(X: ArrayLike | Cloud, Y: ArrayLike | Cloud) -> np.ndarray:
    """How far each point moved.

    Parameters
    ----------
    X, Y : array-like of shape (n, n_features), or Cloud
        The cloud before and after; row i of both is the same image.

    Returns
    -------
    ndarray of shape (n,), float64
        Euclidean lengths. Twice the largest bounds the `distortion`.

    Notes
    -----
    **Guarantee.** Assumption: none but the pairing of the rows. Statement: the bottleneck distance of the Vietoris-Rips
    diagrams of X and Y (scale = diameter) is at most ``2 * displacement(X, Y).max()``, in every dimension; no smaller
    multiple will do. What breaks it: rows in another order.

    References
    ----------
    Chazal, de Silva and Oudot, *Persistence stability for geometric complexes*, 2014, arXiv:1207.3885.

    Examples
    --------
    >>> displacement([[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 0.5]])
    array([0. , 0.5])
    """
    before, after = _paired(X, Y, "euclidean")
    if "precomputed" in (before.metric, after.metric):
        raise ParameterError("displacement takes the points themselves; distances do not tell how far a point moved.")
    moved, exponent = scaled(after.points - before.points)
    return np.ldexp(np.linalg.norm(moved, axis=1), exponent)


def distortion(X: ArrayLike | Cloud, Y: ArrayLike | Cloud, capped: bool = True, *, metric: str = "euclidean") -> float:
    """Largest change of a distance between two points: a certificate for the persistence diagrams of every dimension.

    Parameters
    ----------
    X, Y : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`, or Cloud
        The cloud before and after; row i of both is the same image.
    capped : bool, default=True
        Cut the distances of each cloud off at its `enclosing_radius`, beyond which nothing is born or dies. Never more
        than without, and still a certificate.
    metric : {"euclidean", "precomputed"}, default="euclidean"

    Returns
    -------
    float
        Within 2e-10 of the largest distance.

    Notes
    -----
    **Guarantee.** Assumption: none but the pairing of the rows. Statement: the bottleneck distance of the Vietoris-Rips
    diagrams (scale = diameter) of X and Y is at most this, in every dimension. What breaks it: rows in another order,
    or points that are left out of one cloud only. It says that the diagrams are close, not that they are equal, and
    nothing about a single point. Moving the whole cloud rigidly changes no distance, and goes unseen.

    References
    ----------
    Chazal, de Silva and Oudot, *Persistence stability for geometric complexes*, 2014, arXiv:1207.3885. The cap:
    theory/topology.md, section 2.

    Examples
    --------
    A point moves on a circle around another: the only distance that changes lies beyond the enclosing radius.

    >>> X, Y = [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    >>> round(distortion(X, Y, capped=False), 3), distortion(X, Y)
    (0.586, 0.0)
    """
    before, after = _paired(X, Y, metric)
    caps = (before.radius, after.radius) if capped else (np.inf, np.inf)
    largest = 0.0
    for (_, one), (_, other) in zip(before.blocks, after.blocks, strict=True):
        change = np.minimum(one, caps[0]) - np.minimum(other, caps[1])
        largest = max(largest, float(change.max()), -float(change.min()))
    return largest


@dataclasses.dataclass(frozen=True)
class StabilityBounds:
    """How far diagrams moved, and three certificates of it that need no diagram, each at least the one before.

    Parameters
    ----------
    bottleneck : dict of int to float
        Bottleneck distance of the diagrams, by homology dimension.
    capped : float
        Largest change of a distance, both cut off at the enclosing radius.
    distortion : float
        Largest change of a distance.
    twice_displacement : float
        Twice the largest distance that a point moved; NaN where only distances are known.

    Examples
    --------
    >>> print(stability_bounds([[0.0], [1.0], [3.0]], [[0.0], [1.1], [3.0]]))
    H0 moved by 0.1 <= capped distortion 0.1 <= distortion 0.1 <= 2 x displacement 0.2
    """

    bottleneck: dict[int, float]
    capped: float
    distortion: float
    twice_displacement: float

    def __str__(self) -> str:
        moved = ", ".join(f"H{k} moved by {value:.3g}" for k, value in self.bottleneck.items())
        last = "" if np.isnan(self.twice_displacement) else f" <= 2 x displacement {self.twice_displacement:.3g}"
        return (
            f"{moved}{' <= ' if moved else ''}capped distortion {self.capped:.3g} <= "
            f"distortion {self.distortion:.3g}{last}"
        )


def stability_bounds(
    X: ArrayLike | Cloud,
    Y: ArrayLike | Cloud,
    homology_dimensions: Sequence[int] = (0,),
    engine: str = "auto",
    *,
    metric: str = "euclidean",
    **options: Any,
) -> StabilityBounds:
    """The whole chain: d_B of the diagrams <= capped distortion <= distortion <= 2 x largest displacement.

    Parameters
    ----------
    X, Y : array-like of shape (n, n_features), or (n, n) with `metric="precomputed"`, or Cloud
        The cloud before and after; row i of both is the same image. A `Cloud` that is compared with several others is
        worked on once.
    homology_dimensions : sequence of int, default=(0,)
        Of the diagrams that are compared; none, (), where the certificates will do. Dimension 0 costs less than the
        distances, dimension 1 ten times as much.
    engine : {"auto", "giotto", "gudhi"}, default="auto"
        Of dimensions above 0; see `persistence_diagrams`.
    metric : {"euclidean", "precomputed"}, default="euclidean"
    **options
        Go to `persistence_diagrams`: max_memory, n_jobs.

    Returns
    -------
    StabilityBounds

    Notes
    -----
    **Guarantee.** As of `distortion` and `displacement`. In floating point the chain holds to within 2e-10 of the
    largest distance (1e-7 for diagrams of giotto-ph, which is in single precision); up to the distortion it holds to
    the bit in dimension 0, whose diagram is made of the same distances, for clouds of up to 4,000 points.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> E = rng.standard_normal((100, 16))
    >>> bounds = stability_bounds(E, E + 0.01 * rng.standard_normal(E.shape))
    >>> bounds.bottleneck[0] <= bounds.capped <= bounds.distortion <= bounds.twice_displacement
    True
    """
    before, after = _paired(X, Y, metric)
    bottleneck = {}
    for k in check_dimensions(homology_dimensions) if len(homology_dimensions) else []:
        if k == 0:
            bottleneck[k] = h0_bottleneck(before.h0_deaths, after.h0_deaths)
        else:
            bottleneck[k] = bottleneck_distance(
                before.diagram(k, engine, **options), after.diagram(k, engine, **options), k
            )
    known = "precomputed" not in (before.metric, after.metric)
    return StabilityBounds(
        bottleneck,
        distortion(before, after),
        distortion(before, after, capped=False),
        2 * float(displacement(before, after).max()) if known else np.nan,
    )


def _paired(X: ArrayLike | Cloud, Y: ArrayLike | Cloud, metric: str) -> tuple[Cloud, Cloud]:
    before, after = Cloud.of(X, metric), Cloud.of(Y, metric)
    if len(before) != len(after):
        raise ParameterError(
            f"X and Y: got {len(before)} and {len(after)} points; give the same points before and after, in the same "
            "order."
        )
    if before.metric == after.metric == "euclidean" and before.points.shape != after.points.shape:
        raise ParameterError(
            f"X and Y: got {before.points.shape[1]} and {after.points.shape[1]} features; expected the same embedding."
        )
    return before, after
