"""Everything that does not depend on the diagnosis: skin, hair, gel, light, lens and sensor."""

from functools import lru_cache

import numpy as np

from ..perturb.artefacts import bubble, ruler_ink, smoothstep, splat
from .scene import Lesions, Scene
from .textures import cells, index, look_up, noise, trees

__all__ = ["photograph"]

# Optical density of skin melanin by Fitzpatrick type I to VI
_MELANIN = np.array([0.05, 0.11, 0.22, 0.42, 0.75, 1.15], dtype=np.float32)
# R, G, B: reflectance without pigment, absorption by melanin and by blood, colours of keratin and of deep pigment
_BARE = (0.98, 0.91, 0.87)
_BY_MELANIN = (0.52, 0.86, 1.06)
_BY_BLOOD = (0.17, 0.80, 0.53)
_WHITE = (0.95, 0.87, 0.82)
_BLUE = (0.46, 0.48, 0.57)
_CAST = (0.06, 0.055, 0.11)
_N_HAIRS = 28


def photograph(scene: Scene, lesions: Lesions, skin_type: np.ndarray) -> np.ndarray:
    """Lay the lesions into skin of Fitzpatrick types 1 to 6 and photograph them: uint8 (n, size, size, 3)."""
    melanin, blood = _skin(scene, lesions, skin_type)
    white = lesions.spread(np.clip(lesions.white, 0, 0.92), like=melanin)
    blue = lesions.spread(np.clip(lesions.blue, 0, 0.8), like=melanin)
    depth = np.exp(-0.75 * melanin)
    deep, pale = blue * (0.45 + 0.75 * depth), white * (0.55 + 0.45 * depth)
    kept = (1 - blue) * (1 - white)
    deep *= 1 - white
    hair, hair_tone = _hair(scene)
    hairy = np.flatnonzero(hair.any(axis=(1, 2)))
    hair = hair[hairy]
    light, glare, wet = _light(scene)
    grain = _grain(scene)
    cast = 1 + np.array(_CAST) * (2 * scene.of_image.block(3) - 1)
    blur = scene.of_image.uniform(0.05, 0.3)
    image = np.empty((*melanin.shape, 3), dtype=np.uint8)
    for channel in range(3):
        value = melanin * -_BY_MELANIN[channel]
        value -= blood * _BY_BLOOD[channel]
        np.exp(value, out=value)
        value *= kept
        value *= _BARE[channel]
        value += deep * _BLUE[channel]
        value += pale * _WHITE[channel]
        value[hairy] += hair * (hair_tone[hairy, channel, None, None] - value[hairy])
        value *= light
        value *= cast[:, channel, None, None].astype(np.float32)
        value[wet] += glare * (1 - value[wet])
        _soften(value, blur)
        value += grain
        value *= 255
        image[..., channel] = np.clip(value, 0, 255, out=value)
    return image


def _skin(scene: Scene, lesions: Lesions, skin_type: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Melanin and blood of the lesions and of the skin around: flush, furrows, small vessels, freckles."""
    draws = scene.of_image
    tone = _MELANIN[skin_type - 1][:, None, None] * draws.uniform(0.8, 1.25)
    at = _on_skin(scene, slice(None), 1.0)
    mottle, flush = look_up(noise(1.1, 4)[0], at), look_up(noise(1.3, 3)[3], at)
    furrow = look_up(_furrows(), _on_skin(scene, slice(None), 1.2))
    melanin = lesions.spread(lesions.melanin, like=mottle)
    melanin += tone * (1 + draws.uniform(0.0, 0.12) * furrow)
    melanin += (0.05 * tone + 0.018) * mottle
    flush *= draws.uniform(0.05, 0.22)
    flush += 1
    flush *= draws.uniform(0.06, 0.34)
    blood = lesions.spread(lesions.blood, like=mottle)
    blood += flush
    outside = lesions.spread(-0.8 * lesions.mask, like=mottle)
    flushed, amount = np.flatnonzero(draws.chance(0.4)), draws.uniform(0.05, 0.35)
    capillary = look_up(trees()[0], _on_skin(scene, flushed, 0.9)) * (1 + outside[flushed])
    blood[flushed] += amount[flushed] * capillary
    freckled, amount = np.flatnonzero(draws.chance(0.3)), draws.uniform(0.1, 0.35)
    at = _on_skin(scene, freckled, 0.5)
    few = look_up(cells(0.45)[2], at) < 0.25
    melanin[freckled] += amount[freckled] * smoothstep(0.4, 0.0, look_up(cells(0.45)[0], at)) * few
    return np.maximum(melanin, 0, out=melanin), np.maximum(blood, 0, out=blood)


@lru_cache
def _furrows() -> np.ndarray:
    return smoothstep(0.2, 0.02, cells(0.45)[1])


def _on_skin(scene: Scene, rows: np.ndarray | slice, zoom: float) -> np.ndarray:
    """Positions in a texture that sticks to the skin; each call moves to another part of the tile."""
    right, down = scene.of_lesion.uniform(), scene.of_lesion.uniform()
    half = np.float32(zoom / 2)
    return index(scene.u[rows] * half + right[rows], scene.v[rows] * half + down[rows])


def _hair(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Opacity and colour of the hairs: curved strokes, drawn as chains of points, each shared out among four pixels."""
    draws, (n, size) = scene.of_image, scene.u.shape[:2]
    amount, kind, thick = draws.block(3).T
    count = np.where(amount < 0.55, 0, np.where(amount < 0.9, (amount - 0.55) * 28, (amount - 0.9) * 180 + 9)).astype(
        int
    )
    start, heading, bend, length = (draws.block(_N_HAIRS) for _ in range(4))
    across, common = draws.block(_N_HAIRS), draws.block(1)
    image, hair = np.nonzero(np.arange(_N_HAIRS) < count[:, None])
    tone = np.where(kind[:, None] < 0.75, [0.09, 0.06, 0.05], [0.45, 0.33, 0.22]).astype(np.float32)
    if image.size == 0:
        return np.zeros_like(scene.u), tone
    t = np.linspace(0, 1, int(1.6 * size))
    angle = 2 * np.pi * common[image, 0] + 2.2 * (heading[image, hair] - 0.5)
    angle = angle[:, None] + 2.4 * (bend[image, hair, None] - 0.5) * t
    reach = (0.35 + 1.3 * length[image, hair, None]) * size / t.size
    x = size * start[image, hair, None] + np.cumsum(reach * np.cos(angle), axis=1)
    y = size * across[image, hair, None] + np.cumsum(reach * np.sin(angle), axis=1)
    weight = reach * (0.7 + 0.9 * thick[image, None]) * np.sqrt(size / 224) * np.minimum(1, 6 * (1 - t))
    canvas = splat(image[:, None], x, y, weight, (n, size, size))
    return np.minimum(canvas, 0.9).astype(np.float32), tone


def _light(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light that reaches each pixel; light that gel bubbles mirror, and the rows of the images that have them.

    Exposure falls off and tilts; some dermatoscopes show a round dark field stop, some a ruler.
    """
    draws, x = scene.of_image, scene.x
    squares = x * x
    away = squares + squares[:, None]
    light = draws.uniform(0.92, 1.12) * (1 - draws.uniform(0.0, 0.14) * away)
    light += draws.uniform(-0.05, 0.05) * x + draws.uniform(-0.05, 0.05) * x[:, None]
    stopped, edge = np.flatnonzero(draws.chance(0.22)), draws.uniform(0.98, 1.28)
    stop = smoothstep(edge[stopped] + 0.025, edge[stopped] - 0.025, np.sqrt(away))
    light[stopped] *= 0.03 + 0.97 * stop
    _ruler(scene, light)
    wet = np.flatnonzero(draws.chance(0.2))
    glare = _bubbles(scene, light, wet)
    return light, glare, wet


def _bubbles(scene: Scene, light: np.ndarray, wet: np.ndarray) -> np.ndarray:
    """Gel bubbles (a bright rim, a faint shade inside) and specular points; light that is mirrored."""
    draws, x = scene.of_image, scene.x
    shiny = look_up(noise(0.6, 25)[1], index(scene.u[wet] / 2, scene.v[wet] / 2))
    glare = 0.4 * smoothstep(2.8, 4.0, shiny)
    for _ in range(4):
        where, radius, there = 2 * draws.block(2) - 1, draws.uniform(0.03, 0.15), draws.chance(0.6)
        part = np.flatnonzero(there[wet])
        rows = wet[part]
        dx = (x - where[rows, :1]).astype(np.float32)[:, None, :] / radius[rows]
        dy = (x - where[rows, 1:]).astype(np.float32)[:, :, None] / radius[rows]
        mirrored, shade = bubble(dx, dy)
        glare[part] = np.maximum(glare[part], mirrored)
        light[rows] *= 1 - shade
    return glare


def _ruler(scene: Scene, light: np.ndarray) -> None:
    """Ticks along one of the four sides of some images."""
    draws, x = scene.of_image, scene.x
    inked, side = draws.chance(0.12), (4 * draws.block(1)[:, 0]).astype(int)
    pitch, start, tall = draws.uniform(9, 14), draws.uniform(), draws.uniform(0.06, 0.13)
    for direction in range(4):
        rows = np.flatnonzero(inked & (side == direction))
        phase = x * pitch[rows] + start[rows]
        inward = x[:, None] * (1 if direction % 2 else -1) - 1
        ink = ruler_ink(phase, inward, tall[rows])
        light[rows] *= 1 - (ink if direction < 2 else ink.swapaxes(1, 2)).astype(np.float32)


def _grain(scene: Scene) -> np.ndarray:
    """Sensor noise: a crop of a tile of fine noise, pixel for texel."""
    draws, size = scene.of_image, scene.x.size
    across, down = draws.block(2).T[:, :, None]
    pixels = np.arange(size) / 512 + 0.5 / 512
    at = index((across + pixels)[:, None, :], (down + pixels)[:, :, None])
    return draws.uniform(0.004, 0.014) * look_up(noise(0.2, 30)[2], at)


def _soften(value: np.ndarray, weight: np.ndarray) -> None:
    """Three-point blur along both axes, in place; weight is the share of the two neighbours."""
    for axis in (1, 2):
        lines = value.swapaxes(1, axis)
        step = np.diff(lines, axis=1)
        step *= weight / 2
        lines[:, :-1] += step
        lines[:, 1:] -= step
