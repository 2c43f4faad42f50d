"""Made lesions a second, on one core: OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/phantom.py"""

import argparse
import time

from cbdc.phantom import make_lesions

TARGET = 100  # images a second of 224 pixels


def images_per_second(n_images: int, image_size: int) -> tuple[float, float]:
    """By processor time, which other programs on the machine hardly change, and by the clock."""
    processor, clock = time.process_time(), time.perf_counter()
    make_lesions(n_images, image_size=image_size, random_state=0)
    return n_images / (time.process_time() - processor), n_images / (time.perf_counter() - clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=300, help="images a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the best one counts")
    arguments = parser.parse_args()
    clock = time.perf_counter()
    make_lesions(1, random_state=0)
    print(f"first image, with the textures made: {time.perf_counter() - clock:.2f} s")
    print(f"{'pixels':>6}  {'images/s (processor)':>20}  {'images/s (clock)':>16}")
    for image_size in (64, 112, 224, 448):
        n_images = arguments.n if image_size <= 224 else arguments.n // 4
        runs = [images_per_second(n_images, image_size) for _ in range(arguments.repeats)]
        processor, clocked = (max(column) for column in zip(*runs))
        ratio = f"  {processor / TARGET:.2f} x the target of {TARGET}" if image_size == 224 else ""
        print(f"{image_size:>6}  {processor:>20.0f}  {clocked:>16.0f}{ratio}")


if __name__ == "__main__":
    main()
