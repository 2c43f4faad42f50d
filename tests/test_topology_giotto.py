"""giotto-tda on current versions, against what it computed on the versions that it asks for."""

import builtins
import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from cbdc import topology as t
from cbdc.errors import MissingDependencyError
from cbdc.topology import giotto

sys.path.insert(0, str(Path(__file__).parent / "data"))
import make_giotto_golden

DATA = Path(__file__).parent / "data"

INSTALLED = all(importlib.util.find_spec(name) for name in ("gtda", "gph", "pyflagser", "plotly"))
needs_giotto_tda = pytest.mark.skipif(not INSTALLED, reason=f"giotto-tda is not installed: {giotto._INSTALL}")
needs_giotto_ph = pytest.mark.skipif(
    importlib.util.find_spec("gph") is None, reason="giotto-ph is not installed: pip install 'cbdc[giotto]'"
)


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "giotto_golden.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def ordered(diagram):
    diagram = diagram[diagram[:, 0] < diagram[:, 1]]
    return diagram[np.lexsort([diagram[:, 1], diagram[:, 0], diagram[:, 2]])]


@pytest.mark.parametrize(
    ("engine", "precision"), [pytest.param("giotto", 1e-9, marks=needs_giotto_ph), ("gudhi", 1e-6), ("auto", 1e-6)]
)
def test_our_diagrams_are_those_of_giotto_tda(golden, engine, precision):
    diagrams = [t.persistence_diagrams(X, (0, 1, 2), engine) for X in golden["clouds"]]
    stacked = t.stack_diagrams(diagrams, (0, 1, 2))
    assert stacked.shape == golden["diagrams"].shape
    for found, expected in zip(stacked, golden["diagrams"], strict=True):
        np.testing.assert_allclose(ordered(found), ordered(expected), atol=precision, rtol=0)
    padding = stacked[stacked[:, :, 0] == stacked[:, :, 1]]
    expected = golden["diagrams"][golden["diagrams"][:, :, 0] == golden["diagrams"][:, :, 1]]
    np.testing.assert_allclose(padding, expected, atol=precision, rtol=0)


@needs_giotto_tda
def test_giotto_tda_makes_the_same_diagrams_as_it_did(golden):
    found = giotto.VietorisRipsPersistence(homology_dimensions=(0, 1, 2)).fit_transform(golden["clouds"])
    np.testing.assert_allclose(found, golden["diagrams"], atol=1e-9, rtol=0)


@needs_giotto_tda
@pytest.mark.parametrize(
    "name",
    ["entropy", "normalized_entropy", "betti", "landscape", "image"]
    + [f"{kind}_{metric}" for kind in ("amplitude", "distance") for metric in make_giotto_golden.METRICS],
)
def test_transformers_give_what_they_gave(golden, name):
    transformer = clone(make_giotto_golden.transformers(giotto)[name])
    np.testing.assert_allclose(transformer.fit_transform(golden["diagrams"]), golden[name], atol=1e-9, rtol=1e-9)


def test_our_bottleneck_distance_is_the_exact_one_of_giotto_tda(golden):
    """Over dimensions giotto-tda takes the Euclidean norm of the bottleneck distances."""
    for i, a in enumerate(golden["diagrams"]):
        for j, b in enumerate(golden["diagrams"]):
            distance = np.linalg.norm([t.bottleneck_distance(a, b, k) for k in range(3)])
            assert distance == pytest.approx(golden["distance_bottleneck"][i, j], abs=1e-9)


@needs_giotto_tda
def test_transformers_go_into_pipelines_and_take_our_diagrams(golden):
    clouds = golden["clouds"]
    pipeline = make_pipeline(giotto.VietorisRipsPersistence(homology_dimensions=(0, 1, 2)), giotto.PersistenceEntropy())
    ours = t.stack_diagrams([t.persistence_diagrams(X, (0, 1, 2), "gudhi") for X in clouds])
    np.testing.assert_allclose(
        clone(pipeline).fit_transform(clouds), giotto.PersistenceEntropy().fit_transform(ours), atol=1e-5
    )


@needs_giotto_tda
def test_only_modules_of_giotto_tda_are_changed():
    from sklearn.utils import validation

    before = validation.check_array
    filters = list(warnings.filters)
    assert giotto.BettiCurve is giotto.BettiCurve
    assert validation.check_array is before
    assert not (np.__version__ >= "2" and hasattr(np, "product"))
    assert warnings.filters == filters


def test_a_missing_package_is_named_with_its_fix(monkeypatch):
    importing = builtins.__import__
    monkeypatch.setattr(
        giotto.importlib, "import_module", lambda name: importing("absent" if name.startswith("gtda") else name)
    )
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps giotto-tda==0.6.2"):
        giotto.PersistenceEntropy  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="it has Amplitude"):
        giotto.Mapper  # noqa: B018
    assert "PersistenceImage" in dir(giotto)
