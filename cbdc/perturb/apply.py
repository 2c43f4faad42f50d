"""Perturbations by name and severity, drawn anew for each image from the seed and the image itself."""

import hashlib
from numbers import Integral

import numpy as np

from ..errors import ParameterError, did_you_mean
from ._base import Perturbation, check_image
from .jpeg import Jpeg
from .layers import Gel, Hair, Ruler, Vignette
from .photometric import Blur, Brightness, Contrast, Gamma, Hue, Noise, Saturation, WhiteBalance
from .warps import Crop, Elastic, Flip, Rotation, Scale

__all__ = ["PERTURBATIONS", "SEVERITIES", "draw_perturbation", "list_perturbations", "perturb", "perturbation_bound"]

SEVERITIES = (1, 2, 3, 4, 5)
PERTURBATIONS: dict[str, type[Perturbation]] = {
    "brightness": Brightness,
    "contrast": Contrast,
    "gamma": Gamma,
    "white_balance": WhiteBalance,
    "hue": Hue,
    "saturation": Saturation,
    "blur": Blur,
    "jpeg": Jpeg,
    "noise": Noise,
    "vignette": Vignette,
    "rotation": Rotation,
    "flip": Flip,
    "scale": Scale,
    "elastic": Elastic,
    "hair": Hair,
    "ruler": Ruler,
    "gel": Gel,
    "crop": Crop,
}


def list_perturbations(kind: str | None = None) -> list[str]:
    """Names of the perturbations.

    Parameters
    ----------
    kind : {"photometric", "morphological"}, optional
        Default: both.

    Returns
    -------
    list of str

    Raises
    ------
    ParameterError
        For another kind.

    Examples
    --------
    >>> from cbdc.perturb import list_perturbations
    >>> list_perturbations("morphological")
    ['rotation', 'flip', 'scale', 'elastic', 'hair', 'ruler', 'gel', 'crop']
    """
    kinds = ["photometric", "morphological"]
    if kind is not None and kind not in kinds:
        raise ParameterError(f"kind: got {kind!r}; expected one of {kinds} or None.{did_you_mean(kind, kinds)}")
    return [name for name, perturbation in PERTURBATIONS.items() if kind in (None, perturbation.kind)]


def draw_perturbation(image: np.ndarray, name: str, severity: int, random_state: int = 0) -> Perturbation:
    """The perturbation that `perturb` applies to an image, with its parameters.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
    name : str
        See `list_perturbations`.
    severity : int
        1 (slight) to 5.
    random_state : int, default=0
        What is random (a sign, a place, hairs) comes from this seed, the name, and the image's pixels: an image gets
        the same alone and in any batch, two images get different ones, and severities of one image share it.

    Returns
    -------
    Perturbation
        Call it on the image to apply it; ``.bound(image)`` is a bound of its size.

    Raises
    ------
    ImageError
        If the image is not a uint8 array (H, W, 3).
    ParameterError
        For an unknown name, or a severity or random state that is not as said.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.perturb import draw_perturbation
    >>> image = np.full((48, 64, 3), 100, dtype=np.uint8)
    >>> draw_perturbation(image, "rotation", 2)
    Rotation(degrees=10)
    """
    check_image(image)
    if name not in list(PERTURBATIONS):
        hint = did_you_mean(name, list(PERTURBATIONS))
        raise ParameterError(f"name: no perturbation is called {name!r}.{hint} Allowed: {', '.join(PERTURBATIONS)}.")
    if not _is_integer(severity) or not 1 <= severity <= 5:
        raise ParameterError(f"severity: got {severity!r}; expected an integer from 1 (slight) to 5.")
    if not _is_integer(random_state) or random_state < 0:
        raise ParameterError(f"random_state: got {random_state!r}; expected an integer from 0: a bound needs the draw.")
    content = hashlib.sha256(f"{name} {image.shape}".encode())
    content.update(np.ascontiguousarray(image).data)
    rng = np.random.default_rng([int(random_state), int.from_bytes(content.digest(), "little")])
    return PERTURBATIONS[name].draw(int(severity), rng)


def perturb(image: np.ndarray, name: str, severity: int, random_state: int = 0) -> np.ndarray:
    """Perturb an image, or each image of a batch.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3) or (n, H, W, 3), uint8
    name, severity, random_state
        As in `draw_perturbation`.

    Returns
    -------
    ndarray of the same shape, uint8
        Of a batch, each image as it would be alone.

    Raises
    ------
    ImageError, ParameterError
        As in `draw_perturbation`.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.perturb import perturb
    >>> image = np.full((48, 64, 3), 100, dtype=np.uint8)
    >>> perturb(image, "brightness", 2)[0, 0]
    array([74, 74, 74], dtype=uint8)
    """
    if _is_batch(image):
        new = np.empty_like(image)
        for one, target in zip(image, new):
            target[...] = perturb(one, name, severity, random_state)
        return new
    return draw_perturbation(image, name, severity, random_state)(image)


def perturbation_bound(image: np.ndarray, name: str, severity: int, random_state: int = 0) -> float | np.ndarray:
    """Upper bound of the size of a perturbation, without applying it.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3) or (n, H, W, 3), uint8
    name, severity, random_state
        As in `draw_perturbation`.

    Returns
    -------
    float, or ndarray of shape (n,), float64
        Bound of the L2 norm of the change, all values of an image scaled to [0, 1].

    Raises
    ------
    ImageError, ParameterError
        As in `draw_perturbation`.

    Notes
    -----
    **Guarantee.** Assumption: none on the image. Statement: ``perturb`` with the same arguments changes the image by at
    most this, clipping and rounding to 8 bits included; the formulas and their proofs are in ``theory/perturb.md``.
    For brightness, contrast, gamma and white balance it is the size itself. What breaks it: another random state, or
    an image that was resized or encoded again between the two.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.perturb import perturb, perturbation_bound
    >>> image = np.random.default_rng(0).integers(60, 200, (48, 64, 3), dtype=np.uint8)
    >>> change = perturb(image, "white_balance", 3) / 255 - image / 255
    >>> bool(np.linalg.norm(change) <= perturbation_bound(image, "white_balance", 3))
    True
    """
    if _is_batch(image):
        return np.array([perturbation_bound(one, name, severity, random_state) for one in image], dtype=np.float64)
    return draw_perturbation(image, name, severity, random_state).bound(image)


def _is_batch(image: np.ndarray) -> bool:
    return isinstance(image, np.ndarray) and image.ndim == 4


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
