"""Oracle for cases that come in units (the images of a lesion, the lesions of a patient): loops and fractions.

Scores are nonconformity scores, as in `conformal.md`; a unit is the list of its scores. The statements are in
`patients.md`, beside this file.
"""

import itertools
import math
from fractions import Fraction


def share_up_to(scores, q):
    """Share of a unit's scores that are at most q."""
    return Fraction(sum(score <= q for score in scores), len(scores))


def hierarchical_threshold(units, level):
    """Least score q such that the units' shares of scores up to q, summed, reach (number of units + 1) * level."""
    for q in sorted(itertools.chain(*units)):
        if sum(share_up_to(scores, q) for scores in units) >= level * (len(units) + 1):
            return q
    return math.inf


def averaged_p_value(units, new):
    """Mean over every way to draw one score of each unit of the p-value of `new`."""
    p_values = [
        Fraction(1 + sum(score >= new for score in drawn), len(drawn) + 1) for drawn in itertools.product(*units)
    ]
    return sum(p_values) / len(p_values)


def leave_one_out_coverage(units, threshold):
    """Mean over the units of the share of a unit's scores that are at most `threshold` of the other units."""
    others = [units[:k] + units[k + 1 :] for k in range(len(units))]
    return sum(share_up_to(scores, threshold(rest)) for scores, rest in zip(units, others)) / len(units)


def effective_n(covered):
    """K p (1 - p) / v: p the mean and v the variance, over the K units, of the share covered; from 1 to n.

    K where nothing, or everything, is covered; n where the shares do not differ.
    """
    shares = [Fraction(sum(unit), len(unit)) for unit in covered]
    n_units, n = len(covered), sum(map(len, covered))
    p = sum(shares) / n_units
    v = sum((share - p) ** 2 for share in shares) / n_units
    if n_units < 2 or p in (0, 1):
        return Fraction(n_units)
    return Fraction(n) if v == 0 else min(max(n_units * p * (1 - p) / v, Fraction(1)), Fraction(n))
