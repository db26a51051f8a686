"""From YAML files to checked configurations: every problem with its file, line and key."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from selfcal.config.card import DataCard
from selfcal.config.document import (
    Document,
    KeyPath,
    Position,
    dotted,
    dump_yaml,
    merge_documents,
    read_document,
    set_value,
)
from selfcal.config.fit import FitConfig
from selfcal.config.run import RunConfig
from selfcal.config.shipped import shipped_names, shipped_path, shipped_root
from selfcal.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


@dataclass(frozen=True)
class LoadedRun:
    """A run configuration with its data cards and where they were found."""

    config: RunConfig
    cards: tuple[DataCard, ...]
    card_paths: tuple[Path, ...]
    data_root: Path | None

    @property
    def card_folders(self) -> dict[str, Path]:
        """Folder of each card's file, by card name."""
        return {card.name: path.parent for card, path in zip(self.cards, self.card_paths, strict=True)}


def load_model(document: Document, model: type[Model]) -> Model:
    """Check a document against a pydantic model, as strictly as its JSON Schema: text is no number.

    Raises
    ------
    ConfigError
        Listing every problem with its position, what was found and what was expected.
    """
    try:
        # As JSON, because strict pydantic takes a list for a tuple from there alone.
        return model.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        problems = [_problem(details, document, model) for details in error.errors(include_url=False)]
    raise joined_problems(problems)


def joined_problems(problems: Sequence[ConfigError]) -> ConfigError:
    """One error for several."""
    if len(problems) == 1:
        return problems[0]
    listed = "\n".join(f"- {problem}".replace("\n", "\n  ") for problem in problems)
    return ConfigError(f"{len(problems)} problems in the configuration\n{listed}")


def _problem(details: ErrorDetails, document: Document, model: type[BaseModel]) -> ConfigError:
    kind = details["type"]
    path, bad_key = _written_path(
        details["loc"], document.values, keep_last=kind in (*UNKNOWN_KEY, "missing")
    )
    where = _where(document, path)
    message = details["msg"].removeprefix("Value error, ")
    if kind in UNKNOWN_KEY:
        known = _known_keys(model, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        return ConfigError(
            f"unknown key '{path[-1]}'",
            where=where,
            expected=f"one of {', '.join(known)}" if known else "no such key",
            fix=f"did you mean '{close[0]}'?" if close else None,
        )
    if kind == "missing":
        return ConfigError(f"missing key '{path[-1]}'", where=where, fix=f"add '{dotted(path)}: ...'")
    if kind in ("value_error", "assertion_error"):
        return ConfigError(message, where=_where(document, _named_in(message, path, document)))
    expected = message.removeprefix("Input should be ")
    found = path[-1] if bad_key else details["input"]
    return ConfigError(
        f"wrong {'key' if bad_key else 'value'} {_shown(found)}", where=where, expected=expected
    )


def _named_in(message: str, path: KeyPath, document: Document) -> KeyPath:
    """The key that a model's own check complains about: the first that it quotes and the user wrote."""
    for name in re.findall(r"'([A-Za-z_]+)'", message):
        if (*path, name) in document.positions:
            return (*path, name)
    return path


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _where(document: Document, path: KeyPath) -> str:
    key = f", key '{dotted(path)}'" if path else ""
    return f"{document.position(path)}{key}"


def _written_path(location: Sequence[str | int], values: Any, *, keep_last: bool) -> tuple[KeyPath, bool]:
    """pydantic's location without the parts that name types rather than keys; whether a key is at fault."""
    path: KeyPath = ()
    here = values
    for index, part in enumerate(location):
        if _holds(here, part):
            here, path = here[part], (*path, part)
        elif keep_last and index == len(location) - 1:
            path = (*path, part)
    return path, bool(location) and location[-1] == "[key]"


def _holds(values: Any, part: str | int) -> bool:
    if isinstance(values, dict):
        return part in values
    return isinstance(values, list) and isinstance(part, int) and part < len(values)


def _known_keys(annotation: Any, path: KeyPath) -> list[str]:
    """The keys that a model accepts at ``path``; empty where anything goes."""
    for part in path:
        annotation = _inside(annotation, part)
    for candidate in _alternatives(annotation):
        fields = _fields(candidate)
        if fields:
            return list(fields)
    return []


def _fields(candidate: Any) -> dict[str, Any]:
    if isinstance(candidate, type) and issubclass(candidate, BaseModel):
        return {name: info.annotation for name, info in candidate.model_fields.items()}
    if dataclasses.is_dataclass(candidate) and isinstance(candidate, type):
        return typing.get_type_hints(candidate)
    return {}


def _alternatives(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for argument in typing.get_args(annotation) for inner in _alternatives(argument)]
    return [annotation]


def _inside(annotation: Any, part: str | int) -> Any:
    for candidate in _alternatives(annotation):
        fields = _fields(candidate)
        if part in fields:
            return fields[str(part)]
        arguments = typing.get_args(candidate)
        origin = typing.get_origin(candidate)
        if origin is dict and len(arguments) == 2:
            return arguments[1]
        if origin in (list, tuple) and arguments and isinstance(part, int):
            return arguments[min(part, len(arguments) - 1)] if arguments[-1] is not ... else arguments[0]
    return None


def find_configuration(name: str) -> Path:
    """A configuration file: an existing path, or the plain name of a shipped one (``demo``).

    Raises
    ------
    ConfigError
        If there is neither.
    """
    path = Path(name)
    shipped = shipped_names("configs")
    if path.is_dir() and name not in shipped:
        resolved = path / "config.resolved.yaml"
        raise ConfigError(
            "a directory, not a configuration",
            where=name,
            expected=f"a YAML file, or one of the shipped configurations: {', '.join(shipped)}",
            fix=f"the configuration of this run is {resolved}" if resolved.is_file() else None,
        )
    if path.exists() and not path.is_dir():
        return path
    if path.suffix or "/" in name:
        raise ConfigError("file not found", where=name, expected="a YAML file", fix=_nearest_file(path))
    if name in shipped:
        return shipped_path("configs") / f"{name}.yaml"
    raise ConfigError(
        "no such configuration",
        where=name,
        expected=f"a YAML file, or one of the shipped configurations: {', '.join(shipped)}",
    )


def _nearest_file(path: Path) -> str | None:
    """The YAML file of the same folder whose name is most like that of a file which is not there."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    names = [other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml")]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"did you mean '{path.parent / close[0]}'?" if close else None


def load_run(
    configurations: Sequence[str | Path], assignments: Sequence[str] = (), seed: int | None = None
) -> LoadedRun:
    """Read, merge and check run configurations and their data cards.

    Later files win over earlier ones, ``assignments`` (``a.b=c``) over files, ``seed`` over all. Cards are
    sought relative to the file that lists them, then among those shipped with the program.

    Raises
    ------
    ConfigError
        With every problem of the configuration, or else every problem of the cards.
    """
    if not configurations:
        raise ConfigError(
            "no configuration given",
            expected="the path of a YAML file, or the name of a shipped configuration",
            fix="selfcal run CONFIG, for example selfcal run demo",
        )
    document = read_document(find_configuration(str(configurations[0])))
    for name in configurations[1:]:
        document = merge_documents(document, read_document(find_configuration(str(name))))
    for assignment in assignments:
        document = set_value(document, assignment)
    if seed is not None:
        document = merge_documents(
            document, Document({"seed": seed}, {("seed",): Position(f"--seed {seed}")})
        )
    _refuse_parts(document, [str(name) for name in configurations])
    config = load_model(document, RunConfig)
    return _with_cards(config, document)


def is_card(document: Document) -> bool:
    """A run configuration has ``data``; a card has ``role``, ``region`` or ``files``."""
    return "data" not in document.values and any(
        key in document.values for key in ("role", "region", "files")
    )


def _refuse_parts(document: Document, names: Sequence[str]) -> None:
    """What belongs to a run configuration, but is none by itself: a data card, or what others are to hold."""
    if is_card(document):
        raise ConfigError(
            "a data card, not a run configuration",
            where=", ".join(names),
            expected="a configuration that lists the card under 'data.cards'",
            fix=f"to check the card alone: selfcal validate {' '.join(names)}",
        )
    if "data" not in document.values and set(document.values) <= set(RunConfig.model_fields):
        raise ConfigError(
            "missing key 'data': no datasets",
            where=", ".join(names),
            expected="'name' and 'data.cards'; what has neither is laid over a whole configuration",
            fix=f"name a whole one first, for example: selfcal run demo {' '.join(names)}",
        )


def _with_cards(config: RunConfig, document: Document) -> LoadedRun:
    problems: list[ConfigError] = []
    cards: list[DataCard] = []
    paths: list[Path] = []
    documents: list[Document] = []
    for index, name in enumerate(config.data.cards):
        try:
            path = _card_path(name, document, ("data", "cards", index))
            card_document = _changed(read_document(path), config, document)
            card = _scaled(load_model(card_document, DataCard), config)
        except ConfigError as error:
            problems.append(error)
            continue
        cards.append(card)
        paths.append(path)
        documents.append(card_document)
    if not problems:
        problems = _inconsistencies(config, cards, documents) + _idle_patterns(config, cards, document)
    if problems:
        raise joined_problems(problems)
    return LoadedRun(config, tuple(cards), tuple(paths), _data_root(config, document))


def _changed(card: Document, config: RunConfig, document: Document) -> Document:
    """A card with the ``data.changes`` whose pattern its name matches."""
    for pattern, values in config.data.changes.items():
        if fnmatchcase(str(card.values.get("name")), pattern):
            written = ("data", "changes", pattern)
            positions = {
                path[len(written) :]: position
                for path, position in document.positions.items()
                if path[: len(written)] == written and len(path) > len(written)
            }
            for key in values:
                positions.setdefault((key,), document.position((*written, key)))
            card = merge_documents(card, Document(values, positions))
    return card


def _scaled(card: DataCard, config: RunConfig) -> DataCard:
    """A card that is generated with its number of jets times ``generate.scale``."""
    factors = [factor for name, factor in config.generate.scale.items() if fnmatchcase(card.name, name)]
    if card.generate is None or not factors:
        return card
    jets = max(1, round(card.generate.jets * math.prod(factors)))
    return card.model_copy(update={"generate": card.generate.model_copy(update={"jets": jets})})


def _idle_patterns(config: RunConfig, cards: Sequence[DataCard], document: Document) -> list[ConfigError]:
    """Patterns of ``data.changes`` that no card's name matches: most likely a slip.

    Those of ``generate.scale`` may be idle: one configuration can shrink any run.
    """
    return [
        ConfigError(
            f"no data card is named like '{pattern}'",
            where=_where(document, ("data", "changes", pattern)),
            expected=f"a pattern for {', '.join(card.name for card in cards)}",
        )
        for pattern in config.data.changes
        if not any(fnmatchcase(card.name, pattern) for card in cards)
    ]


def _source_folder(document: Document, path: KeyPath) -> Path:
    """Folder of the file that wrote ``path``; the working directory for command-line options."""
    position = document.position(path)
    return Path() if position.line is None else Path(position.source).parent


def _card_path(name: str, document: Document, key: KeyPath) -> Path:
    tried = [_source_folder(document, key) / name, shipped_root() / name]
    for path in tried:
        if path.is_file():
            return path
    raise ConfigError(
        f"data card '{name}' not found",
        where=_where(document, key),
        expected=f"the file {tried[0]}, or one shipped with selfcal",
        fix="give the path relative to the configuration file",
    )


def _data_root(config: RunConfig, document: Document) -> Path | None:
    if config.data.root is None:
        return None
    return _source_folder(document, ("data", "root")) / Path(config.data.root).expanduser()


def _inconsistencies(
    config: RunConfig, cards: Sequence[DataCard], documents: Sequence[Document]
) -> list[ConfigError]:
    """What no single file can know: names used twice, worlds and simulation that are missing."""
    problems: list[ConfigError] = []
    seen: dict[str, str] = {}
    simulated = {card.region for card in cards if card.role == "simulation"}
    control = {card.region for card in cards if card.role == "simulation" and card.use == "control"}
    default = FitConfig()
    # A default region that a run lacks makes its flavour 'extrapolated'; another one is meant.
    named = {
        f"reference_regions.{name}": region
        for name, region in config.fit.reference_regions.items()
        if region != default.reference_regions.get(name)
    }
    if config.fit.working_point_region != default.working_point_region:
        named["working_point_region"] = config.fit.working_point_region
    problems += [
        ConfigError(
            f"no control region '{region}'",
            where=f"fit.{key}",
            expected=f"one of {', '.join(sorted(control))}",
            fix="name a region of which there is simulation with use: control",
        )
        for key, region in named.items()
        if control and region not in control
    ]
    for card, document in zip(cards, documents, strict=True):
        if card.name in seen:
            problems.append(
                ConfigError(
                    f"two data cards are named '{card.name}'",
                    where=_where(document, ("name",)),
                    expected=f"another name than in {seen[card.name]}",
                )
            )
        seen[card.name] = str(document.position(("name",)))
        worlds = config.generate.worlds
        if card.generate is not None and card.generate.world not in worlds:
            close = difflib.get_close_matches(card.generate.world, worlds, n=1)
            problems.append(
                ConfigError(
                    f"unknown world '{card.generate.world}'",
                    where=_where(document, ("generate", "world")),
                    expected=f"one of 'generate.worlds' of the configuration: {', '.join(sorted(worlds))}",
                    fix=f"did you mean '{close[0]}'?" if close else None,
                )
            )
        if card.role == "data" and card.region not in simulated:
            problems.append(
                ConfigError(
                    f"no simulation of region '{card.region}'",
                    where=_where(document, ("region",)),
                    expected=f"a card with role simulation and region {card.region} under 'data.cards'",
                )
            )
    return problems


def load_card(path: Path) -> DataCard:
    """Read and check one data card."""
    return load_model(read_document(path), DataCard)


def resolved_yaml(loaded: LoadedRun, folder: Path) -> str:
    """The complete configuration as YAML, its paths relative to ``folder``, where it is to be written."""
    values = loaded.config.model_dump(mode="json")
    values["data"]["cards"] = [_relative(path, folder) for path in loaded.card_paths]
    if loaded.data_root is not None:
        values["data"]["root"] = _relative(loaded.data_root, folder)
    if loaded.config.tagger.kind == "scores":
        # its default, which is refused where it is said: given scores cannot be trained
        del values["calibration"]["joint"]["enabled"]
    return dump_yaml(values)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
