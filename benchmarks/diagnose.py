"""One photograph to a `Diagnosis`, a model loaded: milliseconds, and how much of them is the embedding and the head.

python benchmarks/diagnose.py
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cbdc import CBDCClassifier, make_lesions
from cbdc.images import write_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    repeats = parser.parse_args().repeats
    train, calibration, test = make_lesions(600, image_size=300, random_state=0).split(random_state=0)
    clf = CBDCClassifier(condition_on=None, random_state=0).fit(train).conformalize(calibration)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        write_image(test.images[0], path)
        saved = clf.save(Path(folder) / "model.cbdc")
        clf = CBDCClassifier.load(saved)
        embedding = clf.embedder_.transform([path])
        works: dict[str, Callable[[], Any]] = {
            "diagnose": lambda: clf.diagnose([path]),
            "of which the embedding": lambda: clf.embedder_.transform([path]),
            "of which the head": lambda: clf.head_.predict_with_information(embedding),
        }
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repeats):
            for name, work in works.items():
                start = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - start)
    print(f"median of {repeats}, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        print(f"{name:<26}{1000 * statistics.median(seconds):>7.1f} ms")


if __name__ == "__main__":
    main()
