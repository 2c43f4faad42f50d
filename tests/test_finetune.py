"""Fine-tuning: what is held out, losses, rates, freezing, resuming, and the way through `CBDCClassifier`."""

import dataclasses
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from cbdc import CBDCClassifier, ImageEmbedder, LaplaceHead, LesionDataset, make_lesions
from cbdc.backbones import FineTuner, augment, create_backbone, finetune, training
from cbdc.backbones.augment import Augmenter
from cbdc.backbones.finetune import hold_out
from cbdc.backbones.losses import LOSSES, Loss
from cbdc.backbones.weights import state_sha256
from cbdc.cli import main
from cbdc.errors import ConvergenceError, DatasetError, ImageError, LeakageWarning, ModelFileError, ParameterError
from cbdc.heads import LinearPool, LogarithmicPool
from cbdc.images import write_image

SIZE = 32


def quick(**parameters):
    parameters = {
        "epochs": 1,
        "augment": None,
        "random_state": 0,
        "precision": "float32",
        "batch_size": 16,
    } | parameters
    return FineTuner(ImageEmbedder(image_size=SIZE), **parameters)


def plain_images(n=48, seed=0):
    """Bright and dark squares, and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return (rng.integers(0, 60, (n, SIZE, SIZE, 3)) + 150 * y[:, None, None, None]).astype(np.uint8), y


@pytest.fixture(scope="module")
def tuned():
    X, y = plain_images()
    return quick(epochs=8, ema_decay=0.5, blocks=3).fit(X, y), X, y


# --- what is held out


@st.composite
def labelled_groups(draw):
    """Class indices and groups of which every class has at least two of its own."""
    n_classes = draw(st.integers(2, 4))
    codes, groups = [], []
    for k in range(n_classes):
        for _ in range(draw(st.integers(2, 6))):
            size = draw(st.integers(1, 3))
            codes += [k] * size
            groups += [len(set(groups))] * size
    order = draw(st.permutations(range(len(codes))))
    return np.array(codes)[order], np.array(groups)[order]


@given(labelled_groups(), st.floats(0.05, 0.95), st.integers(0, 10))
def test_whole_groups_are_held_out_and_each_class_is_on_either_side(data, fraction, seed):
    codes, groups = data
    classes = np.unique(codes)
    held_out = hold_out(codes, groups, fraction, classes, seed)
    rest = np.setdiff1d(np.arange(len(codes)), held_out)
    assert not set(groups[held_out]) & set(groups[rest])
    assert set(codes[held_out]) == set(codes[rest]) == set(classes)
    for k in classes:
        n = len(set(groups[codes == k]))
        assert len(set(groups[held_out][codes[held_out] == k])) == np.clip(round(fraction * n), 1, n - 1)
    np.testing.assert_array_equal(held_out, hold_out(codes, groups, fraction, classes, seed))


def test_a_class_of_one_lesion_cannot_be_split():
    with pytest.raises(DatasetError, match="class df: 1 lesion among"):
        hold_out(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), 0.2, np.array(["df", "nv"]), 0)


def test_a_group_of_two_classes_counts_for_the_rarer():
    codes, groups = np.array([0, 1, 0, 0, 0, 1]), np.array([0, 0, 1, 2, 3, 4])
    held_out = hold_out(codes, groups, 0.5, np.array(["nv", "mel"]), 0)
    assert len(set(groups[held_out]) & {0, 4}) == 1


def test_a_class_seen_only_beside_a_rarer_one_goes_along():
    codes = np.array([0, 0, 1, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4])
    held_out = hold_out(codes, groups, 0.3, np.array(["bkl", "mel", "nv"]), 0)
    assert set(codes[held_out]) == set(np.delete(codes, held_out)) == {0, 1, 2}
    codes, groups = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 0, 1, 2])
    seed = next(seed for seed in range(100) if np.random.default_rng(seed).permutation(3)[0] == 2)
    with pytest.raises(DatasetError, match="class bkl: 2 lesions, tied to one side by rarer classes"):
        hold_out(codes, groups, 0.3, np.array(["bkl", "mel"]), seed)


# --- losses


@given(st.integers(0, 100))
def test_losses_are_those_of_the_papers(seed):
    rng = np.random.default_rng(seed)
    z, y, counts = rng.normal(size=(8, 3)), rng.integers(0, 3, 8), np.array([50, 7, 1200])
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    log_p_y = log_p[np.arange(8), y]
    adjusted = z + np.log(counts / counts.sum())
    weights = (1 - 0.999) / (1 - 0.999**counts)
    weights /= weights @ counts / counts.sum()
    expected = {
        "cross_entropy": -log_p_y,
        "class_balanced": -weights[y] * log_p_y,
        "focal": -((1 - np.exp(log_p_y)) ** 2) * log_p_y,
        "logit_adjusted": -(adjusted[np.arange(8), y] - np.log(np.exp(adjusted).sum(axis=1))),
    }
    for name in LOSSES:
        found = Loss(name, counts)(torch.from_numpy(z), torch.from_numpy(y)).numpy()
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-7)
    smooth = Loss("cross_entropy", counts, 0.3)(torch.from_numpy(z), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(smooth, -0.7 * log_p_y - 0.3 * log_p.mean(axis=1), rtol=1e-6)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ParameterError, match="loss: got 'hinge'"):
        Loss("hinge", np.array([1, 2]))


# --- rates and stages


def settings_of(**changes):
    return quick(**changes)._settings(0)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_rates_rise_to_the_peak_and_fall_to_nothing(schedule):
    chosen = settings_of(schedule=schedule, warmup=0.1)
    rates = np.array([training._rate(t, chosen) for t in np.linspace(0, 1, 1001)])
    peak = rates.argmax()
    assert rates[0] == pytest.approx(0.04)
    assert rates[peak] == pytest.approx(1)
    assert peak == {"cosine": 100, "one_cycle": 300}[schedule]
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()


def test_without_warmup_the_first_rate_is_the_peak():
    assert training._rate(0.0, settings_of(warmup=0)) == 1


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "densenet121"])
def test_stages_are_all_of_the_network_in_order(name):
    network = create_backbone(name, "random").network
    stages = training.stages_of(network)
    assert len(stages) > 5
    assert [id(p) for stage in stages for p in stage.parameters()] == [id(p) for p in network.parameters()]


def test_rates_fall_towards_the_image_and_vectors_do_not_decay():
    backbone = create_backbone("efficientnet_lite0", "random", image_size=SIZE)
    X, y = plain_images(8)
    data = training.Data(X, y, np.arange(6), np.arange(6, 8), X[6:])
    run = training._Run(
        backbone, data, settings_of(layer_decay=0.5), Loss("cross_entropy", np.array([3, 3])), None, "cpu"
    )
    rate = {id(p): group["peak"] for group in run._optimiser.param_groups for p in group["params"]}
    depth = [rate[id(next(stage.parameters()))] for stage in training.stages_of(backbone.network)]
    np.testing.assert_allclose(depth, 2e-3 * 0.5 ** np.arange(len(depth), 0, -1))
    for group in run._optimiser.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


# --- what is shown


def test_what_an_image_becomes_depends_on_it_and_the_epoch_alone():
    store = np.random.default_rng(0).integers(0, 256, (5, 37, 37, 3), dtype=np.uint8)
    augmenter = Augmenter(finetune.LIGHT, 3, seed=1)
    together = augmenter.batch(store, np.arange(5), 2, (32, 32))
    alone = np.concatenate([augmenter.batch(store, np.array([i]), 2, (32, 32)) for i in range(5)])
    np.testing.assert_array_equal(together, alone)
    assert together.shape == (5, 32, 32, 3)
    assert (together != augmenter.batch(store, np.arange(5), 3, (32, 32))).any(axis=(1, 2, 3)).all()


def test_a_warp_shows_the_same_colours():
    store = np.full((3, 37, 37, 3), (200, 120, 90), dtype=np.uint8)
    shown = Augmenter((), 1, 0).batch(store, np.arange(3), 0, (32, 32))
    np.testing.assert_array_equal(shown, store[:, :32, :32])


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_a_warp_keeps_shapes_and_shows_on_average_the_whole_image(size):
    """Any turn keeps angles and lengths in pixels, and half of the images are farther than the image itself."""
    draws = [turn_of(seed, size) for seed in range(400)]
    zooms = [np.sqrt(abs(np.linalg.det(turn))) for turn in draws]
    for turn, zoom in zip(draws, zooms, strict=True):
        np.testing.assert_allclose(turn @ turn.T, zoom**2 * np.eye(2), atol=1e-5)
    assert abs(np.mean(np.log(zooms))) < 4 * np.std(np.log(zooms)) / 20
    assert min(zooms) < 0.85
    assert max(zooms) > 1.18


def turn_of(seed, size):
    """The linear part of a warp, from pixels to pixels."""
    height, width = size
    theta = augment._affine(np.random.default_rng(seed), size)[:, :2]
    return theta * np.array([[width], [height]]) / np.array([width, height])


def test_the_images_of_an_epoch_grow_to_the_size_of_the_input():
    settings = settings_of(first_size=128, epochs=5)
    sizes = [training.size_of_epoch(number, settings, (224, 224))[0] for number in range(5)]
    assert sizes == [128, 160, 192, 192, 224]
    assert training.size_of_epoch(0, settings_of(), (100, 140)) == (100, 140)


def test_growing_images_are_trained_on(monkeypatch):
    seen = []
    step = training._Run.step
    monkeypatch.setattr(training._Run, "step", lambda run, x, *rest: (seen.append(x.shape), step(run, x, *rest))[1])
    X, y = plain_images(12)
    for options in ({}, {"augment": finetune.LIGHT}):
        tuner = quick(epochs=2, first_size=32, **options).set_params(embedder__image_size=64).fit(X, y)
        assert {shape[1:] for shape in seen} == {(32, 32, 3), (64, 64, 3)}
        assert tuner.embedder_.backbone_.input_size == (64, 64)
        seen.clear()
    with pytest.raises(ParameterError, match="first_size: got 64 for an input of 32"):
        quick(first_size=64).fit(X, y)


def test_without_augmentation_the_whole_image_is_trained_on(monkeypatch):
    """As the embedder shows it: the bright border counts."""
    X, y = plain_images(12)
    X[:, :2] = X[:, -2:] = 255
    seen = []
    step = training._Run.step
    monkeypatch.setattr(training._Run, "step", lambda run, x, *rest: (seen.append(x.numpy()), step(run, x, *rest))[1])
    tuner = quick().fit(X, y)
    trained = np.setdiff1d(np.arange(12), tuner.held_out_)
    assert sorted(x.tobytes() for x in np.concatenate(seen)) == sorted(X[i].tobytes() for i in trained)


# --- training


def test_it_learns_what_can_be_learnt(tuned):
    tuner, X, y = tuned
    assert [row["epoch"] for row in tuner.history_] == list(range(1, 9))
    assert tuner.history_[-1]["loss"] < tuner.history_[0]["loss"]
    logits = tuner.transform(X) @ tuner.coef_.T + tuner.intercept_ + tuner.offset_
    assert np.mean(tuner.classes_[logits.argmax(axis=1)] == y) >= 0.9


def test_the_best_epoch_is_kept_and_its_history_is_what_the_network_does(tuned):
    tuner, X, y = tuned
    nll = [row["held_out_nll"] for row in tuner.history_]
    assert tuner.best_epoch_ == 1 + int(np.argmin(nll))
    logits = tuner.transform(X[tuner.held_out_]) @ tuner.coef_.T + tuner.intercept_
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert -log_p[np.arange(len(log_p)), y[tuner.held_out_]].mean() == pytest.approx(min(nll), abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"loss": "logit_adjusted", "mixup": 0.3, "augment": ["brightness"]}])
def test_a_seed_gives_a_network_and_leaves_other_generators_alone(options):
    X, y = plain_images(12)
    before = torch.get_rng_state()
    first, again, other = (quick(random_state=seed, **options).fit(X, y).embedder_ for seed in (0, 0, 1))
    assert first.fingerprint_ == again.fingerprint_ != other.fingerprint_
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_stages_do_not_change():
    X, y = plain_images(12)
    start = create_backbone("efficientnet_lite0", image_size=SIZE).network
    for blocks in (0, 2):
        network = quick(blocks=blocks).fit(X, y).embedder_.backbone_.network
        n = len(training.stages_of(network))
        for i, (old, new) in enumerate(zip(training.stages_of(start), training.stages_of(network), strict=True)):
            same = all(
                torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True)
            )
            assert same == (i < n - blocks)


def test_a_run_that_was_killed_goes_on_to_the_same_network(tmp_path, monkeypatch):
    X, y = plain_images(16)
    options = {"epochs": 3, "mixup": 0.2, "augment": ["contrast"], "loss": "class_balanced"}
    whole = quick(**options).fit(X, y)
    path = tmp_path / "run.checkpoint"

    def die(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    killed = quick(checkpoint=path, verbose=True, **options)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "_print_row", die)
        with pytest.raises(KeyboardInterrupt):
            killed.fit(X, y)
    resumed = quick(checkpoint=path, **options).fit(X, y)
    assert resumed.embedder_.fingerprint_ == whole.embedder_.fingerprint_
    for name in ("loss", "held_out_nll"):
        assert [row[name] for row in resumed.history_] == [row[name] for row in whole.history_]
    with pytest.raises(ModelFileError, match="of another run"):
        quick(checkpoint=path, **(options | {"mixup": 0.1})).fit(X, y)
    with pytest.raises(ModelFileError, match="of another run"):
        quick(checkpoint=path, **options).fit(X[::-1], y[::-1])


def test_the_last_network_is_kept_where_asked(tmp_path, monkeypatch):
    """The likelihood was best in the first epoch; a run taken up at its end gives the same."""
    X, y = plain_images(16)
    nll = iter([1.0, 2.0])
    look = training._Run._look
    monkeypatch.setattr(training._Run, "_look", lambda run: look(run) | {"held_out_nll": next(nll)})
    path = tmp_path / "run.checkpoint"
    best = quick(epochs=2, checkpoint=path).fit(X, y)
    last = quick(epochs=2, checkpoint=path, keep="last").fit(X, y)
    assert best.best_epoch_ == last.best_epoch_ == 1
    assert best.embedder_.fingerprint_ != last.embedder_.fingerprint_
    proba = softmax(last.transform(X) @ last.coef_.T + last.intercept_, axis=1)[last.held_out_]
    accuracy = np.mean(proba.argmax(axis=1) == y[last.held_out_])
    assert accuracy == pytest.approx(last.history_[-1]["held_out_accuracy"])


def test_patience_ends_a_run(monkeypatch):
    X, y = plain_images(12)
    nll = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    look = training._Run._look
    monkeypatch.setattr(training._Run, "_look", lambda run: look(run) | {"held_out_nll": next(nll)})
    tuner = quick(epochs=5, patience=2).fit(X, y)
    assert len(tuner.history_) == 4
    assert tuner.best_epoch_ == 2


def test_a_budget_lowers_the_epochs(monkeypatch):
    X, y = plain_images(12)
    monkeypatch.setattr(finetune, "seconds_per_image", lambda *_: 1.0)
    held_out = len(quick().fit(X, y).held_out_)
    an_epoch = 12 - held_out + 0.3 * held_out
    assert quick(epochs=9, minutes=2.5 * an_epoch / 60).fit(X, y).n_epochs_ == 2
    assert quick(epochs=2, minutes=1000).fit(X, y).n_epochs_ == 2
    assert quick(epochs=2, minutes=0.001).fit(X, y).n_epochs_ == 1


def test_the_speed_is_measured_on_a_copy():
    backbone = create_backbone("efficientnet_lite0", image_size=SIZE)
    X, y = plain_images(8)
    data = training.Data(X, y, np.arange(6), np.arange(6, 8), X[6:])
    seconds = training.seconds_per_image(backbone, data, settings_of(), Loss("cross_entropy", np.array([3, 3])))
    assert 0 < seconds < 60
    assert state_sha256(backbone.network) == backbone.weights_sha256


def test_bfloat16_where_the_processor_has_it():
    X, y = plain_images(12)
    can = finetune._computes_bfloat16()
    assert quick(precision="auto").fit(X, y).precision_ == ("bfloat16" if can else "float32")
    if not can:
        with pytest.raises(ParameterError, match="no such arithmetic"):
            quick(precision="bfloat16").fit(X, y)


def test_a_loss_that_is_not_finite_ends_the_run():
    X, y = plain_images(12)
    with pytest.raises(ConvergenceError, match="loss is not finite in epoch 1"):
        quick(learning_rate=1e30, layer_decay=1.0).fit(X, y)


def test_a_checkpoint_knows_what_was_shown_and_what_was_planned(tmp_path, monkeypatch):
    X, y = plain_images(12)
    path = tmp_path / "run.checkpoint"
    speeds = iter([0.1, 100.0])
    monkeypatch.setattr(finetune, "seconds_per_image", lambda *_: next(speeds))
    first = quick(checkpoint=path, epochs=2, minutes=1).fit(X, y)
    again = quick(checkpoint=path, epochs=2, minutes=1).fit(X, y)
    assert again.n_epochs_ == first.n_epochs_ == 2
    assert again.embedder_.fingerprint_ == first.embedder_.fingerprint_
    other = quick(checkpoint=path, epochs=2)
    other.set_params(embedder=ImageEmbedder(image_size=SIZE, color_constancy="shades_of_gray"))
    with pytest.raises(ModelFileError, match="of another run"):
        other.fit(X, y)
    with pytest.raises(ParameterError, match="needs a seed"):
        quick(checkpoint=path, random_state=None).fit(X, y)


def test_numbers_of_numpy_and_a_remainder_of_one(tmp_path):
    X, y = plain_images(12)
    options = {"epochs": np.int64(1), "batch_size": np.int64(2), "blocks": np.int64(1), "validation_fraction": 0.25}
    tuner = quick(checkpoint=tmp_path / "c", **options).fit(X[:9], y[:9])
    assert (9 - len(tuner.held_out_)) % 2 == 1


@pytest.mark.parametrize("name", ["y", "groups"])
def test_missing_labels_and_groups_are_refused(name):
    X, y = plain_images(8)
    values = {"y": y.astype(float), "groups": np.arange(8.0)}
    values[name][3] = np.nan
    with pytest.raises(ValueError, match=f"{name}: 1 of 8 are missing"):
        quick().fit(X, **values)


# --- bad input


def test_bad_input_is_told():
    X, y = plain_images(8)
    with pytest.raises(ValueError, match="y is missing"):
        quick().fit(X)
    with pytest.raises(ValueError, match=r"y: got shape \(7,\) for 8 images"):
        quick().fit(X, y[:7])
    with pytest.raises(ValueError, match=r"groups: got shape \(3,\)"):
        quick().fit(X, y, groups=[1, 2, 3])
    with pytest.raises(DatasetError, match="one class only, 0"):
        quick().fit(X, np.zeros(8, dtype=int))
    with pytest.raises(ParameterError, match=r"augment: \['snow'\] unknown"):
        quick(augment=["snow"]).fit(X, y)
    with pytest.raises(ImageError, match="1 of 8 images refused"):
        quick().fit([b"no image", *X[1:]], y)
    with pytest.raises(ValueError, match="'epochs' parameter"):
        quick(epochs=0).fit(X, y)


def test_a_network_that_takes_no_other_size_says_so():
    with pytest.raises(ParameterError, match="image_size: backbone 'vit_b_16' takes no images of 96 x 96"):
        create_backbone("vit_b_16", "random", image_size=96)


# --- through the classifier


@pytest.fixture(scope="module")
def lesions():
    data = make_lesions(90, image_size=48, random_state=0)
    return data.split(random_state=0)


def test_the_head_sees_what_was_held_out_alone(lesions, tmp_path):
    train, calibration, test = lesions
    clf = CBDCClassifier(
        image_size=SIZE,
        n_views=2,
        fine_tune=FineTuner(epochs=1),
        condition_on=None,
        confidence_level=0.8,
        random_state=0,
    )
    clf.fit(train)
    (tuner,) = clf.fine_tuners_
    expected = LogarithmicPool(LaplaceHead(random_state=0), tuner.coef_, tuner.intercept_ + tuner.offset_).fit(
        clf.embedder_.transform([train.images[i] for i in tuner.held_out_]), train.labels[tuner.held_out_]
    )
    embeddings = clf.embedder_.transform(test.images)
    np.testing.assert_array_equal(clf.predict_proba(test.images), expected.predict_proba(embeddings))
    groups = train.groups()
    assert not set(groups[tuner.held_out_]) & set(np.delete(groups, tuner.held_out_))
    clf.conformalize(calibration)
    loaded = CBDCClassifier.load(clf.save(tmp_path / "m.cbdc"))
    np.testing.assert_array_equal(loaded.predict_set(test.images), clf.predict_set(test.images))
    again = CBDCClassifier.load(loaded.save(tmp_path / "again.cbdc"))
    np.testing.assert_array_equal(again.predict_proba(test.images), clf.predict_proba(test.images))
    assert loaded.provenance_["fine_tuning"] == [
        {
            "n_trained": len(train) - len(tuner.held_out_),
            "n_held_out": len(tuner.held_out_),
            "n_epochs": 1,
            "best_epoch": 1,
            "precision": tuner.precision_,
        }
    ]
    assert json.dumps(loaded.provenance_)


def test_an_ensemble_averages_networks_that_hold_out_other_lesions(lesions, tmp_path):
    train, calibration, test = lesions
    clf = CBDCClassifier(
        ["efficientnet_lite0", "efficientnet_lite0"],
        image_size=SIZE,
        fine_tune=FineTuner(epochs=1, checkpoint=tmp_path / "run.checkpoint"),
        condition_on=None,
        confidence_level=0.8,
        random_state=0,
    ).fit(train)
    assert {path.name for path in tmp_path.iterdir()} == {"run.checkpoint", "run-1.checkpoint"}
    with pytest.raises(ModelFileError, match=r"run\.checkpoint: no model of CBDCClassifier"):
        CBDCClassifier.load(tmp_path / "run.checkpoint")
    first, second = clf.fine_tuners_
    assert set(first.held_out_) != set(second.held_out_)
    apart = []
    for seed, tuner in enumerate(clf.fine_tuners_):
        alone = FineTuner(ImageEmbedder(image_size=SIZE), epochs=1, random_state=seed).fit(train)
        np.testing.assert_array_equal(alone.coef_, tuner.coef_)
        held_out = alone.transform([train.images[i] for i in alone.held_out_])
        pool = LogarithmicPool(LaplaceHead(random_state=0), alone.coef_, alone.intercept_ + alone.offset_)
        apart.append(pool.fit(held_out, train.labels[alone.held_out_]).predict_proba(alone.transform(test.images)))
    np.testing.assert_allclose(clf.predict_proba(test.images), np.mean(apart, axis=0), atol=1e-6)
    clf.conformalize(calibration)
    loaded = CBDCClassifier.load(clf.save(tmp_path / "m.cbdc"))
    assert isinstance(loaded.head_, LinearPool)
    np.testing.assert_array_equal(loaded.predict_set(test.images), clf.predict_set(test.images))
    one = loaded.diagnose(test.images[0])
    assert one.mutual_information == pytest.approx(clf.diagnose(test.images[0]).mutual_information)
    assert len(loaded.provenance_["fine_tuning"]) == 2
    assert loaded.certificate().hashes["embedder"] == clf.embedder_.fingerprint_


@pytest.mark.parametrize("of", ["tuner", "classifier"])
def test_networks_of_one_generator_differ(of, lesions):
    generator = np.random.RandomState(0)
    seeds = {"tuner": (generator, None), "classifier": (None, generator)}[of]
    clf = CBDCClassifier(
        ["efficientnet_lite0"] * 2,
        image_size=SIZE,
        fine_tune=FineTuner(epochs=1, random_state=seeds[0]),
        random_state=seeds[1],
    ).fit(lesions[0])
    first, second = clf.fine_tuners_
    assert set(first.held_out_) != set(second.held_out_)
    assert first.embedder_.fingerprint_ != second.embedder_.fingerprint_


def test_a_weighted_loss_is_undone_in_the_probabilities():
    counts = np.array([900, 90, 10])
    loss = Loss("class_balanced", counts)
    weights = loss(torch.zeros(3, 3), torch.arange(3)) / np.log(3)
    z = torch.randn(3, generator=torch.Generator().manual_seed(0))
    tilted = torch.softmax(z, 0)  # where the weighted loss is least, this is proportional to weight times probability
    expected = tilted / weights
    np.testing.assert_allclose(torch.softmax(z + loss.offset, 0), expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize(("first", "side"), [(48, 48), (48, 56), (40, 224), (112, 112), (128, 192)])
def test_growing_images_never_shrink(first, side):
    settings = dataclasses.replace(quick()._settings(0), n_epochs=6, first_size=first)
    sides = [training.size_of_epoch(number, settings, (side, side))[0] for number in range(6)]
    assert sides == sorted(sides)
    assert sides[-1] == side


def test_a_network_of_one_size_takes_no_first_size():
    with pytest.raises(ParameterError, match="vit_b_16 takes no images of 64 pixels"):
        FineTuner(ImageEmbedder("vit_b_16", weights="random"), first_size=64).fit(*plain_images(4))


def test_frozen_networks_make_an_ensemble_too(lesions):
    train, _, test = lesions
    options = {"weights": "random", "image_size": SIZE, "random_state": 0}
    clf = CBDCClassifier(("efficientnet_lite0", "resnet18"), **options).fit(train)
    apart = [CBDCClassifier(name, **options).fit(train).predict_proba(test.images) for name in clf.backbone]
    np.testing.assert_allclose(clf.predict_proba(test.images), np.mean(apart, axis=0), atol=1e-6)


def test_without_pool_the_head_is_alone(lesions):
    clf = CBDCClassifier(image_size=SIZE, fine_tune=FineTuner(epochs=1), pool=False, random_state=0).fit(lesions[0])
    assert type(clf.head_) is LaplaceHead


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"backbone": []}, "backbone: got no name"),
        ({"fine_tune": "yes"}, "fine_tune='yes': expected a FineTuner, True, False or None"),
        ({"fine_tune": []}, "expected a FineTuner, True, False or None"),
        ({"pool": "linear"}, "pool='linear': expected True or False"),
        ({"backbone": ["resnet18", "resnet50"], "weights": "resnet.pt"}, "one file is not that of several"),
        ({"backbone": ["resnet18"] * 2}, "a network that is not fine-tuned is the same twice"),
        (
            {"backbone": ["resnet18", "resnet50"], "head": LogisticRegression()},
            "several backbones take a head of cbdc.heads",
        ),
    ],
)
def test_settings_that_cannot_be(parameters, message, lesions):
    with pytest.raises(ParameterError, match=message):
        CBDCClassifier(**parameters).fit(lesions[0])


def test_two_images_of_one_photograph_are_taught_together_or_not_at_all():
    names = [f"i{i}" for i in range(24)]
    pairs = list(zip(names[:12], names[12:], strict=True))
    frame = pd.DataFrame({"image": names})
    data = LesionDataset(list(plain_images(24)[0]), list(np.arange(24) % 2), frame=frame, duplicates=pairs)
    first, _ = data.split(sizes=(0.9, 0.1), random_state=0)
    held_out = set(first.frame["image"].iloc[quick().fit(first).held_out_])
    assert held_out
    assert all((a in held_out) == (b in held_out) for a, b in pairs if {a, b} <= set(first.frame["image"]))


def test_copies_under_other_names_are_told():
    X, y = plain_images(24)
    X[12:], y[12:] = X[:12], y[:12]
    with pytest.warns(LeakageWarning, match=r"of \d+ held-out images are trained on too"):
        quick().fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeakageWarning)
        quick().fit(X, y, groups=np.arange(24) % 12)


def test_the_embedder_of_the_tuner_is_that_of_the_classifier(lesions):
    with pytest.raises(ParameterError, match="its embedder is that of the classifier"):
        CBDCClassifier(fine_tune=FineTuner(ImageEmbedder())).fit(lesions[0])


def test_the_command_line_fine_tunes(tmp_path, capsys):
    folder = tmp_path / "lesions"
    for k, name in enumerate(("dark", "bright")):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(plain_images(40, seed=k)[0][k::2]):
            write_image(image, folder / name / f"{name}{i}.png")
    out = tmp_path / "m.cbdc"
    fit = ["fit", "folder", "--root", str(folder), "--out", str(out), "--image-size", "32", "--condition-on", "none"]
    assert main([*fit, "--epochs", "1", "--quiet"]) == 1
    assert "--epochs: it goes with --fine-tune" in capsys.readouterr().err
    assert main([*fit, "--no-pool", "--quiet"]) == 1
    assert "--no-pool: it goes with --fine-tune" in capsys.readouterr().err
    tuned = [*fit, "--fine-tune", "--no-pool", "--epochs", "1", "--minutes", "5", "--loss", "focal"]
    assert main([*tuned, "--confidence-level", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "held-out NLL" in printed
    loaded = CBDCClassifier.load(out)
    assert loaded.fine_tune.loss == "focal"
    assert type(loaded.head_) is LaplaceHead
