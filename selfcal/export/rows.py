"""``scale_factors.json`` as exporters read it: rows by place, uncertainties by name, one covariance."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.kinematic_bins import KinematicBins
from selfcal.errors import ConfigError, DataError
from selfcal.run.atomic import read_json

WHERE = "scale_factors.json"
STATISTICS = "statistics"
"""The group of the data's own statistics, ``stat`` of a row."""
BLINDED = "BLINDED, expected values only: data have been replaced by the simulation. "
"""What every format says of the numbers of a blinded run, which look like those of a measurement."""

FORCED = "NOT CONVERGED, the fit was forced to give numbers. "
"""What every format says of the numbers of a fit that did not converge."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a row belongs: flavour, bins of pT and |eta|, and a working point or a discriminant bin."""

    flavour: str
    pt_bin: int
    eta_bin: int
    working_point: float | None = None
    bin: int | None = None


class ScaleFactorRows(KinematicBins):
    """All rows of one measurement; N rows, S of them measured.

    Attributes
    ----------
    tagger, flavours : names
    blinded : whether the values are those expected from simulation
    forced : whether they are of a fit that did not converge
    pt_gev_edges, abs_eta_edges : (P + 1,), (E + 1,)
    working_points : (W,) b efficiencies, loosest first
    discriminant_edges : (W,) lower edge of the discriminant at each working point; W + 1 bins
    rows : (N,) as in the file
    groups : names of the systematic groups, sorted, without that of the data's statistics
    measured : (S,) indices of the rows that have a value, in the order of ``covariance``
    covariance : (S, S)
    group_covariance : group (with ``statistics``) -> (S, S)

    Raises
    ------
    DataError
        If a row of the grid flavours × pT × |eta| × (working points, bins) is missing or there twice.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.tagger = str(content["tagger"])
        self.blinded = bool(content.get("blinded", False))
        self.forced = bool(content.get("forced", False))
        self.flavours: tuple[str, ...] = tuple(content["flavours"])
        self.pt_gev_edges = tuple(float(edge) for edge in content["pt_gev_edges"])
        self.abs_eta_edges = tuple(float(edge) for edge in content["abs_eta_edges"])
        self.working_points = tuple(float(point) for point in content["working_points"])
        self.discriminant_edges = tuple(float(edge) for edge in content["discriminant_edges"])
        self.rows: tuple[Row, ...] = tuple(content["rows"])
        self.groups: tuple[str, ...] = tuple(sorted({group for row in self.rows for group in row["syst"]}))
        self.measured = tuple(int(index) for index in content["covariance"]["rows"])
        size = len(self.measured)
        self.covariance = np.array(content["covariance"]["matrix"], dtype=np.float64).reshape(size, size)
        self.group_covariance: dict[str, NDArray[np.float64]] = {
            name: np.array(part, dtype=np.float64).reshape(size, size)
            for name, part in content["covariance"]["groups"].items()
        }
        self.eigenvariations: Mapping[str, Any] = content["eigenvariations"]
        self._index = self._places()

    @property
    def note(self) -> str:
        """What every format begins with; empty for a measurement that nothing is to be said of."""
        return (BLINDED if self.blinded else "") + (FORCED if self.forced else "")

    @property
    def n_bins(self) -> int:
        """Number of bins of the discriminant."""
        return len(self.discriminant_edges) + 1

    def index(self, place: Place) -> int:
        """Position of the row at a place."""
        return self._index[place]

    def at(self, place: Place) -> Row:
        """The row at a place."""
        return self.rows[self._index[place]]

    def place(self, row: Row) -> Place:
        """Where a row belongs."""
        return Place(
            row["flavour"],
            _bin(self.pt_gev_edges, row["pt_gev"]),
            _bin(self.abs_eta_edges, row["abs_eta"]),
            None if row["working_point"] is None else float(row["working_point"]),
            row["bin"],
        )

    def uncertainties(self, row: Row) -> dict[str, float]:
        """Every uncertainty of a measured row: ``statistics`` and each group (0 where it has none)."""
        return {
            STATISTICS: float(row["stat"]),
            **{group: float(row["syst"].get(group, 0.0)) for group in self.groups},
        }

    def periods(self, row: Row, uncorrelated_groups: Iterable[str]) -> tuple[float, float]:
        """The parts of a row's uncertainty correlated and uncorrelated between data-taking periods.

        σ_correlated² + σ_uncorrelated² = Σ_g σ_g² = σ_total²
        """
        own = set(uncorrelated_groups)
        squares = {group: sigma**2 for group, sigma in self.uncertainties(row).items()}
        shared = sum(square for group, square in squares.items() if group not in own)
        alone = sum(square for group, square in squares.items() if group in own)
        return float(np.sqrt(shared)), float(np.sqrt(alone))

    def check_groups(self, named: Iterable[str], always: Iterable[str]) -> None:
        """Refuse names of groups that are neither among the uncertainties nor in ``always``.

        Raises
        ------
        ConfigError
            If a name is unknown: it would move an uncertainty to the wrong side unnoticed.
        """
        known = {STATISTICS, *self.groups, *always}
        for name in named:
            if name not in known:
                raise ConfigError(
                    f"no group of uncertainty is called '{name}'",
                    where="export.uncorrelated_groups",
                    expected=f"some of {', '.join(sorted(known))}",
                )

    def label(self, row: Row) -> str:
        """A name for people and for other programs: ``b_77_pt20-40_eta0-2.5`` or ``b_bin3_pt…``."""
        what = (
            f"bin{row['bin']}" if row["working_point"] is None else working_point_name(row["working_point"])
        )
        pt, eta = ("-".join(f"{edge:g}" for edge in row[name]) for name in ("pt_gev", "abs_eta"))
        return f"{row['flavour']}_{what}_pt{pt}_eta{eta}"

    def _places(self) -> dict[Place, int]:
        index: dict[Place, int] = {}
        for i, row in enumerate(self.rows):
            place = self.place(row)
            if place in index:
                raise DataError(f"two rows for {self.label(row)}", where=WHERE)
            index[place] = i
        for place in self.grid():
            if place not in index:
                raise DataError(
                    f"no row for {place}",
                    where=WHERE,
                    expected="one row per flavour, pT, |eta|, working point and discriminant bin, "
                    "measured or not",
                    fix="run 'selfcal fit' again",
                )
        return index

    def grid(self) -> Iterable[Place]:
        """All places: per flavour, pT and |eta| bin the working points, then the bins."""
        for flavour in self.flavours:
            for p in range(self.n_pt):
                for e in range(self.n_eta):
                    for point in self.working_points:
                        yield Place(flavour, p, e, working_point=point)
                    for k in range(self.n_bins):
                        yield Place(flavour, p, e, bin=k)


def load_scale_factors(path: Path) -> ScaleFactorRows:
    """The scale factors of a run: its ``results/scale_factors.json``.

    Raises
    ------
    DataError
        If the file is missing or damaged, or a row of the grid is missing.
    """
    return ScaleFactorRows(read_json(path))


def working_point_name(working_point: float) -> str:
    """Efficiency in percent: 0.77 is '77'."""
    return f"{100 * working_point:g}"


def _bin(edges: tuple[float, ...], found: Any) -> int:
    low, high = (float(edge) for edge in found)
    for i, pair in enumerate(itertools.pairwise(edges)):
        if pair == (low, high):
            return i
    raise DataError(
        f"a row lies in {low:g}–{high:g}, which is no bin",
        where=WHERE,
        expected=f"a bin of the edges {', '.join(f'{edge:g}' for edge in edges)}",
        fix="run 'selfcal fit' again",
    )
