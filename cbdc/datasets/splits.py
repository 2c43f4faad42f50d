"""Which images belong together, and how to part them so that no patient, lesion or photograph is on two sides."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.utils import check_random_state

from ..errors import DatasetError

__all__ = [
    "UNITS",
    "assign_parts",
    "coarsest_unit",
    "count_straddling",
    "draw_one_per",
    "group_codes",
    "joined_codes",
    "merged_codes",
]

UNITS = ("patient", "lesion", "image")  # coarsest first


def coarsest_unit(frame: pd.DataFrame) -> str:
    """Coarsest of `UNITS` of which at least one image has an identifier."""
    return next((u for u in UNITS[:2] if f"{u}_id" in frame and frame[f"{u}_id"].notna().any()), "image")


def group_codes(frame: pd.DataFrame, by: str) -> np.ndarray:
    """Int code of the unit of every row, of shape (n,).

    An image without an identifier is its own unit, or that of the next finer unit. Some sets number the lesions of each
    patient anew, so a lesion identifier that several patients have is read within the patient, unless an image with it
    has no patient: that may be any of them, and all are one unit.
    """
    if by not in UNITS:
        raise DatasetError(f"by={by!r} is no unit; expected one of {', '.join(map(repr, UNITS))}.")
    if by != "image" and coarsest_unit(frame) != by and not _known(frame, by):
        raise DatasetError(
            f"by={by!r}: no image has a {by}_id. Fix: by={coarsest_unit(frame)!r}, the coarsest unit known here."
        )
    image = pd.factorize(frame["image"])[0].astype(np.int64)
    if by == "image":
        return image
    lesion = _lesion_codes(frame) if _known(frame, "lesion") else image
    if by == "lesion":
        return lesion
    patient = pd.factorize(frame["patient_id"])[0].astype(np.int64)
    return _components(lesion, _own_code_if_missing(patient))


def merged_codes(frame: pd.DataFrame, by: str, pairs: Iterable[tuple[str, str]]) -> np.ndarray:
    """As `group_codes`, with the units of every pair of image names (one photograph) merged into one."""
    names = pd.Index(frame["image"].drop_duplicates())
    pairs = list(pairs)
    left, right = (names.get_indexer([pair[side] for pair in pairs]) for side in (0, 1))
    known = (left >= 0) & (right >= 0)
    image = group_codes(frame, "image")  # factorized in order of appearance, as `names` is
    first_row = np.full(len(names), -1)
    first_row[image[::-1]] = np.arange(len(image))[::-1]
    links = (first_row[left[known]], first_row[right[known]])
    return _components(group_codes(frame, by), image, links=links)


def joined_codes(*keys: Sequence[str | None]) -> np.ndarray:
    """Int code of every row, of shape (n,), equal for rows that hang together by a key; None is no key."""
    codes = [pd.factorize(np.array(key, dtype=object))[0].astype(np.int64) for key in keys]
    return _components(*map(_own_code_if_missing, codes))


def count_straddling(codes: np.ndarray, part: np.ndarray) -> int:
    """Number of units that have images in more than one part."""
    pairs = np.unique(np.stack([codes, part]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def assign_parts(
    units: np.ndarray, strata: np.ndarray, names: Sequence[str], sizes: Sequence[float], random_state: object = None
) -> np.ndarray:
    """Part of every image, of shape (n,), so that units stay whole and strata have their share in every part.

    Units of equal composition (as many images of each stratum) are shuffled and dealt out in the wanted proportion; the
    few left over go, rarest stratum first, where images and units are missing. The result depends on the names,
    not on the order of the rows.
    """
    units = _canonical(units, names)
    strata = np.unique(strata, return_inverse=True)[1].astype(np.int64)
    n_units, n_strata = int(units.max()) + 1, int(strata.max()) + 1
    cells, counts = np.unique(units * n_strata + strata, return_counts=True)
    cell_unit, cell_stratum = cells // n_strata, cells % n_strata
    rng = check_random_state(random_state)
    shuffled = rng.permutation(n_units)
    fractions = np.asarray(sizes, dtype=float)
    part_of_unit = _deal(_signatures(cell_unit, cell_stratum, counts, n_units), shuffled, fractions)
    _deal_rest(part_of_unit, (cell_unit, cell_stratum, counts), shuffled, fractions, rng.random_sample)
    return part_of_unit[units]


def draw_one_per(units: np.ndarray, names: Sequence[str], random_state: object = None) -> np.ndarray:
    """Sorted positions of one image of every unit, each of its images equally likely."""
    order = np.argsort(np.asarray(names, dtype=object), kind="stable")
    key = np.empty(len(order), dtype=np.int64)
    key[order] = check_random_state(random_state).permutation(len(order))
    by_unit = np.lexsort((key, units))
    first = np.unique(units[by_unit], return_index=True)[1]
    return np.sort(by_unit[first])


def _deal(signature: np.ndarray, shuffled: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Whole shares of every group of equal units; -1 for the units left over."""
    order = np.lexsort((shuffled, signature))
    _, start, size = np.unique(signature[order], return_index=True, return_counts=True)
    position = np.arange(len(order)) - np.repeat(start, size)
    ends = np.cumsum(np.floor(np.outer(size, fractions) + 1e-9), axis=1)
    part = (position[:, None] >= np.repeat(ends, size, axis=0)).sum(axis=1)
    part[part == len(fractions)] = -1
    out = np.empty_like(part)
    out[order] = part
    return out


def _deal_rest(
    part_of_unit: np.ndarray,
    cells: tuple[np.ndarray, np.ndarray, np.ndarray],
    shuffled: np.ndarray,
    fractions: np.ndarray,
    uniform: Callable[[], float],
) -> None:
    """Give every unit of part -1, in place, to a part drawn with the odds of what the parts still lack of its strata.

    Lack is counted relative to the total, in images and in units, for each stratum of the unit and for all together.
    Drawing, and not taking the neediest part, keeps the chance of every unit to be in a part near the part's size.
    """
    unit, stratum, count = cells
    n_units, n_parts, n_strata = len(part_of_unit), len(fractions), int(stratum.max()) + 1
    size = np.bincount(unit, count, n_units)
    # columns: images of each stratum, units that hold it, all images, all units
    columns = np.concatenate([stratum, stratum + n_strata, np.full(len(unit), 2 * n_strata)])
    amounts = np.concatenate([count, np.ones(len(unit)), count])
    totals = np.append(np.bincount(columns, amounts), n_units)
    part = np.tile(part_of_unit[unit], 3)
    lack = np.outer(fractions, totals)
    np.subtract.at(lack, (part[part >= 0], columns[part >= 0]), amounts[part >= 0])
    lack[:, -1] -= np.bincount(part_of_unit[part_of_unit >= 0], minlength=n_parts)

    start = np.searchsorted(unit, np.arange(n_units + 1))
    rarest = np.minimum.reduceat(totals[stratum + n_strata], start[:-1])
    rest = np.flatnonzero(part_of_unit < 0)
    for u in rest[np.lexsort((shuffled[rest], -size[rest], rarest[rest]))]:
        own = slice(start[u], start[u + 1])
        where = np.concatenate([stratum[own], stratum[own] + n_strata, [2 * n_strata, 2 * n_strata + 1]])
        amount = np.concatenate([count[own], np.ones(own.stop - own.start), [size[u], 1.0]])
        odds = np.maximum(lack[:, where] @ (amount / totals[where] ** 2), 0)
        chosen = min(int(np.searchsorted(np.cumsum(odds), uniform() * odds.sum(), side="right")), n_parts - 1)
        part_of_unit[u] = chosen
        lack[chosen, where] -= amount


def _signatures(cell_unit: np.ndarray, cell_stratum: np.ndarray, counts: np.ndarray, n_units: int) -> np.ndarray:
    """A number for every unit, equal for units of equal composition."""
    kind = np.unique(np.stack([cell_stratum, counts]), axis=1, return_inverse=True)[1].reshape(-1)
    table = np.random.default_rng(0).integers(2**63, size=int(kind.max()) + 1, dtype=np.uint64)
    signature = np.zeros(n_units, dtype=np.uint64)
    np.add.at(signature, cell_unit, table[kind])
    return signature


def _canonical(units: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Units renumbered by the smallest name that each holds, whatever the order of the rows."""
    order = np.argsort(np.asarray(names, dtype=object), kind="stable")
    codes = np.empty(len(units), dtype=np.int64)
    codes[order] = pd.factorize(units[order])[0]
    return codes


def _known(frame: pd.DataFrame, unit: str) -> bool:
    return f"{unit}_id" in frame and bool(frame[f"{unit}_id"].notna().any())


def _lesion_codes(frame: pd.DataFrame) -> np.ndarray:
    lesion = pd.factorize(frame["lesion_id"])[0].astype(np.int64)
    if not _known(frame, "patient"):
        return _own_code_if_missing(lesion)
    patient = pd.factorize(frame["patient_id"])[0].astype(np.int64)
    known = (lesion >= 0) & (patient >= 0)
    pairs = np.unique(np.stack([lesion[known], patient[known]]), axis=1)
    n_patients = np.bincount(pairs[0], minlength=int(lesion.max()) + 1)
    of_nobody = np.isin(lesion, lesion[patient < 0])  # an image of no patient may be of each: the lesion stays whole
    within = np.where(
        (n_patients[lesion] > 1) & ~of_nobody, patient, -1
    )  # a missing lesion is given its own code below
    codes = np.unique(np.stack([lesion, within]), axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return _own_code_if_missing(np.where(lesion < 0, -1, codes))


def _own_code_if_missing(codes: np.ndarray) -> np.ndarray:
    missing = codes < 0
    codes = codes.copy()
    codes[missing] = max(int(codes.max(initial=-1)), -1) + 1 + np.arange(missing.sum())
    return codes


def _components(*codes: np.ndarray, links: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Connected components of the rows, where rows of one code, and linked rows, hang together."""
    n, offset = len(codes[0]), len(codes[0])
    rows, columns = [], []
    for code in codes:
        rows.append(np.arange(n))
        columns.append(code + offset)
        offset += int(code.max(initial=-1)) + 1
    if links is not None:
        rows.append(links[0])
        columns.append(links[1])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=(offset, offset))
    return pd.factorize(connected_components(graph, directed=False)[1][:n])[0].astype(np.int64)
