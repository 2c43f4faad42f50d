"""Risk bounds: against the oracle, their inequalities, and how often they fail on data of known risk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cbdc.bounds import (
    GaussianGibbsClassifier,
    RiskBound,
    binary_kl,
    binary_kl_inverse,
    catoni_bound,
    chernoff_bound,
    clopper_pearson_bound,
    empirical_bernstein_bound,
    gaussian_pac_bayes_bound,
    group_weighted_bound,
    pac_bayes_kl_bound,
)
from experiments.bounds import Simulation
from theory import bounds_reference as reference

shares = st.floats(0, 1)
TEST_SET_BOUNDS = [chernoff_bound, empirical_bernstein_bound]
ALL_BOUNDS = [
    *TEST_SET_BOUNDS,
    lambda losses, **options: pac_bayes_kl_bound(losses, 3.0, **options),
    lambda losses, **options: catoni_bound(losses, 3.0, **options),
]


# --- the divergence of two coins


@given(shares, st.floats(1e-6, 1 - 1e-6))
def test_divergence_of_two_coins(q, p):
    assert binary_kl(q, p) == pytest.approx(reference.kl(q, p), abs=1e-12)


@given(shares, st.floats(0, 5))
def test_inverse_is_the_oracles(q, budget):
    found = float(binary_kl_inverse(q, budget))
    assert q <= found <= 1
    assert found == pytest.approx(reference.kl_inverse(q, budget), abs=1e-9)
    assert binary_kl(q, max(found - 1e-9, q)) <= budget + 1e-12  # not looser than it has to be


def test_inverse_in_closed_form():
    budgets = np.linspace(0, 3, 50)
    np.testing.assert_allclose(binary_kl_inverse(0.0, budgets), 1 - np.exp(-budgets), atol=1e-14)


@pytest.mark.parametrize(("q", "budget"), [(1.5, 0.1), (np.nan, 0.1), (0.5, -1.0)])
def test_inverse_refuses_what_is_no_share(q, budget):
    with pytest.raises(ValueError, match="q has to lie in"):
        binary_kl_inverse(q, budget)


@pytest.mark.parametrize("n", [8, 20, 100])
def test_the_moment_that_the_bound_rests_on(n):
    """Maurer's inequality, summed over all outcomes: E exp(n kl) is between sqrt(n) and 2 sqrt(n)."""
    moments = [reference.exponential_moment(n, risk) for risk in np.linspace(0.01, 0.99, 25)]
    assert max(moments) <= 2 * np.sqrt(n)
    assert max(moments) > np.sqrt(n)


# --- bounds from losses


@given(st.lists(shares, min_size=8, max_size=60), st.floats(0, 30), st.floats(0.001, 0.5))
def test_bounds_are_the_oracles(losses, divergence, delta):
    n, mean = len(losses), float(np.mean(losses))
    found = pac_bayes_kl_bound(losses, divergence, delta=delta)
    assert found.value == pytest.approx(reference.pac_bayes_kl(mean, divergence, n, delta), abs=1e-9)
    catoni = catoni_bound(losses, divergence, delta=delta, temperatures=[0.7])
    assert catoni.value == pytest.approx(min(1, reference.catoni(mean, divergence, n, delta, 0.7)), abs=1e-9)
    assert chernoff_bound(losses, delta=delta).value <= found.value


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0.001, 0.5))
def test_clopper_pearson_leaves_delta(errors, delta):
    n, k = len(errors), sum(errors)
    value = clopper_pearson_bound(errors, delta=delta).value
    if k == n:
        assert value == 1
    else:
        assert stats.binom.cdf(k, n, value) == pytest.approx(delta, abs=1e-9)
    assert value <= chernoff_bound(np.array(errors, dtype=float), delta=delta).value + 1e-12


@pytest.mark.parametrize("risk", [0.0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("n", [20, 60])
def test_no_bound_from_errors_fails_more_often_than_delta(n, risk):
    """Exactly, by summing over all numbers of errors."""
    for bound in (clopper_pearson_bound, *ALL_BOUNDS):
        failed = sum(
            stats.binom.pmf(k, n, risk)
            for k in range(n + 1)
            if bound(np.repeat([1.0, 0.0], [k, n - k]), delta=0.1).value < risk
        )
        assert failed <= 0.1 + 1e-12


@given(st.lists(shares, min_size=10, max_size=40), st.data())
def test_units_count_once(losses, data):
    repeats = data.draw(st.lists(st.integers(1, 4), min_size=len(losses), max_size=len(losses)))
    for bound in ALL_BOUNDS:
        once = bound(losses)
        many = bound(np.repeat(losses, repeats), units=np.repeat(np.arange(len(losses)), repeats).astype(str))
        assert many.n == once.n == len(losses)
        assert many.value == pytest.approx(once.value, abs=1e-9)


def test_a_larger_divergence_or_a_smaller_delta_costs():
    losses = np.full(500, 0.2)
    assert pac_bayes_kl_bound(losses, 5.0).value < pac_bayes_kl_bound(losses, 50.0).value
    assert catoni_bound(losses, 5.0).value < catoni_bound(losses, 50.0).value
    for bound in ALL_BOUNDS:
        assert bound(losses, delta=0.05).value < bound(losses, delta=0.005).value


def test_vacuous_is_said():
    bound = pac_bayes_kl_bound(np.full(100, 0.5), 1e4)
    assert bound.vacuous
    assert "vacuous: it says nothing" in str(bound)
    assert not chernoff_bound(np.full(100, 0.5)).vacuous


@pytest.mark.parametrize("bound", ALL_BOUNDS)
@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ([0.5] * 9 + [1.5], {}, "case 9 is not in"),
        ([0.5] * 9 + [np.nan], {}, "case 9 is not in"),
        ([], {}, "at least one case"),
        ([0.5] * 10, {"delta": 0.0}, "delta=0.0"),
        ([0.5] * 10, {"delta": np.nan}, "delta=nan"),
        ([0.5] * 10, {"units": [1, 2]}, "one for each of the 10 cases"),
    ],
)
def test_bad_losses_are_refused(bound, losses, options, message):
    with pytest.raises(ValueError, match=message):
        bound(losses, **options)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="8 independent cases or more, got 7"):
        pac_bayes_kl_bound([0.1] * 7, 1.0)
    for divergence in (-1.0, np.nan):
        with pytest.raises(ValueError, match="expected a number of nats"):
            pac_bayes_kl_bound([0.1] * 20, divergence)
        with pytest.raises(ValueError, match="expected a number of nats"):
            catoni_bound([0.1] * 20, divergence)
    with pytest.raises(ValueError, match="temperatures"):
        catoni_bound([0.1] * 20, 1.0, temperatures=[0.0])
    with pytest.raises(ValueError, match="0 or 1, one for each independent case"):
        clopper_pearson_bound([0.5, 1])
    with pytest.raises(ValueError, match="at least two independent cases"):
        empirical_bernstein_bound([0.1])


@pytest.mark.parametrize("missing", [np.nan, None])
def test_a_case_without_a_patient_is_refused(missing):
    units = np.array(["a", missing, "b"], dtype=object)
    with pytest.raises(ValueError, match="units: case 1 has none"):
        chernoff_bound([0.0, 1.0, 0.0], units=units)


@pytest.mark.parametrize("delta", [1e-3, 1e-16, 1e-30])
def test_clopper_pearson_where_one_less_delta_rounds(delta):
    assert clopper_pearson_bound(np.zeros(500), delta=delta).value == pytest.approx(-np.expm1(np.log(delta) / 500))


def test_groups_of_drawn_and_of_fixed_classifiers_are_not_mixed():
    groups = {"a": chernoff_bound(np.zeros(50)), "b": pac_bayes_kl_bound(np.zeros(50), 1.0)}
    with pytest.raises(ValueError, match="a mean of both is about neither"):
        group_weighted_bound(groups, {"a": 0.5, "b": 0.5})
    both = {"a": groups["a"], "b": clopper_pearson_bound(np.zeros(50))}
    assert group_weighted_bound(both, {"a": 0.5, "b": 0.5}).method.startswith("Chernoff and Clopper-Pearson, weighted")


def test_groups_are_weighted():
    groups = {name: RiskBound("x", value, 0.1, 10, 0.02) for name, value in {"a": 0.2, "b": 0.4, "c": 0.9}.items()}
    mixed = group_weighted_bound(groups, {"a": 0.75, "b": 0.25})
    assert mixed.value == pytest.approx(0.25)
    assert (mixed.n, mixed.delta) == (20, 0.04)
    with pytest.raises(ValueError, match="no bound for the group 'd'"):
        group_weighted_bound(groups, {"d": 1.0})
    with pytest.raises(ValueError, match=r"sum to 0\.8"):
        group_weighted_bound(groups, {"a": 0.8})
    with pytest.raises(ValueError, match=r"sum to 1\.2"):
        group_weighted_bound({k: RiskBound("x", 0.1, 0.1, 9, 0.6) for k in "ab"}, {"a": 0.5, "b": 0.5})


# --- Gaussians over linear classifiers


@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(-3, 1.5))
def test_error_of_a_drawn_classifier_is_the_oracles(seed, n_classes, log_scale):
    rng = np.random.default_rng(seed)
    weights, X = rng.normal(size=(3, n_classes)), rng.normal(size=(2, 3))
    gibbs = GaussianGibbsClassifier(weights, 10**log_scale)
    for x, label in zip(X, rng.integers(0, n_classes, 2)):
        expected = reference.gibbs_error(x, weights, gibbs.scale, label)
        assert gibbs.errors([x], [label])[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("n_classes", [2, 7, 16, 17, 114, 400])
def test_error_among_many_classes(n_classes):
    """The largest of many logits makes a step of the integrand; where all are alike each wins equally often."""
    alike = GaussianGibbsClassifier(np.zeros((1, n_classes)), 1.0)
    np.testing.assert_allclose(alike.errors([[1.0]], [0]), 1 - 1 / n_classes, atol=1e-8)
    rng = np.random.default_rng(n_classes)
    for spread in (0.3, 1.0, 3.0):
        weights = spread * rng.normal(size=(1, n_classes))
        best = int(weights.argmax())
        expected = reference.gibbs_error(np.ones(1), weights, 1.0, best)
        assert GaussianGibbsClassifier(weights, 1.0).errors([[1.0]], [best])[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("weights", "scale", "message"),
    [
        ([[np.nan, 0.0]], 1.0, "expected finite numbers"),
        ([0.0, 1.0], 1.0, r"got shape \(2,\)"),
        ([[0.0, 1.0]], 0.0, "scale=0.0: expected a number above 0"),
        ([[0.0, 1.0]], np.nan, "scale=nan"),
    ],
)
def test_bad_gaussians_are_refused(weights, scale, message):
    with pytest.raises(ValueError, match=message):
        GaussianGibbsClassifier(np.array(weights), scale)


def test_error_of_a_drawn_classifier_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    weights, X, y = rng.normal(size=(4, 5)), rng.normal(size=(20, 4)), rng.integers(0, 5, 20)
    draws = weights + 0.7 * rng.normal(size=(20_000, 4, 5))
    wrong = (X @ draws).argmax(axis=2) != y
    np.testing.assert_allclose(GaussianGibbsClassifier(weights, 0.7).errors(X, y), wrong.mean(axis=0), atol=0.016)


def test_errors_of_all_labels_leave_one_right():
    rng = np.random.default_rng(1)
    gibbs = GaussianGibbsClassifier(rng.normal(size=(3, 4)), 0.5)
    X = rng.normal(size=(10, 3))
    right = sum(1 - gibbs.errors(X, np.full(10, label)) for label in range(4))
    np.testing.assert_allclose(right, 1, atol=1e-8)


@given(st.integers(0, 10_000), st.floats(0.1, 3), st.floats(0.1, 3))
def test_divergence_is_that_of_dense_algebra(seed, scale, prior_scale):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3, 2))
    found = GaussianGibbsClassifier(a, scale).divergence(GaussianGibbsClassifier(b, prior_scale))
    eye = np.eye(6)
    expected = reference.gaussian_kl(a.ravel(), scale**2 * eye, b.ravel(), prior_scale**2 * eye)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_search_shares_delta_over_the_scales():
    rng = np.random.default_rng(0)
    X, y, W = rng.normal(size=(50, 3)), rng.integers(0, 3, 50), rng.normal(size=(3, 3))
    bound, gibbs = gaussian_pac_bayes_bound(X, y, W, scales=[0.1, 1.0], steps=[1.0], delta=0.1)
    centred = W - W.mean(axis=1, keepdims=True)
    by_hand = min(
        pac_bayes_kl_bound(
            GaussianGibbsClassifier(centred, s).errors(X, y), np.sum(centred**2) / (2 * s**2), delta=0.05
        ).value
        for s in (0.1, 1.0)
    )
    assert bound.value == pytest.approx(by_hand)
    assert bound.delta == 0.1
    np.testing.assert_allclose(gibbs.weights, centred)


def test_what_all_classes_share_costs_nothing():
    rng = np.random.default_rng(0)
    X, y, W = rng.normal(size=(60, 3)), rng.integers(0, 3, 60), rng.normal(size=(3, 3))
    plain, shifted = (gaussian_pac_bayes_bound(X, y, W + c)[0].value for c in (0.0, 1e3))
    assert plain == pytest.approx(shifted)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.zeros((20, 2)), np.zeros(20, int), "append a feature that is 1"),
        (np.ones((20, 3)), np.zeros(20, int), r"got shape \(20, 3\); expected \(n, 2\)"),
        (np.ones((20, 2)), np.full(20, 5), "column numbers from 0 to 2"),
        (np.ones((20, 2)), np.full(20, "nv"), r"got shape \(20,\) of <U2; .* np.searchsorted\(classes, y\)"),
        (np.full((20, 2), np.nan), np.zeros(20, int), "NaN"),
    ],
)
def test_bad_rows_are_refused(X, y, message):
    with pytest.raises(ValueError, match=message):
        gaussian_pac_bayes_bound(X, y, np.eye(2, 3))


def test_bad_prior_is_refused():
    with pytest.raises(ValueError, match=r"prior_weights: got shape \(3, 2\)"):
        gaussian_pac_bayes_bound(np.ones((20, 2)), np.zeros(20, int), np.eye(2, 3), prior_weights=np.eye(3, 2))


# --- data of known error


@pytest.mark.parametrize(
    ("draws", "n", "n_fresh"), [(20, 200, 4000), pytest.param(500, 500, 20_000, marks=pytest.mark.slow)]
)
def test_bound_fails_at_most_as_often_as_it_says(draws, n, n_fresh):
    """The true risk of each Gaussian is that of many fresh cases; the count of failures has a binomial band."""
    simulation = Simulation(n_fresh=n_fresh)
    failures = sum(simulation.draw(n, seed)["violated"] for seed in range(draws))
    assert failures <= stats.binom.ppf(0.999, draws, 0.05)
