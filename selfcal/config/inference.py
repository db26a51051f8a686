"""How the detector is inferred from tracks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, Positive, PositiveInt
from selfcal.sbi.parameters import SPACES, Model


class NeuralConfig(Configured):
    """The neural likelihood of single jets (``inference.method: neural``).

    Simulated jets are smeared ``passes`` times, every time each with another detector drawn from
    ``proposal_scale`` times the prior. ``networks`` flows (hidden layers of ``hidden_width``,
    ``spline_bins``) learn from them in ``steps`` batches each, every one from a bootstrap of its own; the
    spread of what they find is added to the covariance. ``data_jets_per_region`` is the largest number of
    data jets that is fitted. With ``check_jets`` of them the Laplace posterior is compared with a Markov
    chain and with a posterior that is amortised over whole samples, learnt from ``sets`` simulated ones (0:
    no such comparison).
    """

    networks: PositiveInt = 5
    passes: PositiveInt = 12
    proposal_scale: Annotated[float, Field(ge=1)] = 1.3
    hidden_width: PositiveInt = 96
    spline_bins: Annotated[int, Field(ge=2)] = 8
    steps: PositiveInt = 1500
    batch_size: PositiveInt = 1024
    learning_rate: Positive = 3e-3
    data_jets_per_region: PositiveInt = 15_000
    check_jets: Annotated[int, Field(ge=1, le=5000)] = 1000
    sets: Annotated[int, Field(ge=0)] = 600


class InferenceConfig(Configured):
    """What the detector does differently in data, inferred before the map from tracks that carry
    little lifetime (train fold), and taken over into the simulation.

    ``model`` is the simulator: ``smearing`` of the tracks of any simulation, or, where every simulated card
    has a ``generate`` block, the ``generator``: the same collisions pass through its own detector again.
    ``method`` is the likelihood: of histograms of tracks (``binned``), or of single jets (``neural``,
    options under ``neural``). ``prior_width`` changes prior widths of single parameters. ``modelling_error``
    is the relative error of every bin, ``multiplicity_error`` that of the number of tracks per jet: what the
    generator may be wrong by. ``points`` is the number of detectors simulated for the emulator of the binned
    likelihood, ``jets_per_region`` the largest number of simulated jets of a region that is used.
    ``chain_check`` compares the posterior with a Markov chain (NUTS) where pyro is installed.
    ``map_prior_scale`` multiplies the prior widths of the maps (``calibration.map.displacement_scale``,
    ``calibration.composition.map_scale``): once the detector is corrected, the map has only the remainder to
    explain.
    """

    enabled: bool = False
    model: Model = "smearing"
    method: Literal["binned", "neural"] = "binned"
    points: PositiveInt = 160
    jets_per_region: PositiveInt = 40_000
    prior_width: dict[str, Positive] = {}
    modelling_error: Annotated[float, Field(ge=0)] = 0.02
    multiplicity_error: Annotated[float, Field(ge=0)] = 0.03
    chain_check: bool = True
    neural: NeuralConfig = NeuralConfig()
    map_prior_scale: Annotated[float, Field(gt=0, le=1)] = 1 / 3

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = SPACES[self.model].names
        if unknown := sorted(set(self.prior_width) - set(known)):
            raise ValueError(f"'prior_width' names {unknown}, known are {list(known)}")
        if self.model == "generator" and self.method == "neural":
            raise ValueError("'method: neural' smears tracks: with 'model: generator' use 'method: binned'")
        return self
