"""Scored datasets keep what belongs to their jets."""

from __future__ import annotations

import numpy as np

from selfcal.training.scores_stage import event_index


def test_event_index_numbers_distinct_events_consecutively():
    run = np.array([2, 1, 1, 2, 1])
    event = np.array([7, 7, 9, 7, 7])
    np.testing.assert_array_equal(event_index(run, event), [2, 0, 1, 2, 0])
    assert event_index(run[:0], event[:0]).shape == (0,)
