"""Options that every verb has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from selfcal.config.shipped import ShippedKind, shipped_names


def shipped_completion(kind: ShippedKind) -> Callable[[str], list[str]]:
    """What a shell offers for the beginning of a word: names of shipped files, and paths."""

    def complete(beginning: str) -> list[str]:
        found = [name for name in shipped_names(kind) if name.startswith(beginning)]
        folder = Path(beginning).parent if beginning else Path()
        if folder.is_dir():
            paths = sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix == ".yaml")
            found += [f"{path}/" if path.is_dir() else str(path) for path in paths]
        return [name for name in found if name.startswith(beginning)]

    return complete


Configurations = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG...",
        help="Run configuration (YAML), or the name of a shipped one; later wins.",
        autocompletion=shipped_completion("configs"),
    ),
]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The same as CONFIG; repeatable.",
        autocompletion=shipped_completion("configs"),
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Change one value, e.g. training.epochs=3; repeatable."
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run directory (default: runs/<name>).")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show configuration, inputs, stages and files; write nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on standard output.")]
VerboseOption = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more; -vv still more.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True)
class Options:
    """The common options of one call."""

    configurations: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    seed: int | None = None
    out: Path | None = None
    dry_run: bool = False
    as_json: bool = False
    verbose: int = 0
    quiet: bool = False


def collect(
    configurations: list[str] | None,
    config: list[str] | None,
    assignments: list[str] | None,
    seed: int | None,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    verbose: int,
    quiet: bool,
) -> Options:
    """Put the values that typer parsed into one object; positional configurations come first."""
    return Options(
        (*(configurations or ()), *(config or ())),
        tuple(assignments or ()),
        seed,
        out,
        dry_run,
        as_json,
        verbose,
        quiet,
    )
