"""Coverage in overlapping groups."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformal_properties import draw_cases

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import ConditionalConformalClassifier
from cbdc.errors import CalibrationSizeWarning, ParameterError

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import conditional_reference

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=6)
@given(seed=seeds, level=st.sampled_from([0.5, 0.8, 0.9]))
def test_sets_equal_the_reference(seed, level):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 40, 3)
    groups = rng.random((40, 2)) < [0.5, 0.4]
    clf = ConditionalConformalClassifier(confidence_level=level).conformalize(P[:34], y[:34], groups[:34])
    member = np.hstack([np.ones((40, 1)), groups])
    scores = -P[np.arange(34), y[:34]]
    for row, who, found in zip(P[34:], member[34:], clf.predict_set(P[34:], groups[34:])):
        for k in range(3):
            tried = [
                conditional_reference.in_set(scores, member[:34], -row[k] + hair, who, level) for hair in (-2e-4, 1e-4)
            ]
            if tried[0] == tried[1]:
                assert found[k] == tried[0]


@settings(max_examples=15)
@given(seed=seeds, level=st.sampled_from([0.5, 0.8, 0.9]))
def test_disjoint_groups_are_mondrian(seed, level):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 90, 3)
    names = rng.choice(["a", "b", "c"], 90)
    clf = ConditionalConformalClassifier(confidence_level=level)
    clf.conformalize(P[:70], y[:70], pd.DataFrame({"group": names[:70]}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        mondrian = ConformalClassifier(condition_on="group", confidence_level=level)
        mondrian.conformalize(P[:70], y[:70], groups=names[:70])
    expected = mondrian.predict_set(P[70:], groups=names[70:])
    np.testing.assert_array_equal(clf.predict_set(P[70:], pd.DataFrame({"group": names[70:]})), expected)


def test_every_group_is_covered_at_once():
    """Difficulty depends on two attributes; one new case for each of many calibrations, so that counts are binomial."""
    rng = np.random.default_rng(0)
    covered, marginal, members = np.zeros(4), np.zeros(4), np.zeros(4)
    for _ in range(1200):
        sex, old = rng.integers(0, 2, (2, 61))
        scores = rng.exponential(1 + 2 * sex + 3 * old)
        P = np.stack([1 - np.exp(-scores), np.exp(-scores)], axis=1)  # nonconformity 1 - p of class 1
        groups = np.stack([sex == 0, sex == 1, old == 0, old == 1], axis=1)
        clf = ConditionalConformalClassifier(confidence_level=0.8)
        clf.conformalize(P[:60], np.ones(60, dtype=int), groups[:60])
        pattern = np.append(1.0, groups[60])
        inside = clf._dual(pattern, -P[60, 1], 0.8) < 0.8 - 1e-9  # one programme, where predict_set takes sixty
        covered += inside * groups[60]
        plain = np.sort(-P[:60, 1])[int(np.ceil(61 * 0.8)) - 1]
        marginal += (-P[60, 1] <= plain) * groups[60]
        members += groups[60]
    for k in range(4):
        assert m.clopper_pearson(covered[k], members[k], 1 - 1e-5)[1] >= 0.8
        assert m.clopper_pearson(covered[k], members[k], 1 - 1e-5)[0] <= 0.87
    assert m.clopper_pearson(marginal[3], members[3], 1 - 1e-5)[1] < 0.8  # the old are not covered by one threshold


def test_the_membership_check_and_the_sets_agree():
    rng = np.random.default_rng(1)
    P, y, _ = draw_cases(rng, 80, 3)
    groups = rng.random((80, 2)) < 0.5
    clf = ConditionalConformalClassifier().conformalize(P[:60], y[:60], groups[:60])
    sets = clf.predict_set(P[60:], groups[60:])
    for i in range(20):
        np.testing.assert_array_equal(clf.predict_set(P[[60 + i]], groups[[60 + i]])[0], sets[i])
        for k in range(3):
            dual = clf._dual(np.append(1.0, groups[60 + i]), -P[60 + i, k], 0.9)
            assert sets[i, k] == (dual < 0.9 - 1e-9)


@pytest.mark.parametrize("score", ["aps", "raps", "margin"])
def test_other_scores_and_permutations(score):
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 150, 4)
    people = pd.DataFrame({"sex": rng.choice(["f", "m"], 150), "age": rng.choice(["a", "b", "c"], 150)})
    order = rng.permutation(4)
    one = ConditionalConformalClassifier(score=score).conformalize(P[:120], y[:120], people[:120])
    other = ConditionalConformalClassifier(score=score)
    other.conformalize(P[:120][:, order], np.argsort(order)[y[:120]], people[:120])
    sets = one.predict_set(P[120:], people[120:])
    np.testing.assert_array_equal(other.predict_set(P[120:][:, order], people[120:]), sets[:, order])
    assert "sex=f" in str(one.certificate())


def test_a_group_with_too_few_cases_has_full_sets():
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 60, 3)
    groups = np.zeros((60, 1), dtype=bool)
    groups[:3] = True
    clf = ConditionalConformalClassifier().conformalize(P, y, groups)
    assert clf.predict_set(P[:5], np.ones((5, 1), dtype=bool)).all()
    assert not clf.predict_set(P[:5], np.zeros((5, 1), dtype=bool)).all()


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        (np.ones(40), None, "expected bool"),
        (np.full((40, 1), 2), None, "expected bool"),
        (np.ones((39, 1)), None, "expected bool"),
        (np.ones((40, 1)), np.ones((40, 2)), "2 columns"),
        (pd.DataFrame({"sex": ["f"] * 40}), pd.DataFrame({"sex": ["m"] * 40}), "not calibrated"),
        (pd.DataFrame({"sex": ["f"] * 40}), pd.DataFrame({"age": ["f"] * 40}), "columns"),
        (pd.DataFrame({"sex": ["f"] * 39 + [None]}), None, "case 39"),
    ],
)
def test_bad_groups_are_named(given, asked, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 40, 2)
    with pytest.raises(ParameterError, match=message):
        ConditionalConformalClassifier().conformalize(P, y, given).predict_set(P, asked)


def test_thresholds_are_mapies():
    pytest.importorskip("cvxpy")
    from mapie.conditional_conformal_prediction import ConditionalSplitConformalClassifier
    from test_against_theory import Given

    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 90, 3)
    groups = (rng.random((90, 2)) < 0.5).astype(float)
    X = np.hstack([P, np.ones((90, 1)), groups])

    class First(Given):
        n_features_in_ = 6

        def predict_proba(self, X):
            return X[:, :3]

        def predict(self, X):
            return X[:, :3].argmax(axis=1)

    mapie = ConditionalSplitConformalClassifier(lambda X: X[:, 3:], First(3), confidence_level=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = mapie.conformalize(X[:60], y[:60]).predict_set(X[60:])[1][:, :, 0]
    clf = ConditionalConformalClassifier(confidence_level=0.8).conformalize(P[:60], y[:60], groups[:60])
    np.testing.assert_array_equal(clf.predict_set(P[60:], groups[60:]), expected)
