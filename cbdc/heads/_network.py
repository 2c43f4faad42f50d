"""A torch module as a function of one vector of parameters: its mode, its Jacobian, its Gauss-Newton matrix."""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn
from torch.func import functional_call, jacrev, vjp, vmap

from ..errors import ParameterError
from ._softmax import contrasts

__all__ = ["FlatNetwork", "multilayer_perceptron"]

_CELLS = 2**23  # numbers of a Jacobian that are held at once
_ROWS = 32  # rows a block at most; a power of two, so that blocks of prediction are whole
_BATCH = 1024  # rows a block without Jacobians


def multilayer_perceptron(sizes: Sequence[int], dtype: str, seed: int) -> nn.Sequential:
    """Layers of the given sizes with ReLU between, uniform weights, zero biases; no global generator is touched."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=_TORCH[np.dtype(dtype).name])
        with torch.no_grad():
            layer.weight.uniform_(-1, 1, generator=generator).div_(n_in**0.5)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


_TORCH = {"float32": torch.float32, "float64": torch.float64}


class FlatNetwork:
    """A copy of a module, in evaluation mode; those of its parameters that require a gradient are one vector.

    Parameters
    ----------
    module : nn.Module
        From (n, *input_shape) to logits (n, n_classes), row by row.
    input_shape : sequence of int
    n_classes : int
    device : str

    Attributes
    ----------
    vector : ndarray of shape (P,), float64
    is_weight : ndarray of shape (P,), bool
        False for parameters of one dimension: biases, and scales of normalisations.
    dtype : str
        Of the parameters.
    """

    def __init__(self, module: nn.Module, input_shape: Sequence[int], n_classes: int, device: str) -> None:
        self.module = copy.deepcopy(module).to(device).eval()
        uncertain = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        if not uncertain:
            raise ParameterError("module: no parameter requires a gradient, so none is uncertain.")
        self.module.requires_grad_(False)
        self.shapes = {name: p.shape for name, p in uncertain.items()}
        first = next(iter(uncertain.values()))
        self.dtype, self.device = str(first.dtype).removeprefix("torch."), device
        if self.dtype not in _TORCH or any(p.dtype != first.dtype for p in uncertain.values()):
            raise ParameterError("module: its parameters have to be all float32 or all float64.")
        self.vector = torch.cat([p.detach().ravel() for p in uncertain.values()]).cpu().numpy().astype(float)
        self.is_weight = np.concatenate([np.full(p.numel(), p.ndim > 1) for p in uncertain.values()])
        self.input_shape, self.n_classes = tuple(input_shape), n_classes
        with torch.no_grad():
            found = tuple(self.module(torch.zeros((2, *self.input_shape), dtype=first.dtype, device=device)).shape)
        if found != (2, n_classes):
            raise ParameterError(
                f"module: gives an output of shape {found} for two rows, y has {n_classes} classes. Fix: a module that "
                f"ends with logits (n, {n_classes}), in the sorted order of the labels."
            )

    def logits(self, X: np.ndarray) -> np.ndarray:
        """(n, n_classes), float64, of rows (n, prod(input_shape))."""
        call, theta = self._function(), self._tensor(self.vector)
        with torch.no_grad():
            return np.concatenate([_array(call(theta, x)) for x in self._batches(X, _BATCH)])

    def jacobian(self, X: np.ndarray) -> Iterator[np.ndarray]:
        """Derivatives of the contrasts of the logits in the parameters, (b, n_classes - 1, P), in blocks of rows.

        A block has a number of rows that divides 32 and depends on the network only.
        """
        rows = int(np.clip(2 ** int(np.log2(max(_CELLS // (self.n_classes * len(self.vector)), 1))), 1, _ROWS))
        B, call, theta = self._tensor(contrasts(self.n_classes)), self._function(), self._tensor(self.vector)
        derivative = vmap(jacrev(lambda t, x: (call(t, x[None]) @ B)[0]), in_dims=(None, 0))
        with torch.no_grad():
            for x in self._batches(X, rows):
                yield derivative(theta, x).cpu().numpy()

    def curvature_roots(self, X: np.ndarray, weights: np.ndarray) -> Iterator[np.ndarray]:
        """Blocks R (b, n_classes - 1, P): the sum of their R' R is the Gauss-Newton matrix of the weighted loss."""
        B, start = contrasts(self.n_classes), 0
        for J in self.jacobian(X):
            rows = slice(start, start + len(J))
            p = _softmax(self.logits(X[rows]))
            curvature = B.T @ (p[:, :, None] * (np.eye(self.n_classes) - p[:, None])) @ B
            values, vectors = np.linalg.eigh(curvature * weights[rows, None, None])
            root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None]
            yield root.transpose(0, 2, 1).astype(J.dtype) @ J
            start += len(J)

    def curvature_product(self, X: np.ndarray, weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Product of the Gauss-Newton matrix with a vector (P,)."""
        call, theta, w = self._function(), self._tensor(self.vector), self._tensor(weights)

        def product(direction: np.ndarray) -> np.ndarray:
            v, total = self._tensor(direction), torch.zeros_like(theta)
            with torch.no_grad():
                for x, part in zip(self._batches(X, _BATCH), w.split(_BATCH), strict=True):
                    logits, pull, *_ = vjp(lambda t, x=x: call(t, x), theta)
                    # the Jacobian times v, by the reverse mode again: the forward mode is not safe among threads
                    _, push, *_ = vjp(lambda u, pull=pull: pull(u)[0], torch.zeros_like(logits))
                    tangent, p = push(v)[0], torch.softmax(logits, dim=1)
                    spread = p * (tangent - (p * tangent).sum(dim=1, keepdim=True))
                    total += pull(part[:, None] * spread)[0]
            return _array(total)

        return product

    def fit(self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, prior: np.ndarray, max_iter: int) -> int:
        """Move `vector` to a mode of the posterior by L-BFGS over all rows; how many steps it took.

        Parameters
        ----------
        X : ndarray of shape (n, prod(input_shape))
        codes : ndarray of shape (n,), int
        weights : ndarray of shape (n,)
        prior : ndarray of shape (P,)
            Precisions.
        max_iter : int
        """
        call, batches = self._function(), list(self._batches(X, _BATCH))
        labels = torch.from_numpy(codes).to(self.device).split(_BATCH)
        parts, precision = self._tensor(weights).split(_BATCH), self._tensor(prior)

        def loss(vector: np.ndarray) -> tuple[float, np.ndarray]:
            theta = self._tensor(vector).requires_grad_(True)
            total = 0.5 * (precision * theta**2).sum()
            for x, y, w in zip(batches, labels, parts, strict=True):
                total = total + w @ nn.functional.cross_entropy(call(theta, x), y, reduction="none")
            (gradient,) = torch.autograd.grad(total, theta)
            return float(total.detach()), _array(gradient)

        found = minimize(loss, self.vector, jac=True, method="L-BFGS-B", options={"maxiter": max_iter})
        self.vector = found.x
        return int(found.nit)

    def _function(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The logits (n, n_classes) as a function of the vector and of a batch.

        torch puts the parameters into the module while it runs, so that threads must not share one: each function has a
        module of its own, whose tensors are the shared ones.
        """
        tensors = {id(t): t for t in (*self.module.parameters(), *self.module.buffers())}
        module = copy.deepcopy(self.module, tensors)
        sizes = [shape.numel() for shape in self.shapes.values()]

        def call(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            parts = zip(self.shapes.items(), theta.split(sizes), strict=True)
            return functional_call(module, {name: part.view(shape) for (name, shape), part in parts}, (x,))

        return call

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(self.device, _TORCH[self.dtype])

    def _batches(self, X: np.ndarray, rows: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(X), rows):
            yield self._tensor(X[start : start + rows]).reshape(-1, *self.input_shape)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
