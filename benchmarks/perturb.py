"""Size, tightness of the bound, and time of each perturbation: OMP_NUM_THREADS=1 python benchmarks/perturb.py"""

import argparse
import time

import numpy as np

from cbdc import make_lesions
from cbdc.perturb import PERTURBATIONS, SEVERITIES, perturb, perturbation_bound

TARGET = {"photometric": 5.0, "morphological": 15.0}  # milliseconds of processor time an image of 224 pixels


def milliseconds(function, images, name, repeats):
    """Best of several runs over the images at severity 5, processor time an image."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function(images, name, 5)
        times.append(time.process_time() - start)
    return 1000 * min(times) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50, help="made lesions of 224 pixels")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the best one counts")
    arguments = parser.parse_args()
    images = make_lesions(arguments.n, random_state=0).images
    x = images / 255
    print(f"{'':14}  mean size at severity 1 to 5       bound / size         ms an image")
    print(f"{'':14}  {'':33}  mean  largest  perturb  bound  of target")
    for name, kind in PERTURBATIONS.items():
        sizes, bounds = np.empty((2, len(SEVERITIES), len(images)))
        for row, severity in enumerate(SEVERITIES):
            sizes[row] = np.sqrt(((perturb(images, name, severity) / 255 - x) ** 2).sum(axis=(1, 2, 3)))
            bounds[row] = perturbation_bound(images, name, severity)
        if (bounds < sizes).any():
            raise AssertionError(f"{name}: larger than its bound")
        ratio = bounds / sizes
        times = [milliseconds(f, images, name, arguments.repeats) for f in (perturb, perturbation_bound)]
        means = "  ".join(f"{size:5.1f}" for size in sizes.mean(axis=1))
        figures = f"{ratio.mean():4.2f}  {ratio.max():7.2f}  {times[0]:7.2f}  {times[1]:5.2f}"
        print(f"{name:14}  {means}  {figures}  {times[0] / TARGET[kind.kind]:9.2f}")


if __name__ == "__main__":
    main()
