"""Laplace head: structured covariances, a prior precision for each class, and the evidence's gradient, against dense
algebra and quadrature."""

import json
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbdc.heads import LaplaceHead
from cbdc.heads import _gaussian as gaussian
from cbdc.heads._evidence import evidence_gradient, maximise
from cbdc.heads._gaussian import DiagonalPosterior, FullPosterior, KroneckerPosterior, LowRankPosterior
from cbdc.heads._softmax import Prior, SoftmaxProblem, contrasts, find_mode
from tests.test_heads import make_data
from theory import laplace_reference as reference

COVARIANCES = ["full", "kronecker", "diagonal", "low_rank"]
KINDS = {
    "full": FullPosterior,
    "kronecker": KroneckerPosterior,
    "diagonal": DiagonalPosterior,
    "low_rank": LowRankPosterior,
}
DISTANCES = {"full": 0.015, "kronecker": 0.03, "diagonal": 0.03, "low_rank": 0.07}
PRECISIONS = np.array([0.4, 3.0, 1.0, 12.0])


def standardised(head, X):
    return np.column_stack([(X - head.mean_) / head.scale_, np.ones(len(X))])


def dense_posterior(head, X, y, rank=None):
    """Covariance that the head's structure should have, in the features."""
    Z, weights = standardised(head, X), np.ones(len(X))
    U = np.vstack([head.components_ @ head.mode_[:-1], head.mode_[-1:]])
    hessian = reference.hessian(U, Z, y, weights, np.zeros(Z.shape[1]))
    logits = Z @ U @ contrasts(len(head.classes_)).T
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    prior = head._prior
    whole = hessian + reference.prior_precision(prior.precision, prior.intercept_precision, Z.shape[1])
    if head.covariance_ == "full":
        return np.linalg.inv(whole)
    if head.covariance_ == "low_rank":
        return reference.low_rank_covariance(hessian, prior.precision, prior.intercept_precision, rank)
    features = Z[:, :-1]
    axes = np.linalg.eigh(features.T @ features)[1] if head.covariance_ == "kronecker" else np.eye(X.shape[1])
    return reference.factored_covariance(hessian, proba, weights, prior.precision, prior.intercept_precision, axes)


def logit_covariance(head, X_new):
    return head.logit_distribution(X_new)[1]


@pytest.mark.parametrize("prior_precision", [2.0, PRECISIONS])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("rank", [1, 7, 18])
def test_posteriors_are_those_of_dense_algebra(covariance, prior_precision, rank):
    if covariance != "low_rank" and rank > 1:
        return
    X, y = make_data(60, 5, 4)
    X = X @ np.random.default_rng(1).normal(size=(5, 5))
    head = LaplaceHead(prior_precision, covariance=covariance, rank=rank, tol=1e-10).fit(X, y)
    dense = dense_posterior(head, X, y, rank)
    Z = standardised(head, X[:7])
    rows = np.array([np.kron(contrasts(4), z) for z in Z])
    np.testing.assert_allclose(logit_covariance(head, X[:7]), rows @ dense @ rows.transpose(0, 2, 1), rtol=1e-7)
    _, log_determinant = np.linalg.slogdet(dense)
    assert head.posterior_.log_determinant == pytest.approx(-log_determinant, abs=1e-8)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_draws_have_the_covariance_of_the_logits(covariance):
    X, y = make_data(60, 3, 3)
    head = LaplaceHead(PRECISIONS[:3], covariance=covariance, rank=2).fit(X, y)
    rng = np.random.RandomState(0)
    _, own, _ = head._rows(head._standardise(X[:2]))
    draws = np.stack([own @ head.posterior_.draw(rng) @ contrasts(3).T for _ in range(4000)])
    expected = logit_covariance(head, X[:2])
    measured = np.einsum("snk,snl->nkl", draws, draws) / 4000
    np.testing.assert_allclose(measured, expected, atol=0.1 * np.abs(expected).max())  # 4.5 standard errors


def test_low_rank_by_products_is_low_rank_by_dense_algebra(monkeypatch):
    X, y = make_data(80, 12, 4)
    dense = LaplaceHead(PRECISIONS, covariance="low_rank", rank=6).fit(X, y)
    monkeypatch.setattr(gaussian, "_DENSE_LIMIT", 10)
    products = LaplaceHead(PRECISIONS, covariance="low_rank", rank=6).fit(X, y)
    np.testing.assert_allclose(products.posterior_.eigenvalues, dense.posterior_.eigenvalues, rtol=1e-4)
    np.testing.assert_allclose(logit_covariance(products, X), logit_covariance(dense, X), rtol=1e-3)


def test_low_rank_never_understates_a_variance_and_gets_closer_with_the_rank():
    X, y = make_data(60, 5, 3)
    full = logit_covariance(LaplaceHead(1.0, covariance="full").fit(X, y), X)
    previous = np.inf
    for rank in (1, 4, 8, 12):
        gap = logit_covariance(LaplaceHead(1.0, covariance="low_rank", rank=rank).fit(X, y), X) - full
        assert np.linalg.eigvalsh(gap).min() > -1e-9
        trace = np.trace(gap, axis1=1, axis2=2).sum()
        assert trace < previous
        previous = trace
    assert trace < 1e-8


@pytest.mark.parametrize("covariance", ["kronecker", "diagonal"])
@pytest.mark.parametrize("prior_precision", [1.0, PRECISIONS])
def test_determinant_of_a_diagonal_is_never_below_the_whole_one(covariance, prior_precision):
    X, y = make_data(60, 5, 4)
    whole = LaplaceHead(prior_precision, covariance="full").fit(X, y)
    diagonal = LaplaceHead(prior_precision, covariance=covariance).fit(X, y)
    assert diagonal.posterior_.log_determinant > whole.posterior_.log_determinant
    assert diagonal.log_marginal_likelihood_ < whole.log_marginal_likelihood_


def test_diagonal_is_exact_for_features_without_correlation():
    rng = np.random.default_rng(0)
    X = np.kron(np.eye(4), np.ones((30, 1))) * rng.choice([-1.0, 1.0], size=(120, 1))
    y = (rng.random(120) < 0.5).astype(int)
    head = LaplaceHead(0.7, covariance="diagonal", tol=1e-9).fit(X, y)
    full = LaplaceHead(0.7, covariance="full", tol=1e-9).fit(X, y)
    # the weak coupling with the intercept is all that is lost
    np.testing.assert_allclose(logit_covariance(head, X), logit_covariance(full, X), rtol=0.12)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_unseen_features_keep_the_variance_of_their_classes_prior(covariance):
    X, y = make_data(20, 3, 3)
    X = np.column_stack([X, np.zeros((20, 40))])
    tau = PRECISIONS[:3]
    head = LaplaceHead(tau, covariance=covariance).fit(X, y)
    far = X[:1].copy()
    far[0, 10] = 50.0
    added = logit_covariance(head, far) - logit_covariance(head, X[:1])
    center = np.eye(3) - 1 / 3
    np.testing.assert_allclose(added[0], (50 / head.scale_[0]) ** 2 * center @ np.diag(1 / tau) @ center, rtol=1e-9)


# --- a prior precision for each class


def test_prior_of_contrasts_is_that_of_the_rows():
    B, center = contrasts(4), np.eye(4) - 1 / 4
    prior = Prior(PRECISIONS)
    rows = np.random.default_rng(0).normal(size=(4, 200_000)) / np.sqrt(PRECISIONS)[:, None]
    np.testing.assert_allclose(np.cov(B.T @ rows), prior.covariance, atol=0.05)
    np.testing.assert_allclose(B @ prior.covariance @ B.T, center @ np.diag(1 / PRECISIONS) @ center, atol=1e-12)
    T = np.diag(PRECISIONS)
    schur = B.T @ T @ B - B.T @ T @ np.ones((4, 4)) @ T @ B / PRECISIONS.sum()
    np.testing.assert_allclose(prior.precision, schur, atol=1e-12)


def test_mode_evidence_and_covariance_are_those_of_the_rows():
    X, y = make_data(40, 3, 4)
    weights = np.random.default_rng(2).uniform(0.3, 2, 40)
    head = LaplaceHead(PRECISIONS, covariance="full", tol=1e-10).fit(X, y, sample_weight=weights)
    Z = standardised(head, X)
    prior = np.column_stack([np.tile(PRECISIONS[:, None], (1, 3)), np.full(4, 0.01)])
    W, _ = reference.rows_mode(Z, y, weights, prior)
    np.testing.assert_allclose(head.coef_ * head.scale_, (W - W.mean(axis=0))[:, :-1], atol=1e-8)
    expected = reference.rows_evidence(Z, y, weights, prior)
    assert head.log_marginal_likelihood_ == pytest.approx(expected, abs=1e-8)
    dense = reference.rows_logit_covariance(Z[:5], Z, y, weights, prior)
    np.testing.assert_allclose(logit_covariance(head, X[:5]), dense, atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_equal_precisions_are_one_precision(covariance):
    X, y = make_data(60, 4, 3)
    one = LaplaceHead(2.0, covariance=covariance).fit(X, y)
    three = LaplaceHead([2.0, 2.0, 2.0], covariance=covariance).fit(X, y)
    np.testing.assert_allclose(three.predict_proba(X), one.predict_proba(X), atol=1e-9)
    # unequal by rounding: the other branch of the axes
    nearly = LaplaceHead([2.0, 2.0, 2.0 + 1e-9], covariance=covariance).fit(X, y)
    np.testing.assert_allclose(nearly.predict_proba(X), one.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("prior_precision", ["evidence_per_class", PRECISIONS])
def test_renaming_classes_permutes_the_columns(covariance, prior_precision):
    X, y = make_data(200, 6, 4)
    order = np.array([2, 0, 3, 1])
    renamed_prior = prior_precision if isinstance(prior_precision, str) else np.empty(4)
    if not isinstance(prior_precision, str):
        renamed_prior[order] = prior_precision
    options = {"covariance": covariance, "predictive": "probit", "mean_correction": False, "tol": 1e-8}
    head = LaplaceHead(prior_precision, **options).fit(X, y)
    renamed = LaplaceHead(renamed_prior, **options).fit(X, order[y])
    near = 5e-4 if isinstance(prior_precision, str) else 1e-7  # the search stops at a gain of 0.001 nats
    np.testing.assert_allclose(renamed.prior_precision_[order], head.prior_precision_, rtol=2e-2)
    np.testing.assert_allclose(renamed.coef_[order], head.coef_, atol=4 * near)
    np.testing.assert_allclose(renamed.predict_proba(X)[:, order], head.predict_proba(X), atol=near)


def test_two_classes_share_one_precision():
    X, y = make_data(80, 5, 2)
    one, each = LaplaceHead("evidence").fit(X, y), LaplaceHead("evidence_per_class").fit(X, y)
    np.testing.assert_allclose(each.prior_precision_, one.prior_precision_, rtol=1e-6)
    unequal = LaplaceHead(1 / np.array([0.5, 1.5])).fit(X, y)
    np.testing.assert_allclose(unequal.predict_proba(X), LaplaceHead(1.0).fit(X, y).predict_proba(X), atol=1e-9)


@pytest.mark.parametrize("covariance", ["full", "kronecker", "diagonal"])
@pytest.mark.parametrize("log_precisions", [np.array([-1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 2.0, 2.0])])
def test_gradient_of_the_evidence_is_its_difference(covariance, log_precisions):
    X, y = make_data(150, 6, 4, signal=0.7)
    X = X @ np.random.default_rng(1).normal(size=(6, 6))
    problem, own = problems(X, y, covariance)

    def evidence(s, *, gradient=False):
        prior = Prior(np.exp(s))
        mode, proba, value, _ = find_mode(problem, prior, np.zeros((7, 3)), max_iter=100, tol=1e-10)
        posterior = KINDS[covariance].at(own, proba, prior)
        if gradient:
            return evidence_gradient(problem, own, prior, mode, proba, posterior)
        return value + (prior.log_determinant(7) - posterior.log_determinant) / 2

    steps = 1e-3 * np.eye(4)
    numeric = [(evidence(log_precisions + e) - evidence(log_precisions - e)) / 2e-3 for e in steps]
    np.testing.assert_allclose(evidence(log_precisions, gradient=True), numeric, rtol=2e-3, atol=2e-3)


def problems(X, y, covariance):
    axes = np.linalg.eigh(X.T @ X)[1]
    Z = np.column_stack([X @ axes, np.ones(len(X))])
    problem = SoftmaxProblem(Z, y, np.ones(len(X)), np.sum(Z**2, axis=0), 4)
    rows = np.column_stack([X, np.ones(len(X))])
    own = SoftmaxProblem(rows, y, np.ones(len(X)), np.sum(rows**2, axis=0), 4)
    return problem, own if covariance == "diagonal" else problem


@pytest.mark.parametrize("covariance", ["full", "kronecker", "diagonal"])
def test_precisions_of_the_classes_maximise_the_evidence(covariance):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 8))
    W = rng.normal(size=(8, 4)) * np.array([2.0, 0.2, 1.0, 0.05])
    y = np.argmax(X @ W + rng.gumbel(size=(300, 4)), axis=1)
    options = {"covariance": covariance, "mean_correction": False}
    found = LaplaceHead("evidence_per_class", **options).fit(X, y)
    one = LaplaceHead("evidence", **options).fit(X, y)
    assert found.log_marginal_likelihood_ > one.log_marginal_likelihood_ + 1
    for _ in range(12):
        other = found.prior_precision_ * np.exp(rng.normal(scale=0.4, size=4))
        assert LaplaceHead(other, **options).fit(X, y).log_marginal_likelihood_ < found.log_marginal_likelihood_ + 2e-3
    assert found.prior_precision_[0] < found.prior_precision_[[1, 3]].min()


def test_maximum_of_a_quadratic_from_far_away():
    curvature = np.diag([3.0, 0.5, 40.0])
    top = np.array([1.0, -3.0, 0.2])

    def evidence(s):
        return -0.5 * (s - top) @ curvature @ (s - top), -curvature @ (s - top)

    found, _ = maximise(evidence, np.zeros(3))
    np.testing.assert_allclose(found, top, atol=0.1)
    assert -evidence(found)[0] < 2e-3
    flat, _ = maximise(lambda s: (float(s[0]), np.ones(1)), np.zeros(1))
    assert flat[0] == 8.0
    nowhere, _ = maximise(lambda s: (0.0, np.zeros(1)), np.zeros(1))
    assert nowhere[0] == 0.0


def test_labels_without_signal_get_a_large_precision():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 10)), rng.integers(0, 3, 200)
    head = LaplaceHead().fit(X, y)
    assert head.prior_precision_ > 1000
    np.testing.assert_allclose(head.predict_proba(X), np.tile(np.bincount(y) / 200, (200, 1)), atol=0.03)


# --- against exact quadrature: the distance of each structure


@lru_cache
def exact(n_classes):
    """Training data, new rows and their exact posterior predictive under a prior precision of one."""
    d = 4 - n_classes
    X, y = make_data(40, d, n_classes, seed=4)
    X_new = np.random.default_rng(1).normal(scale=2, size=(50, d))
    head = LaplaceHead(1.0).fit(X, y)
    prior = np.append(np.ones(d), 0.01)
    _, grid, mass = reference.exact_posterior(standardised(head, X), y, np.ones(40), prior, n_classes, points=17)
    return X, y, X_new, reference.exact_predictive(standardised(head, X_new), grid, mass)


@pytest.mark.parametrize(("covariance", "distance"), list(DISTANCES.items()))
@pytest.mark.parametrize("n_classes", [2, 3])
def test_predictive_of_each_structure_is_close_to_the_exact_one(covariance, distance, n_classes):
    X, y, X_new, expected = exact(n_classes)
    rank = X.shape[1] * (n_classes - 1) + n_classes - 2  # all directions but one
    head = LaplaceHead(1.0, covariance=covariance, rank=rank, predictive="exact").fit(X, y)
    assert np.abs(head.predict_proba(X_new) - expected).max() < distance


# --- edges


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("prior_precision", ["evidence", "evidence_per_class"])
def test_edges(covariance, prior_precision):
    def head():
        return LaplaceHead(prior_precision, covariance=covariance, rank=3)

    few = head().fit([[0.0, 1.0], [1.0, 0.0]], ["a", "b"]).predict_proba([[0.0, 1.0], [1.0, 0.0]])
    assert 0.5 < few[0, 0] < 1
    constant = head().fit(np.ones((40, 3)), np.repeat([0, 1], [30, 10]))
    np.testing.assert_allclose(constant.predict_proba(np.ones((1, 3))), [[0.75, 0.25]], atol=0.01)
    X, y = make_data(10, 30, 3, dtype=np.float32)
    assert np.isfinite(head().fit(X, y).predict_log_proba(X)).all()
    X, y = make_data(60, 4, 3)
    dropped = head().fit(X[:40], y[:40]).predict_proba(X)
    with_zero = head().fit(X, np.append(y[:40], np.full(20, 7)), sample_weight=np.repeat([1.0, 0.0], [40, 20]))
    np.testing.assert_array_equal(with_zero.predict_proba(X), dropped)
    with pytest.raises(ValueError, match="at least two classes, got one class"):
        head().fit(X, np.zeros(60))
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        head().fit(X, y)


def test_rows_that_are_all_the_same_leave_no_axis():
    head = LaplaceHead(covariance="kronecker").fit(np.tile(np.arange(9.0), (4, 1)), [0, 1, 1, 1])
    assert head.components_.shape == (9, 0)
    np.testing.assert_allclose(head.predict_proba([np.arange(9.0)])[0, 1], 0.75, atol=0.06)


@settings(max_examples=20)
@given(
    st.sampled_from(COVARIANCES),
    st.sampled_from(["evidence", "evidence_per_class"]),
    st.lists(st.integers(0, 79), min_size=1, max_size=40),
)
def test_a_row_does_not_depend_on_its_batch(covariance, prior_precision, rows):
    head, X = fitted(covariance, prior_precision)
    together = head.predict_log_proba(X[rows])
    alone = np.concatenate([head.predict_log_proba(X[[row]]) for row in rows[:3]])
    np.testing.assert_array_equal(together[:3], alone)


HEADS: dict = {}


def fitted(covariance, prior_precision):
    key = covariance, prior_precision
    if key not in HEADS:
        X, y = make_data(80, 30, 3, dtype=np.float32)
        HEADS[key] = LaplaceHead(prior_precision, covariance=covariance, rank=20).fit(X, y), X
    return HEADS[key]


@pytest.mark.parametrize("prior_precision", ["evidence_per_class", np.array([1.0, 2.0, 3.0])])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_state_round_trip(covariance, prior_precision):
    X, y = make_data(80, 4, 3, dtype=np.float32)
    head = LaplaceHead(prior_precision, covariance=covariance, rank=5, predictive="exact").fit(X, y)
    arrays, document = head.get_state()
    assert all(type(array) is np.ndarray and array.flags.c_contiguous for array in arrays.values())
    copy = LaplaceHead.from_state({k: v.copy() for k, v in arrays.items()}, json.loads(json.dumps(document)))
    np.testing.assert_array_equal(copy.predict_log_proba(X), head.predict_log_proba(X))
    np.testing.assert_array_equal(copy.predict_posterior(X, 5), head.predict_posterior(X, 5))
    np.testing.assert_array_equal(copy.mutual_information(X), head.mutual_information(X))
    np.testing.assert_array_equal(copy.prior_precision_, head.prior_precision_)
    assert copy.get_params().keys() == head.get_params().keys()


@pytest.mark.parametrize("bad", [[1.0, 2.0], [1.0, -2.0, 3.0], [1.0, np.nan, 1.0], [[1.0, 1.0, 1.0]]])
def test_bad_precisions_are_refused(bad):
    with pytest.raises(ValueError, match="prior_precision"):
        LaplaceHead(bad).fit(*make_data())
