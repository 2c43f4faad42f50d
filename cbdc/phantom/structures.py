"""What dermoscopy sees in a lesion, a function a concept; each adds pigment, blood, white or blue to the pixels."""

import numpy as np

from ..perturb.artefacts import smoothstep
from .scene import Lesions
from .textures import cells, look_up, noise, trees

__all__ = ["paint_lesions"]

# light brown, dark brown, pink, red, purple, blue-gray: melanin, blood, blue
_PIGMENT = np.array(
    [[0.46, 0.10, 0], [1.00, 0.14, 0], [0.07, 0.42, 0], [0.12, 1.25, 0], [0.30, 1.15, 0.38], [0.45, 0.10, 0.55]],
    dtype=np.float32,
)
_N_FINGERS, _N_ANGLES = 40, 512
_ALL = slice(None)


def paint_lesions(lesions: Lesions) -> None:
    """Paint every concept that needs a brush; asymmetry, border and edge are in the outline already."""
    _colour(lesions)
    _tones(lesions)
    _nests(lesions)
    _lacunae(lesions)
    _blotch(lesions)
    _network(lesions)
    _globules(lesions)
    _streaks(lesions)
    _vessels(lesions)
    _scar(lesions)
    _veil(lesions)
    _cysts_and_openings(lesions)
    _ulceration(lesions)
    _scale(lesions)


def _cover(opacity: np.ndarray, here: np.ndarray, values: np.ndarray) -> None:
    """Raise an opacity to at least the values."""
    opacity[here] = np.maximum(opacity[here], values)


def _dots(at: np.ndarray, size: float | np.ndarray, soft: float) -> np.ndarray:
    """Round dots at the centres of an irregular honeycomb; 1 inside."""
    return smoothstep(size, size - soft, look_up(cells(0.45)[0], at))


def _colour(lesions: Lesions) -> None:
    melanin, blood, blue = _PIGMENT[lesions.levels["colour"]].T
    at = lesions.position(_ALL)
    strength = 1 + 0.14 * look_up(noise(1.6, 3)[0], at) + 0.13 * look_up(noise(1.0, 12)[0], at)
    strength *= lesions.mask * lesions.uniform(_ALL, 0.7, 1.2)
    fade = 1 - lesions.uniform(_ALL, 0, 0.4) * np.minimum(lesions.radius, 1.3)
    lesions.melanin += melanin[lesions.owner] * strength * fade
    lesions.blood += blood[lesions.owner] * strength
    lesions.blue += blue[lesions.owner] * strength


def _tones(lesions: Lesions) -> None:
    """Darker patches; from three tones on also paler, redder and grayer ones."""
    here = lesions.where("tones", 1)
    dark = look_up(noise(1.6, 3)[0], lesions.position(here, 0.9))
    lesions.melanin[here] += 0.45 * lesions.mask[here] * smoothstep(-0.2, 1.3, dark)
    here = lesions.where("tones", 2)
    at, mask = lesions.position(here, 0.9), lesions.mask[here]
    dark, light, other = (look_up(tile, at) for tile in noise(1.6, 3)[:3])
    lesions.melanin[here] += 0.7 * mask * smoothstep(-0.2, 1.3, dark)
    patch = mask * smoothstep(0.2, 1.2, light)
    lesions.melanin[here] *= 1 - 0.7 * patch
    lesions.blood[here] += 0.22 * patch
    lesions.blue[here] += 0.4 * mask * smoothstep(0.5, 1.5, other)


def _network(lesions: Lesions) -> None:
    """Brown lines around pale holes: even (typical), of uneven width and darkness (atypical), or a faint ring."""
    here = lesions.where("network", 1)
    at = lesions.position(here, 1.15)
    wall, patchy = look_up(cells(0.24)[1], at), look_up(noise(1.6, 4)[3], at)
    lines = 0.7 * smoothstep(0.3, 0.02, wall) - 0.2 * smoothstep(0.15, 0.4, wall)
    lesions.melanin[here] += smoothstep(-1.8, 0.4, patchy) * lesions.mask[here] * lines
    here = lesions.where("network", 2)
    at = lesions.position(here, 1.0)
    patchy = look_up(noise(1.6, 4)[3], at)
    wall = look_up(cells(0.45)[1], at) / (1 + 0.6 * np.clip(patchy, -0.8, 2.0))
    lines = 1.5 * smoothstep(0.34, 0.04, wall) - 0.3 * smoothstep(0.2, 0.5, wall)
    lesions.melanin[here] += smoothstep(-1.0, 0.8, patchy) * lesions.mask[here] * lines
    here = lesions.where("network", 3)
    radius, wall = lesions.radius[here], look_up(cells(0.24)[1], lesions.position(here, 1.15))
    ring = smoothstep(0.3, 0.75, radius) * smoothstep(1.45, 0.95, radius)
    lesions.melanin[here] += 0.45 * ring * smoothstep(0.26, 0.02, wall)


def _globules(lesions: Lesions) -> None:
    here = lesions.where("globules", 1)
    at = lesions.position(here, 0.75)
    spot = smoothstep(0.48, 0.16, look_up(cells(0.24)[0], at)) * smoothstep(0.1, 0.7, lesions.mask[here])
    lesions.melanin[here] += (0.35 + 0.6 * look_up(cells(0.24)[2], at)) * spot
    here = lesions.where("globules", 2)
    at = lesions.position(here, 0.6)
    chosen = look_up(cells(0.45)[2], at)
    spot = _dots(at, 0.18 + 0.36 * (chosen * 7 % 1), 0.18) * (chosen < 0.5)
    lesions.melanin[here] += 1.4 * spot * smoothstep(1.25, 1.0, lesions.radius[here])


def _streaks(lesions: Lesions) -> None:
    """Radial fingers at the rim, close together over a part of it."""
    (turn, spread), fingers = lesions.draws.block(2).T[:, :, None], lesions.draws.block(_N_FINGERS)
    centres = (np.arange(_N_FINGERS) + 0.8 * fingers) / _N_FINGERS
    off = np.abs((centres - turn + 0.5) % 1 - 0.5)
    height = (0.08 + 0.16 * (fingers * 13 % 1)) * (off < 0.2 + 0.3 * spread)
    reach, rows = np.zeros((len(height), _N_ANGLES), dtype=np.float32), np.flatnonzero(lesions.levels["streaks"])
    gap = np.abs((np.arange(_N_ANGLES) / _N_ANGLES - centres[rows, :, None] + 0.5) % 1 - 0.5)
    reach[rows] = (height[rows, :, None] * np.clip(1 - gap / 0.012, 0, 1)).max(axis=1)
    here = lesions.where("streaks")
    radius, tip = lesions.radius[here], reach.ravel().take(lesions.angle[here] + _N_ANGLES * lesions.owner[here])
    finger = smoothstep(-0.03, 0.09, 1 + tip - radius) * smoothstep(0.0, 0.16, tip)
    lesions.melanin[here] += 1.3 * finger * smoothstep(0.7, 1.0, radius)


def _veil(lesions: Lesions) -> None:
    here = lesions.where("veil")
    cloud = look_up(noise(1.7, 3)[1], lesions.position(here, 0.8))
    inside = 0.6 + lesions.uniform(here, -0.2, 0.25) + 0.3 * cloud - lesions.radius[here]
    body = smoothstep(-0.1, 0.5, inside) * lesions.mask[here]
    lesions.melanin[here] += 0.5 * body
    _cover(lesions.blue, here, 0.75 * body)


def _blotch(lesions: Lesions) -> None:
    here = lesions.where("blotch")
    far, radius = lesions.uniform(here, 0.3, 0.6), lesions.radius[here]
    bearing = lesions.angle[here] * np.float32(2 * np.pi / _N_ANGLES) - lesions.uniform(here, 0, 2 * np.pi)
    distance = np.sqrt(radius * radius + far * far - 2 * radius * far * np.cos(bearing))
    cloud = look_up(noise(1.6, 4)[0], lesions.position(here))
    lesions.melanin[here] += 2.0 * smoothstep(0.5, 0.26, distance + 0.09 * cloud) * lesions.mask[here]


def _scar(lesions: Lesions) -> None:
    here = lesions.where("scar")
    at, radius, extent = lesions.position(here), lesions.radius[here], lesions.uniform(here, 0.3, 0.5)
    patch = smoothstep(extent + 0.22, extent - 0.25, radius + 0.1 * look_up(noise(1.6, 4)[1], at))
    _cover(lesions.white, here, patch * (0.62 + 0.14 * look_up(noise(1.0, 12)[1], at)))
    lesions.blood[here] += 0.2 * smoothstep(0.3, 0.7, radius) * smoothstep(1.4, 0.9, radius)


def _cysts_and_openings(lesions: Lesions) -> None:
    """Milia-like cysts are bright dots, comedo-like openings dark and larger ones."""
    here = lesions.where("milia_cysts")
    at = lesions.position(here, 0.5)
    chosen = look_up(cells(0.45)[2], at)
    cyst = _dots(at, 0.16 + 0.16 * (chosen * 11 % 1), 0.18) * (chosen > 0.45)
    _cover(lesions.white, here, 0.8 * cyst * lesions.mask[here])
    here = lesions.where("comedo_openings")
    at = lesions.position(here, 0.42)
    chosen = look_up(cells(0.45)[2], at)
    opening = _dots(at, 0.22 + 0.24 * (chosen * 11 % 1), 0.16) * (chosen < 0.4) * lesions.mask[here]
    lesions.melanin[here] += 1.4 * opening
    lesions.white[here] *= 1 - opening


def _vessels(lesions: Lesions) -> None:
    """Arborising (branching), dotted, or strawberry: red lines around pale follicles."""
    here, bank = lesions.where("vessels", 1), trees()
    tile = lesions.uniform(here, 0, len(bank)).astype(np.intp)
    tree = look_up(bank, lesions.position(here, 1.15) + tile * bank[0].size) * _around(lesions, here)
    lesions.blood[here] += 1.7 * tree
    lesions.melanin[here] += 0.15 * tree
    here = lesions.where("vessels", 2)
    at = lesions.position(here, 0.95)
    dot = _dots(at, 0.34, 0.22) * (look_up(cells(0.45)[2], at) < 0.7)
    lesions.blood[here] += 1.3 * dot * smoothstep(0.15, 0.7, lesions.mask[here])
    here = lesions.where("vessels", 3)
    at, around = lesions.position(here, 0.85), _around(lesions, here)
    lesions.blood[here] += 0.8 * smoothstep(0.4, 0.05, look_up(cells(0.45)[1], at)) * around
    _cover(lesions.white, here, (0.25 + 0.45 * look_up(cells(0.45)[2], at)) * _dots(at, 0.32, 0.22) * around)


def _around(lesions: Lesions, here: np.ndarray) -> np.ndarray:
    """1 in the lesion, fading a little beyond its outline, however soft its edge."""
    return smoothstep(1.3, 0.85, lesions.radius[here])


def _nests(lesions: Lesions) -> None:
    here = lesions.where("ovoid_nests")
    at = lesions.position(here, 0.26, 1.5)
    chosen = look_up(cells(0.45)[2], at)
    size = 0.3 + 0.3 * (chosen * 5 % 1) - 0.06 * look_up(noise(1.0, 12)[3], lesions.position(here))
    nest = _dots(at, size, 0.26) * (chosen < 0.5) * smoothstep(1.15, 0.85, lesions.radius[here])
    lesions.melanin[here] += 0.55 * nest
    _cover(lesions.blue, here, 0.6 * nest)


def _lacunae(lesions: Lesions) -> None:
    """Round red to purple lakes with paler walls between."""
    here = lesions.where("lacunae")
    at = lesions.position(here, 0.34)
    chosen = look_up(cells(0.45)[2], at)
    lake = _dots(at, 0.8, 0.55) * smoothstep(0.0, 0.22, look_up(cells(0.45)[1], at))
    lake *= smoothstep(1.15, 0.9, lesions.radius[here])
    dark = lake * smoothstep(0.55, 0.9, chosen)
    lesions.blood[here] += lake * (0.9 + 0.9 * chosen)
    lesions.melanin[here] += 0.5 * dark
    lesions.blue[here] += 0.3 * dark


def _ulceration(lesions: Lesions) -> None:
    """Crusts, red-brown and grainy; they hide what lies under them."""
    here = lesions.where("ulceration")
    at, radius = lesions.position(here, 1.2), lesions.radius[here]
    inside = lesions.uniform(here, 0.15, 0.4) + 0.2 * look_up(noise(1.6, 4)[2], at) - 0.6 * radius
    crust = smoothstep(0.0, 0.18, inside) * smoothstep(1.1, 0.9, radius)
    grain = look_up(noise(1.0, 12)[0], at)
    lesions.blood[here] += crust * (1.2 + 0.4 * grain)
    lesions.melanin[here] += crust * (0.6 + 0.3 * grain)
    lesions.white[here] *= 1 - crust
    lesions.blue[here] *= 1 - crust


def _scale(lesions: Lesions) -> None:
    here = lesions.where("scale")
    patch = smoothstep(-0.1, 1.2, look_up(noise(1.6, 4)[3], lesions.position(here)))
    flake = smoothstep(-0.8, 1.4, look_up(noise(1.0, 12)[2], lesions.position(here, 1.7)))
    _cover(lesions.white, here, 0.9 * patch * flake * smoothstep(1.2, 0.8, lesions.radius[here]))
