"""Opinion pools: what they are the mean of, their draws, weights, state, and what they refuse."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, log_softmax, softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from cbdc.errors import ModelFileError, ParameterError
from cbdc.heads import (
    DropoutHead,
    EnsembleHead,
    LaplaceHead,
    LinearPool,
    LogarithmicPool,
    PooledHead,
    RandomFeatureGPHead,
    hellinger,
)
from cbdc.heads._nested import head_from, state_of
from cbdc.modelfile import read_modelfile, write_modelfile

K, D = 3, 8


def make_data(n=90, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % K
    return (rng.normal(size=(n, D)) + 1.5 * rng.normal(size=(K, D))[codes]).astype(np.float32), codes


def network(seed=1, scale=3.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(K, D)), rng.normal(size=K)


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def logarithmic(data):
    return LogarithmicPool(LaplaceHead(n_draws=64), *network()).fit(*data)


@pytest.fixture(scope="module")
def linear(data):
    X, y = data
    inner = LogarithmicPool(EnsembleHead(6), *(part[..., :5] if part.ndim == 2 else part for part in network()))
    return LinearPool.of([inner.fit(X[:60, :5], y[:60]), LaplaceHead().fit(X[30:, 5:], y[30:])])


both = pytest.mark.parametrize("name", ["logarithmic", "linear"])


def test_the_temperature_is_the_likeliest(data, logarithmic):
    X, y = data
    coef, intercept = network()

    def likelihood(temperature):
        return log_softmax((X @ coef.T + intercept) / temperature, axis=1)[np.arange(len(y)), y].sum()

    best = likelihood(logarithmic.temperature_)
    assert best > max(likelihood(logarithmic.temperature_ * factor) for factor in (0.99, 1.01))


def test_a_draw_is_the_geometric_mean(data, logarithmic):
    X, _ = data
    coef, intercept = network()
    own = softmax((X @ coef.T + intercept) / logarithmic.temperature_, axis=1)
    product = np.sqrt(logarithmic.head_.predict_posterior(X, 8, 3) * own)
    expected = product / product.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(logarithmic.predict_posterior(X, 8, 3), expected, atol=1e-6)


def test_the_prediction_is_the_mean_over_the_draws_of_their_geometric_means(data, logarithmic):
    X, _ = data
    draws = np.concatenate(list(logarithmic.head_._log_draws(X)))
    own = logarithmic.network_log_proba(X)[:, None]
    expected = softmax((draws + own) / 2, axis=2).mean(axis=1)
    np.testing.assert_allclose(logarithmic.predict_proba(X), expected, atol=1e-12)
    halved = softmax(draws / 2, axis=2).mean(axis=1)  # a classifier that knows nothing halves the log-odds
    nothing = LogarithmicPool(LaplaceHead(n_draws=64), np.zeros((K, D)), np.zeros(K)).fit(*data)
    np.testing.assert_allclose(nothing.predict_proba(X), halved, atol=1e-12)
    assert np.abs(np.log(halved) - logarithmic.head_.predict_log_proba(X)).max() > 1  # it tells the two apart


@both
def test_information_is_the_entropy_of_the_mean_less_the_mean_entropy(name, data, request):
    """Of all draws side by side, the heads' in equal numbers."""
    pool, (X, _) = request.getfixturevalue(name), data
    draws = np.exp(np.concatenate(list(pool._log_draws(X))))
    expected = entr(draws.mean(axis=1)).sum(axis=1) - entr(draws).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(pool.mutual_information(X), expected, atol=1e-9)
    np.testing.assert_allclose(pool.predict_proba(X), draws.mean(axis=1), atol=1e-9)


def test_a_linear_pool_is_the_mean(data, linear):
    X, _ = data
    parts = [X[:, :5], X[:, 5:]]
    apart = [head.predict_proba(part) for head, part in zip(linear.heads_, parts, strict=True)]
    np.testing.assert_allclose(linear.predict_proba(X), np.mean(apart, axis=0), atol=1e-12)
    entropies = [head.predictive_entropy(part) for head, part in zip(linear.heads_, parts, strict=True)]
    between = linear.predictive_entropy(X) - np.mean(entropies, axis=0)
    assert (linear.mutual_information(X) >= between - 1e-9).all()  # what they do not agree on counts
    assert between.max() > 0.01


def test_draws_of_a_linear_pool_come_from_each_head_in_turn(data, linear):
    X, _ = data
    draws = linear.predict_posterior(X, 5, 0)
    np.testing.assert_array_equal(draws[0::2], linear.heads_[0].predict_posterior(X[:, :5], 3, 0))
    np.testing.assert_array_equal(draws[1::2], linear.heads_[1].predict_posterior(X[:, 5:], 2, 0))
    assert linear.predict_posterior(X, 1, 0).shape == (1, len(X), K)


@both
def test_draws_average_to_the_prediction(name, data, request):
    pool, (X, _) = request.getfixturevalue(name), data
    spread = 5 * 0.5 / np.sqrt(2000)
    np.testing.assert_allclose(pool.predict_posterior(X, 2000, 0).mean(axis=0), pool.predict_proba(X), atol=spread)


@both
def test_uncertainty_is_coherent(name, data, request):
    pool, (X, _) = request.getfixturevalue(name), data
    for rows in (X, 30 * X):
        np.testing.assert_allclose(pool.predict_proba(rows).sum(axis=1), 1, atol=1e-12)
        entropy, information = pool.predictive_entropy(rows), pool.mutual_information(rows)
        assert (information >= 0).all()
        assert (information <= entropy + 1e-9).all()
        assert (entropy <= np.log(K)).all()


@both
@settings(max_examples=10)
@given(rows=st.lists(st.integers(0, 89), min_size=1, max_size=70))
def test_a_row_does_not_depend_on_its_batch(name, data, request, rows):
    pool, (X, _) = request.getfixturevalue(name), data
    for predict in (pool.predict_log_proba, pool.mutual_information):
        np.testing.assert_array_equal(predict(X[rows])[:3], np.concatenate([predict(X[[row]]) for row in rows[:3]]))


@both
def test_eight_threads_give_the_serial_result(name, data, request):
    pool, (X, _) = request.getfixturevalue(name), data
    serial = pool.predict_log_proba(X)
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(pool.predict_log_proba, [X] * 16):
            np.testing.assert_array_equal(found, serial)


@both
def test_the_state_brings_back_the_same_bits(name, data, request, tmp_path):
    pool, (X, _) = request.getfixturevalue(name), data
    arrays, document = state_of(pool)
    path = write_modelfile(tmp_path / "pool", arrays, json.loads(json.dumps(document)))
    again = head_from(*read_modelfile(path))
    assert type(again) is type(pool)
    np.testing.assert_array_equal(again.predict_log_proba(X), pool.predict_log_proba(X))
    np.testing.assert_array_equal(again.predict_posterior(X, 4, 0), pool.predict_posterior(X, 4, 0))
    np.testing.assert_array_equal(again.mutual_information(X), pool.mutual_information(X))


def test_weights_and_groups_count_as_in_the_head(data):
    X, y = data
    pool = LogarithmicPool(LaplaceHead(), *network())
    weights = np.where(np.arange(len(X)) < 70, 1.0, 0.0)
    first = clone(pool).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(first.temperature_, clone(pool).fit(X[:70], y[:70]).temperature_)
    twice = clone(pool).fit(np.vstack([X, X]), np.tile(y, 2), groups=np.tile(np.arange(len(X)), 2))
    np.testing.assert_allclose(twice.temperature_, clone(pool).fit(X, y).temperature_)


def test_renamed_classes_give_renamed_columns(data):
    X, y = data
    coef, intercept = network()
    plain = LogarithmicPool(LaplaceHead(), coef, intercept).fit(X, y)
    other = LogarithmicPool(LaplaceHead(), coef[::-1], intercept[::-1]).fit(X, K - 1 - y)
    assert other.temperature_ == pytest.approx(plain.temperature_)
    np.testing.assert_allclose(other.predict_proba(X)[:, ::-1], plain.predict_proba(X), atol=2e-2)


def test_what_does_not_fit_is_told(data):
    X, y = data
    coef, intercept = network()
    with pytest.raises(ParameterError, match=r"they have to be \(3, 8\) and \(3,\)"):
        LogarithmicPool(LaplaceHead(), coef[:2], intercept[:2]).fit(X, y)
    with pytest.raises(ParameterError, match="one number of columns"):
        LinearPool([LaplaceHead(), LaplaceHead()], widths=[4, 5]).fit(X, y)
    with pytest.raises(ParameterError, match="of different classes"):
        LinearPool.of([LaplaceHead().fit(X, y), LaplaceHead().fit(X[y > 0], y[y > 0])])
    with pytest.raises(ModelFileError, match="would need a pickle"):
        state_of(LogisticRegression())
    with pytest.raises(ParameterError, match="above 0, for each head"):
        LinearPool([LaplaceHead(), LaplaceHead()], widths=[9, -1]).fit(X, y)
    with pytest.raises(ParameterError, match="got none"):
        LinearPool.of([])
    with pytest.raises(ParameterError, match="NaN or infinity"):
        LogarithmicPool(LaplaceHead(), coef * np.nan, intercept).fit(X, y)
    with pytest.raises(ParameterError, match="another prevalence"):
        LogarithmicPool(LaplaceHead(class_weight="balanced"), coef, intercept).fit(X, y)
    with pytest.raises(ParameterError, match="expected a head of cbdc"):
        LogarithmicPool(LogisticRegression(), coef, intercept).fit(X, y)
    with pytest.raises(ParameterError, match="of different classes"):
        LinearPool.of([LaplaceHead().fit(X, y > 0), LaplaceHead().fit(X, (y > 0).astype(int))])
    pool = LinearPool([LaplaceHead(), LaplaceHead()], widths=[3, 5]).fit(X, y)
    with pytest.raises(ValueError, match="features"):
        pool.predict_proba(X[:, :7])


@pytest.mark.parametrize("random_state", [None, 3])
def test_the_pooled_head_is_the_mean_of_two_networks_and_a_process(random_state, data, tmp_path):
    X, y = np.abs(data[0]), data[1]
    head = PooledHead(feature_map="hellinger", random_state=random_state).fit(X, y)
    mapped = hellinger(X)
    seeds = np.random.RandomState(random_state or 0).randint(2**31 - 1, size=3)
    kinds = (DropoutHead, DropoutHead, RandomFeatureGPHead)
    apart = [
        kind(random_state=seed).fit(mapped, y).predict_proba(mapped) for kind, seed in zip(kinds, seeds, strict=True)
    ]
    assert np.abs(apart[0] - apart[1]).max() > 0.01
    np.testing.assert_allclose(head.predict_proba(X), np.mean(apart, axis=0), atol=1e-12)
    arrays, document = state_of(head)
    again = head_from(*read_modelfile(write_modelfile(tmp_path / "head", arrays, json.loads(json.dumps(document)))))
    assert again.get_params() == head.get_params()
    np.testing.assert_array_equal(again.predict_log_proba(X), head.predict_log_proba(X))


@pytest.mark.parametrize("heads", [[], [LogisticRegression()]])
def test_a_pooled_head_is_of_heads(heads, data):
    with pytest.raises(ParameterError, match=r"expected heads of cbdc\.heads, at least one"):
        PooledHead(heads).fit(*data)


def test_heads_of_a_pool_keep_what_is_their_own(data):
    X, y = np.abs(data[0]), data[1]
    mapped = LaplaceHead(feature_map="hellinger", random_state=1)
    head = PooledHead([mapped, EnsembleHead(6)], random_state=0).fit(X, y)
    assert [one.feature_map for one in head.heads_] == ["hellinger", None]
    seeds = np.random.RandomState(0).randint(2**31 - 1, size=2).tolist()
    assert [one.random_state for one in head.heads_] == seeds
    np.testing.assert_allclose(
        head.heads_[0].predict_proba(X), mapped.set_params(random_state=seeds[0]).fit(X, y).predict_proba(X)
    )
    head = PooledHead([LaplaceHead(random_state=1), EnsembleHead(6)]).fit(X, y)
    assert [one.random_state for one in head.heads_] == [1, seeds[1]]
    with pytest.raises(ParameterError, match="LinearPool has no feature_map"):
        PooledHead([LinearPool([LaplaceHead()], [8]), LaplaceHead()], feature_map="hellinger").fit(X, y)
    with pytest.raises(ParameterError, match="LinearPool has no random_state"):
        PooledHead([LinearPool([LaplaceHead()], [8]), LaplaceHead()], random_state=0).fit(X, y)
    assert len(PooledHead([LinearPool([LaplaceHead()], [8]), LaplaceHead()]).fit(X, y).heads_) == 2


def test_rows_without_a_group_are_refused(data):
    X, y = data
    for missing in (np.nan, None):
        groups = np.array([*range(len(X) - 1), missing], dtype=object)
        with pytest.raises(ValueError, match=f"groups: 1 of {len(X)} rows have none"):
            LaplaceHead().fit(X, y, groups=groups)
