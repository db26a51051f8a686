"""The tagger as an ONNX file: the fields of a file go in, class probabilities come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import track_field_unit
from selfcal.errors import ConfigError
from selfcal.export.onnx_graph import write_onnx
from selfcal.tagger.batching import unlabelled_batch
from selfcal.tagger.bundle import TaggerBundle
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.inputs import jet_columns, track_columns

OUTPUTS = {
    "log_probability": "natural logarithm of the class probabilities, in the order of 'classes'",
    "probability": "class probabilities, in the order of 'classes'",
    "discriminant_b": "ln[p_b / (f_c p_c + f_tau p_tau + (1 - f_c - f_tau) p_light)]",
}
REGRESSED = {"regressed_pt_gev": "estimate of the jet's true pT, in GeV"}
"""One more output of a tagger that has the head for it."""


class TaggerGraph(nn.Module):
    """Transformed inputs, their normalisation, the network, softmax and D_b in one graph.

    A jet with an input that :func:`~selfcal.tagger.inputs.compute_features` refuses (NaN,
    infinite, a negative uncertainty, pT <= 0) comes out as NaN: a graph cannot raise.
    What stands in padded places is never looked at.
    """

    positive: Tensor
    track_mean: Tensor
    track_width: Tensor
    jet_mean: Tensor
    jet_width: Tensor

    def __init__(self, bundle: TaggerBundle) -> None:
        super().__init__()
        self.inputs, self.config, self.model = bundle.inputs, bundle.config, bundle.model
        norm = bundle.normalisation
        for name in ("track_mean", "track_width", "jet_mean", "jet_width"):
            self.register_buffer(name, torch.from_numpy(getattr(norm, name)))
        fields = bundle.inputs.track_fields
        self.register_buffer("positive", torch.tensor([name.endswith("Uncertainty") for name in fields]))

    def forward(
        self,
        jet: Float[Tensor, "jets 2"],
        tracks: Float[Tensor, "jets tracks fields"],
        valid: Bool[Tensor, "jets tracks"],
    ) -> tuple[Tensor, ...]:
        """ln p (N, 4), p (N, 4), D_b (N,), and the regressed pT / GeV (N,) if there is one.

        ``jet`` holds (pT / GeV, eta), ``tracks`` the fields in the file's units.
        """
        bad_track = (~tracks.isfinite() | (self.positive & (tracks < 0))) & valid[..., None]
        bad_jet = ~jet.isfinite().all(dim=1) | (jet[:, 0] <= 0)
        bad = bad_jet | bad_track.flatten(1).any(dim=1)
        tracks = torch.where(valid[..., None], tracks, 0.0)

        pt_gev, eta = jet[:, 0], jet[:, 1]
        columns = {name: tracks[..., k] for k, name in enumerate(self.inputs.track_fields)}
        track_features = torch.stack(track_columns(columns, eta[:, None], self.inputs, torch), dim=-1)
        jet_features = torch.stack(jet_columns(pt_gev, eta, self.inputs, torch), dim=-1)
        batch = unlabelled_batch(
            (track_features - self.track_mean) / self.track_width * valid[..., None],
            valid,
            (jet_features - self.jet_mean) / self.jet_width,
        )
        output = self.model(batch, with_origin=False, with_vertex=False)
        logits = torch.where(bad[:, None], torch.nan, output.logits)
        log_probability = logits.log_softmax(dim=1)
        discriminant = discriminant_b(log_probability, self.config.charm_fraction, self.config.tau_fraction)
        scores = log_probability, logits.softmax(dim=1), discriminant
        if output.log_response is None:
            return scores
        return *scores, torch.where(bad, torch.nan, pt_gev * output.log_response.exp())


def write_tagger(bundle: TaggerBundle, path: Path, working_points: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the tagger as ONNX: inputs ``jet``, ``tracks``, ``valid``; outputs :data:`OUTPUTS` and,
    from a tagger that regresses the true pT, :data:`REGRESSED`.

    Numbers of jets and of tracks are free, zero tracks included. The metadata name
    fields, units, classes, the fractions in D_b, and the thresholds ``working_points``
    (rows with ``working_point`` and ``threshold``).

    Raises
    ------
    ConfigError
        If the network has steps that no ONNX graph with free numbers of tracks can take.
    """
    refuse_inexpressible(bundle)
    fields = bundle.inputs.track_fields
    example = {
        "jet": torch.full((2, 2), 50.0),
        "tracks": torch.ones(2, 3, len(fields)),
        "valid": torch.ones(2, 3, dtype=torch.bool),
    }
    axes = {0: "jets", 1: "tracks"}
    return write_onnx(
        path,
        TaggerGraph(bundle),
        example,
        {"jet": {0: "jets"}, "tracks": axes, "valid": axes},
        tuple(_outputs(bundle)),
        tagger_metadata(bundle, working_points),
    )


def _outputs(bundle: TaggerBundle) -> dict[str, str]:
    return {**OUTPUTS, **(REGRESSED if bundle.config.regress_pt else {})}


def refuse_inexpressible(bundle: TaggerBundle) -> None:
    """Recurrent layers along sorted tracks, lists of track pairs, iterated fits: no fixed graph has them.

    Raises
    ------
    ConfigError
        If the network has one of them.
    """
    config = bundle.config
    if config.kind == "recurrent" or config.attention_bias or config.vertex_fit:
        raise ConfigError(
            "this network has no ONNX form",
            where="tagger.kind, tagger.attention_bias, tagger.vertex_fit",
            expected="a transformer without attention bias, or Deep Sets; no fits of vertices",
            fix="score with `selfcal predict`, or train one of these",
        )


def tagger_metadata(bundle: TaggerBundle, working_points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a program needs to call the tagger, as plain values."""
    config = bundle.config
    return {
        "tagger": config.name,
        "classes": list(FLAVOURS),
        "inputs": {
            "jet": [{"name": "pt_gev", "unit": "GeV"}, {"name": "eta", "unit": ""}],
            "tracks": [{"name": name, "unit": track_field_unit(name)} for name in bundle.inputs.track_fields],
            "valid": "true where there is a track; what stands elsewhere is not looked at",
        },
        "outputs": _outputs(bundle),
        "refused_inputs": "NaN, infinite, negative uncertainty, pt_gev <= 0: all outputs of the jet are NaN",
        "normalisation": "inside the graph",
        "discriminant_b_fractions": {"f_c": config.charm_fraction, "f_tau": config.tau_fraction},
        "working_points": [
            {"efficiency": row["working_point"], "discriminant_b_min": row["threshold"]}
            for row in working_points
        ],
    }
