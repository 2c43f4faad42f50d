"""PAC thresholds: coverage given the calibration cases."""

import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cbdc import ConformalClassifier
from cbdc.conformal import Certificate, pac_least_n, pac_p_values, pac_rank
from cbdc.errors import CalibrationSizeWarning, ParameterError
from cbdc.metrics import exact_level

sys.path.insert(0, str(Path(__file__).parent.parent / "theory"))
import reference

LEVELS = (Fraction(1, 2), Fraction(4, 5), Fraction(9, 10), Fraction(19, 20))


@given(n=st.integers(0, 120), level=st.sampled_from(LEVELS), delta=st.sampled_from([Fraction(1, 20), Fraction(1, 5)]))
def test_pac_rank_equals_the_exact_sum(n, level, delta):
    assert pac_rank(n, float(level), float(delta)) == reference.pac_rank(n, level, delta)


def test_ranks_of_the_literature():
    assert [pac_rank(n, 0.9) for n in (500, 1000, 2000)] == [462, 916, 1823]
    assert [pac_least_n(level) for level in (0.9, 0.95, 0.99)] == [29, 59, 299]
    with pytest.warns(CalibrationSizeWarning, match="takes 29"):
        ConformalClassifier(guarantee="pac").conformalize(np.full((28, 2), 0.5), np.zeros(28, dtype=int))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "window"), [(6, 4), (9, 5), (10, 3)])
def test_a_window_counts_by_the_law_of_all_orders(n, window, level):
    delta = Fraction(1, 5)
    needed = math.ceil(window * level)

    def short(k):
        return sum(reference.covered_distribution(n, window, k)[:needed])

    expected = next(k for k in range(1, n + 2) if k > n or short(k) <= delta)
    assert pac_rank(n, float(level), 0.2, window) == expected


@pytest.mark.parametrize("n", [100, 400])
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_coverage_falls_short_with_probability_delta(n, level):
    """2,000 calibrations of two classes, p uniform and y drawn from p: the label's score has the law s^2."""
    rng = np.random.default_rng(0)
    short = {}
    for guarantee in ("marginal", "pac"):
        clf = ConformalClassifier(guarantee=guarantee, delta=0.05, confidence_level=level)
        count = 0
        for _ in range(2000):
            p = rng.random(n)
            y = (rng.random(n) > p).astype(int)
            limit = clf.conformalize(np.stack([p, 1 - p], axis=1), y).thresholds()[0, 0]
            count += 1 - limit**2 < level
        short[guarantee] = count / 2000
    assert short["pac"] <= 0.05 + 0.01
    k = pac_rank(n, level, 0.05)
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], 2000, stats.beta.cdf(level, k, n + 1 - k)) / 2000
    assert low <= short["pac"] <= high
    assert short["marginal"] > 0.3


def test_pac_p_values_are_upper_limits_of_clopper_and_pearson():
    n, c = 50, np.arange(51)
    found = pac_p_values((1 + c) / (n + 1), np.array(n), 0.1)
    expected = [1.0 if k == n else stats.beta.ppf(0.9, k + 1, n - k) for k in c]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("window", [5, 10, 20, 50, 100])
def test_window_p_values_give_the_sets(window):
    """19 of 20 at 0.95: the float 1 - 19/20 exceeds .05, and would take in what the set leaves out."""
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.ones(4), 500)
    y = (P.cumsum(axis=1) < rng.random((500, 1))).sum(axis=1)
    for level in (0.1, 0.3, 0.6, 0.7, 0.8, 0.9, 0.95):
        clf = ConformalClassifier(guarantee="pac", window=window, confidence_level=level).conformalize(P[:250], y[:250])
        sets = clf.p_values(P[250:]) > float(1 - exact_level(level))
        np.testing.assert_array_equal(clf.predict_set(P[250:]), sets)


def test_the_certificate_says_what_is_promised_and_survives_json():
    P = np.random.default_rng(0).dirichlet(np.ones(3), 300)
    y = np.arange(300) % 3
    certificate = ConformalClassifier(guarantee="pac", condition_on="class").conformalize(P, y).certificate()
    assert certificate.delta == 0.05
    assert certificate.n_calibration == 300
    for part in ("probability at least 0.95 over", "each class", "each threshold on its own", "independent"):
        assert part in str(certificate)
    assert [c.rank for c in certificate.conditions] == [pac_rank(100, 0.9, 0.05)] * 3
    assert len(certificate.hashes["calibration_scores_sha256"]) == 64
    assert Certificate.from_dict(certificate.to_dict()) == certificate
    window = ConformalClassifier(guarantee="pac", window=30).conformalize(P, y).certificate()
    assert "next 30 cases" in str(window)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"window": 0, "guarantee": "pac"}, "window"),
        ({"window": 5}, "goes with guarantee='pac'"),
        ({"guarantee": "absolute"}, "guarantee"),
    ],
)
def test_parameters_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ConformalClassifier(**options).conformalize(np.full((40, 2), 0.5), np.zeros(40, dtype=int))


@pytest.mark.parametrize("call", [(-1, 0.9), (10, 0.9, 0.0), (10, 0.9, 0.05, 0), (10, 1.0)])
def test_ranks_of_nonsense_are_refused(call):
    with pytest.raises(ParameterError):
        pac_rank(*call)
