"""A graph network over the jets of an event: the probability of each jet to pass each working point.

Jets i, j of one event are joined where ΔR_ij < R (after arXiv 2004.02665). With features x_i of a jet, and
of an edge ln(pT_j / pT_i) and r = ΔR_ij / R on a basis of Gaussians (arXiv 1706.08566),

    e_ij = (ln(pT_j / pT_i), exp(−(r − 0)² / 2w²), exp(−(r − w)² / 2w²), …, exp(−(r − 1)² / 2w²)),

    h_i = W x_i + b,    c_ij = (1 − (ΔR_ij / R)²)²
    m_i = Σ_j c_ij s(A h_i + B h_j + C e_ij + d)
    h_i ← h_i + D s(E [h_i, m_i] + f)                       (once per layer; s(x) = x σ(x))
    ε_ik = Π_{l ≤ k} σ(a_il),    a_i = G h_i + g_flavour     (working points loosest first)

c_ij falls to zero at R, so that no efficiency jumps where a neighbour comes into reach. Factors between zero
and one make a tighter working point never more efficient than a looser one. Sums make the result independent
of the order of the jets; a slot without a jet (flavour −1) sends nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from selfcal.data.flavours import FLAVOURS

PT_SCALE_GEV = 50.0
ETA_SCALE = 2.5
JET_FEATURES = 5 + len(FLAVOURS)
RADIAL_STEPS = 7
"""The Gaussians stand 1 / 7 of R apart."""
EDGE_FEATURES = 2 + RADIAL_STEPS
TURN = 2 * math.pi
EMPTY = -1
"""Flavour of a slot that holds no jet."""


@dataclass(frozen=True)
class NetworkShape:
    """What decides the parameters of a network: K working points, width, layers, and the radius R."""

    working_points: int
    width: int
    layers: int
    delta_r_max: float


class MessageLayer(nn.Module):
    """One round of messages between the jets of an event."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, width)
        self.sender = nn.Linear(width, width, bias=False)
        self.edge = nn.Linear(EDGE_FEATURES, width, bias=False)
        self.inner = nn.Linear(2 * width, width)
        self.outer = nn.Linear(width, width)

    def forward(
        self,
        hidden: Float[Tensor, "events jets width"],
        edges: Float[Tensor, "events jets jets features"],
        strength: Float[Tensor, "events jets jets"],
    ) -> Float[Tensor, "events jets width"]:
        """h + D s(E [h, m] + f)."""
        sent = self.receiver(hidden)[:, :, None] + self.sender(hidden)[:, None] + self.edge(edges)
        message = (strength[..., None] * nn.functional.silu(sent)).sum(dim=2)
        update: Tensor = self.outer(nn.functional.silu(self.inner(torch.cat([hidden, message], dim=-1))))
        return hidden + update


class EfficiencyNetwork(nn.Module):
    """The formula above; (events, jets) arrays in, efficiencies (events, jets, working points) out."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Linear(JET_FEATURES, shape.width)
        self.layers = nn.ModuleList(MessageLayer(shape.width) for _ in range(shape.layers))
        self.head = nn.Linear(shape.width, shape.working_points, bias=False)
        self.flavour_bias = nn.Parameter(torch.zeros(len(FLAVOURS), shape.working_points))
        nn.init.zeros_(self.head.weight)

    def logits(
        self,
        pt_gev: Float[Tensor, "events jets"],
        eta: Float[Tensor, "events jets"],
        phi: Float[Tensor, "events jets"],
        flavour: Int64[Tensor, "events jets"],
    ) -> Float[Tensor, "events jets points"]:
        """a, of passing a working point once the looser one is passed; any number in empty slots."""
        present = flavour != EMPTY
        log_pt = torch.log(torch.where(present, pt_gev, PT_SCALE_GEV) / PT_SCALE_GEV)
        safe = torch.where(present, flavour, 0)
        label = nn.functional.one_hot(safe, len(FLAVOURS)).to(log_pt.dtype)
        scaled = eta / ETA_SCALE
        plain = torch.stack([log_pt, scaled, scaled.square(), phi.cos(), phi.sin()], dim=-1)
        hidden = self.embedding(torch.cat([plain, label], dim=-1))
        edges, strength = self._edges(log_pt, eta, phi, present)
        for layer in self.layers:
            hidden = layer(hidden, edges, strength)
        shared: Tensor = self.head(hidden)
        return shared + self.flavour_bias[safe]

    def forward(
        self,
        pt_gev: Float[Tensor, "events jets"],
        eta: Float[Tensor, "events jets"],
        phi: Float[Tensor, "events jets"],
        flavour: Int64[Tensor, "events jets"],
    ) -> Float[Tensor, "events jets points"]:
        """ε, loosest working point first."""
        shares = self.logits(pt_gev, eta, phi, flavour).sigmoid().unbind(dim=-1)
        passing = [shares[0]]
        for share in shares[1:]:
            passing.append(passing[-1] * share)
        return torch.stack(passing, dim=-1)

    def _edges(
        self, log_pt: Tensor, eta: Tensor, phi: Tensor, present: Tensor
    ) -> tuple[Float[Tensor, "events jets jets features"], Float[Tensor, "events jets jets"]]:
        """e_ij and c_ij (zero for i = j, beyond R and for empty slots)."""
        delta_eta = eta[:, :, None] - eta[:, None]
        delta_phi = phi[:, :, None] - phi[:, None]
        delta_phi = delta_phi - TURN * torch.round(delta_phi / TURN)
        share = (delta_eta.square() + delta_phi.square()) / self.shape.delta_r_max**2
        both = present[:, :, None] & present[:, None] & ~torch.eye(eta.shape[1], dtype=torch.bool)
        strength = torch.where(both, (1 - share).clamp_min(0.0).square(), 0.0)
        near = strength > 0
        # Beyond reach the features are constants: no logarithm of anything far away, no gradient.
        distance = torch.where(near, share, 1.0).sqrt()
        ratio = torch.where(near, log_pt[:, None] - log_pt[:, :, None], 0.0)
        steps = distance[..., None] * RADIAL_STEPS - torch.arange(RADIAL_STEPS + 1, dtype=distance.dtype)
        return torch.cat([ratio[..., None], torch.exp(-0.5 * steps.square())], dim=-1), strength


class EfficiencyMap(nn.Module):
    """The networks of all bags: their mean, and their standard deviation as its uncertainty."""

    def __init__(self, shape: NetworkShape, bags: int) -> None:
        super().__init__()
        self.shape = shape
        self.bags = nn.ModuleList(EfficiencyNetwork(shape) for _ in range(bags))

    def of_bags(
        self,
        pt_gev: Float[Tensor, "events jets"],
        eta: Float[Tensor, "events jets"],
        phi: Float[Tensor, "events jets"],
        flavour: Int64[Tensor, "events jets"],
    ) -> Float[Tensor, "bags events jets points"]:
        """ε of every bag; a mean of them has the order of each."""
        return torch.stack([bag(pt_gev, eta, phi, flavour) for bag in self.bags])

    def forward(
        self,
        pt_gev: Float[Tensor, "events jets"],
        eta: Float[Tensor, "events jets"],
        phi: Float[Tensor, "events jets"],
        flavour: Int64[Tensor, "events jets"],
    ) -> tuple[Float[Tensor, "events jets points"], Float[Tensor, "events jets points"]]:
        """Efficiency and uncertainty; NaN in empty slots."""
        found = self.of_bags(pt_gev, eta, phi, flavour)
        mean = found.mean(dim=0)
        spread = ((found - mean).square().sum(dim=0) / (len(self.bags) - 1)).sqrt()
        known = (flavour != EMPTY)[..., None]
        return torch.where(known, mean, torch.nan), torch.where(known, spread, torch.nan)
