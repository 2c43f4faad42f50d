"""Depthwise convolutions whose gradients are quick on a processor: the same numbers, from the kernels that are fast."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad
from torch.overrides import TorchFunctionMode

__all__ = ["QuickDepthwise"]

_QUICK_WIDTH = 3  # of a kernel: the gradient of a wider one takes oneDNN some ten times as long for each weight


class QuickDepthwise(TorchFunctionMode):
    """A context in which depthwise `conv2d` of CPU tensors has a quicker backward pass.

    oneDNN's gradients of depthwise convolutions fall back to a reference loop in bfloat16 for strides above 1 and, in
    every type, for kernels wider than 3; in an EfficientNet that is three quarters of a training step. Here

    - the gradient of a wide kernel is taken in strips of at most 3 columns, each a kernel on a shifted image;
    - the gradient of the input at stride s is put together from s x s forward convolutions, one for each phase of the
      image's grid, with the weights that meet it.

    Any other call goes through untouched. Both are sums of the same products: they differ from torch's in rounding
    only.

    Examples
    --------
    >>> import torch
    >>> from cbdc.backbones.depthwise import QuickDepthwise
    >>> x, w = torch.ones(1, 2, 5, 5), torch.ones(2, 1, 5, 5, requires_grad=True)
    >>> with QuickDepthwise():
    ...     torch.nn.functional.conv2d(x, w, groups=2).sum().backward()
    >>> w.grad.sum()
    tensor(50.)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is conv2d:
            call = _arguments(*args, **kwargs)
            if call is not None:
                return _depthwise(*call)
        return func(*args, **kwargs)


def _arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int], tuple[int, int]] | None:
    """Of a depthwise convolution on a processor; None for any other."""
    is_depthwise = input.ndim == 4 and groups == input.shape[1] == weight.shape[0] and groups > 1
    if not is_depthwise or input.device.type != "cpu" or isinstance(padding, str) or _pair(dilation) != (1, 1):
        return None
    return input, weight, bias, _pair(stride), _pair(padding)


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else (value * 2 if len(value) == 1 else value)
    return int(first), int(second)


def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):  # which sees conv2d, and would not see this
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
    if any(padding):
        x = pad(x, (padding[1], padding[1], padding[0], padding[0]))
    y = _Depthwise.apply(x, weight, stride)
    return y if bias is None else y + bias.to(y.dtype).view(1, -1, 1, 1)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return conv2d(x, weight, stride=stride, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_input, of_weight = ctx.needs_input_grad[:2]
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = None
        if of_input and grad.dtype is torch.bfloat16 and max(ctx.stride) > 1:
            grad_x = _input_gradient(grad, weight, ctx.stride, x.shape)
        elif of_input:
            grad_x = _native(grad, x, weight, ctx.stride, (True, False, False))[0]
        return grad_x, _weight_gradient(grad, x, weight, ctx.stride) if of_weight else None, None


def _native(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], wanted: Sequence[bool]) -> Any:
    backward = torch.ops.aten.convolution_backward
    return backward(grad, x, weight, [0], stride, [0, 0], [1, 1], False, [0, 0], len(weight), wanted)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
    if weight.shape[3] <= _QUICK_WIDTH:
        return _native(grad, x, weight, stride, (False, True, False))[1]
    found = torch.empty_like(weight)
    reach = (grad.shape[3] - 1) * stride[1]
    for j in range(0, weight.shape[3], _QUICK_WIDTH):
        strip = found[:, :, :, j : j + _QUICK_WIDTH]
        seen = x[:, :, :, j : j + reach + strip.shape[3]].contiguous(memory_format=torch.channels_last)
        strip.copy_(_native(grad, seen, strip.contiguous(), stride, (False, True, False))[1])
    return found


def _input_gradient(grad: Tensor, weight: Tensor, stride: tuple[int, int], shape: torch.Size) -> Tensor:
    found = torch.zeros(shape, dtype=grad.dtype).to(memory_format=torch.channels_last)
    for i in range(min(stride[0], weight.shape[2])):
        for j in range(min(stride[1], weight.shape[3])):
            met = weight[:, :, i :: stride[0], j :: stride[1]].flip(2, 3)
            values = conv2d(grad, met, padding=(met.shape[2] - 1, met.shape[3] - 1), groups=len(weight))
            phase = found[:, :, i :: stride[0], j :: stride[1]]
            # Rows and columns that the last step of the kernel did not reach stay zero
            height, width = min(values.shape[2], phase.shape[2]), min(values.shape[3], phase.shape[3])
            phase[:, :, :height, :width] = values[:, :, :height, :width]
    return found
