"""Claim: calibrated on images as if each were a patient, sets fall well short of their level more than twice as often
as with the patients' weights evened out; and the band that is printed for patients holds as often as it says.

Made scores: each is a patient's own normal number and an image's, with a share ICC of the variance between patients.
For each of `--runs` calibrations the coverage of the threshold for a random image of a new patient is known exactly.
Real data: HAM10000 and PAD-UFES-20 with a `LaplaceHead` fitted on part of their lesions or patients, ISIC 2020 with one
fitted on HAM10000 as benign and malignant; the units that are left are parted in two again and again, one half
calibrates and the other is tested.

    python -m experiments.patients --root DATA --cache .cache
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import special, stats

from cbdc import ConformalClassifier, ImageEmbedder, LaplaceHead, load_dataset
from cbdc import metrics as m
from cbdc.conformal import CalibrationScores, approximate_band, draw_one, effective_n, pac_rank
from experiments.record import write_results

LEVEL, DELTA, SHORT = 0.9, 0.05, 0.88
_WIDEST = 0.35  # share at which the plot ends
MALIGNANT = {"mel", "bcc", "akiec"}


def ten(rng: np.random.Generator, patient: np.ndarray) -> np.ndarray:
    return np.full(len(patient), 10)


def uneven(rng: np.random.Generator, patient: np.ndarray) -> np.ndarray:
    """From 1 to 80 images, 10 on average."""
    return _sizes(rng.standard_normal(len(patient)))


def more_of_the_difficult(rng: np.random.Generator, patient: np.ndarray) -> np.ndarray:
    """As many, but the less a patient's images conform, the more there are."""
    return _sizes(patient)


def more_of_the_easy(rng: np.random.Generator, patient: np.ndarray) -> np.ndarray:
    return _sizes(-patient)


def _sizes(z: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(10 * np.exp(0.8 * z - 0.32)), 1, 80).astype(int)


DESIGNS: dict[str, tuple[int, float, Callable[..., np.ndarray]]] = {
    "100 patients of 10 images, ICC 0.5": (100, 0.5, ten),
    "the same, ICC 0": (100, 0.0, ten),
    "the same, ICC 1": (100, 1.0, ten),
    "30 patients of 10 images, ICC 0.5": (30, 0.5, ten),
    "100 patients of 1 to 80 images, ICC 0.5": (100, 0.5, uneven),
    "the same, more images of difficult patients": (100, 0.5, more_of_the_difficult),
    "the same, more images of easy patients": (100, 0.5, more_of_the_easy),
}
METHODS = {
    "pooled": "images pooled",
    "one": '`repeated="one"`',
    "hierarchical": '`repeated="hierarchical"`',
    "pac_one": '`guarantee="pac"`, `repeated="one"`',
    "pac_effective": "PAC by the effective number (approximate)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000, isic2020 and pad_ufes_20")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/patients.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_patients.png"))
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--fits", type=int, default=5)
    parser.add_argument("--halves", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="made scores only, 300 runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs = 300
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    made = {name: simulate(*design, arguments.runs, seed) for seed, (name, design) in enumerate(DESIGNS.items())}
    results: dict[str, Any] = {"made": {name: made_summary(found) for name, found in made.items()}, "real": {}}
    print(json.dumps(results, indent=1), flush=True)
    data = []
    if not arguments.quick:
        names = ("ham10000", "pad_ufes_20", "isic2020")
        loaded = {name: load_dataset(name, arguments.root / name) for name in names}
        embedder = ImageEmbedder(cache_dir=arguments.cache, verbose=True)
        embeddings = {name: embedder.fit_transform(d.images) for name, d in loaded.items()}
        for name in names:
            results["real"][name] = real(name, loaded, embeddings, arguments.fits, arguments.halves)
            print(name, json.dumps(results["real"][name], indent=1), flush=True)
        data = list(loaded.values())
    command = "python -m experiments.patients" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=data)
    plot(made, results["made"], arguments.figure)


# --- made scores


def simulate(n_patients: int, icc: float, sizes: Callable[..., np.ndarray], runs: int, seed: int) -> dict[str, Any]:
    """Coverage for a random image of a new patient of each method's threshold, (runs,); and whether the band holds it.

    Conformity scores are minus a patient's number and an image's, standard normal together for a random image of a
    random patient: the coverage of a threshold t is the normal distribution at -t.
    """
    rng = np.random.default_rng(seed)
    thresholds = {name: np.empty(runs) for name in METHODS}
    holds = np.empty(runs, dtype=bool)
    rank = pac_rank(n_patients, LEVEL, DELTA)
    for run in range(runs):
        patient = rng.standard_normal(n_patients)
        n = sizes(rng, patient)
        units = np.repeat(np.arange(n_patients), n)
        scores = -(np.sqrt(icc) * patient[units] + np.sqrt(1 - icc) * rng.standard_normal(len(units)))
        one = table(scores[draw_one(units, np.random.RandomState(run))])
        thresholds["pooled"][run] = table(scores).thresholds(LEVEL)[0, 0]
        thresholds["one"][run] = one.thresholds(LEVEL)[0, 0]
        thresholds["pac_one"][run] = one.at_ranks(np.array([[rank]]))[0, 0]
        limit = thresholds["hierarchical"][run] = table(scores, units).thresholds(LEVEL)[0, 0]
        thresholds["pac_effective"][run] = effective_threshold(scores, units)
        low, high = approximate_band(scores >= limit, units)
        holds[run] = low <= stats.norm.cdf(-limit) <= high
    return {name: stats.norm.cdf(-found) for name, found in thresholds.items()} | {"holds": holds}


def table(scores: np.ndarray, units: np.ndarray | None = None) -> CalibrationScores:
    return CalibrationScores.from_cases(scores, np.zeros(len(scores), dtype=int), (1, 1), units=units)


def effective_threshold(scores: np.ndarray, units: np.ndarray) -> float:
    """Best conforming threshold whose coverage is above the level with probability 1 - delta by the law of as many
    independent cases as the images are worth."""
    ordered = np.sort(scores)
    sizes = np.bincount(units)

    def is_safe(threshold: float) -> bool:
        covered = scores >= threshold
        n = effective_n(covered, units)
        k = n * (np.bincount(units, covered) / sizes).mean()
        return special.betainc(k, n + 1 - k, LEVEL) <= DELTA

    low, high = -1, len(ordered) - 1  # bisection for the last place that is safe; -1 stands for none
    while low < high:
        middle = (low + high + 1) // 2
        if is_safe(ordered[middle]):
            low = middle
        else:
            high = middle - 1
    return float(ordered[low]) if low >= 0 else -np.inf


def made_summary(found: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name in METHODS:
        c = found[name]
        rows[name] = {"mean": float(c.mean()), "mean_error": float(c.std() / np.sqrt(len(c))), "sd": float(c.std())}
        rows[name] |= {"short": share(c < SHORT), "below_level": share(c < LEVEL)}
    return rows | {"band_holds": share(found["holds"])}


def share(true: np.ndarray) -> list[float]:
    """A share and its exact 95% interval."""
    low, high = m.clopper_pearson(int(np.sum(true)), len(true))
    return [float(np.mean(true)), float(low), float(high)]


# --- real data


def real(name: str, data: dict[str, Any], embeddings: dict[str, Any], fits: int, halves: int) -> dict[str, Any]:
    """Mean over the halvings of the coverage of images and of units, and how often the latter falls short."""
    rows: dict[str, list] = {method: [] for method in ("pooled", "one", "hierarchical")}
    effects, n_units, n_images = [], 0, 0
    for seed in range(fits):
        proba, y, units = probabilities(name, data, embeddings, seed)
        n_units, n_images = int(units.max()) + 1, len(units)
        rng = np.random.default_rng(seed)
        for half in range(halves):
            calibrates = (rng.permutation(n_units) < n_units // 2)[units]
            P, labels, of = proba[calibrates], y[calibrates], units[calibrates]
            P_new, y_new, of_new = proba[~calibrates], y[~calibrates], units[~calibrates]
            for method, found in rows.items():
                repeated = "one" if method == "one" else "hierarchical"
                clf = ConformalClassifier(confidence_level=LEVEL, repeated=repeated, random_state=half)
                sets = clf.conformalize(P, labels, units=None if method == "pooled" else of).predict_set(P_new)
                covered = sets[np.arange(len(y_new)), y_new]
                by_unit = np.bincount(of_new, covered)[np.unique(of_new)] / np.bincount(of_new)[np.unique(of_new)]
                found.append([covered.mean(), by_unit.mean(), sets.sum(axis=1).mean()])
                if method == "pooled":
                    effects.append(m.design_effect(covered, of_new))
    summary: dict[str, Any] = {"unit": data[name].unit, "n_units": n_units, "n_images": n_images}
    summary |= {"halvings": fits * halves, "design_effect": float(np.mean(effects))}
    for method, found in rows.items():
        images, by_unit, size = np.array(found).T
        summary[method] = {"images": float(images.mean()), "units": float(by_unit.mean()), "sd": float(by_unit.std())}
        summary[method] |= {"short": float(np.mean(by_unit < SHORT)), "set_size": float(size.mean())}
    return summary


def probabilities(name: str, data: dict[str, Any], embeddings: dict[str, Any], seed: int) -> tuple:
    """Probabilities, true classes and units of the images that the classifier did not see."""
    if name == "isic2020":
        train, rest, classes = data["ham10000"], data[name], ("benign", "malignant")
        train_labels = np.isin(train.labels, sorted(MALIGNANT)).astype(int)
        train = train.take(kept := np.random.default_rng(seed).permutation(len(train))[:6000])
        train_labels, seen = train_labels[kept], embeddings["ham10000"][kept]
    else:
        train, rest = data[name].split(sizes=(0.6, 0.4), random_state=seed)
        classes = data[name].classes
        row = {image: i for i, image in enumerate(data[name].frame["image"])}
        train_labels = np.searchsorted(classes, train.labels)
        seen = embeddings[name][[row[image] for image in train.frame["image"]]]
    row = {image: i for i, image in enumerate(data[name].frame["image"])}
    new = embeddings[name][[row[image] for image in rest.frame["image"]]]
    proba = LaplaceHead(random_state=seed).fit(seen, train_labels).predict_proba(new)
    return proba, np.searchsorted(classes, rest.labels), rest.groups()


# --- what is shown


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The page, and the tables on it."""
    shown = ("pooled", "one", "hierarchical")
    lines = ["| made scores | " + " | ".join(METHODS[method] for method in shown) + " |", "|---" * 4 + "|"]
    for design, found in results["made"].items():
        lines.append(f"| {design} | " + " | ".join(_cell(found[method], "short") for method in shown) + " |")
    shown = ("pac_one", "pac_effective")
    lines += ["", "| made scores | " + " | ".join(METHODS[method] for method in shown) + " | 90% band holds |"]
    lines += ["|---" * 4 + "|"]
    for design, found in results["made"].items():
        cells = [_cell(found[method], "below_level") for method in shown]
        lines.append(f"| {design} | " + " | ".join([*cells, _share(found["band_holds"])]) + " |")
    lines += [
        "",
        f"| data | threshold | coverage of images | of units | its spread | of units < {SHORT} | classes in a set |",
        "|---" * 7 + "|",
    ]
    for name, found in results["real"].items():
        of = f"{name}, {found['n_images']:,} images of {found['n_units']:,} {found['unit']}s"
        of += f", design effect {found['design_effect']:.1f}"
        for method in ("pooled", "one", "hierarchical"):
            c = found[method]
            lines.append(
                f"| {of} | {METHODS[method]} | {c['images']:.3f} | {c['units']:.3f} | {c['sd']:.3f} | "
                f"{c['short']:.0%} | {c['set_size']:.2f} |"
            )
    return {"docs/conformal/patients.md": "\n".join(lines)}


def _cell(found: dict[str, Any], key: str) -> str:
    return f"{found['mean']:.3f}; {_share(found[key])}"


def _share(values: list[float]) -> str:
    rate, low, high = (100 * value for value in values)
    return f"{rate:.1f}% ({low:.1f}-{high:.1f})"


def plot(made: dict[str, Any], summary: dict[str, Any], path: Path) -> None:
    """How the coverage spreads over calibrations, and how often it falls short, with exact intervals."""
    colours = {"pooled": "#c1666b", "one": "#999999", "hierarchical": "#2a6f97"}
    labels = {"pooled": "images pooled", "one": "one image of each", "hierarchical": "hierarchical"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), width_ratios=(1, 1.15))
    first = next(iter(DESIGNS))
    bins = np.linspace(0.8, 0.98, 61)
    left.axvspan(bins[0], SHORT, color="0.93")
    for name, colour in colours.items():
        rate = summary[first][name]["short"][0]
        label = f"{labels[name]}: {rate:.1%} below {SHORT}"
        left.hist(made[first][name], bins, density=True, histtype="step", color=colour, lw=1.6, label=label)
    left.axvline(LEVEL, color="k", lw=0.8, ls=":")
    left.set(title=first, xlabel="coverage for a random image of a new patient", ylabel="density over calibrations")
    left.set_xlim(bins[0], bins[-1])
    left.set_ylim(0, left.get_ylim()[1] * 1.3)
    left.legend(fontsize=8, loc="upper left", framealpha=1)
    places = np.arange(len(DESIGNS))[::-1]
    for shift, (name, colour) in zip((0.2, 0, -0.2), colours.items(), strict=True):
        rate, low, high = np.array([summary[design][name]["short"] for design in DESIGNS]).T
        right.errorbar(rate, places + shift, xerr=[rate - low, high - rate], fmt="o", ms=3, capsize=3, color=colour)
        for y, beyond in zip(places + shift, rate):
            if beyond > _WIDEST:
                at = {"ha": "right", "va": "center", "size": 8, "color": colour}
                right.text(_WIDEST, y, f"{labels[name]}: {beyond:.0%} →  ", **at)
    right.set_yticks(places, [design.replace(", ", ",\n", 1) for design in DESIGNS], fontsize=8)
    right.set(title=f"P(coverage < {SHORT}), with 95% interval", xlabel="share of calibrations")
    right.set_xlim(-0.01, _WIDEST)
    right.grid(axis="x", color="0.9")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
