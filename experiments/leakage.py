"""Claim: calibration images that show lesions of the training data make prediction sets cover less than they say; split
by lesion they cover what they say.

From HAM10000 a fifth of the lesions is set apart for the test. The rest is parted into training and calibration, 3 to
1, once by image, so that lesions are on both sides, and once by lesion. On frozen EfficientNet-Lite0 embeddings each
classifier is fitted and calibrated both ways and tested on the same new lesions, over `--splits` splits. Coverage is by
image, calibrated on all images, and by lesion (a random image of a new lesion), calibrated with ``units``.

    python -m experiments.leakage --root DATA --cache .cache
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from cbdc import ConformalClassifier, ImageEmbedder, LaplaceHead, LesionDataset, load_dataset, make_lesions
from experiments.record import write_results

LEVEL = 0.9
WAYS = ("by image", "by lesion")
MODELS: dict[str, Callable[[int], Any]] = {
    "`LaplaceHead()`": lambda seed: LaplaceHead(random_state=seed),
    "logistic regression, C = 0.1": lambda seed: LogisticRegression(C=0.1, max_iter=500),
    "20 nearest neighbours, by distance": lambda seed: KNeighborsClassifier(20, weights="distance"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/leakage.json"))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="made lesions, three splits; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        data, arguments.splits = make_lesions(900, image_size=96, random_state=0), 3
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:
        data = load_dataset("ham10000", arguments.root / "ham10000")
    embeddings = ImageEmbedder(cache_dir=arguments.cache, verbose=True).fit_transform(data.images)
    results: dict[str, Any] = {"splits": {name: [] for name in MODELS}}
    for seed in range(arguments.splits):
        for name, make in MODELS.items():
            results["splits"][name].append(one_split(data, embeddings, make, seed))
            print(seed, name, json.dumps(results["splits"][name][-1]), flush=True)
    results["summary"] = {name: summary(rows) for name, rows in results["splits"].items()}
    command = "python -m experiments.leakage" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[data])
    print(tables(results)["docs/conformal/patients.md"])


def one_split(data: LesionDataset, embeddings: np.ndarray, make: Callable[[int], Any], seed: int) -> dict:
    """Coverage on new lesions after both ways to part training and calibration."""
    row = {name: i for i, name in enumerate(data.frame["image"])}
    lesion, code = data.groups(), np.searchsorted(data.classes, data.labels)

    def rows(part: LesionDataset) -> np.ndarray:
        return np.array([row[name] for name in part.frame["image"]])

    # Not stratified: cases drawn to fit the classes' shares are not quite exchangeable
    rest, test = data.split(sizes=(0.8, 0.2), stratify=False, random_state=seed)
    new = rows(test)
    found: dict[str, Any] = {}
    for way in WAYS:
        by = "image" if way == "by image" else data.unit
        parts = rest.split(by, (0.75, 0.25), stratify=False, random_state=seed, allow_leakage=True)
        train, calibration = map(rows, parts)
        scaled = embeddings / np.sqrt(embeddings[train].var(axis=0).mean())
        model = make(seed).fit(scaled[train], code[train])
        found[way] = {
            "shared": float(np.isin(lesion[calibration], lesion[train]).mean()),
            "accuracy_in_calibration": float(model.score(scaled[calibration], code[calibration])),
            "accuracy_in_test": float(model.score(scaled[new], code[new])),
        }
        proba, proba_new = model.predict_proba(scaled[calibration]), model.predict_proba(scaled[new])
        for key, units in {"by_image": None, "by_lesion": lesion[calibration]}.items():
            clf = ConformalClassifier(confidence_level=LEVEL).conformalize(proba, code[calibration], units=units)
            covered = clf.predict_set(proba_new)[np.arange(len(new)), code[new]]
            found[way][key] = float(covered.mean() if units is None else mean_by_unit(covered, lesion[new]))
    return found


def mean_by_unit(covered: np.ndarray, units: np.ndarray) -> float:
    """Mean over units of the share of their cases that is covered."""
    codes = np.unique(units, return_inverse=True)[1]
    return float((np.bincount(codes, covered) / np.bincount(codes)).mean())


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the splits and its standard error, of each figure, and of the difference between the two ways."""
    found: dict[str, Any] = {"splits": len(rows)}
    for way in WAYS:
        found[way] = {key: _mean([row[way][key] for row in rows]) for key in rows[0][way]}
    found["difference"] = {
        key: _mean([row["by image"][key] - row["by lesion"][key] for row in rows]) for key in ("by_image", "by_lesion")
    }
    return found


def _mean(values: list[float]) -> list[float]:
    return [float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))]


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The page, and the table on it."""
    lines = [
        "| classifier | parted | lesions shared | accuracy, calibration / test | coverage of images | of lesions |",
        "|---" * 6 + "|",
    ]
    for name, found in results["summary"].items():
        for way in WAYS:
            c = found[way]
            lines.append(
                f"| {name} | {way} | {c['shared'][0]:.0%} | {c['accuracy_in_calibration'][0]:.3f} / "
                f"{c['accuracy_in_test'][0]:.3f} | {c['by_image'][0]:.3f} ± {c['by_image'][1]:.3f} | "
                f"{c['by_lesion'][0]:.3f} ± {c['by_lesion'][1]:.3f} |"
            )
    return {"docs/conformal/patients.md": "\n".join(lines)}


if __name__ == "__main__":
    main()
