"""Oracle for the calibrators: objectives written down in loops, and isotonic regression by its max-min formula.

Imports the standard library only. The statements are in `calibration.md`, beside this file.
"""

import math
from fractions import Fraction


def softmax(logits):
    top = max(logits)
    parts = [math.exp(value - top) for value in logits]
    return [part / sum(parts) for part in parts]


def temperature_loss(log_proba, labels, weights, temperature):
    """Weighted negative log-likelihood of the scaled log-probabilities."""
    return -sum(
        w * math.log(softmax([value / temperature for value in row])[y])
        for row, y, w in zip(log_proba, labels, weights)
    )


def vector_loss(log_proba, labels, weights, slopes, offsets, penalty):
    """The same with a slope and an offset for each class, and the penalty of both."""
    loss = 0.0
    for row, y, w in zip(log_proba, labels, weights):
        loss -= w * math.log(softmax([a * value + b for a, b, value in zip(slopes, offsets, row)])[y])
    mean = sum(slopes) / len(slopes)
    return loss + penalty / 2 * (sum((a - mean) ** 2 for a in slopes) + sum(b**2 for b in offsets))


def isotonic_fit(scores, labels, at):
    """Isotonic regression of labels 0 and 1 on scores, at one of them: the largest, over what begins at or before it,
    of the least mean up to what ends at or after it. Fractions."""
    distinct = sorted(set(scores))
    place = distinct.index(at)
    return max(
        min(
            Fraction(
                sum(y for s, y in zip(scores, labels) if first <= s <= last),
                sum(first <= s <= last for s in scores),
            )
            for last in distinct[place:]
        )
        for first in distinct[: place + 1]
    )


def venn_abers(scores, labels, new):
    """The fit at a new score, labelled 0 and labelled 1."""
    return tuple(isotonic_fit([*scores, new], [*labels, label], new) for label in (0, 1))
