"""Calibrators on top of a classifier: against their objectives, scikit-learn and MAPIE."""

import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from cbdc import ConformalClassifier, LaplaceHead
from cbdc import metrics as m
from cbdc.errors import ParameterError
from cbdc.heads import TemperatureScaling, VectorScaling, VennAbersCalibrator
from cbdc.heads._base import entropy_of
from cbdc.heads.venn_abers import venn_abers

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import calibration_reference as reference

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=10)
KINDS = [TemperatureScaling, VectorScaling, VennAbersCalibrator]
every_kind = pytest.mark.parametrize("kind", KINDS)


class Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose log-probabilities are its input."""

    def __init__(self, n_classes=3):
        self.n_classes = n_classes
        self.classes_, self.n_features_in_ = np.arange(n_classes), n_classes

    def fit(self, X, y):
        return self

    def predict_log_proba(self, X):
        return np.asarray(X)

    def predict_proba(self, X):
        return np.exp(X)


def cases(rng, n=60, n_classes=3, temperature=2.0):
    """Log-probabilities that are too sure by a factor, and labels."""
    logits = 2 * rng.standard_normal((n, n_classes))
    y = np.argmax(logits / temperature + rng.gumbel(size=(n, n_classes)), axis=1)
    return log_softmax(logits, axis=1), y


def blobs(rng, n=300):
    y = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    return rng.standard_normal((n, 4)) + 1.5 * np.eye(3, 4)[y], y


# --- scaling


@few
@given(seed=seeds, weighted=st.booleans())
def test_temperature_is_the_minimiser(seed, weighted):
    rng = np.random.default_rng(seed)
    Z, y = cases(rng)
    weights = rng.uniform(0.1, 3, 60) if weighted else np.ones(60)
    clf = TemperatureScaling(Given(), prefit=True).calibrate(Z, y, weights if weighted else None)
    expected = optimize.minimize_scalar(
        lambda log_t: reference.temperature_loss(Z, y, weights, np.exp(log_t)), bounds=(-4, 4), options={"xatol": 1e-9}
    )
    assert clf.temperature_ == pytest.approx(np.exp(expected.x), rel=1e-5)
    assert (clf.predict(Z) == Z.argmax(axis=1)).all()
    np.testing.assert_allclose(clf.predict_proba(Z[:1])[0], reference.softmax((Z[0] / clf.temperature_).tolist()))


@pytest.mark.parametrize("estimator", [LogisticRegression(C=100.0), LaplaceHead(1.0)])
def test_temperature_is_that_of_scikit_learn(estimator):
    X, y = blobs(np.random.default_rng(0))
    fitted = estimator.fit(X[:60], y[:60])
    peer = CalibratedClassifierCV(FrozenEstimator(fitted), method="temperature").fit(X[60:], y[60:])
    clf = TemperatureScaling(fitted, prefit=True).calibrate(X[60:], y[60:])
    assert clf.temperature_ == pytest.approx(1 / peer.calibrated_classifiers_[0].calibrators[0].beta_, rel=1e-5)
    np.testing.assert_allclose(clf.predict_proba(X), peer.predict_proba(X), atol=1e-6)


@few
@given(seed=seeds, penalty=st.sampled_from([0.1, 1.0, 10.0]))
def test_vector_scaling_is_the_minimiser(seed, penalty):
    rng = np.random.default_rng(seed)
    Z, y = cases(rng)
    weights = rng.uniform(0.1, 3, 60)
    clf = VectorScaling(Given(), penalty=penalty, prefit=True).calibrate(Z, y, weights)
    least = reference.vector_loss(Z, y, weights, clf.slopes_, clf.offsets_, penalty)
    for _ in range(5):
        step = 0.01 * rng.standard_normal((2, 3))
        slopes, offsets = clf.slopes_ + step[0], clf.offsets_ + step[1]
        assert reference.vector_loss(Z, y, weights, slopes, offsets, penalty) > least - 1e-9
    assert clf.offsets_.sum() == pytest.approx(0, abs=1e-4)


def test_a_large_penalty_is_temperature_scaling():
    Z, y = cases(np.random.default_rng(0), 500)
    one = TemperatureScaling(Given(), prefit=True).calibrate(Z, y)
    many = VectorScaling(Given(), penalty=1e7, prefit=True).calibrate(Z, y)
    np.testing.assert_allclose(many.predict_proba(Z), one.predict_proba(Z), atol=1e-3)
    free = VectorScaling(Given(), penalty=1e-3, prefit=True).calibrate(Z, y)
    assert m.negative_log_likelihood(free.predict_proba(Z), y) < m.negative_log_likelihood(one.predict_proba(Z), y)


def test_a_class_without_cases_stays_possible():
    rng = np.random.default_rng(0)
    Z, y = cases(rng, 2000)
    kept = y < 2
    clf = VectorScaling(Given(), prefit=True).calibrate(Z[kept], y[kept])
    assert -10 < clf.offsets_[2] < -2
    assert (clf.predict_proba(Z) > 0).all()


def test_both_undo_what_was_done():
    """Log-probabilities that were doubled, and shifted, class by class."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((20_000, 3))
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    truth = log_softmax(logits, axis=1)
    clf = TemperatureScaling(Given(), prefit=True).calibrate(log_softmax(2 * truth, axis=1), y)
    assert clf.temperature_ == pytest.approx(2, rel=0.05)
    shifted = log_softmax(truth + np.array([1.0, 0.0, -1.0]), axis=1)
    clf = VectorScaling(Given(), prefit=True).calibrate(shifted, y)
    np.testing.assert_allclose(clf.offsets_, [-1, 0, 1], atol=0.15)
    error = np.abs(clf.predict_proba(shifted) - np.exp(truth)).mean()
    assert error < 0.01 < np.abs(np.exp(shifted) - np.exp(truth)).mean()


def test_temperatures_without_an_end_stop_at_one():
    Z = log_softmax(np.array([[2.0, 0, 0], [0, 1.0, 0]]), axis=1)
    assert TemperatureScaling(Given(), prefit=True).calibrate(Z, [0, 1]).temperature_ == pytest.approx(0.01)
    assert TemperatureScaling(Given(), prefit=True).calibrate(Z, [1, 2]).temperature_ == pytest.approx(100)


def test_logarithms_are_exact_where_probabilities_underflow():
    Z = np.array([[0.0, -900.0, -1800.0]])
    clf = TemperatureScaling(Given(), prefit=True).calibrate(*cases(np.random.default_rng(0)))
    found = clf.predict_log_proba(Z)[0]
    np.testing.assert_allclose(found, Z[0] / clf.temperature_)
    assert clf.predictive_entropy(Z)[0] == pytest.approx(0)
    Z = np.array([[0.0, -1.0, -np.inf], [-1.0, 0.0, -2.0]])
    for kind in (TemperatureScaling, VectorScaling):
        clf = kind(Given(), prefit=True).calibrate(np.vstack([Z] * 9), [0, 1, 1, 0, 0, 2] * 3)
        assert clf.predict_log_proba(Z)[0, 2] == -np.inf
        assert np.isfinite(clf.predict_log_proba(Z)[1]).all()


def test_draws_go_through_the_map_and_a_temperature_of_one_changes_nothing():
    X, y = blobs(np.random.default_rng(0), 120)
    head = LaplaceHead(1.0).fit(X, y)
    clf = TemperatureScaling(head, prefit=True).calibrate(X, y)
    clf.temperature_ = 1.0
    np.testing.assert_allclose(clf.predict_posterior(X, 10, random_state=3), head.predict_posterior(X, 10, 3))
    np.testing.assert_allclose(clf.mutual_information(X), head.mutual_information(X), atol=1e-12)
    np.testing.assert_allclose(clf.predictive_entropy(X), head.predictive_entropy(X), atol=1e-12)
    clf.temperature_ = 2.0
    draws = clf.predict_posterior(X, 10, random_state=3)
    np.testing.assert_allclose(draws, np.exp(log_softmax(np.log(head.predict_posterior(X, 10, 3)) / 2, axis=2)))
    assert (clf.predictive_entropy(X) > head.predictive_entropy(X)).all()
    assert (clf.mutual_information(X) >= 0).all()
    plain = TemperatureScaling(LogisticRegression())
    assert not hasattr(plain, "predict_posterior")
    assert not hasattr(plain, "mutual_information")
    assert not hasattr(VennAbersCalibrator(LaplaceHead()), "predict_posterior")


# --- Venn-Abers


@given(seed=seeds, n=st.integers(1, 14), digits=st.integers(0, 2))
def test_venn_abers_is_isotonic_regression_with_the_new_case(seed, n, digits):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.standard_normal(n), digits)
    labels = rng.random(n) < 0.5
    distinct, as_zero, as_one = venn_abers(scores, labels)
    for new in (*distinct, *(distinct + 1e-3), -9.0, 9.0):
        expected = reference.venn_abers(scores.tolist(), labels.astype(int).tolist(), float(new))
        found = as_zero[np.searchsorted(distinct, new, "right")], as_one[np.searchsorted(distinct, new, "left")]
        assert found == pytest.approx([float(p) for p in expected], abs=1e-12)


@few
@given(seed=seeds, n=st.integers(5, 200))
def test_venn_abers_is_that_of_mapie(seed, n):
    peer = pytest.importorskip("mapie._venn_abers").VennAbers()
    rng = np.random.default_rng(seed)
    Z, y = cases(rng, n + 30, 2)
    P = np.exp(Z)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(P[:n], y[:n])
        proba, pairs = peer.predict_proba(P[n:])
    clf = VennAbersCalibrator(Given(2), prefit=True).calibrate(Z[:n], y[:n])
    np.testing.assert_allclose(clf.predict_interval(Z[n:])[:, 1], pairs, atol=1e-9)
    np.testing.assert_allclose(clf.predict_proba(Z[n:]), proba, atol=1e-9)


@few
@given(seed=seeds)
def test_of_n_cases_each_in_turn_the_new_one_the_pair_is_calibrated(seed):
    """The proof itself: among the cases whose p_Y is one value, that share is labelled 1."""
    rng = np.random.default_rng(seed)
    scores, labels = np.round(rng.standard_normal(14), 1).tolist(), (rng.random(14) < 0.5).astype(int).tolist()
    found: dict[Fraction, list[int]] = {}
    for i in range(14):
        pair = reference.venn_abers(scores[:i] + scores[i + 1 :], labels[:i] + labels[i + 1 :], scores[i])
        found.setdefault(pair[labels[i]], []).append(labels[i])
    assert all(Fraction(sum(ones), len(ones)) == p for p, ones in found.items())


def test_pairs_of_two_classes_mirror_each_other():
    Z, y = cases(np.random.default_rng(0), 100, 2)
    pairs = VennAbersCalibrator(Given(2), prefit=True).calibrate(Z[:70], y[:70]).predict_interval(Z[70:])
    np.testing.assert_allclose(pairs[:, 0], 1 - pairs[:, 1, ::-1])
    assert (pairs[..., 0] <= pairs[..., 1]).all()
    assert (pairs[..., 1] - pairs[..., 0]).mean() < 0.2


def test_venn_abers_mends_a_classifier_that_is_too_sure():
    Z, y = cases(np.random.default_rng(0), 4000, 3, temperature=4.0)
    clf = VennAbersCalibrator(Given(), prefit=True).calibrate(Z[:2000], y[:2000])
    before, after = np.exp(Z[2000:]), clf.predict_proba(Z[2000:])
    np.testing.assert_allclose(after.sum(axis=1), 1)
    assert m.expected_calibration_error(after, y[2000:]) < 0.05 < m.expected_calibration_error(before, y[2000:])


# --- fit, calibrate


@every_kind
def test_cross_validation_never_predicts_what_it_was_fitted_to(kind):
    """A tree remembers its training cases, so that only predictions of others can tell how bad it is."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((400, 2)), rng.integers(0, 2, 400)
    tree = DecisionTreeClassifier(min_samples_leaf=2, random_state=0)
    if kind is not VennAbersCalibrator:
        with pytest.raises(ParameterError, match="probability 0"):
            kind(tree).fit(X, y)
        return
    clf = kind(tree).fit(X, y)
    assert np.abs(clf.predict_proba(X) - 0.5).mean() < 0.15
    assert np.abs(tree.fit(X, y).predict_proba(X) - 0.5).mean() > 0.3


class Remembering(LogisticRegression):
    """Says whether a case was among those it was fitted to."""

    seen: list = []  # noqa: RUF012

    def fit(self, X, y):
        self.seen.append(set(X[:, 0].tolist()))
        return super().fit(X, y)

    def predict_log_proba(self, X):
        assert not self.seen[-1] & set(X[:, 0].tolist())
        return super().predict_log_proba(X)


def test_folds_keep_groups_together():
    rng = np.random.default_rng(0)
    X, y = blobs(rng, 60)
    X[:, 0] = np.arange(60) // 3
    X[:, 0] /= 20
    Remembering.seen.clear()
    y = y[np.arange(60) // 3]
    TemperatureScaling(Remembering(), cv=4).fit(X, y, groups=np.arange(60) // 3)
    assert len(Remembering.seen) == 5  # four folds, and all
    assert [len(seen) for seen in Remembering.seen] == [20, 15, 15, 15, 15]


@every_kind
def test_fit_then_calibrate_then_conformalize(kind):
    X, y = blobs(np.random.default_rng(0), 900)
    names = np.array(["bcc", "mel", "nv"])[y]
    frame = pd.DataFrame(X, columns=list("abcd"))
    clf = kind(LogisticRegression(), cv=None).fit(frame[:200], names[:200])
    with pytest.raises(NotFittedError, match="calibrate"):
        clf.predict_proba(frame)
    clf.calibrate(frame[200:400], names[200:400])
    assert clf.classes_.tolist() == ["bcc", "mel", "nv"]
    np.testing.assert_allclose(clf.predict_proba(frame).sum(axis=1), 1)
    sets = ConformalClassifier(clf, prefit=True).conformalize(frame[400:600], names[400:600]).predict_set(frame[600:])
    assert sets[np.arange(300), y[600:]].mean() > m.coverage_band(200, 300, 0.9, probability=1 - 1e-5)[0]
    whole = ConformalClassifier(clone(clf).set_params(cv=3)).fit(frame[:400], names[:400])
    whole.conformalize(frame[400:600], names[400:600])
    assert hasattr(whole.estimator_, clf._fitted_map[0])
    with pytest.raises(NotFittedError):
        clf.fit(frame[:200], names[:200]).predict_proba(frame)


@every_kind
def test_another_calibration_replaces_the_first_and_a_failed_one_leaves_none(kind):
    Z, y = cases(np.random.default_rng(0), 200)
    once = kind(Given(), prefit=True).calibrate(Z[100:], y[100:])
    twice = kind(Given(), prefit=True).calibrate(Z[:100], y[:100]).calibrate(Z[100:], y[100:])
    np.testing.assert_array_equal(twice.predict_proba(Z), once.predict_proba(Z))
    with pytest.raises(ValueError, match="does not know"):
        twice.calibrate(Z, np.full(200, 7))
    with pytest.raises(NotFittedError):
        twice.predict_proba(Z)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_weights_count_cases(kind):
    Z, y = cases(np.random.default_rng(0), 60)
    counts = np.random.default_rng(1).integers(0, 3, 60)
    weighted = kind(Given(), prefit=True).calibrate(Z, y, counts)
    repeated = kind(Given(), prefit=True).calibrate(np.repeat(Z, counts, axis=0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.predict_proba(Z), repeated.predict_proba(Z), atol=1e-5)


@every_kind
def test_a_class_of_one_case_is_left_out_of_its_fold(kind):
    X, y = blobs(np.random.default_rng(0), 60)
    y[y == 2] = 0
    y[7] = 2
    clf = kind(LogisticRegression(), random_state=1).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1)


Z_GOOD, Y_GOOD = cases(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TemperatureScaling(Given(), cv=1).fit(Z_GOOD, Y_GOOD), ValueError, "cv"),
        (lambda: VectorScaling(Given(), penalty=0).fit(Z_GOOD, Y_GOOD), ValueError, "penalty"),
        (lambda: TemperatureScaling(Given(), prefit=True).calibrate(Z_GOOD, Y_GOOD[1:]), ParameterError, "59 labels"),
        (
            lambda: TemperatureScaling(Given(), prefit=True).calibrate(Z_GOOD, Y_GOOD, np.zeros(60)),
            ValueError,
            "weight",
        ),
        (
            lambda: TemperatureScaling(Given(), prefit=True).calibrate(Z_GOOD, Y_GOOD, -np.ones(60)),
            ValueError,
            "egative",
        ),
        (lambda: VennAbersCalibrator(Given(), prefit=True).calibrate(Z_GOOD, Y_GOOD, Y_GOOD), ParameterError, "weigh"),
        (lambda: VennAbersCalibrator(LogisticRegression(), prefit=True).fit(Z_GOOD, Y_GOOD), NotFittedError, "not fit"),
        (lambda: TemperatureScaling(Given(), prefit=True).predict_proba(Z_GOOD), NotFittedError, "not fitted"),
        (lambda: TemperatureScaling(LogisticRegression()).fit(Z_GOOD[:2], [0, 1]), ParameterError, "cross-validation"),
        (
            lambda: TemperatureScaling(Given(), prefit=True).calibrate([[0.0, -np.inf, -np.inf]], [1]),
            ParameterError,
            "probability 0",
        ),
    ],
)
def test_bad_inputs_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_entropy_counts_a_probability_of_zero_for_nothing():
    with np.errstate(divide="ignore"):
        found = entropy_of(np.log(np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])))
    np.testing.assert_allclose(found, [0, np.log(2)])
