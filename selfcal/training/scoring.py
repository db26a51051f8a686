"""Scores of jets, in chunks, so that memory does not grow with the sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import Jets
from selfcal.tagger.bundle import TaggerBundle
from selfcal.training.evaluation import log_probabilities

CHUNK_JETS = 20_000


def score_jets(
    bundle: TaggerBundle,
    jets: Jets,
    *,
    with_latent: bool = False,
    on_chunk: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """ln p of the classes in ``FLAVOURS`` order, (N, 4) float64, and the latents (N, H) if asked for.

    A jet's scores do not depend on the other jets, up to the rounding of float32.

    Raises
    ------
    DataError
        If ``jets`` lack a field that the tagger needs, or hold NaN or infinite inputs.
    """
    scores, latents = [np.empty((0, len(FLAVOURS)))], []
    for first in range(0, len(jets), CHUNK_JETS):
        chunk = jets.select(np.arange(first, min(first + CHUNK_JETS, len(jets))))
        score, latent = log_probabilities(bundle.model, bundle.tensors(chunk), with_latent=with_latent)
        scores.append(score)
        if latent is not None:
            latents.append(latent)
        if on_chunk:
            on_chunk(first + len(chunk))
    empty = np.empty((0, bundle.config.latent), np.float32)
    return np.concatenate(scores), np.concatenate([empty, *latents]) if with_latent else None
