"""Nested families of sets of classes that few nodes of a tree name, and the conformity scores read off them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..errors import ParameterError, suggestion
from ..taxonomy import Taxonomy

__all__ = ["Tree", "check_leaves", "nested_scores", "nested_sets"]


@dataclasses.dataclass(frozen=True)
class Tree:
    """Nodes with parents before children, and the node of each class. Arrays over it are of shape (n_nodes, n)."""

    parents: tuple[int, ...]  # -1 for the root, which comes first
    leaves: tuple[int, ...]

    @classmethod
    def flat(cls, n_classes: int) -> "Tree":
        if n_classes == 1:
            return cls((-1,), (0,))
        return cls((-1,) + (0,) * n_classes, tuple(range(1, n_classes + 1)))

    @classmethod
    def of_taxonomy(cls, taxonomy: Taxonomy, leaves: Sequence[str]) -> tuple["Tree", tuple[str, ...]]:
        """The tree above these leaves, and the names of its nodes; of nodes with the same leaves below, the lowest."""
        below = taxonomy.ancestor_matrix[:, [taxonomy.leaves.index(leaf) for leaf in leaves]]
        members = {node: row.tobytes() for node, row in zip(taxonomy.nodes, below) if row.any()}
        lowest = {key: node for node, key in members.items()}  # nodes come level by level, and the last one stays
        names = tuple(node for node, key in members.items() if lowest[key] == node)
        place = {node: i for i, node in enumerate(names)}
        above = [
            [place[lowest[members[a]]] for a in taxonomy.ancestors(node) if members[a] != members[node]]
            for node in names
        ]
        return cls(tuple(a[0] if a else -1 for a in above), tuple(place[leaf] for leaf in leaves)), names

    def sums(self, values: np.ndarray, dtype: type = float) -> np.ndarray:
        """Sum over the classes below each node, of (n_classes, n). Added one by one, so that a batch changes no bit."""
        total: np.ndarray = np.zeros((len(self.parents), values.shape[1]), dtype=dtype)
        total[list(self.leaves)] = values
        return self.accumulate(total)

    def accumulate(self, values: np.ndarray) -> np.ndarray:
        """Add each node's value to its parent's, from the leaves up, in place."""
        for node in range(len(self.parents) - 1, 0, -1):
            values[self.parents[node]] += values[node]
        return values

    def top_nodes(self, full: np.ndarray) -> np.ndarray:
        """Of the nodes that are full, those whose parent is not: they name the set."""
        found = full.copy()
        found[1:] &= ~full[list(self.parents[1:])]
        return found

    @property
    def members(self) -> np.ndarray:
        """Whether a class is at or below a node, bool (n_nodes, n_classes)."""
        return self.sums(np.eye(len(self.leaves)), int).astype(bool)


def nested_scores(
    p: np.ndarray, tree: Tree, max_nodes: int | None, *, u: np.ndarray, score: str, allow_empty: bool
) -> np.ndarray:
    """Scores of all classes, (n, n_classes), from probabilities (n_classes, n) and the family of nested sets."""
    step, outside, gain, size = nested_sets(p, tree, max_nodes)
    if score == "aps":
        share = np.where((np.arange(gain.shape[1]) > 0) | allow_empty, u[:, None], 0.0)
        by_step = ((1 - share) * outside[:, :-1] + share * outside[:, 1:]) / outside[:, :1]
    else:
        by_step = _densities(gain, size, start=0 if allow_empty else 1)
    return np.take_along_axis(by_step, step, axis=1)


def nested_sets(
    p: np.ndarray, tree: Tree, max_nodes: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grow a set of classes from the empty one to all, step by step, so that at most `max_nodes` nodes name it.

    Of the least enlargements that the bound allows, a step takes the one with the most probability for each class
    added: with a bound of one the parent, without a bound the most probable class that is left. Equal ones are taken in
    the order of the tree.

    Returns
    -------
    step : ndarray of shape (n, n_classes), int
        Step at which the class is taken in.
    outside : ndarray of shape (n, n_steps + 1)
        Probability outside before each step, and after the last.
    gain, size : ndarrays of shape (n, n_steps), (n, n_steps + 1)
        Probability that the step adds; number of classes in the set before each step, and after the last.
    """
    n_classes, n = p.shape
    members = tree.members
    inside = np.zeros(p.shape, dtype=bool)
    step = np.zeros(p.shape, dtype=np.intp)
    outside: list[np.ndarray] = []
    gain: list[np.ndarray] = []
    size: list[np.ndarray] = []
    while True:
        left = tree.sums(np.where(inside, 0.0, p))
        missing = tree.sums(~inside, int)
        outside.append(left[0])
        size.append(n_classes - missing[0])
        if not missing[0].any():
            break
        allowed = missing > 0
        if max_nodes is not None:
            named = tree.accumulate(tree.top_nodes(~allowed).astype(int))
            allowed &= named[0] - named + 1 <= max_nodes  # the node would stand for those named below it
        lower = np.zeros_like(allowed)
        for node in range(len(tree.parents) - 1, 0, -1):
            lower[tree.parents[node]] |= lower[node] | allowed[node]
        density = np.where(allowed & ~lower, left / np.maximum(missing, 1), -1.0)
        chosen = density.argmax(axis=0)
        new = members[chosen].T & ~inside
        step[new] = len(gain)
        gain.append(left[chosen, np.arange(n)])
        inside |= new
    return step.T, np.stack(outside, axis=1), np.stack(gain, axis=1), np.stack(size, axis=1)


def _densities(gain: np.ndarray, size: np.ndarray, start: int) -> np.ndarray:
    """Probability for each class added, steps pooled until it falls: slopes of the least concave curve above.

    Steps before `start` are worth more than any.
    """
    n, n_steps = gain.shape
    found = np.ones((n, n_steps))
    at = np.full(n, min(start, n_steps))
    steps = np.arange(n_steps)
    last = np.full(n, np.inf)
    while (at < n_steps).any():
        open_ = steps >= at[:, None]
        mass = np.cumsum(np.where(open_, gain, 0), axis=1)
        added = size[:, 1:] - np.take_along_axis(size, at[:, None], axis=1)
        rate = np.where(open_ & (added > 0), mass / np.maximum(added, 1), -1.0)
        end = n_steps - 1 - rate[:, ::-1].argmax(axis=1)
        slope = np.minimum(rate[np.arange(n), end], last)  # rounding must not let it rise
        pooled = open_ & (steps <= end[:, None])
        found[pooled] = np.broadcast_to(slope[:, None], pooled.shape)[pooled]
        last, at = np.where(at < n_steps, slope, last), np.where(at < n_steps, end + 1, at)
    return np.maximum(found, 0)


def check_leaves(names: Sequence[str], tree: Taxonomy, classes: np.ndarray) -> tuple[str, ...]:
    """The leaf of each class, or an error that names the first class that has none."""
    if len(names) != len(classes):
        raise ParameterError(
            f"taxonomy {tree.name!r}: {len(names)} leaves for {len(classes)} classes. Fix: give leaves=, the name of "
            "the leaf of each class in the order of classes_."
        )
    for name in names:
        if name not in tree:
            raise ParameterError(
                f"taxonomy {tree.name!r} has no node {name!r}, which is a class{suggestion(name, tree.leaves)}. Fix: "
                "add it to the tree, or give leaves=, the name of the leaf of each class in the order of classes_."
            )
        if name not in tree.leaves:
            below = ", ".join(tree.descendants(name))
            raise ParameterError(
                f"taxonomy {tree.name!r}: the class {name!r} is an inner node, above {below}. Fix: classes "
                "must be leaves; merge those below it, or give the class a leaf of its own."
            )
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ParameterError(f"leaves: {twice!r} stands for two classes; give each class a leaf of its own.")
    return tuple(names)
