"""A calibration that was saved: nothing that get_state did not give is taken back."""

import numpy as np
import pytest
from test_conformal import Sharp
from test_conformal_properties import conformalized, draw_cases

from cbdc import ConformalClassifier
from cbdc.errors import CalibrationSizeWarning, ParameterError


def damaged_states():
    """Name of each kind of damage, what it does to (arrays, document), and the message."""

    def array(name, change):
        return lambda arrays, document: arrays.update({name: change(arrays[name])})

    def entry(**values):
        return lambda arrays, document: document.update(values)

    def put(place, value):
        return lambda a: np.where(np.arange(a.size).reshape(a.shape) == place, value, a)

    yield "score", entry(score="best"), "score is 'best'"
    yield "condition", entry(condition_on="patient"), "condition_on is 'patient'"
    yield "randomized", entry(randomized="no"), "randomized is 'no'"
    yield "repeated", entry(repeated="two"), "repeated is 'two'"
    yield "units", entry(repeated="hierarchical"), "units: they go with"
    yield "seed", entry(seed=-1), "seed"
    yield "level", entry(confidence_level=1.5), "confidence_level"
    yield "classes", entry(n_classes=4), "counts"
    yield "log", entry(log=True), "predict_log_proba"
    yield "absent entry", lambda arrays, document: document.pop("seed"), "'seed' is missing"
    yield "absent array", lambda arrays, document: arrays.pop("counts"), "'counts' is missing"
    yield "absent groups", lambda arrays, document: document.pop("groups"), "does not fit its groups"
    yield "groups without condition", entry(condition_on="class"), "does not fit its groups"
    yield "group twice", entry(groups=["a", "a"]), "each of them once"
    yield "one group more", entry(groups=["a", "b", "c"]), "counts"
    yield "condition of another shape", entry(condition_on="group"), "counts"
    yield "2-d scores", array("scores", lambda a: a[:, None]), "scores"
    yield "whole scores", array("scores", lambda a: a.astype(int)), "scores"
    yield "NaN", array("scores", put(3, np.nan)), "number 3 is nan"
    yield "infinity", array("scores", put(3, np.inf)), "number 3 is inf"
    yield "logarithm", array("scores", put(0, -np.inf)), "number 0 is -inf"
    yield "order", array("scores", put(1, -1.0)), "number 1 is out of order"
    yield "a score less", array("scores", lambda a: a[:-1]), "sum to the 89 scores"
    yield "flat counts", array("counts", np.ravel), "counts"
    yield "broken counts", array("counts", lambda a: a.astype(float)), "counts"
    yield "negative count", array("counts", lambda a: a + np.array([[0, 0, 0], [0, 99, -99]])), "counts"


@pytest.mark.parametrize(("damage", "message"), [pytest.param(*rest, id=name) for name, *rest in damaged_states()])
def test_a_damaged_state_is_refused(damage, message):
    P, y, _ = draw_cases(np.random.default_rng(0), 90, 3)
    clf = conformalized(P, y, np.repeat(["a", "b"], 45), condition_on="class_and_group")
    arrays, document = clf.get_state()
    damage(arrays, document)
    with pytest.raises(ParameterError, match=message):
        ConformalClassifier.from_state(arrays, document)


def test_a_state_may_hold_logarithms_of_zero_and_empty_conditions():
    Z = np.where(np.arange(3) == np.arange(40)[:, None] % 2, 0.0, -1e4)
    clf = ConformalClassifier(Sharp(), score="aps", randomized=False, condition_on="class").fit(-Z, np.arange(40) % 3)
    with pytest.warns(CalibrationSizeWarning):
        clf.conformalize(Z, np.zeros(40, dtype=int))
    arrays, document = clf.get_state()
    assert np.isneginf(arrays["scores"]).any()
    again = ConformalClassifier.from_state(arrays, document, estimator=clf.estimator_)
    np.testing.assert_array_equal(again.predict_set(Z), clf.predict_set(Z))
