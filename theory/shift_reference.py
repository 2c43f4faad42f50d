"""Oracle for conformal prediction under shift: definitions in loops, after `shift.md`."""

import itertools
import math


def weighted_set(scores, weights, new_scores, new_weights, level):
    """Bool for each label: its nonconformity is at most the level-quantile of the weighted calibration scores, the new
    case standing at infinity with its own weight. `new_weights` has a weight for each label."""
    found = []
    for score, own in zip(new_scores, new_weights):
        total = sum(weights) + own
        ordered = sorted(zip(scores, weights))
        quantile, mass = math.inf, 0.0
        for s, w in ordered:
            mass += w
            if mass / total >= level - 1e-12:
                quantile = s
                break
        found.append(score <= quantile)
    return found


def sorted_by_weight(scores, weights, own, level):
    """The mistake of a known library: weights are accumulated in their own order, not in that of the scores."""
    order = sorted(range(len(scores)), key=lambda i: weights[i])
    total, mass = sum(weights) + own, 0.0
    for place, i in enumerate(order):
        mass += weights[i]
        if mass / total >= level:
            return sorted(scores)[place]
    return math.inf


def place_law(n, n_source, r):
    """Law of the number of `n_source` scores below the r-th of n + 1 others, all exchangeable, by every order."""
    counts = [0] * (n_source + 1)
    total = n + 1 + n_source
    for places in itertools.combinations(range(total), n + 1):
        counts[places[r - 1] - (r - 1)] += 1
    return [c / sum(counts) for c in counts]


def guard_ranks(n, n_source, level, beta):
    """Number of the n + 1 local ranks whose central window of places ends, and begins, up to the source's threshold.

    `level` is a Fraction. Places count from 1, and windows come from `place_law`.
    """
    threshold = math.ceil((n_source + 1) * level)
    low = high = 0
    for r in range(1, n + 2):
        through = list(itertools.accumulate(place_law(n, n_source, r)))
        begin = next(place for place, mass in enumerate(through, start=1) if mass >= beta / 2)
        end = next(place for place, mass in enumerate(through, start=1) if mass >= 1 - beta / 2)
        low += end <= threshold
        high += begin <= threshold
    return low, high
