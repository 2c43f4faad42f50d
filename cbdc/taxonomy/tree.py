"""`Taxonomy`: an immutable tree of diagnoses."""

import csv
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, suggestion

__all__ = ["Taxonomy", "suggestion"]

_MALIGNANT_WORDS = {
    "": None,
    "unknown": None,
    "true": True,
    "1": True,
    "yes": True,
    "false": False,
    "0": False,
    "no": False,
}


class Taxonomy:
    """An immutable tree of diagnoses.

    Parameters
    ----------
    edges : mapping of str to str or None, or iterable of (child, parent) pairs
        Every node once, with its parent; the one root has the parent ``None``.
    name : str, default="taxonomy"
        Name of the tree.
    names : mapping of str to str, optional
        Full English name of a node, where the label itself is not one.
    malignant : mapping of str to bool or None, optional
        Malignancy of a node. A leaf without an entry takes that of its nearest ancestor that has one.

    Raises
    ------
    DatasetError
        If a node appears twice, has two parents, has a parent that is no node, lies on a cycle, or is a second root, or
        if `names` or `malignant` speaks of a node that the tree does not have.

    Examples
    --------
    >>> tree = Taxonomy({"lesion": None, "nevus": "lesion", "melanoma": "lesion"}, malignant={"melanoma": True})
    >>> tree.leaves
    ('melanoma', 'nevus')
    >>> tree.ancestors("nevus")
    ('lesion',)
    >>> tree.malignant("melanoma"), tree.malignant("nevus"), tree.malignant("lesion")
    (True, None, None)
    """

    def __init__(
        self,
        edges: Mapping[str, str | None] | Iterable[tuple[str, str | None]],
        *,
        name: str = "taxonomy",
        names: Mapping[str, str] | None = None,
        malignant: Mapping[str, bool | None] | None = None,
    ) -> None:
        self._name = name
        self._parents = _checked_parents(edges.items() if isinstance(edges, Mapping) else edges, name)
        self._names = dict(names or {})
        self._malignant = {node: value for node, value in (malignant or {}).items() if value is not None}
        for node in (*self._names, *self._malignant):
            self._check(node)

    @classmethod
    def flat(cls, labels: Iterable[str], *, name: str = "flat") -> "Taxonomy":
        """Tree of one level, for labels about which nothing is known: every malignancy is ``None``."""
        labels = sorted(set(labels))
        root = next(r for r in ("lesion", "any lesion", "root of all labels") if r not in labels)
        return cls({root: None, **dict.fromkeys(labels, root)}, name=name)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Taxonomy":
        """Tree from what `to_dict` gives: a name, and a list of nodes with node, parent, name, malignant."""
        nodes = document.get("nodes") if isinstance(document, Mapping) else None
        if not isinstance(nodes, list) or not all(isinstance(row, Mapping) and "node" in row for row in nodes):
            raise DatasetError("taxonomy: expected an object with a list 'nodes' of objects with 'node' and 'parent'.")
        return cls(
            [(row["node"], row.get("parent") or None) for row in nodes],
            name=str(document.get("name") or "taxonomy"),
            names={row["node"]: row["name"] for row in nodes if row.get("name")},
            malignant={row["node"]: row.get("malignant") for row in nodes},
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "Taxonomy":
        """Tree from a ``.json`` file of what `to_dict` gives, or a ``.csv`` with node, parent, name, malignant."""
        path = Path(path)
        if path.suffix.lower() not in {".json", ".csv"}:
            raise DatasetError(
                f"taxonomy {path.name!r}: a {path.suffix or 'file without suffix'}; expected .json or .csv."
            )
        try:
            text = path.read_text(encoding="utf-8-sig")
            return cls.from_dict(json.loads(text) if path.suffix.lower() == ".json" else _csv_document(text, path))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DatasetError(f"taxonomy {path.name!r}: cannot be read ({error}).") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain document for JSON; `from_dict` gives the same tree back."""
        rows = [
            {"node": n, "parent": self._parents[n], "name": self._names.get(n), "malignant": self._malignant.get(n)}
            for n in self.nodes
        ]
        return {"name": self._name, "nodes": rows}

    @property
    def name(self) -> str:
        """Name of the tree."""
        return self._name

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Every node, root first, level by level, each level sorted."""
        return tuple(node for level in self.levels for node in level)

    @cached_property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Nodes by their distance from the root."""
        depth = {node: len(self.ancestors(node)) for node in self._parents}
        return tuple(tuple(sorted(n for n in depth if depth[n] == d)) for d in range(max(depth.values()) + 1))

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """Nodes without children, sorted."""
        return tuple(sorted(set(self._parents) - set(self._parents.values())))

    def parent(self, node: str) -> str | None:
        """Parent of a node; ``None`` for the root."""
        return self._parents[self._check(node)]

    def ancestors(self, node: str) -> tuple[str, ...]:
        """Ancestors of a node, its parent first and the root last."""
        above = []
        parent = self.parent(node)
        while parent is not None:
            above.append(parent)
            parent = self._parents[parent]
        return tuple(above)

    def descendants(self, node: str) -> tuple[str, ...]:
        """Leaves at or below a node, sorted."""
        row = self.nodes.index(self._check(node))
        return tuple(leaf for leaf, below in zip(self.leaves, self.ancestor_matrix[row]) if below)

    @cached_property
    def ancestor_matrix(self) -> np.ndarray:
        """Bool array of shape (n_nodes, n_leaves): whether the node is the leaf or one of its ancestors."""
        row = {node: i for i, node in enumerate(self.nodes)}
        matrix = np.zeros((len(self.nodes), len(self.leaves)), dtype=bool)
        for column, leaf in enumerate(self.leaves):
            matrix[[row[node] for node in (leaf, *self.ancestors(leaf))], column] = True
        matrix.setflags(write=False)
        return matrix

    @cached_property
    def level_codes(self) -> np.ndarray:
        """Int array of shape (n_levels, n_leaves): index in `nodes` of the leaf's ancestor there, or of the leaf."""
        row = {node: i for i, node in enumerate(self.nodes)}
        codes = np.empty((len(self.levels), len(self.leaves)), dtype=np.int64)
        for column, leaf in enumerate(self.leaves):
            path = (*reversed(self.ancestors(leaf)), leaf)
            codes[:, column] = [row[path[min(depth, len(path) - 1)]] for depth in range(len(self.levels))]
        codes.setflags(write=False)
        return codes

    def malignant(self, label: str) -> bool | None:
        """Whether a diagnosis is malignant; ``None`` if that is unknown or, for an inner node, if its leaves differ."""
        values = {self._leaf_malignant(leaf) for leaf in self.descendants(label)}
        return values.pop() if len(values) == 1 else None

    def describe(self, label: str) -> str:
        """Full English name of a label."""
        return self._names.get(self._check(label), label)

    def __contains__(self, node: object) -> bool:
        return node in self._parents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Taxonomy) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self._name, self.nodes))

    def __repr__(self) -> str:
        return f"Taxonomy({self._name!r}, {len(self.nodes)} nodes, {len(self.leaves)} leaves)"

    def _leaf_malignant(self, leaf: str) -> bool | None:
        return next((self._malignant[n] for n in (leaf, *self.ancestors(leaf)) if n in self._malignant), None)

    def _check(self, node: str) -> str:
        if node not in self._parents:
            raise DatasetError(f"taxonomy {self._name!r} has no label {node!r}{suggestion(node, self._parents)}.")
        return node


def _checked_parents(edges: Iterable[tuple[str, str | None]], name: str) -> dict[str, str | None]:
    """Child to parent, after every check that makes it a tree."""
    parents: dict[str, str | None] = {}
    for child, parent in edges:
        if not isinstance(child, str) or not child.strip():
            raise DatasetError(f"taxonomy {name!r}: {child!r} is no node name; expected a non-empty string.")
        if child in parents:
            if parents[child] != parent:
                raise DatasetError(f"taxonomy {name!r}: {child!r} has two parents, {parents[child]!r} and {parent!r}.")
            raise DatasetError(f"taxonomy {name!r}: {child!r} appears twice. Keep one row a node.")
        parents[child] = parent
    orphans = sorted(child for child, parent in parents.items() if parent is not None and parent not in parents)
    if orphans:
        raise DatasetError(
            f"taxonomy {name!r}: the parent {parents[orphans[0]]!r} of {orphans[0]!r} is no node"
            f"{suggestion(parents[orphans[0]], parents)}. Add a row for it."
        )
    for start in parents:
        seen, node = {start}, parents[start]
        while node is not None:
            if node in seen:
                raise DatasetError(f"taxonomy {name!r}: {start!r} leads into a cycle through {node!r}.")
            seen.add(node)
            node = parents[node]
    roots = sorted(child for child, parent in parents.items() if parent is None)
    if len(roots) != 1:
        raise DatasetError(f"taxonomy {name!r}: expected one root, got {len(roots)} ({', '.join(roots[:5])}).")
    return parents


def _csv_document(text: str, path: Path) -> dict[str, Any]:
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not {"node", "parent"} <= set(rows[0]):
        raise DatasetError(
            f"taxonomy {path.name!r}: expected rows with the columns node, parent (and name, malignant)."
        )
    for number, row in enumerate(rows, start=2):
        word = (row.get("malignant") or "").strip().lower()
        if word not in _MALIGNANT_WORDS:
            raise DatasetError(
                f"taxonomy {path.name!r} row {number}: malignant {word!r}; expected true, false or empty."
            )
        row["malignant"] = _MALIGNANT_WORDS[word]
    return {"name": path.stem, "nodes": rows}
