"""The empty scene of a chunk of images: uniforms to draw from, skin and lesion coordinates, the lesion's outline."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtri

from ..perturb.artefacts import smoothstep
from . import textures

__all__ = ["N_UNIFORMS", "Lesions", "Scene", "make_scene", "outline_lesions"]

N_UNIFORMS = 256
_N_HARMONICS = 16
_N_ANGLES = 512
_REACH = 1.4  # how far around a lesion there is anything to paint, in its radii


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
    """The fields of view of a chunk of n images; arrays are (n, size, size) float32 unless said otherwise."""

    of_lesion: Draws
    of_image: Draws
    x: np.ndarray  # image coordinates in half fields, (size,); rows have the same
    u: np.ndarray  # skin coordinates in half fields: they turn and move with the lesion
    v: np.ndarray


@dataclass
class Lesions:
    """The pixels in and close around the lesions of a chunk, image after image; arrays are (n_pixels,)."""

    levels: Mapping[str, np.ndarray]  # level code of each concept, (n,)
    draws: Draws
    place: np.ndarray  # flat position in the chunk
    owner: np.ndarray  # image of the chunk
    u: np.ndarray  # skin coordinates in half fields, with a quiver that keeps patterns from being regular
    v: np.ndarray
    radius: np.ndarray  # 0 at the centre, 1 at the outline
    angle: np.ndarray  # bin of the polar angle
    mask: np.ndarray  # 1 in the lesion, 0 outside
    melanin: np.ndarray = field(init=False)  # optical densities
    blood: np.ndarray = field(init=False)
    white: np.ndarray = field(init=False)  # opacities
    blue: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.melanin, self.blood, self.white, self.blue = np.zeros((4, self.mask.size), dtype=np.float32)

    def where(self, concept: str, *levels: int) -> np.ndarray:
        """Pixels of the images whose concept has one of the levels (by default: is present)."""
        rows = np.flatnonzero(np.isin(self.levels[concept], levels or (1,)))
        first, last = (np.searchsorted(self.owner, rows, side) for side in ("left", "right"))
        return np.concatenate([np.zeros(0, dtype=np.intp), *map(np.arange, first, last)])

    def uniform(self, pixels: np.ndarray | slice, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """One number a lesion, handed to the pixels."""
        return self.draws.uniform(low, high).ravel().take(self.owner[pixels])

    def position(self, pixels: np.ndarray | slice, zoom: float = 1.0, stretch: float = 1.0) -> np.ndarray:
        """Positions in a texture that sticks to the skin; each call moves to another part of the tile."""
        right, down = self.uniform(pixels), self.uniform(pixels)
        right += self.u[pixels] * np.float32(zoom / 2)
        down += self.v[pixels] * np.float32(zoom * stretch / 2)
        return textures.index(right, down)

    def spread(self, values: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Values of the pixels as full images, zero elsewhere."""
        full = np.zeros_like(like)
        full.ravel()[self.place] = values
        return full


def make_scene(lesions: np.ndarray, images: np.ndarray, size: int) -> Scene:
    """Place each lesion in its field of view; `lesions` and `images` are rows of uniforms, (n, N_UNIFORMS)."""
    of_image = Draws(images)
    x = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    scale, turn = of_image.uniform(0.88, 1.14), of_image.uniform(0, 2 * np.pi)
    dx = (x - of_image.uniform(-0.16, 0.16)) / scale
    dy = (x[:, None] - of_image.uniform(-0.16, 0.16)) / scale
    cos, sin = np.cos(turn), np.sin(turn)
    return Scene(Draws(lesions), of_image, x, cos * dx + sin * dy, cos * dy - sin * dx)


def outline_lesions(scene: Scene, levels: Mapping[str, np.ndarray]) -> Lesions:
    """The pixels of the lesions, with their place relative to an outline that shows asymmetry, border and edge."""
    draws = scene.of_lesion
    radius_of = np.exp(draws.uniform(np.log(0.28), np.log(0.62)))
    irregular = levels["border"] == 1
    outline = _outline(levels["asymmetry"], irregular[:, None], draws) * radius_of[:, :, 0]
    far = _REACH * outline.max(axis=1)[:, None, None] + 0.05
    place = np.flatnonzero(scene.u * scene.u + scene.v * scene.v < far * far)
    owner = place // scene.x.size**2
    u, v = scene.u.ravel()[place], scene.v.ravel()[place]

    offset = draws.block(2).astype(np.float32).T
    at = textures.index(u / 2 + offset[0].take(owner), v / 2 + offset[1].take(owner))
    wobble, quiver = textures.noise(2.0, 3), textures.noise(2.4, 7)
    amount = np.where(irregular, np.float32(0.07), np.float32(0.025))[owner]
    shift = amount * radius_of[:, 0, 0][owner]
    right = u + shift * textures.look_up(wobble[0], at)
    down = v + shift * textures.look_up(wobble[1], at)
    angle = (np.arctan2(down, right) * np.float32(_N_ANGLES / (2 * np.pi))).astype(np.int32) & (_N_ANGLES - 1)
    radius = np.sqrt(right * right + down * down) / outline.ravel().take(angle + _N_ANGLES * owner)
    near = np.flatnonzero(radius < _REACH)
    place, owner, u, v, at, amount, angle, radius = (
        a.take(near) for a in (place, owner, u, v, at, amount, angle, radius)
    )
    ragged = 1.2 * amount * textures.look_up(quiver[2], at)
    sharp, soft = draws.uniform(0.06, 0.11), draws.uniform(0.2, 0.4)
    width = np.where(levels["edge"] == 1, sharp[:, 0, 0], soft[:, 0, 0])[owner]
    mask = smoothstep(1 + width, 1 - width, radius + ragged) * smoothstep(_REACH, _REACH - 0.2, radius)
    u = u + np.float32(0.007) * textures.look_up(quiver[0], at)
    v = v + np.float32(0.007) * textures.look_up(quiver[1], at)
    return Lesions(levels, draws, place, owner, u, v, radius, angle, mask)


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
