"""Displays: what is drawn is what was measured."""

import gc
import weakref

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from cbdc import ConformalClassifier, metrics
from cbdc.plots import (
    COLORS,
    ClassCoverageDisplay,
    CoverageLevelDisplay,
    ReliabilityDisplay,
    RiskCoverageDisplay,
    SetSizeDisplay,
)


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    proba = rng.dirichlet([0.6] * 4, 400)
    y = np.array([rng.choice(4, p=p) for p in proba])
    return proba, y, proba > 0.1


def displays(predictions):
    proba, y, sets = predictions
    return [
        ReliabilityDisplay.from_predictions(proba, y, random_state=0),
        ClassCoverageDisplay.from_predictions(sets, y, n_calibration=[90, 80, 70, 60], confidence_level=0.9),
        SetSizeDisplay.from_predictions(sets, y),
        CoverageLevelDisplay([0.8, 0.9], [0.82, 0.9], bands=[[0.75, 0.85], [0.86, 0.94]]).plot(),
        RiskCoverageDisplay.from_predictions(proba, y),
    ]


def texts(display):
    legend = display.ax_.get_legend()
    return [t.get_text() for t in legend.get_texts()] + [legend.get_title().get_text()]


def line(display, label):
    return next(item for item in display.ax_.get_lines() if item.get_label().startswith(label))


def bars(display, label):
    return next(c for c in display.ax_.containers if c.get_label() == label)


def test_no_global_state_and_nothing_leaks(predictions):
    before = plt.get_fignums()
    drawn = displays(predictions)
    assert plt.get_fignums() == before == []
    assert all(type(display.figure_) is Figure and display.ax_.figure is display.figure_ for display in drawn)
    alive = weakref.ref(drawn[0].figure_)
    del drawn
    gc.collect()
    assert alive() is None


def test_plot_draws_on_the_axes_given_and_returns_itself(predictions):
    for display in displays(predictions):
        ax = Figure().add_subplot()
        assert display.plot(ax) is display
        assert display.ax_ is ax
        assert ax.has_data()
        assert ax.get_xlabel()


def test_every_display_renders_without_a_warning(predictions, tmp_path):
    for i, display in enumerate(displays(predictions)):
        display.figure_.savefig(tmp_path / f"{i}.png")


def test_reliability_shows_the_curve_its_counts_and_its_noise(predictions):
    proba, y, _ = predictions
    display = ReliabilityDisplay.from_predictions(proba, y, n_bins=10, random_state=0)
    curve = metrics.reliability_curve(proba, y, 10)
    curve = curve[curve["n"] > 0]
    drawn = line(display, "accuracy in bin")
    np.testing.assert_allclose(drawn.get_xdata(), curve["confidence"])
    np.testing.assert_allclose(drawn.get_ydata(), curve["accuracy"])
    low, high = metrics.clopper_pearson(curve["correct"], curve["n"])
    segments = np.array(display.ax_.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, :, 1], np.column_stack([low, high]))
    assert [int(t.get_text()) for t in display.ax_.texts] == curve["n"].tolist()
    heights = [bar.get_height() for bar in bars(display, "cases in bin")]
    np.testing.assert_allclose(np.array(heights) / heights[0], curve["n"] / curve["n"].iloc[0])
    ece = metrics.expected_calibration_error(proba, y, 10)
    floor = metrics.ece_noise_floor(proba, 10, random_state=0)[1]
    assert f"ECE {ece:.3f} (noise alone: up to {floor:.3f})" in texts(display)


def test_reliability_of_units_has_their_intervals_and_noise(predictions):
    proba, y, _ = predictions
    units = np.arange(len(y)) // 3
    display = ReliabilityDisplay.from_predictions(proba, y, units=units, n_bins=10, random_state=0)
    curve = metrics.reliability_curve(proba, y, 10)
    right, top = proba.argmax(axis=1) == y, proba.max(axis=1)
    expected = [
        metrics.cluster_interval(right[inside], units[inside])
        for lower, upper in zip(curve["lower"], curve["upper"], strict=True)
        if (inside := (lower < top) & (top <= upper)).any()
    ]
    segments = np.array(display.ax_.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, :, 1], expected)
    floor = metrics.ece_noise_floor(proba, 10, units=units, random_state=0)[1]
    assert any(f"(noise alone: up to {floor:.3f})" in text for text in texts(display))


def test_reliability_of_units_counts_an_edge_to_the_bin_below():
    proba = np.array([[0.5, 0.3, 0.2]] * 6 + [[0.55, 0.25, 0.2]] * 6)  # ten bins: one ends at .5
    y, units = np.array([0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1]), np.arange(12) // 2
    display = ReliabilityDisplay.from_predictions(proba, y, units=units, n_bins=10, random_state=0)
    expected = [metrics.cluster_interval(y[rows] == 0, units[rows]) for rows in (slice(6), slice(6, 12))]
    np.testing.assert_allclose(np.array(display.ax_.collections[0].get_segments())[:, :, 1], expected)


def test_class_coverage_shows_rates_intervals_and_bands(predictions):
    _, y, sets = predictions
    n_calibration = np.array([90, 80, 70, 60])
    display = ClassCoverageDisplay.from_predictions(
        sets, y, classes=["a", "b", "c", "d"], n_calibration=n_calibration, confidence_level=0.9
    )
    n = np.bincount(y)
    covered = np.bincount(y, sets[np.arange(len(y)), y])
    points = display.ax_.get_lines()[1]
    np.testing.assert_allclose(points.get_xdata(), covered / n)
    assert display.ax_.get_lines()[0].get_xdata() == [0.9, 0.9]
    low, high = metrics.clopper_pearson(covered, n)
    intervals = np.array(display.ax_.collections[0].get_segments())[:, :, 0]
    np.testing.assert_allclose(intervals, np.column_stack([low, high]))
    for bar, cal, test in zip(display.ax_.patches, n_calibration, n, strict=True):
        low, high = metrics.coverage_band(int(cal), int(test), 0.9, probability=0.95)
        assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((low, high))
    labels = [t.get_text() for t in display.ax_.get_yticklabels()]
    assert labels == [f"{name}\nn = {count}" for name, count in zip("abcd", n)]
    left, right = display.ax_.get_xlim()
    assert left <= intervals.min()
    assert right >= 1


def test_classes_too_small_are_hollow_and_say_so():
    display = ClassCoverageDisplay(["big", "small", "none"], [50, 4, 0], [45, 4, 0], confidence_level=0.9).plot()
    _, full, hollow = display.ax_.get_lines()
    assert (full.get_ydata().tolist(), hollow.get_ydata().tolist()) == ([0], [1])
    assert to_hex(full.get_markerfacecolor()) == COLORS["observed"]
    assert hollow.get_markerfacecolor() == "none"
    assert [t.get_text() for t in display.ax_.get_yticklabels()][1:] == [
        "small\nn = 4, too small",
        "none\nn = 0, too small",
    ]
    assert "n too small to judge" in texts(display)
    assert "expected, 95% band" not in texts(display)


def test_groups_take_the_place_of_classes(predictions):
    _, y, sets = predictions
    groups = np.where(np.arange(len(y)) % 3 == 0, "I", "VI")
    display = ClassCoverageDisplay.from_predictions(sets, y, groups=groups)
    assert display.labels == ["I", "VI"]
    assert display.n.tolist() == [(groups == "I").sum(), (groups == "VI").sum()]


def test_dollar_signs_in_a_class_name_are_not_mathematics(tmp_path):
    display = ClassCoverageDisplay(["$\\frac{$", "b"], [20, 20], [19, 18]).plot()
    display.figure_.savefig(tmp_path / "a.svg")
    assert display.ax_.get_yticklabels()[0].get_text().startswith("$\\frac{$")


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6))
def test_set_sizes_are_counted_and_misses_stacked(seed, n, n_classes):
    rng = np.random.default_rng(seed)
    sets, y = rng.random((n, n_classes)) < 0.5, rng.integers(0, n_classes, n)
    display = SetSizeDisplay.from_predictions(sets, y)
    held = np.array([bar.get_height() for bar in bars(display, "true class in the set")])
    missed = np.array([bar.get_height() for bar in bars(display, "true class missing")])
    covered = sets[np.arange(n), y]
    np.testing.assert_array_equal(held + missed, metrics.set_size_histogram(sets))
    np.testing.assert_array_equal(missed, np.bincount(sets.sum(axis=1)[~covered], minlength=n_classes + 1))


def test_set_sizes_without_truth_have_one_colour(predictions):
    display = SetSizeDisplay.from_predictions(predictions[2])
    assert display.missed is None
    assert display.ax_.get_legend() is None


def test_coverage_level_from_an_estimator(predictions):
    proba, y, _ = predictions
    conformal = ConformalClassifier().fit(proba).conformalize(proba[:200], y[:200])
    levels = [0.9, 0.6, 0.8]
    display = CoverageLevelDisplay.from_estimator(
        conformal, proba[200:], y[200:], confidence_levels=levels, n_calibration=200
    )
    expected = [metrics.coverage(conformal.predict_set(proba[200:], level), y[200:]) for level in sorted(levels)]
    drawn = line(display, "observed")
    np.testing.assert_allclose(drawn.get_xdata(), sorted(levels))
    np.testing.assert_allclose(drawn.get_ydata(), expected)
    outline = display.ax_.collections[0].get_paths()[0].vertices
    for level in levels:
        for end in metrics.coverage_band(200, 200, level, probability=0.95):
            assert np.isclose(outline, [level, end]).all(axis=1).any()
    with pytest.raises(ValueError, match="label 9"):
        CoverageLevelDisplay.from_estimator(conformal, proba, np.full(len(y), 9))


def test_risk_coverage_shows_the_curve_and_its_area(predictions):
    proba, y, _ = predictions
    display = RiskCoverageDisplay.from_predictions(proba, y)
    kept, risk = metrics.risk_coverage_curve(proba, y)
    drawn = line(display, "most confident")
    np.testing.assert_allclose(drawn.get_xdata(), kept)
    np.testing.assert_allclose(drawn.get_ydata(), risk)
    assert any(f"AURC {metrics.aurc(proba, y):.3f}" in text for text in texts(display))
    assert line(display, "in any order").get_ydata()[0] == np.mean(proba.argmax(axis=1) != y)


def test_colours_stay_apart_in_greyscale():
    """Whoever sees no hue, or prints in grey, still tells the observed, the missed and the expected apart."""
    linear = {name: np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2 for name, c in COLORS.items()}
    lightness = sorted(
        100 * (linear[name] @ [0.2126, 0.7152, 0.0722]) ** (1 / 2.4) for name in ("observed", "missed", "expected")
    )
    assert np.diff(lightness).min() > 7
