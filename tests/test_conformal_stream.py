"""Streams: online sets, and the drift alarm."""

import itertools
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.special import softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from test_conformal_properties import OPTIONS, draw_cases

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import DriftMonitor, OnlineConformalClassifier, smoothed_p_values
from cbdc.conformal.stream import _digests
from cbdc.errors import ParameterError

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import stream_reference

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
    assert (one.alpha_, one.threshold()) == (many.alpha_, many.threshold())
    assert (one.n_unasked_, many.n_unasked_, one.delay_) == (0, 40, 0)
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


adaptive = pytest.mark.parametrize("method", ["aci", "pid"])


def whatever_comes(rng, P, y, kind):
    """Labels of a change, or of an adversary who knows the probabilities."""
    turn, worst, best = np.arange(len(y)), P.argmin(axis=1), P.argmax(axis=1)
    kinds = {"drift": np.where(turn > 150, worst, y), "wrong": worst, "right": best}
    return kinds.get(kind, np.where(turn // 20 % 2, worst, best))


@adaptive
@given(
    seed=seeds,
    gamma=st.sampled_from([0.02, 0.1, 0.5]),
    level=st.sampled_from([0.5, 0.9]),
    kind=st.sampled_from(["drift", "wrong", "right", "alternate", "outside"]),
    delay=st.sampled_from([0, 6, 40]),
)
@settings(max_examples=20)
def test_the_long_run_is_bounded_whatever_comes(method, gamma, level, kind, delay, seed):
    """Adversarial labels, told with a delay; "outside" are those that the set does not hold, as long as there are."""
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 300, 3)
    y = whatever_comes(rng, P, y, kind)
    clf = OnlineConformalClassifier(method=method, gamma=gamma, confidence_level=level).conformalize(P[:20], y[:20])
    missed = []
    for i in range(20, 300 + delay):
        if i < 300:
            one = clf.predict_set(P[[i]])[0]
            if kind == "outside":
                y[i] = np.argmin(one)
            missed.append(not one[y[i]])
        if i - delay >= 20:
            clf.partial_conformalize(P[[i - delay]], y[[i - delay]])
            assert abs(clf.n_missed_ / clf.n_seen_ - (1 - level)) <= clf.long_run_bound() + 1e-9
            assert clf.n_missed_ == sum(missed[: clf.n_seen_])
    assert clf.delay_ == delay
    assert clf.n_unasked_ == 0


def test_the_bound_of_pid_is_reached_but_for_a_few_cases():
    """Labels of probability 0, that only a full set holds: misses go on until the integrator is infinite, not after."""
    P = np.random.default_rng(0).dirichlet([9, 1, 1], 4200)
    P[4000:] = [0.6, 0.4, 0.0]
    clf = OnlineConformalClassifier(method="pid", gamma=1e-9).conformalize(P[:4000], np.zeros(4000, dtype=int))
    clf.partial_conformalize(P[4000:], np.full(200, 2))
    excess = clf.n_missed_ - 0.1 * clf.n_seen_
    assert 200 * clf.long_run_bound() - 3 <= excess <= 200 * clf.long_run_bound()


@adaptive
def test_misses_are_those_of_the_sets_that_were_seen(method):
    """Asked in batches of 50 and told 50 at once: by sets made anew case by case a third as many would be missed."""
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 2100, 4)
    y = np.where(np.arange(2100) // 50 % 2, P.argmin(axis=1), y)
    clf = OnlineConformalClassifier(method=method, gamma=0.05).conformalize(P[:100], y[:100])
    missed = 0
    for i in range(100, 2100, 50):
        sets = clf.predict_set(P[i : i + 50])
        missed += np.sum(~sets[np.arange(50), y[i : i + 50]])
        clf.partial_conformalize(P[i : i + 50], y[i : i + 50])
    assert clf.n_missed_ == missed
    assert clf.delay_ == 49
    assert abs(missed / 2000 - 0.1) <= clf.long_run_bound()
    assert "no more than 49 others" in str(clf.certificate())
    assert "later and later" in str(clf.certificate())


def test_a_case_is_known_again_whatever_holds_it():
    P, y, _ = draw_cases(np.random.default_rng(0), 120, 3)
    model = LogisticRegression().fit(P[:60], y[:60])
    for asked, told in [(pd.DataFrame(P), P), (P, sparse.csr_array(P)), (P.astype(np.float32), P.astype(np.float32))]:
        clf = OnlineConformalClassifier(model, prefit=True).conformalize(P[:80], y[:80])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of names of columns
            clf.predict_set(asked[80:])
            clf.partial_conformalize(told[80:], y[80:])
        assert (clf.n_unasked_, clf.delay_) == (0, 39)
    pictures = [np.zeros((2, 3), np.uint8), np.ones((4, 4), np.uint8)]
    assert len(set(_digests([*pictures, "a.jpg", "b.jpg"]))) == 4
    assert _digests(np.array(["a.jpg", "b.jpg"], dtype=object))[1] == _digests(["b.jpg"])[0]


def test_cases_that_look_alike_are_told_in_the_order_of_their_asking():
    """Of two equal rows the first was in its set, the second not: one miss, by the second's threshold."""
    P = np.array([[0.9, 0.1]] * 9)
    clf = OnlineConformalClassifier(method="aci", gamma=1, confidence_level=0.5).conformalize(P, np.zeros(9, int))
    row = np.array([[0.8, 0.2]])
    clf.partial_conformalize(P[:1], [1])  # a miss, after which sets are full
    assert clf.predict_set(row).all()
    clf.partial_conformalize(P, np.zeros(9, int))  # covers, after which they are small again
    assert not clf.predict_set(row)[0, 1]
    before = clf.n_missed_
    clf.partial_conformalize(row, [1])
    assert clf.n_missed_ == before
    assert clf.partial_conformalize(row, [1]).n_missed_ == before + 1


def test_cases_of_which_no_label_comes_are_forgotten(monkeypatch):
    monkeypatch.setattr("cbdc.conformal.stream._AWAITED", 10)
    P, y, _ = draw_cases(np.random.default_rng(0), 100, 3)
    clf = OnlineConformalClassifier().conformalize(P[:50], y[:50])
    clf.predict_set(P[50:])
    assert len(clf._awaited) == 10
    clf.partial_conformalize(P[50:], y[50:])
    assert clf.n_unasked_ == 40
    assert not clf._awaited
    assert "for 40 no set was asked" in str(clf.certificate())


# --- quantile tracking with an integrator


@settings(max_examples=10)
@given(seed=seeds, gamma=st.sampled_from([0.01, 0.1]), kind=st.sampled_from(["drift", "wrong", "alternate"]))
def test_pid_is_that_of_the_reference(gamma, kind, seed):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 250, 3)
    y = whatever_comes(rng, P, y, kind)
    clf = OnlineConformalClassifier(method="pid", gamma=gamma).conformalize(P[:50], y[:50])
    found = []
    for i in range(50, 250):
        before = clf.n_missed_
        clf.partial_conformalize(P[[i]], y[[i]])
        found.append(bool(clf.n_missed_ - before))
    scores = np.log1p(-np.log(P[np.arange(250), y]))  # nonconformity on the scale

    def spread(t):
        kept = np.sort(scores[: 50 + t])
        return kept[round(0.95 * (49 + t))] - kept[round(0.05 * (49 + t))]

    start = np.sort(scores[:50])[int(np.ceil(51 * 0.9)) - 1]
    expected = stream_reference.pid_misses(scores[50:].tolist(), start, 0.1, gamma, spread)
    apart = np.flatnonzero(np.array(found) != expected)
    assert len(apart) == 0


def test_pid_tracks_scores_without_end():
    """Logarithms of probabilities as small as 1e-300, of 0, and scores that are all the same."""
    rng = np.random.default_rng(0)
    P = softmax(100 * rng.standard_normal((800, 3)), axis=1)
    y = np.where(rng.random(800) < 0.3, P.argmin(axis=1), P.argmax(axis=1))
    for score in ("lac", "margin", "topk"):
        clf = OnlineConformalClassifier(method="pid", gamma=0.05, score=score).conformalize(P[:100], y[:100])
        clf.partial_conformalize(P[100:], y[100:])
        assert abs(clf.n_missed_ / 700 - 0.1) <= min(0.05, clf.long_run_bound())
    same = OnlineConformalClassifier(method="pid", score="topk").conformalize(P[:9], P[:9].argmax(axis=1))
    assert same.predict_set(P[9:]).sum(axis=1).max() == 1
    same.partial_conformalize(P[9:], P[9:].argmin(axis=1))
    assert same.n_missed_ / 791 <= 0.1 + same.long_run_bound()


def test_the_band_of_the_certificate_ends_at_one_where_scores_tie():
    P, y, _ = draw_cases(np.random.default_rng(0), 200, 3)
    for score, high in (("lac", False), ("topk", True)):
        (condition,) = OnlineConformalClassifier(score=score).conformalize(P, y).certificate().conditions
        assert condition.low < 0.9
        assert (condition.high == 1) == high


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
        (lambda P, y: smoothed_p_values([0.5, np.nan]), ParameterError, "number 1 is NaN"),
        (lambda P, y: smoothed_p_values([[0.5]]), ParameterError, "shape"),
        (lambda P, y: DriftMonitor().update_scores([np.nan]), ParameterError, "number 0 is NaN"),
        (lambda P, y: DriftMonitor(alpha=1.0).update([0.5]), ValueError, "alpha"),
        (lambda P, y: DriftMonitor(betting="all in").update([0.5]), ValueError, "betting"),
    ],
)
def test_bad_inputs_are_named(call, error, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 40, 3)
    with pytest.raises(error, match=message):
        call(P, y)


# --- drift


@given(cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 1000), coarse=st.booleans())
def test_scores_may_come_in_any_number_of_calls(cuts, seed, coarse):
    scores = np.random.default_rng(seed).standard_normal(60)
    scores = np.round(scores) if coarse else scores
    whole = DriftMonitor().update(smoothed_p_values(scores, random_state=seed))
    parts = DriftMonitor(random_state=seed)
    for part in np.split(scores, sorted(cuts)):
        parts.update_scores(part)
    assert parts.history_ == whole.history_
    assert parts.reset().update_scores(scores).history_ == whole.history_


@given(seed=st.integers(0, 1000))
def test_smoothed_p_values_are_those_of_the_reference(seed):
    scores = np.round(2 * np.random.default_rng(seed).standard_normal(25))
    u = np.random.default_rng(seed).random(25)
    expected = [stream_reference.smoothed_p_value(scores[:i], scores[i], u[i]) for i in range(25)]
    np.testing.assert_allclose(smoothed_p_values(scores, random_state=seed), expected)


def test_a_stream_of_cases_is_watched_by_their_scores():
    P, y, _ = draw_cases(np.random.default_rng(0), 900, 3)
    y[600:] = P[600:].argmin(axis=1)
    clf, monitor = OnlineConformalClassifier().conformalize(P[:200], y[:200]), DriftMonitor(random_state=0)
    for i in range(200, 900, 50):
        rows = slice(i, i + 50)
        monitor.update_scores(clf.conformity_scores(P[rows], y[rows]))
        clf.partial_conformalize(P[rows], y[rows])
    assert 400 < monitor.alarm_time_ < 500
    np.testing.assert_array_equal(clf.conformity_scores(P, y), P[np.arange(900), y])


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
