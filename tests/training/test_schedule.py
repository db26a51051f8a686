"""The learning rate follows its formula."""

from __future__ import annotations

from itertools import pairwise

import pytest

from selfcal.training.schedule import learning_rate


def test_rises_to_the_peak_and_falls_to_zero():
    rates = [learning_rate(step, 100, 2e-3, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([2e-4 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2e-3)
    assert rates[55] == pytest.approx(1e-3)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-6


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (3, 0.0)])
def test_short_trainings_have_a_positive_first_rate(steps, warmup):
    assert learning_rate(0, steps, 1.0, warmup) == 1.0
