"""What is tuned apart from calibration: numbers of a score, clusters of classes, lowest ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from test_conformal_properties import draw_cases

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal.scores import check_score_params, score_all, score_labels, sets_from, truncated
from cbdc.conformal.tuning import cluster_classes, rank_limits, tune_score
from cbdc.errors import ParameterError

seeds = st.integers(0, 2**32 - 1)


def sharp_cases(rng, n, n_classes):
    """Confident, and wrong more often than it says: APS sets are then very large at times."""
    P, y, _ = draw_cases(rng, n, n_classes, scale=4.0)
    wrong = rng.random(n) < 0.15
    return P, np.where(wrong, rng.integers(0, n_classes, n), y)


@pytest.mark.parametrize("score", ["raps", "saps"])
def test_tuned_numbers_give_smaller_sets_and_keep_the_coverage(score):
    rng = np.random.default_rng(0)
    P, y = sharp_cases(rng, 6000, 20)
    tuned = ConformalClassifier(score=score).tune(P[:1000], y[:1000]).conformalize(P[1000:3000], y[1000:3000])
    worst = {"penalty": 1.0, "k_reg": 0} if score == "raps" else {"weight": 0.001}
    other = ConformalClassifier(score=score, score_params=worst).conformalize(P[1000:3000], y[1000:3000])
    sets = tuned.predict_set(P[3000:])
    assert m.mean_set_size(sets) <= m.mean_set_size(other.predict_set(P[3000:]))
    low, high = m.coverage_band(2000, 3000, 0.9, probability=1 - 1e-5)
    assert low <= m.coverage(sets, y[3000:]) <= high
    assert all(isinstance(value, int | float) for value in tuned.score_params_.values())
    assert len(tuned.score_params_) <= 2


def test_k_reg_is_the_rank_that_covers_the_level():
    P = np.tile([0.5, 0.3, 0.2], (100, 1))
    y = np.repeat([0, 1, 2], [50, 45, 5])  # 91 of 101 cases take rank 2
    assert tune_score("raps", P, y, confidence_level=0.9, log=False, seed=None)["k_reg"] == 2


@settings(max_examples=20)
@given(seed=seeds, n_classes=st.integers(2, 8))
def test_clusters_do_not_depend_on_the_numbers_of_the_classes(seed, n_classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, 300)
    scores = rng.random(300) + (labels % 2)
    order = rng.permutation(n_classes)
    one = cluster_classes(scores, labels, n_classes, confidence_level=0.8, random_state=0)
    other = cluster_classes(scores, order[labels], n_classes, confidence_level=0.8, random_state=0)
    for a in range(n_classes):
        np.testing.assert_array_equal(one[a] == one, (other[order[a]] == other)[order])
    assert set(one) == set(range(one.max() + 1))
    warped = cluster_classes(np.exp(5 * scores), labels, n_classes, confidence_level=0.8, random_state=0)
    np.testing.assert_array_equal(warped, one)  # only the order of scores counts


def test_rare_classes_are_pooled_apart():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), [200, 200, 200, 200, 4, 2])
    clusters = cluster_classes(rng.random(len(labels)), labels, 6, confidence_level=0.9, n_clusters=2)
    assert clusters[4] == clusters[5]
    assert clusters[4] not in clusters[:4]


@settings(max_examples=20)
@given(seed=seeds)
def test_no_class_loses_more_than_half_of_alpha_to_its_limit(seed):
    P, y, _ = draw_cases(np.random.default_rng(seed), 400, 6)
    limits = rank_limits(P, y, 6, confidence_level=0.8, name="lac", log=False, seed=None, params={})
    for k in range(6):
        own = y == k
        lost = (np.sum(P[:, [k]] < P, axis=1) + 1 > limits[k])[own]
        assert lost.sum() <= 0.1 * (own.sum() + 1)


def test_no_set_holds_a_label_ranked_below_its_limit():
    """But where the class is in every set, since more of its calibration cases than alpha rank below."""
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 30_000, 30, scale=3.0)
    clf = ConformalClassifier(condition_on="class", score="aps", rank_calibrated=True)
    clf.tune(P[:10_000], y[:10_000]).conformalize(P[10_000:20_000], y[10_000:20_000])
    sets = clf.predict_set(P[20_000:])
    ranks = 1 + np.argsort(np.argsort(-P[20_000:], axis=1), axis=1)
    finite = np.isfinite(clf.thresholds()[0])
    assert finite.sum() > 20
    assert not (sets & (ranks > clf.rank_limits_))[:, finite].any()
    assert sets[:, ~finite].all()
    assert (clf.rank_limits_ < 30).sum() > 20


@given(seed=seeds)
def test_truncated_scores_of_one_label_are_those_of_all(seed):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 30, 4)
    P[::3] = 0.25
    limits = rng.integers(1, 5, 4)
    every = truncated(score_all("lac", P), P, None, limits)
    one = truncated(score_labels("lac", P, y), P, y, limits)
    np.testing.assert_array_equal(one, every[np.arange(30), y])


def test_tuning_ends_with_the_next_fit_and_serves_its_own_score():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 3))
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
    clf = ConformalClassifier(LogisticRegression(), score="raps", condition_on="cluster").fit(X[:200], y[:200])
    clf.tune(X[200:400], y[200:400])
    tuned = clf.conformalize(X[400:], y[400:]).score_params_
    assert tuned == clf.tuned_["score_params"]
    clf.set_params(score="saps").conformalize(X[400:], y[400:])
    assert clf.score_params_ == {"weight": 0.2}
    clf.fit(X[:200], y[:200])
    with pytest.raises(NotFittedError, match="tune"):
        clf.conformalize(X[400:], y[400:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to choose"),
        ({"score": "raps", "score_params": {"penalty": 0.1}}, "nothing to choose"),
        ({"rank_calibrated": True}, "condition_on='class'"),
    ],
)
def test_tuning_that_makes_no_sense_is_refused(options, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 100, 3)
    with pytest.raises(ParameterError, match=message):
        ConformalClassifier(**options).tune(P, y)


@pytest.mark.parametrize("options", [{"condition_on": "cluster"}, {"condition_on": "class", "rank_calibrated": True}])
def test_tuning_comes_before_calibrating(options):
    P, y, _ = draw_cases(np.random.default_rng(0), 100, 3)
    with pytest.raises(NotFittedError, match="tune"):
        ConformalClassifier(**options).conformalize(P, y)


@pytest.mark.parametrize(
    ("score", "params", "message"),
    [
        ("lac", {"penalty": 1}, "takes none"),
        ("raps", {"weight": 1}, "takes penalty, k_reg"),
        ("raps", {"penalty": -1}, "0 or more"),
        ("raps", {"penalty": True}, "0 or more"),
        ("raps", {"k_reg": 1.5}, "whole number"),
        ("raps", {"penalty": float("nan")}, "0 or more"),
        ("saps", {"weight": 0}, "more than 0"),
        ("saps", {"weight": "0.2"}, "more than 0"),
    ],
)
def test_numbers_of_a_score_are_checked(score, params, message):
    with pytest.raises(ParameterError, match=message):
        check_score_params(score, params)
    with pytest.raises(ParameterError, match=message):
        ConformalClassifier(score=score, score_params=params).conformalize(np.full((9, 2), 0.5), np.zeros(9, dtype=int))


def test_a_penalty_of_0_is_aps():
    P, y, _ = draw_cases(np.random.default_rng(0), 300, 5)
    raps = ConformalClassifier(score="raps", score_params={"penalty": 0}).conformalize(P[:200], y[:200])
    aps = ConformalClassifier(score="aps").conformalize(P[:200], y[:200])
    np.testing.assert_array_equal(raps.predict_set(P[200:]), aps.predict_set(P[200:]))


def test_saps_without_randomisation_covers():
    """A known library covers .269 at .90."""
    P, y = sharp_cases(np.random.default_rng(0), 4000, 10)
    sets = ConformalClassifier(score="saps", randomized=False).conformalize(P[:2000], y[:2000]).predict_set(P[2000:])
    low, high = m.coverage_band(2000, 2000, 0.9, probability=1 - 1e-5)
    assert low <= m.coverage(sets, y[2000:]) <= high


@pytest.mark.parametrize("score", ["raps", "saps", "margin", "rank"])
@pytest.mark.parametrize("scale", [12, 20])
def test_sharp_softmax_is_covered_by_every_score(score, scale):
    """Probabilities of 1e-30 at the true label: at .99 too, without a set of all labels."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((8000, 7))
    y = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)).cumsum(axis=1) < rng.random((8000, 1))
    y = y.sum(axis=1)
    P = np.exp(scale * z - scale * z.max(axis=1, keepdims=True))
    P /= P.sum(axis=1, keepdims=True)
    clf = ConformalClassifier(score=score).conformalize(P[:4000], y[:4000])
    for level in (0.9, 0.99):
        low, high = m.coverage_band(4000, 4000, level, probability=1 - 1e-5)
        assert low <= m.coverage(clf.predict_set(P[4000:], level), y[4000:]) <= high


@given(seed=seeds, score=st.sampled_from(["raps", "saps", "rank", "margin"]))
def test_limits_at_a_score_take_it_in(seed, score):
    rng = np.random.default_rng(seed)
    P = np.round(rng.dirichlet(np.ones(5), 20), 2)
    P /= P.sum(axis=1, keepdims=True)
    every = score_all(score, P)
    for k in range(5):
        np.testing.assert_array_equal(sets_from(score, P, every[:, [k]]), every >= every[:, [k]])
