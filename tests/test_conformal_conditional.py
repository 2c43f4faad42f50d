"""Coverage in overlapping groups."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.tree import DecisionTreeClassifier
from test_conformal_properties import OPTIONS, draw_cases

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import ConditionalConformalClassifier
from cbdc.conformal._scale import from_scale, to_scale
from cbdc.errors import CalibrationSizeWarning, ParameterError

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import conditional_reference

seeds = st.integers(0, 2**32 - 1)
every_score = pytest.mark.parametrize("options", OPTIONS)


def on_scale(p):
    """Where a probability stands on the scale of scores."""
    return -np.log1p(-np.log(p))


@settings(max_examples=6)
@given(seed=seeds, level=st.sampled_from([0.5, 0.8, 0.9]), sharp=st.sampled_from([1, 30]))
def test_sets_equal_the_reference(seed, level, sharp):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 40, 3, scale=2.0 * sharp)
    groups = rng.random((40, 2)) < [0.5, 0.4]
    clf = ConditionalConformalClassifier(confidence_level=level).conformalize(P[:34], y[:34], groups[:34])
    member = np.hstack([np.ones((40, 1)), groups])
    scores = -on_scale(P[np.arange(34), y[:34]])
    for row, who, found in zip(P[34:], member[34:], clf.predict_set(P[34:], groups[34:])):
        for k in range(3):
            tried = [
                conditional_reference.in_set(scores, member[:34], -on_scale(row[k]) + hair, who, level)
                for hair in (-2e-4, 1e-4)
            ]
            if tried[0] == tried[1]:
                assert found[k] == tried[0]


# --- scores that tie, and scores beyond the tolerance of a programme

KINDS = ["smooth", "sharp", "one-hot", "votes"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def cases_of(kind, rng, n, n_classes):
    """Probabilities that a wrong threshold shows on, and labels that are not what they say."""
    z = rng.standard_normal((n, n_classes))
    y = (softmax(z, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    P = softmax(20 * z if kind == "sharp" else z, axis=1)
    if kind == "one-hot":
        P = np.eye(n_classes)[P.argmax(axis=1)]
    if kind == "votes":
        P = rng.multinomial(30, P) / 30
    return P, np.minimum(y, n_classes - 1)


@settings(max_examples=2)
@every_kind
@every_score
@given(seed=seeds, level=st.sampled_from([0.5, 0.8, 0.9]))
def test_leaving_each_case_out_covers_every_group(options, kind, seed, level):
    """Of n + 1 cases, each in turn the new one, at least the level is covered in each group: exactly, ties or not.

    Without ties at most as many more as there are groups, the cases that the fit goes through.
    """
    rng = np.random.default_rng(seed)
    P, y = cases_of(kind, rng, 24, 4)
    groups = rng.random((24, 3)) < 0.5
    covered = np.zeros(24, dtype=bool)
    for i in range(24):
        others = np.arange(24) != i
        clf = ConditionalConformalClassifier(confidence_level=level, **options)
        clf.conformalize(P[others], y[others], groups[others])
        covered[i] = clf.predict_set(P[[i]], groups[[i]])[0, y[i]]
    for member in (np.ones(24, dtype=bool), *groups.T):
        assert covered[member].sum() >= level * member.sum() - 1e-9
        if kind == "smooth" and options["score"] == "lac":  # sharp ones tie near 1
            assert covered[member].sum() <= level * member.sum() + 4


@every_kind
@every_score
def test_coverage_over_calibration_draws(options, kind):
    """Disjoint groups, whose coverage has an exact law: the mean over calibrations lies in its band."""
    rng = np.random.default_rng(0)
    calibration, test, covered = [], [], 0
    for _ in range(15):
        P, y = cases_of(kind, rng, 460, 7)
        group = rng.random((460, 1)) < 0.5
        clf = ConditionalConformalClassifier(**options).conformalize(P[:160], y[:160], group[:160])
        covered += clf.predict_set(P[160:], group[160:])[np.arange(300), y[160:]].sum()
        calibration += [n := int(group[:160].sum()), 160 - n]
        test += [n := int(group[160:].sum()), 300 - n]
    low, high = m.coverage_band(calibration, test, 0.9, probability=1 - 1e-6)
    assert low <= covered / sum(test)
    if kind in ("smooth", "sharp") and options["score"] in ("lac", "rank"):
        assert covered / sum(test) <= high


def test_labels_tied_at_the_threshold_are_in():
    P, y, one = np.array([[0.6, 0.4]] * 20), np.repeat([0, 1], [15, 5]), np.ones((20, 1), dtype=bool)
    clf = ConditionalConformalClassifier(score="topk").conformalize(P, y, one)
    assert clf.predict_set(P[:1], one[:1]).all()


@pytest.mark.parametrize("score", ["lac", "margin", "aps"])
def test_logarithms_of_zero_are_scores_like_others(score):
    """A tree says minus infinity of a class that a leaf has not seen, and some are the label."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3000, 4))
    y = (X[:, 0] + 0.6 * rng.standard_normal(3000) > 0).astype(int) + (X[:, 1] > 0.5)
    tree = DecisionTreeClassifier(random_state=0).fit(X[:1000], y[:1000])
    groups = rng.random((3000, 2)) < 0.5
    clf = ConditionalConformalClassifier(tree, prefit=True, score=score, confidence_level=0.95)
    clf.conformalize(X[1000:1500], y[1000:1500], groups[1000:1500])
    sets = clf.predict_set(X[1500:], groups[1500:])
    assert (tree.predict_proba(X)[np.arange(3000), y] == 0).mean() > 0.05
    assert m.coverage(sets, y[1500:]) >= m.coverage_band(500, 1500, 0.95, probability=1 - 1e-6)[0]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", ["lac", "rank", "margin"])
def test_the_scale_rises_and_is_undone(name, log):
    logs = np.array([-1e5, -700.0, -690.0, -3.0, -1e-3, -1e-6, 0.0])
    scores = np.exp(logs[1:]) if name == "lac" and not log else logs
    scaled = to_scale(scores, name, log)
    assert (np.diff(scaled) > 0).all()
    np.testing.assert_allclose([from_scale(t, name, log) for t in scaled], scores, rtol=1e-12)
    ends = [0.0, 1.0] if name == "lac" and not log else [-np.inf, np.inf]
    assert np.isfinite(to_scale(np.array(ends), name, log)).all()
    assert from_scale(-np.inf, name, log) == -np.inf


def test_a_programme_that_is_not_solved_is_an_error(monkeypatch):
    P, y, _ = draw_cases(np.random.default_rng(0), 40, 2)
    clf = ConditionalConformalClassifier().conformalize(P, y, np.ones((40, 1)))
    failed = SimpleNamespace(status=4, message="numerical difficulties")
    monkeypatch.setattr("cbdc.conformal.conditional.linprog", lambda *args, **options: failed)
    with pytest.raises(ParameterError, match="numerical difficulties"):
        clf.predict_set(P, np.ones((40, 1)))


# --- groups


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
    for _ in range(800):
        sex, old = rng.integers(0, 2, (2, 61))
        scores = rng.exponential(1 + 2 * sex + 3 * old)
        P = np.stack([1 - np.exp(-scores), np.exp(-scores)], axis=1)  # nonconformity 1 - p of class 1
        groups = np.stack([sex == 0, sex == 1, old == 0, old == 1], axis=1)
        clf = ConditionalConformalClassifier(confidence_level=0.8)
        clf.conformalize(P[:60], np.ones(60, dtype=int), groups[:60])
        inside = clf.predict_set(P[60:], groups[60:])[0, 1]
        covered += inside * groups[60]
        plain = np.sort(-P[:60, 1])[int(np.ceil(61 * 0.8)) - 1]
        marginal += (-P[60, 1] <= plain) * groups[60]
        members += groups[60]
    for k in range(4):
        assert m.clopper_pearson(covered[k], members[k], 1 - 1e-5)[1] >= 0.8
        assert m.clopper_pearson(covered[k], members[k], 1 - 1e-5)[0] <= 0.87
    assert m.clopper_pearson(marginal[3], members[3], 1 - 1e-5)[1] < 0.8  # the old are not covered by one threshold


def test_the_certificate_names_the_groups():
    P, y, _ = draw_cases(np.random.default_rng(0), 60, 3)
    clf = ConditionalConformalClassifier().conformalize(P, y, pd.DataFrame({"sex": ["f"] * 20 + ["m"] * 40}))
    assert "sex=f 20, sex=m 40, all 60" in str(clf.certificate())


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
    Q = np.exp(-np.expm1(2 - P))  # which stand on the scale where these do; a fourth class has the rest
    Q = np.hstack([Q, 1 - Q.sum(axis=1, keepdims=True)])
    np.testing.assert_allclose(on_scale(Q[:, :3]), P - 2)
    clf = ConditionalConformalClassifier(confidence_level=0.8).conformalize(Q[:60], y[:60], groups[:60])
    np.testing.assert_array_equal(clf.predict_set(Q[60:], groups[60:])[:, :3], expected)
