"""What giotto-tda 0.6.2 computes on the versions that it asks for, to check against: `giotto_golden.npz`.

Made in an environment of its own, since those versions do not go with this project's:

    python3.11 -m venv legacy
    legacy/bin/pip install giotto-tda==0.6.2        # brings scikit-learn 1.3.2, numpy 1.26, giotto-ph 0.2.4
    legacy/bin/python tests/data/make_giotto_golden.py
"""

from pathlib import Path
from typing import Any

import numpy as np

METRICS = ("bottleneck", "wasserstein", "betti", "landscape", "silhouette", "heat", "persistence_image")


def transformers(source: Any) -> dict:
    """The transformers of a module, by the name of their array."""
    found = {
        "entropy": source.PersistenceEntropy(),
        "normalized_entropy": source.PersistenceEntropy(normalize=True),
        "betti": source.BettiCurve(n_bins=10),
        "landscape": source.PersistenceLandscape(n_layers=2, n_bins=10),
        "image": source.PersistenceImage(sigma=0.1, n_bins=8),
    }
    for metric in METRICS:
        parameters = {"n_bins": 20} if metric not in ("bottleneck", "wasserstein") else None
        found[f"amplitude_{metric}"] = source.Amplitude(metric, metric_params=parameters)
        exact = {"delta": 0.0} if metric == "bottleneck" else parameters
        found[f"distance_{metric}"] = source.PairwiseDistance(metric, metric_params=exact)
    return found


def sphere(n: int) -> np.ndarray:
    """Points spread evenly over the unit sphere, on a spiral."""
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    return np.column_stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z])


def main() -> None:
    from gtda import diagrams, homology

    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    clouds = [
        rng.standard_normal((24, 3)),
        np.column_stack([np.cos(angles), np.sin(angles), 0 * angles]) + 0.1 * rng.standard_normal((24, 3)),
        sphere(24) + 0.05 * rng.standard_normal((24, 3)),
        rng.standard_normal((24, 3)) + 4 * np.eye(3)[rng.integers(0, 3, 24)],
    ]
    arrays = {"clouds": np.array(clouds)}
    arrays["diagrams"] = homology.VietorisRipsPersistence(homology_dimensions=(0, 1, 2)).fit_transform(arrays["clouds"])
    for name, transformer in transformers(diagrams).items():
        arrays[name] = transformer.fit_transform(arrays["diagrams"])
    np.savez_compressed(Path(__file__).parent / "giotto_golden.npz", **arrays)


if __name__ == "__main__":
    main()
