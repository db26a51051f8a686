"""Templates: counts of jets in pseudo-continuous discriminant bins, per region, pT, |eta| and flavour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.kinematic_bins import KinematicBins
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.run.atomic import read_json


@dataclass(frozen=True)
class Binning(KinematicBins):
    """Kinematic bins (pT × |eta|) and pseudo-continuous bins of a discriminant.

    The P kinematic bins are counted with |eta| running fastest: bin p is pT bin p // E and |eta| bin p % E.
    ``discriminant_edges`` are the inner edges (K - 1,), from the loosest working
    point to the tightest; bin 0 fails all working points, bin K - 1 passes all.
    ``working_points`` (K - 1,) are the efficiencies in the same order (loosest,
    i.e. largest, first).
    """

    pt_gev_edges: tuple[float, ...]
    discriminant_edges: tuple[float, ...]
    working_points: tuple[float, ...]
    abs_eta_edges: tuple[float, ...] = (0.0, 2.5)

    @property
    def n_kinematic(self) -> int:
        """Number of kinematic bins, P."""
        return self.n_pt * self.n_eta

    @property
    def n_bins(self) -> int:
        """Number of discriminant bins, K."""
        return len(self.discriminant_edges) + 1

    def pt_gev_range(self, kinematic_bin: int) -> tuple[float, float]:
        """pT edges of a kinematic bin."""
        low, high = self.pt_gev_edges[kinematic_bin // self.n_eta :][:2]
        return low, high

    def abs_eta_range(self, kinematic_bin: int) -> tuple[float, float]:
        """|eta| edges of a kinematic bin."""
        low, high = self.abs_eta_edges[kinematic_bin % self.n_eta :][:2]
        return low, high

    def name(self, kinematic_bin: int) -> str:
        """``pt1``, or ``pt1_eta0`` where there is more than one |eta| bin."""
        pt_bin, eta_bin = divmod(kinematic_bin, self.n_eta)
        return f"pt{pt_bin}" if self.n_eta == 1 else f"pt{pt_bin}_eta{eta_bin}"

    def words(self, kinematic_bin: int) -> str:
        """``pT 20–40 GeV``, with ``|η| 0–1.2`` where there is more than one |eta| bin."""
        low, high = self.pt_gev_range(kinematic_bin)
        pt = f"pT {low:g}–{high:g} GeV"
        low, high = self.abs_eta_range(kinematic_bin)
        return pt if self.n_eta == 1 else f"{pt}, |η| {low:g}–{high:g}"

    def kinematic_bins(
        self, pt_gev: NDArray[np.float64], abs_eta: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Kinematic bin of every jet, and whether the jet is in any, (N,) each."""
        pt_bin = np.digitize(pt_gev, self.pt_gev_edges) - 1
        eta_bin = np.digitize(abs_eta, self.abs_eta_edges) - 1
        inside = (pt_bin >= 0) & (pt_bin < self.n_pt) & (eta_bin >= 0) & (eta_bin < self.n_eta)
        return np.asarray(pt_bin * self.n_eta + eta_bin, dtype=np.int64), inside

    def count(
        self,
        pt_gev: NDArray[np.float64],
        abs_eta: NDArray[np.float64],
        discriminant: NDArray[np.float64],
        weight: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Sum of weights in each bin, (P, K). Jets outside the pT or |eta| range are not counted."""
        kinematic_bin, inside = self.kinematic_bins(pt_gev, abs_eta)
        bin_index = np.digitize(discriminant, self.discriminant_edges)
        flat = kinematic_bin[inside] * self.n_bins + bin_index[inside]
        counts = np.bincount(flat, weights=weight[inside], minlength=self.n_kinematic * self.n_bins)
        return np.asarray(counts, dtype=np.float64).reshape(self.n_kinematic, self.n_bins)


_MAPPINGS = ("variations", "detector", "modelling", "same_sign")


@dataclass(frozen=True)
class Templates:
    """Everything the likelihood needs; R regions, F flavours, P kinematic bins, K bins.

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
    modelling : name -> (R, F, P, K) calibrated templates of another simulation, a parameter that all flavours
        and regions share
    same_sign : region -> (P, K) counts of its control sample of the same sign; the region's templates are
        then those of the difference
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
    modelling: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    same_sign: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def shared(self) -> dict[str, NDArray[np.float64]]:
        """Templates of the parameters that all flavours have in common, by name of the parameter."""
        kinds = {"detector": self.detector, "modelling": self.modelling}
        return {f"{kind}_{name}": part for kind, parts in kinds.items() for name, part in parts.items()}

    @property
    def before_map(self) -> NDArray[np.float64]:
        """The templates that the map moves, (R, F, P, K)."""
        return self.nominal if self.corrected is None else self.corrected


def templates_json(templates: Templates) -> dict[str, Any]:
    """The content of ``templates.json``; :func:`read_templates` gives the templates back."""
    content = {part.name: getattr(templates, part.name) for part in fields(Templates)}
    plain = {name: value.tolist() for name, value in content.items() if isinstance(value, np.ndarray)}
    mappings = {
        key: {name: value.tolist() for name, value in getattr(templates, key).items()} for key in _MAPPINGS
    }
    return {
        "schema_version": 1,
        "regions": list(templates.regions),
        "binning": asdict(templates.binning),
        **plain,
        **mappings,
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
        parts: dict[str, Any] = {
            key: {name: np.array(value) for name, value in content.pop(key, {}).items()} for key in _MAPPINGS
        }
        parts |= {name: np.array(value, dtype=np.float64) for name, value in content.items()}
        return Templates(regions=regions, binning=binning, **parts)
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
        args = (jets.pt_gev[chosen], jets.abs_eta[chosen], discriminant[chosen])
        total.append(binning.count(*args, jets.weight[chosen]))
        variance.append(binning.count(*args, jets.weight[chosen] ** 2))
    return np.stack(total), np.stack(variance)
