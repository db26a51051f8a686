"""A synthetic world with the proportions of the real one, as Templates with known truth."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyhf
import pytest
import torch
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import Binning, Templates

torch.set_num_threads(1)

REGIONS = ("ttbar_emu", "w_charm", "dijet", "z_tautau")
FRACTIONS = np.array(
    [[0.65, 0.07, 0.25, 0.03], [0.03, 0.42, 0.53, 0.02], [0.04, 0.07, 0.88, 0.01], [0.02, 0.06, 0.50, 0.42]]
)
DATA_JETS = np.array([4000, 3600, 3300, 1300])
# Efficiency to pass 85, 77, 70, 60 % working points, per flavour.
PASSING = np.array(
    [
        [0.85, 0.77, 0.70, 0.60],
        [0.30, 0.15, 0.09, 0.05],
        [0.04, 0.009, 0.0035, 0.0012],
        [0.05, 0.02, 0.01, 0.004],
    ]
)
SPECTRUM = np.array([0.35, 0.40, 0.25])
BINNING = Binning((20.0, 40.0, 70.0, 250.0), (0.5, 1.5, 2.5, 3.5), (0.85, 0.77, 0.70, 0.60))


def efficiencies() -> NDArray[np.float64]:
    """(F, K) fractions in the pseudo-continuous bins, loosest first."""
    padded = np.concatenate([np.ones((4, 1)), PASSING, np.zeros((4, 1))], axis=1)
    return padded[:, :-1] - padded[:, 1:]


@dataclass(frozen=True)
class World:
    """A draw of templates and data, with the true scale factors (F, P, K) of the bins."""

    templates: Templates
    nominal_efficiency: NDArray[np.float64]
    true_efficiency: NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """How far the world is from its simulation, and how large the simulation is."""

    simulation_size: float = 1.5
    map_width: float = 0.05
    residual: tuple[float, ...] = (0.05, 0.10, 0.5, 0.3)
    composition_shift: float = 0.2
    pt_shape: float = 0.10
    replicas: int = 10
    asimov: bool = False
    data_factor: float = 1.0


def draw_world(seed: int, settings: Settings) -> World:
    """Draw map, residuals, composition and counts; data follow the truth, templates the simulation."""
    rng = np.random.default_rng(seed)
    nominal = np.repeat(efficiencies()[:, None, :], 3, axis=1)
    shift = np.array([0.98, 1.1, 1.3, 1.0])[:, None]
    morph = 1 + (shift - 1) * np.linspace(0, 1, 5)
    calibrated = nominal * morph[:, None, :]
    calibrated /= calibrated.sum(axis=2, keepdims=True)
    pattern = np.linspace(-1, 1, 5)[None, None, :]

    def moved(size: float) -> NDArray[np.float64]:
        amplitude = rng.normal(0, settings.map_width * size, (4, 3, 1))
        result = calibrated * np.exp(amplitude * pattern)
        return result / result.sum(axis=2, keepdims=True)

    truth = moved(0.0 if settings.asimov else 1.0)
    if not settings.asimov:
        noise = rng.normal(size=truth.shape) * np.array(settings.residual)[:, None, None]
        noise[truth == truth.max(axis=2, keepdims=True)] = 0.0
        truth = truth * np.exp(noise)
        truth /= truth.sum(axis=2, keepdims=True)
    variants = [moved(1.0) / calibrated for _ in range(settings.replicas)]
    jets = settings.data_factor * DATA_JETS[:, None] * FRACTIONS
    spread = 0.0 if settings.asimov else settings.pt_shape
    spectrum = SPECTRUM * np.exp(rng.normal(0, spread, (4, 4, 3)))
    spectrum /= spectrum.sum(axis=2, keepdims=True)
    mean = np.einsum("rf,rfp,fpk->rpk", jets, spectrum, truth)
    data = mean if settings.asimov else rng.poisson(mean).astype(float)
    size = jets[:, :, None, None] * settings.simulation_size * SPECTRUM[:, None] * nominal
    ratio = np.broadcast_to(calibrated / nominal, size.shape)
    if settings.asimov:
        before, after = size, size * ratio
    else:
        before = rng.poisson(size).astype(float)
        gained = rng.poisson(size * np.maximum(ratio - 1, 0))
        after = np.where(ratio > 1, before + gained, rng.binomial(before.astype(int), np.minimum(ratio, 1)))
    sign = np.where(rng.random((4, 4)) < 0.5, -1, 1) * (0 if settings.asimov else 1)
    prior = FRACTIONS * (1 + settings.composition_shift * sign)
    templates = Templates(
        regions=REGIONS,
        binning=BINNING,
        data=data,
        nominal=before,
        nominal_variance=before.copy(),
        calibrated=after,
        calibrated_variance=after.copy(),
        replicas=np.stack([after * variant for variant in variants]),
        variations={},
        composition=prior / prior.sum(axis=1, keepdims=True),
        composition_relative_uncertainty=np.full((4, 4), 0.25),
    )
    return World(templates, nominal, truth)


@pytest.fixture
def asimov_world() -> World:
    """Data equal to expectation, simulation of ten times the data."""
    return draw_world(3, Settings(asimov=True, simulation_size=10.0))


@pytest.fixture
def random_world() -> World:
    """One draw of everything."""
    return draw_world(11, Settings())


def first_pt_bin(templates: Templates) -> Templates:
    """The same templates with one pT bin only."""
    fields = ("data", "nominal", "nominal_variance", "calibrated", "calibrated_variance", "replicas")
    sliced = {name: getattr(templates, name)[..., :1, :] for name in fields}
    return replace(templates, binning=replace(templates.binning, pt_gev_edges=(20.0, 40.0)), **sliced)


@pytest.fixture(scope="session")
def small_world() -> World:
    """One draw of everything in one pT bin, with ten times the usual data and simulation."""
    world = draw_world(11, Settings(simulation_size=2.0, data_factor=10.0))
    truth = {"nominal_efficiency", "true_efficiency"}
    return World(
        first_pt_bin(world.templates), **{name: getattr(world, name)[:, :1] for name in sorted(truth)}
    )


@pytest.fixture(scope="session")
def measured(small_world):
    """The measurement of the small world with the options of the default configuration."""
    return measure(small_world.templates, FitConfig())


def b_jets_only(data: NDArray[np.float64], shape: NDArray[np.float64], size: float = 1e9) -> Templates:
    """One region of b jets only, in one pT bin, with a practically unlimited simulation."""
    content = np.zeros((1, 4, 1, 5))
    content[0, 0, 0] = shape * size
    zeros = np.zeros((2, 1, 4, 1, 5))
    return Templates(
        regions=("ttbar_emu",),
        binning=replace(BINNING, pt_gev_edges=(20.0, 250.0)),
        data=data.reshape(1, 1, 5),
        nominal=content,
        nominal_variance=content.copy(),
        calibrated=content,
        calibrated_variance=content.copy(),
        replicas=zeros + content,
        variations={},
        composition=np.array([[1.0, 0.0, 0.0, 0.0]]),
        composition_relative_uncertainty=np.full((1, 4), 0.2),
    )


@pytest.fixture(scope="session")
def one_pt_bin():
    """``first_pt_bin`` above."""
    return first_pt_bin


@pytest.fixture(scope="session")
def make_world():
    """``make_world(seed, **settings)``."""
    return lambda seed, **settings: draw_world(seed, Settings(**settings))


@pytest.fixture(scope="session")
def one_flavour():
    """The function above."""
    return b_jets_only


def _sibling(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def workspaces() -> ModuleType:
    """The module of that name beside this file."""
    return _sibling("workspaces")


@dataclass(frozen=True)
class Reference:
    """pyhf's model of a workspace; ``order`` is the position of its parameters in ours."""

    pdf: Any
    data: list[float]
    order: list[int]

    def twice_nll(self, theta: NDArray[np.float64]) -> float:
        """By the numpy backend."""
        return float(-2 * self.pdf.logpdf(theta[self.order], self.data)[0])


@pytest.fixture
def pyhf_reference() -> Callable[..., Reference]:
    """``pyhf_reference(workspace, names, measurement, **interpolation_codes)``."""

    def build(
        workspace: dict[str, Any], names: Any, measurement: str | None = None, **codes: str
    ) -> Reference:
        settings = {kind: {"interpcode": code} for kind, code in codes.items()}
        with warnings.catch_warnings():
            # pyhf 0.7 validates with an interface that jsonschema has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            opened = pyhf.Workspace(workspace)
            extra = {"modifier_settings": settings} if settings else {}
            pdf = opened.model(measurement_name=measurement, **extra)
        position = {name: i for i, name in enumerate(names)}
        return Reference(pdf, opened.data(pdf), [position[name] for name in pdf.config.par_names])

    return build
