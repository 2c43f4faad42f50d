"""A calibration that was saved: nothing that get_state did not give is taken back."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import IsolationForest
from sklearn.naive_bayes import GaussianNB
from test_conformal import Sharp
from test_conformal_properties import conformalized, draw_cases

from cbdc import ConformalClassifier
from cbdc.conformal import (
    ConditionalConformalClassifier,
    ConformalOutlierDetector,
    ConformalTriage,
    CovariateShiftConformalClassifier,
    DriftMonitor,
    LabelShiftConformalClassifier,
    MalignancyClassifier,
    MonteCarloConformalClassifier,
    OnlineConformalClassifier,
    SyntheticPoweredConformalClassifier,
)
from cbdc.errors import CalibrationSizeWarning, ParameterError
from cbdc.modelfile import read_modelfile, write_modelfile


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


# --- the other estimators, through a model file and back


def weigh(X):
    return np.asarray(X)[:, 0] + 0.1


def _label_shift(P, y, rng):
    return LabelShiftConformalClassifier(score="raps").conformalize(P, y).adapt(P[:20])


def _covariate_shift(P, y, rng):
    return CovariateShiftConformalClassifier(score="aps", cv=2).conformalize(P, y, target=P[: len(P) // 2])


def _covariate_weights(P, y, rng):
    return CovariateShiftConformalClassifier().conformalize(P, y, weights=weigh)


def _synthetic(P, y, rng):
    return SyntheticPoweredConformalClassifier(score="rank").conformalize(P[:9], y[:9], source=(P[9:], y[9:]))


def _ambiguous(P, y, rng):
    return MonteCarloConformalClassifier(n_draws=3).conformalize(P, P)


def _online(P, y, rng):
    clf = OnlineConformalClassifier(method=rng.choice(["expanding", "aci", "pid"]), window=int(rng.integers(1, 99)))
    clf.conformalize(P[:20], y[:20]).predict_set(P[20:])
    return clf.partial_conformalize(P[25:], y[25:])  # five are still awaited


def _conditional(P, y, rng):
    return ConditionalConformalClassifier(score="aps").conformalize(P, y, P[:, :2] > 0.3)


def _triage(P, y, rng):
    return ConformalTriage(malignant=[0], npv=0.5, ppv=0.5).conformalize(P, y)


def _malignancy(P, y, rng):
    return MalignancyClassifier(malignant=[0], method=rng.choice(["crc", "rcps"])).conformalize(P, y)


def predictions(clf, P):
    """All that it says of these cases."""
    if hasattr(clf, "predict_triage"):
        return [clf.predict_triage(P)]
    if hasattr(clf, "flag"):
        return [clf.flag(P)]
    if isinstance(clf, ConditionalConformalClassifier):
        return [clf.predict_set(P, P[:, :2] > 0.3), clf.predict_set(P, P[:, :2] > 0.3, 0.7)]
    if isinstance(clf, OnlineConformalClassifier):
        told = clf.partial_conformalize(P, np.zeros(len(P), dtype=int))
        return [told.predict_set(P), told.p_values(P), np.array([told.n_missed_, told.n_unasked_, told.delay_])]
    return [clf.predict_set(P), clf.predict_set(P, 0.7), *([clf.p_values(P)] if hasattr(clf, "p_values") else [])]


MADE = {
    made.__name__[1:]: made
    for made in (
        _label_shift,
        _covariate_shift,
        _covariate_weights,
        _synthetic,
        _ambiguous,
        _online,
        _conditional,
        _triage,
        _malignancy,
    )
}


def saved_and_loaded(clf, folder, **others):
    return type(clf).from_state(*read_modelfile(write_modelfile(folder / "m.cbdc", *clf.get_state())), **others)


@pytest.mark.filterwarnings("ignore::cbdc.errors.CalibrationSizeWarning")
@pytest.mark.parametrize("name", MADE)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(40, 80), dtype=st.sampled_from([np.float32, np.float64]))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_saved_calibration_predicts_the_same_bits(tmp_path, name, seed, n, dtype):
    rng = np.random.default_rng(seed)
    P = rng.dirichlet(np.ones(3), n).astype(dtype)
    P[rng.random(n) < 0.2] = P[0]  # ties
    y = np.append([0, 1, 2], rng.integers(0, 3, n - 3))
    clf = MADE[name](P, y, rng)
    again = saved_and_loaded(clf, tmp_path, **({"weigh": weigh} if name == "covariate_weights" else {}))
    assert str(again.certificate()) == str(clf.certificate())
    new = np.concatenate([P[:30], rng.dirichlet(np.ones(3), 5).astype(dtype)])
    for before, after in zip(predictions(clf, new), predictions(again, new), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("scorer", ["knn", "mahalanobis", IsolationForest(n_estimators=10, random_state=0)])
def test_a_saved_outlier_detector_gives_the_same_bits(tmp_path, scorer):
    E = np.random.default_rng(0).standard_normal((90, 3))
    detector = ConformalOutlierDetector(scorer, delta=0.1).fit(E[:40]).conformalize(E[40:70])
    own = {} if isinstance(scorer, str) else {"scorer": detector.scorer_}
    again = saved_and_loaded(detector, tmp_path, **own)
    np.testing.assert_array_equal(again.p_values(E), detector.p_values(E))
    assert str(again.certificate()) == str(detector.certificate())
    with pytest.raises(ParameterError, match="scorer: expected"):
        ConformalOutlierDetector.from_state(*detector.get_state(), **({} if own else {"scorer": detector}))


@pytest.mark.parametrize("betting", ["jumper", "power"])
def test_a_saved_monitor_goes_on_where_it_was(tmp_path, betting):
    scores = np.random.default_rng(0).integers(0, 9, 200)
    monitor = DriftMonitor(betting=betting, random_state=3).update_scores(scores[:100])
    again = saved_and_loaded(monitor, tmp_path)
    assert again.update_scores(scores[100:]).history_ == monitor.update_scores(scores[100:]).history_
    assert saved_and_loaded(DriftMonitor(), tmp_path).n_seen_ == 0


def test_a_domain_classifier_of_yours_is_given_again(tmp_path):
    P = np.random.default_rng(0).dirichlet(np.ones(3), 90)
    clf = CovariateShiftConformalClassifier(domain_classifier=GaussianNB()).conformalize(
        P[:60], np.zeros(60, dtype=int), target=P[60:]
    )
    again = saved_and_loaded(clf, tmp_path, weigh=clf.domain_classifier_)
    np.testing.assert_array_equal(again.predict_set(P), clf.predict_set(P))
    with pytest.raises(ParameterError, match="weigh: expected the fitted domain_classifier_"):
        saved_and_loaded(clf, tmp_path)


def other_damage():
    def array(name, change):
        return lambda arrays, document: arrays.update({name: change(arrays[name])})

    def kept(**values):
        return lambda arrays, document: document["kept"].update(values)

    def parameter(**values):
        return lambda arrays, document: document["parameters"].update(values)

    yield "label_shift", lambda a, d: d.update(estimator="ConformalClassifier"), "it is of 'ConformalClassifier'"
    yield "label_shift", lambda a, d: d.update(seed=-1), "seed and n_classes"
    yield "label_shift", lambda a, d: d.update(seed="0"), "seed is '0'"
    yield "label_shift", lambda a, d: d.update(n_classes=4), "_means|prevalence|_counts"
    yield "label_shift", lambda a, d: d.update(log=True), "predict_log_proba"
    yield "label_shift", parameter(method="best"), "'method' parameter"
    yield "label_shift", parameter(window=3), "are not those of"
    yield "label_shift", array("calibration_.0", lambda a: a[::-1].copy()), "ascending"
    yield "label_shift", array("calibration_.1", lambda a: a + 7), "columns of classes"
    yield "label_shift", array("_counts", lambda a: a + 1), "_counts: expected"
    yield "label_shift", array("prevalence_", lambda a: 2 * a), "sum to 1"
    yield "label_shift", lambda a, d: a.pop("prevalence_"), "'prevalence_' is missing"
    yield "covariate_shift", array("weights_", lambda a: -a), "0 or more"
    yield "covariate_shift", array("_recalibration.1", lambda a: a + 1), "probabilities that rise"
    yield "covariate_shift", array("calibration_.weights", lambda a: a * 2), "weights from 0 to 1"
    yield "covariate_shift", array("weights_", lambda a: a.astype(int)), "kind 'f'"
    yield "synthetic", array("calibration_.0", lambda a: a[:0]), "one local case"
    yield "ambiguous", kept(n_calibration_=7), "sum to the number of cases"
    yield "ambiguous", kept(n_calibration_="7"), "n_calibration_: expected int"
    yield "online", array("_recent", lambda a: np.full_like(a, np.nan)), "NaN"
    yield "online", parameter(confidence_level=0.5), "level_: expected"
    yield "online", kept(n_missed_=10**6), "up to those seen"
    yield "conditional", array("calibration_.0", lambda a: a + 0.5), "whole steps"
    yield "conditional", array("calibration_.1", lambda a: a + 1), "memberships"
    yield "conditional", array("n_calibration_", lambda a: a + 1), "cases of each group"
    yield "conditional", kept(groups_=["all"]), "name for each group"
    yield "triage", array("urgent_threshold_", lambda a: np.array(-np.inf)), "less than the urgent one"
    yield "triage", array("malignant_", lambda a: ~a), "columns of the classes in malignant"
    yield "malignancy", array("threshold_", lambda a: a - np.inf), "minus infinity exactly if"
    yield "malignancy", kept(by_unit_=1), "by_unit_: expected bool"


@pytest.mark.filterwarnings("ignore::cbdc.errors.CalibrationSizeWarning")
@pytest.mark.parametrize(("name", "damage", "message"), list(other_damage()))
def test_another_damaged_state_is_refused(name, damage, message):
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.ones(3), 200)
    clf = MADE[name](P, rng.integers(0, 3, 200), rng)
    arrays, document = clf.get_state()
    type(clf).from_state(arrays, document)
    damage(arrays, document)
    with pytest.raises(ValueError, match=message):
        type(clf).from_state(arrays, document)
