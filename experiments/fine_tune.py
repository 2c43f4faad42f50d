"""Claim: networks taught on the training lesions of HAM10000 classify better than a frozen one, travel better to other
hospitals, and give smaller sets with the same guarantee; and the head has to be fitted on lesions that its network was
not taught.

HAM10000 is split 60/20/20 by lesion, `--seeds` times. EfficientNet-Lite2 and -Lite0 are each trained on 85% of the
training lesions, the images growing from 128 to 192 pixels; each gets a Laplace head, fitted on the rest and pooled
with the network's own classifier, and the probabilities of the two are averaged. Sets at confidence level 0.9 are
calibrated on one image of each lesion of the second part and counted on one image of each lesion of the third, for
which the exact bands hold; accuracy and the like are those of all images of the third. PH2 and PAD-UFES-20, labels
mapped, are the other hospitals: their sets are calibrated on HAM10000, and then on 40 (PAD-UFES-20: 100) of their own
patients, drawn 50 times.

    python -m experiments.fine_tune --root DATA --cache .cache

Seeds that the results file holds are not computed again; a run that was killed resumes at its last epoch. A seed takes
an hour and a quarter on two cores.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import clone

from cbdc import (
    CBDCClassifier,
    ConformalClassifier,
    ImageEmbedder,
    LaplaceHead,
    LesionDataset,
    load_dataset,
    make_lesions,
)
from cbdc import metrics as m
from cbdc.backbones import FineTuner
from cbdc.heads import LogarithmicPool
from experiments.record import write_results

LEVEL, RULE_OUT = 0.9, 0.95
BACKBONES, SIZE, VIEWS = ["efficientnet_lite2", "efficientnet_lite0"], 192, 8
TUNING = {
    "epochs": 16,
    "first_size": 128,
    "learning_rate": 1.5e-3,
    "loss": "logit_adjusted",
    "mixup": 0.2,
    "validation_fraction": 0.15,
    "keep": "last",
}
RECIPE = {"backbone": BACKBONES, "image_size": SIZE, "n_views": VIEWS, **TUNING}
QUICK = RECIPE | {
    "backbone": ["efficientnet_lite0"] * 2,
    "image_size": 32,
    "first_size": None,
    "epochs": 1,
    "n_views": 2,
}
ALONE = "tuned, the first network, Laplace head alone"
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
    recipe = QUICK if quick else RECIPE
    clf = classifier(data, recipe, None if quick else cache, seed).fit(parts[0])
    first, (pool, *_) = clf.fine_tuners_[0], clf.head_.heads_
    frozen = ImageEmbedder(cache_dir=cache).fit()
    untaught = ImageEmbedder(recipe["backbone"][0], image_size=recipe["image_size"], cache_dir=cache).fit()
    one_view = clone(first.embedder_).set_params(n_views=1).use(first.embedder_.backbone_)
    codes = np.searchsorted(data.classes, parts[0].labels)
    taught = np.setdiff1d(np.arange(len(codes)), first.held_out_)

    def fitted(head: Any, rows: np.ndarray, how: ImageEmbedder) -> Any:
        return head.fit(how.transform([parts[0].images[i] for i in rows]), codes[rows])

    every = np.arange(len(codes))
    models: dict[str, tuple[Any, Any]] = {
        "frozen": (fitted(LaplaceHead(random_state=seed), every, frozen), frozen),
        "frozen, the network that is tuned": (fitted(LaplaceHead(random_state=seed), every, untaught), untaught),
        "tuned": (clf.head_, clf.embedder_),
        "tuned, the first network": (pool, first.embedder_),
        "tuned, the first network, one view": (fitted(clone(pool), first.held_out_, one_view), one_view),
        ALONE: (pool.head_, first.embedder_),
        "tuned, the first network, its own classifier alone": (OwnClassifier(pool), first.embedder_),
        "tuned, the first network, one view, Laplace head alone": (
            fitted(LaplaceHead(random_state=seed), first.held_out_, one_view),
            one_view,
        ),
        "tuned, the first network, one view, Laplace head alone on what was taught": (
            fitted(LaplaceHead(random_state=seed), taught, one_view),
            one_view,
        ),
    }
    return {
        "seconds_of_training": sum(row["seconds"] for tuner in clf.fine_tuners_ for row in tuner.history_),
        "history": [tuner.history_ for tuner in clf.fine_tuners_],
        "temperature": [head.temperature_ for head in clf.head_.heads_],
        "models": {name: figures(model, how, parts, seed) for name, (model, how) in models.items()},
        "elsewhere": {
            site: {name: elsewhere(*models[name], parts, outside, site, seed) for name in ("frozen", "tuned", ALONE)}
            for site, outside in others.items()
        },
    }


def classifier(data: LesionDataset, recipe: dict[str, Any], cache: Path | None, seed: int) -> CBDCClassifier:
    """Not fitted; its checkpoints lie in the cache."""
    tuning = {name: value for name, value in recipe.items() if name in TUNING}
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        tuning["checkpoint"] = cache / f"fine_tune-{data.name}-{seed}.checkpoint"
    return CBDCClassifier(
        recipe["backbone"],
        image_size=recipe["image_size"],
        n_views=recipe["n_views"],
        fine_tune=FineTuner(**tuning, verbose=True),
        confidence_level=LEVEL,
        condition_on="class",
        cache_dir=cache,
        random_state=seed,
    )


class OwnClassifier:
    """The classifier that was trained along with the network, at the pool's temperature."""

    def __init__(self, pool: LogarithmicPool) -> None:
        self._pool = pool
        self.classes_ = np.arange(len(pool.classes_))

    def predict_proba(self, E: np.ndarray) -> np.ndarray:
        return np.exp(self._pool.network_log_proba(E))


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
    """What is kept of another recipe's results: its first network, on the first split, the head alone."""
    cell = results["cells"]["0"]
    history = cell["history"][0]
    best = min(history, key=lambda row: row["held_out_nll"])
    figures = {key: value for key, value in cell["models"][ALONE].items() if isinstance(value, float)}
    return {
        "recipe": results["recipe"],
        "held_out": {key: value for key, value in best.items() if key.startswith("held_out")},
        "last_loss": history[-1]["loss"],
        "minutes": sum(row["seconds"] for row in history) / 60,
        "tuned": figures | {"set_size_class": cell["models"][ALONE]["class"]["set_size"]},
        "ph2_melanoma_auroc": cell["elsewhere"]["ph2"][ALONE]["melanoma_auroc"],
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
        "| | accuracy | balanced accuracy | of even classes | AUROC | NLL | ECE over its floor | set size, marginal | "
        "set size, class-conditional | classes in their band |",
        "|---" * 10 + "|",
    ]
    rules = ["| melanoma rule-out | sensitivity | in its band | specificity |", "|---" * 4 + "|"]
    for name, row in found.items():
        if not isinstance(row, dict) or "auroc" not in row:
            continue
        over_floor = row["ece"][0] - row["ece_floor"][0]
        cells = [shown(row[key]) for key in ("accuracy", "balanced_accuracy", "balanced_accuracy_of_even_classes")]
        cells += [shown(row["auroc"]), shown(row["nll"]), f"{over_floor:.3f}"]
        cells += [shown(row["set_size_marginal"], 2), shown(row["set_size_class"], 2)]
        lines.append(f"| {name} | {' | '.join(cells)} | {' of '.join(map(str, row['classes_inside']))} |")
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
