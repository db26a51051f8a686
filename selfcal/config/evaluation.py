"""How families of calibration maps are judged side by side."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from selfcal.config.base import Configured, Positive

MapFamily = Literal["identity", "residual", "brenier", "flow", "switch"]
"""The families of calibration maps, ``calibration.map.family``; ``transport/choice.py`` builds each."""

Family = Literal[
    MapFamily,
    "residual_sliced_wasserstein",
    "residual_mmd",
    "flow_energy",
    "flow_autoregressive",
    "flow_nflows",
]
"""What is judged side by side: every family, and some with other settings than their first."""

Reference = Literal[
    "optimal_transport", "sinkhorn", "quantile_morphing", "binned_scale_factors", "classifier_reweighting"
]
FAMILIES: tuple[Family, ...] = get_args(Family)
REFERENCES: tuple[Reference, ...] = get_args(Reference)


class EvaluationConfig(Configured):
    """``selfcal calibrate --evaluate``: maps of several families from the same scores, fractions and seed.

    ``families`` are derived beside the one in use, with ``replicas`` bootstrap replicas each; ``references``
    learn from the true flavours of the control regions. ``bootstraps`` resampled data and simulations give
    the errors. A fresh classifier is trained ``classifier_repeats`` times on half of at most
    ``classifier_jets`` jets of data and as many of simulation. ``transport_jets`` per flavour make the
    plans of optimal transport; ``regularisation`` is that of Sinkhorn's, in squared standard deviations.
    """

    families: tuple[Family, ...] = FAMILIES
    references: tuple[Reference, ...] = REFERENCES
    replicas: Annotated[int, Field(ge=0)] = 2
    bootstraps: Annotated[int, Field(ge=2)] = 50
    classifier_jets: Annotated[int, Field(ge=200)] = 4000
    classifier_repeats: Annotated[int, Field(ge=2)] = 5
    transport_jets: Annotated[int, Field(ge=20)] = 1500
    regularisation: Positive = 0.2
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name in ("families", "references"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"'{name}' names one of {list(values)} twice")
        return self
