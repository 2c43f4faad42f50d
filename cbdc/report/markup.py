"""HTML from values: whatever is not already markup is escaped."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from matplotlib import rc_context

from .. import __version__
from ..images import LesionImage, read_images, thumbnail_jpeg
from ..plots import COLORS

__all__ = ["Html", "bar", "facts", "join", "page", "svg", "table", "tag", "thumbnails"]

_INK, _MUTED, _LINE = "#1b232c", "#5b6672", "#e3e6ea"  # written by matplotlib, then made variables of the style sheet
_WIDE = 10.6  # inches across the page, at the scale of two displays of 5 side by side
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _MUTED,
    "axes.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "axes.formatter.use_mathtext": False,
}
_COORDINATES, _LONG = re.compile(r' (?:d|x|y|transform)="[^"]*"'), re.compile(r"(\d\.\d\d)\d+")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element; children and attribute values that are not `Html` are escaped, None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" if name in {"br", "img"} else f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[Any], separator: str = "") -> Html:
    """Parts one after the other, escaped where they are not `Html`; None is left out."""
    texts = (part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None)
    return Html(separator.join(texts))


def page(title: str, *body: Any) -> str:
    """A whole document: one file that loads nothing and runs nothing."""
    return _template().substitute(title=html.escape(title), version=__version__, body=join(body, "\n"))


@cache
def _template() -> Template:
    return Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: str, chosen: int | None = None) -> Html:
    """A table; the first cell of a row heads it, numbers (all other columns but those of long text) stand right."""

    def cells(row: Sequence[Any]) -> Html:
        rest = [tag("td", cell, class_=None if _is_text(cell) else "number") for cell in row[1:]]
        return join([tag("th", row[0], scope="row"), *rest])

    rows = list(rows)
    numeric = [all(not _is_text(row[i]) for row in rows) for i in range(len(header))]
    head = [
        tag("th", cell, scope="col", class_="number" if i and numeric[i] else None) for i, cell in enumerate(header)
    ]
    body = [tag("tr", cells(row), class_="chosen" if i == chosen else None) for i, row in enumerate(rows)]
    content = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", content, class_="scroll")


def _is_text(cell: Any) -> bool:
    return len(re.sub(r"<[^>]*>", "", str(cell))) > 26


def facts(pairs: Iterable[tuple[str, Any]]) -> Html:
    """A list of names and values; a value of None is left out."""
    return tag(
        "dl", *(join([tag("dt", key), tag("dd", value)]) for key, value in pairs if value is not None), class_="facts"
    )


def bar(share: float, *, inside: bool) -> Html:
    """A bar of a share from 0 to 1; decoration of a number that stands beside it."""
    width = f"{100 * min(max(share, 0.0), 1.0):.2f}"
    ink = "fill: var(--observed)" if inside else "fill: var(--expected)"
    track = tag("rect", width="100", height="8", rx="2", style="fill: var(--line)")
    filled = tag("rect", width=width, height="8", rx="2", style=ink)
    return tag("svg", track, filled, viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")


def svg(display: Any, name: str, caption: str, *, wide: bool = False) -> Html:
    """The drawing of a display as inline SVG that follows the page's fonts and its light or dark colours."""
    buffer = io.StringIO()
    # The salt makes the identifiers in the file repeat from run to run and differ from figure to figure.
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = display.plot().figure_
        if wide:
            figure.set_figwidth(_WIDE)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return tag(
        "figure", _inline(buffer.getvalue(), caption), tag("figcaption", caption), class_="wide" if wide else None
    )


def _inline(text: str, label: str) -> Html:
    """Matplotlib's SVG file as an element of a page."""
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {view.group() if view else ""} role="img" aria-label="{html.escape(label)}">'
    text = opening + text[text.index(">") + 1 :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "var(--font)", text)
    for color, variable in {_INK: "ink", _MUTED: "muted", _LINE: "line", **{c: n for n, c in COLORS.items()}}.items():
        text = text.replace(color, f"var(--{variable})")
    return Html(_COORDINATES.sub(lambda found: _LONG.sub(r"\1", found.group()), text))


def thumbnails(sources: Sequence[Any], max_side: int = 224) -> list[Html | None]:
    """An `img` with the bytes in it for each source; None for one that cannot be read."""
    return [
        tag("img", src=_data_uri(thumbnail_jpeg(item.pixels, max_side)), alt="", loading="lazy")
        if isinstance(item, LesionImage)
        else None
        for item in read_images(list(sources))
    ]


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
