"""Metrics: golden numbers by hand, twins in scikit-learn and scipy, and laws that hold for any input."""

import math

import numpy as np
import pandas as pd
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from sklearn import metrics as sk

from cbdc import metrics as m
from cbdc.errors import ParameterError


@st.composite
def sets_and_labels(draw):
    n, n_classes = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random((n, n_classes)) < draw(st.floats(0, 1)), rng.integers(0, n_classes, n)


# --- sets

SETS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
Y = np.array([0, 0, 0, 1, 0])


def test_sets_by_hand():
    assert m.coverage(SETS, Y) == 3 / 5
    np.testing.assert_array_equal(m.class_coverage(SETS, Y), [2 / 4, 1, np.nan])
    assert m.mean_set_size(SETS) == 7 / 5
    assert m.singleton_rate(SETS) == 2 / 5
    assert m.empty_rate(SETS) == 1 / 5
    np.testing.assert_array_equal(m.set_size_histogram(SETS), [1, 2, 1, 1])
    np.testing.assert_array_equal(m.size_stratified_coverage(SETS, Y), [0, 1 / 2, 1, 1])


@given(sets_and_labels())
def test_strata_add_up_to_the_whole(case):
    sets, y = case
    n = len(y)
    by_class = np.nansum(m.class_coverage(sets, y) * np.bincount(y, minlength=sets.shape[1]))
    by_size = np.nansum(m.size_stratified_coverage(sets, y) * m.set_size_histogram(sets))
    assert math.isclose(by_class, n * m.coverage(sets, y), abs_tol=1e-9)
    assert math.isclose(by_size, n * m.coverage(sets, y), abs_tol=1e-9)
    assert m.set_size_histogram(sets).sum() == n
    assert math.isclose(m.set_size_histogram(sets) @ np.arange(sets.shape[1] + 1) / n, m.mean_set_size(sets))


def test_nothing_is_not_perfect():
    none = np.empty((0, 3), dtype=bool), np.empty(0, dtype=int)
    proba = np.empty((0, 3)), np.empty(0, dtype=int)
    assert math.isnan(m.coverage(*none))
    assert all(math.isnan(f(none[0])) for f in (m.mean_set_size, m.singleton_rate, m.empty_rate))
    for f in (
        m.expected_calibration_error,
        m.classwise_ece,
        m.brier_score,
        m.negative_log_likelihood,
        m.balanced_accuracy,
        m.auroc,
        m.aurc,
    ):
        assert math.isnan(f(*proba)), f.__name__
    assert all(math.isnan(x) for x in m.ece_noise_floor(proba[0]))
    assert all(math.isnan(x) for x in m.coverage_band(10, 0, 0.9))
    assert m.coverage_table(*none)["coverage"].isna().all()
    assert m.coverage_table(*none, least_n=0)["coverage"].isna().all()


# --- the table


def table_case(n=400, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, n_classes)) < 0.8, rng.integers(0, n_classes, n), rng.choice(["I-II", "V-VI"], n)


def test_coverage_table_counts_each_row_by_itself():
    sets, y, groups = table_case()
    table = m.coverage_table(sets, y, classes=["bcc", "mel", "nv"], groups=groups).set_index(["by", "name"])
    assert list(table.index) == [
        ("all", "all"),
        ("class", "bcc"),
        ("class", "mel"),
        ("class", "nv"),
        ("group", "I-II"),
        ("group", "V-VI"),
    ]
    order = {"bcc": 0, "mel": 1, "nv": 2}
    for (by, name), row in table.iterrows():
        inside = {"all": y >= 0, "class": y == order.get(name), "group": groups == name}[by]
        k, n = sets[inside, y[inside]].sum(), inside.sum()
        assert (row["n"], row["covered"], row["coverage"]) == (n, k, k / n)
        interval = stats.binomtest(int(k), int(n)).proportion_ci(0.95)
        np.testing.assert_allclose([row["low"], row["high"]], interval)
        assert math.isclose(row["mean_set_size"], sets[inside].sum(axis=1).mean())
    assert table["band_low"].isna().all()


def test_small_rows_are_refused_with_their_reason():
    sets, y, _ = table_case(60)
    y[:] = 0
    y[:9] = 1
    table = m.coverage_table(sets, y, least_n=10).set_index("name")
    assert table.loc[1, ["coverage", "low", "high", "mean_set_size"]].isna().all()
    assert (table.loc[1, "n"], table.loc[1, "reason"]) == (9, "9 cases; at least 10 needed")
    assert table.loc[0, "reason"] == ""
    assert not math.isnan(m.coverage_table(sets, y, least_n=9).set_index("name").loc[1, "coverage"])


def test_missing_groups_keep_their_rows():
    sets, y, _ = table_case(60)
    skin_type = np.where(np.arange(60) < 15, np.nan, 3.0)
    table = m.coverage_table(sets, y, groups=pd.Series(skin_type))
    rows = table[table["by"] == "group"]
    assert dict(zip(rows["name"], rows["n"])) == {3.0: 45, "missing": 15}


def test_names_of_classes_are_their_columns():
    sets, y, _ = table_case()
    names = np.array(["bcc", "mel", "nv"])
    expected = m.coverage_table(sets, y, classes=names)
    for labels in (names[y], names[y].astype(object), pd.Series(names[y])):
        pd.testing.assert_frame_equal(m.coverage_table(sets, labels, classes=names), expected)
    with pytest.raises(ValueError, match="case 1 is 'scc'; classes are bcc, mel, nv"):
        m.coverage_table(sets[:2], ["bcc", "scc"], classes=names)
    with pytest.raises(ValueError, match="case 0 is 'bcc'; classes are 0, 1, 2"):
        m.coverage_table(sets[:2], ["bcc", "bcc"])


def test_classes_that_share_a_threshold_share_a_band():
    sets, y, groups = table_case()
    n_y = np.bincount(y)
    options = {"columns": [0, 1, 0], "n_calibration": [150, 40], "confidence_level": 0.9, "groups": groups}
    table = m.coverage_table(sets, y, **options).set_index(["by", "name"])[["band_low", "band_high"]]
    expected = m.coverage_band([150, 40], [n_y[0] + n_y[2], n_y[1]], 0.9, probability=0.95)
    assert tuple(table.loc[("all", "all")]) == expected
    assert tuple(table.loc[("class", 1)]) == m.coverage_band(40, n_y[1], 0.9, probability=0.95)
    assert table.loc[[("class", 0), ("class", 2), ("group", "I-II")]].isna().all(axis=None)
    opened = m.coverage_table(sets, y, open_ended=[False, True], **options).set_index(["by", "name"])
    assert tuple(opened.loc[("all", "all"), ["band_low", "band_high"]]) == (expected[0], 1)
    assert opened.loc[("class", 1), "band_high"] == 1
    closed = m.coverage_table(sets, y, open_ended=[False, False], **options).set_index(["by", "name"])
    np.testing.assert_array_equal(closed[["band_low", "band_high"]], table)
    with pytest.raises(ValueError, match="3 whole numbers"):
        m.coverage_table(sets, y, **options | {"columns": [0, 1]})


def test_bands_stand_only_where_something_is_guaranteed():
    sets, y, groups = table_case()
    n_y, n_g = np.bincount(y), {g: int((groups == g).sum()) for g in ("I-II", "V-VI")}

    def bands(n_calibration):
        table = m.coverage_table(sets, y, groups=groups, n_calibration=n_calibration, confidence_level=0.9)
        return table.set_index(["by", "name"])[["band_low", "band_high"]]

    marginal = bands(200)
    assert tuple(marginal.loc[("all", "all")]) == m.coverage_band(200, 400, 0.9, probability=0.95)
    assert marginal.iloc[1:].isna().all(axis=None)
    by_class = bands([200, 30, 5])
    assert tuple(by_class.loc[("class", 1)]) == m.coverage_band(30, n_y[1], 0.9, probability=0.95)
    assert tuple(by_class.loc[("class", 2)]) == (1, 1)
    assert tuple(by_class.loc[("all", "all")]) == m.coverage_band([200, 30, 5], n_y, 0.9, probability=0.95)
    assert by_class.loc["group"].isna().all(axis=None)
    by_group = bands({"I-II": 50, "V-VI": 20})
    assert tuple(by_group.loc[("group", "V-VI")]) == m.coverage_band(20, n_g["V-VI"], 0.9, probability=0.95)
    assert by_group.loc["class"].isna().all(axis=None)
    both = bands({"I-II": [50, 40, 30], "V-VI": [20, 20, 20]})
    inside = np.bincount(y[groups == "I-II"])
    assert tuple(both.loc[("group", "I-II")]) == m.coverage_band([50, 40, 30], inside, 0.9, probability=0.95)
    assert not both.isna().any(axis=None)


# --- bands and intervals


@pytest.mark.parametrize(
    ("n", "level", "rank"), [(9, 0.9, 9), (19, 0.95, 19), (99, 0.99, 99), (2, 2 / 3, 2), (8, 0.9, 9)]
)
def test_rank_is_exact(n, level, rank):
    assert m.conformal_rank(n, level) == rank


@given(n=st.integers(0, 10**6), percent=st.integers(1, 999))
def test_rank_is_that_of_integers(n, percent):
    assert m.conformal_rank(n, percent / 1000) == -(-(n + 1) * percent // 1000)
    assert m.conformal_rank(n, 1 - (1000 - percent) / 1000) == -(-(n + 1) * percent // 1000)


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, float("nan")])
def test_level_outside_its_range_is_an_error(level):
    with pytest.raises(ValueError, match="confidence_level"):
        m.conformal_rank(10, level)


@pytest.mark.parametrize("level", [1 - 1e-10, 1e-10, 5e-324, math.nextafter(1, 0)])
def test_level_that_is_0_or_1_to_nine_digits_is_an_error(level):
    for call in (m.exact_level, lambda a: m.conformal_rank(10, a), lambda a: m.coverage_band(10, 10, a)):
        with pytest.raises(ParameterError, match=r"confidence_level: got .*, which is [01] to nine digits"):
            call(level)


@pytest.mark.parametrize(("level", "rank"), [(1e-9, 1), (1 - 1e-9, 11)])
def test_rank_at_the_last_levels_allowed(level, rank):
    assert m.conformal_rank(10, level) == rank


@given(n=st.integers(9, 300), n_test=st.integers(1, 300), probability=st.sampled_from([0.5, 0.9, 0.99]))
def test_band_holds_its_probability_and_no_more_than_a_step(n, n_test, probability):
    low, high = m.coverage_band(n, n_test, 0.9, probability=probability)
    k = m.conformal_rank(n, 0.9)
    law = stats.betabinom(n_test, k, n + 1 - k)
    a, b = round(low * n_test), round(high * n_test)
    tail = (1 - probability) / 2
    assert law.cdf(a - 1) <= tail + 1e-9
    assert law.sf(b) <= tail + 1e-9
    assert law.cdf(a) >= tail - 1e-9
    assert law.cdf(b - 1) <= 1 - tail + 1e-9


def test_band_anchors():
    """Realised coverage at 90%, 90% range over very many test cases."""
    for n, low, high in [(20, 0.784, 0.982), (50, 0.826, 0.960), (200, 0.864, 0.933)]:
        np.testing.assert_allclose(m.coverage_band(n, 100_000, 0.9), (low, high), atol=1.5e-3)


def test_band_without_a_finite_threshold_is_full():
    assert m.coverage_band(8, 50, 0.9) == (1, 1)
    low, high = m.coverage_band([8, 100], [10, 0], 0.9)
    assert (low, high) == (1, 1)


def test_band_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="shapes"):
        m.coverage_band(10, [5, 5], 0.9)
    with pytest.raises(ValueError, match="whole"):
        m.coverage_band(10.5, 5, 0.9)


@given(n=st.integers(1, 300), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.9, 0.99]))
def test_clopper_pearson_is_scipys(n, share, level):
    k = int(share * n)
    np.testing.assert_allclose(
        m.clopper_pearson(k, n, level), stats.binomtest(k, n).proportion_ci(level, method="exact"), atol=1e-12
    )


def test_clopper_pearson_of_nothing_and_of_nonsense():
    assert np.isnan(m.clopper_pearson(0, 0)).all()
    with pytest.raises(ValueError, match="k = 3 of n = 2"):
        m.clopper_pearson([1, 3], [2, 2])


@given(strategies.labelled_probabilities(min_cases=8))
def test_clusters_of_one_are_independent_cases(case):
    P, y = case
    hits = P.argmax(axis=1) == y
    n, rate = len(y), hits.mean()
    low, high = m.cluster_interval(hits, np.arange(n))
    if 0 < rate < 1:
        expected = m.clopper_pearson(rate * (n - 1), n - 1)  # the sample variance has n - 1 in its denominator
        np.testing.assert_allclose((low, high), expected, atol=1e-9)
        assert math.isclose(m.design_effect(hits, np.arange(n)), 1, rel_tol=1e-9)
    else:
        np.testing.assert_allclose((low, high), m.clopper_pearson(hits.sum(), n))
        assert math.isnan(m.design_effect(hits, np.arange(n)))


def test_repeated_images_add_no_information():
    rng = np.random.default_rng(0)
    hits = rng.random(80) < 0.8
    lesions = np.arange(80)
    once = m.cluster_interval(hits, lesions)
    np.testing.assert_allclose(m.cluster_interval(np.repeat(hits, 5), np.repeat(lesions, 5)), once, atol=5e-3)
    effect = m.design_effect(np.repeat(hits, 5), np.repeat(lesions, 5))
    assert math.isclose(effect, 5 * (399 / 400) * (80 / 79), rel_tol=1e-9)


def test_cluster_interval_covers_at_its_level():
    """Beta-distributed rates of 40 patients with 1 to 9 images, intra-class correlation 1/3."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 10, 40)
    patients = np.repeat(np.arange(40), sizes)
    runs, clustered, naive = 400, 0, 0
    for _ in range(runs):
        hits = rng.random(len(patients)) < np.repeat(rng.beta(1.6, 0.4, 40), sizes)
        low, high = m.cluster_interval(hits, patients)
        clustered += low <= 0.8 <= high
        low, high = m.clopper_pearson(hits.sum(), len(hits))
        naive += low <= 0.8 <= high
    assert clustered >= stats.binom.ppf(1e-4, runs, 0.93)
    assert naive < stats.binom.ppf(1e-4, runs, 0.93)


@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=12), level=st.sampled_from([0.5, 0.9, 0.95]))
def test_clusters_all_alike_count_by_kish(sizes, level):
    """All covered: the lower end is the tail to the power of one over the effective number of clusters."""
    kish = sum(sizes) ** 2 / sum(size**2 for size in sizes)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    low, high = m.cluster_interval(np.ones(len(groups)), groups, level)
    assert high == 1
    assert math.isclose(low, ((1 - level) / 2) ** (1 / kish), rel_tol=1e-9)
    assert low <= (((1 - level) / 2) ** (1 / len(sizes))) * (1 + 1e-9)
    np.testing.assert_allclose(m.cluster_interval(np.zeros(len(groups)), groups, level), (0, 1 - low), atol=1e-9)


def test_cluster_interval_golden():
    """Sizes 8 and 2: Kish's number is 100 / 68. Mixed: sizes 4, 1, 1 make it 2, so one degree of freedom."""
    low, high = m.cluster_interval(np.ones(10), np.repeat([0, 1], [8, 2]))
    assert math.isclose(low, 0.025**0.68)
    assert high == 1
    values, groups = [1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 2]
    totals = [3 - 4 * 2 / 3, 1 - 2 / 3, -2 / 3]
    variance = 3 / 2 * sum(t**2 for t in totals) / 36
    effective = (2 / 9) / variance * (stats.t.ppf(0.975, 5) / np.tan(0.475 * np.pi)) ** 2
    np.testing.assert_allclose(
        m.cluster_interval(values, groups), m.clopper_pearson(2 / 3 * effective, effective), rtol=1e-9
    )
    assert m.cluster_interval([*[1] * 10**6, 0], [*[0] * 10**6, 1]) == pytest.approx((0, 1), abs=1e-6)


def test_cluster_interval_covers_where_one_patient_has_most_images():
    """Images of a patient alike, 60 of one and one each of 20 others."""
    rng = np.random.default_rng(0)
    sizes = np.array([60] + [1] * 20)
    patients = np.repeat(np.arange(21), sizes)
    runs, covered = 1000, 0
    for _ in range(runs):
        low, high = m.cluster_interval(np.repeat(rng.random(21) < 0.9, sizes), patients)
        covered += low <= 0.9 <= high
    assert covered >= stats.binom.ppf(1e-4, runs, 0.95)


def test_one_cluster_says_nothing():
    assert np.isnan(m.cluster_interval([1, 0, 1], [7, 7, 7])).all()
    assert math.isnan(m.design_effect([1, 0, 1], [7, 7, 7]))
    with pytest.raises(ValueError, match="0 or 1"):
        m.cluster_interval([0.5, 1.0], [0, 1])
    with pytest.raises(ValueError, match="one group for each"):
        m.cluster_interval([1, 0], [0])


# --- probabilities against scikit-learn


@given(strategies.labelled_probabilities(min_cases=2))
def test_twins_in_scikit_learn(case):
    P, y = case
    labels = np.arange(P.shape[1])
    one_hot = np.eye(P.shape[1])[y]
    assert math.isclose(m.brier_score(P, y), np.mean(np.sum((P - one_hot) ** 2, axis=1)), abs_tol=1e-12)
    assert math.isclose(m.negative_log_likelihood(P, y), sk.log_loss(y, P, labels=labels), rel_tol=1e-9)
    recall = sk.recall_score(y, P.argmax(axis=1), labels=np.unique(y), average="macro", zero_division=0)
    assert math.isclose(m.balanced_accuracy(P, y), recall, rel_tol=1e-12)
    areas = m.auroc(P, y, average=None)
    for k in labels:
        if 0 < (y == k).sum() < len(y):
            assert math.isclose(areas[k], sk.roc_auc_score(y == k, P[:, k]), abs_tol=1e-12)
        else:
            assert math.isnan(areas[k])
    table = m.class_table(P, y)
    np.testing.assert_array_equal(table["n"], np.bincount(y, minlength=P.shape[1]))
    np.testing.assert_array_equal(table["auroc"], areas)
    assert (table["recall"].isna() == (table["n"] == 0)).all()


def test_a_true_class_of_probability_zero_is_not_hidden():
    assert m.negative_log_likelihood([[1.0, 0.0], [0.5, 0.5]], [1, 0]) == math.inf


@given(strategies.labelled_probabilities(min_cases=2), st.integers(0, 2**32 - 1))
def test_the_order_of_the_cases_never_matters(case, seed):
    P, y = case
    order = np.random.default_rng(seed).permutation(len(y))
    for f in (
        m.expected_calibration_error,
        lambda p, t: m.expected_calibration_error(p, t, strategy="quantile"),
        m.classwise_ece,
        m.brier_score,
        m.negative_log_likelihood,
        m.balanced_accuracy,
        m.auroc,
        m.aurc,
        lambda p, t: m.ece_noise_floor(p, random_state=0, n_resamples=5),
        lambda p, t: m.ece_noise_floor(p, units=t, random_state=0, n_resamples=5),
    ):
        np.testing.assert_allclose(f(P[order], y[order]), f(P, y), rtol=1e-9, atol=1e-12)


@given(strategies.labelled_probabilities(min_cases=2, ties=False), st.integers(0, 2**32 - 1))
def test_the_order_of_the_classes_never_matters(case, seed):
    P, y = case
    order = np.random.default_rng(seed).permutation(P.shape[1])
    place = np.argsort(order)
    for f in (m.expected_calibration_error, m.classwise_ece, m.brier_score, m.balanced_accuracy, m.auroc, m.aurc):
        np.testing.assert_allclose(f(P[:, order], place[y]), f(P, y), rtol=1e-9, atol=1e-12)


# --- calibration


@given(strategies.labelled_probabilities(), st.integers(1, 20), st.sampled_from(["uniform", "quantile"]))
def test_reliability_curve_is_the_error_bin_by_bin(case, n_bins, strategy):
    P, y = case
    curve = m.reliability_curve(P, y, n_bins, strategy=strategy)
    assert curve["n"].sum() == len(y)
    assert curve["correct"].sum() == (P.argmax(axis=1) == y).sum()
    gap = (curve["n"] * (curve["accuracy"] - curve["confidence"]).abs()).sum() / len(y)
    assert math.isclose(gap, m.expected_calibration_error(P, y, n_bins, strategy=strategy), abs_tol=1e-9)
    filled = curve[curve["n"] > 0]
    assert (filled["confidence"] <= filled["upper"] + 1e-9).all()
    assert (filled["confidence"] >= filled["lower"] - 1e-9).all()


@given(strategies.labelled_probabilities(min_cases=2))
def test_one_bin_is_the_gap_of_the_means(case):
    P, y = case
    gap = abs((P.argmax(axis=1) == y).mean() - P.max(axis=1).mean())
    assert math.isclose(m.expected_calibration_error(P, y, 1), gap, abs_tol=1e-12)
    gaps = np.abs(np.bincount(y, minlength=P.shape[1]) / len(y) - P.mean(axis=0))
    assert math.isclose(m.classwise_ece(P, y, 1), gaps.mean(), abs_tol=1e-12)


def test_equal_mass_bins_hold_equal_numbers():
    P = softmax(np.random.default_rng(0).standard_normal((150, 4)), axis=1)
    curve = m.reliability_curve(P, np.zeros(150, dtype=int), 15, strategy="quantile")
    assert (curve["n"] - 10).abs().max() <= 1


def test_bin_edges_are_closed_above():
    curve = m.reliability_curve([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], [0, 0, 0], 2)
    assert curve["n"].tolist() == [1, 2]


def test_noise_floor_anchors():
    """Mean error of a perfectly calibrated model of accuracy about .6, 15 bins, seven classes."""
    rng = np.random.default_rng(0)
    for n, expected in [(200, 0.081), (1000, 0.035), (3000, 0.022), (10_000, 0.011)]:
        P = softmax(2 * rng.standard_normal((n, 7)), axis=1)
        assert m.ece_noise_floor(P, random_state=0)[0] == pytest.approx(expected, rel=0.12)


def test_noise_floor_is_the_law_of_the_error_under_calibration():
    rng = np.random.default_rng(1)
    P = softmax(2 * rng.standard_normal((500, 5)), axis=1)
    draws = [(P.cumsum(axis=1) > rng.random((500, 1))).argmax(axis=1) for _ in range(400)]
    errors = np.array([m.expected_calibration_error(P, y) for y in draws])
    mean, high = m.ece_noise_floor(P, n_resamples=4000, random_state=0)
    assert abs(errors.mean() - mean) < 5 * errors.std() / 20
    low_count, high_count = stats.binom.ppf([1e-4, 1 - 1e-4], 400, 0.05)
    assert low_count <= (errors > high).sum() <= high_count


def test_noise_floor_counts_units_and_not_their_images():
    rng = np.random.default_rng(2)
    P = softmax(2 * rng.standard_normal((300, 5)), axis=1)
    units = rng.permutation(300).astype(str)
    of_units = m.ece_noise_floor(P, units=units, random_state=0)
    thrice = m.ece_noise_floor(np.repeat(P, 3, axis=0), units=np.repeat(units, 3), random_state=0)
    np.testing.assert_allclose(thrice, of_units, atol=1e-12)
    assert m.ece_noise_floor(np.repeat(P, 3, axis=0), random_state=0)[0] < 0.8 * of_units[0]
    with pytest.raises(ValueError, match="one for each of the 300 cases"):
        m.ece_noise_floor(P, units=units[:-1])


def test_noise_floor_of_units_is_that_of_labels_they_share():
    """Two images of a lesion, on which the model does not quite agree: labels of one race of exponentials a lesion."""
    rng = np.random.default_rng(3)
    logits = np.repeat(2 * rng.standard_normal((250, 5)), 2, axis=0) + rng.standard_normal((500, 5))
    P, units = softmax(logits, axis=1), np.repeat(np.arange(250), 2)
    draws = [np.argmin(rng.exponential(size=(250, 5))[units] / P, axis=1) for _ in range(400)]
    errors = np.array([m.expected_calibration_error(P, y) for y in draws])
    mean, high = m.ece_noise_floor(P, units=units, n_resamples=4000, random_state=0)
    assert abs(errors.mean() - mean) < 5 * errors.std() / 20
    low_count, high_count = stats.binom.ppf([1e-4, 1 - 1e-4], 400, 0.05)
    assert low_count <= (errors > high).sum() <= high_count


def test_noise_floor_of_two_views_that_predict_otherwise():
    """Confident of .6 in different classes: both right in a fifth of draws (off by .4), else one (off by .1)."""
    mean, high = m.ece_noise_floor([[0.6, 0.4], [0.4, 0.6]], units=[7, 7], n_resamples=40_000, random_state=0)
    assert mean == pytest.approx(0.16, abs=5 * 0.12 / 200)
    assert high == pytest.approx(0.4)


@pytest.mark.parametrize("order", [[0, 2, 1], [1, 0, 2], [2, 1, 0]])
def test_noise_floor_of_units_does_not_hang_on_the_order_of_the_classes(order):
    P = np.tile([[0.49, 0.51, 0.0], [0.0, 0.51, 0.49]], (200, 1))
    units = np.repeat(np.arange(200), 2)
    means = [m.ece_noise_floor(A, units=units, n_resamples=4000, random_state=0)[0] for A in (P, P[:, order])]
    assert means[0] == pytest.approx(means[1], rel=0.06)


@pytest.mark.parametrize("missing", [np.nan, None])
def test_noise_floor_takes_a_unit_for_each_case(missing):
    P = np.full((4, 2), 0.5)
    with pytest.raises(ValueError, match="1 of 4 cases have none"):
        m.ece_noise_floor(P, units=np.array(["a", "a", "b", missing], dtype=object))
    with pytest.raises(ValueError, match="each of the 0 cases"):
        m.ece_noise_floor(P[:0], units=[1])


def test_noise_floor_repeats_with_its_seed():
    P = np.full((50, 2), 0.5)
    assert m.ece_noise_floor(P, random_state=3) == m.ece_noise_floor(P, random_state=3)
    assert m.ece_noise_floor(P, random_state=3) != m.ece_noise_floor(P, random_state=4)


# --- deferring


def test_risk_coverage_by_hand():
    P = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    coverage, risk = m.risk_coverage_curve(P, [0, 1, 0, 1])
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(m.aurc(P, [0, 1, 0, 1], confidence=[1, 1, 1, 1]), 1 / 2)


@given(strategies.labelled_probabilities())
def test_accepting_everything_gives_the_error_rate(case):
    P, y = case
    _, risk = m.risk_coverage_curve(P, y)
    error = (P.argmax(axis=1) != y).mean()
    assert math.isclose(risk[-1], error, abs_tol=1e-12)
    perfect = m.aurc(P, y, confidence=P.argmax(axis=1) == y)
    assert perfect <= m.aurc(P, y) + 1e-12


# --- bad input


@pytest.mark.parametrize(
    ("proba", "message"),
    [
        ([[0.5, 0.5], [np.nan, 1]], "row 1 holds NaN or infinity"),
        ([[0.5, 0.5], [np.inf, 0]], "row 1 holds NaN or infinity"),
        ([[np.inf, -np.inf], [1, 0]], "row 0 holds NaN or infinity"),
        ([[0.5, 0.5], [1.2, -0.2]], "row 1 holds -0.2"),
        ([[0.5, 0.5], [0.5, 0.6]], "row 1 sums to 1.1"),
        ([[2.0, -3.0]], "row 0 holds -3"),
        ([0.5, 0.5], "shape"),
        ([["a", "b"]], "expected numbers"),
    ],
)
def test_bad_probabilities_name_their_row(proba, message):
    with pytest.raises(ValueError, match=message):
        m.check_probabilities(proba)


@pytest.mark.parametrize("n_classes", [2, 63, 64, 390])
@pytest.mark.parametrize("row", [0, 1343, 2**14 - 1, 2**14, 2**14 + 2])  # at the ends of blocks
@pytest.mark.parametrize(
    ("first", "last", "message"),
    [(0, 0.3, "sums to"), (0.6, -0.6, "negative|-0"), (0, np.nan, "NaN"), (0, np.inf, "infinity")],
)
def test_a_bad_row_is_found_wherever_it_is(n_classes, row, first, last, message):
    proba = np.full((2**14 + 3, n_classes), 1 / n_classes, dtype=np.float32)
    m.check_probabilities(proba)
    proba[row, [0, -1]] += np.array([first, last], dtype=np.float32)
    with pytest.raises(ValueError, match=rf"row {row} .*({message})"):
        m.check_probabilities(proba)


@pytest.mark.parametrize(
    ("y", "message"),
    [([0, 2], "case 1 has class 2"), ([0, -1], "case 1 has class -1"), ([0], "shape"), ([0.0, 1.0], "float64")],
)
def test_bad_labels_name_their_case(y, message):
    with pytest.raises(ValueError, match=message):
        m.brier_score([[0.5, 0.5], [0.5, 0.5]], y)
    with pytest.raises(ValueError, match=message):
        m.coverage([[True, False], [True, True]], y)


def test_other_misuse_is_named():
    sets, y, groups = table_case(40)
    with pytest.raises(ValueError, match="expected bool"):
        m.mean_set_size([[0.2, 0.8]])
    with pytest.raises(ValueError, match="expected \\(n, n_classes\\)"):
        m.mean_set_size([True, False])
    for options, message in [
        ({"classes": ["a"]}, "1 names for 3 columns"),
        ({"groups": groups[:5]}, "groups"),
        ({"n_calibration": 10}, "needs both"),
        ({"n_calibration": [1, 2], "confidence_level": 0.9}, "one number a class, 3"),
        ({"n_calibration": {"I-II": 9}, "confidence_level": 0.9, "groups": groups}, "no number for group 'V-VI'"),
    ]:
        with pytest.raises(ValueError, match=message):
            m.coverage_table(sets, y, **options)
    P = np.full((2, 2), 0.5)
    with pytest.raises(ValueError, match="strategy"):
        m.expected_calibration_error(P, [0, 1], strategy="equal")
    with pytest.raises(ValueError, match="n_bins"):
        m.expected_calibration_error(P, [0, 1], 0)
    with pytest.raises(ValueError, match="average"):
        m.auroc(P, [0, 1], average="micro")
    with pytest.raises(ValueError, match="confidence"):
        m.aurc(P, [0, 1], confidence=[1])
    with pytest.raises(ValueError, match="names for 2 columns"):
        m.class_table(P, [0, 1], classes=["a"])
