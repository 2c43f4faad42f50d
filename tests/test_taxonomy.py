"""Trees of diagnoses and label maps."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbdc.errors import DatasetError
from cbdc.taxonomy import TAXONOMIES, Taxonomy, get_taxonomy, map_labels
from cbdc.taxonomy.known import _LABEL_MAPS
from tests.strategies import parents_of_trees


def is_at_or_below(node, above, parents):
    while node is not None and node != above:
        node = parents[node]
    return node == above


@given(parents_of_trees())
def test_a_leaf_is_below_its_ancestors_and_nothing_else(parents):
    tree = Taxonomy(parents)
    assert set(tree.leaves) == {n for n in parents if n not in parents.values()}
    assert set(tree.nodes) == set(parents)
    for row, node in enumerate(tree.nodes):
        below = tuple(leaf for leaf in tree.leaves if is_at_or_below(leaf, node, parents))
        assert tree.descendants(node) == below
        assert tuple(np.array(tree.leaves)[tree.ancestor_matrix[row]]) == below
        assert all(is_at_or_below(node, above, parents) for above in tree.ancestors(node))
        assert tree.parent(node) == parents[node] == (tree.ancestors(node) or (None,))[0]


@given(parents_of_trees())
def test_levels_go_down_by_one_and_their_codes_name_an_ancestor_of_the_leaf(parents):
    tree = Taxonomy(parents)
    assert tree.levels[0] == ("n0",)
    assert all(tree.parent(n) in above for above, level in pairwise(tree.levels) for n in level)
    assert tree.level_codes.shape == (len(tree.levels), len(tree.leaves))
    for column, leaf in enumerate(tree.leaves):
        path = [tree.nodes[code] for code in tree.level_codes[:, column]]
        assert path[0] == "n0"
        assert path[-1] == leaf
        assert all(b == a or tree.parent(b) == a for a, b in pairwise(path))


@given(parents_of_trees(), st.randoms(use_true_random=False))
def test_order_of_the_edges_does_not_matter_and_json_gives_the_tree_back(parents, random):
    edges = list(parents.items())
    tree = Taxonomy(edges, name="t", names={"n0": "root"}, malignant={edges[0][0]: True})
    random.shuffle(edges)
    assert Taxonomy(edges, name="t", names={"n0": "root"}, malignant=tree._malignant) == tree
    assert Taxonomy.from_dict(json.loads(json.dumps(tree.to_dict()))) == tree


@given(parents_of_trees(), st.data())
def test_malignancy_comes_from_the_nearest_node_that_has_one(parents, data):
    given_flags = data.draw(st.dictionaries(st.sampled_from(sorted(parents)), st.booleans()))
    tree = Taxonomy(parents, malignant=given_flags)

    def of_leaf(node):
        return None if node is None else given_flags.get(node) if node in given_flags else of_leaf(parents[node])

    for node in parents:
        below = {of_leaf(leaf) for leaf in tree.descendants(node)}
        assert tree.malignant(node) == (below.pop() if len(below) == 1 else None)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([("a", None), ("b", "a"), ("c", "a"), ("b", "c")], "'b' has two parents"),
        ([("a", None), ("b", "a"), ("b", "a")], "'b' appears twice"),
        ([("a", None), ("b", "c")], "parent 'c' of 'b' is no node"),
        ([("r", None), ("a", "b"), ("b", "a")], "cycle"),
        ([("a", "a")], "cycle"),
        ([("a", None), ("b", None)], "expected one root, got 2"),
        ([("", None)], "no node name"),
        ([], "expected one root, got 0"),
    ],
)
def test_what_is_no_tree_is_refused(edges, message):
    with pytest.raises(DatasetError, match=message):
        Taxonomy(edges)


@pytest.mark.parametrize("words", [{"names": {"x": "y"}}, {"malignant": {"x": True}}])
def test_words_about_unknown_nodes_are_refused(words):
    with pytest.raises(DatasetError, match="has no label 'x'"):
        Taxonomy({"a": None}, **words)


def test_unknown_label_suggests_the_near_one():
    with pytest.raises(DatasetError, match="did you mean 'melanocytic'"):
        get_taxonomy("ham10000").parent("Melanocitic")


def test_tree_is_immutable():
    tree = get_taxonomy("ham10000")
    with pytest.raises(AttributeError):
        tree.name = "other"
    with pytest.raises(ValueError, match="read-only"):
        tree.ancestor_matrix[0, 0] = False


def test_csv_and_json_files_give_the_same_tree(tmp_path):
    (tmp_path / "t.csv").write_text(
        "\ufeffnode,parent,name,malignant\nskin,,skin lesion,\nmel,skin,melanoma,TRUE\nnv,skin,nevus,0\n",
        encoding="utf-8",
    )
    tree = Taxonomy.from_file(tmp_path / "t.csv")
    (tmp_path / "u.json").write_text(json.dumps(tree.to_dict()))
    assert tree == Taxonomy.from_file(str(tmp_path / "u.json"))
    assert (tree.malignant("mel"), tree.malignant("nv"), tree.describe("mel")) == (True, False, "melanoma")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", "{", "cannot be read"),
        ("t.json", "[]", "list 'nodes'"),
        ("t.json", '{"nodes": [{"parent": "a"}]}', "list 'nodes'"),
        ("t.csv", "a,b\n1,2\n", "columns node, parent"),
        ("t.csv", "node,parent,malignant\na,,maybe\n", "row 2: malignant 'maybe'"),
        ("t.txt", "", "expected .json or .csv"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        Taxonomy.from_file(tmp_path / name)


def test_absent_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        Taxonomy.from_file(tmp_path / "absent.json")


def test_flat_tree_knows_nothing_even_of_a_label_called_lesion():
    tree = Taxonomy.flat(["b", "lesion", "a"])
    assert tree.leaves == ("a", "b", "lesion")
    assert len(tree.levels) == 2
    assert tree.malignant("a") is None


@pytest.mark.parametrize(
    ("name", "n_classes", "malignant", "unknown"),
    [
        ("ham10000", 7, {"mel", "bcc", "akiec"}, set()),
        ("isic2018", 7, {"MEL", "BCC", "AKIEC"}, set()),
        ("isic2019", 8, {"MEL", "BCC", "SCC"}, {"AK"}),
        ("isic2020", 2, {"malignant"}, set()),
        ("ph2", 3, {"melanoma"}, set()),
        ("pad_ufes_20", 6, {"MEL", "BCC", "SCC"}, {"ACK"}),
    ],
)
def test_known_sets(name, n_classes, malignant, unknown):
    tree = TAXONOMIES[name]
    assert len(tree.leaves) == n_classes
    assert {label for label in tree.leaves if tree.malignant(label)} == malignant
    assert {label for label in tree.leaves if tree.malignant(label) is None} == unknown


def test_isic_tree_follows_the_archive():
    tree = get_taxonomy("isic")
    assert tree.levels[1] == ("Benign", "Indeterminate", "Malignant")
    assert tree.malignant("Malignant") is True
    assert tree.malignant("Indeterminate epidermal proliferations") is None
    assert len(tree.leaves) == 41


@pytest.mark.parametrize(("source", "target"), sorted(_LABEL_MAPS))
def test_maps_know_both_sets_and_never_turn_benign_into_malignant(source, target):
    old, new = TAXONOMIES[source], TAXONOMIES[target]
    for label, counterpart in _LABEL_MAPS[source, target].items():
        assert map_labels([label], source, target) == [counterpart]
        if old.malignant(label) is not None:
            assert new.malignant(counterpart) is old.malignant(label)


def test_ham10000_speaks_to_ph2_and_back():
    assert map_labels(["mel", "nv"], "ham10000", "ph2") == ["melanoma", "nevus"]
    assert map_labels(TAXONOMIES["ph2"].leaves, TAXONOMIES["ph2"], "ham10000") == ["nv", "nv", "mel"]


@pytest.mark.parametrize(
    ("labels", "source", "target", "message"),
    [
        (["mell"], "ham10000", "ph2", "did you mean 'mel'"),
        (["bkl", "nv", "df"], "ham10000", "ph2", "labels 'bkl', 'df'"),
        (["ACK"], "pad_ufes_20", "isic2020", "label 'ACK'"),
        (["benign"], "isic2020", "ham10000", "no label map"),
        (["nv"], "ham10000", "ph3", "did you mean 'ph2'"),
    ],
)
def test_labels_without_counterpart_are_refused(labels, source, target, message):
    with pytest.raises(DatasetError, match=message):
        map_labels(labels, source, target)
