"""What the likelihood measures, and what is exported."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, NotNegative, Positive, PositiveInt, Probability
from selfcal.config.card import FlavourName
from selfcal.config.external import ExternalPrior


class FitConfig(Configured):
    """Templates, likelihood and scale factors on the measure fold.

    Flavours of ``free_flavours`` have a free shape in each bin of pT and |eta|; the shape of the others
    may move by the relative ``residual_width`` in each bin, beside the uncertainties of the map;
    ``residual_of_map`` times what the map is uncertain by in that bin is added in quadrature. Data scale
    these widths, flavour by flavour, the configured ones being worth as many bins as
    ``residual_width_worth`` (null: they stay, as in all blinded fits). All bins of one kinematic bin may
    slide together by ``residual_slide`` in the log-odds of passing a working point.
    ``extrapolation_fraction`` of the calibration's shift is the uncertainty of carrying it from
    the reference region of a flavour to another region. ``fix_reference_yield`` fixes the yield
    of the channels where a free flavour is measured; with a free yield the fit is degenerate.

    Runs on real data are blinded until ``unblind`` is true: their results are those expected from simulation
    (Asimov data), and every file of the fit says so. Pseudo-data, whose truth is known, are not blinded.
    ``force`` writes the results of a fit that did not converge; its certificate in ``fit.json`` says so.
    ``impacts_listed`` nuisance parameters are ranked for each scale factor in ``impacts.json``; the impacts
    of the ``impacts_refitted`` strongest ones are confirmed by two fits each. The goodness of fit is also
    given as the part of ``goodness_toys`` toy experiments that fit worse (0: without toys).

    Scale factors are given per bin of ``pt_gev_edges`` × ``abs_eta_edges``. With ``target_uncertainty``
    neighbouring bins of both are merged until the scale factor of each flavour named there, at its tightest
    working point, is expected to reach that relative statistical error. The likelihood of the scale factors
    at ``scanned_working_points`` is profiled (``scans.json``).

    Beyond the last edge nothing is measured; for the bins that ``high_pt_gev_edges`` end, ``high_pt.json``
    gives the scale factor of the last bin with the uncertainty of carrying it there.

    ``external`` are scale factors of flavours that no region determines. ``same_sign`` names for a region the
    control sample of the same sign whose jets are subtracted from it (see ``selfcal.likelihood.same_sign``).

    In ``two_jet_region`` the pairs of jets of one event are fitted as well (``two_jets.json``), with a
    relative uncertainty ``two_jet_mixed_width`` of the simulated pairs with one b jet, and
    ``two_jet_neither_width`` of those without.

    A systematic variation whose relative shift stays below ``prune_below`` in all bins of a channel is left
    out there; ``smoothing_degree`` replaces the shifts of map models and extrapolation by polynomials of
    that degree along the discriminant. What both changed is in ``fit.json`` (``variations``).
    """

    working_points: Annotated[tuple[Probability, ...], Field(min_length=1)] = (0.60, 0.70, 0.77, 0.85)
    working_point_region: str = "ttbar_emu"
    pt_gev_edges: Annotated[tuple[Positive, ...], Field(min_length=2)] = (20.0, 40.0, 70.0, 250.0)
    high_pt_gev_edges: tuple[Positive, ...] = ()
    scanned_working_points: tuple[Probability, ...] = ()
    target_uncertainty: dict[FlavourName, Probability] = {}
    abs_eta_edges: Annotated[tuple[NotNegative, ...], Field(min_length=2)] = (0.0, 2.5)
    reference_regions: dict[FlavourName, str] = {
        "b": "ttbar_emu",
        "c": "w_charm",
        "light": "dijet",
        "tau": "z_tautau",
    }
    free_flavours: tuple[FlavourName, ...] = ()
    external: tuple[ExternalPrior, ...] = ()
    same_sign: dict[str, str] = {}
    two_jet_region: str | None = None
    two_jet_mixed_width: Positive = 0.5
    two_jet_neither_width: Positive = 0.3
    map_variance_kept: Probability = 0.99
    residual_width: dict[FlavourName, Positive] = {"b": 0.10, "c": 0.10, "light": 0.3, "tau": 0.2}
    residual_slide: dict[FlavourName, NotNegative] = {"b": 0.10, "c": 0.10, "light": 0.10, "tau": 0.10}
    residual_of_map: NotNegative = 0.0
    residual_width_worth: Positive | None = 1.0
    pt_shape_width: Positive = 0.10
    extrapolation_fraction: NotNegative = 0.5
    split_map_model_by_pt: bool = False
    fix_reference_yield: bool = True
    unblind: bool = False
    force: bool = False
    impacts_listed: PositiveInt = 10
    impacts_refitted: Annotated[int, Field(ge=0)] = 5
    goodness_toys: Annotated[int, Field(ge=0)] = 50
    prune_below: Annotated[float, Field(ge=0, lt=1)] = 0.0
    smoothing_degree: Annotated[int, Field(ge=0, le=4)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("working_points", "pt_gev_edges", "abs_eta_edges"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)):
                raise ValueError(f"'{name}' must increase strictly, found {list(values)}")
        beyond = (self.pt_gev_edges[-1], *self.high_pt_gev_edges)
        if list(beyond) != sorted(set(beyond)):
            raise ValueError("'high_pt_gev_edges' must increase strictly, from the last of 'pt_gev_edges' on")
        unknown = sorted(set(self.scanned_working_points) - set(self.working_points))
        if unknown:
            raise ValueError(f"'scanned_working_points' {unknown} are not among 'working_points'")
        for prior in self.external:
            prior.numbers(len(self.working_points))
            if prior.flavour in self.free_flavours:
                raise ValueError(f"'{prior.flavour}' cannot be in 'free_flavours' and in 'external'")
        used = {*self.same_sign, *self.reference_regions.values()} & set(self.same_sign.values())
        if used or len(set(self.same_sign.values())) < len(self.same_sign):
            raise ValueError("a control sample in 'same_sign' can serve one region and nothing else")
        return self


class ExportConfig(Configured):
    """What other programs are told beside the numbers.

    ``uncorrelated_groups`` are the groups of uncertainty that are independent from one data-taking period
    to the next: those that come from counting the jets of one period, of data or of its simulation. All
    others are taken as fully correlated. ``jet_collection`` names the jets in the ATLAS-like layout.
    """

    uncorrelated_groups: tuple[str, ...] = ("statistics", "simulation_statistics", "map")
    jet_collection: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "AntiKt4"
