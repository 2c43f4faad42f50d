"""Upper bounds of a network's Lipschitz constant, layer by layer, beside its local gradient: a reference only.

What is bounded is true and of no use: the product over the layers exceeds what is measured by many orders of magnitude.
The certificates of `cbdc.topology` rest on measured embeddings instead.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth

from .networks import Backbone

__all__ = ["LipschitzReport", "convolution_norm", "lipschitz_report"]

_SQUARINGS = 5  # the bound is then at most rank ** (1 / 64) too large: 10% for 512 channels
_SLACK = 1 + 1e-4  # for the rounding of single precision
_CELLS = 2**24
_OPERATIONS = 2e11  # of a convolution's frequencies; above, a bound from one matrix is taken
_UNFOLDINGS = ((1, 3, 2, 4), (1, 4, 2, 3), (1, 2, 3, 4), (1, 3, 4, 2))  # out, in, height, width: two are the rows
_POWER_STEPS = 20

# Largest slope of each; GELU's and SiLU's exceed 1, rounded up
_SLOPES = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, nn.Tanh, torch.tanh), 1.0),
    **dict.fromkeys((nn.Sigmoid, torch.sigmoid), 0.25),
    **dict.fromkeys((nn.SiLU, F.silu), 1.1),
    **dict.fromkeys((nn.GELU, F.gelu), 1.13),
    **dict.fromkeys((nn.Hardswish, F.hardswish), 1.5),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), 1 / 6),
}
# What only moves numbers about, leaves some out, or does nothing in evaluation
_ISOMETRIES = {
    *("chunk", "split", torch.chunk, torch.split, operator.getitem),
    *(nn.Identity, nn.Dropout, nn.Flatten, nn.ZeroPad2d, torch.flatten, torch.permute, stochastic_depth, F.dropout),
    *("permute", "flatten", "view", "reshape", "contiguous"),
}


@dataclasses.dataclass(frozen=True)
class LipschitzReport:
    """Lipschitz constant of a network: a bound from its layers, and what is seen at images.

    Attributes
    ----------
    backbone : str
    layers : DataFrame
        ``layer``, ``kind`` and ``bound`` of its own, for each layer with weights, in order.
    bound : float
        Of the whole network, from pixels in [0, 1] to features, l2 norms; infinite where a layer has none.
    unbounded : tuple of str
        Layers that have none, or for which no rule is known; squeeze-and-excitation and attention are such.
    local : ndarray of shape (n_images,)
        Norm of the gradient at each image, in the same units, estimated from below.

    Notes
    -----
    **Guarantee.** Assumption: the network is in evaluation mode and computes with real numbers. Statement: the features
    of two images of this size differ by at most `bound` times the difference of the images. What breaks it:
    nothing that matters, for it is vacuous. `local` guarantees nothing: power iteration approaches the norm from below.
    """

    backbone: str
    layers: pd.DataFrame
    bound: float
    unbounded: tuple[str, ...]
    local: np.ndarray

    @property
    def gap(self) -> float:
        """How many times the bound exceeds the largest gradient seen; NaN without images."""
        return float(self.bound / self.local.max()) if len(self.local) else math.nan

    def __str__(self) -> str:
        text = f"{self.backbone}: Lipschitz constant at most {self.bound:.3g} (from {len(self.layers)} layers)"
        if self.unbounded:
            text += f"; no global constant: {', '.join(self.unbounded[:3])}"
            text += f" and {len(self.unbounded) - 3} more" * (len(self.unbounded) > 3)
        if len(self.local):
            text += f"; gradient at {len(self.local)} images at least {self.local.max():.3g}, {self.gap:.2g} times less"
        return text + ". A reference: far too large to certify anything."


def lipschitz_report(backbone: Backbone, images: np.ndarray | None = None) -> LipschitzReport:
    """Bound the Lipschitz constant of a network layer by layer, and look at its gradient.

    Residual branches add up, concatenated ones add in squares. Convolutions are bounded by `convolution_norm`.

    Parameters
    ----------
    backbone : Backbone
        See `create_backbone`.
    images : ndarray of shape (n, height, width, 3), uint8, optional
        Of the network's input size, where the gradient is looked at; some seconds each.

    Returns
    -------
    LipschitzReport

    References
    ----------
    Szegedy et al., *Intriguing properties of neural networks*, arXiv:1312.6199, section 4.3. Delattre et al.,
    *Efficient bound of Lipschitz constant for convolutional layers by Gram iteration*, arXiv:2305.16173.

    Examples
    --------
    >>> from cbdc.backbones import create_backbone
    >>> report = lipschitz_report(create_backbone("efficientnet_lite0"))
    >>> report.bound > 1e6, report.unbounded
    (True, ())
    """
    propagation = _Propagation(backbone.network)
    with torch.inference_mode():
        propagation.run(torch.zeros(1, 3, *backbone.input_size))
    scale = 255 / min(backbone.std)  # pixels enter as (255 x - mean) / std
    pixels: Any = [] if images is None else _checked(images, backbone)
    return LipschitzReport(
        backbone.name,
        pd.DataFrame(propagation.layers, columns=["layer", "kind", "bound"]),
        propagation.total * scale,
        tuple(propagation.unbounded),
        np.array([_gradient_norm(backbone, image) for image in pixels]),
    )


def convolution_norm(
    weight: Tensor, size: Sequence[int], *, dilation: Sequence[int] = (1, 1), groups: int = 1
) -> float:
    """Upper bound of the spectral norm of a convolution with zero padding, of any stride.

    Padded with zeros to ``size + kernel - 1``, the input may as well be convolved circularly, which the Fourier
    transform turns into one matrix a frequency; leaving out rows, as strides and borders do, makes no norm larger. The
    norm of each matrix is bounded by repeated squaring: |G^(2^t)|_F^(1 / 2^(t + 1)) with G = M* M, never below it.
    Where the frequencies are too many for that, sqrt(height * width) times the norm of the weights as one matrix bounds
    the norm as well; it is up to three times larger for a 3 x 3 kernel.

    Parameters
    ----------
    weight : Tensor of shape (out_channels, in_channels / groups, height, width)
    size : (height, width)
        Of the input.
    dilation : (int, int), default=(1, 1)
    groups : int, default=1

    Returns
    -------
    float
        At most 10% above the norm of the circular convolution, where the frequencies were looked at.

    References
    ----------
    Sedghi, Gupta and Long, *The singular values of convolutional layers*, arXiv:1805.10408. Delattre et al.,
    arXiv:2305.16173. Singla and Feizi, *Fantastic four: differentiable bounds on singular values of convolution
    layers*, arXiv:1911.10258.

    Examples
    --------
    >>> round(convolution_norm(torch.ones(1, 1, 3, 3), (8, 8)), 2)  # all of nine neighbours
    9.0
    """
    out, inside, *kernel = weight.shape
    matrices = weight.detach().reshape(groups, out // groups, inside, *kernel).float()
    spread = matrices.new_zeros(*matrices.shape[:3], *((k - 1) * d + 1 for k, d in zip(kernel, dilation)))
    spread[..., :: dilation[0], :: dilation[1]] = matrices
    shape = [n + k - 1 for n, k in zip(size, spread.shape[-2:])]
    if max(kernel) == 1:
        frequencies = matrices[..., 0, 0][:, None]
    elif math.prod(shape) * matrices[0, ..., 0, 0].numel() * min(matrices.shape[1:3]) > _OPERATIONS:
        # four ways to unfold the weights, each of which bounds the norm
        unfolded = [matrices.permute(0, *axes).flatten(3, 4).flatten(1, 2) for axes in _UNFOLDINGS]
        return _SLACK * math.sqrt(math.prod(kernel)) * min(_matrix_norm(matrix) for matrix in unfolded)
    else:
        frequencies = torch.fft.rfft2(spread, s=shape).flatten(3).movedim(3, 1)
    flat = frequencies.reshape(-1, *frequencies.shape[2:])
    step = max(1, _CELLS // (flat.shape[1] * flat.shape[2]))
    return _SLACK * max(_matrix_norm(flat[start : start + step]) for start in range(0, len(flat), step))


def _matrix_norm(matrices: Tensor) -> float:
    """Upper bound of the largest spectral norm of matrices (n, rows, columns), by squaring their Gram matrices."""
    rows, columns = matrices.shape[1:]
    if min(rows, columns) == 1:
        return float(torch.linalg.vector_norm(matrices, dim=(1, 2)).max())
    G = matrices.mH @ matrices if columns <= rows else matrices @ matrices.mH
    log_norm = torch.zeros(len(G), dtype=torch.float64)
    for t in range(_SQUARINGS):
        length = torch.linalg.matrix_norm(G).clamp_min(torch.finfo(torch.float32).tiny)
        G = G / length[:, None, None]
        log_norm += length.double().log() / 2**t
        G = G @ G
    log_norm += torch.linalg.matrix_norm(G).clamp_min(torch.finfo(torch.float32).tiny).double().log() / 2**_SQUARINGS
    return float(torch.exp(log_norm / 2).max())


class _Propagation(fx.Interpreter):
    """Run a network once, and carry along the Lipschitz constant of every value in the input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(fx.symbolic_trace(network))
        self.constants: dict[fx.Node, float] = {}
        self.values: dict[fx.Node, Any] = {}
        self.layers: list[tuple[str, str, float]] = []
        self.unbounded: list[str] = []
        self.total = math.nan

    def run_node(self, node: fx.Node) -> Any:
        value = self.values[node] = super().run_node(node)
        if node.op == "placeholder":
            self.constants[node] = 1.0
        elif node.op == "get_attr" or not _holds_tensor(value):
            self.constants[node] = 0.0
        elif node.op == "output":
            self.constants[node] = self.total = self._of(node.args[0])
        else:
            self.constants[node] = self._constant(node)
        return value

    def _of(self, argument: Any) -> float:
        return self.constants[argument] if isinstance(argument, fx.Node) else 0.0

    def _constant(self, node: fx.Node) -> float:
        inputs = [self._of(argument) for argument in node.all_input_nodes]
        if not any(inputs):
            return 0.0
        kind: Any = type(self.submodules[node.target]) if node.op == "call_module" else node.target
        if kind in (operator.add, torch.add, operator.iadd) and not node.kwargs:
            return sum(self._of(argument) * self._copies(argument, node) for argument in node.args[:2])
        if kind is torch.cat and node.args:
            return math.hypot(*map(self._of, _any(node.args[0])))  # a value may come twice
        if kind in (operator.mul, torch.mul, operator.imul) and not node.kwargs:
            return self._product(node)
        others = [*node.args[1:], *node.kwargs.values()]
        own = self._own(node, kind) if node.args and not any(map(self._of, others)) else None
        if own is None:
            self.unbounded.append(f"{node.name} ({getattr(kind, '__name__', kind)})")
            return math.inf
        return own * self._of(node.args[0])

    def _product(self, node: fx.Node) -> float:
        """Of a value and something that does not depend on the input; two values that do have no global constant."""
        first, second = (self._of(argument) for argument in node.args[:2])
        if first and second:
            self.unbounded.append(f"{node.name} (product of two branches, as in squeeze-and-excitation)")
            return math.inf
        fixed = node.args[0] if second else node.args[1]
        number = self.values[fixed] if isinstance(fixed, fx.Node) else fixed
        copies = self._copies(node.args[1] if second else node.args[0], node)
        return (first or second) * copies * float(torch.as_tensor(number).abs().max())

    def _copies(self, argument: Any, node: fx.Node) -> float:
        """How much longer an argument gets by being broadcast."""
        if not isinstance(argument, fx.Node) or not isinstance(self.values[argument], Tensor):
            return 1.0
        return math.sqrt(self.values[node].numel() / self.values[argument].numel())

    def _own(self, node: fx.Node, kind: Any) -> float | None:
        """Constant of one layer; None where no rule is known."""
        module: Any = self.submodules[node.target] if node.op == "call_module" else None
        if kind in _ISOMETRIES:
            return 1.0 if kind is not operator.getitem or _is_slice(node.args[1]) else None
        size, new_size = (tuple(self.values[_any(at)].shape[2:]) for at in (node.args[0], node))
        if kind in _SLOPES:
            return _SLOPES[kind]
        rule: Callable[[], float | None] | None = {
            nn.Conv2d: lambda: self._convolution_module(node, module, size),
            torch.conv2d: lambda: self._functional_convolution(node, size),
            nn.BatchNorm2d: lambda: _batch_norm(module),
            nn.Linear: lambda: self._told(node, "Linear", _SLACK * _matrix_norm(module.weight[None])),
            nn.LayerNorm: lambda: _layer_norm(module.weight, module.eps),
            F.layer_norm: lambda: _layer_norm(self.values.get(_any(node.args[2])), _epsilon(node)),
            nn.MaxPool2d: lambda: _max_pool(module),
            nn.AvgPool2d: lambda: _average_pool(module, size, new_size),
            nn.AdaptiveAvgPool2d: lambda: _adaptive_pool(size, new_size),
            F.adaptive_avg_pool2d: lambda: _adaptive_pool(size, new_size),
        }.get(kind)
        return None if rule is None else rule()

    def _convolution_module(self, node: fx.Node, module: nn.Conv2d, size: tuple[int, ...]) -> float | None:
        if module.padding_mode != "zeros":
            return None
        return self._convolution(node, module.weight, size, module.dilation, module.groups)

    def _functional_convolution(self, node: fx.Node, size: tuple[int, ...]) -> float:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given: dict[str, Any] = dict(zip(names, node.args)) | dict(node.kwargs)
        dilation = given.get("dilation", 1)
        pair = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
        return self._convolution(node, self.values[given["weight"]], size, pair, given.get("groups", 1))

    def _convolution(
        self, node: fx.Node, weight: Tensor, size: tuple[int, ...], dilation: tuple[int, ...], groups: int
    ) -> float:
        kind = "depthwise convolution" if groups == weight.shape[0] > 1 else "convolution"
        return self._told(node, kind, convolution_norm(weight, size, dilation=dilation, groups=groups))

    def _told(self, node: fx.Node, kind: str, bound: float) -> float:
        self.layers.append((node.name, kind, bound))
        return bound


def _any(value: Any) -> Any:
    return value


def _epsilon(node: fx.Node) -> float:
    found: Any = node.args[4] if len(node.args) > 4 else node.kwargs.get("eps", 1e-5)
    return float(found)


def _batch_norm(module: Any) -> float:
    weight = 1.0 if module.weight is None else module.weight
    return float((weight / torch.sqrt(module.running_var + module.eps)).abs().max())


def _layer_norm(weight: Any, eps: float) -> float:
    """The gradient is at most weight / sd, and the sd at least sqrt(eps)."""
    return float(1.0 if weight is None else weight.abs().max()) / math.sqrt(eps)


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value))


def _is_slice(index: Any) -> bool:
    """Whether an index takes no entry twice."""
    return all(isinstance(i, int | slice | None | type(...)) for i in (index if isinstance(index, tuple) else (index,)))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _max_pool(pool: nn.MaxPool2d) -> float | None:
    """The root of the number of windows that a pixel lies in: how often it may count."""
    if _pair(pool.dilation) != (1, 1):
        return None
    return math.sqrt(math.prod(math.ceil(k / s) for k, s in zip(_pair(pool.kernel_size), _pair(pool.stride))))


def _average_pool(pool: nn.AvgPool2d, size: tuple[int, ...], new_size: tuple[int, ...]) -> float:
    """Rows and columns are averaged one after the other: the product of two norms."""
    total, given = 1.0, [_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding)]
    for n, n_new, kernel, stride, padding in zip(size, new_size, *given):
        windows = []
        for start in range(-padding, -padding + n_new * stride, stride):
            stop = min(start + kernel, n + padding)
            first, last = max(start, 0), min(stop, n)
            windows.append((first, last, stop - start if pool.count_include_pad else last - first))
        total *= _averages_norm(n, [(*w[:2], 1) for w in windows] if pool.divisor_override else windows)
    return total / (pool.divisor_override or 1)


def _adaptive_pool(size: tuple[int, ...], new_size: tuple[int, ...]) -> float:
    total = 1.0
    for n, n_new in zip(size, new_size):
        ends = [(i * n // n_new, -(-(i + 1) * n // n_new)) for i in range(n_new)]
        total *= _averages_norm(n, [(first, last, last - first) for first, last in ends])
    return total


def _averages_norm(n: int, windows: list[tuple[int, int, int]]) -> float:
    """Norm of the map from n numbers to their sums from `first` to before `last`, divided by `divisor`."""
    matrix = np.zeros((len(windows), n))
    for row, (first, last, divisor) in zip(matrix, windows):
        row[first:last] = 1 / divisor
    return float(np.linalg.norm(matrix, 2)) * (1 + 1e-12)


def _checked(images: np.ndarray, backbone: Backbone) -> np.ndarray:
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (*backbone.input_size, 3):
        raise ValueError(
            f"images: got {pixels.dtype} of shape {pixels.shape}; expected uint8 of shape (n, "
            f"{', '.join(map(str, backbone.input_size))}, 3), the network's input size. Fix: cbdc.images.resize."
        )
    return pixels


def _gradient_norm(backbone: Backbone, image: np.ndarray) -> float:
    """Spectral norm of the gradient at an image with pixels in [0, 1], by power iteration: from below."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    point = torch.from_numpy(image.transpose(2, 0, 1) / 255.0).float().requires_grad_()
    features = backbone.network(((255 * point - mean) / std)[None])[0]
    dual = torch.zeros_like(features, requires_grad=True)
    (pulled,) = torch.autograd.grad(features, point, dual, create_graph=True)  # linear in dual: its gradient pushes
    direction = torch.randn(point.shape, generator=torch.Generator().manual_seed(0))
    norm = 0.0
    for _ in range(_POWER_STEPS):
        (pushed,) = torch.autograd.grad(pulled, dual, direction / direction.norm(), retain_graph=True)
        norm = max(norm, float(pushed.norm()))
        (direction,) = torch.autograd.grad(features, point, pushed, retain_graph=True)
        if not direction.any():
            break
    return norm
