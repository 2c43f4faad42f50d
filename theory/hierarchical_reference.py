"""Oracle for prediction sets on a taxonomy: every definition as it stands in `hierarchical.md`, in loops over sets.

A tree is a dict of child to parent, the root's parent None; classes are its leaves in sorted order. Nothing here is
quick, nothing is shared with the library. Probabilities are taken to be free of ties.
"""

import itertools
import math
from fractions import Fraction

import numpy as np


def leaves_of(parents):
    return sorted(node for node in parents if node not in parents.values())


def below(parents, node):
    """Leaves at or below a node."""
    found = set()
    for leaf in leaves_of(parents):
        at = leaf
        while at is not None:
            if at == node:
                found.add(leaf)
            at = parents[at]
    return frozenset(found)


def fewest_nodes(parents, chosen):
    """Size of the smallest set of nodes below which are exactly the chosen leaves, by trying every set of nodes."""
    if not chosen:
        return 0
    members = {below(parents, node) for node in parents}
    members = [group for group in members if group <= chosen]
    for size in range(1, len(chosen) + 1):
        for groups in itertools.combinations(members, size):
            if frozenset().union(*groups) == chosen:
                return size
    raise AssertionError


def family(parents, p, bound):
    """The nested sets, from the empty one to all leaves; p is a dict of leaf to probability, bound None for none."""
    everything = frozenset(leaves_of(parents))
    sets = [frozenset()]
    while sets[-1] != everything:
        inside = sets[-1]
        larger = {inside | below(parents, node) for node in parents} - {inside}
        allowed = [s for s in larger if bound is None or fewest_nodes(parents, s) <= bound]
        least = [s for s in allowed if not any(other < s for other in allowed)]
        sets.append(max(least, key=lambda s: sum(p[leaf] for leaf in s - inside) / len(s - inside)))
    return sets


def path(parents, p):
    """Sets below the nodes from the most probable leaf up to the root, each once."""
    node = max(leaves_of(parents), key=lambda leaf: p[leaf])
    sets = [frozenset(), below(parents, node)]
    while parents[node] is not None:
        node = parents[node]
        if below(parents, node) != sets[-1]:
            sets.append(below(parents, node))
    return sets


def scores(sets, p, score, u=0.0, allow_empty=False):
    """Conformity score of each leaf: a dict."""
    total = sum(p.values())

    def mass(j):
        return sum(p[leaf] for leaf in sets[j]) / total

    found = {}
    for j in range(1, len(sets)):
        first = j == 1 and not allow_empty
        if score == "aps":
            value = 1 - mass(j - 1) - (0.0 if first else u) * (mass(j) - mass(j - 1))
        elif first:
            value = 1.0
        else:  # the largest price of a class at which some set from j on is worth more than every set before it
            start = 0 if allow_empty else 1
            value = max(
                min(
                    total * (mass(k) - mass(i)) / (len(sets[k]) - len(sets[i]))
                    for i in range(start, j)
                )
                for k in range(j, len(sets))
            )  # fmt: skip
        for leaf in sets[j] - sets[j - 1]:
            found[leaf] = value
    return found


def rank_needed(n, level):
    k = 1
    while Fraction(k, n + 1) < level:
        k += 1
    return k


def threshold(calibration, level):
    """The k-th largest conformity score, minus infinity if there are fewer than k."""
    k = rank_needed(len(calibration), level)
    return sorted(calibration, reverse=True)[k - 1] if k <= len(calibration) else -math.inf


def answer(new, calibration, level):
    """Leaves that conform; `new` is the dict of scores of one case."""
    limit = threshold(calibration, level)
    return {leaf for leaf in new if new[leaf] >= limit}


def answer_by_class(new, calibration, labels, level):
    """The least member of the family that holds every leaf that conforms among its own class's cases."""
    limits = {leaf: threshold([s for s, y in zip(calibration, labels) if y == leaf], level) for leaf in new}
    conforming = [new[leaf] for leaf in new if new[leaf] >= limits[leaf]]
    return {leaf for leaf in new if conforming and new[leaf] >= min(conforming)}


def at_depth(parents, leaf, depth):
    """Ancestor of a leaf at a depth, or the leaf if it ends earlier."""
    way = [leaf]
    while parents[way[-1]] is not None:
        way.append(parents[way[-1]])
    return way[max(len(way) - 1 - depth, 0)]


def level_scores(parents, p, depth, score):
    """Scores of the leaves by their ancestors at a depth, these taken as the classes of a flat problem."""
    names = {at_depth(parents, leaf, depth) for leaf in p}
    mass = {name: sum(p[leaf] for leaf in p if at_depth(parents, leaf, depth) == name) for name in names}
    ordered = sorted(names, key=lambda name: -mass[name])
    sets = [frozenset(ordered[:j]) for j in range(len(ordered) + 1)]
    found = scores(sets, mass, score)
    return {leaf: found[at_depth(parents, leaf, depth)] for leaf in p}


def answer_by_levels(new, calibration, level, among):
    """`new` is a list of dicts of scores, one a depth; `calibration` a list of scores of the true leaf, one a depth;
    `among(leaf)` are the numbers of the calibration cases of the condition of that leaf."""
    worst = [
        max(1 + sum(other > own for other in column) for column, own in ((c, c[i]) for c in calibration))
        for i in range(len(calibration[0]))
    ]
    found = set()
    for leaf in new[0]:
        ranks = [1 + sum(other > by_leaf[leaf] for other in column) for column, by_leaf in zip(calibration, new)]
        peers = sorted(worst[i] for i in among(leaf))
        k = rank_needed(len(peers), level)
        # One rank more: the new case may push each calibration case down by one
        if k > len(peers) or max(ranks) <= peers[k - 1] + 1:
            found.add(leaf)
    return found


def as_matrix(answers, leaves):
    return np.array([[leaf in found for leaf in leaves] for found in answers])
