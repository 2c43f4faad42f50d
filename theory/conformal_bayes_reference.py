"""Oracle for conformal Bayes: the posterior found again for every candidate label, on a grid, in loops.

The model is logistic regression of a label 0 or 1 on one number, with a prior given on a grid of intercepts and slopes.
Imports numpy and the standard library only. The statements are in `conformal_bayes.md`, beside this file.
"""

import math

import numpy as np


def likelihood(y, x, theta):
    """Probability of the label under one intercept and slope."""
    p = 1 / (1 + math.exp(-(theta[0] + theta[1] * x)))
    return p if y == 1 else 1 - p


def posterior(xs, ys, grid, prior):
    """Probabilities of the points of the grid, given the cases."""
    mass = np.array([p * math.prod(likelihood(y, x, t) for x, y in zip(xs, ys)) for t, p in zip(grid, prior)])
    return mass / mass.sum()


def predictive(y, x, grid, mass):
    return sum(m * likelihood(y, x, t) for t, m in zip(grid, mass))


def full_conformal_p_value(xs, ys, x, y, grid, prior, *, by_class=False):
    """Share of the n + 1 cases whose predictive probability, given all n + 1, is at most the new one's."""
    mass = posterior([*xs, x], [*ys, y], grid, prior)
    new = predictive(y, x, grid, mass)
    peers = [(a, b) for a, b in zip(xs, ys) if not by_class or b == y]
    no_better = sum(predictive(b, a, grid, mass) <= new for a, b in peers)
    return (1 + no_better) / (1 + len(peers))


def credible_set(proba, level):
    """Labels from the most probable down until their sum reaches the level."""
    found, total = set(), 0.0
    for label in sorted(range(len(proba)), key=lambda k: -proba[k]):
        if total >= level:
            break
        found.add(label)
        total += proba[label]
    return found


def generalised_pareto_shape(exceedances):
    """Zhang and Stephens' estimate from numbers above 0, before any prior on it."""
    x = sorted(exceedances)
    n = len(x)
    m = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    points, log_weights = [], []
    for j in range(1, m + 1):
        b = 1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * quartile)
        k = sum(math.log(1 - b * value) for value in x) / n
        points.append(b)
        log_weights.append(n * (math.log(-b / k) - k - 1))
    weights = [1 / sum(math.exp(other - own) for other in log_weights) for own in log_weights]
    b = sum(w * p for w, p in zip(weights, points))
    return sum(math.log(1 - b * value) for value in x) / n


def pareto_k(weights):
    """Shape of the tail of importance weights, shrunk towards 1/2 as by ten more weights."""
    ordered = sorted(weights)
    tail = int(min(len(ordered) / 5, 3 * math.sqrt(len(ordered))))
    cutoff = ordered[-tail - 1]
    k = generalised_pareto_shape([value - cutoff for value in ordered[-tail:]])
    return (tail * k + 5) / (tail + 10)
