"""A run directory as the stages before the report leave it, and reports of two such runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from selfcal.report.stage import build_report
from selfcal.run.atomic import read_json, write_arrays, write_json, write_text

REGIONS = ("dijet", "ttbar_emu", "w_charm", "z_tautau")
HELD_OUT = "ttbar_ljets"
FLAVOURS = ("b", "c", "light", "tau")
WORKING_POINTS = (0.60, 0.70, 0.77, 0.85)
PT_GEV = (20.0, 40.0, 70.0, 250.0)
SHIFT = {"b": 0.97, "c": 1.10, "light": 1.45, "tau": 1.05}
FRACTIONS = {
    "dijet": (0.04, 0.07, 0.88, 0.01),
    "ttbar_emu": (0.72, 0.06, 0.21, 0.01),
    "w_charm": (0.05, 0.42, 0.52, 0.01),
    "z_tautau": (0.05, 0.09, 0.46, 0.40),
    HELD_OUT: (0.5, 0.14, 0.34, 0.02),
}

HOSTILE = "</text></svg><script>alert(1)</script><img src=x onerror=\"alert('$y$')\">&amp;\x07"


@dataclass(frozen=True)
class Report:
    path: Path
    written: list[Path]
    html: str


def write_synthetic_run(
    path: Path, *, seed: int = 7, hostile: str | None = None, small: bool = False
) -> Path:
    """Write every file that the report reads; ``hostile`` becomes the tagger's and one region's name.

    ``small``: only the scale factors of b jets at two working points, and only two regions.
    """
    random = np.random.default_rng(seed)
    tagger = hostile or "SelfCal"
    names = REGIONS[2:] if small else REGIONS
    regions = {name: hostile if hostile and name == "w_charm" else name for name in names}
    results = path / "results"
    scale_factors = _scale_factors(random, tagger, small)
    write_json(results / "scale_factors.json", scale_factors)
    write_json(results / "scale_factors_against_truth.json", _against_truth(scale_factors["rows"]))
    write_json(results / "closure.json", _closure(random, [*regions.values(), HELD_OUT]))
    write_json(results / "fit.json", _fit(random, hostile))
    write_json(results / "two_roads.json", _two_roads(read_json(results / "scale_factors.json")))
    write_json(results / "impacts.json", _impacts(random, scale_factors["rows"], hostile))
    write_json(results / "scans.json", _scans(scale_factors["rows"]))
    write_json(results / "two_jets.json", _two_jets(scale_factors["rows"]))
    write_json(results / "generators.json", _generators())
    write_json(results / "high_pt.json", _high_pt())
    write_json(results / "identifiability.json", _identifiability())
    write_json(results / "region_dependence.json", _region_dependence())
    write_json(results / "support.json", _support([*regions.values(), HELD_OUT]))
    write_json(results / "coverage.json", _coverage(scale_factors["rows"]))
    write_json(results / "detector_treatments.json", _treatments(scale_factors["rows"]))
    write_json(results / "composition.json", _composition(random, regions))
    write_json(results / "evaluation.json", _evaluation(regions))
    write_json(
        results / "tagger_metrics.json",
        {
            "tagger": tagger,
            "working_points": [
                {
                    "working_point": point,
                    "threshold": 5 - 5 * point,
                    "light": {
                        "efficiency": point**4 / 60,
                        "rejection": 60 / point**4,
                        "rejection_error": 6.0,
                    },
                    "c": {"efficiency": point**4 / 2.5, "rejection": 2.5 / point**4, "rejection_error": 0.25},
                }
                for point in WORKING_POINTS
            ],
            "summary": {"accuracy": 0.81, "auc_b_light": 0.993},
            "response": [] if small else [_response("b", 1200, 0.81), _response("light", 900, 0.96)],
        },
    )
    write_json(
        results / "joint.json", {"history": [{"epoch": 0, "auc": 0.993}], "epochs_kept": 1, "stopped": "done"}
    )
    signal = np.linspace(0, 1, 201)
    write_arrays(
        results / "roc.safetensors",
        {
            "light_signal": signal,
            "light_background": signal**8,
            "c_signal": signal,
            "c_background": signal**4,
        },
    )
    write_arrays(results / "discriminants.safetensors", _discriminants(random, regions))
    write_arrays(results / "roc_before_after.safetensors", _roc())
    lines = [
        {
            "stage": "tagger",
            "epoch": epoch,
            "train_total_loss": 1.1 + 0.9 * 0.8**epoch,
            "train_flavour_loss": 0.6 + 0.6 * 0.8**epoch,
            "validation_total_loss": 1.15 + 0.85 * 0.8**epoch,
            "validation_flavour_loss": 0.63 + 0.57 * 0.8**epoch,
        }
        for epoch in range(15)
    ]
    lines += [{"stage": "joint", "step": step, "penalty": 0.01 / (step + 1)} for step in range(4)]
    write_text(path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_text(path / "config.resolved.yaml", f"name: demo\nseed: 1\ntagger:\n  name: {tagger}\n")
    write_json(
        path / "provenance.json",
        {
            "versions": {"selfcal": "0.1.0", "torch": "2.13.0", "pythia8mc": None},
            "git_commit": {"commit": "0" * 40, "modified": False},
            "seed": 1,
            "command": ["selfcal", "run", hostile or "configs/demo.yaml"],
            "inputs_sha256": {"data/ttbar_emu.h5": "ab" * 32},
        },
    )
    return path


def _evaluation(regions: dict[str, str]) -> dict[str, Any]:
    """Two families and a reference in a control region and the held-out one."""
    summary = []
    for number, (name, kind) in enumerate(
        (("identity", "family"), ("flow", "family"), ("sinkhorn", "reference"))
    ):
        places = [
            {
                "region": region,
                "held_out": region == HELD_OUT,
                "flavour": flavour,
                "shown": {
                    "working_point": 0.77,
                    "ratio": 1.2 - 0.1 * number,
                    "error": 0.05,
                    "map_uncertainty": 0.02 if number == 1 else None,
                },
                "deviation": 0.2 - 0.1 * number,
                "deviation_error": 0.03,
                "auc": 0.52,
                "auc_null": 0.5,
                "auc_null_spread": 0.01,
                "chi2_per_ndf": None if flavour == "tau" else 1.5,
                "w1": 0.05,
                "w1_error": 0.01,
                "w1_null": 0.03,
                "rejection": None
                if flavour == "b"
                else {"working_point": 0.77, "kept": 0.8, "kept_in_data": 0.7},
            }
            for flavour in FLAVOURS
            for region in (next(iter(regions.values())), HELD_OUT)
        ]
        moved = dict.fromkeys(FLAVOURS, 0.1 * number) if kind == "family" else {}
        entry = {"name": name, "kind": kind, "in_use": name == "flow", "places": places}
        summary.append(entry | {"displacement": moved, "excess_cost": moved})
    return {"seed": 1, "summary": summary}


def _two_roads(factors: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {
            "row": index,
            "map": {"value": row["value"] + 0.01, "total": row["total"]},
            "fit": {"value": row["value"], "total": row["total"]},
            "difference": -0.01,
            "difference_uncertainty": 0.02,
            "compared": index % 2 == 0,
        }
        for index, row in enumerate(factors["rows"])
        if row["value"] is not None
    ]
    return {"chi2": 12.5, "ndf": 10, "p_value": 0.2526, "rows": rows}


def _impacts(random: np.random.Generator, rows: list[dict[str, Any]], hostile: str | None) -> dict[str, Any]:
    table = []
    for index, row in enumerate(rows):
        if row["value"] is None:
            continue
        sizes = row["total"] * np.array([0.6, -0.4, 0.3, 0.2])
        impacts = [
            {
                "parameter": hostile if hostile and place == 0 else f"map_mode_{place}",
                "group": "map",
                "impact": float(size),
                "contribution": float(size),
                "pull": float(random.normal()),
                "constraint": 0.9,
                "refit": {"up": 1.1 * float(size), "down": -0.9 * float(size)} if place == 0 else None,
            }
            for place, size in enumerate(sizes)
        ]
        table.append({"row": index, "total": row["total"], "impacts": impacts})
    return {"schema_version": 1, "scale_factors": table, "refits": {"failed": []}}


def _scans(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of 70 %: rises of an estimate that is Gaussian in its logarithm; the first b bin has no scan."""
    scans: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        if row["working_point"] != 0.7 or row["value"] is None:
            continue
        if not scans:
            scans.append({"row": index, "error": "no constrained minimum was found"})
            continue
        relative = 0.9 * row["total"] / row["value"]
        points = row["value"] * (1 + relative * np.array([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3]))
        points = points[points > 0]
        scans.append(
            {
                "row": index,
                "points": points.tolist(),
                "rise": ((np.log(points / row["value"]) / relative) ** 2).tolist(),
                "best": row["value"],
                "sigma": row["value"] * relative,
                "interval": [row["value"] * np.exp(-relative), row["value"] * np.exp(relative)],
            }
        )
    return {"schema_version": 1, "scans": scans}


def _two_jets(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kept = [row for row in rows if row["flavour"] == "b" and row["kind"] == "working_point"]
    parts = ("flavour", "working_point", "pt_gev", "abs_eta", "value", "total")
    of_pairs = [{key: row[key] for key in parts} for row in kept]
    of_jets = [{**row, "total": 2 * row["total"]} for row in of_pairs]
    return {
        "schema_version": 1,
        "blinded": False,
        "pairs": 1234.0,
        "goodness_of_fit": {"statistic": 20.5, "ndf": 18},
        "rows": of_pairs,
        "single_jets": of_jets,
    }


def _identifiability() -> dict[str, Any]:
    return {
        "condition_number": 3.5,
        "undetermined_flavours": ["tau"],
        "null_directions": [{"names": ["shift tau/0", "fraction z_tautau/tau"], "eigenvalue": 1e-12}],
        "prior_dominated_directions": [{"names": ["shift c/1"], "posterior_over_prior_width": 0.91}],
        "parameters": [],
    }


def _region_dependence() -> dict[str, Any]:
    return {
        "scale": {"light": 0.03},
        "prior_width": 0.05,
        "likelihood_ratio": 4.0,
        "p_value": 0.02,
        "rows": [
            {
                "region": "dijet",
                "flavour": "light",
                "shift": [0.06, -0.08, 0.0],
                "uncertainty": [0.02, 0.05, 0.0],
            }
        ],
    }


def _support(regions: list[str]) -> dict[str, Any]:
    rows = [
        {"region": region, "control": region != HELD_OUT, "flavour": "b", "jets": 4000, "beyond": beyond}
        for region, beyond in zip(regions, (4, 6, 5, 3, 40), strict=False)
    ]
    return {"expected_share": 0.001, "rows": rows}


def _generators() -> dict[str, Any]:
    rows = [
        {
            "variation": name,
            "flavour": "b",
            "working_point": point,
            "pt_gev": list(PT_GEV[p : p + 2]),
            "abs_eta": [0.0, 2.5],
            "value": value + 0.001 * p,
            "stat": 0.01,
        }
        for name, value in (("shower", 1.025), ("radiation", 0.99))
        for point in WORKING_POINTS
        for p in range(3)
    ]
    return {"schema_version": 1, "rows": rows}


def _high_pt() -> dict[str, Any]:
    known = {"value": 0.97, "syst": {"last_bin": 0.03, "modelling_shower": 0.04}, "total": 0.05}
    unknown = {"value": None, "syst": {}, "total": None}
    rows = [
        {
            "flavour": flavour,
            "kind": "working_point",
            "working_point": 0.77,
            "pt_gev": [250.0, 400.0],
            "abs_eta": [0.0, 2.5],
            **(known if flavour == "b" else unknown),
            "status": "extrapolated" if flavour == "b" else "unmeasured",
        }
        for flavour in FLAVOURS
    ]
    return {"schema_version": 1, "blinded": False, "rows": rows}


def _treatments(rows: list[dict[str, Any]]) -> dict[str, Any]:
    sizes = {"guessed": 0.05, "inferred": 0.02, "profiled": 0.03}
    keys = ("flavour", "kind", "working_point", "bin", "pt_gev", "abs_eta", "status")
    table = [
        {
            "row": index,
            **{key: row[key] for key in keys},
            **{
                name: {"value": row["value"], "detector": size, "total": size + row["total"]}
                for name, size in sizes.items()
            },
        }
        for index, row in enumerate(rows)
        if row["value"] is not None
    ]
    return {
        "schema_version": 1,
        "treatments": list(sizes),
        "rows": table,
        "summary": {"all": {"rows": len(table), "inferred": {"detector_ratio": 0.4}}},
        "toys": {"guessed": {"average_68": 0.68}},
        "against_truth": {},
    }


def _coverage(rows: list[dict[str, Any]]) -> dict[str, Any]:
    table = [
        {
            "row": index,
            "judged": index % 5 > 0,
            "pull_mean": 0.2 if index == 1 else 0.01,
            "pull_width": 1.0,
            "coverage_68": 0.68,
            "coverage_95": 0.95,
            "exceeded": ["pull_mean"] if index == 1 else [],
        }
        for index, row in enumerate(rows)
        if row["value"] is not None
    ]
    return {"schema_version": 1, "rows": table, "summary": {"toys": 1000, "passed": False, "flagged": [1]}}


def _response(flavour: str, jets: int, ratio: float) -> dict[str, Any]:
    before = {"scale": 0.93, "scale_error": 0.003, "resolution": 0.21, "resolution_error": 0.004}
    after = {**before, "scale": 1.002, "resolution": 0.21 * ratio}
    return {
        "flavour": flavour,
        "jets": jets,
        "before": before,
        "after": after,
        "resolution_ratio": ratio,
        "resolution_ratio_error": 0.012,
    }


def _scale_factors(random: np.random.Generator, tagger: str, small: bool) -> dict[str, Any]:
    flavours, working_points = (FLAVOURS[:1], WORKING_POINTS[:2]) if small else (FLAVOURS, WORKING_POINTS)
    rows: list[dict[str, Any]] = []
    keys: list[tuple[str, int | None, float | None]] = [
        (flavour, bin_number, point)
        for flavour in flavours
        for bin_number, point in [
            *((None, point) for point in working_points),
            *((number, None) for number in range(len(working_points) + 1)),
        ]
    ]
    for flavour, bin_number, point in keys:
        tightness = 1 - point if point is not None else 0.1 * (bin_number or 0)
        for low, high in itertools.pairwise(PT_GEV):
            truth = 1 + (SHIFT[flavour] - 1) * (0.6 + 1.6 * tightness) * (1 + 0.1 * np.log(low / 40))
            stat = {"b": 0.012, "c": 0.06, "light": 0.12, "tau": 0.2}[flavour] * (0.7 + tightness)
            syst = {"map": 0.7 * stat, "composition": 0.4 * stat, "mc_statistics": 0.3 * stat}
            total = float(np.sqrt(stat**2 + sum(value**2 for value in syst.values())))
            status = "measured"
            if flavour == "tau":
                status = "unmeasured" if low >= 70 else "extrapolated"
            missing = status == "unmeasured"
            rows.append(
                {
                    "flavour": flavour,
                    "kind": "working_point" if point is not None else "continuous",
                    "working_point": point,
                    "bin": bin_number,
                    "pt_gev": [low, high],
                    "abs_eta": [0.0, 2.5],
                    "value": None if missing else truth + total * random.normal(),
                    "stat": None if missing else stat,
                    "syst": {} if missing else syst,
                    "total": None if missing else total,
                    "status": status,
                    "truth": {"value": truth, "error": 0.1 * stat},
                    "expected_passing": None if missing else 1 / total**2,
                }
            )
    totals = np.array([row["total"] or 0.0 for row in rows])
    loadings = np.array(
        [[1.0, (row["working_point"] or 0.5), row["flavour"] == "b"] for row in rows], dtype=float
    )
    shared = loadings @ loadings.T
    correlation = 0.5 * shared / np.sqrt(np.outer(np.diagonal(shared), np.diagonal(shared)))
    np.fill_diagonal(correlation, 1.0)
    return {
        "schema_version": 1,
        "tagger": tagger,
        "flavours": list(flavours),
        "pt_gev_edges": list(PT_GEV),
        "abs_eta_edges": [0.0, 2.5],
        "working_points": list(working_points),
        "discriminant_edges": [0.1, 1.2, 2.3, 3.5],
        "rows": rows,
        "covariance": {
            "rows": list(range(len(rows))),
            "total": (correlation * np.outer(totals, totals)).tolist(),
        },
        "eigenvariations": {},
    }


def _against_truth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    used = [
        index
        for index, row in enumerate(rows)
        if row["status"] == "measured" and row["kind"] == "working_point"
    ]

    def comparison(values: list[float]) -> dict[str, Any]:
        pulls = [
            (value - rows[index]["truth"]["value"]) / rows[index]["total"]
            for index, value in zip(used, values, strict=True)
        ]
        return {
            "chi2": sum(pull**2 for pull in pulls),
            "ndf": len(used),
            "p_value": float(chi2.sf(sum(pull**2 for pull in pulls), len(used))),
            "max_pull": max(abs(pull) for pull in pulls),
            "rows_used": used,
            "pulls": [{"row": index, "pull": pull} for index, pull in zip(used, pulls, strict=True)],
        }

    calibrated = comparison([rows[index]["value"] for index in used])
    return {**calibrated, "uncalibrated": comparison([1.0] * len(used))}


def _closure(random: np.random.Generator, regions: list[str]) -> dict[str, Any]:
    rows = []
    for region in regions:
        for flavour, base in (("b", 1.0), ("c", 0.18), ("light", 0.008)):
            for point in WORKING_POINTS:
                error = {"b": 0.01, "c": 0.04, "light": 0.09}[flavour]
                simulation = base * point**3
                data = simulation * SHIFT[flavour]
                calibrated = data * (1 + error * random.normal())
                rows.append(
                    {
                        "region": region,
                        "held_out": region == HELD_OUT,
                        "flavour": flavour,
                        "working_point": point,
                        "efficiency_data": data,
                        "efficiency_simulation": simulation,
                        "efficiency_calibrated": calibrated,
                        "ratio_uncalibrated": data / simulation,
                        "ratio_calibrated": data / calibrated,
                        "error": error,
                        "map_uncertainty": 0.5 * error,
                    }
                )
    failed = {key: rows[-1][key] for key in ("region", "flavour", "working_point", "ratio_calibrated")}
    return {
        "rows": rows,
        "summary": {
            "held_out": {"within_two_sigma": 11, "rows": 12},
            "rule": {
                "passed": False,
                "rows": [
                    {
                        **failed,
                        "deviation_in_sigma": 3.4,
                        "closes": False,
                        "uncertainty_small_enough": True,
                        "passed": False,
                    }
                ],
            },
        },
        "failures": [{**failed, "pull": -3.4}],
    }


def _fit(random: np.random.Generator, hostile: str | None) -> dict[str, Any]:
    names = [f"map_mode_{number}" for number in range(18)]
    names += [f"composition_{region}_{flavour}" for region in REGIONS for flavour in FLAVOURS]
    names += [f"staterror_{region}[{number}]" for region in REGIONS for number in range(12)]
    names += [hostile] if hostile else []
    return {
        "pulls": [
            {"name": name, "value": (3.0 if name == hostile else 0.6) * random.normal(), "uncertainty": 0.8}
            for name in names
        ],
        "goodness_of_fit": {"statistic": 41.2, "ndf": 38, "p_value": 0.33},
        "certificate": {"gradient_norm": 1.2e-7, "positive_definite": True},
        "identifiability": {
            "smallest_eigenvalue": 3.1e-4,
            "null_directions": [],
            "prior_dominated": ["mu_tau"],
        },
        "residual_scale": {
            "factor": {"b": 1.31, "c": 1.0, "light": 0.47},
            "determined": {"b": 2.4, "c": 0.0, "light": 6.1},
            "settled": True,
        },
        "variations": {
            "smoothing_degree": 1,
            "prune_below": 0.001,
            "pruned": {"map_mode_3": {"channels": 2}},
        },
    }


def _composition(random: np.random.Generator, regions: dict[str, str]) -> dict[str, Any]:
    rows = []
    for name, region in regions.items():
        for flavour, fraction in zip(FLAVOURS, FRACTIONS[name], strict=True):
            sigma = 0.04 * fraction + 0.002
            rows.append(
                {
                    "region": region,
                    "flavour": flavour,
                    "prior": fraction * 1.15,
                    "prior_uncertainty": 0.2 * fraction,
                    "fitted": fraction + sigma * random.normal(),
                    "uncertainty": sigma,
                    "truth": fraction,
                }
            )
    return {"regions": list(regions.values()), "rows": rows, "condition_number": 3.4, "directions": []}


def _discriminants(random: np.random.Generator, regions: dict[str, str]) -> dict[str, np.ndarray]:
    edges = np.linspace(-6, 10, 33)
    centres = 0.5 * (edges[1:] + edges[:-1])
    shape = {
        "b": np.exp(-0.5 * ((centres - 5) / 2.2) ** 2) + 0.02,
        "c": np.exp(-0.5 * ((centres - 0.8) / 1.8) ** 2),
        "light": np.exp(-0.5 * ((centres + 2) / 1.6) ** 2) + 2e-3 * (centres < 7),
        "tau": np.exp(-0.5 * ((centres + 1.5) / 1.2) ** 2),
    }
    arrays: dict[str, np.ndarray] = {"edges": edges}
    for name, region in regions.items():
        calibrated = np.zeros(len(centres))
        for flavour, fraction in zip(FLAVOURS, FRACTIONS[name], strict=True):
            nominal = 9000 * fraction * shape[flavour] / shape[flavour].sum()
            moved = nominal * (1 + (SHIFT[flavour] - 1) * (centres + 3) / 9)
            arrays[f"nominal/{region}/{flavour}"] = nominal
            arrays[f"calibrated/{region}/{flavour}"] = moved
            calibrated += moved
        total = sum(arrays[f"nominal/{region}/{flavour}"] for flavour in FLAVOURS)
        arrays[f"nominal_variance/{region}"] = 0.5 * total
        arrays[f"calibrated_variance/{region}"] = 0.5 * calibrated
        spread = np.sqrt(0.5 * calibrated + (0.03 * calibrated) ** 2)
        arrays[f"calibrated_up/{region}"] = calibrated + spread
        arrays[f"calibrated_down/{region}"] = calibrated - spread
        arrays[f"data/{region}"] = random.poisson(calibrated).astype(float)
    return arrays


def _roc() -> dict[str, np.ndarray]:
    efficiency = np.linspace(0.5, 0.99, 60)
    light, charm = 70 / efficiency**6, 3 / efficiency**4
    return {
        "efficiency_b": efficiency,
        "before/light": light,
        "before/c": charm,
        "after/light": 0.96 * light,
        "after/c": 0.99 * charm,
    }


def report_of(path: Path) -> Report:
    written = build_report(path)
    return Report(path, written, (path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    return write_synthetic_run


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(write_synthetic_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="session")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(write_synthetic_run(tmp_path_factory.mktemp("small"), small=True))


@pytest.fixture(scope="session")
def hostile_name() -> str:
    """A name that closes the elements around it and brings a script, a handler, a formula, a control code."""
    return HOSTILE


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(write_synthetic_run(tmp_path_factory.mktemp("hostile"), hostile=HOSTILE, small=True))
