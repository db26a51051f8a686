"""Four regions of a few hundred synthetic jets each, whose whole chain takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from selfcal.data.flavours import FLAVOURS
from selfcal.data.hdf5 import write_jets
from tests.conftest import make_synthetic_jets

REGIONS = {"ttbar_emu": "b", "w_charm": "c", "dijet": "light", "z_tautau": "tau"}
"""The flavour that most jets of a region have."""

SETTINGS = """
name: small
data: {root: files, cards: [CARDS]}
training: {epochs: 6, batch_size: 64}
tagger: {width: 16, layers: 1, heads: 2, feedforward_width: 16, latent: 8, dropout: 0.1}
calibration:
  base_density: {steps: 25, hidden_width: 8, transforms: 1, batch_size: 128}
  composition: {steps: 25, batch_size: 64}
  map: {steps: 25, batch_size: 128, hidden_width: 8}
  joint: {epochs: 4, batch_size: 128}
  bootstraps: 2
  bootstrap_steps: 10
  seeds: 1
  workers: 1
fit: {pt_gev_edges: [20, 250], impacts_refitted: 1, goodness_toys: 4}
"""


STUDY = """
name: small
description: Two fits that share all before them.
base: run.yaml
until: fit
axes: {fit.extrapolation_fraction: [0.4, 0.6]}
collect: [scale_factors.rows]
expected: The same numbers, however often it is killed.
"""


def make_small_project(folder: Path) -> None:
    """Files, cards, ``run.yaml`` and ``study.yaml`` in ``folder``."""
    generator = np.random.default_rng(3)
    (folder / "files").mkdir(parents=True)
    (folder / "cards").mkdir()
    cards = []
    for number, (region, leading) in enumerate(REGIONS.items()):
        for role in ("simulation", "data"):
            name = f"{role}_{region}"
            jets = make_synthetic_jets(3, jets=1600, seed=10 * number + (role == "data"), dataset=name)
            share = np.where(np.arange(len(FLAVOURS)) == FLAVOURS.index(leading), 0.9, 0.15)
            jets = jets.select(generator.random(len(jets)) < share[jets.flavour])
            truth = None if role == "simulation" else np.asarray(jets.flavour)
            write_jets(folder / f"files/{name}.h5", jets, labels=truth is None, closure_truth=truth)
            text = f"name: {name}\nrole: {role}\nregion: {region}\nfiles: [{name}.h5]\n"
            if role == "data":
                text += "composition: {relative_uncertainty: 0.2}\n"
            (folder / f"cards/{name}.yaml").write_text(text)
            cards.append(f"cards/{name}.yaml")
    (folder / "run.yaml").write_text(SETTINGS.replace("CARDS", ", ".join(cards)))
    (folder / "study.yaml").write_text(STUDY)
