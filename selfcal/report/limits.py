"""What the control regions do not tell: directions left open, jets beyond them, regions that may differ."""

from __future__ import annotations

from selfcal.report.inputs import IDENTIFIABILITY, REGION_DEPENDENCE, SUPPORT, Content
from selfcal.report.tables import Cell, Table, number, significance_style

PARAMETERS_NAMED = 8
BEYOND_SIGMA = 3.0
"""A number of jets beyond the support is marked if it exceeds the expected one by this many √(1 + n)."""


class Direction(Content):
    names: list[str]
    eigenvalue: float | None = None
    posterior_over_prior_width: float | None = None


class MapIdentifiability(Content):
    condition_number: float
    undetermined_flavours: list[str] = []
    null_directions: list[Direction] = []
    prior_dominated_directions: list[Direction] = []


class SupportRow(Content):
    region: str
    control: bool
    flavour: str
    jets: int
    beyond: int


class Support(Content):
    expected_share: float
    rows: list[SupportRow]


class RegionShift(Content):
    """By how much one flavour of one region moves more than the map says, per coordinate."""

    region: str
    flavour: str
    shift: list[float]
    uncertainty: list[float]


class RegionDependence(Content):
    scale: dict[str, float]
    prior_width: float
    likelihood_ratio: float
    p_value: float
    rows: list[RegionShift]


def direction_table(found: MapIdentifiability) -> Table:
    """Directions of fractions and maps that the data leave open, by name."""
    columns = ("kind", "parameters that move", "eigenvalue", "posterior/prior width")
    rows = []
    for kind, directions in (
        ("null: no data determine it", found.null_directions),
        ("prior-dominated", found.prior_dominated_directions),
    ):
        for direction in directions:
            shown = ", ".join(direction.names[:PARAMETERS_NAMED])
            more = len(direction.names) - PARAMETERS_NAMED
            rows.append(
                (
                    Cell(kind),
                    Cell(shown + (f" and {more} more" if more > 0 else ""), style="wide"),
                    number(direction.eigenvalue, 12),
                    number(direction.posterior_over_prior_width, 2),
                )
            )
    rows += [
        (Cell("undetermined flavour"), Cell(flavour), number(None), number(None))
        for flavour in found.undetermined_flavours
    ]
    verdict = "none" if not rows else f"{len(rows)}"
    caption = (
        f"Directions of flavour fractions and maps that the control regions leave open: {verdict}. Condition "
        f"number of the information: {found.condition_number:.3g}."
    )
    return Table("table_identifiability_map", columns, tuple(rows), caption, (IDENTIFIABILITY,))


def support_table(support: Support) -> Table:
    """Jets whose scores lie where the control regions have none, per region and flavour."""
    columns = ("region", "role", "flavour", "jets", "beyond the support", "expected", "share [%]")
    rows = []
    for row in support.rows:
        if not row.jets:
            continue
        expected = support.expected_share * row.jets
        many = row.beyond - expected > BEYOND_SIGMA * (1 + expected) ** 0.5
        rows.append(
            (
                Cell(row.region),
                Cell("control" if row.control else "held out"),
                Cell(row.flavour),
                Cell(str(row.jets), row.jets),
                Cell(str(row.beyond), row.beyond, "sigma3" if many else ""),
                number(expected, 1),
                number(100 * row.beyond / row.jets, 2),
            )
        )
    caption = (
        "Jets beyond the support of the control regions: for them the map extrapolates. Marked where they "
        "are more than expected by three standard deviations."
    )
    return Table("table_support", columns, tuple(rows), caption, (SUPPORT,), folded=True)


def region_table(found: RegionDependence) -> Table:
    """The largest shift of every flavour and region, beside what may be expected of any region."""
    columns = ("flavour", "expected of a region", "region", "largest shift", "± shift", "significance [σ]")
    rows = []
    for row in found.rows:
        pulls = [s / u if u > 0 else 0.0 for s, u in zip(row.shift, row.uncertainty, strict=True)]
        place = max(range(len(pulls)), key=lambda axis: abs(pulls[axis]))
        rows.append(
            (
                Cell(row.flavour),
                number(found.scale[row.flavour]),
                Cell(row.region),
                number(row.shift[place]),
                number(row.uncertainty[place]),
                number(pulls[place], 1, significance_style(abs(pulls[place]))),
            )
        )
    caption = (
        "How much jets of one flavour move more in one region than the map says (standard deviations of the "
        "scores; the coordinate with the largest significance), and the standard deviation to expect of any "
        "other region, which the uncertainty of held-out regions contains. That no flavour depends on the "
        f"region has p = {found.p_value:.2g}."
    )
    return Table("table_region_dependence", columns, tuple(rows), caption, (REGION_DEPENDENCE,), folded=True)
