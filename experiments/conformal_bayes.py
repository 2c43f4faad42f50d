"""Claim: conformal Bayes covers its level without a calibration split, with smaller sets than split conformal from the
same cases, while credible sets cover what their model thinks; and it says where its draws are not to be trusted. The
posterior bound of a risk by Bayesian quadrature holds over repeated calibrations as often as it says.

Made cases (200 to train on, posteriors exact or not, models right or wrong), the number of draws, then HAM10000 (frozen
EfficientNet-Lite0, `LaplaceHead`), one image of each lesion, and PAD-UFES-20 with sets from HAM10000. For the bounds,
losses of which the risk is known. What the results file holds already is not computed again.

    python -m experiments.conformal_bayes --root DATA --cache .cache
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit

from cbdc import LaplaceHead, load_dataset, make_lesions
from cbdc.conformal import (
    ConformalBayesClassifier,
    ConformalClassifier,
    quadrature_bound,
    risk_exceedance,
    risk_p_values,
)
from cbdc.errors import CalibrationSizeWarning, PosteriorWarning
from experiments.embedded import Embedded, ham10000
from experiments.exact_heads import GridHead, PlugInHead, PolyaGammaHead
from experiments.record import write_results
from experiments.shift import mapped

LEVEL, N, N_NEW = 0.9, 200, 20
DRAWS = (25, 50, 100, 200, 400, 800, 1600)
METHODS = ("conformal Bayes", "split conformal", "credible")
DELTA = 0.05
# name: draws of a loss, and its mean
LOSSES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]] = {
    "0 or 1, a tenth 1": (lambda rng, shape: (rng.random(shape) < 0.1).astype(float), 0.1),
    "0, 1/2 or 1": (lambda rng, shape: rng.choice([0, 0.5, 1], shape, p=[0.8, 0.15, 0.05]), 0.125),
    "uniform": (lambda rng, shape: rng.random(shape), 0.5),
    "Beta(1/2, 5)": (lambda rng, shape: rng.beta(0.5, 5, shape), 1 / 11),
    "0.1, seldom 1": (lambda rng, shape: np.where(rng.random(shape) < 0.02, 1, 0.1), 0.118),
}


# --- made cases


def one_feature(rng: np.random.Generator, n: int, slope: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    X = rng.standard_normal((n, 1))
    slope = 2 * rng.standard_normal() if slope is None else slope
    return X, (rng.random(n) < expit(rng.standard_normal() + slope * X[:, 0])).astype(int)


def bent(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    X = rng.standard_normal((n, 1))
    return X, (rng.random(n) < expit(3 * (X[:, 0] ** 2 - 1))).astype(int)


def linear(d: int, n_classes: int) -> Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    """Weights of variance 4 / d, for which `LaplaceHead(d / 4)` has the prior."""

    def make(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        X = rng.standard_normal((n, d))
        W = rng.standard_normal((d, n_classes)) * 2 / np.sqrt(d)
        return X, np.argmax(X @ W + rng.gumbel(size=(n, n_classes)), axis=1)

    return make


# name: how cases are made, the head, what part of the runs is affordable
MADE: dict[str, tuple[Callable, Any, int]] = {
    "exact posterior, right model": (one_feature, GridHead(), 1),
    "exact posterior, truth not linear": (bent, GridHead(), 1),
    "exact posterior, sure of a wrong slope": (lambda rng, n: one_feature(rng, n, -1.0), GridHead(3.0), 1),
    "`LaplaceHead`, 5 features, 3 classes": (linear(5, 3), LaplaceHead(5 / 4), 2),
    "`LaplaceHead`, 20 features, 3 classes": (linear(20, 3), LaplaceHead(20 / 4), 2),
    "`LaplaceHead`, 50 features, 2 classes": (linear(50, 2), LaplaceHead(50 / 4), 2),
    "exact posterior, 50 features, 2 classes": (linear(50, 2), PolyaGammaHead(50 / 8), 4),
    "`LaplaceHead`, 40 features, 3 classes, prior too weak": (linear(40, 3), LaplaceHead(0.01), 4),
    "draws all alike, 50 features, 2 classes": (linear(50, 2), PlugInHead(50 / 4), 4),
}


def made(name: str, runs: int) -> dict[str, float]:
    """Means over independent runs, with standard errors: coverage and size of each method, and the diagnostics."""
    make, head, _ = MADE[name]
    rows = [one_run(make, head, seed) for seed in range(runs)]
    found = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    errors = {f"{key}, error": float(np.std([row[key] for row in rows], ddof=1) / np.sqrt(runs)) for key in rows[0]}
    return found | errors | {"runs": runs}


def one_run(make: Callable, head: Any, seed: int) -> dict[str, float]:
    X, y = make(np.random.default_rng(seed), N + N_NEW)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)
        clf = ConformalBayesClassifier(head, confidence_level=LEVEL, random_state=seed).fit(X[:N], y[:N])
    sets = every_set(clf, head, X[:N], y[:N], X[N:])
    found = {}
    for method, chosen in sets.items():
        found[f"{method}, coverage"] = chosen[np.arange(N_NEW), y[N:]].mean()
        found[f"{method}, size"] = chosen.sum(axis=1).mean()
    fell_back, k = clf.fell_back_, clf.weight_diagnostics(X[N:])[0]
    degenerate, clf.max_k, clf.fell_back_ = np.mean(k > clf.max_k), np.inf, False
    alone = clf.predict_set(X[N:])
    return found | {
        "alone, coverage": alone[np.arange(N_NEW), y[N:]].mean(),
        "degenerate": degenerate,
        "fell back": float(fell_back),
        "smaller": found["split conformal, size"] - found["conformal Bayes, size"],
    }


def every_set(clf: ConformalBayesClassifier, head: Any, X: Any, y: Any, X_new: Any, **options: Any) -> dict[str, Any]:
    """Sets of the three methods from the same cases; split conformal trains on a random half."""
    order = np.random.default_rng(0).permutation(len(y))
    train, rest = order[: len(y) // 2], order[len(y) // 2 :]
    split = ConformalClassifier(head, confidence_level=LEVEL, **options).fit(X[train], y[train])
    known = np.isin(y[rest], split.classes_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        chosen = split.conformalize(X[rest][known], y[rest][known]).predict_set(X_new)
    whole = np.ones((len(X_new), len(clf.classes_)), dtype=bool)  # what the half does not know it cannot exclude
    whole[:, np.isin(clf.classes_, split.classes_)] = chosen
    return dict(zip(METHODS, (clf.predict_set(X_new), whole, credible(clf.predict_proba(X_new)))))


def credible(P: np.ndarray) -> np.ndarray:
    """The most probable labels up to the level."""
    order = np.argsort(-P, axis=1)
    before = np.cumsum(np.take_along_axis(P, order, axis=1), axis=1) - np.take_along_axis(P, order, axis=1)
    found = np.zeros(P.shape, dtype=bool)
    np.put_along_axis(found, order, before < LEVEL, axis=1)
    return found


def numbers_of_draws(runs: int) -> dict[str, dict[str, float]]:
    """Coverage, p-values beside those of 6,400 draws, and degenerate weights, by the number of draws."""
    found: dict[str, list[list[float]]] = {str(n): [] for n in DRAWS}
    for seed in range(runs):
        X, y = linear(20, 3)(np.random.default_rng(seed), N + N_NEW)
        head = LaplaceHead(20 / 4)
        clf = ConformalBayesClassifier(head, fallback=None, n_draws=6400, random_state=10**6 + seed)
        reference = clf.fit(X[:N], y[:N]).p_values(X[N:])
        for n in DRAWS:
            clf = ConformalBayesClassifier(head, fallback=None, n_draws=n, random_state=seed).fit(X[:N], y[:N])
            p = clf.p_values(X[N:])
            own = p[np.arange(N_NEW), y[N:]]
            k, _ = clf.weight_diagnostics(X[N:])
            found[str(n)].append(
                [
                    np.mean(own > 1 - LEVEL),
                    np.abs(p - reference).mean(),
                    np.mean(k > clf.max_k),
                    (p > 1 - LEVEL).sum() / N_NEW,
                ]
            )
    names = ("coverage", "difference", "degenerate", "size")
    return {n: dict(zip(names, np.mean(rows, axis=0).tolist())) | {"runs": runs} for n, rows in found.items()}


# --- bounds of a risk


def bounds(runs: int) -> dict[str, dict[str, float]]:
    """How often the bound by quadrature and Hoeffding and Bentkus's hold, and their means."""
    found = {}
    for name, (draw_losses, risk) in LOSSES.items():
        for n in (30, 200):
            losses = draw_losses(np.random.default_rng(0), (n, runs))
            few = losses[:, : max(runs // 50, 2)]
            found[f"{name}; {n} cases"] = {
                "holds": float(np.mean(risk_exceedance(losses, risk) > DELTA)),
                "bound": float(quadrature_bound(few, DELTA).mean()),
                "proved, holds": float(np.mean(risk_p_values(losses, risk) > DELTA)),
                "proved, bound": float(np.mean([proved_bound(column) for column in few.T])),
                "mean": float(few.mean()),
                "risk": risk,
                "runs": runs,
            }
    return found


def proved_bound(losses: np.ndarray) -> float:
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if risk_p_values(losses[:, None], middle)[0] > DELTA else (low, middle)
    return high


# --- real cases


def real(lesions: Embedded, other: tuple[Any, Any], n: int, splits: int) -> dict[str, list[dict[str, float]]]:
    """Of each split: coverage, size and smallest coverage of a class, at home and abroad."""
    found: dict[str, list[dict[str, float]]] = {}
    n_lesions = len(set(lesions.data.frame["lesion_id"]))
    for seed in range(splits):
        train, test = lesions.data.split(sizes=(n / n_lesions, 1 - n / n_lesions), random_state=seed)
        X, y = lesions.one_per_unit(train, seed)
        Q, z = lesions.one_per_unit(test, seed)
        chosen = np.random.default_rng(seed).permutation(len(Q))[:1000]
        Q, z = Q[chosen], z[chosen]
        for condition_on in (None, "class"):
            clf = ConformalBayesClassifier(LaplaceHead(), condition_on=condition_on, n_draws=300, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PosteriorWarning)
                clf.fit(X, y)
            column = np.full(len(lesions.classes), -1)  # labels are codes of all classes, of which some may be absent
            column[clf.classes_] = np.arange(len(clf.classes_))
            both = every_set(clf, LaplaceHead(), X, y, np.vstack([Q, other[0]]), condition_on=condition_on)
            for method, sets in both.items():
                if method == "credible" and condition_on:
                    continue
                where = "each class" if condition_on else "all cases"
                covered = hit(sets, column, np.concatenate([z, other[1]]))
                found.setdefault(f"{method}, {where}", []).append(
                    {
                        "coverage": covered[: len(Q)].mean(),
                        "size": sets[: len(Q)].sum(axis=1).mean(),
                        "mean of classes": float(np.mean([covered[: len(Q)][z == k].mean() for k in np.unique(z)])),
                        "coverage abroad": covered[len(Q) :].mean(),
                        "size abroad": sets[len(Q) :].sum(axis=1).mean(),
                        "held out": clf.held_out_coverage_,
                        "fell back": float(clf.fell_back_),
                    }
                )
    return found


def hit(sets: np.ndarray, column: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the set holds the label; a class that was never trained on is in none."""
    places = column[labels]
    return (places >= 0) & sets[np.arange(len(labels)), places]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000 and pad_ufes_20")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/conformal_bayes.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_bayes.png"))
    parser.add_argument("--made", type=int, nargs="*", default=list(range(len(MADE))), help="numbers of made problems")
    parser.add_argument("--runs", type=int, default=200, help="half or a quarter of it where a run is dear")
    parser.add_argument("--splits", type=int, default=2, help="half of it for 2,000 lesions")
    parser.add_argument("--quick", action="store_true", help="few runs and made lesions; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.root, arguments.runs, arguments.splits = None, 10, 1
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    command = "python -m experiments.conformal_bayes" + (" --quick" if arguments.quick else " --root DATA")
    results: dict[str, Any] = {"made": {}, "draws": {}, "bounds": {}, "real": {}}
    if arguments.out.exists() and not arguments.quick:
        results |= json.loads(arguments.out.read_text(encoding="utf-8"))
    lesions, embedder = ham10000(arguments.root, arguments.cache)
    if arguments.quick:
        other = make_lesions(100, image_size=96, random_state=1)
    else:
        other = mapped(load_dataset("pad_ufes_20", arguments.root / "pad_ufes_20"))

    def keep(part: str, found: dict[str, Any]) -> None:
        results[part] |= found
        results["made"] = {name: results["made"][name] for name in MADE if name in results["made"]}
        print(part, *found, flush=True)
        write_results(arguments.out, results, command=command, data=[lesions.data, other])

    for i, (name, (_, _, part)) in enumerate(MADE.items()):
        if i in arguments.made and name not in results["made"]:
            keep("made", {name: made(name, max(arguments.runs // part, 2))})
    if not results["bounds"]:
        keep("bounds", bounds(5 * arguments.runs))
    if not results["draws"]:
        keep("draws", numbers_of_draws(arguments.runs // 40 or 1))
    abroad = Embedded(other, embedder, like=lesions).one_per_unit(other, 0)
    sizes = {200: 1} if arguments.quick else {500: arguments.splits, 2000: arguments.splits // 2}
    for n, splits in sizes.items():
        if any(name.startswith(f"{n} lesions") for name in results["real"]):
            continue
        found = {}
        for name, rows in real(lesions, abroad, n, splits).items():
            summary = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            spread = {f"{key}, spread": float(np.std([row[key] for row in rows])) for key in rows[0]}
            found[f"{n} lesions, {name}"] = summary | spread | {"splits": splits}
        keep("real", found)
    draw(results, arguments.figure)
    print("\n".join(tables(results).values()))


# --- tables and figure


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The page and the tables on it, of the parts that were run."""
    first = "| posterior and model | conformal Bayes: coverage | labels in a set | split conformal: coverage | labels |"
    rows = []
    for name, e in results["made"].items():
        cells = [name]
        for method in METHODS:
            error = 1.96 * e[f"{method}, coverage, error"]
            cells += [f"{e[f'{method}, coverage']:.3f} ± {error:.3f}", f"{e[f'{method}, size']:.2f}"]
        cells += [
            f"{e['alone, coverage']:.3f}",
            f"{100 * e['degenerate']:.1f}%",
            f"{100 * e['fell back']:.0f}%",
            str(e["runs"]),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    parts = [_table(first + " credible: coverage | labels | without fallback | k > 0.7 | check failed | runs |", rows)]
    rows = [
        f"| {n} | {e['coverage']:.3f} | {e['size']:.2f} | {e['difference']:.4f} | {100 * e['degenerate']:.1f}% |"
        for n, e in results["draws"].items()
    ]
    parts.append(_table("| draws | coverage | labels in a set | difference of p-values | k > 0.7 |", rows))
    first = "| HAM10000 | coverage | labels in a set | mean coverage of the classes | PAD-UFES-20: coverage | labels |"
    rows = [
        f"| {name} | {e['coverage']:.3f} | {e['size']:.2f} | {e['mean of classes']:.3f} | "
        f"{e['coverage abroad']:.3f} | {e['size abroad']:.2f} |"
        for name, e in results["real"].items()
    ]
    parts.append(_table(first, rows))
    rows = [
        f"| {name} | {e['risk']:.3f} | {100 * e['holds']:.1f}% | {e['bound']:.3f} | "
        f"{100 * e['proved, holds']:.1f}% | {e['proved, bound']:.3f} |"
        for name, e in results["bounds"].items()
    ]
    parts.append(_table("| losses | risk | quadrature: holds | mean bound | proved bound: holds | mean |", rows))
    return {"docs/conformal/bayes.md": "\n\n".join(part for part in parts if part)}


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows]) if rows else ""


def draw(results: dict[str, Any], path: Path) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    names = list(results["made"])
    for i, name in enumerate(names):
        e = results["made"][name]
        for k, (method, marker) in enumerate(zip(METHODS, "osD")):
            y, label = i + 0.22 * (k - 1), method if i == 0 else None
            error = 1.96 * e[f"{method}, coverage, error"]
            axes[0].errorbar(e[f"{method}, coverage"], y, xerr=error, fmt=marker, ms=4, color=f"C{k}", label=label)
            axes[1].plot(e[f"{method}, size"], y, marker, ms=4, color=f"C{k}")
        axes[0].plot(
            e["alone, coverage"], i - 0.22, "|", ms=11, color="k", label="without fallback" if i == 0 else None
        )
    axes[0].axvline(LEVEL, color="k", ls="--", lw=0.8)
    axes[0].set(yticks=range(len(names)), yticklabels=[n.replace("`", "") for n in names], xlabel="coverage")
    axes[1].set(xlabel="labels in a set")
    axes[0].invert_yaxis()
    fig.legend(loc="outside upper center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
