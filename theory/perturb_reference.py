"""Oracle for perturbations: each by its definition, in loops or by a routine that the library does not use."""

import numpy as np
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.optimize import minimize_scalar
from scipy.spatial.transform import Rotation

LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
CHROMINANCE = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def size(image, other):
    """L2 norm of the difference of two 8-bit images, values in [0, 1]."""
    return np.sqrt(((image.astype(np.int64) - other.astype(np.int64)) ** 2).sum()) / 255


def largest_gamma_change(g):
    """max |x^g - x| over [0, 1], by search."""
    return -minimize_scalar(lambda x: -abs(x**g - x), bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).fun


def turn_hue(x, degrees):
    """Colours x (..., 3) turned about (1, 1, 1)."""
    return Rotation.from_rotvec(np.radians(degrees) * np.ones(3) / np.sqrt(3)).apply(x.reshape(-1, 3)).reshape(x.shape)


def blur(x, sigma):
    """Gaussian blur in space, mirrored borders."""
    for axis in (0, 1):
        x = gaussian_filter1d(x, sigma, axis=axis, mode="reflect", truncate=8)
    return x


def read_at(x, rows, columns):
    """x (H, W, 3) read bilinearly at positions (H, W), mirrored borders."""
    return np.stack([map_coordinates(x[..., c], [rows, columns], order=1, mode="reflect") for c in range(3)], axis=-1)


def _compress(plane, steps):
    """One plane of levels through 8 x 8 blocks."""
    back = np.empty_like(plane)
    for row in range(0, plane.shape[0], 8):
        for column in range(0, plane.shape[1], 8):
            block = np.s_[row : row + 8, column : column + 8]
            back[block] = idctn(np.round(dctn(plane[block], norm="ortho") / steps) * steps, norm="ortho")
    return back


def jpeg(image, quality):
    """What a JPEG of sides that are multiples of 16 keeps, colours halved: levels (H, W, 3), before rounding."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    colour = np.full((8, 8), 99)
    colour[:4, :4] = CHROMINANCE
    fine, coarse = (np.clip((np.array(table) * scale + 50) // 100, 1, 255) for table in (LUMINANCE, colour))
    red, green, blue = np.moveaxis(image.astype(float), 2, 0)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - y) / 1.772, (red - y) / 1.402
    y = _compress(y - 128, fine) + 128
    height, width = y.shape
    halved = [plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for plane in (cb, cr)]
    cb, cr = (np.kron(_compress(plane, coarse), np.ones((2, 2))) for plane in halved)
    red, blue = y + 1.402 * cr, y + 1.772 * cb
    return np.stack([red, (y - 0.299 * red - 0.114 * blue) / 0.587, blue], axis=-1)
