"""The posterior of theta: mean, covariance, draws, and the directions that become systematics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.config.smearing_parameters import SMEARING, SPACES, ParameterSpace, SmearingParameters
from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays, read_json, write_arrays, write_json
from selfcal.sbi.donors import Donors

Floats = NDArray[np.float64]
POSTERIOR_NAME, SAMPLES_NAME, DONORS_NAME = (
    "posterior.json",
    "posterior_samples.safetensors",
    "donors.safetensors",
)
FORMAT_VERSION = 1
SAMPLES = 4000


@dataclass(frozen=True)
class Posterior:
    """Gaussian posterior of the D parameters of ``space``, in their own units.

    Attributes
    ----------
    mean : (D,)
    covariance : (D, D)
    prior_width : (D,)
    """

    mean: Floats
    covariance: Floats
    prior_width: Floats
    space: ParameterSpace = SMEARING

    @property
    def parameters(self) -> SmearingParameters:
        """The posterior mean as parameters of the smearing model."""
        return SmearingParameters.from_vector(self.mean)

    @property
    def uncertainty(self) -> Floats:
        """Standard deviations, (D,)."""
        return np.asarray(np.sqrt(np.diag(self.covariance)))

    @property
    def contraction(self) -> Floats:
        """1 - σ²/prior²: 1 where the data decide, 0 where the prior does, (D,)."""
        return np.asarray(1 - np.diag(self.covariance) / self.prior_width**2)

    def draw(self, n: int, seed: int) -> Floats:
        """Draws, (n, D)."""
        return np.random.default_rng(seed).multivariate_normal(self.mean, self.covariance, n)

    def directions(self) -> Floats:
        """Shifts θ - θ̄ of one standard deviation along the eigenvectors, (D, D), widest first.

        Eigenvectors are those of the covariance in units of the prior widths; the sum of the outer
        products of the rows is the covariance.
        """
        scaled = self.covariance / np.outer(self.prior_width, self.prior_width)
        variances, vectors = np.linalg.eigh(scaled)
        rows = (vectors * np.sqrt(np.maximum(variances, 0))).T[::-1]
        return np.asarray(rows * self.prior_width)


def save_posterior(
    posterior: Posterior, donors: Donors | None, seed: int, diagnostics: dict[str, Any], folder: Path
) -> list[Path]:
    """Write ``posterior.json``, ``posterior_samples.safetensors`` and, if any, ``donors.safetensors``."""
    space = posterior.space
    rows = [
        {
            "name": name,
            "unit": unit,
            "nominal": float(nominal),
            "prior_width": float(width),
            "mean": float(mean),
            "uncertainty": float(sigma),
            "contraction": float(contraction),
        }
        for name, unit, nominal, width, mean, sigma, contraction in zip(
            space.names,
            space.units,
            space.nominal,
            posterior.prior_width,
            posterior.mean,
            posterior.uncertainty,
            posterior.contraction,
            strict=True,
        )
    ]
    content = {
        "schema_version": FORMAT_VERSION,
        "model": space.model,
        "seed": seed,
        "parameters": rows,
        "covariance": posterior.covariance.tolist(),
        **({"track_fields": list(donors.track_fields)} if donors is not None else {}),
        **diagnostics,
    }
    names = [POSTERIOR_NAME, SAMPLES_NAME]
    if donors is not None:
        write_arrays(folder / DONORS_NAME, donors.arrays())
        names.append(DONORS_NAME)
    write_arrays(folder / SAMPLES_NAME, {"theta": posterior.draw(SAMPLES, seed)})
    write_json(folder / POSTERIOR_NAME, content)
    return [folder / name for name in names]


def read_posterior(folder: Path) -> Posterior:
    """The posterior of either simulator, as :func:`save_posterior` wrote it.

    Raises
    ------
    DataError
        If the file is missing, damaged, or has another form.
    """
    content = read_json(folder / POSTERIOR_NAME)
    try:
        if content["schema_version"] != FORMAT_VERSION:
            raise ValueError(f"schema version {content['schema_version']}, expected {FORMAT_VERSION}")
        rows, space = content["parameters"], SPACES[content["model"]]
        if tuple(row["name"] for row in rows) != space.names:
            raise ValueError("the parameters are not those of this version")
        return Posterior(
            np.array([row["mean"] for row in rows]),
            np.array(content["covariance"]),
            np.array([row["prior_width"] for row in rows]),
            space,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a posterior of this version: {error}", where=str(folder)) from error


def load_posterior(folder: Path) -> tuple[Posterior, Donors, int]:
    """Posterior of the smearing model, donors and seed of the noise, as :func:`save_posterior` wrote them.

    Raises
    ------
    DataError
        If a file is missing, damaged, has another form, or is of the other simulator.
    """
    posterior = read_posterior(folder)
    if posterior.space is not SMEARING:
        raise DataError(
            "the posterior is of the generator's own detector, and here tracks are smeared",
            where=str(folder / POSTERIOR_NAME),
            fix="infer with 'inference.model: smearing'",
        )
    content, arrays = read_json(folder / POSTERIOR_NAME), read_arrays(folder / DONORS_NAME)
    try:
        return posterior, Donors(track_fields=tuple(content["track_fields"]), **arrays), int(content["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a posterior of this version: {error}", where=str(folder)) from error
