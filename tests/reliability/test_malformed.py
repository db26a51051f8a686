"""Configurations and cards with one thing wrong: program, package and JSON Schema refuse the same ones."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfcal.cli.app import main
from selfcal.config.card import DataCard
from selfcal.config.document import Document, KeyPath, dotted
from selfcal.config.loading import load_model
from selfcal.config.run import RunConfig
from selfcal.config.schema import json_schema
from selfcal.errors import ConfigError

CARD: dict[str, Any] = {
    "name": "data_tt", "description": "d", "role": "data", "region": "tt", "use": "control",
    "format": "nanoaod", "files": ["a.root", "b.root"], "collection": "Jet",
    "fields": {"pt": "Jet_pt", "tracks": {"d0": "d0"}}, "units": {"momentum": "GeV"},
    "scores": {"tagger": "PNet", "fields": {"b": "x", "c": "y", "light": "z"}},
    "selection": [{"field": "a", "min": 1.5}, {"field": "b", "values": [1, 2]}],
    "conventions": {"reference": "beamspot"}, "accept": {"length_unit": "a reason in words"},
    "weights": "event", "sha256": {"a.root": "0" * 64},
    "composition": {"fractions": {"b": 0.5}, "scale": {"c": 1.5}, "relative_uncertainty": 0.3},
    "provenance": "p", "licence": "l", "contact": "c",
}  # fmt: skip
RUN = RunConfig.model_validate({"name": "x", "data": {"cards": ["card.yaml"]}}).model_dump(mode="json")
RUN["generate"]["worlds"]["odd"] = {"detector": {"d0_core_scale": 1.1}, "pythia": ["Tune:pp = 14"]}
BASES = {"run": (RUN, RunConfig), "card": (CARD, DataCard)}
SCHEMAS = {kind: jsonschema.Draft202012Validator(json_schema(kind)) for kind in ("run", "card")}

WRONG: list[Any] = [
    None, True, False, "", "text", "3", "yes", -1, 0, 3, 2.5, -0.5, 1e308, math.nan, math.inf, -math.inf,
    [], [1], ["a", "b"], [[]], {}, {"a": 1}, {"b": {"c": []}}, "é☃", "x" * 300, "../x", 10**30,
]  # fmt: skip
"""Values of every kind, among which most are wrong in most places."""


def places(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    """The paths of all values inside a document."""
    if isinstance(value, dict):
        inner = [found for key, item in value.items() for found in places(item, (*path, key))]
    elif isinstance(value, list):
        inner = [found for key, item in enumerate(value) for found in places(item, (*path, key))]
    else:
        inner = []
    return [*([path] if path else []), *inner]


@st.composite
def changed_documents(draw: st.DrawFn, base: dict[str, Any]) -> tuple[dict[str, Any], KeyPath]:
    """A document of which one value is another one, gone, or has got a sibling; and its path."""
    document = copy.deepcopy(base)
    path = draw(st.sampled_from(places(base)))
    parent: Any = document
    for part in path[:-1]:
        parent = parent[part]
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "misspell", "add"]))
    if how == "replace" or isinstance(parent, list):
        parent[path[-1]] = draw(st.sampled_from(WRONG))
    elif how == "remove":
        del parent[path[-1]]
    elif how == "misspell":
        path = (*path[:-1], f"{path[-1]}x")
        parent[path[-1]] = parent.pop(path[-1][:-1])
    else:
        path = (*path[:-1], draw(st.sampled_from(["extra", "Name", "x y", "0"])))
        parent[path[-1]] = draw(st.sampled_from(WRONG))
    return document, path


def of_one_field(model: type, values: dict[str, Any]) -> bool | None:
    """Whether a field's own rule refuses the document; None where it is not refused at all.

    Rules between fields (edges increase, shares add up to one) are no part of a JSON Schema.
    """
    try:
        load_model(Document(values), model)
    except ConfigError as error:
        text = str(error)
        return any(words in text for words in ("wrong value", "wrong key", "unknown key", "missing key"))
    return None


def refused(kind: str, values: dict[str, Any], folder: Path, capsys) -> tuple[int, str]:
    """Exit code and words of the program about the document as a file."""
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    capsys.readouterr()
    verb = ["validate", str(path), "--dry-run"] if kind == "card" else ["run", str(path), "--dry-run"]
    return main(verb), capsys.readouterr().err


def value_at(document: Any, path: KeyPath) -> Any:
    """What stands at ``path``; None where nothing does."""
    for part in path:
        if isinstance(document, dict) and part not in document:
            return None
        document = document[part]
    return document


def beyond_schema(value: Any) -> bool:
    """Whether it holds what JSON has not (NaN), or a whole number as 3.0, an integer to JSON Schema."""
    if isinstance(value, dict | list):
        return any(beyond_schema(one) for one in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and (not math.isfinite(value) or value == int(value))


def check(kind: str, values: dict[str, Any], path: KeyPath, folder: Path, capsys) -> bool:
    """Whether the document is malformed; program, package and schema must agree."""
    model = BASES[kind][1]
    by_schema = not SCHEMAS[kind].is_valid(values)
    by_package = of_one_field(model, values)
    changed = value_at(values, path)
    if by_schema:
        assert by_package is not None, "the schema refuses what the package takes"
    if by_package and not beyond_schema(changed):
        assert by_schema, "a field's own rule is not in the schema"
    if by_package is None:
        return False
    code, said = refused(kind, values, folder, capsys)
    assert code == 2, (code, said)
    assert "Traceback" not in said
    assert "unexpected" not in said
    assert f"{kind}.yaml" in said
    found = re.search(rf"{kind}\.yaml, line (\d+)(?:, key '([^']*)')?", said)
    assert found, said
    lines = (folder / f"{kind}.yaml").read_text().splitlines()
    assert int(found[1]) <= len(lines)
    if "missing key" not in said and "unknown key" not in said and found[2] and by_package:
        assert dotted(path).startswith(found[2].partition("[")[0].partition(".")[0]), (path, said)
        last = re.split(r"[.\[]", found[2])[-1]
        if not last.endswith("]"):
            assert last in lines[int(found[1]) - 1], (found[0], lines[int(found[1]) - 1])
    if "wrong value" in said:
        assert "expected:" in said
    return True


def campaign(kind: str, examples: int, folder: Path, capsys, attempts) -> int:
    """Draw documents until so many have been looked at; returns how many were malformed."""
    malformed = 0

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changed_documents(BASES[kind][0]))
    def one(drawn: tuple[dict[str, Any], KeyPath]) -> None:
        nonlocal malformed
        values, path = drawn
        with attempts(f"{dotted(path)} = {values}"[:150]):
            malformed += check(kind, values, path, folder, capsys)

    one()
    return malformed


@pytest.mark.fault(13, "configurations with one change, by hypothesis (valid ones among them)")
def test_configurations(tmp_path, monkeypatch, capsys, attempts) -> None:
    monkeypatch.chdir(tmp_path)
    assert campaign("run", 200, tmp_path, capsys, attempts) >= 120


@pytest.mark.fault(13, "data cards with one change, by hypothesis (valid ones among them)")
def test_cards(tmp_path, monkeypatch, capsys, attempts) -> None:
    monkeypatch.chdir(tmp_path)
    assert campaign("card", 200, tmp_path, capsys, attempts) >= 100


@pytest.mark.long
@pytest.mark.fault(13, "the same, 2,000 of each")
@pytest.mark.parametrize("kind", BASES)
def test_many(tmp_path, monkeypatch, capsys, attempts, kind) -> None:
    monkeypatch.chdir(tmp_path)
    assert campaign(kind, 2_000, tmp_path, capsys, attempts) >= 1_000
