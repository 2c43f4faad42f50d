"""The conformal classifier: thresholds, estimators, memory, and inputs that must be refused."""

import copy
import json
import math
import pickle
import tracemalloc
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from test_conformal_properties import CONDITIONS, conformalized, draw_cases, every_condition, every_score, groups_for

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import SCORES, CalibrationScores, HierarchicalConformalClassifier, least_n
from cbdc.conformal._seen import row_hashes
from cbdc.conformal.thresholds import round_up
from cbdc.errors import CalibrationSizeWarning, LeakageWarning, ParameterError

# --- thresholds


def test_nine_cases_are_enough_at_ninety_percent():
    P, y, _ = draw_cases(np.random.default_rng(0), 9, 3)
    clf = ConformalClassifier(confidence_level=0.9).conformalize(P, y)
    assert np.isfinite(clf.thresholds()).all()
    with pytest.warns(CalibrationSizeWarning, match="calibration: 8 cases, so every set holds every class"):
        clf = ConformalClassifier(confidence_level=0.9).conformalize(P[:8], y[:8])
    assert clf.thresholds() == -np.inf
    assert clf.predict_set(P).all()


@given(level=st.fractions(min_value="1/1000", max_value="999/1000", max_denominator=1000))
@example(level=Fraction(9, 10))
def test_least_n_is_the_least(level):
    n = least_n(float(level))
    assert m.conformal_rank(n, float(level)) <= n
    assert n == 0 or m.conformal_rank(n - 1, float(level)) > n - 1


def test_small_classes_and_groups_are_named_with_the_fix():
    rng = np.random.default_rng(0)
    P = softmax(rng.standard_normal((70, 3)), axis=1)
    y = np.repeat([0, 1], [65, 5])
    with pytest.warns(CalibrationSizeWarning) as caught:
        clf = ConformalClassifier(condition_on="class").conformalize(P, y)
    message = str(caught[0].message)
    for part in ("takes 9", "class 2: 0 cases", "class 1: 5 cases", "holds it", "Fix: calibrate on more"):
        assert part in message
    assert "class 0" not in message
    assert caught[0].filename == __file__
    sets = clf.predict_set(P)
    assert sets[:, 1:].all()
    assert not sets[:, 0].all()
    groups = np.repeat(["I-II", "V-VI"], [66, 4])
    with pytest.warns(CalibrationSizeWarning, match="group 'V-VI': 4 cases, so every set there holds every class"):
        clf = ConformalClassifier(condition_on="group").conformalize(P, y, groups=groups)
    assert clf.predict_set(P[:3], groups=["V-VI"] * 3).all()
    assert not clf.predict_set(P, groups=["I-II"] * 70).all()
    with pytest.warns(
        CalibrationSizeWarning, match="class 2 in group 'I-II': 0 cases, so every set there holds this class"
    ):
        ConformalClassifier(condition_on="class_and_group").conformalize(P, y, groups=groups)


def test_another_level_warns_by_itself():
    P, y, _ = draw_cases(np.random.default_rng(0), 50, 3)
    clf = ConformalClassifier(confidence_level=0.9).conformalize(P, y)
    with pytest.warns(CalibrationSizeWarning, match=r"level 0\.99, which takes 99"):
        assert clf.predict_set(P, 0.99).all()


def test_rounding_of_a_tie_keeps_it_in_the_set():
    """Sums of votes in another order: .1 + .2 + .3 differs from .3 + .2 + .1 in the last place."""
    P = np.full((20, 2), [0.1 + 0.2 + 0.3, 0.4])
    Q = np.full((5, 2), [0.3 + 0.2 + 0.1, 0.4])
    assert Q[0, 0] < P[0, 0]
    for options in ({}, {"score": "aps", "randomized": False}):
        clf = ConformalClassifier(**options).conformalize(P, np.zeros(20, dtype=int))
        assert clf.predict_set(Q)[:, 0].all()


@given(st.floats(-1e30, 1e30) | st.just(-np.inf))
def test_comparing_in_float32_is_comparing_exactly(threshold):
    rounded = round_up(np.array([threshold]), np.dtype(np.float32))[0]
    assert rounded.dtype == np.float32
    assert float(rounded) >= threshold
    assert float(np.nextafter(rounded, np.float32(-np.inf))) < threshold or threshold == -np.inf


def test_the_calibration_table_is_sorted_by_condition():
    calibration = CalibrationScores.from_cases(np.array([3.0, 1, 2, 0]), np.array([1, 0, 1, 3]), (2, 2))
    np.testing.assert_allclose(calibration.scores, [1, 2, 3, 0], atol=1e-6)
    np.testing.assert_array_equal(calibration.counts, [[1, 2], [0, 1]])
    np.testing.assert_array_equal(calibration.offsets, [[0, 1], [3, 3]])
    np.testing.assert_allclose(calibration.thresholds(0.5), [[1, 2], [-np.inf, 0]], atol=1e-6)


# --- over estimators


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True, as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    order = np.random.default_rng(0).permutation(len(y))
    return X.iloc[order].reset_index(drop=True), names[order]


def fitted(iris, estimator=None, **options):
    X, y = iris
    return ConformalClassifier(LogisticRegression(max_iter=1000) if estimator is None else estimator, **options).fit(
        X[:60], y[:60]
    )


def test_names_frames_and_pipelines(iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    clf = fitted(iris, pipeline, condition_on="class").conformalize(X[60:120], y[60:120])
    np.testing.assert_array_equal(clf.classes_, ["setosa", "versicolor", "virginica"])
    np.testing.assert_array_equal(clf.feature_names_in_, X.columns)
    assert clf.predict_set(X[120:]).shape == (30, 3)
    np.testing.assert_array_equal(clf.predict(X[120:]), pipeline.fit(X[:60], y[:60]).predict(X[120:]))
    np.testing.assert_array_equal(clf.predict_proba(X[120:]), pipeline.predict_proba(X[120:]))
    assert clf.score(X[120:], y[120:]) == pipeline.score(X[120:], y[120:])
    inside = make_pipeline(StandardScaler(), ConformalClassifier(LogisticRegression()))
    assert inside.fit(X[:60], y[:60]).predict(X[60:]).shape == (90,)
    string_labels = clone(clf).fit(X[:60], pd.Series(y[:60])).conformalize(X[60:120], pd.Series(y[60:120]))
    np.testing.assert_array_equal(string_labels.predict_set(X[120:]), clf.predict_set(X[120:]))


def test_prefit_frozen_and_refitted_agree(iris):
    X, y = iris
    estimator = LogisticRegression(max_iter=1000).fit(X[:60], y[:60])
    expected = fitted(iris).conformalize(X[60:], y[60:]).predict_set(X)
    for clf in (ConformalClassifier(estimator, prefit=True), ConformalClassifier(FrozenEstimator(estimator)).fit(X, y)):
        np.testing.assert_array_equal(clf.conformalize(X[60:], y[60:]).predict_set(X), expected)
    frozen = clone(ConformalClassifier(FrozenEstimator(estimator))).conformalize(X[60:], y[60:])  # no fit
    np.testing.assert_array_equal(frozen.predict_set(X), expected)
    with pytest.raises(NotFittedError):
        ConformalClassifier(LogisticRegression(), prefit=True).conformalize(X, y)
    for other in (estimator, LogisticRegression()):
        with pytest.raises(NotFittedError, match=r"call fit\(X, y\) first, or give prefit=True"):
            ConformalClassifier(other).conformalize(X[60:], y[60:])


def test_fit_drops_old_scores_and_the_name_of_the_score_is_a_parameter(iris):
    X, y = iris
    clf = fitted(iris, score="aps").conformalize(X[60:], y[60:])
    with pytest.raises(NotFittedError, match="conformalize"):
        clf.fit(X[:60], y[:60]).predict_set(X)
    assert clf.get_params()["score"] == "aps"
    assert clf.set_params(score="lac").get_params()["score"] == "lac"
    assert clone(clf).get_params()["score"] == "lac"
    assert "score='aps'" in repr(ConformalClassifier(score="aps"))


@pytest.mark.parametrize("score", ["lac", "aps"])
@every_condition
def test_parameters_set_after_calibration_wait_for_the_next_one(condition, score):
    P, y, groups = draw_cases(np.random.default_rng(0), 400, 3)
    clf = conformalized(P[:300], y[:300], groups[:300], **condition, score=score)

    def answers():
        given = {"groups": groups[300:]}
        return clf.predict_set(P[300:], **given).tolist(), clf.p_values(P[300:], **given).tolist(), clf.certificate()

    before, state = answers(), clf.get_state()[1]
    others = {"score": "aps" if score == "lac" else "lac", "randomized": False, "random_state": 3}
    for other in ("class", "group", None):
        clf.set_params(condition_on=other, rank_calibrated=False, guarantee="marginal", window=None, **others)
        assert answers() == before
        assert clf.get_state()[1] == state
    clf.conformalize(P[:300], y[:300])
    assert answers() != before
    clf.set_params(confidence_level=0.5)
    np.testing.assert_array_equal(
        clf.predict_set(P[300:], groups=groups[300:]), clf.predict_set(P[300:], 0.5, groups=groups[300:])
    )


def test_a_calibration_that_fails_leaves_none():
    P, y, _ = draw_cases(np.random.default_rng(0), 60, 3)
    clf = ConformalClassifier().conformalize(P, y)
    with pytest.raises(ValueError, match="groups is missing"):
        clf.set_params(score="aps", condition_on="group").conformalize(P, y)
    with pytest.raises(NotFittedError, match="conformalize"):
        clf.predict_set(P)


class Sharp(ClassifierMixin, BaseEstimator):
    """Gives (log-)probabilities that are X."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return softmax(X, axis=1)

    def predict_log_proba(self, X):
        return log_softmax(X, axis=1)


def test_logarithms_are_used_where_the_estimator_has_them():
    rng = np.random.default_rng(0)
    Z = 600 * rng.standard_normal((4000, 3))
    y = rng.integers(0, 3, 4000)  # labels that the estimator knows nothing of
    for score in set(SCORES) - {"topk"}:  # whose ranks tie
        clf = ConformalClassifier(Sharp(), score=score).fit(Z[2000:], y[2000:]).conformalize(Z[:2000], y[:2000])
        sets = clf.predict_set(Z[2000:])
        low, high = m.coverage_band(2000, 2000, 0.9, probability=1 - 1e-5)
        assert low <= m.coverage(sets, y[2000:]) <= high


@pytest.mark.parametrize("estimator", [GaussianNB(), RandomForestClassifier(n_estimators=7, random_state=0)])
@every_score
def test_exact_zeros_and_votes_are_covered(iris, estimator, options):
    X, y = iris
    clf = fitted(iris, estimator, confidence_level=0.8, **options).conformalize(X[60:], y[60:])
    sets = clf.predict_set(X[60:])
    codes = np.searchsorted(clf.classes_, y[60:])
    assert m.coverage(sets, codes) >= 0.8


@pytest.mark.parametrize("score", SCORES)
def test_state_round_trip(iris, score):
    X, y = iris
    groups = np.where(np.arange(90) % 2, "a", "b")
    for condition in [parameter.values[0] for parameter in CONDITIONS]:
        clf = fitted(iris, score=score, random_state=7, confidence_level=0.7, **condition)
        if score == "raps" or clf.rank_calibrated or clf.condition_on == "cluster":
            clf.tune(X[:60], y[:60])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationSizeWarning)
            clf.conformalize(X[60:], y[60:], groups=groups_for(condition, groups))
        arrays, document = clf.get_state()
        document = json.loads(json.dumps(document))
        again = ConformalClassifier.from_state(arrays, document, estimator=clf.estimator_)
        np.testing.assert_array_equal(again.predict_set(X[60:], groups=groups), clf.predict_set(X[60:], groups=groups))
        np.testing.assert_array_equal(again.p_values(X[60:], groups=groups), clf.p_values(X[60:], groups=groups))
        assert again.certificate() == clf.certificate()
        extra = {"columns"} if clf.condition_on == "cluster" else {"rank_limits"} if clf.rank_calibrated else set()
        assert set(arrays) == {"scores", "counts"} | extra
        assert len(arrays["scores"]) == 90  # one number a case, no image
    with pytest.raises(ValueError, match="2 classes, but 3"):
        ConformalClassifier.from_state(arrays, document, estimator=LogisticRegression().fit(X[:60], y[:60] == "setosa"))
    P = softmax(np.random.default_rng(0).standard_normal((40, 3)), axis=1)
    clf = ConformalClassifier().conformalize(P, np.arange(40) % 3)
    np.testing.assert_array_equal(ConformalClassifier.from_state(*clf.get_state()).predict_set(P), clf.predict_set(P))


def test_counts_go_into_the_coverage_table():
    rng = np.random.default_rng(0)
    P, y, groups = draw_cases(rng, 900, 3)
    for condition, expected in [
        (None, 600),
        ("class", np.bincount(y[:600])),
        ("group", {g: int((groups[:600] == g).sum()) for g in (0, 1)}),
        ("class_and_group", {g: np.bincount(y[:600][groups[:600] == g]) for g in (0, 1)}),
    ]:
        clf = conformalized(P[:600], y[:600], groups[:600], condition_on=condition)
        np.testing.assert_equal(clf.n_calibration_, expected)
        table = m.coverage_table(
            clf.predict_set(P[600:], groups=groups[600:]),
            y[600:],
            groups=groups[600:],
            n_calibration=clf.n_calibration_,
            confidence_level=0.9,
            probability=1 - 1e-5,
        )
        whole = table.iloc[0]
        assert whole["band_low"] <= whole["coverage"] <= whole["band_high"]


TABLES = [
    {"guarantee": "pac"},
    {"guarantee": "pac", "condition_on": "class", "window": 50},
    {"condition_on": "cluster"},
    {"condition_on": "group", "small_groups": "merge"},
    {"condition_on": "class_and_group", "guarantee": "pac"},
    {"score": "topk"},
]


@pytest.mark.parametrize("options", TABLES)
def test_the_table_of_coverage_has_the_band_of_its_calibration(options):
    """Over 40 calibrations: the row of all cases lies in its 95% band, that of the ranks, cells and ties there are."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(40):
        P, y, _ = draw_cases(rng, 1000, 4)
        groups = rng.choice(["a", "b", "c"], 1000, p=[0.7, 0.29, 0.01])
        clf = conformalized(P[:400], y[:400], groups[:400], **options)
        test = {"X": P[400:], "groups": groups[400:]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationSizeWarning)
            try:
                table = clf.coverage_table(test["X"], y[400:], test["groups"])
            except ParameterError:  # the rarest group was not calibrated
                continue
        whole = table.iloc[0]
        inside += whole["band_low"] <= whole["coverage"] <= whole["band_high"]
        level_of_conditions = {c.n: c.rank for c in clf.certificate().conditions}
        cells = clf._group_codes(test["groups"], 600) * clf.calibration_.counts.shape[1]
        cells += 0 if clf.columns_ is None else clf.columns_[y[400:]]
        n_test = np.bincount(cells, minlength=clf.calibration_.counts.size)
        n = clf.calibration_.counts.ravel()[n_test > 0]
        ranks = [level_of_conditions[k] for k in n]
        band = m.coverage_band(n, n_test[n_test > 0], 0.9, probability=0.95, ranks=ranks)
        assert whole["band_low"] == band[0]
        assert whole["band_high"] == (1 if options.get("score") == "topk" else band[1])
        rows = set(table["name"])
        assert set(range(4)) < rows
        if options.get("small_groups") == "merge":
            assert set(clf.groups_.tolist()) < rows
    assert inside >= 32


def test_the_table_of_coverage_counts_what_it_is_given():
    rng = np.random.default_rng(0)
    P, y, groups = draw_cases(rng, 900, 3)
    clf = ConformalClassifier().conformalize(P[:400], y[:400])
    table = clf.coverage_table(P[400:], y[400:], groups[400:], 0.8, least_n=200, probability=0.9)
    expected = m.coverage_table(
        clf.predict_set(P[400:], 0.8), y[400:], groups=groups[400:], n_calibration=400, confidence_level=0.8,
        least_n=200, probability=0.9,
    )  # fmt: skip
    pd.testing.assert_frame_equal(table, expected)
    two = np.stack([groups, groups], axis=1).astype(str)
    assert "0, 0" in set(clf.coverage_table(P[400:], y[400:], two[400:])["name"])
    units = rng.integers(0, 150, 400)
    shared = ConformalClassifier().conformalize(P[:400], y[:400], units=units)
    assert shared.coverage_table(P[400:], y[400:])["band_low"].isna().all()
    drawn = ConformalClassifier(repeated="one").conformalize(P[:400], y[:400], units=units)
    n = len(set(units.tolist()))
    band = m.coverage_band(n, 500, 0.9, probability=0.95)
    assert tuple(drawn.coverage_table(P[400:], y[400:]).loc[0, ["band_low", "band_high"]]) == band
    with pytest.raises(NotFittedError, match="conformalize"):
        ConformalClassifier().fit(P).coverage_table(P, y)


def test_the_table_of_coverage_takes_the_names_of_classes(iris):
    X, y = iris
    clf = fitted(iris, condition_on="class").conformalize(X[60:120], y[60:120])
    table = clf.coverage_table(X[120:], y[120:], least_n=1)
    assert table["name"].tolist() == ["all", *clf.classes_]
    assert table["n"].tolist() == [30, *(int((y[120:] == name).sum()) for name in clf.classes_)]
    assert table["band_low"].notna().all()


def test_the_guarantee_in_words():
    P, y, groups = draw_cases(np.random.default_rng(0), 400, 3)
    clf = ConformalClassifier().conformalize(P, y)
    low, high = stats.beta.ppf([0.05, 0.95], 361, 40)
    text = str(clf.certificate())
    for part in ("exchangeable", "at least 0.9 on average", "n = 400", f"{low:.3f} to {high:.3f}", "single case"):
        assert part in text
    assert "0.75" in str(clf.certificate(0.75))
    text = conformalized(P[:30], y[:30], groups[:30], condition_on="class_and_group").certificate()
    text = str(text)
    assert "each class in each group" in text
    assert "always in the set" in text


@pytest.mark.parametrize("guarantee", ["marginal", "pac"])
@pytest.mark.parametrize(
    ("options", "votes"),
    [({"score": "topk"}, None), ({"score": "lac"}, 10), ({"score": "aps"}, 30), ({"score": "lac"}, None)],
)
def test_the_band_holds_where_scores_tie(options, votes, guarantee):
    """A population of 20,000 whose coverage is counted; 60 calibrations on 300 of it."""
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 20_000, 7, scale=1.5)
    if votes:
        P = rng.multinomial(votes, P) / votes
    clf, inside = ConformalClassifier(**options, guarantee=guarantee), 0
    for _ in range(60):
        rows = rng.permutation(20_000)[:300]
        condition = clf.conformalize(P[rows], y[rows]).certificate().conditions[0]
        sets = clf.predict_set(P)
        inside += condition.low <= m.coverage(sets, y) <= condition.high
        if not votes:
            assert (condition.high == 1) == (options["score"] == "topk")
        assert ("or more" in str(clf.certificate())) == (condition.high == 1)
    assert m.clopper_pearson(inside, 60, 1 - 1e-4)[1] >= 0.9


# --- memory


@every_score
def test_memory_is_at_most_four_bytes_a_cell(options):
    rng = np.random.default_rng(0)
    P = softmax(rng.standard_normal((50_000, 40), dtype=np.float32), axis=1)
    y = rng.integers(0, 40, len(P))
    for condition in (None, "class"):
        tracemalloc.start()
        conformalized(P[:10_000], y[:10_000], condition_on=condition, **options).predict_set(P)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 4 * P.size


# --- bad input

GOOD = np.full((30, 3), 1 / 3)
LABELS = np.arange(30) % 3


def with_row(values):
    P = GOOD.copy()
    P[7] = values
    return P


@pytest.mark.parametrize(
    ("P", "message"),
    [
        (with_row([np.nan, 0.5, 0.5]), "row 7 holds NaN"),
        (with_row([np.inf, 0, 0]), "row 7 holds NaN or infinity"),
        (with_row([0.5, 0.7, -0.2]), "row 7 holds -0.2"),
        (with_row([0.5, 0.5, 0.5]), "row 7 sums to 1.5"),
    ],
)
def test_bad_probabilities_name_their_row(P, message):
    with pytest.raises(ValueError, match=message):
        ConformalClassifier().conformalize(P, LABELS)
    with pytest.raises(ValueError, match=message):
        ConformalClassifier().conformalize(GOOD, LABELS).predict_set(P)


def test_probabilities_of_float16_are_told_to_be_renormalised():
    P = softmax(np.random.default_rng(0).standard_normal((200, 40)), axis=1).astype(np.float16)
    y = np.arange(200) % 40
    with pytest.raises(ValueError, match=r"float16 for example, divide each row by its sum"):
        ConformalClassifier().conformalize(P, y)
    P = P.astype(np.float32)
    ConformalClassifier().conformalize(P / P.sum(axis=1, keepdims=True), y)
    with pytest.raises(ValueError, match="not logits"):
        ConformalClassifier().conformalize(3 * P, y)


def test_wrong_width_and_reordered_columns_are_refused(iris):
    clf = ConformalClassifier().conformalize(GOOD, LABELS)
    with pytest.raises(ValueError, match=r"4 features.*expecting 3"):
        clf.predict_set(np.full((2, 4), 0.25))
    frame = pd.DataFrame(GOOD, columns=["bcc", "mel", "nv"])
    clf = ConformalClassifier().conformalize(frame, LABELS)
    with pytest.raises(ValueError, match="same order"):
        clf.predict_set(frame[["nv", "mel", "bcc"]])
    X, y = iris
    clf = fitted(iris).conformalize(X[60:], y[60:])
    with pytest.raises(ValueError, match="same order"):
        clf.predict_set(X[X.columns[::-1]])
    with pytest.raises(ValueError, match="feature names"):
        clf.predict_set(X.iloc[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        clf.predict_set(X.mask(X > 7))


def test_unknown_labels_are_named(iris):
    X, y = iris
    clf = fitted(iris)
    for unknown in ("virginica2", "versicolor2"):  # the second, cut to the length of the classes, would be one
        labels = y.copy().astype(object)
        labels[65] = unknown
        with pytest.raises(ValueError, match=f"case 5 has the label '{unknown}'.*'setosa'"):
            clf.conformalize(X[60:], labels[60:])
    truncated = np.array([name + "?" for name in y])
    with pytest.raises(ValueError, match="case 0"):
        clf.conformalize(X[60:], truncated[60:])
    for labels in (np.arange(90), np.full(90, None), np.full(90, np.nan)):
        with pytest.raises(ValueError, match=r"case 0 has the label|contains NaN"):
            clf.conformalize(X[60:], labels)
    with pytest.raises(ValueError, match="case 3 has class 3"):
        ConformalClassifier().conformalize(GOOD, np.where(np.arange(30) == 3, 3, LABELS))
    with pytest.raises(ValueError, match="29"):
        clf.conformalize(X[60:90], y[60:89])


@pytest.mark.parametrize("condition_on", [None, "class"])
def test_groups_that_a_condition_does_not_take_are_refused(condition_on):
    with pytest.raises(ParameterError, match=r"groups: condition_on=.* takes none. Fix: condition_on='group'"):
        ConformalClassifier(condition_on=condition_on).conformalize(GOOD, LABELS, groups=["a"] * 30)
    with pytest.raises(ParameterError, match=r"groups: condition_on=.* takes none"):
        HierarchicalConformalClassifier(condition_on=condition_on).conformalize(GOOD, LABELS, groups=["a"] * 30)


def test_groups_must_be_there_and_known():
    clf = ConformalClassifier(condition_on="group")
    with pytest.raises(ValueError, match="groups is missing"):
        clf.conformalize(GOOD, LABELS)
    with pytest.raises(ValueError, match="one for each case"):
        clf.conformalize(GOOD, LABELS, groups=["a"])
    with pytest.raises(ValueError, match="case 4 has none"):
        clf.conformalize(GOOD, LABELS, groups=np.where(np.arange(30) == 4, np.nan, 2.0))
    with pytest.raises(ValueError, match="case 4 has none"):
        clf.conformalize(GOOD, LABELS, groups=pd.Series(["a", "b"] * 15).where(np.arange(30) != 4))
    with pytest.raises(ValueError, match="mixed"):
        clf.conformalize(GOOD, LABELS, groups=np.array(["a", 1] * 15, dtype=object))
    clf.conformalize(GOOD, LABELS, groups=["I-II", "III-IV"] * 15)
    with pytest.raises(ValueError, match="groups is missing"):
        clf.predict_set(GOOD)
    with pytest.raises(ValueError, match=r"case 1 is of group 'V-VI'.*known are 'I-II', 'III-IV'"):
        clf.predict_set(GOOD[:2], groups=["I-II", "V-VI"])
    with pytest.raises(ValueError, match="case 0 is of group 1"):
        clf.predict_set(GOOD[:2], groups=[1, 2])
    numbers = ConformalClassifier(condition_on="group").conformalize(GOOD, LABELS, groups=[1, 2] * 15)
    for groups in ([1.0, 2.0], pd.Series([1, 2]), pd.Series([1, 2], dtype="Int64")):
        assert numbers.predict_set(GOOD[:2], groups=groups).shape == (2, 3)


def test_out_of_order_calls_are_named(iris):
    X, y = iris
    with pytest.raises(NotFittedError):
        ConformalClassifier(LogisticRegression()).conformalize(X, y)
    for call in ("predict_set", "p_values"):
        with pytest.raises(NotFittedError, match="conformalize"):
            getattr(fitted(iris), call)(X)
    with pytest.raises(NotFittedError, match="conformalize"):
        fitted(iris).certificate()


@pytest.mark.parametrize(
    "options",
    [{"score": "raps?"}, {"condition_on": "patient"}, {"confidence_level": 90}, {"confidence_level": 1.0}],
)
def test_parameters_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ConformalClassifier(**options).conformalize(GOOD, LABELS)


@pytest.mark.parametrize("level", [1e-10, 1 - 1e-10])
def test_levels_that_round_to_0_or_1_are_refused_everywhere(level):
    clf = ConformalClassifier().conformalize(GOOD, LABELS)
    calls = [
        lambda: least_n(level),
        lambda: clf.predict_set(GOOD, level),
        lambda: clf.thresholds(level),
        lambda: clf.certificate(level),
        lambda: ConformalClassifier(confidence_level=level).fit(GOOD),
        lambda: ConformalClassifier(confidence_level=level).conformalize(GOOD, LABELS),
    ]
    for call in calls:
        with pytest.raises(ParameterError, match="nine digits"):
            call()


def test_an_estimator_without_probabilities_is_refused(iris):
    with pytest.raises(ValueError, match="predict_proba"):
        fitted(iris, LinearSVC())
    with pytest.raises(ValueError, match="confidence_level"):
        ConformalClassifier().conformalize(GOOD, LABELS).predict_set(GOOD, 95)


def leaky(rng, n=300):
    X = rng.standard_normal((n, 4))
    return X, (X[:, 0] + rng.standard_normal(n) > 0).astype(int)


@pytest.mark.parametrize("convert", [np.asarray, np.float32, pd.DataFrame, lambda X: pd.DataFrame(X).astype(object)])
def test_cases_that_were_trained_on_are_noticed(convert):
    X, y = leaky(np.random.default_rng(0))
    clf = ConformalClassifier(LogisticRegression()).fit(convert(X[:150]), y[:150])
    clf.conformalize(convert(X[150:]), y[150:])
    for part, found in ((slice(0, 150), 150), (slice(130, 300), 20)):
        with pytest.warns(
            LeakageWarning, match=f"{found} of .* calibration cases are rows .* was trained on"
        ) as caught:
            clf.conformalize(convert(X[part]), y[part])
        assert caught[0].filename == __file__
    for other in (clone(clf).fit(convert(X[150:]), y[150:]), pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        other.conformalize(convert(X[:150]), y[:150])
        assert "_seen" not in other.__getstate__()


def test_cases_that_were_tuned_on_are_noticed():
    P, y, _ = draw_cases(np.random.default_rng(0), 600, 3)
    clf = ConformalClassifier(score="raps").tune(P[:300], y[:300])
    with pytest.warns(LeakageWarning, match="300 of 300 calibration cases are rows .* was tuned on"):
        clf.conformalize(P[:300], y[:300])
    clf.conformalize(P[300:], y[300:])
    clf.tune(P[300:], y[300:]).tune(P[300:], y[300:]).conformalize(P[:300], y[:300])
    clf.fit(P[:300]).set_params(score="lac").conformalize(P[:300], y[:300])  # without an estimator fit sees nothing
    assert "none of them trained or tuned on" in str(clf.certificate())


@pytest.mark.parametrize("estimator", [{"prefit": True}, {}])
def test_an_estimator_that_was_fitted_elsewhere_saw_nothing_here(estimator):
    X, y = leaky(np.random.default_rng(0))
    model = LogisticRegression().fit(X, y)
    clf = ConformalClassifier(model if estimator else FrozenEstimator(model), **estimator)
    clf.fit(X, y).conformalize(X, y)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(20, 400), m=st.integers(20, 400), votes=st.integers(2, 40))
def test_votes_that_coincide_are_no_leak(seed, n, m, votes):
    P, y, _ = draw_cases(np.random.default_rng(seed), n + m, 3)
    P = np.random.default_rng(seed).multinomial(votes, P) / votes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        ConformalClassifier(score="raps").tune(P[:n], y[:n]).conformalize(P[n:], y[n:])


def test_rows_are_alike_by_what_they_hold():
    table = pd.DataFrame({"site": ["back", "face", "back"], "age": [40, 50, 40]})
    hashes = row_hashes(table)
    assert hashes[0] == hashes[2] != hashes[1]
    np.testing.assert_array_equal(row_hashes(np.array([[0.0, 1]])), row_hashes(np.array([[-0.0, 1]], dtype=np.float32)))
    assert len(set(row_hashes(np.random.default_rng(0).integers(0, 2, (500, 60))))) == 500
    for none in (sparse.csr_matrix(np.eye(3)), [[[1]], [[1, 2]]], np.array([[[1]], [[1, 2]]], dtype=object)):
        assert len(row_hashes(none)) == 0


def test_calibration_holds_no_case():
    """Nothing but scores and counts is kept, in copies either."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 5)), rng.integers(0, 2, 200)
    clf = ConformalClassifier(LogisticRegression()).fit(X[:100], y[:100]).conformalize(X[100:], y[100:])
    sizes = {name: np.size(value) for name, value in vars(clf).items() if isinstance(value, np.ndarray)}
    assert max(sizes.values()) <= 5
    assert math.prod(clf.calibration_.scores.shape) == 100
