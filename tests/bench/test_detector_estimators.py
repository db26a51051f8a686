"""The comparison of detector estimators: one experiment of each, the table on posteriors that are known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.detector_estimators import METHODS, prepare, run_experiment, table, text, with_drawn_weights
from selfcal.config.inference import InferenceConfig, NeuralConfig
from selfcal.config.smearing_parameters import PARAMETERS
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.jet_scores import JetRows
from tests.conftest import make_synthetic_jets


def experiment(generator, index, scale=1.0):
    """Truths from unit Gaussians, estimates with the errors they claim (times ``scale``)."""
    size = len(PARAMETERS)
    truth = generator.normal(size=size)
    # The posterior mean of a measurement with variance 1 of a truth with variance 1.
    value = 0.5 * (truth + generator.normal(size=size))
    sigma = scale * np.sqrt(0.5)
    rows = [
        {"parameter": name, "value": v, "truth": t, "total": sigma}
        for name, v, t in zip(PARAMETERS, value, truth, strict=True)
    ]
    content = {"detector": rows, "covariance": (sigma**2 * np.eye(size)).tolist()}
    return {"index": index, "neural": content, "seconds": {"neural": 2.0}}


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "exact"), (0.5, "over-confident")])
def test_the_table_tells_good_posteriors_from_narrow_ones(scale, verdict):
    generator = np.random.default_rng(1)
    found = table([experiment(generator, i, scale) for i in range(300)], ["neural"])["neural"]
    assert set(found["calibration"]["verdicts"]) == {verdict}
    assert found["coverage_68"] == pytest.approx(0.683 if scale == 1 else 0.383, abs=0.03)
    assert (found["calibration"]["tarp_p_value"] > 0.01) == (scale == 1)
    printed = text({"neural": found})
    assert all(name in printed for name in PARAMETERS)
    assert "2.0 s of CPU each" in printed


def test_drawn_weights_are_off_by_the_error_in_every_bin():
    """A jet with n tracks in a bin has 1 + n times the bin's error as its weight."""
    generator = np.random.default_rng(2)
    n = 3000
    index = np.zeros(n, np.int64)
    counts = np.eye(3, dtype=np.uint8)[index + np.arange(n) % 3] * 2
    rows = JetRows(
        np.zeros((n, 0)),
        counts,
        np.zeros((n, 2)),
        index,
        index,
        np.ones(n),
        np.zeros((n, 0)),
        np.arange(n, dtype=np.uint64),
    )
    shifts = []
    for _ in range(200):
        weight = with_drawn_weights(rows, generator, 0.1).weight
        assert weight.sum() == pytest.approx(n)
        assert all(np.ptp(weight[b::3]) < 1e-12 for b in range(3))
        shifts.append(weight[:3] - 1)
    # Less the mean of three, which the sum takes out.
    assert np.std(shifts) == pytest.approx(0.2 * np.sqrt(2 / 3), rel=0.12)


def test_an_experiment_is_its_index_and_estimates_with_both(tmp_path):
    jets = make_synthetic_jets(6, jets=1500, seed=1, dataset="sim")
    region = RegionTracks("r", [jets], [], np.full(4, 0.25), np.full(4, 0.2))
    neural = NeuralConfig(networks=1, passes=2, hidden_width=16, steps=20, batch_size=256)
    config = InferenceConfig(points=1, neural=neural)
    laboratory = prepare([region], [300], config, 1, METHODS, tmp_path)
    first, again = (run_experiment(laboratory, 3) for _ in range(2))
    truths = []
    for method in METHODS:
        assert first["seconds"][method] > 0
        assert first[method] == again[method]
        assert all(row["total"] > 0 for row in first[method]["detector"])
        truths.append([row["truth"] for row in first[method]["detector"]])
    assert truths[0] == truths[1]
