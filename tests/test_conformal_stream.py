"""Streams: online sets, and the drift alarm."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from test_conformal_properties import OPTIONS, draw_cases

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import DriftMonitor, OnlineConformalClassifier, smoothed_p_values
from cbdc.errors import ParameterError

seeds = st.integers(0, 2**32 - 1)
METHODS = ["expanding", "aci", "pid"]
every_score = pytest.mark.parametrize("options", OPTIONS)


@settings(max_examples=8)
@every_score
@given(seed=seeds)
def test_expanding_is_conformal_on_all_cases_so_far(options, seed):
    P, y, _ = draw_cases(np.random.default_rng(seed), 80, 3)
    clf = OnlineConformalClassifier(**options).conformalize(P[:30], y[:30])
    clf.partial_conformalize(P[30:60], y[30:60])
    whole = ConformalClassifier(**options).conformalize(P[:60], y[:60])
    np.testing.assert_array_equal(clf.predict_set(P[60:]), whole.predict_set(P[60:]))
    np.testing.assert_array_equal(clf.p_values(P[60:]), whole.p_values(P[60:]))
    last = OnlineConformalClassifier(window=25, **options).conformalize(P[:30], y[:30])
    last.partial_conformalize(P[30:60], y[30:60])
    recent = ConformalClassifier(**options).conformalize(P[35:60], y[35:60])
    np.testing.assert_array_equal(last.predict_set(P[60:]), recent.predict_set(P[60:]))


@settings(max_examples=10)
@pytest.mark.parametrize("method", METHODS)
@every_score
@given(seed=seeds)
def test_a_batch_is_told_one_by_one(method, options, seed):
    P, y, _ = draw_cases(np.random.default_rng(seed), 70, 3)
    one, many = (
        OnlineConformalClassifier(method=method, gamma=0.1, **options).conformalize(P[:20], y[:20]) for _ in range(2)
    )
    many.partial_conformalize(P[20:60], y[20:60])
    missed = 0
    for i in range(20, 60):
        missed += not one.predict_set(P[[i]])[0, y[i]]
        one.partial_conformalize(P[[i]], y[[i]])
    assert one.n_missed_ == many.n_missed_ == missed
    assert one.alpha_ == many.alpha_
    np.testing.assert_array_equal(one.predict_set(P[60:]), many.predict_set(P[60:]))


def test_misses_of_the_expanding_set_are_independent_and_rare_enough():
    """The number of misses in 1,000 exchangeable cases is within its binomial band; so is that of pairs in a row."""
    P, y, _ = draw_cases(np.random.default_rng(0), 1200, 3)
    clf, missed = OnlineConformalClassifier().conformalize(P[:199], y[:199]), []
    for i in range(199, 1199):
        before = clf.n_missed_
        clf.partial_conformalize(P[[i]], y[[i]])
        missed.append(clf.n_missed_ - before)
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], 1000, 0.1)
    assert low - 5 <= sum(missed) <= high
    pairs = sum(a and b for a, b in itertools.pairwise(missed))
    assert pairs <= stats.binom.ppf(1 - 1e-5, 999, 0.01)


@pytest.mark.parametrize("method", ["aci", "pid"])
@given(
    seed=seeds,
    gamma=st.sampled_from([0.02, 0.1, 0.5]),
    level=st.sampled_from([0.5, 0.9]),
    kind=st.sampled_from(["drift", "wrong", "right", "alternate"]),
)
@settings(max_examples=15)
def test_the_long_run_is_bounded_whatever_comes(method, gamma, level, kind, seed):
    """Adversarial labels: the least probable, the most probable, a change, by turns."""
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 300, 3)
    turn = np.arange(300)
    worst, best = P.argmin(axis=1), P.argmax(axis=1)
    y = {"drift": np.where(turn > 150, worst, y), "wrong": worst, "right": best}.get(
        kind, np.where(turn // 20 % 2, worst, best)
    )
    clf = OnlineConformalClassifier(method=method, gamma=gamma, confidence_level=level).conformalize(P[:20], y[:20])
    for i in range(20, 300, 7):
        clf.partial_conformalize(P[i : i + 7], y[i : i + 7])
        assert abs(clf.n_missed_ / clf.n_seen_ - (1 - level)) <= clf.long_run_bound() + 1e-9


def test_after_a_change_adaptive_sets_cover_again_and_fixed_ones_do_not():
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 6000, 3)
    y[3000:] = np.where(rng.random(3000) < 0.5, P[3000:].argmin(axis=1), y[3000:])
    fixed = ConformalClassifier().conformalize(P[:1000], y[:1000])
    assert m.coverage(fixed.predict_set(P[3000:]), y[3000:]) < 0.8
    for method in ("aci", "pid"):
        clf = OnlineConformalClassifier(method=method, gamma=0.02).conformalize(P[:1000], y[:1000])
        clf.partial_conformalize(P[1000:], y[1000:])
        assert abs(clf.n_missed_ / 5000 - 0.1) < 0.02


def test_certificates_and_clones():
    P, y, _ = draw_cases(np.random.default_rng(0), 300, 3)
    for method in METHODS:
        clf = clone(OnlineConformalClassifier(method=method)).conformalize(P[:99], y[:99])
        text = str(clf.partial_conformalize(P[99:], y[99:]).certificate())
        assert f"of {clf.n_seen_}" in text
        assert ("exchangeable" in text) == (method == "expanding")
        assert clf.n_calibration_ == 300


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda P, y: OnlineConformalClassifier(method="sgd").conformalize(P, y), ValueError, "method"),
        (lambda P, y: OnlineConformalClassifier(gamma=0).conformalize(P, y), ValueError, "gamma"),
        (lambda P, y: OnlineConformalClassifier().partial_conformalize(P, y), NotFittedError, "not"),
        (
            lambda P, y: OnlineConformalClassifier().conformalize(P, y).partial_conformalize(P, y[:3]),
            ValueError,
            "shape",
        ),
        (lambda P, y: OnlineConformalClassifier().conformalize(P, y).predict_set(P * np.nan), ValueError, "NaN"),
        (lambda P, y: DriftMonitor().update([0.5, 2.0]), ParameterError, "number 1"),
        (lambda P, y: DriftMonitor(alpha=1.0).update([0.5]), ValueError, "alpha"),
        (lambda P, y: DriftMonitor(betting="all in").update([0.5]), ValueError, "betting"),
    ],
)
def test_bad_inputs_are_named(call, error, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 40, 3)
    with pytest.raises(error, match=message):
        call(P, y)


# --- drift


def test_p_values_of_every_order_are_uniform_and_independent():
    """Of all orders of five scores: the places of the p-values, (i, rank), are all equally frequent."""
    seen = {}
    for order in itertools.permutations(range(5)):
        p = smoothed_p_values(np.array(order, dtype=float), random_state=0)
        ranks = tuple(int(np.ceil(p[i] * (i + 1))) for i in range(5))
        seen[ranks] = seen.get(ranks, 0) + 1
    assert len(seen) == 120
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("betting", ["jumper", "power"])
def test_the_mean_capital_is_one(betting):
    """One step and two steps, integrated over uniform p-values; p = t^50, since power bets are steep at 0."""

    def mean(n_points, steps):
        t = (np.arange(n_points) + 0.5) / n_points
        points = itertools.product(zip(t**50, 50 * t**49), repeat=steps)
        return (
            sum(
                np.exp(DriftMonitor(betting=betting).update([p for p, _ in point]).log_martingale_)
                * np.prod([weight for _, weight in point])
                for point in points
            )
            / len(t) ** steps
        )

    assert mean(1000, 1) == pytest.approx(1, abs=0.01)
    assert mean(90, 2) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("betting", ["jumper", "power"])
def test_false_alarms_are_as_rare_as_promised(betting):
    rng = np.random.default_rng(0)
    alarms = sum(DriftMonitor(0.1, betting=betting).update(rng.random(200)).alarm_ for _ in range(300))
    assert m.clopper_pearson(alarms, 300, 1 - 1e-5)[0] <= 0.1


def test_a_change_is_found_and_ties_are_not_one():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.standard_normal(400), rng.standard_normal(300) - 1.5])
    monitor = DriftMonitor().update(smoothed_p_values(scores, random_state=0))
    assert monitor.alarm_
    assert 400 < monitor.alarm_time_ < 520
    assert len(monitor.history_) == 700
    assert not DriftMonitor().update(smoothed_p_values(np.zeros(700), random_state=0)).alarm_
    assert not monitor.reset().alarm_
    assert "0.01" in str(monitor.certificate())


def test_the_jumper_is_mapies():
    martingales = pytest.importorskip("mapie.exchangeability_testing.martingales")
    p_values = np.random.default_rng(0).random(300) ** 1.5
    mapies = martingales.OnlineMartingaleTest(task="classification", warn=False)
    expected = [np.log(mapies.update_simple_jumper_martingale(p)) for p in p_values]
    np.testing.assert_allclose(DriftMonitor().update(p_values).history_, expected, atol=1e-9)
