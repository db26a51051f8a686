"""b efficiencies from pairs of jets: the two-jet likelihood of tt̄ → eμ.

Two jets of one event are tagged independently of each other, given their flavours (b, or l: anything else)
and kinematic bins p, q. With the discriminant bins k of the leading and m of the other jet,

    ν_pqkm = μ_pq Σ_{a,c ∈ {b,l}} φ_ac,pq e^{w_ac α_ac,pq} ε_apk ε_cqm,      n_pqkm ~ Pois(ν_pqkm),

    ε_bpk = e^{u_pk} / Σ e^{u_p}    free,      ε_lpk ∝ t_pk e^{s_pk β_pk},      α, β ~ N(0, 1),

with the simulation's fractions φ of bb, bl, lb and ll (α_bb = 0, their sum normalised to one, μ free), the
relative uncertainties w of bl and lb (``mixed``) and of ll (``neither``), the calibrated shape t of the other
flavours and its relative uncertainty s. A jet that is tagged tells what the other one is, so that bl and lb
are measured, for which a fit to single jets must take the prior's word. What pairs cannot tell: replacing ε_b
by ε_b + c (ε_b − ε_l) and the fractions accordingly changes nothing if all four are free, with
φ_ll → φ_ll − c (φ_bl + φ_lb) + c² φ_bb. The precision is that of ll, which must be known, and is few.
The scale factor is the efficiency over that of the nominal simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from selfcal.data.flavours import B
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError, FitError
from selfcal.likelihood.templates import Binning

ITERATIONS_MAX = 200
HALVINGS_MAX = 30
EDM_MAX = 1e-9
GRADIENT_MAX = 1e-3
"""Largest slope of −ln L at a minimum, in units of 1/σ."""
SHARE_MIN = 1e-9
"""Share of jets in an empty bin of the other flavours' shape, and of pairs without simulation."""
FIX = "merge bins of pT, |eta| or working points with few pairs"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairCounts:
    """What the two-jet fit is made of; P kinematic and K discriminant bins, leading jet first.

    Attributes
    ----------
    observed : (P, P, K, K) pairs in data
    classes : (2, 2, P, P) simulated pairs with b (0) or another flavour (1) as leading and as other jet
    other, other_width : (P, K) calibrated shape of the other flavours' jets and its relative uncertainty
    nominal, nominal_variance : (P, K) b jets of the nominal simulation: sum w and sum w^2
    """

    binning: Binning
    observed: Float[Array, "P P K K"]
    classes: Float[Array, "2 2 P P"]
    other: Float[Array, "P K"]
    other_width: Float[Array, "P K"]
    nominal: Float[Array, "P K"]
    nominal_variance: Float[Array, "P K"]


@dataclass(frozen=True)
class FractionWidths:
    """Relative uncertainty of the simulated pairs with one b jet, and of those with none."""

    mixed: float
    neither: float


@dataclass(frozen=True)
class PairFit:
    """b efficiencies of the A kinematic bins with pairs, (A, K), their covariance (A K, A K), goodness."""

    bins: Int[NDArray[np.int64], " A"]
    efficiency: Float[Array, "A K"]
    covariance: Float[Array, "AK AK"]
    deviance: float
    ndf: int


def event_pairs(jets: ScoredJets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the two jets of highest pT of every event that has at least two, the harder first."""
    order = np.lexsort((-jets.pt_gev, jets.event))
    event = jets.event[order]
    first = np.flatnonzero(np.append(True, event[1:] != event[:-1])) if len(event) else np.zeros(0, np.int64)
    first = first[first + 1 < len(event)]
    first = first[event[first] == event[first + 1]]
    return order[first], order[first + 1]


def pair_counts(
    data: ScoredJets,
    calibrated: ScoredJets,
    nominal: ScoredJets,
    discriminants: tuple[Array, Array, Array],
    binning: Binning,
    residual_width: float,
) -> PairCounts:
    """Count pairs and jets; ``discriminants`` are those of the three samples in this order.

    ``residual_width`` is by how much the calibrated shape of the other flavours may be wrong in a bin.

    Raises
    ------
    DataError
        If data or simulation have no pairs.
    """
    p_bins, k_bins = binning.n_kinematic, binning.n_bins
    inside = [binning.kinematic_bins(jets.pt_gev, jets.abs_eta)[1] for jets in (data, calibrated)]
    found = []
    for jets, d_b, keep in zip((data, calibrated), discriminants[:2], inside, strict=True):
        chosen, d_b = jets.select(keep), d_b[keep]
        pair = event_pairs(chosen)
        if not len(pair[0]):
            raise DataError("no event has two jets", where=f"region {chosen.region}, two-jet fit")
        place = binning.kinematic_bins(chosen.pt_gev, chosen.abs_eta)[0]
        tag = np.digitize(d_b, binning.discriminant_edges)
        found.append((chosen, pair, place, tag))
    jets, (one, two), place, tag = found[0]
    observed = np.zeros((p_bins, p_bins, k_bins, k_bins))
    np.add.at(observed, (place[one], place[two], tag[one], tag[two]), jets.weight[one])
    jets, (one, two), place, _ = found[1]
    is_other = (jets.flavour != B).astype(np.int64)
    classes = np.zeros((2, 2, p_bins, p_bins))
    np.add.at(classes, (is_other[one], is_other[two], place[one], place[two]), jets.weight[one])

    def counted(jets: ScoredJets, d_b: Array, chosen: NDArray[np.bool_], power: int) -> Array:
        kept = jets.select(chosen)
        return binning.count(kept.pt_gev, kept.abs_eta, d_b[chosen], kept.weight**power)

    other, variance = (counted(calibrated, discriminants[1], calibrated.flavour != B, i) for i in (1, 2))
    error = np.divide(np.sqrt(variance), other, out=np.ones_like(other), where=other > 0)
    return PairCounts(
        binning,
        observed,
        classes,
        other,
        np.hypot(residual_width, np.minimum(error, 1.0)),
        *(counted(nominal, discriminants[2], nominal.flavour == B, i) for i in (1, 2)),
    )


class PairLikelihood:
    """−ln L as a function of the D parameters (u, β, α, ln μ), for pairs or for the single jets in them.

    C combinations of kinematic bins have pairs in data and simulation, in which A bins take part.
    """

    def __init__(self, counts: PairCounts, widths: FractionWidths, *, single_jets: bool = False) -> None:
        seen = (counts.observed.sum(axis=(2, 3)) > 0) & (counts.classes[0, 0] > 0)
        one, two = np.nonzero(seen)
        self.bins = np.unique(np.concatenate([one, two]))
        self.one, self.two = (torch.from_numpy(np.searchsorted(self.bins, part)) for part in (one, two))
        self.single_jets = single_jets
        self.observed = self._seen(torch.from_numpy(counts.observed[one, two]))
        classes = torch.from_numpy(counts.classes[:, :, one, two]).reshape(4, -1)
        self.fraction = classes / classes.sum(0)
        each = (widths.mixed, widths.mixed, widths.neither)
        self.fraction_width = torch.tensor(each, dtype=torch.float64)[:, None]
        shape = counts.other[self.bins]
        shape = np.maximum(shape / np.maximum(shape.sum(axis=1, keepdims=True), 1e-300), SHARE_MIN)
        self.other = torch.from_numpy(shape)
        self.other_width = torch.from_numpy(counts.other_width[self.bins])
        self.sizes = (shape.size - len(shape), shape.size, 3 * len(one), len(one))
        pairs = torch.from_numpy(counts.observed[one, two].sum(axis=(1, 2)))
        jets = counts.nominal[self.bins] + 0.5
        # Ties would leave two bins without parameter: an ever so slight slope decides.
        jets = jets * (1 + 1e-9 * np.arange(jets.shape[1]))
        free = torch.from_numpy(np.flatnonzero(jets < jets.max(axis=1, keepdims=True)))
        self.placed = torch.eye(shape.size, dtype=torch.float64)[:, free]
        relative = torch.from_numpy(np.log(jets / jets.max(axis=1, keepdims=True)))
        zeros = torch.zeros(self.sizes[1] + self.sizes[2], dtype=torch.float64)
        self.start = torch.cat([relative.flatten()[free], zeros, pairs.log()])

    def _seen(self, pairs: Float[Tensor, "C K K"]) -> Float[Tensor, " bins"]:
        if not self.single_jets:
            return pairs.flatten()
        return torch.cat([pairs.sum(2).flatten(), pairs.sum(1).flatten()])

    def efficiency(self, theta: Float[Tensor, " D"]) -> Float[Tensor, "A K"]:
        """b efficiencies of the discriminant bins; u of the largest bin is zero."""
        u = self.placed @ theta[: self.sizes[0]]
        return torch.softmax(u.reshape(self.other.shape), dim=1)

    def expected(self, theta: Float[Tensor, " D"]) -> Float[Tensor, " bins"]:
        """ν of all bins."""
        _, beta, alpha, log_mu = torch.split(theta, list(self.sizes))
        of_b = self.efficiency(theta)
        of_other = torch.softmax(self.other.log() + self.other_width * beta.reshape(self.other.shape), dim=1)
        tags = torch.stack([of_b, of_other])
        factor = torch.exp(self.fraction_width * alpha.reshape(3, -1))
        weight = self.fraction * torch.cat([torch.ones_like(factor[:1]), factor])
        weight = weight / weight.sum(0) * log_mu.exp()
        weight = weight.reshape(2, 2, -1)
        return self._seen(torch.einsum("acn,ank,cnm->nkm", weight, tags[:, self.one], tags[:, self.two]))

    def constrained(self) -> Float[Tensor, " D"]:
        """One where a parameter has a unit Gaussian constraint."""
        parts = [torch.full((n,), float(i in (1, 2)), dtype=torch.float64) for i, n in enumerate(self.sizes)]
        return torch.cat(parts)

    def __call__(self, theta: Float[Tensor, " D"]) -> Float[Tensor, ""]:
        rate = self.expected(theta)
        poisson = (rate - torch.special.xlogy(self.observed, rate)).sum()
        constraint = (self.constrained() * theta**2).sum() / 2
        result: Tensor = poisson + constraint
        return result


def fit_pairs(counts: PairCounts, widths: FractionWidths, *, single_jets: bool = False) -> PairFit:
    """Maximum of the likelihood by Fisher scoring, covariance from the observed information.

    ``single_jets``: fit the jets of the pairs one by one instead, to compare with.

    Raises
    ------
    FitError
        If it does not converge, the information is not positive definite, or no jet is in a bin.
    """
    likelihood = PairLikelihood(counts, widths, single_jets=single_jets)
    jets = counts.observed.sum(axis=(1, 3)) + counts.observed.sum(axis=(0, 2))
    if (jets[likelihood.bins] == 0).any():
        raise FitError("a bin of the discriminant has no jet of any pair", where="two-jet fit", fix=FIX)
    theta, prior = likelihood.start, likelihood.constrained()
    value = likelihood(theta)
    edm = float("inf")
    for _ in range(ITERATIONS_MAX):
        slope = torch.func.grad(likelihood)(theta)
        jacobian = torch.func.jacrev(likelihood.expected)(theta)
        rate = likelihood.expected(theta).clamp_min(1e-300)
        information = jacobian.T @ (jacobian / rate[:, None]) + torch.diag(prior)
        step = -torch.linalg.lstsq(information, slope[:, None], driver="gelsd").solution[:, 0]
        edm = float(-slope @ step) / 2
        if edm < EDM_MAX:
            break
        for halving in range(HALVINGS_MAX):
            trial = theta + 0.5**halving * step
            found = likelihood(trial)
            if bool(found <= value):
                break
        else:
            break
        theta, value = trial, found
    hessian = torch.func.jacrev(torch.func.grad(likelihood))(theta)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    covariance = torch.cholesky_inverse(factor)
    sloped = float((torch.func.grad(likelihood)(theta).abs() * covariance.diagonal().abs().sqrt()).max())
    if failed or sloped > GRADIENT_MAX or edm > EDM_MAX:
        raise FitError(
            "the two-jet fit did not converge",
            where=f"estimated distance to the minimum {edm:.2g}, slope {sloped:.2g}/σ",
            expected=f"below {EDM_MAX:.0e} and {GRADIENT_MAX:.0e}, with a positive definite Hessian",
            fix=FIX,
        )
    derivative = torch.func.jacrev(lambda point: likelihood.efficiency(point).flatten())(theta)
    rate, seen = likelihood.expected(theta), likelihood.observed
    deviance = 2 * (rate - seen + torch.special.xlogy(seen, seen) - torch.special.xlogy(seen, rate)).sum()
    pulled = float((prior * theta**2).sum())
    return PairFit(
        likelihood.bins,
        likelihood.efficiency(theta).numpy(),
        (derivative @ covariance @ derivative.T).numpy(),
        float(deviance) + pulled,
        len(seen) - int((prior == 0).sum()),
    )


def expected_counts(counts: PairCounts, widths: FractionWidths) -> Float[Array, "P P K K"]:
    """Pairs to be expected if data were the simulation, for a blinded fit; as many per p, q as in data."""
    likelihood = PairLikelihood(counts, widths)
    expected = np.zeros_like(counts.observed)
    one, two = (likelihood.bins[part.numpy()] for part in (likelihood.one, likelihood.two))
    k = expected.shape[-1]
    expected[one, two] = likelihood.expected(likelihood.start).reshape(-1, k, k).numpy()
    return expected


def pair_scale_factors(counts: PairCounts, found: PairFit) -> list[dict[str, Any]]:
    """One row per kinematic bin and working point: value, total and the parts of pairs and of simulation."""
    k = counts.binning.n_bins
    rows = []
    for a, p in enumerate(found.bins.tolist()):
        nominal, variance = counts.nominal[p], counts.nominal_variance[p]
        size = nominal.sum() ** 2 / variance.sum()
        block = found.covariance[a * k : (a + 1) * k, a * k : (a + 1) * k]
        for i, point in enumerate(counts.binning.working_points):
            efficiency, before = found.efficiency[a, i + 1 :].sum(), nominal[i + 1 :].sum() / nominal.sum()
            if before == 0:
                continue
            of_pairs = np.sqrt(block[i + 1 :, i + 1 :].sum()) / before
            of_simulation = efficiency / before * np.sqrt((1 - before) / before / size)
            rows.append(
                {
                    "flavour": "b",
                    "working_point": point,
                    "pt_gev": list(counts.binning.pt_gev_range(p)),
                    "abs_eta": list(counts.binning.abs_eta_range(p)),
                    "value": float(efficiency / before),
                    "pairs": float(of_pairs),
                    "simulation_statistics": float(of_simulation),
                    "total": float(np.hypot(of_pairs, of_simulation)),
                }
            )
    return rows


def two_jets_json(counts: PairCounts, widths: FractionWidths, *, blinded: bool) -> dict[str, Any]:
    """The content of ``two_jets.json``: scale factors of pairs, and of the same jets taken one by one.

    Raises
    ------
    FitError
        As :func:`fit_pairs`.
    """
    of_pairs, of_jets = (fit_pairs(counts, widths, single_jets=single) for single in (False, True))
    return {
        "schema_version": 1,
        "blinded": blinded,
        "pairs": float(counts.observed.sum()),
        "goodness_of_fit": {"statistic": of_pairs.deviance, "ndf": of_pairs.ndf},
        "rows": pair_scale_factors(counts, of_pairs),
        "single_jets": pair_scale_factors(counts, of_jets),
    }
