"""Evaluation and its pages, on stand-ins for the network, the head and the calibration that take no time."""

import json
import re
import warnings
from functools import partial
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from cbdc import CBDCClassifier, metrics
from cbdc.conformal import Certificate
from cbdc.datasets import LesionDataset
from cbdc.diagnosis import Diagnosis
from cbdc.errors import CalibrationSizeWarning, DatasetError, ImageError, LeakageError
from cbdc.images import write_image
from cbdc.report import case_report, evaluate, write_report
from cbdc.report.figures import plain, probability_figures
from cbdc.report.markup import Html, join, tag
from cbdc.taxonomy import get_taxonomy

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
NASTY = "<script>alert('x')</script>&.png"


class Embedder:
    """An image's embedding is the mean colour of its array; refused where the array is black."""

    fingerprint_ = "ab" * 32

    def embed(self, images):
        means = np.array([np.asarray(image, dtype=float).mean(axis=(0, 1)) for image in images])
        refusals = {i: ImageError("all black: \x1b no picture") for i in np.flatnonzero(means.max(axis=1) == 0)}
        means[list(refusals)] = np.nan
        return means.astype(np.float32), refusals


class Head:
    """Probabilities from the first colour; nan in, error out."""

    def predict_proba(self, E):
        assert np.isfinite(E).all()
        logits = -np.abs(E[:, :1] - np.linspace(20, 220, 7)) / 25
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


class Conformal:
    """Thresholds on the probability that fall with the level."""

    n_calibration_ = np.array([40, 50, 60, 20, 80, 400, 15])

    def predict_set(self, E, confidence_level=None, groups=None):
        return self.p_values(E) > 1 - confidence_level

    def p_values(self, E, groups=None):
        return np.minimum(Head().predict_proba(E) * 2, 1)

    def rank(self, n, confidence_level):
        return metrics.conformal_rank(n, confidence_level)


def classifier(**changes):
    values = {
        "classes_": np.array(CLASSES),
        "embedder_": Embedder(),
        "head_": Head(),
        "conformal_": Conformal(),
        "certificate": lambda level: Certificate(f"P >= {level} & <so on>", ("<if exchangeable>",), (), level, 665),
        "taxonomy_": get_taxonomy("ham10000"),
        "provenance_": {
            "training": {"dataset": "ham10000", "fingerprint": "11" * 32, "n_images": 900},
            "calibration": {
                "dataset": "ham10000",
                "fingerprint": "22" * 32,
                "n_images": 700,
                "n_units": 665,
                "unit": "lesion",
            },
        },
        "confidence_level": 0.9,
        "condition_on": "class",
        "group_by": None,
        "backbone": "stub",
        "score": "lac",
        "random_state": 3,
        "_groups": lambda dataset, groups: groups,
        "fit": None,
        "_seen": {},
    }
    stub = SimpleNamespace(**{**values, **changes})
    stub.check_unseen = partial(CBDCClassifier.check_unseen, stub)
    stub.get_params = lambda: {"score": stub.score}
    return stub


def lesions(n=160, black=(), seed=0, name="ham10000"):
    """Images of one colour each, whose red says the class, with noise; two images a lesion."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, n, p=[0.1, 0.1, 0.15, 0.03, 0.2, 0.4, 0.02])
    red = np.linspace(20, 220, 7)[[CLASSES.index(c) for c in labels]] + rng.normal(0, 22, n)
    images = np.broadcast_to(np.clip(red, 1, 255)[:, None, None, None], (n, 8, 8, 3)).astype(np.uint8).copy()
    images[list(black)] = 0
    frame = pd.DataFrame(
        {
            "image": [f"clinic/jane_doe/lesion_{i}.png" for i in range(n)],
            "lesion_id": [f"L{i // 2}" for i in range(n)],
            "patient_name": "Jane Doe",
            "skin_type": rng.choice([1.0, 2.0, 6.0, np.nan], n, p=[0.5, 0.35, 0.05, 0.1]),
            "sex": rng.choice(["female", "male"], n),
            "age": rng.choice([25.0, 50.0, 80.0, np.nan], n),
        }
    )
    return LesionDataset(images, labels, name=name, classes=CLASSES, frame=frame, taxonomy=get_taxonomy("ham10000"))


@pytest.fixture(scope="module")
def dataset():
    return lesions(black=(3, 50, 51))


@pytest.fixture
def evaluation(dataset):
    return evaluate(classifier(), dataset, n_resamples=20)


def test_figures_are_those_of_the_metrics(evaluation, dataset):
    kept = np.delete(np.arange(len(dataset)), [3, 50, 51])
    embeddings, _ = Embedder().embed(dataset.images[kept])
    proba = Head().predict_proba(embeddings)
    y = np.array([CLASSES.index(c) for c in dataset.labels[kept]])
    scores = evaluation.figures["probabilities"]
    assert scores["accuracy"]["value"] == np.mean(proba.argmax(axis=1) == y)
    assert scores["auroc"]["value"] == metrics.auroc(proba, y)
    assert scores["nll"]["value"] == metrics.negative_log_likelihood(proba, y)
    assert scores["ece"]["value"] == metrics.expected_calibration_error(proba, y, 15)
    for row in scores.values():
        if isinstance(row, dict) and row["low"] is not None:
            assert row["low"] < row["value"] < row["high"]
    for level in (0.8, 0.9, 0.95, 0.99):
        sets = Conformal().predict_set(embeddings, level)
        row = evaluation.figures["sets"][f"{level:g}"]
        every = row["coverage_all_images"]
        assert every["value"] == metrics.coverage(sets, y)
        units = dataset.take(kept).groups("lesion")
        assert (every["low"], every["high"]) == metrics.cluster_interval(sets[np.arange(len(y)), y], units)
        assert row["coverage"]["value"] == metrics.coverage(sets[evaluation.sample], y[evaluation.sample])
        assert row["mean_set_size"] == metrics.mean_set_size(sets[evaluation.sample])
        assert sum(row["set_sizes"]) == len(evaluation.sample)


def test_coverage_counts_one_image_of_each_lesion_and_knows_its_band(evaluation, dataset):
    kept = np.delete(np.arange(len(dataset)), [3, 50, 51])
    drawn = dataset.frame["lesion_id"].to_numpy()[kept][evaluation.sample]
    assert len(set(drawn)) == len(drawn) == 79  # one lesion has lost both of its images
    n_test = np.bincount(evaluation.labels[evaluation.sample], minlength=7)
    present = n_test > 0
    for level in ("0.8", "0.95"):
        expected = metrics.coverage_band(
            Conformal.n_calibration_[present], n_test[present], float(level), probability=0.95
        )
        assert evaluation.figures["sets"][level]["band"] == list(expected)


def test_intervals_count_units_and_not_copies():
    """Ten copies of every image say nothing new, so no interval gets shorter."""
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(3), 60)
    labels, units = rng.integers(0, 3, 60), np.arange(60) // 2
    once = probability_figures(proba, labels, units, np.arange(60), 30, 0)
    many = probability_figures(*(np.repeat(a, 10, axis=0) for a in (proba, labels, units, np.arange(60))), 30, 0)
    for name in ("balanced_accuracy", "auroc", "brier", "nll"):
        assert many[name] == pytest.approx(once[name])
        assert once[name]["low"] < once[name]["value"] < once[name]["high"]
    assert many["ece_noise_floor"] == pytest.approx(once["ece_noise_floor"])
    floor = metrics.ece_noise_floor(proba, units=np.arange(60), quantile=0.95, random_state=0)
    assert (once["ece_noise_mean"], once["ece_noise_floor"]) == floor  # of lesions, not of patients
    assert many["accuracy"]["high"] - many["accuracy"]["low"] > 0.95 * (
        once["accuracy"]["high"] - once["accuracy"]["low"]
    )


def test_classes_and_groups_too_small_are_refused_with_a_reason(evaluation):
    rows = evaluation.figures["sets"]["0.9"]["by_class"]
    assert [row["name"] for row in rows] == list(CLASSES)
    for row in rows:
        assert (row["coverage"] is None) == (row["n"] < 10) == bool(row["reason"])
    assert any(row["reason"] for row in rows)
    groups = evaluation.figures["sets"]["0.9"]["by_group"]
    assert [row["name"] for row in groups["skin_type"]] == ["1", "2", "6", "missing"]
    assert [row["name"] for row in groups["age"]] == ["0 to 29", "45 to 59", "75 and over", "missing"]
    assert sum(row["n"] for row in groups["sex"]) == len(evaluation.sample)


def test_refused_images_are_listed_and_no_row_shifts(evaluation, dataset):
    assert [row["image"] for row in evaluation.figures["refused"]] == ["lesion_3.png", "lesion_50.png", "lesion_51.png"]
    assert evaluation.figures["refused"][0]["reason"] == "all black: \x1b no picture"
    data = evaluation.figures["data"]
    assert (data["n_given"], data["n_images"], data["n_refused"]) == (160, 157, 3)
    for i in (0, 3, 60, 156):
        original = next(j for j in range(160) if dataset.frame["image"][j].endswith("/" + evaluation.image_names[i]))
        assert CLASSES[evaluation.labels[i]] == dataset.labels[original]
        np.testing.assert_array_equal(evaluation.images[i], dataset.images[original])
    with pytest.raises(DatasetError, match="none of its 2 images can be used"):
        evaluate(classifier(), dataset.take([3, 50]))


def test_labels_of_another_data_set_are_mapped_and_the_page_says_so(tmp_path):
    base = lesions(name="ph2")
    keep = np.flatnonzero(np.isin(base.labels, ["nv", "mel"]))
    ph2 = LesionDataset(
        base.images[keep],
        ["melanoma" if c == "mel" else "atypical_nevus" for c in base.labels[keep]],
        name="ph2",
        taxonomy=get_taxonomy("ph2"),
    )
    evaluation = evaluate(classifier(), ph2, n_resamples=5)
    assert evaluation.figures["data"]["label_map"] == {"atypical_nevus": "nv", "melanoma": "mel"}
    assert evaluation.figures["data"]["external"] is True
    assert set(np.unique(evaluation.labels)) == {CLASSES.index("mel"), CLASSES.index("nv")}
    text = write_report(evaluation, tmp_path).read_text(encoding="utf-8")
    assert "atypical_nevus to nv" in text
    assert "exchangeability is not given and nothing is guaranteed" in text
    assert "nothing is guaranteed of this one" in evaluation.headline
    assert "could not be checked whether images of ph2 were trained on" in text  # the classifier knows no data
    assert "could not be checked whether images of ph2 were trained on" in str(evaluation)


def test_labels_without_counterpart_are_an_error():
    strange = LesionDataset(lesions(4).images, ["acne"] * 4)
    with pytest.raises(DatasetError, match="no label map"):
        evaluate(classifier(), strange)
    with pytest.raises(DatasetError, match=r"acne.*no taxonomy to map by"):
        evaluate(classifier(taxonomy_=None), strange)
    without = np.array([c for c in CLASSES if c != "df"])
    with pytest.raises(DatasetError, match="was not fitted on 'df'"):
        evaluate(classifier(classes_=without), lesions())


def test_data_the_model_knows_are_refused(dataset):
    known = {"calibration": {"fingerprint": dataset.fingerprint, "n_images": 1}}
    with pytest.raises(LeakageError, match="calibration data of the model"):
        evaluate(classifier(provenance_=known), dataset)
    with pytest.raises(LeakageError, match="shared"):
        evaluate(classifier(_seen={"training": dataset.take([5, 9])}), dataset)


def test_group_guarantee_has_a_band_for_each_group(dataset):
    class Grouped(Conformal):
        n_calibration_ = {"female": 60, "male": 90}  # noqa: RUF012

    model = classifier(
        conformal_=Grouped(),
        condition_on="group",
        group_by="sex",
        _groups=lambda data, groups: data.frame["sex"].to_numpy(),
    )
    row = evaluate(model, dataset, n_resamples=5).figures["sets"]["0.9"]
    female = next(r for r in row["by_group"]["groups of the guarantee"] if r["name"] == "female")
    assert [female["band_low"], female["band_high"]] == list(
        metrics.coverage_band(60, female["n"], 0.9, probability=0.95)
    )
    assert "sex" not in row["by_group"]
    assert all(r["band_low"] is None for r in row["by_class"])


def test_small_calibration_is_a_note_and_not_a_lost_warning(dataset, tmp_path):
    class Small(Conformal):
        def predict_set(self, E, confidence_level=None, groups=None):
            if confidence_level == 0.99:
                warnings.warn("class 'df': 20 cases", CalibrationSizeWarning, stacklevel=2)
            return super().predict_set(E, confidence_level)

    evaluation = evaluate(classifier(conformal_=Small()), dataset, n_resamples=5)
    assert [row["notes"] for row in evaluation.figures["sets"].values()] == [[], [], [], ["class 'df': 20 cases"]]
    text = write_report(evaluation, tmp_path).read_text(encoding="utf-8")
    assert "class &#x27;df&#x27;: 20 cases" in text


def test_uncalibrated_classifier_is_refused(dataset):
    model = classifier()
    del model.conformal_
    with pytest.raises(NotFittedError, match="conformalize"):
        evaluate(model, dataset)


def test_one_level_and_one_class_of_many_still_make_a_page(tmp_path):
    only = lesions(40)
    only = only.take(only.labels == "nv")
    evaluation = evaluate(classifier(), only, levels=(), confidence_level=0.85, unit="image", n_resamples=5)
    assert list(evaluation.figures["sets"]) == ["0.85"]
    assert evaluation.figures["probabilities"]["auroc"]["value"] is None
    assert "data:image" not in write_report(evaluation, tmp_path, n_cases=0).read_text(encoding="utf-8")
    assert "AUROC" in str(evaluation)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "In calibration: one image of each lesion; here: every image counts." in page
    assert "one image a image" not in page


def test_an_infinite_figure_is_said_and_not_lost(tmp_path):
    class Sure(Head):
        def predict_proba(self, E):
            return np.eye(7)[super().predict_proba(E).argmax(axis=1)]

    evaluation = evaluate(classifier(head_=Sure()), lesions(60), n_resamples=5)
    assert evaluation.figures["probabilities"]["nll"]["value"] == "infinite"
    assert re.search(r"negative log-likelihood +infinite", str(evaluation))
    assert "infinite" in write_report(evaluation, tmp_path).read_text(encoding="utf-8")


def test_json_parses_strictly(evaluation, tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    text = evaluation.to_json(tmp_path / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == evaluation.figures


@given(
    st.recursive(
        st.floats() | st.integers() | st.text() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_plain_is_always_strict_json(value):
    json.dumps(plain(value), allow_nan=False)


def test_terminal_table(evaluation):
    text = str(evaluation)
    for words in (
        "157 images of 79 lesions",
        "3 refused",
        "AUROC",
        "noise alone",
        "coverage by class at 90%",
        "10 needed",
    ):
        assert words in text
    assert max(map(len, text.splitlines()[:-1])) <= 100
    assert evaluation.headline in text


class Strict(HTMLParser):
    """Collects what a page would load, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.loaded, self.ids, self.tags, self.images = [], [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        self.tags.append(name)
        self.loaded += [v for k, v in attributes if k in ("src", "href", "data", "xlink:href", "action", "srcset")]
        self.ids += [given["id"]] if "id" in given else []
        self.images += [given] if name in ("img", "svg") else []
        if name not in ("meta", "img", "br", "link", "input"):
            self.stack.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        self.stack.pop()

    def handle_endtag(self, name):
        assert self.stack.pop() == name


@pytest.fixture
def report(evaluation, tmp_path):
    return write_report(evaluation, tmp_path / "out").read_text(encoding="utf-8")


def test_page_is_one_file_that_loads_nothing(report, tmp_path):
    page = Strict(report)
    assert page.loaded
    assert all(url.startswith(("data:image/jpeg;base64,", "#")) for url in page.loaded)
    assert {url[1:] for url in page.loaded if url.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "://" not in report
    assert "@import" not in report
    assert "xlink" not in report
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert len(report) < 2_000_000
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.json", "report.html"]


def test_page_names_no_folder_patient_or_lesion(report, evaluation):
    for text in (report, json.dumps(evaluation.figures)):
        assert "jane" not in text.lower()
        assert "clinic/" not in text
        assert not re.search(r"\bL\d+\b", re.sub(r'd="[^"]*"', "", text))
    assert "lesion_3.png" in report


def test_page_says_what_it_must(report, evaluation):
    text = re.sub(r"<[^>]*>", " ", report)
    for words in (
        "if exchangeable",
        "not a cleared medical device",
        "79 lesions",
        "11" * 32,
        "22" * 32,
        "ab" * 32,
        "numpy 2" if np.__version__.startswith("2") else "numpy",
        "melanoma",
        "malignant",
        "all black",
        "In calibration and here: one image of each lesion",
        "3 of 160 images could not be used",
        "Worst misses",
    ):
        assert words in text, words
    assert f"{100 * evaluation.figures['sets']['0.9']['coverage']['value']:.1f}%" in text
    scores = evaluation.figures["probabilities"]
    assert (
        f"ECE {scores['ece']['value']:.3f} (noise alone: up to {scores['ece_noise_floor']:.3f})" in text
    )  # in the plot


def test_page_is_accessible(report):
    page = Strict(report)
    assert all("alt" in image or image.get("aria-label") or image.get("aria-hidden") for image in page.images)
    assert page.tags.count("table") > 10
    assert report.count("<table>") == report.count("<thead>")
    assert '<html lang="en">' in report
    assert page.tags.count("h1") == 1
    assert "prefers-color-scheme: dark" in report


def test_worst_misses_are_the_most_confident_ones(evaluation, report):
    rows = np.arange(len(evaluation.labels))
    missed = ~evaluation.sets[rows, evaluation.labels]
    assert missed.any()
    worst = max(rows[missed], key=lambda i: (evaluation.proba[i].max(), -i))
    section = report[report.index("Worst misses") : report.index("Largest sets")]
    names = re.findall(r"<h3>(.*?)</h3>", section)
    assert names[0] == evaluation.image_names[worst]
    assert len(names) == min(6, missed.sum())


def test_same_evaluation_same_bytes(dataset, tmp_path):
    pages = [
        write_report(evaluate(classifier(), dataset, n_resamples=20), tmp_path / str(i)).read_bytes() for i in range(2)
    ]
    assert pages[0] == pages[1]
    assert (tmp_path / "0/metrics.json").read_bytes() == (tmp_path / "1/metrics.json").read_bytes()


@given(st.text(max_size=30))
def test_whatever_is_not_markup_is_escaped(text):
    element = tag("p", text, title=text)
    assert Strict(element).tags == ["p"]
    assert join([Html("<b>x</b>"), text]).startswith("<b>x</b>")


def diagnosis(name, **changes):
    values = {
        "image": name,
        "status": "ok",
        "prediction_set": ("mel", "nv"),
        "probabilities": {"mel": 0.7, "nv": 0.25, "bcc": 0.05},
        "p_values": {"mel": 0.6, "nv": 0.2, "bcc": 0.01},
        "entropy": 0.7,
        "mutual_information": 0.1,
        "confidence_level": 0.9,
        "quality": "retake",
        "quality_reasons": ("blurred: <hold still>",),
        "guarantee": "P >= 0.9 & so on",
        "names": {"mel": "melanoma", "nv": "nevus", "bcc": "basal cell carcinoma"},
        "malignant": {"mel": True, "nv": False, "bcc": True},
    }
    return Diagnosis(**{**values, **changes})


def test_case_report_explains_and_escapes(tmp_path):
    pixels = np.full((300, 400, 3), 120, dtype=np.uint8)
    images = [write_image(pixels, tmp_path / "a.png"), tmp_path / NASTY]
    rows = [diagnosis(NASTY), Diagnosis("b.png", "refused", reason=f"not an image {NASTY}")]
    path = case_report(rows, tmp_path / "cases.html", images=images)
    text = path.read_text(encoding="utf-8")
    page = Strict(text)
    assert "script" not in page.tags
    assert text.count("&lt;script&gt;") == 2
    assert str(tmp_path) not in text
    assert text.count("data:image/jpeg;base64,") == 1
    assert text.count("P &gt;= 0.9 &amp; so on") == 1
    for words in ("melanoma, nevus", "retake", "hold still", "refused", "malignant", "0.700", "0.600", "0.010"):
        assert words in text, words


def test_case_report_takes_one_diagnosis(tmp_path):
    pixels = np.full((30, 40, 3), 120, dtype=np.uint8)
    text = case_report(diagnosis("a.png", mutual_information=float("nan")), tmp_path / "c.html", images=[pixels])
    text = text.read_text(encoding="utf-8")
    assert "1 image, 0 refused" in text
    assert "nan nats" not in text
    assert "uncertainty 0.70 nats.<" in text
    with pytest.raises(ValueError, match="got 2 for 1"):
        case_report([diagnosis("a.png")], tmp_path / "c.html", images=[pixels, pixels])


def test_empty_set_is_said_to_be_empty(tmp_path):
    text = case_report(diagnosis("a.png", prediction_set=()), tmp_path / "c.html").read_text(encoding="utf-8")
    assert "empty; no diagnosis" in text


@pytest.mark.slow
def test_the_whole_path_on_made_lesions(tmp_path):
    """Real network, head and calibration; the coverage lies in its exact 1 - 1e-4 band."""
    from cbdc import CBDCClassifier, make_lesions

    train, calibration, test = make_lesions(900, image_size=96, random_state=1).split(random_state=1)
    clf = CBDCClassifier(condition_on=None, confidence_level=0.8, random_state=0).fit(train).conformalize(calibration)
    with pytest.raises(LeakageError, match="calibration data"):
        evaluate(clf, calibration)
    evaluation = evaluate(clf, test)
    row = evaluation.figures["sets"]["0.8"]["coverage"]
    low, high = metrics.coverage_band(clf.conformal_.n_calibration_, row["n"], 0.8, probability=1 - 1e-4)
    assert low <= row["value"] <= high
    np.testing.assert_array_equal(evaluation.sets, clf.predict_set(test))
    text = write_report(evaluation, tmp_path).read_text(encoding="utf-8")
    assert "made, not photographed" in text
    assert clf.embedder_.fingerprint_ in text
    assert not any(str(value) in text for value in test.frame["patient_id"].unique()[:50])
