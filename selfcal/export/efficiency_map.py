"""The efficiencies of the ``efficiencies`` stage in the formats that analyses read.

``efficiency_map_correctionlib.json`` holds ``<tagger>_efficiency`` (systematic, working_point, flavor,
abseta, pt): the network's mean over the simulated jets of each bin; ``systematic`` is central, up or down
(the spread of the bags). ``efficiency_map.csv`` and ``efficiency_map.root`` (layout of ``efficiency_cdi.py``)
hold the same with efficiencies by counting. What depends on the neighbours is in
``onnx/efficiency_map.onnx`` alone: ``pt_gev``, ``eta``, ``phi`` and ``flavour`` (events, jets), -1 in slots
without jet, give ``efficiency`` and ``uncertainty`` (events, jets, working points), NaN in these slots.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import correctionlib.schemav2 as schema
import torch

from selfcal.data.flavours import FLAVOURS
from selfcal.efficiency.network import EMPTY
from selfcal.efficiency.prediction import LearntEfficiencies, load_efficiencies
from selfcal.efficiency.stage import FOLDER, TABLE_NAME
from selfcal.export.contract import Exported
from selfcal.export.correctionlib_export import (
    abs_eta_variable,
    binning,
    category,
    cone_label,
    flavour_variable,
    number_or_error,
    pt_variable,
    working_point_variable,
)
from selfcal.export.efficiency_cdi import write_efficiency_cdi
from selfcal.export.onnx_graph import onnx_installed, write_onnx
from selfcal.export.rows import working_point_name
from selfcal.run.atomic import read_json, write_text

FORMAT = "efficiency_map"
HEAD = ("flavour", "working_point", "pt_gev_low", "pt_gev_high", "abs_eta_low", "abs_eta_high")
NUMBERS = ("jets", "value", "uncertainty", "counted", "counted_error")
NEIGHBOURS_LEFT_OUT = "how efficiencies depend on neighbours: all files but ONNX hold means per bin"


def export_efficiencies(results: Path, jet_collection: str) -> Exported:
    """Write correctionlib, CSV, ROOT and, where the extra is installed, ONNX from the stage's files.

    Raises
    ------
    DataError
        If a file of the stage is missing or damaged.
    """
    table = read_json(results / TABLE_NAME)
    files = [results / "efficiency_map_correctionlib.json", results / "efficiency_map.csv"]
    text = efficiency_corrections(table).model_dump_json(exclude_unset=True, indent=1)
    write_text(files[0], text + "\n")
    write_text(files[1], efficiency_table(table))
    files.append(write_efficiency_cdi(table, jet_collection, results / "efficiency_map.root"))
    if onnx_installed():
        learnt = load_efficiencies(results / FOLDER)
        files.append(write_efficiency_onnx(learnt, results / "onnx" / "efficiency_map.onnx"))
    return Exported(FORMAT, tuple(files), not_expressed=(NEIGHBOURS_LEFT_OUT,))


def efficiency_corrections(table: Mapping[str, Any]) -> schema.CorrectionSet:
    """``<tagger>_efficiency``; evaluation is an error out of range and in bins without simulated jets."""
    flavours = tuple(table["flavours"])
    rows = {
        (row["flavour"], row["working_point"], row["pt_gev"][0], row["abs_eta"][0]): row
        for row in table["rows"]
    }

    def leaf(sign: int, flavour: str, point: float, pt: float, eta: float) -> Any:
        row = rows[flavour, point, pt, eta]
        if row["value"] is None:
            return number_or_error(float("nan"))
        return min(max(row["value"] + sign * row["uncertainty"], 0.0), 1.0)

    def bins(sign: int, flavour: str, point: float) -> schema.Binning:
        by_eta = [
            binning(
                "pt",
                table["pt_gev_edges"],
                [leaf(sign, flavour, point, pt, eta) for pt in table["pt_gev_edges"][:-1]],
                "error",
            )
            for eta in table["abs_eta_edges"][:-1]
        ]
        return binning("abseta", table["abs_eta_edges"], by_eta, "error")

    def points(sign: int) -> schema.Category:
        return category(
            "working_point",
            {
                working_point_name(point): category(
                    "flavor", {cone_label(flavour): bins(sign, flavour, point) for flavour in flavours}
                )
                for point in table["working_points"]
            },
        )

    systematic = schema.Variable(name="systematic", type="string", description="central, up or down")
    correction = schema.Correction(
        name=f"{table['tagger']}_efficiency",
        version=1,
        description=f"Mean efficiency of {table['simulation']} simulation; errors out of range",
        inputs=[
            systematic,
            working_point_variable(),
            flavour_variable(flavours),
            abs_eta_variable(),
            pt_variable(),
        ],
        output=schema.Variable(name="efficiency", type="real", description="probability to pass"),
        data=category("systematic", {"central": points(0), "up": points(1), "down": points(-1)}),
    )
    return schema.CorrectionSet(
        schema_version=2,
        description=f"Tagging efficiencies of {table['tagger']} in {table['simulation']} simulation",
        corrections=[correction],
    )


def efficiency_table(table: Mapping[str, Any]) -> str:
    """CSV of all bins; empty cells where there are no simulated jets."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEAD, *NUMBERS])
    for row in table["rows"]:
        cells = [row["flavour"], row["working_point"], *row["pt_gev"], *row["abs_eta"]]
        cells += [row[name] for name in NUMBERS]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def write_efficiency_onnx(learnt: LearntEfficiencies, path: Path) -> Path:
    """Write all bags as one ONNX graph in float32; numbers of events and of jets are free."""
    example = {
        "pt_gev": torch.full((2, 3), 45.0),
        "eta": torch.tensor([[0.1, 0.5, -0.4]]).repeat(2, 1),
        "phi": torch.tensor([[0.3, -0.2, 3.0]]).repeat(2, 1),
        "flavour": torch.tensor([[0, 2, EMPTY]]).repeat(2, 1),
    }
    metadata = {
        "tagger": learnt.tagger,
        "simulation": learnt.simulation,
        "classes": list(FLAVOURS),
        "working_points": list(learnt.working_points),
        "discriminant_edges": list(learnt.discriminant_edges),
        "delta_r_max": learnt.map.shape.delta_r_max,
        "bags": len(learnt.map.bags),
        "inputs": {
            "pt_gev": "GeV; all jets of an event in one row",
            "eta": "",
            "phi": "rad",
            "flavour": f"index of the true class; {EMPTY} in slots without jet",
        },
        "outputs": {
            "efficiency": "probability to pass each of 'working_points'; NaN in slots without jet",
            "uncertainty": "standard deviation over the bags",
        },
    }
    axes = {name: {0: "events", 1: "jets"} for name in example}
    return write_onnx(path, learnt.map, example, axes, ["efficiency", "uncertainty"], metadata)
