"""Pseudo-data of another generator: Pythia with other fragmentation and showers, the same detector."""

from __future__ import annotations

import pytest

from selfcal.config.loading import load_run
from selfcal.generate.stage import run_generate
from selfcal.run.atomic import read_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.sbi.stage import run_infer

CARD = "name: NAME\nrole: ROLE\nregion: ttbar_emu\ngenerate: {process: ttbar_emu, jets: JETS, world: WORLD}\n"
RUN = """
name: others
data: {cards: [sim.yaml, data.yaml], simulation_folds: [0.9, 0.05, 0.05], data_folds: [0.96, 0.02, 0.02]}
generate: {workers: 1, cache: CACHE, worlds: {nominal: {}, other: {pythia: [SETTINGS]}}}
inference: {enabled: true, chain_check: false}
"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """``posterior.json`` of 5,000 jets of a world with these settings."""
    cache = tmp_path_factory.mktemp("cache")

    def infer(name: str, settings: str) -> dict:
        folder = cache / name
        folder.mkdir()
        for card, role, jets, world in (
            ("sim", "simulation", 12_000, "nominal"),
            (f"data_{name}", "data", 5000, "other"),
        ):
            text = CARD.replace("NAME", card).replace("ROLE", role).replace("JETS", str(jets))
            prior = "composition: {}\n" if role == "data" else ""
            (folder / f"{card.split('_')[0]}.yaml").write_text(text.replace("WORLD", world) + prior)
        (folder / "run.yaml").write_text(RUN.replace("CACHE", str(cache)).replace("SETTINGS", settings))
        loaded = load_run([str(folder / "run.yaml")])
        run = RunDirectory(folder / "out")
        context = RunContext(loaded.config, loaded.cards, run, card_folders=loaded.card_folders)
        run_generate(context)
        run_infer(context)
        found: dict = read_json(context.directory.results / "posterior.json")
        return found

    return infer


@pytest.mark.long
def test_another_generator_is_noticed_and_the_same_one_is_not(judged):
    same = judged("same", "")
    assert same["generator"]["rows"][0]["p_value"] > 0.01
    for name, settings in (
        ("fragmentation", "StringZ:rFactB = 1.4"),
        ("showers", "TimeShower:alphaSvalue = 0.18"),
    ):
        other = judged(name, settings)
        assert other["generator"]["noticed"], name
        assert other["generator"]["rows"][0]["p_value"] < 1e-3, name
        assert any("momentum" in one for one in other["generator"]["flagged"]), name
        # What the detector is inferred from does not show it.
        assert other["predictive"][0]["p_value"] > 0.05, name
        pile_up = [
            next(row for row in one["parameters"] if row["name"] == "pileup_scale")["uncertainty"]
            for one in (other, same)
        ]
        assert pile_up[0] > pile_up[1], name
