"""Perturbations that lie over the image: shade, hairs, ruler and gel. Each pixel becomes keep * x + add."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ._base import Perturbation, from_planes, grid_norm, image_scale, to_planes
from .artefacts import bubble, ruler_ink, splat

__all__ = ["Gel", "Hair", "Ruler", "Vignette"]


class _Layer(Perturbation):
    """The bound is the norm of (keep - 1) x + add, rounded up value by value: exact where nothing is clipped."""

    @abstractmethod
    def _layer(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """`keep` (H, W) and `add`, which broadcasts to (3, H, W)."""

    def _apply(self, image: np.ndarray) -> np.ndarray:
        keep, add = self._layer(image)
        return from_planes(to_planes(image) * keep.astype(np.float32) + np.asarray(add, dtype=np.float32))

    def _bound(self, image: np.ndarray) -> float:
        keep, add = self._layer(image)
        return grid_norm(np.abs(to_planes(image, np.float64) * (keep - 1) + add))


def _centred(n: int, scale: float) -> np.ndarray:
    """Coordinates of n pixels, 0 in the middle, in units of `scale` pixels."""
    return (np.arange(n) - (n - 1) / 2) / scale


@dataclass(frozen=True)
class Vignette(_Layer):
    """Darken towards the corners: multiply by 1 - a r^2, r the distance to a centre, 1 at the corner farthest from it.

    Size: a |r^2 x|, at most a sqrt(3HW). Source: natural light falloff, cos^4 of the field angle, to second order.

    Parameters
    ----------
    depth : float
        a, from 0 to 1.
    centre : tuple of two floats
        Down and right of the middle, in half sides.
    """

    kind: ClassVar = "photometric"
    amounts: ClassVar = (0.2, 0.35, 0.5, 0.65, 0.8)
    limits: ClassVar = (0, 1)
    depth: float
    centre: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        down, right = rng.uniform(-0.25, 0.25, 2).tolist()
        return cls(amount, (down, right))

    def _layer(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        height, width = image.shape[:2]
        down, right = ((_centred(n, n / 2) - c) ** 2 * n * n for n, c in zip((height, width), self.centre))
        farthest = sum((n * (1 + abs(c))) ** 2 for n, c in zip((height, width), self.centre))
        return 1 - self.depth / farthest * (down[:, None] + right), 0.0


@dataclass(frozen=True)
class Hair(_Layer):
    """Draw curved hairs, dark or (a quarter of the draws) light brown.

    Size: with opacity a_p <= 0.9 at pixel p, sqrt(sum_p a_p^2 |tone - x_p|^2), at most sqrt(3aHW) where hairs cover
    the fraction a of the image. Source: hairs hide lesions often enough to be removed by software (Lee et al.
    1997, doi:10.1016/S0010-4825(97)00020-6).

    Parameters
    ----------
    n_hairs : int
    seed : int
        The first hairs of more are the same.
    """

    kind: ClassVar = "morphological"
    amounts: ClassVar = (4, 8, 14, 22, 32)
    limits: ClassVar = (0, 1000)
    n_hairs: int
    seed: int = 0

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(int(amount), int(rng.integers(2**63)))

    def _layer(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (height, width), scale, rng = image.shape[:2], image_scale(image), np.random.default_rng(self.seed)
        side = min(height, width)
        common, kind = rng.random(2)
        tone = np.array([0.09, 0.06, 0.05] if kind < 0.75 else [0.48, 0.3, 0.2])
        column, row, heading, bend, length, thick, dark = rng.random((self.n_hairs, 7)).T[:, :, None]
        t = np.linspace(0, 1, max(2, int(1.6 * side)))
        angle = 2 * np.pi * common + 2.2 * (heading - 0.5) + 2.4 * (bend - 0.5) * t
        reach = (0.35 + 1.3 * length) * side / t.size  # pixels from one point to the next
        x = width * column + np.cumsum(reach * np.cos(angle), axis=1)
        y = height * row + np.cumsum(reach * np.sin(angle), axis=1)
        wide = (1.0 + 1.2 * thick) * scale
        grids, opacity = np.zeros((1, 1), dtype=np.int64), np.zeros((1, height, width))
        strands = int(np.ceil(wide.max(initial=0)))  # side by side, at most a pixel apart
        weight = (0.6 + 0.4 * dark) * reach * wide / max(strands, 1) * np.minimum(1, 6 * (1 - t))
        for offset in np.linspace(-0.5, 0.5, 2 * strands + 1)[1::2]:
            down, right = offset * wide * np.cos(angle), -offset * wide * np.sin(angle)
            opacity += splat(grids, x + right, y + down, weight, opacity.shape)
        opacity = np.minimum(opacity[0], 0.9)
        return 1 - opacity, opacity * tone[:, None, None]


@dataclass(frozen=True)
class Ruler(_Layer):
    """Draw the ticks of a dermatoscope's scale along one side.

    Size: with ink a_p <= 0.8 at pixel p, sqrt(sum_p a_p^2 |x_p|^2), at most sqrt(3aHW) on the fraction a of the image.
    Source: rulers are an artefact of dermoscopy that can sway a network (Katsch et al. 2022, doi:10.5826/dpc.1203a126).

    Parameters
    ----------
    tall : float
        Length of a tick in half sides; every fifth is 1.7 times as long.
    seed : int
    """

    kind: ClassVar = "morphological"
    amounts: ClassVar = (0.06, 0.1, 0.15, 0.21, 0.28)
    limits: ClassVar = (0, 2)
    tall: float
    seed: int = 0

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(amount, int(rng.integers(2**63)))

    def _layer(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        rng = np.random.default_rng(self.seed)
        pitch, start, side = rng.uniform(9, 14), rng.random(), rng.integers(4)
        half = min(image.shape[:2]) / 2
        across, along = (_centred(n, half) for n in (image.shape[:2] if side < 2 else image.shape[1::-1]))
        inward = (across if side % 2 else -across) - (across[-1] + 0.5 / half)
        ink = ruler_ink(pitch * along + start, inward[:, None], self.tall)
        return 1 - (ink if side < 2 else ink.T), 0.0


@dataclass(frozen=True)
class Gel(_Layer):
    """Draw bubbles of immersion gel: a bright rim, a mirrored point, a faint shade.

    Size: with mirrored light g_p and shade s_p at pixel p, |g - (1 - (1 - g)(1 - s)) x|, at most sqrt(3aHW) on the
    fraction a of the image. Source: air in immersion fluid, as in images of HAM10000 (Tschandl et al.
    2018, doi:10.1038/sdata.2018.161).

    Parameters
    ----------
    n_bubbles : int
    seed : int
        The first bubbles of more are the same.
    """

    kind: ClassVar = "morphological"
    amounts: ClassVar = (4, 8, 14, 22, 32)
    limits: ClassVar = (0, 1000)
    n_bubbles: int
    seed: int = 0

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(int(amount), int(rng.integers(2**63)))

    def _layer(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        light, glare = np.ones((height, width)), np.zeros((height, width))
        for down, right, large in np.random.default_rng(self.seed).random((self.n_bubbles, 3)):
            radius = (0.03 + 0.12 * large**2) * min(height, width) / 2
            rows, columns = (
                slice(max(0, int(c - 1.1 * radius)), int(c + 1.1 * radius) + 2) for c in (height * down, width * right)
            )
            dy = (np.arange(height)[rows, None] + 0.5 - height * down) / radius
            dx = (np.arange(width)[columns] + 0.5 - width * right) / radius
            mirrored, shade = bubble(dx, dy)
            glare[rows, columns] = np.maximum(glare[rows, columns], mirrored)
            light[rows, columns] *= 1 - shade
        return (1 - glare) * light, glare
