"""Standard errors of the experiments, and that tables of heads are what their cells say."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.heads import summary
from experiments.splits import over_splits

RESULTS = Path(__file__).parent.parent / "experiments" / "results"


def test_the_error_of_splits_that_overlap():
    """Nadeau and Bengio: variance times (1 / J + test / training cases), here (1 / 4 + 1 / 3)."""
    found = over_splits([1.0, 2.0, 3.0, 4.0])
    assert found == {"mean": 2.5, "error": pytest.approx(np.sqrt(5 / 3 * (1 / 4 + 1 / 3))), "splits": 4}


def test_the_error_is_that_of_repeated_splits():
    """Means of few cases out of one population: the corrected error is near the truth, the usual one far below."""
    rng = np.random.default_rng(0)
    errors, means = [], []
    for _ in range(400):
        cases = rng.standard_normal(200)
        figures = [cases[rng.permutation(200)[:40]].mean() for _ in range(20)]
        means.append(np.mean(figures))
        errors.append(over_splits(figures)["error"])
    truth = np.std(means)
    assert np.sqrt(0.05 / (0.05 + 1 / 3)) * np.mean(errors) < 0.6 * truth  # the usual error
    assert 0.9 * truth < np.mean(errors) < 1.5 * truth


def test_heads_are_summarised_as_their_cells_say():
    results = json.loads((RESULTS / "heads.json").read_text(encoding="utf-8"))
    found = summary(results["cells"])
    assert found.keys() == results["summary"].keys()
    for name, models in found.items():
        assert models.keys() == results["summary"][name].keys()
        for model, figures in models.items():
            for figure, values in figures.items():
                assert values == pytest.approx(results["summary"][name][model][figure]), (name, model, figure)
