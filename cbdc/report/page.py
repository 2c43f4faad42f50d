"""`write_report`: the evaluation as a page for readers and a JSON file for machines."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..plots import (
    ClassCoverageDisplay,
    CoverageLevelDisplay,
    ReliabilityDisplay,
    RiskCoverageDisplay,
    SetSizeDisplay,
)
from .cases import card, class_rows
from .evaluation import Evaluation, unchecked
from .figures import GUARANTEED, TITLES, interval, number, percent
from .markup import Html, facts, join, page, svg, table, tag, thumbnails

__all__ = ["write_report"]


def write_report(evaluation: Evaluation, out_dir: str | Path, *, n_cases: int = 6) -> Path:
    """Write `metrics.json` and one self-contained `report.html`; the same evaluation gives the same bytes.

    The page names images by their file names and shows thumbnails of the worst cases: who may see it may see those.

    Parameters
    ----------
    evaluation : Evaluation
    out_dir : str or Path
        Folder to write to; made where it is missing.
    n_cases : int, default=6
        Worst cases of each kind; 0 leaves every picture out.

    Returns
    -------
    Path
        The page.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    evaluation.to_json(out / "metrics.json")
    path = out / "report.html"
    path.write_text(_page(evaluation, n_cases), encoding="utf-8")
    return path


def _page(e: Evaluation, n_cases: int) -> str:
    data = e.figures["data"]
    title = f"Evaluation on {data['dataset']}"
    return page(
        title,
        tag("p", "Conformal Bayesian dermatological classifier", class_="kicker"),
        tag("h1", title),
        tag("p", e.headline, class_="headline"),
        _notices(e),
        _tiles(e),
        tag("h2", "The guarantee"),
        _guarantee(e),
        tag("h2", "Prediction sets"),
        _levels(e),
        _set_plots(e),
        _by_class(e),
        *_by_group(e),
        tag("h2", "Probabilities"),
        _probabilities(e),
        _probability_plots(e),
        *_worst_cases(e, n_cases),
        tag("h2", "Refused images"),
        _refused(e),
        tag("h2", "What was evaluated"),
        _provenance(e),
        tag("h2", "Limits"),
        _limits(e),
    )


def _chosen(e: Evaluation) -> dict[str, Any]:
    return e.figures["sets"][f"{e.confidence_level:g}"]


def _unit(e: Evaluation) -> str:
    return e.figures["data"]["unit"]


def _notices(e: Evaluation) -> Html | None:
    data = e.figures["data"]
    notes = []
    if data["synthetic"]:
        notes.append(
            "These lesions are made, not photographed. The figures test the method; they say nothing of patients."
        )
    if data["external"]:
        notes.append(
            f"External test: the model was calibrated on {e.figures['model']['provenance']['calibration']['dataset']}. "
            "Lesions, cameras or case mix may differ, so exchangeability is not given and nothing is "
            "guaranteed here. The expected bands show what coverage would have been without that change."
        )
        notes += unchecked(e)
    if data["label_map"]:
        pairs = ", ".join(f"{old} to {new}" for old, new in data["label_map"].items())
        notes.append(f"The labels of this data set were mapped to those of the model: {pairs}.")
    return tag("div", *(tag("p", note) for note in notes), class_="warn") if notes else None


def _tiles(e: Evaluation) -> Html:
    row, scores, data = _chosen(e), e.figures["probabilities"], e.figures["data"]
    coverage = row["coverage"]
    tiles = [
        (
            f"coverage at {100 * e.confidence_level:g}%",
            percent(coverage["value"]),
            f"95% interval {interval(coverage['low'], coverage['high'])}",
        ),
        ("mean set size", number(row["mean_set_size"], 2), f"of {len(e.classes)} diagnoses"),
        ("sets of one diagnosis", percent(row["singleton_rate"]), f"empty: {percent(row['empty_rate'])}"),
        ("AUROC", number(scores["auroc"]["value"]), f"accuracy {percent(scores['accuracy']['value'])}"),
        (
            "calibration error",
            number(scores["ece"]["value"]),
            f"noise alone: up to {number(scores['ece_noise_floor'])}",
        ),
        (f"{_unit(e)}s", f"{data['n_units']:,}", f"{data['n_images']:,} images, {data['n_refused']} refused"),
    ]
    return tag(
        "dl",
        *(
            tag(
                "div",
                tag("dt", name),
                tag("dd", value, class_="value"),
                tag("dd", note, class_="muted small"),
                class_="tile",
            )
            for name, value, note in tiles
        ),
        class_="tiles",
    )


def _guarantee(e: Evaluation) -> Html:
    data = e.figures["data"]
    calibrated = e.figures["model"]["provenance"].get("calibration", {}).get("unit", "image")
    here, there = (
        "every image counts" if u == "image" else f"one image of each {u}" for u in (data["unit"], calibrated)
    )
    counted = f"In calibration and here: {here}." if here == there else f"In calibration: {there}; here: {here}."
    return tag(
        "div",
        tag("p", e.figures["model"]["guarantee"]),
        tag(
            "p",
            "The expected bands below are exact: given the number of calibration cases, the coverage of a test set "
            "that is exchangeable with them follows a Beta-binomial law, and lies in its band 19 times out of 20. "
            f"{counted}",
        ),
        class_="note",
    )


def _levels(e: Evaluation) -> Html:
    unit = _unit(e)
    every = unit != "image"
    header = ["level", "coverage", "95% interval", "expected band", *(["all images", "95% interval"] if every else [])]
    rows = []
    for level, row in e.figures["sets"].items():
        one, images, band = row["coverage"], row["coverage_all_images"], row["band"] or (None, None)
        cells = [
            f"{100 * float(level):g}%",
            percent(one["value"]),
            interval(one["low"], one["high"]),
            interval(*band),
        ]
        if every:
            cells += [percent(images["value"]), interval(images["low"], images["high"])]
        rates = [number(row["mean_set_size"], 2), percent(row["singleton_rate"]), percent(row["empty_rate"])]
        rows.append([*cells, *rates])
    caption = f"Coverage of {e.figures['data']['n_units']:,} {unit}s" + (
        f", one image drawn from each; beside it, of all {e.figures['data']['n_images']:,} images, with an interval "
        f"that knows that images of one {unit} are alike."
        if every
        else "."
    )
    chosen = list(e.figures["sets"]).index(f"{e.confidence_level:g}")
    notes = dict.fromkeys(note for row in e.figures["sets"].values() for note in row["notes"])
    return join(
        [
            table([*header, "mean size", "one diagnosis", "empty"], rows, caption=caption, chosen=chosen),
            *(tag("p", note, class_="muted small") for note in notes),
        ]
    )


def _by_class(e: Evaluation) -> Html:
    rows = _chosen(e)["by_class"]
    named = {c: c if e.names[c] == c else f"{c}, {e.names[c]}" for c in e.classes}
    heads = [_marked(named[row["name"]], e.malignant[row["name"]]) for row in rows]
    scores = {row["name"]: number(row["auroc"]) for row in e.figures["classes"]}
    title = f"By diagnosis, at {100 * e.confidence_level:g}%"
    caption = f"Coverage among the {_unit(e)}s whose true diagnosis this is."
    last = {"AUROC": [scores[row["name"]] for row in rows]}
    return join([tag("h3", title), _coverage_rows(e, "diagnosis", heads, rows, caption, last)])


def _marked(name: str, malignant: bool | None) -> Html:
    return join([name, *([" ", tag("span", "malignant", class_="pill malignant")] if malignant else [])])


def _coverage_rows(
    e: Evaluation,
    what: str,
    heads: Sequence[Any],
    rows: Sequence[dict[str, Any]],
    caption: str,
    last: dict[str, list[str]] | None = None,
) -> Html:
    """Table of coverage; the expected band has a column where a guarantee gives one."""
    banded, last = any(row["band_low"] is not None for row in rows), last or {}
    header = [what, f"{_unit(e)}s", "coverage", "95% interval", *["expected band"][: int(banded)], "mean size", *last]
    cells = []
    for i, (head, row) in enumerate(zip(heads, rows)):
        few = tag("span", "too few", class_="muted", title=row["reason"])
        rate = few if row["coverage"] is None else percent(row["coverage"])
        band = [interval(row["band_low"], row["band_high"])] if banded else []
        more = [number(row["mean_set_size"], 2), *(column[i] for column in last.values())]
        cells.append([head, f"{row['n']:,}", rate, interval(row["low"], row["high"]), *band, *more])
    return table(header, cells, caption=caption)


def _by_group(e: Evaluation) -> Iterable[Html]:
    for column, rows in _chosen(e)["by_group"].items():
        name, what = column.replace("_", " "), " No guarantee speaks of these groups."
        if column == GUARANTEED:
            name, what = (e.figures["model"]["group_by"] or "group").replace("_", " "), ""
        caption = f"Coverage among the {_unit(e)}s of each group.{what}"
        yield tag("h3", f"By {name}, at {100 * e.confidence_level:g}%")
        yield _coverage_rows(e, name, [row["name"] for row in rows], rows, caption)


_EXPLAINED = {
    "accuracy": "share of images whose most probable diagnosis is the true one",
    "balanced_accuracy": "mean over diagnoses of their recall",
    "auroc": "ranking of each diagnosis against the rest",
    "ece": "gap of confidence and accuracy",
    "classwise_ece": "the same gap, for every diagnosis",
    "brier": "squared error of the probabilities, 0 to 2; lower is better",
    "nll": "mean of -log p(true diagnosis), nats; lower is better",
    "aurc": "mean error rate as the doubtful are deferred; lower is better",
}


def _probabilities(e: Evaluation) -> Html:
    scores = e.figures["probabilities"]
    rows = []
    for name, title in TITLES.items():
        row, rate = scores[name], name in ("accuracy", "balanced_accuracy")
        value = (percent if rate else number)(row["value"])
        spread = interval(row["low"], row["high"], rate=rate)
        if name == "ece":
            spread = f"noise ≤ {number(scores['ece_noise_floor'])}"
        rows.append([title, value, spread, _EXPLAINED[name]])
    caption = (
        f"All {e.figures['data']['n_images']:,} images; intervals resample whole {_unit(e)}s. A calibrated model "
        "with these probabilities stays under the noise level in 95% of samples of this size."
    )
    return table(["", "value", "95% interval", "what it is"], rows, caption=caption)


def _set_plots(e: Evaluation) -> Html:
    level, one = f"{100 * e.confidence_level:g}%", "" if _unit(e) == "image" else f", one image a {_unit(e)}"
    classes = pd.DataFrame([row for row in _chosen(e)["by_class"] if row["n"]])
    by_class = ClassCoverageDisplay(
        [e.names[label] for label in classes["name"]],
        classes["n"],
        classes["covered"],
        bands=classes[["band_low", "band_high"]].to_numpy(float),
        confidence_level=e.confidence_level,
        least_n=e.figures["least_n"],
    )
    rows = list(e.figures["sets"].values())
    banded = all(row["band"] is not None for row in rows)
    levels = CoverageLevelDisplay(
        [float(text) for text in e.figures["sets"]],
        [row["coverage"]["value"] for row in rows],
        bands=[row["band"] for row in rows] if banded else None,
    )
    missed = e.sets[e.sample], e.labels[e.sample]
    return _plots(
        svg(
            by_class,
            "classes",
            f"Coverage of each diagnosis at {level}{one}. Points in their grey band are what calibration leads to "
            "expect; hollow points rest on too few cases to be judged.",
            wide=True,
        ),
        svg(levels, "levels", f"Coverage against confidence level{one}."),
        svg(
            SetSizeDisplay.from_predictions(*missed),
            "sizes",
            f"Size of the {level} sets{one}. Smaller sets say more.",
        ),
    )


def _probability_plots(e: Evaluation) -> Html:
    floor = e.figures["probabilities"]["ece_noise_floor"]
    reliability = ReliabilityDisplay.from_predictions(e.proba, e.labels, units=e.units, noise_floor=floor)
    return _plots(
        svg(
            reliability,
            "reliability",
            "Reliability: on the diagonal, a confidence of 70% is right in 70% of cases. Grey bars count the images.",
        ),
        svg(
            RiskCoverageDisplay.from_predictions(e.proba, e.labels),
            "risk",
            "Error rate if only the most confident cases are kept and the rest go to an expert. Lower is better.",
        ),
    )


def _plots(*drawings: Html) -> Html:
    return tag("div", *drawings, class_="plots")


def _worst_cases(e: Evaluation, n_cases: int) -> Iterable[Html]:
    if not n_cases:
        return
    confidence, size = e.proba.max(axis=1), e.sets.sum(axis=1)
    missed = np.flatnonzero(~e.sets[np.arange(len(e.labels)), e.labels])
    missed = missed[np.argsort(-confidence[missed], kind="stable")]
    largest = np.lexsort((confidence, -size))
    level = f"{100 * e.confidence_level:g}%"
    yield tag("h2", "Worst misses")
    if len(missed):
        text = (
            f"{len(missed):,} of {len(e.labels):,} images have a true diagnosis outside of their {level} set; the most "
        )
        yield tag("p", f"{text}confident of them come first.", class_="muted small")
        yield _cards(e, missed[:n_cases])
    else:
        yield tag("p", f"No true diagnosis is outside of its {level} set.")
    yield tag("h2", "Largest sets")
    yield tag("p", "Images that the model can say least about.", class_="muted small")
    yield _cards(e, largest[:n_cases])


def _cards(e: Evaluation, rows: np.ndarray) -> Html:
    pictures = thumbnails([e.images[i] for i in rows])
    return tag("div", *(_card(e, i, picture) for i, picture in zip(rows.tolist(), pictures)), class_="cases")


def _card(e: Evaluation, i: int, picture: Html | None) -> Html:
    alpha, truth = 1 - e.confidence_level, e.classes[e.labels[i]]
    inside = {label for label, held in zip(e.classes, e.sets[i]) if held}
    p_value = e.p_values[i, e.labels[i]]
    held = truth in inside
    why = f"{'in' if held else 'not in'} the set, p-value {number(p_value)} {'>' if held else '≤'} alpha {alpha:.3g}"
    verdict = tag("span", "held" if held else "missed", class_="pill" if held else "pill missed")
    lines = [
        join([tag("strong", "True: "), e.names[truth], " ", verdict]),
        f"{why[0].upper()}{why[1:]}. The set names {len(inside)} of {len(e.classes)} diagnoses.",
    ]
    probabilities = dict(zip(e.classes, e.proba[i].tolist()))
    p_values = dict(zip(e.classes, e.p_values[i].tolist()))
    rows = class_rows(probabilities, p_values, inside, e.names, e.malignant, truth)
    return card(e.image_names[i], picture, lines, rows)


def _refused(e: Evaluation) -> Html:
    refused = e.figures["refused"]
    if not refused:
        return tag("p", f"None: all {e.figures['data']['n_images']:,} images could be used.")
    caption = f"{len(refused):,} of {e.figures['data']['n_given']:,} images could not be used and are in no figure."
    return table(["image", "reason"], [[row["image"], row["reason"]] for row in refused], caption=caption)


def _provenance(e: Evaluation) -> Html:
    data, model = e.figures["data"], e.figures["model"]

    def code(text: str | None) -> Html | None:
        return None if text is None else tag("code", text)

    def part(name: str) -> Html | None:
        row = model["provenance"].get(name)
        if row is None:
            return None
        units = f" of {row['n_units']:,} {row['unit']}s" if "n_units" in row else ""
        text = f"{row.get('dataset', 'arrays')}, {row['n_images']:,} images{units}"
        return join([text, *([tag("br"), code(row["fingerprint"])] if "fingerprint" in row else [])])

    split = model["split"]
    seeds = {"model": model["random_state"], "evaluation": data["random_state"]}
    return facts(
        [
            (
                "data set",
                join([f"{data['dataset']}, {data['n_given']:,} images", tag("br"), code(data["fingerprint"])]),
            ),
            ("trained on", part("training")),
            ("calibrated on", part("calibration")),
            ("split", None if split is None else ", ".join(f"{key} {value}" for key, value in split.items())),
            ("network", join([model["backbone"], tag("br"), code(model["embedder_sha256"])])),
            ("head", model["head"]),
            ("conformity score", model["score"]),
            ("conditional on", (model["condition_on"] or "nothing: on average over all images").replace("_", " ")),
            ("seeds", ", ".join(f"{name}: {'none' if seed is None else seed}" for name, seed in seeds.items())),
            ("versions", ", ".join(f"{name} {text}" for name, text in e.figures["versions"].items() if text)),
        ]
    )


def _limits(e: Evaluation) -> Html:
    small = [row["name"] for row in _chosen(e)["by_class"] if row["coverage"] is None]
    few = f" Here that leaves out: {', '.join(small)}." if small else ""
    return tag(
        "ul",
        tag("li", "Research software for decision support. It is not a cleared medical device and gives no diagnosis."),
        tag(
            "li",
            "The guarantee needs exchangeable cases. Another camera, clinic, population or referral practice breaks "
            "it; calibrate again on cases of the place of use.",
        ),
        tag("li", "It is a statement over many cases, not over the one in hand."),
        tag(
            "li",
            f"Rates of classes or groups with fewer than {e.figures['least_n']} {_unit(e)}s are not shown, for so few "
            f"cases say next to nothing.{few}",
        ),
        tag("li", "A lesion of a kind that the model was never shown gets a set of the kinds that it knows."),
    )
