"""Options that every verb has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

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


_COMMON: dict[str, tuple[Any, Any]] = {
    "configurations": (Configurations, None),
    "config": (ConfigOption, None),
    "assignments": (SetOption, None),
    "seed": (SeedOption, None),
    "out": (OutOption, None),
    "dry_run": (DryRunOption, False),
    "as_json": (JsonOption, False),
    "verbose": (VerboseOption, 0),
    "quiet": (QuietOption, False),
    "debug": (DebugOption, False),
}
"""Annotation and default of every common option, in the order of the help."""


def with_options(*without: str, **instead: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the common options, which reach it as its first argument, an :class:`Options`.

    ``without`` names options that it does not have, ``instead`` others' annotations (another help text).
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        common = {
            name: Parameter(
                name,
                Parameter.POSITIONAL_OR_KEYWORD,
                default=default,
                annotation=instead.get(name, annotation),
            )
            for name, (annotation, default) in _COMMON.items()
            if name not in without
        }
        hints = get_type_hints(verb, include_extras=True)
        own = [
            one.replace(annotation=hints[one.name]) for one in list(signature(verb).parameters.values())[1:]
        ]

        def called(**given: Any) -> None:
            values = {name: given.pop(name) for name in common}
            verb(_collected(values), **given)

        # typer reads the options of a verb from its signature
        parameters = [*(one for one in own if one.default is Parameter.empty), *_arguments_first(common, own)]
        vars(called)["__signature__"] = Signature(parameters)
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        called.__name__, called.__doc__ = verb.__name__, verb.__doc__
        return called

    return decorate


def _arguments_first(common: Mapping[str, Parameter], own: Sequence[Parameter]) -> list[Parameter]:
    """The positional configurations, the verb's own options, then the common ones."""
    first = [common["configurations"]] if "configurations" in common else []
    optional = [one for one in own if one.default is not Parameter.empty]
    return [*first, *optional, *(one for name, one in common.items() if name != "configurations")]


def _collected(values: Mapping[str, Any]) -> Options:
    """What typer parsed as one object; positional configurations come before those of ``--config``."""
    names = ("seed", "out", "dry_run", "as_json", "verbose", "quiet")
    return Options(
        configurations=(*(values.get("configurations") or ()), *(values.get("config") or ())),
        assignments=tuple(values.get("assignments") or ()),
        **{name: values[name] for name in names if name in values},
    )
