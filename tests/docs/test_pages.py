"""The documentation speaks of commands, files and keys that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from selfcal.cli.app import app
from selfcal.config.reference import configuration_page, models_of
from selfcal.config.schema import MODELS
from selfcal.config.shipped import shipped_names

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if "_build" not in path.parts and "generated" not in path.parts
)


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


def commands(text: str) -> list[list[str]]:
    """The words of every line of a fenced block without language that calls selfcal, comments left out."""
    found, language = [], None
    for line in text.splitlines():
        if line.strip().startswith("```"):
            language = line.strip().removeprefix("```") if language is None else None
        elif language == "" and re.match(r" *(\S+/)?selfcal ", line):
            found.append([word for word in shlex.split(line, comments=True)[1:] if word != "&"])
    return found


def test_commands_are_found_in_blocks_without_language_alone():
    plain = "```\nselfcal run x  # why\n```\n"
    text = f"{plain}```yaml\nselfcal y\n```\n  ```\n  bin/selfcal fit\n  ```\nselfcal no\n"
    assert commands(text) == [["run", "x"], ["fit"]]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_and_their_options_exist(path):
    root = typer.main.get_command(app)
    for words in commands(path.read_text()):
        command, context = root, root.make_context("selfcal", [], resilient_parsing=True)
        while hasattr(command, "get_command") and words and not words[0].startswith("-"):
            inner = command.get_command(context, words[0])
            assert inner is not None, f"{name_of(path)}: selfcal has no verb '{words[0]}'"
            command, words = inner, words[1:]
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, f"{name_of(path)}: {command.name} has no {word}"


def test_the_commands_that_measure_the_acceptance_figures_exist():
    root = typer.main.get_command(app)
    text = (DOCS / "validation.md").read_text()
    found = [line.split() for line in re.findall(r"\| `([^`]+)` \|", text)]
    assert len(found) > 15
    for words in found:
        if words[0] == "selfcal":
            assert words[1] in root.commands
            assert words[1] != "study" or words[3] in shipped_names("studies")
        elif words[0] == "pytest":
            files = [word for word in words[1:] if word.startswith("tests")]
            assert files
            assert all((DOCS.parent / name).exists() for name in files), words
        elif words[:2] == ["python", "-m"]:
            name = words[2].replace(".", "/")
            assert words[2] == "pytest" or (DOCS.parent / f"{name}.py").exists(), words
        else:
            assert words[0] == "make"


def test_every_page_is_reached_from_the_index():
    listed = {"index.md"}
    for index in (DOCS / "index.md", DOCS / "studies" / "index.md"):
        for block in re.findall(r"```{toctree}\n(.*?)```", index.read_text(), re.S):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {name_of((index.parent / f"{entry}.md").resolve()) for entry in entries}
    assert {name_of(path) for path in PAGES} <= listed


def test_every_shipped_study_is_described():
    text = (DOCS / "studies" / "index.md").read_text()
    assert [name for name in shipped_names("studies") if name not in text] == []


@pytest.mark.parametrize("kind", MODELS)
def test_the_configuration_reference_has_every_key_and_no_dead_link(kind):
    page = configuration_page(kind)
    titles = {line.removeprefix("## ").lower() for line in page.splitlines() if line.startswith("## ")}
    for model in models_of(MODELS[kind]):
        for field in model.model_fields:
            assert f"| `{field}` |" in page, f"{model.__name__}.{field}"
    links = set(re.findall(r"\]\(#([a-z0-9]+)\)", page))
    assert links <= titles
