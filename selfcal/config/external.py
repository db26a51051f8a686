"""Scale factors known from elsewhere."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, NotNegative, Positive
from selfcal.config.card import FlavourName

PerPoint = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]


class ExternalPrior(Configured):
    """The scale factor ``value`` ± ``uncertainty`` of a flavour that no region determines.

    Either is one number for all working points or one for each, in the order of ``fit.working_points``. One
    Gaussian parameter moves all working points and bins of an entry together; entries are independent of
    each other. ``pt_gev`` limits an entry to the bins within that range (default: all of them).
    """

    flavour: FlavourName
    value: PerPoint
    uncertainty: PerPoint
    pt_gev: tuple[NotNegative, Positive] | None = None

    def numbers(self, working_points: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Value and uncertainty at each working point.

        Raises
        ------
        ValueError
            If there are not as many numbers as working points.
        """
        result = []
        for name, given in (("value", self.value), ("uncertainty", self.uncertainty)):
            each = given if isinstance(given, tuple) else (given,) * working_points
            if len(each) != working_points:
                raise ValueError(f"'{name}' has {len(each)} numbers for {working_points} working points")
            result.append(each)
        return result[0], result[1]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pt_gev is not None and self.pt_gev[0] >= self.pt_gev[1]:
            raise ValueError(f"'pt_gev' must increase, found {list(self.pt_gev)}")
        return self
