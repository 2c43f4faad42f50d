"""Claim: embeddings of a frozen network keep their topology under mild changes of the photograph, and decisions on them
change long before it shows; a certificate bounds the change for clouds that nobody has perturbed; and where a
perturbation breaks the coverage, recalibrating under it mends the coverage, not the size of the sets.

Eighteen perturbations at severities 1, 3 and 5 on one image of each of `--images` lesions or patients: HAM10000's test
part, PH2 (with the model of HAM10000) and PAD-UFES-20's test part, by Fitzpatrick skin type. The remedies are tried on
HAM10000 under the perturbation that costs the sets most coverage.

    python -m experiments.stability --root DATA --cache .cache
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cbdc import ConformalClassifier, ImageEmbedder, LaplaceHead, LesionDataset, load_dataset, make_lesions
from cbdc.images import read_image, resize
from cbdc.metrics import clopper_pearson
from cbdc.perturb import perturb
from cbdc.plots import PersistenceDiagramDisplay, StabilityProfileDisplay
from cbdc.quality import assess_quality
from cbdc.topology import StabilityDiagnostic, StabilityReport
from experiments.record import write_results

LEVEL = 0.9
SKIN_TYPES = {1: "I-II", 2: "I-II", 3: "III-IV", 4: "III-IV", 5: "V-VI", 6: "V-VI"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds the data sets")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/stability.json"))
    parser.add_argument("--figures", type=Path, default=Path("docs/images"))
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--quick", action="store_true", help="made lesions, three perturbations")
    arguments = parser.parse_args()
    if not arguments.quick and arguments.root is None:
        parser.error("--root is needed (or --quick)")
    embedder = ImageEmbedder(cache_dir=arguments.cache)
    names: Any = ["brightness", "blur", "noise"] if arguments.quick else "all"
    if arguments.quick:
        arguments.images = 40
        ham = make_lesions(500, image_size=96, random_state=0)
        data = [ham]
    else:
        ham, ph2, pad = (load_dataset(name, arguments.root / name) for name in ("ham10000", "ph2", "pad_ufes_20"))
        data = [ham, ph2, pad]
    parts = ham.split(random_state=0)
    model = classifier_of(parts, embedder)
    test = some(parts[2], arguments.images)
    runs = {"HAM10000": diagnose(embedder, model, names, test)}
    if not arguments.quick:
        lite1 = ImageEmbedder("efficientnet_lite1", cache_dir=arguments.cache)
        fewer = some(parts[0], 1500), some(parts[1], 400)  # another network embeds all anew
        runs["HAM10000, EfficientNet-Lite1"] = diagnose(lite1, classifier_of(fewer, lite1), names, test)
        runs["PH2"] = diagnose(embedder, model, names, some(ph2.relabel("ham10000"), arguments.images))
        pad_parts = pad.split(random_state=0)
        phone = some(pad_parts[2], arguments.images)
        types = np.array([SKIN_TYPES.get(kind, "unknown") for kind in phone.frame["skin_type"]])
        runs["PAD-UFES-20"] = diagnose(embedder, classifier_of(pad_parts, embedder), names, phone, types)
    results: dict[str, Any] = {}
    for name, diagnostic in runs.items():
        report = diagnostic.report()
        certificate = diagnostic.certify(LEVEL, units_per_cloud=max(3, arguments.images // 15))
        print(f"\n{name}\n{report}\n\n{certificate}", flush=True)
        results[name] = record(report) | {
            "certificate": certificate.bounds.to_dict("records"),
            "clouds": [certificate.n_clouds, certificate.units_per_cloud],
        }
    worst = worst_of(results["HAM10000"]["overall"])
    results["remedies"] = remedies(embedder, parts, *worst, few=arguments.quick)
    print(results["remedies"])
    command = "python -m experiments.stability" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=data)
    draw(runs, worst, arguments.figures)
    for page, table in tables(results).items():
        print(f"{page}\n\n{table}\n")


def some(data: LesionDataset, n: int) -> LesionDataset:
    """One image of each unit, at most n, drawn at random."""
    single = data.one_per(random_state=0)
    chosen = np.random.RandomState(0).permutation(len(single))[:n]
    return single.take(np.sort(chosen))


def classifier_of(parts: Sequence[LesionDataset], embedder: ImageEmbedder) -> ConformalClassifier:
    train, calibration = parts[0], parts[1].one_per(random_state=0)
    head = LaplaceHead(random_state=0).fit(embedder.fit_transform(train.images), train.labels)
    conformal = ConformalClassifier(head, prefit=True, confidence_level=LEVEL)
    return conformal.conformalize(embedder.transform(calibration.images), calibration.labels)


def diagnose(
    embedder: ImageEmbedder, model: ConformalClassifier, names: Any, data: LesionDataset, groups: Any = None
) -> StabilityDiagnostic:
    return StabilityDiagnostic(embedder, names, classifier=model, verbose=True).fit(data, groups=groups)


def record(report: StabilityReport) -> dict[str, Any]:
    def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
        return [] if table.empty else table[table["severity"] == table["severity"].max()].to_dict("records")

    return {
        "overall": report.overall.to_dict("records"),
        "by_class": rows(report.by_class),
        "by_group": rows(report.by_group),
        "scale": report.scale,
        "n_images": report.n_images,
        "n_units": report.n_units,
    }


def worst_of(overall: list[dict[str, Any]]) -> tuple[str, int]:
    worst = min(overall, key=lambda row: row["coverage"])
    return worst["perturbation"], worst["severity"]


def remedies(
    embedder: ImageEmbedder, parts: tuple[LesionDataset, ...], name: str, severity: int, *, few: bool
) -> dict[str, Any]:
    """Coverage and size of the sets under one perturbation, as it is and with each remedy."""
    n_train, n_calibration, n_test = (100, 60, 60) if few else (1000, 500, 500)
    train = parts[0].take(np.sort(np.random.RandomState(1).permutation(len(parts[0]))[:n_train]))
    calibration, test = some(parts[1], n_calibration), some(parts[2], n_test)

    def perturbed(data: LesionDataset) -> list[np.ndarray]:
        return [perturb(read_image(image).pixels, name, severity, random_state=1) for image in data.images]

    E_train, E = (embedder.transform(data.images) for data in (parts[0], calibration))
    moved_test = perturbed(test)
    M_train, M, M_test = (
        embedder.transform(images) for images in (perturbed(train), perturbed(calibration), moved_test)
    )
    head = LaplaceHead(random_state=0).fit(E_train, parts[0].labels)
    both = LaplaceHead(random_state=0).fit(
        np.concatenate([E_train, M_train]), np.concatenate([parts[0].labels, train.labels])
    )

    def sets(head: LaplaceHead, cases: np.ndarray) -> ConformalClassifier:
        conformal = ConformalClassifier(head, prefit=True, confidence_level=LEVEL)
        return conformal.conformalize(cases, calibration.labels)

    accepted = np.array([assess_quality(image).verdict == "accept" for image in moved_test])
    everything = np.ones(len(test), dtype=bool)
    found = {
        "images as they are": figures(sets(head, E), embedder.transform(test.images), test, everything),
        "perturbed, nothing done": figures(sets(head, E), M_test, test, everything),
        "refuse what the quality check refuses": figures(sets(head, E), M_test, test, accepted),
        "recalibrate on perturbed images": figures(sets(head, M), M_test, test, everything),
        "train on perturbed images too, and recalibrate": figures(sets(both, M), M_test, test, everything),
    }
    return {"perturbation": name, "severity": severity, "rows": found}


def figures(model: ConformalClassifier, E: np.ndarray, data: LesionDataset, kept: np.ndarray) -> dict[str, float]:
    if not kept.any():
        return {"answered": 0.0}
    sets, labels = model.predict_set(E[kept]), data.labels[kept]
    covered = sets[np.arange(len(labels)), np.searchsorted(model.classes_, labels)]
    low, high = clopper_pearson(int(covered.sum()), len(covered))
    return {
        "answered": float(kept.mean()),
        "coverage": float(covered.mean()),
        "low": float(low),
        "high": float(high),
        "set_size": float(sets.sum(axis=1).mean()),
        "accuracy": float(np.mean(model.predict(E[kept]) == labels)),
    }


def draw(runs: dict[str, StabilityDiagnostic], worst: tuple[str, int], folder: Path) -> None:
    report = runs["HAM10000"].report()
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for ax, value in zip(axes, ("displacement", "flips")):
        StabilityProfileDisplay.from_report(report, value, ax=ax)
    figure.savefig(folder / "stability_profile.png", dpi=80)
    diagnostic = runs["HAM10000"]
    diagrams = PersistenceDiagramDisplay.from_embeddings(
        [diagnostic.embeddings_, diagnostic.perturbed_[worst]],
        names=["as they are", f"{worst[0]}, severity {worst[1]}"],
    )
    diagrams.figure_.savefig(folder / "stability_diagrams.png", dpi=80)
    image = read_image(make_lesions(1, image_size=224, random_state=3).images[0]).pixels
    sheet = np.concatenate([image, *(perturb(image, worst[0], s, 1) for s in (1, 3, 5))], axis=1)
    plt.imsave(folder / "stability_worst.png", resize(sheet, (sheet.shape[0] // 2, sheet.shape[1] // 2)))


def tables(results: dict[str, Any]) -> dict[str, str]:
    parts = []
    for name, run in results.items():
        if name in ("remedies", "about"):
            continue
        last = pd.DataFrame(run["overall"])
        last = last.loc[last.groupby("perturbation", sort=False)["severity"].idxmax()]
        bounds = {(row["perturbation"], row["severity"]): row["capped"] for row in run["certificate"]}
        lines = [
            f"| {name}, {run['n_images']} images | displacement | H0 | certificate | new clouds | neighbours kept "
            "| flips (95% interval) | sets changed | coverage |",
            "|---" * 9 + "|",
        ]
        for row in last.sort_values("displacement", ascending=False).to_dict("records"):
            new = bounds[row["perturbation"], row["severity"]]
            lines.append(
                f"| {row['perturbation'].replace('_', ' ')} | {row['displacement']:.2f} | {row['H0']:.2f} | "
                f"{row['capped']:.2f} | {new:.2f} | {row['neighbours_kept']:.2f} | {row['flips']:.2f} "
                f"({row['flips_low']:.2f}-{row['flips_high']:.2f}) | {row['sets_changed']:.2f} | "
                f"{row['coverage']:.2f} |"
            )
        parts.append("\n".join(lines))
    remedy = results["remedies"]
    lines = [
        f"| {remedy['perturbation']}, severity {remedy['severity']} | answered | coverage (95% interval) "
        "| set size | accuracy |",
        "|---" * 5 + "|",
    ]
    for name, row in remedy["rows"].items():
        if row["answered"]:
            lines.append(
                f"| {name} | {row['answered']:.2f} | {row['coverage']:.3f} ({row['low']:.3f}-{row['high']:.3f}) | "
                f"{row['set_size']:.2f} | {row['accuracy']:.3f} |"
            )
        else:
            lines.append(f"| {name} | 0.00 | | | |")
    return {"docs/stability.md": "\n\n".join([*parts, "\n".join(lines)]), "docs/topology.md": _tightness(results)}


def _tightness(results: dict[str, Any]) -> str:
    """How many times the bottleneck distance of H0 each certificate is: median, least and largest of all settings."""
    lines = ["| | capped distortion | distortion | 2 x displacement |", "|---|---|---|---|"]
    for name, run in results.items():
        if name in ("remedies", "about"):
            continue
        rows = pd.DataFrame(run["overall"])
        ratios = [rows[link] / rows["H0"] for link in ("capped", "distortion", "twice_displacement")]
        cells = [f"{ratio.median():.1f} ({ratio.min():.1f}-{ratio.max():.0f})" for ratio in ratios]
        lines.append(f"| {name}, n = {run['n_images']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
