"""How the profile likelihood of chosen scale factors becomes a small network."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from selfcal.config.base import Configured, Positive, PositiveInt, Probability
from selfcal.config.card import FlavourName


class NeuralProfileConfig(Configured):
    """Stage ``profile``: −2 ln λ of the scale factors at ``working_points`` as a network, exported to ONNX.

    All measured kinematic bins of ``flavours`` (none named: of all flavours) are inputs; everything else is
    profiled exactly at ``points`` values of them, from which the network (``width``, ``steps``) learns, and
    at ``test_points`` others that judge it. Points lie where −2 ln λ is expected below the value that holds
    ``level`` of the probability (0.9973: three standard deviations) jointly.
    """

    enabled: bool = False
    working_points: Annotated[tuple[Probability, ...], Field(min_length=1)] = (0.77,)
    flavours: tuple[FlavourName, ...] = ()
    level: Probability = 0.9973
    points: Annotated[int, Field(ge=20)] = 600
    test_points: Annotated[int, Field(ge=10)] = 150
    width: PositiveInt = 64
    steps: PositiveInt = 2000
    learning_rate: Positive = 3e-3
