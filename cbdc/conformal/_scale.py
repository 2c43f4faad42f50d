"""A fixed scale for scores whose differences count, as they do in a regression, or for steps of a threshold.

Scores are made for their order alone. Here they, or the logarithms of those that are probabilities, go through
sign(v) log(1 + |v|), clipped at a million: near 0 much as they are, far from it by their order of magnitude. Whatever
the classifier's sharpness, scores that differ stay apart, and none is infinite. The map rises, and depends on no case,
so that scores on this scale are scores.
"""

import numpy as np

__all__ = ["from_scale", "to_scale"]

_LARGEST = 1e6
_PROBABILITIES = ("lac", "aps")  # of the scores, those that are probabilities, where the values are


def to_scale(scores: np.ndarray, name: str, log: bool) -> np.ndarray:
    """Scores of this name, of probabilities or their logarithms, on the scale: float64 within -13.9 and 13.9."""
    scores = np.asarray(scores, dtype=float)
    if name in _PROBABILITIES and not log:
        with np.errstate(divide="ignore"):
            scores = np.log(scores)
    scores = np.clip(scores, -_LARGEST, _LARGEST)
    return np.copysign(np.log1p(np.abs(scores)), scores)


def from_scale(scaled: float, name: str, log: bool) -> float:
    """The score at this place of the scale; infinities are kept."""
    if not np.isfinite(scaled):
        return float(scaled)
    score = np.copysign(np.expm1(min(abs(scaled), 500.0)), scaled)
    return float(np.exp(min(score, 500.0)) if name in _PROBABILITIES and not log else score)
