"""Several cases of one patient or lesion."""

import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier
from test_conformal_properties import CONDITIONS, draw_cases, groups_for

from cbdc import ConformalClassifier
from cbdc.conformal import (
    CalibrationScores,
    Condition,
    ConditionalConformalClassifier,
    CovariateShiftConformalClassifier,
    LabelShiftConformalClassifier,
    MonteCarloConformalClassifier,
    SyntheticPoweredConformalClassifier,
    approximate_band,
    draw_one,
    effective_n,
)
from cbdc.errors import CalibrationSizeWarning, ParameterError

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import patients_reference as reference

seeds = st.integers(0, 2**32 - 1)


@st.composite
def units_of_scores(draw):
    """Whole-numbered scores by unit, ties among them."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    rng = np.random.default_rng(draw(seeds))
    return [rng.integers(0, 12, size).tolist() for size in sizes]


def table_of(by_unit):
    """Conformity scores: minus the nonconformity of the reference."""
    scores = -np.concatenate(by_unit).astype(float)
    units = np.repeat(np.arange(len(by_unit)), [len(s) for s in by_unit])
    return CalibrationScores.from_cases(scores, np.zeros(len(scores), dtype=int), (1, 1), units=units)


LEVELS = [Fraction(1, 2), Fraction(2, 3), Fraction(4, 5), Fraction(9, 10)]


@given(by_unit=units_of_scores(), level=st.sampled_from(LEVELS))
def test_leaving_out_each_unit(by_unit, level):
    """The theorem, number by number: whatever the scores, the mean share that the other units' threshold covers."""

    def threshold(units):
        return -table_of(units).thresholds(float(level))[0, 0] if units else np.inf

    assert reference.leave_one_out_coverage(by_unit, threshold) >= level


@given(by_unit=units_of_scores(), level=st.sampled_from(LEVELS))
def test_hierarchical_sets_equal_the_reference(by_unit, level):
    found = table_of(by_unit).thresholds(float(level))[0, 0]
    assert -found == reference.hierarchical_threshold(by_unit, level)


@given(by_unit=units_of_scores(), new=st.integers(-1, 13))
def test_averaging_over_all_draws_is_the_weighted_p_value(by_unit, new):
    by_unit = by_unit[:5]
    found = table_of(by_unit).p_values(np.array([[-float(new)]]), np.zeros(1, dtype=int))[0, 0]
    assert found == pytest.approx(float(reference.averaged_p_value(by_unit, new)), abs=1e-12)


@given(by_unit=units_of_scores(), new=st.integers(-1, 13))
def test_weighted_p_values_give_the_sets(by_unit, new):
    calibration = table_of(by_unit)
    p_value = calibration.p_values(np.array([[-float(new)]]), np.zeros(1, dtype=int))[0, 0]
    for level in (Fraction(1, 3), Fraction(1, 2), Fraction(4, 5), Fraction(9, 10)):
        inside = -float(new) >= calibration.thresholds(float(level))[0, 0]
        assert inside == (p_value > float(1 - level))


PRIMES = [31, 37, 41, 43, 47, 53, 59, 61, 67]  # their least common multiple is beyond any integer of numpy's


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_many_sizes_of_units_lose_no_rank(level):
    """Alike within a unit, the units are the cases, however many cases each has; weights of 1/31..1/67 sum to 1."""
    scores = np.random.default_rng(0).standard_normal(9)
    many = table_of([[score] * size for score, size in zip(scores, PRIMES)])
    plain = CalibrationScores.from_cases(-scores, np.zeros(9, dtype=int), (1, 1))
    np.testing.assert_array_equal(many.thresholds(level), plain.thresholds(level))
    new, group = -np.append(scores, [-9.0, 9.0])[:, None], np.zeros(11, dtype=int)
    np.testing.assert_array_equal(many.p_values(new, group), plain.p_values(new, group))


@given(seed=seeds)
def test_many_sizes_of_units_give_sets_and_p_values_that_agree(seed):
    rng = np.random.default_rng(seed)
    calibration = table_of([rng.integers(0, 12, size).tolist() for size in PRIMES])
    new = -np.arange(-1.0, 14.0)[:, None]
    p_values = calibration.p_values(new, np.zeros(15, dtype=int))
    for level in (Fraction(1, 3), Fraction(1, 2), Fraction(4, 5), Fraction(9, 10)):
        inside = new >= calibration.thresholds(float(level))[0, 0]
        np.testing.assert_array_equal(inside, p_values > float(1 - level))


@given(seed=seeds)
def test_each_condition_is_calibrated_on_its_own(seed):
    rng = np.random.default_rng(seed)
    scores, units = rng.integers(0, 9, 80).astype(float), rng.integers(0, 25, 80)
    conditions = rng.integers(0, 5, 80)  # the sixth has no case
    together = CalibrationScores.from_cases(scores, conditions, (2, 3), units=units)
    groups, new = np.array([0, 0, 1]), rng.integers(-1, 10, (3, 3)).astype(float)
    p_values = together.p_values(new, groups)
    for cell in range(6):
        own = conditions == cell
        alone = CalibrationScores.from_cases(scores[own], np.zeros(own.sum(), dtype=int), (1, 1), units=units[own])
        place = divmod(cell, 3)
        assert together.thresholds(0.8)[place] == alone.thresholds(0.8)[0, 0]
        assert together.n_units[place] == alone.n_units[0, 0] == len(np.unique(units[own]))
        rows = np.flatnonzero(groups == place[0])
        expected = alone.p_values(new[rows, place[1], None], np.zeros(len(rows), dtype=int))[:, 0]
        np.testing.assert_array_equal(p_values[rows, place[1]], expected)


@given(by_unit=st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=12))
def test_effective_number_equals_the_reference(by_unit):
    units = np.repeat(np.arange(len(by_unit)), [len(unit) for unit in by_unit])
    found = effective_n(np.concatenate(by_unit), units)
    assert found == pytest.approx(float(reference.effective_n(by_unit)), rel=1e-9)


@pytest.mark.parametrize("repeats", [1, 7])
def test_the_band_of_one_case_a_unit_is_the_exact_one(repeats):
    """Also where a unit has several cases that are all alike."""
    covered, units = np.repeat(np.arange(200) < 181, repeats), np.repeat(np.arange(200), repeats)
    exact = Condition.from_rank("", 200, 181)
    assert effective_n(covered, units) == pytest.approx(200)
    assert approximate_band(covered, units) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("function", [effective_n, approximate_band])
@pytest.mark.parametrize(("n", "n_units"), [(3, 2), (0, 0)])
def test_covered_cases_without_their_units_are_refused(function, n, n_units):
    with pytest.raises(ParameterError, match=f"{n} cases and {n_units} units"):
        function(np.ones(n, dtype=bool), np.zeros(n_units, dtype=int))


def conformalized(P, y, groups, units, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        clf = ConformalClassifier(**options)
        if options.get("condition_on") == "cluster" or options.get("rank_calibrated"):
            other, labels, _ = draw_cases(np.random.default_rng([1, 1]), 150, P.shape[1])  # no seed that is drawn
            clf.tune(other, labels)
        return clf.conformalize(P, y, groups=groups_for(options, groups), units=units)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("repeated", ["one", "hierarchical"])
@given(seed=seeds)
def test_units_of_one_case_change_nothing(condition, repeated, seed):
    if condition.get("guarantee") == "pac" and repeated == "hierarchical":
        return  # refused, see below
    rng = np.random.default_rng(seed)
    P, y, groups = draw_cases(rng, 80, 3)
    groups[:2] = 0, 1
    units = rng.permutation(60)
    one = conformalized(P[:60], y[:60], groups[:60], units, repeated=repeated, **condition)
    other = conformalized(P[:60], y[:60], groups[:60], None, **condition)
    np.testing.assert_array_equal(one.thresholds(0.8), other.thresholds(0.8))
    np.testing.assert_array_equal(one.p_values(P[60:], groups[60:]), other.p_values(P[60:], groups[60:]))
    assert [c.n for c in one.certificate().conditions] == [c.n for c in other.certificate().conditions]


@given(seed=seeds, repeats=st.integers(2, 5))
def test_repeating_every_case_changes_no_hierarchical_set(seed, repeats):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 80, 3)
    units = np.tile(np.arange(60), repeats)
    many = conformalized(np.tile(P[:60], (repeats, 1)), np.tile(y[:60], repeats), None, units, condition_on="class")
    plain = conformalized(P[:60], y[:60], None, None, condition_on="class")
    np.testing.assert_array_equal(many.predict_set(P[60:], 0.5), plain.predict_set(P[60:], 0.5))
    np.testing.assert_array_equal(many.n_calibration_, plain.n_calibration_)


def test_state_round_trip_with_units():
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 200, 3)
    clf = conformalized(P, y, None, rng.integers(0, 60, 200), condition_on="class")
    arrays, document = clf.get_state()
    assert set(arrays) == {"scores", "counts", "units"}
    again = ConformalClassifier.from_state(arrays, document)
    np.testing.assert_array_equal(again.p_values(P), clf.p_values(P))
    assert again.certificate() == clf.certificate()
    assert "patient" in str(clf.certificate())
    assert "about" in str(clf.certificate())


@pytest.mark.parametrize("condition_on", [None, "class"])
def test_the_certificate_says_whose_cases_are_meant(condition_on):
    """What breaks a guarantee depends on whether units were given; and PAC in the long run takes independence."""
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 600, 2)
    units, breaks = rng.integers(0, 300, 600), "several calibration cases of one patient or lesion"
    text = {}
    for repeated in (None, "one", "hierarchical"):
        options = {} if repeated is None else {"repeated": repeated}
        clf = conformalized(P, y, None, None if repeated is None else units, condition_on=condition_on, **options)
        text[repeated] = str(clf.certificate())
        assert clf.repeated_ == repeated
        assert "none of them trained or tuned on" in text[repeated]
        assert (breaks in text[repeated]) == (repeated is None)
        assert ("drawn at random from a new patient or lesion" in text[repeated]) == (repeated is not None)
        assert "exchangeable" in text[repeated]
        again = ConformalClassifier.from_state(*clf.get_state())
        assert str(again.certificate()) == text[repeated]
    assert "each drawn from a patient or lesion of its own" in text["one"]
    assert ("of that class" in text["hierarchical"]) == (condition_on == "class")
    pac = {"guarantee": "pac", "repeated": "one", "condition_on": condition_on}
    for of in (None, units):
        certificate = str(conformalized(P, y, None, of, **pac).certificate())
        assert "and those to come are independent and of one population" in certificate
        assert "exchangeable" not in certificate
        assert ("drawn at random from a new" in certificate) == (of is not None)
    window = str(conformalized(P, y, None, None, window=20, **pac).certificate())
    assert "over the calibration cases and those, a share" in window
    assert "exchangeable" in window


def test_one_case_of_each_unit_is_drawn_evenly():
    units = np.repeat(np.arange(300), 3)
    chosen = draw_one(units, np.random.RandomState(0))
    np.testing.assert_array_equal(units[chosen], np.arange(300))
    counts = np.bincount(chosen % 3, minlength=3)
    assert stats.chisquare(counts).pvalue > 1e-5


def simulate(rng, runs, n_units, size, icc, level=0.9):
    """Coverage of the threshold for a case of a new unit: pooled, hierarchical, and of one case a unit."""
    unit = rng.standard_normal((runs, n_units, 1)) * np.sqrt(icc)
    scores = unit + rng.standard_normal((runs, n_units, size)) * np.sqrt(1 - icc)
    n = n_units * size
    ordered = np.sort(scores.reshape(runs, -1), axis=1)
    pooled = ordered[:, int(np.ceil((n + 1) * level)) - 1]
    hierarchical = ordered[:, int(np.ceil((n_units + 1) * size * level)) - 1]
    one = np.sort(scores[:, :, 0], axis=1)[:, int(np.ceil((n_units + 1) * level)) - 1]
    return {name: stats.norm.cdf(q) for name, q in [("pooled", pooled), ("hierarchical", hierarchical), ("one", one)]}


def test_thresholds_of_equal_units_are_those_simulated():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((20, 10)) + rng.standard_normal((20, 1))
    table = table_of([row.tolist() for row in scores])
    assert -table.thresholds(0.9)[0, 0] == np.sort(scores.ravel())[int(np.ceil(21 * 10 * 0.9)) - 1]


def test_patients_fall_short_half_as_often():
    """100 patients of 10 images, ICC .5: P(coverage < .88) is no more than half of that of pooled images."""
    coverage = simulate(np.random.default_rng(0), 20_000, 100, 10, 0.5)
    short = {name: np.mean(c < 0.88) for name, c in coverage.items()}
    assert 0.12 < short["pooled"] < 0.155
    assert short["hierarchical"] <= short["pooled"] / 2
    assert coverage["hierarchical"].mean() >= 0.9


@pytest.mark.parametrize("icc", [0.0, 0.5])
def test_the_band_for_patients_holds_about_ninety_percent(icc):
    rng = np.random.default_rng(0)
    held, runs = 0, 400
    for _ in range(runs):
        scores = rng.standard_normal((100, 1)) * np.sqrt(icc) + rng.standard_normal((100, 10)) * np.sqrt(1 - icc)
        ordered = np.sort(scores.ravel())
        limit = ordered[int(np.ceil(101 * 10 * 0.9)) - 1]
        low, high = approximate_band(scores.ravel() <= limit, np.repeat(np.arange(100), 10))
        held += low <= stats.norm.cdf(limit) <= high
    assert 0.83 <= held / runs <= 0.96


def test_a_pac_threshold_of_one_case_a_unit_falls_short_with_probability_delta():
    """It is the rank among the patients, whatever the number of their images."""
    rng = np.random.default_rng(0)
    P, y, units = np.full((1000, 2), 0.5), np.zeros(1000, dtype=int), np.repeat(np.arange(100), 10)
    runs, short = 300, 0
    for seed in range(runs):
        scores = rng.standard_normal((100, 1)) + rng.standard_normal((100, 10))
        P[:, 0] = 1 - stats.norm.cdf(scores.ravel() / np.sqrt(2))  # LAC then covers as much as one less its threshold
        P[:, 1] = 1 - P[:, 0]
        clf = ConformalClassifier(guarantee="pac", repeated="one", random_state=seed)
        short += 1 - clf.conformalize(P, y, units=units).thresholds()[0, 0] < 0.9
    assert [(c.n, c.rank) for c in clf.certificate().conditions] == [(100, 96)]
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], runs, stats.beta.cdf(0.9, 96, 5))
    assert low <= short <= high


def test_pooled_images_miss_the_patients():
    """Where the patients of many images are the easy ones; each patient's images are alike."""
    rng = np.random.default_rng(0)
    coverage = {"pooled": [], "hierarchical": []}
    for _ in range(200):
        patient = rng.standard_normal(100)
        units = np.repeat(np.arange(100), np.clip(np.rint(10 * np.exp(patient)), 1, 80).astype(int))
        scores = patient[units]
        for name, of in (("pooled", None), ("hierarchical", units)):
            table = CalibrationScores.from_cases(scores, np.zeros(len(units), dtype=int), (1, 1), units=of)
            coverage[name].append(stats.norm.sf(table.thresholds(0.9)[0, 0]))
    assert np.mean(coverage["pooled"]) < 0.8
    assert abs(np.mean(coverage["hierarchical"]) - 91 / 101) < 0.01  # exact law: Beta(91, 10), and 200 runs


def test_lesions_shared_with_training_cost_coverage():
    """Lesions of three images each, and a classifier that remembers; test lesions are new."""
    rng = np.random.default_rng(0)
    coverage = {"by image": [], "by lesion": []}
    for _ in range(12):
        y = rng.integers(0, 3, 600)[lesion := np.repeat(np.arange(600), 3)]
        X = np.eye(3, 8)[y] * 1.5 + rng.standard_normal((600, 8))[lesion] + 0.2 * rng.standard_normal((1800, 8))
        test = lesion >= 450
        for way, part in (("by image", rng.random(1800)), ("by lesion", rng.random(600)[lesion])):
            train, calibration = ~test & (part < 0.7), ~test & (part >= 0.7)
            model = KNeighborsClassifier(15, weights="distance").fit(X[train], y[train])
            clf = ConformalClassifier(model, prefit=True)
            clf.conformalize(X[calibration], y[calibration], units=lesion[calibration])
            coverage[way].append(clf.predict_set(X[test])[np.arange(test.sum()), y[test]].mean())
    assert np.mean(coverage["by image"]) < 0.85
    assert np.mean(coverage["by lesion"]) > 0.885


@pytest.mark.parametrize(
    ("units", "options", "message"),
    [
        (["a"] * 39, {}, "shape"),
        (["a"] * 39 + [None], {}, "units: case 39"),
        (np.arange(40), {"guarantee": "pac"}, "repeated='one'"),
        (np.arange(40), {"repeated": "all"}, "repeated"),
    ],
)
def test_bad_units_are_refused(units, options, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 40, 2)
    with pytest.raises((ParameterError, ValueError), match=message):
        conformalized(P, y, None, units, **options)


# --- the other estimators: one case of each unit

OTHERS = {
    "label shift": lambda P, y, **o: LabelShiftConformalClassifier().conformalize(P, y, **o),
    "covariate shift": lambda P, y, **o: CovariateShiftConformalClassifier().conformalize(
        P, y, weights=lambda X: X[:, 0] + 1, **o
    ),
    "synthetic": lambda P, y, **o: SyntheticPoweredConformalClassifier().conformalize(P, y, source=(P, y), **o),
    "ambiguous": lambda P, y, **o: MonteCarloConformalClassifier().conformalize(P, np.eye(3)[y], **o),
    "conditional": lambda P, y, **o: ConditionalConformalClassifier().conformalize(P, y, P[:, :1] > 0.5, **o),
}


def sets_of(clf, P):
    groups = {"groups": P[:, :1] > 0.5} if isinstance(clf, ConditionalConformalClassifier) else {}
    return clf.predict_set(P, **groups)


@pytest.mark.parametrize("name", OTHERS)
def test_one_case_of_each_unit_calibrates_the_others_too(name):
    """As if the cases that are drawn had been all: and which these are is a function of the seed alone."""
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.ones(3), 120)
    y, units = np.append([0, 1, 2], rng.integers(0, 3, 117)), np.repeat(np.arange(40), 3)
    clf = OTHERS[name](P, y, units=units)
    drawn = draw_one(units, np.random.RandomState(0))
    if name == "synthetic":
        alone = SyntheticPoweredConformalClassifier().conformalize(P[drawn], y[drawn], source=(P, y))
    else:
        alone = OTHERS[name](P[drawn], y[drawn])
    assert clf.by_unit_
    assert not alone.by_unit_
    np.testing.assert_array_equal(sets_of(clf, P), sets_of(alone, P))
    assert "one of each patient or lesion" in str(clf.certificate())
    assert "several calibration cases of one patient" in str(alone.certificate())
    every = OTHERS[name](P, y, units=np.arange(120))
    np.testing.assert_array_equal(sets_of(every, P), sets_of(OTHERS[name](P, y), P))
    with pytest.raises(ParameterError, match=r"units: got shape \(3,\)"):
        OTHERS[name](P, y, units=[1, 2, 3])
