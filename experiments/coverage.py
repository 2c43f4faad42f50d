"""Claim: every guarantee holds among whom it speaks of, and each has its price in the size of the sets.

HAM10000 embeddings (frozen EfficientNet-Lite0), split by lesion into training, tuning, calibration and test; one image
of each lesion in the last three. Coverage, that of the worst class and of melanoma, and the size of the sets at four
levels, for every condition, over `--splits` calibration and test parts: for each training part, of which there are
`--fits`, the rest is split anew. Splits of one data set overlap, so they are not so many independent trials.

    python -m experiments.coverage --root DATA --cache .cache
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cbdc import ConformalClassifier, LesionDataset
from cbdc import metrics as m
from cbdc.errors import CalibrationSizeWarning
from experiments.embedded import ham10000
from experiments.record import write_results

LEVELS = (0.8, 0.9, 0.95, 0.99)
CONDITIONS: dict[str, dict[str, Any]] = {
    "marginal": {},
    "marginal, APS": {"score": "aps"},
    "marginal, PAC": {"guarantee": "pac"},
    "cluster": {"condition_on": "cluster"},
    "class": {"condition_on": "class"},
    "class, rank-calibrated": {"condition_on": "class", "rank_calibrated": True},
    "class, PAC": {"condition_on": "class", "guarantee": "pac"},
    "sex": {"condition_on": "group"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/coverage.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_coverage.png"))
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--fits", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="made lesions, one fit, four splits; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.root, arguments.fits, arguments.splits = None, 1, 4
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    lesions, _ = ham10000(arguments.root, arguments.cache)
    rows = []
    for fit in range(arguments.fits):
        train, rest = lesions.data.split(sizes=(0.5, 0.5), random_state=fit)
        head = lesions.head(train, fit)
        for part in range(arguments.splits // arguments.fits):
            seed = 1000 * fit + part
            parts = []
            for cases in rest.split(sizes=(0.2, 0.4, 0.4), random_state=seed):
                cases = cases.one_per(random_state=seed)
                E, y = lesions.of(cases)
                parts.append((head.predict_proba(E), y, sexes(cases)))
            rows += [{"fit": fit, "split": part, **found} for found in figures(parts, lesions.classes)]
        print(f"fit {fit}: {len(rows)} rows", flush=True)
    results = {"summary": summary(rows), "coverage_by_split": by_split(rows), "fits": arguments.fits}
    command = "python -m experiments.coverage" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[lesions.data])
    draw(results["summary"], arguments.figure)
    print("\n".join(tables(results).values()))


def sexes(cases: LesionDataset) -> np.ndarray:
    """Female, male or unknown; made lesions have none."""
    if "sex" not in cases.frame.columns:
        return np.full(len(cases), "all")
    known = cases.frame["sex"].isin(["female", "male"])
    return np.where(known, cases.frame["sex"], "unknown")


def figures(parts: list, classes: np.ndarray) -> list[dict[str, Any]]:
    """Figures of one split, by condition and level."""
    tuning, calibration, test = parts
    found = []
    P, y, groups = test
    for name, options in CONDITIONS.items():
        clf = ConformalClassifier(random_state=0, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationSizeWarning)
            if "cluster" in options.values() or "rank_calibrated" in options:
                clf.tune(tuning[0], tuning[1])
            by_group = options.get("condition_on") == "group"
            clf.conformalize(calibration[0], calibration[1], groups=calibration[2] if by_group else None)
            for level in LEVELS:
                sets = clf.predict_set(P, level, groups=groups)
                covered = sets[np.arange(len(y)), y]
                low, high = band(clf, y, groups, level)
                by_class = [float(covered[y == k].mean()) for k in range(len(classes)) if (y == k).any()]
                found.append(
                    {
                        "condition": name,
                        "level": level,
                        "coverage": float(covered.mean()),
                        "band": [low, high],
                        "inside": bool(low <= covered.mean() <= high),
                        "worst_class": min(by_class),
                        "by_class": dict(zip(classes[np.unique(y)].tolist(), by_class)),
                        "size": float(sets.sum(axis=1).mean()),
                    }
                )
    return found


def band(clf: ConformalClassifier, y: np.ndarray, groups: np.ndarray, level: float) -> tuple[float, float]:
    """Exact 95% band of the coverage of all test cases."""
    shape = clf.calibration_.counts.shape
    column = 0 * y if clf.columns_ is None else clf.columns_[y]
    place = 0 * y if clf.groups_ is None else np.searchsorted(clf.groups_, groups)
    n_test = np.bincount(place * shape[1] + column, minlength=shape[0] * shape[1])
    ranks = [condition.rank for condition in clf.certificate(level).conditions]
    return m.coverage_band(clf.calibration_.counts.ravel(), n_test, level, probability=0.95, ranks=ranks)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the splits, with the 5% and 95% quantiles, by condition and level."""
    found: dict[str, Any] = {}
    for name in CONDITIONS:
        for level in LEVELS:
            some = [r for r in rows if r["condition"] == name and r["level"] == level]
            entry: dict[str, Any] = {"splits": len(some), "inside_the_95%_band": sum(r["inside"] for r in some)}
            entry["band"] = np.mean([r["band"] for r in some], axis=0).tolist()
            for figure in ("coverage", "worst_class", "size"):
                values = [r[figure] for r in some]
                entry[figure] = [float(np.mean(values)), *np.quantile(values, [0.05, 0.95]).tolist()]
            entry["by_class"] = {
                c: float(np.mean([r["by_class"][c] for r in some if c in r["by_class"]])) for c in some[0]["by_class"]
            }
            entry["below_the_level"] = float(np.mean([r["coverage"] < level for r in some]))
            found[f"{name} @ {level:g}"] = entry
    return found


def by_split(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Coverage in each split, for whoever wants another summary."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(f"{row['condition']} @ {row['level']:g}", []).append(round(row["coverage"], 4))
    return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The page's table."""
    head = "| level | guarantee | coverage | 95% band | splits inside | worst class | melanoma | labels in a set |"
    lines = [head, "|---" * 8 + "|"]
    for level in LEVELS:
        for name in CONDITIONS:
            entry = results["summary"][f"{name} @ {level:g}"]
            worst = min(entry["by_class"], key=entry["by_class"].get)
            lines.append(
                f"| {level:g} | {name} | {entry['coverage'][0]:.3f} | {entry['band'][0]:.3f}-{entry['band'][1]:.3f} | "
                f"{entry['inside_the_95%_band']} of {entry['splits']} | {entry['by_class'][worst]:.2f} ({worst}) | "
                f"{entry['by_class']['mel']:.2f} | {entry['size'][0]:.2f} |"
            )
    return {"docs/conformal/conditioning.md": "\n".join(lines)}


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = [name for name in CONDITIONS if name != "sex"]
    for i, name in enumerate(names):
        entry = found[f"{name} @ 0.9"]
        classes = list(entry["by_class"])
        axes[0].plot(list(entry["by_class"].values()), [i] * len(classes), "o", color="0.6", ms=5)
        axes[0].plot(entry["by_class"]["mel"], i, "D", color="C3", label="melanoma" if i == 0 else None)
        axes[0].errorbar(
            entry["coverage"][0], i, xerr=np.abs(np.subtract(entry["band"], entry["coverage"][0]))[:, None],
            fmt="s", color="C0", capsize=4, label="all cases, with the exact 95% band" if i == 0 else None,
        )  # fmt: skip
        sizes = [found[f"{name} @ {level:g}"]["size"][0] for level in LEVELS]
        axes[1].plot(LEVELS, sizes, "o-", label=name)
    axes[0].plot([], [], "o", color="0.6", label="the other classes")
    axes[0].axvline(0.9, color="k", lw=0.8, ls="--")
    axes[0].set(yticks=range(len(names)), yticklabels=names, xlabel="coverage at 0.9, mean over splits", xlim=(0, 1.02))
    axes[0].invert_yaxis()
    axes[0].legend(loc="lower left", fontsize=8)
    axes[1].set(xlabel="confidence level", ylabel="labels in a set, mean")
    axes[1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
