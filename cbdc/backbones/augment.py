"""Training images as they might have been photographed: turned, mirrored, nearer, in another light."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from ..perturb import PERTURBATIONS

__all__ = ["MARGIN", "Augmenter"]

MARGIN = 1.15  # side of the stored image to that of the network's input: what a shift or turn brings in is photograph
_ZOOM = 1.25  # nearer or farther by at most this factor
_SHIFT = 0.1  # of a side


class Augmenter:
    """Images of a store, each in a version of its own in every epoch; the same again for the same seed.

    One warp (any angle, mirrored or not, zoom, shift) of the middle of the stored image, 1 / `MARGIN` of a side,
    continued by its mirror image beyond the border; then each perturbation by name with probability 1/2 and a severity
    drawn from 1 to `max_severity`.

    Parameters
    ----------
    size : (height, width)
        Of what comes out.
    perturbations : sequence of str
        Names known to `cbdc.perturb`.
    max_severity : int
    seed : int
    """

    def __init__(self, size: tuple[int, int], perturbations: Sequence[str], max_severity: int, seed: int) -> None:
        self._size = size
        self._perturbations = tuple(perturbations)
        self._max_severity = max_severity
        self._seed = seed

    def batch(self, store: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Versions of the rows of a store, uint8 (n, height, width, 3)."""
        draws = [np.random.default_rng([self._seed, epoch, int(row)]) for row in rows]
        warped = self._warp(store[rows], draws)
        for image, rng in zip(warped, draws, strict=True):
            for name in self._perturbations:
                if rng.random() < 0.5:
                    severity = int(rng.integers(1, self._max_severity + 1))
                    image[...] = PERTURBATIONS[name].draw(severity, rng)(image)
        return warped

    def _warp(self, images: np.ndarray, draws: list[np.random.Generator]) -> np.ndarray:
        window = np.array(self._size[::-1]) / images.shape[2:0:-1]  # part of the stored image that is shown, unzoomed
        theta = torch.from_numpy(np.stack([_affine(rng, window) for rng in draws]))
        grid = affine_grid(theta, [len(images), 3, *self._size], align_corners=False)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        warped = grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return warped.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _affine(rng: np.random.Generator, window: np.ndarray) -> np.ndarray:
    """Where the pixels are read, float32 (2, 3), in halves of the stored image's sides."""
    angle = rng.uniform(0, 2 * np.pi)
    mirror = rng.choice([-1.0, 1.0])
    zoom = _ZOOM ** rng.uniform(-1, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [mirror, 1]
    shift = rng.uniform(-2 * _SHIFT, 2 * _SHIFT, size=2)
    return np.column_stack([turn * window * zoom, shift]).astype(np.float32)
