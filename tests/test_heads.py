"""Bayesian heads: against quadrature, dense algebra and scikit-learn; determinism; bad inputs."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cbdc.heads import HEADS, LaplaceHead, make_head
from cbdc.heads._gaussian import FullPosterior, KroneckerPosterior, axis_curvature, full_curvature
from cbdc.heads._softmax import Prior, SoftmaxProblem, contrasts
from theory import laplace_reference as reference

INTERCEPT_PRECISION = 1e-2


def make_data(n=60, d=3, n_classes=3, seed=0, dtype=float, signal=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    W = signal * rng.normal(size=(d, n_classes))
    codes = np.argmax(X @ W + rng.gumbel(size=(n, n_classes)), axis=1)
    codes[:n_classes] = np.arange(n_classes)
    return X.astype(dtype), codes


def oracle_inputs(head, X, sample_weight=None):
    Z = np.column_stack([(X - head.mean_) / head.scale_, np.ones(len(X))])
    weights = np.ones(len(X)) if sample_weight is None else sample_weight
    return Z, weights, np.append(np.full(X.shape[1], head.prior_precision_), INTERCEPT_PRECISION)


def in_features(head, parameters):
    """Parameters along the principal axes -> along the standardised features."""
    return np.vstack([head.components_ @ parameters[:-1], parameters[-1:]])


def make_problem(n=40, p=4, n_classes=3, seed=0):
    X, codes = make_data(n, p, n_classes, seed)
    weights = np.random.default_rng(seed).uniform(0.5, 2, n)
    return SoftmaxProblem(X, codes, weights, weights @ X**2, n_classes)


# --- the mode


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("standardize", [False, True])
def test_mode_is_that_of_scikit_learn(n_classes, standardize):
    X, y = make_data(200, 6, n_classes)
    X *= np.arange(1, 7)
    tau = 3.0
    head = LaplaceHead(tau, standardize=standardize, tol=1e-8).fit(X, y)
    # a last column of this height gives scikit-learn's ridge the prior of our intercept
    height = np.sqrt(tau / INTERCEPT_PRECISION)
    Z = np.column_stack([(X - head.mean_) / head.scale_, np.full(len(X), height)])
    C = 1 / tau if n_classes > 2 else 2 / tau
    peer = LogisticRegression(C=C, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(Z, y)
    np.testing.assert_allclose(
        log_softmax(X @ head.coef_.T + head.intercept_, axis=1), peer.predict_log_proba(Z), atol=1e-4
    )
    if n_classes > 2:
        np.testing.assert_allclose(head.coef_ * head.scale_, peer.coef_[:, :-1], atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(50, 3), (8, 20)])
def test_mode_is_that_of_the_oracle(n, d):
    X, y = make_data(n, d, 3)
    weights = np.random.default_rng(1).uniform(0.2, 3, n)
    head = LaplaceHead(2.0, tol=1e-9).fit(X, y, sample_weight=weights)
    Z, weights, prior = oracle_inputs(head, X, weights)
    np.testing.assert_allclose(in_features(head, head.mode_), reference.mode(Z, y, weights, prior, 3), atol=1e-7)


def test_float32_finds_the_mode_of_float64():
    X, y = make_data(400, 60, 4, dtype=np.float32)
    heads = [LaplaceHead(10.0).fit(X.astype(dtype), y) for dtype in (np.float32, np.float64)]
    assert heads[0].components_.dtype == np.float32
    np.testing.assert_allclose(heads[0].coef_, heads[1].coef_, atol=1e-3)
    np.testing.assert_allclose(heads[0].predict_proba(X), heads[1].predict_proba(X), atol=1e-3)


def test_too_few_steps_warn():
    X, y = make_data()
    with pytest.warns(ConvergenceWarning, match=r"was not reached in max_iter=1 .* Fix: raise max_iter"):
        LaplaceHead(1.0, max_iter=1, mean_correction=False).fit(X, y)


# --- the curvature


def test_full_curvature_is_the_hessian():
    problem = make_problem()
    U = np.random.default_rng(3).normal(size=(4, 2))
    _, proba, _ = problem.log_likelihood(problem.logits(U))
    dense = reference.hessian(U, problem.Z, problem.codes, problem.weights, np.zeros(4))
    np.testing.assert_allclose(full_curvature(problem, proba), dense, atol=1e-8)


def test_reference_hessian_is_the_second_difference():
    problem = make_problem(n=10, p=2)
    U = np.random.default_rng(3).normal(size=(2, 2))
    prior, step = np.array([0.7, 0.1]), 1e-3

    def value(u):
        return -reference.log_joint(u.reshape(2, 2).T, problem.Z, problem.codes, problem.weights, prior)

    u, eye = U.T.ravel(), step * np.eye(4)
    numeric = [
        [(value(u + a + b) - value(u + a - b) - value(u - a + b) + value(u - a - b)) / (4 * step**2) for b in eye]
        for a in eye
    ]
    dense = reference.hessian(U, problem.Z, problem.codes, problem.weights, prior)
    np.testing.assert_allclose(dense, numeric, atol=1e-5)


def orthogonal_problem(n_classes=4):
    X, codes = make_data(50, 5, n_classes)
    U, _, _ = np.linalg.svd(X, full_matrices=False)
    Z = U * np.array([5.0, 3.0, 2.0, 1.0, 0.5])
    return SoftmaxProblem(Z, codes, np.ones(50), np.sum(Z**2, axis=0), n_classes)


def test_kronecker_equals_full_where_all_rows_have_one_curvature():
    problem, prior = orthogonal_problem(), Prior(np.full(4, 0.3))
    proba = np.tile([0.4, 0.3, 0.2, 0.1], (50, 1))
    full, kronecker = FullPosterior.at(problem, proba, prior), KroneckerPosterior.at(problem, proba, prior)
    assert kronecker.log_determinant == pytest.approx(full.log_determinant, rel=1e-12)
    outside = 0.2 * np.eye(3)
    a, b = full.logit_factor(problem.Z, outside), kronecker.logit_factor(problem.Z, outside)
    np.testing.assert_allclose(a @ a.transpose(0, 2, 1), b @ b.transpose(0, 2, 1), atol=1e-10)


def test_kronecker_factor_ignores_sign_and_order_of_the_eigenvectors():
    problem, prior = orthogonal_problem(), Prior(np.full(4, 0.3))
    _, proba, _ = problem.log_likelihood(problem.logits(np.random.default_rng(0).normal(size=(5, 3))))
    ours = KroneckerPosterior.at(problem, proba, prior)
    order, signs = [2, 0, 1], np.array([1, -1, -1])
    other = KroneckerPosterior(ours.posterior_precision[:, order], ours.class_axes[:, :, order] * signs)
    np.testing.assert_allclose(other.logit_factor(problem.Z), ours.logit_factor(problem.Z), atol=1e-12)


def test_kronecker_diagonal_is_exact_and_bounds_the_determinant():
    problem = orthogonal_problem()
    _, proba, _ = problem.log_likelihood(problem.logits(np.random.default_rng(0).normal(size=(5, 3))))
    prior = Prior(np.ones(4))
    _, axes = prior.axes(problem.class_curvature(proba, problem.weights))
    curvature = axis_curvature(problem, proba, axes)
    for rows, Q in zip((slice(0, 4), slice(4, 5)), axes, strict=True):
        turn = np.kron(Q, np.eye(5))
        diagonal = np.diag(turn.T @ full_curvature(problem, proba) @ turn).reshape(3, 5).T
        np.testing.assert_allclose(curvature[rows], diagonal[rows], rtol=1e-10)
    ours = KroneckerPosterior.at(problem, proba, prior)
    whole = FullPosterior.at(problem, proba, prior)
    assert ours.log_determinant > whole.log_determinant


@pytest.mark.parametrize("kind", [FullPosterior, KroneckerPosterior])
def test_draws_have_the_covariance_of_the_logits(kind):
    problem, prior = orthogonal_problem(3), Prior(np.full(3, 0.5))
    _, proba, _ = problem.log_likelihood(problem.logits(np.random.default_rng(0).normal(size=(5, 2))))
    posterior = kind.at(problem, proba, prior)
    rng = np.random.RandomState(0)
    z = problem.Z[:2]
    draws = np.stack([z @ posterior.draw(rng) @ contrasts(3).T for _ in range(4000)])
    factor = posterior.logit_factor(z)
    expected = factor @ factor.transpose(0, 2, 1)
    measured = np.einsum("snk,snl->nkl", draws, draws) / 4000
    np.testing.assert_allclose(measured, expected, atol=0.1 * np.abs(expected).max())  # 4.5 standard errors


# --- evidence and posterior, against quadrature


def test_evidence_is_the_oracles():
    X, y = make_data(30, 2, 3)
    head = LaplaceHead(1.5, tol=1e-8).fit(X, y)
    Z, weights, prior = oracle_inputs(head, X)
    expected = reference.laplace_evidence(Z, y, weights, prior, 3)
    assert head.log_marginal_likelihood_ == pytest.approx(expected, abs=1e-7)
    assert LaplaceHead(1.5, covariance="kronecker").fit(X, y).log_marginal_likelihood_ < expected


def test_evidence_tends_to_the_exact_one():
    errors = np.zeros((3, 8))
    for i, n in enumerate((8, 40, 200)):
        for seed in range(8):
            X, y = make_data(n, 1, 2, seed)
            head = LaplaceHead(1.0, tol=1e-8).fit(X, y)
            exact, _, _ = reference.exact_posterior(*oracle_problem(head, X, y))
            errors[i, seed] = abs(head.log_marginal_likelihood_ - exact)
    mean = errors.mean(axis=1)
    assert mean[2] < 0.01
    assert mean[0] > 2 * mean[1] > 4 * mean[2]


def oracle_problem(head, X, y):
    Z, weights, prior = oracle_inputs(head, X)
    return Z, y, weights, prior, len(head.classes_)


@pytest.mark.parametrize("covariance", ["full", "kronecker"])
def test_prior_precision_maximises_the_evidence(covariance):
    X, y = make_data(150, 12, 3)
    found = LaplaceHead(covariance=covariance).fit(X, y)
    grid = [LaplaceHead(tau, covariance=covariance).fit(X, y) for tau in np.geomspace(0.03, 3000, 30)]
    assert found.log_marginal_likelihood_ > max(head.log_marginal_likelihood_ for head in grid) - 1e-3


@pytest.mark.parametrize(("n", "d", "distance"), [(10, 1, 0.03), (40, 1, 0.015), (40, 2, 0.015)])
def test_predictive_is_close_to_the_exact_one(n, d, distance):
    X, y = make_data(n, d, 2, seed=4)
    X_new = np.random.default_rng(1).normal(scale=2, size=(50, d))
    errors = {}
    for corrected in (True, False):
        head = LaplaceHead(1.0, mean_correction=corrected).fit(X, y)
        _, grid, mass = reference.exact_posterior(*oracle_problem(head, X, y))
        exact = reference.exact_predictive(oracle_inputs(head, X_new)[0], grid, mass)
        errors[corrected] = np.abs(head.predict_proba(X_new) - exact).max()
    assert errors[True] < distance
    assert errors[True] < errors[False]


def test_corrected_mean_is_closer_to_the_posterior_mean():
    X, y = make_data(15, 1, 2, seed=4, signal=3.0)
    head = LaplaceHead(0.5).fit(X, y)
    _, grid, mass = reference.exact_posterior(*oracle_problem(head, X, y), points=101)
    mean = np.einsum("m,mpj->pj", mass, grid)
    corrected, mode = in_features(head, head.posterior_mean_), in_features(head, head.mode_)
    assert np.abs(corrected - mean).max() < 0.5 * np.abs(mode - mean).max()


def test_corrected_mean_reproduces_the_class_frequencies():
    X, y = make_data(300, 40, 4, dtype=np.float32)
    bias = {
        corrected: np.abs(
            LaplaceHead(mean_correction=corrected).fit(X, y).predict_proba(X).mean(axis=0) - np.bincount(y) / 300
        ).max()
        for corrected in (True, False)
    }
    assert bias[True] < 0.003
    assert bias[True] < bias[False]


def test_predictive_average_is_exact_for_two_classes():
    X, y = make_data(40, 2, 2)
    head = LaplaceHead(1.0).fit(X, y)
    (mean, factor), grid = logit_gaussian(head, X), np.linspace(-8, 8, 4001)
    gap, spread = mean[:, 1] - mean[:, 0], np.abs(factor[:, 1, 0] - factor[:, 0, 0])
    density = norm.pdf(grid) / norm.pdf(grid).sum()
    exact = (1 / (1 + np.exp(-(gap[:, None] + spread[:, None] * grid)))) @ density
    np.testing.assert_allclose(head.predict_proba(X)[:, 1], exact, atol=2e-3)


def logit_gaussian(head, X):
    Z = np.column_stack([(X - head.mean_) / head.scale_ @ head.components_, np.ones(len(X))])
    return Z @ head.posterior_mean_ @ contrasts(len(head.classes_)).T, head.posterior_.logit_factor(Z)


@pytest.mark.parametrize(("n", "d"), [(200, 5), (30, 80), (400, 200)])
def test_joint_draws_average_to_the_predictive(n, d):
    X, y = make_data(n, d, 4, dtype=np.float32)
    head = LaplaceHead().fit(X, y)
    new = make_data(20, d, 4, seed=9, dtype=np.float32)[0]
    draws = head.predict_posterior(new, n_draws=3000, random_state=0)
    assert draws.shape == (3000, 20, 4)
    np.testing.assert_allclose(draws.mean(axis=0), head.predict_proba(new), atol=0.035)  # 4 errors of .5 / sqrt(3000)
    np.testing.assert_allclose(draws.sum(axis=2), 1, atol=1e-12)


# --- uncertainty


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 12), st.integers(6, 40))
def test_probabilities_and_uncertainties_are_coherent(seed, n_classes, d, n):
    X, y = make_data(n, d, n_classes, seed)
    head = LaplaceHead(1.0).fit(X, y)
    X_new = 5 * make_data(n, d, n_classes, seed + 1)[0]
    proba = head.predict_proba(X_new)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(np.log(proba), head.predict_log_proba(X_new), atol=1e-9)
    entropy, information = head.predictive_entropy(X_new), head.mutual_information(X_new)
    assert np.all(information >= 0)
    assert np.all(information <= entropy + 1e-9)
    assert np.all(entropy <= np.log(n_classes) + 1e-12)


def test_mutual_information_is_not_clipped_to_be_positive():
    X, y = make_data(100, 4, 3)
    head = LaplaceHead(1.0).fit(X, y)
    for block in head._log_draws(X):
        average = np.exp(block).mean(axis=1)
        total = -(average * np.log(average)).sum(axis=1)
        expected = -(np.exp(block) * block).sum(axis=2).mean(axis=1)
        assert np.all(total >= expected)
    assert head.mutual_information(X).min() > 1e-4


@pytest.mark.parametrize(("n", "d"), [(200, 5), (300, 400)])
def test_far_away_is_less_confident_than_the_mode(n, d):
    X, y = make_data(n, d, 3, dtype=np.float32)
    head = LaplaceHead().fit(X, y)
    far = 1000 * X[:50]
    plug_in = np.exp(log_softmax(far @ head.coef_.T + head.intercept_, axis=1))
    assert plug_in.max(axis=1).mean() > 0.999
    assert head.predict_proba(far).max(axis=1).mean() < 0.95
    assert head.mutual_information(far).mean() > 3 * head.mutual_information(X[:50]).mean()


def test_unseen_directions_keep_the_variance_of_the_prior():
    X, y = make_data(20, 3, 2)
    X = np.column_stack([X, np.zeros((20, 40))])
    head = LaplaceHead(1.0).fit(X, y)
    assert head.components_.shape == (43, 3)
    usual, unseen = X[:1].copy(), X[:1].copy()
    unseen[0, 10] = 50
    assert head.mutual_information(unseen) > 3 * head.mutual_information(usual)
    draws = head.predict_posterior(np.vstack([usual, unseen]), 500)
    assert draws[:, 1, 0].std() > 2 * draws[:, 0, 0].std()


def test_log_probabilities_do_not_underflow():
    X = np.repeat([[-1.0], [1.0]], 500, axis=0)
    head = LaplaceHead(1e-4, n_draws=16).fit(X, np.repeat([0, 1], 500))
    head.posterior_ = FullPosterior(head.posterior_.posterior_factor * 1e-3)
    log_proba = head.predict_log_proba([[1000.0]])
    assert head.predict_proba([[1000.0]])[0, 0] == 0
    assert -np.inf < log_proba[0, 0] < -1000


# --- one by one, threads, determinism


@pytest.fixture(scope="module")
def fitted():
    X, y = make_data(300, 200, 7, dtype=np.float32)
    return LaplaceHead().fit(X, y), X


@given(rows=st.lists(st.integers(0, 299), min_size=1, max_size=90))
def test_a_row_does_not_depend_on_its_batch(fitted, rows):
    head, X = fitted
    together = head.predict_log_proba(X[rows])
    alone = np.concatenate([head.predict_log_proba(X[[row]]) for row in rows[:5]])
    np.testing.assert_array_equal(together[:5], alone)
    np.testing.assert_array_equal(head.mutual_information(X[rows])[:1], head.mutual_information(X[rows[:1]]))


def test_eight_threads_give_the_serial_result(fitted):
    head, X = fitted
    serial = head.predict_log_proba(X), head.mutual_information(X), head.predict_posterior(X[:20], 8, 0)

    def work(_):
        return head.predict_log_proba(X), head.mutual_information(X), head.predict_posterior(X[:20], 8, 0)

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(work, range(16)):
            for a, b in zip(serial, result, strict=True):
                np.testing.assert_array_equal(a, b)


def test_fitting_again_and_another_head_change_nothing(fitted):
    head, X = fitted
    before, state = head.predict_proba(X), {k: v.copy() for k, v in head.get_state()[0].items()}
    y = make_data(300, 200, 7)[1]
    other = LaplaceHead(5.0, random_state=1).fit(X[::-1], y)
    assert not np.array_equal(other.predict_proba(X), before)
    np.testing.assert_array_equal(head.predict_proba(X), before)
    again = LaplaceHead().fit(X, y)
    for name, array in again.get_state()[0].items():
        np.testing.assert_array_equal(array, state[name])


def test_random_state_moves_the_points_only():
    X, y = make_data(100, 4, 3)
    heads = [LaplaceHead(random_state=seed).fit(X, y) for seed in (0, 1)]
    np.testing.assert_array_equal(heads[0].posterior_mean_, heads[1].posterior_mean_)
    first, second = (head.predict_proba(X) for head in heads)
    assert 0 < np.abs(first - second).max() < 5e-3
    np.testing.assert_array_equal(heads[0].predict_posterior(X, 3), heads[0].predict_posterior(X, 3))
    assert not np.array_equal(heads[0].predict_posterior(X, 3, 1), heads[0].predict_posterior(X, 3, 2))


# --- equivariance


@pytest.mark.parametrize("covariance", ["full", "kronecker"])
def test_renaming_classes_permutes_the_columns(covariance):
    X, y = make_data(200, 6, 4)
    order = np.array([2, 0, 3, 1])
    head = LaplaceHead(covariance=covariance, n_draws=2048).fit(X, y)
    renamed = LaplaceHead(covariance=covariance, n_draws=2048).fit(X, order[y])
    assert renamed.log_marginal_likelihood_ == pytest.approx(head.log_marginal_likelihood_, abs=1e-3)
    np.testing.assert_allclose(renamed.coef_[order], head.coef_, atol=5e-3)
    np.testing.assert_allclose(renamed.predict_proba(X)[:, order], head.predict_proba(X), atol=5e-3)


def test_turning_and_shifting_the_embedding_changes_nothing():
    X, y = make_data(100, 6, 3)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    a, b = LaplaceHead(2.0).fit(X, y), LaplaceHead(2.0).fit(7 * X @ turn + 3, y)
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(7 * X @ turn + 3), atol=1e-5)


@pytest.mark.parametrize("labels", [["nv", "mel", "bkl"], [5, -3, 100]])
def test_any_labels(labels):
    X, codes = make_data(80, 4, 3)
    y = np.array(labels)[codes]
    head = LaplaceHead(1.0).fit(X, y)
    np.testing.assert_array_equal(head.classes_, np.sort(labels))
    assert head.score(X, y) > 0.6


def test_boolean_labels():
    X, codes = make_data(80, 4, 2)
    head = LaplaceHead(1.0).fit(X, codes.astype(bool))
    assert head.predict(X).dtype == bool
    assert head.predict_proba(X).shape == (80, 2)


@pytest.mark.parametrize("covariance", ["full", "kronecker"])
def test_weights_count_rows(covariance):
    X, y = make_data(60, 4, 3)
    counts = np.random.default_rng(0).integers(0, 3, 60)
    counts[:3] = 1
    weighted = LaplaceHead(covariance=covariance).fit(X, y, sample_weight=counts)
    repeated = LaplaceHead(covariance=covariance).fit(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-6)
    assert weighted.log_marginal_likelihood_ == pytest.approx(repeated.log_marginal_likelihood_, abs=1e-6)


def test_rows_of_weight_zero_are_dropped():
    X, y = make_data(60, 4, 3)
    dropped = LaplaceHead().fit(X[:40], y[:40]).predict_proba(X)
    y[40:], X[40:] = 7, 1e6
    zero = LaplaceHead().fit(X, y, sample_weight=np.repeat([1.0, 0.0], [40, 20]))
    np.testing.assert_array_equal(zero.predict_proba(make_data(60, 4, 3)[0]), dropped)


# --- edges and bad inputs


def test_constant_features_do_nothing():
    X, y = make_data(60, 4, 3, dtype=np.float32)
    wide = np.column_stack([X, np.full((60, 2), 1e3 + 0.1, dtype=np.float32)])
    for standardize in (False, True):
        narrow = LaplaceHead(1.0, standardize=standardize).fit(X, y).predict_proba(X)
        proba = LaplaceHead(1.0, standardize=standardize).fit(wide, y).predict_proba(wide)
        np.testing.assert_allclose(proba, narrow, atol=1e-4)


def test_only_constant_features_give_the_class_frequencies():
    head = LaplaceHead().fit(np.ones((40, 3)), np.repeat([0, 1], [30, 10]))
    np.testing.assert_allclose(head.predict_proba(np.ones((1, 3))), [[0.75, 0.25]], atol=0.01)


def test_two_samples():
    head = LaplaceHead().fit([[0.0, 1.0], [1.0, 0.0]], ["a", "b"])
    proba = head.predict_proba([[0.0, 1.0], [1.0, 0.0]])
    assert np.all(np.isfinite(proba))
    assert 0.5 < proba[0, 0] < 1


def test_separable_classes_stay_finite():
    X = np.concatenate([np.full((50, 2), -1.0), np.full((50, 2), 1.0)])
    proba = LaplaceHead().fit(X, np.repeat([0, 1], 50)).predict_proba(X)
    assert np.all((proba > 0) & (proba < 1))


def test_many_classes():
    X, y = make_data(600, 30, 100, dtype=np.float32)
    head = LaplaceHead().fit(X, y)
    assert head.covariance_ == "kronecker"
    np.testing.assert_allclose(head.predict_proba(X).sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_are_refused(bad):
    X, y = make_data()
    broken = X.copy()
    broken[3, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        LaplaceHead().fit(broken, y)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        LaplaceHead(1.0).fit(X, y).predict_proba(broken)


def test_absurdly_far_is_refused():
    X, y = make_data()
    head = LaplaceHead(1.0).fit(X, y)
    X[2] = 1e200
    with pytest.raises(ValueError, match=r"row 2 lies more than 1e\+15 standard deviations"):
        head.predict_proba(X)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least two classes, got one class"):
        LaplaceHead().fit(np.eye(3), ["nv"] * 3)


def test_wrong_width_is_refused():
    X, y = make_data()
    with pytest.raises(ValueError, match="2 features, but LaplaceHead is expecting 3"):
        LaplaceHead(1.0).fit(X, y).predict_proba(X[:, :2])


@pytest.mark.parametrize("parameters", [{"prior_precision": 0}, {"prior_precision": "cv"}, {"covariance": "banded"}])
def test_bad_parameters_are_refused(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        LaplaceHead(**parameters).fit(*make_data())


# --- state and names


@pytest.mark.parametrize("labels", [["nv", "mel", "bkl"], [5, -3, 100]])
@pytest.mark.parametrize("covariance", ["full", "kronecker"])
def test_state_round_trip(covariance, labels):
    X, codes = make_data(80, 4, 3, dtype=np.float32)
    head = LaplaceHead(covariance=covariance, random_state=3).fit(X, np.array(labels)[codes])
    arrays, document = head.get_state()
    assert all(type(array) is np.ndarray and array.flags.c_contiguous for array in arrays.values())
    copy = LaplaceHead.from_state(
        {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(document))
    )
    np.testing.assert_array_equal(copy.predict_log_proba(X), head.predict_log_proba(X))
    np.testing.assert_array_equal(copy.predict_posterior(X, 5), head.predict_posterior(X, 5))
    np.testing.assert_array_equal(copy.predict(X), head.predict(X))
    np.testing.assert_array_equal(copy.coef_, head.coef_)
    assert copy.get_params() == head.get_params()


def test_state_of_a_generator_holds_its_seed():
    X, y = make_data()
    head = LaplaceHead(1.0, random_state=np.random.RandomState(0)).fit(X, y)
    copy = LaplaceHead.from_state(head.get_state()[0], json.loads(json.dumps(head.get_state()[1])))
    np.testing.assert_array_equal(copy.predict_posterior(X, 5), head.predict_posterior(X, 5))


def test_heads_by_name():
    assert type(make_head("laplace", n_draws=8)) is HEADS["laplace"]
    with pytest.raises(ValueError, match="head='svm': no such head; there is dirichlet"):
        make_head("svm")


# --- weights of classes and of groups


def test_balanced_classes_are_classes_of_the_same_total_weight():
    X, y = make_data(90, 4, 3)
    total = np.bincount(y, minlength=3)
    balanced = LaplaceHead(1.0, class_weight="balanced").fit(X, y)
    by_hand = LaplaceHead(1.0, class_weight=dict(enumerate(30 / total))).fit(X, y)
    np.testing.assert_allclose(balanced.predict_proba(X), by_hand.predict_proba(X), atol=1e-8)
    weighted = LaplaceHead(1.0).fit(X, y, sample_weight=(30 / total)[y])
    np.testing.assert_allclose(balanced.predict_proba(X), weighted.predict_proba(X), atol=1e-8)


def test_rows_of_a_group_share_the_weight_of_one():
    X, y = make_data(60, 4, 3)
    repeated = np.repeat(np.arange(60), np.random.default_rng(0).integers(1, 5, 60))
    once = LaplaceHead(1.0).fit(X, y)
    many = LaplaceHead(1.0).fit(X[repeated], y[repeated], groups=repeated.astype(str))
    np.testing.assert_allclose(many.predict_proba(X), once.predict_proba(X), atol=1e-6)


def test_bad_weights_of_classes_and_groups_are_refused():
    X, y = make_data()
    with pytest.raises(ValueError, match=r"class_weight: \['7'\] are no classes of y; there are \[0, 1, 2\]"):
        LaplaceHead(1.0, class_weight={7: 2.0}).fit(X, y)
    with pytest.raises(ValueError, match="every weight has to be finite and above 0"):
        LaplaceHead(1.0, class_weight={1: -1.0}).fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LaplaceHead(1.0).fit(X, y, groups=[1, 2])


def test_weights_of_classes_survive_a_state():
    X, y = make_data()
    head = LaplaceHead(1.0, class_weight={0: 2.0, 2: 0.5}).fit(X, y)
    copy = LaplaceHead.from_state(head.get_state()[0], json.loads(json.dumps(head.get_state()[1])))
    assert copy.get_params() == head.get_params()
