"""Banks of periodic textures, made once from fixed seeds; the painter looks pixels up in them.

A tile has TEXELS x TEXELS values and repeats with period one, so that any offset, rotation and zoom is a valid view.
"""

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

__all__ = ["TEXELS", "cells", "index", "look_up", "noise", "trees"]

TEXELS = 512


@lru_cache
def noise(slope: float, lowest: float, n_tiles: int = 4) -> np.ndarray:
    """Gaussian fields of unit variance with amplitude spectrum frequency**-slope from `lowest` cycles a tile on."""
    rng = np.random.default_rng(int(1000 * slope + 7 * lowest))
    frequency = np.hypot(np.fft.fftfreq(TEXELS)[:, None], np.fft.rfftfreq(TEXELS)) * TEXELS
    amplitude = np.where(frequency < lowest, 0.0, np.maximum(frequency, lowest) ** -slope)
    fields = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n_tiles, TEXELS, TEXELS))) * amplitude)
    return _frozen(fields / fields.std(axis=(1, 2), keepdims=True))


@lru_cache
def cells(jitter: float, n_rows: int = 32) -> np.ndarray:
    """Honeycomb of n_rows rows with jittered centres, as three tiles.

    Distance to the nearest centre and to the nearest wall, both in units of the row distance, and a uniform number that
    is the same all over a cell.
    """
    rng = np.random.default_rng(int(1000 * jitter) + n_rows)
    row, column = np.divmod(np.arange(n_rows**2), n_rows)
    centres = np.column_stack([column + 0.5 * (row % 2), row]).astype(float) + jitter * rng.uniform(
        -1, 1, (n_rows**2, 2)
    )
    axis = (np.arange(TEXELS) + 0.5) * n_rows / TEXELS
    points = np.stack(np.meshgrid(axis, axis), axis=-1)
    distance, owner = cKDTree(centres % n_rows, boxsize=n_rows).query(points, k=2)
    wall = (distance[..., 1] - distance[..., 0]) / 2
    return _frozen(np.stack([distance[..., 0], wall, rng.random(n_rows**2)[owner[..., 0]]]))


@lru_cache
def trees(n_tiles: int = 6) -> np.ndarray:
    """Arborising vessels: strokes of strength one that fork into thinner and fainter ones."""
    return _frozen(np.stack([_tree(np.random.default_rng(seed)) for seed in range(n_tiles)]))


def _tree(rng: np.random.Generator) -> np.ndarray:
    """One tile: a few stems that enter near the rim and fork, a generation at a time."""
    canvas = np.zeros((TEXELS, TEXELS), dtype=np.float32)
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(0.8, 2.4, rng.integers(2, 5)))
    starts = [TEXELS * (0.5 + 0.42 * np.array([np.cos(angle), np.sin(angle)])) for angle in angles]
    branches = [(start, angle + np.pi + rng.uniform(-0.5, 0.5)) for start, angle in zip(starts, angles)]
    for generation in range(5):
        stroke, forks = np.zeros_like(canvas), []
        for start, heading in branches:
            headings = heading + np.cumsum(rng.normal(0, 0.09, int(rng.uniform(45, 110) * 0.9**generation)))
            path = start + np.cumsum(2.0 * np.column_stack([np.cos(headings), np.sin(headings)]), axis=0)
            column, row = (np.floor(path).astype(int) % TEXELS).T
            stroke[row, column] = 1
            forks += [(path[-1], headings[-1] + side * rng.uniform(0.25, 0.8)) for side in (-1, 1)]
        blurred = gaussian_filter(stroke, 3.8 * 0.72**generation, mode="wrap")
        canvas = np.maximum(canvas, 0.9**generation * np.minimum(1, blurred / np.quantile(blurred[stroke > 0], 0.7)))
        branches = forks
    wobble = np.indices(canvas.shape) + 3 * noise(2.0, 4)[:2]
    return map_coordinates(canvas, wobble, order=1, mode="grid-wrap")


def index(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Flat position in a tile of the points (u, v), in periods; both at least -16."""
    column = ((u + 16) * TEXELS).astype(np.int32)
    row = ((v + 16) * TEXELS).astype(np.int32)
    column &= TEXELS - 1
    row &= TEXELS - 1
    row *= TEXELS
    return (row + column).astype(np.intp)


def look_up(tile: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Values of one tile at flat positions."""
    return tile.ravel().take(position, mode="wrap")  # positions are in range: wrap only spares numpy's slower check


def _frozen(tiles: np.ndarray) -> np.ndarray:
    tiles = np.ascontiguousarray(tiles, dtype=np.float32)
    tiles.setflags(write=False)
    return tiles
