"""What every perturbation is: parameters, a change of pixels, and a bound on its size that needs no changed pixel."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np

from ..errors import ImageError, ParameterError

__all__ = [
    "Perturbation",
    "check_image",
    "from_planes",
    "grid_norm",
    "image_scale",
    "norm",
    "rounding_norm",
    "to_planes",
]

_HALF_LEVEL = 0.501 / 255  # the most that rounding to 8 bits adds to a value, and room for float32 before it
_FLOAT_SLACK = 1 + 1e-5  # so that a norm summed in another order, or in float32, stays below the bound
_REFERENCE_SIDE = 224  # pixels; lengths are given for an image whose shorter side this is


class Perturbation(ABC):
    """A perturbation with its parameters; call it on an image to apply it.

    Sizes are L2 norms of the change over all values of an image, x in [0, 1] of shape (H, W, 3). Clipping to [0, 1]
    projects onto a convex set that holds x, so it makes no change larger; rounding to 8 bits moves a value by at most
    1/510, which `bound` adds where a value may change at all.

    Attributes
    ----------
    kind : {"photometric", "morphological"}
    amounts : tuple of five numbers
        What severities 1 to 5 set. Lengths are in pixels of an image whose shorter side is 224, and grow with it.
    limits : tuple of two numbers
        Least and greatest value that the first parameter may have.

    Raises
    ------
    ParameterError
        If the first parameter is outside its limits.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.perturb import PERTURBATIONS
    >>> image = np.full((48, 64, 3), 100, dtype=np.uint8)
    >>> brighter = PERTURBATIONS["brightness"](0.2)
    >>> brighter(image)[0, 0], round(brighter.bound(image), 2)
    (array([151, 151, 151], dtype=uint8), 19.2)
    """

    kind: ClassVar[str]
    amounts: ClassVar[tuple[float, float, float, float, float]]
    limits: ClassVar[tuple[float, float]]

    def __post_init__(self) -> None:
        (name, value), (low, high) = next(iter(vars(self).items())), self.limits
        if not np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)):
            raise ParameterError(f"{type(self).__name__}: {name}: got {value!r}; expected from {low} to {high}.")

    @classmethod
    def draw(cls, severity: int, rng: np.random.Generator) -> Self:
        """Parameters of a severity from 1 to 5; a generator in the same state gives the same sign, place or seed."""
        return cls._draw(cls.amounts[severity - 1], rng)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The perturbed image.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8

        Returns
        -------
        ndarray of shape (H, W, 3), uint8
        """
        return self._apply(check_image(image))

    def bound(self, image: np.ndarray) -> float:
        """Upper bound of the L2 norm of the change, values scaled to [0, 1], with clipping and rounding.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8

        Returns
        -------
        float
        """
        return float(_FLOAT_SLACK * self._bound(check_image(image)))

    @classmethod
    @abstractmethod
    def _draw(cls, amount: float, rng: np.random.Generator) -> Self: ...

    @abstractmethod
    def _apply(self, image: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _bound(self, image: np.ndarray) -> float: ...


def check_image(image: np.ndarray) -> np.ndarray:
    """A uint8 image (H, W, 3) of at least one pixel, or ImageError."""
    if not isinstance(image, np.ndarray):
        raise ImageError(f"image: got {type(image).__name__}; expected a uint8 array. Use cbdc.read_image(...).pixels.")
    if image.dtype != np.uint8:
        raise ImageError(f"image: got {image.dtype}; expected uint8. Scale it to 0-255 and use .astype('uint8').")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        kind = " (grayscale)" if image.ndim == 2 else ""
        raise ImageError(f"image: got shape {image.shape}{kind}; expected (H, W, 3), RGB on the last axis.")
    return image


def to_planes(image: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Values in [0, 1], channels first: (3, H, W)."""
    return np.divide(image.transpose(2, 0, 1), 255, dtype=dtype, order="C")


def from_planes(planes: np.ndarray) -> np.ndarray:
    """Clip, round to 8 bits, channels last."""
    levels = np.clip(planes, 0, 1) * 255
    return np.ascontiguousarray(np.rint(levels, out=levels).astype(np.uint8).transpose(1, 2, 0))


def image_scale(image: np.ndarray) -> float:
    """Pixels of this image to a pixel of one whose shorter side is 224."""
    return min(image.shape[:2]) / _REFERENCE_SIDE


def norm(values: np.ndarray) -> float:
    """L2 norm over all axes; not by BLAS, whose last bits depend on the number of threads."""
    return float(np.sqrt(np.square(values).sum()))


def rounding_norm(n_values: int) -> float:
    """The most that rounding adds to the norm of a change of n values."""
    return _HALF_LEVEL * n_values**0.5


def grid_norm(change: np.ndarray) -> float:
    """Norm of the largest changes of 8-bit values that are at most `change` before rounding.

    Both values lie on the grid of 255 levels, so that one changes by whole levels, at most 255 * change + 1/2.
    """
    return norm(np.floor((change + _HALF_LEVEL) * 255)) / 255
