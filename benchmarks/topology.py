"""Topology of embeddings beside ripser.py, giotto-ph, gudhi and persim, in one run.

Four tables: certificates of twenty perturbed embeddings and how far above the true distance they lie; components of one
large cloud; loops by engine; and how many of 4,500 pairs of small diagrams each library gets wrong.

    python benchmarks/topology.py [--only certificates components engines distances]

ripser.py and persim are measured where they are installed (``pip install ripser persim``).
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cbdc import ImageEmbedder, make_lesions
from cbdc.topology import (
    Cloud,
    bottleneck_distance,
    distance_matrix,
    h0_death_times,
    persistence_diagrams,
    stability_bounds,
)

N_PERTURBED = 20


def made_embedding(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Rows as after a rectifier, in seven overlapping classes."""
    classes = rng.standard_normal((7, d))[rng.integers(0, 7, n)]
    return np.maximum(rng.standard_normal((n, d)) + 0.5 * classes, 0.0)


def made_perturbed(E: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Each row moved at random, along a direction common to all, and by a factor, at twenty strengths."""
    direction = rng.standard_normal(E.shape[1])
    spread = E.std()
    return [
        np.maximum(E * (1 - s / 4) + spread * s * (0.5 * rng.standard_normal(E.shape) + direction), 0.0)
        for s in np.linspace(0.02, 0.4, N_PERTURBED)
    ]


def perturbed_lesions(n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Embeddings of made lesions by EfficientNet-Lite0, and under five photometric changes at four strengths each."""
    images = np.stack(make_lesions(n, image_size=96, random_state=0).images).astype(np.float32)
    embedder = ImageEmbedder().fit(list(images.astype(np.uint8)))
    rng = np.random.default_rng(0)
    changes: list[Callable[[float], np.ndarray]] = [
        lambda s: images + 60 * s,
        lambda s: 128 + (images - 128) * (1 - 0.5 * s),
        lambda s: 255 * (images / 255) ** (1 + s),
        lambda s: images * (1 - s * np.array([0.0, 0.15, 0.3])),
        lambda s: images + 20 * s * rng.standard_normal(images.shape),
    ]

    def embed(pixels: np.ndarray) -> np.ndarray:
        return embedder.transform(list(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)))

    return embed(images), [embed(change(s)) for change in changes for s in (0.25, 0.5, 0.75, 1.0)]


def certificates(n_lesions: int) -> None:
    rng = np.random.default_rng(0)
    E = made_embedding(1000, 512, rng)
    clouds = made_perturbed(E, rng)
    wall, cpu = [], []
    for _ in range(5):
        start = time.perf_counter(), time.process_time()
        base = Cloud(E)
        found = [stability_bounds(base, Y) for Y in clouds]
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    print(
        f"certificates and components, n = 1,000 x {N_PERTURBED}, d = 512: {min(wall):.2f} s ({min(cpu):.2f} s of CPU)"
    )
    tightness("made embeddings, n = 1,000", found)
    base_points, perturbed = perturbed_lesions(n_lesions)
    base = Cloud(base_points)
    tightness(f"made lesions, n = {n_lesions}", [stability_bounds(base, Y, (0, 1)) for Y in perturbed])


def tightness(name: str, found: list[Any]) -> None:
    for k in found[0].bottleneck:
        ratios = [
            [getattr(bounds, link) / bounds.bottleneck[k] for bounds in found if bounds.bottleneck[k] > 0]
            for link in ("capped", "distortion", "twice_displacement")
        ]
        medians = ", ".join(
            f"{link} {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
            for link, values in zip(("capped", "distortion", "2 x displacement"), ratios, strict=True)
        )
        print(f"  {name}, times the bottleneck distance of H{k}, median (range): {medians}")


def components() -> None:
    X = made_embedding(5000, 512, np.random.default_rng(0))
    D = distance_matrix(X)
    rows = {
        "cbdc, from the points": lambda: h0_death_times(X),
        "cbdc, from the distances": lambda: h0_death_times(D, "precomputed"),
    }
    if importlib.util.find_spec("ripser"):
        from ripser import ripser

        rows |= {
            "ripser.py, from the points": lambda: ripser(X, maxdim=0)["dgms"],
            "ripser.py, from the distances": lambda: ripser(D, maxdim=0, distance_matrix=True)["dgms"],
        }
    print("components of 5,000 points, d = 512:")
    seconds = {name: least_seconds(call, 3) for name, call in rows.items()}
    for name, (wall, cpu) in seconds.items():
        ours = seconds["cbdc" + name[name.index(",") :]]
        print(f"  {name:<30}{wall:>8.3f} s{cpu:>8.3f} s of CPU  {cpu / ours[1]:>6.1f} times as much CPU")


def engines(sizes: list[int]) -> None:
    print(f"components and loops, d = 128, seconds of CPU:\n  {'':<12}" + "".join(f"{n:>9}" for n in sizes))
    rng = np.random.default_rng(0)
    clouds = [distance_matrix(np.maximum(rng.standard_normal((n, 128)), 0.0)) for n in sizes]
    calls: dict[str, Callable[[np.ndarray], Any]] = {
        name: lambda D, name=name: persistence_diagrams(D, (0, 1), name, metric="precomputed", max_memory=np.inf)
        for name in (["giotto"] if importlib.util.find_spec("gph") else []) + ["gudhi"]
    }
    if importlib.util.find_spec("ripser"):
        from ripser import ripser

        calls["ripser.py"] = lambda D: ripser(D, maxdim=1, distance_matrix=True)
    calls["H0 alone"] = lambda D: h0_death_times(D, "precomputed")
    for name, call in calls.items():
        cells = [least_seconds(lambda D=D, call=call: call(D), 3 if len(D) <= 1000 else 1)[1] for D in clouds]
        print(f"  {name:<12}" + "".join(f"{cell:>9.3f}" for cell in cells), flush=True)


def distances(n_pairs: int) -> None:
    """Against our own, which the tests hold against Hopcroft and Karp's algorithm."""
    import gudhi
    import gudhi.hera

    calls: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "Hera, as gudhi sets it": gudhi.hera.bottleneck_distance,
        "Hera, no tolerance": lambda a, b: gudhi.hera.bottleneck_distance(a, b, delta=0.0),
        "CGAL, by gudhi": lambda a, b: gudhi.bottleneck_distance(a, b),
    }
    if importlib.util.find_spec("persim"):
        import persim

        calls["persim"] = persim.bottleneck
    rng = np.random.default_rng(0)
    wrong, worst = dict.fromkeys(calls, 0), dict.fromkeys(calls, 0.0)
    for i in range(n_pairs):
        a, b = (np.sort(rng.random((rng.integers(1, 8), 2)), axis=1) for _ in range(2))
        if i % 2:
            a[:, 0] = b[:, 0] = 0
        exact = bottleneck_distance(*(np.column_stack([pairs, np.zeros(len(pairs))]) for pairs in (a, b)))
        for name, call in calls.items():
            error = abs(call(a, b) - exact) / exact
            wrong[name] += error > 1e-9
            worst[name] = max(worst[name], error)
    print(f"bottleneck distances of {n_pairs} pairs of diagrams of 1 to 7 classes:")
    for name in calls:
        print(f"  {name:<24}{wrong[name]:>6} differ by over 1e-9, at most by {worst[name]:.1e}")


def least_seconds(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Least wall-clock and CPU time of some runs."""
    wall, cpu = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return min(wall), min(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = ("certificates", "components", "engines", "distances")
    parser.add_argument("--only", nargs="+", choices=tables, default=tables)
    parser.add_argument("--lesions", type=int, default=200, help="made lesions to embed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 500, 1000, 2000])
    parser.add_argument("--pairs", type=int, default=4500)
    arguments = parser.parse_args()
    runs: dict[str, Callable[[], None]] = {
        "certificates": lambda: certificates(arguments.lesions),
        "components": components,
        "engines": lambda: engines(arguments.sizes),
        "distances": lambda: distances(arguments.pairs),
    }
    for name in arguments.only:
        runs[name]()


if __name__ == "__main__":
    main()
