"""Claim: on frozen EfficientNet-Lite0 embeddings the Laplace head is no worse than tuned logistic regression, and the
coverage of its prediction sets lies where the exact law says.

HAM10000 is split 60/20/20 by lesion. Discrimination, calibration and set sizes are compared over `--seeds` splits, on
all test images; coverage is counted over `--splits` splits with one image of each lesion in the test part too, beside
the exact Beta-binomial band. PH2, whole, is the external test: its common and atypical nevi count as nv, its melanomas
as mel. Sets are calibrated on one image of each lesion of HAM10000, as `CBDCClassifier` does.

    python -m experiments.frozen_backbone --root DATA --cache .cache --out experiments/results/frozen_backbone.json
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from cbdc import ConformalClassifier, ImageEmbedder, LaplaceHead, LesionDataset, load_dataset, make_lesions
from cbdc import metrics as m
from experiments.record import write_results

LEVEL = 0.9
CONDITIONS = {"marginal": None, "class-conditional": "class"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000 and ph2")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/frozen_backbone.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="made lesions, one seed, three splits; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        data, external = make_lesions(900, image_size=96, random_state=0), None
        arguments.seeds, arguments.splits = 1, 3
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:
        data = load_dataset("ham10000", arguments.root / "ham10000")
        external = load_dataset("ph2", arguments.root / "ph2").relabel("ham10000")
    embedder = ImageEmbedder(cache_dir=arguments.cache, verbose=True)
    embeddings = embedder.fit_transform(data.images)
    outside = None if external is None else embedder.transform(external.images)

    results: dict[str, Any] = {"seeds": [], "coverage": []}
    for seed in range(max(arguments.seeds, arguments.splits)):
        run = Run(data, embeddings, seed)
        if seed < arguments.seeds:
            row = {"seed": seed, **{name: run.figures(make(run)) for name, make in MODELS.items()}}
            if external is not None:
                row["ph2"] = run.external(outside, external)
            results["seeds"].append(row)
            print(json.dumps(row, indent=1), flush=True)
        results["coverage"].append(run.coverage())
        print(json.dumps(results["coverage"][-1]), flush=True)
    results["summary"] = summary(results)
    results["weights_and_preprocessing"] = embedder.fingerprint_
    command = "python -m experiments.frozen_backbone" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[d for d in (data, external) if d is not None])
    print(json.dumps(results["summary"], indent=1))


MODELS: dict[str, Callable[["Run"], Any]] = {
    "laplace": lambda run: run.default,
    "laplace_no_mean_correction": lambda run: run.laplace(mean_correction=False),
    "laplace_standardize": lambda run: run.laplace(standardize=True),
    "logistic": lambda run: run.logistic(each_feature=True),
    "logistic_one_scale": lambda run: run.logistic(each_feature=False),
}


class Run:
    """One split of the data set, and what is fitted on it."""

    def __init__(self, data: LesionDataset, embeddings: np.ndarray, seed: int) -> None:
        self.seed = seed
        row = {name: i for i, name in enumerate(data.frame["image"])}
        self.classes = np.array(data.classes)
        self.parts = data.split(random_state=seed)
        self.embeddings = [embeddings[[row[name] for name in part.frame["image"]]] for part in self.parts]
        self.codes = [np.searchsorted(self.classes, part.labels) for part in self.parts]

    def laplace(self, **parameters: Any) -> Any:
        start = time.perf_counter()
        head = LaplaceHead(random_state=self.seed, **parameters).fit(self.embeddings[0], self.codes[0])
        head.seconds = time.perf_counter() - start
        return head

    @cached_property
    def default(self) -> Any:
        return self.laplace()

    def logistic(self, *, each_feature: bool) -> Any:
        """Logistic regression, its C chosen by likelihood over folds that keep lesions together."""
        start = time.perf_counter()
        one_scale = float(np.sqrt(self.embeddings[0].var(axis=0).mean()))
        scaler = StandardScaler() if each_feature else FunctionTransformer(lambda E: E / one_scale)
        search = GridSearchCV(
            make_pipeline(scaler, LogisticRegression(max_iter=500)),
            {"logisticregression__C": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]},
            scoring="neg_log_loss",
            cv=StratifiedGroupKFold(3, shuffle=True, random_state=self.seed),
        )
        search.fit(self.embeddings[0], self.codes[0], groups=self.parts[0].groups())
        search.seconds = time.perf_counter() - start
        return search

    def figures(self, model: Any) -> dict[str, float]:
        proba, y = model.predict_proba(self.embeddings[2]), self.codes[2]
        floor = m.ece_noise_floor(proba, random_state=self.seed)
        found = {
            "accuracy": accuracy_score(y, proba.argmax(axis=1)),
            "balanced_accuracy": m.balanced_accuracy(proba, y),
            "auroc": m.auroc(proba, y),
            "ece": m.expected_calibration_error(proba, y),
            "ece_noise_mean": floor[0],
            "ece_noise_95%": floor[1],
            "nll": m.negative_log_likelihood(proba, y),
            "brier": m.brier_score(proba, y),
            "aurc": m.aurc(proba, y),
            "fit_seconds": model.seconds,
        }
        for name, condition in CONDITIONS.items():
            conformal = ConformalClassifier(model, prefit=True, condition_on=condition, confidence_level=LEVEL)
            conformal.conformalize(*self.one_per_unit(1))
            found[f"set_size_{name}"] = conformal.predict_set(self.embeddings[2]).sum(axis=1).mean()
        return {key: float(value) for key, value in found.items()}

    def coverage(self) -> dict[str, Any]:
        """Coverage with one image of each unit in calibration and in test, beside its exact 95% band."""
        rows = {}
        (E, y), (E_test, y_test) = self.one_per_unit(1), self.one_per_unit(2)
        for name, condition in CONDITIONS.items():
            conformal = ConformalClassifier(self.default, prefit=True, condition_on=condition, confidence_level=LEVEL)
            sets = conformal.fit(E, y).conformalize(E, y).predict_set(E_test)
            n = np.bincount(y, minlength=len(self.classes)) if condition == "class" else len(y)
            n_test = np.bincount(y_test, minlength=len(self.classes)) if condition == "class" else len(y_test)
            low, high = m.coverage_band(n, n_test, LEVEL, probability=0.95)
            covered = sets[np.arange(len(y_test)), y_test]
            rows[name] = {
                "coverage": float(covered.mean()),
                "band": [float(low), float(high)],
                "inside": bool(low <= covered.mean() <= high),
                "set_size": float(sets.sum(axis=1).mean()),
                "by_class": {str(c): float(covered[y_test == k].mean()) for k, c in enumerate(self.classes)},
            }
        return {"seed": self.seed, **rows}

    def one_per_unit(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and classes of one image of each unit of a part, as `CBDCClassifier` draws them."""
        data = self.parts[part]
        row = {name: i for i, name in enumerate(data.frame["image"])}
        keep = [row[name] for name in data.one_per(random_state=self.seed).frame["image"]]
        return self.embeddings[part][keep], self.codes[part][keep]

    def external(self, outside: np.ndarray, external: LesionDataset) -> dict[str, float]:
        """Another hospital's images, one image of each unit calibrated on; no guarantee is claimed for them."""
        proba = self.default.predict_proba(outside)
        y = np.searchsorted(self.classes, external.labels)
        melanoma = int(np.searchsorted(self.classes, "mel"))
        found = {
            "accuracy": accuracy_score(y, proba.argmax(axis=1)),
            "melanoma_auroc": m.auroc(np.stack([1 - proba[:, melanoma], proba[:, melanoma]], axis=1), y == melanoma),
        }
        for name, condition in CONDITIONS.items():
            conformal = ConformalClassifier(self.default, prefit=True, condition_on=condition, confidence_level=LEVEL)
            sets = conformal.conformalize(*self.one_per_unit(1)).predict_set(outside)
            covered = sets[np.arange(len(y)), y]
            found |= {
                f"coverage_{name}": covered.mean(),
                f"melanoma_coverage_{name}": covered[y == melanoma].mean(),
                f"set_size_{name}": sets.sum(axis=1).mean(),
            }
        return {key: float(value) for key, value in found.items()}


FIGURES = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "ece": "ECE",
    "nll": "NLL",
    "set_size_marginal": "set size, marginal",
    "set_size_class-conditional": "set size, class-conditional",
}
LABELS = {
    "laplace": "`LaplaceHead()`",
    "laplace_no_mean_correction": "`LaplaceHead(mean_correction=False)`",
    "laplace_standardize": "`LaplaceHead(standardize=True)`",
    "logistic": "logistic regression, each feature standardised",
    "logistic_one_scale": "logistic regression, one scale",
}


def heads_table(summary: dict[str, Any], models: list[str]) -> str:
    """Mean over the seeds, with the least and the largest below it."""
    rows = [f"| {label} | " + " | ".join(_cell(summary[m][f], f) for f in FIGURES) + " |" for m, label in _of(models)]
    return "\n".join([f"| | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|", *rows])


def coverage_table(summary: dict[str, Any]) -> str:
    classes = list(summary["marginal"]["mean_coverage_by_class"])
    rows = [
        f"| {name} | {summary[name]['mean_coverage']:.3f} | "
        f"{summary[name]['inside_the_95%_band']} of {summary[name]['splits']} | "
        + " | ".join(f"{summary[name]['mean_coverage_by_class'][c]:.2f}" for c in classes)
        + " |"
        for name in ("marginal", "class-conditional")
    ]
    head = f"| guarantee | coverage | splits inside the 95% band | {' | '.join(classes)} |"
    return "\n".join([head, "|---" * (len(classes) + 3) + "|", *rows])


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Name of the page to the table on it."""
    summary = results["summary"]
    return {
        "README.md": heads_table(summary, ["laplace", "logistic"]),
        "docs/conformal.md": coverage_table(summary),
        "docs/heads.md": heads_table(summary, list(LABELS)),
    }


def _of(models: list[str]) -> list[tuple[str, str]]:
    return [(name, LABELS[name]) for name in models]


def _cell(values: list[float], figure: str) -> str:
    digits = 2 if figure.startswith("set_size") else 3
    mean, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{mean} ({low}-{high})"


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Mean, least and largest of each figure over the seeds, and the counts of the coverage splits."""
    found: dict[str, Any] = {}
    for model in (*MODELS, "ph2"):
        rows = [row[model] for row in results["seeds"] if model in row]
        found[model] = (
            {
                key: [float(np.mean([r[key] for r in rows])), min(r[key] for r in rows), max(r[key] for r in rows)]
                for key in rows[0]
            }
            if rows
            else {}
        )
    for name in CONDITIONS:
        rows = [row[name] for row in results["coverage"]]
        found[name] = {
            "splits": len(rows),
            "inside_the_95%_band": sum(row["inside"] for row in rows),
            "mean_coverage": float(np.mean([row["coverage"] for row in rows])),
            "mean_coverage_by_class": {
                c: float(np.mean([row["by_class"][c] for row in rows])) for c in rows[0]["by_class"]
            },
        }
    return found


if __name__ == "__main__":
    main()
