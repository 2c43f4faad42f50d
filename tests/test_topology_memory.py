"""The estimate of memory, beside measured peaks, and the refusal that rests on it."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.topology_memory import KINDS, made_cloud, measured_peak
from cbdc import topology as t
from cbdc.errors import ParameterError
from cbdc.topology import _engines, diagrams, memory


@given(
    n=st.integers(0, 9), size=st.integers(3, 5), share=st.sampled_from([0.3, 0.7, 1.0]), seed=st.integers(0, 2**32 - 1)
)
def test_cliques_are_counted(n, size, share, seed):
    A = np.triu(np.random.default_rng(seed).random((n, n)) < share, 1)
    A = A | A.T | np.eye(n, dtype=bool)
    expected = sum(A[np.ix_(chosen, chosen)].all() for chosen in map(list, itertools.combinations(range(n), size)))
    assert memory._n_cliques(A, size) == expected


def test_a_loop_takes_more_than_an_embedding():
    embedding, circle = (t.estimate_memory(made_cloud(kind, 800), engine="gudhi") for kind in ("embedding", "circle"))
    assert circle > 4 * embedding
    assert t.estimate_memory(made_cloud("circle", 800), engine="gudhi") == circle
    assert t.estimate_memory(made_cloud("circle", 800), (0,)) == 8 * 800**2
    D = t.distance_matrix(made_cloud("circle", 800))
    assert t.estimate_memory(D, engine="gudhi", metric="precomputed") == circle - D.nbytes
    assert t.estimate_memory(D, engine="gudhi", metric="precomputed", max_edge_length=0.1) < circle / 10


def test_a_run_that_is_too_large_is_refused_before_it_starts(monkeypatch):
    X = made_cloud("embedding", 200)
    assert len(t.persistence_diagrams(X, (0, 1), "gudhi", max_memory=1e9)) > 200
    monkeypatch.setattr(diagrams, "run_engine", lambda *arguments: pytest.fail("it ran"))
    with pytest.raises(ParameterError, match=r"max_memory: .* these 200 points .* homology_dimensions=\(0,\)"):
        t.persistence_diagrams(X, (0, 1), "gudhi", max_memory=1e5)
    with pytest.raises(ParameterError, match="max_memory"):
        t.persistence_diagrams(X, (0, 1), "gudhi", max_memory=8 * 200**2 + 1e5)
    assert len(t.persistence_diagrams(X, (0,), max_memory=1e5)) == 199
    monkeypatch.setattr(diagrams, "distance_matrix", lambda *arguments: pytest.fail("it formed 80 GB of distances"))
    with pytest.raises(ParameterError, match=r"100,000 points would take about \d{3}"):
        t.persistence_diagrams(np.random.default_rng(0).standard_normal((100_000, 2)), (0, 1), "gudhi")


def test_a_cloud_that_is_too_small_for_a_sample_is_estimated():
    for n in (1, 2, 5):
        assert 0 < t.estimate_memory(np.arange(n)[:, None], (0, 1, 2)) < 1e4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is read from /proc, on Linux")
@pytest.mark.parametrize("engine", ["gudhi", "giotto"])
@pytest.mark.parametrize(("n", "dimension"), [(600, 1), (1000, 1), (300, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_within_a_factor_of_two(engine, n, dimension, kind):
    if _engines.choose_engine("auto") != "giotto" and engine == "giotto":
        pytest.skip("giotto-ph is not installed: pip install 'cbdc[giotto]'")
    measured = measured_peak(kind, n, dimension, engine)
    estimate = t.estimate_memory(made_cloud(kind, n), tuple(range(dimension + 1)), engine)
    assert measured / 2 <= estimate <= 2 * measured
