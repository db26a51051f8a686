"""The datacard and its shapes, read by a parser of our own and uproot, against pyhf on the workspace."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyhf
import pytest
import uproot

from selfcal.export.combine import datacard_text, export_combine, translate


@dataclass
class ReadCard:
    """What Combine would take from a datacard."""

    comments: list[str] = field(default_factory=list)
    counts: dict[str, str] = field(default_factory=dict)
    shapes: list[str] = field(default_factory=list)
    observation: dict[str, float] = field(default_factory=dict)
    processes: list[tuple[str, str]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    nuisances: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    rate_parameters: list[list[str]] = field(default_factory=list)
    statistical: dict[str, float] = field(default_factory=dict)


def parse(text: str) -> ReadCard:
    card, bins = ReadCard(), []
    for line in text.splitlines():
        words = line.split()
        if line.startswith("#"):
            card.comments.append(line)
        elif words[0] in ("imax", "jmax", "kmax"):
            card.counts[words[0]] = words[1]
        elif words[0] == "shapes":
            card.shapes = words[1:]
        elif words[0] == "bin":
            bins = words[1:]
        elif words[0] == "observation":
            card.observation = dict(zip(bins, map(float, words[1:]), strict=True))
        elif words[0] == "process" and not card.processes:
            card.processes = list(zip(bins, words[1:], strict=True))
        elif words[0] == "process":
            card.numbers = [int(word) for word in words[1:]]
        elif words[0] == "rate":
            card.rates = [float(word) for word in words[1:]]
        elif words[1:2] == ["rateParam"]:
            card.rate_parameters.append([words[0], *words[2:]])
        elif words[1:2] == ["autoMCStats"]:
            card.statistical[words[0]] = float(words[2])
        elif words[1:2] and words[1] in ("lnN", "shape", "shape?"):
            assert len(words) == 2 + len(card.processes)
            card.nuisances[words[0]] = (words[1], words[2:])
        else:
            assert set(line) == {"-"}, line
    return card


@dataclass
class Combined:
    """A card with its shapes: expected counts as Combine has them at 0 and ±1σ of one nuisance."""

    card: ReadCard
    shapes: dict[str, np.ndarray]
    variances: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> Combined:
        card = parse((folder / "datacard.txt").read_text())
        assert card.shapes[:3] == ["*", "*", "shapes.root"]
        with uproot.open(folder / "shapes.root") as file:
            histograms = {name: file[name] for name in file.keys(cycle=False, filter_classname="TH1D")}
            return cls(
                card,
                {name: histogram.values() for name, histogram in histograms.items()},
                {name: histogram.variances() for name, histogram in histograms.items()},
            )

    def expected(self, nuisance: str = "", side: int = 0, **free: float) -> dict[str, np.ndarray]:
        result = dict.fromkeys(self.card.observation, 0.0)
        for i, (channel, process) in enumerate(self.card.processes):
            path = self.card.shapes[3].replace("$CHANNEL", channel).replace("$PROCESS", process)
            values = self.shapes[path]
            if nuisance and side:
                kind, cells = self.card.nuisances[nuisance]
                varied = f"{channel}/{process}_{nuisance}{'Up' if side > 0 else 'Down'}"
                if cells[i] == "-":
                    assert varied not in self.shapes
                elif kind != "lnN" and varied in self.shapes:
                    values = self.shapes[varied]
                else:
                    low, _, high = cells[i].rpartition("/")
                    values = values * (float(high) if side > 0 else float(low or 1 / float(high)))
            for name, where, what, *_ in self.card.rate_parameters:
                if (where, what) == (channel, process):
                    values = values * free.get(name, 1.0)
            result[channel] = result[channel] + values
        return result


def pyhf_expected(workspace: dict, **moved: float) -> dict[str, np.ndarray]:
    """Expected counts by pyhf; ``name`` or ``name_k`` moved from its start."""
    with warnings.catch_warnings():
        # pyhf 0.7 validates with an interface that jsonschema has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = pyhf.Workspace(workspace).model(poi_name=None)
    parameters = np.array(model.config.suggested_init())
    for name, value in moved.items():
        if name in model.config.par_map:
            parameters[model.config.par_map[name]["slice"]] = value
        else:
            stem, _, entry = name.rpartition("_")
            parameters[model.config.par_map[stem]["slice"].start + int(entry)] = value
    counts = np.asarray(model.expected_actualdata(parameters))
    return {name: counts[where] for name, where in model.config.channel_slices.items()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for channel, counts in expected.items():
        np.testing.assert_allclose(found[channel], counts, rtol=1e-12, err_msg=channel)


@pytest.fixture
def combined(results) -> Combined:
    assert export_combine(results).not_expressed == ()
    return Combined.read(results.folder / "combine")


def test_yields_are_those_of_the_workspace(combined, workspace) -> None:
    card = combined.card
    assert card.counts["imax"] == "2"
    assert card.counts["jmax"] == "3"
    for channel, observation in zip(workspace["channels"], workspace["observations"], strict=True):
        name = channel["name"]
        assert card.observation[name] == sum(observation["data"])
        np.testing.assert_array_equal(combined.shapes[f"{name}/data_obs"], observation["data"])
        for sample in channel["samples"]:
            place = (name, sample["name"])
            np.testing.assert_array_equal(combined.shapes["/".join(place)], sample["data"])
            assert card.rates[card.processes.index(place)] == sum(sample["data"])
    assert min(card.numbers) > 0
    assert len(set(zip(card.numbers, (name for _, name in card.processes), strict=True))) == 4
    same(combined.expected(), pyhf_expected(workspace))


def test_every_nuisance_moves_the_yields_as_in_pyhf(combined, workspace) -> None:
    constrained = {
        modifier["name"]
        for channel in workspace["channels"]
        for sample in channel["samples"]
        for modifier in sample["modifiers"]
        if modifier["type"] in ("normsys", "histosys")
    }
    assert set(combined.card.nuisances) == constrained
    nominal = pyhf_expected(workspace)
    for name in constrained:
        for side in (1, -1):
            expected = pyhf_expected(workspace, **{name: side})
            assert any((expected[channel] != nominal[channel]).any() for channel in nominal)
            same(combined.expected(name, side), expected)


def test_free_factors_move_the_yields_as_in_pyhf(combined, workspace) -> None:
    assert {line[0] for line in combined.card.rate_parameters} == {"mu_jj", "shape_b_0", "shape_b_1"}
    for name in ("mu_jj", "shape_b_0", "shape_b_1"):
        same(combined.expected(**{name: 1.7}), pyhf_expected(workspace, **{name: 1.7}))
    ranges = {line[0]: line[-2:] for line in combined.card.rate_parameters}
    assert ranges["mu_jj"] == ["1.0", "[0.001,10.0]"]
    assert ranges["shape_b_1"] == ["1.0", "[-10.0,10.0]"]


def test_the_error_of_the_simulation_is_that_of_the_workspace(combined, workspace) -> None:
    assert combined.card.statistical == {"tt": 0.0, "jj": 0.0}
    for channel in workspace["channels"]:
        variance = sum(combined.variances[f"{channel['name']}/{s['name']}"] for s in channel["samples"])
        errors = [
            modifier["data"]
            for sample in channel["samples"]
            for modifier in sample["modifiers"]
            if modifier["type"] == "staterror"
        ]
        np.testing.assert_allclose(variance, np.square(errors).sum(axis=0), rtol=1e-12)
        assert (variance > 0).all()


def test_one_name_as_scale_and_as_shape(workspace) -> None:
    """One line per name: ``shape?`` where samples differ, one pair of histograms where both act."""
    first, second = workspace["channels"][0]["samples"][:2]
    first["modifiers"].append({"name": "both", "type": "normsys", "data": {"hi": 1.2, "lo": 0.7}})
    first["modifiers"].append(
        {"name": "both", "type": "histosys", "data": {"hi_data": [220.0, 0.0], "lo_data": [190.0, 0.0]}}
    )
    second["modifiers"].append({"name": "both", "type": "normsys", "data": {"hi": 1.2, "lo": 0.7}})
    card = translate(workspace)
    kind, cells = parse(datacard_text(card)).nuisances["both"]
    assert kind == "shape?"
    assert cells[:3] == ["1", "0.7/1.2", "-"]
    up, down = card.varied["tt", "b_bin0", "both"]
    expected = [pyhf_expected(workspace, both=side)["tt"][0] - 300.0 for side in (1, -1)]
    assert [up[0], down[0]] == pytest.approx(expected, rel=1e-12)


def test_what_has_no_counterpart_is_named(results, workspace) -> None:
    broken = copy.deepcopy(workspace)
    sample = broken["channels"][0]["samples"][0]
    sample["data"] = [200.0, 10.0]
    sample["modifiers"] += [
        {"name": "gone", "type": "histosys", "data": {"hi_data": [300.0, 10.0], "lo_data": [0.0, 0.0]}},
        {"name": "poisson", "type": "shapesys", "data": [5.0, 1.0]},
        {"name": "impossible", "type": "normsys", "data": {"hi": 1.5, "lo": 0.0}},
    ]
    parameters = broken["measurements"][0]["config"]["parameters"]
    parameters[0]["fixed"] = True
    exported = export_combine(type(results)(results.folder, results.factors, broken, results.config))
    text = (results.folder / "combine/datacard.txt").read_text()
    words = ("gone", "poisson", "impossible", "shapefactor shape_b", "--freezeParameters mu_jj")
    for word in words:
        (found,) = [line for line in exported.not_expressed if word in line]
        assert f"#   {found}" in text
    assert len(exported.not_expressed) == len(words)


def test_luminosity_is_a_scale(workspace) -> None:
    for sample in workspace["channels"][0]["samples"]:
        sample["modifiers"].append({"name": "lumi", "type": "lumi", "data": None})
    workspace["measurements"][0]["config"]["parameters"].append(
        {"name": "lumi", "auxdata": [1.0], "sigmas": [0.017], "bounds": [[0.9, 1.1]], "inits": [1.0]}
    )
    card = translate(workspace)
    assert card.not_expressed == []
    assert parse(datacard_text(card)).nuisances["lumi"] == ("lnN", ["0.983/1.017"] * 4 + ["-"] * 4)
