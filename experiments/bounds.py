"""Claim: PAC-Bayes bounds of a linear head hold, and are not vacuous with a prior learned from half of the data; a test
set of the same size does better.

Simulated: seven Gaussian classes in `--features` dimensions, of which the least error of any classifier is about .1.
Half of the cases give the prior, all of them the weights, the second half the bound; Clopper-Pearson trains on the
first half and counts on the second. Then HAM10000 on frozen EfficientNet-Lite0 embeddings, split by lesion, a lesion
being the independent case, for the Laplace head.

    python -m experiments.bounds --root DATA --cache .cache
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from cbdc import LaplaceHead
from cbdc.bounds import (
    GaussianGibbsClassifier,
    RiskBound,
    catoni_bound,
    chernoff_bound,
    clopper_pearson_bound,
    empirical_bernstein_bound,
    gaussian_pac_bayes_bound,
    group_weighted_bound,
)
from cbdc.metrics import clopper_pearson
from experiments.embedded import Embedded, ham10000
from experiments.record import write_results

DELTA = 0.05
SIZES = (500, 2000, 5000, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/bounds.json"))
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--draws", type=int, default=500, help="repetitions that count violations")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few draws, made lesions")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.draws, arguments.seeds, arguments.splits = 20, 1, 1
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    simulation = Simulation(arguments.features)
    simulated = {str(n): [simulation.draw(n, seed) for seed in range(arguments.seeds)] for n in SIZES}
    failed = int(sum(simulation.draw(200, 10_000 + seed)["violated"] for seed in range(arguments.draws)))
    embedded, _ = ham10000(None if arguments.quick else arguments.root, arguments.cache)
    results = {
        "simulated": {n: _means(rows) for n, rows in simulated.items()},
        "least_error": simulation.least_error,
        "violations": {"draws": arguments.draws, "failed": failed, "delta": DELTA}
        | dict(zip(("low", "high"), map(float, clopper_pearson(failed, arguments.draws)))),
        "ham10000": _means([bounds_of(embedded, seed) for seed in range(arguments.splits)]),
    }
    command = "python -m experiments.bounds" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[embedded.data])
    for page, table in tables(results).items():
        print(f"{page}\n\n{table}\n")


class Simulation:
    """Gaussian classes of unit variance around random means, with an intercept feature."""

    def __init__(self, n_features: int = 16, n_classes: int = 7, n_fresh: int = 20_000) -> None:
        self.n_fresh = n_fresh
        means = np.random.default_rng(0).normal(size=(n_classes, n_features))
        self.means = 2.9 * means / np.linalg.norm(means, axis=1, keepdims=True)

    def cases(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, len(self.means), n)
        return np.column_stack([self.means[y] + rng.normal(size=(n, self.means.shape[1])), np.ones(n)]), y

    @functools.cached_property
    def fresh(self) -> tuple[np.ndarray, np.ndarray]:
        return self.cases(self.n_fresh, np.random.default_rng(2))

    @functools.cached_property
    def least_error(self) -> float:
        X, y = self.fresh
        scores = X[:, :-1] @ self.means.T - 0.5 * np.sum(self.means**2, axis=1)
        return float(np.mean(scores.argmax(axis=1) != y))

    def draw(self, n: int, seed: int) -> dict[str, float]:
        """Bounds of one training set of n cases, and the true risks."""
        X, y = self.cases(n, np.random.default_rng([1, seed]))
        half = n // 2
        prior, whole = weights_of(X[:half], y[:half]), weights_of(X, y)
        bound, gibbs = gaussian_pac_bayes_bound(X[half:], y[half:], whole, prior_weights=prior, delta=DELTA)
        free, free_gibbs = gaussian_pac_bayes_bound(X, y, whole, delta=DELTA)
        true, free_true = (g.errors(*self.fresh).mean() for g in (gibbs, free_gibbs))
        wrong = (X[half:] @ prior).argmax(axis=1) != y[half:]
        fresh_wrong = np.mean((self.fresh[0] @ prior).argmax(axis=1) != self.fresh[1])
        held_out = clopper_pearson_bound(wrong, delta=DELTA).value
        return {
            "data-free prior": free.value,
            "true risk, data-free": float(free_true),
            "prior of half the data": bound.value,
            "true risk, prior of half": float(true),
            "Clopper-Pearson": held_out,
            "true error, held out": float(fresh_wrong),
            "violated": float(true > bound.value or free_true > free.value),
        }


def weights_of(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Softmax regression; the last feature is 1."""
    return LogisticRegression(C=1.0, fit_intercept=False, max_iter=300).fit(X, y).coef_.T


def bounds_of(embedded: Embedded, seed: int) -> dict[str, float]:
    """Bounds of the Laplace head on one split by lesion. The scale of the features is learned from the prior's part."""
    train, _, test = embedded.data.split(random_state=seed)
    first, second = train.split(sizes=(0.5, 0.5), random_state=seed)
    prior_head, head = (embedded.head(part, seed) for part in (first, train))
    X, y = embedded.of(second)
    X_test, y_test = embedded.of(test)
    scale = float(np.sqrt(embedded.of(first)[0].var(axis=0).mean()))
    rows = [np.column_stack([E / scale, np.ones(len(E))]) for E in (X, X_test)]

    def weights(head: LaplaceHead) -> np.ndarray:
        return np.vstack([head.coef_.T * scale, head.intercept_])

    units, test_units = second.groups(), test.groups()
    bound, gibbs = gaussian_pac_bayes_bound(
        rows[0], y, weights(head), prior_weights=weights(prior_head), units=units, delta=DELTA
    )
    prior = GaussianGibbsClassifier(weights(prior_head), gibbs.scale)
    errors = gibbs.errors(rows[0], y)
    free, _ = gaussian_pac_bayes_bound(rows[0], y, weights(head), units=units, delta=DELTA)
    wrong = (head.predict_proba(X_test).argmax(axis=1) != y_test).astype(float)
    one = embedded.one_per_unit(test, seed)
    return {
        "PAC-Bayes-kl, data-free prior": free.value,
        "PAC-Bayes-kl, prior of half the data": bound.value,
        "its divergence, nats": float(bound.divergence or 0),
        "Catoni, the same Gaussians": catoni_bound(
            errors, gibbs.divergence(prior), units=units, delta=DELTA / 13
        ).value,
        "its Gibbs risk on the test part": chernoff_bound(gibbs.errors(rows[1], y_test), units=test_units).risk,
        "Clopper-Pearson, test part": clopper_pearson_bound(
            head.predict_proba(one[0]).argmax(axis=1) != one[1], delta=DELTA
        ).value,
        "Chernoff, test part": chernoff_bound(wrong, units=test_units, delta=DELTA).value,
        "empirical Bernstein, test part": empirical_bernstein_bound(wrong, units=test_units, delta=DELTA).value,
        "the head's error on the test part": chernoff_bound(wrong, units=test_units).risk,
        "error of naming the commonest class, test part": chernoff_bound(
            (y_test != np.bincount(y).argmax()).astype(float), units=test_units
        ).risk,
        "all classes alike, Chernoff, test part": even_mix(wrong, y_test, test_units).value,
        "lesions in the bound": bound.n,
        "lesions in the test part": len(np.unique(test_units)),
    }


def even_mix(wrong: np.ndarray, y: np.ndarray, units: np.ndarray) -> RiskBound:
    """Bound of the error where all classes are equally frequent, delta shared out over them."""
    classes = np.unique(y)
    bounds = {str(c): chernoff_bound(wrong[y == c], units=units[y == c], delta=DELTA / len(classes)) for c in classes}
    return group_weighted_bound(bounds, dict.fromkeys(bounds, 1 / len(bounds)))


def _means(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean, least and largest."""
    return {
        key: [float(np.mean(v)), float(min(v)), float(max(v))] for key in rows[0] for v in [[row[key] for row in rows]]
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    columns = [
        "data-free prior",
        "prior of half the data",
        "true risk, prior of half",
        "Clopper-Pearson",
        "true error, held out",
    ]
    lines = [f"| n | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for n, row in results["simulated"].items():
        lines.append(f"| {int(n):,} | " + " | ".join(_range(row[c]) for c in columns) + " |")
    found = results["violations"]
    lines += [
        "",
        f"Violated, by the one or the other prior, in {found['failed']} of {found['draws']} draws of 200 cases (exact "
        f"95% interval {found['low']:.3f}-{found['high']:.3f}; allowed {found['delta']:g} each).",
    ]
    lines += ["", "| HAM10000, Laplace head | mean (least-largest) |", "|---|---|"]
    lines += [f"| {key} | {_range(row)} |" for key, row in results["ham10000"].items()]
    return {"docs/bounds.md": "\n".join(lines)}


def _range(values: list[float]) -> str:
    if values[0] == 1:
        return "1: vacuous"
    if values[0] >= 100:
        return f"{values[0]:,.0f} ({values[1]:,.0f}-{values[2]:,.0f})"
    return "{:.3f} ({:.3f}-{:.3f})".format(*values)


if __name__ == "__main__":
    main()
