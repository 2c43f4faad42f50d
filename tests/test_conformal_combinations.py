"""Options of the conformal classifier together: guarantees, conditions, units, several attributes, merged groups."""

import json
import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformal_properties import draw_cases, groups_for, predict

from cbdc import ConformalClassifier
from cbdc.conformal import SCORES, pac_rank
from cbdc.conformal.scores import score_labels
from cbdc.errors import CalibrationSizeWarning
from cbdc.metrics import conformal_rank, exact_level

GROUPWISE = ("group", "class_and_group")


@st.composite
def settings_of(draw, units=None):
    """Parameters that go together, and whether cases come in units."""
    found = {
        "score": draw(st.sampled_from(sorted(SCORES))),
        "randomized": draw(st.booleans()),
        "condition_on": draw(st.sampled_from([None, "class", *GROUPWISE])),
        "confidence_level": draw(st.sampled_from([0.5, 0.8, 0.9])),
        "guarantee": draw(st.sampled_from(["marginal", "pac"])),
    }
    units = draw(st.booleans()) if units is None else units
    if found["guarantee"] == "pac":
        found |= {"window": draw(st.sampled_from([None, 20])), "repeated": "one"}
        found["delta"] = draw(st.sampled_from([0.05, 0.3]))
    elif units:
        found["repeated"] = draw(st.sampled_from(["one", "hierarchical"]))
    if found["condition_on"] in GROUPWISE and draw(st.booleans()):
        found["small_groups"] = "merge"
    return found, units


def attributes(rng, n, n_attributes):
    table = rng.choice(["a", "b", "c"], (n, n_attributes), p=[0.6, 0.3, 0.1])
    return table if n_attributes > 1 else table[:, 0]


def calibrated(options, P, y, groups, units):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationSizeWarning)
        return ConformalClassifier(**options).conformalize(P, y, groups=groups_for(options, groups), units=units)


@settings(max_examples=150)
@given(
    drawn=settings_of(),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(5, 90),
    n_attributes=st.integers(1, 3),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_options_go_together(drawn, seed, n, n_attributes, dtype):
    options, by_unit = drawn
    rng = np.random.default_rng(seed)
    P, y, _ = draw_cases(rng, n + 12, 3)
    P = P.astype(dtype)
    groups = attributes(rng, n + 12, n_attributes)
    groups[n:] = groups[:12][rng.integers(0, min(n, 12), 12)]  # all of them calibrated
    units = rng.integers(0, n, n) if by_unit else None
    if by_unit and options["repeated"] == "one" and options["condition_on"] in GROUPWISE:
        groups[:] = groups[0]  # of the drawn cases; one group is there whatever the draw
    clf = calibrated(options, P[:n], y[:n], groups[:n], units)
    test = {"X": P[n:], "groups": groups[n:]}

    # p-values give the sets, which are nested; a batch is its cases one by one; a saved calibration is the same
    p_values, smaller = clf.p_values(**test), np.zeros((12, 3), dtype=bool)
    arrays, document = clf.get_state()
    again = ConformalClassifier.from_state(arrays, json.loads(json.dumps(document)))
    np.testing.assert_array_equal(again.p_values(**test), p_values)
    assert str(again.certificate()) == str(clf.certificate())
    for level in (0.3, 0.5, 0.8, 0.9, 0.95):
        sets, limit = predict(clf, confidence_level=level, **test), float(1 - exact_level(level))
        clear = np.abs(p_values - limit) > (1e-9 if options["guarantee"] == "pac" and not options["window"] else 0)
        np.testing.assert_array_equal(sets[clear], p_values[clear] > limit)
        assert (smaller <= sets).all()
        smaller = sets
        np.testing.assert_array_equal(predict(again, confidence_level=level, **test), sets)
        alone = [predict(clf, P[[i]], level, groups=groups[[i]])[0] for i in range(n, n + 3)]
        np.testing.assert_array_equal(alone, sets[:3])

    # every threshold is the score of its rank among the units of its condition
    level, conditions = options["confidence_level"], clf.certificate().conditions
    assert sum(c.n for c in conditions) <= n
    rows = clf._group_codes(groups[:n], n)
    columns = np.zeros(n, dtype=int) if clf.columns_ is None else y[:n]
    cells = rows * clf.calibration_.counts.shape[1] + columns
    scores = score_labels(values=P[:n], labels=y[:n], calibration=True, **clf._scoring)
    for cell, (condition, limit) in enumerate(zip(conditions, clf.thresholds().ravel(), strict=True)):
        inside = cells == cell
        if not by_unit:
            assert condition.n == inside.sum()
        elif options["repeated"] == "hierarchical":
            assert condition.n == len(set(units[inside]))
        if condition.approximate or (by_unit and options["repeated"] == "one"):
            continue
        rank = conformal_rank(condition.n, level)
        if options["guarantee"] == "pac":
            rank = pac_rank(condition.n, level, options["delta"], options["window"])
        assert condition.rank == min(rank, condition.n + 1)
        assert limit == (-np.inf if rank > condition.n else np.sort(scores[inside])[-rank])

    # the order of the cases does not matter
    order = rng.permutation(n)
    if options.get("repeated") != "one" or not by_unit:
        other = calibrated(options, P[order], y[order], groups[order], None if units is None else units[order])
        np.testing.assert_array_equal(other.thresholds(), clf.thresholds())


@settings(max_examples=80)
@given(drawn=settings_of(units=True), seed=st.integers(0, 2**32 - 1), n_attributes=st.integers(1, 2))
def test_leaving_out_each_unit(drawn, seed, n_attributes):
    """Within every condition: the mean share of a unit's cases that the other units' threshold covers is the level."""
    options, _ = drawn
    options = {k: v for k, v in options.items() if k not in ("window", "delta", "small_groups")}
    options |= {"guarantee": "marginal", "repeated": "hierarchical"}
    rng = np.random.default_rng(seed)
    units = np.sort(rng.integers(0, 9, 24))
    P, y, _ = draw_cases(rng, 24, 2)
    P[::3] = P[0]
    groups = attributes(rng, 24, n_attributes)
    names = np.array(["".join(row) for row in groups]) if n_attributes > 1 else groups
    covered = np.zeros(24, dtype=bool)
    for unit in np.unique(units):
        out = units == unit
        if options["condition_on"] in GROUPWISE:
            covered[out] = ~np.isin(names[out], names[~out])  # a group that was not calibrated promises nothing
            out &= np.isin(names, names[~out])
        if not out.any() or (units == unit).all():
            continue
        rest = units != unit
        clf = calibrated(options, P[rest], y[rest], groups[rest], units[rest])
        covered[out] = predict(clf, P[out], groups=groups[out])[np.arange(out.sum()), y[out]]
    by_class, by_group = options["condition_on"] in ("class", "class_and_group"), options["condition_on"] in GROUPWISE
    cells = np.array([f"{a}|{b}" for a, b in zip(y * by_class, names if by_group else [""] * 24)])
    for cell in np.unique(cells):
        inside = cells == cell
        shares = [covered[inside & (units == unit)].mean() for unit in np.unique(units[inside])]
        assert np.mean(shares) >= options["confidence_level"] - 1e-12
