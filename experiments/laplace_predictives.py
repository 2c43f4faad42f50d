"""Claim: how far each way from Gaussian logits to probabilities is from the exact average, and what it costs.

A `LaplaceHead` is fitted on HAM10000 (frozen EfficientNet-Lite0, 60/20/20 by lesion) with its seven classes, and on
the images of two and of three of them. For each test image the exact average of the softmax is found by quadrature
(two and three classes) or over 2^15 Sobol points (seven), and each way is compared with it. "Softmax of scaled logits"
is the form of MacKay's formula that laplace-torch uses, here in the gauge in which the logits sum to zero. Times are
CPU seconds of one thread for 1,000 images, the Gaussian logits included.

    OMP_NUM_THREADS=1 python -m experiments.laplace_predictives --root DATA --cache .cache
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from cbdc import LaplaceHead
from cbdc import metrics as m
from experiments.embedded import ham10000
from experiments.record import write_results

PROBLEMS = {"2 classes": ["mel", "nv"], "3 classes": ["bkl", "mel", "nv"], "7 classes": None}
WAYS: dict[str, dict[str, Any]] = {
    "Monte Carlo, 256 points": {"predictive": "monte_carlo"},
    "Monte Carlo, 2,048 points": {"predictive": "monte_carlo", "n_draws": 2048},
    "probit": {"predictive": "probit"},
    "bridge": {"predictive": "bridge"},
    "exact": {"predictive": "exact"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/laplace_predictives.json"))
    parser.add_argument("--quick", action="store_true", help="made lesions; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.root = None
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    lesions, _ = ham10000(arguments.root, arguments.cache)
    train, _, test = (lesions.of(part) for part in lesions.data.split(random_state=0))
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for problem, names in PROBLEMS.items():
        codes = np.searchsorted(lesions.classes, lesions.classes if names is None else names)
        (E, y), (E_test, y_test) = (of_classes(part, codes) for part in (train, test))
        summary[problem] = compare((E, y), (E_test, y_test))
        print(problem, summary[problem], flush=True)
    results = {"summary": summary}
    command = "python -m experiments.laplace_predictives" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[lesions.data])
    print("\n".join(tables(results).values()))


def of_classes(part: tuple[np.ndarray, np.ndarray], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    E, y = part
    chosen = np.isin(y, codes)
    return E[chosen], np.searchsorted(codes, y[chosen])


def compare(train: tuple, test: tuple) -> dict[str, dict[str, float]]:
    (E, y), few = test, len(np.unique(train[1])) <= 3
    precision = LaplaceHead().fit(*train).prior_precision_
    exact = LaplaceHead(precision, predictive="exact" if few else "monte_carlo", n_draws=2**15).fit(*train)
    reference, information = exact.predict_proba(E), exact.mutual_information(E)
    found = {}
    for name, options in WAYS.items():
        if few or name != "exact":
            head = LaplaceHead(precision, **options).fit(*train)
            distance = float(np.abs(head.mutual_information(E) - information).mean())
            found[name] = figures(head.predict_proba, E, y, reference) | {"information": distance}
    found["softmax of scaled logits"] = figures(lambda X: scaled(exact, X), E, y, reference)
    found["softmax of the mean logits"] = figures(lambda X: scaled(exact, X, 0.0), E, y, reference)
    return found


def scaled(head: LaplaceHead, E: np.ndarray, share: float = np.pi / 8) -> np.ndarray:
    mean, covariance = head.logit_distribution(E)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    return softmax(mean / np.sqrt(1 + share * variance), axis=1)


def figures(predict: Callable, E: np.ndarray, y: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    start = time.process_time()
    P = predict(E)
    seconds = (time.process_time() - start) / len(E) * 1000
    distance = np.abs(P - reference).max(axis=1)
    return {
        "mean": float(distance.mean()),
        "largest": float(distance.max()),
        "nll": m.negative_log_likelihood(P, y),
        "ece": m.expected_calibration_error(P, y),
        "seconds": seconds,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    problems = results["summary"]
    lines = [
        "| | " + " | ".join(f"{problem}: mean, largest" for problem in problems) + " | NLL, 7 | ECE, 7 | s, 7 |",
        "|---" * (len(problems) + 4) + "|",
    ]
    for way in [*WAYS, "softmax of scaled logits", "softmax of the mean logits"]:
        cells = [
            f"{problems[p][way]['mean']:.1e}, {problems[p][way]['largest']:.1e}" if way in problems[p] else ""
            for p in problems
        ]
        seven = problems["7 classes"].get(way)
        last = [f"{seven['nll']:.3f}", f"{seven['ece']:.3f}", f"{seven['seconds']:.2f}"] if seven else [""] * 3
        lines.append(f"| {way} | " + " | ".join([*cells, *last]) + " |")
    return {"docs/heads.md": "\n".join(lines)}


if __name__ == "__main__":
    main()
