"""Claim: on frozen embeddings the Laplace and the variational posterior predict what the exact posterior predicts.

PH2, or other data sets, on frozen EfficientNet-Lite0 embeddings, one split 60/20/20 by lesion or patient, one prior
precision for all heads (that of `LaplaceHead`). NUTS samples the exact posterior. The others are compared with it
on the test images, by the total variation of the predictive and by the mutual information, beside what chance alone
gives: two chains against the other two. Seconds are CPU seconds of one thread.

    python -m experiments.posteriors --root DATA --cache .cache
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cbdc import ImageEmbedder, load_dataset, make_lesions
from cbdc import metrics as m
from cbdc.heads import NUTSHead, make_head
from experiments.embedded import Embedded
from experiments.record import write_results

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "`LaplaceHead()`": ("laplace", {}),
    "`LaplaceHead(mean_correction=False)`": ("laplace", {"mean_correction": False}),
    "`VariationalHead()`": ("variational", {}),
    '`VariationalHead(guide="low_rank")`': ("variational", {"guide": "low_rank"}),
    '`VariationalHead(guide="full")`': ("variational", {"guide": "full"}),
    '`VariationalHead(guide="radial")`': ("variational", {"guide": "radial"}),
    "`VariationalHead(batch_size=512)`": ("variational", {"batch_size": 512}),
}
NUTS = "`NUTSHead()`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds the data sets")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/posteriors.json"))
    parser.add_argument("--data", nargs="+", default=["ph2"], help="others take minutes to hours")
    parser.add_argument("--draws", type=int, default=250, help="of each of four chains")
    parser.add_argument("--quick", action="store_true", help="made lesions, few draws; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.draws = 30
        sets = {"made": make_lesions(150, image_size=64, random_state=0)}
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    else:
        sets = {name: load_dataset(name, arguments.root / name) for name in arguments.data}
    embedder = ImageEmbedder(cache_dir=arguments.cache)
    found: dict[str, Any] = {}
    command = "python -m experiments.posteriors" + (" --quick" if arguments.quick else " --root DATA")
    for name, data in sets.items():
        found[name] = compare(Embedded(data, embedder), arguments.draws)
        write_results(arguments.out, {"sets": found}, command=command, data=sets.values())
    for page, table in tables({"sets": found}).items():
        print(f"{page}\n\n{table}\n")


def compare(data: Embedded, n_draws: int) -> dict[str, dict[str, float]]:
    train, _, test = data.data.split(random_state=0)
    (E, y), (E_test, y_test) = data.of(train), data.of(test)
    nuts, seconds = fitted("nuts", E, y, n_warmup=100, n_draws=n_draws, thinning=1)
    precision = nuts.prior_precision_
    proba, information = nuts.predict_proba(E_test), nuts.mutual_information(E_test)
    first, second = (half(nuts, part) for part in (0, 1))
    # halved: all chains are twice as many as two, and an exact head would have no error of its own
    chance = 0.5 * np.array(distances(first, E_test, second.predict_proba(E_test), second.mutual_information(E_test)))
    rows = {
        NUTS: {
            "distance": chance[0],
            "information": chance[1],
            "nll": m.negative_log_likelihood(proba, y_test),
            "seconds": seconds,
            "r_hat": nuts.r_hat_.max(),
            "ess": nuts.ess_.min(),
            "divergences": nuts.n_divergences_,
            "mutual_information": information.mean(),
            "n": len(y),
        }
    }
    for label, (kind, parameters) in HEADS.items():
        head, seconds = fitted(kind, E, y, prior_precision=precision, **parameters)
        distance, gap = distances(head, E_test, proba, information)
        rows[label] = {
            "distance": distance,
            "information": gap,
            "nll": m.negative_log_likelihood(head.predict_proba(E_test), y_test),
            "seconds": seconds,
        }
        if kind == "variational":
            rows[label]["elbo"] = head.elbo_
    return {label: {key: float(value) for key, value in row.items()} for label, row in rows.items()}


def fitted(kind: str, E: np.ndarray, y: np.ndarray, **parameters: Any) -> tuple[Any, float]:
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chains and iterations: the figures tell
        head = make_head(kind, random_state=0, **parameters).fit(E, y)
    return head, time.process_time() - start


def half(nuts: NUTSHead, part: int) -> NUTSHead:
    """The head with the draws of the first two chains, or of the last two."""
    arrays, document = nuts.get_state()
    draws = np.array_split(arrays["weight_draws_"], 2)[part]
    return NUTSHead.from_state(arrays | {"weight_draws_": draws}, document)


def distances(head: Any, E: np.ndarray, proba: np.ndarray, information: np.ndarray) -> tuple[float, float]:
    """Mean total variation from the predictive `proba`, and mean absolute gap of the mutual information, nats."""
    variation = 0.5 * np.abs(head.predict_proba(E) - proba).sum(axis=1)
    return float(variation.mean()), float(np.abs(head.mutual_information(E) - information).mean())


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Name of the page to the table on it."""
    sets = results["sets"]
    labels = [NUTS, *HEADS]
    head = "| | " + " | ".join(f"{name}: distance | information | NLL | seconds" for name in sets) + " |"
    rows = [
        f"| {label} | "
        + " | ".join(
            f"{row['distance']:.4f} | {row['information']:.4f} | {row['nll']:.3f} | {row['seconds']:.0f}"
            for row in (found[label] for found in sets.values())
        )
        + " |"
        for label in labels
    ]
    return {"docs/heads.md": "\n".join([head, "|---" * (1 + 4 * len(sets)) + "|", *rows])}


if __name__ == "__main__":
    main()
