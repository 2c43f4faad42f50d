"""Oracle for the conformal room: every definition written down as it stands in the papers, in loops.

Nothing here is quick, nothing works in logarithms, nothing is shared with the library. The statements are in
`conformal.md`, beside this file.
"""

import itertools
import math
from fractions import Fraction

import numpy as np


def lac_score(row, label):
    """Nonconformity 1 - p(label)."""
    return 1 - row[label]


def aps_score(row, label, u=1.0):
    """Probability of the labels ranked above, and u of the label's rank; equal probabilities share one rank."""
    above = own = 0.0
    for p in row:
        if p > row[label]:
            above += p
        elif p == row[label]:
            own += p
    return above + u * own


def rank_of(row, label):
    """One more than the number of labels that are more probable."""
    return 1 + sum(p > row[label] for p in row)


def raps_score(row, label, u=1.0, penalty=0.1, k_reg=2):
    """APS, and a penalty on each rank beyond k_reg."""
    return aps_score(row, label, u) + penalty * max(0, rank_of(row, label) - k_reg)


def saps_score(row, label, u=1.0, weight=0.2):
    """Of the first label u of its probability; of others the first one's probability and a weight for each rank."""
    rank = rank_of(row, label)
    return u * max(row) if rank == 1 else max(row) + (rank - 2 + u) * weight


def margin_score(row, label):
    """Largest probability of another label, minus the label's own."""
    return max(p for k, p in enumerate(row) if k != label) - row[label]


def topk_score(row, label):
    return rank_of(row, label)


def rank_score(row, label):
    """Rank first; within a rank 1 - p, which is less than 1."""
    return rank_of(row, label) + (1 - row[label]) / 2


def pac_rank(n, level, delta):
    """Least k for which Beta(k, n + 1 - k), the law of the coverage, is below the level with probability at most delta.

    P(Beta(k, n + 1 - k) >= level) is the probability that fewer than k of n uniform numbers are below the level. Level
    and delta are Fractions; all is exact.
    """
    below = Fraction(0)
    for k in range(1, n + 1):
        below += math.comb(n, k - 1) * level ** (k - 1) * (1 - level) ** (n - k + 1)
        if below >= 1 - delta:
            return k
    return n + 1


def rank_needed(n, level):
    """Least k with k / (n + 1) >= level; level is a Fraction."""
    k = 1
    while Fraction(k, n + 1) < level:
        k += 1
    return k


def threshold(scores, level):
    """The k-th smallest nonconformity score, infinite if k > n."""
    k = rank_needed(len(scores), level)
    return sorted(scores)[k - 1] if k <= len(scores) else math.inf


def prediction_sets(
    calibration, labels, test, level, score, conditions=None, test_conditions=None, u=None, test_u=None
):
    """Bool (n, n_classes). A condition is a function of case and label: `conditions[i]` of a calibration case,
    `test_conditions[i][label]` of a test case, were `label` its class."""
    sets = np.zeros((len(test), len(test[0])), dtype=bool)
    for i, row in enumerate(test):
        for label in range(len(row)):
            scores = []
            for j, case in enumerate(calibration):
                if conditions is None or conditions[j] == test_conditions[i][label]:
                    scores.append(score(case, labels[j]) if u is None else score(case, labels[j], u[j]))
            new = score(row, label) if test_u is None else score(row, label, test_u[i])
            sets[i, label] = new <= threshold(scores, level)
    return sets


def p_value(scores, new):
    """Share of the n + 1 scores, the new one among them, that are at least as large as the new one."""
    return (1 + sum(score >= new for score in scores)) / (len(scores) + 1)


def covered_distribution(n, m, k):
    """P(j of m test cases are covered by the k-th smallest of n calibration scores), j = 0..m, by trying every order.

    Without ties all choices of the m places of the test cases among n + m places are equally likely.
    """
    counts = [0] * (m + 1)
    for test_places in itertools.combinations(range(n + m), m):
        calibration_places = [place for place in range(n + m) if place not in test_places]
        limit = calibration_places[k - 1] if k <= n else n + m
        counts[sum(place < limit for place in test_places)] += 1
    return [Fraction(count, sum(counts)) for count in counts]


def convolution(*laws):
    """Law of the sum of independent counts."""
    total = [Fraction(1)]
    for law in laws:
        total = [
            sum(total[i] * law[j - i] for i in range(len(total)) if 0 <= j - i < len(law))
            for j in range(len(total) + len(law) - 1)
        ]
    return total


def central_band(law, probability):
    """Least and largest count that leave at most (1 - probability) / 2 outside on their side."""
    tail = (1 - probability) / 2
    low = next(j for j in range(len(law)) if sum(law[: j + 1]) >= tail)
    high = next(j for j in range(len(law)) if sum(law[: j + 1]) >= 1 - tail)
    return low, high


def expected_calibration_error(proba, y, n_bins):
    """Mean over cases of |accuracy - confidence| of their bin, bins of equal width and closed above."""
    total = 0.0
    for b in range(n_bins):
        gap = 0.0
        for row, label in zip(proba, y):
            confidence = max(row)
            if b / n_bins < confidence <= (b + 1) / n_bins:
                gap += (list(row).index(confidence) == label) - confidence
        total += abs(gap)
    return total / len(y)


def area_under_risk_coverage(confidence, errors):
    """Mean selective risk over all shares accepted, averaged over every order of cases of equal confidence."""
    areas = []
    for order in itertools.permutations(range(len(errors))):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            risks = [sum(errors[i] for i in order[:m]) / m for m in range(1, len(order) + 1)]
            areas.append(sum(risks) / len(risks))
    return sum(areas) / len(areas)
