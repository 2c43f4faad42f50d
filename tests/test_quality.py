"""Good photographs of every skin tone pass, plainly bad ones are sent back with the reason."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.ndimage import gaussian_filter

from cbdc.images import encode_image, read_image, read_images
from cbdc.quality import assess_quality

SKIN = {  # one tone of each Fitzpatrick type, in sRGB
    "I": (244, 208, 177),
    "II": (231, 180, 143),
    "III": (210, 158, 124),
    "IV": (186, 119, 80),
    "V": (140, 85, 55),
    "VI": (60, 40, 32),
}


def lesion(tone=SKIN["III"], seed=0, height=150, width=200, exposure=1.0):
    """A brown disc on skin: texture with the 1/f spectrum of photographs, drawn at the size asked for."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * height) + 1
    texture = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency).real
    texture *= 0.05 / texture.std()
    inside = 1 / (1 + np.exp((np.hypot(y - 0.5, x - 0.5 * width / height) - 0.22) / 0.01))
    light = (1 - 0.5 * inside + texture)[..., None] * np.asarray(tone)
    return np.clip(exposure * light, 0, 255).round().astype(np.uint8)


def blurred(pixels, sigma):
    return gaussian_filter(pixels.astype(float), (sigma, sigma, 0)).round().astype(np.uint8)


def page():
    """A document: lines of dark grey on white."""
    pixels = np.full((450, 600, 3), 250, np.uint8)
    pixels[40:420:12, 50:550:3] = 20
    return pixels


@given(st.sampled_from(sorted(SKIN)), st.floats(0.6, 1.0), st.integers(0, 50))
def test_every_skin_tone_passes_in_dim_light_too(skin_type, exposure, seed):
    quality = assess_quality(lesion(SKIN[skin_type], seed, exposure=exposure))
    assert (quality.verdict, quality.reasons) == ("accept", ())


BAD = {
    "all black": (np.zeros((450, 600, 3), np.uint8), "all black"),
    "lens cap with sensor noise": (np.random.default_rng(0).poisson(2, (450, 600, 3)).astype(np.uint8), "all black"),
    "all white": (np.full((450, 600, 3), 255, np.uint8), "overexposed"),
    "one colour": (np.full((450, 600, 3), SKIN["III"], np.uint8), "flat"),
    "blown out": (lesion(SKIN["I"], exposure=3), "overexposed"),
    "night": (np.where(np.arange(600)[None, :, None] < 120, lesion(height=450, width=600), 0), "underexposed"),
    "blurred": (blurred(lesion(), 3), "blurred"),
    "more blurred": (blurred(lesion(), 8), "blurred"),  # both measures say so; the reason comes once
    "badly blurred": (blurred(lesion(), 15), "blurred"),
    "gray": (np.repeat(lesion()[..., :1], 3, axis=2), "without colour"),
    "document": (page(), "without colour"),
    "meadow": (lesion((60, 160, 40)), "green or blue"),
    "sky": (lesion((90, 140, 220)), "green or blue"),
    "icon": (lesion(height=80, width=140), "too small"),
}


@pytest.mark.parametrize("case", BAD)
def test_retake_with_its_reason(case):
    pixels, reason = BAD[case]
    quality = assess_quality(pixels.astype(np.uint8))
    assert quality.verdict == "retake"
    assert any(text.startswith(reason) for text in quality.reasons), quality
    assert len(set(quality.reasons)) == len(quality.reasons)


def test_a_blue_lesion_on_skin_is_not_sent_back():
    """Blue is a colour of melanoma; only a picture without any skin is refused for it."""
    blue = lesion((90, 140, 220), height=150, width=200)
    blue[:, :40] = lesion()[:, :40]
    assert assess_quality(blue).verdict == "accept"


def test_a_cool_white_balance_is_not_blue():
    assert assess_quality(lesion((180, 192, 205))).verdict == "accept"


def test_noise_of_single_pixels_averages_out():
    noise = np.random.default_rng(0).normal(128, 8, (512, 512, 3)).round().astype(np.uint8)
    # luma of noise: 8 * 0.669, averaged over 16 pixels; 4.65 standard deviations lie between the 1st and 99th centile
    assert assess_quality(noise).measures["dynamic_range"] == pytest.approx(8 * 0.669 / 4 * 4.65, rel=0.1)


def test_dark_corners_of_a_dermoscope_are_neither_black_nor_blur():
    y, x = np.mgrid[-1:1:150j, -1.33:1.33:200j]
    ring = 1 / (1 + np.exp((np.hypot(y, x) - 1) / 0.05))
    assert assess_quality((lesion() * ring[..., None]).astype(np.uint8)).verdict == "accept"


@given(st.integers(0, 20), st.floats(0.5, 1.0))
def test_blur_is_a_ratio_that_exposure_does_not_move(seed, exposure):
    bright, dim = (assess_quality(lesion(SKIN["I"], seed, exposure=e)).measures for e in (1.0, exposure))
    assert abs(bright["blur"] - dim["blur"]) < 0.1
    assert abs(bright["coarse_blur"] - dim["coarse_blur"]) < 0.1


@pytest.mark.parametrize("times", [2, 3, 5])
def test_resolution_hardly_moves_the_measures(times):
    """The same photograph, sharp or blurred, from a better sensor."""
    for pixels in (lesion(), blurred(lesion(), 3)):
        larger = np.kron(pixels, np.ones((times, times, 1), np.uint8))
        small, large = assess_quality(pixels), assess_quality(larger)
        assert small.verdict == large.verdict
        for name in ("dynamic_range", "brightest", "chroma"):
            assert abs(small.measures[name] - large.measures[name]) < 3
        assert abs(small.measures["blur"] - large.measures["blur"]) < 0.15


def test_more_blur_is_more_blur():
    blur = [assess_quality(blurred(lesion(), sigma)).measures["blur"] for sigma in (0.01, 1, 2, 3)]
    assert blur == sorted(blur)


@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 300), st.integers(1, 300), st.just(3)), fill=st.integers(0, 255)))
def test_any_pixels_get_a_verdict_and_finite_measures(pixels):
    quality = assess_quality(pixels)
    assert quality == assess_quality(pixels.copy())
    assert (quality.verdict == "retake") == bool(quality.reasons)
    assert all(np.isfinite(value) for value in quality.measures.values())


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((50, 60)), np.zeros((50, 60, 3)), np.zeros((50, 60, 4), np.uint8), np.zeros((0, 0, 3), np.uint8)],
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match="expected uint8"):
        assess_quality(pixels)


# --- real photographs


def sample(data_root, name, n):
    paths = np.array(sorted((data_root / name / "images").iterdir()))
    return list(paths[np.sort(np.random.default_rng(0).permutation(len(paths))[:n])])


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["ham10000", "ph2", "isic2020", "pad_ufes_20"])
def test_at_most_one_good_photograph_in_a_hundred_is_sent_back(data_root, name):
    verdicts = [assess_quality(image.pixels).verdict for image in read_images(sample(data_root, name, 200))]
    assert verdicts.count("retake") <= 2


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["ham10000", "ph2", "isic2020", "pad_ufes_20"])
def test_real_photographs_blurred_are_sent_back(data_root, name):
    """Gaussian blur of 4 px in 150, then JPEG, whose blocks hide blur."""
    verdicts = []
    for image in read_images(sample(data_root, name, 60), size=(150, 200)):
        verdicts.append(assess_quality(read_image(encode_image(blurred(image.pixels, 4), "JPEG")).pixels).verdict)
    assert verdicts.count("retake") >= 0.8 * len(verdicts)


@pytest.mark.real_data
def test_no_fitzpatrick_type_is_sent_back_more_than_the_rest(data_root):
    frame = pd.read_csv(data_root / "pad_ufes_20" / "labels.csv").dropna(subset="fitspatrick")
    images = read_images([data_root / "pad_ufes_20" / "images" / name for name in frame["image"]])
    retake = pd.Series([assess_quality(image.pixels).verdict == "retake" for image in images])
    by_type = retake.groupby(frame["fitspatrick"].to_numpy()).sum()
    n = frame["fitspatrick"].value_counts()
    assert set(n.index) == {1, 2, 3, 4, 5, 6}
    assert (by_type <= 0.01 * n.loc[by_type.index]).all()  # none at all of a type with fewer than a hundred


@pytest.mark.real_data
def test_darkened_photographs_keep_their_verdict(data_root):
    """The nearest thing to the missing photographs of type VI: the others at 30% of their light."""
    images = read_images(sample(data_root, "pad_ufes_20", 200))
    verdicts = [assess_quality((image.pixels * 0.3).astype(np.uint8)).verdict for image in images]
    assert verdicts.count("retake") <= 6
