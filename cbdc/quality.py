"""Is a photograph good enough to be read? Deterministic checks that ask for another one only when it is plainly not."""

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["ImageQuality", "assess_quality"]

_WORKING_SIDE = 128  # shorter side, in pixels, that a picture is averaged down to (or to less than twice that)

_BLURRED = "blurred: hold still, focus on the lesion and take it again"
# No limit on mean brightness: one that spares light skin turns away every good photograph of the darkest.
_AT_LEAST = {
    "shorter_side": (100, "too small: send the original photograph"),
    "brightest": (30, "all black: check the exposure and the lens cap"),
    "dynamic_range": (12, "flat: nothing stands out; show the lesion, evenly lit"),
    "chroma": (5, "without colour: a gray picture or a document; send a colour photograph of the lesion"),
}
_AT_MOST = {
    "black": (0.7, "underexposed: take it again with more light"),
    "white": (0.7, "overexposed: take it again with less light"),
    "blur": (1.15, _BLURRED),
    "coarse_blur": (0.45, _BLURRED),
    "non_skin_hue": (0.9, "green or blue all over: show the lesion on the skin"),
}


@dataclass(frozen=True)
class ImageQuality:
    """Verdict on one photograph.

    Attributes
    ----------
    verdict : {"accept", "retake"}
    reasons : tuple of str
        Why to take it again, each with the fix; empty where accepted.
    measures : dict of str to float
        What was measured: `shorter_side` (px); `brightest`, `dynamic_range` and `chroma` (grey levels, 0-255);
        `black`, `white` and `non_skin_hue` (fractions of the picture); `blur` and `coarse_blur` (log10 of energies).
    """

    verdict: str
    reasons: tuple[str, ...] = ()
    measures: dict[str, float] = field(default_factory=dict)


def assess_quality(pixels: np.ndarray) -> ImageQuality:
    """Ask for another photograph where this one is too small, black, flat, blown out, blurred or plainly not of skin.

    Everything but the size is measured on the picture averaged down to some 150 pixels, so that resolution and sensor
    noise hardly move the verdict. Blur is the energy of detail between 1.5 and 6 such pixels over that of finer detail,
    coarse blur that between 6 and 12 over that between 1.5 and 6, in the middle of the picture: ratios, which contrast
    and skin tone hardly move.

    The limits were set on HAM10000, PH2 and parts of ISIC 2020 and PAD-UFES-20, of which they turn away at most 1
    photograph in 400 (each set by itself). A Gaussian blur of 3 to 4 working pixels is caught in 80-100%
    of them, by set; one of 1.5 in 18-79% only. The checks use ranges and fractions, never mean brightness; but
    four photographs of Fitzpatrick types V and VI prove nothing about those types. "accept" does not mean that a
    lesion is there, or that the classifier is right.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8

    Returns
    -------
    ImageQuality

    References
    ----------
    S. Pertuz, D. Puig, M. A. Garcia. Analysis of focus measure operators for shape-from-focus. Pattern Recognition
    46 (2013) 1415-1432, doi:10.1016/j.patcog.2012.11.011.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.quality import assess_quality
    >>> quality = assess_quality(np.zeros((450, 600, 3), dtype=np.uint8))
    >>> quality.verdict, quality.reasons[0]
    ('retake', 'all black: check the exposure and the lens cap')
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"pixels: got {pixels.dtype} {pixels.shape}; expected uint8 (H, W, 3). Use cbdc.read_image.")
    measures = _measures(pixels)
    reasons = [why for name, (limit, why) in _AT_LEAST.items() if measures[name] < limit]
    reasons += [why for name, (limit, why) in _AT_MOST.items() if measures[name] > limit]
    return ImageQuality("retake" if reasons else "accept", tuple(dict.fromkeys(reasons)), measures)


def _measures(pixels: np.ndarray) -> dict[str, float]:
    small = _averaged(pixels)
    blur, coarse_blur = _blur(_luma(small))
    sample = small[:, ::2, ::2]  # enough for ranges and fractions
    red, green, blue = sample
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    darkest, lightest = np.quantile(_luma(sample), (0.01, 0.99))
    coloured = high - low > 0.2 * high
    return {
        "shorter_side": float(min(pixels.shape[:2])),
        "brightest": float(np.quantile(high, 0.99)),
        "dynamic_range": float(lightest - darkest),
        "chroma": float(np.quantile(high - low, 0.95)),
        "black": float(np.mean(high <= 8)),
        "white": float(np.mean(low >= 250)),
        "blur": blur,
        "coarse_blur": coarse_blur,
        "non_skin_hue": float(np.mean(coloured & (np.maximum(green, blue) > 1.1 * red))),
    }


def _luma(planes: np.ndarray) -> np.ndarray:
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _averaged(pixels: np.ndarray) -> np.ndarray:
    """Means of square blocks (of at most 4 x 4 pixels spread over each): float32, channels first."""
    height, width = pixels.shape[:2]
    side = max(1, min(height, width) // _WORKING_SIDE)
    height, width = height // side * side, width // side * side
    taps = np.linspace(0, side - 1, min(side, 4)).round().astype(int)
    rows = np.zeros((height // side, width, 3), dtype=np.uint16)
    for tap in taps:
        rows += pixels[tap:height:side, :width]
    total = np.zeros((3, height // side, width // side), dtype=np.float32)
    for tap in taps:
        total += np.moveaxis(rows[:, tap::side], 2, 0)
    return total / np.float32(len(taps) ** 2)


def _blur(luma: np.ndarray) -> tuple[float, float]:
    height, width = luma.shape
    middle = luma[height * 3 // 20 : height - height * 3 // 20, width * 3 // 20 : width - width * 3 // 20]
    smooth = gaussian_filter(middle, 1.5, truncate=3)
    half = smooth[::2, ::2]
    smoother, smoothest = gaussian_filter(half, 3, truncate=3), gaussian_filter(half, 6, truncate=3)
    rounding = 0.1  # of grey levels to integers: a variance of 1/12, and no zero below
    fine, medium, coarse = (
        np.var(a - b) + rounding for a, b in [(middle, smooth), (half, smoother), (smoother, smoothest)]
    )
    return float(np.log10(medium / fine)), float(np.log10(coarse / medium))
