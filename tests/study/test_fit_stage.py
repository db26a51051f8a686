"""Which runs are blinded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfcal.config.loading import load_run
from selfcal.data.hdf5 import write_jets
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.study import fit_stage


@pytest.fixture
def context_of(tmp_path, make_jets):
    """``context_of(truth=..., unblind=...)``: data of two regions, the second with or without truth."""

    def make(truth: bool, unblind: bool) -> RunContext:
        for index, region in enumerate(("first", "second")):
            for role in ("simulation", "data"):
                name = f"{role}_{region}"
                jets = make_jets(4, jets=50, seed=index, dataset=name)
                known = np.asarray(jets.flavour) if role == "data" and (truth or index == 0) else None
                labels = role == "simulation"
                write_jets(tmp_path / f"{name}.h5", jets, labels=labels, closure_truth=known)
                prior = "composition: {}\n" if role == "data" else ""
                text = f"name: {name}\nrole: {role}\nregion: {region}\nfiles: [{name}.h5]\n{prior}"
                (tmp_path / f"{name}.yaml").write_text(text)
        cards = ", ".join(f"{r}_{n}.yaml" for r in ("simulation", "data") for n in ("first", "second"))
        (tmp_path / "run.yaml").write_text(
            f"name: small\ndata: {{cards: [{cards}]}}\nfit: {{unblind: {str(unblind).lower()}}}\n"
        )
        loaded = load_run([str(tmp_path / "run.yaml")], ())
        directory = RunDirectory(tmp_path / "run")
        return RunContext(loaded.config, loaded.cards, directory, card_folders=loaded.card_folders)

    return make


@pytest.mark.parametrize(
    ("truth", "unblind", "blind"),
    [(True, False, False), (False, False, True), (False, True, False), (True, True, False)],
)
def test_real_data_are_blinded_until_told_otherwise(context_of, monkeypatch, truth, unblind, blind) -> None:
    seen: list[bool] = []

    def fit_seen(context: RunContext, *, blind: bool) -> list[Path]:
        seen.append(blind)
        return []

    monkeypatch.setattr(fit_stage, "run_fit", fit_seen)
    monkeypatch.setattr(fit_stage, "run_closure", lambda context: [])
    assert fit_stage.run_fit_and_closure(context_of(truth=truth, unblind=unblind)) == []
    assert seen == [blind]
