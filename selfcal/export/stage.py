"""The export stage: the results in other programs' formats, and a manifest of everything in the folder.

``workspace.json`` is already what pyhf and cabinetry open; it is listed in the manifest as it is.
"""

from __future__ import annotations

from pathlib import Path

from selfcal.export.correctionlib_export import as_text, correction_set
from selfcal.export.table import scale_factor_table
from selfcal.run.atomic import read_json, write_json, write_text
from selfcal.run.context import RunContext
from selfcal.run.stages import file_sha256

MANIFEST = "manifest.json"


def run_export(context: RunContext) -> list[Path]:
    """Write ``correctionlib.json``, ``scale_factors.csv`` and ``manifest.json`` into the results folder.

    Raises
    ------
    DataError
        If ``scale_factors.json`` is missing or incomplete.
    """
    results = context.directory.results
    content = read_json(results / "scale_factors.json")
    write_text(results / "correctionlib.json", as_text(correction_set(content)))
    write_text(results / "scale_factors.csv", scale_factor_table(content))
    write_json(results / MANIFEST, manifest(results))
    return [results / name for name in ("correctionlib.json", "scale_factors.csv", MANIFEST)]


def manifest(folder: Path) -> dict[str, object]:
    """Size and SHA-256 of every file below ``folder``, the manifest and hidden files excepted."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not path.name.startswith("."):
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return {"schema_version": 1, "files": files}
