"""Conformal Bayes: against posteriors found again, its coverage, its diagnostics and its fallback."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from cbdc import LaplaceHead
from cbdc import metrics as m
from cbdc.conformal import ConformalBayesClassifier, ConformalClassifier, effective_sample_size, pareto_k
from cbdc.errors import ParameterError, PosteriorWarning

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import conformal_bayes_reference as reference

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=4)
both_conditions = pytest.mark.parametrize("condition_on", [None, "class"])

GRID = np.stack(np.meshgrid(np.linspace(-3, 3, 13), np.linspace(-4, 4, 17)), axis=-1).reshape(-1, 2)
PRIOR = stats.norm.pdf(GRID[:, 0]) * stats.norm.pdf(GRID[:, 1] / 2)


class GridHead(ClassifierMixin, BaseEstimator):
    """The exact posterior of the oracle's model; draws are its quantiles, so that many of them are all of it."""

    def __init__(self, slope=None):
        self.slope = slope

    def fit(self, X, y):
        self.classes_, self.n_features_in_ = np.array([0, 1]), 1
        prior = PRIOR if self.slope is None else PRIOR * (GRID[:, 1] == self.slope)
        with np.errstate(divide="ignore"):
            log_mass = np.log(prior)
        log_mass = log_mass + np.where(np.asarray(y)[:, None] == 1, *self._log(X)).sum(axis=0)
        self.mass_ = softmax(log_mass)
        return self

    def _log(self, X):
        logits = GRID[:, 0] + np.asarray(X, dtype=float) * GRID[:, 1]
        return np.log(expit(logits)), np.log(expit(-logits))

    def predict_proba(self, X):
        p = np.exp(self._log(X)[0]) @ self.mass_
        return np.stack([1 - p, p], axis=1)

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)

    def predict_posterior(self, X, n_draws=64, random_state=None):
        u = (np.arange(n_draws) + np.random.RandomState(random_state).random_sample()) / n_draws
        places = np.minimum(np.searchsorted(np.cumsum(self.mass_), u), len(GRID) - 1)
        p = np.exp(self._log(X)[0][:, places]).T
        return np.stack([1 - p, p], axis=2)


class PlugIn(LaplaceHead):
    """A posterior mistaken for a point: every draw is the prediction itself."""

    def predict_posterior(self, E, n_draws=64, random_state=None):
        return np.repeat(self.predict_proba(E)[None], n_draws, axis=0)


def one_feature(rng, n):
    X = rng.standard_normal((n, 1))
    y = (rng.random(n) < expit(rng.normal() + 2 * rng.normal() * X[:, 0])).astype(int)
    y[:2] = 0, 1
    return X, y


def linear(rng, n, d=5, n_classes=3):
    X = rng.standard_normal((n, d))
    return X, np.argmax(X @ rng.standard_normal((d, n_classes)) * 1.3 + rng.gumbel(size=(n, n_classes)), axis=1)


# --- against the posterior found again


@few
@both_conditions
@given(seed=seeds)
def test_p_values_are_those_of_the_posterior_found_again(condition_on, seed):
    X, y = one_feature(np.random.default_rng(seed), 22)
    clf = ConformalBayesClassifier(GridHead(), condition_on=condition_on, n_draws=20_000, fallback=None)
    found = clf.fit(X[:20], y[:20]).p_values(X[20:])
    by_class = condition_on == "class"
    for i, x in enumerate(X[20:, 0]):
        for label in (0, 1):
            expected = reference.full_conformal_p_value(
                X[:20, 0], y[:20], x, label, GRID, PRIOR / PRIOR.sum(), by_class=by_class
            )
            assert found[i, label] == pytest.approx(expected, abs=1e-12)


@few
@given(seed=seeds)
def test_of_n_cases_each_in_turn_the_new_one_has_its_own_rank(seed):
    """The proof itself: the score of a case does not tell whether it is the new one."""
    X, y = one_feature(np.random.default_rng(seed), 16)
    found = []
    for i in range(16):
        clf = ConformalBayesClassifier(GridHead(), n_draws=20_000, fallback=None)
        clf.fit(np.delete(X, i, axis=0), np.delete(y, i))
        found.append(clf.p_values(X[[i]])[0, y[i]])
    np.testing.assert_allclose(np.sort(found), np.arange(1, 17) / 16)


class SampledHead(GridHead):
    """Independent draws."""

    def predict_posterior(self, X, n_draws=64, random_state=None):
        places = np.random.RandomState(random_state).choice(len(GRID), n_draws, p=self.mass_)
        p = np.exp(self._log(X)[0][:, places]).T
        return np.stack([1 - p, p], axis=2)


def test_more_draws_bring_it_nearer():
    """The error falls as one over the square root of their number."""
    errors = np.zeros((3, 10))
    for seed in range(10):
        X, y = one_feature(np.random.default_rng(seed), 130)
        exact = ConformalBayesClassifier(GridHead(), n_draws=4000, fallback=None).fit(X[:100], y[:100])
        for i, n_draws in enumerate((25, 100, 400)):
            clf = ConformalBayesClassifier(SampledHead(), n_draws=n_draws, fallback=None, random_state=seed)
            clf.fit(X[:100], y[:100])
            errors[i, seed] = np.abs(clf.p_values(X[100:]) - exact.p_values(X[100:])).mean()
    mean = errors.mean(axis=1)
    assert mean[0] > 2 * mean[2]
    assert mean[2] < 0.01


# --- coverage


def one_case_each(n_runs, make, fit):
    """Of how many independent runs the set of one new case holds its class."""
    covered = 0
    for seed in range(n_runs):
        X, y = make(np.random.default_rng(seed))
        covered += bool(fit(X[:-1], y[:-1]).predict_set(X[-1:])[0, y[-1]])
    return covered


def test_coverage_is_in_its_band_with_the_exact_posterior():
    """300 runs of 200 cases, a new one each: the count is binomial, its rate from .9 to .905."""
    covered = one_case_each(
        300,
        lambda rng: one_feature(rng, 201),
        lambda X, y: ConformalBayesClassifier(GridHead(), n_draws=500, fallback=None).fit(X, y),
    )
    low, high = stats.binom.ppf([5e-4, 1 - 5e-4], 300, [0.9, 0.905])
    assert low <= covered <= high


@pytest.mark.slow
def test_coverage_and_size_at_200_cases():
    """400 runs, 20 new cases each: the mean of the runs' coverages, and of the differences of set sizes."""
    coverage, smaller = [], []
    for seed in range(400):
        X, y = linear(np.random.default_rng(seed), 220)
        rows = np.arange(20)
        clf = ConformalBayesClassifier(LaplaceHead(1.0)).fit(X[:200], y[:200])
        split = ConformalClassifier(LaplaceHead(1.0)).fit(X[:100], y[:100]).conformalize(X[100:200], y[100:200])
        ours, theirs = clf.predict_set(X[200:]), split.predict_set(X[200:])
        coverage.append(ours[rows, y[200:]].mean())
        smaller.append(theirs.sum(axis=1).mean() - ours.sum(axis=1).mean())
        assert not clf.fell_back_
    error = np.std(coverage) / 20
    assert abs(np.mean(coverage) - 0.9025) < 0.0025 + 3.3 * error
    assert error < 0.005
    assert np.mean(smaller) - 3.3 * np.std(smaller) / 20 > 0


def test_sets_are_no_larger_than_split_conformal_ones():
    """Quick form of the test above: with 20 features 20 runs are enough to tell."""
    differences = []
    for seed in range(20):
        X, y = linear(np.random.default_rng(seed), 230, d=20)
        clf = ConformalBayesClassifier(LaplaceHead(4.0), n_draws=200, fallback=None).fit(X[:200], y[:200])
        split = ConformalClassifier(LaplaceHead(4.0)).fit(X[:100], y[:100]).conformalize(X[100:200], y[100:200])
        differences.append(clf.predict_set(X[200:]).sum() / 30 - split.predict_set(X[200:]).sum() / 30)
    assert np.mean(differences) + 3 * np.std(differences) / np.sqrt(20) < 0


def credible(P, level):
    return np.array([[k in reference.credible_set(row, level) for k in range(P.shape[1])] for row in P])


def test_a_wrong_model_costs_credible_sets_their_coverage_and_conformal_ones_their_size():
    """The model is sure of a slope of 3, the truth has -1. 300 runs of 200 cases, a new one each."""
    covered, sizes = np.zeros(2), np.zeros(3)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((201, 1))
        y = (rng.random(201) < expit(-X[:, 0])).astype(int)
        wrong, right = (
            ConformalBayesClassifier(GridHead(slope), n_draws=100, fallback=None).fit(X[:200], y[:200])
            for slope in (3, None)
        )
        sets = wrong.predict_set(X[200:]), credible(wrong.predict_proba(X[200:]), 0.9)
        covered += [found[0, y[200]] for found in sets]
        sizes += [found.sum() for found in (*sets, right.predict_set(X[200:]))]
    low, high = stats.binom.ppf([5e-4, 1 - 5e-4], 300, [0.9, 0.905])
    assert low <= covered[0] <= high
    assert covered[1] < 0.75 * 300
    assert sizes[0] > sizes[2] + 0.02 * 300


def test_pareto_k_tells_draws_that_are_too_far_apart():
    X, y = linear(np.random.default_rng(0), 400, d=40)
    shares = []
    for prior_precision in (4.0, 0.01):
        clf = ConformalBayesClassifier(LaplaceHead(prior_precision), n_draws=200, fallback=None).fit(X[:200], y[:200])
        shares.append((clf.weight_diagnostics(X[200:])[0] > 0.7).mean())
    assert shares[0] < 0.1
    assert shares[1] > 0.3


def test_draws_that_are_too_narrow_are_caught_by_the_check_and_not_by_the_weights():
    rng = np.random.default_rng(0)
    X, y = linear(rng, 900, d=100)
    head = PlugIn(0.1)
    blind = ConformalBayesClassifier(head, fallback=None, n_draws=50).fit(X[:400], y[:400])
    k, size = blind.weight_diagnostics(X[400:])
    assert (k == -np.inf).all()
    np.testing.assert_allclose(size, 50)
    rows = np.arange(500)
    assert blind.predict_set(X[400:])[rows, y[400:]].mean() < 0.8
    with pytest.warns(PosteriorWarning, match="too narrow"):
        clf = ConformalBayesClassifier(head, n_draws=50).fit(X[:400], y[:400])
    assert clf.fell_back_
    assert clf.held_out_coverage_ < clf.held_out_band_
    assert clf.predict_set(X[400:])[rows, y[400:]].mean() > m.coverage_band(200, 500, 0.9, probability=1 - 1e-5)[0]
    assert "check of the posterior" in str(clf.certificate())


# --- what it is made of


@few
@both_conditions
@given(seed=seeds)
def test_labels_of_degenerate_weights_are_those_of_either_method(condition_on, seed):
    X, y = linear(np.random.default_rng(seed), 140)
    options = {"condition_on": condition_on, "n_draws": 60}
    full = ConformalBayesClassifier(LaplaceHead(1.0), fallback=None, **options).fit(X[:100], y[:100])
    either = ConformalBayesClassifier(LaplaceHead(1.0), max_k=-np.inf, **options).fit(X[:100], y[:100])
    some = ConformalBayesClassifier(LaplaceHead(1.0), max_k=0.3, **options).fit(X[:100], y[:100])
    p, q = full.p_values(X[100:]), some._split.p_values(X[100:])
    degenerate = some.weight_diagnostics(X[100:])[0] > 0.3
    np.testing.assert_array_equal(either.p_values(X[100:]), np.maximum(p, q))
    np.testing.assert_array_equal(some.p_values(X[100:]), np.where(degenerate, np.maximum(p, q), p))


@both_conditions
def test_the_fallback_is_split_conformal(condition_on):
    X, y = linear(np.random.default_rng(0), 140)
    clf = ConformalBayesClassifier(LaplaceHead(1.0), condition_on=condition_on).fit(X[:100], y[:100])
    order = np.random.RandomState(0).permutation(100)
    train, rest = np.sort(order[:50]), np.sort(order[50:])
    split = ConformalClassifier(LaplaceHead(1.0).fit(X[train], y[train]), condition_on=condition_on, prefit=True)
    expected = split.conformalize(X[rest], y[rest]).p_values(X[100:])
    np.testing.assert_allclose(clf._split.p_values(X[100:]), expected)


@few
@both_conditions
@given(seed=seeds)
def test_a_batch_equals_its_cases_one_by_one_and_sets_are_nested(condition_on, seed):
    X, y = linear(np.random.default_rng(seed), 90)
    clf = ConformalBayesClassifier(LaplaceHead(1.0), condition_on=condition_on, n_draws=50).fit(X[:60], y[:60])
    whole = clf.p_values(X[60:])
    np.testing.assert_array_equal([clf.p_values(X[[i]])[0] for i in range(60, 90)], whole)
    n = clf.counts_ if condition_on else np.full(3, 60)
    previous = np.zeros(whole.shape, dtype=bool)
    for level in (0.5, 0.8, 0.9, 0.95):
        sets = clf.predict_set(X[60:], level)
        assert (sets >= previous).all()
        previous = sets
        if not clf.fell_back_ and not (clf.weight_diagnostics(X[60:])[0] > 0.7).any():
            no_better = np.rint(whole * (n + 1)).astype(int) - 1
            ranks = np.array([m.conformal_rank(int(k), level) for k in n])
            np.testing.assert_array_equal(sets, no_better >= n + 1 - ranks)


def test_blocks_do_not_change_anything(monkeypatch):
    X, y = linear(np.random.default_rng(0), 150)
    clf = ConformalBayesClassifier(LaplaceHead(1.0), n_draws=50).fit(X[:100], y[:100])
    whole, diagnostics = clf.p_values(X[100:]), clf.weight_diagnostics(X[100:])
    monkeypatch.setattr("cbdc.conformal.bayes._CELLS", 1000)
    np.testing.assert_array_equal(clf.p_values(X[100:]), whole)
    np.testing.assert_array_equal(clf.weight_diagnostics(X[100:]), diagnostics)


def test_threads_share_one():
    X, y = linear(np.random.default_rng(0), 300)
    clf = ConformalBayesClassifier(LaplaceHead(1.0), n_draws=50).fit(X[:100], y[:100])
    serial = clf.p_values(X[100:])
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: clf.p_values(X[100:]), range(16)):
            np.testing.assert_array_equal(found, serial)


def test_seeds_names_and_frames():
    X, y = linear(np.random.default_rng(0), 160)
    names = np.array(["bcc", "mel", "nv"])[y]
    frame = pd.DataFrame(X, columns=list("abcde"))
    clf = ConformalBayesClassifier(LaplaceHead(1.0), n_draws=50, random_state=3)
    first = clf.fit(frame[:120], names[:120]).p_values(frame[120:])
    np.testing.assert_array_equal(clf.fit(frame[:120], names[:120]).p_values(frame[120:]), first)
    other = ConformalBayesClassifier(LaplaceHead(1.0), n_draws=50, random_state=4).fit(frame[:120], y[:120])
    assert (other.p_values(frame[120:]) != first).any()
    other.random_state = 3
    np.testing.assert_array_equal(other.fit(frame[:120], y[:120]).p_values(frame[120:]), first)
    assert clf.classes_.tolist() == ["bcc", "mel", "nv"]
    assert clf.feature_names_in_.tolist() == list("abcde")
    assert clf.likelihoods_.shape == (50, 120)
    assert clf.counts_.tolist() == np.bincount(y[:120]).tolist()
    assert "0.9" in str(clf.certificate())
    np.testing.assert_array_equal(clf.predict(frame[120:]), clf.estimator_.predict(frame[120:]))


def test_a_class_of_one_half_only():
    """The half without it cannot exclude it; a half with one class alone can exclude nothing."""
    X, y = linear(np.random.default_rng(1), 80)
    y[y == 2] = 0
    for place in range(10):
        labels = y[:40].copy()
        labels[place] = 2
        clf = ConformalBayesClassifier(LaplaceHead(1.0), n_draws=50).fit(X[:40], labels)
        p = clf._split.p_values(X[40:])
        assert p.shape == (40, 3)
        if 2 not in clf._split.known:
            assert (p[:, 2] > 0.04).all()  # ties with the case of that class, if that calibrates, at probability 0
        assert ((clf.p_values(X[40:]) > 0) & (clf.p_values(X[40:]) <= 1)).all()
    clf = ConformalBayesClassifier(LaplaceHead(1.0), n_draws=50, max_k=-np.inf).fit(X[:5], [0, 0, 0, 0, 1])
    assert clf.predict_set(X[40:]).any()


class Vanishing(GridHead):
    """A label that no draw allows."""

    def predict_posterior(self, X, n_draws=64, random_state=None):
        draws = super().predict_posterior(X, n_draws, random_state)
        gone = np.asarray(X)[:, 0] > 5
        draws[:, gone] = [1.0, 0.0]
        return draws


def test_a_label_without_likelihood_is_no_error():
    X, y = one_feature(np.random.default_rng(0), 50)
    p = ConformalBayesClassifier(Vanishing(), fallback=None).fit(X, y).p_values([[9.0]])
    assert p[0, 1] == pytest.approx(1 / 51)
    assert p[0, 0] > 0.5


# --- the weights


@pytest.mark.parametrize(
    ("n", "k", "golden"),
    [
        (100, 0.2, 0.2946993326821577),
        (100, 0.7, 0.5700870701981926),
        (200, 0.7, 0.6084629240905656),
        (200, 1.2, 1.0209368593228942),
        (1000, 0.2, 0.2449396298169593),
        (1000, 0.7, 0.640573660750835),
        (1000, 1.2, 1.0712858528111926),
    ],
)
def test_pareto_k_is_that_of_arviz(n, k, golden):
    """Golden numbers of arviz-stats 0.8.0, `_psislw`."""
    i = np.arange(n)
    weights = (((i * 37) % n + 0.5) / n) ** -k * (1 + 0.1 * np.sin(i))
    assert pareto_k(weights) == pytest.approx(golden, abs=1e-9)


@given(seed=seeds, n=st.integers(25, 400), k=st.sampled_from([-0.5, 0.1, 0.5, 0.9, 2.0]))
def test_pareto_k_is_the_oracles(seed, n, k):
    weights = np.random.default_rng(seed).random(n) ** -k
    assert pareto_k(weights) == pytest.approx(reference.pareto_k(weights.tolist()), abs=1e-8)


@pytest.mark.parametrize("k", [-0.5, 0.2, 0.5, 0.7, 1.0])
def test_pareto_k_finds_the_shape_of_a_pareto_tail(k):
    """Quantiles of the law itself: of 40,000 weights the tail is 600, and the prior shrinks by 10 in 610."""
    u = (np.arange(40_000) + 0.5) / 40_000
    weights = 5 + stats.genpareto.ppf(u, k)
    assert pareto_k(weights) == pytest.approx((600 * k + 5) / 610, abs=0.02)


@given(seed=seeds, scale=st.sampled_from([1e-200, 1e-3, 1e100]))
def test_diagnostics_ignore_scale_and_order(seed, scale):
    rng = np.random.default_rng(seed)
    weights = rng.random((4, 100)) ** -0.6
    np.testing.assert_allclose(pareto_k(scale * weights[:, ::-1]), pareto_k(weights), atol=1e-6)
    np.testing.assert_allclose(effective_sample_size(scale * weights), effective_sample_size(weights))
    size = weights.sum(axis=1) ** 2 / np.sum(weights**2, axis=1)
    np.testing.assert_allclose(effective_sample_size(weights), size)


@few
@given(seed=seeds)
def test_probable_labels_keep_their_draws(seed):
    """A likelihood is at most 1, so that the effective sample size is at least n_draws times the probability."""
    X, y = linear(np.random.default_rng(seed), 80, d=20)
    clf = ConformalBayesClassifier(LaplaceHead(0.01), n_draws=100, fallback=None).fit(X[:60], y[:60])
    _, size = clf.weight_diagnostics(X[60:])
    mean = clf.estimator_.predict_posterior(X[60:], 100, random_state=clf.seed_).mean(axis=0)
    assert (size >= 100 * mean * (1 - 1e-9)).all()


def test_edges_of_the_diagnostics():
    assert pareto_k(np.ones(100)) == -np.inf
    assert pareto_k(np.zeros(100)) == -np.inf
    assert pareto_k(np.random.default_rng(0).random(24)) == np.inf
    assert pareto_k([1.0]) == np.inf
    assert pareto_k(np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 100)) == -np.inf  # an ensemble of five, drawn again and again
    assert pareto_k(np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], [200, 200, 60, 20, 20])) < 0.7
    assert np.isfinite(pareto_k(np.r_[np.ones(95), 2, 3, 4, 5, 6]))
    assert pareto_k(np.r_[np.zeros(99), 1]) > 0.7
    assert effective_sample_size([0, 0]) == 0
    assert pareto_k(np.ones((2, 3, 50))).shape == (2, 3)
    for bad in ([np.nan], [-1.0], [np.inf], []):
        with pytest.raises(ParameterError, match="weights"):
            pareto_k(bad)


# --- bad inputs


class Restless(GridHead):
    """Draws that depend on how many rows are asked for."""

    def predict_posterior(self, X, n_draws=64, random_state=None):
        return super().predict_posterior(X, n_draws, random_state)[np.random.default_rng(len(X)).permutation(n_draws)]


class Flat(GridHead):
    def predict_posterior(self, X, n_draws=64, random_state=None):
        return self.predict_proba(X)


X_GOOD, Y_GOOD = one_feature(np.random.default_rng(0), 40)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ConformalBayesClassifier(LogisticRegression()).fit(X_GOOD, Y_GOOD), ValueError, "predict_posterior"),
        (lambda: ConformalBayesClassifier(GridHead(), n_draws=24).fit(X_GOOD, Y_GOOD), ValueError, "n_draws"),
        (lambda: ConformalBayesClassifier(GridHead(), fallback="none").fit(X_GOOD, Y_GOOD), ValueError, "fallback"),
        (
            lambda: ConformalBayesClassifier(GridHead(), condition_on="group").fit(X_GOOD, Y_GOOD),
            ValueError,
            "condition",
        ),
        (lambda: ConformalBayesClassifier(GridHead(), confidence_level=1e-12).fit(X_GOOD, Y_GOOD), ValueError, "level"),
        (
            lambda: ConformalBayesClassifier(LaplaceHead(class_weight="balanced")).fit(X_GOOD, Y_GOOD),
            ParameterError,
            "class_weight",
        ),
        (lambda: ConformalBayesClassifier(Restless()).fit(X_GOOD, Y_GOOD), ParameterError, "change with the rows"),
        (lambda: ConformalBayesClassifier(Flat()).fit(X_GOOD, Y_GOOD), ParameterError, "draws first"),
        (lambda: ConformalBayesClassifier(GridHead()).predict_set(X_GOOD), NotFittedError, "not fitted"),
        (lambda: ConformalBayesClassifier(LaplaceHead()).fit(X_GOOD, np.zeros(40)), ValueError, "class"),
        (lambda: ConformalBayesClassifier(LaplaceHead()).fit(X_GOOD * np.nan, Y_GOOD), ValueError, "NaN"),
        (lambda: ConformalBayesClassifier(LaplaceHead(1.0)).fit(X_GOOD, Y_GOOD).p_values([[0, 1]]), ValueError, "feat"),
        (
            lambda: ConformalBayesClassifier(GridHead()).fit(X_GOOD, Y_GOOD).predict_set(X_GOOD, 1.0),
            ValueError,
            "level",
        ),
    ],
)
def test_bad_inputs_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
