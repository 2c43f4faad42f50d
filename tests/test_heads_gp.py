"""Gaussian process head: against Rasmussen and Williams's algorithms, scikit-learn, the known error of features."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import norm, qmc
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from cbdc.heads import LaplaceHead, RandomFeatureGPHead, gp
from cbdc.heads._softmax import contrasts
from theory import gp_reference


def make_data(n=60, d=3, n_classes=3, seed=0, dtype=float, signal=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    codes = np.argmax(X @ (signal * rng.normal(size=(d, n_classes))) + rng.gumbel(size=(n, n_classes)), axis=1)
    codes[:n_classes] = np.arange(n_classes)
    return X.astype(dtype), codes


def kernel_of(head, X):
    Z = head._features(((X - head.mean_) / head.scale_).astype(head.dtype_))
    return Z @ Z.T


def test_fourier_features_tend_to_the_kernel_at_the_known_rate():
    """Unbiased; the variance of an entry is (1 - k^2)^2 / n_features (Sutherland and Schneider, arXiv:1506.02785)."""
    X, y = make_data(12, 3, 2)
    Z = (X - X.mean(axis=0)) / np.sqrt(X.var(axis=0).mean())
    k = gp_reference.rbf(Z, Z, 1.5)[np.triu_indices(12, 1)]
    for n_features in (20, 320):
        found = []
        for seed in range(60):
            head = RandomFeatureGPHead(
                n_features, features="fourier", length_scale=1.5, prior_precision=1.0, tol=1.0, random_state=seed
            )
            found.append(kernel_of(head.fit(X, y), X)[np.triu_indices(12, 1)])
        error = np.array(found) - k
        expected = (1 - k**2) ** 2 / n_features
        assert 0.75 < np.mean(error**2 / expected) < 1.35
        assert np.abs(error.mean(axis=0) / np.sqrt(expected / 60)).max() < 5


def test_as_many_landmarks_as_rows_are_the_exact_kernel():
    X, y = make_data(40, 3, 3)
    head = RandomFeatureGPHead(length_scale=1.5, prior_precision=1.0).fit(X, y)
    Z = (X - head.mean_) / head.scale_
    np.testing.assert_allclose(kernel_of(head, X), gp_reference.rbf(Z, Z, 1.5), atol=1e-6)
    new = make_data(10, 3, 3, seed=2)[0]
    np.testing.assert_array_less(np.diag(kernel_of(head, new)), 1 + 1e-9)


def oracle(head, X, y, X_new, weights=None):
    """Exact process: evidence, and at new rows the latent contrasts' mean and covariance, and the predictive."""
    Z, new = ((rows - head.mean_) / head.scale_ for rows in (X, X_new))
    variance, n_classes = 1 / head.prior_precision_, len(head.classes_)
    model = gp_reference.MulticlassLaplace(variance * gp_reference.rbf(Z, Z, head.length_scale_), y, n_classes, weights)
    points = norm.ppf(qmc.Sobol(n_classes, seed=0).random_base2(11))
    cross = variance * gp_reference.rbf(new, Z, head.length_scale_)
    latent = [model.latent(row, variance) for row in cross]
    proba = np.array([model.predict_proba(row, variance, points) for row in cross])
    return model.log_evidence, latent, proba


@pytest.mark.parametrize("weighted", [False, True])
def test_posterior_is_that_of_the_exact_process(weighted):
    X, y = make_data(25, 2, 3)
    X_new = 2 * make_data(12, 2, 3, seed=5)[0]
    weights = np.random.default_rng(0).uniform(0.3, 3, 25) if weighted else None
    head = RandomFeatureGPHead(length_scale=1.2, prior_precision=0.3, mean_correction=False, n_draws=2048, tol=1e-8)
    head.fit(X, y, sample_weight=weights)
    evidence, latent, proba = oracle(head, X, y, X_new, weights)
    assert head.covariance_ == "full"
    assert head.log_marginal_likelihood_ == pytest.approx(evidence, abs=1e-5)
    Z = head._features((X_new - head.mean_) / head.scale_)
    factor, B = head._logit_factor(Z), contrasts(3)
    for row, (mean, covariance) in enumerate(latent):
        np.testing.assert_allclose(Z[row] @ head.posterior_mean_, B.T @ mean, atol=1e-5)
        np.testing.assert_allclose(factor[row] @ factor[row].T, B @ B.T @ covariance @ B @ B.T, atol=1e-5)
    np.testing.assert_allclose(head.predict_proba(X_new), proba, atol=5e-3)


def test_many_fourier_features_agree_with_the_exact_process():
    X, y = make_data(25, 2, 3)
    X_new = 2 * make_data(12, 2, 3, seed=5)[0]
    common = {"features": "fourier", "length_scale": 1.2, "prior_precision": 0.3, "mean_correction": False}
    distance = {}
    for n_features in (200, 8000):
        head = RandomFeatureGPHead(n_features, n_draws=2048, **common).fit(X, y)
        evidence, _, proba = oracle(head, X, y, X_new)
        distance[n_features] = np.abs(head.predict_proba(X_new) - proba).max()
    assert distance[8000] < 0.03
    assert distance[8000] < distance[200]
    assert head.log_marginal_likelihood_ == pytest.approx(evidence, abs=0.3)


def test_two_classes_are_those_of_scikit_learn_and_algorithm_3_1():
    """A difference of two latent values has twice the variance."""
    X, y = make_data(40, 2, 2)
    head = RandomFeatureGPHead(length_scale=1.2, prior_precision=0.3, mean_correction=False, n_draws=2048, tol=1e-8)
    head.fit(X, y)
    Z = (X - head.mean_) / head.scale_
    peer = GaussianProcessClassifier(ConstantKernel(2 / 0.3, "fixed") * RBF(1.2, "fixed"), optimizer=None).fit(Z, y)
    _, evidence = gp_reference.binary_laplace(2 / 0.3 * gp_reference.rbf(Z, Z, 1.2), 2 * y - 1)
    assert head.log_marginal_likelihood_ == pytest.approx(peer.log_marginal_likelihood_value_, abs=1e-5)
    assert head.log_marginal_likelihood_ == pytest.approx(evidence, abs=1e-5)
    X_new = 2 * make_data(30, 2, 2, seed=5)[0]
    theirs = peer.predict_proba((X_new - head.mean_) / head.scale_)
    np.testing.assert_allclose(head.predict_proba(X_new), theirs, atol=0.01)


@pytest.mark.parametrize("features", ["landmarks", "fourier"])
def test_far_from_the_data_nothing_is_known(features):
    X, y = make_data(300, 5, 3, signal=2.0, dtype=np.float32)
    head = RandomFeatureGPHead(400, features=features).fit(X, y)
    far = 100 * X[:40]
    distance = np.abs(head.predict_proba(far) - 1 / 3).max()
    assert distance < (0.02 if features == "landmarks" else 0.35)
    assert head.mutual_information(far).min() > head.mutual_information(X[:40]).max()
    assert np.abs(LaplaceHead().fit(X, y).predict_proba(far) - 1 / 3).max() > 0.4
    np.testing.assert_allclose(
        head.predict_posterior(far, 2000, 0).mean(axis=0), head.predict_proba(far), atol=4 * 0.5 / np.sqrt(2000)
    )


def test_probabilities_tend_to_uniform_along_a_line():
    X, y = make_data(200, 2, 2, signal=2.0)
    head = RandomFeatureGPHead().fit(X, y)
    line = np.array([1.0, 1.0]) * np.arange(0, 40)[:, None]
    sure = head.predict_proba(line).max(axis=1)
    assert np.all(np.diff(sure[3:]) < 1e-6)
    assert sure[-1] == pytest.approx(0.5, abs=1e-3)


def test_rows_that_no_landmark_is_near_are_uncertain():
    X, y = make_data(200, 5, 3, signal=2.0)
    head = RandomFeatureGPHead(8, length_scale=1.0, prior_precision=0.1).fit(X, y)
    Z = head._features(((X - head.mean_) / head.scale_).astype(head.dtype_))
    missed = head._missed(Z)
    assert missed.min() < 1e-6 < 5 < missed.max() < 10 + 1e-9
    information = head.mutual_information(X)
    assert information[missed > 9].min() > information[missed < 1e-6].max()


def test_length_scale_is_the_median_distance():
    X, y = make_data(60, 4, 2)
    head = RandomFeatureGPHead(prior_precision=1.0).fit(X, y)
    assert head.length_scale_ == pytest.approx(np.median(pdist((X - head.mean_) / head.scale_)))
    twice = RandomFeatureGPHead(prior_precision=1.0).fit(np.repeat(X, 3, axis=0)[:150], np.repeat(y, 3)[:150])
    assert 0.5 < twice.length_scale_ / head.length_scale_ < 2
    assert RandomFeatureGPHead().fit(np.ones((9, 2)), np.arange(9) % 2).length_scale_ == 1


def test_prior_precision_of_the_process_maximises_the_evidence():
    X, y = make_data(150, 4, 3)
    found = RandomFeatureGPHead(40).fit(X, y)
    grid = [RandomFeatureGPHead(40, prior_precision=tau).fit(X, y) for tau in np.geomspace(1e-3, 30, 16)]
    assert found.log_marginal_likelihood_ > max(head.log_marginal_likelihood_ for head in grid) - 1e-2


def test_corrected_mean_makes_up_for_what_the_landmarks_miss():
    """The training predictive has the class frequencies, though it is wider than the posterior of the features."""
    X, y = make_data(400, 5, 3, signal=2.0, dtype=np.float32)
    y = np.where((y == 1) & (np.arange(400) % 3 > 0), 0, y)
    bias = {}
    for corrected in (True, False):
        head = RandomFeatureGPHead(20, length_scale=2.0, prior_precision=0.05, mean_correction=corrected).fit(X, y)
        bias[corrected] = np.abs(head.predict_proba(X).mean(axis=0) - np.bincount(y) / 400).max()
    assert bias[True] < 0.015
    assert bias[True] < 0.3 * bias[False]


def test_kronecker_covariance_is_close_to_the_whole_one(monkeypatch):
    X, y = make_data(200, 4, 3, dtype=np.float32)
    full = RandomFeatureGPHead().fit(X, y)
    monkeypatch.setattr(gp, "_FULL_LIMIT", 0)
    kronecker = RandomFeatureGPHead().fit(X, y)
    assert (full.covariance_, kronecker.covariance_) == ("full", "kronecker")
    np.testing.assert_allclose(kronecker.predict_proba(X), full.predict_proba(X), atol=0.03)
    assert kronecker.log_marginal_likelihood_ < full.log_marginal_likelihood_ + 0.1
