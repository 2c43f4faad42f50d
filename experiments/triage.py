"""Claim: the sensitivity, and the predictive values of triage, are what was asked for, or nothing is released.

HAM10000 (frozen EfficientNet-Lite0, `LaplaceHead`), split by lesion, one image of each lesion in calibration and test,
malignant being akiec, bcc and mel; `--splits` calibration and test parts for each of five training parts.

    python -m experiments.triage --root DATA --cache .cache
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cbdc import metrics as m
from cbdc.conformal import ConformalTriage, MalignancyClassifier
from experiments.embedded import ham10000
from experiments.record import write_results

RISKS = (0.05, 0.1)
TARGETS = ((0.98, 0.6), (0.98, 0.7), (0.99, 0.8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/triage.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_risk.png"))
    parser.add_argument("--splits", type=int, default=100)
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
            parts = [lesions.one_per_unit(part, seed) for part in rest.split(sizes=(0.5, 0.5), random_state=seed)]
            (E, y), (E_test, y_test) = parts
            for name, found in figures(head, lesions.malignant, E, y, E_test, y_test).items():
                rows.setdefault(name, []).append(found)
    results = {"summary": {name: averaged(found) for name, found in rows.items()}, "splits": arguments.splits}
    command = "python -m experiments.triage" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[lesions.data])
    draw(results["summary"], arguments.figure)
    print("\n".join(tables(results).values()))


def figures(head: Any, malignant: np.ndarray, E: Any, y: Any, E_test: Any, y_test: Any) -> dict[str, dict[str, float]]:
    names = np.flatnonzero(malignant).tolist()
    sick = malignant[y_test]
    found = {}
    for method in ("crc", "rcps"):
        for risk in RISKS:
            clf = MalignancyClassifier(head, malignant=names, method=method, risk_level=risk, prefit=True)
            flagged = clf.conformalize(E, y).flag(E_test)
            n = clf.n_malignant_
            low, high = m.coverage_band(n, int(sick.sum()), 1 - risk, probability=0.95)
            found[f"{method}, sensitivity {1 - risk:g}"] = {
                "sensitivity": float(flagged[sick].mean()),
                "specificity": float((~flagged[~sick]).mean()),
                "short": float(flagged[sick].mean() < 1 - risk),
                "inside": float(low <= flagged[sick].mean() <= high),
                "low": low,
                "high": high,
            }
    for npv, ppv in TARGETS:
        clf = ConformalTriage(head, malignant=names, npv=npv, ppv=ppv, prefit=True).conformalize(E, y)
        piles = clf.predict_triage(E_test)
        shares = {pile: float(np.mean(piles == pile)) for pile in ("release", "defer", "urgent")}
        released, urgent = piles == "release", piles == "urgent"
        found[f"triage, NPV {npv:g}, PPV {ppv:g}"] = shares | {
            "npv": float((~sick[released]).mean()) if released.any() else np.nan,
            "ppv": float(sick[urgent].mean()) if urgent.any() else np.nan,
            "short": float(
                (released.any() and (~sick[released]).mean() < npv) or (urgent.any() and sick[urgent].mean() < ppv)
            ),
            "missed": float(sick[released].sum() / max(sick.sum(), 1)),
        }
    return found


def averaged(rows: list[dict[str, float]]) -> dict[str, float | None]:
    """Means over the splits; predictive values over those where the pile holds a case, None if none does."""
    found: dict[str, float | None] = {"splits": len(rows)}
    for key in rows[0]:
        known = [row[key] for row in rows if not np.isnan(row[key])]
        found[key] = float(np.mean(known)) if known else None
    return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    lines = ["| rule-out | sensitivity | 95% band | splits inside | specificity |", "|---" * 5 + "|"]
    piles = [
        "| triage | released | deferred | urgent | NPV | PPV | malignant released | splits below a target |",
        "|---" * 8 + "|",
    ]
    for name, e in results["summary"].items():
        if "sensitivity" in e:
            inside = f"{round(e['inside'] * e['splits'])} of {e['splits']}" if name.startswith("crc") else "-"
            band = f"{e['low']:.3f}-{e['high']:.3f}" if name.startswith("crc") else "-"
            lines.append(f"| {name} | {e['sensitivity']:.3f} | {band} | {inside} | {e['specificity']:.3f} |")
        else:
            piles.append(
                f"| {name.removeprefix('triage, ')} | {e['release']:.2f} | {e['defer']:.2f} | {e['urgent']:.2f} | "
                f"{shown(e['npv'])} | {shown(e['ppv'])} | {e['missed']:.3f} | {e['short']:.2f} |"
            )
    return {"docs/conformal/risk.md": "\n".join([*lines, "", *piles])}


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def draw(found: dict[str, Any], path: Path) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    rules = {name: e for name, e in found.items() if "sensitivity" in e}
    for i, (name, e) in enumerate(rules.items()):
        if name.startswith("crc"):
            axes[0].fill_betweenx([i - 0.35, i + 0.35], e["low"], e["high"], color="0.88")
        axes[0].plot(e["sensitivity"], i, "o", color="C3", label="sensitivity" if i == 0 else None)
        axes[0].plot(e["specificity"], i, "s", color="C0", label="specificity" if i == 0 else None)
    axes[0].set(yticks=range(len(rules)), yticklabels=list(rules), xlim=(0, 1), title="rule-out, mean over splits")
    axes[0].set_ylim(len(rules) - 0.5, -0.5)
    axes[0].legend(loc="lower left")
    triage = {name: e for name, e in found.items() if "release" in e}
    left = np.zeros(len(triage))
    for pile, colour in (("release", "C2"), ("defer", "0.8"), ("urgent", "C3")):
        shares = np.array([e[pile] for e in triage.values()])
        axes[1].barh(range(len(triage)), shares, left=left, color=colour, label=pile)
        left += shares
    axes[1].set(
        yticks=range(len(triage)), yticklabels=[n.removeprefix("triage, ") for n in triage], title="triage: piles"
    )
    axes[1].invert_yaxis()
    axes[1].legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
