"""From simulated and observed jets to the posterior of theta, by an ensemble of networks of single jets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, SMEARING, SmearingParameters, prior_widths
from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import Jets
from selfcal.sbi.binned_likelihood import central_jacobian
from selfcal.sbi.donors import Donors, collect_donors
from selfcal.sbi.emulator import QuadraticEmulator
from selfcal.sbi.inference import RegionTracks, two_designs
from selfcal.sbi.jet_bank import jet_rows, multiplicity_width, sample_rows, simulated_rows
from selfcal.sbi.jet_predictive import mixture_weights, shares_of, split_numbers
from selfcal.sbi.jet_scores import JetRows, JetScores, empty_scores, joined, train_scores
from selfcal.sbi.noise import draw_noise
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.set_likelihood import (
    SetFit,
    SetLikelihood,
    SetObservation,
    fit_sets,
    set_observation,
    simulation_variance,
)
from selfcal.sbi.smearing import smear

Floats = NDArray[np.float64]
Progress = Callable[[int], None]
NOT_LEARNT = {"networks", "check_jets", "sets"}
"""Options that decide nothing about a network but how many there are."""


@dataclass(frozen=True)
class Ensemble:
    """Networks that learnt alike from the same simulation, each without a part of its events.

    ``crossed``: jets of the simulation are judged by the network that did not learn from them; otherwise by
    all, as those of data are.
    """

    networks: tuple[JetScores, ...]
    donors: Donors
    crossed: bool

    def of_data(self, rows: JetRows) -> Floats:
        """The mean of what the networks say of each jet, (N, B)."""
        return np.asarray(np.mean([network.statistic(rows) for network in self.networks], axis=0), np.float64)

    def of_simulation(self, rows: JetRows) -> Floats:
        """What the network that did not see its event says of each jet, (N, B)."""
        if not self.crossed:
            return self.of_data(rows)
        part = parts_of(rows, len(self.networks))
        found = np.empty((len(rows), len(PARAMETERS) + len(FLAVOURS)))
        for number, network in enumerate(self.networks):
            mine = np.flatnonzero(part == number)
            found[mine] = network.statistic(rows.select(mine))
        return found


def parts_of(rows: JetRows, networks: int) -> NDArray[np.int64]:
    """The network that does not learn from each jet, (N,)."""
    return np.asarray((rows.event >> np.uint64(7)) % np.uint64(networks), np.int64)


class SmearedMeans:
    """θ -> means of the networks' numbers over the simulation of all regions and flavours, (R F B,).

    Jets are weighted so that each region's simulation, mixed by the prior's fractions, has the spectrum of
    pT of its data.
    """

    def __init__(self, regions: Sequence[RegionTracks], ensemble: Ensemble, data: JetRows, seed: int) -> None:
        self.ensemble, self.seed = ensemble, seed
        self.samples = [[(jets, draw_noise(jets, seed)) for jets in one.simulation] for one in regions]
        self.nominal = [self.rows(r, NOMINAL.vector()) for r in range(len(regions))]
        self.weights = [
            mixture_weights(rows, data.select(data.region == r), one.fractions)
            for r, (rows, one) in enumerate(zip(self.nominal, regions, strict=True))
        ]

    def __call__(self, theta: Floats) -> Floats:
        return np.concatenate([self._means(r, self.rows(r, theta)) for r in range(len(self.samples))])

    def identity(self) -> str:
        """Names everything that decides the means at a θ."""
        digest = hashlib.sha256(f"{self.seed} {self.ensemble.crossed} {PARAMETERS}".encode())
        for network in self.ensemble.networks:
            for value in network.state_dict().values():
                digest.update(value.numpy().tobytes())
        for rows, weight in zip(self.nominal, self.weights, strict=True):
            digest.update(rows.summaries.tobytes() + np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()[:16]

    def rows(self, region: int, theta: Floats) -> JetRows:
        """Jets of one region's simulation under one detector."""
        return joined([jet_rows(jets, region, self.seed) for jets in self.jets(region, theta)])

    def jets(self, region: int, theta: Floats) -> list[Jets]:
        """The samples of one region's simulation under one detector."""
        parameters = SmearingParameters.from_vector(theta)
        donors, seed = self.ensemble.donors, self.seed
        return [smear(jets, parameters, donors, seed, noise) for jets, noise in self.samples[region]]

    def _means(self, region: int, rows: JetRows) -> Floats:
        statistic, weight = self.ensemble.of_simulation(rows), self.weights[region]
        means = np.zeros((len(FLAVOURS), statistic.shape[1]))
        for flavour in range(len(FLAVOURS)):
            inside = rows.flavour == flavour
            if weight[inside].sum() > 0:
                means[flavour] = weight[inside] @ statistic[inside] / weight[inside].sum()
        return means.ravel()

    def variances(self, regions: Sequence[RegionTracks]) -> list[Floats]:
        """Covariance of the mixture's mean per region, (B, B) each."""
        return [
            simulation_variance(rows, weight, self.ensemble.of_simulation(rows), one.fractions)
            for one, rows, weight in zip(regions, self.nominal, self.weights, strict=True)
        ]


@dataclass(frozen=True)
class NeuralInference:
    """What :func:`infer_neural` finds.

    Attributes
    ----------
    data : the jets of data
    means : what simulates the networks' means
    likelihood, fit : free numbers as :class:`SetLikelihood` has them
    wide : emulator of the means over the whole prior
    """

    posterior: Posterior
    ensemble: Ensemble
    data: JetRows
    means: SmearedMeans
    likelihood: SetLikelihood
    fit: SetFit
    wide: QuadraticEmulator


def train_ensemble(
    regions: Sequence[RegionTracks],
    config: InferenceConfig,
    seed: int,
    *,
    crossed: bool = True,
    scratch: Path | None = None,
    on_step: Progress = lambda _: None,
) -> Ensemble:
    """Train the networks; with ``scratch`` every one is a file there and is not trained again.

    ``on_step`` counts up to ``networks * steps``. The files are named by everything that decides them. A
    single network learns from all events.

    Raises
    ------
    DataError
        If fields are absent or there are no tracks.
    FitError
        If a loss is not finite.
    """
    neural = config.neural
    samples = [region.simulation for region in regions]
    donors = collect_donors([jets for members in samples for jets in members], seed)
    bank = simulated_rows(samples, donors, config, seed)
    crossed = crossed and neural.networks > 1
    settings = neural.model_dump_json(exclude=NOT_LEARNT)
    identity = _digest(bank, f"{seed} {crossed and neural.networks} {settings}")
    part = parts_of(bank, neural.networks)[: len(bank) // 2]
    networks = []
    for number in range(neural.networks):
        path = scratch / f"network-{identity}-{number}.safetensors" if scratch is not None else None
        done = number * neural.steps
        if path is not None and path.exists():
            network = empty_scores(bank, len(regions), len(FLAVOURS), neural).double().requires_grad_(False)
            network.load(path)
        else:
            network = train_scores(
                bank,
                len(regions),
                len(FLAVOURS),
                neural,
                seed * 1009 + number,
                left_out=part == number if crossed else None,
                on_step=partial(_count_on, on_step, done),
            )
            if path is not None:
                network.save(path)
        on_step(done + neural.steps)
        networks.append(network)
    return Ensemble(tuple(networks), donors, crossed)


def _count_on(on_step: Progress, done: int, step: int) -> None:
    on_step(done + step)


def _digest(rows: JetRows, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for item in fields(rows):
        digest.update(np.ascontiguousarray(getattr(rows, item.name)).tobytes())
    return digest.hexdigest()[:20]


def observed_rows(regions: Sequence[RegionTracks], seed: int) -> JetRows:
    """The data jets of the regions."""
    return joined([sample_rows(one.data, r, seed) for r, one in enumerate(regions)])


def observations_of(
    regions: Sequence[RegionTracks],
    data: JetRows,
    ensemble: Ensemble,
    variances: Sequence[Floats],
    config: InferenceConfig,
) -> tuple[SetObservation, ...]:
    """What the networks say of ``data``, by region."""
    found = []
    for r, one in enumerate(regions):
        rows = data.select(data.region == r)
        error = config.modelling_error
        statistic = ensemble.of_data(rows)
        found.append(set_observation(rows, statistic, variances[r], one.fractions, one.relative_width, error))
    return tuple(found)


def infer_neural(
    regions: Sequence[RegionTracks],
    config: InferenceConfig,
    seed: int,
    *,
    ensemble: Ensemble | None = None,
    data: JetRows | None = None,
    scratch: Path | None = None,
    on_step: Progress = lambda _: None,
    on_point: Progress = lambda _: None,
) -> NeuralInference:
    """The detector under which the simulation looks to the networks as the data do.

    ``ensemble``: if None, trained here; ``data``: if None, that of the regions.

    Raises
    ------
    DataError
        If fields are absent or there are no tracks.
    FitError
        If a loss is not finite or the fit does not converge.
    """
    if ensemble is None:
        ensemble = train_ensemble(regions, config, seed, scratch=scratch, on_step=on_step)
    if data is None:
        data = observed_rows(regions, seed)
    means = SmearedMeans(regions, ensemble, data, seed)
    observations = observations_of(regions, data, ensemble, means.variances(regions), config)
    (first, _), (likelihood, fit) = two_designs(
        means,
        partial(set_likelihood, observations, config),
        fit_sets,
        SMEARING,
        config,
        seed,
        scratch=scratch,
        identity=means.identity(),
        on_point=on_point,
    )
    posterior = _posterior(likelihood, fit)
    return NeuralInference(posterior, ensemble, data, means, likelihood, fit, first.emulator)


def _posterior(likelihood: SetLikelihood, fit: SetFit) -> Posterior:
    widths, size = likelihood.prior_width, len(PARAMETERS)
    mean = SmearingParameters.from_vector(likelihood.theta(fit.best)).vector()
    return Posterior(mean, fit.covariance[:size, :size] * np.outer(widths, widths), widths)


def with_error(
    found: NeuralInference, regions: Sequence[RegionTracks], config: InferenceConfig
) -> NeuralInference:
    """Fitted again with the errors of the generator in ``config``.

    Raises
    ------
    FitError
        If the fit does not converge.
    """
    variances = found.means.variances(regions)
    observations = observations_of(regions, found.data, found.ensemble, variances, config)
    likelihood = set_likelihood(observations, config, found.likelihood.emulator)
    fit = fit_sets(likelihood, found.fit.best)
    return replace(found, posterior=_posterior(likelihood, fit), likelihood=likelihood, fit=fit)


def fit_of_jets(
    found: NeuralInference, jets: JetRows, regions: Sequence[RegionTracks], config: InferenceConfig
) -> SetFit:
    """The fit of some of the data's jets, by the emulator over the prior: few jets reach far."""
    variances = found.means.variances(regions)
    observations = observations_of(regions, jets, found.ensemble, variances, config)
    return fit_sets(replace(found.likelihood, observations=observations, emulator=found.wide))


def moves_of_networks(found: NeuralInference) -> Floats:
    """How far from the best fit each network alone would be, to first order, in prior widths, (K, D)."""
    likelihood, best = found.likelihood, found.fit.best
    size, (rows, flavours) = len(PARAMETERS), likelihood.fractions.shape
    _, tilt, multiplicity = split_numbers(best, rows, flavours)
    share = shares_of(likelihood.fractions, likelihood.relative_width, tilt)
    differences = np.empty((len(found.ensemble.networks), rows, size + flavours))
    for r in range(rows):
        moved = best[:size] + multiplicity[r] * likelihood.multiplicity
        simulated = found.means.rows(r, likelihood.theta(moved))
        weight = mixture_weights(simulated, found.data.select(found.data.region == r), share[r])
        observed = found.data.select(found.data.region == r)
        for number, network in enumerate(found.ensemble.networks):
            seen = observed.weight @ network.statistic(observed) / observed.weight.sum()
            differences[number, r] = seen - weight @ network.statistic(simulated) / weight.sum()
    whitening = likelihood.whitening()
    jacobian = central_jacobian(lambda x: likelihood.residuals(x, whitening), best)
    gain = -found.fit.covariance @ jacobian[: -len(best)].T
    pulls = [
        np.concatenate([matrix @ one for matrix, one in zip(whitening, each, strict=True)])
        for each in differences
    ]
    moves = np.stack(pulls) @ gain.T
    return np.asarray((moves - moves.mean(axis=0))[:, :size], np.float64)


def set_likelihood(
    observations: tuple[SetObservation, ...], config: InferenceConfig, emulator: QuadraticEmulator
) -> SetLikelihood:
    """The likelihood of what the regions show, with the configured priors."""
    widths = prior_widths(config.prior_width)
    return SetLikelihood(observations, emulator, multiplicity_width(config), NOMINAL.vector(), widths)
