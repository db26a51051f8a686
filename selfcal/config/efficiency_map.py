"""How the efficiency of single jets is learnt from the jets of their event."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, NotNegative, Positive, PositiveInt, Probability


class EfficiencyMapConfig(Configured):
    """Stage ``efficiencies``: the probability of each simulated jet to pass each working point.

    It is a function of pT, η, φ and true flavour of the jet and of the jets around it, by a graph network
    whose edges join jets closer than ``delta_r_max``. ``simulation``: ``nominal`` gives efficiencies of the
    simulation as it is, to be multiplied by scale factors; ``calibrated`` those of the simulation after
    detector and map. Each of ``bags`` networks (``width``, ``layers``, ``epochs``) learns from its own
    resampling of the events; their mean is the efficiency, their standard deviation its uncertainty.
    ``closure_share`` of the events teach none of them and judge all; ``jets_max`` bounds the memory.
    ``pt_gev_edges`` and ``abs_eta_edges`` are the grid of the projection and of the two-dimensional map that
    the network is compared with; ``delta_r_edges`` are bins of the distance to the nearest jet.
    """

    enabled: bool = False
    simulation: Literal["nominal", "calibrated"] = "nominal"
    delta_r_max: Positive = 1.5
    width: PositiveInt = 32
    layers: PositiveInt = 2
    bags: Annotated[int, Field(ge=2)] = 10
    epochs: PositiveInt = 15
    batch_events: PositiveInt = 256
    learning_rate: Positive = 5e-3
    closure_share: Probability = 0.3
    jets_max: PositiveInt = 2_000_000
    pt_gev_edges: tuple[Positive, ...] = (20.0, 30.0, 40.0, 55.0, 75.0, 110.0, 250.0)
    abs_eta_edges: tuple[NotNegative, ...] = (0.0, 0.7, 1.4, 2.0, 2.5)
    delta_r_edges: tuple[NotNegative, ...] = (0.0, 0.6, 0.8, 1.0, 1.5, 2.5)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("pt_gev_edges", "abs_eta_edges", "delta_r_edges"):
            edges = getattr(self, name)
            if len(edges) < 2 or list(edges) != sorted(set(edges)):
                raise ValueError(f"'{name}' must be two edges or more that increase, found {list(edges)}")
        return self
