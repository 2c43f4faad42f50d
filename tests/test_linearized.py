"""Linearised Laplace head: against differences by hand, the Laplace head, laplace-torch; modules, threads, states."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from torch import nn

from cbdc.errors import ParameterError
from cbdc.heads import LaplaceHead, LinearizedLaplaceHead, linearized, make_head
from cbdc.heads._network import FlatNetwork, multilayer_perceptron
from cbdc.heads._softmax import contrasts
from tests.test_heads import make_data
from theory import linearized_reference as reference

COVARIANCES = ["full", "diagonal", "low_rank"]
SIZES = [3, 6, 4]


def network(sizes=SIZES, seed=0, spread=2.0):
    module = multilayer_perceptron(sizes, "float64", seed)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(spread).add_(0.05)
    return module


# --- against oracles


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_posterior_and_evidence_are_those_of_differences(covariance):
    X, y = make_data(25, 3, 4)
    weights = np.random.default_rng(1).uniform(0.3, 2, 25)
    head = LinearizedLaplaceHead(network(), prior_precision=1.7, covariance=covariance, rank=9)
    head.fit(X, y, sample_weight=weights)
    theta = head.parameters_
    prior = np.where(np.r_[np.ones(18), np.zeros(6), np.ones(24), np.zeros(4)] > 0, 1.7, 0.01)
    curvature = reference.gauss_newton(theta, X, weights, SIZES)
    dense = reference.covariance(theta, curvature, prior, covariance, rank=9)
    means, covariances = head.logit_distribution(X[:6])
    for x, mean, found in zip(X, means, covariances, strict=False):
        expected = reference.logit_gaussian(theta, x, SIZES, dense)
        np.testing.assert_allclose(mean, expected[0], atol=1e-9)
        np.testing.assert_allclose(found, expected[1], rtol=1e-4, atol=1e-5)
    used = np.linalg.inv(dense) if covariance != "low_rank" else np.diag(prior + np.diag(curvature))
    expected = reference.evidence(theta, X, y, weights, prior, SIZES, used)
    assert head.log_marginal_likelihood_ == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_prior_precision_maximises_the_evidence(covariance):
    X, y = make_data(60, 3, 4)
    found = LinearizedLaplaceHead(network(), covariance=covariance).fit(X, y)
    for tau in found.prior_precision_ * np.array([0.5, 0.9, 1.1, 2.0]):
        other = LinearizedLaplaceHead(network(), prior_precision=tau, covariance=covariance).fit(X, y)
        assert other.log_marginal_likelihood_ < found.log_marginal_likelihood_


@pytest.mark.parametrize("covariance", ["full", "low_rank"])
def test_one_linear_layer_is_the_laplace_head(covariance):
    X, y = make_data(80, 5, 3)
    head = LaplaceHead(2.0, covariance="full", mean_correction=False, tol=1e-10).fit(X, y)
    layer = nn.Linear(5, 3, dtype=torch.float64)
    B = contrasts(3)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(B @ (head.components_ @ head.mode_[:-1]).T))
        layer.bias.copy_(torch.from_numpy(B @ head.mode_[-1]))
    Z = (X - head.mean_) / head.scale_
    ours = LinearizedLaplaceHead(layer, prior_precision=2.0, covariance=covariance, rank=18).fit(Z, y)
    np.testing.assert_allclose(ours.predict_proba(Z), head.predict_proba(X), atol=1e-9)
    np.testing.assert_allclose(ours.mutual_information(Z), head.mutual_information(X), atol=1e-9)
    if covariance == "full":
        assert ours.log_marginal_likelihood_ == pytest.approx(head.log_marginal_likelihood_, abs=1e-8)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, by way of its imports
@pytest.mark.parametrize(("ours", "theirs"), [("full", "full"), ("diagonal", "diag")])
def test_functional_variance_is_that_of_laplace_torch(ours, theirs):
    laplace = pytest.importorskip("laplace")
    X, y = make_data(40, 3, 4)
    module = network()
    head = LinearizedLaplaceHead(module, prior_precision=1.3, covariance=ours).fit(X, y)
    prior = torch.from_numpy(np.where(head.network_.is_weight, 1.3, 0.01))
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    peer = laplace.Laplace(
        copy.deepcopy(module),
        "classification",
        subset_of_weights="all",
        hessian_structure=theirs,
        prior_precision=prior,
    )
    peer.fit(torch.utils.data.DataLoader(data, batch_size=16))
    mean, variance = peer._glm_predictive_distribution(torch.from_numpy(X[:10]))
    center = np.eye(4) - 1 / 4
    means, covariances = head.logit_distribution(X[:10])
    np.testing.assert_allclose(means, mean.detach().numpy() @ center, atol=1e-4)
    np.testing.assert_allclose(covariances, center @ variance.detach().numpy() @ center, rtol=1e-4, atol=1e-6)
    assert head.log_marginal_likelihood_ == pytest.approx(float(peer.log_marginal_likelihood()), abs=1e-4)


def test_low_rank_by_products_is_low_rank_by_dense_algebra(monkeypatch):
    X, y = make_data(60, 3, 4)
    heads = []
    for limit in (linearized._DENSE_LIMIT, 1):
        monkeypatch.setattr(linearized, "_DENSE_LIMIT", limit)
        heads.append(LinearizedLaplaceHead(network(), prior_precision=1.0, covariance="low_rank", rank=8).fit(X, y))
    dense, products = heads
    np.testing.assert_allclose(products.posterior_.eigenvalues, dense.posterior_.eigenvalues, rtol=1e-3)
    np.testing.assert_allclose(products.logit_distribution(X)[1], dense.logit_distribution(X)[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_joint_draws_average_to_the_predictive(covariance):
    X, y = make_data(60, 3, 4)
    head = LinearizedLaplaceHead(network(), covariance=covariance, rank=20).fit(X, y)
    draws = head.predict_posterior(X[:20], n_draws=2000, random_state=0)
    assert draws.shape == (2000, 20, 4)
    np.testing.assert_allclose(
        draws.mean(axis=0), head.predict_proba(X[:20]), atol=0.045
    )  # 4 errors of .5 / sqrt(2000)


# --- an own network


def test_own_network_is_at_a_mode():
    X, y = make_data(60, 3, 3)
    options = {"hidden_layer_sizes": (5,), "prior_precision": 2.0, "max_iter": 3000}
    head = LinearizedLaplaceHead(**options).fit(X, y)
    prior = head._prior(2.0)
    Z = (X - head.mean_) / head.scale_

    def slope(theta):
        total = prior * theta
        for x, c in zip(Z, y, strict=True):
            residual = softmax(reference.logits(theta, x, [3, 5, 3])) - np.eye(3)[c]
            total += residual @ reference.jacobian(theta, x, [3, 5, 3])
        return np.abs(total).max()

    first = multilayer_perceptron([3, 5, 3], "float64", head.seed_)
    assert slope(FlatNetwork(first, (3,), 3, "cpu").vector) > 5
    assert slope(head.parameters_) < 0.2  # not zero: the loss has kinks


def test_what_no_line_separates_is_learnt():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = (np.linalg.norm(X, axis=1) < 1).astype(int)
    assert LaplaceHead().fit(X[:200], y[:200]).score(X[200:], y[200:]) < 0.7
    head = LinearizedLaplaceHead(hidden_layer_sizes=(16,)).fit(X[:200], y[:200])
    assert head.score(X[200:], y[200:]) > 0.9
    far = 100 * X
    assert softmax(head.network_.logits(head._standardise(far)), axis=1).min(axis=1).mean() < 1e-9
    assert head.predict_proba(far).min(axis=1).mean() > 1e-3


def test_global_generators_stay_where_they_are():
    X, y = make_data(40, 3, 3)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    LinearizedLaplaceHead(max_iter=5).fit(X, y).predict_posterior(X, 2)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_seeds_repeat_and_differ():
    X, y = make_data(40, 3, 3)
    a, b, c = (LinearizedLaplaceHead(random_state=s, max_iter=20).fit(X, y).predict_proba(X) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


def test_renaming_classes_of_a_module_permutes_the_columns():
    X, y = make_data(60, 3, 4)
    order = np.array([2, 0, 3, 1])
    module, renamed = network(), network()
    with torch.no_grad():
        renamed[2].weight[torch.from_numpy(order)] = module[2].weight
        renamed[2].bias[torch.from_numpy(order)] = module[2].bias
    for covariance in COVARIANCES:
        options = {"covariance": covariance, "rank": 20, "predictive": "probit"}
        a = LinearizedLaplaceHead(module, **options).fit(X, y)
        b = LinearizedLaplaceHead(renamed, **options).fit(X, order[y])
        np.testing.assert_allclose(b.predict_proba(X)[:, order], a.predict_proba(X), atol=1e-6)


# --- modules


class Block(nn.Module):
    """Of a convolutional network: images in, logits out, with a normalisation and a dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.drop(torch.relu(self.norm(self.conv(x)))).mean(dim=(2, 3)))


def test_a_convolutional_block_of_images():
    torch.manual_seed(0)
    block = Block()
    rng = np.random.default_rng(0)
    E = rng.normal(size=(40, 2, 6, 6)).astype(np.float32)
    y = rng.integers(0, 3, 40)
    before = copy.deepcopy(block.state_dict())
    head = LinearizedLaplaceHead(block, prior_precision=3.0).fit(E, y)
    assert block.training
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())
    assert head.input_shape_ == (2, 6, 6)
    assert head.n_features_in_ == 72
    proba = head.predict_proba(E)
    np.testing.assert_array_equal(head.predict_proba(E.reshape(40, 72)), proba)
    np.testing.assert_array_equal(head.predict_proba(E[4:5]), proba[4:5])
    with torch.no_grad():
        logits = block.eval()(torch.from_numpy(E)).numpy()
    np.testing.assert_allclose(head.network_.logits(E.reshape(40, 72)), logits, atol=1e-6)
    with pytest.raises(ValueError, match=r"rows of shape \(2, 5, 6\), the head was fitted on \(2, 6, 6\)"):
        head.predict(E[:, :, :5])
    assert clone(head).module is not block


def test_frozen_parameters_are_certain():
    X, y = make_data(40, 3, 4)
    module = network()
    module[0].requires_grad_(False)
    head = LinearizedLaplaceHead(module, prior_precision=1.0).fit(X, y)
    assert head.parameters_.shape == (28,)
    hidden = torch.relu(module[0](torch.from_numpy(X))).detach().numpy()
    last = LinearizedLaplaceHead(copy.deepcopy(module[2]), prior_precision=1.0).fit(hidden, y)
    np.testing.assert_allclose(head.predict_proba(X), last.predict_proba(hidden), atol=1e-10)


def test_bad_modules_are_refused():
    X, y = make_data(40, 3, 4)
    with pytest.raises(ParameterError, match=r"output of shape \(2, 5\) for two rows, y has 4 classes"):
        LinearizedLaplaceHead(nn.Linear(3, 5)).fit(X, y)
    with pytest.raises(ParameterError, match="no parameter requires a gradient"):
        LinearizedLaplaceHead(nn.Linear(3, 4).requires_grad_(False)).fit(X, y)
    with pytest.raises(ParameterError, match="all float32 or all float64"):
        LinearizedLaplaceHead(nn.Linear(3, 4).half()).fit(X, y)
    with pytest.raises(ValueError, match="module"):
        LinearizedLaplaceHead("resnet").fit(X, y)
    with pytest.raises(ParameterError, match=r"20,708 parameters, at most 20,000. Fix: covariance='low_rank'"):
        LinearizedLaplaceHead(network([3, 2588, 4]), covariance="full").fit(X, y)
    head = LinearizedLaplaceHead(network()).fit(X, y)
    with pytest.raises(ParameterError, match="an adopted module has no state without pickle"):
        head.get_state()


def test_two_modules_do_not_touch_each_other():
    X, y = make_data(40, 3, 4)
    module = network()
    first = LinearizedLaplaceHead(module).fit(X, y)
    before = first.predict_proba(X)
    with torch.no_grad():
        module[0].weight.zero_()
    LinearizedLaplaceHead(module).fit(X, y)
    np.testing.assert_array_equal(first.predict_proba(X), before)


def test_jacobians_come_in_blocks_that_divide_a_block_of_prediction(monkeypatch):
    flat = FlatNetwork(network(), (3,), 4, "cpu")
    X = np.random.default_rng(0).normal(size=(32, 3))
    whole = np.concatenate(list(flat.jacobian(X)))
    monkeypatch.setattr("cbdc.heads._network._CELLS", 4 * 52 * 5)
    parts = list(flat.jacobian(X))
    assert {len(part) for part in parts} == {4}
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-12)


# --- batches, threads, states


@pytest.fixture(scope="module", params=COVARIANCES)
def fitted(request):
    X, y = make_data(100, 20, 3, dtype=np.float32)
    return LinearizedLaplaceHead(covariance=request.param, rank=20, max_iter=30).fit(X, y), X


def test_a_row_does_not_depend_on_its_batch(fitted):
    head, X = fitted
    together, information = head.predict_log_proba(X), head.mutual_information(X)
    for row in (0, 31, 33, 99):
        np.testing.assert_array_equal(head.predict_log_proba(X[[row]]), together[[row]])
        np.testing.assert_array_equal(head.mutual_information(X[[row]]), information[[row]])


def test_eight_threads_give_the_serial_result(fitted):
    head, X = fitted
    serial = head.predict_log_proba(X), head.predict_posterior(X[:20], 3, 0)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: (head.predict_log_proba(X), head.predict_posterior(X[:20], 3, 0)), range(16)):
            for a, b in zip(serial, result, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", ["monte_carlo", "probit", "bridge", "exact"])
def test_state_round_trip(fitted, way):
    head, X = copy.copy(fitted[0]), fitted[1]
    head.predictive = way
    arrays, document = head.get_state()
    assert all(type(array) is np.ndarray and array.flags.c_contiguous for array in arrays.values())
    copied = LinearizedLaplaceHead.from_state(
        {k: v.copy() for k, v in arrays.items()}, json.loads(json.dumps(document))
    )
    np.testing.assert_array_equal(copied.predict_log_proba(X), head.predict_log_proba(X))
    np.testing.assert_array_equal(copied.predict_posterior(X, 3), head.predict_posterior(X, 3))
    assert copied.get_params() == head.get_params()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_edges(covariance):
    def head():
        return LinearizedLaplaceHead(covariance=covariance, rank=5, hidden_layer_sizes=(4,), max_iter=30)

    two = head().fit([[0.0, 1.0], [1.0, 0.0]], ["a", "b"]).predict_proba([[0.0, 1.0], [1.0, 0.0]])
    assert np.isfinite(two).all()
    constant = head().fit(np.ones((40, 3)), np.repeat([0, 1], [30, 10]))
    np.testing.assert_allclose(constant.predict_proba(np.ones((1, 3))), [[0.75, 0.25]], atol=0.03)
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


def test_head_by_name():
    assert type(make_head("linearized_laplace", max_iter=3)) is LinearizedLaplaceHead


def test_a_row_of_weight_two_is_two_rows_and_training_does_not_magnify_their_rounding():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5)), np.arange(40) % 3
    weights, order = rng.integers(1, 4, 40), rng.permutation(40)
    weighted = LinearizedLaplaceHead().fit(X, y, sample_weight=weights)
    repeated = LinearizedLaplaceHead().fit(
        np.repeat(X[order], weights[order], axis=0), np.repeat(y[order], weights[order])
    )
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)
