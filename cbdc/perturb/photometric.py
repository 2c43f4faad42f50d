"""Perturbations of the values where they stand: light, sensor, optics and compression."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from scipy.fft import dctn, idctn

from ._base import Perturbation, from_planes, image_scale, norm, rounding_norm, to_planes

__all__ = ["Blur", "Brightness", "Contrast", "Gamma", "Hue", "Noise", "Saturation", "WhiteBalance"]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_LEVELS = np.arange(256)[:, None] / 255


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


class _Curve(Perturbation):
    """A curve for each channel. The bound is the exact size, from the image's three histograms of 256 levels."""

    kind: ClassVar = "photometric"

    @abstractmethod
    def _curve(self, mean: np.ndarray) -> np.ndarray:
        """New values of the 256 levels, (256, 3) or (256, 1); `mean` is that of each channel, (3,)."""

    def _table(self, counts: np.ndarray) -> np.ndarray:
        mean = (counts * _LEVELS).sum(axis=0) / counts[:, 0].sum()
        curve = np.clip(self._curve(mean), 0, 1)
        return np.broadcast_to(np.rint(255 * curve), (256, 3)).astype(np.uint8)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        table = self._table(_counts(image))
        return np.stack([table[:, channel].take(image[..., channel]) for channel in range(3)], axis=-1)

    def _bound(self, image: np.ndarray) -> float:
        counts = _counts(image)
        return float(np.sqrt((counts * (self._table(counts) / 255 - _LEVELS) ** 2).sum()))


def _counts(image: np.ndarray) -> np.ndarray:
    """Histogram of each channel, (256, 3)."""
    return np.stack([np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)], axis=1)


@dataclass(frozen=True)
class Brightness(_Curve):
    """Add b to every value; darker or brighter with equal chance.

    Size: at most |b| sqrt(3HW), and equal to it, before rounding, where nothing is clipped. Source: ImageNet-C
    (arXiv:1903.12261), which adds 0.1 to 0.5 to the V of HSV and only brightens; half of that here: skin is bright.

    Parameters
    ----------
    shift : float
        b.
    """

    amounts: ClassVar = (0.05, 0.1, 0.15, 0.2, 0.25)
    limits: ClassVar = (-1, 1)
    shift: float

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(_sign(rng) * amount)

    def _curve(self, mean: np.ndarray) -> np.ndarray:
        return _LEVELS + self.shift


@dataclass(frozen=True)
class Contrast(_Curve):
    """Stretch every channel about its mean by c; less or more with equal chance, c = 1 -+ amount.

    Size: at most |c - 1| |x - mean|, and equal to it, before rounding, where nothing is clipped. Source: ImageNet-C
    (arXiv:1903.12261), whose c is 0.4 to 0.05; a lesion at 0.05 shows nothing to anyone.

    Parameters
    ----------
    factor : float
        c.
    """

    amounts: ClassVar = (0.15, 0.3, 0.45, 0.6, 0.75)
    limits: ClassVar = (0, 100)
    factor: float

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(1 + _sign(rng) * amount)

    def _curve(self, mean: np.ndarray) -> np.ndarray:
        return mean + self.factor * (_LEVELS - mean)


@dataclass(frozen=True)
class Gamma(_Curve):
    """Raise every value to the power g, an error of the tone curve; g = 1 + amount or 1 / (1 + amount).

    Size: at most |g - 1| g^(-g / (g - 1)) sqrt(3HW), since that is the largest |x^g - x|, reached at
    x = g^(-1 / (g - 1)). Source: power-law transfer functions, as in ITU-R BT.709.

    Parameters
    ----------
    exponent : float
        g, above 0.
    """

    amounts: ClassVar = (0.15, 0.3, 0.5, 0.75, 1.0)
    limits: ClassVar = (0.01, 100)
    exponent: float

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls((1 + amount) ** _sign(rng))

    def _curve(self, mean: np.ndarray) -> np.ndarray:
        return _LEVELS**self.exponent


@dataclass(frozen=True)
class WhiteBalance(_Curve):
    """Multiply channel c by a gain g_c: another illuminant, or a wrong white balance.

    The logarithms of the gains sum to zero (brightness stays) and have the norm `amount` along red-blue (warm or cool
    light), a third of it along green-magenta.

    Size: at most sqrt(sum_c (g_c - 1)^2 |x_c|^2), and equal to it, before rounding, where nothing is clipped.
    Source: von Kries' diagonal adaptation, diagonal in encoded values too where a power law encodes:
    (g x)^p = g^p x^p. It is what colour constancy undoes in dermoscopy (Barata et al. 2015,
    doi:10.1109/JBHI.2014.2336473).

    Parameters
    ----------
    gains : tuple of three floats
        Of red, green and blue.
    """

    amounts: ClassVar = (0.05, 0.1, 0.16, 0.23, 0.3)
    limits: ClassVar = (0, 100)
    gains: tuple[float, float, float]

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        angle = 2 * np.pi * rng.random()
        warm, green = amount * np.cos(angle) / 2**0.5, amount * np.sin(angle) / 3 / 6**0.5
        return cls((float(np.exp(warm - green)), float(np.exp(2 * green)), float(np.exp(-warm - green))))

    def _curve(self, mean: np.ndarray) -> np.ndarray:
        return _LEVELS * np.array(self.gains)


@dataclass(frozen=True)
class Hue(Perturbation):
    """Turn colours about the gray axis (1, 1, 1) by an angle, to either side.

    Size: at most 2 sin(angle / 2) |x - gray|, gray the mean of the three channels at each pixel: a rotation moves a
    point by that chord; equal to it, before rounding, where nothing is clipped. Source: Rodrigues' rotation formula
    in RGB.

    Parameters
    ----------
    degrees : float
    """

    kind: ClassVar = "photometric"
    amounts: ClassVar = (4, 8, 12, 18, 25)
    limits: ClassVar = (-360, 360)
    degrees: float

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(_sign(rng) * amount)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(np.radians(self.degrees)), np.sin(np.radians(self.degrees))
        cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
        turn = cos * np.eye(3) + (1 - cos) / 3 + sin * cross
        return from_planes(np.tensordot(turn.astype(np.float32), to_planes(image), 1))

    def _bound(self, image: np.ndarray) -> float:
        x = to_planes(image, np.float64)
        chord = 2 * abs(np.sin(np.radians(self.degrees) / 2))
        return chord * norm(x - x.mean(axis=0)) + rounding_norm(x.size)


@dataclass(frozen=True)
class Saturation(Perturbation):
    """Stretch colours away from gray by s; paler or more vivid with equal chance, s = 1 -+ amount.

    Size: at most |s - 1| |x - gray|, gray the luma of ITU-R BT.601 at each pixel, and equal to it, before rounding,
    where nothing is clipped. Source: ImageNet-C (arXiv:1903.12261), which stretches the S of HSV by 0.1 to 20.

    Parameters
    ----------
    factor : float
        s.
    """

    kind: ClassVar = "photometric"
    amounts: ClassVar = (0.15, 0.3, 0.45, 0.6, 0.8)
    limits: ClassVar = (0, 100)
    factor: float

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(1 + _sign(rng) * amount)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        x = to_planes(image)
        gray = np.tensordot(_LUMA.astype(np.float32), x, 1)
        x -= gray
        x *= np.float32(self.factor)
        x += gray
        return from_planes(x)

    def _bound(self, image: np.ndarray) -> float:
        x = to_planes(image, np.float64)
        gray = np.tensordot(_LUMA, x, 1)
        return abs(self.factor - 1) * norm(x - gray) + rounding_norm(x.size)


@dataclass(frozen=True)
class Blur(Perturbation):
    """Blur with a Gaussian of standard deviation sigma, the image mirrored at its borders: out of focus.

    In the basis of the discrete cosine transform a frequency w (radians a pixel, down and across) is multiplied by
    exp(-sigma^2 |w|^2 / 2).

    Size: by Parseval the norm of (1 - exp(-sigma^2 |w|^2 / 2)) X(w), X the transform; at most |x - mean|. Source: the
    standard deviations of ImageNet-C's Gaussian blur (arXiv:1903.12261).

    Parameters
    ----------
    sigma : float
        In pixels of an image whose shorter side is 224.
    """

    kind: ClassVar = "photometric"
    amounts: ClassVar = (1, 2, 3, 4, 6)
    limits: ClassVar = (0, 224)
    sigma: float

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(amount)

    def _lost(self, image: np.ndarray) -> np.ndarray:
        """Cosine coefficients of what the blur takes away, (3, H, W)."""
        down, across = ((np.pi * self.sigma * image_scale(image) / n * np.arange(n)) ** 2 for n in image.shape[:2])
        lost = -np.expm1(-(down[:, None] + across) / 2)
        return dctn(to_planes(image), axes=(1, 2), norm="ortho") * lost.astype(np.float32)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return from_planes(to_planes(image) - idctn(self._lost(image), axes=(1, 2), norm="ortho"))

    def _bound(self, image: np.ndarray) -> float:
        return norm(self._lost(image)) + rounding_norm(image.size)


@dataclass(frozen=True)
class Noise(Perturbation):
    """Add Gaussian noise, scaled so that its root mean square over the image is exactly sigma.

    Size: at most sigma sqrt(3HW), and equal to it, before rounding, where nothing is clipped. Source: ImageNet-C
    (arXiv:1903.12261), whose standard deviations go from 0.08 to 0.38. The noise of a pixel does not depend on how many
    there are: an image that is reduced afterwards keeps less of it.

    Parameters
    ----------
    sigma : float
    seed : int
    """

    kind: ClassVar = "photometric"
    amounts: ClassVar = (0.02, 0.04, 0.06, 0.08, 0.12)
    limits: ClassVar = (0, 10)
    sigma: float
    seed: int = 0

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(amount, int(rng.integers(2**63)))

    def _apply(self, image: np.ndarray) -> np.ndarray:
        x = to_planes(image)
        noise = np.random.default_rng(self.seed).standard_normal(x.shape, dtype=np.float32)
        noise *= self.sigma * x.size**0.5 / norm(noise)
        return from_planes(x + noise)

    def _bound(self, image: np.ndarray) -> float:
        return self.sigma * image.size**0.5 + rounding_norm(image.size)
