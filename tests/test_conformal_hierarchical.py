"""Prediction sets on a taxonomy: their families, their coverage, and what every answer must be."""

import copy
import json
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import strategies
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.estimator_checks import parametrize_with_checks

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import HierarchicalConformalClassifier, _nested
from cbdc.errors import CalibrationSizeWarning, DatasetError, ParameterError
from cbdc.taxonomy import Taxonomy, get_taxonomy

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import hierarchical_reference as reference

HAM = get_taxonomy("ham10000")
OPTIONS = {
    "node": {},
    "node-lac": {"score": "lac"},
    "node-randomized": {"randomized": True},
    "two": {"mode": "antichain", "max_nodes": 2},
    "two-lac": {"mode": "antichain", "max_nodes": 2, "score": "lac"},
    "free": {"mode": "antichain"},
    "free-lac-empty": {"mode": "antichain", "score": "lac", "allow_empty": True},
    "free-randomized-empty": {"mode": "antichain", "randomized": True, "allow_empty": True},
    "levels": {"mode": "levels"},
    "levels-lac": {"mode": "levels", "score": "lac"},
}
every_option = pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
every_condition = pytest.mark.parametrize("condition", [None, "class", "group"])
seeds = st.integers(0, 2**32 - 1)
levels = st.sampled_from([0.3, 0.5, 2 / 3, 0.8, 0.9])
pytestmark = pytest.mark.filterwarnings("ignore::cbdc.errors.CalibrationSizeWarning")


# --- strategies


@st.composite
def trees(draw, max_nodes=12):
    """A random tree; nodes may have one child, and one node may be all."""
    return Taxonomy(draw(strategies.parents_of_trees(max_nodes=max_nodes)))


def draw_cases(rng, n, n_classes, scale=1.5):
    P = softmax(scale * rng.standard_normal((n, n_classes)), axis=1)
    y = np.minimum((P.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), n_classes - 1)
    return P, y, np.append([0, 1], rng.integers(0, 2, n))[:n]


def test_a_known_taxonomy_goes_by_its_name():
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.ones(7), 200)
    y = (P.cumsum(axis=1) < rng.random((200, 1))).sum(axis=1)
    named = HierarchicalConformalClassifier(taxonomy="ham10000").conformalize(P, y)
    given = HierarchicalConformalClassifier(taxonomy=get_taxonomy("ham10000")).conformalize(P, y)
    assert named.nodes_ == given.nodes_
    assert named.predict_nodes(P) == given.predict_nodes(P)
    again = HierarchicalConformalClassifier.from_state(*named.get_state())
    assert again.predict_nodes(P) == given.predict_nodes(P)
    with pytest.raises(DatasetError, match="did you mean 'ham10000'"):
        HierarchicalConformalClassifier(taxonomy="ham1000").conformalize(P, y)


def conformalized(tree, P, y, groups=None, **options):
    groups = groups if options.get("condition_on") == "group" else None
    return HierarchicalConformalClassifier(taxonomy=tree, **options).conformalize(P, y, groups=groups)


def rounded(p):
    """Probabilities on a grid, so that ties and zeros come up."""
    return np.round(8 * p) / np.round(8 * p).sum(axis=1, keepdims=True)


# --- coverage


@every_option
@given(seed=seeds, n=st.integers(15, 60), level=st.sampled_from([0.8, 0.9]))
@settings(max_examples=8)
def test_mean_coverage_is_inside_its_band(options, seed, n, level):
    """Of a classifier that is right less often than the level asks, so that only levels may exceed their band."""
    rng = np.random.default_rng(seed)
    runs, n_test, covered = 20, 50, 0
    for _ in range(runs):
        P, y, _ = draw_cases(rng, n + n_test, 7)
        sets = conformalized(HAM, P[:n], y[:n], **options).predict_set(P[n:], level)
        covered += sets[np.arange(n_test), y[n:]].sum()
    low, high = m.coverage_band([n] * runs, [n_test] * runs, level, probability=1 - 1e-5)
    assert low <= covered / (runs * n_test)
    if options.get("mode") != "levels":
        assert covered / (runs * n_test) <= high


@every_option
@every_condition
@given(tree=trees(), seed=seeds, n=st.integers(2, 30), level=levels, ties=st.booleans())
@settings(max_examples=8)
def test_leave_one_out_ranks(options, condition, tree, seed, n, level, ties):
    """Of n + 1 cases, each in turn the new one, at least k are covered, without ties exactly k. Within a class or a
    group likewise."""
    P, y, groups = draw_cases(np.random.default_rng(seed), n + 1, len(tree.leaves))
    P = rounded(P) if ties else P
    covered = np.zeros(n + 1, dtype=bool)
    for i in range(n + 1):
        others = np.arange(n + 1) != i
        assume(condition != "group" or groups[i] in groups[others])
        clf = conformalized(tree, P[others], y[others], groups[others], condition_on=condition, **options)
        covered[i] = clf.predict_set(P[[i]], level, groups=groups[[i]])[0, y[i]]
    for cell in {None: [np.full(n + 1, True)], "class": y == np.unique(y)[:, None]}.get(
        condition, groups == np.unique(groups)[:, None]
    ):
        assert covered[cell].sum() >= m.conformal_rank(int(cell.sum()) - 1, level)
    if condition is None and options.get("mode") != "levels":
        every = conformalized(tree, P, y, **options).calibration_.scores
        if (np.diff(every) > 1e-6 * every[-1]).all():
            assert covered.sum() == m.conformal_rank(n, level)


def test_levels_cover_little_more_than_asked():
    """At most two ranks more a depth, without ties: none of the cases has the most probable node at any depth."""
    P = softmax(np.random.default_rng(0).standard_normal((60, 7)), axis=1)
    groups = [[HAM.leaves.index(leaf) for leaf in HAM.descendants(node)] for node in HAM.levels[1]]
    least = np.argmin([P[:, group].sum(axis=1) for group in groups], axis=0)
    y = np.array([min(groups[g], key=lambda k: p[k]) for p, g in zip(P, least)])
    covered = []
    for i in range(60):
        others = np.arange(60) != i
        clf = conformalized(HAM, P[others], y[others], mode="levels", score="lac")
        assert (clf.level_scores_ < 0.99).all()
        covered.append(clf.predict_set(P[[i]], 0.8)[0, y[i]])
    k = m.conformal_rank(59, 0.8)
    assert k <= sum(covered) <= k + 2 * 2


def test_the_predicted_class_is_in_every_answer_of_a_good_classifier():
    """Right more often than the level asks: every answer is a leaf, and covers as often as the classifier is right."""
    P, y, _ = draw_cases(np.random.default_rng(0), 600, 7, scale=8.0)
    accuracy = (P[300:].argmax(axis=1) == y[300:]).mean()
    clf = conformalized(HAM, P[:300], y[:300])
    sets = clf.predict_set(P[300:], 0.5)
    assert (sets.sum(axis=1) == 1).all()
    assert accuracy > 0.6
    assert m.coverage(sets, y[300:]) == accuracy
    assert clf.certificate(0.5).conditions[0].high == 1  # and the band says so
    empty = conformalized(HAM, P[:300], y[:300], randomized=True, allow_empty=True)
    low, high = m.coverage_band(300, 300, 0.5, probability=1 - 1e-5)
    assert low <= m.coverage(empty.predict_set(P[300:], 0.5), y[300:]) <= high
    assert empty.certificate(0.5).conditions[0].high < 1


# --- what an answer is


@every_option
@every_condition
@given(tree=trees(), seed=seeds, level=levels, ties=st.booleans())
@settings(max_examples=8)
def test_answers_are_nodes_of_the_tree(options, condition, tree, seed, level, ties):
    P, y, groups = draw_cases(np.random.default_rng(seed), 50, len(tree.leaves))
    P = rounded(P) if ties else P
    clf = conformalized(tree, P[:40], y[:40], groups[:40], condition_on=condition, **options)
    asked = {"confidence_level": level, "groups": groups[40:]}
    sets, nodes = clf.predict_set(P[40:], **asked), clf.predict_node_set(P[40:], **asked)
    names = clf.predict_nodes(P[40:], **asked)
    for row, found, name in zip(sets, nodes, names):
        assert name == tuple(np.array(clf.nodes_)[found])
        below = [set(tree.descendants(node)) for node in name]
        assert set().union(*below) == set(np.array(tree.leaves)[row])  # the leaves of the nodes are the set
        assert sum(map(len, below)) == row.sum()  # none is above another
        assert not any(set(b) | set(c) in [set(tree.descendants(v)) for v in tree.nodes] for b in below for c in below if b != c)  # fmt: skip  # noqa: E501
        assert all(len(tree.descendants(node)) != 1 or node in tree.leaves for node in name)  # the lowest of its like
    if options.get("mode", "node") != "levels" and not options.get("allow_empty"):
        bound = {"node": 1}.get(options.get("mode", "node"), options.get("max_nodes", len(tree.leaves)))
        assert (nodes.sum(axis=1) <= bound).all()
        assert (nodes.sum(axis=1) >= 1).all()
        first = np.array([max(range(len(p)), key=lambda k: (p[k], -clf.nodes_.index(tree.leaves[k]))) for p in P[40:]])
        assert sets[np.arange(10), first].all()


@every_option
@given(tree=trees(), seed=seeds, level=levels)
@settings(max_examples=8)
def test_levels_are_consistent(options, tree, seed, level):
    """A node is in the set of its depth exactly if one of its children is in that of the next: ancestors of what is
    inside are inside, at every depth at once."""
    P, y, _ = draw_cases(np.random.default_rng(seed), 60, len(tree.leaves))
    clf = conformalized(tree, P[:40], y[:40], **options)
    sets, by_depth = clf.predict_set(P[40:], level), clf.predict_levels(P[40:], level)
    assert len(by_depth) == len(clf.level_nodes_) == len(tree.levels)
    np.testing.assert_array_equal(by_depth[0][:, 0], sets.any(axis=1))
    covered = sets[np.arange(20), y[40:]]
    for depth, (found, names) in enumerate(zip(by_depth, clf.level_nodes_)):
        assert found.shape == (20, len(names))
        truth = [reference.at_depth(dict_of(tree), tree.leaves[k], depth) for k in y[40:]]
        truly = found[np.arange(20), [names.index(name) for name in truth]]
        assert (truly >= covered).all()
        if depth + 1 < len(by_depth):
            below = clf.level_nodes_[depth + 1]
            for i, name in enumerate(names):
                children = [j for j, node in enumerate(below) if node == name or tree.parent(node) == name]
                np.testing.assert_array_equal(found[:, i], by_depth[depth + 1][:, children].any(axis=1))
    last = clf.level_nodes_[-1]
    np.testing.assert_array_equal(by_depth[-1], sets[:, [tree.leaves.index(name) for name in last]])


def dict_of(tree):
    return {node: tree.parent(node) for node in tree.nodes}


@every_option
@every_condition
@given(tree=trees(), seed=seeds, ties=st.booleans(), narrow=st.booleans())
@settings(max_examples=8)
def test_answers_grow_with_the_level_and_are_the_same_one_by_one(options, condition, tree, seed, ties, narrow):
    P, y, groups = draw_cases(np.random.default_rng(seed), 48, len(tree.leaves))
    P = rounded(P) if ties else P
    P = P.astype(np.float32) if narrow else P
    clf = conformalized(tree, P[:40], y[:40], groups[:40], condition_on=condition, **options)
    smaller = np.zeros((8, P.shape[1]), dtype=bool)
    for level in (0.01, 0.25, 0.5, 2 / 3, 0.75, 0.8, 0.9, 0.95, 0.99):
        sets = clf.predict_set(P[40:], level, groups=groups[40:])
        assert (smaller <= sets).all()
        smaller = sets
        for i in range(40, 48):
            np.testing.assert_array_equal(clf.predict_set(P[[i]], level, groups=groups[[i]])[0], sets[i - 40])
    np.testing.assert_array_equal(clf.predict_set(P[40:][::-1], 0.8, groups=groups[40:][::-1])[::-1], clf.predict_set(P[40:], 0.8, groups=groups[40:]))  # fmt: skip  # noqa: E501


@every_option
def test_blocks_do_not_show(options, monkeypatch):
    P, y, _ = draw_cases(np.random.default_rng(0), 300, 7)
    whole = conformalized(HAM, P[:200], y[:200], **options).p_values(P[200:])
    monkeypatch.setattr("cbdc.conformal.hierarchical._CELLS", 500)
    np.testing.assert_array_equal(conformalized(HAM, P[:200], y[:200], **options).p_values(P[200:]), whole)


@every_option
@every_condition
@given(tree=trees(), seed=seeds, ties=st.booleans())
@settings(max_examples=8)
def test_a_permutation_of_the_classes_permutes_the_sets(options, condition, tree, seed, ties):
    rng = np.random.default_rng(seed)
    n_classes = len(tree.leaves)
    P, y, groups = draw_cases(rng, 60, n_classes)
    P = rng.multinomial(8, P) / 8 if ties else P
    order, cases = rng.permutation(n_classes), rng.permutation(40)
    kind = {"condition_on": condition, "confidence_level": 0.7, **options}
    one = conformalized(tree, P[:40], y[:40], groups[:40], **kind)
    leaves = [tree.leaves[k] for k in order]
    other = conformalized(
        tree, P[:40][cases][:, order], np.argsort(order)[y[:40][cases]], groups[:40][cases], leaves=leaves, **kind
    )
    sets = one.predict_set(P[40:], groups=groups[40:])
    np.testing.assert_array_equal(other.predict_set(P[40:][:, order], groups=groups[40:]), sets[:, order])
    assert other.predict_nodes(P[40:][:, order], groups=groups[40:]) == one.predict_nodes(P[40:], groups=groups[40:])


# --- one family in many forms


@given(tree=trees(), seed=seeds, level=levels)
@settings(max_examples=25)
def test_the_answer_is_the_lowest_node_of_more_than_a_calibrated_probability(tree, seed, level):
    P, y, _ = draw_cases(np.random.default_rng(seed), 60, len(tree.leaves))
    clf = conformalized(tree, P[:40], y[:40])
    limit = 1 - clf.calibration_.thresholds(level)[0, 0]
    for p, (name,) in zip(P[40:], clf.predict_nodes(P[40:], level)):
        leaf = tree.leaves[p.argmax()]
        path = [leaf, *tree.ancestors(leaf)]
        assert name in path
        found = {node: sum(p[tree.leaves.index(v)] for v in tree.descendants(node)) for node in path}
        assume(all(abs(value - limit) > 1e-6 for value in found.values()))
        lower = path[: path.index(name)]
        assert found[name] > limit or name == clf.nodes_[0]
        assert all(found[node] <= limit for node in lower)


@pytest.mark.parametrize("options", [{}, {"score": "lac"}, {"randomized": True}], ids=["aps", "lac", "randomized"])
@given(tree=trees(), seed=seeds, level=levels)
@settings(max_examples=15)
def test_a_bound_of_one_is_the_path_to_the_root(options, tree, seed, level):
    P, y, _ = draw_cases(np.random.default_rng(seed), 60, len(tree.leaves))
    one = conformalized(tree, P[:40], y[:40], **options)
    other = conformalized(tree, P[:40], y[:40], mode="antichain", max_nodes=1, **options)
    np.testing.assert_array_equal(one.p_values(P[40:]), other.p_values(P[40:]))


@pytest.mark.parametrize("score", ["lac", "aps"])
@given(tree=trees(), seed=seeds, level=levels)
@settings(max_examples=15)
def test_without_a_bound_the_classes_are_those_of_the_flat_set(score, tree, seed, level):
    P, y, _ = draw_cases(np.random.default_rng(seed), 60, max(len(tree.leaves), 2))
    assume(len(tree.leaves) > 1)
    free = conformalized(tree, P[:40], y[:40], mode="antichain", score=score, randomized=True, allow_empty=True)
    flat = ConformalClassifier(score=score).conformalize(P[:40], y[:40])
    np.testing.assert_array_equal(free.predict_set(P[40:], level), flat.predict_set(P[40:], level))


@given(tree=trees(), seed=seeds, bound=st.sampled_from([1, 2, None]))
@settings(max_examples=25)
def test_lac_takes_the_set_that_is_worth_most_at_some_price_of_a_class(tree, seed, bound):
    """P(S) - price * |S| is largest, over the family, for the set of the labels whose score is at least the price."""
    p = draw_cases(np.random.default_rng(seed), 1, len(tree.leaves))[0]
    found, _ = _nested.Tree.of_taxonomy(tree, tree.leaves)
    sets = reference.family(dict_of(tree), dict(zip(tree.leaves, p[0])), bound)
    scores = _nested.nested_scores(p.T, found, bound, u=np.zeros(1), score="lac", allow_empty=True)[0]
    for price in np.unique(scores) * (1 - 1e-9):
        chosen = {leaf for leaf, s in zip(tree.leaves, scores) if s >= price}
        worth = [sum(p[0][tree.leaves.index(v)] for v in s) - price * len(s) for s in sets]
        assert chosen in sets
        assert worth[sets.index(chosen)] >= max(worth) - 1e-12


def test_a_case_by_hand():
    """P(melanocytic) = .9: the steps of the path leave 1, .5 and .1 outside; a class costs .5, .4 and .02."""
    tree = Taxonomy({"lesion": None, "melanocytic": "lesion", "mel": "melanocytic", "nv": "melanocytic", "bcc": "lesion", "df": "lesion"})  # fmt: skip  # noqa: E501
    p = np.array([[0.07], [0.03], [0.4], [0.5]])  # bcc, df, mel, nv
    found, names = _nested.Tree.of_taxonomy(tree, tree.leaves)
    assert names == ("lesion", "bcc", "df", "melanocytic", "mel", "nv")
    still = {"u": np.zeros(1), "allow_empty": False}
    np.testing.assert_allclose(_nested.nested_scores(p, found, 1, score="aps", **still), [[0.1, 0.1, 0.5, 1]])
    np.testing.assert_allclose(_nested.nested_scores(p, found, 1, score="lac", **still), [[0.05, 0.05, 0.4, 1]])
    np.testing.assert_allclose(_nested.nested_scores(p, found, 2, score="aps", **still), [[0.1, 0.03, 0.5, 1]])
    still["u"] = np.array([0.25])
    np.testing.assert_allclose(_nested.nested_scores(p, found, 1, score="aps", **still), [[0.075, 0.075, 0.4, 1]])
    still["allow_empty"] = True
    np.testing.assert_allclose(_nested.nested_scores(p, found, 1, score="aps", **still), [[0.075, 0.075, 0.4, 0.875]])


def test_steps_that_are_worth_more_than_the_one_before_are_pooled():
    """Of .6 in a leaf whose sibling has nothing, the root is reached at once: (.4 / 3), not 0 and then .2."""
    tree = Taxonomy({"r": None, "g": "r", "a": "g", "b": "g", "c": "r", "d": "r"})
    found, _ = _nested.Tree.of_taxonomy(tree, tree.leaves)
    p = np.array([[0.6], [0.0], [0.25], [0.15]])
    scores = _nested.nested_scores(p, found, 1, u=np.zeros(1), score="lac", allow_empty=False)
    np.testing.assert_allclose(scores, [[1, 0.4 / 3, 0.4 / 3, 0.4 / 3]])


# --- the oracle


@given(tree=trees(max_nodes=9), seed=seeds, bound=st.sampled_from([1, 2, 3, None]), score=st.sampled_from(["aps", "lac"]), u=st.sampled_from([0.0, 0.3]), allow_empty=st.booleans())  # fmt: skip  # noqa: E501
@settings(max_examples=60)
def test_scores_equal_the_reference(tree, seed, bound, score, u, allow_empty):
    p = draw_cases(np.random.default_rng(seed), 1, len(tree.leaves))[0]
    by_leaf = dict(zip(tree.leaves, p[0]))
    found, _ = _nested.Tree.of_taxonomy(tree, tree.leaves)
    scores = _nested.nested_scores(p.T, found, bound, u=np.array([u]), score=score, allow_empty=allow_empty)[0]
    sets = reference.family(dict_of(tree), by_leaf, bound)
    if bound == 1:
        assert sets == reference.path(dict_of(tree), by_leaf)
    expected = reference.scores(sets, by_leaf, score, u, allow_empty)
    np.testing.assert_allclose(scores, [expected[leaf] for leaf in tree.leaves], rtol=1e-9, atol=1e-12)


@every_condition
@pytest.mark.parametrize("mode", ["node", "two", "levels"])
@given(tree=trees(max_nodes=8), seed=seeds, score=st.sampled_from(["aps", "lac"]), level=st.sampled_from([Fraction(1, 2), Fraction(4, 5), Fraction(9, 10)]))  # fmt: skip  # noqa: E501
@settings(max_examples=12)
def test_sets_equal_the_reference(condition, mode, tree, seed, score, level):
    P, y, groups = draw_cases(np.random.default_rng(seed), 32, len(tree.leaves))
    n, parents, leaves = 26, dict_of(tree), tree.leaves
    options = {"mode": mode} if mode != "two" else {"mode": "antichain", "max_nodes": 2}
    clf = conformalized(tree, P[:n], y[:n], groups[:n], score=score, condition_on=condition, **options)
    cases = [dict(zip(leaves, p)) for p in P]
    labels = [leaves[k] for k in y]
    if mode == "levels":
        depths = range(1, len(tree.levels)) if len(tree.levels) > 1 else [0]
        every = [[reference.level_scores(parents, p, d, score) for p in cases] for d in depths]
        calibration = [[s[i][labels[i]] for i in range(n)] for s in every]
        answers = []
        for i in range(n, len(cases)):
            among = {
                None: lambda leaf: range(n),
                "class": lambda leaf: [j for j in range(n) if labels[j] == leaf],
                "group": lambda leaf, i=i: [j for j in range(n) if groups[j] == groups[i]],
            }[condition]
            answers.append(reference.answer_by_levels([s[i] for s in every], calibration, level, among))
    else:
        bound = {"node": 1, "two": 2}[mode]
        every = [reference.scores(reference.family(parents, p, bound), p, score) for p in cases]
        calibration = [every[i][labels[i]] * (1 - 1e-7) for i in range(n)]
        answers = []
        for i in range(n, len(cases)):
            if condition == "class":
                answers.append(reference.answer_by_class(every[i], calibration, labels, level))
                continue
            same = [s for s, g in zip(calibration, groups) if condition is None or g == groups[i]]
            answers.append(reference.answer(every[i], same, level))
    np.testing.assert_array_equal(
        clf.predict_set(P[n:], float(level), groups=groups[n:]), reference.as_matrix(answers, leaves)
    )


# --- trees and classes


def test_leaves_that_are_no_class_are_left_out():
    tree = Taxonomy({"r": None, "g": "r", "a": "g", "b": "g", "h": "r", "c": "h", "d": "h"})
    P, y, _ = draw_cases(np.random.default_rng(0), 100, 3)
    clf = conformalized(tree, P, y, leaves=["a", "b", "d"])
    assert clf.nodes_ == ("r", "g", "a", "b", "d")  # h is d, and d says more
    assert clf.level_nodes_ == (("r",), ("g", "h"), ("a", "b", "d"))
    assert clf.predict_nodes(np.array([[0.0, 0.0, 1.0]])) == [("d",)]


def test_classes_with_names_are_their_own_leaves():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    tree = Taxonomy({"iris": None, "setosa": "iris", "others": "iris", "versicolor": "others", "virginica": "others"})
    clf = HierarchicalConformalClassifier(LogisticRegression(max_iter=500), taxonomy=tree, confidence_level=0.97)
    clf.fit(X[::2], names[y[::2]]).conformalize(X[1::2], names[y[1::2]])
    assert clf.leaves_ == tuple(names)
    assert {("setosa",), ("versicolor",)} <= set(clf.predict_nodes(X))
    assert clf.predict(X[:1])[0] == "setosa"
    assert clf.score(X, names[y]) > 0.9
    codes = HierarchicalConformalClassifier(LogisticRegression(max_iter=500), taxonomy=tree, leaves=names)
    codes.fit(X[::2], y[::2]).conformalize(X[1::2], y[1::2])
    np.testing.assert_array_equal(codes.p_values(X), clf.p_values(X))
    # probabilities and their logarithms score alike
    P = clf.predict_proba(X)
    direct = HierarchicalConformalClassifier(taxonomy=tree).conformalize(P[1::2], y[1::2])
    np.testing.assert_allclose(direct.calibration_.scores, clf.calibration_.scores, rtol=1e-6)


def test_one_class_is_always_the_answer():
    for tree in (None, Taxonomy({"all": None}), Taxonomy({"r": None, "g": "r", "a": "g"})):
        for options in OPTIONS.values():
            if not options.get("allow_empty"):
                clf = conformalized(tree, np.ones((20, 1)), np.zeros(20, dtype=int), **options)
                assert clf.predict_set(np.ones((2, 1))).all()
                assert len(clf.nodes_) == 1


def test_a_tree_of_one_level_answers_with_a_class_or_all():
    P, y, _ = draw_cases(np.random.default_rng(0), 300, 4)
    clf = HierarchicalConformalClassifier().conformalize(P[:200], y[:200])
    assert set(clf.predict_set(P[200:]).sum(axis=1)) == {1, 4}
    assert clf.taxonomy_ == Taxonomy.flat("0123")


def test_no_cases_give_no_answers():
    P, y, _ = draw_cases(np.random.default_rng(0), 50, 7)
    for options in OPTIONS.values():
        clf = conformalized(HAM, P, y, **options)
        assert clf._score_all(np.empty((0, 7))).shape == (0, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taxonomy": HAM, "leaves": ["mel", "nv", "soft_tissue"]}, "'soft_tissue' is an inner node, above df, vasc"),
        ({"taxonomy": HAM, "leaves": ["mel", "nv", "bc"]}, "no node 'bc', which is a class; did you mean 'bcc'"),
        ({"taxonomy": HAM, "leaves": ["mel", "nv", "nv"]}, "'nv' stands for two classes"),
        ({"taxonomy": HAM, "leaves": ["mel", "nv"]}, "2 leaves for 3 classes"),
        ({"taxonomy": HAM}, "7 leaves for 3 classes"),
        ({"taxonomy": "ham10000"}, "taxonomy"),
        ({"mode": "nodes"}, "mode"),
        ({"mode": "antichain", "max_nodes": 0}, "max_nodes"),
        ({"max_nodes": 2}, "max_nodes: it goes with mode='antichain'"),
        ({"score": "margin"}, "score"),
        ({"confidence_level": 1.0}, "confidence_level"),
        ({"condition_on": "class_and_group"}, "condition_on"),
    ],
)
def test_bad_parameters(options, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 30, 3)
    clf = HierarchicalConformalClassifier(**options)
    with pytest.raises(ValueError, match=message):
        clf.conformalize(P, y)
    with pytest.raises(ValueError, match=message):
        clf.fit(P)


def test_a_class_that_the_tree_does_not_have_is_named():
    X, y = load_iris(return_X_y=True)
    clf = HierarchicalConformalClassifier(GaussianNB(), taxonomy=HAM)
    with pytest.raises(ParameterError, match="has no node '0', which is a class"):
        clf.fit(X, y)


def test_bad_cases():
    P, y, groups = draw_cases(np.random.default_rng(0), 60, 7)
    clf = HierarchicalConformalClassifier(taxonomy=HAM)
    with pytest.raises(NotFittedError):
        clf.predict_nodes(P)
    wrong = P.copy()
    wrong[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"\b3\b"):
        clf.conformalize(wrong, y)
    with pytest.raises(NotFittedError):  # a calibration that failed leaves none
        clf.predict_nodes(P)
    with pytest.raises(ValueError, match="case 5 has class 7"):
        clf.conformalize(P, np.where(np.arange(60) == 5, 7, y))
    with pytest.raises(ValueError, match="60"):
        clf.conformalize(P, y[:-1])
    with pytest.raises(ValueError, match="groups is missing"):
        clone(clf).set_params(condition_on="group").conformalize(P, y)
    by_group = conformalized(HAM, P, y, groups, condition_on="group")
    with pytest.raises(ValueError, match="is of group 2, which was not calibrated"):
        by_group.predict_nodes(P[:1], groups=[2])
    clf.conformalize(P, y)
    with pytest.raises(ValueError, match="confidence_level"):
        clf.predict_set(P, 1.5)
    with pytest.raises(ValueError, match="features"):
        clf.predict_set(P[:, :6])


@pytest.mark.filterwarnings("error::cbdc.errors.CalibrationSizeWarning")
def test_too_few_cases_answer_with_the_root_and_say_so():
    P, y, _ = draw_cases(np.random.default_rng(0), 60, 7)
    clf = HierarchicalConformalClassifier(taxonomy=HAM)
    with pytest.warns(CalibrationSizeWarning, match=r"level 0.9, which takes 9. calibration: 8; there every answer"):
        clf.conformalize(P[:8], y[:8])
    assert clf.predict_nodes(P[8:]) == [("lesion",)] * 52
    assert clf.certificate().conditions[0].is_vacuous
    clf.conformalize(P[:9], y[:9])
    with pytest.warns(CalibrationSizeWarning, match=r"level 0.95, which takes 19"):
        assert clf.predict_nodes(P[:1], 0.95) == [("lesion",)]
    with pytest.warns(CalibrationSizeWarning, match=r"class 3: 0"):
        by_class = conformalized(HAM, P[y != 3], y[y != 3], condition_on="class")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert by_class.predict_set(P)[:, 3].all()


# --- certificate and state


def test_certificates():
    P, y, groups = draw_cases(np.random.default_rng(0), 200, 7)
    plain = conformalized(HAM, P, y).certificate()
    assert plain.n_calibration == 200
    assert plain.conditions[0].rank == 181
    assert (round(plain.conditions[0].low, 3), round(plain.conditions[0].high, 3)) == (0.864, 0.933)
    assert "below the nodes of the answer with probability at least 0.9 on average" in str(plain)
    assert "0.864 to 0.933" in str(plain)
    by_class = conformalized(HAM, P, y, condition_on="class").certificate(0.8)
    assert [c.n for c in by_class.conditions] == np.bincount(y).tolist()
    assert all(c.high == 1 for c in by_class.conditions)  # answers hold more than the classes that conform
    free = conformalized(HAM, P, y, condition_on="class", mode="antichain", score="lac", allow_empty=True).certificate()
    assert all(c.high < 1 for c in free.conditions if not c.is_vacuous)
    assert "another prevalence" not in str(by_class)
    by_group = conformalized(HAM, P, y, groups, condition_on="group").certificate()
    assert [c.name for c in by_group.conditions] == ["group 0", "group 1"]
    assert conformalized(HAM, P, y, mode="levels").certificate().conditions == ()
    assert conformalized(HAM, P, y).n_calibration_ == 200
    assert conformalized(HAM, P, y, groups, condition_on="group").n_calibration_ == {
        0: (groups == 0).sum(),
        1: (groups == 1).sum(),
    }


@every_option
@every_condition
def test_state_restores_the_answers(options, condition):
    P, y, groups = draw_cases(np.random.default_rng(0), 120, 7)
    names = np.where(groups == 0, "a", "b")
    clf = conformalized(HAM, P[:80], y[:80], names[:80], condition_on=condition, random_state=3, **options)
    arrays, document = clf.get_state()
    found = HierarchicalConformalClassifier.from_state(arrays, json.loads(json.dumps(document)))
    np.testing.assert_array_equal(found.p_values(P[80:], names[80:]), clf.p_values(P[80:], names[80:]))
    assert found.predict_nodes(P[80:], groups=names[80:]) == clf.predict_nodes(P[80:], groups=names[80:])
    assert str(found.certificate()) == str(clf.certificate())


def test_damaged_states_are_refused():
    P, y, _ = draw_cases(np.random.default_rng(0), 80, 7)
    arrays, document = conformalized(HAM, P, y, mode="levels").get_state()
    restore = HierarchicalConformalClassifier.from_state

    def damaged(part, **changes):
        return {k: v for k, v in (copy.deepcopy(part) | changes).items() if k not in changes or v is not None}

    for changes in ({"scores": arrays["scores"][::-1]}, {"scores": None}, {"counts": np.array([[70]])},
                    {"level_scores": None}, {"level_scores": arrays["level_scores"][:, :1]},
                    {"level_scores": arrays["level_scores"][::-1]}):  # fmt: skip
        with pytest.raises(ValueError, match=r"scores|counts"):
            restore(damaged(arrays, **changes), document)
    for changes in (
        {"mode": "tree"},
        {"leaves": ["mel", "bad"]},
        {"confidence_level": 2.0},
        {"score": None},
        {"max_nodes": 3},
    ):
        with pytest.raises(ValueError, match=next(iter(changes))):
            restore(arrays, damaged(document, **changes))
    with pytest.raises(ParameterError, match="groups"):
        restore(arrays, damaged(document, condition_on="group"))
    with pytest.raises(ParameterError, match="'seed' is missing"):
        restore(arrays, {k: v for k, v in document.items() if k != "seed"})
    with pytest.raises(DatasetError):
        restore(arrays, damaged(document, taxonomy={"nodes": []}))
    X, z = load_iris(return_X_y=True)
    with pytest.raises(ParameterError, match="7 leaves for 3 classes"):
        restore(arrays, document, GaussianNB().fit(X, z))


def test_settings_are_frozen_by_the_calibration():
    P, y, _ = draw_cases(np.random.default_rng(0), 120, 7)
    clf = conformalized(HAM, P[:80], y[:80])
    before = clf.p_values(P[80:])
    clf.set_params(mode="levels", score="lac", randomized=True, taxonomy=None)
    np.testing.assert_array_equal(clf.p_values(P[80:]), before)
    clf.fit(P)
    with pytest.raises(NotFittedError):
        clf.p_values(P)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        HierarchicalConformalClassifier(LogisticRegression()),
        HierarchicalConformalClassifier(LogisticRegression(), mode="levels", condition_on="class"),
    ]
)
def test_estimator_checks(estimator, check):
    check(estimator)
