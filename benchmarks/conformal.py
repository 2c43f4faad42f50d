"""Conformal prediction sets beside a plain numpy core, MAPIE, TorchCP and crepes, in one run.

Float32 softmax rows calibrate at 90% on 10,000 cases, and sets are predicted for n more. The libraries take turns, and
the least CPU time of each counts. The numpy core is what one would write by hand: sort, cumulated sums, compare, in
chunks of float32. Memory is the peak of what numpy allocates on the way, the sets themselves apart. A peer that takes
longer than `--patience` seconds, or more than `--cells` cells, is left out of what is larger.

    OMP_NUM_THREADS=1 python benchmarks/conformal.py [--n 10000 100000 1000000] [--classes 7 40 390]

TorchCP is measured where it is installed (``pip install --no-deps torchcp``: what it would bring is for training; it
installs a package called tests, which hides this project's: remove it afterwards).
"""

import argparse
import importlib.util
import sys
import time
import tracemalloc
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin

from cbdc import ConformalClassifier
from cbdc.metrics import coverage, mean_set_size

LEVEL = 0.9
PENALTY, K_REG = 0.1, 2
CHUNK = 2**15
SECONDS = 5  # after which a method takes no further turn
Method = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[7, 40, 390])
    parser.add_argument("--calibration", type=int, default=10_000)
    parser.add_argument("--scores", nargs="+", default=["lac", "aps", "raps"])
    parser.add_argument("--repeats", type=int, default=25, help="turns at most; fewer where cells are many")
    parser.add_argument("--patience", type=float, default=20)
    parser.add_argument(
        "--cells", type=float, default=4e7, help="most cells for the peers, whose memory grows with them"
    )
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out")
    arguments = parser.parse_args()
    print(f"{'':<6}{'n':>10}{'K':>5}  {'method':<10}{'CPU s':>9}{'/ cbdc':>8}{'MB':>8}{'coverage':>10}{'size':>8}")
    impatient: set[tuple[str, str]] = set()
    for classes in arguments.classes:
        for n in arguments.n:
            P, y = made_softmax(arguments.calibration + n, classes)
            c = arguments.calibration
            for score in arguments.scores:
                methods = {k: f for k, f in methods_of(score).items() if k not in arguments.skip}
                methods = {
                    k: f
                    for k, f in methods.items()
                    if k in ("cbdc", "numpy") or (n * classes <= arguments.cells and (score, k) not in impatient)
                }
                repeats = max(2, min(arguments.repeats, int(2e8 / (n * classes))))
                seconds = compare(score, methods, (P[:c], y[:c], P[c:]), y[c:], repeats)
                impatient |= {(score, k) for k, s in seconds.items() if s > arguments.patience}
    one_case()
    if "MAPIE" not in arguments.skip:
        compare_sets(*made_softmax(110_000, 40), 10_000)


def compare(score: str, methods: dict[str, Method], data: tuple, y: np.ndarray, repeats: int) -> dict[str, float]:
    seconds = dict.fromkeys(methods, np.inf)
    for turn in range(repeats):
        for name, method in list(methods.items())[:: (-1) ** turn]:  # so that none always follows another's cold cache
            if turn == 0 or seconds[name] * turn < SECONDS:
                seconds[name] = min(seconds[name], cpu_seconds(method, data))
    for name, method in methods.items():
        row = f"{score:<6}{len(y):>10,}{data[2].shape[1]:>5}  {name:<10}{seconds[name]:>9.4f}"
        row += f"{seconds[name] / seconds['cbdc']:>8.2f}"
        if seconds[name] < 20:
            sets, peak = with_peak(method, data)
            row += f"{(peak - sets.nbytes) / 1e6:>8.0f}{coverage(sets, y):>10.3f}{mean_set_size(sets):>8.2f}"
        print(row, flush=True)
    return seconds


def one_case() -> None:
    """Microseconds of a call with one image's probabilities."""
    for classes in (7, 40):
        P, y = made_softmax(10_001, classes)
        for score in ("lac", "aps", "raps"):
            clf = ConformalClassifier(score=score).conformalize(P[:-1], y[:-1])
            clf.predict_set(P[-1:])
            best = np.inf
            for _ in range(20):
                start = time.perf_counter()
                for _ in range(100):
                    clf.predict_set(P[-1:])
                best = min(best, (time.perf_counter() - start) / 100)
            print(f"one case of {classes} classes, {score}: {best * 1e6:.0f} microseconds")


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
    P = rng.standard_normal((n, n_classes), dtype=np.float32)
    y = np.empty(n, dtype=int)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        P[rows] = softmax(2 * P[rows], axis=1)
        y[rows] = (P[rows].cumsum(axis=1) > rng.random((len(P[rows]), 1))).argmax(axis=1)
    return P, y


def methods_of(score: str) -> dict[str, Method]:
    options = {"score_params": {"penalty": PENALTY, "k_reg": K_REG}} if score == "raps" else {}
    methods = {"cbdc": cbdc(score, randomized=False, **options), "numpy": numpy_core(score), "MAPIE": mapie(score)}
    if importlib.util.find_spec("torchcp"):
        methods["TorchCP"] = torchcp(score)
    if score == "lac" and importlib.util.find_spec("crepes"):
        methods["crepes"] = crepes_lac
    return methods


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


def mapie(score: str) -> Method:
    from mapie.classification import SplitConformalClassifier

    def method(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = SplitConformalClassifier(
                Softmax(P.shape[1]), confidence_level=LEVEL, conformity_score=score, prefit=True, random_state=0
            )
            return model.conformalize(P, y).predict_set(P_test)[1][:, :, 0]

    return method


def torchcp(score: str) -> Method:
    # Its graph and trainer parts need more packages, its predictors do not: these parts are not imported.
    if "torchcp" not in sys.modules:
        spec = importlib.util.find_spec("torchcp")
        assert spec is not None
        sys.modules["torchcp"] = types.ModuleType("torchcp")
        sys.modules["torchcp"].__spec__ = spec
        sys.modules["torchcp"].__path__ = list(spec.submodule_search_locations or [])
        sys.modules["torchsort"] = types.SimpleNamespace(soft_rank=None, soft_sort=None)  # type: ignore[assignment]
    import torch
    from torchcp.classification.predictor import SplitPredictor
    from torchcp.classification.score import APS, LAC, RAPS

    def method(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
        kinds = {
            "lac": lambda: LAC(score_type="identity"),
            "aps": lambda: APS(score_type="identity", randomized=False),
            "raps": lambda: RAPS(score_type="identity", randomized=False, penalty=PENALTY, kreg=K_REG),
        }
        predictor = SplitPredictor(kinds[score](), alpha=1 - LEVEL, device=torch.device("cpu"))
        predictor.calculate_threshold(torch.from_numpy(P), torch.from_numpy(y), alpha=1 - LEVEL)
        return predictor.predict_with_logits(torch.from_numpy(P_test)).numpy().astype(bool)

    return method


def crepes_lac(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
    from crepes import ConformalClassifier as Crepes

    model = Crepes().fit(1 - P[np.arange(len(y)), y], seed=0)
    return model.predict_set(1 - P_test, confidence=LEVEL, smoothing=False).astype(bool)


def numpy_core(score: str) -> Method:
    """By hand: for APS and RAPS sort, cumulate, penalise, put back, compare."""

    def all_scores(P: np.ndarray) -> np.ndarray:
        if score == "lac":
            return 1 - P
        order = np.argsort(-P, axis=1)
        sums = np.cumsum(np.take_along_axis(P, order, axis=1), axis=1)
        if score == "raps":
            sums += np.float32(PENALTY) * np.maximum(0, np.arange(P.shape[1], dtype=np.float32) + 1 - K_REG)
        found = np.empty_like(sums)
        np.put_along_axis(found, order, sums, axis=1)
        return found

    def method(P: np.ndarray, y: np.ndarray, P_test: np.ndarray) -> np.ndarray:
        scores = np.sort(all_scores(P)[np.arange(len(y)), y])
        limit = scores[int(np.ceil((len(y) + 1) * LEVEL)) - 1]
        sets = np.empty(P_test.shape, dtype=bool)
        step = max(1, CHUNK * 16 // P.shape[1])
        for start in range(0, len(sets), step):
            rows = slice(start, start + step)
            sets[rows] = all_scores(P_test[rows]) <= limit
        return sets

    return method


if __name__ == "__main__":
    main()
