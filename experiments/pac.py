"""Claim: given its calibration cases a marginal threshold covers less than its level about every second time, a PAC
threshold with probability delta at most.

Two classes, the probability p uniform and the label drawn from it: the LAC score of the true label then has the
distribution function s^2, and the coverage of a threshold t is 1 - t^2. `--runs` calibrations for each number of cases.

    python -m experiments.pac
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
from experiments.record import write_results

LEVEL, DELTA = 0.9, 0.05
CASES = (50, 100, 200, 500, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/pac.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_certificates.png"))
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    arguments = parser.parse_args()
    runs = arguments.runs // 10 if arguments.quick else arguments.runs
    found = {f"{g}, {n}": coverages(g, n, runs) for n in CASES for g in ("marginal", "pac")}
    summary = {}
    for name, coverage in found.items():
        short = int((coverage < LEVEL).sum())
        low, high = m.clopper_pearson(short, runs, 0.95)
        summary[name] = {"mean": float(coverage.mean()), "short": short / runs, "low": float(low), "high": float(high)}
    results = {"summary": summary, "runs": runs}
    write_results(arguments.out, results, command="python -m experiments.pac" + " --quick" * arguments.quick)
    draw(found, arguments.figure)
    print("\n".join(tables(results).values()))


def coverages(guarantee: str, n: int, runs: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    clf = ConformalClassifier(guarantee=guarantee, delta=DELTA, confidence_level=LEVEL)
    found = np.empty(runs)
    for run in range(runs):
        p = rng.random(n)
        limit = clf.conformalize(np.stack([p, 1 - p], axis=1), (rng.random(n) > p).astype(int)).thresholds()[0, 0]
        found[run] = 1 - limit**2
    return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    lines = ["| calibration cases | threshold | mean coverage | P(coverage < 0.9), 95% interval |", "|---" * 4 + "|"]
    for name, e in results["summary"].items():
        guarantee, n = name.split(", ")
        lines.append(f"| {n} | {guarantee} | {e['mean']:.3f} | {e['short']:.3f} ({e['low']:.3f}-{e['high']:.3f}) |")
    return {"docs/conformal/certificates.md": "\n".join(lines)}


def draw(found: dict[str, np.ndarray], path: Path) -> None:
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharex=True)
    for ax, n in zip(axes, (50, 200, 2000)):
        bins = np.linspace(0.75, 1, 60)
        for guarantee, colour in (("marginal", "C3"), ("pac", "C0")):
            coverage = found[f"{guarantee}, {n}"]
            label = f"{guarantee}: {100 * (coverage < LEVEL).mean():.0f}% below 0.9"
            ax.hist(coverage, bins, histtype="step", lw=1.8, color=colour, label=label, density=True)
        ax.axvline(LEVEL, color="k", ls="--", lw=0.8)
        ax.set(title=f"{n} calibration cases", xlabel="coverage given the calibration")
        ax.legend(loc="upper left", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
