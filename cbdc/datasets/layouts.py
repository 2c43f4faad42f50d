"""The folder layouts of the public data sets, each read into one `LesionDataset`."""

import glob
import inspect
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DatasetError, require, suggestion
from ..taxonomy import Taxonomy, get_taxonomy
from .dataset import LesionDataset
from .manifest import IMAGE_SUFFIXES, ImageFinder, Problems, canonical, check_rows, find_file, inside, read_table

__all__ = ["DATASETS", "KNOWN_DUPLICATES", "load_dataset"]

# HAM10000: one photograph under two lesion identifiers, in another white balance.
KNOWN_DUPLICATES = (("ISIC_0025226", "ISIC_0030074"), ("ISIC_0027636", "ISIC_0027994"))
_DERMAMNIST = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@dataclass
class _Manifest:
    """What a layout knows: the table, where it came from, the folders of the images, and the label set."""

    table: pd.DataFrame
    source: Path
    folders: tuple[str, ...]
    taxonomy: Taxonomy | None
    duplicates: tuple[tuple[str, str], ...] = ()
    stem_is_name: bool = True  # the published identifier has no suffix


def load_dataset(
    name: str, root: str | Path, *, missing: str = "error", duplicates: Iterable[tuple[str, str]] = (), **options: Any
) -> LesionDataset:
    """Read a data set from a folder; images are listed, not opened.

    Parameters
    ----------
    name : str
        The layout: "ham10000", "ph2", "isic2018", "isic2019", "isic2020", "pad_ufes_20", "fitzpatrick17k", "derm7pt",
        "medmnist", "folder" (a folder a class) or "csv" (a table with the columns image and label); docs/datasets.md
        tells the files of each.
    root : path-like
        Folder of the data set. No file outside of it is read.
    missing : {"error", "drop"}, default="error"
        What to do with a row whose image file is not there; dropped rows are counted in a warning.
    duplicates : iterable of (str, str), default=()
        Pairs of image names that show one photograph, besides those known.
    **options
        ``part`` ("Training", "Validation", "Test") for the ISIC 2018 and 2019 challenges; ``label``
        ("label", "nine_partition_label", "three_partition_label") for Fitzpatrick17k; ``file`` for "csv" and
        "medmnist"; ``taxonomy``, the labels allowed, or a Taxonomy that has them as leaves, for "csv" and "folder".

    Returns
    -------
    LesionDataset

    Raises
    ------
    DatasetError
        If the layout is not found, or with every problem of the manifest: duplicate or missing names, unknown labels,
        missing files, paths or links that leave the root, cells that would run as formulas.

    Examples
    --------
    >>> load_dataset("ham1000", ".")
    Traceback (most recent call last):
    ...
    cbdc.errors.DatasetError: no data set layout is called 'ham1000'; did you mean 'ham10000'? (allowed: csv, ...
    """
    key = name.lower().replace("-", "_")
    if key not in DATASETS:
        raise DatasetError(f"no data set layout is called {name!r}{suggestion(key, DATASETS)}.")
    if missing not in ("error", "drop"):
        raise DatasetError(f"missing={missing!r}; expected 'error' or 'drop'.")
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{name}: root {str(root)!r} is no folder. Fix: give the folder that holds the data set.")
    reader = DATASETS[key]
    if isinstance(options.get("taxonomy"), str):
        raise DatasetError(f"{name}: taxonomy={options['taxonomy']!r}; expected the labels allowed, or a Taxonomy.")
    if not isinstance(options.get("taxonomy"), Taxonomy | None):
        options["taxonomy"] = Taxonomy.flat(sorted({str(label) for label in options["taxonomy"]}), name=key)
    allowed = list(inspect.signature(reader).parameters)[1:]
    strange = sorted(set(options) - set(allowed))
    if strange:
        raise DatasetError(f"{name}: unknown option {strange[0]!r}{suggestion(strange[0], allowed)}.")
    found = reader(root, **options)
    dataset = found if isinstance(found, LesionDataset) else _assemble(key, root, found, missing)
    if duplicates:
        names = set(dataset.frame["image"])
        pairs = [(a if a in names else _name(a), b if b in names else _name(b)) for a, b in duplicates]
        dataset.duplicates = (*dataset.duplicates, *dataset._checked_pairs(pairs))
    return dataset


def _assemble(name: str, root: Path, manifest: _Manifest, missing: str) -> LesionDataset:
    problems = Problems(f"{name}: {manifest.source.name}")
    table = check_rows(canonical(manifest.table), manifest.taxonomy, problems)
    folders = [f"{base}{f}" for base in _bases(root, manifest.source) for f in manifest.folders]
    finder = ImageFinder(root, folders)
    cells = table["image"].where(table["image"].notna(), "")
    found = pd.Series([finder.find(str(cell)) if cell else "" for cell in cells], index=table.index, dtype=object)
    is_path = found.map(lambda f: isinstance(f, Path))
    absent = found.map(lambda f: f == "no image file")
    for reason in sorted({f for f in found if isinstance(f, str) and f and f != "no image file"}):
        where = found.map(lambda f, r=reason: f == r)
        problems.add("image", reason, where, "Fix: keep every image under the root, once.", cells)
    if missing == "error" or not is_path.any():
        looked = ", ".join(f.name for f in finder.folders[:4]) or f"none of {', '.join(manifest.folders)} exists"
        fix = f"Looked in the root and {looked}. Fix: add the files, or missing='drop'."
        problems.add("image", "no image file", absent, fix, cells)
    names = cells.map(_name) if manifest.stem_is_name else cells
    again = names.duplicated() & ~cells.duplicated()
    problems.add("image", "a name seen before with another suffix", again, "Fix: keep one row an image.", cells)
    problems.raise_if_any()
    if absent.any():
        warnings.warn(
            f"{name}: dropped {int(absent.sum()):,} of {len(table):,} rows without an image file.", stacklevel=3
        )
    frame = table.assign(image=names)[is_path]
    if name == "csv" and "patient_id" not in frame:
        _warn_of_identifiers(frame)
    taxonomy = manifest.taxonomy or Taxonomy.flat(sorted(set(frame["label"])), name=name)
    return LesionDataset(
        found[is_path].tolist(),
        frame["label"].tolist(),
        name=root.resolve().name or name if name in ("folder", "csv") else name,  # your own sets go by their folder
        classes=taxonomy.leaves,
        frame=frame,
        taxonomy=taxonomy,
        duplicates=manifest.duplicates,
    )


def _ham10000(root: Path) -> _Manifest:
    """HAM10000: HAM10000_metadata.csv and its image folders; 7 diagnoses, lesions."""
    names = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab", "labels.csv")
    folders = ("images", "HAM10000_images_part_[12]", "ham10000_images_part_[12]")
    return _Manifest(*_open(root, "ham10000", *names), folders, get_taxonomy("ham10000"), KNOWN_DUPLICATES)


def _ph2(root: Path) -> _Manifest:
    """PH2: PH2_dataset.txt or .xlsx and IMDxxx folders; common nevus, atypical nevus, melanoma."""
    folders = ("images", "PH2 Dataset images/*/*_Dermoscopic_Image")
    path = find_file(root, "PH2_dataset.txt", "PH2_dataset.xlsx")
    if path is None:
        return _Manifest(*_open(root, "ph2", "labels.csv", also="PH2_dataset.txt"), folders, get_taxonomy("ph2"))
    if not inside(path, root):
        raise DatasetError(f"{path.name}: a link that leads out of the root folder. Fix: copy the file into it.")
    table = _ph2_text(path) if path.suffix.lower() == ".txt" else _ph2_excel(path)
    return _Manifest(table, path, folders, get_taxonomy("ph2"))


def _isic2018(root: Path, part: str = "Training") -> _Manifest:
    """ISIC 2018 Task 3: one-hot ground truth; 7 diagnoses, lesions where the groupings file is there."""
    truth = f"ISIC2018_Task3_{part}_GroundTruth.csv"
    table, source = _open(root, "isic2018", truth, "labels.csv")
    table = _with_labels(table, source)
    table = _joined(table, root, f"ISIC2018_Task3_{part}_LesionGroupings.csv")
    folders = ("images", f"ISIC2018_Task3_{part}_Input")
    return _Manifest(table, source, folders, get_taxonomy("isic2018"), KNOWN_DUPLICATES)


def _isic2019(root: Path, part: str = "Training") -> _Manifest:
    """ISIC 2019: one-hot ground truth and metadata; 8 diagnoses, lesions."""
    table, source = _open(root, "isic2019", f"ISIC_2019_{part}_GroundTruth.csv", "labels.csv")
    table = _joined(_with_labels(table, source), root, f"ISIC_2019_{part}_Metadata.csv")
    folders = ("images", f"ISIC_2019_{part}_Input", f"ISIC_2019_{part}_Input/ISIC_2019_{part}_Input")
    return _Manifest(table, source, folders, get_taxonomy("isic2019"), KNOWN_DUPLICATES)


def _isic2020(root: Path) -> _Manifest:
    """ISIC 2020 (SIIM): train.csv with target and patient_id; benign or malignant."""
    names = ("train.csv", "ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "labels.csv")
    table, source = _open(root, "isic2020", *names)
    if "label" not in table and "target" in table:
        table = table.assign(label=table["target"].replace({"0": "benign", "1": "malignant"}))
    pairs = find_file(root, "ISIC_2020_Training_Duplicates.csv")
    listed = read_table(pairs, root) if pairs else pd.DataFrame(columns=["image_name_1", "image_name_2"])
    if not {"image_name_1", "image_name_2"} <= set(listed):
        raise DatasetError("ISIC_2020_Training_Duplicates.csv: expected the columns image_name_1, image_name_2.")
    duplicates = tuple((_name(a), _name(b)) for a, b in zip(listed["image_name_1"], listed["image_name_2"]))
    folders = ("images", "jpeg/train", "train", "ISIC_2020_Training_JPEG", "ISIC_2020_Training_JPEG/train")
    return _Manifest(table, source, folders, get_taxonomy("isic2020"), duplicates)


def _pad_ufes_20(root: Path) -> _Manifest:
    """PAD-UFES-20: metadata.csv; 6 diagnoses, patients, Fitzpatrick skin type."""
    folders = ("images", "imgs_part_[123]", "imgs_part_[123]/imgs_part_[123]", "images/imgs_part_[123]")
    table, source = _open(root, "pad_ufes_20", "metadata.csv", "labels.csv")
    return _Manifest(table, source, folders, get_taxonomy("pad_ufes_20"))


def _fitzpatrick17k(root: Path, label: str = "label") -> _Manifest:
    """Fitzpatrick17k: its csv with md5hash; 114, 9 or 3 labels, Fitzpatrick skin type."""
    levels = ("label", "nine_partition_label", "three_partition_label")
    if label not in levels:
        raise DatasetError(f"fitzpatrick17k: label={label!r}{suggestion(label, levels)}.")
    table, source = _open(root, "fitzpatrick17k", "fitzpatrick17k.csv", "labels.csv")
    absent = [column for column in levels if column not in table]
    if absent:
        raise DatasetError(f"fitzpatrick17k: {source.name}: no column {absent[0]!r}.")
    if label != "label":
        table = table.assign(diagnosis=table["label"], label=table[label])
    above = levels[levels.index(label) + 1 :][::-1]
    taxonomy = _tree_of_columns(table, [*above, "label"], "fitzpatrick17k", malignant=table["three_partition_label"])
    return _Manifest(table, source, ("images", "data/finalfitz17k", "finalfitz17k"), taxonomy)


def _derm7pt(root: Path) -> _Manifest:
    """Derm7pt: meta.csv; diagnosis and the seven-point criteria."""
    table, source = _open(root, "derm7pt", "meta.csv", "labels.csv")
    if "image" not in table and "derm" in table:
        table = table.rename(columns={"derm": "image", "diagnosis": "label"})
    return _Manifest(table, source, ("images",), get_taxonomy("derm7pt"))


def _csv(root: Path, file: str = "labels.csv", taxonomy: Taxonomy | None = None) -> _Manifest:
    """Your own labels.csv with the columns image and label, and patient_id or lesion_id where known."""
    return _Manifest(*_open(root, "csv", file), ("images",), taxonomy, stem_is_name=False)


def _folder(root: Path, taxonomy: Taxonomy | None = None) -> _Manifest:
    """Your own folders of images, one for each diagnosis."""
    rows = []
    others = sorted(f.name for f in root.iterdir() if f.is_file() and not _is_of_the_system(f))
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = sorted(f for f in folder.rglob("*") if f.is_file() and not _is_of_the_system(f))
        rows += [(f.relative_to(root).as_posix(), folder.name) for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
        others += [f.relative_to(root).as_posix() for f in files if f.suffix.lower() not in IMAGE_SUFFIXES]
    if others:
        shown = ", ".join(map(repr, others[:3]))
        many = "1 file is" if len(others) == 1 else f"{len(others)} files are"
        raise DatasetError(f"folder: {many} no image of a class (first: {shown}). Fix: move them.")
    if not rows:
        raise DatasetError("folder: no image in any subfolder; expected one folder a class, with images in it.")
    return _Manifest(
        pd.DataFrame(rows, columns=["image", "label"], dtype=object), root, (), taxonomy, stem_is_name=False
    )


def _warn_of_identifiers(frame: pd.DataFrame) -> None:
    """Warn if a column that is not read seems to tell patients or lesions apart."""
    sounds_like_one = re.compile("patient|subject|person|case|lesion", re.IGNORECASE)
    for column in frame.columns.difference(["image", "label", "lesion_id"]):
        if sounds_like_one.search(str(column)) and frame[column].dropna().duplicated().any():
            warnings.warn(
                f"csv: column {column!r} looks like an identifier that several images share, and is not read: a split "
                "may put images of one patient on both sides. Fix: call it patient_id or lesion_id.",
                stacklevel=4,
            )


def _is_of_the_system(file: Path) -> bool:
    """Hidden, or what Windows leaves in a folder of images."""
    return file.name.startswith(".") or file.name.lower() in ("thumbs.db", "desktop.ini")


def _medmnist(root: Path, file: str | None = None) -> LesionDataset:
    """MedMNIST: dermamnist .npz."""
    listed = [root / file] if file else sorted(root.glob("*.npz"))
    if len(listed) != 1 or not listed[0].is_file() or not inside(listed[0], root):
        found = ", ".join(path.name for path in sorted(root.glob("*.npz"))) or "none"
        raise DatasetError(f"medmnist: expected one .npz file in the root, found {found}. Fix: name it with file=.")
    parts = ("train", "val", "test")
    try:
        with np.load(listed[0], allow_pickle=False) as archive:
            codes = [archive[f"{part}_labels"].reshape(-1) for part in parts]
            pixels = np.concatenate([archive[f"{part}_images"] for part in parts])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"medmnist: {listed[0].name} cannot be read ({error}).") from error
    code = np.concatenate(codes)
    if len(pixels) != len(code) or code.dtype.kind not in "iu":
        raise DatasetError(f"medmnist: {listed[0].name}: images and integer labels do not pair up.")
    derma = listed[0].stem.startswith("dermamnist")
    if code.size and (code.min() < 0 or (derma and code.max() >= len(_DERMAMNIST))):
        raise DatasetError(f"medmnist: {listed[0].name}: label {code.min()} to {code.max()}; expected 0 to 6.")
    where = np.repeat(parts, [len(c) for c in codes])
    names = [f"{part}_{i:06d}" for part, c in zip(parts, codes) for i in range(len(c))]
    return LesionDataset(
        pixels,
        [_DERMAMNIST[c] if derma else str(c) for c in code],
        name=listed[0].stem,
        classes=_DERMAMNIST if derma else None,
        frame=pd.DataFrame({"image": names, "part": where}),
        taxonomy=get_taxonomy("ham10000") if derma else None,
    )


DATASETS: dict[str, Callable[..., _Manifest | LesionDataset]] = {
    "csv": _csv,
    "derm7pt": _derm7pt,
    "fitzpatrick17k": _fitzpatrick17k,
    "folder": _folder,
    "ham10000": _ham10000,
    "isic2018": _isic2018,
    "isic2019": _isic2019,
    "isic2020": _isic2020,
    "medmnist": _medmnist,
    "pad_ufes_20": _pad_ufes_20,
    "ph2": _ph2,
}


def _open(root: Path, name: str, *files: str, also: str = "") -> tuple[pd.DataFrame, Path]:
    path = find_file(root, *files)
    if path is None:
        hint = f" There is a folder {name!r} in it; is that the root?" if (root / name).is_dir() else ""
        wanted = " or ".join(file for file in (also, *files) if file)
        raise DatasetError(f"{name}: no {wanted} in {root.name!r} or one folder below.{hint}")
    return read_table(path, root), path


def _bases(root: Path, source: Path) -> list[str]:
    """Where folders of images are looked for: the root, and the folder of the manifest."""
    parent = source.parent
    return ["", f"{glob.escape(parent.name)}/"] if parent != root and parent.parent == root else [""]


def _name(cell: str) -> str:
    """Identifier of an image as its set publishes it: without suffix and, in ISIC 2019, without ``_downsampled``."""
    stem, _, suffix = str(cell).rpartition(".")
    name = stem if f".{suffix.lower()}" in IMAGE_SUFFIXES else str(cell)
    return name.removesuffix("_downsampled")


def _with_labels(table: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Table with a column label, taken from one-hot columns if it has none."""
    if "label" in table:
        return table
    columns = [c for c in table.columns if c not in ("image", "score_weight", "validation_weight")]
    values = table[columns].apply(pd.to_numeric, errors="coerce")
    problems = Problems(source.name)
    wrong = ~(values.isin([0.0, 1.0]).all(axis=1) & (values.sum(axis=1) == 1))
    problems.add(", ".join(columns), "not one 1 and else 0", wrong, "Fix: one class an image.")
    problems.raise_if_any()
    return table.drop(columns=columns).assign(label=np.array(columns, dtype=object)[values.to_numpy().argmax(axis=1)])


def _joined(table: pd.DataFrame, root: Path, file: str) -> pd.DataFrame:
    """Table with the columns of a second table that goes by the same image names, where there is one."""
    path = find_file(root, file)
    if path is None:
        return table
    other = read_table(path, root)
    if "image" not in other or other["image"].duplicated().any():
        raise DatasetError(f"{path.name}: expected a column 'image' with every name once.")
    other = other.set_index("image").drop(columns=[c for c in table.columns if c in other and c != "image"])
    return table.join(other, on="image")


def _tree_of_columns(table: pd.DataFrame, columns: list[str], name: str, malignant: pd.Series) -> Taxonomy:
    """Tree whose levels are columns, coarsest first; a group that has the name of a leaf gets " (group)"."""
    leaves = set(table[columns[-1]].dropna())
    edges: dict[str, str | None] = {"lesion": None}
    rows = table[columns].dropna().drop_duplicates()
    for row in rows.itertuples(index=False):
        parent = "lesion"
        for depth, cell in enumerate(row):
            node = f"{cell} (group)" if depth < len(columns) - 1 and cell in leaves else str(cell)
            if edges.setdefault(node, parent) != parent:
                raise DatasetError(f"{name}: {node!r} is filed under both {edges[node]!r} and {parent!r}.")
            parent = node
    flags = {label: word == "malignant" for label, word in zip(table[columns[-1]], malignant) if label in leaves}
    return Taxonomy(edges, name=name, names={"lesion": "skin lesion"}, malignant=flags)


def _ph2_text(path: Path) -> pd.DataFrame:
    """PH2's own table: cells between bars, the diagnosis as 0, 1 or 2; a legend stands below it."""
    lines = path.read_text(encoding="latin-1").splitlines()
    rows = {
        number: [cell.strip() for cell in re.split(r"\|+", line)][1:]
        for number, line in enumerate(lines, start=1)
        if re.match(r"\s*\|+\s*IMD\d+\s*\|", line)
    }
    criteria = ("asymmetry", "pigment_network", "dots_globules", "streaks", "regression_areas", "blue_whitish_veil")
    columns = ("image", "histology", "code", *criteria, "colors")
    short = [number for number, row in rows.items() if len(row) < len(columns)]
    if not rows or short:
        wrong = f"line {short[0]} has too few cells" if short else "no line of an IMD image"
        raise DatasetError(f"{path.name}: {wrong}; expected the table as PH2 publishes it.")
    cells = {column: [row[i] or np.nan for row in rows.values()] for i, column in enumerate(columns)}
    table = pd.DataFrame(cells, index=list(rows), dtype=object)
    table["label"] = table["code"].replace({"0": "common_nevus", "1": "atypical_nevus", "2": "melanoma"})
    return table.drop(columns="code")


def _ph2_excel(path: Path) -> pd.DataFrame:
    """PH2's spreadsheet: a legend above the header, an X in the column of the diagnosis."""
    require("openpyxl", "excel")
    sheet = pd.read_excel(path, header=None, dtype=object, engine="openpyxl")
    header = next((i for i, cell in enumerate(sheet.iloc[:, 0]) if str(cell).strip() == "Image Name"), None)
    if header is None:
        raise DatasetError(f"{path.name}: no cell 'Image Name' in the first column.")
    names = [re.sub(r"\s*\(.*", "", str(cell).replace("\n", " ")).strip() for cell in sheet.iloc[header]]
    body = sheet.iloc[header + 1 :].set_axis(names, axis=1)
    body = body[body["Image Name"].notna()].set_axis([i + 1 for i in body.index[body["Image Name"].notna()]])
    diagnoses = {"Common Nevus": "common_nevus", "Atypical Nevus": "atypical_nevus", "Melanoma": "melanoma"}
    marks = body[list(diagnoses)].apply(lambda column: column.astype(str).str.strip().str.upper() == "X")
    problems = Problems(path.name)
    problems.add("Common Nevus, Atypical Nevus, Melanoma", "not one X", marks.sum(axis=1) != 1, "Fix: mark one.")
    problems.raise_if_any()
    labels = np.array(list(diagnoses.values()), dtype=object)[marks.to_numpy().argmax(axis=1)]
    rest = {"Image Name": "image", "Histological Diagnosis": "histology"}
    rest |= {c: re.sub(r"[^a-z]+", "_", c.lower()).strip("_") for c in names if c not in rest and c not in diagnoses}
    table = body.drop(columns=list(diagnoses)).rename(columns=rest).assign(label=labels)
    return table.assign(image=table["image"].astype(str).str.strip())
