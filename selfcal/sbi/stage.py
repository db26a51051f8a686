"""The ``infer`` stage: what the detector does differently in data, from the tracks of the train fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold, event_hash
from selfcal.data.jets import Jets
from selfcal.data.samples import jets_in
from selfcal.run.context import RunContext
from selfcal.sbi.estimation import estimate
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.posterior import Posterior, save_posterior
from selfcal.transport.control_regions import cards_of, composition_prior, control_regions

MISFIT_MIN = 0.05
"""Below this posterior predictive p-value the covariance is inflated by χ²/ndf."""
FLAGGED = 0.01
"""Histograms whose p-value, times their number, is below it are named."""


def run_infer(context: RunContext) -> list[Path]:
    """Write ``posterior.json``, ``posterior_samples.safetensors`` and ``donors.safetensors`` in ``results``.

    A killed stage continues with the points of the design that are missing. Only jets of the
    train fold are read, so that data which shape the detector never measure a scale factor.

    Raises
    ------
    ConfigError
        If a control region has simulation but no data, or the reverse.
    DataError
        If an impact parameter or a significance is absent, or there are no tracks.
    FitError
        If the fit does not converge.
    """
    torch.set_num_threads(1)
    config = context.config.inference
    regions = control_regions(context)
    tracks = region_tracks(context, regions)
    found = estimate(context, tracks)
    predicted = found.predicted
    for row in predicted:
        row["region"] = "all" if row["region"] is None else regions[row["region"]]
    posterior, inflation = inflated(found.posterior, predicted[0])
    flagged = [row for row in predicted[1:] if row["p_value"] * (len(predicted) - 1) < FLAGGED]
    diagnostics = {
        "method": config.method,
        "predictive": predicted,
        "flagged": [f"{row['region']} {row['histogram']} {row['category']}" for row in flagged],
        "inflation": inflation,
        "chain": found.chain,
        "composition": composition_rows(found.shares, tracks),
        "jets": {
            one.name: {
                "simulation": sum(len(jets) for jets in one.simulation),
                "data": sum(len(jets) for jets in one.data),
            }
            for one in tracks
        },
        **found.details,
    }
    _say(context, posterior, diagnostics)
    seed = context.config.seed
    return save_posterior(posterior, found.donors, seed, diagnostics, context.directory.results)


def region_tracks(context: RunContext, regions: Sequence[str]) -> list[RegionTracks]:
    """Jets of the train fold and composition prior of every control region."""
    simulated, observed = (
        {
            region: [
                jets
                for card in cards_of(context, role, region)
                for jets in jets_in(context, card, (Fold.TRAIN,))
            ]
            for region in regions
        }
        for role in ("simulation", "data")
    )
    totals = np.stack(
        [
            np.sum([np.bincount(j.flavour, j.weight, len(FLAVOURS)) for j in simulated[region]], axis=0)
            for region in regions
        ]
    )
    shares = torch.from_numpy(totals / totals.sum(axis=1, keepdims=True))
    prior = composition_prior(context, tuple(regions), shares)
    width = (prior.uncertainty / prior.fractions).clamp_max(1.0).numpy()
    limit = context.config.inference.jets_per_region
    return [
        RegionTracks(region, thinned(simulated[region], limit), observed[region], fractions, relative)
        for region, fractions, relative in zip(regions, prior.fractions.numpy(), width, strict=True)
    ]


def thinned(samples: Sequence[Jets], limit: int) -> list[Jets]:
    """About ``limit`` of the jets at most, whole events, chosen by a hash of their own."""
    total = sum(len(jets) for jets in samples)
    if total <= limit:
        return list(samples)
    kept = []
    for jets in samples:
        hashed = event_hash(f"{jets.dataset} inference", jets.run, jets.event)
        kept.append(jets.select(hashed.astype(np.float64) / 2.0**64 < limit / total))
    return kept


def inflated(posterior: Posterior, overall: dict[str, Any]) -> tuple[Posterior, float]:
    """The posterior with its covariance times χ²/ndf where the model does not describe the data."""
    factor = 1.0
    if overall["p_value"] < MISFIT_MIN:
        factor = max(1.0, overall["chi2"] / overall["ndf"])
    return replace(posterior, covariance=factor * posterior.covariance), factor


def composition_rows(shares: NDArray[np.float64], tracks: Sequence[RegionTracks]) -> list[dict[str, Any]]:
    """Prior and fitted fractions (R, F) of the nuisance composition; the calibration fits its own."""
    return [
        {
            "region": one.name,
            "flavour": flavour,
            "prior": float(one.fractions[f]),
            "fitted": float(shares[r, f]),
        }
        for r, one in enumerate(tracks)
        for f, flavour in enumerate(FLAVOURS)
    ]


def _say(context: RunContext, posterior: Posterior, diagnostics: dict[str, Any]) -> None:
    moved = (posterior.mean - posterior.space.nominal) / posterior.uncertainty
    strongest = np.argsort(-np.abs(moved))[:3]
    named = ", ".join(
        f"{posterior.space.names[i]} {posterior.mean[i]:.3f}±{posterior.uncertainty[i]:.3f}"
        for i in strongest
    )
    overall = diagnostics["predictive"][0]
    context.say(f"infer: {named}; posterior predictive p = {overall['p_value']:.2f}")
    if diagnostics["inflation"] > 1:
        context.say(
            f"infer: the {posterior.space.model} model does not describe the data (χ²/ndf = "
            f"{overall['chi2']:.0f}/{overall['ndf']}): covariance times {diagnostics['inflation']:.2f}"
        )
    for name in diagnostics["flagged"]:
        context.say(f"infer: not described: {name}")
    _say_generator(context, diagnostics["generator"])


def _say_generator(context: RunContext, checked: dict[str, Any] | None) -> None:
    if checked is None:
        return
    overall = checked["rows"][0]
    agreement = f"χ²/ndf = {overall['chi2']:.0f}/{overall['ndf']}, p = {overall['p_value']:.2g}"
    if not checked["noticed"]:
        context.say(f"infer: the generator describes what the detector was not inferred from ({agreement})")
        return
    named = f"; most of all {', '.join(checked['flagged'])}" if checked["flagged"] else ""
    context.say(
        f"infer: the generator does not describe the data ({agreement}{named}): a relative error of "
        f"{checked['error']:.3f} of every bin of the histograms is taken where less was configured"
    )
