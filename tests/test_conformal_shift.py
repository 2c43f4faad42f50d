"""Label shift, covariate shift, and few local cases."""

import itertools
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier
from test_conformal_properties import OPTIONS, draw_cases

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import (
    CovariateShiftConformalClassifier,
    LabelShiftConformalClassifier,
    SyntheticPoweredConformalClassifier,
    guard_ranks,
)
from cbdc.errors import CalibrationSizeWarning, ParameterError

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import shift_reference

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=8)
every_score = pytest.mark.parametrize("options", OPTIONS)


def by_class(rng, y, n_classes, prior=1.0):
    """Probabilities of cases whose law given the class never changes."""
    logits = 1.5 * (np.eye(n_classes)[y] + rng.standard_normal((len(y), n_classes)))
    return softmax(logits + np.log(prior), axis=1)


def estimators(P, y, options, level=0.8):
    """Each of the three, calibrated."""
    n = len(y)
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(P.shape[1], 5.0))
    kind = {"confidence_level": level, **options}
    known = np.bincount(y, minlength=P.shape[1]) > 0
    shares = shares * known / np.sum(shares * known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        yield LabelShiftConformalClassifier(**kind).conformalize(P, y).adapt(prevalence=shares)
        yield CovariateShiftConformalClassifier(**kind).conformalize(P, y, weights=lambda X: 0.2 + X[:, 0])
        half = max(1, n // 4)
        yield SyntheticPoweredConformalClassifier(**kind).conformalize(P[:half], y[:half], source=(P[half:], y[half:]))


# --- no shift


@few
@every_score
@given(seed=seeds, level=st.sampled_from([0.5, 0.8, 0.9]))
def test_weights_of_one_are_the_plain_conformal_sets(options, seed, level):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 80, 3)
    plain = ConformalClassifier(confidence_level=level, **options).conformalize(P[:60], y[:60]).predict_set(P[60:])
    label = LabelShiftConformalClassifier(confidence_level=level, **options).conformalize(P[:60], y[:60])
    np.testing.assert_array_equal(label.predict_set(P[60:]), plain)
    covariate = CovariateShiftConformalClassifier(confidence_level=level, **options)
    covariate.conformalize(P[:60], y[:60], weights=lambda X: np.ones(len(X)))
    np.testing.assert_array_equal(covariate.predict_set(P[60:]), plain)
    assert label.effective_n_ == covariate.effective_n_ == pytest.approx(60)


# --- oracles


@given(seed=seeds, level=st.sampled_from([0.5, 0.8, 0.9]))
def test_label_shift_sets_equal_the_reference(seed, level):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 45, 3)
    y[:3] = 0, 1, 2
    shares = rng.dirichlet(np.ones(3))
    clf = LabelShiftConformalClassifier(confidence_level=level).conformalize(P[:40], y[:40]).adapt(prevalence=shares)
    w = shares / (np.bincount(y[:40], minlength=3) / 40)
    scores = 1 - P[np.arange(40), y[:40]]
    for row, found in zip(P[40:], clf.predict_set(P[40:])):
        expected = shift_reference.weighted_set(scores - 1e-7, w[y[:40]], 1 - row, w, level)
        looser = shift_reference.weighted_set(scores + 1e-6, w[y[:40]], 1 - row, w, level)
        if expected == looser:
            assert found.tolist() == expected


@given(seed=seeds, level=st.sampled_from([0.5, 0.8, 0.9]))
def test_covariate_shift_sets_equal_the_reference(seed, level):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 45, 3)
    clf = CovariateShiftConformalClassifier(confidence_level=level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        clf.conformalize(P[:40], y[:40], weights=lambda X: X[:, 0] ** 2)
    scores = 1 - P[np.arange(40), y[:40]]
    for row, found in zip(P[40:], clf.predict_set(P[40:])):
        own = [row[0] ** 2] * 3
        expected = shift_reference.weighted_set(scores - 1e-7, P[:40, 0] ** 2, 1 - row, own, level)
        looser = shift_reference.weighted_set(scores + 1e-6, P[:40, 0] ** 2, 1 - row, own, level)
        if expected == looser:
            assert found.tolist() == expected


@pytest.mark.parametrize(("n", "n_source", "r"), [(3, 4, 1), (3, 4, 2), (4, 5, 5), (2, 6, 3)])
def test_places_follow_their_law(n, n_source, r):
    law = stats.betabinom.pmf(np.arange(n_source + 1), n_source, r, n + 2 - r)
    np.testing.assert_allclose(law, shift_reference.place_law(n, n_source, r), atol=1e-12)


@pytest.mark.parametrize(("n", "n_source"), [(2, 9), (3, 8), (4, 7), (5, 5)])
@pytest.mark.parametrize("level", [Fraction(1, 2), Fraction(3, 4), Fraction(9, 10)])
def test_guards_are_those_of_the_enumeration(n, n_source, level):
    for beta in (0.05, 0.37, 0.71):
        assert guard_ranks(n, n_source, float(level), beta) == shift_reference.guard_ranks(n, n_source, level, beta)


@settings(max_examples=10)
@given(seed=seeds, shift=st.sampled_from([0.0, 3.0, -3.0]), level=st.sampled_from([0.5, 0.8, 0.9]))
def test_leaving_each_local_case_out_covers_between_the_bounds(seed, shift, level):
    """Of n + 1 local cases, each in turn the new one, low to high are covered, whatever the other source is."""
    rng = np.random.default_rng(seed)
    y, z = rng.integers(0, 3, 13), rng.integers(0, 3, 50)
    P = softmax(1.5 * np.eye(3)[y] + rng.standard_normal((13, 3)), axis=1)
    source = softmax((1.5 + shift) * np.eye(3)[z] + rng.standard_normal((50, 3)), axis=1)
    covered = 0
    for i in range(13):
        clf = SyntheticPoweredConformalClassifier(confidence_level=level)
        clf.conformalize(np.delete(P, i, axis=0), np.delete(y, i), source=(source, z))
        covered += clf.predict_set(P[[i]])[0, y[i]]
    low, high = guard_ranks(12, 50, level)
    assert low <= covered <= high
    assert clf.bounds() == (low / 13, high / 13)


def test_the_upper_bound_is_one_where_local_scores_tie():
    P, y = np.array([[0.6, 0.4]] * 30), np.repeat([0, 1], [20, 10])
    clf = SyntheticPoweredConformalClassifier(confidence_level=0.5).conformalize(P, y, source=(P, y))
    assert clf.predict_set(P)[:, 0].all()
    assert clf.bounds()[0] < 20 / 31
    assert clf.bounds()[1] == 1


# --- coverage


def covered_rate(runs, covered):
    """Exact interval of a rate that is not to be left but once in 10^5."""
    return m.clopper_pearson(covered, runs, 1 - 1e-5)


@pytest.mark.parametrize("options", [{"score": "lac"}, {"score": "aps"}, {"score": "raps"}])
def test_mean_coverage_under_known_shift(options):
    """One new case for each of many calibrations, so that the count is binomial; all prevalences and weights known."""
    rng = np.random.default_rng(0)
    source, target = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    runs, label, covariate = 3000, 0, 0
    for _ in range(runs):
        y = np.append(rng.choice(3, 60, p=source), rng.choice(3, p=target))
        P = by_class(rng, y, 3)
        clf = LabelShiftConformalClassifier(**options).conformalize(P[:60], y[:60], source_prevalence=source)
        label += clf.adapt(prevalence=target).predict_set(P[60:])[0, y[60]]
        x = np.append(rng.random(60), np.sqrt(rng.random()))  # uniform, and of density 2x
        p = np.stack([x, 1 - x], axis=1)
        z = (rng.random(61) > x).astype(int)
        weighted = CovariateShiftConformalClassifier(**options)
        weighted.conformalize(p[:60], z[:60], weights=lambda X: X[:, 0])
        covariate += weighted.predict_set(p[60:])[0, z[60]]
    for covered in (label, covariate):
        low, high = covered_rate(runs, covered)
        assert high >= 0.9
        assert low <= 0.9 + 0.06  # at most the weight of one case above


def test_malignant_prevalence_four_times_as_high():
    """Adapted coverage is back in its band; the naive one is outside."""
    rng = np.random.default_rng(0)
    source, target = np.array([0.85, 0.15]), np.array([0.4, 0.6])
    y, z = rng.choice(2, 4000, p=source), rng.choice(2, 4000, p=target)
    P, Q = by_class(rng, y, 2, source), by_class(rng, z, 2, source)
    other = by_class(rng, rng.choice(2, 2000, p=target), 2, source)
    clf = LabelShiftConformalClassifier().conformalize(P, y)
    low, high = m.coverage_band(4000, 4000, 0.9, probability=0.99)
    assert not low <= m.coverage(clf.predict_set(Q), z) <= high
    n = int(clf.adapt(prevalence=target).effective_n_)
    low, high = m.coverage_band(n, 4000, 0.9, probability=0.99)
    assert low <= m.coverage(clf.predict_set(Q), z) <= high
    for method in ("bbse", "em"):
        clf.set_params(method=method).adapt(other)
        np.testing.assert_allclose(clf.prevalence_, target, atol=0.06 if method == "bbse" else 0.2)
        if method == "bbse":
            assert low - clf.coverage_loss_ <= m.coverage(clf.predict_set(Q), z) <= high + clf.coverage_loss_


def test_weighted_conformal_covers_its_level_and_sorting_by_weight_does_not():
    """.90 within its band, where weights summed in their own order give .99."""
    rng = np.random.default_rng(1)
    x, new = rng.random(3000), rng.random(3000) ** 0.25  # density 4 x^3
    P, Q = np.stack([x, 1 - x], axis=1), np.stack([new, 1 - new], axis=1)
    y, z = (rng.random(3000) > x).astype(int), (rng.random(3000) > new).astype(int)
    clf = CovariateShiftConformalClassifier().conformalize(P, y, weights=lambda X: 4 * X[:, 0] ** 3)
    low, high = m.coverage_band(int(clf.effective_n_), 3000, 0.9, probability=0.999)
    assert low <= m.coverage(clf.predict_set(Q), z) <= high
    scores = (1 - P[np.arange(3000), y]).tolist()
    wrong = shift_reference.sorted_by_weight(scores, (4 * x**3).tolist(), 4.0, 0.9)
    assert np.mean(1 - Q[np.arange(3000), z] <= wrong) > high + 0.03


def test_estimated_weights_find_the_shift():
    rng = np.random.default_rng(0)
    X, T = rng.standard_normal((3000, 2)), rng.standard_normal((3000, 2)) + np.array([1.0, 0])
    label = lambda X: (X[:, 0] ** 2 + X[:, 1] + rng.standard_normal(len(X)) > 1).astype(int)  # noqa: E731
    y, z = label(X), label(T)
    model = LogisticRegression().fit(X[:1000], y[:1000])
    clf = CovariateShiftConformalClassifier(model, prefit=True).conformalize(X[1000:], y[1000:], target=T[:1000])
    assert 0.7 < clf.domain_auroc_ < 0.8  # normal laws one standard deviation apart: .76
    assert clf.outside_ < 0.05
    low, high = m.coverage_band(int(clf.effective_n_), 2000, 0.9, probability=0.999)
    assert low <= m.coverage(clf.predict_set(T[1000:]), z[1000:]) <= high
    far = CovariateShiftConformalClassifier(model, prefit=True)
    with pytest.warns(CalibrationSizeWarning, match="Fix: label some"):
        far.conformalize(X[1000:], y[1000:], target=T[:1000] + np.array([40, 0]))
    assert far.domain_auroc_ > 0.999
    assert far.predict_set(T[1000:] + np.array([40, 0])).all()  # no calibration case says anything of these


def two_normals(rng, n, at):
    """Cases around a place, and labels of the same law given the case."""
    X = rng.standard_normal((n, 2)) + np.array([at, 0])
    return X, (X[:, 0] + rng.standard_normal(n) > 0).astype(int)


@pytest.mark.parametrize(
    "domain",
    [RandomForestClassifier(20, random_state=0), KNeighborsClassifier(20), KNeighborsClassifier(1)],
    ids=["forest", "20-neighbours", "1-neighbour"],
)
def test_a_domain_classifier_that_is_sure_does_not_break_the_sets(domain):
    """It says 1 of some calibration cases; with odds of 1e150 one of them was all the calibration there was."""
    rng = np.random.default_rng(0)
    model = LogisticRegression().fit(*two_normals(rng, 300, 0))
    covered = []
    for _ in range(6):
        (X, y), (T, _), (Q, z) = two_normals(rng, 600, 0), two_normals(rng, 600, 1.5), two_normals(rng, 1000, 1.5)
        clf = CovariateShiftConformalClassifier(model, prefit=True, domain_classifier=domain)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationSizeWarning)
            clf.conformalize(X, y, target=T)
        assert 10 < clf.effective_n_ < 600
        assert clf.weights_.max() <= 1201
        covered.append(m.coverage(clf.predict_set(Q), z))
    assert 0.87 <= np.mean(covered) <= 0.95
    assert min(covered) > 0.8


def test_weights_come_from_folds_that_have_not_seen_the_case():
    """A tree that learns by heart tells source from target on what it has seen; they are the same here."""
    rng = np.random.default_rng(0)
    (X, y), (T, _) = two_normals(rng, 400, 0), two_normals(rng, 400, 0)
    clf = CovariateShiftConformalClassifier(
        LogisticRegression(), domain_classifier=DecisionTreeClassifier(random_state=0)
    )
    clf.fit(*two_normals(rng, 100, 0)).conformalize(X, y, target=T)
    assert (clf.domain_classifier_.predict(X) == 0).all()
    assert 0.4 < clf.domain_auroc_ < 0.6
    assert clf.effective_n_ > 300
    assert 0.7 < clf.weights_.mean() < 1.4


def test_huge_weights_do_not_overflow_and_one_heavy_case_is_warned_of():
    P, y, _ = draw_cases(np.random.default_rng(0), 60, 3)
    plain = CovariateShiftConformalClassifier().conformalize(P, y, weights=lambda X: 1 + X[:, 0])
    huge = CovariateShiftConformalClassifier().conformalize(P, y, weights=lambda X: 8e307 * (1 + X[:, 0]))
    assert huge.effective_n_ == pytest.approx(plain.effective_n_)
    np.testing.assert_array_equal(huge.predict_set(P), plain.predict_set(P))
    np.testing.assert_allclose(huge.p_values(P), plain.p_values(P))
    one = P[7, 0]
    with pytest.warns(CalibrationSizeWarning, match="count as 1.0 .* 100% of the weight"):
        heavy = CovariateShiftConformalClassifier().conformalize(
            P, y, weights=lambda X: np.where(X[:, 0] == one, 1e160, 1.0)
        )
    assert heavy.effective_n_ == pytest.approx(1)
    with pytest.warns(CalibrationSizeWarning, match=r"count as 3\d\.\d .* 12% of the weight"):
        CovariateShiftConformalClassifier().conformalize(P, y, weights=lambda X: np.where(X[:, 0] == one, 8.0, 1.0))


def test_weights_of_new_cases_may_be_nothing_or_outweigh_all():
    P, y, _ = draw_cases(np.random.default_rng(0), 60, 3)
    new = np.array([[0.3, 0.6999, 0.0001]] * 2)
    for weight in (0.0, 1e300):
        weigh = lambda X, w=weight: np.where(X[:, 0] == 0.3, w, 1e-300)  # noqa: E731
        clf = CovariateShiftConformalClassifier().conformalize(P, y, weights=weigh)
        assert (clf.predict_set(new) == clf.predict_set(new[:1])).all()
        assert clf.predict_set(new).all() == (weight > 0)
        assert (clf.p_values(new) == 1).all() == (weight > 0)


@pytest.mark.parametrize(("wrong", "message"), [(np.nan, "NaN|nan"), (2.0, "sum")])
def test_what_a_domain_classifier_says_is_checked(wrong, message):
    class Domain(LogisticRegression):
        def predict_proba(self, X):
            return super().predict_proba(X) * wrong

    fitted, (X, y), (T, _) = (two_normals(np.random.default_rng(i), 60, 0) for i in range(3))
    clf = CovariateShiftConformalClassifier(LogisticRegression(), domain_classifier=Domain()).fit(*fitted)
    with pytest.raises(ValueError, match=message):
        clf.conformalize(X, y, target=T)


def test_the_loss_of_estimated_prevalences_is_half_the_sum_of_their_ends():
    rng = np.random.default_rng(0)
    y, z, target = rng.integers(0, 3, 400), rng.choice(3, 300, p=[0.5, 0.3, 0.2]), np.array([0.5, 0.3, 0.2])
    P = by_class(rng, y, 3)
    clf = LabelShiftConformalClassifier().conformalize(P, y, source_prevalence=np.full(3, 1 / 3))
    assert clf.coverage_loss_ == 0
    clf.adapt(by_class(rng, z, 3))
    low, high = clf.prevalence_interval_.T
    ends = np.maximum(clf.prevalence_ - low, high - clf.prevalence_)
    assert clf.coverage_loss_ == pytest.approx(ends.sum() / 2)
    assert clf.coverage_loss_ > np.abs(clf.prevalence_ - target).sum() / 2 > 0
    estimated = LabelShiftConformalClassifier().conformalize(P, y)
    assert estimated.coverage_loss_ == 0
    estimated.adapt(prevalence=target)
    of_source = max(target / np.bincount(y))
    assert estimated.coverage_loss_ == pytest.approx(0.1 * of_source)
    assert "shares of the calibration cases" in str(estimated.certificate())
    assert "shares of the calibration cases" not in str(clf.certificate())


@settings(max_examples=12)
@given(
    seed=seeds,
    counts=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    level=st.sampled_from([0.5, 0.7, 0.9]),
    ties=st.booleans(),
)
def test_shares_of_the_calibration_cases_cost_little(seed, counts, level, ties):
    """One more case of each class than calibrate: each in turn is the new one, which is the law within classes."""
    rng = np.random.default_rng(seed)
    target = rng.dirichlet(np.full(len(counts), 0.7))
    y = np.repeat(np.arange(len(counts)), np.array(counts) + 1)
    P = rng.dirichlet(np.ones(len(counts)), len(y))
    if ties:
        P = (rng.multinomial(4, P) + 1) / (4 + len(counts))
    covered = []
    for new in itertools.product(*(np.flatnonzero(y == k) for k in range(len(counts)))):
        old = np.setdiff1d(np.arange(len(y)), new)
        clf = LabelShiftConformalClassifier(confidence_level=level).conformalize(P[old], y[old])
        covered.append(target @ np.diag(clf.adapt(prevalence=target).predict_set(P[list(new)])))
    assert np.mean(covered) >= level - (1 - level) * max(target / counts) - 1e-9
    assert clf.coverage_loss_ == pytest.approx((1 - level) * max(target / counts))


def test_estimated_prevalences_lie_in_their_intervals():
    rng = np.random.default_rng(0)
    target, inside = np.array([0.5, 0.3, 0.2]), 0
    for _ in range(200):
        y, z = rng.integers(0, 3, 400), rng.choice(3, 300, p=target)
        clf = LabelShiftConformalClassifier().conformalize(by_class(rng, y, 3), y).adapt(by_class(rng, z, 3))
        inside += ((clf.prevalence_interval_[:, 0] <= target) & (target <= clf.prevalence_interval_[:, 1])).mean()
    assert 0.92 <= inside / 200 <= 0.98


@pytest.mark.parametrize("shift", [0.0, 2.0, -2.0])
def test_coverage_stays_between_its_bounds_whatever_the_source(shift):
    """The other source alike, too sure of itself, or not sure enough; one new case for each of many calibrations."""
    rng = np.random.default_rng(0)
    runs, covered = 3000, 0
    y = rng.integers(0, 3, 400)
    source = softmax((1.5 + shift) * np.eye(3)[y] + rng.standard_normal((400, 3)), axis=1)
    for _ in range(runs):
        y_local = rng.integers(0, 3, 31)
        P = softmax(1.5 * np.eye(3)[y_local] + rng.standard_normal((31, 3)), axis=1)
        clf = SyntheticPoweredConformalClassifier().conformalize(P[:30], y_local[:30], source=(source, y))
        covered += clf.predict_set(P[30:])[0, y_local[30]]
    low, high = covered_rate(runs, covered)
    least, most = clf.bounds()
    assert high >= least
    assert low <= most
    if shift == 0:
        assert low <= 0.93
        assert high >= 0.87


def test_guards_widen_with_beta_and_hold_the_level():
    for n in (5, 20, 100):
        low, high = guard_ranks(n, 2000, 0.9, 0.4)
        assert 0 <= low <= 0.9 * (n + 1) <= high <= n + 1
        wider = guard_ranks(n, 2000, 0.9, 0.05)
        assert wider[0] <= low
        assert high <= wider[1]


# --- certificates and bad inputs


def test_certificates_say_what_is_assumed():
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 200, 3)
    label, covariate, synthetic = estimators(P, y, {})
    assert "prevalences are right" in str(label.certificate())
    assert "ratio of the densities" in str(covariate.certificate())
    assert "whatever the other source" in str(synthetic.certificate())
    label.adapt(P[:100])
    assert "less 0." in str(label.certificate())


LABEL = LabelShiftConformalClassifier
BAD = [
    (lambda P, y: LABEL().conformalize(P, y).adapt(), "either X"),
    (lambda P, y: LABEL().conformalize(P, y).adapt(prevalence=[0.5, 0.5]), "3 shares"),
    (lambda P, y: LABEL().conformalize(P, y).adapt(prevalence=[0.5, 0.6, -0.1]), "shares"),
    (lambda P, y: LABEL().conformalize(P, y).adapt(prevalence={0: 0.5, 1: 0.5}), "each of"),
    (lambda P, y: LABEL().conformalize(P, y % 2).adapt(prevalence=[0.5, 0.3, 0.2]), "no calibration case"),
    (lambda P, y: LABEL().conformalize(np.full_like(P, 1 / 3), y).adapt(P), "apart"),
    (lambda P, y: LABEL(method="guess").conformalize(P, y), "method"),
    (lambda P, y: LABEL().predict_set(P), "not"),
    (lambda P, y: CovariateShiftConformalClassifier().conformalize(P, y), "either target"),
    (lambda P, y: CovariateShiftConformalClassifier().conformalize(P, y, target=P[:, :2]), "shape"),
    (lambda P, y: CovariateShiftConformalClassifier().conformalize(P, y, target=P * np.nan), "target contains NaN"),
    (lambda P, y: CovariateShiftConformalClassifier().conformalize(P, y, weights=lambda X: -X[:, 0]), "0 or more"),
    (lambda P, y: CovariateShiftConformalClassifier().conformalize(P, y, weights=lambda X: X), "one for each"),
    (lambda P, y: CovariateShiftConformalClassifier().conformalize(P, y, weights=lambda X: 0 * X[:, 0]), "all are 0"),
    (lambda P, y: SyntheticPoweredConformalClassifier(beta=0).conformalize(P, y, source=(P, y)), "beta"),
    (lambda P, y: SyntheticPoweredConformalClassifier().conformalize(P[:0], y[:0], source=(P, y)), "sample|local"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_inputs_are_named(call, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 60, 3)
    with pytest.raises((ValueError, ParameterError), match=message):
        call(P, y)
