"""One image explained: a card with the set, the probabilities and why each class is in or out."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..diagnosis import Diagnosis
from .figures import number
from .markup import Html, bar, join, page, tag, thumbnails

__all__ = ["card", "case_report", "class_rows"]

_ROWS = 8  # classes shown in a card, unless the set holds more


def case_report(
    diagnoses: Diagnosis | Sequence[Diagnosis],
    path: str | Path,
    *,
    images: Any = None,
    title: str = "Prediction sets, explained",
) -> Path:
    """Write a page that explains the prediction set of each image: one HTML file that loads and runs nothing.

    Parameters
    ----------
    diagnoses : Diagnosis or sequence of n Diagnosis
        From `CBDCClassifier.diagnose`.
    path : str or Path
        File to write.
    images : sequence of n images, optional
        What was diagnosed (for one diagnosis, its image), for thumbnails; they become part of the page.
    title : str

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ValueError
        If the numbers of images and diagnoses differ.

    Examples
    --------
    >>> import tempfile
    >>> from cbdc.diagnosis import Diagnosis
    >>> refused = Diagnosis("photo.jpg", "refused", reason="empty file.")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     "photo.jpg" in case_report(refused, f"{folder}/case.html").read_text(encoding="utf-8")
    True
    """
    rows = [diagnoses] if isinstance(diagnoses, Diagnosis) else list(diagnoses)
    if images is not None and isinstance(diagnoses, Diagnosis) and not isinstance(images, list | tuple):
        images = [images]
    if images is not None and len(images) != len(rows):
        raise ValueError(f"images: got {len(images)} for {len(rows)} diagnoses; give one for each.")
    pictures = thumbnails(images) if images is not None else [None] * len(rows)
    refused = sum(row.status == "refused" for row in rows)
    guarantees = list(dict.fromkeys(row.guarantee for row in rows if row.guarantee))
    body = page(
        title,
        tag("p", f"{len(rows)} image{'' if len(rows) == 1 else 's'}, {refused} refused", class_="kicker"),
        tag("h1", title),
        tag("div", *(tag("p", text) for text in guarantees), class_="note") if guarantees else None,
        tag("p", _HOW_TO_READ, class_="muted small"),
        tag("div", *(_diagnosis(row, picture) for row, picture in zip(rows, pictures)), class_="cases"),
    )
    path = Path(path)
    path.write_text(body, encoding="utf-8")
    return path


_HOW_TO_READ = (
    "A diagnosis is in the set when its p-value exceeds alpha = 1 - confidence level. The p-value is the share of "
    "calibration cases that looked no more typical than this one would, were it of that diagnosis. The probability is "
    "the model's own belief."
)


def _diagnosis(row: Diagnosis, picture: Html | None) -> Html:
    if row.status == "refused":
        pill = tag("span", "refused", class_="pill refused")
        return card(row.image, picture, [join([pill, " ", row.reason])], None)
    named = ", ".join(row.names.get(label, label) for label in row.prediction_set)
    quality: list[Any] = ["Image quality: "]
    if row.quality == "retake":
        quality += [tag("span", "retake", class_="pill retake"), " ", "; ".join(row.quality_reasons)]
    else:
        quality.append(row.quality or "not assessed")
    learnable = "" if math.isnan(row.mutual_information) else f", {row.mutual_information:.2f} of it from little data"
    lines = [
        join(
            [tag("strong", f"{100 * row.confidence_level:g}% set: "), named or "empty; no diagnosis is typical enough"]
        ),
        f"Alpha {1 - row.confidence_level:.3g}; uncertainty {row.entropy:.2f} nats{learnable}.",
        join(quality),
    ]
    rows = class_rows(row.probabilities, row.p_values, set(row.prediction_set), row.names, row.malignant)
    return card(row.image, picture, lines, rows)


def card(name: str, picture: Html | None, lines: Sequence[Any], rows: Html | None) -> Html:
    """Picture, file name, what there is to say, and the classes."""
    blank = tag("span", class_="blank", role="img", aria_label="no picture")
    text = tag("div", tag("h3", name), *(tag("p", line) for line in lines))
    return tag("article", tag("div", picture or blank, text, class_="summary"), rows, class_="case")


def class_rows(
    probabilities: Mapping[str, float],
    p_values: Mapping[str, float],
    inside: set[str],
    names: Mapping[str, str],
    malignant: Mapping[str, bool | None],
    truth: str | None = None,
) -> Html:
    """Table of the classes, most probable first; many classes are cut after the last in the set."""
    order = sorted(probabilities, key=lambda label: -probabilities[label])
    shown = [label for i, label in enumerate(order) if i < _ROWS or label in inside or label == truth]
    header = tag(
        "tr",
        tag("th", "diagnosis", scope="col"),
        tag("th", "probability", scope="col", colspan="2"),
        tag("th", "p-value", scope="col", class_="number"),
    )
    rows = [
        _class_row(label, probabilities[label], p_values[label], label in inside, names, malignant, label == truth)
        for label in shown
    ]
    if len(shown) < len(order):
        rest = f"{len(order) - len(shown)} less probable diagnoses are not in the set"
        rows.append(tag("tr", tag("td", rest, colspan="4"), class_="outside"))
    return tag("table", tag("thead", header), tag("tbody", *rows))


def _class_row(
    label: str,
    probability: float,
    p_value: float,
    inside: bool,
    names: Mapping[str, str],
    malignant: Mapping[str, bool | None],
    true: bool,
) -> Html:
    marks = [
        tag("span", "malignant", class_="pill malignant") if malignant.get(label) else None,
        tag("span", "true", class_="pill") if true else None,
    ]
    name = join([names.get(label, label), *(part for mark in marks if mark for part in (" ", mark))])
    return tag(
        "tr",
        tag("th", name, scope="row"),
        tag("td", number(probability), class_="number"),
        tag("td", bar(probability, inside=inside), class_="bar"),
        tag("td", number(p_value), tag("span", "in" if inside else "out", class_="verdict"), class_="number"),
        class_="inside" if inside else "outside",
    )
