"""The glossary has the names that configuration, files and report use, in the order of the alphabet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from selfcal.config.calibration import MapConfig
from selfcal.config.card import DataCard
from selfcal.config.reference import models_of
from selfcal.config.run import RunConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.likelihood.layout import Status
from selfcal.likelihood.scale_factors import GROUP_OF_PREFIX, GROUPS
from selfcal.study.detector_treatments import Treatment
from selfcal.study.pipeline import DESCRIPTIONS

PAGE = Path(__file__).parents[2] / "docs" / "glossary.md"
BLOCK = re.findall(r"```{glossary}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
TERMS = re.findall(r"^(\S.*)$", BLOCK, re.MULTILINE)
DEFINITIONS = dict(zip(TERMS, re.split(r"^\S.*$", BLOCK, flags=re.MULTILINE)[1:], strict=True))
NAMES = {
    "stage": [stage.name for stage in DESCRIPTIONS],
    "group": [*GROUPS, *(prefix for prefix, group in GROUP_OF_PREFIX if group == "simulation_statistics")],
    "extrapolated": [status for status in get_args(Status) if status != "extrapolated"],
    "detector treatment": get_args(Treatment),
    "flavour": FLAVOURS,
    "calibration map": get_args(MapConfig.model_fields["family"].annotation),
    "data card": [
        name for key in ("role", "use") for name in get_args(DataCard.model_fields[key].annotation)
    ],
}
"""What the definition of a term must name: all there is of its kind in the program."""


@pytest.mark.parametrize("term", NAMES)
def test_a_term_names_all_of_its_kind(term: str) -> None:
    assert [name for name in NAMES[term] if not re.search(rf"\b{name}", DEFINITIONS[term])] == []


def test_terms_stand_once_in_order_and_are_explained() -> None:
    assert sorted(set(TERMS), key=str.lower) == TERMS
    assert [term for term, text in DEFINITIONS.items() if len(text.split()) < 4] == []


def test_the_keys_of_configurations_exist() -> None:
    known = {name for model in models_of(RunConfig) for name in model.model_fields}
    keys = [key for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", BLOCK) if not key.endswith(".json")]
    assert len(keys) > 10
    assert [key for key in keys if not set(key.split(".")) <= known] == []
