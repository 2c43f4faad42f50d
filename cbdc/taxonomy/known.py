"""The label sets of the public data sets: a tree each, and maps from one to another."""

from collections.abc import Iterable, Mapping

from ..errors import DatasetError, suggestion
from .tree import Taxonomy

__all__ = ["TAXONOMIES", "get_taxonomy", "map_labels"]


def get_taxonomy(name: str) -> Taxonomy:
    """Tree of a known label set: a key of `TAXONOMIES`.

    Examples
    --------
    >>> ham = get_taxonomy("ham10000")
    >>> ham.describe("mel"), ham.malignant("mel"), ham.parent("mel")
    ('melanoma', True, 'melanocytic')
    >>> get_taxonomy("isic2019").malignant("AK") is None
    True
    """
    if name not in TAXONOMIES:
        raise DatasetError(f"no taxonomy is called {name!r}{suggestion(name, TAXONOMIES)}.")
    return TAXONOMIES[name]


def map_labels(labels: Iterable[str], source: str | Taxonomy, target: str) -> list[str]:
    """Labels of one data set in the words of another.

    Parameters
    ----------
    labels : iterable of str
        Labels of `source`.
    source : str or Taxonomy
        A key of `TAXONOMIES`, or a tree, whose name then decides.
    target : str
        A key of `TAXONOMIES`. Every set maps to "isic2020", by malignancy. The new label may be an inner node: a
        HAM10000 nevus is a "nevus" of PH2, neither common nor atypical.

    Returns
    -------
    list of str
        One label each, in order.

    Raises
    ------
    DatasetError
        If a label is unknown to `source` or has no counterpart in `target`.

    Examples
    --------
    >>> map_labels(["common_nevus", "atypical_nevus", "melanoma"], "ph2", "ham10000")
    ['nv', 'nv', 'mel']
    >>> map_labels(["ACK", "SEK"], "pad_ufes_20", "ham10000")
    ['akiec', 'bkl']
    >>> map_labels(["nv", "mel"], "ham10000", "isic2020")
    ['benign', 'malignant']
    """
    tree = source if isinstance(source, Taxonomy) else get_taxonomy(source)
    get_taxonomy(target)
    labels = list(labels)
    mapping = {label: _counterpart(label, tree, target) for label in dict.fromkeys(labels)}
    lost = sorted(label for label, new in mapping.items() if new is None)
    if lost:
        raise DatasetError(
            f"no counterpart in {target!r} for the {tree.name!r} label{'s' if len(lost) > 1 else ''} "
            f"{', '.join(map(repr, lost[:8]))}. Fix: leave those images out, or give your own mapping."
        )
    return [str(mapping[label]) for label in labels]


def _counterpart(label: str, tree: Taxonomy, target: str) -> str | None:
    malignant = tree.malignant(label)  # also refuses a label that the tree does not have
    if tree.name == target:
        return label
    if (tree.name, target) in _LABEL_MAPS:
        return _LABEL_MAPS[tree.name, target].get(label)
    if target == "isic2020":
        return None if malignant is None else "malignant" if malignant else "benign"
    allowed = sorted(to for source, to in _LABEL_MAPS if source == tree.name)
    raise DatasetError(
        f"no label map from {tree.name!r} to {target!r}{suggestion(target, [*allowed, 'isic2020'])}. Fix: give your "
        "own, dataset.relabel({'old label': 'new label', ...})."
    )


def _tree(
    name: str, children: Mapping[str, str], names: Mapping[str, str], malignant: str, unsure: str = ""
) -> Taxonomy:
    """Tree of root, groups and leaves (lists split at commas); a leaf not in `malignant` or `unsure` is benign."""
    edges: dict[str, str | None] = {"lesion": None}
    for group, members in children.items():
        if group != "lesion":
            edges[group] = "lesion"
        edges |= dict.fromkeys(members.split(","), group)
    leaves = [leaf for members in children.values() for leaf in members.split(",") if leaf not in children]
    flags = {leaf: leaf in malignant.split(",") for leaf in leaves if leaf not in unsure.split(",")}
    return Taxonomy(edges, name=name, names={"lesion": "skin lesion", **names}, malignant=flags)


_GROUPS = {
    "melanocytic": "melanocytic lesion",
    "keratinocytic": "keratinocytic lesion",
    "soft_tissue": "soft tissue lesion",
}
_HAM_NAMES = {
    "akiec": "actinic keratosis or intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}
_UPPER_NAMES = {label.upper(): text for label, text in _HAM_NAMES.items()}

# Second level of the ISIC Archive's diagnosis tree (the metadata columns diagnosis_1 and diagnosis_2).
_ISIC = {
    "Benign": (
        "Benign - Other",
        "Benign adnexal epithelial proliferations - Apocrine or Eccrine",
        "Benign adnexal epithelial proliferations - Follicular",
        "Benign adnexal epithelial proliferations - Sebaceous",
        "Benign epidermal proliferations",
        "Benign melanocytic proliferations",
        "Benign soft tissue proliferations - Adipocytic",
        "Benign soft tissue proliferations - Cartilagenous and ossifying",
        "Benign soft tissue proliferations - Fibro-histiocytic",
        "Benign soft tissue proliferations - Muscle tissue or myofibroblastic",
        "Benign soft tissue proliferations - Myoepithelial",
        "Benign soft tissue proliferations - Neural",
        "Benign soft tissue proliferations - Vascular",
        "Collision - Only benign proliferations",
        "Cysts",
        "Exogenous",
        "Flat melanotic pigmentations - not melanocytic nevus",
        "Hemorrhagic lesions",
        "Inflammatory or infectious diseases",
        "Langerhans cell proliferations",
        "Mast cell proliferations",
    ),
    "Indeterminate": (
        "Indeterminate epidermal proliferations",
        "Indeterminate melanocytic proliferations",
    ),
    "Malignant": (
        "Collision - At least one malignant proliferation",
        "Lymphocytic proliferations - B-Cell",
        "Lymphocytic proliferations - T-Cell/NK",
        "Malignant adnexal epithelial proliferations - Apocrine or Eccrine",
        "Malignant adnexal epithelial proliferations - Follicular",
        "Malignant adnexal epithelial proliferations - Sebaceous",
        "Malignant epidermal proliferations",
        "Malignant melanocytic proliferations (Melanoma)",
        "Malignant soft tissue proliferations - Adipocytic",
        "Malignant soft tissue proliferations - Cartilagenous and ossifying",
        "Malignant soft tissue proliferations - Fibro-histiocytic",
        "Malignant soft tissue proliferations - Muscle tissue or myofibroblastic",
        "Malignant soft tissue proliferations - Myoepithelial",
        "Malignant soft tissue proliferations - Neural",
        "Malignant soft tissue proliferations - Unknown or other histiogenesis",
        "Malignant soft tissue proliferations - Vascular",
        "Merkel cell proliferation",
        "Skin metastasis of internal solid cancer - non-hematological",
    ),
}

# HAM10000's akiec holds actinic keratoses and Bowen's disease, both non-invasive variants of squamous cell carcinoma
# that may become invasive (Tschandl et al. 2018, doi:10.1038/sdata.2018.161): counted as malignant, for it needs
# treatment. Where actinic keratosis is a class of its own (ISIC 2019, PAD-UFES-20) its malignancy is unknown, as in the
# ISIC Archive, which files it under "Indeterminate".
TAXONOMIES: dict[str, Taxonomy] = {
    tree.name: tree
    for tree in (
        _tree(
            "ham10000",
            {"melanocytic": "mel,nv", "keratinocytic": "akiec,bcc,bkl", "soft_tissue": "df,vasc"},
            {**_GROUPS, **_HAM_NAMES},
            malignant="mel,bcc,akiec",
        ),
        _tree(
            "isic2018",
            {"melanocytic": "MEL,NV", "keratinocytic": "AKIEC,BCC,BKL", "soft_tissue": "DF,VASC"},
            {**_GROUPS, **_UPPER_NAMES},
            malignant="MEL,BCC,AKIEC",
        ),
        _tree(
            "isic2019",
            {"melanocytic": "MEL,NV", "keratinocytic": "AK,BCC,BKL,SCC", "soft_tissue": "DF,VASC"},
            {
                **_GROUPS,
                **{label: text for label, text in _UPPER_NAMES.items() if label != "AKIEC"},
                "AK": "actinic keratosis",
                "SCC": "squamous cell carcinoma",
            },
            malignant="MEL,BCC,SCC",
            unsure="AK",
        ),
        _tree("isic2020", {"lesion": "benign,malignant"}, {}, malignant="malignant"),
        _tree(
            "ph2",
            {"nevus": "common_nevus,atypical_nevus", "lesion": "melanoma"},
            {"common_nevus": "common nevus", "atypical_nevus": "atypical nevus", "lesion": "melanocytic lesion"},
            malignant="melanoma",
        ),
        _tree(
            "pad_ufes_20",
            {"melanocytic": "MEL,NEV", "keratinocytic": "ACK,BCC,SCC,SEK"},
            {
                **{group: _GROUPS[group] for group in ("melanocytic", "keratinocytic")},
                "ACK": "actinic keratosis",
                "BCC": "basal cell carcinoma",
                "MEL": "melanoma",
                "NEV": "melanocytic nevus",
                "SCC": "squamous cell carcinoma",  # holds Bowen's disease, says the data set's paper
                "SEK": "seborrheic keratosis",
            },
            malignant="MEL,BCC,SCC",
            unsure="ACK",
        ),
        _tree(
            "derm7pt",
            {
                "nevus group": "blue nevus,clark nevus,combined nevus,congenital nevus,dermal nevus,recurrent nevus,"
                "reed or spitz nevus",
                "melanoma group": "melanoma,melanoma (in situ),melanoma (less than 0.76 mm),melanoma (0.76 to 1.5 mm),"
                "melanoma (more than 1.5 mm),melanoma metastasis",
                "miscellaneous group": "dermatofibroma,lentigo,melanosis,miscellaneous,vascular lesion",
                "lesion": "basal cell carcinoma,seborrheic keratosis",
            },
            {"nevus group": "nevus", "melanoma group": "melanoma", "miscellaneous group": "miscellaneous"},
            malignant="basal cell carcinoma,melanoma,melanoma (in situ),melanoma (less than 0.76 mm),"
            "melanoma (0.76 to 1.5 mm),melanoma (more than 1.5 mm),melanoma metastasis",
            unsure="miscellaneous",
        ),
        Taxonomy(
            {"lesion": None}
            | dict.fromkeys(_ISIC, "lesion")
            | {child: parent for parent, children in _ISIC.items() for child in children},
            name="isic",
            names={"lesion": "skin lesion"},
            malignant={"Benign": False, "Malignant": True},
        ),
    )
}

_LABEL_MAPS: dict[tuple[str, str], dict[str, str]] = {
    ("ham10000", "isic2018"): {label: label.upper() for label in _HAM_NAMES},
    ("ham10000", "ph2"): {"nv": "nevus", "mel": "melanoma"},
    ("isic2018", "ham10000"): {label.upper(): label for label in _HAM_NAMES},
    ("isic2019", "ham10000"): {
        "AK": "akiec",
        "BCC": "bcc",
        "BKL": "bkl",
        "DF": "df",
        "MEL": "mel",
        "NV": "nv",
        "SCC": "akiec",
        "VASC": "vasc",
    },
    ("pad_ufes_20", "ham10000"): {
        "ACK": "akiec",
        "BCC": "bcc",
        "MEL": "mel",
        "NEV": "nv",
        "SCC": "akiec",
        "SEK": "bkl",
    },
    ("pad_ufes_20", "isic2019"): {
        "ACK": "AK",
        "BCC": "BCC",
        "MEL": "MEL",
        "NEV": "NV",
        "SCC": "SCC",
        "SEK": "BKL",
    },
    ("ph2", "ham10000"): {"common_nevus": "nv", "atypical_nevus": "nv", "nevus": "nv", "melanoma": "mel"},
    ("derm7pt", "ham10000"): {
        **dict.fromkeys(TAXONOMIES["derm7pt"].descendants("nevus group"), "nv"),
        **dict.fromkeys(TAXONOMIES["derm7pt"].descendants("melanoma group"), "mel"),
        "basal cell carcinoma": "bcc",
        "dermatofibroma": "df",
        "lentigo": "bkl",
        "seborrheic keratosis": "bkl",
        "vascular lesion": "vasc",
    },
    ("isic2019", "isic"): {
        "AK": "Indeterminate epidermal proliferations",
        "BCC": "Malignant adnexal epithelial proliferations - Follicular",
        "BKL": "Benign epidermal proliferations",
        "DF": "Benign soft tissue proliferations - Fibro-histiocytic",
        "MEL": "Malignant melanocytic proliferations (Melanoma)",
        "NV": "Benign melanocytic proliferations",
        "SCC": "Malignant epidermal proliferations",
        "VASC": "Benign soft tissue proliferations - Vascular",
    },
}
