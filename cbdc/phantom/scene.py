"""The empty scene of a chunk of images: uniforms to draw from, skin and lesion coordinates, the lesion's outline."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtri

from . import textures

__all__ = ["N_UNIFORMS", "Draws", "Scene", "make_scene", "smoothstep"]

N_UNIFORMS = 256
_N_HARMONICS = 16
_N_ANGLES = 512


class Draws:
    """Hands out the columns of a matrix of uniforms, in one order: an image depends on its row alone."""

    def __init__(self, uniforms: np.ndarray) -> None:
        self._columns = uniforms
        self._next = 0

    def block(self, n_columns: int) -> np.ndarray:
        """The next columns, (n, n_columns)."""
        self._next += n_columns
        if self._next > self._columns.shape[1]:
            raise IndexError(f"the painter drew {self._next} numbers; raise N_UNIFORMS ({self._columns.shape[1]})")
        return self._columns[:, self._next - n_columns : self._next]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """One number an image, (n, 1, 1)."""
        return (low + (high - low) * self.block(1)[:, :, None]).astype(np.float32)

    def chance(self, probability: float) -> np.ndarray:
        """One yes or no an image, (n,)."""
        return self.block(1)[:, 0] < probability


@dataclass
class Scene:
    """Fields of a chunk, each (n, size, size) float32 unless said otherwise."""

    levels: Mapping[str, np.ndarray]  # level code of each concept, (n,)
    of_lesion: Draws
    of_image: Draws
    x: np.ndarray  # image coordinates in half fields, (size,); rows have the same
    u: np.ndarray  # skin coordinates in half fields: they turn and move with the lesion
    v: np.ndarray
    radius: np.ndarray  # 1 at the outline, 0 at the centre
    angle: np.ndarray  # bin of the polar angle, int32
    mask: np.ndarray  # 1 in the lesion, 0 outside
    melanin: np.ndarray = field(init=False)  # optical densities
    blood: np.ndarray = field(init=False)
    white: np.ndarray = field(init=False)  # opacities
    blue: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.melanin, self.blood, self.white, self.blue = np.zeros((4, *self.mask.shape), dtype=np.float32)

    def where(self, concept: str, level: int = 1) -> np.ndarray:
        """Rows of the images whose concept has that level."""
        return np.flatnonzero(self.levels[concept] == level)

    def position(self, rows: np.ndarray | slice, zoom: float = 1.0, stretch: float = 1.0) -> np.ndarray:
        """Positions in a tile, for a texture that sticks to the skin; each call moves to another part of the tile."""
        offset = self.of_lesion.block(2)[rows].astype(np.float32)[:, :, None, None]
        return textures.index(
            self.u[rows] * np.float32(zoom / 2) + offset[:, 0],
            self.v[rows] * np.float32(zoom * stretch / 2) + offset[:, 1],
        )


def smoothstep(low: float | np.ndarray, high: float | np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 below low, 1 above high (or the other way round), smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def make_scene(levels: Mapping[str, np.ndarray], lesions: np.ndarray, images: np.ndarray, size: int) -> Scene:
    """Place each lesion in its field of view; `lesions` and `images` are rows of uniforms, (n, N_UNIFORMS)."""
    of_lesion, of_image = Draws(lesions), Draws(images)
    x = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    scale = of_image.uniform(0.88, 1.14)
    dx = (x - of_image.uniform(-0.16, 0.16)) / scale
    dy = (x[:, None] - of_image.uniform(-0.16, 0.16)) / scale
    turn = of_image.uniform(0, 2 * np.pi)
    u, v = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx

    place = textures.index(u / 2 + of_lesion.uniform(), v / 2 + of_lesion.uniform())
    wobble, quiver = textures.noise(2.0, 3), textures.noise(2.4, 7)
    size_of = np.exp(of_lesion.uniform(np.log(0.28), np.log(0.62)))
    irregular = (levels["border"] == 1)[:, None, None]
    amount = np.where(irregular, np.float32(0.07), np.float32(0.025))
    right = u / size_of + amount * textures.look_up(wobble[0], place)
    down = v / size_of + amount * textures.look_up(wobble[1], place)
    u = u + np.float32(0.007) * textures.look_up(quiver[0], place)
    v = v + np.float32(0.007) * textures.look_up(quiver[1], place)
    outline = _outline(levels["asymmetry"], irregular[:, :, 0], of_lesion)
    angle = (np.arctan2(down, right) * np.float32(_N_ANGLES / (2 * np.pi))).astype(np.int32) & (_N_ANGLES - 1)
    angle += _N_ANGLES * np.arange(len(angle), dtype=np.int32)[:, None, None]
    radius = np.sqrt(right * right + down * down) / outline.ravel().take(angle)
    ragged = textures.look_up(quiver[2], place) * (amount * 1.2)
    soft = np.where((levels["edge"] == 1)[:, None, None], of_lesion.uniform(0.1, 0.18), of_lesion.uniform(0.4, 0.75))
    mask = smoothstep(1 + soft * 0.6, 1 - soft * 0.6, radius + ragged)
    return Scene(levels, of_lesion, of_image, x, u, v, radius, angle, mask)


def _outline(asymmetry: np.ndarray, irregular: np.ndarray, of_lesion: Draws) -> np.ndarray:
    """Radius of the outline by angle, (n, _N_ANGLES): a Fourier series whose symmetries are those of the concept."""
    order = np.arange(1, _N_HARMONICS + 1)
    low = np.select([order == k for k in range(1, 6)], [0.15, 0.13, 0.11, 0.06, 0.05], 0.0)
    amplitude = 0.5 * low * (order % 2 == 0) * (order < 6) * np.ones((len(asymmetry), 1))
    amplitude[asymmetry > 0] = low
    amplitude = amplitude + np.where(irregular & (order > 5), 0.2 / order, 0.0)
    amplitude = amplitude * np.abs(ndtri(0.02 + 0.96 * of_lesion.block(_N_HARMONICS)))
    phase = 2 * np.pi * of_lesion.block(_N_HARMONICS)
    mirrored = (asymmetry < 2)[:, None] & (order < 6)
    phase = np.where(mirrored, np.pi * (phase > np.pi), phase)
    angles = 2 * np.pi * np.arange(_N_ANGLES) / _N_ANGLES
    waves = np.concatenate([np.cos(np.outer(order, angles)), np.sin(np.outer(order, angles))])
    series = np.concatenate([amplitude * np.cos(phase), -amplitude * np.sin(phase)], axis=1) @ waves
    return np.exp(series - 0.5 * amplitude.sum(axis=1, keepdims=True) * 0.3).astype(np.float32)
