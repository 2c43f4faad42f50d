"""Made lesions: the posterior is exact, the image shows the concepts and nothing else, and the bytes repeat."""

import numpy as np
import pytest
from hypothesis import given
from scipy.stats import binom

from cbdc.datasets import check_leakage
from cbdc.errors import DatasetError, LeakageError
from cbdc.phantom import CLASSES, CONCEPTS, DEFAULT_PRIOR, class_posterior, concept_tables, make_lesions
from tests.strategies import concept_laws
from theory.phantom_posterior import bayes_accuracy, joint_distribution, posterior, posterior_of_levels

ERROR = 1e-7  # of each band, so that a red test is a wrong law
SKEWED = np.array([0.3, 0.05, 0.1, 0.05, 0.3, 0.15, 0.05])


def draw(n, image_size=16, **arguments):
    """Many independent lesions, small because only their law is looked at."""
    return make_lesions(n, image_size=image_size, images_per_lesion=1, lesions_per_patient=1, **arguments)


def codes(lesions):
    """Level code of each concept, from the frame."""
    columns = [[c.levels.index(level) for level in lesions.frame[c.name].tolist()] for c in CONCEPTS]
    return np.array(columns).T


def assert_calibrated(probability, happened):
    """Bernstein's bound on a sum of independent events of known probabilities."""
    variance, log = (probability * (1 - probability)).sum(), np.log(2 / ERROR)
    assert abs((happened - probability).sum()) <= np.sqrt(2 * variance * log) + 2 * log / 3


def assert_counts(count, n, probability):
    low, high = binom.ppf([ERROR, 1 - ERROR], n, probability)
    assert low <= count <= high


@pytest.fixture(scope="module")
def many():
    return draw(12_000, class_prior=SKEWED, ambiguity=0.3, random_state=1)


# The law


@given(concept_laws())
def test_posterior_equals_the_joint_written_down(law):
    prior, tables, levels = law
    observed = np.array([[-1 if level is None else level for level in levels]])
    expected = posterior(joint_distribution(prior, tables), levels)
    np.testing.assert_allclose(class_posterior(prior, tables, observed)[0], expected, rtol=1e-10)


def test_tables_are_laws_that_leave_every_class_possible():
    for concept, table in zip(CONCEPTS, concept_tables()):
        assert table.shape == (len(CLASSES), len(concept.levels))
        np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-12)
        assert table.min() > 0


def test_more_ambiguity_is_a_garbling_of_less():
    for plain, mixed, more in zip(concept_tables(), concept_tables(0.25), concept_tables(0.7)):
        keep = (1 - 0.7) / (1 - 0.25)
        np.testing.assert_allclose(more, keep * mixed + (1 - keep) * plain.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("prior", [DEFAULT_PRIOR, SKEWED], ids=["default", "skewed"])
def test_bayes_accuracy_falls_with_ambiguity_to_the_largest_prior(prior):
    accuracy = [bayes_accuracy(prior, concept_tables(a)[:9]) for a in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)]
    assert (np.diff(accuracy) < 1e-12).all()
    assert accuracy[0] > 0.8
    assert accuracy[-1] == pytest.approx(prior.max(), abs=1e-12)


@pytest.mark.slow
def test_bayes_accuracy_of_all_concepts_equals_the_mean_largest_posterior():
    for ambiguity in (0.0, 0.1, 0.5):
        exact = bayes_accuracy(DEFAULT_PRIOR, concept_tables(ambiguity))
        drawn = draw(20_000, ambiguity=ambiguity, random_state=2).posterior.max(axis=1).mean()
        assert abs(drawn - exact) < np.sqrt(np.log(2 / ERROR) / (2 * 20_000))  # Hoeffding


# The posterior of a draw


def test_posterior_is_that_of_the_frame(many):
    tables, rows = concept_tables(0.3), codes(many)
    expected = [posterior_of_levels(SKEWED, tables, row) for row in rows[:500]]
    np.testing.assert_allclose(many.posterior[:500], expected, rtol=1e-9)
    assert many.classes == CLASSES
    assert many.posterior.dtype == np.float64


def test_labels_and_concepts_follow_the_tables(many):
    for k, name in enumerate(CLASSES):
        of_class = many.labels == name
        assert_counts(of_class.sum(), len(many), SKEWED[k])
        for table, column in zip(concept_tables(0.3), codes(many)[of_class].T):
            for level, probability in enumerate(table[k]):
                assert_counts((column == level).sum(), of_class.sum(), probability)


def test_mean_posterior_is_the_prior(many):
    assert np.abs(many.posterior.mean(axis=0) - SKEWED).max() < np.sqrt(np.log(2 / ERROR) / (2 * len(many)))


def test_posterior_is_calibrated_in_bins_of_itself(many):
    for k, name in enumerate(CLASSES):
        p = many.posterior[:, k]
        for low in np.arange(0, 1, 0.1):
            inside = (p >= low) & (p < low + 0.1)
            assert_calibrated(p[inside], many.labels[inside] == name)


def test_the_calibration_bands_see_a_wrong_posterior(many):
    wrong = class_posterior(DEFAULT_PRIOR, concept_tables(0.1), codes(many))
    misses = 0
    for k, name in enumerate(CLASSES):
        try:
            assert_calibrated(wrong[:, k], many.labels == name)
        except AssertionError:
            misses += 1
    assert misses >= 4


def test_posterior_is_calibrated_within_skin_types_of_their_own_priors():
    priors = np.random.default_rng(0).dirichlet(np.ones(7), 6)
    lesions = draw(6_000, class_prior=priors, random_state=3)
    for skin_type in range(1, 7):
        inside = lesions.frame["skin_type"].to_numpy() == skin_type
        assert_counts(inside.sum(), len(lesions), 1 / 6)
        for k, name in enumerate(CLASSES):
            assert_counts((lesions.labels[inside] == name).sum(), inside.sum(), priors[skin_type - 1, k])
            assert_calibrated(lesions.posterior[inside, k], lesions.labels[inside] == name)


def test_known_concepts_are_observed_not_set():
    known = {"veil": True, "network": "atypical"}
    lesions = draw(4_000, concepts=known, ambiguity=0.2, random_state=4)
    assert lesions.frame["veil"].all()
    assert (lesions.frame["network"] == "atypical").all()
    tables = {concept.name: table for concept, table in zip(CONCEPTS, concept_tables(0.2))}
    mix = posterior_of_levels(DEFAULT_PRIOR, [tables["veil"], tables["network"]], [1, 2])
    for k, name in enumerate(CLASSES):
        assert_counts((lesions.labels == name).sum(), len(lesions), mix[k])
        assert_calibrated(lesions.posterior[:, k], lesions.labels == name)


def test_full_ambiguity_leaves_the_prior():
    lesions = draw(50, ambiguity=1, class_prior=SKEWED, random_state=0)
    np.testing.assert_allclose(lesions.posterior, np.tile(SKEWED, (50, 1)), rtol=1e-12)


def test_a_class_of_prior_zero_never_appears():
    lesions = draw(2_000, class_prior={"nv": 0.75, "mel": 0.25}, random_state=0)
    assert set(lesions.labels) == {"mel", "nv"}
    assert lesions.classes == CLASSES
    assert (lesions.posterior[:, [0, 1, 2, 3, 6]] == 0).all()


# The image


def test_the_image_depends_on_the_class_through_the_concepts_alone():
    known = {concept.name: concept.levels[-1] for concept in CONCEPTS}
    nevi = draw(6, 48, class_prior={"nv": 1.0}, concepts=known, random_state=0)
    melanomas = draw(6, 48, class_prior={"mel": 1.0}, concepts=known, random_state=0)
    assert (nevi.labels != melanomas.labels).all()
    np.testing.assert_array_equal(nevi.images, melanomas.images)


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_every_level_is_visible(concept):
    plain = {other.name: other.levels[0] for other in CONCEPTS}
    images = [
        draw(12, 112, concepts={**plain, concept.name: level}, random_state=0).images.astype(float)
        for level in concept.levels
    ]
    for i, one in enumerate(images):
        for other in images[:i]:
            changed = (np.abs(one - other).max(axis=3) > 12).mean(axis=(1, 2))
            assert np.median(changed) > 0.004


def test_darker_skin_types_are_darker():
    corner = [draw(40, 32, skin_types=t, random_state=0).images[:, 8:24, 1:4].mean() for t in range(1, 7)]
    assert (np.diff(corner) < 0).all()


def test_images_of_a_lesion_share_it_and_differ():
    lesions = make_lesions(400, image_size=16, images_per_lesion=2, lesions_per_patient=3, random_state=0)
    frame, shared = lesions.frame, ["label", "patient_id", "skin_type", *(concept.name for concept in CONCEPTS)]
    assert (frame.groupby("lesion_id")[shared].nunique() == 1).all(axis=None)
    assert (frame.groupby("patient_id")["skin_type"].nunique() == 1).all()
    first = frame.groupby("lesion_id")["image"].transform(lambda names: names.index[0]).to_numpy()
    np.testing.assert_array_equal(lesions.posterior, lesions.posterior[first])
    assert len({image.tobytes() for image in lesions.images}) == 400
    assert_counts(frame["lesion_id"].nunique() - 1, 399, 1 / 2)
    assert_counts(frame["patient_id"].nunique() - 1, 399, 1 / 6)
    assert frame["image"].is_unique
    check_leakage(lesions, make_lesions(50, image_size=16, random_state=1))  # people of two seeds are other people
    with pytest.raises(LeakageError):
        check_leakage(lesions, make_lesions(50, image_size=16, random_state=0))
    assert (lesions.name, lesions.unit, lesions.synthetic) == ("phantom", "patient", True)
    assert lesions.taxonomy.malignant("mel")


# The bytes


@pytest.mark.parametrize("image_size", [16, 64, 101, 224])
def test_the_first_images_of_more_are_the_same(image_size):
    more = make_lesions(40, image_size=image_size, random_state=5)
    fewer = make_lesions(13, image_size=image_size, random_state=5)
    assert more.images.shape == (40, image_size, image_size, 3)
    assert more.images.dtype == np.uint8
    np.testing.assert_array_equal(more.images[:13], fewer.images)
    np.testing.assert_array_equal(more.posterior[:13], fewer.posterior)
    assert more.frame[:13].equals(fewer.frame)


def test_painting_one_by_one_is_painting_together(monkeypatch):
    together = make_lesions(30, image_size=48, random_state=6)
    monkeypatch.setattr("cbdc.phantom.make._CHUNK_PIXELS", 1)
    np.testing.assert_array_equal(make_lesions(30, image_size=48, random_state=6).images, together.images)


def test_random_state_decides_the_bytes():
    def images(random_state):
        return make_lesions(3, image_size=32, random_state=random_state).images.tobytes()

    assert images(0) == images(0) == images(np.random.RandomState(0))
    assert images(0) != images(1)
    assert images(None) != images(None)


def test_one_image():
    lesions = make_lesions(1, image_size=64, random_state=0)
    assert (len(lesions), lesions.images.shape) == (1, (1, 64, 64, 3))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "n_samples: got 0; expected an integer of at least 1"),
        ({"n_samples": 2.5}, "n_samples: got 2.5"),
        ({"n_samples": True}, "n_samples: got True"),
        ({"image_size": 8}, "image_size: got 8; expected an integer of at least 16"),
        ({"class_prior": [0.5, 0.5]}, r"class_prior: shape \(2,\); expected \(7,\) or \(6, 7\)"),
        ({"class_prior": np.full(7, 0.2)}, r"class_prior: sums to \[1.4"),
        ({"class_prior": [1.5, -0.5, 0, 0, 0, 0, 0]}, "class_prior: .* not negative"),
        ({"class_prior": [np.nan] * 7}, "class_prior: .* finite"),
        ({"class_prior": {"melanom": 1.0}}, "class_prior: no class is called 'melanom'"),
        ({"class_prior": {"mel": 0.5}}, r"class_prior: sums to \[0.5\]; expected 1"),
        ({"skin_types": 7}, "skin_types: got 7; expected Fitzpatrick types 1 to 6"),
        ({"skin_types": []}, "skin_types: got "),
        ({"skin_types": {1: 0.9, 6: 0.2}}, "skin_types: sums to"),
        ({"concepts": {"viel": True}}, "concepts: no concept is called 'viel'; did you mean 'veil'"),
        ({"concepts": {"network": "odd"}}, "concepts: 'network' has no level 'odd' .*'atypical'"),
        ({"ambiguity": 1.1}, "ambiguity: got 1.1; expected a number from 0 to 1"),
        ({"ambiguity": float("nan")}, "ambiguity: got nan"),
        ({"images_per_lesion": 0.5}, "images_per_lesion: got 0.5"),
        ({"lesions_per_patient": "2"}, "lesions_per_patient: got '2'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(DatasetError, match=message):
        make_lesions(**{"n_samples": 2, "image_size": 16, **arguments})


@pytest.mark.parametrize("skin_types", [3, [3], {3: 1.0, 4: 0.0}])
def test_skin_types_as_asked(skin_types):
    assert set(draw(20, skin_types=skin_types, random_state=0).frame["skin_type"]) == {3.0}
