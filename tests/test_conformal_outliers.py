"""Outliers: p-values, false alarms and false discoveries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from cbdc import metrics as m
from cbdc.conformal import ConformalOutlierDetector, benjamini_hochberg
from cbdc.errors import ParameterError

seeds = st.integers(0, 2**32 - 1)
SCORERS = ["knn", "mahalanobis", IsolationForest(n_estimators=10, random_state=0)]
every_scorer = pytest.mark.parametrize("scorer", SCORERS, ids=["knn", "mahalanobis", "forest"])


@parametrize_with_checks([ConformalOutlierDetector(), ConformalOutlierDetector("mahalanobis", delta=0.1)])
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


def calibrated(rng, scorer="knn", n=200, d=4, **options):
    E = rng.standard_normal((100 + n, d))
    return ConformalOutlierDetector(scorer, **options).fit(E[:100]).conformalize(E[100:])


@settings(max_examples=10)
@every_scorer
@given(seed=seeds)
def test_leave_one_out_p_values_are_all_ranks(scorer, seed):
    """Of n + 1 inliers, each in turn the new one, the p-values are 1 / (n + 1), ..., 1."""
    rng = np.random.default_rng(seed)
    train, E = rng.standard_normal((30, 3)), rng.standard_normal((12, 3))
    detector = ConformalOutlierDetector(scorer).fit(train)
    found = []
    for i in range(12):
        others = ConformalOutlierDetector(scorer).fit(train).conformalize(np.delete(E, i, axis=0))
        found.append(others.p_values(E[[i]])[0])
    assert detector.p_values(E).shape == (12,)
    found = np.sort(found)
    assert (found >= np.arange(1, 13) / 12 - 1e-9).all()
    if scorer in ("knn", "mahalanobis"):  # trees tie
        np.testing.assert_allclose(found, np.arange(1, 13) / 12)


@every_scorer
def test_false_alarms_lie_in_their_band(scorer):
    rng = np.random.default_rng(0)
    detector = calibrated(rng, scorer, n=2000, alpha=0.1)
    alarms = (detector.predict(rng.standard_normal((2000, 4))) == -1).mean()
    low, high = m.coverage_band(2000, 2000, 0.9, probability=1 - 1e-5)
    assert 1 - alarms >= low
    if scorer in ("knn", "mahalanobis"):
        assert 1 - alarms <= high
    assert (detector.predict(np.full((5, 4), 9.0)) == -1).all()


def test_calibration_conditional_p_values_fall_short_with_probability_delta():
    rng = np.random.default_rng(0)
    fresh, runs, delta, short = rng.standard_normal((20_000, 1)), 500, 0.1, 0
    for _ in range(runs):
        detector = ConformalOutlierDetector("mahalanobis", delta=delta, alpha=0.1).fit(rng.standard_normal((40, 1)))
        short += (detector.conformalize(rng.standard_normal((100, 1))).predict(fresh) == -1).mean() > 0.1
    assert m.clopper_pearson(short, runs, 1 - 1e-5)[0] <= delta
    assert short > 0


@given(seed=seeds, fdr=st.sampled_from([0.05, 0.1, 0.5]))
def test_discoveries_are_those_of_the_definition(seed, fdr):
    p = np.round(np.random.default_rng(seed).random(30) ** 3, 2)
    ordered = sorted(p)
    most = max([k for k in range(1, 31) if ordered[k - 1] <= fdr * k / 30 + 1e-12], default=0)
    np.testing.assert_array_equal(benjamini_hochberg(p, fdr), p <= (ordered[most - 1] if most else -1))


def test_false_discoveries_are_controlled():
    """30 inliers and 10 outliers in each of 400 batches, new calibrations for each."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        detector = calibrated(rng, "mahalanobis", n=300, d=2)
        E = np.vstack([rng.standard_normal((30, 2)), rng.standard_normal((10, 2)) + 4])
        found = detector.discoveries(E, fdr=0.2)
        shares.append(found[:30].sum() / max(found.sum(), 1))
    error = np.std(shares) / 20
    assert np.mean(shares) <= 0.2 * 0.75 + 4 * error
    assert np.mean(shares) > 0.05


def test_a_batch_equals_its_cases_one_by_one():
    rng = np.random.default_rng(0)
    detector = calibrated(rng)
    E = rng.standard_normal((20, 4))
    np.testing.assert_array_equal([detector.p_values(E[[i]])[0] for i in range(20)], detector.p_values(E))


def test_units_count_once():
    rng = np.random.default_rng(0)
    E = rng.standard_normal((200, 3))
    detector = (
        ConformalOutlierDetector().fit(E[:100]).conformalize(np.tile(E[100:], (4, 1)), units=list(range(100)) * 4)
    )
    np.testing.assert_allclose(detector.calibration_scores_, calibrated_scores(E))
    assert "100 calibration cases" in str(detector.certificate())


def calibrated_scores(E):
    return ConformalOutlierDetector().fit(E[:100]).conformalize(E[100:]).calibration_scores_


def test_another_calibration_replaces_the_first():
    rng = np.random.default_rng(0)
    E = rng.standard_normal((300, 3))
    once = ConformalOutlierDetector().fit(E[:100]).conformalize(E[200:])
    twice = ConformalOutlierDetector().fit(E[:100]).conformalize(E[100:200]).conformalize(E[200:])
    np.testing.assert_array_equal(twice.calibration_scores_, once.calibration_scores_)


def test_nothing_of_the_calibration_cases_is_kept():
    rng = np.random.default_rng(0)
    detector = calibrated(rng, "mahalanobis", n=150)
    assert detector._learn_whole is None
    assert len(detector.calibration_scores_) == 150


class Undefined(BaseEstimator):
    """Scores some cases NaN, some infinitely usual, and the rest by their first number."""

    def fit(self, X, y=None):
        return self

    def score_samples(self, X):
        return np.select([X[:, 0] > 3, X[:, 0] < -1], [np.nan, np.inf], X[:, 0])


def test_a_case_that_the_scorer_cannot_score_is_refused_and_an_infinite_score_is_one():
    E = np.linspace(-3, 2.9, 60)[:, None]
    with pytest.raises(ParameterError, match="NaN for case"):
        ConformalOutlierDetector(Undefined()).fit(np.vstack([E, E + 3]))
    detector = ConformalOutlierDetector(Undefined()).fit(E).conformalize(E)
    with pytest.raises(ParameterError, match="NaN for case 1"):
        detector.p_values([[0.0], [4.0]])
    with pytest.raises(ParameterError, match="NaN for case 60"):
        detector.conformalize(np.vstack([E, [[9.0]]]))
    assert detector.p_values([[-2.0]])[0] == 1
    assert detector.p_values([[-0.9]])[0] < 0.1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d, E: ConformalOutlierDetector("svm").fit(E), ValueError, "scorer"),
        (lambda d, E: ConformalOutlierDetector(alpha=1.0).fit(E), ValueError, "alpha"),
        (lambda d, E: ConformalOutlierDetector().p_values(E), NotFittedError, "not fitted"),
        (lambda d, E: d.p_values(E * np.nan), ValueError, "NaN"),
        (lambda d, E: d.p_values(E[:, :2]), ValueError, "features"),
        (lambda d, E: d.discoveries(E, fdr=0), ParameterError, "fdr"),
        (lambda d, E: benjamini_hochberg([2.0]), ParameterError, "between 0 and 1"),
    ],
)
def test_bad_inputs_are_named(call, error, message):
    rng = np.random.default_rng(0)
    with pytest.raises(error, match=message):
        call(calibrated(rng), rng.standard_normal((9, 4)))
