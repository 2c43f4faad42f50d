"""All that touches Pyro and torch: isolation, the models, variational inference and NUTS. Imported when a head fits."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import NUTS, Trace_ELBO
from torch.nn.functional import cross_entropy, linear
from tqdm import tqdm

from ._horseshoe import regularised_scales
from ._softmax import SoftmaxProblem
from ._whitening import INTERCEPT_PRECISION, Whitening

__all__ = ["Guide", "HorseshoeModel", "NormalModel", "Regression", "isolated", "maximise_elbo", "sample_chain"]

_ROUND = 200  # steps of the first round of the optimiser
_ELBO_DRAWS = 128

_turn = threading.Lock()


@contextmanager
def isolated(seed: int, device: str | None) -> Iterator[torch.device]:
    """Pyro and torch seeded, with settings of our own, and afterwards as they were.

    Pyro's parameter store stays untouched, since modules keep their parameters. Its handlers and torch's generators
    are global: fits in several threads take turns.

    Parameters
    ----------
    seed : int
    device : str or None
        None takes CUDA where there is one.
    """
    n_cuda = torch.cuda.device_count()
    with (
        _turn,
        torch.random.fork_rng(devices=range(n_cuda)),
        pyro.settings.context(module_local_params=True),
        pyro.validation_enabled(False),
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)
        yield torch.device(device or ("cuda" if n_cuda else "cpu"))


class Regression:
    """Softmax regression as tensors; parameters are (p, n_classes - 1), float64.

    Parameters
    ----------
    problem : SoftmaxProblem
    directions : ndarray of shape (n_classes, n_classes - 1)
        From the axes of the classes to the logits.
    device : torch.device
    """

    def __init__(self, problem: SoftmaxProblem, directions: np.ndarray, device: torch.device) -> None:
        self.Z = torch.as_tensor(problem.Z, device=device)
        self.codes = torch.as_tensor(problem.codes, device=device)
        self.weights = torch.as_tensor(problem.weights, device=device)
        self.directions = torch.tensor(directions, device=device).to(self.Z.dtype)  # a copy: it may be read-only
        self.device = device

    def __len__(self) -> int:
        return len(self.Z)

    def logits(self, parameters: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
        weights = parameters.T.to(self.Z.dtype).contiguous()  # this layout is several times faster
        return linear(linear(self.Z[rows], weights), self.directions).double()

    def log_likelihood(self, parameters: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(self.logits(parameters, slice(None)), self.codes, reduction="none")
        return -(self.weights * loss).sum()

    def observe(self, parameters: torch.Tensor, rows: torch.Tensor | None) -> None:
        """The labels as a statement of a Pyro model; a batch of rows stands for all, scaled up."""
        chosen = slice(None) if rows is None else rows
        with pyro.plate("rows", len(self), subsample=rows), poutine.scale(scale=self.weights[chosen]):
            logits = self.logits(parameters, chosen)
            pyro.sample("labels", dist.Categorical(logits=logits), obs=self.codes[chosen])


class _Coordinates:
    """A `Whitening` as tensors."""

    def __init__(self, whitening: Whitening, device: torch.device) -> None:
        self.centre, self.unit, self.block = (
            torch.as_tensor(array, device=device) for array in (whitening.centre, whitening.unit, whitening.block)
        )
        self.log_determinant = whitening.log_determinant

    def parameters(self, position: torch.Tensor) -> torch.Tensor:
        cut = self.unit.numel()
        deviation = torch.cat([position[:cut] * self.unit.reshape(-1), self.block @ position[cut:]])
        return self.centre + deviation.reshape(self.centre.shape)


class NormalModel:
    """Softmax regression with normal priors, as a Pyro model.

    Parameters
    ----------
    regression : Regression
    prior : ndarray of shape (p, 1)
        Prior precision of each row of parameters.
    whitening : Whitening
        Coordinates of the positions.
    """

    def __init__(self, regression: Regression, prior: np.ndarray, whitening: Whitening) -> None:
        self.regression = regression
        self.precision = torch.as_tensor(prior, device=regression.device)
        self.coordinates = _Coordinates(whitening, regression.device)

    def __call__(self, rows: torch.Tensor | None = None) -> None:
        shape = self.coordinates.centre.shape
        weights = pyro.sample("weights", dist.Normal(0.0, self.precision.rsqrt().expand(shape)).to_event(2))
        self.regression.observe(weights, rows)

    def sites(self, position: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | float]]:
        """Name and value of each latent variable at a position, and minus the logarithm of the volume of its map."""
        yield "weights", self.coordinates.parameters(position), -self.coordinates.log_determinant

    def energy(self, position: torch.Tensor) -> torch.Tensor:
        """Minus the log joint density of labels and parameters, up to a constant."""
        weights = self.coordinates.parameters(position)
        return 0.5 * (self.precision * weights**2).sum() - self.regression.log_likelihood(weights)


class HorseshoeModel:
    """Softmax regression with a regularised horseshoe over the features, as a Pyro model.

    The weights of a feature share one local scale. A position holds, in this order, the weights in units of their
    scale, row by row, the intercepts, and the logarithms of the local scales, the global scale and the slab's variance.

    Parameters
    ----------
    regression : Regression
        The intercept's column last.
    whitening : Whitening
    global_scale, slab_scale, slab_freedom : float
        Scale of the half-Cauchy prior of the global scale; of the slab, a Student t with that many degrees of freedom.
    """

    def __init__(
        self,
        regression: Regression,
        whitening: Whitening,
        *,
        global_scale: float,
        slab_scale: float,
        slab_freedom: float,
    ) -> None:
        self.regression = regression
        self.coordinates = _Coordinates(whitening, regression.device)
        self.shape = (regression.Z.shape[1] - 1, regression.directions.shape[1])
        ones = torch.ones(self.shape, dtype=torch.float64, device=regression.device)
        self.priors = {
            "raw": dist.Normal(0 * ones, ones).to_event(2),
            "intercept": dist.Normal(0 * ones[0], INTERCEPT_PRECISION**-0.5 * ones[0]).to_event(1),
            "local": dist.HalfCauchy(ones[:, 0]).to_event(1),
            "global": dist.HalfCauchy(global_scale * ones[0, 0]),
            "slab": dist.InverseGamma(slab_freedom / 2 * ones[0, 0], slab_freedom / 2 * slab_scale**2 * ones[0, 0]),
        }

    def __call__(self, rows: torch.Tensor | None = None) -> None:
        raw, intercept, local, global_, slab = (pyro.sample(name, prior) for name, prior in self.priors.items())
        weights = raw * regularised_scales(local, global_, slab)[:, None]
        self.regression.observe(torch.cat([weights, intercept[None]]), rows)

    def sites(self, position: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | float]]:
        """As for `NormalModel`."""
        latent = self.coordinates.parameters(position)[:, 0]
        d, J = self.shape
        raw, intercept, *logarithms = latent.split([d * J, J, d, 1, 1])
        yield "raw", raw.reshape(d, J), -self.coordinates.log_determinant
        yield "intercept", intercept, 0.0
        for name, value in zip(("local", "global", "slab"), logarithms, strict=True):
            yield name, (value if name == "local" else value[0]).exp(), -value.sum()


class GuideState(NamedTuple):
    """Parameters of a guide, in whitened positions, float64.

    Attributes
    ----------
    mean : ndarray of shape (size,)
    scale : ndarray of shape (size,)
        Of independent noise.
    factor : ndarray of shape (rows, r)
        Of noise that the last rows share.
    """

    mean: np.ndarray
    scale: np.ndarray
    factor: np.ndarray


class Guide(torch.nn.Module):
    """Approximate posterior of a model, over whitened positions; begins at the standard normal.

    Gaussian guides leave out of the gradient the part whose mean is zero, so that its noise vanishes with the distance
    to the posterior (Roeder, Wu, Duvenaud, arXiv:1703.09194).

    Parameters
    ----------
    model : NormalModel or HorseshoeModel
    kind : {"mean_field", "low_rank", "full", "radial"}
    size : int
        Length of a position.
    n_joint : int
        Last entries whose covariance is whole; 0 unless ``kind="full"``.
    factor : ndarray of shape (size, rank), optional
        Where ``"low_rank"`` begins.
    """

    def __init__(
        self, model: NormalModel | HorseshoeModel, kind: str, size: int, n_joint: int, factor: np.ndarray | None
    ) -> None:
        super().__init__()
        self.model, self.kind, self.n_joint = model, kind, n_joint
        shape = (n_joint, n_joint) if factor is None else factor.shape
        start = np.zeros(shape) if factor is None else factor
        self.loc, self.log_scale, self.factor = (
            torch.nn.Parameter(torch.as_tensor(array, device=model.regression.device))
            for array in (np.zeros(size), np.zeros(size), start)
        )

    def groups(self, learning_rate: float) -> list[dict]:
        """For the optimiser: a column of the factor moves about as fast as one entry of the mean."""
        shared = [{"params": [self.loc, self.log_scale], "lr": learning_rate}]
        if self.factor.numel():
            shared.append({"params": [self.factor], "lr": learning_rate / len(self.factor) ** 0.5, "eps": 1.0})
        return shared

    def _distributions(self, of: Callable[[torch.Tensor], torch.Tensor]) -> list[dist.TorchDistribution]:
        loc, scale, factor = of(self.loc), of(self.log_scale).exp(), of(self.factor)
        if self.kind == "radial":
            return [_Radial(loc, scale * len(loc) ** 0.5)]
        if self.kind == "low_rank":
            return [dist.LowRankMultivariateNormal(loc, factor, scale**2)]
        cut = len(loc) - self.n_joint
        alone = [dist.Normal(loc[:cut], scale[:cut]).to_event(1)] if cut else []
        root = factor.tril(-1) + scale[cut:].diag()
        return alone + ([dist.MultivariateNormal(loc[cut:], scale_tril=root)] if self.n_joint else [])

    def forward(self, rows: torch.Tensor | None = None) -> None:
        live = self._distributions(lambda parameter: parameter)
        if self.kind != "radial":
            still = self._distributions(lambda parameter: parameter.detach())
            live = [_PathOnly(a, b) for a, b in zip(live, still, strict=True)]
        parts = [pyro.sample(f"position_{i}", q, infer={"is_auxiliary": True}) for i, q in enumerate(live)]
        for name, value, log_density in self.model.sites(torch.cat(parts)):
            pyro.sample(name, dist.Delta(value, log_density=log_density, event_dim=value.dim()))

    @torch.no_grad()
    def state(self) -> GuideState:
        loc, scale, factor = (a.cpu().numpy() for a in (self.loc, self.log_scale.exp(), self.factor))
        if self.kind == "radial":
            scale = scale * len(loc) ** 0.5
        if self.n_joint:
            cut = len(loc) - self.n_joint
            factor = np.tril(factor, -1) + np.diag(scale[cut:])
            scale = np.concatenate([scale[:cut], np.zeros(self.n_joint)])
        return GuideState(loc.copy(), scale.copy(), factor.copy())


class _PathOnly(dist.TorchDistribution):
    """Samples of one distribution, whose density is taken from a copy that passes no gradient to the parameters."""

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, live: dist.TorchDistribution, still: dist.TorchDistribution) -> None:
        super().__init__(live.batch_shape, live.event_shape, validate_args=False)
        self.live, self.still = live, still

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> torch.Tensor:
        return self.live.rsample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.still.log_prob(value)


class _Radial(dist.TorchDistribution):
    """A direction uniform on the sphere times a half-normal radius, scaled and shifted (Farquhar et al., 2020)."""

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__(torch.Size(), loc.shape, validate_args=False)
        self.loc, self.scale = loc, scale

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> torch.Tensor:
        noise = torch.randn_like(self.loc.expand(*sample_shape, -1))
        radius = torch.randn_like(noise[..., :1])
        return self.loc + self.scale * radius * noise / noise.norm(dim=-1, keepdim=True)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        size = len(self.loc)
        radius = ((value - self.loc) / self.scale).norm(dim=-1)
        log_area = np.log(2) + 0.5 * size * np.log(np.pi) - float(torch.lgamma(torch.tensor(0.5 * size).double()))
        log_radius = 0.5 * np.log(2 / np.pi) - 0.5 * radius**2
        return log_radius - log_area - (size - 1) * radius.log() - self.scale.log().sum()


class Ascent(NamedTuple):
    """How the bound was raised.

    Attributes
    ----------
    history : ndarray of shape (n_steps,)
        Estimate of the bound at each step, nats.
    elbo : float
        Of the averaged parameters, over all rows.
    rise : float
        Of the bound between the halves of the last round, in nats a parameter.
    converged : bool
    """

    history: np.ndarray
    elbo: float
    rise: float
    converged: bool


def maximise_elbo(
    guide: Guide, *, batch_size: int | None, learning_rate: float, max_iter: int, tol: float, verbose: bool
) -> Ascent:
    """Raise the evidence lower bound by Adam; leaves the guide at the average over the last round.

    Each round is as long as all before it. The ascent has converged when the bound was no higher in a round's second
    half than in its first, up to `tol` nats a parameter and the noise of the two averages.
    """
    model, elbo = guide.model, Trace_ELBO()
    n, size = len(model.regression), len(guide.loc)
    optimiser = torch.optim.Adam(guide.groups(learning_rate))
    parameters = list(guide.parameters())
    history = np.empty(max_iter)
    start, end = 0, min(_ROUND, max_iter)
    with tqdm(total=max_iter, desc="ELBO", disable=not verbose) as bar:
        while True:
            sums = [torch.zeros_like(parameter) for parameter in parameters]
            for step in range(start, end):
                rows = None
                if batch_size is not None and batch_size < n:
                    rows = torch.randperm(n, device=model.regression.device)[:batch_size]
                optimiser.zero_grad()
                loss = elbo.differentiable_loss(model, guide, rows)
                history[step] = -loss.item()
                if not np.isfinite(history[step]):
                    return Ascent(history[: step + 1].copy(), float("nan"), float("nan"), False)
                loss.backward()
                optimiser.step()
                for total, parameter in zip(sums, parameters, strict=True):
                    total += parameter.detach()
                bar.update()
            bar.set_postfix(elbo=f"{history[start:end].mean():.1f}")
            first, second = np.array_split(history[start:end], 2)
            rise = second.mean() - first.mean() if len(first) and len(second) else np.inf
            noise = np.sqrt((first.var() + second.var()) / max(len(second), 1))
            converged = start > 0 and rise <= tol * size + 2 * noise
            if converged or end == max_iter:
                break
            start, end = end, min(2 * end, max_iter)
    with torch.no_grad():
        for total, parameter in zip(sums, parameters, strict=True):
            parameter.copy_(total / (end - start))
        bound = -np.mean([elbo.loss(model, guide) for _ in range(_ELBO_DRAWS)])
    return Ascent(history[:end].copy(), float(bound), float(rise / size), bool(converged))


def sample_chain(
    model: NormalModel,
    *,
    n_warmup: int,
    n_draws: int,
    max_tree_depth: int,
    target_accept: float,
    tick: Callable[[], object],
) -> tuple[np.ndarray, int]:
    """One chain of NUTS, from a draw of the standard normal: positions (n_draws, size), and how many diverged."""
    centre = model.coordinates.centre
    kernel = NUTS(
        potential_fn=lambda at: model.energy(at["position"]),
        adapt_mass_matrix=False,  # the whitening has done it
        target_accept_prob=target_accept,
        max_tree_depth=max_tree_depth,
    )
    at = {"position": torch.randn(centre.numel(), dtype=centre.dtype, device=centre.device)}
    kernel.initial_params = at
    kernel.setup(n_warmup)
    positions = np.empty((n_draws, centre.numel()))
    for i in range(-n_warmup, n_draws):
        at = kernel.sample(at)
        if i >= 0:
            positions[i] = at["position"].cpu().numpy()
        tick()
    return positions, len(kernel.diagnostics()["divergences"])
