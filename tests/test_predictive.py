"""From Gaussian logits to class probabilities: each way against its formula, and against quadrature."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import entr, expit, log_ndtr, softmax
from scipy.stats import norm

from cbdc.errors import ParameterError
from cbdc.heads import LaplaceHead
from cbdc.heads import _predictive as predictive
from cbdc.heads._softmax import contrasts
from tests.test_heads import make_data
from theory import laplace_reference as reference

WAYS = ["monte_carlo", "probit", "bridge", "exact"]


def logits(n_classes, spread=1.0, seed=0, rows=4):
    rng = np.random.default_rng(seed)
    B = contrasts(n_classes)
    mean = rng.normal(size=(rows, n_classes - 1)) @ B.T
    return mean, spread * B @ rng.normal(size=(rows, n_classes - 1, n_classes - 1))


# --- two classes


@settings(max_examples=30)
@given(st.floats(-30, 30), st.floats(0, 60))
@example(0.0, 0.0)
@example(-3.0, 1.0)
@example(-3.0, 1.0 + 1e-9)
def test_two_classes_are_exact(mean, spread):
    found = np.exp(predictive._log_expected_expit(np.array([mean]), np.array([spread**2])))[0]

    def integrand(t):
        return expit(mean + spread * t) * norm.pdf(t)

    kink = [np.clip(-mean / max(spread, 1e-9) + s / max(spread, 1e-9), -9, 9) for s in (-20, -5, 0, 5, 20)]
    expected = quad(integrand, -10, 10, points=kink, epsabs=1e-13, limit=400)[0]
    assert found == pytest.approx(expected, abs=1e-10)


def test_two_classes_are_continuous_where_the_rule_changes():
    mean = np.linspace(-40, 40, 161)
    below, above = (predictive._log_expected_expit(mean, np.full(161, v)) for v in (1.0, np.nextafter(1.0, 2)))
    np.testing.assert_allclose(above, below, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spread", [0.1, 0.9, 1.5, 10.0])
def test_small_probabilities_of_two_classes_keep_their_logarithm(spread):
    mean = np.array([-300.0 - 3 * spread**2, -2000.0])
    found = predictive._log_expected_expit(mean, np.full(2, spread**2))
    np.testing.assert_allclose(found, mean + spread**2 / 2, rtol=1e-9)  # the logistic function is exponential there


def test_far_away_two_classes_are_a_probit():
    spread = 1e8
    found = predictive._log_expected_expit(np.array([-2.0, 0.3]) * spread, np.full(2, spread**2))
    np.testing.assert_allclose(found, log_ndtr([-2.0, 0.3]), atol=1e-7)


@pytest.mark.parametrize("spread", [0.05, 0.9, 1.1, 6.0, 300.0])
def test_information_of_two_classes_is_exact(spread):
    mean, factor = logits(2, spread)
    for m, f, value in zip(mean, factor, predictive._binary_information(mean, factor), strict=True):
        average, within = reference.softmax_average(m, f @ f.T, points=40_001)
        assert value == pytest.approx(entr(average).sum() - within, abs=1e-9)


# --- three classes


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_three_classes_are_exact(spread):
    mean, factor = logits(3, spread)
    proba = np.exp(predictive._product(mean, factor))
    information = predictive._product_information(mean, factor)
    for m, f, p, value in zip(mean, factor, proba, information, strict=True):
        average, within = reference.softmax_average(m, f @ f.T, points=501)
        np.testing.assert_allclose(p, average, atol=1e-10)
        assert value == pytest.approx(entr(average).sum() - within, abs=1e-9)


def test_three_classes_degrade_slowly_beyond_the_nodes():
    mean, factor = logits(3, 20.0, rows=1)
    assert np.ptp(factor, axis=1).max() > 15
    for m, f, p in zip(mean, factor, np.exp(predictive._product(mean, factor)), strict=True):
        np.testing.assert_allclose(p, reference.softmax_average(m, f @ f.T, points=801)[0], atol=1e-5)


def test_four_classes_have_no_quadrature():
    with pytest.raises(ParameterError, match=r"two or three classes, y has 4. Fix: predictive='monte_carlo'"):
        LaplaceHead(1.0, predictive="exact").fit(*make_data(40, 2, 4))


# --- closed forms


@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_closed_forms_are_their_formulas(n_classes, spread):
    mean, factor = logits(n_classes, spread)
    covariance = factor @ factor.transpose(0, 2, 1)
    probit, bridge = (np.exp(f(mean, factor)) for f in (predictive._probit, predictive._bridge))
    information = predictive._bridge_information(mean, factor)
    for i in range(len(mean)):
        np.testing.assert_allclose(probit[i], reference.pairwise_probit(mean[i], covariance[i]), rtol=1e-12)
        alpha = reference.bridge(mean[i], covariance[i])
        np.testing.assert_allclose(bridge[i], alpha / alpha.sum(), rtol=1e-12)
        assert information[i] == pytest.approx(reference.dirichlet_information(alpha), abs=1e-12)


def test_probit_of_two_classes_is_mackays():
    mean, factor = logits(2, 3.0)
    gap, variance = predictive._gap(mean, factor)
    expected = expit(gap / np.sqrt(1 + np.pi / 8 * variance))
    np.testing.assert_allclose(np.exp(predictive._probit(mean, factor))[:, 1], expected, rtol=1e-12)
    exact = np.exp(predictive._binary(mean, factor))
    assert np.abs(np.exp(predictive._probit(mean, factor)) - exact).max() < 0.02


def test_probit_depends_on_no_direction_that_softmax_ignores():
    mean, factor = logits(4)
    common = np.concatenate([factor, np.full((4, 4, 1), 5.0)], axis=2)
    np.testing.assert_allclose(predictive._probit(mean + 7, common), predictive._probit(mean, factor), atol=1e-12)


@pytest.mark.parametrize("way", ["probit", "bridge", "exact", "binary"])
def test_without_variance_every_way_is_the_softmax(way):
    """The bridge only where the variances are those of a Dirichlet distribution."""
    n_classes = 2 if way == "binary" else 3
    mean, factor = logits(n_classes, 1e-7)
    if way == "bridge":
        p = softmax(mean, axis=1)
        inverse = (1 - 2 / 3) / p + np.mean(1 / p, axis=1, keepdims=True) / 3
        factor = 1e-4 * np.sqrt(inverse)[:, :, None] * np.array([1.0, 0.0])
    found = np.exp(predictive._LOG_PROBA[way](mean, factor))
    np.testing.assert_allclose(found, softmax(mean, axis=1), atol=1e-6)


def test_bridge_takes_any_size_of_logits():
    mean = np.array([[900.0, -450.0, -450.0], [0.0, 0.0, 0.0]])
    factor = np.array([1e-9, 1e9])[:, None, None] * contrasts(3)
    assert np.isfinite(predictive._bridge(mean, factor)).all()
    information = predictive._bridge_information(mean, factor)
    assert np.isfinite(information).all()
    assert information[0] == pytest.approx(0, abs=1e-12)


def laplace_torch(mean, factor, link):
    import torch

    ParametricLaplace = pytest.importorskip("laplace.baselaplace").ParametricLaplace

    covariance = factor @ factor.transpose(0, 2, 1) + 1e-9  # its projection divides by the sum
    stub = type("Stub", (), {"likelihood": "classification", "_device": "cpu", "_dtype": torch.float64})()
    stub._glm_predictive_distribution = lambda *a, **k: (torch.from_numpy(mean.copy()), torch.from_numpy(covariance))
    return ParametricLaplace._glm_forward_call(stub, None, likelihood="classification", link_approx=link).numpy()


@pytest.mark.parametrize(("spread", "link"), [(0.4, "bridge"), (9.0, "bridge_norm")])
def test_bridge_is_that_of_laplace_torch(spread, link):
    pytest.importorskip("laplace")
    mean, factor = logits(5, spread)
    excess = np.sum(factor**2, axis=2).mean(axis=1) / np.sqrt(5 / 2)
    assert np.all((excess > 1) == (link == "bridge_norm"))
    np.testing.assert_allclose(np.exp(predictive._bridge(mean, factor)), laplace_torch(mean, factor, link), rtol=1e-5)


# --- heads


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_heads_are_coherent(way, n_classes):
    X, y = make_data(60, 3, n_classes)
    head = LaplaceHead(1.0, predictive=way).fit(X, y)
    X_new = 5 * make_data(50, 3, n_classes, seed=1)[0]
    log_proba = head.predict_log_proba(X_new)
    np.testing.assert_allclose(np.exp(log_proba).sum(axis=1), 1, atol=1e-12)
    information, entropy = head.mutual_information(X_new), head.predictive_entropy(X_new)
    assert np.all((information >= 0) & (information <= entropy + 1e-12))
    np.testing.assert_array_equal(log_proba[7:8], head.predict_log_proba(X_new[7:8]))
    np.testing.assert_array_equal(information[7:8], head.mutual_information(X_new[7:8]))
    assert head.predict(X_new).shape == (50,)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_points_tend_to_the_exact_average(n_classes):
    X, y = make_data(60, 3, n_classes)
    exact = LaplaceHead(1.0, predictive="exact").fit(X, y)
    few, many = (LaplaceHead(1.0, n_draws=n).fit(X, y) for n in (64, 4096))
    errors = [np.abs(head.predict_proba(X) - exact.predict_proba(X)).max() for head in (few, many)]
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / 3
    np.testing.assert_allclose(many.mutual_information(X), exact.mutual_information(X), atol=1e-3)
    probit = LaplaceHead(1.0, predictive="probit").fit(X, y)
    assert np.abs(probit.predict_proba(X) - exact.predict_proba(X)).max() < 0.03


@pytest.mark.parametrize("way", WAYS)
def test_log_probabilities_do_not_underflow(way):
    X = np.repeat([[-1.0], [1.0]], 500, axis=0)
    head = LaplaceHead(1e-4, predictive=way, n_draws=16).fit(X, np.repeat([0, 1], 500))
    factor = head.posterior_.posterior_factor * 1e-3
    head.posterior_ = type(head.posterior_)(factor)
    log_proba = head.predict_log_proba([[1000.0]])
    assert head.predict_proba([[1000.0]])[0, 0] == 0
    assert -np.inf < log_proba[0, 0] < -1000
