"""Groups by several attributes, and groups with too few cases."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from test_conformal_properties import draw_cases

from cbdc import ConformalClassifier
from cbdc.conformal import least_n
from cbdc.conformal.groups import group_names
from cbdc.errors import CalibrationSizeWarning, ParameterError


def attributes(rng, n, sizes=(0.6, 0.3, 0.1)):
    return pd.DataFrame(
        {"skin_type": rng.choice(["I-II", "III-IV", "V-VI"], n, p=sizes), "sex": rng.choice(["female", "male"], n)}
    )


def calibrated(P, y, groups, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        return ConformalClassifier(condition_on="group", **options).conformalize(P, y, groups=groups)


def test_every_combination_of_attributes_is_a_group():
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 600, 3)
    table = attributes(rng, 600)
    clf = calibrated(P[:500], y[:500], table[:500])
    assert "skin_type=V-VI, sex=female" in clf.groups_.tolist()
    assert len(clf.groups_) == 6
    by_name = calibrated(P[:500], y[:500], [f"skin_type={a}, sex={b}" for a, b in table[:500].to_numpy()])
    np.testing.assert_array_equal(clf.calibration_.scores, by_name.calibration_.scores)
    np.testing.assert_array_equal(
        clf.predict_set(P[500:], groups=table[500:]),
        by_name.predict_set(P[500:], groups=[f"skin_type={a}, sex={b}" for a, b in table[500:].to_numpy()]),
    )
    plain = calibrated(P[:500], y[:500], table[:500].to_numpy())
    np.testing.assert_array_equal(plain.calibration_.counts, clf.calibration_.counts)
    assert "V-VI, female" in plain.groups_.tolist()


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 150), n_attributes=st.integers(1, 3))
def test_merged_groups_are_large_enough_and_named(seed, n, n_attributes):
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, n, 3)
    table = rng.choice(list("abcd"), (n, n_attributes), p=[0.7, 0.2, 0.07, 0.03])
    clf = calibrated(P, y, table if n_attributes > 1 else table[:, 0], small_groups="merge")
    counts = clf.calibration_.counts.ravel()
    assert counts.sum() == n
    assert (counts >= least_n(0.9)).all() or len(counts) == 1
    assert set(clf.merged_groups_.values()) <= set(clf.groups_.tolist())
    names = {", ".join(row) for row in table}
    kept = names - set(clf.merged_groups_)
    assert kept <= set(clf.groups_.tolist())
    sets = clf.predict_set(P, groups=table if n_attributes > 1 else table[:, 0])  # every known group has a row
    assert sets.shape == P.shape
    arrays, document = clf.get_state()
    again = ConformalClassifier.from_state(arrays, document)
    np.testing.assert_array_equal(again.predict_set(P, groups=table if n_attributes > 1 else table[:, 0]), sets)


def test_the_last_attribute_is_given_up_first():
    groups = np.array([["V", "f"]] * 5 + [["V", "m"]] * 5 + [["I", "f"]] * 20 + [["I", "m"]] * 4)
    P, y, _ = draw_cases(np.random.default_rng(0), len(groups), 2)
    clf = ConformalClassifier(condition_on="group", small_groups="merge")
    with pytest.warns(CalibrationSizeWarning, match="'V, f' into 'V, other'"):
        clf.conformalize(P, y, groups=groups)
    assert clf.merged_groups_["V, m"] == "V, other"
    assert clf.merged_groups_["I, m"] == clf.merged_groups_["I, f"] == "I, f or I, m"
    assert clf.n_calibration_[clf.merged_groups_["V, f"]] >= 10


def test_no_group_is_merged_by_its_name():
    """A real "other" keeps its cases, and a comma within a value makes no other combination of it."""
    P, y, _ = draw_cases(np.random.default_rng(0), 400, 3)
    groups = np.array(["other"] * 300 + ["A"] * 6 + ["B"] * 6 + ["C"] * 88)
    clf = calibrated(P, y, groups, small_groups="merge")
    assert clf.n_calibration_ == {"C": 88, "other": 300, "other (merged)": 12}
    assert clf.merged_groups_ == {"A": "other (merged)", "B": "other (merged)"}
    two = np.array([["head, neck", "left"]] * 200 + [["head", "neck, left"]] * 200)
    clf = calibrated(P, y, two)
    assert sorted(clf.n_calibration_.values()) == [200, 200]
    np.testing.assert_array_equal(clf._group_codes(two, 400) == clf._group_codes(two, 400)[0], np.arange(400) < 200)
    three = np.array([["V", "other"]] * 40 + [["V", "f"]] * 5 + [["V", "m"]] * 5 + [["I", "f"]] * 350)
    clf = calibrated(P, y, three, small_groups="merge")
    assert clf.n_calibration_ == {"I, f": 350, "V, other": 40, "V, other (merged)": 10}


def test_a_group_that_bears_the_name_of_merged_ones_was_not_calibrated():
    P, y, _ = draw_cases(np.random.default_rng(0), 112, 3)
    clf = calibrated(P, y, np.repeat(["A", "B", "C"], [6, 6, 100]), small_groups="merge")
    assert clf.groups_.tolist() == ["C", "other"]
    with pytest.raises(ParameterError, match=r"group 'other', which was not calibrated; known are 'A', 'B', 'C'"):
        clf.predict_set(P[:1], groups=["other"])
    assert clf.predict_set(P[:1], groups=["A"]).shape == (1, 3)


@given(rows=st.lists(st.lists(st.text("a, \\=", max_size=4), min_size=2, max_size=2), min_size=2, max_size=12))
def test_names_of_combinations_are_as_many_as_the_combinations(rows):
    table = np.array(rows)
    names = group_names(table, len(rows))[0]
    assert len(set(names)) == len({tuple(row) for row in table.tolist()})


def test_small_groups_can_be_refused():
    P, y, _ = draw_cases(np.random.default_rng(0), 60, 2)
    groups = np.repeat(["many", "few"], [55, 5])
    with pytest.raises(ParameterError, match=r"small_groups='refuse': too few.*group 'few': 5 cases.*merge groups"):
        calibrated(P, y, groups, small_groups="refuse")
    assert calibrated(P, y, groups, small_groups="warn").n_calibration_ == {"few": 5, "many": 55}


@pytest.mark.parametrize(
    ("options", "n", "small"),
    [
        ({}, 8, "calibration: 8 cases"),
        ({"condition_on": "class"}, 60, "class 2: 0 cases"),
        ({"condition_on": "class_and_group"}, 60, "class 2 in group 'a': 0 cases"),
        ({"guarantee": "pac"}, 28, "which takes 29"),
    ],
)
def test_refusing_holds_under_every_condition(options, n, small):
    P, y, _ = draw_cases(np.random.default_rng(0), n, 3)
    groups = ["a"] * n if options.get("condition_on") == "class_and_group" else None
    clf = ConformalClassifier(small_groups="refuse", **options)
    with pytest.raises(ParameterError, match=small):
        clf.conformalize(P, y % 2, groups=groups)
    with pytest.raises(NotFittedError):
        clf.predict_set(P)


@pytest.mark.parametrize("condition_on", [None, "class", "cluster"])
def test_merging_takes_groups(condition_on):
    P, y, _ = draw_cases(np.random.default_rng(0), 60, 3)
    with pytest.raises(ParameterError, match="small_groups='merge': it goes with condition_on='group'"):
        ConformalClassifier(condition_on=condition_on, small_groups="merge").conformalize(P, y)


def test_the_certificate_names_what_was_merged():
    """Twelve cases of a rare class are too few in either sex: no guarantee by sex is left."""
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 400, 2)
    y[:] = np.arange(400) < 12
    sex = np.array(["f", "m"] * 200)
    clf = ConformalClassifier(condition_on="class_and_group", small_groups="merge")
    with pytest.warns(CalibrationSizeWarning, match="no guarantee by group remains"):
        clf.conformalize(P, y, groups=sex)
    text = str(clf.certificate())
    assert "of each class together (all groups were merged, and none has a guarantee of its own)" in text
    assert "class 1 in group 'other' (merged: 'f', 'm') (n = 12)" in text
    assert clf.certificate() == ConformalClassifier.from_state(*clf.get_state()).certificate()
    clf = calibrated(P, y, np.array(["f"] * 380 + ["m"] * 14 + ["x"] * 6), small_groups="merge")
    text = str(clf.certificate())
    assert "not for each of them" in text
    assert "group 'm or x' (merged: 'm', 'x')" in text
    assert "merged" not in str(calibrated(P, y, sex).certificate())


def test_classes_that_no_merging_can_help_do_not_count():
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 400, 3)
    y[y == 2] = 0
    y[:3] = 2  # three cases in all: always in the set, whatever the groups
    groups = rng.choice(["a", "b"], 400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        clf = ConformalClassifier(condition_on="class_and_group", small_groups="merge")
        clf.conformalize(P, y, groups=groups)
    assert clf.merged_groups_ == {}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (pd.DataFrame({"sex": ["f", None] * 20}), "case 1 has none"),
        (pd.DataFrame({"sex": ["f"] * 39}), "shape"),
        (np.empty((40, 0)), "shape"),
        (None, "missing"),
    ],
)
def test_bad_groups_are_named(groups, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 40, 2)
    with pytest.raises(ParameterError, match=message):
        calibrated(P, y, groups)


def test_a_combination_that_was_not_calibrated_is_refused():
    rng = np.random.default_rng(0)
    P, y, _ = draw_cases(rng, 200, 2)
    table = attributes(rng, 200, sizes=(0.7, 0.3, 0.0))
    clf = calibrated(P, y, table, small_groups="merge")
    other = pd.DataFrame({"skin_type": ["V-VI"], "sex": ["male"]})
    with pytest.raises(ParameterError, match="was not calibrated"):
        clf.predict_set(P[:1], groups=other)
