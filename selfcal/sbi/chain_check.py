"""The Laplace posterior against a Markov chain of the same likelihood (emcee, arXiv 1202.3665)."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from selfcal.sbi.binned_likelihood import BinnedLikelihood, LaplaceFit

WALKERS_PER_DIMENSION = 4
STEPS, BURN_IN = 1500, 500


def chain_available() -> bool:
    """Whether emcee is installed (extra ``chain``)."""
    return importlib.util.find_spec("emcee") is not None


def compare_with_chain(likelihood: BinnedLikelihood, fit: LaplaceFit, seed: int) -> dict[str, Any]:
    """Sample the likelihood with V fixed, from walkers spread like the Laplace posterior.

    Returns
    -------
    dict
        ``mean_shift`` (chain minus Laplace, in Laplace σ) and ``width_ratio`` per parameter of interest,
        the acceptance, the largest integrated autocorrelation time and the number of samples.
    """
    import emcee

    size = len(likelihood.prior_mean)
    generator = np.random.default_rng(seed)
    walkers = WALKERS_PER_DIMENSION * likelihood.dimension
    start = generator.multivariate_normal(fit.best, fit.covariance, walkers)

    def log_density(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(-0.5 * (likelihood.residuals(x, fit.variance) ** 2).sum(axis=-1))

    sampler = emcee.EnsembleSampler(
        walkers,
        likelihood.dimension,
        log_density,
        vectorize=True,
        moves=[(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)],
    )
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(start, STEPS)
    # The result says how long the chain is in units of this time: no minimum is asked for here.
    times = sampler.get_autocorr_time(discard=BURN_IN, tol=0)
    chain = sampler.get_chain(discard=BURN_IN, flat=True)[:, :size]
    sigma = np.sqrt(np.diag(fit.covariance)[:size])
    return {
        "sampler": f"emcee {emcee.__version__}",
        "samples": len(chain),
        "acceptance": float(sampler.acceptance_fraction.mean()),
        "autocorrelation_steps": float(np.max(times[:size])),
        "steps": STEPS - BURN_IN,
        "mean_shift": ((chain.mean(axis=0) - fit.best[:size]) / sigma).tolist(),
        "width_ratio": (chain.std(axis=0) / sigma).tolist(),
    }
