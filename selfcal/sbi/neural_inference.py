"""From simulated and observed jets to the posterior of theta, by an ensemble of densities of single jets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfcal.config.inference import InferenceConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.sbi.donors import Donors, collect_donors
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.jet_bank import multiplicity_width, sample_rows, simulated_rows
from selfcal.sbi.jet_density import JetDensity, JetRows, empty_density, joined, train_density
from selfcal.sbi.parameters import NOMINAL, PARAMETERS, SmearingParameters, prior_widths
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.unbinned_likelihood import UnbinnedFit, UnbinnedLikelihood, fit_unbinned, spectrum_weights

Floats = NDArray[np.float64]
Progress = Callable[[int], None]
NOT_LEARNT = {"networks", "data_jets_per_region", "check_jets", "sets"}
"""Options that decide nothing about a network."""


@dataclass(frozen=True)
class Ensemble:
    """Densities of jets that were learnt alike from the same simulation, and that simulation as it is."""

    densities: tuple[JetDensity, ...]
    simulation: JetRows
    donors: Donors


@dataclass(frozen=True)
class NeuralInference:
    """What :func:`infer_neural` finds: one likelihood and fit per network, and what they say together.

    Attributes
    ----------
    best, covariance : of all free numbers, parameters of interest in prior widths first
    spread : standard deviation of the networks' best fits per parameter, in the σ of the posterior, (D,)
    """

    posterior: Posterior
    ensemble: Ensemble
    likelihoods: tuple[UnbinnedLikelihood, ...]
    fits: tuple[UnbinnedFit, ...]
    best: Floats
    covariance: Floats
    spread: Floats


def train_ensemble(
    regions: Sequence[RegionTracks],
    config: InferenceConfig,
    seed: int,
    *,
    bootstrap: bool = True,
    scratch: Path | None = None,
    on_step: Progress = lambda _: None,
) -> Ensemble:
    """Learn the densities; with ``scratch`` every network is a file there and is not trained again.

    ``on_step`` counts up to ``networks * steps``. The files are named by everything that decides them.

    Raises
    ------
    DataError
        If fields are absent or there are no tracks.
    FitError
        If a density is not finite.
    """
    neural = config.neural
    samples = [region.simulation for region in regions]
    donors = collect_donors([jets for members in samples for jets in members], seed)
    bank = simulated_rows(samples, donors, config, seed)
    identity = _digest(bank, f"{seed} {bootstrap} {neural.model_dump_json(exclude=NOT_LEARNT)}")
    densities = []
    for number in range(neural.networks):
        path = scratch / f"network-{identity}-{number}.safetensors" if scratch is not None else None
        done = number * neural.steps
        if path is not None and path.exists():
            density = empty_density(bank, len(regions), len(FLAVOURS), neural)
            density.double().requires_grad_(False).load(path)
        else:
            density = train_density(
                bank,
                len(regions),
                len(FLAVOURS),
                neural,
                seed * 1009 + number,
                bootstrap=bootstrap,
                on_step=partial(_count_on, on_step, done),
            )
            if path is not None:
                density.save(path)
        on_step(done + neural.steps)
        densities.append(density)
    plain = joined([sample_rows(members, r, seed) for r, members in enumerate(samples)])
    return Ensemble(tuple(densities), plain, donors)


def _count_on(on_step: Progress, done: int, step: int) -> None:
    on_step(done + step)


def _digest(rows: JetRows, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for item in fields(rows):
        digest.update(np.ascontiguousarray(getattr(rows, item.name)).tobytes())
    return digest.hexdigest()[:20]


def likelihood_of(
    density: JetDensity,
    simulation: JetRows,
    data: JetRows,
    regions: Sequence[RegionTracks],
    config: InferenceConfig,
) -> UnbinnedLikelihood:
    """The likelihood of ``data`` with the composition priors of the regions."""
    return UnbinnedLikelihood(
        density,
        data,
        spectrum_weights(simulation, data, len(regions), len(FLAVOURS)),
        np.stack([one.fractions for one in regions]),
        np.stack([one.relative_width for one in regions]),
        multiplicity_width(config),
    )


def observed_rows(regions: Sequence[RegionTracks], limit: int, seed: int) -> JetRows:
    """The data jets of the regions, ``limit`` of each at most, drawn at random."""
    parts = []
    for r, one in enumerate(regions):
        rows = sample_rows(one.data, r, seed)
        chosen = np.random.default_rng([seed, r]).permutation(len(rows))[:limit]
        parts.append(rows.select(np.sort(chosen)))
    return joined(parts)


def infer_neural(
    regions: Sequence[RegionTracks],
    config: InferenceConfig,
    seed: int,
    *,
    ensemble: Ensemble | None = None,
    data: JetRows | None = None,
    scratch: Path | None = None,
    on_step: Progress = lambda _: None,
    on_fit: Progress = lambda _: None,
) -> NeuralInference:
    """Fit every density of ``ensemble`` (if None, trained here) to ``data`` (if None, those of the regions).

    The mean of the best fits is the posterior's mean; its covariance is the mean one plus the modelling error
    plus the spread of the best fits: (1 + 1/n) times their covariance.

    Raises
    ------
    DataError
        If fields are absent or there are no tracks.
    FitError
        If a density is not finite or a fit does not converge.
    """
    if ensemble is None:
        ensemble = train_ensemble(regions, config, seed, scratch=scratch, on_step=on_step)
    if data is None:
        data = observed_rows(regions, config.neural.data_jets_per_region, seed)
    likelihoods: list[UnbinnedLikelihood] = []
    fits: list[UnbinnedFit] = []
    for number, density in enumerate(ensemble.densities):
        likelihood = likelihood_of(density, ensemble.simulation, data, regions, config)
        likelihoods.append(likelihood)
        fits.append(_fitted(likelihood, config, fits, scratch))
        on_fit(number + 1)
    best, covariance, between = combine(fits)
    size = len(PARAMETERS)
    widths = prior_widths(config.prior_width)
    mean = SmearingParameters.from_vector(NOMINAL.vector() + widths * best[:size]).vector()
    posterior = Posterior(mean, covariance[:size, :size] * np.outer(widths, widths), widths)
    spread = np.sqrt(np.diag(between)[:size] / np.diag(covariance)[:size])
    return NeuralInference(
        posterior, ensemble, tuple(likelihoods), tuple(fits), best, covariance, np.asarray(spread, np.float64)
    )


def combine(fits: Sequence[UnbinnedFit]) -> tuple[Floats, Floats, Floats]:
    """Mean and covariance of all free numbers from an ensemble's fits, and the part that is their spread."""
    modes = np.stack([fit.best for fit in fits])
    between = np.zeros((modes.shape[1], modes.shape[1]))
    if len(fits) > 1:
        between = np.cov(modes.T) * (1 + 1 / len(fits))
    within = np.mean([fit.covariance + fit.modelling for fit in fits], axis=0)
    return modes.mean(axis=0), np.asarray(within + between, np.float64), np.asarray(between, np.float64)


def _fitted(
    likelihood: UnbinnedLikelihood,
    config: InferenceConfig,
    before: Sequence[UnbinnedFit],
    scratch: Path | None,
) -> UnbinnedFit:
    """The fit, from its file if there is one; the last fit of another density is a good start."""
    path = None
    if scratch is not None and isinstance(likelihood.density, JetDensity):
        weights = b"".join(value.numpy().tobytes() for value in likelihood.density.state_dict().values())
        settings = f"{hashlib.sha256(weights).hexdigest()} {config.modelling_error} {likelihood.multiplicity}"
        priors = f"{likelihood.fractions.tobytes().hex()} {likelihood.relative_width.tobytes().hex()}"
        path = scratch / f"fit-{_digest(likelihood.rows, f'{settings} {priors}')}.safetensors"
        if path.exists():
            arrays = read_arrays(path)
            value = float(arrays.pop("log_density"))
            return UnbinnedFit(log_density=value, **arrays)
    fit = fit_unbinned(likelihood, config.modelling_error, before[-1].best if before else None)
    if path is not None:
        write_arrays(path, {name: np.asarray(value) for name, value in asdict(fit).items()})
    return fit
