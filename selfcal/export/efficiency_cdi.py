"""``efficiency_map.root``: the efficiencies in the layout of ATLAS calibration data files (CDI-like).

::

    <tagger>/<jet collection>/FixedCutBEff_<efficiency>/cutvalue              threshold (one bin)
    <tagger>/<jet collection>/FixedCutBEff_<efficiency>/<flavour>/default_Eff/...   axes pt [GeV], abseta

with ``result`` (its errors the spread of the bags), ``counted`` (its errors binomial) and ``jets`` in every
``default_Eff``. Bins without simulated jets are NaN, and 0 in ``jets``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from selfcal.export.cdi import AXES, FOLDER_OF_FLAVOUR
from selfcal.export.root_histograms import root_histogram
from selfcal.export.rows import working_point_name
from selfcal.run.atomic import atomic_path


def write_efficiency_cdi(table: Mapping[str, Any], jet_collection: str, path: Path) -> Path:
    """Write all flavours and working points of the stage's table."""
    edges = [np.array(table["pt_gev_edges"]), np.array(table["abs_eta_edges"])]
    with atomic_path(path) as temporary, uproot.recreate(temporary) as file:
        for point, threshold in zip(table["working_points"], table["discriminant_edges"], strict=True):
            place = f"{table['tagger']}/{jet_collection}/FixedCutBEff_{working_point_name(point)}"
            file.mkdir(place)["cutvalue"] = root_histogram("cutvalue", np.array([threshold]), [[0.0, 1.0]])
            for flavour in table["flavours"]:
                directory = file.mkdir(f"{place}/{FOLDER_OF_FLAVOUR[flavour]}/default_Eff")
                for name, error in (("value", "uncertainty"), ("counted", "counted_error"), ("jets", None)):
                    values = _grid(table, flavour, point, name)
                    variances = None if error is None else _grid(table, flavour, point, error) ** 2
                    title = "result" if name == "value" else name
                    directory[title] = root_histogram(
                        title, values, edges, variances=variances, axis_titles=AXES[:2]
                    )
    return path


def _grid(table: Mapping[str, Any], flavour: str, point: float, name: str) -> NDArray[np.float64]:
    """One number of every bin, (P, E); NaN where there is none."""
    places = {
        (row["pt_gev"][0], row["abs_eta"][0]): row[name]
        for row in table["rows"]
        if row["flavour"] == flavour and row["working_point"] == point
    }
    found = [[places[pt, eta] for eta in table["abs_eta_edges"][:-1]] for pt in table["pt_gev_edges"][:-1]]
    return np.array(found, dtype=np.float64)
