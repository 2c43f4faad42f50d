"""The training loop: rates, averaged weights, checkpoints. Every epoch is seeded: a run that resumes is the same."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConvergenceError, ModelFileError
from ..modelfile import part_of, read_modelfile, write_modelfile
from .augment import Augmenter, resized
from .depthwise import QuickDepthwise
from .losses import Loss
from .networks import Backbone

__all__ = ["Data", "Settings", "TrainedState", "seconds_per_image", "size_of_epoch", "stages_of", "train"]

_ONE_CYCLE_RISE = 0.3  # of the training
_START = 0.04  # of the peak: the rate at the first step
_MOMENTUM = 0.1  # least, of batch norms' statistics; EfficientNet-Lite's 0.01 was for a million images an epoch
_CLIP = 5.0  # norm of a gradient above which it is scaled down
_PROBE = 4  # steps
_STRIDE = 32  # pixels of the image for one of a convolutional network's last layer


@dataclass(frozen=True)
class Data:
    """Pixels in memory, and which rows of them are trained on; the others tell how well."""

    store: np.ndarray  # uint8 (n, side, side, 3): of the network's input size, or larger for an augmenter to cut from
    codes: np.ndarray  # class indices (n,)
    trained: np.ndarray  # rows
    held_out: np.ndarray  # rows
    shown: np.ndarray  # uint8 (len(held_out), *input_size, 3): the held-out images as the embedder shows them


@dataclass(frozen=True)
class Settings:
    """What decides the result, beside the data."""

    n_epochs: int
    first_size: int | None
    n_trained_stages: int | None
    learning_rate: float
    layer_decay: float
    weight_decay: float
    warmup: float
    schedule: str
    batch_size: int
    mixup: float
    dropout: float
    ema_decay: float
    patience: int | None
    bfloat16: bool
    seed: int


@dataclass
class TrainedState:
    """Weights of the best epoch so far and, at the end, of the last, averaged over steps; and the history."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        return int(np.argmin([row["held_out_nll"] for row in self.history]))


class _Network(nn.Module):
    """Pixels to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, n_classes: int, settings: "Settings") -> None:
        super().__init__()
        self.backbone = backbone.network
        self._in_bfloat16 = settings.bfloat16
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Linear(backbone.n_features, n_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    def normalised(self, pixels: Tensor) -> Tensor:
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._in_bfloat16), QuickDepthwise():
            features = self.backbone(x)
        return self.classifier(self.dropout(features.float()))  # three digits would be too few for a likelihood


def train(
    backbone: Backbone,
    data: Data,
    settings: Settings,
    loss: Loss,
    augmenter: Augmenter | None,
    *,
    checkpoint: tuple[Path, str] | None = None,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> TrainedState:
    """Train the network of a backbone, which is changed, and a linear classifier on top.

    Parameters
    ----------
    backbone : Backbone
    data : Data
    settings : Settings
    loss : Loss
    augmenter : Augmenter or None
        None trains on the images of the store as they are.
    checkpoint : (Path, str), optional
        A file written after every epoch, and the identity of the run: a file of the same identity is taken up.
    report : function, optional
        Called with each row of the history.

    Returns
    -------
    TrainedState

    Raises
    ------
    ConvergenceError
        If the loss is not finite.
    ModelFileError
        If the checkpoint is of another run.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # the caller's generator stays where it is
        torch.manual_seed(settings.seed)
        run = _Run(backbone, data, settings, loss, augmenter, device)
        if checkpoint is not None:
            run.resume(*checkpoint)
        while not run.is_done:
            report(run.epoch())
            if checkpoint is not None:
                run.save(*checkpoint)
        run.state.last = run.averaged()
    return run.state


def seconds_per_image(backbone: Backbone, data: Data, settings: Settings, loss: Loss) -> float:
    """Of training, measured over a few steps on a copy."""
    twin = Backbone(**{**vars(backbone), "network": copy.deepcopy(backbone.network)})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        run = _Run(twin, data, settings, loss, None, device)
        pixels = torch.from_numpy(data.shown[np.arange(settings.batch_size) % len(data.shown)])
        y = torch.from_numpy(data.codes[data.held_out][np.arange(settings.batch_size) % len(data.shown)])
        seconds = []
        for _ in range(_PROBE):
            start = time.perf_counter()
            run.step(pixels, y, np.random.default_rng(0))
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / settings.batch_size


def size_of_epoch(number: int, settings: Settings, input_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the images of an epoch, from 0: the side grows evenly, in steps of 32 pixels."""
    first, n = settings.first_size, settings.n_epochs
    if first is None or number >= n - 1:
        return input_size
    height, width = (first + (side - first) * number / (n - 1) for side in input_size)
    return min(_rounded(height), input_size[0]), min(_rounded(width), input_size[1])


def _rounded(side: float) -> int:
    return max(1, round(side / _STRIDE)) * _STRIDE


def stages_of(network: nn.Module) -> list[nn.Module]:
    """The network's parts in order, from the image to the features; containers and very large parts are opened."""
    total = sum(p.numel() for p in network.parameters())

    def opened(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            size, n_parts = sum(p.numel() for p in child.parameters()), len(list(child.children()))
            is_container = isinstance(child, nn.Sequential | nn.ModuleList)
            if n_parts and (size > total / 2 or (size and is_container and n_parts > 1)):
                yield from opened(child)
            elif size:
                yield child

    return list(opened(network)) or [network]


class _Run:
    """One training, epoch by epoch."""

    def __init__(
        self,
        backbone: Backbone,
        data: Data,
        settings: Settings,
        loss: Loss,
        augmenter: Augmenter | None,
        device: str,
    ) -> None:
        self._data, self._settings, self._loss, self._augmenter, self._device = data, settings, loss, augmenter, device
        self.state = TrainedState()
        network = _Network(backbone, len(loss.offset), settings)
        self._network = network.to(device).to(memory_format=torch.channels_last)
        for module in self._network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
                module.momentum = max(module.momentum, _MOMENTUM)
        self._frozen = self._freeze(backbone)
        self._optimiser = torch.optim.AdamW(self._parameter_groups(backbone), weight_decay=settings.weight_decay)
        self._average = copy.deepcopy(self._network).eval().requires_grad_(False)
        n = len(data.trained)
        self._n_steps = max(1, min(math.ceil(n / settings.batch_size), n // 2))  # batch norm needs two cases
        self._step = 0

    @property
    def is_done(self) -> bool:
        history, patience = self.state.history, self._settings.patience
        stale = patience is not None and bool(history) and len(history) - 1 - self.state.best_epoch >= patience
        return len(history) == self._settings.n_epochs or stale

    def epoch(self) -> dict[str, float]:
        """Train on every case once, look at the held-out ones; the row of the history."""
        number, start = len(self.state.history), time.perf_counter()
        rng = np.random.default_rng([self._settings.seed, number])
        torch.manual_seed(int(rng.integers(2**62)))
        total = 0.0
        for rows, pixels in self._batches(number, rng):
            y = torch.from_numpy(self._data.codes[rows])
            total += self.step(torch.from_numpy(pixels), y, rng) * len(rows)
        row = {
            "epoch": number + 1,
            "loss": total / len(self._data.trained),
            **self._look(),
            "seconds": time.perf_counter() - start,
        }
        if not np.isfinite([row["loss"], row["held_out_nll"]]).all():
            raise ConvergenceError(
                f"fine-tuning: the loss is not finite in epoch {number + 1}: the steps are too long. Fix: lower "
                f"learning_rate, now {self._settings.learning_rate:g}, or train in precision='float32'."
            )
        self.state.history.append(row)
        if self.state.best_epoch == number:
            self.state.weights = self.averaged()
        return row

    def averaged(self) -> dict[str, Tensor]:
        """A copy of the averaged weights as they are now."""
        return {key: value.detach().cpu().clone() for key, value in self._average.state_dict().items()}

    def step(self, pixels: Tensor, y: Tensor, rng: np.random.Generator) -> float:
        """One step of the optimiser, and of the average; the mean loss."""
        settings = self._settings
        self._network.train()
        for part in self._frozen:  # its batch norms keep the statistics that they came with
            part.eval()
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * _rate(self._step / (self._n_steps * settings.n_epochs), settings)
        x, y = self._network.normalised(pixels.to(self._device)), y.to(self._device)
        share, other = 1.0, torch.arange(len(y), device=self._device)
        if settings.mixup > 0:
            share = float(rng.beta(settings.mixup, settings.mixup))
            other = torch.from_numpy(rng.permutation(len(y))).to(self._device)
            x = share * x + (1 - share) * x[other]
        logits = self._network(x)
        value = self._loss(logits, y).mean()
        if settings.mixup > 0:
            value = share * value + (1 - share) * self._loss(logits, y[other]).mean()
        self._optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), _CLIP)
        self._optimiser.step()
        self._follow()
        return float(value.detach())

    def resume(self, path: Path, identity: str) -> None:
        """Take up the run where the file left it, if there is one."""
        if not path.exists():
            return
        arrays, document = read_modelfile(path)
        if document.get("identity") != identity:
            raise ModelFileError(
                f"checkpoint {path.name}: of another run (other data, settings or seed). Fix: delete it, or "
                "give another name."
            )
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        self._network.load_state_dict(part_of(tensors, "network."))
        self._average.load_state_dict(part_of(tensors, "average."))
        saved = self._optimiser.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part_of(tensors, "moments.").items():
            number, _, kind = name.partition(".")
            moments.setdefault(int(number), {})[kind] = tensor
        self._optimiser.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})
        self.state = TrainedState(part_of(tensors, "best."), history=document["history"])
        self._step = self._n_steps * len(self.state.history)

    def save(self, path: Path, identity: str) -> None:
        """Write all that `resume` needs."""
        tensors = {f"network.{key}": value for key, value in self._network.state_dict().items()}
        tensors |= {f"average.{key}": value for key, value in self._average.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.state.weights.items()}
        for number, moments in self._optimiser.state_dict()["state"].items():
            tensors |= {f"moments.{number}.{kind}": value for kind, value in moments.items()}
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        document = {"identity": identity, "history": self.state.history, "n_epochs": self._settings.n_epochs}
        write_modelfile(path, arrays, document)

    def _freeze(self, backbone: Backbone) -> list[nn.Module]:
        stages, n = stages_of(backbone.network), self._settings.n_trained_stages
        frozen = [] if n is None else stages[: max(0, len(stages) - n)]
        backbone.network.requires_grad_(True)
        for stage in frozen:
            stage.requires_grad_(False)
        return frozen

    def _parameter_groups(self, backbone: Backbone) -> list[dict[str, Any]]:
        """Rates fall by `layer_decay` a stage towards the image; no weight decay of vectors (norms, biases)."""
        stages, settings = stages_of(backbone.network), self._settings
        rates = {id(p): settings.learning_rate for p in self._network.parameters()}
        for depth, stage in enumerate(reversed(stages), start=1):
            rates |= {id(p): settings.learning_rate * settings.layer_decay**depth for p in stage.parameters()}
        groups: dict[tuple[float, bool], list[Tensor]] = {}
        for p in self._network.parameters():
            if p.requires_grad:
                groups.setdefault((rates[id(p)], p.ndim > 1), []).append(p)
        return [
            {"params": params, "lr": rate, "peak": rate, **({} if decays else {"weight_decay": 0.0})}
            for (rate, decays), params in groups.items()
        ]

    def _follow(self) -> None:
        """Move the average towards the weights; quicker in the first steps, of which little is worth keeping."""
        self._step += 1
        decay = min(self._settings.ema_decay, self._step / (self._step + 10))
        with torch.no_grad():
            new = self._network.state_dict()
            for key, old in self._average.state_dict().items():
                if old.is_floating_point():
                    old.lerp_(new[key], 1 - decay)
                else:
                    old.copy_(new[key])

    def _batches(self, number: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows in a new order, and their pixels; for a GPU made while the batch before is trained on."""
        order = rng.permutation(self._data.trained)
        chunks = np.array_split(order, self._n_steps)  # of equal size but for one: no batch of a single case

        size = size_of_epoch(number, self._settings, self._data.shown.shape[1:3])

        def pixels_of(rows: np.ndarray) -> np.ndarray:
            store = self._data.store
            if self._augmenter is None:
                return resized(store[rows], size)
            return self._augmenter.batch(store, rows, number, size)

        if self._device == "cpu":  # a second thread would take the cores from the first, which halves the speed
            yield from ((rows, pixels_of(rows)) for rows in chunks)
            return
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(pixels_of, chunks[0])
            for here, after in zip(chunks, [*chunks[1:], None], strict=True):
                pixels = coming.result()
                if after is not None:
                    coming = pool.submit(pixels_of, after)
                yield here, pixels

    def _look(self) -> dict[str, float]:
        """Loss and accuracy of the averaged weights on the held-out cases."""
        y = self._data.codes[self._data.held_out]
        logits = []
        with torch.inference_mode():
            for start in range(0, len(y), 64):
                pixels = torch.from_numpy(self._data.shown[start : start + 64]).to(self._device)
                logits.append(self._average(self._average.normalised(pixels)).cpu())
        log_p = torch.log_softmax(torch.cat(logits) + self._loss.offset, dim=1).numpy()
        hits = log_p.argmax(axis=1) == y
        recalls = [hits[y == k].mean() for k in np.unique(y)]
        return {
            "held_out_nll": float(-log_p[np.arange(len(y)), y].mean()),
            "held_out_accuracy": float(hits.mean()),
            "held_out_balanced_accuracy": float(np.mean(recalls)),
        }


def _rate(progress: float, settings: Settings) -> float:
    """Share of the peak rate at a point of the training, from 0 to 1."""
    if settings.schedule == "one_cycle":
        if progress < _ONE_CYCLE_RISE:
            return _START + (1 - _START) * (1 - math.cos(math.pi * progress / _ONE_CYCLE_RISE)) / 2
        return (1 + math.cos(math.pi * (progress - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE))) / 2
    if progress < settings.warmup:
        return _START + (1 - _START) * progress / settings.warmup
    return (1 + math.cos(math.pi * (progress - settings.warmup) / (1 - settings.warmup))) / 2
