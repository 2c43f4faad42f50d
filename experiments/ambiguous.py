"""Claim: sets calibrated on readers' votes hold too few of the labels that readers give; calibrated on all of their
opinions they hold as many as they say.

The differentials of several dermatologists for each of 1,947 cases (Stutz et al., arXiv:2307.02191; data CC BY 4.0).
The photographs and the model's predictions are not part of them, so the classifier is a surrogate: a logistic
regression whose input is the differential of one reader, set apart, and whose target is the vote of the others. The
opinions of the others, by inverse rank normalisation, are the plausibilities. Conditions that few votes go to are one
class, "other"; besides there are the three levels of risk. Half of the cases train; the other half is parted into
calibration and test `--splits` times.

    python -m experiments.ambiguous --root DATA
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import MonteCarloConformalClassifier, plausibilities_from_differentials
from experiments.record import write_results

LEVELS = (0.72, 0.8, 0.9)
LEAST_VOTES = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds metadata/uncertain_ground_truth")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/ambiguous.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_ambiguous.png"))
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="made readers, ten splits; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        tasks, arguments.splits = {"made": made(600)}, 10
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:
        tasks = read(arguments.root / "metadata" / "uncertain_ground_truth")
    results: dict[str, Any] = {"summary": {}}
    for name, (P, shares) in tasks.items():
        for level in LEVELS:
            rows = [split(P, shares, level, seed) for seed in range(arguments.splits)]
            results["summary"][f"{name} @ {level:g}"] = {
                "classes": shares.shape[1],
                "n": [len(P) - len(P) // 2, len(P) // 2],
                **{
                    key: [float(np.mean(v)), *np.quantile(v, [0.05, 0.95]).tolist()] for key, v in columns(rows).items()
                },
            }
    command = "python -m experiments.ambiguous" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command)
    draw(results["summary"], arguments.figure)
    print("\n".join(tables(results).values()))


def read(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Probabilities and plausibilities of the half that does not train, by task."""
    cases = json.loads((folder / "dermatology_selectors.json").read_text(encoding="utf-8"))
    risks = [int(line) for line in (folder / "dermatology_risks.txt").read_text(encoding="utf-8").split()]
    cases = [[reader for reader in case if reader] for case in cases]
    cases = [case for case in cases if len(case) >= 3]  # one stands for the model, two disagree
    everything = plausibilities_from_differentials([case[1:] for case in cases], range(len(risks)))
    votes = np.bincount(everything.argmax(axis=1), minlength=len(risks))
    kept = np.flatnonzero(votes >= LEAST_VOTES)
    to_condition = {k: int(np.searchsorted(kept, k)) if k in kept else len(kept) for k in range(len(risks))}
    tasks = {"condition": to_condition, "risk": dict(enumerate(risks))}
    return {name: task(cases, mapping) for name, mapping in tasks.items()}


def task(cases: list, mapping: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    n_classes = max(mapping.values()) + 1
    ranks = len(mapping)
    own = plausibilities_from_differentials([[case[0]] for case in cases], range(ranks))
    others = plausibilities_from_differentials([case[1:] for case in cases], range(ranks))
    merge = np.eye(n_classes)[[mapping[k] for k in range(ranks)]]
    X, shares = own @ merge, others @ merge
    train = np.random.default_rng(0).permutation(len(X)) < len(X) // 2
    model = LogisticRegression(max_iter=2000).fit(X[train], shares[train].argmax(axis=1))
    P = np.zeros((int((~train).sum()), n_classes))
    P[:, model.classes_] = model.predict_proba(X[~train])
    return P, shares[~train]


def made(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.full(5, 0.7), n)
    return P, np.array([rng.multinomial(4, row) / 4 for row in P])


def split(P: np.ndarray, shares: np.ndarray, level: float, seed: int) -> dict[str, float]:
    order = np.random.default_rng(seed).permutation(len(P))
    calibration, test = order[len(P) // 2 :], order[: len(P) // 2]
    voted = ConformalClassifier(confidence_level=level).conformalize(P[calibration], shares[calibration].argmax(axis=1))
    opinions = MonteCarloConformalClassifier(confidence_level=level).conformalize(P[calibration], shares[calibration])
    found = {}
    for name, clf in (("votes", voted), ("opinions", opinions)):
        sets = clf.predict_set(P[test])
        found[f"{name}: of the votes"] = m.coverage(sets, shares[test].argmax(axis=1))
        found[f"{name}: of the opinions"] = float((sets * shares[test]).sum(axis=1).mean())
        found[f"{name}: size"] = float(sets.sum(axis=1).mean())
    return found


def columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def tables(results: dict[str, Any]) -> dict[str, str]:
    head = "| task | level | calibrated on | votes covered | opinions covered (5-95% of splits) | labels in a set |"
    lines = [head, "|---" * 6 + "|"]
    for key, entry in results["summary"].items():
        name, level = key.split(" @ ")
        for kind in ("votes", "opinions"):
            mean, low, high = entry[f"{kind}: of the opinions"]
            lines.append(
                f"| {name}, {entry['classes']} classes | {level} | {kind} | {entry[f'{kind}: of the votes'][0]:.3f} | "
                f"{mean:.3f} ({low:.3f}-{high:.3f}) | {entry[f'{kind}: size'][0]:.2f} |"
            )
    return {"docs/conformal/ambiguous.md": "\n".join(lines)}


def draw(found: dict[str, Any], path: Path) -> None:
    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    for i, (key, entry) in enumerate(found.items()):
        level = float(key.split(" @ ")[1])
        low, high = m.coverage_band(*entry["n"], level, probability=0.9)
        ax.fill_betweenx([i - 0.4, i + 0.4], low, high, color="0.9", label="90% band of the level" if i == 0 else None)
        ax.plot([level, level], [i - 0.4, i + 0.4], "k--", lw=0.8)
        for offset, kind, colour in ((-0.15, "votes", "C3"), (0.15, "opinions", "C0")):
            mean, least, most = entry[f"{kind}: of the opinions"]
            ax.errorbar(mean, i + offset, xerr=[[mean - least], [most - mean]], fmt="o", color=colour, capsize=3,
                        label=f"calibrated on {kind}" if i == 0 else None)  # fmt: skip
    ax.set(yticks=range(len(found)), yticklabels=list(found), xlabel="share of the readers' opinions in the set")
    ax.invert_yaxis()
    fig.legend(loc="outside upper center", ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
