"""Other simulations: nuisances of the fit, factors between simulations, and what lies beyond the last bin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfcal.config.card import DataCard
from selfcal.config.fit import FitConfig
from selfcal.config.run import DataConfig, RunConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.data.score_files import load_scores, save_scores, scores_path
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError
from selfcal.likelihood.alternative_tables import generators_json, high_pt_json
from selfcal.likelihood.alternatives import (
    Alternative,
    efficiencies,
    modelling_template,
    pt_trend,
    read_alternatives,
)
from selfcal.likelihood.build import MeasureFold
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import Binning, read_templates, templates_json
from selfcal.run.atomic import write_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory

REFERENCE = {"b": "ttbar_emu"}
SHAPE = np.array([0.1, 0.1, 0.1, 0.1, 0.6])
LAST_BIN = Binning((100.0, 250.0), (0.5, 1.5, 2.5, 3.5), (0.85, 0.77, 0.70, 0.60))


def b_jets(share_passing: list[float], each: int = 20_000, weight: float = 1.0) -> ScoredJets:
    """b jets in equal numbers at 50, 150, 300 GeV, of which these shares pass D_b > 0."""
    logits, pt_gev = [], []
    for share, pt in zip(share_passing, (50.0, 150.0, 300.0), strict=True):
        passing = np.arange(each) < share * each
        logits.append(np.where(passing[:, None], [4.0, 0, 0, 0], [-4.0, 0, 0, 0]))
        pt_gev.append(np.full(each, pt))
    values = np.concatenate(logits)
    count = len(values)
    return ScoredJets(
        region="ttbar_emu",
        log_probability=values - np.log(np.exp(values).sum(1, keepdims=True)),
        pt_gev=np.concatenate(pt_gev),
        abs_eta=np.full(count, 1.0),
        flavour=np.zeros(count, dtype=np.int64),
        weight=np.full(count, weight),
        fold=np.zeros(count, dtype=np.int64),
        event=np.arange(count),
    )


def fold_of(**others: ScoredJets) -> MeasureFold:
    nominal = {"ttbar_emu": b_jets([0.8, 0.75, 0.6])}
    binning = Binning((20.0, 100.0, 250.0), (0.0,), (0.77,))
    alternatives = {n: Alternative({"ttbar_emu": j}, {"ttbar_emu": j}) for n, j in others.items()}
    return MeasureFold(nominal, nominal, binning, TaggerConfig(), nominal, (), alternatives)


def test_factors_between_simulations_are_ratios_of_efficiencies_with_binomial_errors() -> None:
    table = generators_json(fold_of(shower=b_jets([0.84, 0.75, 0.6])), FitConfig(reference_regions=REFERENCE))
    rows = table["rows"]
    assert [(row["variation"], row["flavour"], row["pt_gev"]) for row in rows] == [
        ("shower", "b", [20.0, 100.0]),
        ("shower", "b", [100.0, 250.0]),
    ]
    assert [row["value"] for row in rows] == pytest.approx([0.84 / 0.8, 1.0])
    wanted = 1.05 * np.sqrt((1 - 0.84) / 0.84 / 20_000 + (1 - 0.8) / 0.8 / 20_000)
    assert rows[0]["stat"] == pytest.approx(wanted, rel=1e-6)


def test_the_error_of_an_efficiency_follows_the_effective_number_of_jets() -> None:
    counts, variance = np.array([[[30.0, 70.0]]]), np.array([[[60.0, 140.0]]])
    share, error = efficiencies(counts, variance)
    assert share[0, 0] == pytest.approx([0.7])
    assert error[0, 0] == pytest.approx([0.7 * 0.3 / 50])


def test_beyond_the_last_bin_the_trends_of_all_variations_add_up(one_flavour) -> None:
    """Nominal 0.75 → 0.60; the shower loses 10 % more there, radiation 5 % less; both agree at 150 GeV."""
    templates = replace(one_flavour(4e3 * SHAPE, SHAPE), binning=LAST_BIN)
    factors = measure(templates, FitConfig(free_flavours=("b",))).factors
    fold = fold_of(shower=b_jets([0.8, 0.75, 0.54]), radiation=b_jets([0.4, 0.375, 0.315]))
    fold = replace(fold, binning=templates.binning)
    config = FitConfig(
        reference_regions=REFERENCE, pt_gev_edges=(100.0, 250.0), high_pt_gev_edges=(500.0, 900.0)
    )
    table = high_pt_json(fold, factors, config, blinded=False)["rows"]
    rows = [row for row in table if (row["flavour"], row["working_point"]) == ("b", 0.77)]
    assert [(row["pt_gev"], row["status"]) for row in rows] == [
        ([250.0, 500.0], "extrapolated"),
        ([500.0, 900.0], "unmeasured"),
    ]
    place = [i for i, row in enumerate(factors.rows) if row.flavour == "b" and row.working_point == 0.77]
    s = factors.measured.tolist().index(place[0])
    value, last = factors.value[s], np.sqrt(factors.covariance[s, s])
    found = rows[0]
    assert found["value"] == pytest.approx(value)
    assert found["syst"] == pytest.approx(
        {"last_bin": last, "modelling_shower": 0.1 * value, "modelling_radiation": 0.05 * value}, rel=1e-6
    )
    assert found["total"] == pytest.approx(np.sqrt(last**2 + value**2 * (0.1**2 + 0.05**2)))
    assert rows[1]["value"] is None


def test_a_common_factor_is_no_trend() -> None:
    around = np.random.default_rng(1).uniform(0.2, 0.9, (4, 6, 3))
    assert pt_trend(1.3 * around, around, n_eta=2) == pytest.approx(np.zeros((4, 6, 3)), abs=1e-12)


def test_without_any_variation_nothing_is_extrapolated(one_flavour) -> None:
    templates = replace(one_flavour(4e3 * SHAPE, SHAPE), binning=LAST_BIN)
    factors = measure(templates, FitConfig(free_flavours=("b",))).factors
    with pytest.raises(ConfigError, match="beyond the last pT bin"):
        high_pt_json(fold_of(), factors, FitConfig(high_pt_gev_edges=(500.0,)), blinded=False)


def test_an_alternative_keeps_the_jets_of_every_region_and_flavour() -> None:
    random = np.random.default_rng(2)
    calibrated = random.uniform(1, 9, (2, 4, 3, 5))
    other = random.uniform(1, 9, (4, 3, 5))
    other[2] = 0.0
    result = modelling_template({"first": other}, ("first", "second"), calibrated)
    assert result[1] == pytest.approx(calibrated[1])
    assert result[0, 2] == pytest.approx(calibrated[0, 2])
    assert result.sum(axis=(2, 3)) == pytest.approx(calibrated.sum(axis=(2, 3)))
    assert result[0, 0] / result[0, 0].sum() == pytest.approx(other[0] / other[0].sum())


def test_modelling_is_one_nuisance_of_all_flavours_with_a_group_of_its_own(asimov_world, tmp_path) -> None:
    templates = asimov_world.templates
    tilt = 1 + 0.1 * np.linspace(-1, 1, 5)
    varied = {"radiation": templates.calibrated * tilt}
    templates = replace(templates, modelling=varied)
    write_json(tmp_path / "templates.json", templates_json(templates))
    back = read_templates(tmp_path / "templates.json")
    np.testing.assert_array_equal(back.modelling["radiation"], varied["radiation"])
    measured = measure(back, FitConfig())
    model = measured.model
    assert [name for name in model.index if name.startswith("modelling_")] == ["modelling_radiation"]
    touched = {cell.sample[0] for cell, moved in zip(model.cells, _moved(model), strict=True) if moved}
    assert touched == {"b", "c", "l", "t"}
    sigma = np.sqrt(np.diag(measured.factors.group_covariance["modelling"]))
    assert sigma.max() > 1e-3
    blind = measure(back, FitConfig(), blind=True)
    assert "modelling_radiation" in blind.model.index
    assert blind.factors.value == pytest.approx(np.ones(len(blind.factors.value)), abs=1e-6)


def _moved(model) -> list[bool]:
    theta = model.start.clone()
    theta[model.index["modelling_radiation"]] = 1.0
    return (abs(model.rates(theta) / model.rates(model.start) - 1) > 1e-3).tolist()


def context_with(tmp_path: Path, *cards: DataCard) -> RunContext:
    config = RunConfig(name="r", data=DataConfig(cards=("unused.yaml",)), fit=FitConfig(abs_eta_edges=(0, 2)))
    return RunContext(config, cards, RunDirectory(tmp_path))


def alternative(name: str, region: str, variation: str) -> DataCard:
    return DataCard(
        name=name, role="simulation", region=region, use="alternative", variation=variation, files=("a.h5",)
    )


def test_the_jets_of_an_alternative_are_those_of_all_its_datasets_in_every_fold(tmp_path) -> None:
    """Two datasets of one region, one of another, and a second variation; jets beyond |eta| are left out."""
    cards = (
        alternative("shower_1", "ttbar_emu", "shower"),
        alternative("shower_2", "ttbar_emu", "shower"),
        alternative("shower_3", "dijet", "shower"),
        alternative("radiation", "dijet", "radiation"),
    )
    context, random = context_with(tmp_path, *cards), np.random.default_rng(3)
    for number, card in enumerate(cards):
        jets = b_jets([0.5, 0.5, 0.5], each=10 + number)
        fold, abs_eta = random.integers(0, 3, len(jets)), random.uniform(0, 2.5, len(jets))
        save_scores(scores_path(context, card), replace(jets, fold=fold, abs_eta=abs_eta))
    found = read_alternatives(context, ("ttbar_emu", "dijet"))
    assert list(found) == ["shower", "radiation"]
    assert {name: set(one.simulation) for name, one in found.items()} == {
        "shower": {"ttbar_emu", "dijet"},
        "radiation": {"dijet"},
    }
    expected = [load_scores(scores_path(context, card), card.region) for card in cards]
    for jets, parts in (
        (found["shower"].simulation["ttbar_emu"], expected[:2]),
        (found["shower"].simulation["dijet"], expected[2:3]),
        (found["radiation"].nominal["dijet"], expected[3:]),
    ):
        inside = [part.select(part.abs_eta < 2) for part in parts]
        np.testing.assert_array_equal(jets.pt_gev, np.concatenate([part.pt_gev for part in inside]))
        assert set(jets.fold.tolist()) == {0, 1, 2}
        assert len(np.unique(jets.event)) == len(jets)
    with pytest.raises(ConfigError, match="'shower' is of a region that is not calibrated") as caught:
        read_alternatives(context, ("ttbar_emu",))
    assert caught.value.where == "region dijet"
    assert str(caught.value.expected) == "one of ttbar_emu"


def test_a_bin_that_no_jet_of_an_alternative_passes_has_no_factor() -> None:
    fold = fold_of(shower=b_jets([0.84, 0.0, 0.6]), radiation=b_jets([0.4, 0.75, 0.6]))
    rows = generators_json(fold, FitConfig(reference_regions=REFERENCE))["rows"]
    assert [(row["variation"], row["pt_gev"]) for row in rows] == [
        ("shower", [20.0, 100.0]),
        ("radiation", [20.0, 100.0]),
        ("radiation", [100.0, 250.0]),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use": "alternative"}, "belong together"),
        ({"variation": "shower"}, "belong together"),
        ({"role": "data", "use": "alternative", "variation": "shower"}, "only simulation"),
    ],
)
def test_an_alternative_needs_a_name_and_is_simulation(change, message) -> None:
    card = {"name": "a", "role": "simulation", "region": "ttbar_emu", "files": ["a.h5"], **change}
    with pytest.raises(ValueError, match=message):
        DataCard.model_validate(card)


def test_bins_beyond_begin_where_the_measured_ones_end() -> None:
    with pytest.raises(ValueError, match="high_pt_gev_edges"):
        FitConfig(high_pt_gev_edges=(200.0,))
