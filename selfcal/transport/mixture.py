"""The map by maximum likelihood of every region's flavour mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

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


_PARTS = ("value", "mean", "mean_square")
"""What is kept of every fitted parameter."""


@dataclass(frozen=True)
class LegState:
    """Where a fit was when its last leg began: enough to do that leg again, with other weights of the jets.

    Attributes
    ----------
    step : steps that were done
    log_start : (R, F) logarithm of the fractions that the fit had started from
    parameters : (value, mean and mean square of its gradients in Adam) of everything that is fitted
    """

    step: int
    log_start: Float[Tensor, "regions flavours"]
    parameters: Sequence[tuple[Tensor, Tensor, Tensor]]

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays of one file, from which :meth:`from_arrays` makes it again."""
        found = {"last_leg.step": np.array([self.step]), "last_leg.log_start": self.log_start.numpy()}
        for index, parameter in enumerate(self.parameters):
            for part, value in zip(_PARTS, parameter, strict=True):
                found[f"last_leg.{index}.{part}"] = value.numpy()
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LegState | None:
        """None if ``arrays`` hold no such state."""
        if "last_leg.step" not in arrays:
            return None
        count = sum(name.startswith("last_leg.") and name.endswith(_PARTS[0]) for name in arrays)

        def parameter(index: int) -> tuple[Tensor, Tensor, Tensor]:
            value, mean, square = (torch.from_numpy(arrays[f"last_leg.{index}.{part}"]) for part in _PARTS)
            return value, mean, square

        log_start = torch.from_numpy(arrays["last_leg.log_start"])
        return cls(int(arrays["last_leg.step"][0]), log_start, [parameter(index) for index in range(count)])


@dataclass(frozen=True)
class LastLeg:
    """The last ``steps`` of a fit, whose minibatches ``generator`` draws; to be done again from ``state``."""

    steps: int
    generator: torch.Generator
    state: LegState | None = None


@dataclass(frozen=True)
class MixtureFit:
    """Maps and fractions at the maximum of the mixture likelihood, and the fit before its last leg."""

    maps: FlavourMaps
    fractions: Float[Tensor, "regions flavours"]
    at_last_leg: LegState | None = None


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


RISE = 0.1
"""Share of the steps in which the learning rate rises."""


def one_cycle(step: int, steps: int) -> float:
    """Learning rate relative to its maximum: up in the first ``RISE`` of the steps, then a cosine to zero."""
    rising = RISE * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def fit_mixture(
    data: Sample,
    densities: BaseDensities,
    kinematic_fractions: KinematicFractions,
    constraint: CompositionPrior,
    config: MapConfig,
    generator: torch.Generator,
    last_leg: LastLeg | None = None,
    progress: Callable[[int], None] = lambda _: None,
    identities: Sequence[int] = (),
) -> MixtureFit:
    """Maps T and fractions π that maximise

    Σ_data w ln Σ_f π_rf(c) p_rf(T_f⁻¹ u | c) |det ∂T_f⁻¹/∂u|
      - constraint(π) - stiffness(T) - κ/2 Σ_f E_f |T_f⁻¹ u - u|² / (D s²)

    with κ = ``displacement_weight`` and s = ``displacement_scale``. The expectation in the
    displacement cost runs over data with the (fixed) probability of being of flavour f; it is of the splines
    alone with ``displacement_on: splines``. The maps of the flavours ``identities`` (indices) are not fitted.

    Adam does ``config.steps``, at the rate of :func:`one_cycle`. A ``last_leg``, some of these steps, has a
    cycle of its own. The fit remembers where it began, and one that gets this ``state`` does nothing else:
    with the same weights, densities, constraint and random numbers it ends at the very same maps, and most
    of what differs in a bootstrap replica is what the resampled events do, not the noise of the minibatches.

    Raises
    ------
    FitError
        If the likelihood stops being finite, or the state of the last leg is not of its first step.
    """
    composition = Composition(constraint.fractions)
    maps = build_maps(config, data.coordinates.shape[1], CONDITIONS)
    log_prior = kinematic_fractions.log_prior(data)
    for flavour in identities:
        maps.of(flavour).requires_grad_(requires_grad=False)
    parameters = [*composition.parameters(), *(p for p in maps.parameters() if p.requires_grad)]
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    total = float(data.weight.sum())
    price = displacement_price(config, data.coordinates.shape[1])
    turn = config.steps if last_leg is None else max(config.steps - last_leg.steps, 0)
    state = None if last_leg is None else last_leg.state
    if state is not None:
        if state.step != turn:
            raise FitError(
                "the last leg of a fit is to be done again from another step than it began with",
                where=f"step {state.step}",
                expected=f"step {turn}",
            )
        composition.get_buffer("log_start").copy_(state.log_start)
        _take_up(optimiser, parameters, state)
    for step in range(0 if state is None else turn, config.steps):
        if step == turn and last_leg is not None:
            generator = last_leg.generator
            state = state or _remembered(optimiser, parameters, composition, step)
        begun, ends = (0, turn) if step < turn else (turn, config.steps)
        rate = one_cycle(step - begun, ends - begun)
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
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        progress(step + 1)
    return MixtureFit(maps.requires_grad_(requires_grad=False), composition().detach(), state)


def _remembered(
    optimiser: torch.optim.Adam, parameters: Sequence[nn.Parameter], composition: Composition, step: int
) -> LegState:
    def moment(parameter: nn.Parameter, name: str) -> Tensor:
        found = optimiser.state[parameter].get(name)
        return torch.zeros_like(parameter) if found is None else found.clone()

    return LegState(
        step,
        composition.get_buffer("log_start").clone(),
        [(p.detach().clone(), moment(p, "exp_avg"), moment(p, "exp_avg_sq")) for p in parameters],
    )


def _take_up(optimiser: torch.optim.Adam, parameters: Sequence[nn.Parameter], state: LegState) -> None:
    with torch.no_grad():
        for parameter, (value, mean, mean_square) in zip(parameters, state.parameters, strict=True):
            parameter.copy_(value)
            if state.step:
                optimiser.state[parameter] = {
                    "step": torch.tensor(float(state.step)),
                    "exp_avg": mean.clone(),
                    "exp_avg_sq": mean_square.clone(),
                }
