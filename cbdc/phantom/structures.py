"""What dermoscopy sees in a lesion, a function a concept; each adds pigment, blood, white or blue to the scene."""

import numpy as np

from .scene import Draws, Scene, smoothstep
from .textures import cells, look_up, noise, trees

__all__ = ["paint_lesion"]

# light brown, dark brown, pink, red, purple, blue-gray: melanin, blood, blue
_PIGMENT = np.array(
    [[0.48, 0.12, 0], [1.10, 0.22, 0], [0.07, 0.42, 0], [0.12, 1.25, 0], [0.30, 1.15, 0.38], [0.45, 0.10, 0.55]],
    dtype=np.float32,
)
_ALL = slice(None)


def paint_lesion(scene: Scene) -> None:
    """Paint every concept; the order is that of depth, from the dermis up."""
    _colour(scene)
    _tones(scene)
    _nests(scene)
    _lacunae(scene)
    _blotch(scene)
    _network(scene)
    _globules(scene)
    _streaks(scene)
    _vessels(scene)
    _scar(scene)
    _veil(scene)
    _cysts_and_openings(scene)
    _ulceration(scene)
    _scale(scene)


def _pick(draws: Draws, rows: np.ndarray, low: float, high: float) -> np.ndarray:
    """A number an image, for some of the images."""
    return draws.uniform(low, high)[rows]


def _colour(scene: Scene) -> None:
    melanin, blood, blue = _PIGMENT[scene.levels["colour"]].T[:, :, None, None]
    strength = scene.mask * scene.of_lesion.uniform(0.75, 1.25)
    cloud = look_up(noise(1.6, 3)[0], scene.position(_ALL))
    strength *= 1 + 0.16 * cloud
    fade = 1 - scene.of_lesion.uniform(0, 0.35) * np.minimum(scene.radius, 1.2)
    scene.melanin += melanin * strength * fade
    scene.blood += blood * strength
    scene.blue += blue * strength


def _tones(scene: Scene) -> None:
    """A second tone (darker patches); from three on also tan, red and gray-blue ones, thrown off centre."""
    dark, light, other = (look_up(tile, scene.position(_ALL, 0.8)) for tile in noise(1.8, 2)[:3])
    tones = scene.levels["tones"]
    for level, amount in ((1, 0.55), (2, 0.95)):
        rows = np.flatnonzero(tones == level)
        scene.melanin[rows] += scene.mask[rows] * amount * smoothstep(0.1, 0.7, dark[rows])
    rows = np.flatnonzero(tones == 2)
    patch = scene.mask[rows] * smoothstep(0.4, 0.9, light[rows])
    scene.melanin[rows] *= 1 - 0.7 * patch
    scene.blood[rows] += 0.35 * patch
    scene.blue[rows] += 0.45 * scene.mask[rows] * smoothstep(0.6, 1.2, other[rows])


def _network(scene: Scene) -> None:
    typical, atypical = cells(0.24), cells(0.45)
    at = scene.position(_ALL, 1.1)
    patchy = look_up(noise(1.8, 4)[3], scene.position(_ALL))
    rows = scene.where("network", 1)
    wall = look_up(typical[1], at[rows])
    fade = scene.mask[rows] * smoothstep(-1.6, 0.2, patchy[rows])
    scene.melanin[rows] += fade * (0.85 * smoothstep(0.24, 0.04, wall) - 0.22 * smoothstep(0.2, 0.4, wall))
    rows = scene.where("network", 2)
    wall = look_up(atypical[1], at[rows]) / (1 + 0.75 * np.clip(patchy[rows], -0.8, 2.0))
    fade = scene.mask[rows] * smoothstep(-0.9, 0.4, patchy[rows])
    scene.melanin[rows] += fade * (1.7 * smoothstep(0.30, 0.06, wall) - 0.15 * smoothstep(0.2, 0.5, wall))
    rows = scene.where("network", 3)
    ring = smoothstep(0.35, 0.75, scene.radius[rows]) * smoothstep(1.35, 0.95, scene.radius[rows])
    scene.melanin[rows] += 0.42 * ring * smoothstep(0.2, 0.03, look_up(typical[1], at[rows]))


def _globules(scene: Scene) -> None:
    at = scene.position(_ALL, 0.62)
    rows = scene.where("globules", 1)
    spot = smoothstep(0.40, 0.26, look_up(cells(0.24)[0], at[rows]))
    scene.melanin[rows] += 0.8 * spot * smoothstep(0.1, 0.6, scene.mask[rows])
    rows = scene.where("globules", 2)
    tile = cells(0.45)
    chosen = look_up(tile[2], at[rows])
    size = 0.16 + 0.36 * (chosen * 7 % 1)
    spot = smoothstep(size, size - 0.12, look_up(tile[0], at[rows])) * (chosen < 0.55)
    scene.melanin[rows] += 1.7 * spot * smoothstep(1.2, 1.05, scene.radius[rows])


def _streaks(scene: Scene) -> None:
    """Radial fingers at the rim, over a part of it."""
    fingers = scene.of_lesion.block(26)
    rows = scene.where("streaks")
    angles = np.arange(512) / 512
    centres = (np.arange(26) + 0.7 * fingers[rows]) / 26
    gap = np.abs((angles - centres[:, :, None] + 0.5) % 1 - 0.5)
    height = np.where(fingers[rows] > 0.3, 0.12 + 0.3 * (fingers[rows] * 13 % 1), 0.0)
    reach = (height[:, :, None] * np.clip(1 - gap / 0.014, 0, 1)).max(axis=1).astype(np.float32)
    angle = scene.angle[rows] - 512 * (rows - np.arange(len(rows)))[:, None, None].astype(np.int32)
    tip = reach.ravel().take(angle)
    finger = smoothstep(0.0, 0.06, 1 + tip - scene.radius[rows]) * smoothstep(0.0, 0.1, tip)
    scene.melanin[rows] += 1.35 * finger * smoothstep(0.72, 0.95, scene.radius[rows])


def _veil(scene: Scene) -> None:
    where = scene.position(_ALL, 0.7)
    side = scene.of_lesion.uniform(-0.25, 0.25)
    rows = scene.where("veil")
    cloud = look_up(noise(2.2, 2)[1], where[rows])
    body = smoothstep(0.0, 0.45, 0.62 + side[rows] + 0.3 * cloud - scene.radius[rows]) * scene.mask[rows]
    scene.melanin[rows] += 0.65 * body
    scene.blue[rows] = np.maximum(scene.blue[rows], 0.72 * body)


def _blotch(scene: Scene) -> None:
    where = scene.position(_ALL, 0.9)
    turn, far = scene.of_lesion.uniform(0, 512), scene.of_lesion.uniform(0.3, 0.6)
    rows = scene.where("blotch")
    bearing = (scene.angle[rows] % 512 - turn[rows]) * np.float32(2 * np.pi / 512)
    radius = scene.radius[rows]
    distance = np.sqrt(radius**2 + far[rows] ** 2 - 2 * radius * far[rows] * np.cos(bearing))
    body = smoothstep(0.44, 0.3, distance + 0.09 * look_up(noise(1.8, 4)[0], where[rows]))
    scene.melanin[rows] += 2.3 * body * scene.mask[rows]


def _scar(scene: Scene) -> None:
    where = scene.position(_ALL)
    extent = scene.of_lesion.uniform(0.34, 0.52)
    rows = scene.where("scar")
    cloud = look_up(noise(1.6, 4)[1], where[rows])
    patch = smoothstep(extent[rows] + 0.16, extent[rows] - 0.2, scene.radius[rows] + 0.07 * cloud)
    scene.white[rows] = np.maximum(scene.white[rows], patch * (0.66 + 0.1 * cloud))
    ring = smoothstep(0.4, 0.7, scene.radius[rows]) * smoothstep(1.3, 0.9, scene.radius[rows])
    scene.blood[rows] += 0.22 * ring


def _cysts_and_openings(scene: Scene) -> None:
    """Milia-like cysts are bright dots, comedo-like openings dark and larger ones; a hair cell has one or the other."""
    at = scene.position(_ALL, 0.42)
    tile = cells(0.45)
    rows = scene.where("milia_cysts")
    chosen = look_up(tile[2], at[rows])
    size = 0.15 + 0.14 * (chosen * 11 % 1)
    cyst = smoothstep(size, size - 0.14, look_up(tile[0], at[rows])) * (chosen > 0.45) * scene.mask[rows]
    scene.white[rows] = np.maximum(scene.white[rows], 0.82 * cyst)
    rows = scene.where("comedo_openings")
    chosen = look_up(tile[2], at[rows])
    size = 0.24 + 0.2 * (chosen * 11 % 1)
    opening = smoothstep(size, size - 0.1, look_up(tile[0], at[rows])) * (chosen < 0.4) * scene.mask[rows]
    scene.melanin[rows] += 1.5 * opening
    scene.white[rows] *= 1 - opening


def _vessels(scene: Scene) -> None:
    at, fine, tile = scene.position(_ALL, 1.25), scene.position(_ALL, 0.95), scene.of_lesion.block(1)[:, 0]
    lesion = smoothstep(1.25, 0.85, scene.radius)
    rows = scene.where("vessels", 1)
    bank = trees()
    which = (tile[rows] * len(bank)).astype(np.int32)[:, None, None] * bank[0].size
    tree = bank.ravel().take(at[rows] + which)
    scene.blood[rows] += 1.9 * tree * lesion[rows]
    scene.melanin[rows] += 0.12 * tree * lesion[rows]
    rows = scene.where("vessels", 2)
    dots = cells(0.45)
    dot = smoothstep(0.30, 0.16, look_up(dots[0], fine[rows])) * (look_up(dots[2], fine[rows]) < 0.75)
    scene.blood[rows] += 1.5 * dot * smoothstep(0.15, 0.7, scene.mask[rows])
    rows = scene.where("vessels", 3)
    wall, centre = look_up(cells(0.24)[1], fine[rows]), look_up(cells(0.24)[0], fine[rows])
    scene.blood[rows] += 0.75 * smoothstep(0.34, 0.1, wall) * lesion[rows]
    scene.white[rows] = np.maximum(scene.white[rows], 0.55 * smoothstep(0.26, 0.12, centre) * lesion[rows])


def _nests(scene: Scene) -> None:
    at = scene.position(_ALL, 0.26, 1.5)
    rows = scene.where("ovoid_nests")
    tile = cells(0.45)
    chosen = look_up(tile[2], at[rows])
    size = 0.26 + 0.26 * (chosen * 5 % 1)
    nest = smoothstep(size, size - 0.16, look_up(tile[0], at[rows])) * (chosen < 0.6)
    nest *= smoothstep(1.12, 0.95, scene.radius[rows])
    scene.melanin[rows] += 0.6 * nest
    scene.blue[rows] = np.maximum(scene.blue[rows], 0.72 * nest)


def _lacunae(scene: Scene) -> None:
    at = scene.position(_ALL, 0.3)
    rows = scene.where("lacunae")
    tile = cells(0.45)
    wall, chosen = look_up(tile[1], at[rows]), look_up(tile[2], at[rows])
    lacuna = smoothstep(0.03, 0.2, wall) * smoothstep(1.1, 0.95, scene.radius[rows])
    scene.blood[rows] += lacuna * (0.9 + 0.9 * chosen) - 0.35 * scene.mask[rows] * (1 - lacuna)
    scene.melanin[rows] += 0.5 * lacuna * (chosen > 0.6)
    scene.blue[rows] += 0.3 * lacuna * (chosen > 0.6)


def _ulceration(scene: Scene) -> None:
    where = scene.position(_ALL, 1.2)
    extent = scene.of_lesion.uniform(0.1, 0.3)
    rows = scene.where("ulceration")
    cloud, grain = look_up(noise(1.8, 4)[2], where[rows]), look_up(noise(0.8, 20)[0], where[rows])
    crust = smoothstep(0.0, 0.1, extent[rows] + 0.22 * cloud - 0.6 * scene.radius[rows] + 0.1) * (
        scene.radius[rows] < 1
    )
    scene.blood[rows] += crust * (1.5 + 0.3 * grain)
    scene.melanin[rows] += crust * (0.55 + 0.3 * grain)
    scene.white[rows] *= 1 - crust
    scene.blue[rows] *= 1 - crust


def _scale(scene: Scene) -> None:
    coarse, fine = scene.position(_ALL), scene.position(_ALL, 1.7)
    rows = scene.where("scale")
    patch = smoothstep(0.1, 1.1, look_up(noise(1.6, 4)[3], coarse[rows]))
    flake = smoothstep(-0.5, 1.0, look_up(noise(1.0, 12)[2], fine[rows]))
    body = smoothstep(1.15, 0.8, scene.radius[rows])
    scene.white[rows] = np.maximum(scene.white[rows], 0.85 * patch * flake * body)
