"""The chain on files of an independent generator, and on the scores alone that it wrote into them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.test_end_to_end import selfcal

PROJECT = Path(__file__).parents[1]
SMALLER = """
training: {epochs: 3}
inference: {enabled: false}
calibration:
  joint: {enabled: false}
  base_density: {steps: 150}
  map: {steps: 100}
  bootstraps: 2
  bootstrap_steps: 20
  seeds: 1
"""
"""Fewer steps than shipped and no joint training: what is compared here does not depend on them."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A run on the benchmark's files that train a tagger of their own."""

    def run(root: Path) -> Path:
        folder = tmp_path_factory.mktemp("benchmark")
        (folder / "smaller.yaml").write_text(SMALLER)
        configuration = str(PROJECT / "configs/benchmark.yaml")
        settings = ("--config", configuration, "--config", "smaller.yaml", "--set", f"data.root={root}")
        selfcal("run", *settings, "--out", "trained", folder=folder)
        return folder

    return run


@pytest.mark.long
def test_a_tagger_known_by_its_scores_alone_has_the_same_scale_factors(
    trained: Callable[[Path], Path], shared_file: Callable[[str], Path]
) -> None:
    root = shared_file("benchmark")
    folder = trained(root)
    closure = json.loads((folder / "trained/results/closure.json").read_text())
    judged = {(row["flavour"], row["working_point"]) for row in closure["summary"]["rule"]["rows"]}
    assert judged == {(flavour, point) for flavour in ("b", "c", "light") for point in (0.77, 0.85)}

    selfcal("predict", "trained", *map(str, sorted(root.glob("*.h5"))), "--out", "scored", folder=folder)
    cards = []
    for name in yaml.safe_load((PROJECT / "configs/benchmark.yaml").read_text())["data"]["cards"]:
        card = yaml.safe_load((PROJECT / "configs" / name).read_text())
        # The copies with scores in them are other files.
        del card["sha256"]
        card["scores"] = {"tagger": "SelfCal"}
        path = folder / "cards" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(card))
        cards.append(f"cards/{path.name}")
    configuration = yaml.safe_load((PROJECT / "configs/benchmark.yaml").read_text())
    smaller = yaml.safe_load(SMALLER)
    del smaller["training"], smaller["calibration"]["joint"]
    configuration |= {
        **smaller,
        "name": "given",
        "data": {"cards": cards, "root": "scored"},
        "tagger": {"kind": "scores", "name": "SelfCal"},
    }
    (folder / "given.yaml").write_text(yaml.safe_dump(configuration))
    selfcal("run", "given.yaml", "--out", "given", folder=folder)
    assert not (folder / "given/checkpoints/tagger").exists()
    expected, found = (
        json.loads((folder / name / "results/scale_factors.json").read_text())["rows"]
        for name in ("trained", "given")
    )
    measured = [row for row in expected if row["status"] == "measured"]
    assert len(measured) > 50
    for one, other in zip(expected, found, strict=True):
        assert one["status"] == other["status"]
        for key in ("value", "total"):
            if one[key] is not None:
                assert other[key] == pytest.approx(one[key], rel=1e-6, abs=1e-6)
