"""Colour constancy: the cast of the light taken out of a photograph."""

import numpy as np

from ..errors import ParameterError
from .pixels import checked_layout

__all__ = ["shades_of_gray"]

_LEVELS = np.arange(256) / 255


def shades_of_gray(pixels: np.ndarray, norm: float = 6) -> np.ndarray:
    """Divide each channel by the colour of the light, estimated by the Minkowski norm of the channel's values.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
    norm : float, default=6
        1 assumes that the scene is gray on average, infinity that its brightest value is white; 6 is between.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        The geometric mean of the three gains is 1, so that brightness hardly changes; values above 255 are clipped.

    Raises
    ------
    ImageError
        If the array is not uint8 (H, W, 3).
    ParameterError
        If the norm is below 1.

    References
    ----------
    Finlayson and Trezzi, *Shades of gray and colour constancy*, 2004. For dermoscopy: Barata, Celebi and Marques,
    doi:10.1109/JBHI.2014.2336473.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.images import shades_of_gray
    >>> reddish = np.full((32, 32, 3), (180, 120, 120), dtype=np.uint8)
    >>> shades_of_gray(reddish)[0, 0]
    array([137, 137, 137], dtype=uint8)
    """
    if not norm >= 1:
        raise ParameterError(f"norm: got {norm!r}; expected at least 1.")
    pixels = checked_layout(pixels)
    counts = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)]
    if np.isinf(norm):
        light = np.array([_LEVELS[np.flatnonzero(count)[-1]] for count in counts])
    else:
        light = np.array([(count @ _LEVELS**norm / count.sum()) ** (1 / norm) for count in counts])
    if not light.all():  # a channel without any light has no cast that could be divided out
        return pixels
    gains = np.exp(np.log(light).mean()) / light
    table = np.rint(np.clip(_LEVELS[:, None] * gains, 0, 1) * 255).astype(np.uint8)
    return np.stack([table[:, channel].take(pixels[..., channel]) for channel in range(3)], axis=-1)
