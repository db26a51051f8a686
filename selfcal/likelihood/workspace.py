"""The pyhf workspace of the scale-factor fit.

For region r, flavour f, kinematic bin p (pT × |eta|) and discriminant bin k,

    ν_rpk = μ_rp Σ_f N_rf κ_rf κ_rfp t_rfpk ρ_fpk Π_j e^{s_rfpk,j α_j} γ_rpk

with the prior yield N_rf, its uncertainty κ_rf (``composition``) and that of the pT spectrum κ_rfp
(``pt_shape``), the calibrated shape t, a free factor ρ for the flavours with free shape (``shape``; it may
become negative where the other flavours overshoot, which keeps the estimate unbiased) and a constrained one
for the others (``residual``, in all bins but the largest), the relative shifts s of the map (``map_mode``,
``map_model``, ``extrapolation``), of all bins of a flavour together (``residual_slide``), of the detector
(``detector``), of other simulations (``modelling``) and of external scale factors (``external``, in place of
map, residuals and extrapolation), and the statistical error of the simulation. The latter is a parameter per
bin of the flavour whose reference region it is (``simulation``), because the scale factor depends on it, and
common to all other flavours of a bin (``staterror``). Each bin of each flavour is a sample of its own, so
that factors of single bins can be shared across channels by name, and so that a shift of a shape moves each
of its bins by itself. Shifts add up (histosys, 1 + Σ_j s_j α_j), which keeps the estimate linear and so
unbiased, unless that could make the expectation of the whole bin zero within ``REACH`` standard deviations:
there the likelihood would have a kink and the fit no minimum with a covariance, and they are factors
(normsys).
A region with a control sample of the same sign has a further sample, ``same_sign``, whose bins are free and
which is all of a further channel with the counts of the control sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.likelihood.external import external_entries, external_shift
from selfcal.likelihood.layout import Layout, sample_name
from selfcal.likelihood.residuals import residual_widths, slide_shifts
from selfcal.likelihood.shifts import SHIFT_MAX, map_modes, pruned, relative_shift, smoothed
from selfcal.likelihood.templates import Templates

SHAPE_BOUNDS = (-10.0, 10.0)
YIELD_BOUNDS = (0.001, 10.0)
SAME_SIGN = "same_sign"
"""The background that a region shares with its control sample: name of its sample, channel and factor."""
SMOOTHED = ("map_model_", "extrapolation_", "modelling_")
"""Shifts that are differences of two templates."""
REACH = 4.0
"""Standard deviations of all shifts together within which the expectation of a bin stays positive."""
REST_MIN = 0.002
"""Uncorrelated remainders of the map's variance below this relative width are left out."""

Shifts = list[tuple[str, NDArray[np.float64]]]
Modifiers = list[dict[str, Any]]


@dataclass(frozen=True)
class BinWidths:
    """What moves single bins of a shape, (P, K) each: residuals, and what the modes of the map leave over."""

    residual: NDArray[np.float64]
    rest: NDArray[np.float64]


def build_workspace(
    templates: Templates,
    layout: Layout,
    config: FitConfig,
    residual_factor: Float[NDArray[np.float64], " F"] | None = None,
) -> dict[str, Any]:
    """The workspace as plain values that satisfy pyhf's schema 1.0.0.

    ``residual_factor`` multiplies the widths of the residuals of every flavour (default: one).
    """
    shifts, rest, _ = treated_shifts(templates, layout, config)
    widths = residual_widths(templates, layout, config)
    if residual_factor is not None:
        widths = widths * residual_factor[:, None, None]
    alone = [BinWidths(*both) for both in zip(widths, rest, strict=True)]
    channels, observations = [], []
    for r in range(len(layout.regions)):
        for p in range(layout.binning.n_kinematic):
            if not layout.active[r, p]:
                continue
            samples = []
            for f in range(len(layout.flavours)):
                if layout.has(r, f, p):
                    samples += _samples(templates, layout, config, (r, f, p), shifts[f], alone[f])
            counts = {layout.channel(r, p): templates.data[r, p]}
            if layout.regions[r] in templates.same_sign:
                control = templates.same_sign[layout.regions[r]][p]
                counts[f"{layout.channel(r, p)}_{SAME_SIGN}"] = control
                background = _background(f"{SAME_SIGN}_{layout.regions[r]}_{p}", control)
                channels.append({"name": f"{layout.channel(r, p)}_{SAME_SIGN}", "samples": [background]})
                samples.append(background)
            channels.append({"name": layout.channel(r, p), "samples": samples})
            observations += [{"name": name, "data": data.tolist()} for name, data in counts.items()]
    return {
        "channels": channels,
        "observations": observations,
        "measurements": [
            {"name": "scale_factors", "config": {"poi": "", "parameters": _parameters(channels, layout)}}
        ],
        "version": "1.0.0",
    }


def treated_shifts(
    templates: Templates, layout: Layout, config: FitConfig
) -> tuple[list[Shifts], list[NDArray[np.float64]], dict[str, Any]]:
    """The shifts of :func:`template_shifts`, smoothed and pruned as configured, and what that changed.

    Only differences of two templates (``SMOOTHED``) are smoothed: modes of the bootstrap share their jets and
    must keep their correlations.
    """
    shifts, rests = template_shifts(templates, layout, config)
    changes: dict[str, float] = {}
    left_out: dict[str, dict[str, float]] = {}
    for f, own in enumerate(shifts):
        for i, (name, shift) in enumerate(own):
            if config.smoothing_degree is not None and name.startswith(SMOOTHED):
                smooth = smoothed(shift, layout.shape[:, f], config.smoothing_degree) * (shift != 0)
                changes[name] = float(np.abs(smooth - shift).max())
                shift = smooth
            shift, channels, largest = pruned(shift, config.prune_below)
            if channels:
                left_out[name] = {"channels": channels, "largest": largest}
            own[i] = (name, shift)
    report = {
        "smoothing_degree": config.smoothing_degree,
        "largest_change_by_smoothing": changes,
        "prune_below": config.prune_below,
        "pruned": left_out,
    }
    return shifts, rests, report


def template_shifts(
    templates: Templates, layout: Layout, config: FitConfig
) -> tuple[list[Shifts], list[NDArray[np.float64]]]:
    """Per flavour: named relative shifts (R, P, K), and the uncorrelated remainder (P, K).

    Map shifts of a bin with free shape cancel in the scale factor and are set to zero there.
    """
    shifts: list[Shifts] = []
    rests: list[NDArray[np.float64]] = []
    for f, flavour in enumerate(layout.flavours):
        own: Shifts = []
        rest = np.zeros((layout.binning.n_kinematic, layout.binning.n_bins))
        bound = ~layout.free[f]
        corrected, calibrated = templates.before_map[:, f], templates.calibrated[:, f]
        reference = int(layout.reference[f])
        if bound.any() and reference >= 0:
            modes = map_modes(templates.replicas[:, :, f], calibrated, reference, config.map_variance_kept)
            own += [(f"map_mode_{flavour}_{j}", mode * bound[:, None]) for j, mode in enumerate(modes.modes)]
            rest = modes.rest * bound[:, None]
            for name, varied in templates.variations.items():
                shift = relative_shift(varied[:, f], calibrated) * bound[:, None]
                own += _split(f"map_model_{name}_{flavour}", shift, config.split_map_model_by_pt)
            if width := config.residual_slide.get(flavour, 0.0):  # type: ignore[call-overload]
                slide = width * slide_shifts(layout.shape[:, f]) * (bound & ~layout.external[f])[:, None]
                own += _split(f"residual_slide_{flavour}", slide, by_pt=True)
        # One name for all flavours: detector and generator are the same for them.
        for name, varied in templates.shared.items():
            own.append((name, relative_shift(varied[:, f], calibrated) * bound[:, None]))
        for r, region in enumerate(layout.regions):
            if r != reference or not layout.own_region[f]:
                shift = np.zeros_like(calibrated)
                moved = config.extrapolation_fraction * relative_shift(corrected[r], calibrated[r])
                shift[r] = moved * ~layout.external[f][:, None]
                own.append((f"extrapolation_{region}_{flavour}", shift))
        shifts.append(own)
        rests.append(rest)
    return shifts, rests


def _background(name: str, control: NDArray[np.float64]) -> dict[str, Any]:
    """The background of a region and of its control sample of the same sign, free in every bin."""
    content = np.maximum(control, 1.0).tolist()
    return {
        "name": SAME_SIGN,
        "data": content,
        "modifiers": [{"name": name, "type": "shapefactor", "data": None}],
    }


def _split(name: str, shift: NDArray[np.float64], by_pt: bool) -> Shifts:
    if not by_pt:
        return [(name, shift)]
    parts: Shifts = []
    for p in range(shift.shape[1]):
        part = np.zeros_like(shift)
        part[:, p] = shift[:, p]
        parts.append((f"{name}_{p}", part))
    return parts


def _samples(
    templates: Templates,
    layout: Layout,
    config: FitConfig,
    key: tuple[int, int, int],
    shifts: Shifts,
    alone: BinWidths,
) -> list[dict[str, Any]]:
    """The K samples of one flavour in one channel, each with one bin that is not empty."""
    r, f, p = key
    flavour, region = layout.flavours[f], layout.regions[r]
    content = layout.yields[r, f] * layout.shape[r, f, p]
    common: Modifiers = [
        _scale(f"composition_{region}_{flavour}", templates.composition_relative_uncertainty[r, f]),
        _scale(f"pt_shape_{region}_{flavour}_{p}", config.pt_shape_width),
    ]
    if not (config.fix_reference_yield and is_anchor(layout, r, p)):
        common.append({"name": f"mu_{region}_{p}", "type": "normfactor", "data": None})
    own = _shape_modifiers(templates, layout, config, key, alone)
    expected = layout.yields[r] @ layout.shape[r, :, p]
    samples = []
    for k in range(layout.binning.n_bins):
        data = np.zeros(len(content))
        data[k] = content[k]
        modifiers = [m for m in common if m["type"] != "normsys" or m["data"]["hi"] > 1]
        modifiers += own[k]
        moving = [(name, float(shift[r, p, k])) for name, shift in shifts if shift[r, p, k] != 0]
        if REACH * math.hypot(*(size for _, size in moving)) * content[k] < expected[k]:
            modifiers += [_linear(name, content, k, size) for name, size in moving]
        else:
            modifiers += [_scale(name, min(max(size, -SHIFT_MAX), SHIFT_MAX)) for name, size in moving]
        error = layout.relative_error[r, f, p, k]
        if r == layout.reference[f]:
            if error > 0:
                modifiers.append(_scale(f"simulation_{flavour}_{p}_{k}", error))
        else:
            errors = (data * error).tolist()
            modifiers.append(
                {"name": f"staterror_{layout.channel(r, p)}", "type": "staterror", "data": errors}
            )
        samples.append({"name": sample_name(flavour, k), "data": data.tolist(), "modifiers": modifiers})
    return samples


def _shape_modifiers(
    templates: Templates,
    layout: Layout,
    config: FitConfig,
    key: tuple[int, int, int],
    alone: BinWidths,
) -> list[Modifiers]:
    """Per discriminant bin: the free, external or residual factor of the flavour's shape."""
    r, f, p = key
    flavour, content = layout.flavours[f], layout.yields[r, f] * layout.shape[r, f, p]
    if layout.free[f, p]:
        return [[{"name": f"shape_{flavour}_{p}", "type": "shapefactor", "data": None}] for _ in content]
    if layout.external[f, p]:
        entry = int(external_entries(layout.binning, config)[f, p])
        nominal = templates.nominal[r, f, p]
        nominal = nominal if nominal.sum() > 0 else templates.nominal[:, f, p].sum(axis=0)
        shift = external_shift(nominal, layout.shape[r, f, p], config.external[entry])
        return [[_linear(f"external_{flavour}_{entry}", content, k, shift[k])] for k in range(len(content))]
    # The largest bin of the reference shape stays: a factor for every bin would free the yield as well.
    largest = int(layout.shape[layout.reference[f], f, p].argmax())
    own: list[Modifiers] = []
    for k in range(len(content)):
        modifiers: Modifiers = []
        if k != largest:
            modifiers.append(_scale(f"residual_{flavour}_{p}_{k}", float(alone.residual[p, k])))
        if alone.rest[p, k] > REST_MIN:
            modifiers.append(_scale(f"map_rest_{flavour}_{p}_{k}", float(alone.rest[p, k])))
        own.append(modifiers)
    return own


def _linear(name: str, content: NDArray[np.float64], k: int, shift: float) -> dict[str, Any]:
    """A histosys that moves bin k by the relative ``shift`` per standard deviation."""
    alone = np.where(np.arange(len(content)) == k, content, 0.0)
    histograms = {"hi_data": (alone * (1 + shift)).tolist(), "lo_data": (alone * (1 - shift)).tolist()}
    return {"name": name, "type": "histosys", "data": histograms}


def is_anchor(layout: Layout, region: int, kinematic_bin: int) -> bool:
    """Whether a flavour with free shape is measured in this channel: its yield is then not free as well."""
    return bool(np.any(layout.free[:, kinematic_bin] & (layout.reference == region)))


def _scale(name: str, width: float) -> dict[str, Any]:
    data = {"hi": float(np.exp(width)), "lo": float(np.exp(-width))}
    return {"name": name, "type": "normsys", "data": data}


def _parameters(channels: list[dict[str, Any]], layout: Layout) -> list[dict[str, Any]]:
    """Bounds of the free parameters."""
    kinds = {
        modifier["name"]: modifier["type"]
        for channel in channels
        for sample in channel["samples"]
        for modifier in sample["modifiers"]
    }
    entries: list[dict[str, Any]] = []
    for name, kind in kinds.items():
        if kind == "normfactor":
            entries.append({"name": name, "inits": [1.0], "bounds": [list(YIELD_BOUNDS)]})
        elif kind == "shapefactor":
            size = layout.binning.n_bins
            bounds = YIELD_BOUNDS if name.startswith(SAME_SIGN) else SHAPE_BOUNDS
            entries.append({"name": name, "inits": [1.0] * size, "bounds": [list(bounds)] * size})
    return entries
