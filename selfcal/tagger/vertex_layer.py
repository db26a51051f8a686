"""Secondary vertices of a jet inside the tagger: weights from the heads on tracks, fit, features of the jet.

How tracks are shared out: u_i is the probability (origin head) that track i comes from a
secondary vertex, P_ij (vertex head) that i and j come from the same one, P_ii = 1. For
one vertex after the other, the seed s is the track with the most company,
u_i Σ_j P_ij u_j; the vertex takes track i with weight w_i = P_is u_i, and leaves
u_i (1 − P_is) to the next one. All but the choice of the seed is differentiable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.data.jets import ORIGINS
from selfcal.errors import DataError
from selfcal.tagger.batching import JetBatch
from selfcal.tagger.pairs import TrackPairs, pair_matrix
from selfcal.tagger.perigee import perigee_from_fields
from selfcal.tagger.vertex_fit import VertexFit, fit_vertices

SECONDARY = tuple(
    ORIGINS.index(name) for name in ("from_b", "from_bc", "from_c", "from_tau", "other_secondary")
)
FEATURES = 6


def share_tracks(
    secondary: Float[Tensor, "jets tracks"],
    same_vertex: Float[Tensor, "jets tracks tracks"],
    vertices: int,
) -> Float[Tensor, "jets vertices tracks"]:
    """Weights of the tracks of ``vertices`` vertices, in [0, 1], their sum over vertices at most 1.

    Parameters
    ----------
    secondary : u, zero where padded
    same_vertex : P, symmetric, with ones on the diagonal
    """
    jets, tracks = secondary.shape
    if tracks == 0:
        return secondary.new_zeros(jets, vertices, 0)
    row_of_jet = torch.arange(jets, device=secondary.device)
    weights = []
    for _ in range(vertices):
        company = secondary * (same_vertex @ secondary[..., None]).squeeze(-1)
        with_seed = same_vertex[row_of_jet, company.argmax(dim=1)]
        weights.append(secondary * with_seed)
        secondary = secondary * (1.0 - with_seed)
    return torch.stack(weights, dim=1)


def fit_secondary_vertices(
    batch: JetBatch,
    origin_logits: Float[Tensor, "jets tracks origins"],
    pairs: TrackPairs,
    vertex_logits: Float[Tensor, " pairs"],
    vertices: int,
    field_tesla: float = 2.0,
) -> VertexFit:
    """Vertices of the jets of ``batch``, in the order in which they were seeded.

    Raises
    ------
    DataError
        If the batch was made without the parameters of its tracks.
    """
    if batch.perigee is None:
        raise DataError(
            "the batch lacks the parameters of its tracks",
            where="fit of secondary vertices",
            expected="jets prepared with with_perigee=True",
        )
    origin = origin_logits.double().softmax(dim=-1)[..., list(SECONDARY)].sum(dim=-1)
    same = pair_matrix(vertex_logits.double().sigmoid(), pairs, *batch.valid.shape)
    same = same + torch.eye(same.shape[1], dtype=same.dtype, device=same.device)
    weights = share_tracks(torch.where(batch.valid, origin, 0.0), same, vertices)
    fields, jet_eta = batch.perigee[..., :-1], batch.perigee[..., -1]
    tracks = perigee_from_fields(fields, jet_eta, field_tesla=field_tesla)
    return fit_vertices(tracks, batch.valid, weights)


def features_of(fit: VertexFit) -> Float[Tensor, "jets vertices 6"]:
    """Numbers of order one; all but the third are zero for a vertex without tracks.

    asinh(L_xy/mm), asinh(significance/2), ln(σ(L_xy)/mm), ln(1 + m/GeV), ln(1 + χ²), Σw/3.
    """
    return torch.stack(
        [
            torch.asinh(fit.lxy_mm),
            torch.asinh(0.5 * fit.lxy_significance),
            0.5 * fit.covariance[..., 0, 0].log(),
            torch.log1p(fit.mass_gev),
            torch.log1p(fit.chi2),
            fit.n_tracks / 3.0,
        ],
        dim=-1,
    )


class VertexLayer(nn.Module):
    """``vertices`` fitted vertices per jet -> a vector of ``latent`` numbers to be added to the jet's.

    It starts as zero, that is, as the tagger without fits.
    """

    def __init__(self, vertices: int, latent: int) -> None:
        super().__init__()
        self.vertices = vertices
        self.expand = nn.Linear(FEATURES * vertices, latent)
        self.contract = nn.Linear(latent, latent)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, vertices: VertexFit) -> Float[Tensor, "jets latent"]:
        features = features_of(vertices).flatten(1).to(self.expand.weight.dtype)
        result: Tensor = self.contract(F.gelu(self.expand(features)))
        return result
