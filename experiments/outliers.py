"""Claim: the rate of false alarms of the outlier detector is what was asked for, and images of another kind are found.

HAM10000 embeddings (frozen EfficientNet-Lite0), split by lesion: learned from, calibrated on and tested, one image of
each lesion. Of another kind: PH2 (dermoscopy too), PAD-UFES-20 (photographs by phone), and made pictures that show no
lesion.

    python -m experiments.outliers --root DATA --cache .cache
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from cbdc import load_dataset
from cbdc import metrics as m
from cbdc.conformal import ConformalOutlierDetector
from experiments.embedded import ham10000
from experiments.record import write_results

ALPHA, FDR = 0.05, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000, ph2 and pad_ufes_20")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/outliers.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_outliers.png"))
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="made lesions, two splits; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.root, arguments.splits = None, 2
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    lesions, embedder = ham10000(arguments.root, arguments.cache)
    others = {"made pictures": embedder.transform(pictures(100))}
    data = [lesions.data]
    for name in () if arguments.quick else ("ph2", "pad_ufes_20"):
        data.append(load_dataset(name, arguments.root / name))
        others[name] = embedder.transform(data[-1].images)
    rows: dict[str, list[dict[str, float]]] = {}
    shown: dict[str, np.ndarray] = {}
    for seed in range(arguments.splits):
        parts = lesions.data.split(sizes=(0.4, 0.3, 0.3), random_state=seed)
        rng = np.random.default_rng(seed)
        learn, calibrate, test = (lesions.one_per_unit(part, seed)[0] for part in parts)
        for scorer in ("knn", "mahalanobis"):
            detector = ConformalOutlierDetector(scorer, alpha=ALPHA).fit(learn).conformalize(calibrate)
            inliers = detector.p_values(test)
            low, high = m.coverage_band(len(calibrate), len(test), 1 - ALPHA, probability=0.95)
            alarms = float((inliers <= ALPHA).mean())
            rows.setdefault(f"{scorer}: HAM10000 test", []).append(
                {"alarms": alarms, "low": 1 - high, "high": 1 - low, "inside": float(low <= 1 - alarms <= high)}
            )
            for name, E in others.items():
                p = detector.p_values(E)
                n = min(200, len(test))
                batch = [test[rng.permutation(len(test))[:n]], E[rng.permutation(len(E))[:50]]]  # they come by class
                every = detector.discoveries(np.vstack(batch), fdr=FDR)
                scores = [detector._score(test), detector._score(E)]
                truth = np.repeat([0, 1], [len(test), len(E)])
                rows.setdefault(f"{scorer}: {name}", []).append(
                    {
                        "alarms": float((p <= ALPHA).mean()),
                        "auroc": float(roc_auc_score(truth, -np.concatenate(scores))),
                        "found": float(every[n:].mean()),
                        "false": float(every[:n].sum() / max(every.sum(), 1)),
                    }
                )
                if seed == 0:
                    shown[f"{scorer}: {name}"] = p
            if seed == 0:
                shown[f"{scorer}: HAM10000 test"] = inliers
    results = {"summary": {name: averaged(found) for name, found in rows.items()}}
    command = "python -m experiments.outliers" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=data)
    draw(shown, arguments.figure)
    print("\n".join(tables(results).values()))


def pictures(n: int) -> np.ndarray:
    """Noise, stripes, gradients and blocks, uint8 (n, 224, 224, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:224, 0:224]
    found = []
    for i in range(n):
        colours = rng.integers(0, 256, (2, 3))
        share = [
            rng.random((224, 224)),
            np.sin((x * rng.random() + y * rng.random()) * 0.3) > 0,
            (x + y) / 446,
            rng.integers(0, 2, (8, 8)).repeat(28, axis=0).repeat(28, axis=1),
        ][i % 4]
        found.append(colours[0] + (colours[1] - colours[0]) * share[..., None])
    return np.array(found).astype(np.uint8)


def averaged(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the splits, and the standard error of the share of false discoveries."""
    found = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} | {"splits": len(rows)}
    if "false" in found:
        found["error"] = float(np.std([row["false"] for row in rows], ddof=1) / np.sqrt(len(rows)))
    return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    head = "| scorer | images | flagged at 0.05 | AUROC | found among 200 lesions and 50, FDR 0.1 | false discoveries |"
    lines = [head, "|---" * 6 + "|"]
    for key, e in results["summary"].items():
        scorer, name = key.split(": ")
        if "low" in e:
            remark = (
                f"95% band {e['low']:.3f}-{e['high']:.3f}, inside {round(e['inside'] * e['splits'])} of {e['splits']}"
            )
            lines.append(f"| {scorer} | {name} (false alarms) | {e['alarms']:.3f} ({remark}) | | | |")
        else:
            lines.append(
                f"| {scorer} | {name} | {e['alarms']:.2f} | {e['auroc']:.2f} | {e['found']:.2f} | {e['false']:.3f} |"
            )
    return {"docs/conformal/outliers.md": "\n".join(lines)}


def draw(shown: dict[str, np.ndarray], path: Path) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
    for ax, scorer in zip(axes, ("knn", "mahalanobis")):
        for key, p in shown.items():
            if key.startswith(scorer):
                ax.plot(np.sort(p), np.arange(1, len(p) + 1) / len(p), label=key.split(": ")[1])
        ax.plot([0, 1], [0, 1], "k:", lw=1, label="uniform: what is promised of inliers")
        ax.axvline(ALPHA, color="0.5", ls="--", lw=0.8)
        ax.set(title=scorer, xlabel="conformal p-value", ylabel="share of images up to it")
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
