"""The properties of every conformal predictor, of those beside `ConformalClassifier`, each score and kind of rows.

Coverage is checked without chance: given the cases, each in turn is the new one with its probability under the
assumption, and the mean of what is covered is at least the level. Without ties it exceeds it by one case at most.
"""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from test_conformal_properties import OPTIONS

from cbdc import metrics as m
from cbdc.conformal import (
    ConditionalConformalClassifier,
    CovariateShiftConformalClassifier,
    LabelShiftConformalClassifier,
    MonteCarloConformalClassifier,
    OnlineConformalClassifier,
    SyntheticPoweredConformalClassifier,
)
from cbdc.errors import CalibrationSizeWarning

seeds = st.integers(0, 2**32 - 1)
levels = st.sampled_from([0.3, 0.5, 0.8, 0.9])
rows_of_a_kind = st.sampled_from(["smooth", "sharp", "one-hot", "votes"])
every_score = pytest.mark.parametrize("options", OPTIONS)
few = settings(max_examples=4)


class Cases(NamedTuple):
    """Probabilities, labels, overlapping groups, shares of opinions; prevalences of the classes; another source."""

    P: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    shares: np.ndarray
    prevalences: np.ndarray
    source: tuple

    def at(self, rows):
        return self._replace(P=self.P[rows], y=self.y[rows], groups=self.groups[rows], shares=self.shares[rows])

    def permuted(self, order):
        Q, z = self.source
        back = np.argsort(order)
        moved = {name: getattr(self, name)[..., order] for name in ("P", "shares", "prevalences")}
        return self._replace(y=back[self.y], source=(Q[:, order], back[z]), **moved)

    def narrowed(self):
        return self._replace(P=self.P.astype(np.float32), source=(self.source[0].astype(np.float32), self.source[1]))


def draw(rng, n, n_classes, kind="smooth"):
    def rows(n):
        z = rng.standard_normal((n, n_classes))
        P = softmax(20 * z if kind == "sharp" else 1.5 * z, axis=1)
        if kind == "one-hot":
            P = np.eye(n_classes)[P.argmax(axis=1)]
        if kind == "votes":
            P = rng.multinomial(7, P) / 7
        y = (softmax(z, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
        return P, np.minimum(y, n_classes - 1)

    P, y = rows(n)
    shares = (np.eye(n_classes)[y] + rng.multinomial(3, np.full(n_classes, 1 / n_classes), n)) / 4
    prevalences = rng.dirichlet(np.full(n_classes, 4.0), 2)  # of the source, and of the target
    return Cases(P, y, rng.random((n, 2)) < 0.5, shares, prevalences, rows(25))


def confident(P):
    """Weights that depend on the row, not on the order of the classes."""
    return 0.2 + np.max(P, axis=1).astype(float)


class Room(NamedTuple):
    """How one is calibrated and asked, and with which weight each case is the new one, given all of them."""

    kind: type
    conformalize: callable
    weight: callable = lambda cases: np.ones(len(cases.y))
    of_groups: bool = False
    p_values: bool = True
    spare: float = 1.0  # cases, of the heaviest, by which coverage may exceed the level


ROOMS = {
    "conditional": Room(
        ConditionalConformalClassifier,
        lambda clf, c: clf.conformalize(c.P, c.y, c.groups),
        of_groups=True,
        p_values=False,
        spare=3.0,
    ),
    "covariate shift": Room(
        CovariateShiftConformalClassifier,
        lambda clf, c: clf.conformalize(c.P, c.y, weights=confident),
        lambda c: confident(c.P),
    ),
    "label shift": Room(
        LabelShiftConformalClassifier,
        lambda clf, c: clf.conformalize(c.P, c.y, c.prevalences[0]).adapt(prevalence=c.prevalences[1]),
        lambda c: (c.prevalences[1] / c.prevalences[0])[c.y],
    ),
    "opinions": Room(MonteCarloConformalClassifier, lambda clf, c: clf.conformalize(c.P, c.shares)),
    "online": Room(OnlineConformalClassifier, lambda clf, c: clf.conformalize(c.P, c.y)),
    "two sources": Room(
        SyntheticPoweredConformalClassifier,
        lambda clf, c: clf.conformalize(c.P, c.y, source=c.source),
        p_values=False,
    ),
}
every_room = pytest.mark.parametrize("room", [pytest.param(room, id=name) for name, room in ROOMS.items()])
every_room_of_one_threshold = pytest.mark.parametrize(  # two quantile regressions may cross
    "room", [pytest.param(room, id=name) for name, room in ROOMS.items() if name != "conditional"]
)


def calibrated(room, cases, level=0.8, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)  # of weights, which these tests make on purpose
        return room.conformalize(room.kind(confidence_level=level, **options), cases)


def predict(room, clf, cases, level=None):
    groups = (cases.groups,) if room.of_groups else ()
    return clf.predict_set(cases.P, *groups, *(() if level is None else (level,)))


# --- property 1: coverage


@few
@every_room
@every_score
@given(seed=seeds, level=levels, kind=rows_of_a_kind)
def test_each_case_in_turn_is_covered_as_often_as_promised(room, options, seed, level, kind):
    n = 12
    cases = draw(np.random.default_rng(seed), n, 3, kind)
    weights, covered = room.weight(cases), np.zeros(n)
    for i in range(n):
        clf = calibrated(room, cases.at(np.arange(n) != i), level, **options)
        found = predict(room, clf, cases.at([i]))[0]
        covered[i] = found @ cases.shares[i] if room.kind is MonteCarloConformalClassifier else found[cases.y[i]]
    least, most = level, level * weights.sum() + room.spare * weights.max()
    if room.kind is SyntheticPoweredConformalClassifier:
        least, most = clf.bounds()[0], clf.bounds()[1] * n
    within = [np.ones(n, dtype=bool), *(cases.groups.T if room.of_groups else ())]
    for member in within:
        assert (weights * covered)[member].sum() >= least * weights[member].sum() - 1e-9
    if kind == "smooth" and options["score"] in ("lac", "rank"):  # which do not tie
        assert (weights * covered).sum() <= most + 1e-9


@every_room
@pytest.mark.parametrize("score", ["lac", "aps", "rank"])
def test_coverage_over_calibration_draws_is_inside_its_band(room, score):
    """One new case for each of many calibrations, drawn by its weight: the count of the covered is binomial."""
    rng = np.random.default_rng(0)
    runs, n, covered = 200, 20, 0.0
    for _ in range(runs):
        cases = draw(rng, n + 30, 3)
        weights = room.weight(cases)
        if room.kind is LabelShiftConformalClassifier:  # labels of the source's prevalences are drawn first
            cases, weights = of_prevalences(rng, cases), None
        new = n + (0 if weights is None else rng.choice(30, p=weights[n:] / weights[n:].sum()))
        clf = calibrated(room, cases.at(np.arange(n)), score=score)
        found = predict(room, clf, cases.at([new]))[0]
        drawn = rng.choice(3, p=cases.shares[new]) if room.kind is MonteCarloConformalClassifier else cases.y[new]
        covered += found[drawn]
    low, high = m.clopper_pearson(covered, runs, 1 - 1e-6)
    promised = clf.bounds()[0] if room.kind is SyntheticPoweredConformalClassifier else 0.8
    assert promised <= high
    assert low <= promised + 0.15


def of_prevalences(rng, cases):
    """Labels of the first 20 by the source's prevalences, then by the target's; rows of one law given the label."""
    source, target = cases.prevalences
    y = np.append(rng.choice(3, 20, p=source), rng.choice(3, 30, p=target))
    return cases._replace(y=y, P=softmax(1.5 * np.eye(3)[y] + rng.standard_normal((50, 3)), axis=1))


# --- property 2: a label alone, in calibration, is scored as among all labels


@few
@every_room
@every_score
@given(seed=seeds, kind=rows_of_a_kind, level=levels, narrow=st.booleans())
def test_a_case_like_all_others_is_covered(room, options, seed, kind, level, narrow):
    """Calibrated on copies of one case the set holds its label, whose score ties with theirs but for a rounding."""
    cases = draw(np.random.default_rng(seed), 1, 5, kind)
    cases = cases._replace(shares=np.eye(5)[cases.y], source=(np.repeat(cases.P, 25, axis=0), np.repeat(cases.y, 25)))
    cases = cases.narrowed() if narrow else cases
    clf = calibrated(room, cases.at(np.zeros(25, dtype=int)), level, **options)
    assert predict(room, clf, cases)[0, cases.y[0]]


# --- property 3: a batch equals its cases one by one, whatever their order


@few
@every_room
@every_score
@given(seed=seeds, kind=rows_of_a_kind, narrow=st.booleans())
def test_a_batch_equals_its_cases_one_by_one(room, options, seed, kind, narrow):
    cases = draw(np.random.default_rng(seed), 60, 4, kind)
    cases = cases.narrowed() if narrow else cases
    clf, new = calibrated(room, cases.at(np.arange(40)), **options), cases.at(np.arange(40, 60))
    batch = predict(room, clf, new)
    alone = [predict(room, clf, new.at([i]))[0] for i in range(20)]
    np.testing.assert_array_equal(alone, batch)
    np.testing.assert_array_equal(predict(room, clf, new.at(np.arange(20)[::-1]))[::-1], batch)


# --- property 4: nested in the level, and p-values say the same


@few
@every_room_of_one_threshold
@every_score
@given(seed=seeds, kind=rows_of_a_kind)
def test_sets_are_nested_and_p_values_give_them(room, options, seed, kind):
    cases = draw(np.random.default_rng(seed), 50, 3, kind)
    old, new = cases.at(np.arange(30)), cases.at(np.arange(30, 50))
    smaller = np.zeros((20, 3), dtype=bool)
    for level in (0.05, 0.3, 0.5, 2 / 3, 0.8, 0.9, 0.99):
        clf = calibrated(room, old, level, **options)
        sets = predict(room, clf, new)
        if room.kind is not OnlineConformalClassifier:  # which has one level
            np.testing.assert_array_equal(predict(room, calibrated(room, old, 0.5, **options), new, level), sets)
        if room.p_values:
            p_values = clf.p_values(new.P)
            clear = np.abs(p_values - (1 - level)) > 1e-9
            np.testing.assert_array_equal(sets[clear], p_values[clear] > 1 - level)
        assert (smaller <= sets).all()
        smaller = sets


# --- permutations


@few
@every_room
@every_score
@given(seed=seeds, kind=rows_of_a_kind, level=levels)
def test_a_permutation_of_the_classes_permutes_the_sets(room, options, seed, kind, level):
    rng = np.random.default_rng(seed)
    cases, order = draw(rng, 50, 4, kind), rng.permutation(4)
    found = []
    for given_cases in (cases, cases.permuted(order)):
        clf = calibrated(room, given_cases.at(np.arange(35)), level, **options)
        found.append(predict(room, clf, given_cases.at(np.arange(35, 50))))
    np.testing.assert_array_equal(found[1], found[0][:, order])


@few
@every_room
@every_score
@given(seed=seeds, kind=rows_of_a_kind, level=levels)
def test_the_order_of_calibration_cases_never_matters(room, options, seed, kind, level):
    rng = np.random.default_rng(seed)
    cases = draw(rng, 50, 3, kind)
    new = cases.at(np.arange(35, 50))
    one = predict(room, calibrated(room, cases.at(np.arange(35)), level, **options), new)
    other = predict(room, calibrated(room, cases.at(rng.permutation(35)), level, **options), new)
    np.testing.assert_array_equal(one, other)
