"""``onnx/profile_likelihood.onnx``: −2 ln λ of chosen scale factors, for fits that take it as a constraint.

Input ``scale_factors`` (points, K) in the order of the metadata's ``inputs``; output ``minus_two_ln_lambda``
(points,), zero at the best fit. Everything is float64. Unlike best fit and covariance it holds the skewness,
and unlike the workspace it needs no minimiser. Metadata: names, working points, bins, units, best fit,
covariance, where it holds, and its errors on fresh points.
"""

from __future__ import annotations

from pathlib import Path

import torch

from selfcal.export.contract import Exported
from selfcal.export.onnx_graph import onnx_installed, write_onnx
from selfcal.export.rows import ScaleFactorRows
from selfcal.likelihood.neural_profile import load_profile
from selfcal.likelihood.profile_stage import NETWORK_NAME, TABLE_NAME
from selfcal.run.atomic import read_json

FORMAT = "profile_likelihood"


def export_profile(folder: Path, factors: ScaleFactorRows) -> Exported:
    """Write the network of the ``profile`` stage.

    Raises
    ------
    DataError
        If a file of the stage is missing or damaged.
    """
    if not onnx_installed():
        return Exported(FORMAT, (), skipped="the extra is not installed: pip install 'selfcal[onnx]'")
    network, table = load_profile(folder / NETWORK_NAME), read_json(folder / TABLE_NAME)
    rows = [factors.rows[entry["row"]] for entry in table["inputs"]]
    metadata = {
        "note": factors.note,
        "tagger": factors.tagger,
        "inputs": {
            "scale_factors": "(points, K): efficiency in data over that in simulation, no unit, above zero"
        },
        "outputs": {"minus_two_ln_lambda": "(points,): twice the rise of −ln L, all else profiled"},
        "scale_factors": [
            {
                "name": factors.label(row),
                "flavour": row["flavour"],
                "working_point": row["working_point"],
                "pt_gev": row["pt_gev"],
                "abs_eta": row["abs_eta"],
                "best_fit": entry["best_fit"],
                "uncertainty": entry["uncertainty"],
            }
            for entry, row in zip(table["inputs"], rows, strict=True)
        ],
        "covariance": table["covariance"],
        "log_covariance": table["log_covariance"],
        "level": table["level"],
        "accuracy": table["accuracy"],
    }
    best = torch.tensor([entry["best_fit"] for entry in table["inputs"]], dtype=torch.float64)
    path = write_onnx(
        folder / "onnx" / "profile_likelihood.onnx",
        network,
        {"scale_factors": torch.stack([best, 1.1 * best])},
        {"scale_factors": {0: "points"}},
        ["minus_two_ln_lambda"],
        metadata,
    )
    return Exported(FORMAT, (path,))
