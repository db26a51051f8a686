"""Weights do exactly what they promise to spectra and totals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.training import TrainingConfig
from selfcal.errors import DataError
from selfcal.tagger.batching import TensorJets
from selfcal.training.reweighting import balance_factors, kinematic_factors, reweighted


def _jets(n=4000):
    """Flavours 0, 1, 2 with different spectra, no 3; unequal weights."""
    generator = np.random.default_rng(1)
    flavour = generator.choice(3, n, p=[0.2, 0.1, 0.7])
    kinematics = generator.normal(0.4 * flavour[:, None] * [1, -0.5], 1.0, (n, 2)).astype(np.float32)
    none = torch.zeros(0, dtype=torch.int64)
    return TensorJets(
        tracks=torch.zeros(0, 1),
        offsets=torch.zeros(n + 1, dtype=torch.int64),
        jet=torch.from_numpy(kinematics),
        flavour=torch.from_numpy(flavour),
        origin=none,
        vertex=none,
        weight=torch.from_numpy(generator.uniform(0.5, 2, n).astype(np.float32)),
    )


def _spectra(jets, weight, bins=4):
    """Share of each flavour's weight in the cells of quantiles of flavour 0."""
    flavour, kinematics = jets.flavour.numpy(), jets.jet.numpy()
    edges = [np.quantile(column[flavour == 0], np.arange(1, bins) / bins) for column in kinematics.T]
    cell = np.stack([np.searchsorted(e, c, side="right") for e, c in zip(edges, kinematics.T, strict=True)])
    result = []
    for k in range(3):
        chosen = flavour == k
        counts = np.bincount(cell[0, chosen] * bins + cell[1, chosen], weight[chosen], minlength=bins**2)
        result.append(counts / counts.sum())
    return np.array(result)


def test_every_flavour_gets_the_spectrum_of_the_reference():
    jets = _jets()
    config = TrainingConfig(match_kinematics_to="b", kinematic_bins=4, kinematic_weight_max=1e6)
    before, weight = jets.weight.numpy(), reweighted(jets, config).weight.numpy()
    spectra = _spectra(jets, weight)
    np.testing.assert_allclose(spectra[1:], np.stack([spectra[0]] * 2), rtol=1e-5)
    assert np.abs(_spectra(jets, before)[2] / spectra[0] - 1).max() > 0.5
    flavour = jets.flavour.numpy()
    np.testing.assert_array_equal(weight[flavour == 0], before[flavour == 0])
    for k in (1, 2):
        assert weight[flavour == k].sum() == pytest.approx(before[flavour == k].sum(), rel=1e-5)


def test_factors_are_capped():
    jets = _jets()
    arguments = (jets.jet.numpy(), jets.flavour.numpy(), jets.weight.numpy().astype(np.float64))
    free, capped = (
        kinematic_factors(*arguments, reference=0, bins=4, largest=largest) for largest in (1e6, 1.2)
    )
    light = jets.flavour.numpy() == 2
    spread = [f[light].max() / f[light].min() for f in (free, capped)]
    assert spread[1] < spread[0]
    assert free[light].max() > 1.5 * capped[light].max()


def test_balanced_flavours_get_the_same_total_and_keep_the_sum():
    flavour = np.array([0] * 10 + [1] * 5 + [2] * 85 + [-1] * 3)
    weight = np.linspace(0.5, 2, len(flavour))
    after = weight * balance_factors(flavour, weight)
    totals = [after[flavour == k].sum() for k in range(3)]
    np.testing.assert_allclose(totals, weight[flavour >= 0].sum() / 3, rtol=1e-12)
    np.testing.assert_array_equal(after[-3:], weight[-3:])


def test_given_factors_come_on_top():
    jets = _jets()
    plain = reweighted(jets, TrainingConfig(balance_flavours=True)).weight
    charm = reweighted(jets, TrainingConfig(balance_flavours=True, flavour_weights={"c": 3.0})).weight
    ratio = (charm / plain).numpy()
    np.testing.assert_allclose(ratio, np.where(jets.flavour == 1, 3.0, 1.0), rtol=1e-6)


def test_nothing_asked_nothing_changed():
    jets = _jets()
    assert torch.equal(reweighted(jets, TrainingConfig()).weight, jets.weight)


def test_a_missing_reference_is_a_data_error():
    with pytest.raises(DataError, match="tau"):
        reweighted(_jets(), TrainingConfig(match_kinematics_to="tau"))
