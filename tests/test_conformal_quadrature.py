"""The posterior of a risk by Bayesian quadrature."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cbdc import metrics as m
from cbdc.conformal import (
    crc_index,
    pac_rank,
    quadrature_bound,
    quadrature_index,
    rcps_index,
    risk_exceedance,
    risk_p_values,
)
from cbdc.errors import ParameterError

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import quadrature_reference as reference

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=8)
levels = st.sampled_from([0.05, 0.1, 0.3, 0.6])


def falling(rng, n, m):
    """Losses in [0, 1] that never rise along a row, with ties."""
    return np.sort(np.round(rng.random((n, m)) * rng.random((n, 1)), 2), axis=1)[:, ::-1]


@given(seed=seeds, n=st.integers(1, 12), level=st.integers(1, 999))
def test_it_is_the_exact_sum(seed, n, level):
    places = np.random.default_rng(seed).choice(np.arange(1, 1000), n, replace=False)
    knots = [*(Fraction(int(place), 1000) for place in sorted(places)), Fraction(1)]
    exact = reference.risk_exceedance(knots, Fraction(level, 1000) + Fraction(1, 3000))
    found = risk_exceedance(places[:, None] / 1000, level / 1000 + 1 / 3000)
    assert found[0] == pytest.approx(float(exact), abs=1e-12)


@given(seed=seeds, n=st.integers(1, 300), level=levels)
def test_losses_of_0_and_1_give_the_binomial_p_value(seed, n, level):
    rng = np.random.default_rng(seed)
    losses = (rng.random((n, 5)) < rng.random(5)).astype(float)
    np.testing.assert_allclose(risk_exceedance(losses, level), risk_p_values(losses, level), atol=1e-12)
    beta = stats.beta.sf(level, losses.sum(axis=0) + 1, n - losses.sum(axis=0))
    np.testing.assert_allclose(risk_exceedance(losses, level), np.where(losses.all(axis=0), 1, beta), atol=1e-12)


@given(seed=seeds, n=st.integers(20, 200), level=st.sampled_from([0.1, 0.2]), delta=st.sampled_from([0.05, 0.2]))
def test_a_miss_as_the_loss_gives_the_pac_rank(seed, n, level, delta):
    """Setting j: the j + 1 best conforming of n distinct scores make the threshold, and all but them miss."""
    scores = np.random.default_rng(seed).permutation(n)
    losses = (scores[:, None] > np.arange(n)).astype(float)
    assert quadrature_index(losses, level, delta) + 1 == min(pac_rank(n, 1 - level, delta), n + 1)
    assert quadrature_index(losses, level, delta) == rcps_index(losses, level, delta)


@few
@given(seed=seeds, level=levels)
def test_the_mean_of_the_posterior_is_conformal_risk_control(seed, level):
    """Its expectation, the integral of its tail, is what CRC compares with the level."""
    rng = np.random.default_rng(seed)
    losses = falling(rng, 8, 6)
    grid = (np.arange(400) + 0.5) / 400
    means = np.mean([risk_exceedance(losses, a) for a in grid], axis=0)
    expected = [float(reference.mean_risk([*column, 1])) for column in losses.T]
    np.testing.assert_allclose(means, expected, atol=2e-3)
    enough = np.flatnonzero(np.array(expected) <= level)
    assert crc_index(losses, level) == (enough[0] if len(enough) else 6)


@given(seed=seeds, n=st.integers(1, 30), level=levels)
def test_it_is_the_share_of_dirichlet_draws(seed, n, level):
    rng = np.random.default_rng(seed)
    losses = falling(rng, n, 1)
    draws = rng.dirichlet(np.ones(n + 1), 4000) @ np.append(losses, 1.0)
    count, probability = int((draws > level).sum()), float(risk_exceedance(losses, level)[0])
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], 4000, probability)
    assert low <= count <= high


@few
@given(seed=seeds, level=levels, delta=st.sampled_from([0.01, 0.1, 0.5]))
def test_the_index_is_the_first_of_a_bound_below_the_level(seed, level, delta):
    losses = falling(np.random.default_rng(seed), 40, 12)
    bounds = quadrature_bound(losses, delta)
    assert (np.diff(bounds) <= 1e-12).all()
    below = np.flatnonzero(bounds <= level)
    assert quadrature_index(losses, level, delta) == (below[0] if len(below) else 12)
    np.testing.assert_allclose(risk_exceedance(losses[:, [3]], bounds[3]), delta, atol=1e-9)


@few
@given(seed=seeds)
def test_scale_order_and_bound(seed):
    losses = falling(np.random.default_rng(seed), 30, 3)
    found = risk_exceedance(losses, 0.2)
    np.testing.assert_allclose(risk_exceedance(losses[::-1], 0.2), found, atol=1e-12)
    np.testing.assert_allclose(risk_exceedance(5 * losses, 1.0, largest=5.0), found, atol=1e-12)
    assert (risk_exceedance(losses, 0.2, largest=2.0) >= found - 1e-12).all()
    np.testing.assert_allclose(quadrature_bound(5 * losses, largest=5.0), 5 * quadrature_bound(losses), atol=1e-9)


def test_it_is_less_careful_than_hoeffding_and_bentkus():
    rng = np.random.default_rng(0)
    losses = rng.beta(0.5, 4.0, (200, 1)) * np.linspace(1, 0, 101)
    assert crc_index(losses, 0.05) < quadrature_index(losses, 0.05) < rcps_index(losses, 0.05)


def test_the_bound_fails_no_more_often_than_delta():
    """2,000 calibrations of 30 losses of a Beta law, whose mean is known, and of one with a rare large loss."""
    rng = np.random.default_rng(0)
    for draw, mean in [
        (lambda: rng.beta(0.3, 1.2, (30, 2000)), 0.2),
        (lambda: np.where(rng.random((30, 2000)) < 0.1, 0.9, 0.02), 0.108),
    ]:
        violated = int((risk_exceedance(draw(), mean) < 0.1).sum())
        assert m.clopper_pearson(violated, 2000, 1 - 1e-5)[0] <= 0.1
        assert violated > 0.02 * 2000


def test_extremes():
    assert risk_exceedance(np.ones((5, 1)), 0.5).tolist() == [1.0]
    assert risk_exceedance(np.zeros((5, 1)), 1.0).tolist() == [0.0]
    assert risk_exceedance(np.zeros((3, 1)), 0.5)[0] == pytest.approx(0.5**3)
    assert quadrature_bound(np.ones((5, 1)), 0.05)[0] == pytest.approx(1.0)
    assert quadrature_index(np.ones((5, 3)), 0.5) == 3
    assert quadrature_index(np.zeros((50, 3)), 0.1) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quadrature_index([[0, 1]], 0.1), "rise"),
        (lambda: quadrature_index([[1, 0]], 0.1, delta=0), "delta"),
        (lambda: quadrature_bound([[1, 0]], 1.0), "delta"),
        (lambda: risk_exceedance([[2.0]], 0.1), "between 0 and 1"),
        (lambda: risk_exceedance([[np.nan]], 0.1), "none missing"),
        (lambda: risk_exceedance([], 0.1), "shape"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
