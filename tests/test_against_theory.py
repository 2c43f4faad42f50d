"""The library against the oracles of `theory/`, which share no code with it."""

import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import strategies
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import content_uniform
from cbdc.conformal.scores import score_all

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import reference

LEVELS = (Fraction(1, 2), Fraction(2, 3), Fraction(4, 5), Fraction(9, 10))
pytestmark = pytest.mark.filterwarnings("ignore::cbdc.errors.CalibrationSizeWarning")


def conditions_of(condition, y, groups, n_classes):
    """Of calibration cases, and of test cases for each label tried."""
    by_class, by_group = condition in ("class", "class_and_group"), condition in ("group", "class_and_group")
    calibration = [(c if by_class else None, g if by_group else None) for c, g in zip(y, groups)]
    test = [[(k if by_class else None, g if by_group else None) for k in range(n_classes)] for g in groups]
    return calibration, test


@settings(max_examples=30)
@pytest.mark.parametrize("condition", [None, "class", "group", "class_and_group"])
@pytest.mark.parametrize("score", ["lac", "aps", "aps, randomised"])
@given(case=strategies.labelled_probabilities(min_cases=12, max_cases=40, max_classes=4), level=st.sampled_from(LEVELS))
def test_sets_equal_the_reference(condition, score, case, level):
    P, y = case
    groups = np.arange(len(y)) % 2
    n = len(y) - 4
    calibration, test = conditions_of(condition, y, groups, P.shape[1])
    randomized = score == "aps, randomised"
    clf = ConformalClassifier(score=score[:3], condition_on=condition, randomized=randomized, random_state=None)
    clf.conformalize(P[:n], y[:n], groups=groups[:n] if condition in ("group", "class_and_group") else None)
    u = content_uniform(np.sort(P, axis=1), 0) if randomized else None
    # A hair of relaxation stands for ties that rounding breaks; where a hair more changes the set, nothing is compared.
    expected = [
        reference.prediction_sets(
            P[:n], y[:n], P[n:], level, shifted(score, hair), calibration[:n], test[n:],
            *(() if u is None else (u[:n], u[n:])),
        )
        for hair in (1e-12, 1e-6)
    ]  # fmt: skip
    assume((expected[0] == expected[1]).all())
    np.testing.assert_array_equal(clf.predict_set(P[n:], float(level), groups=groups[n:]), expected[0])


def shifted(score, hair):
    """Scores rounded up to the grid of a hair, so that a tie is a tie in the oracle too."""
    exact = reference.lac_score if score == "lac" else reference.aps_score
    return lambda *case: math.ceil(exact(*case) / hair - 0.5)


@given(
    scores=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    new=st.integers(0, 12),
    level=st.sampled_from(LEVELS),
)
def test_p_value_and_threshold_agree_in_the_reference_and_here(scores, new, level):
    """Twelfths as probabilities of the first of two classes: many ties, all exact."""
    P = np.array([[1 - s / 16, s / 16] for s in scores])
    clf = ConformalClassifier().conformalize(P, np.zeros(len(scores), dtype=int))
    found = clf.p_values(np.array([[1 - new / 16, new / 16]]))[0, 0]
    assert found == reference.p_value(scores, new)
    inside = new <= reference.threshold(scores, level)
    assert inside == (Fraction(found).limit_denominator(100) > 1 - level)
    assert inside == clf.predict_set(np.array([[1 - new / 16, new / 16]]), float(level))[0, 0]


@given(n=st.integers(0, 200), level=st.fractions("1/100", "99/100", max_denominator=100))
def test_rank_equals_the_least_that_suffices(n, level):
    assert m.conformal_rank(n, float(level)) == reference.rank_needed(n, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "n_test"), [(1, 4), (3, 5), (6, 6), (9, 4), (10, 5)])
@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_band_equals_the_enumeration_of_all_orders(n, n_test, level, probability):
    law = reference.covered_distribution(n, n_test, reference.rank_needed(n, level))
    low, high = reference.central_band(law, Fraction(probability).limit_denominator(100))
    assert m.coverage_band(n, n_test, float(level), probability=probability) == (low / n_test, high / n_test)


def test_band_of_classes_is_the_convolution():
    n, n_test, level = (4, 9, 2), (3, 4, 2), Fraction(4, 5)
    laws = [reference.covered_distribution(a, b, reference.rank_needed(a, level)) for a, b in zip(n, n_test)]
    low, high = reference.central_band(reference.convolution(*laws), Fraction(9, 10))
    assert m.coverage_band(n, n_test, 0.8, probability=0.9) == (low / 9, high / 9)


@given(case=strategies.labelled_probabilities(max_cases=30, ties=False), n_bins=st.integers(1, 12))
def test_calibration_error_equals_the_reference(case, n_bins):
    P, y = case
    expected = reference.expected_calibration_error(P, y, n_bins)
    assert math.isclose(m.expected_calibration_error(P, y, n_bins), expected, abs_tol=1e-9)


@given(
    case=strategies.labelled_probabilities(max_cases=6), confidence=st.lists(st.integers(0, 3), min_size=6, max_size=6)
)
def test_area_under_risk_coverage_equals_the_reference(case, confidence):
    P, y = case
    confidence = confidence[: len(y)]
    expected = reference.area_under_risk_coverage(confidence, P.argmax(axis=1) != y)
    assert math.isclose(m.aurc(P, y, confidence=confidence), expected, abs_tol=1e-9)


# --- MAPIE, an oracle of another house


class Given(ClassifierMixin, BaseEstimator):
    """Hands back the probabilities that it is given."""

    def __init__(self, n_classes=2):
        self.n_classes = n_classes

    def __sklearn_is_fitted__(self):
        return True

    @property
    def classes_(self):
        return np.arange(self.n_classes)

    n_features_in_ = property(lambda self: self.n_classes)

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return X

    def predict(self, X):
        return X.argmax(axis=1)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=20)
@given(case=strategies.labelled_probabilities(min_cases=60, max_cases=200), level=st.sampled_from([0.5, 0.8, 0.9]))
def test_lac_sets_equal_mapies(case, level):
    classification = pytest.importorskip("mapie.classification")
    P, y = case
    n = len(y) // 2
    mapie = classification.SplitConformalClassifier(Given(P.shape[1]), confidence_level=level, prefit=True)
    expected = mapie.conformalize(P[:n], y[:n]).predict_set(P[n:])[1][:, :, 0]
    ours = ConformalClassifier(confidence_level=level).conformalize(P[:n], y[:n]).predict_set(P[n:])
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("randomized", [True, False])
@pytest.mark.parametrize("score", ["aps", "raps", "saps", "margin", "topk", "rank"])
@pytest.mark.parametrize("log", [True, False])
@given(case=strategies.probabilities(min_cases=2, max_cases=12, max_classes=5), numbers=st.integers(0, 3))
def test_the_order_of_scores_is_that_of_the_papers(score, randomized, log, case, numbers):
    """Of any two labels of any two cases."""
    params = {"raps": {"penalty": 0.04 * numbers, "k_reg": numbers}, "saps": {"weight": 0.1 + 0.3 * numbers}}.get(
        score, {}
    )
    seed = 0 if randomized else None
    with np.errstate(divide="ignore"):
        values = np.log(case) if log else case
    ours = score_all(score, values, log=log, seed=seed, params=params)
    u = content_uniform(np.sort(values, axis=1), 0, log=log) if randomized else np.ones(len(case))
    exact = getattr(reference, f"{score}_score")
    options = [{"u": x} if score in ("aps", "raps", "saps") else {} for x in u]
    theirs = np.array([[exact(row, k, **options[i], **params) for k in range(len(row))] for i, row in enumerate(case)])
    gap = theirs.ravel()[:, None] - theirs.ravel()
    clear = gap > 1e-9
    assert (ours.ravel()[:, None] < ours.ravel())[clear].all()
