"""The regularised horseshoe's latent variables: where a guide begins, and from its draws to weights.

A latent vector holds, in this order, the weights in units of their scale, feature by feature, the intercepts, and the
logarithms of the features' local scales, of the global scale and of the slab's variance. Piironen, Vehtari,
arXiv:1707.01694.
"""

from typing import Any

import numpy as np

from ._whitening import Whitening

__all__ = ["horseshoe_parameters", "horseshoe_scales", "horseshoe_start", "regularised_scales"]


def regularised_scales(local: Any, global_: Any, slab: Any) -> Any:
    """Scale of each feature's weights, below that of the slab, whose variance is given; arrays or tensors."""
    variance = (global_ * local) ** 2
    return (variance * slab / (slab + variance)) ** 0.5


def horseshoe_start(d: int, J: int, global_scale: float, slab_scale: float, *, joint: bool) -> Whitening:
    """Positions whose standard normal is a guide to begin with: weights as in their prior, scales near its middle."""
    centre = np.concatenate([np.zeros(d * J + J + d), [np.log(global_scale), 2 * np.log(slab_scale)]])
    cut = 0 if joint else len(centre)
    return Whitening(centre[:, None], np.ones((cut, 1)), np.eye(len(centre) - cut))


def horseshoe_scales(latent: np.ndarray, d: int) -> np.ndarray:
    """Latent vectors (n_draws, size) -> scales of the features' weights (n_draws, d)."""
    local, global_, slab = np.exp(latent[:, -d - 2 : -2]), np.exp(latent[:, -2:-1]), np.exp(latent[:, -1:])
    return regularised_scales(local, global_, slab)


def horseshoe_parameters(latent: np.ndarray, d: int, J: int) -> np.ndarray:
    """Latent vectors (n_draws, size) -> weights of the features in contrasts, intercept last, (n_draws, d + 1, J)."""
    raw = latent[:, : d * J].reshape(-1, d, J)
    intercept = latent[:, None, d * J : d * J + J]
    return np.concatenate([raw * horseshoe_scales(latent, d)[:, :, None], intercept], axis=1)
