"""Peak memory of `persistence_diagrams`, measured and as `estimate_memory` says beforehand.

Each run has a process of its own, whose peak of resident memory is read from Linux after it was reset; the estimate is
made in this one. The constants of cbdc/topology/memory.py were fitted to this table.

    OMP_NUM_THREADS=1 python benchmarks/topology_memory.py [--largest 2000]

A circle of 2,000 points takes a minute and 4.4 GB.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from cbdc.topology import estimate_memory, persistence_diagrams

KINDS = ("embedding", "gaussian", "blobs", "square", "circle", "noisy circle", "sphere")


def made_cloud(kind: str, n: int) -> np.ndarray:
    """Points (n, d) of a shape by its name."""
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * rng.random(n)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    if kind == "embedding":  # as after a rectifier
        return np.maximum(rng.standard_normal((n, 128)), 0.0)
    if kind == "gaussian":
        return rng.standard_normal((n, 10))
    if kind == "blobs":
        return rng.standard_normal((n, 20)) + 8 * rng.standard_normal((7, 20))[rng.integers(0, 7, n)]
    if kind == "square":
        return rng.random((n, 2))
    if kind == "circle":
        return circle + 0.05 * rng.standard_normal((n, 2))
    if kind == "noisy circle":
        return circle @ np.eye(2, 64) + 0.1 * rng.standard_normal((n, 64))
    ball = rng.standard_normal((n, 3))
    return ball / np.linalg.norm(ball, axis=1)[:, None]


def measured_peak(kind: str, n: int, dimension: int, engine: str) -> int:
    """Bytes of resident memory at the peak, beyond those before the run."""
    command = [sys.executable, __file__, "--child", json.dumps([kind, n, dimension, engine])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    return int(done.stdout)


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def child(kind: str, n: int, dimension: int, engine: str) -> None:
    """One run, in a process of its own."""
    dimensions = tuple(range(dimension + 1))
    X = made_cloud(kind, n)
    persistence_diagrams(X[:30], dimensions, engine)  # imports, and what a first call allocates
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    persistence_diagrams(X, dimensions, engine, max_memory=np.inf)
    print(resident("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1000, help="most points in dimension 1; 300 in dimension 2")
    parser.add_argument("--engines", nargs="+", default=["giotto", "gudhi"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*json.loads(arguments.child))
        return
    print(f"{'engine':<8}{'cloud':<14}{'n':>6}{'H':>3}{'measured MB':>13}{'estimate MB':>13}{'ratio':>7}")
    ratios = []
    for engine in arguments.engines:
        for dimension, sizes in ((1, (500, 1000, 2000)), (2, (200, 300))):
            for kind in KINDS:
                for n in sizes:
                    if n > arguments.largest:
                        continue
                    peak = measured_peak(kind, n, dimension, engine)
                    estimate = estimate_memory(made_cloud(kind, n), tuple(range(dimension + 1)), engine)
                    row = f"{engine:<8}{kind:<14}{n:>6}{dimension:>3}{peak / 1e6:>13.1f}{estimate / 1e6:>13.1f}"
                    ratio = estimate / peak
                    print(f"{row}{ratio:>7.2f}", flush=True)
                    ratios.append(ratio)
    print(f"estimate / measured: {min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} runs")


if __name__ == "__main__":
    main()
