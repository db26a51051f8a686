"""``onnx/tagger.onnx`` and ``onnx/calibrator.onnx``: what another program needs to use a run without us."""

from __future__ import annotations

from pathlib import Path

from selfcal.errors import ConfigError
from selfcal.export.contract import Exported
from selfcal.export.onnx_calibrator import write_calibrator
from selfcal.export.onnx_graph import onnx_installed
from selfcal.export.onnx_tagger import write_tagger
from selfcal.run.atomic import read_json
from selfcal.tagger.bundle import DESCRIPTION_NAME, load_bundle
from selfcal.transport import calibration

FORMAT = "onnx"
REPLICAS_LEFT_OUT = "the bootstrap replicas of the map: they are in map/map.safetensors"


def export_onnx(results: Path, tagger: Path) -> Exported:
    """Write the final tagger and the nominal map, each where the run has one.

    Parameters
    ----------
    results : the run's results folder, with ``map/`` and ``tagger_metrics.json``
    tagger : folder of the tagger bundle; absent where the scores come from files
    """
    if not onnx_installed():
        return Exported(FORMAT, (), skipped="the extra is not installed: pip install 'selfcal[onnx]'")
    files: list[Path] = []
    missing: list[str] = []
    if (tagger / DESCRIPTION_NAME).exists():
        try:
            metrics = read_json(results / "tagger_metrics.json")
            path = results / "onnx" / "tagger.onnx"
            files.append(write_tagger(load_bundle(tagger), path, metrics["working_points"]))
        except ConfigError as error:
            missing.append(f"the tagger: {error}")
    if (results / "map" / calibration.DESCRIPTION_NAME).exists():
        found = calibration.load_calibration(results / "map")
        try:
            files.append(write_calibrator(found, results / "onnx" / "calibrator.onnx"))
            missing.append(REPLICAS_LEFT_OUT)
        except ConfigError as error:
            missing.append(f"the calibration map: {error}")
    if not files:
        return Exported(FORMAT, (), skipped="the run has no tagger of its own and no calibration map")
    return Exported(FORMAT, tuple(files), not_expressed=tuple(missing))
