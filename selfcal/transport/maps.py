"""The contract of every calibration map, and the maps of all flavours together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfcal.data.flavours import FLAVOURS
from selfcal.errors import ConfigError

ROWS_AT_ONCE = 16_384
"""Jets that go through a map together: what they need in between still fits into a processor's cache."""

Minimality = Literal["by construction", "by its price", "none"]
"""Why a map moves jets no farther than it must: by its form, by the price of displacement, or not."""


class CalibrationMap(nn.Module, ABC):
    """A map T(u | c) from simulation to data, the identity when new.

    u are standardised log-ratio coordinates (N, D), c the conditions (N, C);
    everything is float64. Families with an inverse are an :class:`InvertibleMap`.
    """

    minimality: ClassVar[Minimality] = "by its price"

    @abstractmethod
    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        """T(u | c): a simulated jet as it would look in data."""

    def displacement(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, " jets"]:
        """Squared distance |T(u) - u|² by which each jet is moved."""
        moved: Tensor = self(coordinates, conditions)
        return (moved - coordinates).square().sum(1)

    @abstractmethod
    def stiffness(self) -> Float[Tensor, ""]:
        """Minus the log of the Gaussian prior on the map's own parameters, up to a constant."""


class InvertibleMap(CalibrationMap):
    """A map with an inverse and a Jacobian determinant: it can be fitted by the likelihood of data."""

    @abstractmethod
    def inverse_and_log_det(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        """T⁻¹(u | c) and ln |det ∂T⁻¹/∂u|, differentiable: what the likelihood of data needs."""

    def inverse_and_origin(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"], Float[Tensor, "jets coordinates"]]:
        """:meth:`inverse_and_log_det`, and from where the way to u has a price: from T⁻¹(u)."""
        inner, log_det = self.inverse_and_log_det(coordinates, conditions)
        return inner, log_det, inner

    def inverse(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        """T⁻¹(u | c)."""
        return self.inverse_and_log_det(coordinates, conditions)[0]

    def log_abs_det_jacobian(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, " jets"]:
        """ln |det ∂T/∂u| at u."""
        return -self.inverse_and_log_det(self(coordinates, conditions), conditions)[1]


class IdentityMap(InvertibleMap):
    """T(u) = u: the uncalibrated simulation."""

    minimality = "by construction"

    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        del conditions
        return coordinates

    def inverse_and_log_det(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        del conditions
        return coordinates, coordinates.new_zeros(len(coordinates))

    def stiffness(self) -> Float[Tensor, ""]:
        return torch.zeros((), dtype=torch.float64)


class FlavourMaps(nn.Module):
    """One map per flavour, in ``FLAVOURS`` order."""

    def __init__(self, build: Callable[[], CalibrationMap]) -> None:
        super().__init__()
        self.maps = nn.ModuleList([build() for _ in FLAVOURS]).double()

    def of(self, flavour: int) -> CalibrationMap:
        """The map of one flavour."""
        chosen = self.maps[flavour]
        assert isinstance(chosen, CalibrationMap)
        return chosen

    def invertible(self, flavour: int) -> InvertibleMap:
        """The map of one flavour, of a family with an inverse.

        Raises
        ------
        ConfigError
            If the family has none.
        """
        chosen = self.of(flavour)
        if not isinstance(chosen, InvertibleMap):
            raise ConfigError(
                f"{type(chosen).__name__} has no inverse, which the likelihood of data needs",
                where="calibration.map",
                expected="a family with an inverse, such as flow",
                fix="set calibration.map.fit_by: distance, or choose another family",
            )
        return chosen

    def forward(
        self,
        coordinates: Float[Tensor, "jets coordinates"],
        flavour: Int[Tensor, " jets"],
        conditions: Float[Tensor, "jets conditions"],
    ) -> Float[Tensor, "jets coordinates"]:
        """Every jet through the map of its own flavour."""
        moved = coordinates.clone()
        for index in range(len(FLAVOURS)):
            every = (flavour == index).nonzero().squeeze(1)
            if len(every):
                chosen = self.of(index)
                together = torch.split(every, ROWS_AT_ONCE)
                parts = [chosen(coordinates[rows], conditions[rows]) for rows in together]
                moved = moved.index_copy(0, every, torch.cat(parts))
        return moved

    def stiffness(self) -> Float[Tensor, ""]:
        """Sum of the stiffness of all flavours."""
        return torch.stack([self.of(index).stiffness() for index in range(len(FLAVOURS))]).sum()
