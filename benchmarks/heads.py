"""What a Bayesian head costs beside logistic regression: CPU seconds of fitting and predicting, in one run.

HAM10000 (frozen EfficientNet-Lite0, the training part of a 60/20/20 split by lesion) or, without --root, made
embeddings of the same size. The logistic regressions are scikit-learn's with L-BFGS on features divided by one scale:
tuned (its C chosen of five by likelihood over three folds that keep lesions together, as in
`experiments.frozen_backbone`), one fit at the C chosen run to convergence, and one at C = 1 with scikit-learn's default
of 100 steps, which do not converge. Methods take turns; the least of --repeats counts, the tuned one runs once.

    OMP_NUM_THREADS=1 python benchmarks/heads.py --root DATA --cache .cache
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

from cbdc import LaplaceHead
from cbdc import metrics as m
from cbdc.heads import PooledHead

CS = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
REFERENCE = "logistic regression, tuned"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds ham10000")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    train, test, groups = made() if arguments.root is None else real(arguments.root, arguments.cache)
    print(f"{train[0].shape[0]:,} rows, {train[0].shape[1]:,} features, {len(np.unique(train[1]))} classes")
    scale = float(np.sqrt(train[0].var(axis=0).mean()))
    tuned, seconds = timed(lambda: tune(train[0] / scale, train[1], groups))
    C = tuned.best_params_["C"]
    feature_map = "hellinger" if arguments.root else None  # made embeddings are negative too
    found: dict[str, tuple[Any, float, float]] = {REFERENCE: (tuned, scale, seconds)}
    methods: dict[str, tuple[Callable[[], Any], float]] = {
        f"logistic regression, C = {C:g}, converged": (lambda: LogisticRegression(C=C, max_iter=5000), scale),
        "logistic regression, C = 1, 100 steps": (LogisticRegression, scale),
        "LaplaceHead()": (LaplaceHead, 1.0),
        'LaplaceHead("evidence_per_class")': (lambda: LaplaceHead("evidence_per_class"), 1.0),
        'LaplaceHead(covariance="diagonal")': (lambda: LaplaceHead(covariance="diagonal"), 1.0),
        'LaplaceHead(covariance="low_rank")': (lambda: LaplaceHead(covariance="low_rank"), 1.0),
        "LaplaceHead(prior_precision=300)": (lambda: LaplaceHead(300.0), 1.0),
        "PooledHead(), default for images": (lambda: PooledHead(feature_map=feature_map), 1.0),
    }
    for _ in range(arguments.repeats):
        for name, (make, unit) in methods.items():
            model, seconds = timed(lambda make=make, unit=unit: make().fit(train[0] / np.float32(unit), train[1]))
            if name not in found or seconds < found[name][2]:
                found[name] = model, unit, seconds
    print(f"{'':<45}{'fit, s':>8}{'/ tuned':>9}{'/ one':>8}{'predict 1,000, s':>18}{'NLL':>8}")
    one = next(seconds for name, (_, _, seconds) in found.items() if name.endswith("converged"))
    for name, (model, unit, seconds) in found.items():
        P, predicting = timed(lambda model=model, unit=unit: model.predict_proba(test[0] / np.float32(unit)))
        row = f"{name:<45}{seconds:>8.2f}{seconds / found[REFERENCE][2]:>9.3f}{seconds / one:>8.2f}"
        print(f"{row}{1000 * predicting / len(P):>18.3f}{m.negative_log_likelihood(P, test[1]):>8.3f}")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.process_time()
        result = work()
    return result, time.process_time() - start


def tune(X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> GridSearchCV:
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=500), {"C": CS}, scoring="neg_log_loss", cv=folds)
    return search.fit(X, y, groups=groups)


def real(root: Path, cache: Path | None) -> tuple[tuple, tuple, np.ndarray]:
    from cbdc import ImageEmbedder, load_dataset

    data = load_dataset("ham10000", root / "ham10000")
    embeddings = ImageEmbedder(cache_dir=cache).fit_transform(data.images)
    row = {name: i for i, name in enumerate(data.frame["image"])}
    train, _, test = data.split(random_state=0)
    parts = [embeddings[[row[name] for name in part.frame["image"]]] for part in (train, test)]
    codes = [np.searchsorted(np.array(data.classes), part.labels) for part in (train, test)]
    return (parts[0], codes[0]), (parts[1], codes[1]), train.groups()


def made() -> tuple[tuple, tuple, np.ndarray]:
    """Embeddings whose spectrum falls like a power, labels of a softmax regression, lesions of one image or more."""
    rng = np.random.default_rng(0)
    n, d, K = 8000, 1280, 7
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    E = (rng.standard_normal((n, d)) / np.arange(1, d + 1) ** 0.7) @ axes
    logits = E @ rng.standard_normal((d, K)) + np.log([0.65, 0.11, 0.11, 0.05, 0.03, 0.03, 0.02])
    y = np.argmax(1.5 * logits + rng.gumbel(size=(n, K)), axis=1)
    E = E.astype(np.float32)
    return (E[:6000], y[:6000]), (E[6000:], y[6000:]), rng.integers(0, 4500, 6000)


if __name__ == "__main__":
    main()
