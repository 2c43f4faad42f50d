"""Claim: VGG16 and DenseNet201 run as any other network does, and their class-conditional sets of two classes are an
instrument: {malignant} rules in, {benign} rules out, {benign, malignant} refers, and the malignant are covered as
promised, however good or bad the network is.

All malignant lesions of HAM10000 (melanoma, basal cell carcinoma, actinic keratosis) and as many benign ones, drawn at
random, make a set of some 3,500 images like the one of 3,297 on which the two networks were compared in
arXiv:2602.17797. It is split 60/20/20 by lesion; the network is trained on 80% of the first part, a Laplace head on the
rest of it, and the sets are calibrated and counted on one image of each lesion of the others.

The two papers' networks start from ImageNet. Where torchvision's weights are not on this machine, they start from
random ones, which the table says: such a row shows that the architecture runs and that its sets hold, not what it could
reach. EfficientNet-Lite0, whose weights come with a package, is trained both ways beside them.

    python -m experiments.benign_malignant --root DATA
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cbdc import ConformalClassifier, ImageEmbedder, LaplaceHead, LesionDataset, load_dataset, make_lesions
from cbdc import metrics as m
from cbdc.backbones import FineTuner, create_backbone
from cbdc.errors import MissingWeightsError
from experiments.record import write_results

LEVEL = 0.95
SIZE = 64
TUNING = {"epochs": 6}
NETWORKS = {  # and peak learning rates: VGG16, which does not normalise its layers, learns nothing at a larger one
    "VGG16": ("vgg16", "default", 1e-4),
    "DenseNet201": ("densenet201", "default", 1e-3),
    "EfficientNet-Lite0": ("efficientnet_lite0", "default", 1e-3),
    "EfficientNet-Lite0 from random weights": ("efficientnet_lite0", "random", 1e-3),
}
MALIGNANT = 1  # column: the classes are benign, malignant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/benign_malignant.json"))
    parser.add_argument("--quick", action="store_true", help="made lesions, one epoch; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        data, options = make_lesions(240, image_size=48, random_state=0), {"epochs": 1}
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:
        data, options = load_dataset("ham10000", arguments.root / "ham10000"), {}
    data = balanced(data.relabel("isic2020"))
    parts = data.split(random_state=0)
    size = 32 if arguments.quick else SIZE
    results: dict[str, Any] = {"level": LEVEL, "image_size": size, **TUNING, **options, "networks": {}}
    command = "python -m experiments.benign_malignant" + (" --quick" if arguments.quick else " --root DATA")
    for name, (backbone, weights, rate) in NETWORKS.items():
        row = figures(backbone, weights, parts, size, {**TUNING, **options, "learning_rate": rate})
        print(name, json.dumps(row), flush=True)
        results["networks"][name] = row
        write_results(arguments.out, results, command=command, data=[data])
    print("\n\n".join(tables(results).values()))


def balanced(data: LesionDataset) -> LesionDataset:
    """All malignant lesions, and as many benign ones."""
    lesions = data.groups()
    sick = np.unique(lesions[data.labels == "malignant"])
    well = np.setdiff1d(np.unique(lesions), sick)
    chosen = np.random.default_rng(0).permutation(well)[: len(sick)]
    return data.take(np.isin(lesions, np.concatenate([sick, chosen])))


def figures(
    backbone: str, weights: str, parts: tuple[LesionDataset, ...], size: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Train, calibrate, count."""
    try:
        create_backbone(backbone, weights)
    except MissingWeightsError as error:
        print(f"{backbone}: {error} Random weights are taken.", flush=True)
        weights = "random"
    embedder = ImageEmbedder(backbone, weights=weights, image_size=size)
    tuner = FineTuner(embedder, random_state=0, verbose=True, **options).fit(parts[0])
    images, labels = parts[0].images, np.searchsorted(parts[0].classes, parts[0].labels)
    rows = tuner.held_out_
    head = LaplaceHead(random_state=0).fit(tuner.transform([images[i] for i in rows]), labels[rows])
    drawn = [part.one_per(random_state=0) for part in parts[1:]]
    P, P_test = (head.predict_proba(tuner.transform(part.images)) for part in drawn)
    y, y_test = (np.searchsorted(parts[0].classes, part.labels) for part in drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the quick form, whose classes are too small for a threshold
        clf = ConformalClassifier(None, condition_on="class", confidence_level=LEVEL).conformalize(P, y)
    sets = clf.predict_set(P_test)
    sick = y_test == MALIGNANT
    band = m.coverage_band(int(clf.n_calibration_[MALIGNANT]), int(sick.sum()), LEVEL, probability=0.95)
    only = {"rule_in": sets[:, 1] & ~sets[:, 0], "rule_out": sets[:, 0] & ~sets[:, 1]}
    return {
        "weights": "ImageNet" if weights == "default" else weights,
        "learning_rate": options["learning_rate"],
        "seconds_of_training": sum(row["seconds"] for row in tuner.history_),
        "n": len(y_test),
        "accuracy": float(np.mean(P_test.argmax(axis=1) == y_test)),
        "accuracy_interval": interval(P_test.argmax(axis=1) == y_test),
        "auroc": m.auroc(P_test, y_test),
        "n_calibration": [int(n) for n in clf.n_calibration_],
        "malignant_coverage": float(sets[sick, MALIGNANT].mean()),
        "malignant_band": [float(v) for v in band],
        "benign_coverage": float(sets[~sick, 1 - MALIGNANT].mean()),
        "rule_in": float(only["rule_in"].mean()),
        "rule_in_malignant": share(sick[only["rule_in"]]),
        "rule_out": float(only["rule_out"].mean()),
        "rule_out_benign": share(~sick[only["rule_out"]]),
        "referred": float(sets.all(axis=1).mean()),
        "empty": float((~sets.any(axis=1)).mean()),
    }


def interval(hits: np.ndarray) -> list[float]:
    return [float(v) for v in m.cluster_interval(hits, np.arange(len(hits)))]


def share(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def tables(results: dict[str, Any]) -> dict[str, str]:
    lines = [
        "| | starts from | accuracy (95% interval) | AUROC | malignant covered | band | {malignant} | of these "
        "malignant | {benign} | of these benign | both: referred |",
        "|---" * 11 + "|",
    ]
    for name, row in results["networks"].items():
        low, high = row["accuracy_interval"]
        sure = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("rule_in_malignant", "rule_out_benign")]
        lines.append(
            f"| {name.removesuffix(' from random weights')} | {row['weights']} | {row['accuracy']:.3f} "
            f"({low:.3f}-{high:.3f}) | {row['auroc']:.3f} | {row['malignant_coverage']:.3f} | "
            f"{row['malignant_band'][0]:.3f}-{row['malignant_band'][1]:.3f} | {row['rule_in']:.2f} | {sure[0]} | "
            f"{row['rule_out']:.2f} | {sure[1]} | {row['referred']:.2f} |"
        )
    return {"docs/fine_tuning.md": "\n".join(lines)}


if __name__ == "__main__":
    main()
