"""The released model: networks, heads and thresholds of the first split of `experiments.fine_tune`, in one file, and
the figures of its model card, docs/model_card.md.

    python -m experiments.release --root DATA --cache .cache --model build/ham10000.cbdc

With the checkpoints that `experiments.fine_tune` left in the cache the networks are not trained again. The file is
written, read back, and judged as a user would: by `evaluate`, on the test part, which neither training nor calibration
saw.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from cbdc import CBDCClassifier, LesionDataset, load_dataset, make_lesions
from cbdc.report import evaluate
from cbdc.report.figures import TITLES
from experiments.fine_tune import LEVEL, QUICK, RECIPE, classifier
from experiments.record import write_results

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/release.json"))
    parser.add_argument("--model", type=Path, default=Path("build/ham10000.cbdc"), help="the model file")
    parser.add_argument("--quick", action="store_true", help="made lesions, one epoch of a small network")
    arguments = parser.parse_args()
    if arguments.quick:
        data = make_lesions(400, image_size=64, random_state=0)
        recipe = QUICK
        arguments.model, arguments.cache = arguments.out.parent / "release.cbdc", None
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:
        data, recipe = load_dataset("ham10000", arguments.root / "ham10000"), RECIPE
    parts = data.split(random_state=SEED)
    clf = classifier(data, recipe, arguments.cache, SEED).fit(parts[0]).conformalize(parts[1])
    arguments.model.parent.mkdir(parents=True, exist_ok=True)
    notes = {"dataset": data.name, "fingerprint": data.fingerprint, "split": {"random_state": SEED}}
    clf.save(arguments.model, notes=notes)
    content = arguments.model.read_bytes()
    command = "python -m experiments.release" + (" --quick" if arguments.quick else " --root DATA --cache .cache")
    results = {
        "recipe": recipe,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "fine_tuning": clf.provenance_["fine_tuning"],
        **card(CBDCClassifier.load(arguments.model), parts[2]),
    }
    write_results(arguments.out, results, command=command, data=[data])
    print("\n\n".join(tables(results).values()))


def card(clf: CBDCClassifier, test: LesionDataset) -> dict[str, Any]:
    """Figures of the test part, and what the sets promise."""
    figures = evaluate(clf, test).figures
    chosen = {"data", "probabilities", "sets"}
    return {"figures": {k: figures[k] for k in chosen}, "certificate": str(clf.certificate())}


def tables(results: dict[str, Any]) -> dict[str, str]:
    figures = results["figures"]
    lines = ["| on the test part | | 95% interval |", "|---" * 3 + "|"]
    for name, row in figures["probabilities"].items():
        if isinstance(row, dict):
            low, high = row["low"], row["high"]
            noise = f"noise alone: up to {figures['probabilities']['ece_noise_floor']:.3f}"
            spread = noise if name == "ece" else "" if low is None else f"{low:.3f}-{high:.3f}"
            lines.append(f"| {TITLES[name]} | {row['value']:.3f} | {spread} |")
    lines += ["", "| class, at 0.9 | n | coverage | 95% interval |", "|---" * 4 + "|"]
    for row in figures["sets"][f"{LEVEL:g}"]["by_class"]:
        found = ["-", row["reason"]]
        if row["coverage"] is not None:
            found = [f"{row['coverage']:.3f}", f"{row['low']:.3f}-{row['high']:.3f}"]
        lines.append(f"| {row['name']} | {row['n']} | {found[0]} | {found[1]} |")
    about = f"| sha256 | `{results['sha256']}` |\n| size | {results['bytes'] / 1e6:.1f} MB |"
    return {"docs/model_card.md": "\n".join(["| | |", "|---|---|", about, "", *lines])}


if __name__ == "__main__":
    main()
