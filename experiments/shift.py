"""Claim: where malignant lesions are four times as frequent as in calibration, marginal sets leave their band, and come
back into it when the prevalences are known or estimated; class-conditional sets never left.

HAM10000 embeddings (frozen EfficientNet-Lite0, `LaplaceHead`), split by lesion, one image of each lesion in
calibration and test; the test is resampled, class by class, to the target's prevalences, `--splits` times. Then
another hospital and camera: PH2 (dermoscopy) and PAD-UFES-20 (photographs by phone), as they are and with few local
cases.

    python -m experiments.shift --root DATA --cache .cache
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cbdc import ConformalClassifier, LesionDataset, load_dataset
from cbdc import metrics as m
from cbdc.conformal import (
    CovariateShiftConformalClassifier,
    LabelShiftConformalClassifier,
    SyntheticPoweredConformalClassifier,
)
from cbdc.errors import CalibrationSizeWarning
from experiments.embedded import Embedded, ham10000
from experiments.record import write_results

LEVEL, TIMES = 0.9, 4.0
FEW = (20, 40, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000, ph2 and pad_ufes_20")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/shift.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_shift.png"))
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="made lesions, five splits; under a minute")
    arguments = parser.parse_args()
    others: list[LesionDataset] = []
    if arguments.quick:
        arguments.root, arguments.splits = None, 5
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:
        others = [load_dataset("ph2", arguments.root / "ph2").relabel("ham10000")]
        others.append(mapped(load_dataset("pad_ufes_20", arguments.root / "pad_ufes_20")))
    lesions, embedder = ham10000(arguments.root, arguments.cache)
    train, rest = lesions.data.split(sizes=(0.5, 0.5), random_state=0)
    head = lesions.head(train, 0)
    rows: dict[str, list] = {}
    for seed in range(arguments.splits):
        halves = rest.split(sizes=(0.5, 0.5), random_state=seed)
        parts = [(head.predict_proba(E), y) for E, y in (lesions.one_per_unit(half, seed) for half in halves)]
        for name, found in label_shift(parts, lesions.malignant, seed).items():
            rows.setdefault(name, []).append(found)
    results: dict[str, Any] = {"label_shift": {k: averaged(v) for k, v in rows.items()}, "sites": {}}
    source = lesions.one_per_unit(rest, 0)
    for other in others:
        embedded = Embedded(other, embedder, like=lesions)
        rows = {}
        for seed in range(arguments.splits):
            X, y = embedded.one_per_unit(other, seed)
            for name, found in site(head, source, X, y, seed).items():
                rows.setdefault(name, []).append(found)
        results["sites"][other.name] = {k: averaged(v) for k, v in rows.items()}
    command = "python -m experiments.shift" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[lesions.data, *others])
    draw(results, arguments.figure)
    print("\n".join(tables(results).values()))


def mapped(other: LesionDataset) -> LesionDataset:
    """In the words of HAM10000; squamous cell carcinoma goes with actinic keratoses, as akiec holds Bowen's disease."""
    words = {"ACK": "akiec", "SCC": "akiec", "BCC": "bcc", "SEK": "bkl", "MEL": "mel", "NEV": "nv"}
    labels = {str(label): words[str(label).upper()] for label in np.unique(other.labels)}
    return other.relabel(labels)


def label_shift(parts: list, malignant: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    (P, y), (Q, z) = parts
    rng = np.random.default_rng(seed)
    shares = np.bincount(z, minlength=len(malignant)) / len(z)
    target = shares * np.where(malignant, min(TIMES, 0.8 / shares[malignant].sum()), 1.0)  # not all of them
    target[~malignant] *= (1 - target[malignant].sum()) / target[~malignant].sum()
    picks = [
        rng.choice(np.flatnonzero(z == k), round(len(z) * float(target[k]))) for k in range(len(target)) if shares[k]
    ]
    order = rng.permutation(np.concatenate(picks))
    unlabelled, test = order[: len(order) // 3], order[len(order) // 3 :]
    quiet = warnings.catch_warnings()
    with quiet:
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        naive = ConformalClassifier(confidence_level=LEVEL).conformalize(P, y)
        by_class = ConformalClassifier(confidence_level=LEVEL, condition_on="class").conformalize(P, y)
        clf = {
            "marginal": naive,
            "prevalences known": LabelShiftConformalClassifier(confidence_level=LEVEL).conformalize(P, y),
            "prevalences estimated": LabelShiftConformalClassifier(confidence_level=LEVEL).conformalize(P, y),
            "class-conditional": by_class,
        }
        clf["prevalences known"].adapt(prevalence=target / target.sum())
        clf["prevalences estimated"].adapt(Q[unlabelled])
        n = int(clf["prevalences known"].effective_n_)
        low, high = m.coverage_band(n, len(test), LEVEL, probability=0.95)
        found = {}
        for name, one in clf.items():
            found[name] = figures(one.predict_set(Q[test]), z[test], low, high)
    return found


def site(head: Any, source: tuple, X: np.ndarray, y: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Sets for another site's cases, of which a few are labelled."""
    order = np.random.default_rng(seed).permutation(len(y))
    test = order[100:]
    E, z = source
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        naive = ConformalClassifier(head, prefit=True, confidence_level=LEVEL).conformalize(E, z)
        found["as calibrated on HAM10000"] = figures(naive.predict_set(X[test]), y[test])
        if seed == 0:  # the weights take a fit in 1,280 dimensions, and tell the same every time
            weighted = CovariateShiftConformalClassifier(head, prefit=True, confidence_level=LEVEL)
            weighted.conformalize(E, z, target=X[order[:100]])
            found["weighted for the site"] = figures(weighted.predict_set(X[test]), y[test]) | {
                "domain_auroc": weighted.domain_auroc_,
                "outside": weighted.outside_,
            }
        for n in FEW:
            few = order[:n]
            local = ConformalClassifier(head, prefit=True, confidence_level=LEVEL).conformalize(X[few], y[few])
            low, high = m.coverage_band(n, len(test), LEVEL, probability=0.95)
            found[f"{n} local cases"] = figures(local.predict_set(X[test]), y[test], low, high)
            both = SyntheticPoweredConformalClassifier(head, prefit=True, confidence_level=LEVEL)
            both.conformalize(X[few], y[few], source=source)
            found[f"{n} local cases and HAM10000"] = figures(both.predict_set(X[test]), y[test]) | {
                "least": both.bounds()[0]
            }
    return found


def figures(sets: np.ndarray, y: np.ndarray, low: float = np.nan, high: float = np.nan) -> dict[str, float]:
    covered = m.coverage(sets, y)
    found = {"coverage": covered, "size": float(sets.sum(axis=1).mean())}
    return found if np.isnan(low) else found | {"low": low, "high": high, "inside": float(low <= covered <= high)}


def averaged(rows: list[dict[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {key: float(np.mean([r[key] for r in rows])) for key in rows[0]}
    found["spread"] = np.quantile([r["coverage"] for r in rows], [0.05, 0.95]).tolist()
    return found | {"splits": len(rows)}


def tables(results: dict[str, Any]) -> dict[str, str]:
    lines = [
        "| malignant four times as frequent | coverage (5-95% of splits) | inside the 95% band | labels in a set |"
    ]
    lines.append("|---" * 4 + "|")
    for name, e in results["label_shift"].items():
        inside = f"{round(e['inside'] * e['splits'])} of {e['splits']}"
        lines.append(
            f"| {name} | {e['coverage']:.3f} ({e['spread'][0]:.3f}-{e['spread'][1]:.3f}) | {inside} | {e['size']:.2f} |"
        )
    lines += ["", "| site | calibrated | coverage (5-95% of splits) | labels in a set | |", "|---" * 5 + "|"]
    for place, entries in results["sites"].items():
        for name, e in entries.items():
            remark = ""
            if "domain_auroc" in e:
                remark = (
                    f"told apart with AUROC {e['domain_auroc']:.3f}, {100 * e['outside']:.0f}% beyond all calibration"
                )
            if "least" in e:
                remark = f"at least {e['least']:.3f} whatever HAM10000 is"
            if "inside" in e:
                remark = f"inside the 95% band in {round(e['inside'] * e['splits'])} of {e['splits']}"
            spread = f"{e['spread'][0]:.3f}-{e['spread'][1]:.3f}"
            lines.append(f"| {place} | {name} | {e['coverage']:.3f} ({spread}) | {e['size']:.2f} | {remark} |")
    return {"docs/conformal/shift.md": "\n".join(lines)}


def draw(results: dict[str, Any], path: Path) -> None:
    panels = {"malignant four times as frequent": results["label_shift"], **results["sites"]}
    fig, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), layout="constrained", squeeze=False)
    for ax, (title, entries) in zip(axes[0], panels.items()):
        for i, (_, e) in enumerate(entries.items()):
            if "low" in e:
                ax.fill_betweenx([i - 0.35, i + 0.35], e["low"], e["high"], color="0.88")
            error = [[e["coverage"] - e["spread"][0]], [e["spread"][1] - e["coverage"]]]
            ax.errorbar(e["coverage"], i, xerr=np.abs(error), fmt="o", capsize=3)
        ax.axvline(LEVEL, color="k", ls="--", lw=0.8)
        ax.set(yticks=range(len(entries)), yticklabels=list(entries), xlabel="coverage, 5-95% of splits", title=title)
        ax.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
