"""A small network for the profile likelihood of K scale factors, exact at the best fit by construction.

    −2 ln λ(v) = |u + s(u)|²,    u = L⁻¹ (ln v − ln v̂),    C = L Lᵀ
    s(u) = N(u) − N(0) − N'(0) u

with the best fit v̂, the covariance C of the logarithms, and a network N of two hidden layers with tanh. s
begins with the second order in u, so that value, gradient and curvature at the best fit are those of the fit
whatever the weights are, and what is learnt begins with the third order: the skewness. A square is never
negative. u + s(u) are coordinates in which the likelihood is Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from selfcal.config.neural_profile import NeuralProfileConfig
from selfcal.errors import DataError, FitError
from selfcal.likelihood.profile_target import ExactProfile, ProfileTarget
from selfcal.run.atomic import read_arrays, write_arrays

Floats = NDArray[np.float64]


class NeuralProfile(nn.Module):
    """The formula above, in float64."""

    best: Tensor
    inverse_root: Tensor

    def __init__(self, best: Floats, inverse_root: Floats, width: int) -> None:
        super().__init__()
        size = len(best)
        self.register_buffer("best", torch.from_numpy(np.array(best, dtype=np.float64)))
        self.register_buffer("inverse_root", torch.from_numpy(np.array(inverse_root, dtype=np.float64)))
        self.hidden = nn.ModuleList(
            nn.Linear(a, b, dtype=torch.float64) for a, b in ((size, width), (width, width))
        )
        self.out = nn.Linear(width, size, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.out.weight)

    def whitened(self, u: Float[Tensor, "points size"]) -> Float[Tensor, " points"]:
        """−2 ln λ as a function of u."""
        value, origin, tangent = u, torch.zeros_like(u[:1]), u
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            value, origin = layer(value).tanh(), layer(origin).tanh()
            # N'(0) u, layer by layer: tanh' = 1 − tanh².
            tangent = (1 - origin.square()) * (tangent @ layer.weight.T)
        found: Tensor = (u + self.out(value - origin - tangent)).square().sum(dim=1)
        return found

    def forward(self, scale_factors: Float[Tensor, "points size"]) -> Float[Tensor, " points"]:
        """−2 ln λ of scale factors."""
        return self.whitened((scale_factors / self.best).log() @ self.inverse_root.T)


def learn_profile(
    target: ProfileTarget, exact: ExactProfile, config: NeuralProfileConfig, seed: int
) -> NeuralProfile:
    """The network that fits values and gradients of the exact profile, in evaluation mode.

    The loss is the mean of ((t − t*)² + |∇_u (t − t*)|² / K) / (1 + t*): about the error of √t, σ by σ.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NeuralProfile(target.best, np.asarray(np.linalg.inv(target.root), np.float64), config.width)
    used = exact.converged
    u = torch.from_numpy(target.whitened(exact.values[used])).requires_grad_()
    rise = torch.from_numpy(exact.rise[used])
    slope = torch.from_numpy(exact.gradient[used] @ target.root)
    importance = 1 / (1 + rise)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for _ in range(config.steps):
        optimiser.zero_grad()
        found = network.whitened(u)
        (by_u,) = torch.autograd.grad(found.sum(), u, create_graph=True)
        miss = (found - rise).square() + (by_u - slope).square().mean(dim=1)
        (importance * miss).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network.eval()


@dataclass(frozen=True)
class Accuracy:
    """Errors of −2 ln λ at fresh points: of the network, and of the parabola of best fit and covariance.

    Attributes
    ----------
    points : points compared, all those with an exact −2 ln λ of at most ``rise_max``
    beyond, unreached : points above that, and those where the exact profile does not converge
    mean, largest : of the absolute error
    parabola_mean, parabola_largest : the same of |u|²
    root_mean, root_largest : of the absolute error of √(−2 ln λ), in σ
    """

    rise_max: float
    points: int
    beyond: int
    unreached: int
    mean: float
    largest: float
    parabola_mean: float
    parabola_largest: float
    root_mean: float
    root_largest: float


@torch.no_grad()
def accuracy(network: NeuralProfile, target: ProfileTarget, exact: ExactProfile, rise_max: float) -> Accuracy:
    """How far the network is from the exact profile at points that it has not seen.

    Raises
    ------
    FitError
        If no point has an exact −2 ln λ of at most ``rise_max``.
    """
    used = exact.converged & (exact.rise <= rise_max)
    if not used.any():
        raise FitError("no exact point to judge the network by", where=f"{len(used)} points")
    values, rise = exact.values[used], exact.rise[used]
    found = network(torch.from_numpy(values)).numpy()
    parabola = (target.whitened(values) ** 2).sum(axis=1)
    error, plain = np.abs(found - rise), np.abs(parabola - rise)
    root = np.abs(np.sqrt(found) - np.sqrt(np.maximum(rise, 0.0)))
    return Accuracy(
        rise_max=rise_max,
        points=int(used.sum()),
        beyond=int((exact.converged & ~used).sum()),
        unreached=int((~exact.converged).sum()),
        mean=float(error.mean()),
        largest=float(error.max()),
        parabola_mean=float(plain.mean()),
        parabola_largest=float(plain.max()),
        root_mean=float(root.mean()),
        root_largest=float(root.max()),
    )


def save_profile(path: Path, network: NeuralProfile) -> Path:
    """Write the weights and constants as safetensors."""
    write_arrays(path, {name: value.detach().numpy() for name, value in network.state_dict().items()})
    return path


def load_profile(path: Path) -> NeuralProfile:
    """Read what :func:`save_profile` wrote.

    Raises
    ------
    DataError
        If the file is missing, damaged or of another format.
    """
    arrays: Mapping[str, Any] = read_arrays(path)
    try:
        width = len(arrays["hidden.0.bias"])
        network = NeuralProfile(arrays["best"], arrays["inverse_root"], width)
        network.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    except (KeyError, RuntimeError, ValueError) as error:
        raise DataError(
            f"not a profile likelihood: {error}", where=str(path), fix="run 'selfcal profile' again"
        ) from error
    return network.eval()
