"""The same toys fitted with evermore's pdfs in JAX: vmapped Fisher scoring; run by ``bench.likelihood``.

The expectation is that of the tables in ``model.npz`` (interpolation codes 4p and 4 inside |α| < 1, the
exponentials and lines outside), the likelihood ``evermore.pdf.PoissonContinuous`` and ``Normal``. The
compilation is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import evermore as evm
import jax
import jax.numpy as jnp
import numpy as np

TOYS = 100
ITERATIONS_MAX = 60
EDM_GOAL = 1e-10


def expectation(tables):
    """θ (D,) -> ν (B,)."""
    n_bins, n_slots = (int(x) for x in tables["shape"])
    nominal, up, down = (jnp.asarray(tables[key]) for key in ("nominal", "up", "down"))
    high, low, coefficients = (jnp.asarray(tables[key]) for key in ("log_high", "log_low", "coefficients"))
    scale, factor = tables["scale"], tables["factor"]

    def expected(theta):
        alpha = theta[tables["shift_parameter"]]
        square = alpha * alpha
        bend = square * (15 + square * (3 * square - 10)) / 16
        inside = jnp.abs(alpha) <= 1
        by_up = jnp.where(inside, bend + alpha / 2, jnp.where(alpha > 0, alpha, 0.0))
        by_down = jnp.where(inside, bend - alpha / 2, jnp.where(alpha > 0, 0.0, -alpha))
        base = nominal + up @ by_up + down @ by_down
        alpha = theta[tables["pair_parameter"]]
        powers = alpha[:, None] ** jnp.arange(1, 7)
        outside = jnp.exp(jnp.where(alpha > 0, alpha * high, -alpha * low))
        kappa = jnp.where(jnp.abs(alpha) < 1, 1 + (coefficients * powers).sum(1), outside)
        scaling = jnp.concatenate([jnp.ones(1), kappa])[scale].prod(1)
        factors = jnp.concatenate([theta, jnp.ones(1)])[factor].prod(1)
        return (base * scaling * factors).reshape(n_bins, n_slots).sum(1)

    return expected


def fitter(tables):
    """A function of (counts, centre) that returns best fit and EDM."""
    expected = expectation(tables)
    constrained, width = jnp.asarray(tables["constrained"]), jnp.asarray(tables["width"])
    lower, upper, start = (jnp.asarray(tables[key]) for key in ("lower", "upper", "start"))

    def loss(theta, counts, centre):
        main = evm.pdf.PoissonContinuous(lamb=expected(theta)).log_prob(counts).sum()
        normal = evm.pdf.Normal(mean=theta, width=width).log_prob(centre)
        return -main - jnp.where(constrained, normal, 0.0).sum()

    def step(theta, counts, centre):
        slope = jax.grad(loss)(theta, counts, centre)
        jacobian, mean = jax.jacfwd(expected)(theta), expected(theta)
        information = (jacobian / mean[:, None]).T @ jacobian + jnp.diag(
            jnp.where(constrained, width**-2, 0.0)
        )
        direction = -jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(information), slope)
        return jnp.clip(theta + direction, lower, upper), -0.5 * slope @ direction

    def fit(counts, centre):
        def running(state):
            _, edm, iteration = state
            return (edm > EDM_GOAL) & (iteration < ITERATIONS_MAX)

        def body(state):
            theta, edm = step(state[0], counts, centre)
            return theta, edm, state[2] + 1

        theta, edm, _ = jax.lax.while_loop(running, body, (start, jnp.inf, 0))
        return theta, edm

    return fit


def timed(function, *arguments) -> tuple[float, float, np.ndarray]:
    """Wall and CPU seconds of a compiled call, and the EDMs."""
    jax.block_until_ready(function(*arguments))
    begin, cpu = time.perf_counter(), time.process_time()
    _, edm = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin, time.process_time() - cpu, np.asarray(edm)


def main() -> None:
    """Print seconds per fit and per toy as JSON."""
    jax.config.update("jax_enable_x64", True)
    with np.load(Path(sys.argv[1]) / "model.npz") as archive:
        tables = dict(archive)
    counts, centre = (jnp.asarray(tables[key][:TOYS]) for key in ("counts", "centre"))
    fit = fitter(tables)
    wall, cpu, _ = timed(jax.jit(fit), counts[0], centre[0])
    many, many_cpu, edm = timed(jax.jit(jax.vmap(fit)), counts, centre)
    result = {
        "fit_seconds": wall,
        "fit_cpu_seconds": cpu,
        "toy_seconds": many / len(counts),
        "toy_cpu_seconds": many_cpu / len(counts),
        "failures": int((~(edm < 1e-8)).sum()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
