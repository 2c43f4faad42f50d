"""Images a second of training: `FineTuner` beside the loop that one would write with torch and torchvision.

Both train the same network with AdamW on the same JPEG files of 600 x 450 pixels, in batches of 32, for the same number
of epochs, with the same number of threads, in one run. The plain loop is a DataLoader with torchvision's transforms
(crop, resize, flip, colour jitter), decodes every image in every epoch and computes in float32. Later epochs are
counted apart from the first, in which `FineTuner` decodes.

    python benchmarks/train.py [--images 256] [--size 160] [--backbone efficientnet_lite0]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from embed import centre_square, make_photos
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cbdc.backbones import FineTuner, ImageEmbedder, create_backbone

CLASSES = 7


class Photos(Dataset):
    def __init__(self, paths: list[Path], y: np.ndarray, transform: transforms.Compose) -> None:
        self._paths, self._y, self._transform = paths, y, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.open(self._paths[i]).convert("RGB")), int(self._y[i])


def plain_loop(paths: list[Path], y: np.ndarray, backbone_name: str, size: int, epochs: int) -> list[float]:
    """Seconds of each epoch."""
    backbone = create_backbone(backbone_name, image_size=size)
    model = torch.nn.Sequential(backbone.network.requires_grad_(True), torch.nn.Linear(backbone.n_features, CLASSES))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    transform = transforms.Compose(
        [
            transforms.Lambda(centre_square),
            transforms.Resize((size, size)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2),
            transforms.ToTensor(),
            transforms.Normalize(np.array(backbone.mean) / 255, np.array(backbone.std) / 255),
        ]
    )
    loader = DataLoader(Photos(paths, y, transform), batch_size=32, shuffle=True)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        for x, labels in loader:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x), labels).backward()
            optimiser.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def tuned(paths: list[Path], y: np.ndarray, backbone: str, size: int, epochs: int, **options: object) -> list[float]:
    """Seconds of each epoch, decoding counted with the first; a sixteenth of the images is held out and looked at."""
    tuner = FineTuner(
        ImageEmbedder(backbone, image_size=size), epochs=epochs, validation_fraction=1 / 16, random_state=0, **options
    )
    start = time.perf_counter()
    tuner.fit(paths, y)
    total = time.perf_counter() - start
    seconds = [row["seconds"] for row in tuner.history_]
    return [total - sum(seconds[1:]), *seconds[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = make_photos(Path(folder), arguments.images)
        y = np.arange(arguments.images) % CLASSES
        given = (paths, y, arguments.backbone, arguments.size, arguments.epochs)
        seconds = {
            "plain torch loop, float32": plain_loop(*given),
            "FineTuner, float32": tuned(*given, precision="float32"),
            "FineTuner": tuned(*given),
        }
    plain = arguments.images / min(seconds["plain torch loop, float32"][1:])
    print(f"{'':<28}{'first epoch':>14}{'later':>10}{'ratio':>8}   images/s")
    for name, epochs in seconds.items():
        first, later = arguments.images / epochs[0], arguments.images / min(epochs[1:])
        print(f"{name:<28}{first:>14.1f}{later:>10.1f}{later / plain:>8.2f}")


if __name__ == "__main__":
    main()
