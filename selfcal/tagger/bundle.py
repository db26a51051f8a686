"""A trained tagger as a folder: ``model.safetensors`` and ``tagger.json``, no pickle.

``tagger.json`` names the classes, the inputs with their normalisation, the model's
configuration, and the SHA-256 of the weights and of itself, which are checked on loading.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

import selfcal
from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import ORIGINS, Jets
from selfcal.errors import DataError
from selfcal.run.atomic import atomic_path
from selfcal.run.sealed import read_sealed, write_sealed
from selfcal.tagger.batching import TensorJets, to_tensors
from selfcal.tagger.deep_sets import DeepSetsEncoder
from selfcal.tagger.inputs import Normalisation, TaggerInputs, known_inputs
from selfcal.tagger.network import Encoder, FlavourTagger
from selfcal.tagger.recurrent import RecurrentEncoder
from selfcal.tagger.transformer import TransformerEncoder

FORMAT_VERSION = 2
WEIGHTS_NAME, DESCRIPTION_NAME = "model.safetensors", "tagger.json"


@dataclass(frozen=True)
class TaggerBundle:
    """A tagger with all that is needed to score jets."""

    config: TaggerConfig
    inputs: TaggerInputs
    normalisation: Normalisation
    model: FlavourTagger

    def tensors(self, jets: Jets) -> TensorJets:
        """The inputs of ``jets`` for the model; a :class:`DataError` if they lack a field."""
        return to_tensors(jets, self.inputs, self.normalisation, with_perigee=self.config.vertex_fit)


def build_tagger(
    config: TaggerConfig, inputs: TaggerInputs, normalisation: Normalisation, seed: int
) -> FlavourTagger:
    """A fresh model with weights drawn from ``seed``.

    Raises
    ------
    ConfigError
        If ``config`` asks for inputs that are not there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlavourTagger(_build_encoder(config, inputs, normalisation), config)


def _build_encoder(config: TaggerConfig, inputs: TaggerInputs, normalisation: Normalisation) -> Encoder:
    if config.kind == "deep_sets":
        return DeepSetsEncoder(inputs, config)
    if config.kind == "recurrent":
        return RecurrentEncoder(inputs, normalisation, config)
    return TransformerEncoder(inputs, normalisation, config)


def save_bundle(bundle: TaggerBundle, folder: Path) -> list[Path]:
    """Write the bundle; returns the two files. The description, written last, completes it."""
    weights = save({name: value.contiguous() for name, value in bundle.model.state_dict().items()})
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        temporary.write_bytes(weights)
    norm = bundle.normalisation
    write_sealed(
        folder / DESCRIPTION_NAME,
        {
            "format_version": FORMAT_VERSION,
            "selfcal_version": selfcal.__version__,
            "classes": FLAVOURS,
            "origins": ORIGINS,
            "config": bundle.config.model_dump(mode="json"),
            "track_fields": bundle.inputs.track_fields,
            "inputs": {
                "track": _described(bundle.inputs.track, norm.track_mean, norm.track_width),
                "jet": _described(bundle.inputs.jet, norm.jet_mean, norm.jet_width),
            },
            "model_sha256": hashlib.sha256(weights).hexdigest(),
        },
    )
    return [folder / WEIGHTS_NAME, folder / DESCRIPTION_NAME]


def _described(names: tuple[str, ...], mean: Any, width: Any) -> list[dict[str, Any]]:
    # A float32 becomes a double and comes back without loss.
    return [
        {"name": name, "mean": float(m), "width": float(w)}
        for name, m, w in zip(names, mean, width, strict=True)
    ]


def load_bundle(folder: Path) -> TaggerBundle:
    """Read a bundle back, bit for bit.

    Raises
    ------
    DataError
        If a file is missing or damaged, if the weights are not those that the
        description was written with, or if it comes from an incompatible version.
    """
    where = str(folder / DESCRIPTION_NAME)
    described = read_sealed(folder / DESCRIPTION_NAME)
    if not isinstance(described, dict) or described.get("format_version") != FORMAT_VERSION:
        raise DataError(
            "not a tagger description of this format version",
            where=where,
            expected=f"version {FORMAT_VERSION}",
        )
    try:
        weights = (folder / WEIGHTS_NAME).read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the weights: {error.strerror}", where=str(folder / WEIGHTS_NAME)
        ) from error
    if hashlib.sha256(weights).hexdigest() != described.get("model_sha256"):
        raise DataError(
            "the weights are not those that the description was written with",
            where=str(folder / WEIGHTS_NAME),
            expected=f"SHA-256 {described.get('model_sha256')}",
            fix="copy both files of the bundle again, or train anew",
        )
    try:
        return _assemble(described, weights)
    except (KeyError, TypeError, ValueError, RuntimeError, ValidationError, SafetensorError) as error:
        raise DataError(
            f"the tagger description does not fit the weights or this version: {error}", where=where
        ) from error


def _assemble(described: dict[str, Any], weights: bytes) -> TaggerBundle:
    if tuple(described["classes"]) != FLAVOURS or tuple(described["origins"]) != ORIGINS:
        raise ValueError(f"classes {described['classes']}, origins {described['origins']}")
    config = TaggerConfig.model_validate(described["config"])
    track, jet = described["inputs"]["track"], described["inputs"]["jet"]
    inputs = known_inputs([row["name"] for row in track], [row["name"] for row in jet])
    normalisation = Normalisation(
        *(
            np.array([row[key] for row in rows], np.float32)
            for rows in (track, jet)
            for key in ("mean", "width")
        )
    )
    model = build_tagger(config, inputs, normalisation, seed=0)
    model.load_state_dict(load(weights))
    model.eval()
    return TaggerBundle(config, inputs, normalisation, model)
