"""Scores of jets, in chunks, so that memory does not grow with the sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import Jets
from selfcal.data.score_values import log_scores
from selfcal.tagger.bundle import TaggerBundle
from selfcal.training.evaluation import JetScores, score_tensors

CHUNK_JETS = 20_000


def score_jets(
    bundle: TaggerBundle,
    jets: Jets,
    *,
    with_latent: bool = False,
    on_chunk: Callable[[int], None] | None = None,
) -> JetScores:
    """What the tagger says about ``jets``; the latents if asked for, the response if it has that head.

    The network is evaluated in float64 and its probabilities are rounded to float32, in which files hold
    them: a jet has the same score whatever is scored with it, and what is read back from a file is the same
    score again. The fit of a map is a long chain of steps that would magnify smaller differences.

    Raises
    ------
    DataError
        If ``jets`` lack a field that the tagger needs, or hold NaN or infinite inputs.
    """
    parts = []
    exact = copy.deepcopy(bundle.model).double()
    for first in range(0, len(jets), CHUNK_JETS) or (0,):
        chunk = jets.select(np.arange(first, min(first + CHUNK_JETS, len(jets))))
        scores = score_tensors(exact, bundle.tensors(chunk).double(), with_latent=with_latent)
        stored = np.exp(scores.log_probability).astype(np.float32).astype(np.float64)
        parts.append(scores._replace(log_probability=log_scores(stored, FLAVOURS, jets.dataset)))
        if on_chunk:
            on_chunk(first + len(chunk))
    return join_scores(parts)


def regressed_pt_gev(jets: Jets, scores: JetScores) -> NDArray[np.float64]:
    """pT exp(r), (N,), with r the tagger's ln of true pT over pT; a ValueError if it has no such head."""
    if scores.log_response is None:
        raise ValueError("the tagger has no head for the response")
    return jets.pt_gev.astype(np.float64) * np.exp(scores.log_response)


def join_scores(parts: Sequence[JetScores]) -> JetScores:
    """The jets of all ``parts`` (one at least, of one tagger) in order."""
    latents = [part.latent for part in parts if part.latent is not None]
    responses = [part.log_response for part in parts if part.log_response is not None]
    return JetScores(
        np.concatenate([part.log_probability for part in parts]),
        np.concatenate(latents) if latents else None,
        np.concatenate(responses) if responses else None,
    )
