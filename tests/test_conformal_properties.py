"""Conformal sets: the properties that every score, condition and level must have."""

import functools
import warnings
from fractions import Fraction

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_softmax, softmax

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import SCORES
from cbdc.conformal._rows import sorted_rows
from cbdc.conformal._uniform import content_uniform
from cbdc.conformal.scores import score_all, score_dtype, score_labels, sets_from, slack_of
from cbdc.errors import CalibrationSizeWarning

# --- every score, with and without its random number, under every condition and guarantee

OPTIONS = [
    pytest.param({"score": score, "randomized": randomized}, id=score + "-randomized" * randomized)
    for score in SCORES
    for randomized in (True, False)
    if not randomized or score in ("aps", "raps", "saps")
]
CONDITIONS = [
    pytest.param({"condition_on": None}, id="marginal"),
    pytest.param({"condition_on": "class"}, id="class"),
    pytest.param({"condition_on": "class", "rank_calibrated": True}, id="rank-calibrated"),
    pytest.param({"condition_on": "cluster"}, id="cluster"),
    pytest.param({"condition_on": "group"}, id="group"),
    pytest.param({"condition_on": "class_and_group"}, id="class-and-group"),
    pytest.param({"condition_on": None, "guarantee": "pac", "delta": 0.1}, id="pac"),
    pytest.param({"condition_on": "class", "guarantee": "pac", "delta": 0.1}, id="class-pac"),
    pytest.param({"condition_on": None, "guarantee": "pac", "delta": 0.1, "window": 40}, id="pac-window"),
]
every_score = pytest.mark.parametrize("options", OPTIONS)
every_condition = pytest.mark.parametrize("condition", CONDITIONS)
few, more = settings(max_examples=8), settings(max_examples=20)
seeds = st.integers(0, 2**32 - 1)


def conformalized(P, y, groups=None, classes=None, **options):
    """Calibrated on probabilities, quiet about small classes, which these tests make on purpose.

    What is tuned is tuned on other cases; `classes` permutes their columns as those of P are permuted.
    """
    clf = ConformalClassifier(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        if options.get("condition_on") == "cluster" or options.get("rank_calibrated"):
            order = np.arange(P.shape[1]) if classes is None else classes
            clf.tuned_ = tuned(tuple(order.tolist()), P.dtype, **options)
        return clf.conformalize(P, y, groups=groups_for(options, groups))


def groups_for(options, groups):
    """The groups where the condition takes them."""
    return groups if options.get("condition_on") in ("group", "class_and_group") else None


@functools.cache
def tuned(order, dtype, **options):
    """What `tune` chooses on 150 other cases: the same for all that is calibrated with these options."""
    other, labels, _ = draw_cases(np.random.default_rng(1), 150, len(order))
    clf = ConformalClassifier(**options)
    return clf.tune(other[:, list(order)].astype(dtype), np.argsort(order)[labels]).tuned_


def predict(clf, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        return clf.predict_set(*args, **options)


def draw_cases(rng, n, n_classes, scale=2.0):
    """Probabilities, labels from them, and groups that have nothing to do with either."""
    P = softmax(scale * rng.standard_normal((n, n_classes)), axis=1)
    y = np.minimum((P.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), n_classes - 1)
    return P, y, rng.integers(0, 2, n)


# --- property 1: mean coverage over calibration draws


def may_tie(options, condition):
    """Of some labels the score is the same in every case: of the least probable one, or of all of one rank."""
    return (
        options["score"] == "topk"
        or condition.get("rank_calibrated")
        or (options["score"] in ("aps", "raps") and not options["randomized"])
    )


@few
@every_score
@every_condition
@given(seed=seeds, n=st.integers(20, 80), n_classes=st.integers(2, 5), level=st.sampled_from([0.5, 0.8, 0.9]))
def test_mean_coverage_is_inside_its_band(options, condition, seed, n, n_classes, level):
    rng = np.random.default_rng(seed)
    runs, n_test = 20, 60
    calibration, ranks, test, covered = [], [], [], 0
    for _ in range(runs):
        P, y, groups = draw_cases(rng, n + n_test, n_classes)
        groups[:2] = 0, 1  # both are calibrated
        clf = conformalized(P[:n], y[:n], groups[:n], confidence_level=level, **condition, **options)
        sets = predict(clf, P[n:], groups=groups[n:])
        covered += sets[np.arange(n_test), y[n:]].sum()
        counts = clf.calibration_.counts
        rows = groups[n:] if clf.groups_ is not None else 0 * groups[n:]
        columns = 0 * y[n:] if clf.columns_ is None else clf.columns_[y[n:]]
        calibration += counts.ravel().tolist()
        ranks += [c.rank for c in clf.certificate().conditions]
        test += np.bincount(rows * counts.shape[1] + columns, minlength=counts.size).tolist()
    low, high = m.coverage_band(calibration, test, level, probability=1 - 1e-6, ranks=ranks)
    coverage = covered / (runs * n_test)
    assert low <= coverage
    if not may_tie(options, condition):
        assert coverage <= high


@few
@every_score
@every_condition
@given(
    case=strategies.labelled_probabilities(min_cases=3, max_cases=30),
    level=st.sampled_from([0.3, 0.5, 0.8, 0.9]),
    narrow=st.booleans(),
)
def test_leave_one_out_ranks(options, condition, case, level, narrow):
    """Of the n + 1 cases of a condition, each in turn the new one, at least k are covered, exactly k without ties."""
    P, y = case
    leave_one_out(options, condition, P.astype(np.float32) if narrow else P, y, level)


@few
@every_score
@pytest.mark.parametrize("condition_on", [None, "class"])
@given(seed=seeds, n=st.integers(3, 20), n_classes=st.sampled_from([7, 40, 390]), level=st.sampled_from([0.5, 0.8]))
def test_leave_one_out_ranks_of_many_classes(options, condition_on, seed, n, n_classes, level):
    """In float32; half of the cases are alike, and tie whatever the rounding of their sums."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet(np.ones(n_classes), n).astype(np.float32)
    P[::2] = P[0]
    y = rng.integers(0, 3, n) if condition_on else np.argsort(P, axis=1)[np.arange(n), -rng.integers(1, 3)]
    leave_one_out(options, {"condition_on": condition_on}, P, y, level)


def leave_one_out(options, condition, P, y, level):
    groups = np.arange(len(y)) % 2
    covered = np.zeros(len(y), dtype=bool)
    cells, ranks, scores = np.zeros(len(y), dtype=int), {}, np.zeros(len(y))
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        if condition["condition_on"] in ("group", "class_and_group") and groups[i] not in groups[others]:
            return  # a group that was not calibrated is refused
        clf = conformalized(P[others], y[others], groups[others], confidence_level=level, **condition, **options)
        covered[i] = predict(clf, P[[i]], groups=groups[[i]])[0, y[i]]
        row = clf._group_codes(groups[[i]], 1)[0]
        column = 0 if clf.columns_ is None else clf.columns_[y[i]]
        cells[i] = row * clf.calibration_.counts.shape[1] + column
        ranks[cells[i]] = clf.certificate().conditions[cells[i]].rank
        scores[i] = score_all(values=P[[i]], **clf._scoring)[0, y[i]]
    for cell, k in ranks.items():
        inside = cells == cell
        assert covered[inside].sum() >= k
        gaps = np.diff(np.sort(scores[inside]))
        slack = 1e-6 + 4 * slack_of(options["score"], P)
        if (gaps > slack * max(1, np.abs(scores).max())).all() and not condition.get("rank_calibrated"):
            assert covered[inside].sum() == k


# --- property 2: one label equals all labels


@every_score
@given(case=strategies.labelled_probabilities(), seed=st.none() | seeds, log=st.booleans(), narrow=st.booleans())
def test_one_label_equals_all_labels(options, case, seed, log, narrow):
    P, y = case
    values = P.astype(np.float32) if narrow else P
    if log:
        with np.errstate(divide="ignore"):
            values = np.log(values)
    every = score_all(options["score"], values, log=log, seed=seed)
    rows = np.arange(len(y))
    assert every.dtype == score_dtype(options["score"], values.dtype)
    np.testing.assert_array_equal(score_labels(options["score"], values, y, log=log, seed=seed), every[rows, y])
    limits = every[rows, y][:, None]  # the tightest limit that the label may pass
    np.testing.assert_array_equal(sets_from(options["score"], values, limits, log=log, seed=seed), every >= limits)
    assert sets_from(options["score"], values, limits, log=log, seed=seed)[rows, y].all()
    np.testing.assert_array_equal(
        sets_from(options["score"], values, np.array([[np.inf]]), log=log, seed=seed), every == np.inf
    )


@pytest.mark.parametrize("score", ["aps", "raps"])
@pytest.mark.parametrize("n", [1, 150, 1000])  # summed row by row, by columns, and sorted by columns
@given(seed=seeds, draw=st.none() | seeds, n_votes=st.sampled_from([4, 30, 10**6]), narrow=st.booleans())
@few
def test_labels_of_equal_probability_are_not_torn_apart(score, n, seed, draw, n_votes, narrow):
    rng = np.random.default_rng(seed)
    P = (rng.multinomial(n_votes, rng.dirichlet(np.ones(6), n)) / n_votes).astype(np.float32 if narrow else float)
    y = rng.integers(0, 6, n)
    every = score_all(score, P, seed=draw)
    for limit in np.append(rng.choice(every.ravel(), 8), [-np.inf, 0, np.inf]):
        sets = sets_from(score, P, np.full((1, 1), limit, dtype=every.dtype), seed=draw)
        np.testing.assert_array_equal(sets, every >= limit)
    calibrated = score_labels(score, P, y, seed=draw, calibration=True)  # finds no order, but these have one
    ascending, own = np.sort(P, axis=1), P[np.arange(n), y]
    u = None if draw is None else content_uniform(ascending, draw).astype(P.dtype)
    by_order = SCORES[score].function(ascending.astype(float), u=u, slack=slack_of(score, P), **SCORES[score].defaults)
    place = (ascending < own[:, None]).sum(axis=1)
    np.testing.assert_allclose(calibrated, by_order[np.arange(n), place], rtol=1e-12, atol=1e-300)
    for i in range(min(n, 20)):  # in any batch the same to the bit
        one = score_labels(score, P[i : i + 1], y[i : i + 1], seed=draw, calibration=True)
        assert one == calibrated[i]
    assert (calibrated <= every[np.arange(n), y]).all()


@every_score
@given(case=strategies.probabilities(), seed=st.none() | seeds)
def test_more_probable_labels_conform_no_worse(options, case, seed):
    scores = score_all(options["score"], case, seed=seed)
    order = np.argsort(case, axis=1)
    assert (np.diff(np.take_along_axis(scores, order, axis=1), axis=1) >= 0).all()
    for row, s in zip(case, scores):
        for p in np.unique(row):
            assert len(set(s[row == p])) == 1


# --- property 3: a batch equals its cases one by one


@few
@every_score
@every_condition
@given(seed=seeds, n_classes=st.integers(2, 5), narrow=st.booleans())
def test_a_batch_equals_its_cases_one_by_one(options, condition, seed, n_classes, narrow):
    rng = np.random.default_rng(seed)
    P, y, groups = draw_cases(rng, 60, n_classes)
    P = P.astype(np.float32) if narrow else P
    groups[:2] = 0, 1
    clf = conformalized(P[:50], y[:50], groups[:50], confidence_level=0.8, **condition, **options)
    batch, p_values = predict(clf, P[50:], groups=groups[50:]), clf.p_values(P[50:], groups=groups[50:])
    for i in range(10):
        np.testing.assert_array_equal(predict(clf, P[[50 + i]], groups=groups[[50 + i]])[0], batch[i])
        np.testing.assert_array_equal(clf.p_values(P[[50 + i]], groups=groups[[50 + i]])[0], p_values[i])
    np.testing.assert_array_equal(predict(clf, P[50:][::-1], groups=groups[50:][::-1])[::-1], batch)


@every_score
def test_blocks_do_not_show(options, monkeypatch):
    P, y, _ = draw_cases(np.random.default_rng(0), 500, 4)
    whole = conformalized(P[:250], y[:250], **options).predict_set(P[250:])
    monkeypatch.setattr("cbdc.conformal._base.CELLS", 44)
    monkeypatch.setattr("cbdc.conformal._base._CELLS_RANKED", 44)
    clf = conformalized(P[:250], y[:250], **options)
    np.testing.assert_array_equal(clf.predict_set(P[250:]), whole)
    np.testing.assert_array_equal(clf.p_values(P[250:]) > 0.1, whole)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("name", SCORES)
def test_the_sign_of_zero_does_not_show(name, seed):
    """1 - 1 and -1 * 0 are both no probability; scores that are read off their bits once told them apart."""
    P = np.array([[0.0, 0.5, 0.5 - 1e-9, 1e-9], [0.0, 0.0, 1.0, 0.0]])
    signed = np.where(P == 0, -0.0, P)
    np.testing.assert_array_equal(score_all(name, signed, seed=seed), score_all(name, P, seed=seed))
    labels = np.array([0, 3])
    np.testing.assert_array_equal(
        score_labels(name, signed, labels, seed=seed), score_labels(name, P, labels, seed=seed)
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 1500), st.sampled_from([np.float32, np.float64]))
def test_rows_of_few_classes_are_sorted_as_by_numpy(seed, n_classes, n, dtype):
    values = np.random.default_rng(seed).integers(-3, 4, (n, n_classes)).astype(dtype) / 7
    np.testing.assert_array_equal(sorted_rows(values), np.sort(values, axis=1))
    np.testing.assert_array_equal(sorted_rows(np.asfortranarray(values)), np.sort(values, axis=1))


def exact(level):
    return Fraction(level).limit_denominator(1000)


# --- property 4: sets are nested in the level, and p-values say the same


@few
@every_score
@every_condition
@given(seed=seeds, n=st.integers(3, 60), coarse=st.booleans(), narrow=st.booleans())
def test_p_values_give_the_sets(options, condition, seed, n, coarse, narrow):
    rng = np.random.default_rng(seed)
    P, y, groups = draw_cases(rng, n + 30, 3)
    if coarse:
        P = rng.multinomial(6, P) / 6
    P = P.astype(np.float32) if narrow else P
    groups[:2] = 0, 1
    clf = conformalized(P[:n], y[:n], groups[:n], **condition, **options)
    test, groups = P[n:], groups[n:]
    p_values = clf.p_values(test, groups=groups)
    assert (p_values <= 1).all()
    assert (p_values > 0).all()
    smaller = np.zeros_like(p_values, dtype=bool)
    for level in (0.01, 0.25, 0.5, 2 / 3, 0.75, 0.8, 0.9, 0.95, 0.99):
        sets = predict(clf, test, level, groups=groups)
        if condition.get("guarantee") != "pac" or condition.get("window"):
            np.testing.assert_array_equal(sets, p_values > float(1 - exact(level)))
        else:  # quantiles of a Beta law, floats that meet no level exactly
            clear = np.abs(p_values - (1 - level)) > 1e-9
            np.testing.assert_array_equal(sets[clear], p_values[clear] > 1 - level)
        assert (smaller <= sets).all()
        smaller = sets


def test_a_p_value_of_exactly_alpha_is_outside():
    """1 of 10 cases, at level 0.9: the float 1 - 0.9 is less than the p-value, and would take it in."""
    P = np.array([[0.9, 0.1]] * 9 + [[0.5, 0.5]])
    clf = ConformalClassifier(confidence_level=0.9).conformalize(P[:9], np.zeros(9, dtype=int))
    p_value = clf.p_values(P[9:])[0, 0]
    assert p_value > 1 - 0.9
    assert not p_value > float(1 - m.exact_level(0.9))
    assert not clf.predict_set(P[9:])[0, 0]


# --- permutations


@few
@every_score
@every_condition
@given(seed=seeds)
def test_a_permutation_of_the_classes_permutes_the_sets(options, condition, seed):
    rng = np.random.default_rng(seed)
    P, y, groups = draw_cases(rng, 80, 4)
    P[::7] = 0.25  # ties
    groups[:2] = 0, 1
    order = rng.permutation(4)
    kind = {"confidence_level": 0.7, **condition, **options}
    sets = predict(conformalized(P[:60], y[:60], groups[:60], **kind), P[60:], groups=groups[60:])
    other = conformalized(P[:60][:, order], np.argsort(order)[y[:60]], groups[:60], classes=order, **kind)
    np.testing.assert_array_equal(predict(other, P[60:][:, order], groups=groups[60:]), sets[:, order])


@more
@every_score
@every_condition
@given(seed=seeds)
def test_the_order_of_calibration_cases_never_matters(options, condition, seed):
    rng = np.random.default_rng(seed)
    P, y, groups = draw_cases(rng, 60, 3)
    groups[:2] = 0, 1
    order = rng.permutation(60)
    kind = {**condition, **options}
    one, other = conformalized(P, y, groups, **kind), conformalized(P[order], y[order], groups[order], **kind)
    np.testing.assert_array_equal(one.calibration_.scores, other.calibration_.scores)
    np.testing.assert_array_equal(one.calibration_.counts, other.calibration_.counts)


# --- APS


@pytest.mark.parametrize("n_classes", [7, 40, 390])
@every_score
def test_equal_rows_of_float32_tie(options, n_classes):
    """A case like those calibrated on conforms as they do: the label is in the set, in another batch size too."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        P = np.repeat(rng.dirichlet(np.ones(n_classes), 1).astype(np.float32), 30, axis=0)
        label = np.argsort(P[0])[-2 if seed % 2 else rng.integers(n_classes)]
        clf = ConformalClassifier(**options).conformalize(P, np.full(30, label))
        assert clf.predict_set(P[:1])[0, label]
        assert clf.predict_set(P)[:, label].all()
        if not options["randomized"]:  # whose number moves with the last places
            assert clf.predict_set(np.nextafter(P[:1], np.float32(seed % 3 > 0)))[0, label]


@pytest.mark.parametrize("randomized", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sharp_softmax_is_covered_at_99_percent(randomized, dtype):
    """Labels of probability 1e-30 stay apart; a core that works with 1 - p covers .865 at any of these levels."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((20_000, 7))
    y = (softmax(z, axis=1).cumsum(axis=1) < rng.random((len(z), 1))).sum(axis=1)
    P = softmax(12 * z, axis=1).astype(dtype)
    clf = ConformalClassifier(score="aps", randomized=randomized, random_state=0).conformalize(P[:10_000], y[:10_000])
    for level in (0.9, 0.95, 0.99):
        sets = clf.predict_set(P[10_000:], level)
        low, high = m.coverage_band(10_000, 10_000, level, probability=1 - 1e-5)
        assert low <= m.coverage(sets, y[10_000:])
        if randomized or level < 0.95:  # without, every label ranked last ties
            assert m.coverage(sets, y[10_000:]) <= high
        if level == 0.99:
            assert m.coverage(sets, y[10_000:]) >= 0.985
        if randomized:
            assert m.mean_set_size(sets) < 6.5


def test_log_probabilities_stay_apart_where_probabilities_are_zero():
    z = np.array([[0.0, -900.0, -1000.0, -1100.0]])
    scores = score_all("aps", log_softmax(z, axis=1), log=True)[0]
    assert len(set(scores)) == 4
    assert len(set(score_all("aps", softmax(z, axis=1))[0])) == 1
    np.testing.assert_allclose(scores, [-900, -1000, -1100, -np.inf])


@given(case=strategies.probabilities(ties=False), seed=seeds)
def test_scores_are_the_same_in_logarithms(case, seed):
    linear, logs = score_all("aps", case, seed=seed), score_all("aps", np.log(case), log=True, seed=seed)
    np.testing.assert_allclose(np.exp(logs), linear, rtol=1e-6, atol=1e-300)


def test_equal_probabilities_are_one_label_of_their_joint_mass():
    scores = score_all("aps", np.array([[0.25, 0.25, 0.5], [0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(scores, [[0, 0, 0.5], [0, 0, 0]])


@pytest.mark.parametrize(("n_classes", "scale"), [(2, 1.0), (2, 8.0), (3, 1.0), (7, 0.05), (7, 12.0), (40, 2.0)])
def test_the_number_of_a_case_is_spread_evenly(n_classes, scale):
    """Uniform as a whole, and among cases of like largest probability; Kolmogorov-Smirnov, over five seeds."""
    rng = np.random.default_rng(0)
    P = np.sort(softmax(scale * rng.standard_normal((20_000, n_classes)), axis=1), axis=1)
    by_confidence = np.array_split(np.argsort(P[:, -1]), 5)
    for seed in range(5):
        u = content_uniform(P, seed)
        assert stats.kstest(u, "uniform").pvalue > 1e-5
        assert all(stats.kstest(u[part], "uniform").pvalue > 1e-5 for part in by_confidence)
    assert abs(np.corrcoef(content_uniform(P, 0), content_uniform(P, 1))[0, 1]) < 0.05


@given(case=strategies.probabilities(ties=False), seed=seeds)
def test_rounding_hardly_moves_the_number_of_a_case(case, seed):
    ascending = np.sort(case, axis=1)
    noise = 1 + 1e-7 * np.random.default_rng(seed).uniform(-1, 1, case.shape)
    assert np.abs(content_uniform(ascending * noise, seed) - content_uniform(ascending, seed)).max() < 5e-4


def test_randomised_sets_repeat_and_follow_their_seed():
    P, y, _ = draw_cases(np.random.default_rng(0), 400, 5)

    def sets(seed):
        clf = conformalized(P[:200], y[:200], score="aps", random_state=seed)
        np.testing.assert_array_equal(clf.predict_set(P[200:]), clf.predict_set(P[200:]))
        return clf.predict_set(P[200:])

    np.testing.assert_array_equal(sets(1), sets(1))
    np.testing.assert_array_equal(sets(None), sets(None))
    assert (sets(1) != sets(2)).any()


def test_equal_rows_tie_even_when_randomised_and_ties_only_add():
    """Rows all equal, labels of the top class: one score, so that coverage is 1, above its band."""
    P = np.full((200, 3), [0.6, 0.3, 0.1])
    clf = conformalized(P, np.zeros(200, dtype=int), score="aps", randomized=True)
    assert len(set(clf.calibration_.scores)) == 1
    assert clf.predict_set(P)[:, 0].all()
    assert m.coverage_band(200, 200, 0.9)[1] < 1


def test_lac_keeps_empty_sets():
    P = np.array([[0.9, 0.1]] * 20)
    clf = ConformalClassifier(confidence_level=0.5).conformalize(P, np.zeros(20, dtype=int))
    assert clf.predict_set(np.array([[0.5, 0.5]])).sum() == 0
