"""What dermoscopy sees in a lesion, a function a concept; each adds pigment, blood, white or blue to the scene."""

import numpy as np

from .scene import Scene, smoothstep
from .textures import cells, look_up, noise, trees

__all__ = ["paint_lesion"]

# light brown, dark brown, pink, red, purple, blue-gray: melanin, blood, blue
_PIGMENT = np.array(
    [[0.46, 0.10, 0], [1.00, 0.14, 0], [0.07, 0.42, 0], [0.12, 1.25, 0], [0.30, 1.15, 0.38], [0.45, 0.10, 0.55]],
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


def _colour(scene: Scene) -> None:
    melanin, blood, blue = _PIGMENT[scene.levels["colour"]].T[:, :, None, None]
    at = scene.position(_ALL)
    strength = 1 + 0.14 * look_up(noise(1.6, 3)[0], at) + 0.13 * look_up(noise(1.0, 12)[0], at)
    strength *= scene.mask * scene.of_lesion.uniform(0.7, 1.2)
    fade = 1 - scene.of_lesion.uniform(0, 0.4) * np.minimum(scene.radius, 1.3)
    scene.melanin += melanin * strength * fade
    scene.blood += blood * strength
    scene.blue += blue * strength


def _tones(scene: Scene) -> None:
    """A second tone (darker patches); from three on also tan, red and gray-blue ones."""
    tones = scene.levels["tones"]
    rows = np.flatnonzero(tones > 0)
    at, amount = scene.position(rows, 0.9), np.where(tones[rows] == 1, 0.45, 0.7)[:, None, None].astype(np.float32)
    dark = smoothstep(-0.2, 1.3, look_up(noise(1.6, 3)[0], at))
    scene.melanin[rows] += scene.mask[rows] * amount * dark
    light = look_up(noise(1.6, 3)[1], at)[tones[rows] == 2]
    other = look_up(noise(1.6, 3)[2], at)[tones[rows] == 2]
    rows = scene.where("tones", 2)
    patch = scene.mask[rows] * smoothstep(0.2, 1.2, light)
    scene.melanin[rows] *= 1 - 0.7 * patch
    scene.blood[rows] += 0.22 * patch
    scene.blue[rows] += 0.4 * scene.mask[rows] * smoothstep(0.5, 1.5, other)


def _network(scene: Scene) -> None:
    """Brown lines around pale holes: even (typical), of uneven width and darkness (atypical), or a faint ring."""
    rows = np.flatnonzero(scene.levels["network"])
    at, level = scene.position(rows, 1.15), scene.levels["network"][rows]
    patchy = look_up(noise(1.6, 4)[3], at)
    part = level == 1
    wall, fade = look_up(cells(0.24)[1], at[part]), smoothstep(-1.8, 0.4, patchy[part]) * scene.mask[rows[part]]
    scene.melanin[rows[part]] += fade * (0.7 * smoothstep(0.3, 0.02, wall) - 0.2 * smoothstep(0.15, 0.4, wall))
    part = level == 2
    wall = look_up(cells(0.45)[1], at[part]) / (1 + 0.6 * np.clip(patchy[part], -0.8, 2.0))
    fade = smoothstep(-1.0, 0.8, patchy[part]) * scene.mask[rows[part]]
    scene.melanin[rows[part]] += fade * (1.5 * smoothstep(0.34, 0.04, wall) - 0.2 * smoothstep(0.2, 0.5, wall))
    part = level == 3
    radius = scene.radius[rows[part]]
    ring = smoothstep(0.3, 0.75, radius) * smoothstep(1.45, 0.95, radius)
    scene.melanin[rows[part]] += 0.45 * ring * smoothstep(0.26, 0.02, look_up(cells(0.24)[1], at[part]))


def _globules(scene: Scene) -> None:
    rows = scene.where("globules", 1)
    at, mask = scene.position(rows, 0.75), scene.mask[rows]
    spot = smoothstep(0.48, 0.16, look_up(cells(0.24)[0], at))
    scene.melanin[rows] += (0.35 + 0.6 * look_up(cells(0.24)[2], at)) * spot * smoothstep(0.1, 0.7, mask)
    rows = scene.where("globules", 2)
    at = scene.position(rows, 0.6)
    chosen = look_up(cells(0.45)[2], at)
    size = 0.18 + 0.36 * (chosen * 7 % 1)
    spot = smoothstep(size, size - 0.18, look_up(cells(0.45)[0], at)) * (chosen < 0.5)
    scene.melanin[rows] += 1.4 * spot * smoothstep(1.25, 1.0, scene.radius[rows])


def _streaks(scene: Scene) -> None:
    """Radial fingers at the rim, close together over a part of it."""
    n_fingers, (turn, spread) = 40, scene.of_lesion.block(2).T
    fingers = scene.of_lesion.block(n_fingers)
    rows = scene.where("streaks")
    centres = (np.arange(n_fingers) + 0.8 * fingers[rows]) / n_fingers
    off = np.abs((centres - turn[rows, None] + 0.5) % 1 - 0.5)
    height = (0.08 + 0.16 * (fingers[rows] * 13 % 1)) * (off < 0.2 + 0.3 * spread[rows, None])
    gap = np.abs((np.arange(512) / 512 - centres[:, :, None] + 0.5) % 1 - 0.5)
    reach = (height[:, :, None] * np.clip(1 - gap / 0.012, 0, 1)).max(axis=1).astype(np.float32)
    angle = scene.angle[rows] - 512 * (rows - np.arange(len(rows)))[:, None, None].astype(np.int32)
    tip = reach.ravel().take(angle)
    finger = smoothstep(-0.03, 0.09, 1 + tip - scene.radius[rows]) * smoothstep(0.0, 0.16, tip)
    scene.melanin[rows] += 1.3 * finger * smoothstep(0.7, 1.0, scene.radius[rows])


def _veil(scene: Scene) -> None:
    side = scene.of_lesion.uniform(-0.2, 0.25)
    rows = scene.where("veil")
    cloud = look_up(noise(1.7, 3)[1], scene.position(rows, 0.8))
    body = smoothstep(-0.1, 0.5, 0.6 + side[rows] + 0.3 * cloud - scene.radius[rows]) * scene.mask[rows]
    scene.melanin[rows] += 0.5 * body
    scene.blue[rows] = np.maximum(scene.blue[rows], 0.75 * body)


def _blotch(scene: Scene) -> None:
    turn, far = scene.of_lesion.uniform(0, 512), scene.of_lesion.uniform(0.3, 0.6)
    rows = scene.where("blotch")
    bearing = (scene.angle[rows] % 512 - turn[rows]) * np.float32(2 * np.pi / 512)
    radius = scene.radius[rows]
    distance = np.sqrt(radius**2 + far[rows] ** 2 - 2 * radius * far[rows] * np.cos(bearing))
    body = smoothstep(0.5, 0.26, distance + 0.09 * look_up(noise(1.6, 4)[0], scene.position(rows)))
    scene.melanin[rows] += 2.0 * body * scene.mask[rows]


def _scar(scene: Scene) -> None:
    extent = scene.of_lesion.uniform(0.3, 0.5)
    rows = scene.where("scar")
    at, radius = scene.position(rows), scene.radius[rows]
    cloud = look_up(noise(1.6, 4)[1], at)
    patch = smoothstep(extent[rows] + 0.22, extent[rows] - 0.25, radius + 0.1 * cloud)
    scene.white[rows] = np.maximum(scene.white[rows], patch * (0.62 + 0.14 * look_up(noise(1.0, 12)[1], at)))
    scene.blood[rows] += 0.2 * smoothstep(0.3, 0.7, radius) * smoothstep(1.4, 0.9, radius)


def _cysts_and_openings(scene: Scene) -> None:
    """Milia-like cysts are bright dots, comedo-like openings dark and larger ones."""
    rows = scene.where("milia_cysts")
    at = scene.position(rows, 0.5)
    chosen = look_up(cells(0.45)[2], at)
    size = 0.16 + 0.16 * (chosen * 11 % 1)
    cyst = smoothstep(size, size - 0.18, look_up(cells(0.45)[0], at)) * (chosen > 0.45) * scene.mask[rows]
    scene.white[rows] = np.maximum(scene.white[rows], 0.8 * cyst)
    rows = scene.where("comedo_openings")
    at = scene.position(rows, 0.42)
    chosen = look_up(cells(0.45)[2], at)
    size = 0.22 + 0.24 * (chosen * 11 % 1)
    opening = smoothstep(size, size - 0.16, look_up(cells(0.45)[0], at)) * (chosen < 0.4) * scene.mask[rows]
    scene.melanin[rows] += 1.4 * opening
    scene.white[rows] *= 1 - opening


def _vessels(scene: Scene) -> None:
    """Arborising (branching), dotted, or strawberry: red lines around pale follicles."""
    tile, lesion = scene.of_lesion.block(1)[:, 0], smoothstep(1.3, 0.85, scene.radius)
    rows = scene.where("vessels", 1)
    bank = trees()
    which = (tile[rows] * len(bank)).astype(np.intp)[:, None, None] * bank[0].size
    tree = look_up(bank, scene.position(rows, 1.15) + which) * lesion[rows]
    scene.blood[rows] += 1.7 * tree
    scene.melanin[rows] += 0.15 * tree
    rows = scene.where("vessels", 2)
    at = scene.position(rows, 0.95)
    dot = smoothstep(0.34, 0.12, look_up(cells(0.45)[0], at)) * (look_up(cells(0.45)[2], at) < 0.7)
    scene.blood[rows] += 1.3 * dot * smoothstep(0.15, 0.7, scene.mask[rows])
    rows = scene.where("vessels", 3)
    at = scene.position(rows, 0.85)
    centre, chosen = look_up(cells(0.45)[0], at), look_up(cells(0.45)[2], at)
    scene.blood[rows] += 0.8 * smoothstep(0.4, 0.05, look_up(cells(0.45)[1], at)) * lesion[rows]
    follicle = (0.25 + 0.45 * chosen) * smoothstep(0.32, 0.1, centre) * lesion[rows]
    scene.white[rows] = np.maximum(scene.white[rows], follicle)


def _nests(scene: Scene) -> None:
    rows = scene.where("ovoid_nests")
    at = scene.position(rows, 0.26, 1.5)
    chosen = look_up(cells(0.45)[2], at)
    size = 0.3 + 0.3 * (chosen * 5 % 1)
    ragged = look_up(cells(0.45)[0], at) + 0.06 * look_up(noise(1.0, 12)[3], scene.position(rows))
    nest = smoothstep(size, size - 0.26, ragged) * (chosen < 0.5) * smoothstep(1.15, 0.85, scene.radius[rows])
    scene.melanin[rows] += 0.55 * nest
    scene.blue[rows] = np.maximum(scene.blue[rows], 0.6 * nest)


def _lacunae(scene: Scene) -> None:
    """Round red to purple lakes with paler walls between."""
    rows = scene.where("lacunae")
    at = scene.position(rows, 0.34)
    centre, wall, chosen = (look_up(tile, at) for tile in cells(0.45))
    lake = smoothstep(0.8, 0.25, centre) * smoothstep(0.0, 0.22, wall) * smoothstep(1.15, 0.9, scene.radius[rows])
    scene.blood[rows] += lake * (0.9 + 0.9 * chosen)
    dark = lake * smoothstep(0.55, 0.9, chosen)
    scene.melanin[rows] += 0.5 * dark
    scene.blue[rows] += 0.3 * dark


def _ulceration(scene: Scene) -> None:
    extent = scene.of_lesion.uniform(0.05, 0.3)
    rows = scene.where("ulceration")
    at, radius = scene.position(rows, 1.2), scene.radius[rows]
    grain = look_up(noise(1.0, 12)[0], at)
    crust = smoothstep(0.0, 0.18, extent[rows] + 0.2 * look_up(noise(1.6, 4)[2], at) - 0.6 * radius + 0.1)
    crust *= smoothstep(1.1, 0.9, radius)
    scene.blood[rows] += crust * (1.2 + 0.4 * grain)
    scene.melanin[rows] += crust * (0.6 + 0.3 * grain)
    scene.white[rows] *= 1 - crust
    scene.blue[rows] *= 1 - crust


def _scale(scene: Scene) -> None:
    rows = scene.where("scale")
    patch = smoothstep(-0.1, 1.2, look_up(noise(1.6, 4)[3], scene.position(rows)))
    flake = smoothstep(-0.8, 1.4, look_up(noise(1.0, 12)[2], scene.position(rows, 1.7)))
    body = smoothstep(1.2, 0.8, scene.radius[rows])
    scene.white[rows] = np.maximum(scene.white[rows], 0.9 * patch * flake * body)
