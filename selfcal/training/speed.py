"""How many jets a tagger trains on and scores per CPU-second on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from selfcal.config.training import TrainingConfig
from selfcal.data.jets import Jets
from selfcal.tagger.bundle import TaggerBundle
from selfcal.tagger.scoring import score_tensors
from selfcal.training.objectives import supervised_loss

TIMED_JETS = 4096


def measure_speed(bundle: TaggerBundle, samples: Sequence[Jets], training: TrainingConfig) -> dict[str, Any]:
    """Jets per CPU-second, of all threads together, on at most ``TIMED_JETS`` of ``samples``.

    ``train``: batches, forward, losses and backward, without the optimiser's step; the
    model is left as it was. ``score``: forward of the flavour alone. Inputs are computed
    beforehand. One warm-up each.
    """
    jets = next((jets for jets in samples if len(jets)), samples[0])
    chosen = bundle.tensors(jets.select(np.arange(min(len(jets), TIMED_JETS))))
    order = np.argsort(chosen.n_tracks, kind="stable")
    batches = [order[i : i + training.batch_size] for i in range(0, len(order), training.batch_size)]

    def train() -> None:
        for index in batches:
            supervised_loss(bundle.model, chosen.batch(index), training)[0].total.backward()  # type: ignore[no-untyped-call]

    train_s, score_s = _cpu_seconds(train), _cpu_seconds(lambda: score_tensors(bundle.model, chosen))
    bundle.model.zero_grad(set_to_none=True)
    return {
        "jets": len(chosen),
        "mean_tracks": float(chosen.n_tracks.mean()) if len(chosen) else None,
        "batch_size": training.batch_size,
        "threads": torch.get_num_threads(),
        "train_jets_per_cpu_second": len(chosen) / train_s,
        "score_jets_per_cpu_second": len(chosen) / score_s,
    }


def _cpu_seconds(work: Callable[[], object]) -> float:
    work()
    begin = time.process_time()
    work()
    return max(time.process_time() - begin, 1e-9)
