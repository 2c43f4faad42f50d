"""Claim: of the covariances and priors of `LaplaceHead`, the defaults lose nothing that is worth its cost.

HAM10000 (frozen EfficientNet-Lite0), 60/20/20 by lesion; each head is fitted on the training part and judged on the
test part of each of `--seeds` splits, and so are multiples of the prior precision that the evidence chose. With --full
the full covariance (7,686 parameters) is fitted on the first of them, at the prior precision that the default found.
Fit times are CPU seconds of one thread.

    OMP_NUM_THREADS=1 python -m experiments.laplace_covariances --root DATA --cache .cache
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score

from cbdc import LaplaceHead
from cbdc import metrics as m
from experiments.embedded import ham10000
from experiments.record import write_results

HEADS: dict[str, Any] = {
    "`LaplaceHead()`: Kronecker": LaplaceHead(covariance="kronecker"),
    '`prior_precision="evidence_per_class"`': LaplaceHead("evidence_per_class", covariance="kronecker"),
    '`covariance="diagonal"`': LaplaceHead(covariance="diagonal"),
    '`covariance="low_rank"`, rank 100': LaplaceHead(covariance="low_rank"),
    '`covariance="low_rank", rank=400`': LaplaceHead(covariance="low_rank", rank=400),
    "`mean_correction=False`": LaplaceHead(covariance="kronecker", mean_correction=False),
}
FULL = '`covariance="full"`, first split only'
FACTORS = (0.25, 0.5, 0.7, 1.4, 2, 4)  # of the prior precision that the evidence chose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/laplace_covariances.json"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="the full covariance too, which takes minutes")
    parser.add_argument("--quick", action="store_true", help="made lesions, one seed; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.root, arguments.seeds, arguments.full = None, 1, False
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    lesions, _ = ham10000(arguments.root, arguments.cache)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        train, _, test = (lesions.of(part) for part in lesions.data.split(random_state=seed))
        for name, head in HEADS.items():
            rows.setdefault(name, []).append(figures(head, train, test))
            print(seed, name, rows[name][-1], flush=True)
        precision = rows["`LaplaceHead()`: Kronecker"][-1]["prior_precision"]
        for factor in FACTORS:
            name = f"{factor:g} times the precision of the evidence"
            rows.setdefault(name, []).append(figures(LaplaceHead(factor * precision), train, test))
            print(seed, name, rows[name][-1], flush=True)
        if seed == 0 and arguments.full:
            rows[FULL] = [figures(LaplaceHead(precision, covariance="full"), train, test)]
            print(seed, FULL, rows[FULL][-1], flush=True)
    summary = {
        name: {key: [float(np.mean([r[key] for r in found])), len(found)] for key in found[0]}
        for name, found in rows.items()
    }
    results = {"rows": rows, "summary": summary}
    command = "python -m experiments.laplace_covariances" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[lesions.data])
    print("\n".join(tables(results).values()))


def figures(head: Any, train: tuple, test: tuple) -> dict[str, float]:
    start = time.process_time()
    head.fit(*train)
    seconds = time.process_time() - start
    E, y = test
    P = head.predict_proba(E)
    return {
        "accuracy": float(accuracy_score(y, P.argmax(axis=1))),
        "nll": m.negative_log_likelihood(P, y),
        "brier": m.brier_score(P, y),
        "ece": m.expected_calibration_error(P, y),
        "information": float(head.mutual_information(E).mean()),
        "evidence": head.log_marginal_likelihood_,
        "prior_precision": float(np.exp(np.log(head.prior_precision_).mean())),
        "fit_seconds": seconds,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    lines = [
        "| | accuracy | NLL | Brier | ECE | mutual information | log-evidence | prior precision | fit, s |",
        "|---" * 9 + "|",
    ]
    for name, found in results["summary"].items():
        e = {key: value for key, (value, _) in found.items()}
        lines.append(
            f"| {name} | {e['accuracy']:.3f} | {e['nll']:.3f} | {e['brier']:.3f} | {e['ece']:.3f} | "
            f"{e['information']:.3f} | {e['evidence']:,.0f} | {e['prior_precision']:,.0f} | {e['fit_seconds']:.1f} |"
        )
    return {"docs/heads.md": "\n".join(lines)}


if __name__ == "__main__":
    main()
