"""Run configurations: merged, checked, every problem with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from selfcal.config.loading import find_configuration, load_card, load_run, resolved_yaml
from selfcal.config.shipped import shipped_names, shipped_path
from selfcal.config.study import StudyConfig
from selfcal.errors import ConfigError

CARD = "name: {name}\nrole: simulation\nregion: r\ngenerate: {{process: dijet, jets: 10}}\n"


@pytest.fixture
def project(tmp_path):
    """A folder with one configuration and one card."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "sim.yaml").write_text(CARD.format(name="sim"))
    (tmp_path / "run.yaml").write_text("name: test\ndata:\n  cards: [cards/sim.yaml]\n")
    return tmp_path


def problems_of(path: Path, **options) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_run([path], **options)
    return caught.value


def test_unknown_key_names_line_and_nearest(project):
    path = project / "run.yaml"
    path.write_text(path.read_text() + "training:\n  batch_size: 64\n  epoch: 3\n")
    error = problems_of(path)
    assert error.problem == "unknown key 'epoch'"
    assert error.where == f"{path}, line 6, key 'training.epoch'"
    assert error.fix == "did you mean 'epochs'?"
    assert "batch_size" in error.expected


def test_unknown_key_below_a_mapping_of_free_names(project):
    path = project / "run.yaml"
    path.write_text(
        path.read_text() + "generate:\n  worlds:\n    odd:\n      detector: {d0_core_scal: 1.1}\n"
    )
    error = problems_of(path)
    assert error.where == f"{path}, line 7, key 'generate.worlds.odd.detector.d0_core_scal'"
    assert error.fix == "did you mean 'd0_core_scale'?"


def test_wrong_value_says_what_was_found_and_expected(project):
    path = project / "run.yaml"
    path.write_text(path.read_text() + "fit:\n  working_points:\n    - 0.6\n    - 1.7\n")
    error = problems_of(path)
    assert error.problem == "wrong value 1.7"
    assert error.where == f"{path}, line 7, key 'fit.working_points[1]'"
    assert error.expected == "less than 1"


def test_a_models_own_check_points_at_the_key(project):
    path = project / "run.yaml"
    path.write_text(path.read_text() + "fit:\n  free_flavours: [b]\n  pt_gev_edges: [20, 60, 40]\n")
    error = problems_of(path)
    assert "increase strictly" in error.problem
    assert error.where == f"{path}, line 6, key 'fit.pt_gev_edges'"


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_not_finite_numbers_are_refused(project, value):
    error = problems_of(project / "run.yaml", assignments=[f"training.learning_rate={value}"])
    assert "training.learning_rate" in error.where


def test_missing_key_is_named(project):
    path = project / "run.yaml"
    path.write_text("seed: 1\ndata:\n  root: x\n")
    error = problems_of(path)
    assert error.problem.startswith("2 problems")
    assert "missing key 'name'" in str(error)
    assert f"{path}, line 2, key 'data.cards'" in str(error)


def test_all_problems_come_at_once(project):
    path = project / "run.yaml"
    path.write_text(path.read_text() + "sead: 4\ntraining: {epochs: many}\nfit: {map_variance_kept: 3}\n")
    text = str(problems_of(path))
    assert text.startswith("3 problems")
    for line, key in ((4, "sead"), (5, "training.epochs"), (6, "fit.map_variance_kept")):
        assert f"line {line}, key '{key}'" in text


def test_later_configurations_assignments_and_seed_win(project):
    (project / "more.yaml").write_text("seed: 5\ntraining: {epochs: 7}\n")
    (project / "run.yaml").write_text(
        (project / "run.yaml").read_text() + "training: {epochs: 2, batch_size: 9}\n"
    )
    files = [project / "run.yaml", project / "more.yaml"]
    config = load_run(files).config
    assert (config.seed, config.training.epochs, config.training.batch_size) == (5, 7, 9)
    config = load_run(files, ["training.epochs=3", "training.epochs=4"], seed=8).config
    assert (config.seed, config.training.epochs, config.training.batch_size) == (8, 4, 9)


def test_error_in_the_second_file_names_the_second_file(project):
    (project / "more.yaml").write_text("\ntraining: {epochs: x}\n")
    with pytest.raises(ConfigError) as caught:
        load_run([project / "run.yaml", project / "more.yaml"])
    assert caught.value.where == f"{project / 'more.yaml'}, line 2, key 'training.epochs'"


def test_a_missing_card_points_at_the_line_that_lists_it(project):
    path = project / "run.yaml"
    path.write_text("name: x\ndata:\n  cards:\n    - cards/sim.yaml\n    - cards/none.yaml\n")
    error = problems_of(path)
    assert error.problem == "data card 'cards/none.yaml' not found"
    assert error.where == f"{path}, line 5, key 'data.cards[1]'"


def test_a_wrong_card_is_reported_with_its_own_line(project):
    card = project / "cards" / "sim.yaml"
    card.write_text(card.read_text() + "reggion: x\n")
    error = problems_of(project / "run.yaml")
    assert error.where == f"{card}, line 5, key 'reggion'"
    assert error.fix == "did you mean 'region'?"


@pytest.mark.fault(13, "data cards that contradict themselves")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: a\nrole: data\nregion: r\nfiles: [x.h5]\n", "need a prior: add 'composition:"),
        ("name: a\nrole: simulation\nregion: r\n", "either 'files' or a 'generate' block"),
        ("name: a\nrole: simulation\nregion: r\nfiles: [x]\ncomposition: {}\n", "belongs to the data"),
        ("name: a b\nrole: simulation\nregion: r\nfiles: [x]\n", "'a b'"),
        ("name: a\nrole: simulation\nregion: r\nfiles: [x]\nsha256: {x: abc}\n", "'abc'"),
    ],
)
def test_wrong_cards_are_refused(tmp_path, text, problem):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_card(path)
    assert problem in caught.value.problem
    assert str(path) in caught.value.where


def test_cards_must_agree_with_each_other(project):
    (project / "cards" / "data.yaml").write_text(
        "name: sim\nrole: data\nregion: other\ncomposition: {}\n"
        "generate:\n  process: dijet\n  world: shifte\n  jets: 3\n"
    )
    (project / "run.yaml").write_text(
        "name: x\ndata: {cards: [cards/sim.yaml, cards/data.yaml]}\n"
        "generate: {worlds: {nominal: {}, shifted: {}}}\n"
    )
    text = str(problems_of(project / "run.yaml"))
    card = project / "cards" / "data.yaml"
    assert text.startswith("3 problems")
    assert f"two data cards are named 'sim'\n    where:    {card}, line 1" in text
    assert f"unknown world 'shifte'\n    where:    {card}, line 7, key 'generate.world'" in text
    assert "did you mean 'shifted'?" in text
    assert f"no simulation of region 'other'\n    where:    {card}, line 3" in text


def test_the_resolved_configuration_of_given_scores_loads_to_the_same_run(project):
    card = "name: sim\nrole: simulation\nregion: r\nfiles: [a.h5]\nscores: {tagger: GN2v01}\n"
    (project / "cards" / "sim.yaml").write_text(card)
    loaded = load_run([project / "run.yaml"], ["tagger.kind=scores"])
    folder = project / "runs" / "scores"
    folder.mkdir(parents=True)
    (folder / "config.resolved.yaml").write_text(resolved_yaml(loaded, folder))
    assert load_run([folder / "config.resolved.yaml"]).config.calibration == loaded.config.calibration


def test_resolved_configuration_loads_to_the_same_run(project, monkeypatch):
    monkeypatch.chdir(project)
    loaded = load_run(["run.yaml"], ["data.root=somewhere"], seed=3)
    folder = project / "runs" / "test"
    folder.mkdir(parents=True)
    (folder / "config.resolved.yaml").write_text(resolved_yaml(loaded, folder))
    monkeypatch.chdir("/")
    again = load_run([folder / "config.resolved.yaml"])
    assert again.cards == loaded.cards
    assert [path.resolve() for path in again.card_paths] == [project / "cards" / "sim.yaml"]
    assert again.data_root is not None
    assert again.data_root.resolve() == project / "somewhere"
    same = ("cards", "root")
    assert again.config.model_dump(exclude={"data": same}) == loaded.config.model_dump(exclude={"data": same})
    assert resolved_yaml(again, folder) == (folder / "config.resolved.yaml").read_text()


def test_shipped_configurations_and_cards_are_valid():
    for name in shipped_names("configs"):
        alone = "name" in yaml.safe_load((shipped_path("configs") / f"{name}.yaml").read_text())
        load_run([name] if alone else ["demo", name])
    for path in shipped_path("data_cards").rglob("*.yaml"):
        assert load_card(path).name == path.stem
    for path in shipped_path("studies").rglob("*.yaml"):
        StudyConfig.model_validate(yaml.safe_load(path.read_text()))


def test_changes_are_laid_over_the_cards_they_name(tmp_path):
    changes = [
        "data.changes.data_*.composition.scale.c=0.7",
        "generate.scale={'data_*': 0.5, '*_dijet': 0.1}",
    ]
    cards = {card.name: card for card in load_run(["demo"], changes).cards}
    before = {card.name: card for card in load_run(["demo"]).cards}
    for name, card in cards.items():
        was = before[name]
        factor = (0.5 if name.startswith("data_") else 1) * (0.1 if name.endswith("_dijet") else 1)
        assert card.generate.jets == round(was.generate.jets * factor)
        if card.composition is not None:
            assert card.composition.scale["c"] == (0.7 if name.startswith("data_") else 0.8)
            assert card.composition.scale["light"] == was.composition.scale["light"]
    folder = tmp_path / "run"
    (folder / "config.yaml").parent.mkdir()
    (folder / "config.yaml").write_text(resolved_yaml(load_run(["demo"], changes), folder))
    assert {card.name: card for card in load_run([folder / "config.yaml"]).cards} == cards


def test_changes_that_concern_no_card_or_no_key_are_refused():
    with pytest.raises(ConfigError, match="no data card is named like 'dta_"):
        load_run(["demo"], ["data.changes.dta_*.use=truth"])
    with pytest.raises(ConfigError, match="unknown key 'composicion'") as caught:
        load_run(["demo"], ["data.changes.data_dijet.composicion={}"])
    assert "--set data.changes.data_dijet.composicion={}" in str(caught.value)


def test_a_misspelt_reference_region_and_a_range_outside_the_data_are_refused():
    with pytest.raises(ConfigError, match="no control region 'djet'"):
        load_run(["demo"], ["fit.reference_regions={light: djet}"])
    with pytest.raises(ConfigError, match="must lie within"):
        load_run(["demo"], ["fit.pt_gev_edges=[10, 50]"])


def test_demo_holds_what_the_analysis_needs():
    loaded = load_run(["demo"])
    regions = {"ttbar_emu", "w_charm", "dijet", "z_tautau", "ttbar_ljets"}
    jets = {}
    for kind, expected in (
        ("sim", regions),
        ("data", regions),
        ("truth", regions - {"ttbar_ljets"}),
        ("truth_sim", regions - {"ttbar_ljets"}),
    ):
        cards = {card.region: card for card in loaded.cards if card.name == f"{kind}_{card.region}"}
        assert set(cards) == expected
        jets[kind] = sum(card.generate.jets for card in cards.values())
        worlds = {card.generate.world for card in cards.values()}
        assert worlds == ({"nominal"} if kind in ("sim", "truth_sim") else {"shifted"})
    assert jets["sim"] >= 60_000
    assert jets["data"] >= 40_000
    assert jets["truth"] >= 10 * 0.4 * jets["data"] * 0.8  # ten times the measure fold of the control regions
    assert loaded.config.generate.worlds["shifted"] != loaded.config.generate.worlds["nominal"]


def test_a_plain_name_is_sought_among_the_shipped_only_if_no_such_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_configuration("demo").parent == shipped_path("configs")
    Path("demo").write_text("name: mine\n")
    assert find_configuration("demo") == Path("demo")
    with pytest.raises(ConfigError, match="no such configuration"):
        find_configuration("nothing")


def test_file_that_is_no_text_or_not_readable(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"name: x\nb: \xff\xfe\n")
    assert problems_of(path).where == f"{path}, line 2"
    assert "a directory" in problems_of(tmp_path).problem
    assert problems_of(tmp_path / "none.yaml").problem == "file not found"
    if os.geteuid():
        path.chmod(0)
        assert "cannot read" in problems_of(path).problem


def test_a_misspelt_path_names_the_nearest_file(project):
    assert problems_of(project / "rum.yaml").fix == f"did you mean '{project / 'run.yaml'}'?"
    assert problems_of(project / "quite_another.yaml").fix is None
    assert "no folder" in str(problems_of(project / "none" / "run.yaml").fix)


def test_the_directory_of_a_run_names_its_configuration(project, monkeypatch):
    (project / "config.resolved.yaml").write_text("name: test\n")
    error = problems_of(project)
    assert error.problem == "a directory, not a configuration"
    assert str(project / "config.resolved.yaml") in str(error.fix)
    monkeypatch.chdir(project)
    (project / "demo").mkdir()
    assert find_configuration("demo").parent == shipped_path("configs")


def test_what_is_no_configuration_by_itself_says_what_it_is(project):
    with pytest.raises(ConfigError, match="missing key 'data'") as caught:
        load_run(["small"])
    assert caught.value.fix is not None
    assert caught.value.fix.endswith("selfcal run demo small")
    assert problems_of(project / "cards" / "sim.yaml").problem == "a data card, not a run configuration"
    (project / "run.yaml").write_text("name: test\ndat:\n  cards: [cards/sim.yaml]\n")
    assert "did you mean 'data'?" in str(problems_of(project / "run.yaml"))
