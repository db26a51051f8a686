"""``hepdata_efficiency_map/``: the efficiencies of the ``efficiencies`` stage as a submission to HEPData.

One table per flavour: the network's mean over the simulated jets of each bin with the spread of the bags,
beside the efficiency by counting with its binomial error. Bins without simulated jets have ``-``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcal.efficiency.stage import TABLE_NAME
from selfcal.export.contract import Exported
from selfcal.export.hepdata import kinematics, new_table, or_unknown, variable, write_submission
from selfcal.export.rows import working_point_name
from selfcal.run.atomic import read_json

FORMAT = "hepdata_efficiency_map"


def export_efficiency_hepdata(results: Path) -> Exported:
    """Write ``hepdata_efficiency_map/`` and its archive, or say why not.

    Raises
    ------
    DataError
        If the stage's table is missing or damaged, or hepdata-validator refuses the submission.
    """
    table = read_json(results / TABLE_NAME)
    comment = f"Tagging efficiencies of {table['tagger']} in {table['simulation']} simulation."
    return write_submission(FORMAT, results, comment, lambda: efficiency_tables(table))


def efficiency_tables(table: Mapping[str, Any]) -> list[Any]:
    """One per flavour."""
    found = []
    for flavour in table["flavours"]:
        rows = [row for row in table["rows"] if row["flavour"] == flavour]
        made = new_table(
            f"Efficiency {flavour}",
            f"Part of the simulated {flavour} jets that passes each working point. '-': no simulated jets.",
        )
        points = [working_point_name(row["working_point"]) for row in rows]
        place = [*kinematics(rows), variable("Working point", points, units="%")]
        columns = (
            _with_error("Efficiency", "sys,bags", rows, "value", "uncertainty"),
            _with_error("Efficiency by counting", "stat", rows, "counted", "counted_error"),
            variable("Jets", [row["jets"] for row in rows], dependent=True),
        )
        for column in (*place, *columns):
            made.add_variable(column)
        found.append(made)
    return found


def _with_error(name: str, label: str, rows: Sequence[Mapping[str, Any]], value: str, error: str) -> Any:
    from hepdata_lib import Uncertainty

    column = variable(name, [or_unknown(row[value]) for row in rows], dependent=True)
    uncertainty = Uncertainty(label)
    uncertainty.values = [row[error] for row in rows]
    column.add_uncertainty(uncertainty)
    return column
