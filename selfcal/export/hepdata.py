"""``hepdata/``: a submission to HEPData, written with hepdata_lib and checked with hepdata-validator.

Per flavour a table of working-point and one of pseudo-continuous scale factors, each with the uncertainty of
the data (``stat``), of every systematic group (``sys,<group>``), the total and the status; and per pair of
flavours the covariance between all their rows, named as in the column "Row". Where alternative simulations
were given, one table more per simulation, and one of what lies beyond the last pT bin. ``hepdata.tar.gz``
beside the folder holds the same files for the upload. Numbers have 12 significant digits.

A row that was not measured has ``-`` for its numbers and the status ``unmeasured``. The submission needs the
extra ``hepdata``; without it this format is skipped, and a submission of earlier numbers is removed.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import shutil
import tarfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfcal.errors import DataError
from selfcal.export.contract import Exported, Results
from selfcal.export.rows import STATISTICS, Row, ScaleFactorRows, working_point_name
from selfcal.export.simulations import OF_GENERATORS, OF_HIGH_PT, SimulationRows
from selfcal.run.atomic import atomic_folder, atomic_path

DIGITS = 12
UNKNOWN = "-"
"""What HEPData shows where there is no number."""
KEYWORDS = {"phrases": ["flavour tagging", "calibration", "scale factors"], "observables": ["scale factor"]}


def export_hepdata(results: Results) -> Exported:
    """Write ``hepdata/``, or say why not.

    Raises
    ------
    DataError
        If hepdata-validator refuses the submission.
    """
    comment = (
        f"{results.factors.note}Flavour-tagging scale factors (data over simulation) of "
        f"{results.factors.tagger}, with every group of uncertainty and the covariance of all of them."
    )

    def tables() -> list[Any]:
        own = [*_scale_factors(results.factors), *_covariances(results.factors)]
        return [*own, *_simulations(results.simulations, results.factors.note)]

    return write_submission("hepdata", results.folder, comment, tables)


def write_submission(name: str, results: Path, comment: str, tables: Callable[[], Sequence[Any]]) -> Exported:
    """Write the folder ``name`` of ``results`` and its archive, or say why not.

    Raises
    ------
    DataError
        If hepdata-validator refuses the submission.
    """
    folder, archive = results / name, results / f"{name}.tar.gz"
    with warnings.catch_warnings():
        # hepdata-validator 0.3 uses a class that jsonschema has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        # It also leaves the files it reads to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            import hepdata_lib
            from hepdata_validator.full_submission_validator import FullSubmissionValidator
        except ImportError as error:
            shutil.rmtree(folder, ignore_errors=True)
            archive.unlink(missing_ok=True)
            reason = f"{error.name} is not installed; pip install 'selfcal[hepdata]' and export again"
            return Exported(name, (), skipped=reason)
        submission = hepdata_lib.Submission()
        submission.comment = comment
        for table in tables():
            submission.add_table(table)
        with atomic_folder(folder) as temporary:
            # hepdata_lib leaves its archive in the current directory.
            with contextlib.chdir(temporary):
                submission.create_files(".", validate=False)
            (temporary / "submission.tar.gz").unlink()
            validator = FullSubmissionValidator()
            if not validator.validate(directory=str(temporary)):
                found = "; ".join(
                    f"{Path(file).name}: {message.message}"
                    for file, messages in validator.get_messages().items()
                    for message in messages
                )
                raise DataError(f"hepdata-validator refuses the submission: {found}", where=str(folder))
    _write_archive(folder, archive)
    return Exported(name, (*sorted(folder.iterdir()), archive))


def _scale_factors(factors: ScaleFactorRows) -> list[Any]:
    """Two tables per flavour."""
    tables = []
    for flavour, kind in itertools.product(factors.flavours, ("working_point", "continuous")):
        rows = [row for row in factors.rows if (row["flavour"], row["kind"]) == (flavour, kind)]
        selected = "at the working points" if kind == "working_point" else "in bins of the discriminant"
        table = new_table(
            f"Scale factors {flavour} {kind.replace('_', ' ')}",
            f"{factors.note}Efficiency of {flavour} jets {selected}, data over simulation. "
            f"'{UNKNOWN}': not measured.",
        )
        for column in [*_places(factors, rows), *_numbers(factors, rows)]:
            table.add_variable(column)
        tables.append(table)
    return tables


def _places(factors: ScaleFactorRows, rows: Sequence[Row]) -> list[Any]:
    where = kinematics(rows)
    if rows[0]["kind"] == "working_point":
        thresholds = dict(zip(factors.working_points, factors.discriminant_edges, strict=True))
        points = [row["working_point"] for row in rows]
        where += [
            variable("Working point", [working_point_name(point) for point in points], units="%"),
            variable("Discriminant above", [thresholds[point] for point in points]),
        ]
    else:
        edges = ("-inf", *(f"{edge:.6g}" for edge in factors.discriminant_edges), "inf")
        where += [
            variable("Bin", [row["bin"] for row in rows]),
            variable("Discriminant", [f"{edges[row['bin']]} to {edges[row['bin'] + 1]}" for row in rows]),
        ]
    return [*where, variable("Row", [factors.label(row) for row in rows])]


def _numbers(factors: ScaleFactorRows, rows: Sequence[Row]) -> list[Any]:
    from hepdata_lib import Uncertainty

    value = variable("Scale factor", [or_unknown(row["value"]) for row in rows], dependent=True)
    sizes = [None if row["value"] is None else factors.uncertainties(row) for row in rows]
    for group in (STATISTICS, *factors.groups):
        uncertainty = Uncertainty("stat" if group == STATISTICS else f"sys,{group}")
        uncertainty.values = [None if size is None else size[group] for size in sizes]
        value.add_uncertainty(uncertainty)
    total = variable("Total uncertainty", [or_unknown(row["total"]) for row in rows], dependent=True)
    return [value, total, variable("Status", [row["status"] for row in rows], dependent=True)]


def _covariances(factors: ScaleFactorRows) -> list[Any]:
    """One table per pair of flavours; the matrix is symmetric."""
    tables = []
    flavours = np.array([factors.rows[i]["flavour"] for i in factors.measured])
    labels = [factors.label(factors.rows[i]) for i in factors.measured]
    for first, second in itertools.combinations_with_replacement(factors.flavours, 2):
        places = list(itertools.product(np.nonzero(flavours == first)[0], np.nonzero(flavours == second)[0]))
        if not places:
            continue
        table = new_table(
            f"Covariance {first} {second}",
            f"Total covariance of the scale factors of {first} and {second} jets.",
        )
        table.add_variable(variable("Row", [labels[i] for i, _ in places]))
        table.add_variable(variable("Column", [labels[j] for _, j in places]))
        values = [float(factors.covariance[i, j]) for i, j in places]
        table.add_variable(variable("Covariance", values, dependent=True))
        tables.append(table)
    return tables


def _simulations(simulations: SimulationRows, note: str) -> list[Any]:
    """One table per other simulation, and one of what lies beyond the last pT bin."""
    from hepdata_lib import Uncertainty

    tables = []
    for name in simulations.variations:
        rows = [row for row in simulations.generators if row["variation"] == name]
        table = new_table(f"Simulation {name}", f"{OF_GENERATORS}: {name}.")
        factor = variable("Factor", [float(row["value"]) for row in rows], dependent=True)
        uncertainty = Uncertainty("stat")
        uncertainty.values = [float(row["stat"]) for row in rows]
        factor.add_uncertainty(uncertainty)
        for column in [*kinematics(rows), *_selected(rows), factor]:
            table.add_variable(column)
        tables.append(table)
    if rows := list(simulations.high_pt):
        table = new_table("Scale factors at high pT", f"{note}{OF_HIGH_PT}. '{UNKNOWN}': nothing known.")
        value = variable("Scale factor", [or_unknown(row["value"]) for row in rows], dependent=True)
        for part in simulations.parts:
            uncertainty = Uncertainty(f"sys,{part}")
            uncertainty.values = [row["syst"].get(part) for row in rows]
            value.add_uncertainty(uncertainty)
        total = variable("Total uncertainty", [or_unknown(row["total"]) for row in rows], dependent=True)
        status = variable("Status", [row["status"] for row in rows], dependent=True)
        for column in [*kinematics(rows), *_selected(rows), value, total, status]:
            table.add_variable(column)
        tables.append(table)
    return tables


def kinematics(rows: Sequence[Row]) -> list[Any]:
    """Columns of the bins of pT and |eta|."""
    return [
        variable("pT", [tuple(row["pt_gev"]) for row in rows], units="GeV", binned=True),
        variable("|eta|", [tuple(row["abs_eta"]) for row in rows], binned=True),
    ]


def _selected(rows: Sequence[Row]) -> list[Any]:
    points = [working_point_name(row["working_point"]) for row in rows]
    return [
        variable("Flavour", [row["flavour"] for row in rows]),
        variable("Working point", points, units="%"),
    ]


def new_table(name: str, description: str) -> Any:
    """A table of hepdata_lib."""
    from hepdata_lib import Table

    table = Table(name)
    table.description = description
    table.location = "Results of the calibration"
    table.keywords = KEYWORDS
    return table


def variable(
    name: str, values: Sequence[Any], *, units: str = "", binned: bool = False, dependent: bool = False
) -> Any:
    """A column: of a place, or ``dependent`` on it; ``binned`` values are pairs of edges."""
    from hepdata_lib import Variable

    column = Variable(
        name,
        is_independent=not dependent,
        is_binned=binned,
        units=units,
        values=list(values),
        zero_uncertainties_warning=False,
    )
    column.digits = DIGITS
    return column


def or_unknown(value: float | None) -> float | str:
    """The number, or what HEPData shows where there is none."""
    return UNKNOWN if value is None else float(value)


def _write_archive(folder: Path, final: Path) -> None:
    """The upload, the same bytes for the same tables: no times and no owners."""
    with (
        atomic_path(final) as temporary,
        open(temporary, "wb") as handle,
        gzip.GzipFile("", "wb", fileobj=handle, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for file in sorted(folder.iterdir()):
            entry = tarfile.TarInfo(file.name)
            entry.size = file.stat().st_size
            with open(file, "rb") as content:
                archive.addfile(entry, content)
