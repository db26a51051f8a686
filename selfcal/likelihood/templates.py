"""Templates: counts of jets in pseudo-continuous discriminant bins, per region, pT and flavour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.run.atomic import read_json


@dataclass(frozen=True)
class Binning:
    """pT bins and pseudo-continuous bins of a discriminant.

    ``discriminant_edges`` are the inner edges (K - 1,), from the loosest working
    point to the tightest; bin 0 fails all working points, bin K - 1 passes all.
    ``working_points`` (K - 1,) are the efficiencies in the same order (loosest,
    i.e. largest, first).
    """

    pt_gev_edges: tuple[float, ...]
    discriminant_edges: tuple[float, ...]
    working_points: tuple[float, ...]

    @property
    def n_pt(self) -> int:
        return len(self.pt_gev_edges) - 1

    @property
    def n_bins(self) -> int:
        return len(self.discriminant_edges) + 1

    def count(
        self,
        pt_gev: NDArray[np.float64],
        discriminant: NDArray[np.float64],
        weight: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Sum of weights in each bin, (P, K). Jets outside the pT range are not counted."""
        pt_bin = np.digitize(pt_gev, self.pt_gev_edges) - 1
        inside = (pt_bin >= 0) & (pt_bin < self.n_pt)
        bin_index = np.digitize(discriminant, self.discriminant_edges)
        flat = pt_bin[inside] * self.n_bins + bin_index[inside]
        counts = np.bincount(flat, weights=weight[inside], minlength=self.n_pt * self.n_bins)
        return np.asarray(counts, dtype=np.float64).reshape(self.n_pt, self.n_bins)


@dataclass(frozen=True)
class Templates:
    """Everything the likelihood needs; R regions, F flavours, P pT bins, K bins.

    Attributes
    ----------
    data : (R, P, K) observed counts of the measure fold
    nominal, nominal_variance : (R, F, P, K) uncalibrated simulation: sum w and sum w^2
    calibrated, calibrated_variance : the same after the calibration map
    replicas : (M, R, F, P, K) calibrated templates under each bootstrap map (same jets)
    variations : name -> (R, F, P, K) calibrated templates under another map model
    corrected : (R, F, P, K) simulation with the inferred detector and before the map; None without inference
    detector : name -> (R, F, P, K) calibrated templates at one standard deviation of a parameter of the
        detector's posterior, which all flavours and regions share
    composition : (R, F) central value of the prior flavour fractions, rows sum to one
    composition_relative_uncertainty : (R, F)
    """

    regions: tuple[str, ...]
    binning: Binning
    data: NDArray[np.float64]
    nominal: NDArray[np.float64]
    nominal_variance: NDArray[np.float64]
    calibrated: NDArray[np.float64]
    calibrated_variance: NDArray[np.float64]
    replicas: NDArray[np.float64]
    composition: NDArray[np.float64]
    composition_relative_uncertainty: NDArray[np.float64]
    variations: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    corrected: NDArray[np.float64] | None = None
    detector: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def before_map(self) -> NDArray[np.float64]:
        """The templates that the map moves, (R, F, P, K)."""
        return self.nominal if self.corrected is None else self.corrected


def templates_json(templates: Templates) -> dict[str, Any]:
    """The content of ``templates.json``; :func:`read_templates` gives the templates back."""
    content = {part.name: getattr(templates, part.name) for part in fields(Templates)}
    plain = {name: value.tolist() for name, value in content.items() if isinstance(value, np.ndarray)}
    variations, detector = (
        {name: value.tolist() for name, value in varied.items()}
        for varied in (templates.variations, templates.detector)
    )
    return {
        "schema_version": 1,
        "regions": list(templates.regions),
        "binning": asdict(templates.binning),
        **plain,
        "variations": variations,
        "detector": detector,
    }


def read_templates(path: Path) -> Templates:
    """Read what :func:`templates_json` gives.

    Raises
    ------
    DataError
        If the file is missing, damaged or of another format.
    """
    content = read_json(path)
    try:
        if content.pop("schema_version") != 1:
            raise ValueError("another schema version")
        binning = Binning(**{name: tuple(value) for name, value in content.pop("binning").items()})
        regions = tuple(content.pop("regions"))
        variations, detector = (
            {name: np.array(value) for name, value in content.pop(key).items()}
            for key in ("variations", "detector")
        )
        arrays = {name: np.array(value, dtype=np.float64) for name, value in content.items()}
        return Templates(regions=regions, binning=binning, variations=variations, detector=detector, **arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"not the templates of a fit: {error}", where=str(path), fix="run 'selfcal fit' again"
        ) from error


def count_by_flavour(
    jets: ScoredJets, discriminant: NDArray[np.float64], binning: Binning
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of weights and of squared weights per flavour, each (F, P, K)."""
    total, variance = [], []
    for index in range(len(FLAVOURS)):
        chosen = jets.flavour == index
        args = (jets.pt_gev[chosen], discriminant[chosen])
        total.append(binning.count(*args, jets.weight[chosen]))
        variance.append(binning.count(*args, jets.weight[chosen] ** 2))
    return np.stack(total), np.stack(variance)
