"""The statements that theory/coq proves, on the library, exhaustively where that is possible."""

import itertools
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import single
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist, squareform

from cbdc import ConformalClassifier
from cbdc.conformal import CalibrationScores
from cbdc.metrics import conformal_rank

ROOT = Path(__file__).parent.parent


def threshold(scores, k):
    """Conformity score of rank k from the best down, as the library reads it off."""
    calibration = CalibrationScores.from_cases(
        np.asarray(scores, dtype=float), np.zeros(len(scores), dtype=int), (1, 1)
    )
    return calibration.at_ranks(np.array([[k]]))[0, 0]


def tie_patterns(n):
    """Score lists of n cases, one for each way in which they may tie, in ascending order."""
    for steps in itertools.product([0, 1], repeat=n - 1):
        yield np.cumsum([0, *steps]).astype(float)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_counting(n):
    for scores in tie_patterns(n + 1):
        for k in range(1, n + 1):
            # conformity scores: leaving each case out in turn, the threshold is that of the others
            covered = sum(scores[i] >= threshold(np.delete(scores, i), k) for i in range(n + 1))
            assert covered >= k
            if len(np.unique(scores)) == n + 1:
                assert covered == k


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_quantile_rank(n):
    for scores in tie_patterns(n):
        for x in np.arange(-0.5, n + 0.5, 0.5):
            for k in range(1, n + 1):
                better = np.sum(scores > x)  # conforming better: the nonconformity score is below
                assert (x >= threshold(scores, k)) == (better < k)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_coverage_over_all_orders(n):
    for scores in [np.arange(n + 1.0), *(tie_patterns(n + 1) if n <= 4 else [])]:
        for k in range(1, n + 1):
            hits = sum(order[-1] >= threshold(order[:-1], k) for order in itertools.permutations(scores.tolist()))
            assert hits * (n + 1) >= k * math.factorial(n + 1)
            if len(np.unique(scores)) == n + 1:
                assert hits * (n + 1) == k * math.factorial(n + 1)


def test_coverage_in_class_over_all_orders():
    """The classifier itself, class-conditional: of all orders whose last case is of a class, the share it covers."""
    proba = np.linspace(0.05, 0.95, 6)
    X, y = np.column_stack([1 - proba, proba]), np.array([0, 1, 0, 1, 1, 0])
    level = 0.6
    covered, of_class = np.zeros(2, dtype=int), np.zeros(2, dtype=int)
    clf = ConformalClassifier(condition_on="class", confidence_level=level, small_groups="warn")
    for order in itertools.permutations(range(6)):
        *calibration, new = order
        clf.conformalize(X[calibration], y[calibration])
        of_class[y[new]] += 1
        covered[y[new]] += clf.predict_set(X[[new]])[0, y[new]]
    k = conformal_rank(2, level)
    assert k == 2
    np.testing.assert_array_equal(covered * 3, k * of_class)


@pytest.mark.parametrize("seed", range(20))
def test_moved_points(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    f = rng.integers(0, 5, size=(n, 2)).astype(float)  # equal distances abound
    g = f + rng.normal(scale=0.3, size=(n, 2))
    e = np.linalg.norm(f - g, axis=1).max() + 1e-12
    before, after = cdist(f, f), cdist(g, g)
    assert np.abs(before - after).max() <= 2 * e
    for t in np.unique(before):
        for one, other in ((before, after), (after, before)):  # so every simplex of one complex is one of the other
            assert np.all((other <= t + 2 * e) | (one > t))
        assert connected_components(after <= t + 2 * e)[0] <= connected_components(before <= t)[0]
    assert np.abs(deaths(before) - deaths(after)).max(initial=0) <= 2 * e


def deaths(distances):
    found = single(squareform(distances))[:, 2]
    for t in np.unique(distances):
        assert np.sum(found > t) + 1 == connected_components(distances <= t)[0]
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("coqc") is None, reason="coqc is not installed (make theory says how)")
def test_proofs_compile():
    said = subprocess.run(["bash", str(ROOT / "theory/coq/check.sh")], capture_output=True, text=True, check=True)
    assert said.stdout.count("no axiom") == 3
