"""The verdict on full pseudo-experiments: honest uncertainties pass, halved ones are flagged."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.study.full_coverage import FullLimits, coverage_text, full_coverage

EXPERIMENTS = 400
SIGMA = 0.02


def experiments(scale: float, number: int = EXPERIMENTS) -> list[dict]:
    """Gaussian results around drawn truths, whose quoted uncertainties are off by ``scale``."""
    generator = np.random.default_rng(3)
    found = []
    for index in range(number):
        noise = generator.standard_normal((3, 4)) * SIGMA
        truth = 1 + 0.1 * generator.standard_normal((3, 4))
        factors = [
            {
                "row": row,
                "flavour": "b",
                "kinematic_bin": 0,
                "kind": "working_point",
                "working_point": 0.9 - 0.1 * row,
                "bin": None,
                "status": "measured",
                "expected_fewer": 500.0,
                "truth": truth[0, row],
                "efficiency": 0.5,
                "value": truth[0, row] + noise[0, row],
                "total": scale * SIGMA,
                "unmoved_value": truth[0, row] + noise[0, row],
                "unmoved_total": 3 * SIGMA,
            }
            for row in range(4)
        ]
        detector, fractions = (
            [
                {
                    **name,
                    "truth": truth[kind, row],
                    "value": truth[kind, row] + noise[kind, row],
                    "total": scale * SIGMA,
                }
                for row, name in enumerate(names)
            ]
            for kind, names in (
                (1, [{"parameter": f"p{row}"} for row in range(4)]),
                (2, [{"region": "r", "flavour": flavour} for flavour in "bclt"]),
            )
        )
        joint = {"chi2": 4.0, "ndf": 4, "p_value": generator.uniform(), "pulls": {"r b": noise[2, 0] / SIGMA}}
        found.append(
            {
                "index": index,
                "error": None,
                "scale_factors": factors,
                "detector": detector,
                "detector_covariance": (np.eye(4) * (scale * SIGMA) ** 2).tolist(),
                "predictive_p": (index + 0.5) / number,
                "fractions": fractions,
                "joint": joint,
                "seconds": {"likelihood": 1.0},
            }
        )
    return found


def test_honest_uncertainties_pass() -> None:
    table = full_coverage(experiments(1.0))
    summary = table["summary"]
    assert summary["passed"], summary
    assert summary["average_68"] == pytest.approx(0.6827, abs=0.03)
    assert summary["average_68_unmoved"] > 0.99
    assert table["detector"][0]["pull_width"] == pytest.approx(1, abs=0.15)
    assert summary["detector_calibration_p"] == pytest.approx(
        min(1.0, 4 * min(row["calibration_p"] for row in table["detector"]))
    )
    assert summary["tarp_deviation"] < 1.63 / EXPERIMENTS**0.5  # 1 % of exact posteriors exceed it
    assert summary["predictive_alarms"] == pytest.approx(0.05)
    assert coverage_text(table).rstrip().endswith("passed")


def test_halved_uncertainties_are_flagged() -> None:
    """Half of σ covers 0.383: every scale factor is outside of its limits, and so is the detector."""
    table = full_coverage(experiments(0.5))
    summary = table["summary"]
    assert not summary["passed"]
    assert summary["flagged"] == [0, 1, 2, 3]
    assert summary["passed_by"] == {
        "scale_factors": False,
        "average": False,
        "detector": False,
        "calibration": False,
        "failures": True,
    }
    assert summary["average_68"] == pytest.approx(0.383, abs=0.03)
    assert summary["tarp_deviation"] > 0.1
    assert "not passed: scale_factors, average, detector, calibration" in coverage_text(table)


def test_calibration_sees_a_posterior_that_is_too_wide() -> None:
    """With twice σ the ranks crowd in the middle."""
    summary = full_coverage(experiments(2.0))["summary"]
    assert summary["detector_calibration_p"] < 1e-6
    assert not summary["passed_by"]["calibration"]


def test_coverage_and_pulls_are_those_of_the_definition() -> None:
    found = experiments(1.0, 7)
    row = full_coverage(found)["scale_factors"][1]
    pairs = [one["scale_factors"][1] for one in found]
    inside = [abs(pair["value"] - pair["truth"]) < pair["total"] for pair in pairs]
    assert row["coverage_68"] == pytest.approx(np.mean(inside))
    assert row["bias"] == pytest.approx(np.mean([pair["value"] - pair["truth"] for pair in pairs]))


def test_failed_experiments_are_counted() -> None:
    found = [*experiments(1.0, 99), {"index": 99, "error": "the fit did not converge"}]
    summary = full_coverage(found)["summary"]
    assert (summary["experiments"], summary["failed"]) == (99, 1)
    assert not summary["passed_by"]["failures"]


def test_rare_jets_are_listed_and_not_judged() -> None:
    found = experiments(0.5, 50)
    for one in found:
        one["scale_factors"][2]["expected_fewer"] = 10.0
    table = full_coverage(found)
    assert [row["judged"] for row in table["scale_factors"]] == [True, True, False, True]
    assert table["summary"]["flagged"] == [0, 1, 3]


def test_limits_widen_for_fewer_experiments_only() -> None:
    assert FullLimits().for_experiments(200) == FullLimits().for_experiments(1000) == FullLimits()
    low, high = FullLimits().for_experiments(50).average
    assert 0.6827 - low == pytest.approx(2 * (0.6827 - 0.63))
    assert high - 0.6827 == pytest.approx(2 * (0.74 - 0.6827))


def test_nothing_done_is_no_pass() -> None:
    summary = full_coverage([])["summary"]
    assert summary["average_68"] is None
    assert not summary["passed"]
