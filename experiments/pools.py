"""Claim: of the averages of a linear, a nonlinear and a kernel head, the default head's is the one to take.

HAM10000, PH2 and PAD-UFES-20 on frozen EfficientNet-Lite0 embeddings through the Hellinger map, split 60/20/20 by
lesion or patient: the first ten splits of HAM10000, the first thirty of the others. This is where the default was
chosen; `experiments.heads` measures it on other splits. Each head is fitted once a split, dropout once more with
another seed; a pool is the mean of probabilities, or ("geometric") of their logarithms. Sets are class-conditional at
0.9, calibrated on one image of each unit of the second part; the figures are those of the third.

    python -m experiments.pools --root DATA --cache .cache
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import roc_auc_score

from cbdc import ConformalClassifier, ImageEmbedder, load_dataset, make_lesions
from cbdc import metrics as m
from cbdc.heads import make_head
from experiments.embedded import Embedded
from experiments.record import write_results
from experiments.splits import over_splits, table

LEVEL = 0.9
SPLITS = {"ham10000": 10, "ph2": 30, "pad_ufes_20": 30}
HEADS = {"laplace": ("laplace", 0), "dropout": ("dropout", 0), "dropout again": ("dropout", 1000), "gp": ("gp", 0)}
POOLS = {  # differences are from the first, which is the default head
    "dropout twice + gp": ("dropout", "dropout again", "gp"),
    "dropout twice + gp, geometric": ("dropout", "dropout again", "gp"),
    "laplace": ("laplace",),
    "dropout": ("dropout",),
    "gp": ("gp",),
    "laplace + gp": ("laplace", "gp"),
    "laplace + dropout": ("laplace", "dropout"),
    "dropout + gp": ("dropout", "gp"),
    "dropout twice": ("dropout", "dropout again"),
    "laplace + dropout twice": ("laplace", "dropout", "dropout again"),
    "laplace + dropout + gp": ("laplace", "dropout", "gp"),
    "laplace + dropout + gp, geometric": ("laplace", "dropout", "gp"),
    "laplace + dropout twice + gp": ("laplace", "dropout", "dropout again", "gp"),
}
FIGURES = {
    "nll": "NLL",
    "nll_difference": "less the first",
    "set_size": "set size",
    "set_size_difference": "less the first",
    "ece_over_floor": "ECE over its floor",
    "overconfidence": "confidence less accuracy",
}
DIGITS = {"set_size": 2, "set_size_difference": 3, "nll_difference": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds the data sets")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/pools.json"))
    parser.add_argument("--quick", action="store_true", help="made lesions, two splits")
    arguments = parser.parse_args()
    if not arguments.quick and arguments.root is None:
        parser.error("--root is needed (or --quick)")
    embedder = ImageEmbedder(cache_dir=arguments.cache)
    if arguments.quick:
        sets = {"made": make_lesions(400, image_size=96, random_state=0)}
    else:
        sets = {name: load_dataset(name, arguments.root / name) for name in SPLITS}
    embedded = {name: Embedded(data, embedder) for name, data in sets.items()}
    results = {}
    for name, data in embedded.items():
        rows = [figures(data, split, embedded.get("pad_ufes_20")) for split in range(SPLITS.get(name, 2))]
        results[name] = {pool: summary(pool, rows) for pool in rows[0]}
        print(name, flush=True)
        command = "python -m experiments.pools" + (" --quick" if arguments.quick else " --root DATA")
        write_results(arguments.out, {"sets": results}, command=command, data=sets.values())
    for page, text in tables({"sets": results}).items():
        print(f"{page}\n\n{text}\n")


def figures(data: Embedded, split: int, elsewhere: Embedded | None) -> dict[str, dict[str, float]]:
    """By pool, the figures of one split."""
    parts = data.data.split(random_state=split)
    E, y = data.of(parts[0])
    (E_calibration, y_calibration), (E_test, y_test) = data.one_per_unit(parts[1], split), data.of(parts[2])
    heads = {
        name: make_head(kind, feature_map="hellinger", random_state=seed + split).fit(E, y)
        for name, (kind, seed) in HEADS.items()
    }
    outside = elsewhere.embeddings if data.data.name == "ham10000" and elsewhere is not None else E_test[:0]
    log_proba, left = {}, {}  # of each head; the latter is the entropy that is left when the model is known
    for name, head in heads.items():
        rows = np.concatenate([E_calibration, E_test, outside])
        log_proba[name], information = head.predict_with_information(rows)
        left[name] = entropy(log_proba[name]) - information
    found = {}
    cuts = [len(E_calibration), len(E_calibration) + len(E_test)]
    for pool, members in POOLS.items():
        stack = np.array([log_proba[name] for name in members])
        is_mean = not pool.endswith("geometric")
        pooled = logsumexp(stack, axis=0) - np.log(len(stack)) if is_mean else log_softmax(stack.mean(axis=0), axis=1)
        calibration, test, beyond = np.split(np.exp(pooled), cuts)
        found[pool] = scores(calibration, y_calibration, test, y_test, split)
        if len(beyond):
            measures = {"entropy": entropy(pooled)}
            if is_mean:
                measures["information"] = entropy(pooled) - np.mean([left[name] for name in members], axis=0)
            is_outside = np.repeat([0, 1], [len(test), len(beyond)])
            for name, value in measures.items():
                found[pool][f"ood_{name}"] = float(roc_auc_score(is_outside, value[cuts[0] :]))
    return found


def entropy(log_proba: np.ndarray) -> np.ndarray:
    return -np.sum(np.exp(log_proba) * log_proba, axis=1)


def scores(
    calibration: np.ndarray, y_calibration: np.ndarray, test: np.ndarray, y_test: np.ndarray, seed: int
) -> dict[str, float]:
    conformal = ConformalClassifier(condition_on="class", confidence_level=LEVEL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes too small for a threshold: their sets hold them always
        sets = conformal.conformalize(calibration, y_calibration).predict_set(test)
    error = m.expected_calibration_error(test, y_test)
    return {
        "nll": m.negative_log_likelihood(test, y_test),
        "set_size": float(sets.sum(axis=1).mean()),
        "ece_over_floor": error - m.ece_noise_floor(test, random_state=seed)[0],
        "overconfidence": float(test.max(axis=1).mean() - np.mean(test.argmax(axis=1) == y_test)),
    }


def summary(pool: str, rows: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean and standard error over the splits; of the differences from the first pool, split by split."""
    first = next(iter(POOLS))
    columns: dict[str, list[float]] = {name: [row[pool][name] for row in rows] for name in rows[0][pool]}
    for name in ("nll", "set_size"):
        columns[f"{name}_difference"] = [row[pool][name] - row[first][name] for row in rows]
    return {name: over_splits(of) for name, of in columns.items()}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Name of the page to the tables on it."""
    parts = []
    for name, pools in results["sets"].items():
        figures = dict(FIGURES)
        if "ood_entropy" in next(iter(pools.values())):
            figures |= {"ood_entropy": "AUROC, entropy", "ood_information": "AUROC, information"}
        parts.append(table(name, figures, pools, DIGITS))
    return {"docs/heads.md": "\n\n".join(parts)}


if __name__ == "__main__":
    main()
