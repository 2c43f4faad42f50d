"""Calibration on several readers' opinions."""

import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformal_properties import OPTIONS, draw_cases

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import MonteCarloConformalClassifier, plausibilities_from_differentials
from cbdc.errors import CalibrationSizeWarning, ParameterError

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import patients_reference as reference

seeds = st.integers(0, 2**32 - 1)
every_score = pytest.mark.parametrize("options", OPTIONS)


def opinions(rng, n, n_classes, readers=4):
    """Probabilities, and the shares of readers who gave each label."""
    P, _, _ = draw_cases(rng, n, n_classes, scale=1.0)
    return P, np.array([rng.multinomial(readers, row / row.sum()) / readers for row in P])


@settings(max_examples=8)
@every_score
@given(seed=seeds, level=st.sampled_from([0.5, 0.8, 0.9]))
def test_one_label_a_case_is_plain_conformal(options, seed, level):
    P, y, _ = draw_cases(np.random.default_rng(seed), 70, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        plain = ConformalClassifier(confidence_level=level, **options).conformalize(P[:50], y[:50])
    for n_draws in (None, 3):
        clf = MonteCarloConformalClassifier(confidence_level=level, n_draws=n_draws, **options)
        clf.conformalize(P[:50], np.eye(3)[y[:50]])
        np.testing.assert_array_equal(clf.predict_set(P[50:]), plain.predict_set(P[50:]))
        np.testing.assert_allclose(clf.p_values(P[50:]), plain.p_values(P[50:]))


@given(seed=seeds, new=st.integers(-1, 13))
def test_p_value_is_the_average_over_all_readers(seed, new):
    """Probabilities on a grid of 1/16: every reader's label in turn, by the oracle of theory/patients.md."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(1, 16, 4)
    P = np.stack([grid / 16, 1 - grid / 16], axis=1)
    labels = rng.integers(0, 2, (4, 3))
    shares = np.stack([(labels == k).mean(axis=1) for k in range(2)], axis=1)
    clf = MonteCarloConformalClassifier().conformalize(P, shares)
    found = clf.p_values(np.array([[new / 16, 1 - new / 16]]))[0, 0] if 0 <= new <= 16 else None
    if found is not None:
        by_unit = [[-(grid[i] if k == 0 else 16 - grid[i]) for k in labels[i]] for i in range(4)]
        assert found == pytest.approx(float(reference.averaged_p_value(by_unit, -new)))


@settings(max_examples=10)
@given(seed=seeds, level=st.sampled_from([Fraction(7, 10), Fraction(9, 10)]), n_draws=st.sampled_from([None, 1, 5]))
def test_leaving_each_case_out_covers_the_level(seed, level, n_draws):
    """The mean over cases, each in turn the new one, of the plausibility in the set: at least the level, exactly so."""
    P, shares = opinions(np.random.default_rng(seed), 40, 3)
    total = 0.0
    for i in range(40):
        clf = MonteCarloConformalClassifier(confidence_level=float(level), n_draws=n_draws)
        clf.conformalize(np.delete(P, i, axis=0), np.delete(shares, i, axis=0))
        total += (clf.predict_set(P[[i]])[0] * shares[i]).sum()
    slack = 0 if n_draws is None else 0.12  # a draw apart from the others' is exact on average only
    assert total / 40 >= float(level) - slack - 1e-9


def test_votes_fall_short_and_opinions_do_not():
    """Voted labels calibrated at 72% hold about ten points fewer of what readers say."""
    rng = np.random.default_rng(0)
    P, shares = opinions(rng, 8000, 5, readers=5)
    votes = shares.argmax(axis=1)
    voted = ConformalClassifier(confidence_level=0.72).conformalize(P[:4000], votes[:4000]).predict_set(P[4000:])
    opinion = MonteCarloConformalClassifier(confidence_level=0.72).conformalize(P[:4000], shares[:4000])
    covered = (opinion.predict_set(P[4000:]) * shares[4000:]).sum(axis=1)
    low, high = m.coverage_band(4000, 4000, 0.72, probability=1 - 1e-4)
    assert (voted * shares[4000:]).sum(axis=1).mean() < 0.72 - 0.07
    assert low <= covered.mean() <= high  # a band for labels, which are more spread than shares
    assert "readers" in str(opinion.certificate())


def test_differentials_by_inverse_rank():
    """By hand from the definition: 1 / rank for each condition, added over readers, normalised once."""
    classes = ["a", "b", "c"]
    for readers, expected in [
        ([[["a"], ["b", "c"]]], [1 / 2, 1 / 4, 1 / 4]),
        ([[["a", "b"], ["c"]]], [0.4, 0.4, 0.2]),
        ([[["a"], ["b"]], [["c"]]], [0.4, 0.2, 0.4]),
        ([[["a"]], [["b"], ["a"]], []], [0.6, 0.4, 0]),
    ]:
        np.testing.assert_allclose(plausibilities_from_differentials([readers], classes), [expected])


def aggregated(rankings, groups):
    """As in the paper's code: groups of the ranked classes, -1 for those that a reader has not ranked."""
    weights = np.where(groups >= 0, 1 / (1 + np.maximum(groups, 0)), 0)
    total = np.zeros(rankings.shape[1])
    for ranking, weight in zip(rankings, weights):
        total[ranking] += weight
    return total / total.sum()


@given(seed=seeds, n_classes=st.integers(2, 6), n_readers=st.integers(1, 4))
def test_differentials_are_those_of_the_papers_arrays(seed, n_classes, n_readers):
    rng = np.random.default_rng(seed)
    rankings = np.array([rng.permutation(n_classes) for _ in range(n_readers)])  # classes from the first rank down
    groups = np.cumsum(rng.integers(0, 2, (n_readers, n_classes)), axis=1)
    groups -= groups[:, :1]  # each reader's ranks begin with 0, and no rank is empty
    for row, length in zip(groups, rng.integers(1, n_classes + 1, n_readers)):
        row[length:] = -1
    readers = [
        [ranking[group == g].tolist() for g in range(group.max() + 1)] for ranking, group in zip(rankings, groups)
    ]
    found = plausibilities_from_differentials([readers], range(n_classes))[0]
    np.testing.assert_allclose(found, aggregated(rankings, groups))


@pytest.mark.parametrize(
    ("differentials", "message"),
    [([[[["d"]]]], "'d'"), ([[[["a"], ["a"]]]], "twice"), ([[[]]], "no reader"), ([[]], "no reader")],
)
def test_bad_differentials_are_named(differentials, message):
    with pytest.raises(ParameterError, match=message):
        plausibilities_from_differentials(differentials, ["a", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:5], "shape"),
        (lambda s: s * 2, "sums to 2"),
        (lambda s: s * np.nan, "NaN"),
        (lambda s: -s, "negative|sums"),
    ],
)
def test_bad_plausibilities_are_named(change, message):
    P, shares = opinions(np.random.default_rng(0), 30, 3)
    with pytest.raises(ValueError, match=message):
        MonteCarloConformalClassifier().conformalize(P, change(shares))
