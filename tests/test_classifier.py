"""From images to sets: the whole path, its model file and its refusals."""

import copy
import dataclasses
import json
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from cbdc import CBDCClassifier, LaplaceHead, make_lesions
from cbdc.backbones import FineTuner
from cbdc.errors import (
    DatasetError,
    ImageError,
    LeakageError,
    LeakageWarning,
    MissingWeightsError,
    ModelFileError,
    ParameterError,
)
from cbdc.heads import HEADS, PooledHead, TemperatureScaling, make_head
from cbdc.images import write_image
from cbdc.modelfile import read_modelfile, write_modelfile

LEVEL = 0.8


@pytest.fixture(scope="module")
def parts():
    lesions = make_lesions(420, image_size=64, random_state=0)
    return lesions.split(sizes=(0.5, 0.3, 0.2), random_state=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Embeddings that the tests share: the network is what takes time here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fitted(parts, cache):
    train, calibration, _ = parts
    clf = CBDCClassifier(condition_on=None, confidence_level=LEVEL, cache_dir=cache, random_state=0)
    return clf.fit(train).conformalize(calibration)


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    return fitted.save(tmp_path_factory.mktemp("model") / "m.cbdc", notes={"split": "mine"})


def test_predictions_agree_with_each_other(fitted, parts):
    test = parts[2]
    probabilities = fitted.predict_proba(test)
    assert probabilities.shape == (len(test), 7)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (fitted.predict(test.images) == fitted.classes_[probabilities.argmax(axis=1)]).all()
    narrow, wide = fitted.predict_set(test, 0.6), fitted.predict_set(test, 0.95)
    assert (narrow <= wide).all()
    assert narrow.sum() < wide.sum()
    assert (fitted.predict(test) == test.labels).mean() > np.mean(test.labels == "nv") - 0.05


def test_diagnosis_says_what_the_arrays_say(fitted, parts):
    images = parts[2].images[:5]
    sets, probabilities = fitted.predict_set(images), fitted.predict_proba(images)
    for row, inside, p in zip(fitted.diagnose(images), sets, probabilities, strict=True):
        assert set(row.prediction_set) == set(fitted.classes_[inside])
        np.testing.assert_allclose([row.probabilities[c] for c in fitted.classes_], p)
        assert {c for c, value in row.p_values.items() if value > 1 - LEVEL + 1e-12} == set(row.prediction_set)
        assert row.mutual_information <= row.entropy + 1e-9
        assert row.names["mel"] != "mel"
        assert json.loads(json.dumps(row.to_dict()))["status"] == "ok"
        assert "melanoma" in str(row)


def test_one_image_is_one_diagnosis_and_equals_the_batch(fitted, parts):
    images = parts[2].images[:3]
    batch = fitted.diagnose(images)
    for image, row in zip(images, batch, strict=True):
        alone = fitted.diagnose(image)
        assert alone.prediction_set == row.prediction_set
        np.testing.assert_allclose(list(alone.probabilities.values()), list(row.probabilities.values()), atol=1e-5)


def test_bad_images_are_refused_rows_in_their_place(fitted, parts, tmp_path):
    """A batch of 100 with 20 bad files: 100 rows in order, and the good ones as if the bad were not there."""
    test = parts[2]
    paths = []
    for i in range(100):
        if i % 5 == 3:
            paths.append(tmp_path / f"bad_{i}.png")
            paths[-1].write_bytes(b"" if i % 2 else b"%PDF-1.7 not an image")
        else:
            paths.append(write_image(test.images[i % len(test)], tmp_path / f"good_{i}.png"))
    rows = fitted.diagnose(paths)
    assert [row.image for row in rows] == [path.name for path in paths]
    assert [row.status for row in rows] == ["refused" if i % 5 == 3 else "ok" for i in range(100)]
    good = [path for i, path in enumerate(paths) if i % 5 != 3]
    sets = fitted.predict_set(good)
    for row, inside in zip([row for row in rows if row.status == "ok"], sets, strict=True):
        assert set(row.prediction_set) == set(fitted.classes_[inside])
    refused = [row for row in rows if row.status == "refused"]
    assert all(row.reason and row.prediction_set == () and row.probabilities == {} for row in refused)
    assert all(str(tmp_path) not in row.reason for row in rows)
    with pytest.raises(ImageError, match=r"bad_3\.png"):
        fitted.predict_set(paths)


def test_all_bad_and_empty_batches(fitted, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    assert [row.status for row in fitted.diagnose([tmp_path / "bad.png"] * 2)] == ["refused", "refused"]
    assert fitted.diagnose([]) == []


@pytest.mark.parametrize("n_copies", [1, 5])
def test_images_of_training_are_known_by_their_embeddings(n_copies, parts, cache):
    train, calibration, _ = parts
    clf = CBDCClassifier(condition_on=None, confidence_level=LEVEL, cache_dir=cache, random_state=0).fit(train)
    images = [*calibration.images, *(train.images[0],) * n_copies]  # one may be chance
    labels = [*calibration.labels, *(train.labels[0],) * n_copies]
    with warnings.catch_warnings():
        warnings.simplefilter("error" if n_copies == 1 else "ignore", LeakageWarning)
        clf.conformalize(images, labels)
    with pytest.warns(LeakageWarning, match=f"{len(train)} of {len(train)} calibration images are ones"):
        clf.conformalize(list(train.images), train.labels)
    with pytest.warns(LeakageWarning, match=f"{len(train)} of"):
        clf.conformalize([image.copy() for image in train.images], train.labels)


def test_a_level_in_percent_and_an_empty_calibration_are_told(parts, fitted, cache):
    with pytest.raises(ParameterError, match=r"confidence_level: got 95; expected a number strictly between 0 and 1"):
        CBDCClassifier(confidence_level=95, cache_dir=cache).fit(parts[0])
    with pytest.raises(ParameterError, match="no calibration images"):
        copy.copy(fitted).conformalize([], [])


def test_labels_beside_a_data_set_are_refused(parts, fitted, cache):
    train, calibration, test = parts
    for call in (
        lambda: CBDCClassifier(cache_dir=cache).fit(train, train.labels),
        lambda: copy.copy(fitted).conformalize(calibration, calibration.labels),
        lambda: fitted.score(test, test.labels),
    ):
        with pytest.raises(ParameterError, match="brings its own labels"):
            call()


def test_a_column_of_groups_that_is_not_there_is_told_before_the_fit(parts, cache):
    clf = CBDCClassifier(condition_on="group", group_by="gender", cache_dir=cache)
    with pytest.raises(DatasetError, match="no such column"):
        clf.fit(parts[0])
    assert not hasattr(clf, "head_")


def test_out_of_order_and_leakage_are_refused(parts, fitted, cache):
    train, calibration, _ = parts
    with pytest.raises(NotFittedError, match="conformalize"):
        CBDCClassifier(cache_dir=cache).fit(train.take(np.arange(80))).predict_set(calibration.images[:1])
    with pytest.raises(NotFittedError):
        CBDCClassifier(cache_dir=cache).predict(calibration.images[:1])
    with pytest.raises(LeakageError):
        copy.copy(fitted).fit(train).conformalize(train)


def test_what_the_model_was_made_from_is_no_test_data(parts, fitted, saved, cache):
    train, calibration, test = parts
    fitted.check_unseen(test)
    for seen in (train, calibration, calibration.take(np.arange(0, len(calibration), 2))):
        with pytest.raises(LeakageError):
            fitted.check_unseen(seen)
    loaded = CBDCClassifier.load(saved, cache_dir=cache)
    for seen in (train, calibration):
        with pytest.raises(LeakageError, match="data of the model"):
            loaded.check_unseen(seen)
    with pytest.raises(LeakageError, match="training data"):
        loaded.conformalize(train)


def test_a_new_fit_forgets_what_the_loaded_model_was_made_from(parts, saved, cache):
    loaded = CBDCClassifier.load(saved, cache_dir=cache)
    loaded.notes_ = {"fingerprint": parts[0].fingerprint}
    with pytest.raises(LeakageError, match="whole data"):
        loaded.check_unseen(parts[0], parts=())
    loaded.fit(parts[1]).check_unseen(parts[0])
    with pytest.raises(LeakageError):
        loaded.check_unseen(parts[1])


def test_score_is_accuracy_and_slips_are_told_before_the_work(parts, fitted):
    test = parts[2]
    assert fitted.score(test) == fitted.score(test.images, test.labels) == np.mean(fitted.predict(test) == test.labels)
    for slip in ({"score": "foo"}, {"condition_on": "clas"}, {"confidence_level": 90.0}, {"group_by": "sex"}):
        with pytest.raises(ValueError, match=next(iter(slip))):
            CBDCClassifier(**slip).fit(["no image is read"] * 2, ["mel", "nv"])


@pytest.mark.parametrize("name", ["laplace", "ensemble"])
def test_the_head_is_told_which_images_are_of_one_lesion(name, parts, cache):
    train, _, test = parts
    clf = {
        by: CBDCClassifier(head=name, weigh_by=by, cache_dir=cache, random_state=0).fit(train)
        for by in ("image", "unit")
    }
    E, Q = (clf["image"].embedder_.transform(part.images) for part in (train, test))
    assert len(np.unique(train.groups())) < len(train)
    for by, groups in (("image", None), ("unit", train.groups())):
        head = make_head(name, random_state=0).fit(E, train.labels, groups=groups)
        np.testing.assert_array_equal(clf[by].predict_proba(test), head.predict_proba(Q))
    assert np.abs(clf["unit"].predict_proba(test) - clf["image"].predict_proba(test)).max() > 0.01


def test_units_that_cannot_be_told_are_refused(parts):
    images, labels = ["no image is read"] * 2, ["mel", "nv"]
    with pytest.raises(ParameterError, match="weigh_by='lesion': expected"):
        CBDCClassifier(weigh_by="lesion").fit(images, labels)
    with pytest.raises(ParameterError, match="weigh_by='unit' needs a LesionDataset"):
        CBDCClassifier(weigh_by="unit").fit(images, labels)
    with pytest.raises(ParameterError, match="LogisticRegression takes no groups"):
        CBDCClassifier(head=LogisticRegression(), weigh_by="unit").fit(parts[0])


def test_level_of_the_constructor_may_be_changed(parts, fitted):
    images, other = parts[2].images[:20], copy.copy(fitted)
    other.confidence_level = 0.6
    assert [set(row.prediction_set) for row in other.diagnose(images)] == [
        set(other.classes_[inside]) for inside in other.predict_set(images)
    ]
    np.testing.assert_array_equal(other.predict_set(images), fitted.predict_set(images, 0.6))


def test_real_models_are_not_calibrated_on_made_lesions(parts, fitted):
    clf = copy.copy(fitted)
    clf.provenance_ = {"training": {"synthetic": False}}
    with pytest.raises(DatasetError, match="made images"):
        clf.conformalize(parts[1])


def test_groups_without_a_condition_on_them_are_refused(parts, fitted):
    with pytest.raises(ParameterError, match="groups: condition_on=None takes none"):
        copy.copy(fitted).conformalize(parts[1], groups=["a"] * len(parts[1]))


def test_group_conditional_uses_the_column(parts, cache):
    train, calibration, test = parts
    clf = CBDCClassifier(
        condition_on="group", group_by="skin_type", confidence_level=LEVEL, cache_dir=cache, random_state=0
    )
    clf.fit(train)
    with pytest.warns(UserWarning, match="group"):
        clf.conformalize(calibration.take(np.arange(30)))
    clf.conformalize(calibration)
    assert (clf.predict_set(test) == clf.predict_set(test.images, groups=test.frame["skin_type"])).all()
    rows = clf.diagnose(test.images[:3], groups=[1, 9, None])
    assert [row.status for row in rows] == ["ok", "refused", "refused"]
    assert "group 9: not calibrated; known are 1.0" in rows[1].reason
    given = copy.copy(clf).conformalize(calibration, groups=calibration.frame["skin_type"].to_numpy())
    assert (given.predict_set(test) == clf.predict_set(test)).all()
    with pytest.raises(ParameterError, match=r"1 of \d+ images have none"):
        copy.copy(clf).conformalize(calibration, groups=np.r_[np.nan, calibration.frame["skin_type"][1:]])
    clf.group_by = "no_such_column"
    with pytest.raises(DatasetError, match="no_such_column"):
        clf.predict_set(test)


def test_any_scikit_learn_head(parts, cache, tmp_path):
    train, calibration, test = parts
    clf = CBDCClassifier(head=LogisticRegression(max_iter=2000), condition_on=None, cache_dir=cache, random_state=0)
    clf.fit(train).conformalize(calibration)
    assert np.isnan(clf.diagnose(test.images[0]).mutual_information)
    with pytest.raises(ModelFileError, match="pickle"):
        clf.save(tmp_path / "m.cbdc")


def test_clone_keeps_parameters(fitted):
    assert clone(fitted).get_params() == fitted.get_params()


def test_saved_model_predicts_the_same(fitted, saved, parts, cache):
    loaded = CBDCClassifier.load(saved, cache_dir=cache)
    test = parts[2]
    np.testing.assert_array_equal(loaded.predict_proba(test), fitted.predict_proba(test))
    for level in (0.5, 0.8, 0.95):
        np.testing.assert_array_equal(loaded.predict_set(test, level), fitted.predict_set(test, level))
    assert loaded.diagnose(test.images[0]) == fitted.diagnose(test.images[0])
    assert loaded.notes_ == {"split": "mine"}
    assert loaded.taxonomy_ == fitted.taxonomy_


def test_images_in_a_series_are_taken_by_position(parts, cache):
    """A shuffled index, as train_test_split leaves it, must not pair images with other labels."""
    train, _, test = parts
    rows = np.random.default_rng(0).permutation(len(train))
    images = pd.Series([train.images[i] for i in rows], index=rows)
    labels = pd.Series(train.labels[rows], index=rows)
    fine_tune = FineTuner(epochs=1, augment=None)
    clf = CBDCClassifier(image_size=32, fine_tune=fine_tune, random_state=0)
    as_series, as_list = clone(clf).fit(images, labels), clone(clf).fit(list(images), list(labels))
    np.testing.assert_array_equal(as_series.predict_proba(test.images), as_list.predict_proba(test.images))


def test_a_refit_that_fails_leaves_nothing_of_the_fit_before(parts, cache):
    train, calibration, _ = parts
    clf = CBDCClassifier(condition_on=None, confidence_level=LEVEL, cache_dir=cache, random_state=0)
    clf.fit(train).conformalize(calibration)
    with pytest.raises(ImageError):
        clf.fit(["no file"] * 4, ["mel", "nv"] * 2)
    with pytest.raises(NotFittedError):
        clf.certificate()
    with pytest.raises(NotFittedError):
        clf.predict_proba(train.images[:1])


def test_a_loaded_model_knows_the_head_that_was_asked_for(parts, cache, tmp_path):
    train, calibration, _ = parts
    head = LaplaceHead(feature_map="hellinger", class_weight="balanced")
    clf = CBDCClassifier(head=head, condition_on=None, confidence_level=LEVEL, cache_dir=cache, random_state=0)
    path = clf.fit(train).conformalize(calibration).save(tmp_path / "m.cbdc")
    loaded = CBDCClassifier.load(path, cache_dir=cache)
    assert loaded.head.get_params() == head.get_params()
    again = CBDCClassifier.load(loaded.save(tmp_path / "again.cbdc"), cache_dir=cache)
    assert again.head.get_params() == head.get_params()


def test_a_calibrated_head_keeps_its_information(parts, cache):
    train, calibration, test = parts
    head = TemperatureScaling(LaplaceHead(), cv=2)
    clf = CBDCClassifier(head=head, condition_on=None, confidence_level=LEVEL, cache_dir=cache, random_state=0)
    row = clf.fit(train).conformalize(calibration).diagnose(test.images[0])
    embeddings = clf.embedder_.transform(test.images[:1])
    assert row.mutual_information == pytest.approx(clf.head_.mutual_information(embeddings)[0])
    assert row.entropy == pytest.approx(clf.head_.predictive_entropy(embeddings)[0])


def test_the_default_head_is_pooled_over_a_frozen_network(parts, cache):
    head = CBDCClassifier(cache_dir=cache, random_state=0).fit(parts[0]).head_
    assert type(head) is PooledHead
    assert head.feature_map == "hellinger"


@pytest.mark.parametrize("head", ["dirichlet", "dropout", "ensemble", "gp", "swag"])
def test_other_heads_go_the_whole_way(head, parts, cache, tmp_path):
    train, calibration, test = parts
    given = make_head(head, n_steps=100) if head == "dropout" else head  # a quick one
    clf = CBDCClassifier(head=given, condition_on=None, confidence_level=LEVEL, cache_dir=cache, random_state=0)
    clf.fit(train).conformalize(calibration)
    loaded = CBDCClassifier.load(clf.save(tmp_path / "m.cbdc"), cache_dir=cache)
    assert type(loaded.head_) is HEADS[head]
    np.testing.assert_array_equal(loaded.predict_proba(test), clf.predict_proba(test))
    np.testing.assert_array_equal(loaded.predict_set(test), clf.predict_set(test))
    row = loaded.diagnose(test.images[0])
    assert 0 <= row.mutual_information <= row.entropy + 1e-9
    assert 0.6 < np.mean(clf.predict_set(test)[np.arange(len(test)), np.searchsorted(clf.classes_, test.labels)]) <= 1


def test_model_file_holds_no_identifier(fitted, saved, parts):
    content = saved.read_bytes()
    for column in ("image", "patient_id", "lesion_id"):
        for value in parts[0].frame[column].astype(str).head(20):
            assert value.encode() not in content


def rewrite(path, target, change):
    arrays, document = read_modelfile(path)
    change(arrays, document)
    return write_modelfile(target, arrays, document)


def test_golden_prediction_is_replayed_on_load(saved, tmp_path):
    def other_head(arrays, _):
        name = next(n for n in arrays if n.startswith("head.") and arrays[n].size > 100 and arrays[n].dtype.kind == "f")
        arrays[name] = arrays[name] * 1.5

    def other_network(arrays, _):
        arrays["golden.embedding"] = arrays["golden.embedding"] + 1

    def other_weights(_, document):
        document["embedder_fingerprint"] = "0" * 64

    def other_class_order(_, document):
        for head in document["head"]["heads"]:
            head["classes"] = head["classes"][::-1]

    def other_scores(arrays, _):
        arrays["conformal.scores"] = arrays["conformal.scores"] - 1

    for i, (change, message) in enumerate(
        [
            (other_head, "not repeated"),
            (other_scores, "p_values is not repeated"),
            (other_network, "embeds the golden image differently"),
            (other_weights, "other weights"),
            (other_class_order, "class"),
            (lambda arrays, _: arrays.pop("golden.embedding"), "missing"),
        ]
    ):
        with pytest.raises(ModelFileError, match=message):
            CBDCClassifier.load(rewrite(saved, tmp_path / f"{i}.cbdc", change))


def test_model_file_names_no_folder(fitted, saved, tmp_path):
    other = copy.copy(fitted)
    other.weights = tmp_path / "jane_doe" / "weights.pth"
    path = other.save(tmp_path / "m.cbdc")
    assert b"jane_doe" not in path.read_bytes()
    with pytest.raises(MissingWeightsError, match="weights=FILE"):
        CBDCClassifier.load(path)


def test_load_takes_only_parameters_of_the_machine(saved):
    with pytest.raises(TypeError, match="confidence_level"):
        CBDCClassifier.load(saved, confidence_level=0.5)


def test_eight_threads_at_once_give_the_serial_result(fitted, parts):
    images = parts[2].images[:8]
    serial = [dataclasses.replace(fitted.diagnose(image)) for image in images]
    rows = [None] * 8

    def work(i):
        rows[i] = fitted.diagnose(images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows == serial
