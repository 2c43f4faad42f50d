"""Conformal prediction sets beside MAPIE, crepes and a plain numpy reference, in one run.

Float32 softmax rows calibrate at 90%, and sets are predicted for 100,000 more. The libraries take turns, `--repeats`
times, and the least CPU time of each counts (crepes, which loops over cases in Python, has one turn). Memory is the
peak of what numpy allocates on the way, the sets themselves included, over the cells predicted.

    OMP_NUM_THREADS=1 python benchmarks/conformal.py [--calibration 10000] [--cases 100000] [--classes 40]
"""

import argparse
import importlib.util
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin

from cbdc import ConformalClassifier
from cbdc.metrics import coverage, mean_set_size

LEVEL = 0.9
Method = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=int, default=10_000)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out, by the beginning of their names")
    arguments = parser.parse_args()
    n = arguments.calibration
    P, y = made_softmax(n + arguments.cases, arguments.classes)
    for score, methods in {"LAC": lac_methods(), "APS": aps_methods()}.items():
        methods = {name: f for name, f in methods.items() if not any(map(name.startswith, arguments.skip))}
        print(f"\n{score}: {n:,} to calibrate, {arguments.cases:,} x {arguments.classes} to predict")
        compare(methods, (P[:n], y[:n], P[n:]), y[n:], arguments.repeats)
    compare_sets(P, y, n)


def compare_sets(P: np.ndarray, y: np.ndarray, n: int) -> None:
    """Cell by cell. MAPIE counts a label within 1e-8 of its threshold as tied with it; so the sets are compared on a
    grid of probabilities coarser than this, on which ties are exact, and then as they are."""
    grid = np.round(P.astype(float) * 2**20) / 2**20
    grid[np.arange(len(grid)), grid.argmax(axis=1)] += 1 - grid.sum(axis=1)
    for name, values in {"on a grid of 2^-20": grid, "as they are, float64": P.astype(float)}.items():
        data = values[:n], y[:n], values[n:]
        different = cbdc("lac")(*data) != mapie("lac")(*data)
        print(f"LAC sets, {name}: {different.sum()} of {different.size:,} cells differ from MAPIE's")


def made_softmax(n: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    P = softmax(2 * rng.standard_normal((n, n_classes), dtype=np.float32), axis=1)
    return P, (P.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


def lac_methods() -> dict[str, Method]:
    methods = {"cbdc": cbdc("lac"), "MAPIE": mapie("lac"), "numpy": numpy_lac}
    methods["cbdc, by class"] = cbdc("lac", condition_on="class")
    if importlib.util.find_spec("crepes"):
        methods["crepes"] = crepes_lac
    return methods


def aps_methods() -> dict[str, Method]:
    return {
        "cbdc": cbdc("aps", randomized=False),
        "MAPIE": mapie("aps"),
        "cbdc, randomised": cbdc("aps"),
        "MAPIE, randomised": mapie("aps", include_last_label="randomized"),
        "numpy": numpy_aps,
        "cbdc, by class": cbdc("aps", condition_on="class"),
    }


def compare(methods: dict[str, Method], data: tuple, y: np.ndarray, repeats: int) -> None:
    seconds = dict.fromkeys(methods, np.inf)
    for turn in range(repeats):
        for name, method in methods.items():
            if turn == 0 or name != "crepes":
                seconds[name] = min(seconds[name], cpu_seconds(method, data))
    print(f"{'':<20}{'CPU s':>9}{'times cbdc':>12}{'bytes/cell':>12}{'coverage':>10}{'size':>8}")
    for name, method in methods.items():
        peer = "cbdc, randomised" if name.endswith("randomised") else "cbdc"
        row = f"{name:<20}{seconds[name]:>9.4f}{seconds[name] / seconds[peer]:>12.1f}"
        if name != "crepes":
            sets, peak = with_peak(method, data)
            row += f"{peak / data[2].size:>12.1f}{coverage(sets, y):>10.3f}{mean_set_size(sets):>8.2f}"
        print(row)


def cpu_seconds(method: Method, data: tuple) -> float:
    start = time.process_time()
    method(*data)
    return time.process_time() - start


def with_peak(method: Method, data: tuple) -> tuple[np.ndarray, int]:
    tracemalloc.start()
    sets = method(*data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return sets, peak


def cbdc(score: str, **options: Any) -> Method:
    def method(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
        return (
            ConformalClassifier(score=score, confidence_level=LEVEL, **options).conformalize(P, y).predict_set(P_test)
        )

    return method


class Softmax(ClassifierMixin, BaseEstimator):
    """MAPIE takes a classifier only: this one gives back the probabilities that it is given."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Softmax":
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def classes_(self) -> np.ndarray:
        return np.arange(self.n_classes)

    @property
    def n_features_in_(self) -> int:
        return self.n_classes

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return X

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X.argmax(axis=1)


def mapie(score: str, **options: Any) -> Method:
    from mapie.classification import SplitConformalClassifier

    def method(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = SplitConformalClassifier(
                Softmax(P.shape[1]), confidence_level=LEVEL, conformity_score=score, prefit=True, random_state=0
            )
            return model.conformalize(P, y).predict_set(P_test, conformity_score_params=options)[1][:, :, 0]

    return method


def crepes_lac(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
    from crepes import ConformalClassifier as Crepes

    model = Crepes().fit(1 - P[np.arange(len(y)), y], seed=0)
    return model.predict_set(1 - P_test, confidence=LEVEL, smoothing=False).astype(bool)


def numpy_lac(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
    scores = np.sort(1 - P[np.arange(len(y)), y].astype(float))
    return 1 - P_test.astype(float) <= scores[int(np.ceil((len(y) + 1) * LEVEL)) - 1]


def numpy_aps(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
    scores = np.sort(cumulated(P)[np.arange(len(y)), y])
    return cumulated(P_test) <= scores[int(np.ceil((len(y) + 1) * LEVEL)) - 1]


def cumulated(P: np.ndarray) -> np.ndarray:
    order = np.argsort(-P.astype(float), axis=1)
    sums = np.cumsum(np.take_along_axis(P.astype(float), order, axis=1), axis=1)
    found = np.empty_like(sums)
    np.put_along_axis(found, order, sums, axis=1)
    return found


if __name__ == "__main__":
    main()
