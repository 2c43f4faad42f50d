"""Distances, diagrams and their distances: against the oracle, in closed form, and on bad inputs."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.datasets import make_circles

from cbdc import topology as t
from cbdc.errors import MissingDependencyError, ParameterError
from cbdc.topology import _engines, distances, h0

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import topology_reference as reference

ENGINES = [
    "gudhi",
    pytest.param(
        "giotto",
        marks=pytest.mark.skipif(
            _engines.choose_engine("auto") != "giotto", reason="giotto-ph is not installed: pip install 'cbdc[giotto]'"
        ),
    ),
]
SINGLE = {"gudhi": 1e-12, "giotto": 1e-6, "auto": 1e-6}  # precision of the engines
seeds = st.integers(0, 2**32 - 1)
slow_too = pytest.mark.parametrize("n_cases", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])


def with_dimension(pairs, k=0):
    return np.column_stack([pairs, np.full(len(pairs), float(k))])


def run(n_cases, test, **arguments):
    settings(max_examples=n_cases)(given(**arguments)(test))()


# --- distances


@settings(max_examples=150)
@given(X=strategies.clouds(max_points=12))
def test_distances_equal_the_reference(X):
    D = t.distance_matrix(X)
    np.testing.assert_allclose(D, reference.distances(X), rtol=1e-10, atol=0)
    np.testing.assert_array_equal(D, D.T)
    np.testing.assert_array_equal(np.diagonal(D), 0)


@pytest.mark.parametrize("n", [700, 1400])
def test_distances_of_a_cloud_of_several_blocks(n):
    X = np.random.default_rng(0).standard_normal((n, 40)) + 3
    assert len(list(t.distance_blocks(X))) > 1
    D = t.distance_matrix(X)
    np.testing.assert_allclose(D, cdist(X, X), rtol=1e-12)
    np.testing.assert_array_equal(D, D.T)


@pytest.mark.parametrize("share", [0.01, 0.9])
@pytest.mark.parametrize(("apart", "error"), [(1e-4, 1e-9), (1e-8, 0.01)])
def test_points_next_to_each_other_are_not_cancelled(share, apart, error):
    """Some pairs, or most, at a small share of the size of the cloud, where |x|^2 + |y|^2 - 2 x.y alone errs."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 64))
    n = int(share * 300)
    X[:n] = X[0] + apart * rng.standard_normal((n, 64))
    squares = (X**2).sum(axis=1)
    D, exact = t.distance_matrix(X), cdist(X, X)
    np.testing.assert_allclose(D, exact, rtol=1e-10)
    naive = np.sqrt(np.maximum(squares[:, None] + squares - 2 * X @ X.T, 0))
    assert np.abs(naive[:n, :n] - exact[:n, :n]).max() > error * exact[:n, :n].max()


@pytest.mark.parametrize("scale", [1e-160, 1e-300, 1e200])
def test_no_square_overflows_or_vanishes(scale):
    np.testing.assert_allclose(t.distance_matrix(scale * np.array([[0.0, 0.0], [3.0, 4.0]]))[0, 1], 5 * scale)


@settings(max_examples=100)
@given(X=strategies.clouds())
def test_the_enclosing_radius_equals_the_reference(X):
    D = reference.distances(X)
    assert t.enclosing_radius(D, "precomputed") == reference.enclosing_radius(D)
    assert t.enclosing_radius(X) == pytest.approx(reference.enclosing_radius(D), rel=1e-10, abs=0)


# --- dimension 0


@settings(max_examples=150)
@given(X=strategies.clouds())
def test_death_times_equal_the_reference(X):
    D = reference.distances(X)
    np.testing.assert_array_equal(t.h0_death_times(D, "precomputed"), reference.death_times(D))
    np.testing.assert_allclose(t.h0_death_times(X), reference.death_times(D), rtol=1e-10)


@settings(max_examples=40)
@given(X=strategies.clouds(min_points=9, max_points=30))
def test_a_tree_made_of_parts_is_the_whole_one(X):
    whole = t.h0_death_times(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h0, "WHOLE", 8)
        np.testing.assert_allclose(t.h0_death_times(X), whole, rtol=2e-10)


@settings(max_examples=150)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 300),
    seed=seeds,
    near=st.sampled_from([0.0, 1e-12, 1e-7, 1e-6, 1e-3, 1.0]),
    far=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
)
def test_single_precision_keeps_every_edge_that_matters(n, d, seed, near, far):
    """Clouds of pairs whose distances differ by less, and by more, than single precision tells apart."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    X[n // 2 :] = X[: n - n // 2] * (1 + near * rng.standard_normal((n - n // 2, 1))) + far
    exact = cdist(X, X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h0, "_CANDIDATES", n)  # none are too many
        ends = h0._candidates(X)
        np.testing.assert_allclose(t.h0_death_times(X), reference.death_times(exact), rtol=1e-9, atol=1e-15)
    # the tree that takes the edges that are not kept first, where it may
    kept = np.zeros((n, n), dtype=bool)
    kept[tuple(ends.T)] = kept[tuple(ends.T[::-1])] = True
    biased = np.where(kept, exact, exact * (1 - 1e-12))
    np.fill_diagonal(biased, 0)
    assert kept[tuple(h0._prim(biased)[1].T)].all()


def test_few_edges_of_an_embedding_are_measured_anew():
    X = np.maximum(np.random.default_rng(0).standard_normal((600, 128)), 0)
    assert 599 <= len(h0._candidates(X)) < 650
    lattice = np.array(list(itertools.product(range(8), repeat=3)), dtype=float)
    assert len(h0._candidates(lattice)) == 3 * 7 * 8**2  # all ties
    np.testing.assert_allclose(t.h0_death_times(lattice), 1, rtol=1e-15)
    outlier = np.concatenate([X, np.full((1, 128), 1e4)])  # next to it single precision tells nothing apart
    assert h0._candidates(outlier) is None
    np.testing.assert_allclose(t.h0_death_times(outlier)[:-1], t.h0_death_times(X), rtol=1e-10)


@slow_too
def test_the_closed_form_is_the_bottleneck_distance(n_cases):
    def test(a, b):
        assert t.h0_bottleneck(a[:, 1], b[:, 1]) == pytest.approx(reference.bottleneck(a, b), rel=1e-12)

    pairs = strategies.diagrams(zero_births=True)
    run(n_cases, test, a=pairs, b=pairs)


# --- diagrams


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@settings(max_examples=40)
@given(X=strategies.clouds(max_points=7), reduced=st.booleans(), share=st.sampled_from([0.3, 0.8, math.inf]))
def test_diagrams_equal_the_reference(engine, X, reduced, share):
    D = reference.distances(X)
    # between two distances, for single precision moves them
    levels = np.unique(np.append(D, 0))
    place = min(int(share * len(levels)), len(levels)) if math.isfinite(share) else len(levels)
    end = math.inf if place == len(levels) else (levels[place - 1] + levels[place]) / 2
    found = t.persistence_diagrams(
        D, (0, 1, 2), engine, metric="precomputed", max_edge_length=end, reduced_homology=reduced
    )
    expected = []
    for k, pairs in enumerate(reference.rips_diagrams(D, 2)):
        pairs = pairs[pairs[:, 0] <= end]
        pairs[pairs[:, 1] > end, 1] = math.inf
        pairs = pairs[np.lexsort(pairs.T[::-1])]
        expected.append(with_dimension(pairs[:-1] if reduced and k == 0 else pairs, k))
    expected = np.concatenate(expected)
    scale = max(D.max(), 1e-300)
    gap = np.diff(levels).min(initial=math.inf)
    if SINGLE[engine] < 1e-9 or gap > 1e-5 * scale:  # else single precision makes ties
        assert found.shape == expected.shape
        np.testing.assert_allclose(found[:, :2], expected[:, :2], rtol=SINGLE[engine])
        np.testing.assert_array_equal(found[:, 2], expected[:, 2])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_circle_has_one_loop_of_known_size(engine):
    """A regular 30-gon on a circle of radius 1: the loop is born with the side and dies with the inscribed triangle."""
    X, _ = make_circles(60, shuffle=False, factor=0.5)
    loop = t.persistence_diagrams(X[:30], (1,), engine)
    assert loop.shape == (1, 3)
    np.testing.assert_allclose(loop[0], [2 * math.sin(math.pi / 30), math.sqrt(3), 1], rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_octahedron_has_one_void(engine):
    X = np.concatenate([np.eye(3), -np.eye(3)])
    np.testing.assert_allclose(t.persistence_diagrams(X, (2,), engine), [[math.sqrt(2), 2, 2]], rtol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_coefficients_are_modulo_two(engine):
    """The projective plane has one loop and one void modulo 2, and neither for any other prime."""
    triangles = ["125", "126", "134", "136", "145", "234", "235", "246", "356", "456"]
    faces = [set(face) for triangle in triangles for k in (1, 2, 3) for face in itertools.combinations(triangle, k)]
    faces = [face for i, face in enumerate(faces) if face not in faces[:i]]  # 31: its barycentric subdivision
    D = np.array([[0 if a == b else 1 if a < b or b < a else 2 for b in faces] for a in faces])
    found = t.persistence_diagrams(D, (1, 2), engine, metric="precomputed")
    np.testing.assert_array_equal(found, [[1, 2, 1], [1, 2, 2]])


def test_auto_takes_components_in_double_precision():
    X = np.random.default_rng(0).standard_normal((50, 3))
    for dimensions in ((0,), (0, 1)):
        found = t.persistence_diagrams(X, dimensions)
        np.testing.assert_allclose(found[found[:, 2] == 0, 1], t.h0_death_times(X), rtol=1e-14)


def test_a_batch_is_laid_out_as_giotto_does():
    a, b = np.array([[0.0, 1, 0], [0, 2, 0], [3, 4, 1]]), np.array([[0.0, 5, 0], [2, 3, 2]])
    stacked = t.stack_diagrams([a, b], (0, 1, 2))
    np.testing.assert_array_equal(stacked[0], [[0, 1, 0], [0, 2, 0], [3, 4, 1], [2, 2, 2]])
    np.testing.assert_array_equal(stacked[1], [[0, 5, 0], [0, 0, 0], [3, 3, 1], [2, 3, 2]])
    for k in range(3):
        assert t.bottleneck_distance(stacked[0], a, k) == t.bottleneck_distance(stacked[1], b, k) == 0
    unborn = t.stack_diagrams([np.empty((0, 3))], (0, 1))
    np.testing.assert_array_equal(unborn, [[[0, 0, 0], [0, 0, 1]]])
    np.testing.assert_array_equal(t.stack_diagrams([[[0, np.inf, 0]]], infinity=9.0), [[[0, 9, 0]]])


# --- distances between diagrams


@slow_too
def test_bottleneck_distance_equals_the_reference(n_cases):
    def test(a, b):
        found = t.bottleneck_distance(with_dimension(a, 1), with_dimension(b, 1), 1)
        assert found == pytest.approx(reference.bottleneck(a, b), rel=1e-12)
        assert found == t.bottleneck_distance(with_dimension(b, 1), with_dimension(a, 1), 1)

    run(n_cases, test, a=strategies.diagrams(), b=strategies.diagrams())


@slow_too
def test_wasserstein_distance_equals_the_reference(n_cases):
    def test(a, b, order):
        found = t.wasserstein_distance(with_dimension(a), with_dimension(b), order=order)
        assert found == pytest.approx(reference.wasserstein(a, b, order), rel=1e-9, abs=1e-15)
        assert found == pytest.approx(
            t.wasserstein_distance(with_dimension(b), with_dimension(a), order=order), rel=1e-12
        )

    orders = st.sampled_from([1.0, 2.0, 3.5])
    run(n_cases, test, a=strategies.diagrams(), b=strategies.diagrams(), order=orders)


def test_the_pair_that_another_library_gets_wrong():
    a = [0.5567328734556887, 0.26295104035493555, 0.6304470646058727, 0.536097625514226, 0.5537327191268011]
    a, b = [*a, 0.8910245322290263], [0.5140499354598077, 0.8945540387632669]
    a, b = (np.column_stack([0 * np.array(deaths), deaths]) for deaths in (a, b))
    assert t.bottleneck_distance(with_dimension(a), with_dimension(b)) == 0.27836643672784434
    assert reference.bottleneck(a, b) == 0.27836643672784434
    later = [with_dimension(pairs + 1, 1) for pairs in (a, b)]  # births that are not 0 go another way
    assert t.bottleneck_distance(*later, 1) == pytest.approx(0.27836643672784434, rel=1e-12)


def test_distances_in_closed_form():
    one = [[1, 3, 1]]
    assert t.bottleneck_distance(one, np.empty((0, 3)), 1) == t.wasserstein_distance(one, [], 1) == 1
    assert t.bottleneck_distance(one, [[2, 2, 1], [5, 5, 1]], 1) == 1
    assert t.bottleneck_distance(one, one, 1) == t.wasserstein_distance(one, one, 1) == 0
    assert t.bottleneck_distance(one, one, 2) == 0
    assert t.wasserstein_distance([[1, 3, 1], [1, 3, 1]], one, 1, order=2) == 1
    largest = [[1e308, 1.5e308, 1], [-1e308, 1.5e308, 1]]  # whose differences overflow
    assert t.wasserstein_distance(largest, [], 1, order=2) == pytest.approx(math.hypot(0.25, 1.25) * 1e308)
    forever = [[0, np.inf, 0], [1, 2, 1]]
    assert t.bottleneck_distance(forever, one) == t.wasserstein_distance(forever, one) == math.inf
    assert t.bottleneck_distance(forever, [[0.25, np.inf, 0]]) == t.wasserstein_distance(forever, [[0.25, np.inf, 0]])


@given(a=strategies.diagrams(), b=strategies.diagrams(), c=strategies.diagrams())
def test_bottleneck_distance_is_a_metric_that_scales(a, b, c):
    a, b, c = (with_dimension(pairs, 1) for pairs in (a, b, c))
    ab, bc, ac = (t.bottleneck_distance(x, y, 1) for x, y in ((a, b), (b, c), (a, c)))
    assert ac <= (ab + bc) * (1 + 1e-12)
    tiny = np.array([1e-250, 1e-250, 1.0])
    assert t.bottleneck_distance(a * tiny, b * tiny, 1) == pytest.approx(ab * 1e-250, rel=1e-12, abs=0)
    assert t.wasserstein_distance(a * tiny, b * tiny, 1, order=2) == pytest.approx(
        t.wasserstein_distance(a, b, 1, order=2) * 1e-250, rel=1e-12, abs=0
    )


# --- bad inputs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t.distance_matrix(np.zeros(3)), "shape"),
        (lambda: t.distance_matrix(np.empty((0, 2))), "1 or more points"),
        (lambda: t.distance_matrix([["a", "b"]]), "expected numbers"),
        (lambda: t.distance_matrix([[0.0], [np.nan]]), "row 1 holds NaN"),
        (lambda: t.distance_matrix([[0.0], [2e300]]), "overflow from 1e"),
        (lambda: t.distance_matrix([[0.0, 1.0], [2.0, 0.0]], "precomputed"), "symmetric"),
        (lambda: t.distance_matrix([[0.0, -1.0], [-1.0, 0.0]], "precomputed"), "none negative"),
        (lambda: t.distance_matrix(np.zeros((2, 3)), "precomputed"), "square"),
        (lambda: t.h0_death_times([[0.0]], "cosine"), "'euclidean' and 'precomputed'"),
        (lambda: t.h0_bottleneck([-1.0], [1.0]), "none negative"),
        (lambda: t.persistence_diagrams([[0.0]], (0, -1)), "homology_dimensions"),
        (lambda: t.persistence_diagrams([[0.0]], ()), "homology_dimensions"),
        (lambda: t.persistence_diagrams([[0.0]], engine="cgal"), "no such engine"),
        (lambda: t.persistence_diagrams([[0.0]], max_edge_length=np.nan), "max_edge_length"),
        (lambda: t.bottleneck_distance([[1, 0, 0]], []), "row 0 is"),
        (lambda: t.bottleneck_distance([], [[np.nan, 1, 0]]), "b: row 0 is"),
        (lambda: t.bottleneck_distance([[0, 1]], []), r"shape \(1, 2\)"),
        (lambda: t.wasserstein_distance([], [], order=0.5), "order"),
        (lambda: t.stack_diagrams([]), "got none"),
        (lambda: t.stack_diagrams([[[0, 1, 0]], [[0, np.inf, 0]]]), r"diagrams\[1\] holds a class that never dies"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises(ParameterError, match=message):
        call()


def test_a_missing_engine_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gph", None)
    with pytest.raises(MissingDependencyError, match=r"cbdc\[giotto\]"):
        t.persistence_diagrams([[0.0], [1.0]], (1,), "giotto")
    monkeypatch.setattr(_engines.importlib.util, "find_spec", lambda name: None)
    assert t.persistence_diagrams(np.eye(3), (0, 1)).shape == (2, 3)


def test_distances_are_those_of_the_blocks():
    X = np.random.default_rng(0).standard_normal((20, 3))
    D = t.distance_matrix(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "_BLOCK", 16)
        for part in (t.distance_blocks(X), t.distance_blocks(D, "precomputed")):
            for rows, block in part:
                np.testing.assert_allclose(block, D[rows, rows.start :], rtol=1e-12)
        assert t.enclosing_radius(D, "precomputed") == reference.enclosing_radius(D)
