"""Perturbations: none is larger than its bound, each is what its formula says, and draws repeat."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cbdc.errors import ImageError, ParameterError
from cbdc.perturb import (
    PERTURBATIONS,
    SEVERITIES,
    draw_perturbation,
    list_perturbations,
    perturb,
    perturbation_bound,
)
from cbdc.phantom import make_lesions
from tests.strategies import pictures
from theory import perturb_reference as reference

NAMES = list(PERTURBATIONS)
CURVES = ["brightness", "contrast", "gamma", "white_balance"]
LAYERS = ["vignette", "hair", "ruler", "gel"]
WARPS = ["rotation", "scale", "elastic", "crop"]
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def lesions():
    return make_lesions(16, image_size=64, random_state=0).images


def smooth_picture(height=61, width=83):
    """Values from 80 to 180, so that little is clipped."""
    row, column = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[:, None]
    return (130 + 50 * np.sin(4 * row + np.arange(3)) * np.cos(5 * column - np.arange(3))).astype(np.uint8)


def rounding(image):
    """The most that rounding to 8 bits adds to a size."""
    return np.sqrt(image.size) / 510


@st.composite
def any_parameters(draw, name):
    """A perturbation with a first parameter anywhere within its limits."""
    kind = PERTURBATIONS[name]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if name == "flip":
        return kind(*rng.random(2) < 0.5)
    low, high = kind.limits
    high = min(high, 60) if name in ("hair", "gel") else high
    value = draw(st.sampled_from([low, high]) | st.floats(low, high))
    if isinstance(kind.amounts[0], int) and name in ("jpeg", "hair", "gel"):
        value = int(value)
    if name == "white_balance":
        value = tuple(rng.choice([0.0, 0.5, 1.0, 3.0], 3))
    return dataclasses.replace(kind.draw(1, rng), **{dataclasses.fields(kind)[0].name: value})


# The bound


@each
@given(st.data())
def test_bound_holds(name, data):
    image, seed = data.draw(pictures()), data.draw(st.integers(0, 2**31))
    severity = data.draw(st.sampled_from(SEVERITIES))
    change = reference.size(perturb(image, name, severity, seed), image)
    assert change <= perturbation_bound(image, name, severity, seed)


@each
@given(st.data())
def test_bound_holds_for_any_parameter(name, data):
    image, perturbation = data.draw(pictures()), data.draw(any_parameters(name))
    assert reference.size(perturbation(image), image) <= perturbation.bound(image)


@pytest.mark.slow
@each
@settings(max_examples=600)  # more than 10,000 over all names
@given(st.data())
def test_bound_holds_many_times(name, data):
    image, perturbation = data.draw(pictures(max_side=64)), data.draw(any_parameters(name))
    assert reference.size(perturbation(image), image) <= perturbation.bound(image)


@each
def test_bound_holds_on_lesions(name, lesions):
    for severity in SEVERITIES:
        new = perturb(lesions, name, severity)
        sizes = np.linalg.norm((new / 255 - lesions / 255).reshape(len(lesions), -1), axis=1)
        assert (sizes <= perturbation_bound(lesions, name, severity)).all()


@each
def test_the_bound_applies_nothing(name, lesions, monkeypatch):
    def refuse(self, image):
        raise AssertionError("applied")

    monkeypatch.setattr(PERTURBATIONS[name], "_apply", refuse)
    assert perturbation_bound(lesions[0], name, 3) > 0
    with pytest.raises(AssertionError, match="applied"):
        perturb(lesions[0], name, 3)


@pytest.mark.parametrize("name", CURVES)
@given(st.data())
def test_curves_have_their_exact_size(name, data):
    """So that brightness, contrast and gamma are within the factor 1.2 on every image, clipped or not."""
    image, severity = data.draw(pictures()), data.draw(st.sampled_from(SEVERITIES))
    bound = perturbation_bound(image, name, severity)
    assert bound == pytest.approx(reference.size(perturb(image, name, severity), image), rel=2e-5, abs=1e-12)


def closed_forms(image, severity, seed=0):
    """Largest size of each curve's perturbation on this image, by the formulas of theory/perturb.md."""
    x, n = image / 255, image.size
    b, c, g, gains = (next(iter(vars(draw_perturbation(image, name, severity, seed)).values())) for name in CURVES)
    return {
        "brightness": abs(b) * np.sqrt(n),
        "contrast": abs(c - 1) * np.linalg.norm(x - x.mean(axis=(0, 1))),
        "gamma": abs(g - 1) * g ** (-g / (g - 1)) * np.sqrt(n),
        "white_balance": np.sqrt(sum((gain - 1) ** 2 * (x[..., c] ** 2).sum() for c, gain in enumerate(gains))),
    }


@given(pictures(), st.sampled_from(SEVERITIES), st.integers(0, 99))
def test_closed_forms_hold_for_any_image(image, severity, seed):
    for name, size in closed_forms(image, severity, seed).items():
        assert perturbation_bound(image, name, severity, seed) <= (size + rounding(image)) * (1 + 1e-4)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("seed", range(3))
def test_closed_forms_are_reached(severity, seed):
    image = smooth_picture()
    closed = closed_forms(image, severity, seed)
    for name in ("brightness", "contrast", "white_balance"):
        change = reference.size(perturb(image, name, severity, seed), image)
        assert abs(closed[name] - change) <= rounding(image)
    g = 1 + PERTURBATIONS["gamma"].amounts[severity - 1]
    worst = np.full_like(image, round(255 * g ** (-1 / (g - 1))))
    change = reference.size(PERTURBATIONS["gamma"](g)(worst), worst)
    assert abs(abs(g - 1) * g ** (-g / (g - 1)) * np.sqrt(image.size) - change) <= 1.01 * rounding(image)


@pytest.mark.parametrize("g", [0.3, 0.5, 0.9, 1.1, 2.0, 3.5])
def test_largest_gamma_change_is_the_closed_form(g):
    assert abs(g - 1) * g ** (-g / (g - 1)) == pytest.approx(reference.largest_gamma_change(g), rel=1e-9)


@given(pictures(), st.sampled_from(SEVERITIES))
def test_noise_has_the_size_asked_for(image, severity):
    middle = np.full_like(image, 128)
    expected = PERTURBATIONS["noise"].amounts[severity - 1] * np.sqrt(image.size)
    assert abs(reference.size(perturb(middle, "noise", severity), middle) - expected) <= rounding(image) * 1.01


@pytest.mark.parametrize("name", LAYERS)
@given(pictures(), st.sampled_from(SEVERITIES))
def test_layers_are_bounded_by_their_area(name, image, severity):
    changed = (perturb(image, name, severity) != image).any(axis=2).sum()
    size = reference.size(perturb(image, name, severity), image)
    assert size <= np.sqrt(3 * changed)
    if name == "vignette":
        depth = PERTURBATIONS[name].amounts[severity - 1]
        assert perturbation_bound(image, name, severity) <= depth * np.sqrt(image.size) + 1.01 * rounding(image)


def test_other_bounds_are_not_far_off(lesions):
    """What the guide says of them; made lesions, the mean over images of bound / size."""
    largest = {"hue": 1.5, "saturation": 1.3, "blur": 1.5, "jpeg": 2.5, "noise": 1.2} | dict.fromkeys(LAYERS, 1.01)
    for name in {*NAMES} - {*CURVES, "flip"}:
        for severity in (1, 3, 5):
            bounds = perturbation_bound(lesions, name, severity)
            sizes = [reference.size(perturb(image, name, severity), image) for image in lesions]
            assert (bounds / sizes).mean() <= largest.get(name, 5.0)


# Severities and draws


def test_names_and_kinds():
    assert list_perturbations() == NAMES
    assert list_perturbations("photometric") == NAMES[:10]
    assert list_perturbations("morphological") == NAMES[10:]


@each
def test_size_grows_with_severity(name, lesions):
    sizes = [np.linalg.norm(perturb(lesions, name, severity) / 255 - lesions / 255) for severity in SEVERITIES]
    steps = np.diff(sizes)
    assert (steps == 0).all() if name == "flip" else (steps > 0).all()


@each
def test_batch_is_one_by_one_in_any_order(name, lesions):
    batch = lesions[:5]
    together, bounds = perturb(batch, name, 3, 7), perturbation_bound(batch, name, 3, 7)
    assert (together.shape, together.dtype) == (batch.shape, np.uint8)
    np.testing.assert_array_equal(perturb(batch[::-1], name, 3, 7)[::-1], together)
    for image, new, bound in zip(batch, together, bounds):
        np.testing.assert_array_equal(perturb(image, name, 3, 7), new)
        assert perturbation_bound(image, name, 3, 7) == bound


@each
def test_layout_in_memory_changes_nothing(name, lesions):
    image = lesions[0]
    for other in (np.asfortranarray(image), np.repeat(image, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(perturb(other, name, 4), perturb(image, name, 4))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("blur", "jpeg")])
def test_seed_and_image_decide_the_draw(name, lesions):
    image = lesions[0]
    draws = {draw_perturbation(image, name, 2, seed) for seed in range(40)}
    by_image = {draw_perturbation(other, name, 2) for other in lesions}
    assert draw_perturbation(image, name, 2, 5) == draw_perturbation(image.copy(), name, 2, 5)
    assert min(len(draws), len(by_image)) > 1
    first = dataclasses.fields(PERTURBATIONS[name])[0].name
    if name in ("brightness", "contrast", "hue", "saturation", "gamma", "rotation", "scale"):
        assert len({getattr(draw, first) for draw in draws}) == 2  # to either side


@each
def test_severities_of_an_image_share_the_draw(name, lesions):
    kind = PERTURBATIONS[name]
    first = dataclasses.fields(kind)[0].name
    draws = [draw_perturbation(lesions[1], name, severity, 3) for severity in SEVERITIES]
    assert len({dataclasses.astuple(draw)[1:] for draw in draws}) == 1
    values = [np.array(getattr(draw, first), dtype=float) for draw in draws]
    neutral = 1.0 if name in ("contrast", "gamma", "saturation", "scale", "white_balance") else 0.0
    assert len({tuple(np.sign(np.atleast_1d(value - neutral))) for value in values}) == 1


def test_more_hairs_and_bubbles_hold_the_fewer(lesions):
    for name in ("hair", "gel"):
        few, many = (perturb(lesions[2], name, severity) != lesions[2] for severity in (2, 4))
        assert few.any()
        assert (many | ~few).mean() > 0.999


def test_no_global_random_state_is_used(lesions):
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for name in NAMES:
        perturb(lesions[0], name, 3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@each
def test_input_is_left_alone(name, lesions):
    image = lesions[0].copy()
    image.setflags(write=False)
    new = perturb(image, name, 5)
    assert not np.shares_memory(new, image)
    assert new.flags.c_contiguous


# Each is what it says


NOTHING = [
    ("brightness", (0.0,)),
    ("contrast", (1.0,)),
    ("gamma", (1.0,)),
    ("white_balance", ((1.0, 1.0, 1.0),)),
    ("hue", (0.0,)),
    ("hue", (360.0,)),
    ("saturation", (1.0,)),
    ("blur", (0.0,)),
    ("noise", (0.0,)),
    ("vignette", (0.0,)),
    ("rotation", (0.0,)),
    ("flip", (False, False)),
    ("scale", (1.0,)),
    ("elastic", (0.0,)),
    ("hair", (0,)),
    ("ruler", (0.0,)),
    ("gel", (0,)),
    ("crop", (0.0,)),
]


@pytest.mark.parametrize(("name", "parameters"), NOTHING)
@given(image=pictures())
def test_at_zero_nothing_changes(name, parameters, image):
    np.testing.assert_array_equal(PERTURBATIONS[name](*parameters)(image), image)


@each
@given(image=pictures(), seed=st.integers(0, 99))
def test_shape_and_type_stay(name, image, seed):
    new = perturb(image, name, 5, seed)
    assert (new.shape, new.dtype) == (image.shape, np.uint8)


@given(pictures(), st.booleans(), st.booleans())
def test_flips_are_exact(image, vertical, horizontal):
    flip = PERTURBATIONS["flip"](vertical, horizontal)
    axes = [axis for axis, chosen in enumerate((vertical, horizontal)) if chosen]
    np.testing.assert_array_equal(flip(image), np.flip(image, axes))
    np.testing.assert_array_equal(flip(flip(image)), image)


@given(pictures(), st.floats(-40, 40))
def test_hue_is_a_rotation(image, degrees):
    expected = np.clip(reference.turn_hue(image / 255, degrees), 0, 1) * 255
    assert np.abs(PERTURBATIONS["hue"](degrees)(image) - expected).max() <= 0.501


def test_saturation_goes_from_gray_to_vivid():
    image = smooth_picture()
    gray = PERTURBATIONS["saturation"](0.0)(image)
    np.testing.assert_array_equal(gray, np.asarray(Image.fromarray(image).convert("L"))[..., None].repeat(3, axis=2))
    vivid = PERTURBATIONS["saturation"](1.5)(image)
    assert np.ptp(vivid, axis=2).mean() > 1.4 * np.ptp(image, axis=2).mean()


@pytest.mark.parametrize("sigma", [2.0, 6.0, 20.0])
def test_blur_is_that_in_space(sigma):
    image = np.random.default_rng(0).integers(0, 256, (112, 130, 3), dtype=np.uint8)  # shorter side: half of 224
    expected = reference.blur(image.astype(float), sigma / 2)
    assert np.abs(PERTURBATIONS["blur"](sigma)(image) - expected).max() < 1.5


@given(pictures(), st.sampled_from([1, 7, 10, 25, 49, 50, 60, 90, 100]))
def test_jpeg_is_that_of_the_standard(image, quality):
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    expected = np.clip(reference.jpeg(padded, quality), 0, 255)[:height, :width]
    off = np.abs(PERTURBATIONS["jpeg"](quality)(image) - expected)
    assert np.quantile(off, 0.99) <= 0.51  # a coefficient halfway between two steps may go either way


@pytest.mark.parametrize("quality", [1, 10])
def test_jpeg_bound_holds_where_a_coefficient_lies_halfway(quality):
    """One colour all over has one coefficient a plane, so that its error comes close to half a step."""
    jpeg, ratios = PERTURBATIONS["jpeg"](quality), []
    for level in range(256):
        image = np.full((16, 16, 3), level, dtype=np.uint8)
        ratios.append(reference.size(jpeg(image), image) / jpeg.bound(image))
    assert 0.9 < max(ratios) <= 1


@pytest.mark.parametrize("quality", [10, 25, 60, 95])
def test_jpeg_is_that_of_pillow(quality):
    """Of a gray picture: codecs enlarge colours in their own ways."""
    gray = smooth_picture(64, 80)[..., :1].repeat(3, axis=2)
    gray += np.random.default_rng(0).integers(0, 40, (64, 80, 1), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "JPEG", quality=quality)
    theirs = np.asarray(Image.open(buffer)).astype(int)
    off = np.abs(PERTURBATIONS["jpeg"](quality)(gray) - theirs)
    assert off.mean() < 0.5
    assert np.quantile(off, 0.99) <= 2
    assert reference.size(theirs, gray) <= PERTURBATIONS["jpeg"](quality).bound(gray)


@pytest.mark.parametrize("quality", [10, 60, 95])
def test_jpeg_loses_in_colour_what_pillow_loses(quality, lesions):
    for image in lesions[:4]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        theirs, ours = np.asarray(Image.open(buffer)), PERTURBATIONS["jpeg"](quality)(image)
        assert np.abs(ours - theirs.astype(int)).mean() < 2
        assert reference.size(ours, image) == pytest.approx(reference.size(theirs, image), rel=0.1)


@pytest.mark.parametrize("name", WARPS)
@given(data=st.data())
def test_warps_read_where_they_say(name, data):
    image, warp = data.draw(pictures()), data.draw(any_parameters(name))
    rows, columns = np.broadcast_arrays(*warp._positions(image))
    expected = reference.read_at(image.astype(float), rows, columns)
    assert np.abs(warp(image) - expected).max() <= 0.51


@given(pictures())
def test_quarter_turns_are_exact(image):
    square = image[: min(image.shape[:2]), : min(image.shape[:2])]
    for turns in range(-4, 5):
        np.testing.assert_array_equal(PERTURBATIONS["rotation"](90.0 * turns)(square), np.rot90(square, turns))


def test_scale_in_and_out():
    image = smooth_picture(60, 80)
    middle = np.s_[15:45, 20:60]
    enlarged = np.asarray(Image.fromarray(image[middle]).resize((80, 60), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(PERTURBATIONS["scale"](2.0)(image) - enlarged)[2:-2, 2:-2].max() <= 1
    reduced = PERTURBATIONS["scale"](0.5)(image)[middle].astype(int)
    assert np.abs(reduced - image[::2, ::2]).max() <= 12


def test_a_crop_shows_its_window():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[:50, :100] = 200
    crop = PERTURBATIONS["crop"]
    assert (crop(0.5, (0.0, 0.0))(image)[:-1, :-1] == 200).all()
    assert (crop(0.5, (1.0, 1.0))(image)[1:, 1:] == 0).all()
    np.testing.assert_array_equal(crop(0.6)(smooth_picture()), PERTURBATIONS["scale"](2.5)(smooth_picture()))


def test_hairs_leave_a_tenth_of_the_skin():
    white = np.full((48, 48, 3), 255, dtype=np.uint8)
    darkest = PERTURBATIONS["hair"](200, 0)(white).min(axis=(0, 1))
    tones = [0.1 + 0.9 * np.array(tone) for tone in ((0.09, 0.06, 0.05), (0.48, 0.3, 0.2))]
    assert any(np.abs(255 * tone - darkest).max() <= 0.51 for tone in tones)


@pytest.mark.parametrize("seed", range(20))
def test_elastic_does_not_fold(seed):
    elastic = PERTURBATIONS["elastic"]
    rows, columns = elastic(elastic.limits[1], seed)._positions(np.zeros((224, 300, 3), dtype=np.uint8))
    moved = np.abs([rows - np.arange(224)[:, None], columns - np.arange(300)])
    assert 5 < moved.max() <= elastic.limits[1]
    (row_down, row_right), (column_down, column_right) = np.gradient(rows), np.gradient(columns)
    assert (row_down * column_right - row_right * column_down).min() > 0


ROUND_TRIPS = [
    ("brightness", (0.1,), (-0.1,)),
    ("contrast", (0.8,), (1.25,)),
    ("gamma", (1.5,), (1 / 1.5,)),
    ("white_balance", ((1.1, 1.0, 0.9),), ((1 / 1.1, 1.0, 1 / 0.9),)),
    ("hue", (20.0,), (-20.0,)),
    ("saturation", (0.8,), (1.25,)),
    ("rotation", (20.0,), (-20.0,)),
    ("scale", (1.2,), (1 / 1.2,)),
]


@pytest.mark.parametrize(("name", "there", "back"), ROUND_TRIPS)
def test_there_and_back(name, there, back):
    image = smooth_picture(90, 110)
    again = PERTURBATIONS[name](*back)(PERTURBATIONS[name](*there)(image))
    assert np.abs(again.astype(int) - image)[25:-25, 35:-35].max() <= 3


def test_lengths_grow_with_the_image():
    """An image of twice the side looks the same after a perturbation of the same severity."""
    small = make_lesions(1, image_size=112, random_state=3).images[0]
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    for name, parameters in [("blur", (4.0,)), ("elastic", (20.0, 1)), ("gel", (10, 1)), ("ruler", (0.2, 1))]:
        perturbation = PERTURBATIONS[name](*parameters)
        reduced = perturbation(large).reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
        change = np.linalg.norm(perturbation(small) - small.astype(float))
        assert np.linalg.norm(reduced - perturbation(small)) < 0.5 * change
    inks = [(image - PERTURBATIONS["hair"](20, 1)(image).astype(float)).mean() for image in (small, large)]
    assert inks[1] == pytest.approx(inks[0], rel=0.15)


def test_white_balance_keeps_the_brightness_of_gray():
    for seed in range(50):
        logs = np.log(draw_perturbation(smooth_picture(), "white_balance", 5, seed).gains)
        assert logs.sum() == pytest.approx(0, abs=1e-12)
        warm, green = logs @ [1, 0, -1] / np.sqrt(2), logs @ [-1, 2, -1] / np.sqrt(6)
        assert np.hypot(warm, 3 * green) == pytest.approx(PERTURBATIONS["white_balance"].amounts[-1], rel=1e-9)


# The guide


@each
def test_the_guide_lists_the_severities(name):
    page = (Path(__file__).parent.parent / "docs" / "perturb.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` ")]
    assert ", ".join(map(str, PERTURBATIONS[name].amounts)) in row or name == "flip"


@each
def test_docstrings_state_size_and_source(name):
    doc = PERTURBATIONS[name].__doc__
    assert "Size: " in doc
    assert "Source: " in doc
    assert "Parameters\n" in doc


# Bad input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([[1, 2]], "image: got list; expected a uint8 array"),
        (np.zeros((8, 8), dtype=np.uint8), r"image: got shape \(8, 8\) \(grayscale\); expected \(H, W, 3\)"),
        (np.zeros((8, 8, 4), dtype=np.uint8), r"image: got shape \(8, 8, 4\); expected \(H, W, 3\)"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"image: got shape \(0, 8, 3\)"),
        (np.zeros((2, 8, 8, 1), dtype=np.uint8), r"image: got shape \(8, 8, 1\)"),
        (np.zeros((8, 8, 3)), "image: got float64; expected uint8. Scale it to 0-255"),
        (np.zeros((8, 8, 3), dtype=np.uint16), "image: got uint16"),
    ],
)
def test_bad_images(image, message):
    for use in (perturb, perturbation_bound):
        with pytest.raises(ImageError, match=message):
            use(image, "brightness", 1)
    with pytest.raises(ImageError):
        PERTURBATIONS["hair"](3)(image)
    with pytest.raises(ImageError):
        PERTURBATIONS["hair"](3).bound(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("brightnes", 1), "no perturbation is called 'brightnes'. Did you mean 'brightness'"),
        (("Hair", 1), "Did you mean 'hair'"),
        (("fog", 1), "no perturbation is called 'fog'. Allowed: brightness, contrast"),
        ((3, 1), "no perturbation is called 3"),
        (("hair", 0), "severity: got 0; expected an integer from 1"),
        (("hair", 6), "severity: got 6"),
        (("hair", 2.5), "severity: got 2.5"),
        (("hair", True), "severity: got True"),
        (("hair", 1, None), "random_state: got None; expected an integer from 0"),
        (("hair", 1, -1), "random_state: got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    for use in (perturb, perturbation_bound, draw_perturbation):
        with pytest.raises(ParameterError, match=message):
            use(smooth_picture(), *arguments)


def test_bad_kind():
    with pytest.raises(ParameterError, match=r"kind: got 'photometrics'; .* Did you mean 'photometric'"):
        list_perturbations("photometrics")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", -1.0),
        ("jpeg", 0),
        ("jpeg", 101),
        ("noise", np.nan),
        ("blur", np.inf),
        ("crop", 1.0),
        ("scale", 0.0),
        ("hair", -1),
        ("vignette", 1.1),
        ("elastic", 27.0),
        ("white_balance", (1.0, -0.1, 1.0)),
    ],
)
def test_parameters_outside_their_limits(name, value):
    with pytest.raises(ParameterError, match=r": got .*; expected from"):
        PERTURBATIONS[name](value)


def test_no_images():
    none = np.zeros((0, 8, 8, 3), dtype=np.uint8)
    assert perturb(none, "hair", 1).shape == none.shape
    assert perturbation_bound(none, "hair", 1).shape == (0,)
