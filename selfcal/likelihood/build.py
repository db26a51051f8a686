"""Templates before and after the calibration map, and the data of the measure fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import FLAVOURS, B
from selfcal.data.folds import UNTRAINED, Fold
from selfcal.data.score_files import NOMINAL, control_scores, detector_variants, within_abs_eta
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError, DataError
from selfcal.likelihood.alternatives import Alternative, modelling_template, read_alternatives
from selfcal.likelihood.kinematic_binning import merged_edges
from selfcal.likelihood.shifts import independent_modes
from selfcal.likelihood.templates import Binning, Templates, count_by_flavour
from selfcal.run.atomic import write_arrays
from selfcal.run.context import RunContext
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.working_points import thresholds
from selfcal.transport.calibration import Calibration
from selfcal.transport.maps import FlavourMaps

HISTOGRAM_BINS = 40
DETECTOR_VARIANCE_KEPT = 0.99
"""Share of the variance of the detector draws that their independent modes keep."""


@dataclass(frozen=True)
class MeasureFold:
    """Scored jets per control region, and the binning they fall into.

    Data are of the measure fold, simulation is all that did not train the tagger.
    ``simulation`` has the inferred detector where there is one; ``uncorrected`` is then the simulation
    as it is, and ``detector`` are the same jets along each direction of the detector's posterior.
    ``alternatives`` are other simulations by the name of their variation, of some of the regions.
    """

    simulation: dict[str, ScoredJets]
    data: dict[str, ScoredJets]
    binning: Binning
    tagger: TaggerConfig
    uncorrected: dict[str, ScoredJets] | None = None
    detector: tuple[dict[str, ScoredJets], ...] = ()
    alternatives: Mapping[str, Alternative] = field(default_factory=dict)

    @property
    def nominal(self) -> dict[str, ScoredJets]:
        """The simulation as it is."""
        return self.simulation if self.uncorrected is None else self.uncorrected

    def discriminant(self, jets: ScoredJets) -> NDArray[np.float64]:
        """D_b of the configured background fractions, (N,)."""
        return discriminant_b(jets.log_probability, self.tagger.charm_fraction, self.tagger.tau_fraction)


def working_point_binning(jets: ScoredJets, fit: FitConfig, tagger: TaggerConfig) -> Binning:
    """Thresholds of D_b with the wanted efficiencies for b jets of ``jets`` (nominal simulation).

    Raises
    ------
    DataError
        If there are no simulated b jets.
    """
    b_jets = jets.select(jets.flavour == B)
    if not len(b_jets):
        raise DataError(
            "no simulated b jets to define the working points",
            where=f"region {jets.region}",
            fix="choose another fit.working_point_region",
        )
    loosest_first = sorted(fit.working_points, reverse=True)
    d_b = discriminant_b(b_jets.log_probability, tagger.charm_fraction, tagger.tau_fraction)
    edges = thresholds(d_b, b_jets.weight, loosest_first)
    return Binning(
        fit.pt_gev_edges, tuple(float(edge) for edge in edges), tuple(loosest_first), fit.abs_eta_edges
    )


def measure_fold(context: RunContext, regions: Sequence[str]) -> MeasureFold:
    """Read data and simulation of the control regions.

    Raises
    ------
    DataError
        If the jets of a direction of the detector's posterior are of other folds than the simulation.
    """
    config = context.config

    def read(role: str, region: str, folds: Sequence[Fold], variant: str | None = None) -> ScoredJets:
        jets = control_scores(context, role, region, folds, variant)
        return within_abs_eta(jets, config.fit.abs_eta_edges)

    data = {region: read("data", region, (Fold.MEASURE,)) for region in regions}
    simulation, nominal, *detector = (
        {region: read("simulation", region, UNTRAINED, variant) for region in regions}
        for variant in (None, NOMINAL, *detector_variants(context))
    )
    for region, varied in ((region, varied[region]) for varied in detector for region in regions):
        if set(varied.fold) != set(simulation[region].fold):
            raise DataError(
                f"{len(varied)} jets with another detector, {len(simulation[region])} simulated ones",
                where=f"region {region}",
                expected="scores of the same folds",
                fix="run 'selfcal calibrate' again: the scores are of another version",
            )
    untrained = read("simulation", config.fit.working_point_region, UNTRAINED, NOMINAL)
    binning = working_point_binning(untrained, config.fit, config.tagger)
    others = read_alternatives(context, regions)
    fold = MeasureFold(simulation, data, binning, config.tagger, nominal, tuple(detector), others)
    return with_target_uncertainty(fold, config.fit) if config.fit.target_uncertainty else fold


def with_target_uncertainty(fold: MeasureFold, config: FitConfig) -> MeasureFold:
    """The same jets in pT and |eta| bins merged until ``target_uncertainty`` is expected.

    The jets of a flavour in its reference region are the simulation's, scaled to the number of jets in data.

    Raises
    ------
    ConfigError
        If a flavour's reference region is not among the regions, or no binning reaches the target.
    """
    jets: dict[str, NDArray[np.float64]] = {}
    passing: dict[str, NDArray[np.float64]] = {}
    target = {str(flavour): sigma for flavour, sigma in config.target_uncertainty.items()}
    for flavour in config.target_uncertainty:
        region = config.reference_regions.get(flavour)
        if region not in fold.simulation:
            raise ConfigError(
                f"no reference region for flavour '{flavour}'",
                where="fit.target_uncertainty",
                expected=f"a region among {', '.join(fold.simulation)}",
            )
        simulation = fold.simulation[region]
        counts, _ = count_by_flavour(simulation, fold.discriminant(simulation), fold.binning)
        scale = fold.data[region].weight.sum() / simulation.weight.sum()
        own = counts[FLAVOURS.index(flavour)] * scale
        grid = own.reshape(fold.binning.n_pt, fold.binning.n_eta, -1)
        jets[flavour], passing[flavour] = grid.sum(axis=2), grid[:, :, -1]
    pt_gev_edges, abs_eta_edges = merged_edges(
        fold.binning.pt_gev_edges, fold.binning.abs_eta_edges, jets, passing, target
    )
    binning = replace(fold.binning, pt_gev_edges=pt_gev_edges, abs_eta_edges=abs_eta_edges)
    return replace(fold, binning=binning)


def build_templates(fold: MeasureFold, calibration: Calibration) -> Templates:
    """Counts of data, and of simulation under the nominal map, its replicas and other maps (``_other_maps``).

    The composition enters as the derive fold's fit, which holds the cards' priors and is
    independent of the data that are counted here.
    """
    regions = calibration.regions

    def counts(jets: ScoredJets) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return count_by_flavour(jets, fold.discriminant(jets), fold.binning)

    simulation = [fold.simulation[region] for region in regions]
    observed = [fold.data[region] for region in regions]
    nominal = [counts(fold.nominal[region]) for region in regions]
    detector = [
        np.stack([counts(calibration.apply(varied[region], calibration.nominal))[0] for region in regions])
        for varied in fold.detector
    ]
    calibrated = [counts(calibration.apply(jets, calibration.nominal)) for jets in simulation]
    replicas = [
        [counts(calibration.apply(jets, maps))[0] for jets in simulation] for maps in calibration.replicas
    ]
    data = [
        fold.binning.count(jets.pt_gev, jets.abs_eta, fold.discriminant(jets), jets.weight)
        for jets in observed
    ]
    moved = np.stack([total for total, _ in calibrated])
    modelling = {
        name: modelling_template(
            {
                region: counts(calibration.apply(jets, calibration.nominal))[0]
                for region, jets in other.simulation.items()
            },
            regions,
            moved,
        )
        for name, other in fold.alternatives.items()
    }
    modes: Iterable[NDArray[np.float64]] = ()
    if detector:
        modes = independent_modes(np.stack(detector), moved, DETECTOR_VARIANCE_KEPT)
    fractions, uncertainty = calibration.fractions, calibration.fraction_uncertainty
    return Templates(
        regions=regions,
        binning=fold.binning,
        data=np.stack(data),
        nominal=np.stack([total for total, _ in nominal]),
        nominal_variance=np.stack([variance for _, variance in nominal]),
        calibrated=moved,
        calibrated_variance=np.stack([variance for _, variance in calibrated]),
        replicas=np.stack([np.stack(replica) for replica in replicas]),
        composition=fractions.numpy(),
        # A flavour that the simulation lacks has a tiny fraction with an absolute width.
        composition_relative_uncertainty=(uncertainty / fractions).clamp_max(1.0).numpy(),
        variations=_other_maps(
            calibration,
            moved,
            lambda maps: np.stack([counts(calibration.apply(jets, maps))[0] for jets in simulation]),
        ),
        corrected=np.stack([counts(jets)[0] for jets in simulation]) if detector else None,
        detector={str(j): mode for j, mode in enumerate(modes)},
        modelling=modelling,
    )


def _other_maps(
    calibration: Calibration,
    nominal: NDArray[np.float64],
    counted: Callable[[FlavourMaps], NDArray[np.float64]],
) -> dict[str, NDArray[np.float64]]:
    """Templates one standard deviation away from ``nominal``: stiff maps, other seeds, other families.

    The difference of two seeds has twice the variance of one, and together the S seeds have the variance of
    one: each moves by (seed - nominal) / sqrt(2 S). A family is wrong, not noisy: N of them move by
    (family - nominal) / sqrt(N), together the root mean square of their differences.
    """
    seeds, families = calibration.seeds, calibration.families
    of_seed, of_family = 1.0 / np.sqrt(2.0 * max(len(seeds), 1)), 1.0 / np.sqrt(max(len(families), 1))
    return {
        "stiff": counted(calibration.stiff),
        **{f"seed{i}": nominal + of_seed * (counted(maps) - nominal) for i, maps in enumerate(seeds)},
        **{
            f"family_{name}": nominal + of_family * (counted(maps) - nominal)
            for name, maps in families.items()
        },
    }


def write_discriminants(fold: MeasureFold, calibration: Calibration, path: Path) -> Path:
    """Histograms of D_b per region for the report: data, and simulation before and after.

    Simulation has the data's number of jets and the fitted composition; the band is
    the spread of the bootstrap maps ⊕ the statistical error of the simulation.
    """
    every = np.concatenate([fold.discriminant(jets) for jets in fold.data.values()])
    low, high = (float(np.quantile(every, share)) for share in (0.001, 0.999))
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    arrays: dict[str, NDArray[np.float64]] = {"edges": edges}
    for r, region in enumerate(calibration.regions):
        data, jets = fold.data[region], fold.simulation[region]
        arrays[f"data/{region}"] = _histogram(edges, fold.discriminant(data), data.weight)
        share = calibration.fractions[r].numpy() / _fractions(jets)
        before = fold.nominal[region]
        weight, nominal_weight = (
            (unscaled := one.weight * share[one.flavour]) * data.weight.sum() / unscaled.sum()
            for one in (jets, before)
        )
        moved = calibration.apply(jets, calibration.nominal)
        after = _histogram(edges, fold.discriminant(moved), weight)
        replicas = np.stack(
            [
                _histogram(edges, fold.discriminant(calibration.apply(jets, maps)), weight)
                for maps in calibration.replicas
            ]
        )
        error = np.sqrt(replicas.var(0, ddof=1) + _histogram(edges, fold.discriminant(moved), weight**2))
        for f, flavour in enumerate(FLAVOURS):
            for name, source, of_jets in (("nominal", before, nominal_weight), ("calibrated", moved, weight)):
                chosen = source.flavour == f
                d_b = fold.discriminant(source)[chosen]
                arrays[f"{name}/{region}/{flavour}"] = _histogram(edges, d_b, of_jets[chosen])
        arrays[f"nominal_variance/{region}"] = _histogram(edges, fold.discriminant(before), nominal_weight**2)
        arrays[f"calibrated_up/{region}"] = after + error
        arrays[f"calibrated_down/{region}"] = np.maximum(after - error, 0.0)
    write_arrays(path, arrays)
    return path


def _histogram(
    edges: NDArray[np.float64], values: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sums of weights; what lies outside is counted in the first or last bin."""
    clipped = np.clip(values, edges[0], np.nextafter(edges[-1], -np.inf))
    counts: NDArray[np.float64] = np.histogram(clipped, edges, weights=weight)[0]
    return counts


def _fractions(jets: ScoredJets) -> NDArray[np.float64]:
    total = np.bincount(jets.flavour, weights=jets.weight, minlength=4)
    fractions: NDArray[np.float64] = np.maximum(total, 1e-9) / total.sum()
    return fractions
