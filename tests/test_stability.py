"""The stability diagnostic: its figures against brute force, its guarantees over draws, its refusals."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression

from cbdc import CBDCClassifier, ConformalClassifier, make_lesions
from cbdc.errors import ImageError, LeakageWarning
from cbdc.perturb import list_perturbations, perturb
from cbdc.plots import PersistenceDiagramDisplay, StabilityMapDisplay, StabilityProfileDisplay
from cbdc.topology import StabilityDiagnostic, bottleneck_distance, persistence_diagrams


class Colours(TransformerMixin, BaseEstimator):
    """Mean and spread of the colours of nine fields: an embedding that takes no network."""

    def fit(self, images, y=None):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def transform(self, images):
        found = []
        for image in images:
            rows = [part for strip in np.array_split(image, 3) for part in np.array_split(strip, 3, axis=1)]
            found.append([f(part / 255, axis=(0, 1)) for part in rows for f in (np.mean, np.std)])
        return np.array(found, dtype=np.float32).reshape(len(found), -1)


@pytest.fixture(scope="module")
def lesions():
    return make_lesions(150, image_size=48, random_state=0)


@pytest.fixture(scope="module")
def classifier(lesions):
    E = Colours().transform(lesions.images)
    model = LogisticRegression(C=1e4, max_iter=5000).fit(E[:60], lesions.labels[:60])
    return ConformalClassifier(model, prefit=True, confidence_level=0.8).conformalize(E[60:], lesions.labels[60:])


@pytest.fixture(scope="module")
def diagnostic(lesions, classifier):
    return StabilityDiagnostic(
        Colours(), ["brightness", "blur", "flip"], classifier=classifier, severities=[1, 5], homology_dimensions=(0, 1)
    ).fit(lesions, groups=lesions.frame["skin_type"].astype(int))


@pytest.fixture(scope="module")
def report(diagnostic):
    return diagnostic.report()


def row(report, name, severity):
    table = report.overall
    return table[(table["perturbation"] == name) & (table["severity"] == severity)].iloc[0]


def test_figures_are_those_of_brute_force(lesions, diagnostic, classifier, report):
    before = Colours().transform(lesions.images)
    after = Colours().transform([perturb(image, "blur", 5, 0) for image in lesions.images])
    D, D_after = cdist(before, before), cdist(after, after)
    scale = np.median(D[np.triu_indices(len(D), 1)])
    found = row(report, "blur", 5)
    moved = np.linalg.norm(before.astype(float) - after, axis=1)
    assert report.scale == pytest.approx(scale)
    assert found["displacement"] * scale == pytest.approx(np.median(moved))
    assert found["twice_displacement"] * scale == pytest.approx(2 * moved.max())
    assert found["distortion"] * scale == pytest.approx(np.abs(D - D_after).max())
    radii = D.max(axis=1).min(), D_after.max(axis=1).min()
    capped = np.abs(np.minimum(D, radii[0]) - np.minimum(D_after, radii[1])).max()
    assert found["capped"] * scale == pytest.approx(capped)
    diagrams = [persistence_diagrams(E, (0, 1)) for E in (before, after)]
    for k in (0, 1):
        assert found[f"H{k}"] * scale == pytest.approx(bottleneck_distance(*diagrams, k), abs=1e-6)
    one, other = classifier.predict(before), classifier.predict(after)
    assert found["flips"] == np.mean(one != other)
    assert 0 < found["flips_low"] < found["flips"] < found["flips_high"] < 1
    sets = classifier.predict_set(before), classifier.predict_set(after)
    assert found["sets_changed"] == np.mean((sets[0] != sets[1]).any(axis=1))
    columns = np.searchsorted(classifier.classes_, lesions.labels)
    assert found["coverage"] == pytest.approx(sets[1][np.arange(len(columns)), columns].mean())
    union, both = (sets[0] | sets[1]).sum(axis=1), (sets[0] & sets[1]).sum(axis=1)
    overlap = [b / u if u else 1 for b, u in zip(both, union)]
    assert found["set_overlap"] == pytest.approx(np.mean(overlap))
    kept = []
    for i in range(len(D)):
        near, near_after = (set(np.argsort(np.where(np.arange(len(D)) == i, np.inf, d[i]))[:10]) for d in (D, D_after))
        kept.append(len(near & near_after) / 10)
    assert found["neighbours_kept"] == pytest.approx(np.mean(kept), abs=0.01)  # distances may tie


def test_neighbours_are_not_counted_in_a_small_cloud(lesions):
    """Of 20 images ten neighbours are half of the others: chance alone keeps half of them."""
    few, enough = (
        StabilityDiagnostic(Colours(), ["blur"], severities=[5], n_neighbors=k).fit(lesions.images[:20])
        for k in (10, 4)
    )
    assert np.isnan(few.report().overall["neighbours_kept"]).all()
    assert enough.report().overall["neighbours_kept"].between(0, 1).all()


def test_the_chain_holds_in_every_row(report):
    table = report.overall
    for k in ("H0", "H1"):
        assert (table[k] <= table["capped"] + 1e-6).all()
    assert (table["capped"] <= table["distortion"]).all()
    assert (table["distortion"] <= table["twice_displacement"] + 1e-9).all()


def test_flipping_has_one_severity(report):
    assert report.overall["perturbation"].tolist() == ["brightness"] * 2 + ["blur"] * 2 + ["flip"]


def test_more_is_worse(report):
    for name in ("brightness", "blur"):
        assert row(report, name, 5)["displacement"] > row(report, name, 1)["displacement"]


def test_tolerance_spares_the_costly_diagrams(lesions):
    diagnostic = StabilityDiagnostic(Colours(), ["blur"], severities=[5], homology_dimensions=(0, 1), tolerance=100.0)
    found = diagnostic.fit(lesions).report().overall.iloc[0]
    assert math.isnan(found["H1"])
    assert found["H0"] > 0
    assert "flips" not in found


def test_few_patients_are_not_told(lesions, report):
    for table, kind, names in (
        (report.by_class, "class", lesions.labels),
        (report.by_group, "group", lesions.frame["skin_type"].to_numpy()),
    ):
        for _, found in table.iterrows():
            units = len(np.unique(lesions.groups()[names == found[kind]]))
            assert found["units"] == units
            assert math.isnan(found["flips"]) == math.isnan(found["displacement"]) == (units < 10)
    assert report.by_class["flips"].isna().any()
    assert report.by_class["flips"].notna().any()


def test_text_names_units_and_limits(report):
    text = str(report)
    assert f"{report.n_images} images of {report.n_units} patients" in text
    assert "not that it stays the same" in text


# --- guarantees


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_certificate_covers_new_clouds(level):
    """Clouds drawn anew: the share covered lies in the exact band of k of B + 1."""
    rng = np.random.default_rng(0)
    clouds, covered = 19, 0
    draws = 200
    for _ in range(draws):
        E = rng.normal(size=(20 * 6, 3))
        moved = E + rng.exponential(0.2, size=(len(E), 1)) * rng.normal(size=E.shape)
        diagnostic = fitted_on(E[: clouds * 6], moved[: clouds * 6], np.arange(clouds * 6))
        bound = (
            diagnostic.certify(level, units_per_cloud=6, scores=("twice_displacement",))
            .bounds["twice_displacement"]
            .iloc[0]
        )
        last = slice(clouds * 6, None)
        score = 2 * np.linalg.norm(E[last] - moved[last], axis=1).max()
        covered += score <= bound * diagnostic.scale_
    k = math.ceil((clouds + 1) * level)
    low, high = stats.binom.interval(0.9999, draws, k / (clouds + 1))
    assert low <= covered <= high


def fitted_on(E, moved, units):
    """A diagnostic as `fit` leaves it, from embeddings."""
    diagnostic = StabilityDiagnostic(Colours())
    diagnostic.embeddings_, diagnostic.perturbed_, diagnostic.units_ = E, {("blur", 1): moved}, units
    diagnostic.scale_ = 0.5
    return diagnostic


def test_certificate_of_few_clouds_is_infinite(diagnostic):
    certificate = diagnostic.certify(0.99, units_per_cloud=5)
    assert np.isinf(certificate.bounds[["H0", "capped", "twice_displacement"]].to_numpy()).all()
    assert "takes 99 clouds: lower units_per_cloud" in str(certificate)
    finite = diagnostic.certify(0.5, units_per_cloud=5)
    assert np.isfinite(finite.bounds["H0"]).all()
    assert (finite.bounds["H0"] <= finite.bounds["capped"]).all()
    assert f"the {finite.n_clouds} clouds of 5 patients each" in str(finite)


def test_p_values_are_ranks(lesions, diagnostic):
    new = make_lesions(12, image_size=48, random_state=7).images
    found = diagnostic.p_values(new)
    settings = list(diagnostic.perturbed_)
    before = Colours().transform(new)
    after = [Colours().transform([perturb(image, *setting, 0) for image in new]) for setting in settings]
    scores = np.max([np.linalg.norm(before.astype(float) - moved, axis=1) for moved in after], axis=0)
    n = len(np.unique(lesions.groups()))
    assert len(diagnostic.scores_) == n
    np.testing.assert_allclose(found, [(1 + np.sum(diagnostic.scores_ >= s)) / (n + 1) for s in scores])
    np.testing.assert_array_equal(found[:1], diagnostic.p_values(new[:1]))
    assert diagnostic.p_values([]).shape == (0,)


def test_p_value_goes_into_the_diagnosis():
    lesions = make_lesions(200, image_size=64, random_state=0)
    train, calibration, test = lesions.split(random_state=0)
    clf = CBDCClassifier(condition_on=None, confidence_level=0.8, random_state=0).fit(train).conformalize(calibration)
    with pytest.warns(LeakageWarning, match=r"this is the calibration data of the model.*moves less than new"):
        diagnostic = StabilityDiagnostic(clf, ["brightness"], severities=[3]).fit(calibration)
    assert {"flips", "sets_changed", "coverage"} <= set(diagnostic.report().overall)
    image = test.images[0]
    told = clf.diagnose(image, stability=diagnostic)
    assert told.stability == diagnostic.p_values([image])[0]
    assert "stability p-value" in str(told)
    assert math.isnan(clf.diagnose(image).stability)
    rows = clf.diagnose([image, b"no image"], stability=diagnostic)
    assert rows[0].stability == told.stability
    assert rows[1].status == "refused"


# --- refusals


def test_large_photographs_are_reduced_first():
    diagnostic = StabilityDiagnostic(Colours(), ["flip"], max_side=64)
    assert diagnostic._reduced(np.zeros((300, 150, 3), dtype=np.uint8)).shape == (64, 32, 3)
    assert diagnostic._reduced(np.zeros((60, 40, 3), dtype=np.uint8)).shape == (60, 40, 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"perturbations": ["blurr"]}, "no perturbation is called 'blurr'"),
        ({"perturbations": []}, "and a name"),
        ({"severities": [0]}, "severities"),
        ({"severities": []}, "severities"),
        ({"perturbations": "colour"}, "perturbations"),
        ({"n_neighbors": 0}, "n_neighbors"),
    ],
)
def test_bad_parameters_are_refused(lesions, parameters, message):
    with pytest.raises(ValueError, match=message):
        StabilityDiagnostic(Colours(), **parameters).fit(lesions)


def test_bad_images_and_lengths_are_refused(lesions):
    with pytest.raises(ImageError, match="image_1"):
        StabilityDiagnostic(Colours(), ["flip"]).fit([lesions.images[0], b"nothing", lesions.images[1]])
    with pytest.raises(ValueError, match="three at least"):
        StabilityDiagnostic(Colours(), ["flip"]).fit(lesions.images[:2])
    for name in ("y", "units", "groups"):
        with pytest.raises(ValueError, match=rf"{name}: got shape \(2,\); expected \(3,\)"):
            StabilityDiagnostic(Colours(), ["flip"]).fit(lesions.images[:3], **{name: [1, 2]})


def test_all_names_are_there():
    assert StabilityDiagnostic(Colours(), "all")._check_settings()[-1] == ("crop", 5)
    names = {name for name, _ in StabilityDiagnostic(Colours())._check_settings()}
    assert names == set(list_perturbations("photometric"))


# --- displays


def test_profile_draws_the_report(report):
    display = StabilityProfileDisplay.from_report(report, "flips")
    blur = report.overall[report.overall["perturbation"] == "blur"]
    drawn = [line.get_ydata().tolist() for line in display.ax_.get_lines()]
    assert blur["flips"].tolist() in drawn
    assert sorted(text.get_text() for text in display.ax_.texts) == ["blur", "brightness", "flip"]


@pytest.mark.parametrize("by", ["class", "group"])
def test_map_draws_the_report(report, by):
    display = StabilityMapDisplay.from_report(report, by)
    table = {"class": report.by_class, "group": report.by_group}[by]
    last = table[table["severity"] == 5]
    told = sorted(f"{value:.2f}".removeprefix("0") for value in last["flips"].dropna())
    assert sorted(t.get_text() for t in display.ax_.texts if t.get_text() != "few") == told
    assert sum(t.get_text() == "few" for t in display.ax_.texts) == last["flips"].isna().sum()


def test_long_names_are_broken_and_have_room():
    rows = [("blur", 5, name, 40, 31, 0.2) for name in ("atypical_nevus", "common_nevus", "melanoma")]
    table = pd.DataFrame(rows, columns=["perturbation", "severity", "class", "n", "units", "flips"])
    display = StabilityMapDisplay(table).plot()
    assert display.ax_.get_xticklabels()[0].get_text() == "atypical\nnevus\n31"
    display.figure_.draw_without_rendering()
    boxes = [t.get_window_extent() for t in display.ax_.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_map_without_groups_is_refused(lesions):
    report = StabilityDiagnostic(Colours(), ["flip"]).fit(lesions.images[:20]).report()
    for by, given in (("class", "y="), ("group", "groups=")):
        with pytest.raises(ValueError, match=f"the report has none. Fix: give {given}"):
            StabilityMapDisplay.from_report(report, by)


def test_diagrams_share_a_scale(diagnostic):
    display = PersistenceDiagramDisplay.from_embeddings(
        [diagnostic.embeddings_, diagnostic.perturbed_["blur", 5]], names=["before", "after"]
    )
    first, second = display.axes_
    assert first.get_xlim() == second.get_xlim()
    assert [ax.get_title() for ax in display.axes_] == ["before", "after"]
    n_points = sum(len(dots.get_offsets()) for dots in first.collections)
    assert n_points == len(persistence_diagrams(diagnostic.embeddings_, (0, 1)))
