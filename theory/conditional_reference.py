"""Oracle for coverage in overlapping groups: the definition, by primal linear programmes for each label tried."""

import numpy as np
from scipy.optimize import linprog


def least_loss(scores, member, level):
    """Least pinball loss of a quantile regression of the scores on membership."""
    n, p = member.shape
    cost = np.concatenate([np.zeros(p), np.full(n, level), np.full(n, 1 - level)])
    equal = np.hstack([member, np.eye(n), -np.eye(n)])  # score = fit + up - down
    bounds = [(None, None)] * p + [(0, None)] * (2 * n)
    return linprog(cost, A_eq=equal, b_eq=scores, bounds=bounds, method="highs").fun


def in_set(scores, member, new_score, new_member, level, step=1e-4):
    """Whether the loss rises, with the new case's score, by less than the level for each unit.

    It rises by the level where the score is above its fit, falls by 1 - level where it is below, and lies between
    where the fit goes through it; this slope is the dual variable of the new case.
    """
    rows = np.vstack([member, new_member])
    losses = [least_loss(np.append(scores, new_score + shift), rows, level) for shift in (0, step)]
    return (losses[1] - losses[0]) / step < level - 1e-6
