"""Which jets the likelihood sees: data that shaped nothing, simulation that did not train the tagger."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.card import DataCard
from selfcal.config.fit import FitConfig
from selfcal.config.inference import InferenceConfig
from selfcal.config.run import DataConfig, RunConfig
from selfcal.data.folds import Fold
from selfcal.data.score_files import NOMINAL, save_scores, scores_path
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.likelihood.build import measure_fold
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory

JETS = 300


def scored_jets(labelled: bool) -> ScoredJets:
    """Two jets an event; events go to the folds in turn."""
    generator = np.random.default_rng(5)
    event = np.arange(JETS) // 2
    flavour = generator.integers(0, 4, JETS) if labelled else np.full(JETS, -1)
    return ScoredJets(
        region="a",
        log_probability=np.log(generator.dirichlet(np.ones(4), JETS)),
        pt_gev=generator.uniform(20, 250, JETS),
        abs_eta=generator.uniform(0, 2.5, JETS),
        flavour=flavour.astype(np.int8),
        weight=np.ones(JETS),
        fold=(event % 3).astype(np.int8),
        event=event,
    )


def context_of(folder, *, inferred: bool) -> RunContext:
    """One region, scored; with ``inferred`` the simulation as it is and one other detector beside it."""
    cards = tuple(
        DataCard(name=f"{role}_a", role=role, region="a", files=(f"{role}_a.h5",), **more)
        for role, more in (("simulation", {}), ("data", {"composition": {}}))
    )
    config = RunConfig(
        name="test",
        data=DataConfig(cards=("unused.yaml",)),
        fit=FitConfig(working_point_region="a"),
        inference=InferenceConfig(enabled=inferred),
    )
    context = RunContext(config, cards, RunDirectory(folder / "run"), data_root=folder)
    for card in cards:
        save_scores(scores_path(context, card), scored_jets(card.role == "simulation"))
    if inferred:
        save_scores(scores_path(context, cards[0], NOMINAL), scored_jets(labelled=True))
    return context


def test_data_are_of_the_measure_fold_and_simulation_is_all_that_trained_nothing(tmp_path):
    fold = measure_fold(context_of(tmp_path, inferred=False), ("a",))
    assert set(fold.data["a"].fold) == {Fold.MEASURE}
    assert set(fold.simulation["a"].fold) == {Fold.DERIVE, Fold.MEASURE}
    assert len(fold.simulation["a"]) == 2 * len(fold.data["a"]) == 2 * JETS / 3
    assert np.array_equal(fold.nominal["a"].event, fold.simulation["a"].event)


def test_another_detector_has_the_same_folds_or_is_refused(tmp_path):
    context = context_of(tmp_path, inferred=True)
    path = scores_path(context, context.cards[0], "detector_0")
    jets = scored_jets(labelled=True)
    save_scores(path, jets.select(jets.fold != Fold.TRAIN))
    (varied,) = measure_fold(context, ("a",)).detector
    assert set(varied["a"].fold) == {Fold.DERIVE, Fold.MEASURE}
    save_scores(path, jets.select(jets.fold == Fold.MEASURE))
    with pytest.raises(DataError, match="100 jets with another detector, 200 simulated ones") as caught:
        measure_fold(context, ("a",))
    assert caught.value.fix == "run 'selfcal calibrate' again: the scores are of another version"


def test_jets_beyond_the_last_abs_eta_are_left_out(tmp_path):
    context = context_of(tmp_path, inferred=False)
    config = context.config.model_copy(
        update={"fit": FitConfig(working_point_region="a", abs_eta_edges=(0.0, 1.0))}
    )
    fold = measure_fold(replace(context, config=config), ("a",))
    assert fold.data["a"].abs_eta.max() < 1.0
    assert fold.simulation["a"].abs_eta.max() < 1.0
