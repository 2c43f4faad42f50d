"""Lipschitz bounds: above the exact norms of dense matrices, and above what small networks do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cbdc.backbones import convolution_norm, create_backbone, lipschitz_report
from cbdc.backbones import lipschitz as module
from cbdc.backbones.networks import Backbone


def dense(weight, size, **options):
    """The convolution as a matrix."""
    channels = weight.shape[1] * options.get("groups", 1)
    basis = torch.eye(channels * math.prod(size)).reshape(-1, channels, *size)
    return F.conv2d(basis, weight, **options).flatten(1).T


@given(
    st.integers(0, 10_000),
    st.sampled_from([(3, 3), (1, 1), (5, 3), (2, 2)]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_bound_is_above_the_dense_matrix(seed, kernel, out, inside, groups, stride, dilation):
    weight = torch.randn(out * groups, inside, *kernel, generator=torch.Generator().manual_seed(seed))
    size = (6, 5)
    bound = convolution_norm(weight, size, dilation=(dilation, dilation), groups=groups)
    for padding in (0, 2):
        if min(size) + 2 * padding < dilation * (max(kernel) - 1) + 1:
            continue
        matrix = dense(weight, size, stride=stride, padding=padding, dilation=dilation, groups=groups)
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= bound
    assert bound <= 1.15 * circular_norm(weight, size, dilation, groups)


def circular_norm(weight, size, dilation, groups):
    """Largest singular value over the frequencies, by numpy."""
    out, inside, *kernel = weight.shape
    spread = np.zeros((groups, out // groups, inside, *((k - 1) * dilation + 1 for k in kernel)))
    spread[..., ::dilation, ::dilation] = weight.reshape(groups, out // groups, inside, *kernel).numpy()
    spectrum = np.fft.fft2(spread, s=[n + k - 1 for n, k in zip(size, spread.shape[-2:])])
    return np.linalg.svd(np.moveaxis(spectrum, (1, 2), (-2, -1)), compute_uv=False).max()


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4))
def test_unfolded_weights_bound_it_too(seed, out, inside):
    weight = torch.randn(out, inside, 3, 3, generator=torch.Generator().manual_seed(seed))
    exact = circular_norm(weight, (6, 6), 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_OPERATIONS", 0)
        bound = convolution_norm(weight, (6, 6))
    assert exact <= bound <= 3.3 * exact


class Small(nn.Module):
    """A residual branch, a concatenation, pooling and norms, as the networks have them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.mean = nn.AvgPool2d(2, 2)
        self.wide = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.tensor([0.5, -2.0, 1.0, 1.0]).view(1, 4, 1, 1))

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = x + self.scale * F.silu(self.branch(x))
        x = torch.cat([self.pool(x), self.mean(x)], dim=1)
        return self.last(torch.flatten(self.wide(x), 1))


def backbone_of(network, size=(16, 16)):
    return Backbone("small", network.eval().requires_grad_(False), size, (0.0,) * 3, (255.0,) * 3, 5, "")


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small()
        network.norm.running_var.uniform_(0.2, 3)
        network.norm.weight.data.uniform_(-2, 2)
    return backbone_of(network)


def test_no_pair_of_images_moves_farther(small):
    bound = lipschitz_report(small).bound
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(200, 3, 16, 16, generator=generator)
    for size in (1.0, 0.01):
        y = x + size * torch.randn(x.shape, generator=generator)
        ratio = (small.network(x) - small.network(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
        assert 0 < ratio.max() <= bound


def test_bound_is_that_of_hand(small):
    report = lipschitz_report(small)
    net = small.network
    norms = dict(zip(report.layers["layer"], report.layers["bound"]))
    assert list(norms) == ["first", "branch", "last"]
    norm = float((net.norm.weight / torch.sqrt(net.norm.running_var + net.norm.eps)).abs().max())
    trunk = norms["first"] * norm * (1 + 2.0 * 1.1 * norms["branch"])
    expected = trunk * math.hypot(2, 0.5) * math.sqrt(1 / 16) * norms["last"]
    assert report.bound == pytest.approx(expected, rel=1e-5)
    assert report.unbounded == ()


def test_gradient_is_below_its_norm_and_close(small):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    report = lipschitz_report(small, image[None])
    point = torch.from_numpy(image.transpose(2, 0, 1) / 255.0).float()
    jacobian = torch.autograd.functional.jacobian(lambda x: small.network(x[None])[0], point).flatten(1)
    exact = float(torch.linalg.matrix_norm(jacobian, 2))
    assert 0.97 * exact <= report.local[0] <= exact * (1 + 1e-5)
    assert report.gap == pytest.approx(report.bound / report.local[0])


def test_pixels_are_scaled_as_they_enter(small):
    halved = Backbone("small", small.network, (16, 16), (10.0,) * 3, (127.5, 255.0, 255.0), 5, "")
    assert lipschitz_report(halved).bound == pytest.approx(2 * lipschitz_report(small).bound)


class Traced(nn.Module):
    """A function of an image and of the layers that it is given, flattened."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return torch.flatten(self.function(self, x), 1)


def halves(net, x):
    first, second = net.a(x).chunk(2, dim=1)
    return torch.cat([first, second], dim=2)


CONVOLUTION = nn.Conv2d(3, 4, 3, padding=1)
LINEAR = {  # maps of an image of 9 x 7, whose norm is that of a matrix
    "a value twice": (lambda net, x: torch.cat([x, x], dim=1), {}),
    "a sum that broadcasts": (lambda net, x: F.adaptive_avg_pool2d(x, 1) + 0 * x, {}),
    "a product that broadcasts": (lambda net, x: F.adaptive_avg_pool2d(x, 1) * net.scale, {}),
    "the halves of a value": (halves, {"a": CONVOLUTION}),
    "one half": (lambda net, x: net.a(x).chunk(2, dim=1)[1], {"a": CONVOLUTION}),
    "a slice": (lambda net, x: net.a(x)[:, :, ::2, 1:], {"a": CONVOLUTION}),
    "averages that overlap": (lambda net, x: net.a(x), {"a": nn.AvgPool2d((3, 1), (1, 2))}),
    "averages of fewer at the border": (
        lambda net, x: net.a(x),
        {"a": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)},
    ),
    "averages over a padded border": (lambda net, x: net.a(x), {"a": nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)}),
    "sums": (lambda net, x: net.a(x), {"a": nn.AvgPool2d(3, 2, divisor_override=1)}),
    "more averages than pixels": (lambda net, x: net.a(x), {"a": nn.AdaptiveAvgPool2d((12, 10))}),
    "as many columns": (lambda net, x: net.a(x), {"a": nn.AdaptiveAvgPool2d((4, None))}),
}


@pytest.mark.parametrize("case", LINEAR)
def test_bound_is_above_the_matrix_of_a_network(case):
    function, layers = LINEAR[case]
    network = Traced(function, **layers)
    network.scale = torch.linspace(-1, 1, 63).view(1, 1, 9, 7)
    bound = lipschitz_report(backbone_of(network, (9, 7))).bound
    basis = torch.eye(189).reshape(-1, 3, 9, 7)
    with torch.inference_mode():
        matrix = network(basis) - network(torch.zeros(1, 3, 9, 7))
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    assert exact <= bound * (1 + 1e-6)
    if "average" in case or case in ("sums", "as many columns", "a value twice"):
        assert bound == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (lambda net, x: net.a(x), {"a": nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")}),
        (lambda net, x: net.a(x), {"a": nn.MaxPool2d(3, 2, dilation=2)}),
        (lambda net, x: torch.add(x, x, alpha=3), {}),
        (lambda net, x: x[:, [0, 0, 1]], {}),
        (lambda net, x: torch.add(input=x, other=x), {}),
        (lambda net, x: torch.conv2d(x, x), {}),
    ],
)
def test_what_has_no_rule_is_named(function, layers):
    report = lipschitz_report(backbone_of(Traced(function, **layers), (9, 7)))
    assert report.bound == math.inf
    assert len(report.unbounded) == 1


@pytest.mark.parametrize(("kernel", "stride", "expected"), [((3, 3), (1, 2), math.sqrt(6)), ((2, 2), (2, 2), 1.0)])
def test_a_pixel_counts_in_every_window_that_it_is_the_largest_of(kernel, stride, expected):
    network = Traced(lambda net, x: net.a(x), a=nn.MaxPool2d(kernel, stride))
    assert lipschitz_report(backbone_of(network, (9, 7))).bound == pytest.approx(expected)


class Excited(nn.Module):
    def forward(self, x):
        return torch.flatten(x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)), 1)


class Attentive(nn.Module):
    def forward(self, x):
        return torch.softmax(torch.flatten(x, 1), dim=1)


@pytest.mark.parametrize(("network", "why"), [(Excited(), "squeeze-and-excitation"), (Attentive(), "softmax")])
def test_layers_without_a_constant_are_named(network, why):
    report = lipschitz_report(backbone_of(network))
    assert report.bound == math.inf
    assert why in report.unbounded[0]
    assert why in str(report)


def test_real_network_is_bounded_and_said_to_be_vacuous():
    report = lipschitz_report(create_backbone("efficientnet_lite0"))
    assert len(report.layers) == 49
    assert math.isfinite(report.bound)
    assert math.isnan(report.gap)
    assert "far too large to certify anything" in str(report)


def test_wrong_images_are_refused(small):
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(n, 16, 16, 3\)"):
        lipschitz_report(small, np.zeros((1, 8, 8, 3), dtype=np.uint8))
