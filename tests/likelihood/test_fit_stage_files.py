"""A fit that did not converge leaves no scale factors behind, unless they are asked for by force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.config.loading import load_run
from selfcal.config.tagger import TaggerConfig
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError, FitError
from selfcal.likelihood import fit as minimum
from selfcal.likelihood import stage
from selfcal.likelihood.alternative_tables import generators_json
from selfcal.likelihood.alternatives import Alternative
from selfcal.likelihood.build import MeasureFold
from selfcal.likelihood.profile import scan
from selfcal.likelihood.templates import Binning
from selfcal.likelihood.two_jets import FractionWidths, pair_counts, two_jets_json
from selfcal.run.atomic import read_json, write_text
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.transport.calibration import Calibration
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.maps import FlavourMaps, IdentityMap

SHAPE = np.array([0.2, 0.1, 0.15, 0.25, 0.3])
TAGS = Binning((20.0, 60.0, 250.0), (1.5, 2.5, 3.5, 4.5), (0.85, 0.77, 0.70, 0.60))


@pytest.fixture
def context_of(tmp_path, monkeypatch, one_flavour):
    """A run whose templates are given; nothing of the fit itself is replaced."""
    templates = one_flavour(4500 * SHAPE, SHAPE, size=2e4)
    fold = MeasureFold({}, {}, templates.binning, TaggerConfig())
    monkeypatch.setattr(stage, "load_calibration", lambda folder: type("Derived", (), {"regions": ()}))
    monkeypatch.setattr(stage, "measure_fold", lambda context, regions: fold)
    monkeypatch.setattr(stage, "build_templates", lambda fold, calibration: templates)

    def make(force: bool) -> RunContext:
        for role, prior in (("data", "composition: {}\n"), ("simulation", "")):
            card = f"name: {role}\nrole: {role}\nregion: ttbar_emu\nfiles: [{role}.h5]\n{prior}"
            write_text(tmp_path / f"{role}.yaml", card)
        settings = f"force: {str(force).lower()}, free_flavours: [b], goodness_toys: 0, impacts_refitted: 0"
        cards = "data: {cards: [data.yaml, simulation.yaml]}"
        write_text(tmp_path / "run.yaml", f"name: r\n{cards}\nfit: {{{settings}}}\n")
        loaded = load_run([str(tmp_path / "run.yaml")], ())
        return RunContext(
            loaded.config, loaded.cards, RunDirectory(tmp_path / "run"), card_folders=loaded.card_folders
        )

    return make


def test_without_convergence_the_exit_code_is_4_and_no_file_is_written(context_of, monkeypatch) -> None:
    monkeypatch.setattr(minimum, "GRADIENT_MAX", 0.0)
    context = context_of(force=False)
    with pytest.raises(FitError) as caught:
        stage.run_fit(context, blind=True)
    assert caught.value.exit_code == 4
    assert not list(context.directory.path.rglob("*.json"))


def test_by_force_they_are_written_and_marked(context_of, monkeypatch) -> None:
    monkeypatch.setattr(minimum, "GRADIENT_MAX", 0.0)
    context = context_of(force=True)
    stage.run_fit(context, blind=True)
    results = context.directory.results
    assert read_json(results / "scale_factors.json")["forced"] is True
    assert read_json(results / "fit.json")["certificate"]["converged"] is False


def test_a_converged_fit_is_not_marked(context_of) -> None:
    context = context_of(force=False)
    stage.run_fit(context, blind=True)
    assert read_json(context.directory.results / "scale_factors.json")["forced"] is False


def paired_jets(events: int, seed: int, role: str) -> ScoredJets:
    """Two jets of an event each, b or light; D_b is 1 to 5 (b) or 0 to 4 with falling shares (light)."""
    random = np.random.default_rng(seed)
    light = random.random((events, 2)) < 0.2
    tag = np.where(light, random.geometric(0.6, (events, 2)) - 1, random.integers(1, 6, (events, 2))).clip(
        max=5
    )
    logits = np.zeros((2 * events, 4))
    logits[:, 0] = tag.ravel()
    return ScoredJets(
        "ttbar_emu",
        logits - np.log(np.exp(logits).sum(1, keepdims=True)),
        random.uniform(30, 110, 2 * events),
        np.full(2 * events, 1.0),
        np.where(light.ravel(), 2, 0) if role == "simulation" else np.full(2 * events, -1),
        np.ones(2 * events),
        np.zeros(2 * events, dtype=np.int8),
        np.repeat(np.arange(events), 2),
    )


@pytest.fixture
def pairs() -> tuple[MeasureFold, Calibration]:
    """Data of the law of simulation, and maps that move nothing."""
    data, simulation = paired_jets(2000, 1, "data"), paired_jets(8000, 2, "simulation")
    maps, one = FlavourMaps(IdentityMap), torch.ones(1, 4)
    prior = CompositionPrior(one, one)
    frame = ScoreFrame((0.0,) * 3, (1.0,) * 3)
    calibration = Calibration(frame, ("ttbar_emu",), maps, maps, (), prior, one, one, one)
    regions = {"ttbar_emu": simulation}
    return MeasureFold(regions, {"ttbar_emu": data}, TAGS, TaggerConfig()), calibration


def test_the_two_jet_fit_is_that_of_the_pairs_of_its_region(pairs) -> None:
    fold, calibration = pairs
    config = FitConfig(two_jet_region="ttbar_emu", two_jet_mixed_width=0.4, two_jet_neither_width=0.2)
    content = stage.two_jets(fold, calibration, config, blind=False)
    data, simulation = fold.data["ttbar_emu"], fold.simulation["ttbar_emu"]
    values = tuple(fold.discriminant(jets) for jets in (data, simulation, simulation))
    width = config.residual_width["light"]
    counts = pair_counts(data, simulation, simulation, values, TAGS, width)
    expected = two_jets_json(counts, FractionWidths(0.4, 0.2), blinded=False)
    assert content["blinded"] is False
    assert [row["value"] for row in content["rows"]] == pytest.approx(
        [row["value"] for row in expected["rows"]], rel=1e-9
    )
    for row in content["rows"]:
        assert abs(row["value"] - 1) < 4 * row["total"]
    blind = stage.two_jets(fold, calibration, config, blind=True)
    assert blind["blinded"] is True
    assert [row["value"] for row in blind["rows"]] == pytest.approx([1.0] * len(blind["rows"]), abs=2e-3)
    assert any(abs(row["value"] - 1) > 5e-3 for row in content["rows"])


def test_a_two_jet_region_that_is_not_calibrated_is_named(pairs) -> None:
    with pytest.raises(ConfigError, match="no region 'dijet'") as caught:
        stage.two_jets(*pairs, FitConfig(two_jet_region="dijet"), blind=False)
    assert caught.value.where == "fit.two_jet_region"
    assert "ttbar_emu" in str(caught.value.expected)


def test_what_is_asked_for_beside_the_fit_has_files_of_its_own(context_of, pairs, monkeypatch) -> None:
    """Scans, pairs, factors between simulations, bins beyond the last: each file is what its maker gives."""
    fold, calibration = pairs
    jets = fold.simulation["ttbar_emu"]
    harder = replace(jets, pt_gev=2 * jets.pt_gev)
    shower = Alternative({"ttbar_emu": harder}, {"ttbar_emu": harder})
    fold = replace(fold, alternatives={"shower": shower})
    plain = context_of(force=False)
    asked = {
        "two_jet_region": "ttbar_emu",
        "scanned_working_points": (0.77,),
        "high_pt_gev_edges": (400.0,),
        "reference_regions": {"b": "ttbar_emu"},
    }
    config = plain.config.model_copy(update={"fit": plain.config.fit.model_copy(update=asked)})
    monkeypatch.setattr(stage, "load_calibration", lambda folder: calibration)
    monkeypatch.setattr(stage, "measure_fold", lambda context, regions: fold)
    context = replace(plain, config=config)
    written = {path.name for path in stage.run_fit(context, blind=True)}
    results = context.directory.results
    assert {"two_jets.json", "scans.json", "generators.json", "high_pt.json"} <= written
    assert read_json(results / "generators.json") == generators_json(fold, config.fit)
    assert read_json(results / "two_jets.json") == stage.two_jets(fold, calibration, config.fit, blind=True)
    rows = read_json(results / "scale_factors.json")["rows"]
    scanned = [rows[entry["row"]]["working_point"] for entry in read_json(results / "scans.json")["scans"]]
    assert scanned == [0.77]
    beyond = {tuple(row["pt_gev"]) for row in read_json(results / "high_pt.json")["rows"]}
    assert beyond == {(250.0, 400.0)}


def test_a_scan_that_fails_says_why_and_the_others_go_on(one_flavour, monkeypatch) -> None:
    measured = stage.measure(one_flavour(4500 * SHAPE, SHAPE, size=2e4), FitConfig(free_flavours=("b",)))
    config, tried = FitConfig(scanned_working_points=(0.85, 0.77)), []

    def first_fails(*given):
        tried.append(given)
        if len(tried) == 1:
            raise FitError("no way there")
        return scan(*given)

    monkeypatch.setattr(stage, "scan", first_fails)
    failed, done = stage.scans(measured, config)["scans"]
    assert failed["error"] == "no way there"
    assert set(failed) == {"row", "error"}
    assert done["rise"][len(done["rise"]) // 2] == 0


def test_channels_without_data_are_in_no_table_and_the_others_add_up(asimov_world) -> None:
    templates = asimov_world.templates
    data = templates.data.copy()
    data[3, 2] = 0.0
    measured = stage.measure(replace(templates, data=data), FitConfig())
    channels = stage.postfit_yields(measured)
    names = {measured.layout.channel(r, p) for r in range(4) for p in range(3)}
    assert {channel["name"] for channel in channels} == names - {measured.layout.channel(3, 2)}
    for channel in channels:
        of_flavours = np.sum(list(channel["flavours"].values()), axis=0)
        np.testing.assert_allclose(of_flavours, channel["total"], rtol=1e-9)


def test_a_simulation_without_statistical_error_has_no_parameters_for_it(one_flavour) -> None:
    templates = one_flavour(4500 * SHAPE, SHAPE, size=2e4)
    exact = replace(templates, calibrated_variance=np.zeros_like(templates.calibrated))
    config = FitConfig(free_flavours=("b",))
    with_error, without = (stage.measure(one, config).model.index for one in (templates, exact))
    assert sum(name.startswith("simulation_b") for name in with_error) == 5
    assert set(without) == {name for name in with_error if not name.startswith("simulation_")}


def test_every_bin_but_the_largest_of_a_shape_has_a_residual(asimov_world) -> None:
    measured = stage.measure(asimov_world.templates, FitConfig())
    layout, names = measured.layout, set(measured.model.index)
    for f, flavour in enumerate(layout.flavours):
        for p in range(layout.binning.n_kinematic):
            shape = layout.shape[layout.reference[f], f, p]
            found = {k for k in range(layout.binning.n_bins) if f"residual_{flavour}_{p}_{k}" in names}
            assert found == set(range(layout.binning.n_bins)) - {int(shape.argmax())}
