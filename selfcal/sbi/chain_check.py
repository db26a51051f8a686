"""The Laplace posterior against a Markov chain of the same likelihood (NUTS, arXiv 1111.4246; pyro 1.9)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfcal.sbi.binned_likelihood import central_jacobian

Floats = NDArray[np.float64]
SAMPLES, WARM_UP = 250, 50
TREE_DEPTH_MAX = 5


def chain_available() -> bool:
    """Whether pyro is installed (extra ``chain``)."""
    return importlib.util.find_spec("pyro") is not None


def log_density_of(residuals: Callable[[Floats], Floats]) -> Callable[[Tensor], Tensor]:
    """-½ |residuals|² of standardised parameters, with its first derivatives for autograd."""

    def log_density(x: Tensor) -> Tensor:
        at = x.detach().numpy()
        here = residuals(at)
        slope = central_jacobian(residuals, at).T @ here
        # Zero, but for its derivative.
        return -(0.5 * float(here @ here) + torch.from_numpy(slope) @ (x - x.detach()))

    return log_density


def compare_with_chain(
    log_density: Callable[[Tensor], Tensor], best: Floats, covariance: Floats, size: int, seed: int
) -> dict[str, Any]:
    """Sample ``log_density`` with NUTS, in coordinates in which the Laplace posterior is a unit Gaussian.

    Parameters
    ----------
    best, covariance : of the Laplace posterior of the same likelihood, of all free numbers
    size : number of parameters of interest, which come first

    Returns
    -------
    dict
        ``mean_shift`` (chain minus Laplace, in Laplace σ) and ``width_ratio`` per parameter of interest,
        the acceptance, the smallest effective number of samples, the largest split R̂, and divergences.
    """
    import pyro
    from pyro.infer.mcmc import MCMC, NUTS

    # Its import switches the checks of torch's distributions on for the whole process: every density would be
    # slower, and one that is not finite would end in a ValueError instead of the error of its fit.
    pyro.enable_validation(False)
    root = torch.from_numpy(np.linalg.cholesky(covariance))
    centre = torch.from_numpy(best)
    highest = float(log_density(centre).detach())

    def potential(values: dict[str, Tensor]) -> Tensor:
        return highest - log_density(centre + root @ values["y"])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kernel = NUTS(potential_fn=potential, adapt_mass_matrix=False, max_tree_depth=TREE_DEPTH_MAX)
        start = {"y": torch.zeros(len(best), dtype=torch.float64)}
        sampler = MCMC(
            kernel, num_samples=SAMPLES, warmup_steps=WARM_UP, initial_params=start, disable_progbar=True
        )
        sampler.run()
    summary = sampler.diagnostics()
    moved = (sampler.get_samples()["y"] @ root.T)[:, :size].numpy()
    sigma = np.sqrt(np.diag(covariance)[:size])
    return {
        "sampler": f"NUTS (pyro {pyro.__version__})",
        "samples": len(moved),
        "acceptance": float(summary["acceptance rate"]["chain 0"]),
        "effective_samples": float(summary["y"]["n_eff"].min()),
        "split_r_hat": float(summary["y"]["r_hat"].max()),
        "divergences": len(summary["divergences"]["chain 0"]),
        "mean_shift": (moved.mean(axis=0) / sigma).tolist(),
        "width_ratio": (moved.std(axis=0) / sigma).tolist(),
    }
