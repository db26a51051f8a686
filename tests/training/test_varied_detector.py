"""Simulation in detectors drawn anew: the same jets row by row, other tracks in every epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.smearing_parameters import PARAMETERS, prior_widths
from selfcal.sbi.donors import collect_donors
from selfcal.tagger.batching import TensorJets, to_tensors
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.training.varied_detector import SLICES, RandomDetector, varied_tensors


@pytest.fixture
def toys(make_jets):
    samples = [make_jets(6, jets=90, seed=seed, dataset=f"toy {seed}") for seed in (1, 2)]
    inputs = common_inputs(samples)
    norm = Normalisation.measure([compute_features(jets, inputs) for jets in samples])

    def tensors(jets) -> TensorJets:
        return to_tensors(jets, inputs, norm)

    return samples, tensors


def test_rows_correspond_and_epochs_differ(toys) -> None:
    samples, tensors = toys
    detector = RandomDetector(np.diag(prior_widths({})), collect_donors(samples, 3), 3)
    first, again, second = (varied_tensors(samples, tensors, detector, epoch) for epoch in (0, 0, 1))
    nominal = torch.cat([tensors(jets).flavour for jets in samples])
    energies = torch.cat([tensors(jets).jet for jets in samples])
    for varied in (first, second):
        assert torch.equal(varied.flavour, nominal)
        assert torch.equal(varied.jet, energies)
    assert torch.equal(first.tracks, again.tracks)
    assert first.tracks.shape != second.tracks.shape or not torch.equal(first.tracks, second.tracks)


def test_without_width_nothing_changes(toys) -> None:
    samples, tensors = toys
    still = RandomDetector(np.zeros((2, len(PARAMETERS))), collect_donors(samples, 3), 3)
    varied = varied_tensors(samples, tensors, still, 4)
    assert torch.equal(varied.tracks, torch.cat([tensors(jets).tracks for jets in samples]))


def test_detectors_have_the_wanted_spread(toys) -> None:
    """d0 biases drawn with 0.05 mm: the mean shift of a slice's tracks has that standard deviation."""
    samples, _ = toys
    width = np.zeros((1, len(PARAMETERS)))
    width[0, PARAMETERS.index("d0_bias_mm")] = 0.05
    detector = RandomDetector(width, collect_donors(samples, 3), 3)
    column = samples[0].track_fields.index("d0")
    shifts = []
    for epoch in range(100):
        moved = detector(samples[0], epoch)
        shifts.append(float((moved.tracks[:, column] - samples[0].tracks[:, column]).mean()))
    assert np.std(shifts) == pytest.approx(0.05, rel=0.3)
    assert abs(np.mean(shifts)) < 0.02


def test_every_slice_has_its_own_detector(toys) -> None:
    samples, tensors = toys
    seen = []

    def record(jets, epoch):
        seen.append((epoch, len(jets)))
        return jets

    varied_tensors(samples, tensors, record, 2)
    assert len(seen) == 2 * SLICES
    assert sum(size for _, size in seen) == sum(len(jets) for jets in samples)
