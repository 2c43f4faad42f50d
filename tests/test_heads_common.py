"""What every registered head promises: isolation, threads, one by one, bad data, weights, state, parameters."""

import json
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from cbdc.heads import HEADS, hellinger, make_head
from cbdc.modelfile import read_modelfile, write_modelfile

# settings that keep a head quick; one that is missing here runs with its defaults
QUICK = {
    "dropout": {"hidden_layer_size": 16, "n_steps": 150, "n_draws": 16},
    "ensemble": {"n_members": 6},
    "gp": {"n_features": 64},
    "swag": {"n_iterates": 20, "n_draws": 16},
}
QUICK["pooled"] = {"heads": [make_head(name, **QUICK.get(name, {})) for name in ("dropout", "dropout", "gp")]}
# how far probabilities may move when classes are renamed; heads that draw at random move by the noise of their draws
RENAMED = {"dirichlet": 5e-3, "gp": 5e-2, "laplace": 2e-2}

# these are slow to fit, and have the same promises tested in suites of their own
ELSEWHERE = {"linearized_laplace", "nuts", "variational"}
NAMES = sorted(set(HEADS) - ELSEWHERE)
every_head = pytest.mark.parametrize("name", NAMES)


def quick(name, **parameters):
    return make_head(name, **(QUICK.get(name, {}) | parameters))


def make_data(n=90, d=5, n_classes=3, seed=0, dtype=np.float32, signal=1.5):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % n_classes
    X = rng.normal(size=(n, d)) + signal * rng.normal(size=(n_classes, d))[codes]
    return X.astype(dtype), codes


@pytest.fixture(scope="module")
def fitted():
    X, y = make_data(n=120, d=40, n_classes=4)
    return {name: quick(name).fit(X, y) for name in NAMES}, X, y


def generators():
    return random.getstate(), np.random.get_state(), torch.get_rng_state().clone()  # noqa: NPY002


# --- isolation, threads, one by one


@every_head
def test_fitting_changes_no_other_head_and_no_global_generator(name, fitted):
    heads, X, y = fitted
    before = {other: head.predict_log_proba(X) for other, head in heads.items()}
    state = {key: array.copy() for key, array in heads[name].get_state()[0].items()}
    python, numpy, pytorch = generators()
    again = quick(name).fit(X, y)
    quick(name, random_state=1).fit(X[::-1], y).predict_posterior(X[:3], 4, 0)
    after = generators()
    assert after[0] == python
    np.testing.assert_equal(after[1], numpy)
    assert torch.equal(after[2], pytorch)
    for other, head in heads.items():
        np.testing.assert_array_equal(head.predict_log_proba(X), before[other])
    for key, array in again.get_state()[0].items():
        np.testing.assert_array_equal(array, state[key])


@every_head
def test_global_generators_do_not_matter(name, fitted):
    heads, X, y = fitted
    saved = generators()
    try:
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)
        head = quick(name).fit(X, y)
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        torch.set_rng_state(saved[2])
    np.testing.assert_array_equal(head.predict_log_proba(X), heads[name].predict_log_proba(X))


@every_head
def test_eight_threads_give_the_serial_result(name, fitted):
    heads, X, _ = fitted
    head = heads[name]

    def work(_):
        return head.predict_log_proba(X), head.mutual_information(X), head.predict_posterior(X[:20], 8, 0)

    serial = work(None)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(work, range(16)):
            for a, b in zip(serial, result, strict=True):
                np.testing.assert_array_equal(a, b)


def test_heads_fitted_at_once_in_threads_are_those_fitted_in_turn(fitted):
    heads, X, y = fitted
    with ThreadPoolExecutor(4) as pool:
        together = dict(zip(NAMES, pool.map(lambda name: quick(name).fit(X, y), NAMES), strict=True))
    for name, head in together.items():
        np.testing.assert_allclose(head.predict_log_proba(X), heads[name].predict_log_proba(X), rtol=1e-6, atol=1e-6)


@every_head
@settings(max_examples=10)
@given(rows=st.lists(st.integers(0, 119), min_size=1, max_size=70))
def test_a_row_does_not_depend_on_its_batch(name, fitted, rows):
    heads, X, _ = fitted
    head = heads[name]
    for predict in (head.predict_log_proba, head.mutual_information, head.predictive_entropy):
        alone = np.concatenate([predict(X[[row]]) for row in rows[:5]])
        np.testing.assert_array_equal(predict(X[rows])[:5], alone)
    draws = head.predict_posterior(X[rows], 5)
    np.testing.assert_allclose(draws[:, :1], head.predict_posterior(X[rows[:1]], 5), atol=1e-4)


# --- probabilities, uncertainty, draws


@every_head
@pytest.mark.parametrize("scale", [1, 30])
def test_probabilities_and_uncertainties_are_coherent(name, scale, fitted):
    heads, X, _ = fitted
    head, rows = heads[name], scale * X
    proba = head.predict_proba(rows)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(np.exp(head.predict_log_proba(rows)), proba)
    np.testing.assert_array_equal(head.predict(rows), head.classes_[proba.argmax(axis=1)])
    entropy, information = head.predictive_entropy(rows), head.mutual_information(rows)
    np.testing.assert_allclose(entropy, -np.sum(proba * np.log(np.maximum(proba, 1e-300)), axis=1), atol=1e-9)
    assert np.all((information >= 0) & (information <= entropy + 1e-9))
    assert np.all(entropy <= np.log(4) + 1e-12)
    assert scale > 1 or information.max() > 1e-4


@every_head
def test_draws_are_probabilities_and_average_to_the_predictive(name, fitted):
    heads, X, _ = fitted
    head = heads[name]
    draws = head.predict_posterior(X[:30], n_draws=400, random_state=0)
    assert draws.shape == (400, 30, 4)
    assert draws.dtype == float
    np.testing.assert_allclose(draws.sum(axis=2), 1, atol=1e-12)
    # the predictive of a head that averages over 16 draws has an error of its own
    np.testing.assert_allclose(draws.mean(axis=0), head.predict_proba(X[:30]), atol=0.15)
    np.testing.assert_array_equal(head.predict_posterior(X[:3], 4), head.predict_posterior(X[:3], 4))
    assert not np.array_equal(head.predict_posterior(X[:3], 4, 1), head.predict_posterior(X[:3], 4, 2))


@every_head
def test_the_predictive_is_the_mean_of_the_draws_within_their_error(name, fitted):
    _, X, y = fitted
    points = {"dropout": 500, "gp": 2048, "laplace": 2048}
    parameters = {"n_draws": points[name]} if name in points else {}
    if name == "pooled":
        parameters = {"heads": [quick(part, n_draws=n) for part, n in points.items()]}
    head = quick(name, **parameters).fit(X, y)
    kept = len(head.weight_draws_) if hasattr(head, "weight_draws_") else None  # all of them, in another order
    draws = head.predict_posterior(X[:30], kept or 3000, random_state=0)
    error = 0.0 if kept else draws.std(axis=0) * np.sqrt(1 / 3000 + (1 / 500 if name in ("dropout", "pooled") else 0))
    assert np.all(np.abs(draws.mean(axis=0) - head.predict_proba(X[:30])) <= 5 * error + (1e-6 if kept else 2e-3))


@every_head
def test_prediction_and_information_in_one_pass_are_those_of_two(name, fitted):
    heads, X, _ = fitted
    log_proba, information = heads[name].predict_with_information(X)
    np.testing.assert_array_equal(log_proba, heads[name].predict_log_proba(X))
    np.testing.assert_array_equal(information, heads[name].mutual_information(X))


@every_head
def test_every_draw_is_of_the_posterior_that_the_predictive_averages(name, fitted):
    """No head hands out probabilities that are not the mean of its draws by block."""
    heads, X, _ = fitted
    head = heads[name]
    blocks = np.concatenate(list(head._log_draws(X)))
    np.testing.assert_allclose(np.exp(blocks).mean(axis=1), head.predict_proba(X), atol=2e-3)


@every_head
def test_units_and_origin_of_the_features_do_not_matter(name):
    X, y = make_data(dtype=float)
    proba = quick(name).fit(X, y).predict_proba(X)
    for change in (lambda A: 100 * A, lambda A: A / 1e4, lambda A: A + 50):
        np.testing.assert_allclose(quick(name).fit(change(X), y).predict_proba(change(X)), proba, atol=1e-3)
    units = np.array([1, 10, 0.1, 100, 0.01])
    each = quick(name, standardize=True).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(
        quick(name, standardize=True).fit(X * units, y).predict_proba(X * units), each, atol=1e-3
    )


@pytest.mark.parametrize("name", ["dirichlet", "gp", "laplace"])  # others draw at random along the features
def test_a_rotation_of_the_features_does_not_matter(name):
    X, y = make_data(dtype=float)
    all_rows = {"n_features": 90} if name == "gp" else {}
    proba = quick(name, **all_rows).fit(X, y).predict_proba(X)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    for change in (lambda A: A[:, [3, 0, 4, 1, 2]], lambda A: A @ turn):
        np.testing.assert_allclose(quick(name, **all_rows).fit(change(X), y).predict_proba(change(X)), proba, atol=1e-4)


@every_head
def test_a_class_of_one_case_is_possible_and_rare(name):
    X, y = make_data()
    chosen = np.append(np.flatnonzero(y != 2), 2)
    proba = quick(name).fit(X[chosen], y[chosen]).predict_proba(X)
    assert 0 < proba[:, 2].mean() < 0.2
    assert proba[:, 2].argmax() == 2 or proba[2, 2] > proba[:, 2].mean()


@every_head
def test_learns_what_is_there(name):
    X, y = make_data(n=300)
    head = quick(name).fit(X[:200], y[:200])
    assert head.score(X[200:], y[200:]) > 0.7


# --- labels


@every_head
@pytest.mark.parametrize("labels", [["nv", "mel", "bkl"], [5, -3, 100]])
def test_any_labels(name, labels):
    X, codes = make_data()
    y = np.array(labels)[codes]
    head = quick(name).fit(X, y)
    np.testing.assert_array_equal(head.classes_, np.sort(labels))
    assert head.score(X, y) > 0.6


@every_head
def test_boolean_labels(name):
    X, codes = make_data(n_classes=2)
    head = quick(name).fit(X, codes.astype(bool))
    assert head.predict(X).dtype == bool
    assert head.predict_proba(X).shape == (90, 2)


@every_head
def test_renaming_classes_permutes_the_columns(name):
    X, y = make_data()
    order = np.array([2, 0, 1])
    a, b = quick(name).fit(X, y).predict_proba(X), quick(name).fit(X, order[y]).predict_proba(X)
    np.testing.assert_allclose(b[:, order], a, atol=RENAMED.get(name, 0.4))
    assert np.abs(b[:, order] - a).mean() < 0.05


# --- weights and groups


@every_head
def test_rows_of_weight_zero_are_dropped(name):
    X, y = make_data()
    groups = np.arange(90) // 2
    dropped = quick(name).fit(X[:60], y[:60], groups=groups[:60]).predict_log_proba(X)
    broken, labels = X.copy(), y.copy()
    broken[60:], labels[60:] = 1e6, 7
    weights = np.repeat([1.0, 0.0], [60, 30])
    head = quick(name).fit(broken, labels, sample_weight=weights, groups=groups)
    np.testing.assert_array_equal(head.predict_log_proba(X), dropped)


@every_head
def test_the_order_of_the_rows_and_how_they_are_counted_do_not_matter(name):
    X, y = make_data(dtype=float)
    counts = np.random.default_rng(0).integers(0, 3, 90)
    counts[:3] = 1
    weighted = quick(name).fit(X, y, sample_weight=counts)
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(90), counts))
    repeated = quick(name).fit(X[order], y[order])
    np.testing.assert_allclose(repeated.predict_proba(X), weighted.predict_proba(X), atol=1e-3)


@every_head
@pytest.mark.parametrize("d", [5, 120])
def test_draws_do_not_depend_on_the_order_of_the_rows(name, d):
    """Eigenvectors come with either sign; a seed draws along them."""
    X, y = make_data(d=d, dtype=float)
    draws = quick(name).fit(X, y).predict_posterior(X[:9], 6, 0)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(90)
        again = quick(name).fit(X[order], y[order])
        np.testing.assert_allclose(again.predict_posterior(X[:9], 6, 0), draws, atol=1e-3)


@every_head
def test_weights_of_classes_tilt_the_probabilities(name):
    X, y = make_data(n=60, signal=0.3)
    plain = quick(name).fit(X, y).predict_proba(X)[:, 0].mean()
    assert quick(name, class_weight={0: 8.0}).fit(X, y).predict_proba(X)[:, 0].mean() > plain + 0.02


@every_head
def test_rows_of_a_group_share_the_weight_of_one(name):
    """Twenty copies of each row of one class in groups do not make it the likeliest everywhere."""
    X, y = make_data(n=60, signal=0.3)
    copies = np.concatenate([np.arange(60), np.repeat(np.flatnonzero(y == 0), 19)])
    alone = quick(name).fit(X[copies], y[copies]).predict_proba(X)[:, 0].mean()
    grouped = quick(name).fit(X[copies], y[copies], groups=copies).predict_proba(X)[:, 0].mean()
    once = quick(name).fit(X, y).predict_proba(X)[:, 0].mean()
    assert abs(grouped - once) < 0.3 * (alone - once)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"ensemble"}))  # which also draws the rows of a group together
def test_a_group_has_the_mean_weight_of_its_rows(name):
    X, y = make_data(dtype=float)
    weights, groups = np.random.default_rng(0).uniform(0.5, 2, 90), np.arange(90) // 3
    grouped = quick(name).fit(X, y, sample_weight=weights, groups=groups).predict_proba(X)
    explicit = quick(name).fit(X, y, sample_weight=weights / 3).predict_proba(X)
    np.testing.assert_allclose(grouped, explicit, atol=1e-6)


@every_head
def test_bad_weights_and_groups_are_refused(name):
    X, y = make_data()
    with pytest.raises(ValueError, match=r"sample_weight|Negative"):
        quick(name).fit(X, y, sample_weight=-np.ones(90))
    with pytest.raises(ValueError, match="are no classes of y"):
        quick(name, class_weight={9: 2.0}).fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        quick(name).fit(X, y, groups=[1, 2])


# --- edges and bad data


@every_head
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_are_refused(name, bad, fitted):
    X, y = make_data()
    X[3, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        quick(name).fit(X, y)
    rows = fitted[1][:2].copy()
    rows[1, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        fitted[0][name].predict_proba(rows)


@every_head
def test_far_rows_are_finite_and_absurd_ones_are_refused(name, fitted):
    heads, X, _ = fitted
    log_proba = heads[name].predict_log_proba(1e6 * X[:5])
    assert np.all(np.isfinite(log_proba))
    assert np.all(np.isfinite(heads[name].mutual_information(1e6 * X[:5])))
    with pytest.raises(ValueError, match=r"row 0 lies more than 1e\+15 standard deviations"):
        heads[name].predict_proba(np.full((1, 40), 1e30, dtype=np.float32))


@every_head
def test_wrong_width_is_refused(name, fitted):
    with pytest.raises(ValueError, match=r"3 features, but .* is expecting 40"):
        fitted[0][name].predict_proba(np.zeros((2, 3)))


@every_head
def test_one_class_is_refused(name):
    with pytest.raises(ValueError, match="at least two classes, got one class"):
        quick(name).fit(np.eye(3), ["nv"] * 3)


@every_head
def test_two_samples(name):
    proba = quick(name).fit([[0.0, 1.0], [1.0, 0.0]], ["a", "b"]).predict_proba([[0.0, 1.0], [1.0, 0.0]])
    assert np.all(np.isfinite(proba))


@every_head
def test_fewer_rows_than_features(name):
    X, y = make_data(n=12, d=50)
    head = quick(name).fit(X, y)
    assert np.all(np.isfinite(head.predict_log_proba(X)))
    assert head.score(X, y) > 0.6


@every_head
@pytest.mark.parametrize("standardize", [False, True])
def test_constant_features_do_no_harm(name, standardize):
    X, y = make_data()
    wide = np.column_stack([X, np.full((90, 2), 1e3 + 0.1, dtype=np.float32)])
    head = quick(name, standardize=standardize).fit(wide, y)
    assert np.all(np.isfinite(head.predict_log_proba(wide)))
    assert head.score(wide, y) > 0.6


@every_head
def test_only_constant_features_give_about_the_class_frequencies(name):
    head = quick(name).fit(np.ones((80, 3)), np.repeat([0, 1], [60, 20]))
    np.testing.assert_allclose(head.predict_proba(np.ones((1, 3))), [[0.75, 0.25]], atol=0.06)


@every_head
def test_separable_classes_stay_finite(name):
    X = np.concatenate([np.full((50, 2), -1.0), np.full((50, 2), 1.0)])
    log_proba = quick(name).fit(X, np.repeat([0, 1], 50)).predict_log_proba(X)
    assert np.all(np.isfinite(log_proba))
    assert np.all(log_proba < 0)


@every_head
def test_two_precisions_agree(name):
    X, y = make_data()
    single = quick(name).fit(X, y)
    double = quick(name).fit(X.astype(float), y)
    assert (single.dtype_, double.dtype_) == ("<f4", "<f8")
    np.testing.assert_allclose(single.predict_proba(X), double.predict_proba(X.astype(float)), atol=0.1)


# --- state, names, parameters


@every_head
@pytest.mark.parametrize("labels", [["nv", "mel", "bkl"], [5, -3, 100], [False, True]])
def test_state_goes_through_a_model_file(name, labels, tmp_path):
    X, codes = make_data(n_classes=len(labels))
    head = quick(name, random_state=3, class_weight={labels[0]: 2.0}).fit(X, np.array(labels)[codes])
    arrays, document = head.get_state()
    assert all(type(array) is np.ndarray and array.flags.c_contiguous for array in arrays.values())
    assert json.loads(json.dumps(document, allow_nan=False))
    write_modelfile(tmp_path / "head.cbdc", arrays, document)
    copy = HEADS[name].from_state(*read_modelfile(tmp_path / "head.cbdc"))
    for method in ("predict", "predict_log_proba", "mutual_information", "predict_posterior"):
        np.testing.assert_array_equal(getattr(copy, method)(X), getattr(head, method)(X))
    assert copy.get_params(deep=False) | {"heads": None} == head.get_params(deep=False) | {"heads": None}
    scalars = {key: value for key, value in vars(head).items() if key in type(head)._scalars}
    assert {key: getattr(copy, key) for key in scalars} == scalars


@every_head
def test_state_of_a_generator_holds_its_seed(name):
    X, y = make_data()
    head = quick(name, random_state=np.random.RandomState(0)).fit(X, y)
    copy = HEADS[name].from_state(head.get_state()[0], json.loads(json.dumps(head.get_state()[1])))
    np.testing.assert_array_equal(copy.predict_posterior(X, 5), head.predict_posterior(X, 5))


@every_head
def test_predicting_before_fitting_is_an_error(name):
    for method in ("predict_proba", "mutual_information", "predict_posterior"):
        with pytest.raises(ValueError, match="not fitted"):
            getattr(quick(name), method)(np.zeros((1, 5)))


@every_head
def test_bad_parameters_are_refused(name):
    X, y = make_data()
    for parameter in HEADS[name]._parameter_constraints:
        head = clone(quick(name)).set_params(**{parameter: object()})
        with pytest.raises(ValueError, match=f"'{parameter}' parameter"):
            head.fit(X, y)


@every_head
def test_every_parameter_is_constrained_and_documented(name):
    kind = HEADS[name]
    assert set(kind._parameter_constraints) == set(kind().get_params())
    for parameter in kind().get_params():
        assert f"    {parameter} : " in kind.__doc__


# --- the map of the features


@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from([np.float32, np.float64]),
    st.floats(1e-12, 1e12),
    st.integers(0, 2**20),
)
def test_hellinger_keeps_signs_and_order_and_forgets_the_size_of_a_row(n, d, dtype, scale, seed):
    rng = np.random.default_rng(seed)
    E = (rng.normal(size=(n, d)) * rng.integers(0, 2, size=(n, d))).astype(dtype)
    H = hellinger(E)
    assert H.dtype == dtype
    np.testing.assert_array_equal(np.sign(H), np.sign(E))
    np.testing.assert_allclose(np.linalg.norm(H, axis=1), (E != 0).any(axis=1), rtol=1e-5)
    total = np.abs(E).sum(axis=1, keepdims=True, dtype=float)
    np.testing.assert_allclose(H * np.abs(H) * total, E, rtol=1e-5)
    np.testing.assert_allclose(hellinger((E * scale).astype(dtype)), H, rtol=1e-5)
    for row, image in zip(E, H, strict=True):
        np.testing.assert_array_equal(hellinger(row[None])[0], image)


def test_hellinger_distance_is_that_of_the_distributions():
    p, q = np.random.default_rng(0).dirichlet(np.ones(6), size=2)
    expected = np.sqrt(2 - 2 * np.sum(np.sqrt(p * q)))
    assert np.linalg.norm(np.subtract(*hellinger([7 * p, 3 * q]))) == pytest.approx(expected)


def test_hellinger_of_extreme_rows_is_finite():
    largest, least = np.finfo(np.float32).max, np.finfo(np.float32).tiny
    E = np.array([[largest, largest], [least, 0], [0, 0], [-largest, least]], dtype=np.float32)
    np.testing.assert_allclose(hellinger(E)[:3], [[0.5**0.5] * 2, [1, 0], [0, 0]], rtol=1e-6)
    assert np.isfinite(hellinger(E)).all()
    assert hellinger(E[:0]).shape == (0, 2)


@pytest.mark.parametrize(("E", "message"), [([1.0, 2.0], "2D array"), ([[1.0, np.nan]], "E contains NaN")])
def test_hellinger_refuses_what_is_no_table_of_numbers(E, message):
    with pytest.raises(ValueError, match=message):
        hellinger(E)


@every_head
def test_a_head_with_the_map_is_the_head_on_mapped_rows(name, tmp_path):
    X, y = make_data(n=60, d=8)
    head = quick(name, feature_map="hellinger").fit(X, y)
    plain = quick(name).fit(hellinger(X), y)
    np.testing.assert_array_equal(head.predict_proba(X), plain.predict_proba(hellinger(X)))
    np.testing.assert_array_equal(head.predict_proba(X[7:8])[0], head.predict_proba(X)[7])
    loaded = type(head).from_state(*head.get_state())
    np.testing.assert_array_equal(loaded.predict_proba(X), head.predict_proba(X))


def test_sampled_heads_start_on_mapped_rows():
    X, y = make_data(n=40, d=3, n_classes=2)
    for name, options in {"nuts": {"n_chains": 2, "n_warmup": 50, "n_draws": 20}, "variational": {}}.items():
        head = make_head(name, feature_map="hellinger", random_state=0, **options)
        plain = make_head(name, random_state=0, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few draws are no sample
            found, expected = head.fit(X, y), plain.fit(hellinger(X), y)
        np.testing.assert_array_equal(found.predict_proba(X), expected.predict_proba(hellinger(X)))
