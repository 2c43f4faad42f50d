"""Risk control and triage."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from test_conformal_properties import draw_cases

from cbdc import ConformalClassifier
from cbdc import metrics as m
from cbdc.conformal import (
    ConformalTriage,
    MalignancyClassifier,
    crc_index,
    ltt_indices,
    pac_rank,
    rcps_index,
    risk_p_values,
)
from cbdc.errors import CalibrationSizeWarning, ParameterError

seeds = st.integers(0, 2**32 - 1)


@st.composite
def monotone_losses(draw):
    """(n, m) in [0, 1], never rising along a row."""
    n, k = draw(st.integers(2, 15)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(seeds))
    losses = rng.random((n, k)) if draw(st.booleans()) else rng.integers(0, 2, (n, k))
    return np.sort(losses, axis=1)[:, ::-1].astype(float)


@given(losses=monotone_losses(), level=st.sampled_from([0.05, 0.2, 0.5]))
def test_crc_holds_by_leaving_each_case_out(losses, level):
    """Each in turn the new one: the mean of their losses is the expectation over all orders."""
    with_none = np.hstack([losses, np.zeros((len(losses), 1))])
    total = sum(with_none[i, crc_index(np.delete(losses, i, axis=0), level)] for i in range(len(losses)))
    assert total / len(losses) <= level + 1e-12


@given(losses=monotone_losses(), level=st.sampled_from([0.05, 0.2, 0.5]))
def test_confidence_asks_for_more(losses, level):
    index = rcps_index(losses, level, 0.05)
    assert index >= crc_index(losses, level) or (losses.mean(axis=0) > level).all()
    assert index >= rcps_index(losses, level, 0.3)
    assert rcps_index(losses[::-1], level, 0.05) == index


@given(seed=seeds, level=st.sampled_from([0.05, 0.1, 0.3]), whole=st.booleans())
def test_p_values_are_those_of_mapie_or_the_exact_binomial(seed, level, whole):
    risk_control = pytest.importorskip("mapie.risk_control.methods")
    rng = np.random.default_rng(seed)
    losses = rng.random((60, 4)) * rng.random(4)
    if whole:
        losses = (losses > 0.5).astype(float)
        expected = [stats.binom.cdf(k, 60, level) for k in losses.sum(axis=0)]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = risk_control.compute_hoeffding_bentkus_p_value(losses.mean(axis=0), 60, np.array([level]))
        expected = np.minimum(np.ravel(found), 1.0)
        expected[losses.mean(axis=0) >= level] = 1.0
    np.testing.assert_allclose(risk_p_values(losses, level), expected, atol=1e-9)


def test_risk_exceeds_its_level_with_probability_delta():
    """Losses 1[U < setting's risk]: the risk of each setting is known. 2,000 calibrations."""
    rng = np.random.default_rng(0)
    risks, runs, delta = np.linspace(0.3, 0.0, 31), 2000, 0.1
    violated = {"rcps": 0, "ltt": 0}
    for _ in range(runs):
        losses = (rng.random((150, 1)) < risks).astype(float)
        index = rcps_index(losses, 0.1, delta)
        violated["rcps"] += index < 31 and risks[index] > 0.1
        found = ltt_indices(risk_p_values(losses[:, ::-1], 0.1), delta)
        violated["ltt"] += len(found) > 0 and (risks[::-1][found] > 0.1).any()
    for count in violated.values():
        assert m.clopper_pearson(count, runs, 1 - 1e-5)[0] <= delta
        assert count > 0.01 * runs  # and it is not idle


def test_starts_share_delta():
    p = np.array([0.9, 0.9, 0.01, 0.01])
    assert ltt_indices(p, 0.05).tolist() == []
    assert ltt_indices(p, 0.05, starts=2).tolist() == [2, 3]
    assert ltt_indices(p, 0.05, starts=4).tolist() == [2, 3]
    assert ltt_indices(p, 0.03, starts=4).tolist() == []
    assert ltt_indices(p, 0.05, correction="bonferroni").tolist() == [2, 3]


@given(seed=seeds, level=st.sampled_from([0.05, 0.1, 0.3]))
def test_missed_malignancies_are_class_conditional_sets(seed, level):
    """For this loss CRC is conformal prediction of the malignant class, and RCPS its PAC form."""
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, 300, 2)
    flags = MalignancyClassifier(malignant=[1], risk_level=level).conformalize(P[:200], y[:200]).flag(P[200:])
    for method, guarantee in [("crc", "marginal"), ("rcps", "pac")]:
        flags = MalignancyClassifier(malignant=[1], risk_level=level, method=method).conformalize(P[:200], y[:200])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sets = ConformalClassifier(condition_on="class", guarantee=guarantee, confidence_level=1 - level)
            expected = sets.conformalize(P[:200], y[:200]).predict_set(P[200:])[:, 1]
        np.testing.assert_array_equal(flags.flag(P[200:]), expected)
        assert flags.n_malignant_ == (y[:200] == 1).sum()
    n = int((y[:200] == 1).sum())
    assert pac_rank(n, 1 - level, 0.05) >= m.conformal_rank(n, 1 - level)


def test_sensitivity_lies_in_its_band():
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 6000, 4)
    clf = MalignancyClassifier(malignant=[0, 2], risk_level=0.05).conformalize(P[:3000], y[:3000])
    sick = np.isin(y[3000:], [0, 2])
    low, high = m.coverage_band(clf.n_malignant_, int(sick.sum()), 0.95, probability=1 - 1e-5)
    assert low <= clf.flag(P[3000:])[sick].mean() <= high
    assert str(clf.n_malignant_) in str(clf.certificate())


def population(rng, n):
    """Probabilities of malignancy, uniform, and what is then true with them."""
    p = rng.random(n)
    return np.stack([1 - p, p], axis=1), (rng.random(n) < p).astype(int)


def test_predictive_values_fall_short_with_probability_delta():
    """P(malignant | p) = p: the released hold t / 2 malignant on average, the urgent (1 + t) / 2."""
    rng = np.random.default_rng(0)
    runs, short, released = 1000, 0, 0
    for _ in range(runs):
        triage = ConformalTriage(malignant=[1], npv=0.8, ppv=0.8, delta=0.1).conformalize(*population(rng, 1500))
        low, high = triage.release_threshold_, triage.urgent_threshold_
        short += (np.isfinite(low) and low / 2 > 0.2) or (np.isfinite(high) and (1 + high) / 2 < 0.8)
        released += np.isfinite(low) and np.isfinite(high)
    assert m.clopper_pearson(short, runs, 1 - 1e-5)[0] <= 0.1
    assert released > 0.9 * runs


def test_a_pile_is_certified_with_the_cases_at_its_threshold():
    """The .5 of the grid is the score of 200 benign cases: from there on a half is malignant, beyond it all are."""
    X, y = np.repeat([[0, 1.0], [0.5, 0.5], [1, 0]], 200, axis=0), np.repeat([1, 0, 0], 200)
    triage = ConformalTriage(malignant=[1], npv=0.9, ppv=0.9).conformalize(X, y)
    assert triage.urgent_threshold_ > 0.5
    table = triage.report(X, y).set_index("pile")
    assert table.loc["urgent", "n"] == table.loc["urgent", "malignant"] == 200
    X, y = X[:, ::-1], 1 - y
    triage = ConformalTriage(malignant=[1], npv=0.9, ppv=0.999).conformalize(X, y)
    assert triage.report(X, y).set_index("pile").loc["release", ["n", "malignant"]].tolist() == [200, 0]


@given(votes=st.integers(2, 30), seed=seeds)
def test_the_piles_of_calibration_are_the_piles_of_use(votes, seed):
    """Scores that tie, on the grid and beside it: what was certified is what is later in the pile."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, votes + 1, 1200) / votes
    y = (rng.random(1200) < scores ** rng.choice([1, 3])).astype(int)
    P = np.stack([1 - scores, scores], axis=1)
    triage = ConformalTriage(malignant=[1], npv=0.8, ppv=0.7, delta=0.1).conformalize(P, y)
    piles, share = triage.predict_triage(P), 0.1 / 2 / 10  # one of two piles, one of ten starts
    for pile, wrong, level in (("release", y == 1, 1 - 0.8), ("urgent", y == 0, 1 - 0.7)):
        inside = piles == pile
        if inside.any() and (pile == "urgent" or not (piles == "urgent").any()):
            assert stats.binom.cdf(wrong[inside].sum(), inside.sum(), level) <= share


@pytest.mark.parametrize("votes", [2, 3, 4, 10, 30])
def test_predictive_values_of_votes_fall_short_with_probability_delta(votes):
    """Votes drawn evenly, malignant with probability score**2: the predictive values of every pile are known."""
    rng = np.random.default_rng(0)
    values, runs, delta = np.arange(votes + 1) / votes, 300, 0.1
    levels = [1 - np.mean(values[values <= 0.5] ** 2) + 1e-3, np.mean(values[values >= 0.5] ** 2) + 1e-3]  # just missed
    short = 0
    for _ in range(runs):
        scores = rng.choice(values, 400)
        y = (rng.random(400) < scores**2).astype(int)
        triage = ConformalTriage(malignant=[1], npv=levels[0], ppv=levels[1], delta=delta)
        triage.conformalize(np.stack([1 - scores, scores], axis=1), y)
        piles = triage.predict_triage(np.stack([1 - values, values], axis=1))
        released, urgent = values[piles == "release"] ** 2, values[piles == "urgent"] ** 2
        short += (len(released) and 1 - released.mean() < levels[0]) or (len(urgent) and urgent.mean() < levels[1])
    assert m.clopper_pearson(short, runs, 1 - 1e-5)[0] <= delta


@pytest.mark.parametrize("delta", [0.02, 0.05, 0.1])
def test_a_pile_is_certified_exactly_where_its_share_of_delta_allows(delta):
    """All cases in one pile with k errors: half of delta is for the other pile, a tenth of it for each start."""
    n, level = 300, 0.2
    for wrong, score, pile in ((1, 0.0, "release"), (0, 1.0, "urgent")):
        X = np.tile([1 - score, score], (n, 1))
        for k in range(25, 65):
            y = np.where(np.arange(n) < k, wrong, 1 - wrong)
            triage = ConformalTriage(malignant=[1], npv=1 - level, ppv=1 - level, delta=delta).conformalize(X, y)
            certified = stats.binom.cdf(k, n, level) <= delta / 2 / 10
            assert (triage.predict_triage(X[:1])[0] == pile) == certified


def test_piles_add_up_and_batch_is_one_by_one():
    rng = np.random.default_rng(0)
    many = ConformalTriage(malignant=range(9), npv=0.8, ppv=0.8)
    P = rng.dirichlet(np.ones(12), 400)
    many.conformalize(P, rng.integers(0, 12, 400))
    np.testing.assert_array_equal(many.malignancy(P), [many.malignancy(P[[i]])[0] for i in range(400)])
    triage = ConformalTriage(malignant=[1], npv=0.8, ppv=0.8).conformalize(*population(rng, 3000))
    P, y = population(rng, 500)
    piles = triage.predict_triage(P)
    assert [triage.predict_triage(P[[i]])[0] for i in range(50)] == piles[:50].tolist()
    table = triage.report(P, y).set_index("pile")
    assert table["n"].sum() == 500
    assert table["malignant"].sum() == y.sum()
    assert table.loc["release", "share_malignant"] < 0.3
    assert table.loc["urgent", "share_malignant"] > 0.7
    np.testing.assert_array_equal(triage.flag(P), piles != "release")
    assert "0.8 are benign" in str(triage.certificate())


def test_nothing_is_released_where_nothing_can_be_certified():
    rng = np.random.default_rng(0)
    triage = ConformalTriage(malignant=[1], npv=0.999, ppv=0.999).conformalize(*population(rng, 60))
    P, y = population(rng, 100)
    assert set(triage.predict_triage(P)) == {"defer"}
    assert "nothing is released" in str(triage.certificate())
    assert "nothing is urgent" in str(triage.certificate())
    assert triage.report(P, y)["share_malignant"].isna().sum() == 2


def test_units_count_once():
    rng = np.random.default_rng(0)
    P, y = population(rng, 400)
    triage = ConformalTriage(malignant=[1]).conformalize(
        np.tile(P, (5, 1)), np.tile(y, 5), units=np.tile(range(400), 5)
    )
    once = ConformalTriage(malignant=[1]).conformalize(P, y)
    assert triage.n_calibration_ == 400
    assert triage.release_threshold_ == once.release_threshold_


def test_estimators_names_and_clones():
    rng = np.random.default_rng(0)
    y = np.where(rng.random(900) < 0.3, "mel", "nv")
    X = rng.standard_normal((900, 2)) + 3 * (y == "mel")[:, None]
    for kind in (MalignancyClassifier, ConformalTriage):
        clf = clone(kind(LogisticRegression(), malignant=["mel"])).fit(X[:300], y[:300]).conformalize(X[300:], y[300:])
        assert clf.get_params()["malignant"] == ["mel"]
        assert "score" not in clf.get_params()
        assert clf.flag(np.array([[9.0, 9.0]]))[0]
        assert not clf.flag(np.array([[-9.0, -9.0]]))[0]


GOOD, LABELS = population(np.random.default_rng(0), 50)
BAD = [
    (lambda: crc_index([[0, 1]], 0.1), "rise"),
    (lambda: rcps_index([[0, 1]], 0.1), "rise"),
    (lambda: crc_index([], 0.1), "shape"),
    (lambda: crc_index([[np.nan]], 0.1), "none missing"),
    (lambda: risk_p_values([[1.5]], 0.1), "between"),
    (lambda: ltt_indices([0.1], correction="holm"), "holm"),
    (lambda: ltt_indices([0.01, np.nan]), "number 1 is nan"),
    (lambda: ltt_indices([np.nan, np.nan], correction="bonferroni"), "number 0 is nan"),
    (lambda: ltt_indices([0.01, 1.5]), "number 1 is 1.5"),
    (lambda: ltt_indices([[0.01]]), "shape"),
    (lambda: ltt_indices([0.9, 0.9], delta=5), "delta: got 5"),
    (lambda: ltt_indices([0.01], delta=-1), "delta: got -1"),
    (lambda: ltt_indices([0.01], starts=0), "starts: got 0"),
    (lambda: ltt_indices([0.01], starts=1.5), "starts: got 1.5"),
    (lambda: rcps_index(np.ones((20, 3)), np.nan), "risk_level: got nan"),
    (lambda: rcps_index(np.ones((20, 3)), 1.5), "risk_level: got 1.5"),
    (lambda: rcps_index(np.ones((20, 3)), 0.1, delta=np.nan), "delta: got nan"),
    (lambda: rcps_index(np.ones((20, 3)), 0.1, delta=1.5), "delta: got 1.5"),
    (lambda: risk_p_values(np.zeros((5, 1)), -0.1), "risk_level: got -0.1"),
    (lambda: risk_p_values([[0.5], [0.2]], "0.1"), "risk_level: got '0.1'"),
    (lambda: crc_index([[1, 0]], np.nan), "risk_level: got nan"),
    (lambda: crc_index([[1, 0]], 0), "risk_level: got 0"),
    (lambda: crc_index([[1, 0]], 0.1, largest=np.nan), "largest: got nan"),
    (lambda: MalignancyClassifier(malignant=[2]).conformalize(GOOD, LABELS), "2 is no class"),
    (lambda: MalignancyClassifier(malignant=[0, 1]).conformalize(GOOD, LABELS), "benign"),
    (lambda: MalignancyClassifier(risk_level=0).conformalize(GOOD, LABELS), "risk_level"),
    (lambda: MalignancyClassifier().flag(GOOD), "not"),
    (lambda: ConformalTriage(npv=1.0).conformalize(GOOD, LABELS), "npv"),
    (lambda: ConformalTriage().conformalize(GOOD, LABELS, units=[1]), "units"),
    (lambda: ConformalTriage().conformalize(GOOD * np.nan, LABELS), "NaN"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_inputs_are_named(call, message):
    with pytest.raises((ValueError, ParameterError), match=message):
        call()


@pytest.mark.parametrize("kind", [MalignancyClassifier, ConformalTriage])
def test_the_certificate_names_the_malignant_classes(kind):
    """Left unnamed they would be the last class of the alphabet, vasc, which is benign."""
    rng = np.random.default_rng(0)
    y = rng.choice(["bcc", "mel", "nv", "vasc"], 300)
    X = rng.standard_normal((300, 2))
    clf = kind(LogisticRegression()).fit(X[:100], y[:100])
    with pytest.raises(ParameterError, match=r"here are 4: \['bcc', 'mel', 'nv', 'vasc'\].*name those"):
        clf.conformalize(X[100:], y[100:])
    clf.set_params(malignant=["mel", "bcc"]).conformalize(X[100:], y[100:])
    assert "classes 'bcc', 'mel'" in str(clf.certificate())
    P, y = population(rng, 300)
    np.testing.assert_array_equal(kind().conformalize(P, y).malignancy(P), P[:, 1])
    assert "class 1)" in str(kind().conformalize(P, y).certificate())


@pytest.mark.parametrize(("method", "needed"), [("crc", 19), ("rcps", 59)])
@pytest.mark.parametrize("n", [0, 4])
def test_too_few_malignant_cases_flag_everything_and_warn(method, needed, n):
    y = (np.arange(50) < n).astype(int)
    with pytest.warns(CalibrationSizeWarning, match=f"of 0.95, which takes {needed}: {n}; so every") as caught:
        clf = MalignancyClassifier(malignant=[1], method=method).conformalize(GOOD, y)
    assert caught[0].filename == __file__
    assert clf.flag(GOOD).all()
    assert f"{n} malignant cases are too few" in str(clf.certificate())
    assert f"malignant cases (n = {n}): 1, always" in str(clf.certificate())
    enough = MalignancyClassifier(malignant=[1], method=method)
    P, _ = population(np.random.default_rng(0), needed)
    assert np.isfinite(enough.conformalize(P, np.ones(needed, dtype=int)).threshold_)


@pytest.mark.parametrize("method", ["crc", "rcps"])
def test_malignant_units_count_once(method):
    """One malignant image of each lesion is drawn, whatever is benign beside it; the promise is for a new lesion."""
    rng = np.random.default_rng(0)
    P, y = population(rng, 600)
    units = rng.integers(0, 200, 600)
    clf = MalignancyClassifier(malignant=[1], method=method, random_state=3)
    alone = clf.conformalize(P, y).threshold_
    assert "several calibration cases of one patient or lesion" in str(clf.certificate())
    clf.conformalize(P, y, units=units)
    assert clf.n_malignant_ == len(np.unique(units[y == 1])) < y.sum()
    assert clf.threshold_ != alone
    text = str(clf.certificate())
    assert "drawn from a new patient or lesion that has one" in text
    assert "several calibration cases" not in text
    assert ("independent" in text) == (method == "rcps")
    assert ("exchangeable" in text) == (method == "crc")
    copies = clf.conformalize(np.tile(P, (5, 1)), np.tile(y, 5), units=np.tile(np.arange(600), 5)).threshold_
    assert copies == alone
    with pytest.raises(ValueError, match="units"):
        clf.conformalize(P, y, units=units[:5])


@pytest.mark.parametrize("method", ["crc", "rcps"])
def test_the_band_of_the_sensitivity_holds(method):
    """With p uniform among the malignant cases the sensitivity of a threshold is one less that threshold."""
    rng = np.random.default_rng(0)
    clf, inside = MalignancyClassifier(malignant=[1], method=method, risk_level=0.1), 0
    for _ in range(400):
        p = rng.random(100)
        clf.conformalize(np.stack([1 - p, p], axis=1), np.ones(100, dtype=int))
        inside += clf.condition_.low <= 1 - clf.threshold_ <= clf.condition_.high
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], 400, 0.9)
    assert low <= inside <= high
    clf.conformalize(np.full((100, 2), 0.5), np.ones(100, dtype=int))
    assert clf.condition_.high == 1


def test_the_certificate_says_why_nothing_is_released():
    rng = np.random.default_rng(0)
    P, y = population(rng, 3000)
    triage = ConformalTriage(malignant=[1], npv=0.5, ppv=0.1).conformalize(P, y)
    assert triage.release_threshold_ == -np.inf
    assert "nothing is released, since all that could be certified is urgent already" in str(triage.certificate())
    triage = ConformalTriage(malignant=[1], npv=0.9999, ppv=0.8).conformalize(P, y)
    assert "no threshold could be certified for 0.9999 benign" in str(triage.certificate())
    assert "several calibration cases" in str(triage.certificate())
    text = str(triage.conformalize(P, y, units=np.arange(3000) // 2).certificate())
    assert "1500 calibration cases, one of each patient or lesion," in text
    assert "several calibration cases" not in text
