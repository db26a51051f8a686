"""The export stage: the results in other programs' formats, and a manifest of everything in the folder.

``workspace.json`` is already what pyhf and cabinetry open; it is listed in the manifest as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from selfcal.export.cdi import export_cdi
from selfcal.export.combine import export_combine
from selfcal.export.contract import Exported, Results
from selfcal.export.correctionlib_export import export_correctionlib
from selfcal.export.efficiency_hepdata import export_efficiency_hepdata
from selfcal.export.efficiency_map import export_efficiencies
from selfcal.export.hepdata import export_hepdata
from selfcal.export.onnx_export import export_onnx
from selfcal.export.profile_likelihood import export_profile
from selfcal.export.rows import load_scale_factors
from selfcal.export.simulations import read_simulation_rows
from selfcal.export.table import export_table
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.run.digests import file_sha256

MANIFEST = "manifest.json"

EXPORTERS: tuple[Callable[[Results], Exported], ...] = (
    export_correctionlib,
    export_table,
    export_hepdata,
    export_combine,
    export_cdi,
)


def run_export(context: RunContext) -> list[Path]:
    """Write every format into the results folder, and ``manifest.json``.

    Raises
    ------
    DataError
        If ``scale_factors.json`` or ``workspace.json`` is missing or incomplete.
    ConfigError
        If the configuration names a group of uncertainty that does not exist.
    """
    folder = context.directory.results
    results = Results(
        folder,
        load_scale_factors(folder / "scale_factors.json"),
        read_json(folder / "workspace.json"),
        context.config.export,
        read_simulation_rows(folder),
    )
    done = [export(results) for export in EXPORTERS]
    done.append(export_onnx(folder, context.directory.checkpoints / "tagger_final"))
    if context.config.efficiency_map.enabled:
        done.append(export_efficiencies(folder, context.config.export.jet_collection))
        done.append(export_efficiency_hepdata(folder))
    if context.config.neural_profile.enabled:
        done.append(export_profile(folder, results.factors))
    for exported in done:
        if exported.skipped:
            context.say(f"export: no {exported.format}: {exported.skipped}")
        elif exported.not_expressed:
            context.say(
                f"export: {exported.format} leaves out {len(exported.not_expressed)} things, named in "
                f"{MANIFEST}"
            )
    marks = {"blinded": results.factors.blinded, "forced": results.factors.forced}
    write_json(folder / MANIFEST, {**manifest(folder, done), **marks})
    return [*(path for exported in done for path in exported.files), folder / MANIFEST]


def manifest(folder: Path, done: Iterable[Exported]) -> dict[str, object]:
    """What was written, skipped and left out, with size and SHA-256 of every file below ``folder``.

    The manifest itself and hidden files are left out.
    """
    done = list(done)
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and name.as_posix() != MANIFEST and not hidden:
            files[name.as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return {
        "schema_version": 2,
        "formats": {
            exported.format: [path.relative_to(folder).as_posix() for path in exported.files]
            for exported in done
            if not exported.skipped
        },
        "skipped": {exported.format: exported.skipped for exported in done if exported.skipped},
        "not_expressed": {e.format: list(e.not_expressed) for e in done if e.not_expressed},
        "files": files,
    }
