"""How the detector is inferred from tracks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, NotNegative, Positive, PositiveInt
from selfcal.config.smearing_parameters import SPACES, Model


class NeuralConfig(Configured):
    """The likelihood from networks of single jets (``inference.method: neural``).

    Simulated jets are smeared ``passes`` times, every time each under another detector, drawn from
    ``proposal_scale`` times the prior, and under its mirror image. ``networks`` networks (hidden layers of
    ``hidden_width``) learn from them in ``steps`` batches each, every one without a part of the events, for
    which it then says what to expect. For ``check_jets`` jets of data the posterior is compared with one that
    is amortised over whole samples, learnt from ``sets`` simulated ones (0: no such comparison).
    """

    networks: PositiveInt = 5
    passes: PositiveInt = 6
    proposal_scale: Annotated[float, Field(ge=1)] = 1.3
    hidden_width: PositiveInt = 32
    steps: PositiveInt = 1000
    batch_size: Annotated[int, Field(ge=2)] = 2048
    learning_rate: Positive = 2e-3
    check_jets: Annotated[int, Field(ge=1, le=5000)] = 1000
    sets: Annotated[int, Field(ge=0)] = 600


class InferenceConfig(Configured):
    """What the detector does differently in data, inferred before the map from tracks that carry
    little lifetime (train fold), and taken over into the simulation.

    ``model`` is the simulator: ``smearing`` of the tracks of any simulation, or, where every simulated card
    has a ``generate`` block, the ``generator``: the same collisions pass through its own detector again.
    ``method`` is the likelihood: of histograms of tracks (``binned``), or of what networks say of single
    jets (``neural``, options under ``neural``). ``prior_width`` changes prior widths of single parameters.
    ``modelling_error`` is the relative error of every bin of the histograms, ``multiplicity_error`` that of
    the number of tracks per jet: what the generator may be wrong by. ``points`` is the number of detectors
    simulated for the emulator of the likelihood, ``jets_per_region`` the largest number of simulated jets
    of a region that is used. ``chain_check`` compares the posterior with a Markov chain (NUTS) where pyro
    is installed. ``generator_check`` compares data with the corrected simulation in positive impact
    parameters, multiplicities and momenta, from which nothing was inferred; where the generator does not
    describe them, what they differ by takes the place of smaller errors of the generator.
    ``map_prior_scale`` multiplies the prior widths of the maps (``calibration.map.displacement_scale``,
    ``calibration.composition.map_scale``): once the detector is
    corrected, the map has only the remainder to explain.
    """

    enabled: bool = False
    model: Model = "smearing"
    method: Literal["binned", "neural"] = "binned"
    points: PositiveInt = 160
    jets_per_region: PositiveInt = 40_000
    prior_width: dict[str, Positive] = {}
    modelling_error: NotNegative = 0.02
    multiplicity_error: NotNegative = 0.03
    chain_check: bool = True
    generator_check: bool = True
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
