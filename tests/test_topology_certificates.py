"""Certificates of stability: the chain, its sharpness, and the conformal bound with its coverage."""

import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from cbdc import metrics as m
from cbdc import topology as t
from cbdc.errors import ParameterError
from cbdc.topology import cloud
from cbdc.topology.conformal import batch_rank

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import topology_reference as reference

seeds = st.integers(0, 2**32 - 1)

# --- the chain


@pytest.mark.parametrize("n_cases", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_chain_holds(n_cases):
    def test(pair):
        X, Y = pair
        found = t.stability_bounds(X, Y, (0, 1, 2), "gudhi")
        rounding = 1e-9 * max(reference.distances(X).max(), reference.distances(Y).max())
        assert found.bottleneck[0] <= found.capped <= found.distortion
        assert max(found.bottleneck[1], found.bottleneck[2]) <= found.capped * (1 + 1e-12)
        assert found.distortion <= found.twice_displacement + rounding

    settings(max_examples=n_cases)(given(pair=strategies.paired_clouds(max_points=7))(test))()


@settings(max_examples=100)
@given(pair=strategies.paired_clouds(max_points=7))
def test_each_link_equals_the_reference(pair):
    X, Y = pair
    D, D_after = reference.distances(X), reference.distances(Y)
    found = t.stability_bounds(X, Y, (0, 1, 2), "gudhi")
    exact = {"rel": 1e-9, "abs": 1e-9 * max(D.max(), D_after.max())}
    caps = reference.enclosing_radius(D), reference.enclosing_radius(D_after)
    capped = reference.distortion(np.minimum(D, caps[0]), np.minimum(D_after, caps[1]))
    assert found.distortion == pytest.approx(reference.distortion(D, D_after), **exact)
    assert found.capped == pytest.approx(capped, **exact)
    assert found.twice_displacement == pytest.approx(2 * max(map(math.dist, X, Y)), **exact)
    before, after = (reference.rips_diagrams(matrix, 2) for matrix in (D, D_after))
    for k in range(3):
        assert found.bottleneck[k] == pytest.approx(reference.bottleneck(before[k], after[k]), **exact)


@given(D=strategies.clouds(max_points=7), seed=seeds)
def test_beyond_the_enclosing_radius_nothing_happens(D, seed):
    """For any symmetric dissimilarity, with or without a triangle inequality."""
    A = np.random.default_rng(seed).random((len(D), len(D)))
    A = np.triu(A, 1) + np.triu(A, 1).T
    capped = np.minimum(A, reference.enclosing_radius(A))
    for one, other in zip(reference.rips_diagrams(A, 2), reference.rips_diagrams(capped, 2), strict=True):
        np.testing.assert_array_equal(one[np.lexsort(one.T)], other[np.lexsort(other.T)])


@pytest.mark.parametrize("e", [0.25, 0.1])
def test_twice_the_displacement_is_sharp(e):
    """{0, 1} -> {-e, 1 + e}: both points move by e, and the one component that dies does so 2 e later."""
    found = t.stability_bounds([[0.0], [1.0]], [[-e], [1 + e]])
    assert found.bottleneck[0] == pytest.approx(2 * e)
    assert found.twice_displacement == pytest.approx(2 * e)


def test_a_rigid_motion_is_not_seen_and_a_displacement_is():
    X = np.random.default_rng(0).standard_normal((50, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    found = t.stability_bounds(X, X @ turn + 3, (0, 1), "gudhi")
    assert max(found.distortion, *found.bottleneck.values()) < 1e-12
    assert found.twice_displacement > 1
    np.testing.assert_allclose(t.displacement(X, X + np.array([3, 4])), 5)


@pytest.mark.parametrize("engine", ["gudhi", "auto"])
@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-100, 2.0**100, 2.0**990])
def test_the_chain_scales(scale, engine):
    """Where squares, or numbers in single precision, would overflow or vanish."""
    X = np.random.default_rng(0).standard_normal((20, 5))
    Y = X + 0.1 * np.random.default_rng(1).standard_normal(X.shape)
    one, other = (t.stability_bounds(c * X, c * Y, (0, 1, 2), engine) for c in (1, scale))
    for k in range(3):
        assert other.bottleneck[k] == one.bottleneck[k] * scale > 0
    assert (other.capped, other.distortion) == (one.capped * scale, one.distortion * scale)
    assert other.twice_displacement == pytest.approx(one.twice_displacement * scale, rel=1e-14, abs=0)


def test_identical_clouds_have_bounds_of_zero():
    X = np.random.default_rng(0).standard_normal((300, 64))
    found = t.stability_bounds(X, X.copy(), (0, 1))
    assert (found.bottleneck, found.capped, found.distortion, found.twice_displacement) == ({0: 0, 1: 0}, 0, 0, 0)


def test_a_large_cloud_is_bounded_block_by_block(monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 5))
    Y = X + 0.1 * rng.standard_normal(X.shape)
    whole = t.stability_bounds(X, Y)
    monkeypatch.setattr(cloud, "_KEPT", 100)
    in_blocks = t.stability_bounds(X, Y)
    assert in_blocks.capped == pytest.approx(whole.capped, rel=1e-9)
    assert in_blocks.distortion == pytest.approx(whole.distortion, rel=1e-9)
    assert in_blocks.bottleneck[0] == pytest.approx(whole.bottleneck[0], rel=1e-9)


def counted(monkeypatch, module, name, calls):
    call = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **options: calls.append(name) or call(*a, **options))


def test_a_cloud_is_worked_on_once(monkeypatch):
    rng = np.random.default_rng(0)
    X = t.Cloud(rng.standard_normal((40, 3)))
    Y = X.points + 0.1 * rng.standard_normal(X.points.shape)
    first = t.stability_bounds(X, Y, (0, 1), "gudhi")
    assert first == t.stability_bounds(X.points, Y, (0, 1), "gudhi")
    for name in ("distance_matrix", "persistence_diagrams"):
        counted(monkeypatch, cloud, name, made := [])
        assert t.stability_bounds(X, Y, (0, 1), "gudhi") == first
        assert len(made) == 1


def test_distances_alone_are_enough_for_the_distortion():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((2, 20, 3))
    D, D_after = t.distance_matrix(X), t.distance_matrix(Y)
    found = t.stability_bounds(D, D_after, (0, 1), metric="precomputed")
    assert t.distortion(D, D_after, metric="precomputed") == t.distortion(X, Y) == found.capped
    assert math.isnan(found.twice_displacement)
    assert "displacement" not in str(found)
    assert "2 x displacement" in str(t.stability_bounds(X, Y))


# --- the conformal bound


@settings(max_examples=60)
@given(
    n=st.integers(1, 8),
    n_new=st.integers(1, 4),
    level=st.sampled_from([Fraction(1, 2), Fraction(2, 3), Fraction(9, 10)]),
)
def test_the_rank_for_several_new_ones_is_the_least_that_covers(n, n_new, level):
    covered = [reference.batch_probability(n, k, n_new) >= level for k in range(1, n + 1)]
    assert batch_rank(n, float(level), n_new) == (covered.index(True) + 1 if any(covered) else n + 1)
    assert reference.batch_probability(n, n, n_new) == Fraction(n, n + n_new)
    assert batch_rank(n, float(level)) == m.conformal_rank(n, float(level))


@pytest.mark.parametrize(
    ("n", "level", "finite"), [(9, 0.9, True), (8, 0.9, False), (19, 0.95, True), (18, 0.95, False), (99, 0.99, True)]
)
def test_too_few_clouds_give_an_infinite_bound(n, level, finite):
    bounds = t.ConformalStabilityBound(level).fit(np.arange(n)[:, None])
    assert np.isfinite(bounds.bound()).all() == finite
    assert ("too few" in bounds.guarantee()) != finite
    if finite:
        assert bounds.bound()[0] == n - 1


def made_clouds(rng, n_clouds, size=8, d=3):
    """Embeddings whose spread differs from cloud to cloud, before and after a perturbation."""
    spread = np.repeat(rng.exponential(size=n_clouds), size)[:, None]
    E = rng.standard_normal((n_clouds * size, d))
    rows = np.arange(n_clouds * size).reshape(n_clouds, size)
    return E, E + 0.3 * spread * rng.standard_normal(E.shape), rows


@pytest.mark.parametrize("score", ["H0", "capped", "twice_displacement"])
def test_coverage_over_three_thousand_clouds_lies_in_its_exact_band(score):
    rng = np.random.default_rng(0)
    E, perturbed, clouds = made_clouds(rng, 3_199)
    scores = t.cloud_scores(E, perturbed, clouds, (score,))
    bounds = t.ConformalStabilityBound(0.9).fit(scores[:199])
    coverage = (scores[199:] <= bounds.bound()).mean()
    low, high = m.coverage_band(199, 3_000, 0.9, probability=0.99)
    assert low <= coverage <= high
    np.testing.assert_array_equal(bounds.p_values(scores[199:]) > 0.1, scores[199:] <= bounds.bound())


@pytest.mark.slow
def test_mean_coverage_over_many_calibrations():
    """150 calibrations of 39 clouds with 20 new ones each: every score is covered 90% of the time."""
    rng = np.random.default_rng(0)
    names, covered = ("H0", "H1", "capped", "distortion", "twice_displacement"), 0
    for _ in range(150):
        E, perturbed, clouds = made_clouds(rng, 59, size=12)
        scores = t.cloud_scores(E, perturbed, clouds, names, engine="gudhi")
        covered += (scores[39:] <= t.ConformalStabilityBound(0.9).fit(scores[:39]).bound()).sum(axis=0)
    # The number covered of 20 is Beta-binomial(20, 36, 4): standard deviation 1.61
    assert (np.abs(covered / 3_000 - 0.9) < 4 * 1.61 / 20 / math.sqrt(150)).all()


def test_ties_count_as_no_more_stable():
    bounds = t.ConformalStabilityBound().fit([[1.0], [2.0], [2.0], [3.0]])
    np.testing.assert_allclose(bounds.p_values([[0.0], [2.0], [3.0], [4.0]])[:, 0], [1, 0.8, 0.4, 0.2])


@settings(max_examples=30)
@given(n=st.integers(2, 8), seed=seeds)
def test_leaving_out_each_cloud_gives_every_rank_once(n, seed):
    """The proof, number by number: of n + 1 distinct scores exactly k are at most the k-th smallest of the others."""
    scores = np.random.default_rng(seed).permutation(n + 1).astype(float)
    covered = sum(
        scores[i] <= t.ConformalStabilityBound(0.5).fit(np.delete(scores, i)[:, None]).bound()[0] for i in range(n + 1)
    )
    assert covered == batch_rank(n, 0.5)
    p_values = [
        t.ConformalStabilityBound().fit(np.delete(scores, i)[:, None]).p_values([[scores[i]]])[0, 0]
        for i in range(n + 1)
    ]
    np.testing.assert_allclose(np.sort(p_values), np.arange(1, n + 2) / (n + 1))


def test_the_largest_of_new_displacements_is_covered_as_often_as_said():
    """All of 10 new images below the largest of 90: with probability .9, over 2,000 draws."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2_000, 100, 2))
    moved = t.displacement(np.zeros((200_000, 2)), X.reshape(-1, 2)).reshape(2_000, 100)
    covered = sum(
        (row[90:] <= t.ConformalStabilityBound(0.9).fit(row[:90, None]).bound(n_new=10)).all() for row in moved
    )
    low, high = m.clopper_pearson(covered, 2_000, 1 - 1e-4)
    assert low <= 0.9 <= high


def test_clouds_hold_whole_patients():
    patients = np.random.default_rng(0).integers(0, 30, 200)
    clouds = t.patient_clouds(patients, 7, random_state=0)
    assert len(clouds) == 4
    members = [set(patients[rows]) for rows in clouds]
    assert [len(group) for group in members] == [7] * 4
    assert len(set.union(*members)) == 28
    assert sum(map(len, clouds)) == np.isin(patients, list(set.union(*members))).sum()
    again = t.patient_clouds(patients, 7, random_state=0)
    assert all((a == b).all() for a, b in zip(clouds, again, strict=True))


def test_every_patient_is_as_often_in_the_first_cloud():
    counts = sum(np.bincount(t.patient_clouds(np.arange(10), 3, random_state=i)[0], minlength=10) for i in range(2_000))
    assert ((counts > 500) & (counts < 700)).all()  # 600, standard deviation 20


def test_scores_are_those_of_the_bounds():
    rng = np.random.default_rng(0)
    E, Y = rng.standard_normal((2, 30, 3))
    clouds = [np.arange(10), np.arange(10, 30)]
    names = ("distortion", "H1", "twice_displacement", "H0", "capped")
    scores = t.cloud_scores(E, Y, clouds, names, engine="gudhi")
    for row, cloud_rows in zip(scores, clouds, strict=True):
        found = t.stability_bounds(E[cloud_rows], Y[cloud_rows], (0, 1), "gudhi")
        expected = [found.distortion, found.bottleneck[1], found.twice_displacement, found.bottleneck[0], found.capped]
        np.testing.assert_array_equal(row, expected)
    bounds = t.ConformalStabilityBound().fit(rng.random((20, 5)))
    assert bounds.bound().shape == (5,)
    assert bounds.bound(0.99).tolist() == [math.inf] * 5
    assert "20 clouds" in bounds.guarantee()
    assert "7 new ones" in bounds.guarantee(0.5, n_new=7)


# --- bad inputs

points = np.zeros((4, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: t.distortion(points, points[:3]), ParameterError, "4 and 3 points"),
        (lambda: t.displacement(points, np.zeros((4, 3))), ParameterError, "2 and 3 features"),
        (lambda: t.displacement(t.Cloud(np.zeros((4, 4)), "precomputed"), points), ParameterError, "points themselves"),
        (lambda: t.distortion(points, points + np.inf), ParameterError, "row 0 holds NaN or infinity"),
        (lambda: t.distortion(points, points, metric="cosine"), ParameterError, "'euclidean' and 'precomputed'"),
        (lambda: t.cloud_scores(points, points, [[0, 1]], ("wasserstein",)), ParameterError, "scores"),
        (lambda: t.cloud_scores(points, points, [[0, 1]], ()), ParameterError, "scores"),
        (lambda: t.cloud_scores(points, points[:2], [[0, 1]]), ParameterError, "same rows"),
        (lambda: t.cloud_scores(points, points, [[0, 4]]), ParameterError, "clouds"),
        (lambda: t.cloud_scores(points, points, [[]]), ParameterError, "clouds"),
        (lambda: t.patient_clouds([1, 2], 3), ParameterError, "from 1 to 2"),
        (lambda: t.patient_clouds([1.0, np.nan, np.nan], 1), ParameterError, "image 1 has none"),
        (lambda: t.patient_clouds([], 1), ParameterError, "one name for each image"),
        (lambda: batch_rank(9, 0.9, 0), ParameterError, "whole numbers"),
        (lambda: batch_rank(9, 1.0), ParameterError, "between 0 and 1"),
        (lambda: t.ConformalStabilityBound(1.5).fit(points), ValueError, "confidence_level"),
        (lambda: t.ConformalStabilityBound().fit([[np.inf]]), ValueError, "infinity"),
        (lambda: t.ConformalStabilityBound().bound(), NotFittedError, "not fitted"),
    ],
)
def test_bad_inputs_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
