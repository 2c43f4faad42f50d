"""What lies between lens and skin, as opacities on a pixel grid: hairs, ruler ticks, gel bubbles."""

import numpy as np

__all__ = ["bubble", "ruler_ink", "smoothstep", "splat"]


def smoothstep(low: float | np.ndarray, high: float | np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 below low, 1 above high (or the other way round), smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def splat(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, weight: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """Sum points on n grids, each shared out among the four pixels around it.

    `image` (the grid of each point) and `weight` broadcast against the coordinates `x` (column) and `y` (row), in
    pixels; what falls outside is lost. Returns (n, H, W) float64.
    """
    n, height, width = shape
    column, row = np.floor(x), np.floor(y)
    canvas = np.zeros(n * height * width)
    for right in (0, 1):
        for down in (0, 1):
            c, r = column + right, row + down
            share = np.abs(1 - right - (x - column)) * np.abs(1 - down - (y - row)) * weight
            inside = (c >= 0) & (c < width) & (r >= 0) & (r < height)
            flat = (image * height + r) * width + c
            canvas += np.bincount(flat[inside].astype(np.int64), share[inside], minlength=canvas.size)
    return canvas.reshape(shape)


def ruler_ink(phase: np.ndarray, inward: np.ndarray, tall: float | np.ndarray) -> np.ndarray:
    """Opacity of ticks at the halves of `phase`, every fifth one long; `inward` is minus the distance to the edge."""
    tick = smoothstep(0.14, 0.06, np.abs(phase % 1 - 0.5))
    long = 1 + 0.7 * (np.floor(phase) % 5 == 0)
    depth = inward + tall * long
    return 0.8 * tick * smoothstep(0.0, 0.02, depth)


def bubble(dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored light and shade of a gel bubble of radius one: a bright rim and a spot, a faint shade inside."""
    ring = np.sqrt(dx * dx + dy * dy)
    rim = np.where(dx + dy < 0, np.float32(0.4), np.float32(0.04)) * smoothstep(0.2, 0.0, np.abs(ring - 0.9))
    spot = 0.6 * smoothstep(0.05, 0.01, (dx + 0.4) ** 2 + (dy + 0.4) ** 2)
    return rim + spot, 0.12 * smoothstep(1.05, 0.9, ring)
