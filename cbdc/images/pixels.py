"""Pixels that are already arrays: resize, encode, write. No metadata is ever written."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ImageError
from .decode import check_sides

_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize(pixels: np.ndarray, size: tuple[int, int], resample: str = "bilinear") -> np.ndarray:
    """Resize with antialiasing (Pillow's filters, whose support grows with the reduction).

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
    size : (height, width)
    resample : {"bilinear", "bicubic"}

    Returns
    -------
    ndarray of shape (height, width, 3), uint8

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.images import resize
    >>> resize(np.zeros((450, 600, 3), dtype=np.uint8), (224, 224)).shape
    (224, 224, 3)
    """
    return resized(Image.fromarray(checked_layout(pixels)), size=checked_size(size), resample=checked_filter(resample))


def resized(picture: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Pixels of a Pillow picture in another size."""
    return np.array(picture.resize(size[::-1], resample))


def encode_image(pixels: np.ndarray, format: str = "PNG") -> bytes:
    """Encode pixels as PNG (exact) or JPEG, without any metadata.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
    format : {"PNG", "JPEG"}

    Returns
    -------
    bytes
    """
    options = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}}
    if format not in options:
        raise ValueError(f"format: got {format!r}; expected one of {sorted(options)}.")
    buffer = io.BytesIO()
    Image.fromarray(checked_layout(pixels)).save(buffer, format, **options[format])
    return buffer.getvalue()


def write_image(pixels: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Write pixels as `.png`, `.jpg` or `.jpeg`, without any metadata.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
    path : str or Path

    Returns
    -------
    Path
        The file written.
    """
    path = Path(path)
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path.name!r}: expected a name that ends in {', '.join(formats)}.")
    path.write_bytes(encode_image(pixels, formats[path.suffix.lower()]))
    return path


def thumbnail_png(pixels: np.ndarray, max_side: int = 160) -> bytes:
    """PNG of the pixels, reduced (never enlarged) to fit a square of `max_side`; no metadata."""
    return encode_image(_shrunk(pixels, max_side), "PNG")


def thumbnail_jpeg(pixels: np.ndarray, max_side: int = 160) -> bytes:
    """JPEG of the pixels, reduced (never enlarged) to fit a square of `max_side`; no metadata."""
    return encode_image(_shrunk(pixels, max_side), "JPEG")


def _shrunk(pixels: np.ndarray, max_side: int) -> np.ndarray:
    height, width = checked_layout(pixels).shape[:2]
    scale = min(1.0, max_side / max(height, width))
    return resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))


def checked_layout(pixels: np.ndarray) -> np.ndarray:
    """Contiguous uint8 (H, W, 3), or ImageError."""
    if pixels.dtype != np.uint8:
        raise ImageError(f"{pixels.dtype} array; expected uint8 (H, W, 3). Scale it to 0-255 and use .astype('uint8').")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"array of shape {pixels.shape}; expected (H, W, 3). Put the RGB channels on the last axis.")
    return np.ascontiguousarray(pixels)


def checked_pixels(pixels: np.ndarray) -> np.ndarray:
    """An array that may stand for a photograph."""
    pixels = checked_layout(pixels)
    check_sides(pixels.shape[0], pixels.shape[1])
    return pixels


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: got {size!r}; expected (height, width), both at least 1.")
    return int(size[0]), int(size[1])


def checked_filter(resample: str) -> Image.Resampling:
    if resample not in _RESAMPLE:
        raise ValueError(f"resample: got {resample!r}; expected one of {sorted(_RESAMPLE)}.")
    return _RESAMPLE[resample]
