"""An amortised posterior of theta from a whole sample of jets, as a check of the likelihood.

Deep sets (arXiv 1703.06114): the numbers that the networks of :mod:`selfcal.sbi.jet_scores` say of a jet
are averaged over the sample, z. A conditional flow p(θ | z) then learns from samples of as many jets that
share a detector, a composition and a multiplicity drawn from their priors: a linear Gaussian, u = a + A z +
L e, and on e an autoregressive affine flow given z that starts at the identity and is kept as far as it
describes samples better that it never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zuko
from numpy.typing import NDArray
from torch import Tensor

from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, prior_widths, within_ranges
from selfcal.data.jets import Jets
from selfcal.sbi.diagnostics import calibration, expected_coverage, ranks
from selfcal.sbi.donors import Donors
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.jet_bank import jet_rows
from selfcal.sbi.jet_predictive import detector_in, shares_of
from selfcal.sbi.jet_scores import JetRows, joined
from selfcal.sbi.smearing import smear_each

Floats = NDArray[np.float64]
FLOW_EPOCHS, FLOW_BATCH, FLOW_RATE = 60, 64, 1e-3
TEST_PART = 0.2
"""Part of the samples that the flow does not learn from: they stop it, and calibrate it."""
DRAWS = 1000


@dataclass(frozen=True)
class SetPosterior:
    """u = a + A z + L e with z standardised, e a flow given z."""

    centre: Floats
    scale: Floats
    coefficients: Floats
    root: Floats
    flow: Any

    def features(self, z: Floats) -> Floats:
        """Standardised z, (n, D)."""
        return np.asarray((z - self.centre) / self.scale, np.float64)

    def linear(self, features: Floats) -> Floats:
        """a + A z, (n, D)."""
        return np.asarray(self.coefficients[0] + features @ self.coefficients[1:], np.float64)

    def draw(self, z: Floats, number: int, seed: int) -> Floats:
        """Draws of u in prior widths, (n, number, D)."""
        features = self.features(z)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            e = self.flow(torch.from_numpy(features)).sample((number,)).transpose(0, 1).numpy()
        return np.asarray(self.linear(features)[:, None] + e @ self.root.T, np.float64)


def train_set_posterior(u: Floats, z: Floats, seed: int) -> tuple[SetPosterior, NDArray[np.int64]]:
    """From detectors (n, D) and embeddings (n, E) of n samples; also the indices it did not learn from."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(u))
    held, learnt = np.split(order, [int(np.ceil(TEST_PART * len(u)))])
    centre, scale = z[learnt].mean(axis=0), z[learnt].std(axis=0) + 1e-12
    matrix = np.concatenate([np.ones((len(learnt), 1)), (z[learnt] - centre) / scale], axis=1)
    coefficients, *_ = np.linalg.lstsq(matrix, u[learnt], rcond=None)
    residual = u[learnt] - matrix @ coefficients
    covariance = residual.T @ residual / max(len(learnt) - matrix.shape[1], 1)
    root = np.linalg.cholesky(covariance + 1e-10 * np.eye(u.shape[1]))
    torch.manual_seed(seed)
    flow = zuko.flows.MAF(
        u.shape[1], z.shape[1], transforms=1, hidden_features=(32,), activation=torch.nn.SiLU
    ).double()
    last = [layer for layer in flow.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    model = SetPosterior(centre, scale, coefficients, root, flow)
    features = model.features(z)
    e = np.linalg.solve(root, (u - model.linear(features)).T).T
    _train_flow(flow, torch.from_numpy(e), torch.from_numpy(features), learnt, held, generator)
    return model, held


def _train_flow(
    flow: Any,
    e: Tensor,
    features: Tensor,
    learnt: NDArray[np.int64],
    held: NDArray[np.int64],
    generator: np.random.Generator,
) -> None:
    """Keeps the weights that describe the held-out samples best; those of the start are among them."""
    optimiser = torch.optim.Adam(flow.parameters(), lr=FLOW_RATE, weight_decay=1e-3)
    best, state = np.inf, None
    for epoch in range(FLOW_EPOCHS + 1):
        with torch.no_grad():
            loss = float(-flow(features[held]).log_prob(e[held]).mean())
        if loss < best:
            best, state = loss, {name: value.clone() for name, value in flow.state_dict().items()}
        if epoch == FLOW_EPOCHS:
            break
        order = generator.permutation(learnt)
        for first in range(0, len(order), FLOW_BATCH):
            batch = torch.from_numpy(order[first : first + FLOW_BATCH])
            objective = -flow(features[batch]).log_prob(e[batch]).mean()
            optimiser.zero_grad()
            objective.backward()
            optimiser.step()
    flow.load_state_dict(state)
    flow.requires_grad_(False)


def simulated_sets(
    regions: Sequence[RegionTracks],
    sizes: Sequence[int],
    embedding: Callable[[JetRows], Floats],
    donors: Donors,
    config: InferenceConfig,
    seed: int,
) -> tuple[Floats, Floats]:
    """Detectors (n, D) in prior widths and embeddings (n, E) of ``sets`` samples, ``sizes`` jets a region."""
    generator = np.random.default_rng([seed, 5])
    nominal, widths = NOMINAL.vector(), prior_widths(config.prior_width)
    drawn, embedded = [], []
    for number in range(config.neural.sets):
        u = generator.standard_normal(len(PARAMETERS))
        u = (within_ranges(nominal + widths * u) - nominal) / widths
        rows = []
        for r, (one, size) in enumerate(zip(regions, sizes, strict=True)):
            tilt = generator.standard_normal(len(one.fractions))
            share = shares_of(one.fractions, one.relative_width, tilt)
            theta = within_ranges(detector_in(u, float(generator.standard_normal()), config))
            for jets in picked(generator, one.simulation, size, share):
                smeared = smear_each(jets, np.tile(theta, (len(jets), 1)), donors, seed + number)
                rows.append(jet_rows(smeared, r, seed + number))
        drawn.append(u)
        embedded.append(embedding(joined(rows)).mean(axis=0))
    return np.stack(drawn), np.stack(embedded)


def picked(generator: np.random.Generator, samples: Sequence[Jets], size: int, share: Floats) -> list[Jets]:
    """``size`` jets whose flavours have ``share``, each by its weight, from the samples of one region."""
    flavour = np.concatenate([jets.flavour for jets in samples])
    weight = np.maximum(np.concatenate([jets.weight for jets in samples]), 0.0)
    rows: list[NDArray[np.int64]] = []
    for index, number in enumerate(generator.multinomial(size, share)):
        inside = np.flatnonzero((flavour == index) & (weight > 0))
        if len(inside) and number:
            part = weight[inside] / weight[inside].sum()
            rows.append(generator.choice(inside, number, replace=number > len(inside) // 2, p=part))
    chosen = np.sort(np.concatenate(rows))
    found, first = [], 0
    for jets in samples:
        mine = chosen[(chosen >= first) & (chosen < first + len(jets))] - first
        first += len(jets)
        if len(mine):
            found.append(jets.select(mine))
    return found


def compare_with_sets(
    regions: Sequence[RegionTracks],
    embedding: Callable[[JetRows], Floats],
    data: JetRows,
    best: Floats,
    covariance: Floats,
    donors: Donors,
    config: InferenceConfig,
    seed: int,
) -> dict[str, Any]:
    """The amortised posterior of ``data`` beside the posterior of the same jets by the likelihood.

    Parameters
    ----------
    embedding : jets (N) -> numbers of each (N, E)
    best, covariance : of the likelihood's posterior, parameters of interest in prior widths, (D,) and (D, D)

    Returns
    -------
    dict
        ``mean_shift`` (in the likelihood's σ) and ``width_ratio`` per parameter, and how the amortised
        posterior is calibrated on samples that it did not learn from.
    """
    sizes = [int((data.region == r).sum()) for r in range(len(regions))]
    u, z = simulated_sets(regions, sizes, embedding, donors, config, seed)
    model, held = train_set_posterior(u, z, seed)
    draws = model.draw(embedding(data).mean(axis=0)[None], DRAWS, seed)[0]
    size = len(PARAMETERS)
    sigma = np.sqrt(np.diag(covariance)[:size])
    tested = model.draw(z[held], DRAWS, seed)
    return {
        "samples": len(u),
        "jets": len(data),
        "mean_shift": ((draws.mean(axis=0) - best[:size]) / sigma).tolist(),
        "width_ratio": (draws.std(axis=0) / sigma).tolist(),
        "calibration": calibration_summary(u[held], tested, seed),
    }


def calibration_summary(truth: Floats, draws: Floats, seed: int) -> dict[str, Any]:
    """SBC and TARP of posteriors: truth (n, D), draws (n, S, D).

    ``verdicts`` per parameter (see :func:`selfcal.sbi.diagnostics.calibration`, at 1 % over all parameters),
    ``uniformity`` the smallest p-value times their number, ``tarp_deviation`` the largest difference between
    the expected coverage and the credibility, ``tarp_p_value`` that of a Kolmogorov-Smirnov test.
    """
    from scipy import stats

    share = ranks(truth, draws)
    found = [calibration(column, significance=0.01 / len(PARAMETERS)) for column in share.T]
    coverage = expected_coverage(truth, draws, seed)
    tested = stats.kstest(coverage, "uniform")
    return {
        "experiments": len(truth),
        "verdicts": [one.verdict for one in found],
        "uniformity": float(min(1.0, min(one.uniformity for one in found) * len(found))),
        "tarp_deviation": float(tested.statistic),
        "tarp_p_value": float(tested.pvalue),
    }
