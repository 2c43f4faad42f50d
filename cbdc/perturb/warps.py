"""Perturbations that move pixels: rotation, flip, scale, crop, elastic. None is small in pixel space."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from ._base import Perturbation, from_planes, grid_norm, image_scale, norm, rounding_norm, to_planes

__all__ = ["Crop", "Elastic", "Flip", "Rotation", "Scale"]


class _Warp(Perturbation):
    """Read each pixel elsewhere: a mean of four old ones (bilinear), the image mirrored at its borders.

    The bound is the lesser of two. By Jensen's inequality |y - m|^2 <= sum_q c_q |x_q - m|^2, where c_q is the weight
    with which pixel q is read in all, hence |y - x| <= |x - m| + sqrt(sum_q c_q |x_q - m|^2), m the mean colour. And a
    value that is read at most d rows or columns away lies between the least and the greatest old one within ceil(d).
    """

    kind: ClassVar = "morphological"

    @abstractmethod
    def _positions(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column that each pixel is read at; they broadcast to (H, W)."""

    def _inside(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions mirrored into the image, (H, W) each."""
        height, width = image.shape[:2]
        rows, columns = np.broadcast_arrays(*map(_mirrored, self._positions(image), (height, width)))
        return rows, columns

    def _apply(self, image: np.ndarray) -> np.ndarray:
        x = to_planes(image).reshape(3, -1)
        new = np.zeros_like(x)
        for place, weight in _reads(*self._inside(image)):
            for plane, old in zip(new, x):
                plane += weight * old.take(place, mode="wrap")  # in range: wrap only spares a check
        return from_planes(new.reshape(3, *image.shape[:2]))

    def _bound(self, image: np.ndarray) -> float:
        at = self._inside(image)
        counts = sum(np.bincount(place, weight, minlength=at[0].size) for place, weight in _reads(*at))
        here = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])
        reach = [int(np.ceil(np.abs(to - start).max())) for to, start in zip(at, here)]
        return min(_spread_bound(image, counts), _range_bound(image, reach))


def _reads(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The four pixels that each new one is a mean of, as flat places, and their weights, each (H * W,)."""
    height, width = rows.shape
    top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    down, right = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
    for row, by_row in ((top, 1 - down), (np.minimum(top + 1, height - 1), down)):
        for column, by_column in ((left, 1 - right), (np.minimum(left + 1, width - 1), right)):
            yield (row * width + column).ravel(), (by_row * by_column).ravel()


def _spread_bound(image: np.ndarray, counts: np.ndarray | float) -> float:
    """Bound by the distances of the pixels to their mean; `counts`, how often each is read."""
    x = to_planes(image, np.float64).reshape(3, -1)
    squares = ((x - x.mean(axis=1, keepdims=True)) ** 2).sum(axis=0)
    return float(squares.sum() ** 0.5 + (counts * squares).sum() ** 0.5) + rounding_norm(x.size)


def _range_bound(image: np.ndarray, reach: list[int]) -> float:
    """Bound by the largest differences of a value to those of its channel at most `reach` rows and columns away."""
    least, greatest = image, image
    for axis, (far, n) in enumerate(zip(reach, image.shape)):
        if far < n - 1:
            least = minimum_filter1d(least, 2 * far + 1, axis=axis, mode="nearest")
            greatest = maximum_filter1d(greatest, 2 * far + 1, axis=axis, mode="nearest")
        else:
            least, greatest = least.min(axis=axis, keepdims=True), greatest.max(axis=axis, keepdims=True)
    return grid_norm(np.maximum(greatest - image, image - least) / 255)


def _mirrored(at: np.ndarray, n: int) -> np.ndarray:
    """Positions folded into [0, n - 1]: the image is continued as its mirror image, the border pixel twice."""
    folded = n - 0.5 - np.abs((at + 0.5) % (2 * n) - n)
    return np.where((at >= 0) & (at <= n - 1), at, np.clip(folded, 0, n - 1))


def _from_middle(n: int) -> tuple[np.ndarray, float]:
    """Coordinates of n pixels counted from the middle, and the middle."""
    middle = (n - 1) / 2
    return np.arange(n) - middle, middle


@dataclass(frozen=True)
class Rotation(_Warp):
    """Turn about the middle, to either side.

    Size: not small, bounded as every warp is (`theory/perturb.md`); a corner moves by 2 sin(angle / 2) half diagonals.
    Source: a camera is held at any angle (SAM-P, Maron et al. 2021, doi:10.1016/j.ejca.2021.06.047).

    Parameters
    ----------
    degrees : float
    """

    amounts: ClassVar = (5, 10, 20, 30, 45)
    limits: ClassVar = (-360, 360)
    degrees: float

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(amount if rng.random() < 0.5 else -amount)

    def _positions(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (row, middle_row), (column, middle_column) = map(_from_middle, image.shape[:2])
        cos, sin = np.cos(np.radians(self.degrees)), np.sin(np.radians(self.degrees))
        row = row[:, None]
        return cos * row + sin * column + middle_row, cos * column - sin * row + middle_column


@dataclass(frozen=True)
class Scale(_Warp):
    """Zoom in or out about the middle, with equal chance; what is missing at the borders is mirrored.

    Size: not small, bounded as every warp is (`theory/perturb.md`); a pixel moves by up to |1 - 1 / factor| half sides.
    Source: one lesion is photographed at several magnifications (Maron et al. 2021, doi:10.1016/j.ejca.2021.06.047).

    Parameters
    ----------
    factor : float
        Above 1 enlarges.
    """

    amounts: ClassVar = (1.05, 1.1, 1.2, 1.35, 1.5)
    limits: ClassVar = (0.1, 10)
    factor: float

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(amount if rng.random() < 0.5 else 1 / amount)

    def _positions(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (row, middle_row), (column, middle_column) = map(_from_middle, image.shape[:2])
        return row[:, None] / self.factor + middle_row, column / self.factor + middle_column


@dataclass(frozen=True)
class Crop(_Warp):
    """Cut a window out at a random place and enlarge it to the whole: the lesion off centre, perhaps cut.

    Size: not small, bounded as every warp is (`theory/perturb.md`); a pixel moves by up to that fraction of a side.
    Source: the random crops that networks are trained with (Szegedy et al., arXiv:1409.4842).

    Parameters
    ----------
    cut : float
        Fraction of each side that is cut off, from 0 to below 1.
    corner : tuple of two floats in [0, 1]
        Share of what is cut off that lies above and to the left of the window.
    """

    amounts: ClassVar = (0.06, 0.12, 0.2, 0.3, 0.4)
    limits: ClassVar = (0, 0.9)
    cut: float
    corner: tuple[float, float] = (0.5, 0.5)

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        above, left = rng.random(2).tolist()
        return cls(amount, (above, left))

    def _positions(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = (
            self.cut * share * n + (np.arange(n) + 0.5) * (1 - self.cut) - 0.5
            for n, share in zip(image.shape, self.corner)
        )
        return rows[:, None], columns


@dataclass(frozen=True)
class Elastic(_Warp):
    """Deform smoothly: a free-form deformation, cubic B-splines on a grid of a quarter of the shorter side.

    Size: not small, bounded as every warp is (`theory/perturb.md`); rows and columns move by at most `reach`, since
    B-splines form a convex combination of the displacements of the grid. Nothing folds up to 0.48 of the grid's step,
    26 pixels (Choi and Lee 2000, doi:10.1006/gmod.2000.0531). Source: skin gives way under a dermatoscope; free-form
    deformations, Rueckert et al. 1999, doi:10.1109/42.796284.

    Parameters
    ----------
    reach : float
        Largest displacement along an axis, in pixels of an image whose shorter side is 224.
    seed : int
    """

    amounts: ClassVar = (5, 10, 15, 20, 26)
    limits: ClassVar = (0, 26)
    reach: float
    seed: int = 0

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(amount, int(rng.integers(2**63)))

    def _positions(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        along_rows, along_columns = (_splines(n, min(height, width) / 4) for n in (height, width))
        grid = np.random.default_rng(self.seed).uniform(-1, 1, (2, along_rows.shape[1], along_columns.shape[1]))
        down, right = self.reach * image_scale(image) * (along_rows @ grid @ along_columns.T)
        return np.arange(height)[:, None] + down, np.arange(width) + right


def _splines(n: int, step: float) -> np.ndarray:
    """Uniform cubic B-splines with knots `step` apart at n pixels, (n, n_knots); rows sum to one."""
    at = (np.arange(n) + 0.5) / step
    t = np.abs(at[:, None] - np.arange(-1, int(at[-1]) + 3))
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6)


@dataclass(frozen=True)
class Flip(Perturbation):
    """Mirror top to bottom, left to right, or both. A flip has no size to choose: its five severities are one.

    Size: not small. At most 2 |x - mean| (a flip keeps norm and mean of each channel), and at most the range.
    Source: lesions have no up or left.

    Parameters
    ----------
    vertical, horizontal : bool
        Whether rows and columns are reversed.
    """

    kind: ClassVar = "morphological"
    amounts: ClassVar = (1, 1, 1, 1, 1)
    limits: ClassVar = (0, 1)
    vertical: bool = False
    horizontal: bool = True

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(*[(True, False), (False, True), (True, True)][rng.integers(3)])

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image[:: -1 if self.vertical else 1, :: -1 if self.horizontal else 1])

    def _bound(self, image: np.ndarray) -> float:
        x = to_planes(image, np.float64)
        spread = norm(x - x.mean(axis=(1, 2), keepdims=True))
        return min(2 * spread, _range_bound(image, list(image.shape[:2])))
