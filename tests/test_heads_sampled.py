"""Variational and NUTS heads: against quadrature, Polya-Gamma Gibbs sampling and each other; isolation; bad inputs."""

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyro
import pyro.ops.stats
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy.integrate import quad
from scipy.special import log_softmax
from scipy.stats import chi2, halfcauchy, invgamma, norm
from sklearn.exceptions import ConvergenceWarning

from cbdc import CBDCClassifier, LaplaceHead, make_lesions
from cbdc.errors import ConvergenceError
from cbdc.heads import HEADS, NUTSHead, VariationalHead, _pyro, _whitening, make_head
from cbdc.heads._base import Training
from cbdc.heads._chains import _folded, _normal_scores, bulk_ess, chance_r_hat, r_hat
from cbdc.heads._horseshoe import horseshoe_parameters, horseshoe_scales, horseshoe_start
from cbdc.heads._softmax import SoftmaxProblem, contrasts
from theory import laplace_reference as reference
from theory import polya_gamma_reference as polya_gamma
from theory import variational_reference as variational

INTERCEPT_PRECISION = 1e-2
GUIDES = ["mean_field", "low_rank", "full", "radial"]
brief = pytest.mark.filterwarnings("ignore:the evidence lower bound still rose", "ignore:bad chains")


def make_data(n=60, d=3, n_classes=3, seed=0, dtype=float):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    codes = np.argmax(X @ rng.normal(size=(d, n_classes)) + rng.gumbel(size=(n, n_classes)), axis=1)
    codes[:n_classes] = np.arange(n_classes)
    return X.astype(dtype), codes


def some_variational(**parameters):
    """A few steps: for what does not depend on convergence."""
    return VariationalHead(**{"prior_precision": 1.0, "max_iter": 10, "n_draws": 32, **parameters})


def some_nuts(**parameters):
    return NUTSHead(
        **{"prior_precision": 1.0, "n_chains": 2, "n_draws": 16, "n_warmup": 8, "thinning": 2, **parameters}
    )


SOME = pytest.mark.parametrize("make", [some_variational, some_nuts])


def rows_of(head, X):
    return np.column_stack([(X - head.mean_) / head.scale_, np.ones(len(X))])


def contrast_draws(head):
    """(n_draws, n_features + 1, n_classes - 1)."""
    return head.weight_draws_ @ contrasts(len(head.classes_))


class Exact:
    """Posterior of one problem by quadrature."""

    def __init__(self, X, y, precision, sample_weight=None):
        self.X, self.y, self.precision = X, y, precision
        scale = LaplaceHead(precision).fit(X, y, sample_weight)
        self.rows = lambda new: rows_of(scale, new)
        weights = np.ones(len(X)) if sample_weight is None else sample_weight
        prior = np.append(np.full(X.shape[1], precision), INTERCEPT_PRECISION)
        n_classes = len(scale.classes_)
        self.log_evidence, self.grid, self.mass = reference.exact_posterior(self.rows(X), y, weights, prior, n_classes)
        self.mean = np.einsum("m,mpj->pj", self.mass, self.grid)
        centred = self.grid - self.mean
        flat = centred.reshape(len(centred), -1)
        self.covariance = (flat * self.mass[:, None]).T @ flat
        self.sd = np.sqrt(np.diag(self.covariance)).reshape(self.mean.shape)

    def predictive(self, new):
        return reference.exact_predictive(self.rows(new), self.grid, self.mass)


@pytest.fixture(scope="module")
def small():
    return Exact(*make_data(40, 2, 2, seed=4), precision=1.0)


@pytest.fixture(scope="module")
def guides(small):
    return {guide: VariationalHead(1.0, guide=guide, n_draws=4096).fit(small.X, small.y) for guide in GUIDES}


@pytest.fixture(scope="module")
def sampled(small):
    return NUTSHead(1.0, n_chains=2, n_draws=450, n_warmup=60, thinning=1).fit(small.X, small.y)


# --- against quadrature


def test_nuts_has_the_moments_of_the_exact_posterior(small, sampled):
    draws = contrast_draws(sampled)
    assert len(draws) == 900
    # the effective sample size is about 1,000: five standard errors
    np.testing.assert_allclose((draws.mean(axis=0) - small.mean) / small.sd, 0, atol=0.16)
    np.testing.assert_allclose(draws.std(axis=0) / small.sd, 1, atol=0.12)


def along_axes(head, array):
    """Rows of log-odds' features -> along the axes of the head."""
    return np.column_stack([array[:, :-1] @ head.components_, array[:, -1]])


@pytest.mark.parametrize(("guide", "independent"), [("full", False), ("mean_field", True)])
def test_guide_is_the_best_of_its_family(small, guides, guide, independent):
    head = guides[guide]
    prior = np.array([1.0, 1.0, INTERCEPT_PRECISION]) / 2  # log-odds are sqrt(2) times the contrast, up to sign
    Z = along_axes(head, small.rows(small.X))
    mean, covariance, bound = variational.best_normal(Z, small.y, np.ones(40), prior, independent=independent)
    sd = np.sqrt(np.diag(covariance))
    sign = np.sign(head.directions_[1, 0])
    np.testing.assert_allclose((np.sqrt(2) * sign * head.guide_mean_ - mean) / sd, 0, atol=0.08)
    ours = np.diag(head.guide_scale_**2)
    if guide == "full":
        ours = ours + head.guide_factor_ @ head.guide_factor_.T
    np.testing.assert_allclose(2 * ours / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.12)
    assert head.elbo_ == pytest.approx(bound, abs=0.15)  # a mean of 128 draws, whose standard deviation is about .5


def test_oracle_of_the_guides_is_stationary(small):
    """No normal near it has a higher bound."""
    prior, Z = np.array([1.0, 1.0, INTERCEPT_PRECISION]) / 2, small.rows(small.X)
    mean, covariance, bound = variational.best_normal(Z, small.y, np.ones(40), prior, independent=False)
    rng = np.random.default_rng(0)

    def bound_at(m, S):
        likelihood, _, _ = variational.expectations(Z, small.y, m, S)
        divergence = np.sum(prior * (np.diag(S) + m**2)) - 3 - np.log(prior).sum() - np.linalg.slogdet(S)[1]
        return likelihood.sum() - divergence / 2

    assert bound < small.log_evidence
    for _ in range(20):
        turn = np.eye(3) + 0.03 * rng.normal(size=(3, 3))
        assert bound_at(mean + 0.02 * rng.normal(size=3), turn @ covariance @ turn.T) < bound


@pytest.mark.parametrize(("guide", "distance"), [("mean_field", 0.025), ("low_rank", 0.012), ("full", 0.012)])
def test_predictives_are_close_to_the_exact_one(small, guides, guide, distance):
    new = np.random.default_rng(1).normal(scale=2, size=(50, 2))
    np.testing.assert_allclose(guides[guide].predict_proba(new), small.predictive(new), atol=distance)


def test_predictive_of_nuts_is_close_to_the_exact_one(small, sampled):
    new = np.random.default_rng(1).normal(scale=2, size=(50, 2))
    np.testing.assert_allclose(sampled.predict_proba(new), small.predictive(new), atol=0.02)


def test_bound_lies_below_the_evidence_and_rises_with_the_guide(small, guides):
    elbo = {guide: head.elbo_ for guide, head in guides.items()}
    assert max(elbo.values()) < small.log_evidence + 0.05  # its Monte Carlo error
    assert elbo["full"] > elbo["mean_field"] > elbo["radial"]


def test_mean_field_is_too_narrow_where_the_posterior_is_correlated():
    """An independent normal has the variances 1 / (inverse covariance)_ii, never above the true ones."""
    X, y = make_data(30, 1, 2, seed=0)
    X = X + 2  # the intercept is set apart by the mean, not by the correlation
    y = (X[:, 0] > np.quantile(X, 0.8)).astype(int)
    exact = Exact(X, y, precision=0.05)
    correlation = exact.covariance[0, 1] / exact.sd[0, 0] / exact.sd[1, 0]
    assert abs(correlation) > 0.8
    narrow = contrast_draws(VariationalHead(0.05, n_draws=4096).fit(X, y)).std(axis=0)
    whole = contrast_draws(VariationalHead(0.05, guide="full", n_draws=4096).fit(X, y)).std(axis=0)
    assert np.all(narrow < 0.65 * exact.sd)
    assert np.all(whole > 0.85 * exact.sd)


# --- against Polya-Gamma Gibbs sampling, and each other


def test_polya_gamma_draws_have_the_moments_of_their_law():
    rng = np.random.default_rng(0)
    for shape, tilt in [(1.0, 0.0), (1.0, 3.0), (2.5, 1.0)]:
        draws = polya_gamma.polya_gamma(np.full(20_000, shape), np.full(20_000, tilt), rng)
        c = max(tilt, 1e-2)
        variance = shape * (np.sinh(c) - c) / (4 * c**3 * np.cosh(c / 2) ** 2)
        assert draws.mean() == pytest.approx(
            polya_gamma.mean(shape, np.array(tilt)), abs=5 * np.sqrt(variance / 20_000)
        )
        assert draws.var() == pytest.approx(variance, rel=0.1)


def test_gibbs_sampler_has_the_moments_of_quadrature(small):
    prior = np.array([1.0, 1.0, INTERCEPT_PRECISION]) / 2  # log-odds are -sqrt(2) times the contrast
    b = polya_gamma.gibbs(small.rows(small.X), small.y, np.ones(40), prior, 3000, np.random.default_rng(0))
    draws = -b / np.sqrt(2)
    np.testing.assert_allclose((draws.mean(axis=0) - small.mean[:, 0]) / small.sd[:, 0], 0, atol=0.15)
    np.testing.assert_allclose(draws.std(axis=0) / small.sd[:, 0], 1, atol=0.12)


@pytest.mark.slow
def test_nuts_agrees_with_gibbs_sampling_in_six_dimensions_with_weights():
    X, y = make_data(50, 5, 2, seed=2)
    weights = np.random.default_rng(0).uniform(0.3, 3, 50)
    head = NUTSHead(2.0, thinning=1).fit(X, y, sample_weight=weights)
    ours = contrast_draws(head)[:, :, 0]
    prior = np.append(np.full(5, 2.0), INTERCEPT_PRECISION) / 2
    b = polya_gamma.gibbs(rows_of(head, X), y, weights, prior, 10_000, np.random.default_rng(0))
    theirs = -b / np.sqrt(2)
    spread = theirs.std(axis=0)
    np.testing.assert_allclose((ours.mean(axis=0) - theirs.mean(axis=0)) / spread, 0, atol=0.1)
    np.testing.assert_allclose(ours.std(axis=0) / spread, 1, atol=0.07)
    for q in (0.05, 0.95):
        np.testing.assert_allclose(
            (np.quantile(ours, q, axis=0) - np.quantile(theirs, q, axis=0)) / spread, 0, atol=0.2
        )


@brief
def test_the_three_heads_agree_on_one_posterior():
    X, y = make_data(150, 4, 3, seed=1)
    new = np.random.default_rng(1).normal(scale=1.5, size=(60, 4))
    laplace = LaplaceHead().fit(X, y)
    guided = VariationalHead(guide="full", n_draws=1024).fit(X, y)
    nuts = NUTSHead(n_chains=1, n_draws=300, n_warmup=60, thinning=1).fit(X, y)
    assert laplace.prior_precision_ == guided.prior_precision_ == nuts.prior_precision_
    proba = nuts.predict_proba(new)
    np.testing.assert_allclose(laplace.predict_proba(new), proba, atol=0.05)
    np.testing.assert_allclose(guided.predict_proba(new), proba, atol=0.05)
    np.testing.assert_allclose(guided.mutual_information(new), nuts.mutual_information(new), atol=0.04)


# --- whitening


def start_of(X, y, precision=2.0):
    laplace = LaplaceHead(precision, tol=1e-9).fit(X, y)
    rows = (X - laplace.mean_) / laplace.scale_
    return laplace, _whitening.laplace_start(laplace, Training(rows, y, np.ones(len(X)), np.arange(len(X))))


def dense_precision(laplace, start):
    """Hessian of the reference at the mode, its parameters ordered as positions are."""
    Z, J = start.problem.Z, start.directions.shape[1]
    turn = contrasts(J + 1).T @ start.directions
    V = np.linalg.lstsq(laplace.components_, start.components, rcond=None)[0]
    mode = np.vstack([V.T @ laplace.mode_[:-1], laplace.mode_[-1:]])
    hessian = reference.hessian(mode, Z, start.problem.codes, np.ones(len(Z)), start.prior[:, 0])
    p = Z.shape[1]
    turned = np.einsum("japb,jk,pl->akbl", hessian.reshape(J, p, J, p), turn, turn)
    return turned.reshape(p * J, p * J)


@pytest.mark.parametrize("limit", [1000, 7])
def test_whitening_makes_the_laplace_posterior_standard(monkeypatch, limit):
    monkeypatch.setattr(_whitening, "_BLOCK_LIMIT", limit)
    laplace, start = start_of(*make_data(80, 6, 3))
    precision = dense_precision(laplace, start)
    whitening = start.whitening(joint=True)
    m = len(whitening.block)
    assert m == (14 if limit == 1000 else 6)
    positions = np.eye(14)
    maps = (whitening.parameters(positions) - whitening.parameters(np.zeros((1, 14)))).reshape(14, 14)
    assert whitening.log_determinant == pytest.approx(np.linalg.slogdet(maps)[1])
    white = maps @ precision @ maps.T
    np.testing.assert_allclose(np.diag(white), 1, atol=1e-8)
    np.testing.assert_allclose(white[-m:, -m:], np.eye(m), atol=1e-8)
    alone = start.whitening(joint=False)
    np.testing.assert_allclose(alone.unit.ravel(), 1 / np.sqrt(np.diag(precision)), rtol=1e-8)


def test_widest_directions_are_those_of_the_laplace_covariance():
    laplace, start = start_of(*make_data(80, 6, 3))
    unit = start.whitening(joint=False).unit.ravel()
    scaled = np.linalg.inv(unit[:, None] * dense_precision(laplace, start) * unit)
    factor = start.widest(3)
    axes = factor / np.linalg.norm(factor, axis=0)
    np.testing.assert_allclose(np.diag(axes.T @ scaled @ axes), 1 + np.sum(factor**2, axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvalsh(scaled))[-3:], np.sort(1 + np.sum(factor**2, axis=0)), rtol=1e-6
    )


@brief
def test_unseen_directions_keep_the_prior():
    X, y = make_data(20, 3, 2)
    X = np.column_stack([X, np.zeros((20, 30))])
    for head in (
        some_variational(prior_precision=2.0, n_draws=512),
        some_nuts(prior_precision=2.0, n_draws=150, thinning=1),
    ):
        head.fit(X, y)
        draws = contrast_draws(head)[:, :, 0]
        np.testing.assert_allclose(draws[:, 3:33].std(axis=0), 2**-0.5, rtol=0.15)
        assert np.all(draws[:, :3].std(axis=0) < 0.65)
        usual, unseen = X[:1].copy(), X[:1].copy()
        unseen[0, 10] = 50
        assert head.mutual_information(unseen) > 3 * head.mutual_information(usual)
        posterior = head.predict_posterior(np.vstack([usual, unseen]), 500)
        assert posterior[:, 1, 0].std() > 2 * posterior[:, 0, 0].std()


# --- variational inference


def gaussian_model(precision=2.0):
    X, y = make_data(30, 3, 3)
    weights = np.random.default_rng(0).uniform(0.5, 2, 30)
    laplace = LaplaceHead(precision).fit(X, y, sample_weight=weights)
    rows = (X - laplace.mean_) / laplace.scale_
    start = _whitening.laplace_start(laplace, Training(rows, y, weights, np.arange(30)))
    regression = _pyro.Regression(start.problem, start.directions, torch.device("cpu"))
    return start, _pyro.NormalModel(regression, start.prior, start.whitening(joint=True))


def log_density(model, position, rows=None):
    """Of the Pyro model at a position, in the coordinates of positions."""
    values, volume = {}, 0.0
    for name, value, minus in model.sites(position):
        values[name], volume = value, volume - minus
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(rows)
    return float(trace.log_prob_sum() + volume)


def test_pyro_model_is_the_model_of_the_reference():
    start, model = gaussian_model()
    position = np.random.default_rng(1).normal(size=8)
    parameters = start.whitening(joint=True).parameters(position[None])[0]
    turned = parameters @ (contrasts(3).T @ start.directions).T
    expected = (
        reference.log_joint(turned, start.problem.Z, start.problem.codes, start.problem.weights, start.prior[:, 0])
        + start.whitening(joint=True).log_determinant
    )
    tensor = torch.as_tensor(position)
    assert log_density(model, tensor) == pytest.approx(expected, abs=1e-6)
    zero = float(model.energy(torch.zeros(8).double()) - model.energy(tensor))
    assert zero == pytest.approx(expected - log_density(model, torch.zeros(8).double()), abs=1e-6)


def test_batches_have_the_likelihood_of_all_rows_on_average():
    _, model = gaussian_model()
    position = torch.zeros(8).double()
    batches = torch.randperm(30, generator=torch.Generator().manual_seed(0)).reshape(5, 6)
    average = np.mean([log_density(model, position, rows) for rows in batches])
    assert average == pytest.approx(log_density(model, position), abs=1e-6)


def test_batches_find_the_bound_of_all_rows():
    X, y = make_data(200, 3, 3)
    weights = np.random.default_rng(0).uniform(0.5, 2, 200)
    whole = VariationalHead(1.0).fit(X, y, sample_weight=weights)
    batched = VariationalHead(1.0, batch_size=50).fit(X, y, sample_weight=weights)
    assert batched.elbo_ == pytest.approx(whole.elbo_, abs=0.3)
    np.testing.assert_allclose(batched.predict_proba(X), whole.predict_proba(X), atol=0.03)


def test_radial_density():
    one = _pyro._Radial(torch.zeros(1).double(), torch.ones(1).double())
    for x in (0.3, -2.0):
        assert float(one.log_prob(torch.tensor([x]).double())) == pytest.approx(norm.logpdf(x))
    three = _pyro._Radial(torch.ones(3).double(), torch.full((3,), 2.0).double())
    direction = torch.tensor([0.6, 0.0, 0.8]).double()

    def shell(r):
        return float(three.log_prob(1 + r * direction).exp()) * 4 * np.pi * r**2

    assert quad(shell, 0, 30)[0] == pytest.approx(1, abs=1e-6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        radius = (three.rsample((4000,)) - 1).norm(dim=1) / 2
    assert float(radius.mean()) == pytest.approx(np.sqrt(2 / np.pi), abs=0.05)


def test_radial_draws_follow_their_guide(guides):
    head = guides["radial"]
    noise = np.random.default_rng(0).standard_normal((5000, sum(head._noise_sizes)))
    radius = np.linalg.norm((head._latent(noise) - head.guide_mean_) / head.guide_scale_, axis=1)
    np.testing.assert_allclose(radius, np.abs(noise[:, -1]), rtol=1e-10)


@pytest.mark.parametrize("guide", GUIDES)
def test_new_draws_average_to_the_predictive(small, guides, guide):
    head = guides[guide]
    draws = head.predict_posterior(small.X, n_draws=2000, random_state=0)
    assert draws.shape == (2000, 40, 2)
    np.testing.assert_allclose(
        draws.mean(axis=0), head.predict_proba(small.X), atol=0.045
    )  # 4 errors of .5 / sqrt(2000)
    np.testing.assert_allclose(draws.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_array_equal(head.predict_posterior(small.X, 3), head.predict_posterior(small.X, 3))
    assert not np.array_equal(head.predict_posterior(small.X, 3, 1), head.predict_posterior(small.X, 3, 2))


def test_too_few_steps_warn():
    with pytest.warns(ConvergenceWarning, match=r"max_iter=5 steps, tol=0.001. Fix: raise max_iter"):
        head = VariationalHead(1.0, max_iter=5).fit(*make_data())
    assert not head.converged_
    assert head.elbo_history_.shape == (5,)


def test_a_bound_that_is_not_finite_is_refused():
    head = VariationalHead(1.0, learning_rate=1e4, max_iter=50)
    with pytest.raises(ConvergenceError, match="a smaller learning_rate, got 10000"), pytest.warns(match="NaN"):
        head.fit(*make_data())


@brief
def test_progress_is_shown_on_request(capsys):
    X, y = make_data()
    some_variational(verbose=True).fit(X, y)
    some_nuts(verbose=True).fit(X, y)
    shown = capsys.readouterr().err
    assert "ELBO: 100%" in shown
    assert "NUTS: 100%" in shown


# --- horseshoe


def test_horseshoe_density_is_that_of_its_priors():
    d, J, scale, slab = 3, 2, 0.1, 2.0
    X, y = make_data(30, d, J + 1)
    Z = np.column_stack([X, np.ones(30)])
    problem = SoftmaxProblem(Z, y, np.ones(30), np.sum(Z**2, axis=0), J + 1)
    start = horseshoe_start(d, J, scale, slab, joint=False)
    regression = _pyro.Regression(problem, contrasts(J + 1), torch.device("cpu"))
    model = _pyro.HorseshoeModel(regression, start, global_scale=scale, slab_scale=slab, slab_freedom=4.0)
    position = 0.5 * np.random.default_rng(0).normal(size=start.centre.size)
    latent = start.parameters(position[None])[0, :, 0]
    raw, intercept, local, (log_global, log_slab) = np.split(latent, [d * J, d * J + J, d * J + J + d])
    prior = norm.logpdf(raw).sum() + norm.logpdf(intercept, scale=10).sum()
    prior += np.sum(halfcauchy.logpdf(np.exp(local)) + local)
    prior += halfcauchy.logpdf(np.exp(log_global), scale=scale) + log_global
    prior += invgamma.logpdf(np.exp(log_slab), 2, scale=2 * slab**2) + log_slab
    weights = horseshoe_parameters(latent[None], d, J)[0]
    likelihood = log_softmax(Z @ weights @ contrasts(J + 1).T, axis=1)[np.arange(30), y].sum()
    assert log_density(model, torch.as_tensor(position)) == pytest.approx(prior + likelihood, abs=1e-6)


def test_horseshoe_scales_stay_below_the_slab():
    latent = np.zeros((1, 2 + 1 + 2 + 2))
    latent[0, -4:] = [50.0, -50.0, 0.0, np.log(4.0)]
    np.testing.assert_allclose(horseshoe_scales(latent, 2), [[2.0, np.exp(-50)]], rtol=1e-8)


@pytest.fixture(scope="module")
def sparse():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 12))
    y = (X[:, :2] @ [2.0, -1.5] + rng.logistic(size=300) > 0).astype(int)
    head = VariationalHead(
        prior="horseshoe", standardize=True, n_relevant=2, learning_rate=0.05, max_iter=1200, tol=0.1
    )
    return head.fit(X, y), X, y


def test_horseshoe_finds_the_features_that_matter(sparse):
    head, X, y = sparse
    assert np.all(head.shrinkage_[:2] < 0.05)
    assert np.all(head.shrinkage_[2:] > 0.4)
    assert 2 < head.n_effective_features_ < 6
    size = np.abs(contrast_draws(head)[:, :, 0].mean(axis=0))
    assert size[2:12].max() < 0.1 * size[:2].min()
    rng = np.random.default_rng(1)
    new = rng.normal(size=(2000, 12))
    y_new = (new[:, :2] @ [2.0, -1.5] + rng.logistic(size=2000) > 0).astype(int)
    normal = LaplaceHead(standardize=True).fit(X, y)
    loss = [-model.predict_log_proba(new)[np.arange(2000), y_new].mean() for model in (head, normal)]
    assert loss[0] < loss[1] - 0.005


@brief
def test_shrinkage_of_the_normal_prior_is_that_of_its_precision():
    X, y = make_data(60, 3, 3)
    head = some_variational(prior_precision=2.0, standardize=True).fit(X, y)
    share = np.bincount(y) / 60
    np.testing.assert_allclose(head.shrinkage_, 1 / (1 + 60 * (1 - share @ share) / 2 / 2.0), rtol=1e-10)


@brief
def test_horseshoe_bad_parameters():
    X, y = make_data()
    with pytest.raises(ValueError, match="n_relevant=3: there are 3 features"):
        some_variational(prior="horseshoe", n_relevant=3).fit(X, y)
    with pytest.raises(ValueError, match="guide='radial' with the horseshoe"):
        some_variational(prior="horseshoe", guide="radial").fit(X, y)
    wide = np.random.default_rng(0).normal(size=(60, 800))
    with pytest.raises(ValueError, match="2404 latent variables, at most 2000"):
        some_variational(prior="horseshoe", guide="full").fit(wide, y)
    one = some_variational(prior="horseshoe").fit(X[:, :1], y)
    assert one.shrinkage_.shape == (1,)


# --- diagnostics of chains


def autoregressive(rho, n_chains=4, n=800, k=6, seed=0):
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(n_chains, n, k))
    for t in range(1, n):
        draws[:, t] = rho * draws[:, t - 1] + np.sqrt(1 - rho**2) * draws[:, t]
    return draws


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.5, 0.9])
def test_effective_sample_size_of_an_autoregression(rho):
    found = bulk_ess(autoregressive(rho))
    assert found.mean() == pytest.approx(3200 * (1 - rho) / (1 + rho), rel=0.25)


def test_diagnostics_are_those_of_pyro():
    draws = autoregressive(0.5)
    halves = np.concatenate([draws[:, :400], draws[:, 400:]])
    bulk, folded = (torch.as_tensor(scores(halves)) for scores in (_normal_scores, _folded))
    theirs = np.maximum(pyro.ops.stats.gelman_rubin(bulk).numpy(), pyro.ops.stats.gelman_rubin(folded).numpy())
    np.testing.assert_allclose(r_hat(draws), theirs, atol=1e-10)
    np.testing.assert_allclose(bulk_ess(draws), pyro.ops.stats.effective_sample_size(bulk).numpy(), rtol=0.02)


def test_r_hat_sees_shifts_scales_and_trends_and_no_monotone_map():
    draws = autoregressive(0.0, k=1)
    assert r_hat(draws) < 1.01
    shifted, scaled, trend = draws.copy(), draws.copy(), draws.copy()
    shifted[0] += 1
    scaled[0] *= 3
    trend += np.linspace(0, 2, 800)[:, None]
    for bad in (shifted, scaled, trend):
        assert r_hat(bad) > 1.05
    np.testing.assert_allclose(bulk_ess(np.exp(5 * draws)), bulk_ess(draws), rtol=1e-10)


def test_diagnostics_of_constant_draws():
    draws = np.ones((2, 10, 3))
    np.testing.assert_array_equal(r_hat(draws), 1)
    np.testing.assert_array_equal(bulk_ess(draws), 20)
    np.testing.assert_array_equal(r_hat(draws * np.array([1, 2])[:, None, None]), np.inf)


def test_chance_r_hat_is_exceeded_as_rarely_as_it_says():
    limit, rng = chance_r_hat(4, 100, 50, probability=0.2), np.random.default_rng(0)
    above = sum(r_hat(rng.normal(size=(4, 100, 50))).max() > limit for _ in range(200))
    assert 10 < above < 57  # at most 200 * .2, Bonferroni; binomial 99.9% band above


def test_bad_chains_warn_or_are_refused():
    X, y = make_data()
    bad = {"prior_precision": 1.0, "n_chains": 2, "n_draws": 10, "n_warmup": 2, "max_tree_depth": 1}
    with pytest.warns(ConvergenceWarning, match="bad chains: .*effective sample size is .* at least 200 needed.* Fix"):
        head = NUTSHead(**bad).fit(X, y)
    assert head.r_hat_.shape == head.ess_.shape == (4, 2)
    with pytest.raises(ConvergenceError, match="bad chains: "):
        NUTSHead(**bad, on_bad_chains="refuse").fit(X, y)


def test_good_chains_are_accepted(sampled):
    assert sampled.r_hat_.max() < 1.02
    assert sampled.ess_.min() > 500
    assert sampled.n_divergences_ == 0
    assert sampled.r_hat_.shape == sampled.ess_.shape == (3, 1)


# --- isolation


@brief
@SOME
def test_fitting_leaves_global_state_alone(make):
    X, y = make_data()
    pyro.clear_param_store()
    pyro.param("theirs", torch.ones(2))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (the global state is the point)
    random.seed(1)

    def state():
        return (
            {name: value.detach().clone() for name, value in pyro.get_param_store().items()},
            torch.random.get_rng_state(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            random.getstate(),
            pyro.settings.get(),
            torch.distributions.Distribution._validate_args,
            torch.is_grad_enabled(),
        )

    before = state()
    with torch.no_grad():
        make().fit(X, y).predict_proba(X)
    after = state()
    assert before[0].keys() == after[0].keys()
    np.testing.assert_array_equal(before[0]["theirs"], after[0]["theirs"])
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    pyro.clear_param_store()


@brief
@SOME
def test_a_head_is_changed_by_no_other(make):
    X, y = make_data()
    head = make().fit(X, y)
    before = head.predict_proba(X)
    some_variational(random_state=1, guide="full").fit(X[::-1], y)
    some_nuts(random_state=1).fit(X[::-1], y)
    np.testing.assert_array_equal(head.predict_proba(X), before)
    again = make().fit(X, y)
    for name, array in again.get_state()[0].items():
        np.testing.assert_array_equal(array, head.get_state()[0][name])
    assert not np.array_equal(make(random_state=5).fit(X, y).predict_proba(X), before)


@brief
@SOME
def test_fits_in_threads_give_the_serial_result(make):
    data = [make_data(seed=seed) for seed in range(3)]
    serial = [make().fit(X, y).predict_proba(X) for X, y in data]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(serial, pool.map(lambda d: make().fit(*d).predict_proba(d[0]), data), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module", params=[some_variational, some_nuts], ids=["variational", "nuts"])
def fitted(request):
    X, y = make_data(300, 40, 5, dtype=np.float32)
    with pytest.warns(ConvergenceWarning):
        return request.param().fit(X, y), X


def test_eight_threads_give_the_serial_result(fitted):
    head, X = fitted

    def work(_=None):
        return head.predict_log_proba(X), head.mutual_information(X), head.predict_posterior(X[:20], 8, 0)

    serial = work()
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(work, range(16)):
            for a, b in zip(serial, result, strict=True):
                np.testing.assert_array_equal(a, b)


@settings(max_examples=15)
@given(rows=st.lists(st.integers(0, 299), min_size=1, max_size=90))
def test_a_row_does_not_depend_on_its_batch(fitted, rows):
    head, X = fitted
    together = head.predict_log_proba(X[rows])
    alone = np.concatenate([head.predict_log_proba(X[[row]]) for row in rows[:5]])
    np.testing.assert_array_equal(together[:5], alone)


def test_probabilities_and_uncertainties_are_coherent(fitted):
    head, X = fitted
    proba = head.predict_proba(5 * X)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)
    entropy, information = head.predictive_entropy(5 * X), head.mutual_information(5 * X)
    assert np.all((information >= 0) & (information <= entropy + 1e-9) & (entropy <= np.log(5) + 1e-12))


PREDICT = """
import json, sys
import numpy as np
from cbdc.heads import HEADS
folder = sys.argv[1]
with np.load(folder + "/arrays.npz") as file:
    arrays = dict(file)
document = json.load(open(folder + "/document.json"))
E = arrays.pop("E")
head = HEADS[document.pop("head")].from_state(arrays, document)
np.save(folder + "/found.npy", np.stack([head.predict_log_proba(E), head.predict_posterior(E, 1)[0]]))
assert not {"torch", "pyro"} & set(sys.modules)
"""


def test_predicting_needs_neither_torch_nor_pyro(fitted, tmp_path):
    head, X = fitted
    arrays, document = head.get_state()
    np.savez(tmp_path / "arrays.npz", E=X[:40], **arrays)
    name = next(name for name, kind in HEADS.items() if type(head) is kind)
    (tmp_path / "document.json").write_text(json.dumps(document | {"head": name}))
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", PREDICT, str(tmp_path)], check=True, cwd=root)
    expected = np.stack([head.predict_log_proba(X[:40]), head.predict_posterior(X[:40], 1)[0]])
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)


# --- edges and bad inputs


@brief
@SOME
def test_weights_count_rows(make):
    X, y = make_data(60, 4, 3)
    counts = np.random.default_rng(0).integers(0, 3, 60)
    counts[:3] = 1
    weighted = make().fit(X, y, sample_weight=counts)
    repeated = make().fit(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-6)


@brief
@SOME
def test_rows_of_weight_zero_are_dropped(make):
    X, y = make_data(60, 4, 3)
    dropped = make().fit(X[:40], y[:40]).predict_proba(X)
    y[40:], X[40:] = 7, 1e6
    zero = make().fit(X, y, sample_weight=np.repeat([1.0, 0.0], [40, 20]))
    np.testing.assert_array_equal(zero.predict_proba(make_data(60, 4, 3)[0]), dropped)


@brief
@SOME
def test_rows_of_a_group_share_the_weight_of_one(make):
    X, y = make_data(60, 4, 3)
    repeated = np.repeat(np.arange(60), np.random.default_rng(0).integers(1, 5, 60))
    once = make().fit(X, y)
    many = make().fit(X[repeated], y[repeated], groups=repeated.astype(str))
    np.testing.assert_allclose(many.predict_proba(X), once.predict_proba(X), atol=1e-6)


@brief
@SOME
def test_constant_features_do_nothing(make):
    X, y = make_data(60, 4, 3)
    wide = np.column_stack([X, np.full((60, 2), 1e3)])
    narrow = make().fit(X, y)
    proba = make().fit(wide, y).predict_proba(wide)
    np.testing.assert_allclose(proba, narrow.predict_proba(X), atol=0.08)  # other draws of the same posterior
    frequencies = make(n_draws=64).fit(np.ones((40, 3)), np.repeat([0, 1], [30, 10])).predict_proba(np.ones((1, 3)))
    np.testing.assert_allclose(frequencies, [[0.75, 0.25]], atol=0.06)


@brief
@SOME
@pytest.mark.parametrize(
    ("n", "d", "n_classes", "dtype"),
    [(2, 3, 2, np.float64), (10, 50, 3, np.float32), (30, 1, 2, np.float32), (12, 5, 6, np.float64)],
)
def test_few_rows_and_many_features(make, n, d, n_classes, dtype):
    X, y = make_data(n, d, n_classes, dtype=dtype)
    head = make().fit(X, y)
    assert head.weight_draws_.dtype == dtype
    proba = head.predict_proba(X)
    assert np.all(np.isfinite(proba))
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)
    assert head.predict_posterior(X, 70).shape == (70, n, n_classes)


@brief
@SOME
def test_separable_classes_stay_finite(make):
    X = np.concatenate([np.full((50, 2), -1.0), np.full((50, 2), 1.0)])
    proba = make(prior_precision="evidence").fit(X, np.repeat([0, 1], 50)).predict_proba(X)
    assert np.all((proba > 0) & (proba < 1))


@SOME
def test_bad_rows_are_refused(make):
    X, y = make_data()
    for bad in (np.nan, np.inf):
        broken = X.copy()
        broken[3, 1] = bad
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            make().fit(broken, y)
    with pytest.raises(ValueError, match="at least two classes, got one class"):
        make().fit(np.eye(3), ["nv"] * 3)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make().fit(X, y[:-1])


def test_bad_rows_to_predict_are_refused(fitted):
    head, X = fitted
    broken = X.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        head.predict_proba(broken)
    with pytest.raises(ValueError, match=r"39 features, but .* is expecting 40"):
        head.predict_proba(X[:, :-1])


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (some_variational, {"prior_precision": 0}),
        (some_variational, {"guide": "flow"}),
        (some_variational, {"prior": "laplace"}),
        (some_variational, {"rank": 0}),
        (some_variational, {"batch_size": 0}),
        (some_variational, {"learning_rate": 0.0}),
        (some_variational, {"n_draws": 0}),
        (some_nuts, {"prior_precision": "cv"}),
        (some_nuts, {"n_chains": 0}),
        (some_nuts, {"n_draws": 3}),
        (some_nuts, {"thinning": 0}),
        (some_nuts, {"max_r_hat": 0.9}),
        (some_nuts, {"target_accept": 1.0}),
        (some_nuts, {"on_bad_chains": "ignore"}),
    ],
)
def test_bad_parameters_are_refused(make, parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        make(**parameters).fit(*make_data())


# --- state and names


@brief
@pytest.mark.parametrize(
    "head",
    [
        *(some_variational(guide=guide, random_state=3) for guide in GUIDES),
        some_variational(prior="horseshoe", guide="low_rank"),
        some_variational(class_weight={"mel": 2.0}, batch_size=20),
        some_nuts(random_state=np.random.RandomState(0)),
    ],
    ids=[*GUIDES, "horseshoe", "class weights", "nuts"],
)
@pytest.mark.parametrize("d", [4, 100])
def test_state_round_trip(head, d):
    X, codes = make_data(80, d, 3, dtype=np.float32)
    head.fit(X, np.array(["nv", "mel", "bkl"])[codes])
    arrays, document = head.get_state()
    assert all(type(array) is np.ndarray and array.flags.c_contiguous for array in arrays.values())
    copy = type(head).from_state(
        {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(document, allow_nan=False))
    )
    np.testing.assert_array_equal(copy.predict_log_proba(X), head.predict_log_proba(X))
    np.testing.assert_array_equal(copy.predict_posterior(X, 5), head.predict_posterior(X, 5))
    np.testing.assert_array_equal(copy.predict(X), head.predict(X))
    if isinstance(head, VariationalHead):
        assert copy.n_effective_features_ == head.n_effective_features_
        assert copy.get_params() == head.get_params()


def test_heads_by_name():
    assert type(make_head("variational", guide="full")) is VariationalHead
    assert type(make_head("nuts", n_chains=1)) is NUTSHead


@pytest.fixture(scope="module")
def lesions(tmp_path_factory):
    return tmp_path_factory.mktemp("cache"), *make_lesions(130, image_size=64, random_state=0).split(random_state=0)


@brief
@pytest.mark.parametrize(
    ("name", "head"),
    [("variational", some_variational(prior_precision="evidence")), ("nuts", some_nuts(prior_precision="evidence"))],
)
def test_classifier_of_images_fits_saves_and_loads(name, head, lesions, tmp_path):
    cache, train, calibration, test = lesions
    clf = CBDCClassifier(head=head, confidence_level=0.8, condition_on=None, cache_dir=cache, random_state=0)
    clf.fit(train).conformalize(calibration)
    clf.head = name
    path = clf.save(tmp_path / "model.cbdc")
    copy = CBDCClassifier.load(path, cache_dir=cache)
    assert type(copy.head_) is HEADS[name]
    np.testing.assert_array_equal(copy.predict_proba(test.images), clf.predict_proba(test.images))
    np.testing.assert_array_equal(copy.predict_set(test.images), clf.predict_set(test.images))
    assert copy.diagnose(test.images[0]).mutual_information >= 0


# --- simulation-based calibration (Talts et al., arXiv:1804.06788)


def calibration_ranks(make, n_simulations, n, d, precision, n_ranks, n_classes=2):
    """Rank of each parameter, drawn from the prior, among draws of the posterior of data drawn from it.

    Data in which a class is missing are drawn anew, parameters and all: that depends on the data alone and leaves
    ranks uniform.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d))
    Z = np.column_stack([(X - X.mean(axis=0)) / np.sqrt(X.var(axis=0).mean()), np.ones(n)])
    prior = np.append(np.full(d, precision), INTERCEPT_PRECISION)
    ranks = []
    while len(ranks) < n_simulations:
        truth = rng.normal(size=(d + 1, n_classes - 1)) / np.sqrt(prior)[:, None]
        y = np.argmax(Z @ truth @ contrasts(n_classes).T + rng.gumbel(size=(n, n_classes)), axis=1)
        if len(np.unique(y)) < n_classes:
            continue
        draws = contrast_draws(make(len(ranks)).fit(X, y))
        chosen = draws[np.linspace(0, len(draws) - 1, n_ranks).astype(int)]
        ranks.append(np.sum(chosen < truth, axis=0).ravel())
    return np.array(ranks)


def histogram_p_value(ranks, n_ranks, n_bins):
    """Smallest p-value of uniformity over the parameters, times their number."""
    counts = np.stack([np.bincount(column * n_bins // (n_ranks + 1), minlength=n_bins) for column in ranks.T])
    expected = len(ranks) / n_bins
    statistic = np.sum((counts - expected) ** 2 / expected, axis=1)
    return ranks.shape[1] * chi2.sf(statistic, n_bins - 1).min()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:bad chains")
@pytest.mark.parametrize(("n", "d", "precision", "n_classes"), [(25, 2, 0.5, 2), (30, 1, 1.0, 3)])
def test_nuts_is_calibrated_in_simulation(n, d, precision, n_classes):
    def make(seed):
        return NUTSHead(precision, n_chains=1, n_draws=63 * 4, n_warmup=80, thinning=4, random_state=seed)

    ranks = calibration_ranks(make, 96, n, d, precision, 63, n_classes)
    assert histogram_p_value(ranks, 63, 8) > 0.01


@pytest.mark.slow
def test_full_guide_is_nearly_calibrated_in_simulation_and_mean_field_is_not():
    """Where intercept and slope are correlated, ranks under mean field pile up at both ends."""

    def of(guide):
        return lambda seed: VariationalHead(0.2, guide=guide, n_draws=64, random_state=seed)

    full = calibration_ranks(of("full"), 96, 40, 1, 0.2, 63)
    narrow = calibration_ranks(of("mean_field"), 96, 40, 1, 0.2, 63)
    assert histogram_p_value(full, 63, 8) > 0.001
    assert histogram_p_value(narrow, 63, 8) < 1e-6
    outermost = np.mean((narrow < 8) | (narrow >= 56))
    assert outermost > 0.4  # .25 if calibrated
