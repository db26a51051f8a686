"""A complete ``scale_factors.json`` with distinct numbers in every row, and some rows not measured."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import pytest

from selfcal.config.fit import ExportConfig
from selfcal.config.run import DataConfig, RunConfig
from selfcal.export.contract import Results
from selfcal.export.rows import ScaleFactorRows
from selfcal.export.simulations import SimulationRows
from selfcal.likelihood.eigenvariations import reduce_covariance, round_trip_error
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory

FLAVOURS = ("b", "c", "light", "tau")
EDGES = [20.0, 40.0, 250.0]
POINTS = [0.85, 0.77, 0.70, 0.60]
GROUPS = {"statistics": 4, "composition": 2, "map": 3, "residual": 3}
"""Each group of uncertainty with the number of independent effects behind it."""


def make_scale_factors(
    abs_eta_edges: tuple[float, ...] = (0.0, 2.5), seed: int = 1, hidden_pt_bins: tuple[int, ...] = (1,)
) -> dict:
    """Rows, covariance and eigenvariations that belong together; tau has none in ``hidden_pt_bins``."""
    kinds = [("working_point", point, None) for point in POINTS] + [("continuous", None, k) for k in range(5)]
    etas = list(itertools.pairwise(abs_eta_edges))
    places = list(itertools.product(FLAVOURS, range(2), etas, kinds))
    hidden = [flavour == "tau" and p in hidden_pt_bins for flavour, p, _, _ in places]
    measured = [i for i, unknown in enumerate(hidden) if not unknown]
    rng = np.random.default_rng(seed)
    groups = {}
    for name, effects in GROUPS.items():
        shifts = 0.02 * rng.normal(size=(effects, len(measured)))
        groups[name] = shifts.T @ shifts
    covariance = sum(groups.values())
    sigma = {name: np.sqrt(np.diag(part)) for name, part in groups.items()}
    rows = []
    for number, (flavour, p, eta, (kind, point, k)) in enumerate(places):
        i = None if hidden[number] else measured.index(number)
        syst = {} if i is None else {g: float(s[i]) for g, s in sigma.items() if g != "statistics"}
        rows.append(
            {
                "flavour": flavour,
                "kind": kind,
                "working_point": point,
                "bin": k,
                "pt_gev": EDGES[p : p + 2],
                "abs_eta": list(eta),
                "value": None if i is None else 1 + number / 1000,
                "stat": None if i is None else float(sigma["statistics"][i]),
                "syst": syst,
                "total": None if i is None else float(np.sqrt(covariance[i, i])),
                "status": "unmeasured" if i is None else "extrapolated" if flavour == "tau" else "measured",
                "expected_passing": None if i is None else 50.0,
                "truth": None,
            }
        )
    eigenvariations = {}
    for flavour in FLAVOURS:
        chosen = [j for j, i in enumerate(measured) if rows[i]["flavour"] == flavour]
        if not chosen:
            continue
        block = covariance[np.ix_(chosen, chosen)]
        reduced = reduce_covariance(block, 0.05)
        eigenvariations[flavour] = {
            "rows": [measured[j] for j in chosen],
            "shifts": reduced.shifts.tolist(),
            "envelope": reduced.envelope.tolist(),
            "round_trip_error": asdict(round_trip_error(reduced, block)),
        }
    return {
        "schema_version": 1,
        "tagger": "SelfCal",
        "blinded": False,
        "flavours": list(FLAVOURS),
        "pt_gev_edges": EDGES,
        "abs_eta_edges": list(abs_eta_edges),
        "working_points": POINTS,
        "discriminant_edges": [0.5, 1.5, 2.5, 3.5],
        "rows": rows,
        "covariance": {
            "rows": measured,
            "matrix": covariance.tolist(),
            "groups": {name: part.tolist() for name, part in groups.items()},
        },
        "eigenvariations": eigenvariations,
    }


def make_simulations() -> SimulationRows:
    """Two other simulations, one without charm; b and c carried beyond 250 GeV, of c nothing is known."""
    place = {"abs_eta": [0.0, 2.5]}
    generators = [
        {"variation": name, "flavour": flavour, "working_point": point, "pt_gev": EDGES[p : p + 2], **place,
         "value": 0.9 + 0.01 * number, "stat": 0.001 * (1 + number)}
        for number, (name, flavour, point, p) in enumerate(
            (name, flavour, point, p)
            for name, flavour in (("shower", "b"), ("shower", "c"), ("radiation", "b"))
            for point, p in itertools.product((0.77, 0.60), range(2))
        )
    ]  # fmt: skip
    beyond = [
        {"flavour": flavour, "kind": "working_point", "working_point": 0.77, "pt_gev": [low, high], **place,
         "value": 1.05 if known else None, "total": 0.13 if known else None,
         "syst": {"last_bin": 0.05, "modelling_shower": 0.12} if known else {},
         "status": "extrapolated" if known else "unmeasured"}
        for flavour, known in (("b", True), ("c", False))
        for low, high in ((250.0, 400.0), (400.0, 1000.0))
    ]  # fmt: skip
    return SimulationRows(tuple(generators), tuple(beyond))


def make_workspace() -> dict:
    """Two channels of two bins with one modifier of every kind that the fit's workspaces have."""

    def scale(name: str, size: float) -> dict:
        return {"name": name, "type": "normsys", "data": {"hi": 1 + size, "lo": 1 / (1 + size)}}

    def factor(name: str) -> dict:
        return {"name": name, "type": "normfactor", "data": None}

    def samples(region: str, sizes: list[list[float]]) -> list[dict]:
        result = []
        for flavour, size in zip(("b", "light"), sizes, strict=True):
            for k in range(2):
                data = [0.0, 0.0]
                data[k] = size[k]
                shifted = {"hi_data": [1.1 * x for x in data], "lo_data": [0.95 * x for x in data]}
                modifiers = [
                    scale(f"composition_{region}_{flavour}", 0.1),
                    {"name": f"map_mode_{flavour}_0", "type": "histosys", "data": shifted},
                ]
                modifiers += [] if region == "tt" else [factor(f"mu_{region}")]
                if flavour == "b":
                    modifiers.append({"name": "shape_b", "type": "shapefactor", "data": None})
                else:
                    errors = [0.04 * x for x in data]
                    modifiers.append({"name": f"staterror_{region}", "type": "staterror", "data": errors})
                result.append({"name": f"{flavour}_bin{k}", "data": data, "modifiers": modifiers})
        return result

    return {
        "channels": [
            {"name": "tt", "samples": samples("tt", [[200.0, 700.0], [300.0, 20.0]])},
            {"name": "jj", "samples": samples("jj", [[50.0, 150.0], [2000.0, 60.0]])},
        ],
        "observations": [
            {"name": "tt", "data": [510.0, 690.0]},
            {"name": "jj", "data": [2100.0, 230.0]},
        ],
        "measurements": [
            {
                "name": "scale_factors",
                "config": {
                    "poi": "",
                    "parameters": [
                        {"name": "mu_jj", "inits": [1.0], "bounds": [[0.001, 10.0]]},
                        {"name": "shape_b", "inits": [1.0, 1.0], "bounds": [[-10.0, 10.0], [-10.0, 10.0]]},
                    ],
                },
            }
        ],
        "version": "1.0.0",
    }


@pytest.fixture
def content() -> dict:
    return make_scale_factors()


@pytest.fixture
def without_tau() -> dict:
    """Nobody has measured tau jets."""
    return make_scale_factors(hidden_pt_bins=(0, 1))


@pytest.fixture
def workspace() -> dict:
    return make_workspace()


@pytest.fixture
def results(tmp_path, content, workspace) -> Results:
    """What an exporter gets."""
    return Results(tmp_path, ScaleFactorRows(content), workspace, ExportConfig())


@pytest.fixture
def simulations() -> SimulationRows:
    """What alternative simulations say."""
    return make_simulations()


@pytest.fixture
def eta_results(tmp_path, workspace) -> Results:
    """The same in three bins of |eta|."""
    content = make_scale_factors((0.0, 0.8, 1.6, 2.5), seed=2)
    return Results(tmp_path, ScaleFactorRows(content), workspace, ExportConfig())


@pytest.fixture
def context(tmp_path) -> RunContext:
    config = RunConfig(name="test", data=DataConfig(cards=("card.yaml",)))
    return RunContext(config, (), RunDirectory(tmp_path / "run"))
