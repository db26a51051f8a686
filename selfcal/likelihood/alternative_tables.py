"""What alternative simulations say, as files: ``generators.json`` and ``high_pt.json``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError
from selfcal.likelihood.alternatives import efficiencies, generator_rows, pt_trend
from selfcal.likelihood.build import MeasureFold
from selfcal.likelihood.scale_factors import ScaleFactors
from selfcal.likelihood.templates import Binning, count_by_flavour

Array = NDArray[np.float64]


def generators_json(fold: MeasureFold, config: FitConfig) -> dict[str, Any]:
    """Simulation-to-simulation scale factors of every alternative, without calibration."""
    binning = fold.binning

    def counted(jets: ScoredJets) -> tuple[Array, Array]:
        return count_by_flavour(jets, fold.discriminant(jets), binning)

    references = {str(flavour): region for flavour, region in config.reference_regions.items()}
    found = generator_rows(fold.alternatives, fold.nominal, references, FLAVOURS, counted)
    rows = [
        {
            "variation": name,
            "flavour": FLAVOURS[f],
            "working_point": binning.working_points[w],
            "pt_gev": list(binning.pt_gev_range(p)),
            "abs_eta": list(binning.abs_eta_range(p)),
            "value": value,
            "stat": error,
        }
        for name, f, p, w, value, error in found
    ]
    return {"schema_version": 1, "rows": rows}


def high_pt_json(
    fold: MeasureFold, factors: ScaleFactors, config: FitConfig, *, blinded: bool
) -> dict[str, Any]:
    """Scale factors beyond the last measured pT bin, with status ``extrapolated``, or ``unmeasured``.

    ``syst`` has the uncertainty of the last bin (``last_bin``) and every variation's part.

    Raises
    ------
    ConfigError
        If neither the detector's posterior nor an alternative simulation says how efficiencies move with pT.
    """
    if not fold.detector and not fold.alternatives:
        raise ConfigError(
            "nothing says how far scale factors hold beyond the last pT bin",
            where="fit.high_pt_gev_edges",
            expected="inference.enabled: true, or datasets with 'use: alternative'",
        )
    last = fold.binning.pt_gev_edges[-2:]
    binning = replace(fold.binning, pt_gev_edges=(*last, *config.high_pt_gev_edges))
    trends = pt_trends(fold, config, binning)
    n_eta, first = binning.n_eta, (fold.binning.n_pt - 1) * binning.n_eta
    sigma = np.sqrt(np.diag(factors.covariance))
    measured = {
        (row.flavour, row.kinematic_bin - first, row.working_point): (factors.value[s], sigma[s])
        for s, i in enumerate(factors.measured)
        if (row := factors.rows[i]).working_point is not None and row.kinematic_bin >= first
    }
    rows = []
    for f, flavour in enumerate(FLAVOURS):
        for p in range(n_eta, binning.n_kinematic):
            for w, point in enumerate(binning.working_points):
                value, error = measured.get((flavour, p % n_eta, point), (np.nan, np.nan))
                parts = {name: abs(float(value * trend[f, p, w])) for name, trend in trends.items()}
                total = float(np.sqrt(error**2 + sum(part**2 for part in parts.values())))
                known = np.isfinite(total)
                rows.append(
                    {
                        "flavour": flavour,
                        "kind": "working_point",
                        "working_point": point,
                        "pt_gev": list(binning.pt_gev_range(p)),
                        "abs_eta": list(binning.abs_eta_range(p)),
                        "value": float(value) if known else None,
                        "syst": {"last_bin": float(error), **parts} if known else {},
                        "total": total if known else None,
                        "status": "extrapolated" if known else "unmeasured",
                    }
                )
    return {"schema_version": 1, "blinded": blinded, "rows": rows}


def pt_trends(fold: MeasureFold, config: FitConfig, binning: Binning) -> dict[str, Array]:
    """δ (F, P, W) of every direction of the detector and every alternative, in the reference regions.

    An alternative without the region of a flavour says nothing about it.
    """

    def of(jets: dict[str, ScoredJets], fallback: dict[str, ScoredJets]) -> Array:
        result = np.full((len(FLAVOURS), binning.n_kinematic, len(binning.working_points)), np.nan)
        for f, flavour in enumerate(FLAVOURS):
            region = config.reference_regions.get(flavour)  # type: ignore[call-overload]
            own = jets.get(region, fallback.get(region))
            if own is not None:
                result[f] = efficiencies(*count_by_flavour(own, fold.discriminant(own), binning))[0][f]
        return result

    corrected, nominal = of(fold.simulation, {}), of(fold.nominal, {})
    varied = {f"detector_{j}": (of(jets, {}), corrected) for j, jets in enumerate(fold.detector)}
    for name, other in fold.alternatives.items():
        varied[f"modelling_{name}"] = (of(other.nominal, fold.nominal), nominal)
    return {name: pt_trend(above, below, binning.n_eta) for name, (above, below) in varied.items()}
