"""``generators.json`` and ``high_pt.json`` as exporters read them: what alternative simulations say.

Neither is a measurement: the first compares two simulations, the second carries the scale factors of the
last measured pT bin beyond it. Formats that can hold them keep them under names of their own, apart from
the scale factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcal.run.atomic import read_json

GENERATORS, HIGH_PT = "generators.json", "high_pt.json"
OF_GENERATORS = "Efficiency in another simulation over that in the nominal one"
OF_HIGH_PT = "Scale factors carried beyond the last measured pT bin (extrapolated, not measured)"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SimulationRows:
    """Rows of both files; none where a run does not write the file.

    Attributes
    ----------
    generators : rows with variation, flavour, working_point, pt_gev, abs_eta, value, stat
    high_pt : rows with flavour, working_point, pt_gev, abs_eta, value, syst, total, status
    """

    generators: tuple[Row, ...] = ()
    high_pt: tuple[Row, ...] = ()

    @property
    def variations(self) -> tuple[str, ...]:
        """Names of the other simulations."""
        return tuple(dict.fromkeys(row["variation"] for row in self.generators))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of the uncertainty beyond the last bin."""
        return tuple(dict.fromkeys(name for row in self.high_pt for name in row["syst"]))

    def left_out(self) -> tuple[str, ...]:
        """What a format that has no place for either leaves out, for the manifest."""
        found = []
        if self.generators:
            found.append(f"{GENERATORS}: factors between simulations are no part of it")
        if self.high_pt:
            found.append(f"{HIGH_PT}: scale factors beyond the last pT bin are no part of it")
        return tuple(found)


def read_simulation_rows(folder: Path) -> SimulationRows:
    """The rows in a results folder."""

    def rows(name: str) -> Iterable[Row]:
        path = folder / name
        return read_json(path)["rows"] if path.exists() else ()

    return SimulationRows(tuple(rows(GENERATORS)), tuple(rows(HIGH_PT)))
