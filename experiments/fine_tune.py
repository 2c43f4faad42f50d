"""Claim: a network taught on the training lesions of HAM10000 classifies better than a frozen one, travels better to
other hospitals, and gives smaller sets with the same guarantee; and its head has to be fitted on lesions that the
network was not taught.

HAM10000 is split 60/20/20 by lesion, `--seeds` times. EfficientNet-Lite2 at 192 pixels is trained on 85% of the
training lesions, the network of the last epoch is kept, and the Laplace head is fitted on the rest. Sets at confidence
level 0.9 are calibrated on one image of each lesion of the second part and counted on one image of each lesion of the
third, for which the exact bands hold; accuracy and the like are those of all images of the third. PH2 and PAD-UFES-20,
labels mapped, are the other hospitals: their sets are calibrated on HAM10000, and then on 40 (PAD-UFES-20: 100) of
their own patients, drawn 50 times.

    python -m experiments.fine_tune --root DATA --cache .cache

Seeds that the results file holds are not computed again; a run that was killed resumes at its last epoch. A seed takes
an hour and a half on two cores.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import clone

from cbdc import ConformalClassifier, ImageEmbedder, LaplaceHead, LesionDataset, load_dataset, make_lesions
from cbdc import metrics as m
from cbdc.backbones import FineTuner
from experiments.record import write_results

LEVEL, RULE_OUT = 0.9, 0.95
BACKBONE, SIZE, VIEWS = "efficientnet_lite2", 192, 8
TUNING = {
    "epochs": 24,
    "learning_rate": 1.5e-3,
    "loss": "logit_adjusted",
    "mixup": 0.2,
    "validation_fraction": 0.15,
    "keep": "last",
}
RECIPE = {"backbone": BACKBONE, "image_size": SIZE, "n_views": VIEWS, **TUNING}
RECALIBRATION = {"ph2": 40, "pad_ufes_20": 100}
DRAWS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000, ph2 and pad_ufes_20")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/fine_tune.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tried", type=Path, nargs="*", help="results files of other recipes, to be kept beside these")
    parser.add_argument("--quick", action="store_true", help="made lesions, one seed, one epoch; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = 1
        data, others = make_lesions(400, image_size=64, random_state=0), {}
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:
        data = load_dataset("ham10000", arguments.root / "ham10000")
        others = {name: load_dataset(name, arguments.root / name).relabel("ham10000") for name in RECALIBRATION}
    cells: dict[str, Any] = {}
    others_tried: list[dict[str, Any]] = []
    if arguments.out.exists() and not arguments.quick:
        found = json.loads(arguments.out.read_text(encoding="utf-8"))
        if found["recipe"] != RECIPE:
            parser.error(f"{arguments.out}: of another recipe, {found['recipe']}; move it away, or give another --out")
        cells, others_tried = found["cells"], found.get("tried", [])
    if arguments.tried is not None:
        others_tried = [tried(json.loads(path.read_text(encoding="utf-8"))) for path in arguments.tried]
    command = "python -m experiments.fine_tune" + (" --quick" if arguments.quick else " --root DATA")
    for seed in range(arguments.seeds):
        if str(seed) not in cells:
            cells[str(seed)] = cell(data, others, seed, arguments.cache, quick=arguments.quick)
            print(seed, json.dumps(cells[str(seed)]), flush=True)
        results = {"recipe": RECIPE, "cells": cells, "summary": summary(cells), "tried": others_tried}
        write_results(arguments.out, results, command=command, data=[data, *others.values()])
    print("\n\n".join(tables(results).values()))


def cell(
    data: LesionDataset, others: dict[str, LesionDataset], seed: int, cache: Path | None, *, quick: bool
) -> dict[str, Any]:
    """Everything of one split."""
    parts = data.split(random_state=seed)
    options = {**TUNING, "random_state": seed, "verbose": True}
    embedder = ImageEmbedder(BACKBONE, image_size=SIZE, cache_dir=cache)
    if quick:
        options |= {"epochs": 1}
        embedder.set_params(backbone="efficientnet_lite0", image_size=32)
    elif cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        options["checkpoint"] = cache / f"fine_tune-{data.name}-{seed}.checkpoint"
    start = time.perf_counter()
    tuner = FineTuner(embedder, **options).fit(parts[0])
    minutes = (time.perf_counter() - start) / 60
    frozen = ImageEmbedder(cache_dir=cache).fit()
    untaught = clone(embedder).fit()
    several = embedder.set_params(n_views=VIEWS).use(tuner.embedder_.backbone_)
    codes = [np.searchsorted(data.classes, part.labels) for part in parts]
    held_out = tuner.held_out_
    taught = np.setdiff1d(np.arange(len(codes[0])), held_out)

    def laplace(rows: np.ndarray, how: ImageEmbedder) -> LaplaceHead:
        return LaplaceHead(random_state=seed).fit(how.transform([parts[0].images[i] for i in rows]), codes[0][rows])

    models: dict[str, tuple[Any, ImageEmbedder]] = {
        "frozen": (laplace(np.arange(len(codes[0])), frozen), frozen),
        "frozen, the network that is tuned, one view": (laplace(np.arange(len(codes[0])), untaught), untaught),
        "tuned": (laplace(held_out, several), several),
        "tuned, one view": (laplace(held_out, tuner.embedder_), tuner.embedder_),
        "tuned, head on what was taught": (laplace(taught, tuner.embedder_), tuner.embedder_),
        "tuned, its own softmax": (Softmax(tuner), tuner.embedder_),
    }
    return {
        "seconds_of_training": sum(row["seconds"] for row in tuner.history_),
        "minutes": minutes,
        "best_epoch": tuner.best_epoch_,
        "history": tuner.history_,
        "models": {name: figures(model, how, parts, seed) for name, (model, how) in models.items()},
        "elsewhere": {
            site: {name: elsewhere(*models[name], parts, outside, site, seed) for name in ("frozen", "tuned")}
            for site, outside in others.items()
        },
    }


class Softmax:
    """The classifier that was trained along with the network."""

    def __init__(self, tuner: FineTuner) -> None:
        self._tuner = tuner
        self.classes_ = np.arange(len(tuner.classes_))

    def predict_proba(self, E: np.ndarray) -> np.ndarray:
        return softmax((E @ self._tuner.coef_.T + self._tuner.intercept_ + self._tuner.offset_).astype(float), axis=1)


def calibrated(model: Any, how: ImageEmbedder, part: LesionDataset, classes: Any, seed: int, **options: Any) -> Any:
    """Sets calibrated on one image of each unit."""
    drawn = part.one_per(random_state=seed)
    y = np.searchsorted(classes, drawn.labels)
    clf = ConformalClassifier(None, **{"confidence_level": LEVEL, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes too small for a threshold: their sets hold them always
        return clf.conformalize(model.predict_proba(how.transform(drawn.images)), y)


def figures(model: Any, how: ImageEmbedder, parts: tuple[LesionDataset, ...], seed: int) -> dict[str, Any]:
    """On the test part: of probabilities all images, of sets one of each lesion."""
    classes, test = parts[0].classes, parts[2]
    y = np.searchsorted(classes, test.labels)
    proba = model.predict_proba(how.transform(test.images))
    shares = np.bincount(np.searchsorted(classes, parts[0].labels), minlength=len(classes)) / len(parts[0])
    floor = m.ece_noise_floor(proba, random_state=seed)[0]
    found = {
        "n": len(y),
        "accuracy": float(np.mean(proba.argmax(axis=1) == y)),
        "auroc": m.auroc(proba, y),
        "balanced_accuracy": m.balanced_accuracy(proba, y),
        "balanced_accuracy_of_even_classes": m.balanced_accuracy(softmax(np.log(proba) - np.log(shares), axis=1), y),
        "nll": m.negative_log_likelihood(proba, y),
        "ece": m.expected_calibration_error(proba, y),
        "ece_floor": floor,
    }
    drawn = test.one_per(random_state=seed).frame["image"]
    rows = [list(test.frame["image"]).index(name) for name in drawn]
    proba, y = proba[rows], y[rows]
    for name, condition in {"marginal": None, "class": "class"}.items():
        clf = calibrated(model, how, parts[1], classes, seed, condition_on=condition)
        sets = clf.predict_set(proba)
        n = clf.n_calibration_
        table = m.coverage_table(sets, y, classes=list(classes), n_calibration=n, confidence_level=LEVEL)
        found[name] = {
            "coverage": m.coverage(sets, y),
            "band": [float(v) for v in table.loc[0, ["band_low", "band_high"]]],
            "set_size": m.mean_set_size(sets),
            "classes": {
                str(row["name"]): [row["n"], row["covered"], none(row["band_low"]), none(row["band_high"])]
                for _, row in table[table["by"] == "class"].iterrows()
            },
        }
    if "mel" in classes:
        found["rule_out"] = rule_out(model, how, parts, proba, y, seed)
    return found


def rule_out(
    model: Any, how: ImageEmbedder, parts: tuple[LesionDataset, ...], proba: np.ndarray, y: np.ndarray, seed: int
) -> dict[str, Any]:
    """Melanoma is ruled out where the class-conditional set at 0.95 does not hold it."""
    mel = list(parts[0].classes).index("mel")
    clf = calibrated(model, how, parts[1], parts[0].classes, seed, condition_on="class", confidence_level=RULE_OUT)
    kept = clf.predict_set(proba)[:, mel]
    sick = y == mel
    assert sick.any(), "the test part has no melanoma"
    band = m.coverage_band(int(clf.n_calibration_[mel]), int(sick.sum()), RULE_OUT, probability=0.95)
    specificity = float((~kept[~sick]).mean())
    return {"n": int(sick.sum()), "sensitivity": float(kept[sick].mean()), "band": band, "specificity": specificity}


def elsewhere(
    model: Any,
    how: ImageEmbedder,
    parts: tuple[LesionDataset, ...],
    outside: LesionDataset,
    site: str,
    seed: int,
) -> dict[str, Any]:
    """Another hospital: as the model comes, and after calibration on some of its own patients."""
    classes = parts[0].classes
    proba, y = model.predict_proba(how.transform(outside.images)), np.searchsorted(classes, outside.labels)
    row = {name: i for i, name in enumerate(outside.frame["image"])}
    sick = y == list(classes).index("mel")
    wins = proba[sick, list(classes).index("mel")][:, None] - proba[~sick, list(classes).index("mel")]
    clf = calibrated(model, how, parts[1], classes, seed, condition_on=None)
    before, sizes_before, after, sizes = [], [], [], []
    for draw in range(DRAWS):
        # One image of each patient, drawn: these are exchangeable, all images are not
        drawn = [row[name] for name in outside.one_per(random_state=draw).frame["image"]]
        drawn = np.random.default_rng([seed, draw]).permutation(drawn)
        own, rest = drawn[: RECALIBRATION[site]], drawn[RECALIBRATION[site] :]
        again = ConformalClassifier(None, confidence_level=LEVEL).conformalize(proba[own], y[own])
        for model_of, coverages, mean_sizes in ((clf, before, sizes_before), (again, after, sizes)):
            sets = model_of.predict_set(proba[rest])
            coverages.append(m.coverage(sets, y[rest]))
            mean_sizes.append(m.mean_set_size(sets))
    return {
        "n": len(y),
        "accuracy": float(np.mean(proba.argmax(axis=1) == y)),
        "melanoma_auroc": float(np.mean((wins > 0) + 0.5 * (wins == 0))),
        "coverage": float(np.mean(before)),
        "set_size": float(np.mean(sizes_before)),
        "n_recalibration": RECALIBRATION[site],
        "coverage_after": float(np.mean(after)),
        "coverage_after_range": [float(np.quantile(after, q)) for q in (0.05, 0.95)],
        "set_size_after": float(np.mean(sizes)),
    }


def none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Mean, least and greatest over the seeds."""

    def over(value_of: Callable[[dict[str, Any]], float]) -> list[float]:
        values = [value_of(cell) for cell in cells.values()]
        return [float(np.mean(values)), float(np.min(values)), float(np.max(values))]

    first = next(iter(cells.values()))
    plain = [key for key, value in next(iter(first["models"].values())).items() if isinstance(value, float)]
    found: dict[str, Any] = {"seeds": len(cells), "minutes": over(lambda c: c["seconds_of_training"] / 60)}
    for name in first["models"]:
        row = {key: over(lambda c, n=name, k=key: c["models"][n][k]) for key in plain}
        for kind in ("marginal", "class"):
            row[f"set_size_{kind}"] = over(lambda c, n=name, k=kind: c["models"][n][k]["set_size"])
        tallies = [inside(cell["models"][name]["class"]["classes"]) for cell in cells.values()]
        row["classes_inside"] = [sum(t[0] for t in tallies), sum(t[1] for t in tallies)]
        if "rule_out" in first["models"][name]:
            for key in ("sensitivity", "specificity"):
                row[f"rule_out_{key}"] = over(lambda c, n=name, k=key: c["models"][n]["rule_out"][k])
            bands = [
                (c["models"][name]["rule_out"]["sensitivity"], *c["models"][name]["rule_out"]["band"])
                for c in cells.values()
            ]
            row["rule_out_inside"] = sum(low <= s <= high for s, low, high in bands)
        found[name] = row
    for site, models in first["elsewhere"].items():
        for name, row in models.items():
            found[f"{site}, {name}"] = {
                key: over(lambda c, s=site, n=name, k=key: c["elsewhere"][s][n][k])
                for key, value in row.items()
                if isinstance(value, float)
            }
    return found


def inside(classes: dict[str, list]) -> tuple[int, int]:
    """Classes whose coverage lies in its band, and classes that have one."""
    known = [(covered / n, low, high) for n, covered, low, high in classes.values() if low is not None]
    return sum(low <= rate <= high for rate, low, high in known), len(known)


def tried(results: dict[str, Any]) -> dict[str, Any]:
    """What is kept of another recipe's results: its first split."""
    cell = results["cells"]["0"]
    best = cell["history"][cell["best_epoch"] - 1]
    last = cell["history"][-1]
    figures = {key: value for key, value in cell["models"]["tuned"].items() if isinstance(value, float)}
    return {
        "recipe": results["recipe"],
        "held_out": {key: value for key, value in best.items() if key.startswith("held_out")},
        "last_loss": last["loss"],
        "minutes": cell["seconds_of_training"] / 60,
        "tuned": figures | {"set_size_class": cell["models"]["tuned"]["class"]["set_size"]},
        "ph2_melanoma_auroc": cell["elsewhere"]["ph2"]["tuned"]["melanoma_auroc"],
    }


def recipe_table(results: dict[str, Any]) -> str:
    """This recipe and those that were tried, on the first split."""
    lines = [
        "| pixels | epochs | last training loss | held out: NLL | accuracy | test: accuracy | balanced accuracy | "
        "AUROC | set size, class-conditional | PH2: melanoma AUROC |",
        "|---" * 10 + "|",
    ]
    for row in [tried(results), *results["tried"]]:
        recipe, held_out, tuned = row["recipe"], row["held_out"], row["tuned"]
        first = recipe.get("first_size")
        size = f"{first} to {recipe['image_size']}" if first else recipe["image_size"]
        lines.append(
            f"| {size} | {recipe['epochs']} | {row['last_loss']:.3f} | {held_out['held_out_nll']:.3f} | "
            f"{held_out['held_out_accuracy']:.3f} | {tuned['accuracy']:.3f} | {tuned['balanced_accuracy']:.3f} | "
            f"{tuned['auroc']:.3f} | {tuned['set_size_class']:.2f} | {row['ph2_melanoma_auroc']:.3f} |"
        )
    return "\n".join(lines)


def tables(results: dict[str, Any]) -> dict[str, str]:
    found = results["summary"]
    seeds = found["seeds"]

    def shown(values: list[float], digits: int = 3) -> str:
        mean, low, high = (f"{value:.{digits}f}" for value in values)
        return mean if seeds == 1 else f"{mean} ({low}-{high})"

    lines = [
        "| | accuracy | balanced accuracy | AUROC | NLL | ECE over its floor | set size, marginal | set size, "
        "class-conditional | classes in their band |",
        "|---" * 9 + "|",
    ]
    rules = ["| melanoma rule-out | sensitivity | in its band | specificity |", "|---" * 4 + "|"]
    for name, row in found.items():
        if not isinstance(row, dict) or "auroc" not in row:
            continue
        over_floor = [a - b for a, b in zip(row["ece"], row["ece_floor"], strict=True)]
        lines.append(
            f"| {name} | {shown(row['accuracy'])} | {shown(row['balanced_accuracy'])} | {shown(row['auroc'])} | "
            f"{shown(row['nll'])} | {over_floor[0]:.3f} | {shown(row['set_size_marginal'], 2)} | "
            f"{shown(row['set_size_class'], 2)} | {row['classes_inside'][0]} of {row['classes_inside'][1]} |"
        )
        if "rule_out_sensitivity" in row:
            rules.append(
                f"| {name} | {shown(row['rule_out_sensitivity'])} | {row['rule_out_inside']} of {seeds} | "
                f"{shown(row['rule_out_specificity'])} |"
            )
    sites = [
        "| | melanoma AUROC | accuracy | coverage | set size | recalibrated: coverage | set size |",
        "|---" * 7 + "|",
    ]
    for name, row in found.items():
        if isinstance(row, dict) and "coverage_after" in row:
            sites.append(
                f"| {name} | {shown(row['melanoma_auroc'])} | {shown(row['accuracy'])} | {shown(row['coverage'])} | "
                f"{shown(row['set_size'], 2)} | {shown(row['coverage_after'])} | {shown(row['set_size_after'], 2)} |"
            )
    recipes = ["", recipe_table(results)] if results.get("tried") else []
    return {"docs/fine_tuning.md": "\n".join([*lines, "", *rules, "", *sites, *recipes])}


if __name__ == "__main__":
    main()
