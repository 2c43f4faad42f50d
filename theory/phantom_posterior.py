"""Oracle for made lesions: the posterior and the Bayes accuracy, by writing the whole joint distribution down.

Statement. Let the class Y have prior pi, let concepts C_1..C_J be independent given Y with tables T_j[y, c], and let
the image be a function of (C, N) with N independent of (Y, C). Then
P(Y = y | C = c, image) = P(Y = y | C = c) = pi[y] prod_j T_j[y, c_j] / sum_y' (the same).

Proof. Y - C - image is a Markov chain: P(y, c, n) = pi[y] prod_j T_j[y, c_j] P(n), so n cancels in the ratio.

Corollary (ambiguity). T_a = (1 - a) T + a m 1' (m: any law over the levels that is the same for all y) obeys
T_b = (1 - e) T_a + e m 1' with 1 - e = (1 - b) / (1 - a) for a <= b < 1: concepts at b are those at a after a channel
that does not look at Y. Hence the Bayes accuracy falls, weakly, in a, for any prior (Blackwell 1951); at a = 1 it is
max(pi).

Numpy only; nothing here is quick, and nothing works in logarithms.
"""

import itertools

import numpy as np


def joint_distribution(prior, tables):
    """P(y, c_1, ..., c_J) as an array of J + 1 axes, filled cell by cell."""
    joint = np.zeros((len(prior), *(table.shape[1] for table in tables)))
    for cell in itertools.product(*map(range, joint.shape)):
        probability = prior[cell[0]]
        for table, level in zip(tables, cell[1:]):
            probability = probability * table[cell[0], level]
        joint[cell] = probability
    return joint


def posterior(joint, levels):
    """P(y | c = levels) from the joint; None sums a concept out."""
    cut = joint
    for axis in range(len(levels), 0, -1):
        level = levels[axis - 1]
        cut = cut.sum(axis=axis) if level is None else cut.take(level, axis=axis)
    return cut / cut.sum()


def bayes_accuracy(prior, tables):
    """sum over c of max over y of P(y, c): the accuracy of the best rule that sees every concept."""
    joint = np.asarray(prior, dtype=float)[:, None]
    split = max(1, len(tables) // 2)
    for table in tables[:split]:
        joint = (joint[:, :, None] * table[:, None, :]).reshape(len(prior), -1)
    rest = np.ones((len(prior), 1))
    for table in tables[split:]:
        rest = (rest[:, :, None] * table[:, None, :]).reshape(len(prior), -1)
    total = 0.0
    for column in joint.T:
        total += (column[:, None] * rest).max(axis=0).sum()
    return total


def posterior_of_levels(prior, tables, levels):
    """The same for many concepts, without the joint: plain products, one class after the other."""
    weights = []
    for y in range(len(prior)):
        weight = prior[y]
        for table, level in zip(tables, levels):
            weight = weight * table[y][level]
        weights.append(weight)
    return np.array(weights) / sum(weights)
