"""Efficiencies of single jets and the network of the profile likelihood, as the report reads and lists
them."""

from __future__ import annotations

from collections.abc import Iterable
from math import hypot

from selfcal.report.inputs import EFFICIENCY_CLOSURE, PROFILE_LIKELIHOOD, Content, ScaleFactors
from selfcal.report.style import percent
from selfcal.report.tables import Cell, Table, number

SHOWN_WORKING_POINT = 0.77
"""Figures show the working point nearest to it."""


class EfficiencyRow(Content):
    """Passing jets in one bin of one variable: counted, and expected by network and grid."""

    region: str
    held_out: bool
    flavour: str
    working_point: float
    variable: str
    low: float
    high: float | None
    jets: float
    passing: float
    network: float
    network_uncertainty: float
    network_error: float
    grid: float


class EfficiencyChi2(Content):
    region: str
    held_out: bool
    flavour: str
    working_point: float
    variable: str
    ndf: int
    network_chi2: float
    network_p_value: float
    grid_chi2: float
    grid_p_value: float


class EfficiencyClosure(Content):
    simulation: str
    flavours: list[str]
    working_points: list[float]
    bags: int
    rows: list[EfficiencyRow]
    chi2: list[EfficiencyChi2]

    @property
    def shown(self) -> float:
        """The working point of figure and table."""
        return min(self.working_points, key=lambda point: abs(point - SHOWN_WORKING_POINT))


class ProfileInput(Content):
    row: int
    best_fit: float
    uncertainty: float


class ProfileAccuracy(Content):
    rise_max: float
    points: int
    beyond: int
    unreached: int
    mean: float
    largest: float
    parabola_mean: float
    parabola_largest: float
    root_mean: float
    root_largest: float


class JudgedPoints(Content):
    exact: list[float]
    network: list[float]
    parabola: list[float]


class ProfileLikelihood(Content):
    inputs: list[ProfileInput]
    level: float
    points: int
    accuracy: ProfileAccuracy
    judged: JudgedPoints


def efficiency_chi2_table(closure: EfficiencyClosure) -> Table:
    """χ² of network and two-dimensional map at the working point shown."""
    columns = ("flavour", "region", "held out", "in bins of", "ndf", "χ² network", "p", "χ² grid", "p grid")
    names = {"pt_gev": "pT", "abs_eta": "|η|", "delta_r": "ΔR to the nearest jet"}
    rows = [
        (
            Cell(row.flavour),
            Cell(row.region),
            Cell("held out" if row.held_out else "same processes"),
            Cell(names.get(row.variable, row.variable)),
            Cell(str(row.ndf), row.ndf),
            number(row.network_chi2, 1, style="strong"),
            number(row.network_p_value),
            number(row.grid_chi2, 1),
            number(row.grid_p_value),
        )
        for row in closure.chi2
        if row.working_point == closure.shown
    ]
    caption = (
        f"Counted against expected passing jets at the {percent(closure.shown)} working point, of events "
        "that taught neither: the graph network, and a map in pT and |η| of the same events."
    )
    return Table("table_efficiency_closure", columns, tuple(rows), caption, (EFFICIENCY_CLOSURE,))


def by_distance(closure: EfficiencyClosure, flavour: str) -> list[dict[str, float]]:
    """Per bin of ΔR, over all regions that taught: jets, and efficiencies with errors."""
    chosen = [
        row
        for row in closure.rows
        if row.flavour == flavour
        and row.working_point == closure.shown
        and row.variable == "delta_r"
        and not row.held_out
    ]
    found = []
    for low in sorted({row.low for row in chosen}):
        rows = [row for row in chosen if row.low == low]
        jets = sum(row.jets for row in rows)
        found.append(
            {
                "low": low,
                "jets": jets,
                "counted": sum(row.passing for row in rows) / jets,
                "network": sum(row.network for row in rows) / jets,
                "grid": sum(row.grid for row in rows) / jets,
                # Regions share the networks: their uncertainties add up linearly.
                "band": sum(row.network_uncertainty for row in rows) / jets,
                "error": hypot(*(row.network_error for row in rows)) / jets,
            }
        )
    return found


def profile_tables(profile: ProfileLikelihood, scale_factors: ScaleFactors) -> Iterable[Table]:
    """What goes into the network, and how far it is from the exact profile."""
    inputs = []
    for entry in profile.inputs:
        row = scale_factors.rows[entry.row]
        point = row.working_point or 0.0
        pt, eta = (f"{low:g}–{high:g}" for low, high in (row.pt_gev, row.abs_eta))
        cells = (Cell(row.flavour), Cell(percent(point), point), Cell(pt), Cell(eta))
        inputs.append((*cells, number(entry.best_fit), number(entry.uncertainty)))
    yield Table(
        "table_profile_inputs",
        ("flavour", "WP", "pT [GeV]", "|η|", "best fit", "±"),
        tuple(inputs),
        "Scale factors whose profile likelihood is exported (onnx/profile_likelihood.onnx), in its order.",
        (PROFILE_LIKELIHOOD,),
    )
    found = profile.accuracy
    rows = (
        ("−2 ln λ, network", found.mean, found.largest),
        ("−2 ln λ, parabola in the logarithms", found.parabola_mean, found.parabola_largest),
        ("√(−2 ln λ) in σ, network", found.root_mean, found.root_largest),
    )
    yield Table(
        "table_profile_accuracy",
        ("absolute error of", "mean", "largest"),
        tuple((Cell(name), number(mean), number(largest)) for name, mean, largest in rows),
        f"Errors on {found.points} points that the network has not seen, with an exact −2 ln λ up to "
        f"{found.rise_max:.1f}, which holds {percent(profile.level)} of the probability; learnt from "
        f"{profile.points} points. {found.beyond} points lie above, {found.unreached} did not converge.",
        (PROFILE_LIKELIHOOD,),
    )
