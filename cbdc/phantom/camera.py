"""Everything that does not depend on the diagnosis: skin, hair, gel, light, lens and sensor."""

import numpy as np

from .scene import Scene, smoothstep
from .textures import cells, index, look_up, noise, trees

__all__ = ["develop", "paint_skin"]

# Optical density of skin melanin by Fitzpatrick type I to VI
_MELANIN = np.array([0.05, 0.11, 0.22, 0.42, 0.75, 1.15], dtype=np.float32)
# R, G, B: reflectance without pigment, absorption by melanin and by blood, colours of keratin and of deep pigment
_BARE = (0.98, 0.91, 0.87)
_BY_MELANIN = (0.52, 0.86, 1.06)
_BY_BLOOD = (0.17, 0.80, 0.53)
_WHITE = (0.95, 0.87, 0.82)
_BLUE = (0.46, 0.48, 0.57)
_N_HAIRS = 28


def paint_skin(scene: Scene, skin_type: np.ndarray) -> None:
    """Background pigment, flush, furrows, small vessels and freckles; skin types are 1 to 6."""
    draws, rows = scene.of_image, slice(None)
    tone = _MELANIN[skin_type - 1][:, None, None] * draws.uniform(0.8, 1.25)
    at = scene.position(rows)
    mottle, flush = look_up(noise(1.1, 4)[0], at), look_up(noise(1.3, 3)[3], at)
    furrow = smoothstep(0.2, 0.02, look_up(cells(0.45)[1], scene.position(rows, 1.3, 0.6)))
    scene.melanin += tone * (1 + 0.05 * mottle + draws.uniform(0.0, 0.12) * furrow) + 0.018 * mottle
    scene.blood += draws.uniform(0.06, 0.34) * (1 + draws.uniform(0.05, 0.22) * flush)
    flushed = np.flatnonzero(draws.chance(0.4))
    capillary = look_up(trees()[0], scene.position(flushed, 0.9)) * (1 - 0.8 * scene.mask[flushed])
    scene.blood[flushed] += draws.uniform(0.05, 0.35)[flushed] * capillary
    freckled = np.flatnonzero(draws.chance(0.3))
    at = scene.position(freckled, 0.5)
    few = look_up(cells(0.45)[2], at) < 0.25
    spots = smoothstep(0.4, 0.0, look_up(cells(0.45)[0], at)) * few
    scene.melanin[freckled] += draws.uniform(0.1, 0.35)[freckled] * spots


def develop(scene: Scene) -> np.ndarray:
    """Photograph the scene: uint8 (n, size, size, 3)."""
    hair, hair_tone = _hair(scene)
    glare, shade = _gel(scene)
    light, vignette = _light(scene)
    ruler = _ruler(scene)
    grain = _grain(scene)
    white, blue = np.clip(scene.white, 0, 0.92), np.clip(scene.blue, 0, 0.8)
    tints = scene.of_image.block(3)
    cast = 1 + np.array([0.06, 0.055, 0.11]) * (2 * tints - 1)
    blur = scene.of_image.uniform(0.05, 0.3)
    image = np.empty((*scene.mask.shape, 3), dtype=np.uint8)
    depth = np.exp(-0.75 * np.maximum(scene.melanin, 0))
    for channel in range(3):
        value = _BARE[channel] * np.exp(
            -_BY_MELANIN[channel] * scene.melanin - _BY_BLOOD[channel] * np.maximum(scene.blood, 0)
        )
        value += blue * (_BLUE[channel] * (0.45 + 0.75 * depth) - value)
        value += white * (_WHITE[channel] * (0.55 + 0.45 * depth) - value)
        value += hair * (hair_tone[:, channel, None, None] - value)
        value = value * light * shade * cast[:, channel, None, None].astype(np.float32)
        value += glare * (1 - value)
        value *= ruler
        value = _soften(value, blur) * vignette + grain
        image[..., channel] = np.clip(value * 255 + 0.5, 0, 255)
    return image


def _hair(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Opacity and colour of the hairs: curved strokes, drawn as chains of points, each shared out among four pixels."""
    draws, (n, size) = scene.of_image, scene.mask.shape[:2]
    amount, kind, thick = draws.block(3).T
    count = np.where(amount < 0.55, 0, np.where(amount < 0.9, (amount - 0.55) * 28, (amount - 0.9) * 180 + 9)).astype(
        int
    )
    start, heading, bend, length = (draws.block(_N_HAIRS) for _ in range(4))
    across, common = draws.block(_N_HAIRS), draws.block(1)
    image, hair = np.nonzero(np.arange(_N_HAIRS) < count[:, None])
    tone = np.where(kind[:, None] < 0.75, [0.09, 0.06, 0.05], [0.45, 0.33, 0.22]).astype(np.float32)
    if image.size == 0:
        return np.zeros_like(scene.mask), tone
    t = np.linspace(0, 1, int(1.6 * size))
    angle = 2 * np.pi * common[image, 0] + 2.2 * (heading[image, hair] - 0.5)
    angle = angle[:, None] + 2.4 * (bend[image, hair, None] - 0.5) * t
    reach = (0.35 + 1.3 * length[image, hair, None]) * size / t.size
    x = size * start[image, hair, None] + np.cumsum(reach * np.cos(angle), axis=1)
    y = size * across[image, hair, None] + np.cumsum(reach * np.sin(angle), axis=1)
    column, row = np.floor(x), np.floor(y)
    weight = reach * (0.7 + 0.9 * thick[image, None]) * np.sqrt(size / 224) * np.minimum(1, 6 * (1 - t))
    canvas = np.zeros(n * size * size)
    for right in (0, 1):
        for down in (0, 1):
            c, r = column + right, row + down
            share = np.abs(1 - right - (x - column)) * np.abs(1 - down - (y - row)) * weight
            inside = (c >= 0) & (c < size) & (r >= 0) & (r < size)
            flat = (image[:, None] * size + r) * size + c
            canvas += np.bincount(flat[inside].astype(np.int64), share[inside], minlength=canvas.size)
    return np.minimum(canvas, 0.9).astype(np.float32).reshape(scene.mask.shape), tone


def _gel(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Bubbles of the immersion gel (bright rim, faint shade inside) and specular points; light added, light kept."""
    draws, x = scene.of_image, scene.x
    glare, shade = np.zeros_like(scene.mask), np.ones_like(scene.mask)
    wet = draws.chance(0.14)
    for _ in range(4):
        where, radius = 2 * draws.block(2) - 1, draws.uniform(0.03, 0.15)
        rows = np.flatnonzero(wet & draws.chance(0.6))
        dx, dy = (x - where[rows, :1])[:, None, :], (x - where[rows, 1:])[:, :, None]
        ring = (np.sqrt(dx * dx + dy * dy) / radius[rows]).astype(np.float32)
        lit = (0.55 + 0.45 * np.sign(-dx - dy)) * smoothstep(0.2, 0.0, np.abs(ring - 0.9))
        spot = smoothstep(0.22, 0.1, np.hypot(dx / radius[rows] + 0.4, dy / radius[rows] + 0.4))
        glare[rows] = np.maximum(glare[rows], 0.4 * lit + 0.6 * spot)
        shade[rows] *= 1 - 0.12 * smoothstep(1.05, 0.9, ring)
    rows = np.flatnonzero(draws.chance(0.3))
    shiny = look_up(noise(0.6, 25)[1], index(scene.u[rows] / 2, scene.v[rows] / 2))
    glare[rows] += 0.4 * smoothstep(2.8, 4.0, shiny)
    return glare, shade


def _light(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Exposure with fall-off and tilt, and the round dark field stop that some dermatoscopes show."""
    draws, x = scene.of_image, scene.x
    squares = x * x
    away = squares + squares[:, None]
    light = draws.uniform(0.92, 1.12) * (1 - draws.uniform(0.0, 0.14) * away)
    light += draws.uniform(-0.05, 0.05) * x + draws.uniform(-0.05, 0.05) * x[:, None]
    stopped = draws.chance(0.22)[:, None, None]
    edge = np.where(stopped, draws.uniform(0.98, 1.28), np.float32(3))
    stop = smoothstep(edge + 0.025, edge - 0.025, np.sqrt(away))
    return light, 0.03 + 0.97 * stop


def _ruler(scene: Scene) -> np.ndarray:
    """Ticks along one of the four sides of some images; light kept."""
    draws, x = scene.of_image, scene.x
    inked, side = draws.chance(0.12), (4 * draws.block(1)[:, 0]).astype(int)
    pitch, start, tall = draws.uniform(9, 14), draws.uniform(), draws.uniform(0.06, 0.13)
    kept = np.ones_like(scene.mask)
    for direction in range(4):
        rows = np.flatnonzero(inked & (side == direction))
        phase = x * pitch[rows] + start[rows]
        tick = smoothstep(0.14, 0.06, np.abs(phase % 1 - 0.5))
        long = 1 + 0.7 * (np.floor(phase) % 5 == 0)
        inside = smoothstep(0.0, 0.02, x[:, None] * (1 if direction % 2 else -1) - 1 + tall[rows] * long)
        ink = 0.8 * tick * inside
        kept[rows] -= ink if direction < 2 else ink.swapaxes(1, 2)
    return kept


def _grain(scene: Scene) -> np.ndarray:
    """Sensor noise: a crop of a tile of fine noise, pixel for texel."""
    draws, size = scene.of_image, scene.x.size
    across, down = draws.block(2).T[:, :, None]
    pixels = np.arange(size) / 512 + 0.5 / 512
    at = index((across + pixels)[:, None, :], (down + pixels)[:, :, None])
    return draws.uniform(0.004, 0.014) * look_up(noise(0.2, 30)[2], at)


def _soften(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Three-point blur along both axes; weight is the share of the two neighbours."""
    for axis in (1, 2):
        lines = value.swapaxes(1, axis)
        step = np.diff(lines, axis=1) * (weight / 2)
        lines[:, :-1] += step
        lines[:, 1:] -= step
    return value
