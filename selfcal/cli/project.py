"""``selfcal init``: a project to start from."""

from __future__ import annotations

import json
from pathlib import Path

from selfcal.cli.execution import print_json
from selfcal.config.schema import MODELS, json_schema
from selfcal.config.shipped import shipped_path
from selfcal.errors import ConfigError
from selfcal.run.atomic import write_text

README = """# A selfcal project

- `configs/demo.yaml`: the run configuration. Start by changing `name`.
- `data_cards/demo/`: one card per dataset. A card either generates its dataset or names files:
  replace the `generate` block by `files: [...]` to use your own.

```
selfcal run configs/demo.yaml --dry-run                  # what would be done; nothing is written
selfcal run configs/demo.yaml small --out runs/small     # a few jets, in minutes: the numbers mean nothing
selfcal run configs/demo.yaml                            # half an hour on two cores
```

Results are in `runs/demo/results/`, the report is `runs/demo/report.html`.
Editors with a YAML language server complete and check the files by the schemas that their first line names
(`schemas/`, as `selfcal schema run|card|study` prints them).
"""


def project_files() -> dict[str, str]:
    """The files of a starter project by relative path."""
    configs, cards = shipped_path("configs"), shipped_path("data_cards")
    files = {"README.md": README, "configs/demo.yaml": (configs / "demo.yaml").read_text(encoding="utf-8")}
    for path in sorted((cards / "demo").glob("*.yaml")):
        files[f"data_cards/demo/{path.name}"] = path.read_text(encoding="utf-8")
    for kind in MODELS:
        files[f"schemas/{kind}.json"] = json.dumps(json_schema(kind), indent=1) + "\n"
    return files


def init_project(
    directory: Path, *, dry_run: bool = False, as_json: bool = False, quiet: bool = False
) -> None:
    """Write the starter project into ``directory``.

    Raises
    ------
    ConfigError
        If the directory holds anything already.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            "refusing to overwrite: not an empty directory",
            where=str(directory),
            fix="choose a new directory",
        )
    files = project_files()
    if not dry_run:
        for name, text in files.items():
            write_text(directory / name, text)
    if as_json:
        print_json({"directory": str(directory), "files": sorted(files), "written": not dry_run})
    elif not quiet:
        verb = "would write" if dry_run else "wrote"
        print(
            f"{verb} {len(files)} files to {directory}; next: cd {directory} && selfcal run configs/demo.yaml"
        )
