"""What the tagger is: its size, its encoder, its heads and its discriminants."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, NotNegative, PositiveInt, Probability, with_tuples

TAGGER_SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "width": 64,
        "layers": 3,
        "heads": 4,
        "feedforward_width": 128,
        "origin_widths": (64,),
        "vertex_widths": (32,),
    },
    "medium": {
        "width": 128,
        "layers": 3,
        "heads": 8,
        "feedforward_width": 256,
        "origin_widths": (128, 64, 32),
        "vertex_widths": (128, 64, 32),
    },
    "gn2": {
        "width": 256,
        "layers": 4,
        "heads": 8,
        "feedforward_width": 512,
        "origin_widths": (128, 64, 32),
        "vertex_widths": (128, 64, 32),
    },
}


"""What ``tagger.size`` stands for: about 0.1, 0.5 and 2.3 million parameters as a transformer."""


class CharmDiscriminant(Configured):
    """Background of D_c = ln[p_c / (f_b p_b + f_tau p_tau + (1 - f_b - f_tau) p_light)]; c efficiencies."""

    b_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.3
    tau_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    working_points: tuple[Probability, ...] = (0.25, 0.40, 0.50)


class TauDiscriminant(Configured):
    """Background of D_tau = ln[p_tau / (f_b p_b + f_c p_c + (1 - f_b - f_c) p_light)]; tau efficiencies."""

    b_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    charm_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    working_points: tuple[Probability, ...] = (0.50, 0.70, 0.85)


class TaggerConfig(Configured):
    """The network from tracks to flavours (see ``selfcal.tagger``): a transformer, or one of the simpler
    ones to compare it with: Deep Sets (DIPS) or a recurrent network (RNNIP-like). Or ``kind: scores``:
    an existing tagger, whose scores are in the files under the name that each data card gives; then
    nothing is trained.

    ``size`` sets every width and depth that is not given; see :data:`TAGGER_SIZES`.
    ``origin_widths`` and ``vertex_widths`` are the hidden layers of the two heads on tracks.
    ``heads``, ``feedforward_width`` and ``attention_bias`` concern the transformer only; the last lets
    tracks attend to each other by their distance, k_T, momentum share and mass.
    With ``vertex_fit``, ``fitted_vertices`` secondary vertices are fitted to the tracks of every jet, with
    weights from the two heads on tracks, and what the fits find helps to tell the flavour. The tracks are
    helices in a solenoid of ``field_tesla`` (ATLAS 2, CMS 3.8), or straight lines if that is zero.
    With ``regress_pt`` the tagger also learns ln(true pT / pT) of the jet, where files give the true one.
    ``charm_fraction`` and ``tau_fraction`` are the background of D_b; ``charm`` and ``tau`` describe D_c
    and D_tau, with working points of their own.
    """

    kind: Literal["transformer", "deep_sets", "recurrent", "scores"] = "transformer"
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$")] = "SelfCal"
    size: Literal["small", "medium", "gn2"] = "small"
    width: PositiveInt = 64
    layers: PositiveInt = 3
    heads: PositiveInt = 4
    feedforward_width: PositiveInt = 128
    origin_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
    vertex_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32,)
    attention_bias: bool = False
    regress_pt: bool = False
    vertex_fit: bool = False
    fitted_vertices: PositiveInt = 2
    field_tesla: NotNegative = 2.0
    latent: PositiveInt = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    charm_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    tau_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    charm: CharmDiscriminant = CharmDiscriminant()
    tau: TauDiscriminant = TauDiscriminant()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_size(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        sizes = TAGGER_SIZES.get(str(given.get("size", "small")), {})
        return {**sizes, **{key: with_tuples(value) for key, value in given.items()}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention_bias and self.kind != "transformer":
            raise ValueError(f"'attention_bias' is for 'kind: transformer', found 'kind: {self.kind}'")
        if self.width % self.heads:
            raise ValueError(f"'width' ({self.width}) must be a multiple of 'heads' ({self.heads})")
        if self.charm_fraction + self.tau_fraction >= 1:
            raise ValueError("'charm_fraction' and 'tau_fraction' must add up to less than 1")
        return self
