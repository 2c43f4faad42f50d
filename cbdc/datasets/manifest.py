"""Read a manifest (a table of images) that nobody vouches for, and find its images under one root."""

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DatasetError, suggestion
from ..taxonomy import Taxonomy

__all__ = ["IMAGE_SUFFIXES", "ImageFinder", "Problems", "canonical", "check_rows", "find_file", "inside", "read_table"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".heic", ".heif", ".gif"}
_CANONICAL = {
    "image": ("image_id", "image_name", "img_id", "isic_id", "md5hash"),
    "label": ("dx", "diagnostic"),
    "patient_id": ("patient", "patientid"),
    "lesion_id": ("lesion", "lesionid"),
    "skin_type": ("fitspatrick", "fitzpatrick", "fitzpatrick_scale"),
    "age": ("age_approx",),
    "sex": ("gender",),
    "site": (
        "localization",
        "anatom_site",
        "anatom_site_general",
        "anatom_site_general_challenge",
        "region",
        "location",
    ),
}
_BLANK = {"", "unknown", "nan", "na", "n/a", "none", "null", "?"}
_ROMAN = {
    "i": "1",
    "ii": "2",
    "iii": "3",
    "iv": "4",
    "v": "5",
    "vi": "6",
    "-1": "",
}  # -1: no type given, Fitzpatrick17k
_SEX = {"f": "female", "m": "male"}


class Problems:
    """Everything that is wrong with a manifest, grouped by column and message, told in one error."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[str] = []

    def add(self, column: str, message: str, rows: pd.Series, fix: str, cells: pd.Series | None = None) -> None:
        """Note the rows (the true ones of a mask that is indexed by row number) and what the first `cells` hold."""
        mask = rows.to_numpy(dtype=bool)
        numbers = rows.index[mask].tolist()
        if numbers:
            shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
            first = "" if cells is None else f" (first: {', '.join(repr(c) for c in cells[mask].unique()[:3])})"
            many = "1 row" if len(numbers) == 1 else f"{len(numbers):,} rows"
            self.found.append(f"column {column!r}: {message} in {many}: {shown}{first}. {fix}")

    def raise_if_any(self) -> None:
        """Raise one DatasetError with every problem noted."""
        if self.found:
            head = self.found[0] if len(self.found) == 1 else "".join(f"\n- {problem}" for problem in self.found)
            raise DatasetError(f"{self.source}: {head}")


def read_table(path: Path, root: Path) -> pd.DataFrame:
    """All cells of a csv file as stripped text, blank ones missing, indexed by row number (the header is row 1).

    The delimiter is a comma, a semicolon or a tab, whichever the header holds most of. Cells are never evaluated.
    """
    if not inside(path, root):
        raise DatasetError(f"{path.name}: a link that leads out of the root folder. Fix: copy the file into it.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path.name}: not UTF-8 text ({error.reason}). Fix: save it as CSV UTF-8.") from error
    except (OSError, csv.Error) as error:
        raise DatasetError(f"{path.name}: cannot be read ({error}).") from error
    names = [name.strip() for name in rows[0]] if rows else []
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if not any(names) or twice:
        wrong = f"column {twice[0]!r} appears twice" if twice else "no header"
        raise DatasetError(f"{path.name}: {wrong}; expected a first row of column names.")
    numbered = [(number, row) for number, row in enumerate(rows[1:], start=2) if any(cell.strip() for cell in row)]
    ragged = [number for number, row in numbered if len(row) != len(names)]
    if ragged:
        shown = ", ".join(map(str, ragged[:5]))
        raise DatasetError(f"{path.name}: {len(ragged)} rows do not have {len(names)} cells (first: {shown}).")
    if not numbered:
        raise DatasetError(f"{path.name}: a header but no rows.")
    cells: dict[str, Any] = {}
    for column, name in enumerate(names):
        if name:
            cells[name] = [row[column].strip() or np.nan for _, row in numbered]
    return pd.DataFrame(cells, index=[number for number, _ in numbered], dtype=object)


def find_file(root: Path, *names: str) -> Path | None:
    """First of the files that lies in the root or one folder below it, whatever the case of its letters."""
    folders = [root, *sorted(entry for entry in root.iterdir() if entry.is_dir())]
    listed = [{entry.name.lower(): entry for entry in sorted(folder.iterdir())} for folder in folders]
    return next((files[n.lower()] for n in names for files in listed if n.lower() in files), None)


def inside(path: Path, root: Path) -> bool:
    """Whether a path, with every link followed, lies under the root."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


class ImageFinder:
    """Finds image files by name under a root, and tells why one cannot be had.

    Parameters
    ----------
    root : Path
        No file outside of it is ever given out.
    folders : sequence of str
        Glob patterns of the folders that hold images; of two files of one name, that in the first folder counts.
    """

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        self.root = Path(os.path.realpath(root))
        self.folders = list(dict.fromkeys(f for pattern in folders for f in sorted(root.glob(pattern)) if f.is_dir()))
        self._by_name: dict[str, Path | None] = {}
        for folder in self.folders:
            here: dict[str, Path | None] = {}
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                stem, suffix = os.path.splitext(entry.name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    here[stem] = None if stem in here else folder / entry.name  # None: two files of one stem
                    here[entry.name] = folder / entry.name
            self._by_name = here | self._by_name
        self._parents: dict[str, bool] = {}

    def find(self, cell: str) -> Path | str:
        """Path of the image that a cell names, or the reason why there is none."""
        relative = PurePosixPath(cell.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or re.match("[A-Za-z]:", cell):
            return "a path that leaves the root"
        path = self._by_name.get(cell)
        if path is None and cell in self._by_name:
            return "a name that two files have"
        path = path or next((f / relative for f in (self.root, *self.folders) if os.path.isfile(f / relative)), None)
        if path is None:
            return "no image file"
        return path if self._inside(path) else "a link that leads out of the root"

    def _inside(self, path: Path) -> bool:
        parent = str(path.parent)
        if parent not in self._parents:
            self._parents[parent] = inside(path.parent, self.root)
        return self._parents[parent] and (not os.path.islink(path) or inside(path, self.root))


def canonical(table: pd.DataFrame) -> pd.DataFrame:
    """Table with the names of known columns made canonical, whatever their case, where that name is not taken."""
    columns = {str(column).lower().replace(" ", "_"): column for column in reversed(table.columns)}
    renamed = {}
    for name, aliases in _CANONICAL.items():
        found = next((columns[alias] for alias in (name, *aliases) if alias in columns), None)
        if name not in table and found is not None:
            renamed[found] = name
    return table.rename(columns=renamed)


def check_rows(table: pd.DataFrame, taxonomy: Taxonomy | None, problems: Problems) -> pd.DataFrame:
    """Table with typed columns; whatever is wrong with a cell is noted in `problems`."""
    absent = [column for column in ("image", "label") if column not in table]
    if absent:
        raise DatasetError(
            f"{problems.source}: no column {absent[0]!r}; it has {', '.join(map(str, table.columns))}. Fix: rename one."
        )
    table = table.copy()
    for column in ("image", "label"):
        problems.add(column, "no value", table[column].isna(), "Fix: fill it in, or delete the row.")
    for column in ("image", "label", "patient_id", "lesion_id"):
        if column in table:
            # such a cell would run as a formula once our output is opened in a spreadsheet
            formula = _text(table[column]).str.match(r"[=+\-@]")
            fix = "A spreadsheet would run it. Fix: remove that sign."
            problems.add(column, "a formula, text that begins with =, +, - or @,", formula, fix)
    twice = table["image"].duplicated() & table["image"].notna()
    problems.add("image", "a name seen before", twice, "Fix: keep one row an image.", table["image"])
    if taxonomy is not None:
        unknown = table["label"].notna() & ~table["label"].isin(taxonomy.leaves)
        if unknown.any():
            hint = suggestion(table["label"][unknown].iloc[0], taxonomy.leaves).lstrip("; ")
            problems.add("label", "an unknown label", unknown, f"Fix: {hint}.", table["label"])
    for column in ("patient_id", "lesion_id", "site", "sex"):
        if column in table:
            table[column] = table[column].where(~_text(table[column]).str.lower().isin(_BLANK), np.nan)
    for column in ("site", "sex"):
        if column in table:
            lower = _text(table[column]).str.lower()
            table[column] = lower.replace(_SEX if column == "sex" else {}).where(table[column].notna(), np.nan)
    for column, low, high in (("age", 0, 130), ("skin_type", 1, 6)):
        if column in table:
            table[column] = _numbers(table[column], column, low, high, problems)
    return table


def _numbers(cells: pd.Series, column: str, low: float, high: float, problems: Problems) -> pd.Series:
    text = _text(cells).str.lower()
    text = text.replace(_ROMAN) if column == "skin_type" else text
    given = ~text.isin(_BLANK)
    numbers = pd.to_numeric(text.where(given, "nan"), errors="coerce").astype(float)
    wrong = given & ~numbers.between(low, high)
    problems.add(column, f"no number from {low} to {high}", wrong, "Fix: correct it, or leave it empty.", cells)
    return numbers


def _text(cells: pd.Series) -> pd.Series:
    return cells.where(cells.notna(), "").astype(str)
