"""Claim: every score covers its level; they differ in the size of the sets and in whom they leave out.

HAM10000 (frozen EfficientNet-Lite0, `LaplaceHead`), split by lesion into training, tuning, calibration and test, one
image of each lesion in the last three; `--splits` parts for each of five training parts. The numbers of RAPS and SAPS
are tuned.

    python -m experiments.scores --root DATA --cache .cache
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import SCORES
from experiments.embedded import ham10000
from experiments.record import write_results

LEVEL = 0.9
KINDS = {"": True, ", not randomised": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/scores.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_scores.png"))
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="made lesions, five splits; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.root, arguments.splits = None, 5
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    lesions, _ = ham10000(arguments.root, arguments.cache)
    rows: dict[str, list[dict[str, float]]] = {}
    for fit in range(5):
        train, rest = lesions.data.split(sizes=(0.5, 0.5), random_state=fit)
        head = lesions.head(train, fit)
        for split in range(arguments.splits // 5):
            seed = 1000 * fit + split
            parts = rest.split(sizes=(0.2, 0.4, 0.4), random_state=seed)
            cases = [(head.predict_proba(E), y) for E, y in (lesions.one_per_unit(part, seed) for part in parts)]
            for name, found in figures(cases, len(lesions.classes)).items():
                rows.setdefault(name, []).append(found)
    summary = {
        name: {key: float(np.mean([row[key] for row in found])) for key in found[0]} | {"splits": len(found)}
        for name, found in rows.items()
    }
    results = {"summary": summary}
    command = "python -m experiments.scores" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[lesions.data])
    draw(summary, arguments.figure)
    print("\n".join(tables(results).values()))


def figures(cases: list, n_classes: int) -> dict[str, dict[str, float]]:
    (T, t), (P, y), (Q, z) = cases
    low, high = m.coverage_band(len(y), len(z), LEVEL, probability=0.95)
    found = {}
    for score in SCORES:
        for suffix, randomized in KINDS.items():
            if not randomized and score not in ("aps", "raps", "saps"):
                continue
            clf = ConformalClassifier(score=score, randomized=randomized, confidence_level=LEVEL)
            if score in ("raps", "saps"):
                clf.tune(T, t)
            sets = clf.conformalize(P, y).predict_set(Q)
            covered, size = sets[np.arange(len(z)), z], sets.sum(axis=1)
            found[score + suffix] = {
                "coverage": float(covered.mean()),
                "low": low,
                "high": high,
                "inside": float(low <= covered.mean() <= high),
                "size": float(size.mean()),
                "empty": float((size == 0).mean()),
                "large": float((size > n_classes // 2).mean()),
                "worst": float(min(covered[z == k].mean() for k in np.unique(z))),
            }
    return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    head = "| score | coverage | inside the 95% band | labels in a set | empty | more than half | worst class |"
    lines = [head, "|---" * 7 + "|"]
    for name, e in results["summary"].items():
        lines.append(
            f"| {name} | {e['coverage']:.3f} | {round(e['inside'] * e['splits'])} of {e['splits']} | {e['size']:.2f} | "
            f"{100 * e['empty']:.1f}% | {100 * e['large']:.1f}% | {e['worst']:.2f} |"
        )
    return {"docs/conformal/scores.md": "\n".join(lines)}


def draw(found: dict[str, Any], path: Path) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    names = list(found)
    first = found[names[0]]
    axes[0].axvspan(first["low"], first["high"], color="0.9", label="95% band of one split")
    axes[0].axvline(LEVEL, color="k", ls="--", lw=0.8)
    axes[0].plot([found[n]["coverage"] for n in names], range(len(names)), "o", label="all cases")
    axes[0].plot([found[n]["worst"] for n in names], range(len(names)), "D", color="C3", label="worst class")
    axes[0].set(yticks=range(len(names)), yticklabels=names, xlabel="coverage, mean over splits", xlim=(0, 1.02))
    fig.legend(loc="outside upper center", ncols=3, fontsize=8)
    axes[1].barh(range(len(names)), [found[n]["size"] for n in names], color="0.6")
    axes[1].set(xlabel="labels in a set, mean")
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
