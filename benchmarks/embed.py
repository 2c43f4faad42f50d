"""JPEG files to embeddings: `ImageEmbedder` beside the loop that one would write with torchvision, in one run.

The plain loop opens each file with Pillow, applies torchvision's transforms and runs the same network with the same
weights, eager, in batches of 32. Both get the same number of threads. Runs alternate; the ratio is the median over
pairs. Files are in the page cache for both (one unmeasured pass).
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from cbdc.backbones import Backbone, ImageEmbedder, create_backbone
from cbdc.images import write_image


def make_photos(folder: Path, n: int) -> list[Path]:
    """JPEG files of 600 x 450 pixels, as HAM10000's: skin with a dark blob, shading and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:450, 0:600].astype(np.float32)
    paths = []
    for i in range(n):
        (cy, cx), radius = rng.uniform([180, 240], [270, 360]), rng.uniform(60, 160)
        blob = 1 / (1 + np.exp((np.hypot(y - cy, x - cx) - radius) / 8))
        shade = 20 * np.sin(x / rng.uniform(40, 200)) + rng.normal(0, 6, (450, 600)).astype(np.float32)
        skin = np.array([215, 165, 145]) - blob[..., None] * np.array([110, 95, 80]) + shade[..., None]
        paths.append(write_image(np.clip(skin, 0, 255).astype(np.uint8), folder / f"{i:05d}.jpg"))
    return paths


def plain_loop(paths: list[Path], backbone: Backbone, batch_size: int = 32) -> np.ndarray:
    """What a user would write; the centre crop comes before the resize, so that the arithmetic is that of `cbdc`."""
    transform = transforms.Compose(
        [
            transforms.Lambda(centre_square),
            transforms.Resize(backbone.input_size),
            transforms.ToTensor(),
            transforms.Normalize(np.array(backbone.mean) / 255, np.array(backbone.std) / 255),
        ]
    )
    rows = []
    with torch.no_grad():
        for start in range(0, len(paths), batch_size):
            batch = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + batch_size]]
            rows.append(backbone.network(torch.stack(batch)).numpy())
    return np.concatenate(rows)


def centre_square(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def seconds(call, *args) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - start, result


def latency(call, paths: list[Path], n: int = 30) -> float:
    """Median milliseconds of one image at a time."""
    return 1e3 * statistics.median(seconds(call, [path])[0] for path in paths[:n])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of JPEG files; default: made photos of 600 x 450 pixels")
    parser.add_argument("--n-images", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    backbone = create_backbone(arguments.backbone, arguments.weights)
    load_time, embedder = seconds(
        ImageEmbedder(arguments.backbone, weights=arguments.weights, n_jobs=arguments.threads).fit
    )
    with tempfile.TemporaryDirectory() as folder:
        if arguments.root is None:
            paths = make_photos(Path(folder), arguments.n_images)
        else:
            paths = sorted(arguments.root.rglob("*.jpg"))[: arguments.n_images]
        first_time, _ = seconds(embedder.transform, paths[:1])
        embedder.transform(paths)
        plain_loop(paths[:32], backbone)

        print(f"{len(paths)} JPEG files, {backbone.name}, {arguments.threads} threads, engine {embedder.engine_}")
        print(f"loading {load_time:.2f} s, then the first image {first_time:.2f} s")
        ratios = []
        for pair in range(1, arguments.pairs + 1):
            ours, embeddings = seconds(embedder.transform, paths)
            plain, expected = seconds(plain_loop, paths, backbone)
            ratios.append(plain / ours)
            rates = f"cbdc {len(paths) / ours:6.1f} images/s, plain loop {len(paths) / plain:5.1f} images/s"
            print(f"pair {pair}: {rates}, ratio {ratios[-1]:.2f}")
        print(f"ratio, median of {len(ratios)}: {statistics.median(ratios):.2f}")
        print(f"largest difference of an embedding: {np.abs(embeddings - expected).max():.1e}")
        plain_ms = latency(lambda one: plain_loop(one, backbone), paths)
        print(f"one image: cbdc {latency(embedder.transform, paths):.1f} ms, plain loop {plain_ms:.1f} ms")


if __name__ == "__main__":
    main()
