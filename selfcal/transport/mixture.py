"""The map by maximum likelihood of every region's flavour mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.config.calibration import MapConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import FitError
from selfcal.transport.base_density import BaseDensities
from selfcal.transport.choice import build_maps
from selfcal.transport.composition import Composition, CompositionPrior, prior_cost
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.kinematics import fit_logistic, log_probability
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.pt_fractions import PtShape
from selfcal.transport.sample import Sample


class KinematicFractions:
    """π_rf(c): how the fractions of a region vary with pT and |eta|.

    π_rf(c) ∝ p_r(f | c) π_rf / π_rf(simulation), with p_r(f | c) a smooth
    multinomial regression on the region's simulation, times the ratio that ``pt_shape`` has found in data.
    """

    def __init__(
        self,
        simulation: Sample,
        simulated: Float[Tensor, "regions flavours"],
        pt_shape: PtShape | None = None,
    ) -> None:
        self.pt_shape = pt_shape
        self.log_simulated = simulated.clamp_min(1e-9).log()
        self.coefficients = []
        for region in range(len(simulated)):
            part = simulation.in_region(region)
            self.coefficients.append(fit_logistic(part.conditions, part.flavour, part.weight, len(FLAVOURS)))

    def log_prior(self, sample: Sample) -> Float[Tensor, "jets flavours"]:
        """ln p_r(f | c) - ln π_rf(simulation) of every jet: to this ln π_rf is added."""
        result = torch.zeros(len(sample), len(FLAVOURS), dtype=torch.float64)
        for region, coefficients in enumerate(self.coefficients):
            rows = sample.region == region
            result[rows] = log_probability(coefficients, sample.conditions[rows]) - self.log_simulated[region]
        return result if self.pt_shape is None else result + self.pt_shape.ratio(sample).log()


@dataclass(frozen=True)
class MixtureFit:
    """Maps and fractions at the maximum of the mixture likelihood."""

    maps: FlavourMaps
    fractions: Float[Tensor, "regions flavours"]


def mixture_log_density(
    data: Sample,
    log_prior: Float[Tensor, "jets flavours"],
    log_fractions: Float[Tensor, "regions flavours"],
    densities: BaseDensities,
    maps: FlavourMaps,
) -> tuple[Float[Tensor, "jets flavours"], Float[Tensor, "jets flavours"]]:
    """Per flavour ln[π_rf(c) p_rf(T_f⁻¹ u | c) |det ∂T_f⁻¹/∂u|] and the squared distance with its price."""
    weights = torch.log_softmax(log_prior + log_fractions[data.region], dim=1)
    terms, moves = [], []
    for index in range(len(FLAVOURS)):
        inner, log_det, origin = maps.invertible(index).inverse_and_origin(data.coordinates, data.conditions)
        log_p = densities.log_prob(index, inner, data.conditions, data.region)
        terms.append(weights[:, index] + log_p + log_det)
        moves.append((origin - data.coordinates).square().sum(1))
    return torch.stack(terms, 1), torch.stack(moves, 1)


def displacement_price(config: MapConfig, coordinates: int) -> float:
    """κ / (2 D s²) of a configuration: what a unit of E|T u - u|² costs the log-likelihood."""
    return 0.5 * config.displacement_weight / (coordinates * config.displacement_scale**2)


def fit_mixture(
    data: Sample,
    densities: BaseDensities,
    kinematic_fractions: KinematicFractions,
    constraint: CompositionPrior,
    config: MapConfig,
    generator: torch.Generator,
    start: MixtureFit | None = None,
    steps: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
    identities: Sequence[int] = (),
) -> MixtureFit:
    """Maps T and fractions π that maximise

    Σ_data w ln Σ_f π_rf(c) p_rf(T_f⁻¹ u | c) |det ∂T_f⁻¹/∂u|
      - constraint(π) - stiffness(T) - κ/2 Σ_f E_f |T_f⁻¹ u - u|² / (D s²)

    with κ = ``displacement_weight`` and s = ``displacement_scale``. The expectation in the
    displacement cost runs over data with the (fixed) probability of being of flavour f; it is of the splines
    alone with ``displacement_on: splines``. The maps of the flavours ``identities`` (indices) are not fitted.

    Raises
    ------
    FitError
        If the likelihood stops being finite.
    """
    steps = config.steps if steps is None else steps
    data = data.rows(data.weight != 0)
    composition = Composition(constraint.fractions if start is None else start.fractions)
    maps = build_maps(config, data.coordinates.shape[1], CONDITIONS)
    if start is not None:
        maps.load_state_dict(start.maps.state_dict())
    log_prior = kinematic_fractions.log_prior(data)
    for flavour in identities:
        maps.of(flavour).requires_grad_(requires_grad=False)
    fitted = (p for p in maps.parameters() if p.requires_grad)
    parameters = [*composition.parameters(), *fitted]
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=config.learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    total = float(data.weight.sum())
    price = displacement_price(config, data.coordinates.shape[1])
    for step in range(steps):
        rows = torch.randint(len(data), (min(config.batch_size, len(data)),), generator=generator)
        batch = data.rows(rows)
        fractions = composition()
        terms, moves = mixture_log_density(batch, log_prior[rows], fractions.log(), densities, maps)
        weight = batch.weight[:, None]
        responsibility = torch.softmax(terms.detach(), dim=1) * weight
        displacement = ((responsibility * moves).sum(0) / responsibility.sum(0).clamp_min(1e-3)).sum()
        log_likelihood = (batch.weight * torch.logsumexp(terms, dim=1)).sum() / batch.weight.sum()
        prior = prior_cost(fractions, constraint) + maps.stiffness() + price * displacement
        loss = prior / total - log_likelihood
        if not torch.isfinite(loss):
            raise FitError("the mixture likelihood is not finite", where=f"step {step}")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress(step + 1)
    return MixtureFit(maps.requires_grad_(requires_grad=False), composition().detach())
