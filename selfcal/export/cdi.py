"""``cdi/scale_factors.root``: histograms in the layout of ATLAS calibration data files (CDI-like).

::

    <tagger>/<jet collection>/FixedCutBEff_<efficiency>/cutvalue            threshold (one bin)
    <tagger>/<jet collection>/FixedCutBEff_<efficiency>/<flavour>/default_SF/...   axes pt, abseta
    <tagger>/<jet collection>/Continuous/<flavour>/default_SF/...           axes pt, abseta, tag bin
    <tagger>/<jet collection>/covariance/<group>, total, rows

with <flavour> B, C, Light or T, and in every ``default_SF``

``result``       scale factor, its errors those of the data's statistics; the title says if it is blinded
``statistics``, ``systematics``, ``<group>``   one standard deviation, absolute
``status``       1 measured, 2 extrapolated, 3 external, 0 not measured
``covariance``   total, over the cells of ``result``, the first axis running fastest

Tag bins are counted from 0; bin k lies between the thresholds of ``cutvalue``. The matrices below
``covariance`` are between all measured rows of all flavours; the tree ``rows`` says which row is which
(``flavour`` 5, 4, 0, 15; ``working_point`` NaN and ``bin`` ≥ 0, or ``bin`` −1).

A cell that was not measured is NaN in every histogram and 0 in ``status``: a product with it is NaN, not a
jet without correction. ATLAS' own files hold ``CalibrationDataHistogramContainer`` objects where this file
has directories; pT is in GeV.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOUR_TO_CONE_LABEL, FLAVOURS
from selfcal.export.contract import Exported, Results
from selfcal.export.root_histograms import Edges, root_histogram
from selfcal.export.rows import STATISTICS, Place, Row, ScaleFactorRows, working_point_name
from selfcal.run.atomic import atomic_folder

FILE = "scale_factors.root"
FOLDER_OF_FLAVOUR = {"b": "B", "c": "C", "light": "Light", "tau": "T"}
STATUS = {"unmeasured": 0.0, "measured": 1.0, "extrapolated": 2.0, "external": 3.0}
AXES = ("pt [GeV]", "abseta", "tag bin")

Cells = NDArray[np.int64]
"""Index of the row in every cell of a histogram."""


def export_cdi(results: Results) -> Exported:
    """Write ``cdi/scale_factors.root``."""
    factors = results.factors
    folder = results.folder / "cdi"
    with atomic_folder(folder) as temporary, uproot.recreate(temporary / FILE) as file:
        top = f"{factors.tagger}/{results.config.jet_collection}"
        for point, threshold in zip(factors.working_points, factors.discriminant_edges, strict=True):
            place = f"{top}/FixedCutBEff_{working_point_name(point)}"
            _write(file.mkdir(place), root_histogram("cutvalue", np.array([threshold]), [[0.0, 1.0]]))
            for flavour in factors.flavours:
                directory = file.mkdir(f"{place}/{FOLDER_OF_FLAVOUR[flavour]}/default_SF")
                _write(directory, *_scale_factors(factors, _cells(factors, flavour, point)))
        for flavour in factors.flavours:
            directory = file.mkdir(f"{top}/Continuous/{FOLDER_OF_FLAVOUR[flavour]}/default_SF")
            _write(directory, *_scale_factors(factors, _cells(factors, flavour, None)))
        _write_covariance(file.mkdir(f"{top}/covariance"), factors)
    return Exported("cdi", (folder / FILE,), not_expressed=results.simulations.left_out())


def _cells(factors: ScaleFactorRows, flavour: str, working_point: float | None) -> Cells:
    """(P, E) rows of a working point, or (P, E, K) of the bins."""
    if working_point is not None:
        size: tuple[int, ...] = (factors.n_pt, factors.n_eta)
        places = [Place(flavour, p, e, working_point=working_point) for p, e in np.ndindex(size)]
    else:
        size = (factors.n_pt, factors.n_eta, factors.n_bins)
        places = [Place(flavour, p, e, bin=k) for p, e, k in np.ndindex(size)]
    return np.array([factors.index(place) for place in places]).reshape(size)


def _scale_factors(factors: ScaleFactorRows, cells: Cells) -> list[Any]:
    """All histograms of one flavour at one working point, or of its bins."""
    every: list[Edges] = [factors.pt_gev_edges, factors.abs_eta_edges, np.arange(factors.n_bins + 1.0)]
    edges = every[: cells.ndim]

    def filled(quantity: Callable[[Row], float]) -> NDArray[np.float64]:
        rows = [factors.rows[i] for i in cells.ravel()]
        values = [np.nan if row["value"] is None else quantity(row) for row in rows]
        return np.array(values).reshape(cells.shape)

    def of_group(group: str) -> NDArray[np.float64]:
        return filled(lambda row: factors.uncertainties(row)[group])

    def systematic(row: Row) -> float:
        return float(np.sqrt(sum(sigma**2 for sigma in row["syst"].values())))

    statistics = of_group(STATISTICS)
    content = {STATISTICS: statistics, "systematics": filled(systematic)}
    content |= {group: of_group(group) for group in factors.groups}
    status = np.array([STATUS[factors.rows[i]["status"]] for i in cells.ravel()]).reshape(cells.shape)
    result = filled(lambda row: float(row["value"]))
    return [
        root_histogram(
            "result", result, edges, variances=statistics**2, title=factors.note, axis_titles=AXES
        ),
        *(root_histogram(name, values, edges, axis_titles=AXES) for name, values in content.items()),
        root_histogram("status", status, edges, axis_titles=AXES),
        _matrix("covariance", _block(factors, cells)),
    ]


def _block(factors: ScaleFactorRows, cells: Cells) -> NDArray[np.float64]:
    """Covariance between the cells of a histogram, the first axis running fastest."""
    order = {row: i for i, row in enumerate(factors.measured)}
    flat = [order.get(int(row), -1) for row in cells.ravel(order="F")]
    block = np.full((len(flat), len(flat)), np.nan)
    for (i, row), (j, column) in itertools.product(enumerate(flat), repeat=2):
        if row >= 0 and column >= 0:
            block[i, j] = factors.covariance[row, column]
    return block


def _matrix(name: str, values: NDArray[np.float64]) -> Any:
    edges = np.arange(len(values) + 1.0)
    return root_histogram(name, values, [edges, edges])


def _write(directory: Any, *histograms: Any) -> None:
    for histogram in histograms:
        directory[histogram.member("fName")] = histogram


def _write_covariance(directory: Any, factors: ScaleFactorRows) -> None:
    """Every group and the total, and the tree that names the rows."""
    _write(directory, _matrix("total", factors.covariance))
    _write(directory, *(_matrix(name, part) for name, part in factors.group_covariance.items()))
    rows = [factors.rows[i] for i in factors.measured]
    columns = {
        "flavour": [FLAVOUR_TO_CONE_LABEL[FLAVOURS.index(row["flavour"])] for row in rows],
        "bin": [-1 if row["bin"] is None else row["bin"] for row in rows],
    }
    numbers = {
        "working_point": [np.nan if row["working_point"] is None else row["working_point"] for row in rows],
        "pt_low": [row["pt_gev"][0] for row in rows],
        "pt_high": [row["pt_gev"][1] for row in rows],
        "abseta_low": [row["abs_eta"][0] for row in rows],
        "abseta_high": [row["abs_eta"][1] for row in rows],
        "value": [row["value"] for row in rows],
    }
    arrays = {name: np.array(values, dtype=np.int32) for name, values in columns.items()}
    arrays |= {name: np.array(values, dtype=np.float64) for name, values in numbers.items()}
    tree = directory.mktree("rows", {name: array.dtype for name, array in arrays.items()})
    tree.extend(arrays)
