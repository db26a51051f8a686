"""Smooth classifiers in (pT, |eta|): flavour fractions and data/simulation weights."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def smooth_features(conditions: Float[Tensor, "jets conditions"]) -> Float[Tensor, "jets features"]:
    """1, x, x², x³, y, y², xy of the two condition features: enough for a smooth ratio of spectra."""
    x, y = conditions[:, 0].clamp(-2.5, 3.5), conditions[:, 1]
    return torch.stack([torch.ones_like(x), x, x**2, x**3 / 3, y, y**2, x * y], dim=1)


def fit_logistic(
    conditions: Float[Tensor, "jets conditions"],
    label: Int[Tensor, " jets"],
    weight: Float[Tensor, " jets"],
    classes: int,
    ridge: float = 1.0,
) -> Float[Tensor, "features classes"]:
    """Multinomial logistic regression of ``label`` on :func:`smooth_features`.

    Minimises -Σ w ln p(label | c) + ridge/2 |coefficients without constants|² by L-BFGS;
    the problem is convex. A class without jets gets a vanishing probability.
    """
    features = smooth_features(conditions)
    coefficients = features.new_zeros(features.shape[1], classes).requires_grad_()
    optimiser = torch.optim.LBFGS([coefficients], max_iter=200, line_search_fn="strong_wolfe")
    total = weight.sum()

    def closure() -> Tensor:
        optimiser.zero_grad()
        log_p = torch.log_softmax(features @ coefficients, dim=1)
        loss = -(weight * log_p.gather(1, label[:, None])[:, 0]).sum()
        # The small pull on the constants only fixes their common offset and empty classes.
        penalty = ridge * coefficients[1:].square().sum() + 1e-3 * coefficients[0].square().sum()
        result: Tensor = (loss + 0.5 * penalty) / total
        result.backward()  # type: ignore[no-untyped-call]
        return result

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return coefficients.detach()


def log_probability(
    coefficients: Float[Tensor, "features classes"], conditions: Float[Tensor, "jets conditions"]
) -> Float[Tensor, "jets classes"]:
    """ln p(class | c) of a fitted regression."""
    return torch.log_softmax(smooth_features(conditions) @ coefficients, dim=1)


def kinematic_weights(
    simulation: Float[Tensor, "n conditions"],
    data: Float[Tensor, "m conditions"],
    simulation_weight: Float[Tensor, " n"],
    data_weight: Float[Tensor, " m"],
) -> Float[Tensor, " n"]:
    """Factors of mean one that give the simulation the data's (pT, |eta|) spectrum.

    w(c) = p(data | c) / p(simulation | c) from a classifier with equal total weights.
    """
    conditions = torch.cat([simulation, data])
    label = torch.cat([torch.zeros(len(simulation)), torch.ones(len(data))]).long()
    balanced = torch.cat(
        [simulation_weight / simulation_weight.sum(), data_weight / data_weight.sum()]
    ) * len(data)
    log_p = log_probability(fit_logistic(conditions, label, balanced, 2), simulation)
    factor = (log_p[:, 1] - log_p[:, 0]).exp()
    return factor * simulation_weight.sum() / (factor * simulation_weight).sum()
