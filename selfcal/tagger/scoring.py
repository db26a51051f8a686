"""Scores of jets, in chunks, so that memory does not grow with the sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import Jets
from selfcal.data.score_values import log_scores
from selfcal.tagger.batching import TensorJets, sorted_batches
from selfcal.tagger.bundle import TaggerBundle
from selfcal.tagger.network import FlavourTagger

CHUNK_JETS = 20_000
EVALUATION_BATCH = 1024


def device_of(model: FlavourTagger) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


class JetScores(NamedTuple):
    """What a tagger says about N jets.

    Attributes
    ----------
    log_probability : (N, 4) float64, ln p of the classes in ``FLAVOURS`` order
    latent : (N, H) float32, or None if not asked for
    log_response : (N,) float64, ln of true pT over pT; None from a tagger without that head
    """

    log_probability: NDArray[np.float64]
    latent: NDArray[np.float32] | None = None
    log_response: NDArray[np.float64] | None = None


def score_tensors(model: FlavourTagger, jets: TensorJets, *, with_latent: bool = False) -> JetScores:
    """What ``model`` says about prepared jets, in their order.

    The softmax is taken in float64: probabilities far below float32's epsilon keep their digits.
    """
    was_training, device = model.training, device_of(model)
    model.eval()
    log_probability = np.empty((len(jets), len(FLAVOURS)))
    latent = np.empty((len(jets), model.latent.out_features), np.float32) if with_latent else None
    log_response = np.empty(len(jets)) if model.response is not None else None
    with torch.no_grad():
        for index in sorted_batches(jets.n_tracks, EVALUATION_BATCH):
            output = model(jets.batch(index).to(device), with_origin=False, with_vertex=False)
            log_probability[index] = output.logits.double().log_softmax(dim=1).cpu().numpy()
            if latent is not None:
                latent[index] = output.latent.cpu().numpy()
            if log_response is not None:
                log_response[index] = output.log_response.cpu().numpy()
    model.train(was_training)
    return JetScores(log_probability, latent, log_response)


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
