"""Claim: over a stream that changes, adaptive sets keep their share of misses where fixed ones do not, and the
martingale gives an alarm soon after the change and hardly ever before.

HAM10000 (frozen EfficientNet-Lite0, `LaplaceHead`), one image of each lesion that was not trained on, in random order;
then PAD-UFES-20, photographs by phone, one image of each patient. `--orders` orders.

    python -m experiments.stream --root DATA --cache .cache
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cbdc import ConformalClassifier, load_dataset, make_lesions
from cbdc import metrics as m
from cbdc.conformal import DriftMonitor, OnlineConformalClassifier, smoothed_p_values
from experiments.embedded import Embedded, ham10000
from experiments.record import write_results
from experiments.shift import mapped

LEVEL, ALPHA, BEGIN, BEFORE, WINDOW = 0.9, 0.01, 300, 1200, 150
METHODS: dict[str, tuple[dict[str, Any], int]] = {  # settings, and how many cases later a label is told
    "expanding": ({}, 0),
    "aci": ({"method": "aci", "gamma": 0.02}, 0),
    "pid": ({"method": "pid", "gamma": 0.02}, 0),
    "aci, labels 50 cases late": ({"method": "aci", "gamma": 0.02}, 50),
    "pid, labels 50 cases late": ({"method": "pid", "gamma": 0.02}, 50),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000 and pad_ufes_20")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/stream.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/conformal_stream.png"))
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="made lesions, another prevalence; under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.root, arguments.orders = None, 5
    elif arguments.root is None:
        parser.error("--root is needed (or --quick)")
    lesions, embedder = ham10000(arguments.root, arguments.cache)
    train, rest = lesions.data.split(sizes=(0.4, 0.6), random_state=0)
    head = lesions.head(train, 0)
    E, y = lesions.one_per_unit(rest, 0)
    if arguments.quick:
        other = make_lesions(300, image_size=96, class_prior={"bcc": 0.6, "mel": 0.4}, random_state=1)
    else:
        other = mapped(load_dataset("pad_ufes_20", arguments.root / "pad_ufes_20"))
    F, z = Embedded(other, embedder, like=lesions).one_per_unit(other, 0)
    P, Q = head.predict_proba(E), head.predict_proba(F)
    before = min(BEFORE, len(P) - BEGIN)
    orders = [stream(P, y, Q, z, before, seed, adaptive=seed < 20) for seed in range(arguments.orders)]
    alarms = [row["alarm"] for row in orders]
    after = [a - before for a in alarms if a is not None and a > before]
    results: dict[str, Any] = {
        "before": before,
        "after": len(Q),
        "orders": arguments.orders,
        "false_alarms": sum(a is not None and a <= before for a in alarms),
        "alarms_after": len(after),
        "delay": np.quantile(after, [0.05, 0.5, 0.95]).tolist() if after else None,
        "summary": {
            name: [float(np.mean([row[name][k] for row in orders if name in row])) for k in range(4)]
            for name in ("fixed", *METHODS)
        },
    }
    command = "python -m experiments.stream" + (" --quick" if arguments.quick else " --root DATA")
    write_results(arguments.out, results, command=command, data=[lesions.data, other])
    draw(orders[0], before, len(Q), arguments.figure)
    print("\n".join(tables(results).values()))


def stream(P: Any, y: Any, Q: Any, z: Any, before: int, seed: int, *, adaptive: bool) -> dict[str, Any]:
    """Misses before and after the change, and the alarm, in one order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(P))[: BEGIN + before]
    other = rng.permutation(len(Q))
    start, X = P[order[:BEGIN]], np.vstack([P[order[BEGIN:]], Q[other]])
    labels = np.concatenate([y[order[BEGIN:]], z[other]])
    fixed = ConformalClassifier(confidence_level=LEVEL).conformalize(start, y[order[:BEGIN]])
    sets = fixed.predict_set(X)
    missed = ~sets[np.arange(len(labels)), labels]
    found: dict[str, Any] = {"fixed": both(missed, sets.sum(axis=1), before), "missed": {"fixed": missed}}
    scores = np.append(start[np.arange(BEGIN), y[order[:BEGIN]]], X[np.arange(len(labels)), labels])
    p_values = smoothed_p_values(scores, random_state=seed)[BEGIN:]
    monitor = DriftMonitor(ALPHA).update(p_values)
    found |= {"alarm": monitor.alarm_time_, "log_martingale": monitor.history_}
    for name, (options, late) in METHODS.items() if adaptive else ():
        clf = OnlineConformalClassifier(confidence_level=LEVEL, **options)
        clf.conformalize(start, y[order[:BEGIN]])
        misses, sizes = [], []
        for i in range(len(labels)):
            one = clf.predict_set(X[[i]])[0]
            misses.append(not one[labels[i]])
            sizes.append(one.sum())
            if i >= late:
                clf.partial_conformalize(X[[i - late]], labels[[i - late]])
        found[name] = both(np.array(misses), np.array(sizes), before)
        found["missed"][name] = np.array(misses)
    return found


def both(missed: np.ndarray, sizes: np.ndarray, before: int) -> list[float]:
    """Coverage and size before and after the change."""
    return [1 - missed[:before].mean(), 1 - missed[before:].mean(), sizes[:before].mean(), sizes[before:].mean()]


def tables(results: dict[str, Any]) -> dict[str, str]:
    lines = ["| sets | coverage before | after the change | labels in a set before | after |", "|---" * 5 + "|"]
    for name, (a, b, c, d) in results["summary"].items():
        lines.append(f"| {name} | {a:.3f} | {b:.3f} | {c:.2f} | {d:.2f} |")
    low, high = m.clopper_pearson(results["false_alarms"], results["orders"], 0.95)
    delay = results["delay"] or [np.nan] * 3
    lines += [
        "",
        f"Alarm (alpha 0.01): false in {results['false_alarms']} of {results['orders']} orders (95% interval "
        f"{low:.3f}-{high:.3f}), given after the change in {results['alarms_after']}, {delay[1]:.0f} cases later "
        f"(5-95%: {delay[0]:.0f}-{delay[2]:.0f}).",
    ]
    return {"docs/conformal/stream.md": "\n".join(lines)}


def draw(row: dict[str, Any], before: int, after: int, path: Path) -> None:
    fig, axes = plt.subplots(2, 1, figsize=(9, 5.5), layout="constrained", sharex=True, height_ratios=(2, 1))
    low, high = m.coverage_band(BEGIN, WINDOW, LEVEL, probability=0.95)
    axes[0].axhspan(low, high, color="0.9", label=f"95% band of {WINDOW} cases")
    kernel = np.ones(WINDOW) / WINDOW
    for name, missed in row["missed"].items():
        if METHODS.get(name, ({}, 0))[1]:
            continue
        rolling = 1 - np.convolve(missed, kernel, mode="valid")
        axes[0].plot(np.arange(WINDOW, len(missed) + 1), rolling, label=name)
    axes[0].set(ylabel=f"coverage of the last {WINDOW}", ylim=(0.3, 1.02))
    axes[0].legend(fontsize=8, loc="lower left", ncols=2)
    axes[1].plot(np.arange(1, len(row["log_martingale"]) + 1), row["log_martingale"])
    axes[1].axhline(-np.log(ALPHA), color="C3", ls="--", lw=1, label="alarm at 1 / alpha")
    axes[1].set(xlabel="cases", ylabel="log martingale", ylim=(-6, 30))
    axes[1].legend(fontsize=8, loc="upper left")
    for ax in axes:
        ax.axvline(before, color="k", lw=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
