"""Oracle for streams: definitions in loops, after `stream.md`. Nonconformity is high for what conforms badly."""

import math


def pid_misses(scores, start, aim, step, spread):
    """Whether each score exceeds its threshold: quantile tracking from `start`, and an integrator.

    `spread(t)` is the unit of both after t cases.
    """
    tracked, excess, found = start, 0.0, []
    for t, score in enumerate(scores):
        unit = spread(t)
        share = excess / math.sqrt(t + 1)
        push = unit / 2 * math.tan(math.pi / 2 * share) if abs(share) < 1 else math.copysign(math.inf, share)
        missed = score > tracked + push
        found.append(missed)
        excess += missed - aim
        tracked += step * spread(t + 1) * (missed - aim)
    return found


def smoothed_p_value(earlier, score, u):
    """Share of the scores so far, the new one too, that are lower, and a share u of those that are equal."""
    lower = sum(other < score for other in earlier)
    equal = 1 + sum(other == score for other in earlier)
    return (lower + u * equal) / (len(earlier) + 1)
