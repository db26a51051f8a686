"""``combine/``: the likelihood as a datacard and ROOT shapes for CMS Combine.

=========================  ===================================================================
workspace                  datacard
=========================  ===================================================================
sample of a channel        process, all of them backgrounds (parameters of interest are rateParams)
normsys, lumi              ``lnN``
histosys                   ``shape``, with histograms Up and Down; ``shape?`` where other samples
                           have a normsys of the same name
staterror                  histogram errors and ``autoMCStats 0`` (Barlow–Beeston lite in all bins)
normfactor                 ``rateParam``
shapefactor                ``rateParam`` of the only filled bin of a process
=========================  ===================================================================

Yields are the same at the nominal point and at ±1σ of every nuisance parameter; between and beyond,
Combine interpolates in its own way. What has no counterpart is listed by :func:`translate` in
``not_expressed``, in the comments of the datacard and in the manifest.

Source: CMS Combine, documentation of the datacard format (v10).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from selfcal.export.contract import Exported, Results
from selfcal.export.root_histograms import root_histogram
from selfcal.run.atomic import atomic_folder

DATACARD, SHAPES = "datacard.txt", "shapes.root"
NONE = "-"
SAME = 1e-12
"""Two numbers closer than this, relatively, are the same."""

Process = tuple[str, str]
"""Channel and sample."""


@dataclass
class Datacard:
    """A workspace in Combine's terms, filled while walking through it.

    Attributes
    ----------
    observed : channel -> counts (K,)
    nominal, variance : (channel, process) -> (K,)
    varied : (channel, process, parameter) -> histograms (K,) at plus and minus one σ
    scaled : (channel, process, parameter) -> factors at plus and minus one σ
    rate_parameters : (parameter, channel, process) -> "value [low,high]"
    statistical : channels with the statistical error of their simulation
    not_expressed : what is missing, in words
    """

    observed: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    nominal: dict[Process, NDArray[np.float64]] = field(default_factory=dict)
    variance: dict[Process, NDArray[np.float64]] = field(default_factory=dict)
    varied: dict[tuple[str, str, str], tuple[NDArray[np.float64], NDArray[np.float64]]] = field(
        default_factory=dict
    )
    scaled: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    rate_parameters: dict[tuple[str, str, str], str] = field(default_factory=dict)
    statistical: dict[str, str] = field(default_factory=dict)
    not_expressed: list[str] = field(default_factory=list)


def export_combine(results: Results) -> Exported:
    """Write ``combine/datacard.txt`` and ``combine/shapes.root``."""
    card = translate(results.workspace)
    folder = results.folder / "combine"
    with atomic_folder(folder) as temporary:
        (temporary / DATACARD).write_text(datacard_text(card, results.factors.note), encoding="utf-8")
        with uproot.recreate(temporary / SHAPES) as file:
            for channel in card.observed:
                directory = file.mkdir(channel, initial_directory_bytes=1 << 16)
                for histogram in _histograms(card, channel):
                    directory[histogram.member("fName")] = histogram
    files = (folder / DATACARD, folder / SHAPES)
    return Exported("combine", files, not_expressed=(*card.not_expressed, *results.simulations.left_out()))


def translate(workspace: Mapping[str, Any]) -> Datacard:
    """A pyhf workspace (its first measurement) in Combine's terms."""
    card = Datacard()
    settings = {entry["name"]: entry for entry in workspace["measurements"][0]["config"]["parameters"]}
    counts = {entry["name"]: entry["data"] for entry in workspace["observations"]}
    for channel in workspace["channels"]:
        card.observed[channel["name"]] = np.array(counts[channel["name"]], dtype=np.float64)
        for sample in channel["samples"]:
            place = (channel["name"], sample["name"])
            card.nominal[place] = np.array(sample["data"], dtype=np.float64)
            card.variance[place] = np.zeros(len(sample["data"]))
            for modifier in sample["modifiers"]:
                _add(card, place, modifier, settings.get(modifier["name"], {}))
    for place in card.nominal:
        _combine_effects_of_one_parameter(card, place)
    kinds = {
        modifier["name"]: modifier["type"]
        for channel in workspace["channels"]
        for sample in channel["samples"]
        for modifier in sample["modifiers"]
    }
    for name, entry in settings.items():
        _compare_settings(card, name, kinds.get(name), entry)
    return card


def _add(card: Datacard, place: Process, modifier: Mapping[str, Any], setting: Mapping[str, Any]) -> None:
    """Enter one modifier of one sample."""
    kind, name, data = modifier["type"], modifier["name"], modifier["data"]
    channel, sample = place
    where = f"{kind} {name} of {channel}/{sample}"
    if kind == "normsys" and min(data["hi"], data["lo"]) > 0:
        card.scaled[*place, name] = (float(data["hi"]), float(data["lo"]))
    elif kind == "lumi":
        width = float(setting["sigmas"][0]) / float(setting["auxdata"][0])
        card.scaled[*place, name] = (1 + width, 1 - width)
    elif kind == "histosys":
        up, down = (np.array(data[side], dtype=np.float64) for side in ("hi_data", "lo_data"))
        nominal = card.nominal[place]
        if np.array_equal(up, nominal) and np.array_equal(down, nominal):
            return
        if min(nominal.sum(), up.sum(), down.sum()) > 0:
            card.varied[*place, name] = (up, down)
        else:
            card.not_expressed.append(f"{where}: nominal or varied yield is not positive")
    elif kind == "staterror":
        if card.statistical.setdefault(channel, name) != name:
            card.not_expressed.append(f"{where}: errors of one channel vary together, not by name")
        card.variance[place] += np.array(data, dtype=np.float64) ** 2
    elif kind == "normfactor":
        card.rate_parameters[name, *place] = _range(setting, 0)
    elif kind == "shapefactor" and np.count_nonzero(card.nominal[place]) <= 1:
        for k in np.flatnonzero(card.nominal[place]):
            card.rate_parameters[f"{name}_{k}", *place] = _range(setting, int(k))
    elif kind == "shapefactor":
        card.not_expressed.append(
            f"{where}: a rateParam scales a whole process, and this one fills many bins"
        )
    else:
        card.not_expressed.append(f"{where}: no counterpart")


def _range(setting: Mapping[str, Any], entry: int) -> str:
    """Start and bounds of a free parameter, by default as pyhf has them."""
    start = setting["inits"][entry] if "inits" in setting else 1.0
    low, high = setting["bounds"][entry] if "bounds" in setting else (0.0, 10.0)
    return f"{float(start)!r} [{float(low)!r},{float(high)!r}]"


def _combine_effects_of_one_parameter(card: Datacard, place: Process) -> None:
    """A normsys and a histosys of one name on one sample become one pair of histograms."""
    for key in [key for key in card.varied if key[:2] == place and key in card.scaled]:
        (up, down), (high, low) = card.varied[key], card.scaled.pop(key)
        card.varied[key] = (up * high, down * low)


def _compare_settings(card: Datacard, name: str, kind: str | None, entry: Mapping[str, Any]) -> None:
    if entry.get("fixed"):
        card.not_expressed.append(f"parameter {name} is fixed: run Combine with --freezeParameters {name}")
    free = kind in ("normfactor", "shapefactor", "lumi", None)
    for option in ("auxdata", "sigmas", "inits"):
        if option in entry and not free:
            card.not_expressed.append(f"parameter {name}: '{option}' of its constraint")


def datacard_text(card: Datacard, note: str = "") -> str:
    """The datacard, beginning with ``note``; lines in the order in which Combine's documentation has them."""
    processes = list(card.nominal)
    numbers = {name: i + 1 for i, name in enumerate(dict.fromkeys(name for _, name in processes))}
    rule = "-" * 80
    lines = [*_comments(card, note), f"imax {len(card.observed)}", f"jmax {len(numbers) - 1}", "kmax *", rule]
    lines += [f"shapes * * {SHAPES} $CHANNEL/$PROCESS $CHANNEL/$PROCESS_$SYSTEMATIC", rule]
    lines.append(" ".join(["bin", *card.observed]))
    lines.append(" ".join(["observation", *(repr(float(data.sum())) for data in card.observed.values())]))
    lines.append(rule)
    lines.append(" ".join(["bin", *(channel for channel, _ in processes)]))
    lines.append(" ".join(["process", *(name for _, name in processes)]))
    lines.append(" ".join(["process", *(str(numbers[name]) for _, name in processes)]))
    lines.append(" ".join(["rate", *(repr(float(card.nominal[place].sum())) for place in processes)]))
    lines.append(rule)
    for name in dict.fromkeys(key[2] for key in itertools.chain(card.scaled, card.varied)):
        shapes = any(key[2] == name for key in card.varied)
        scales = any(key[2] == name for key in card.scaled)
        kind = "shape?" if shapes and scales else "shape" if shapes else "lnN"
        lines.append(" ".join([name, kind, *(_effect(card, (*place, name)) for place in processes)]))
    lines.append(rule)
    for (name, channel, process), value in card.rate_parameters.items():
        lines.append(f"{name} rateParam {channel} {process} {value}")
    lines += [f"{channel} autoMCStats 0" for channel in card.statistical]
    return "\n".join(lines) + "\n"


def _comments(card: Datacard, note: str) -> list[str]:
    lines = [
        f"{note}The scale-factor likelihood of workspace.json for CMS Combine.",
        "No process is a signal: text2workspace.py --X-allow-no-signal; the free parameters are rateParams.",
        "Yields agree with workspace.json at the nominal point and at one standard deviation of every",
        "nuisance parameter; between and beyond, Combine interpolates lnN and shape in its own way, and the",
        "constraint of the simulation's statistics (autoMCStats) shifts yields instead of scaling them.",
    ]
    if card.not_expressed:
        lines.append(f"NOT EXPRESSED ({len(card.not_expressed)}):")
        lines += [f"  {missing}" for missing in card.not_expressed]
    else:
        lines.append("Everything in workspace.json is expressed.")
    return [f"# {line}" for line in lines]


def _effect(card: Datacard, key: tuple[str, str, str]) -> str:
    """One cell of a line of a nuisance parameter: ``1`` for histograms, κ or κ_down/κ_up for a scale."""
    if key in card.varied:
        return "1"
    if key not in card.scaled:
        return NONE
    high, low = card.scaled[key]
    return repr(high) if abs(high * low - 1) < SAME else f"{low!r}/{high!r}"


def _histograms(card: Datacard, channel: str) -> list[Any]:
    """Data, nominal and varied histograms of one channel; bins are numbered from 0."""
    observed = card.observed[channel]
    edges = [np.arange(len(observed) + 1.0)]
    made = [root_histogram("data_obs", observed, edges, variances=observed)]
    for (where, name), values in card.nominal.items():
        if where == channel:
            made.append(root_histogram(name, values, edges, variances=card.variance[where, name]))
    for (where, name, parameter), pair in card.varied.items():
        if where == channel:
            for side, values in zip(("Up", "Down"), pair, strict=True):
                made.append(root_histogram(f"{name}_{parameter}{side}", values, edges))
    return made
