"""Training images as they might have been photographed: turned, mirrored, nearer, in another light."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

from ..perturb import PERTURBATIONS

__all__ = ["MARGIN", "Augmenter", "resized"]

MARGIN = 1.15  # side of the stored image to that of the network's input: what is shown nearer stays sharp
_ZOOM = 1.25  # nearer or farther by at most this factor
_SHIFT = 0.1  # of a side


class Augmenter:
    """Images of a store, each in a version of its own in every epoch; the same again for the same seed.

    One warp (any angle, mirrored or not, zoom, shift) of the stored image, continued by its mirror image beyond the
    border; then each perturbation by name with probability 1/2 and a severity drawn from 1 to `max_severity`.

    Parameters
    ----------
    perturbations : sequence of str
        Names known to `cbdc.perturb`.
    max_severity : int
    seed : int
    """

    def __init__(self, perturbations: Sequence[str], max_severity: int, seed: int) -> None:
        self._perturbations = tuple(perturbations)
        self._max_severity = max_severity
        self._seed = seed

    def batch(self, store: np.ndarray, rows: np.ndarray, epoch: int, size: tuple[int, int]) -> np.ndarray:
        """Versions of the rows of a store, uint8 (n, *size, 3)."""
        draws = [np.random.default_rng([self._seed, epoch, int(row)]) for row in rows]
        large = (round(MARGIN * size[0]), round(MARGIN * size[1]))
        warped = _warp(resized(store[rows], large), size, draws)
        for image, rng in zip(warped, draws, strict=True):
            for name in self._perturbations:
                if rng.random() < 0.5:
                    severity = int(rng.integers(1, self._max_severity + 1))
                    image[...] = PERTURBATIONS[name].draw(severity, rng)(image)
        return warped


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images of a store, uint8 (n, height, width, 3), at another size."""
    if images.shape[1:3] == size:
        return images
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    return interpolate(x, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1).contiguous().numpy()


def _warp(images: np.ndarray, size: tuple[int, int], draws: list[np.random.Generator]) -> np.ndarray:
    theta = torch.from_numpy(np.stack([_affine(rng, size) for rng in draws]))
    grid = affine_grid(theta, [len(images), 3, *size], align_corners=False)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    warped = grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return warped.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _affine(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Where the pixels are read, float32 (2, 3): x and y in halves of the image's sides."""
    angle = rng.uniform(0, 2 * np.pi)
    mirror = rng.choice([-1.0, 1.0])
    zoom = _ZOOM ** rng.uniform(-1, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [mirror, 1]
    sides = np.array(size[::-1])
    shift = rng.uniform(-2 * _SHIFT, 2 * _SHIFT, size=2)
    return np.column_stack([zoom * turn * sides / sides[:, None], shift]).astype(np.float32)
