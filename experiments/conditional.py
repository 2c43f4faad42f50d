"""Claim: with one threshold some groups are covered less than others; with the thresholds of overlapping groups each of
them, sexes, ages and sites at once, is covered as often as asked.

HAM10000 (frozen EfficientNet-Lite0, `LaplaceHead`), split by lesion, one image of each lesion in calibration and test.

    python -m experiments.conditional --root DATA --cache .cache
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cbdc import ConformalClassifier, LesionDataset
from cbdc import metrics as m
from cbdc.conformal import ConditionalConformalClassifier
from experiments.embedded import ham10000
from experiments.record import write_results

LEVEL = 0.9
SITES = ("abdomen", "back", "face", "lower extremity", "trunk", "upper extremity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/conditional.json"))
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="made lesions, one split; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.root, arguments.splits = None, 1
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    lesions, _ = ham10000(arguments.root, arguments.cache)
    train, rest = lesions.data.split(sizes=(0.5, 0.5), random_state=0)
    head = lesions.head(train, 0)
    rows: dict[str, list[list[float]]] = {}
    sizes = []
    for seed in range(arguments.splits):
        parts = []
        for part in rest.split(sizes=(0.5, 0.5), random_state=seed):
            part = part.one_per(random_state=seed)
            E, y = lesions.of(part)
            parts.append((head.predict_proba(E), y, people(part)))
        (P, y, who), (Q, z, others) = parts
        plain = ConformalClassifier(confidence_level=LEVEL).conformalize(P, y).predict_set(Q)
        conditional = ConditionalConformalClassifier(confidence_level=LEVEL).conformalize(P, y, who)
        sets = conditional.predict_set(Q, others)
        sizes.append([float(s.sum(axis=1).mean()) for s in (plain, sets)])
        covered = [s[np.arange(len(z)), z] for s in (plain, sets)]
        for name, n in zip(conditional.groups_, conditional.n_calibration_.tolist()):
            inside = np.full(len(z), True)
            if name != "all":
                column, value = name.split("=", 1)
                inside = (others[column] == value).to_numpy()
            rows.setdefault(name, []).append([*(float(c[inside].mean()) for c in covered), n, int(inside.sum())])
        print(f"split {seed}", flush=True)
    summary = {name: np.mean(found, axis=0).tolist() for name, found in rows.items()}
    results = {"summary": summary, "sizes": np.mean(sizes, axis=0).tolist(), "splits": arguments.splits}
    command = "python -m experiments.conditional" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[lesions.data])
    print("\n".join(tables(results).values()))


def people(part: LesionDataset) -> pd.DataFrame:
    """Attributes of each case; made lesions have a skin type only."""
    frame = part.frame
    if "sex" not in frame.columns:
        return pd.DataFrame({"skin_type": frame["skin_type"].astype(str)})
    age = pd.to_numeric(frame["age"], errors="coerce")
    return pd.DataFrame(
        {
            "sex": np.where(frame["sex"].isin(["female", "male"]), frame["sex"], "unknown"),
            "age": np.select([age < 40, age < 60, age >= 60], ["under 40", "40 to 59", "60 and over"], "unknown"),
            "site": np.where(frame["site"].isin(SITES), frame["site"], "other"),
        }
    )


def tables(results: dict[str, Any]) -> dict[str, str]:
    lines = ["| group | calibration / test cases | one threshold | overlapping groups | 95% band of one split |"]
    lines.append("|---" * 5 + "|")
    for name, (plain, conditional, n, n_test) in results["summary"].items():
        low, high = m.coverage_band(round(n), round(n_test), LEVEL, probability=0.95)
        counts = f"{n:.0f} / {n_test:.0f}"
        lines.append(f"| {name} | {counts} | {plain:.3f} | {conditional:.3f} | {low:.3f}-{high:.3f} |")
    a, b = results["sizes"]
    lines.append(f"| labels in a set | | {a:.2f} | {b:.2f} | |")
    return {"docs/conformal/conditioning.md": "\n".join(lines)}


if __name__ == "__main__":
    main()
