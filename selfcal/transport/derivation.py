"""Deriving composition and maps: the inputs, in a folder of their own, and what tasks leave beside them."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

import selfcal
from selfcal.config.calibration import CalibrationConfig, MapConfig
from selfcal.config.evaluation import Family
from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays, write_arrays, write_text
from selfcal.run.directory import RunDirectory
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.base_density import BaseDensities
from selfcal.transport.choice import build_maps, map_config
from selfcal.transport.composition import (
    CompositionFit,
    CompositionPrior,
)
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.identifiability import (
    Identifiability,
    identifiability,
    mixture_scores,
    prior_widths,
)
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.mixture import KinematicFractions, LegState, MixtureFit
from selfcal.transport.pt_fractions import PtShape
from selfcal.transport.region_dependence import RegionDependence
from selfcal.transport.sample import Sample, simulated_fractions

INFORMATION_JETS = 20_000
"""Jets of data from which the information is estimated, and scaled to all of them."""

LAYOUT = 3
"""What tasks leave in their files; those of another layout are not taken up."""

FOLDER = "derivation"
"""Below the checkpoints of a run: :func:`write_inputs` keeps one folder in it."""

SAMPLE_FIELDS = tuple(Sample.__dataclass_fields__)


def write_inputs(
    scratch: Path,
    simulation: Sample,
    data: Sample,
    prior: CompositionPrior,
    config: CalibrationConfig,
    seed: int,
) -> Path:
    """Store what all tasks read in ``scratch/<digest of it>``; returns that folder.

    Folders of other inputs or another configuration are removed.
    """
    arrays = {
        f"{role}.{name}": column.numpy()
        for role, sample in (("simulation", simulation), ("data", data))
        for name in SAMPLE_FIELDS
        if (column := getattr(sample, name)) is not None
    }
    arrays |= {"prior.fractions": prior.fractions.numpy(), "prior.uncertainty": prior.uncertainty.numpy()}
    arrays["seed"] = np.array([seed])
    # The arrays are hashed, not their file: safetensors does not fix the order within a file.
    settings = config.model_dump_json(exclude={"workers"})
    digest = hashlib.sha256(f"{selfcal.__version__} {LAYOUT} {settings}".encode())
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    folder = scratch / digest.hexdigest()[:16]
    for other in scratch.glob("*/"):
        if other != folder:
            shutil.rmtree(other)
    write_arrays(folder / "inputs.safetensors", arrays)
    write_text(folder / "config.json", settings)
    return folder


def tensors(module: nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """The state of a network, its names prefixed."""
    return {f"{prefix}{name}": value.detach().numpy() for name, value in module.state_dict().items()}


def _restore(module: nn.Module, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
    state = {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    module.load_state_dict(state)
    module.requires_grad_(requires_grad=False)


def _sample(arrays: Mapping[str, Tensor], role: str) -> Sample:
    columns = {name: arrays[key] for name in SAMPLE_FIELDS if (key := f"{role}.{name}") in arrays}
    return Sample(**columns)


@dataclass(frozen=True)
class Derivation:
    """The folder of one derivation, with its inputs loaded."""

    folder: Path
    simulation: Sample
    data: Sample
    prior: CompositionPrior
    config: CalibrationConfig
    seed: int

    @classmethod
    def open(cls, folder: Path) -> Derivation:
        """Load what :func:`write_inputs` stored."""
        arrays = {
            name: torch.from_numpy(value)
            for name, value in read_arrays(folder / "inputs.safetensors").items()
        }
        config = CalibrationConfig.model_validate_json((folder / "config.json").read_text())
        return cls(
            folder,
            _sample(arrays, "simulation"),
            _sample(arrays, "data"),
            CompositionPrior(arrays["prior.fractions"], arrays["prior.uncertainty"]),
            config,
            int(arrays["seed"][0]),
        )

    @classmethod
    def of_run(cls, directory: RunDirectory) -> Derivation:
        """That of a run which is calibrated.

        Raises
        ------
        DataError
            If there is none.
        """
        folders = [path.parent for path in (directory.checkpoints / FOLDER).glob("*/inputs.safetensors")]
        if len(folders) != 1 or not (directory.results / "map").is_dir():
            raise DataError(
                "no finished calibration",
                where=str(directory.path),
                fix="run 'selfcal calibrate' first; where that is up to date, delete stages/calibrate.json",
            )
        return cls.open(folders[0])

    @property
    def regions(self) -> int:
        return len(self.prior.fractions)

    def path(self, task: str) -> Path:
        """The file that a task leaves."""
        return self.folder / f"{task}.safetensors"

    def generator(self, task: str) -> torch.Generator:
        """The random numbers of one task."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(task.encode()))

    def resampled(self, index: int) -> tuple[Sample, Sample]:
        """Simulation and data of bootstrap replica ``index``."""
        random = np.random.default_rng([self.seed, index])
        return self.simulation.resampled(random), self.data.resampled(random)

    def drawn_prior(self, index: int) -> CompositionPrior:
        """The prior of replica ``index``: its centre drawn from itself.

        Without this the spread of the replicas would miss what only the prior decides.
        """
        noise = torch.randn(
            self.prior.fractions.shape, generator=self.generator(f"prior-{index}"), dtype=torch.float64
        )
        centre = (self.prior.fractions + self.prior.uncertainty * noise).clamp_min(0.1 * self.prior.fractions)
        return CompositionPrior(centre / centre.sum(1, keepdim=True), self.prior.uncertainty)

    def composition(self, task: str = "composition") -> CompositionFit:
        """A finished composition fit."""
        arrays = read_arrays(self.path(task))
        width = self.simulation.widened().coordinates.shape[1]
        maps = FlavourMaps(lambda: AffineMap(width, CONDITIONS, self.config.composition.map_scale))
        _restore(maps, arrays, "stiff.")
        shape = None
        if "pt_knots" in arrays:
            shape = PtShape(torch.from_numpy(arrays["pt_knots"]), torch.from_numpy(arrays["pt_values"]))
        return CompositionFit(torch.from_numpy(arrays["fractions"]), maps, shape)

    def constraint(self, task: str = "composition") -> CompositionPrior:
        """What the fractions are held to by the map's fit beside the composition fit ``task``."""
        if self.config.composition.by == "likelihood":
            _, _, number = task.partition("-")
            return self.drawn_prior(int(number)) if number else self.prior
        return CompositionPrior(self.composition(task).fractions, self.fraction_uncertainty())

    def kinematic_fractions(self, simulation: Sample) -> KinematicFractions:
        """How the fractions vary in the nominal fit: from ``simulation``, and the composition's spline."""
        simulated = simulated_fractions(simulation, self.regions)
        return KinematicFractions(simulation, simulated, self.composition().pt_shape)

    def densities(self, task: str = "densities") -> BaseDensities:
        """Finished base densities."""
        return self._densities(task, "density.")

    def _densities(self, task: str, prefix: str) -> BaseDensities:
        densities = BaseDensities(
            self.simulation.coordinates.shape[1], self.regions, self.config.base_density
        )
        _restore(densities, read_arrays(self.path(task)), prefix)
        return densities

    @property
    def last_leg_steps(self) -> int:
        """Steps of the map's fit that replicas do again.

        All of them where the priors decide on the fractions with the map (``composition.by: likelihood``): a
        part of them does not forget the nominal fit's.
        """
        by_priors = self.config.composition.by == "likelihood"
        return self.config.map.steps if by_priors else self.config.bootstrap_steps

    def first_densities(self) -> BaseDensities:
        """The nominal densities before their last leg."""
        return self._densities("densities", "first.")

    def map_config_of(self, task: str) -> MapConfig:
        """Of the maps that a task fits: the configured ones, or those of another family."""
        kind, _, name = task.partition("-")
        return map_config(cast("Family", name), self.config.map) if kind == "family" else self.config.map

    def mixture(self, task: str = "mixture") -> MixtureFit:
        """A finished mixture fit."""
        arrays = read_arrays(self.path(task))
        maps = build_maps(self.map_config_of(task), self.simulation.coordinates.shape[1], CONDITIONS)
        _restore(maps, arrays, "map.")
        return MixtureFit(maps, torch.from_numpy(arrays["fractions"]), LegState.from_arrays(arrays))

    def identifiability(self) -> Identifiability:
        """What the data can tell about fractions and maps, at the fractions of the bulk fit."""
        every = torch.randperm(len(self.data), generator=self.generator("identifiability"))
        rows = every[:INFORMATION_JETS]
        data = self.data.rows(rows)
        fractions = self.composition().fractions
        kinematics = self.kinematic_fractions(self.simulation)
        scores, names = mixture_scores(data, self.densities(), kinematics, fractions)
        width, scale = self.data.coordinates.shape[1], self.config.composition.map_scale
        return identifiability(
            scores.numpy(),
            data.weight.numpy() * len(every) / len(rows),
            names,
            prior_widths(self.prior, fractions, width, scale),
            fractions.numpy(),
        )

    def region_dependence(self) -> RegionDependence:
        """How much regions differ."""
        return RegionDependence.from_arrays(read_arrays(self.path("region_dependence")))

    def undetermined(self) -> tuple[int, ...]:
        """Flavours (indices) whose map no region determines."""
        return tuple(int(i) for i in read_arrays(self.path("identifiability"))["undetermined"].nonzero()[0])

    def fraction_uncertainty(self) -> Float[Tensor, "regions flavours"]:
        """σ of each fitted fraction: bootstrap spread ⊕ ``relative_floor``."""
        replicas = torch.stack(
            [self.composition(f"bulk-{index}").fractions for index in range(self.config.bootstraps)]
        )
        floor = self.config.composition.relative_floor * self.composition().fractions
        return (replicas.var(0) + floor.square()).sqrt().clamp_min(1e-4)

    def final_uncertainty(self) -> Float[Tensor, "regions flavours"]:
        """σ of the fractions that the likelihood gives.

        It is the larger of the bootstrap spreads of the two fits (bulk distance, likelihood) in quadrature
        with their difference; where the likelihood decides alone (``composition.by``), the spread of its
        replicas ⊕ ``relative_floor``.
        """
        replicas = [self.mixture(f"replica-{index}").fractions for index in range(self.config.bootstraps)]
        spread = torch.stack(replicas).var(0)
        nominal = self.mixture().fractions
        if self.config.composition.by == "likelihood":
            return (spread + (self.config.composition.relative_floor * nominal).square()).sqrt()
        disagreement = nominal - self.composition().fractions
        return (torch.maximum(spread, self.fraction_uncertainty().square()) + disagreement.square()).sqrt()
