"""A discriminant made independent of a protected variable by conditional transport (arXiv 2307.05187)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfcal.config.calibration import MapConfig
from selfcal.transport.averaged_descent import DistanceSchedule
from selfcal.transport.between import fit_between
from selfcal.transport.brenier_map import BrenierMap

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Decorrelation:
    """D'(D | x): for every value x of the protected variable an increasing function of D.

    In one dimension the gradient of a convex function is an increasing function, so at fixed x the order of
    jets is kept: nothing is lost of what D says there. ``mean`` and ``scale`` standardise (D, x).
    """

    transport: BrenierMap
    mean: tuple[float, float]
    scale: tuple[float, float]

    def __call__(self, discriminant: Values, protected: Values) -> Values:
        """The transported discriminant, in the units of the given one."""
        u, c = (
            torch.from_numpy((np.asarray(values, np.float64) - mean) / scale)[:, None]
            for values, mean, scale in zip((discriminant, protected), self.mean, self.scale, strict=True)
        )
        with torch.no_grad():
            moved = self.transport(u, _powers(c))[:, 0].numpy()
        return np.asarray(self.mean[0] + self.scale[0] * moved)


def _powers(c: Tensor) -> Tensor:
    """c, c²/2, c³/6: the affine part of the map is linear in what it is given."""
    return torch.cat([c, c.square() / 2, c**3 / 6], dim=1)


def decorrelate(
    discriminant: Values,
    protected: Values,
    seed: int,
    steps: int = 400,
    batch_size: int = 384,
    learning_rate: float = 0.05,
    hidden_width: int = 8,
) -> Decorrelation:
    """Transport p(D | x) to p(D) at every x, for the jets (of the background, say) that are given.

    The two samples are (D_i, x_i) and (D_j, x_i) with j a random permutation: the latter has the same
    marginals, and D independent of x. ``protected`` should be spread evenly (ln pT rather than pT).
    Background and signal of the same discriminant are moved by the same function.
    """
    columns = [np.asarray(values, np.float64) for values in (discriminant, protected)]
    mean = (float(columns[0].mean()), float(columns[1].mean()))
    scale = (float(columns[0].std()), float(columns[1].std()))
    u, c = (
        torch.from_numpy((values - m) / s)[:, None] for values, m, s in zip(columns, mean, scale, strict=True)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Wide prior: what is learnt here is no small distortion.
        config = MapConfig(family="brenier", hidden_width=hidden_width, displacement_scale=10.0)
        transport = BrenierMap(1, 3, config).double()
    shuffled = u[torch.randperm(len(u), generator=generator)]
    schedule = DistanceSchedule(steps, batch_size, learning_rate)
    powers = _powers(c)
    fit_between(transport, (u, powers), (shuffled, powers), schedule, generator, condition_length=2.0)
    return Decorrelation(transport, mean, scale)


def binned_thresholds(discriminant: Values, protected: Values, edges: Values, efficiency: float) -> Values:
    """The classic: a cut per bin of the protected variable with the wanted efficiency in each, (K,)."""
    place = np.digitize(protected, edges)
    return np.array([np.quantile(discriminant[place == k], 1.0 - efficiency) for k in range(len(edges) + 1)])
