"""Attention biased by the kinematics of each pair of tracks (Particle Transformer, arXiv 2202.03772).

For tracks i, j with transverse momenta p_T in GeV, taken as massless:

    Delta = sqrt(Delta eta^2 + Delta phi^2)
    k_T   = min(p_Ti, p_Tj) Delta
    z     = min(p_Ti, p_Tj) / (p_Ti + p_Tj)
    m^2   = 2 p_Ti p_Tj (cosh Delta eta - cos Delta phi)

A small network turns their logarithms into one number per head, which is added to
the attention's logits in every layer.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfcal.errors import ConfigError
from selfcal.tagger.inputs import Normalisation, TaggerInputs
from selfcal.tagger.pairs import TrackPairs, track_pairs

KINEMATICS = ("log_pt_gev", "deta", "dphi")
SMALLEST = 1e-8
"""Below it, Delta, k_T and m^2 count as equal: two tracks may be parallel."""

TYPICAL = ((-2.0, 1.0), (-1.5, 1.5), (-1.5, 1.0), (-1.5, 2.5))
"""Offset and scale of ln Delta, ln k_T, ln z and ln m^2 within a jet: the network sees numbers near one."""


def pair_features(
    first: Float[Tensor, "pairs 3"], second: Float[Tensor, "pairs 3"]
) -> Float[Tensor, "pairs 4"]:
    """ln Delta, ln k_T, ln z, ln m^2 of pairs of tracks (ln(p_T/GeV), eta, phi); symmetric."""
    log_pt, other_log_pt = first[:, 0], second[:, 0]
    difference = first[:, 1:] - second[:, 1:]
    log_distance = 0.5 * difference.square().sum(dim=1).clamp(min=SMALLEST**2).log()
    softer, harder = torch.minimum(log_pt, other_log_pt), torch.maximum(log_pt, other_log_pt)
    log_share = softer - torch.logaddexp(softer, harder)
    # cosh a - cos b = 2 (sinh^2 a/2 + sin^2 b/2): no cancellation for tracks that nearly coincide.
    half = 0.5 * difference
    squares = 2.0 * (torch.sinh(half[:, 0]).square() + torch.sin(half[:, 1]).square())
    log_mass = softer + harder + (2.0 * squares).clamp(min=SMALLEST**2).log()
    return torch.stack([log_distance, softer + log_distance, log_share, log_mass], dim=1)


class AttentionBias(nn.Module):
    """Tracks -> (jets, heads, tokens, tokens), symmetric; zero on the diagonal and for token 0, the register.

    It starts as zero, that is, as attention without bias.

    Raises
    ------
    ConfigError
        If an input of :data:`KINEMATICS` is missing.
    """

    column: Tensor
    mean: Tensor
    width: Tensor

    def __init__(self, inputs: TaggerInputs, normalisation: Normalisation, heads: int, hidden: int) -> None:
        super().__init__()
        missing = [name for name in KINEMATICS if name not in inputs.track]
        if missing:
            raise ConfigError(
                f"pairwise attention needs the track input(s) {', '.join(missing)}",
                where="tagger.attention_bias",
                expected="tracks with momentum and direction",
                fix="set tagger.attention_bias to false, or provide the fields qOverP, deta and dphi",
            )
        column = torch.tensor([inputs.track.index(name) for name in KINEMATICS])
        self.register_buffer("column", column)
        self.register_buffer("mean", torch.from_numpy(normalisation.track_mean)[column])
        self.register_buffer("width", torch.from_numpy(normalisation.track_width)[column])
        self.expand = nn.Linear(len(TYPICAL), hidden)
        self.contract = nn.Linear(hidden, heads, bias=False)
        nn.init.zeros_(self.contract.weight)

    def forward(
        self, tracks: Float[Tensor, "jets tracks features"], valid: Bool[Tensor, "jets tracks"]
    ) -> Float[Tensor, "jets heads tokens tokens"]:
        pairs: TrackPairs = track_pairs(valid)
        kinematics = tracks[..., self.column] * self.width + self.mean
        features = pair_features(kinematics[pairs.jet, pairs.first], kinematics[pairs.jet, pairs.second])
        offset, scale = features.new_tensor(TYPICAL).unbind(1)
        values = self.contract(nn.functional.gelu(self.expand((features - offset) / scale)))
        jets, tokens = len(tracks), tracks.shape[1] + 1
        upper = values.new_zeros(jets, tokens, tokens, values.shape[1])
        upper = upper.index_put((pairs.jet, pairs.first + 1, pairs.second + 1), values)
        bias: Tensor = (upper + upper.transpose(1, 2)).permute(0, 3, 1, 2)
        return bias
