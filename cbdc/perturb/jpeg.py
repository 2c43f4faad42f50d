"""The lossy part of JPEG, without the lossless one: what is lost has a closed-form bound, and no codec is needed."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from scipy.fft import dct

from ._base import Perturbation, from_planes, rounding_norm

__all__ = ["Jpeg"]

# Quantisation of brightness and colour, ITU-T T.81, tables K.1 and K.2
_TABLES = """
    16 11 10 16  24  40  51  61    17 18 24 47 99 99 99 99
    12 12 14 19  26  58  60  55    18 21 26 66 99 99 99 99
    14 13 16 24  40  57  69  56    24 26 56 99 99 99 99 99
    14 17 22 29  51  87  80  62    47 66 99 99 99 99 99 99
    18 22 37 56  68 109 103  77    99 99 99 99 99 99 99 99
    24 35 55 64  81 104 113  92    99 99 99 99 99 99 99 99
    49 64 78 87 103 121 120 101    99 99 99 99 99 99 99 99
    72 92 95 98 112 100 103  99    99 99 99 99 99 99 99 99
"""
_STEPS = np.array(_TABLES.split(), dtype=int).reshape(8, 2, 8).swapaxes(0, 1).reshape(2, 64)
# RGB to Y, Cb, Cr (JFIF, ITU-T T.871) and back
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
_TO_RGB = np.linalg.inv(_TO_YCC)
_COSINES = np.kron(*[dct(np.eye(8), axis=0, norm="ortho")] * 2)  # orthonormal on blocks of 8 x 8, flattened


@dataclass(frozen=True)
class Jpeg(Perturbation):
    """Compress as baseline JPEG does: Y, Cb, Cr, colour at half resolution (4:2:0), 8 x 8 cosine transform, rounding.

    Size: at most sqrt(sum_ab |<r_a, r_b>| e_a e_b) over Y, Cb and Cr, r_a their colours in RGB, e_a the norms of their
    errors: e_Y^2 = sum min(|c|, q/2)^2 over coefficients c with their steps q; for Cb and Cr four times that (of the
    means of 2 x 2 pixels), and what these means lose, |u|^2 - 4 |mean u|^2. Source: ITU-T T.81 (annex K), steps scaled
    by quality as in the IJG's libjpeg; ImageNet-C (arXiv:1903.12261) takes qualities from 25 to 7. Codecs differ from
    this in that they round Y, Cb and Cr, and in how they enlarge colour.

    Parameters
    ----------
    quality : int
        1 to 100.
    """

    kind: ClassVar = "photometric"
    amounts: ClassVar = (60, 40, 25, 15, 10)
    limits: ClassVar = (1, 100)
    quality: int

    @classmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self:
        return cls(int(amount))

    def _steps(self) -> np.ndarray:
        """Steps of the 64 coefficients of brightness and of colour, (2, 64) float32."""
        scale = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        return np.clip((_STEPS * scale + 50) // 100, 1, 255).astype(np.float32)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        ycc = _ycc(image)
        luma, colour = (
            _from_blocks(np.rint(coefficients / steps) * steps, plane.shape)
            for plane, coefficients, steps in zip((ycc[:1], _halved(ycc[1:])), _coefficients(ycc), self._steps())
        )
        back = np.concatenate([luma + 128, colour.repeat(2, axis=1).repeat(2, axis=2)])
        return from_planes(np.tensordot(_TO_RGB.astype(np.float32) / 255, back, 1)[:, :height, :width])

    def _bound(self, image: np.ndarray) -> float:
        ycc = _ycc(image).astype(np.float64)
        lost = [np.minimum(np.abs(c), q / 2) for c, q in zip(_coefficients(ycc), self._steps())]
        luma, *colours = (float((e * e).sum()) for plane in lost for e in plane)
        smoothed = [float((u * u).sum() - 4 * (_halved(u) ** 2).sum()) for u in ycc[1:]]
        errors = np.sqrt([luma, *(max(s, 0) + 4 * e for s, e in zip(smoothed, colours))])
        return float(np.sqrt(errors @ np.abs(_TO_RGB.T @ _TO_RGB) @ errors)) / 255 + rounding_norm(image.size)


def _ycc(image: np.ndarray) -> np.ndarray:
    """Y - 128, Cb, Cr in levels, the image continued at its right and lower border to whole blocks: (3, H', W')."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    ycc = np.tensordot(_TO_YCC.astype(np.float32), padded.transpose(2, 0, 1).astype(np.float32), 1)
    ycc[0] -= 128
    return ycc


def _halved(planes: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels."""
    return (planes[..., ::2, ::2] + planes[..., 1::2, ::2] + planes[..., ::2, 1::2] + planes[..., 1::2, 1::2]) / 4


def _coefficients(ycc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine coefficients of the blocks of brightness (1, n, 64) and of colour (2, n / 4, 64)."""
    luma, colour = (_blocks(planes) @ _COSINES.T.astype(planes.dtype) for planes in (ycc[:1], _halved(ycc[1:])))
    return luma, colour


def _blocks(planes: np.ndarray) -> np.ndarray:
    n, height, width = planes.shape
    return planes.reshape(n, height // 8, 8, width // 8, 8).swapaxes(2, 3).reshape(n, -1, 64)


def _from_blocks(coefficients: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    n, height, width = shape
    blocks = (coefficients @ _COSINES.astype(coefficients.dtype)).reshape(n, height // 8, width // 8, 8, 8)
    return blocks.swapaxes(2, 3).reshape(shape)
