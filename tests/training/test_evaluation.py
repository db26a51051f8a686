"""Rejections and their errors against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.data.flavours import LIGHT, TAU, B
from selfcal.training.evaluation import add_bootstrap_errors, rejections


def _jets(n_signal=2000, n_light=5000, seed=1, signal=B):
    """Signal uniform on (0, 1), light uniform on (-1, 1): at signal efficiency e, light passes with e / 2."""
    generator = np.random.default_rng(seed)
    discriminant = np.concatenate([generator.uniform(0, 1, n_signal), generator.uniform(-1, 1, n_light)])
    flavour = np.repeat([signal, LIGHT], [n_signal, n_light])
    return discriminant, flavour, np.ones(n_signal + n_light)


@pytest.mark.parametrize("signal", [B, TAU])
def test_rejections_of_uniform_discriminants(signal):
    rows = rejections(*_jets(signal=signal), [0.5, 0.8], signal)
    for row, e in zip(rows, (0.5, 0.8), strict=True):
        assert row["threshold"] == pytest.approx(1 - e, abs=0.05)
        assert row["light"]["rejection"] == pytest.approx(2 / e, rel=0.1)
        assert "c" not in row


def test_bootstrap_error_is_the_spread_over_experiments():
    """Both the background that passes and the threshold fluctuate: the spread of repeated experiments."""
    found = [rejections(*_jets(seed=seed), [0.5])[0]["light"]["rejection"] for seed in range(300)]
    jets = _jets(seed=1000)
    rows = rejections(*jets, [0.5])
    add_bootstrap_errors(rows, *jets, event=np.arange(len(jets[0])), replicas=200)
    error = rows[0]["light"]["rejection_bootstrap_error"]
    assert error == pytest.approx(np.std(found), rel=0.2)
    assert error > 1.15 * rows[0]["light"]["rejection_error"]


def test_jets_of_one_event_count_together():
    """Every jet twice in the same event: the error is that of half as many jets."""
    discriminant, flavour, weight = (np.repeat(x, 2) for x in _jets())
    rows = rejections(discriminant, flavour, weight, [0.5])
    add_bootstrap_errors(rows, discriminant, flavour, weight, np.arange(len(weight)) // 2, replicas=200)
    alone = rejections(*_jets(), [0.5])
    add_bootstrap_errors(alone, *_jets(), event=np.arange(len(weight) // 2), replicas=200)
    pair = [one[0]["light"]["rejection_bootstrap_error"] for one in (rows, alone)]
    assert pair[0] == pytest.approx(pair[1], rel=0.02)


def test_no_jet_passing_leaves_rejection_and_error_undefined():
    discriminant = np.array([1.0, 2.0, -1.0, -2.0])
    flavour = np.array([B, B, LIGHT, LIGHT])
    rows = rejections(discriminant, flavour, np.ones(4), [0.5])
    add_bootstrap_errors(rows, discriminant, flavour, np.ones(4), np.arange(4))
    assert rows[0]["light"]["rejection"] is None
    assert rows[0]["light"]["rejection_bootstrap_error"] is None
