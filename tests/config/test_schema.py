"""The published JSON Schemas and the models accept and refuse the same files."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from selfcal.config.schema import MODELS, json_schema
from selfcal.config.shipped import shipped_path, shipped_root

SHIPPED = {"run": "configs", "card": "data_cards", "study": "studies"}


@pytest.mark.parametrize("kind", SHIPPED)
def test_shipped_files_satisfy_their_schema(kind):
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    paths = list(shipped_path(SHIPPED[kind]).rglob("*.yaml"))
    assert paths
    for path in paths:
        values = yaml.safe_load(path.read_text())
        laid_over = kind == "run" and "name" not in values  # such as small.yaml: not complete by themselves
        wanted = {key: value for key, value in schema.items() if key != "required"} if laid_over else schema
        jsonschema.validate(values, wanted)


@pytest.mark.parametrize("kind", SHIPPED)
def test_both_refuse_an_unknown_key(kind):
    files = [yaml.safe_load(path.read_text()) for path in shipped_path(SHIPPED[kind]).rglob("*.yaml")]
    values = next(one for one in files if "name" in one) | {"surprise": 1}
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.validate(values, json_schema(kind))
    with pytest.raises(ValueError, match="surprise"):
        MODELS[kind].model_validate(values)


@pytest.mark.parametrize("kind", SHIPPED)
def test_editors_find_the_schema_of_every_shipped_file(kind):
    """The first line names a file that holds what ``selfcal schema`` prints."""
    expected = shipped_root() / "schemas" / f"{kind}.json"
    for path in shipped_path(SHIPPED[kind]).rglob("*.yaml"):
        marker, _, reference = path.read_text().splitlines()[0].partition("$schema=")
        assert marker == "# yaml-language-server: "
        assert (path.parent / reference).resolve() == expected.resolve()
    assert json.loads(expected.read_text()) == json_schema(kind), "run: make schemas"
