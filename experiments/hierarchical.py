"""Claim: answered by a node of the tree, a case of which the diagnosis is unsure gets the name of a group instead of a
list of classes; the coverage of the answers lies where the exact law says, and at the groups above it.

HAM10000 (by lesion) and PAD-UFES-20 (by patient) are split at random `--splits` times, a `LaplaceHead` is fitted on
frozen EfficientNet-Lite0 embeddings, and calibration and test hold one image of each lesion or patient. HAM10000 is
answered by two trees: by cell type, as `cbdc.taxonomy` has it, and by management, benign against malignant.

    python -m experiments.hierarchical --root DATA --cache .cache
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cbdc import ConformalClassifier, ImageEmbedder, LaplaceHead, LesionDataset, load_dataset, make_lesions
from cbdc import metrics as m
from cbdc.conformal import HierarchicalConformalClassifier
from cbdc.errors import CalibrationSizeWarning
from cbdc.taxonomy import Taxonomy, get_taxonomy
from experiments.record import write_results

LEVELS = (0.8, 0.85, 0.9, 0.95, 0.99)
SHOWN = (0.8, 0.9, 0.95)
BY_MANAGEMENT = Taxonomy(
    {"lesion": None, "benign": "lesion", "malignant": "lesion", "malignant keratinocytic": "malignant"}
    | dict.fromkeys(("bkl", "df", "nv", "vasc"), "benign")
    | {"mel": "malignant", "akiec": "malignant keratinocytic", "bcc": "malignant keratinocytic"},
    name="by management",
)
TREES = {"ham10000": get_taxonomy("ham10000"), "ham10000 by management": BY_MANAGEMENT}
TREES["pad_ufes_20"] = get_taxonomy("pad_ufes_20")
METHODS: dict[str, dict[str, Any]] = {
    "node": {},
    "node, LAC": {"score": "lac"},
    "node, by class": {"condition_on": "class"},
    "any nodes, by class": {"mode": "antichain", "score": "lac", "condition_on": "class"},
    "2 nodes": {"mode": "antichain", "max_nodes": 2},
    "2 nodes, LAC": {"mode": "antichain", "max_nodes": 2, "score": "lac"},
    "levels": {"mode": "levels", "score": "lac"},
    "flat LAC": {"score": "lac"},
    "flat APS": {"score": "aps"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000 and pad_ufes_20")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/hierarchical.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_hierarchical.png"))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="made lesions, three splits; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        sets = {"made lesions": (make_lesions(900, image_size=96, random_state=0), (0.6, 0.2, 0.2))}
        trees = {"made lesions": sets["made lesions"][0].taxonomy}
        arguments.splits = 3
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:  # of the few patients of PAD-UFES-20 more are kept to calibrate and to test
        parts = {"ham10000": (0.6, 0.2, 0.2), "pad_ufes_20": (0.4, 0.3, 0.3)}
        sets = {name: (load_dataset(name, arguments.root / name), sizes) for name, sizes in parts.items()}
        trees = TREES
    embedder = ImageEmbedder(cache_dir=arguments.cache, verbose=True)
    results: dict[str, Any] = {name: [] for name in trees}
    for name, (data, sizes) in sets.items():
        embeddings = embedder.fit_transform(data.images)
        for seed in range(arguments.splits):
            calibration, test = probabilities(data, embeddings, sizes, seed)
            for tree_name in (t for t in trees if t.startswith(name)):
                results[tree_name].append(one_split(trees[tree_name], data.classes, calibration, test, seed))
            print(name, seed, json.dumps(results[name][-1]["node"]["0.9"]), flush=True)
    results = {
        "summary": {name: summary(rows) for name, rows in results.items()},
        "coverage": {
            name: {
                method: [[row[method][str(level)]["coverage"] for level in LEVELS] for row in rows]
                for method in METHODS
            }
            for name, rows in results.items()
        },
    }
    command = "python -m experiments.hierarchical" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[data for data, _ in sets.values()])
    plot(results["summary"], arguments.figure)


def probabilities(data: LesionDataset, embeddings: np.ndarray, sizes: tuple, seed: int) -> list[tuple]:
    """Probabilities and true classes of calibration and test, one image of each unit."""
    row = {name: i for i, name in enumerate(data.frame["image"])}
    train, *others = data.split(sizes=sizes, random_state=seed)
    where = [row[name] for name in train.frame["image"]]
    head = LaplaceHead(random_state=seed).fit(embeddings[where], np.searchsorted(data.classes, train.labels))
    found = []
    for part in others:
        part = part.one_per(random_state=seed)
        proba = head.predict_proba(embeddings[[row[name] for name in part.frame["image"]]])
        found.append((proba, np.searchsorted(data.classes, part.labels)))
    return found


def one_split(tree: Taxonomy, classes: tuple, calibration: tuple, test: tuple, seed: int) -> dict[str, Any]:
    """Figures of every method at every level."""
    (P, y), (P_test, y_test) = calibration, test
    found: dict[str, Any] = {"n_calibration": len(y), "n_test": len(y_test)}
    found["accuracy"] = float((P_test.argmax(axis=1) == y_test).mean())
    for name, options in METHODS.items():
        make: Any = ConformalClassifier
        if not name.startswith("flat"):
            make, options = HierarchicalConformalClassifier, {"taxonomy": tree, "leaves": classes, **options}
        # What names a flat set in words of the tree, and its groups, is asked of a tree without a bound
        naming = HierarchicalConformalClassifier(taxonomy=tree, leaves=classes, mode="antichain")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationSizeWarning)  # rare classes; their answers hold every class
            clf = make(**options, random_state=seed).conformalize(P, y)
            naming.fit(P)
            found[name] = {str(level): figures(clf, naming, P_test, y_test, level) for level in LEVELS}
        if options.get("condition_on") is None and options.get("mode") != "levels":  # then the law is known
            for level in LEVELS:
                low, high = m.coverage_band(len(y), len(y_test), level, probability=0.95)
                cell = found[name][str(level)]
                cell |= {"band": [float(low), float(high)], "inside": bool(low <= cell["coverage"] <= high)}
    return found


def figures(clf: Any, tree: Any, P: np.ndarray, y: np.ndarray, level: float) -> dict[str, Any]:
    sets = clf.predict_set(P, level)
    n_leaves = sets.sum(axis=1)
    covered = sets[np.arange(len(y)), y]
    group_of = tree._level_codes[1]
    groups = np.stack([sets[:, group_of == g].any(axis=1) for g in range(group_of.max() + 1)], axis=1)
    found = {
        "coverage": covered.mean(),
        "by_class": [float(covered[y == k].mean()) if (y == k).any() else None for k in range(sets.shape[1])],
        "coverage_of_the_group": groups[np.arange(len(y)), group_of[y]].mean(),
        "leaves": n_leaves.mean(),
        "nodes": n_leaves.mean(),  # a flat set is a list
        "one_group": (groups.sum(axis=1) == 1).mean(),
        "empty": (n_leaves == 0).mean(),
        "leaf": (n_leaves == 1).mean(),
        "root": (n_leaves == sets.shape[1]).mean(),
    }
    if isinstance(clf, HierarchicalConformalClassifier):
        found["nodes"] = clf.predict_node_set(P, level).sum(axis=1).mean()
    found["group"] = 1 - found["empty"] - found["leaf"] - found["root"]
    return {key: value if isinstance(value, list) else float(value) for key, value in found.items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each figure over the splits, and how many splits lie inside the band."""
    found: dict[str, Any] = {"splits": len(rows)}
    for key in ("accuracy", "n_calibration", "n_test"):
        found[key] = float(np.mean([row[key] for row in rows]))
    for name in METHODS:
        found[name] = {}
        for level in map(str, LEVELS):
            cells = [row[name][level] for row in rows]
            mean = {key: np.nanmean(np.array([cell[key] for cell in cells], float), axis=0) for key in cells[0]}
            found[name][level] = {key: np.round(value, 5).tolist() for key, value in mean.items()}
            if "inside" in cells[0]:
                found[name][level]["inside"] = sum(cell["inside"] for cell in cells)
    return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The page, and the table on it."""
    rows = [
        "| tree | level | leaf | group | root | coverage | inside the 95% band | of the group | classes an answer |"
    ]
    rows += ["|---" * 9 + "|"]
    for tree, found in results["summary"].items():
        for level in map(str, SHOWN):
            c = found["node"][level]
            rows.append(
                f"| {tree} | {level} | {c['leaf']:.1%} | {c['group']:.1%} | {c['root']:.1%} | {c['coverage']:.3f} | "
                f"{c['inside']} of {found['splits']} | {c['coverage_of_the_group']:.3f} | {c['leaves']:.2f} |"
            )
    rows += [
        "",
        "| tree | at 0.9 | coverage | of the worst class | classes | words | within one group |",
        "|---" * 7 + "|",
    ]
    for tree in (tree for tree in results["summary"] if tree != "ham10000 by management"):
        for name in METHODS:
            c = results["summary"][tree][name]["0.9"]
            rows.append(
                f"| {tree} | {name} | {c['coverage']:.3f} | {min(c['by_class']):.2f} | {c['leaves']:.2f} | "
                f"{c['nodes']:.2f} | {c['one_group']:.0%} |"
            )
    return {"docs/conformal/hierarchical.md": "\n".join(rows)}


def plot(found: dict[str, Any], path: Path) -> None:
    """Shares answered by a leaf, a group or the root; and coverage less the level, with its band."""
    names = list(found)
    figure, axes = plt.subplots(2, len(names), figsize=(3.6 * len(names), 5.6), squeeze=False, sharex=True)
    places = np.arange(len(LEVELS))
    for column, name in enumerate(names):
        cells = [found[name]["node"][str(level)] for level in LEVELS]
        above, below = axes[0, column], axes[1, column]
        base = np.zeros(len(LEVELS))
        for key, colour in (("leaf", "#2a6f97"), ("group", "#89c2d9"), ("root", "#d9d9d9")):
            share = np.array([cell[key] for cell in cells])
            above.bar(places, share, bottom=base, color=colour, width=0.8, label=key)
            for x, b, s in zip(places, base, share):
                if s > 0.06:
                    dark = key == "leaf"
                    above.text(x, b + s / 2, f"{s:.0%}", ha="center", va="center", color="w" if dark else "k", size=8)
            base += share
        above.set_title(f"{name}\nclassifier right: {found[name]['accuracy']:.0%}", size=10)
        above.set_ylim(0, 1)
        nominal = np.array(LEVELS)
        low, high = np.array([cell["band"] for cell in cells]).T - nominal
        below.fill_between(places, low, high, color="0.85", label="95% band of one split")
        below.axhline(0, color="k", lw=0.8)
        for key, style in (("coverage", "o-"), ("coverage_of_the_group", "s--")):
            label = "diagnosis" if key == "coverage" else "group"
            colour = "#2a6f97" if key == "coverage" else "#c1666b"
            below.plot(places, np.array([c[key] for c in cells]) - nominal, style, color=colour, ms=4, label=label)
        below.set_xticks(places, [f"{level:g}" for level in LEVELS])
        below.set_xlabel("confidence level")
    axes[0, 0].set_ylabel("share of cases answered by")
    axes[1, 0].set_ylabel("coverage less the level")
    axes[1, 0].legend(loc="upper right", fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=3, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
