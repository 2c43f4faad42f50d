"""Gradients of depthwise convolutions are torch's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from cbdc.backbones import create_backbone
from cbdc.backbones.depthwise import QuickDepthwise, _input_gradient


@st.composite
def convolutions(draw):
    """Shapes and options of a depthwise convolution."""
    kernel = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    side = [draw(st.integers(k, k + 9)) for k in kernel]
    return draw(st.integers(1, 3)), draw(st.integers(2, 5)), side, kernel, stride, padding, draw(st.booleans())


def run(x, weight, bias, stride, padding, *, quick, seed=0):
    """The result, and the gradients of a random sum of it."""
    leaves = [t.clone().requires_grad_(True) for t in (x, weight, bias) if t is not None]
    arguments = [*leaves, None][:3]
    if quick:
        with QuickDepthwise():
            y = conv2d(*arguments, stride=stride, padding=padding, groups=len(weight))
    else:
        y = conv2d(*arguments, stride=stride, padding=padding, groups=len(weight))
    factors = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (y.double() * factors).sum().backward()
    return y, [leaf.grad for leaf in leaves]


@given(convolutions(), st.integers(0, 2**20))
def test_results_and_gradients_are_those_of_torch(shapes, seed):
    n, channels, side, kernel, stride, padding, has_bias = shapes
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, *side, generator=make, dtype=torch.float64)
    weight = torch.randn(channels, 1, *kernel, generator=make, dtype=torch.float64)
    bias = torch.randn(channels, generator=make, dtype=torch.float64) if has_bias else None
    y, gradients = run(x, weight, bias, stride, padding, quick=True)
    expected, expected_gradients = run(x, weight, bias, stride, padding, quick=False)
    torch.testing.assert_close(y, expected)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted)


@given(convolutions(), st.integers(0, 2**20))
def test_the_input_gradient_by_phases_is_exact(shapes, seed):
    """Used in bfloat16, whose rounding would hide a slip: in double precision here."""
    n, channels, side, kernel, stride, _, _ = shapes
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, *side, generator=make, dtype=torch.float64).requires_grad_(True)
    weight = torch.randn(channels, 1, *kernel, generator=make, dtype=torch.float64)
    y = conv2d(x, weight, stride=stride, groups=channels)
    grad = torch.randn(y.shape, generator=make, dtype=torch.float64)
    y.backward(grad)
    torch.testing.assert_close(_input_gradient(grad, weight, stride, x.shape), x.grad)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_rounds_as_torch_does(stride):
    make = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 15, 15, generator=make).bfloat16()
    weight = torch.randn(8, 1, 5, 5, generator=make).bfloat16()
    _, gradients = run(x, weight, None, stride, 0, quick=True)
    _, exact = run(x.double(), weight.double(), None, stride, 0, quick=False)
    for got, wanted in zip(gradients, exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0.01, atol=0.02 * float(wanted.abs().max()))


def test_autocast_is_heeded():
    x, weight = torch.ones(1, 4, 8, 8), torch.ones(4, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), QuickDepthwise():
        y = conv2d(x, weight, groups=4)
    assert y.dtype is torch.bfloat16
    y.sum().backward()
    assert weight.grad.dtype is torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 1},
        {"groups": 2},
        {"groups": 4, "dilation": 2},
        {"groups": 4, "padding": "same"},
        {"groups": 4, "twice": True},
    ],
)
def test_other_convolutions_go_through(options):
    options = dict(options)
    n_out = 8 if options.pop("twice", False) else 4
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(n_out, 4 // options["groups"], 3, 3)
    with QuickDepthwise():
        y = conv2d(x, weight, **options)
    assert torch.equal(y, conv2d(x, weight, **options))


def test_a_whole_network_has_the_same_gradients():
    network = create_backbone("efficientnet_lite0", "random", image_size=64).network.double().requires_grad_(True)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    network(x).square().sum().backward()
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    with QuickDepthwise():
        y = network(x)
    y.square().sum().backward()
    for p, wanted in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted)
