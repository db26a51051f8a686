"""A study's summary as the engine writes it."""

from __future__ import annotations

from typing import Any


def study_summary() -> dict[str, Any]:
    """Two widths and two seeds; the last point failed; one check passed, one did not, one is undecided."""
    rows: list[dict[str, Any]] = []
    for number, (width, seed) in enumerate(((32, 1), (32, 2), (64, 1), (64, 2))):
        failed = (width, seed) == (64, 2)
        ratios = [1.0 + 0.01 * number, None, 0.97]
        values = {"light": 281.25 + number, "light_error": 12.5, "ratios": ratios, "passed": number > 0}
        rows.append(
            {
                "point": {"tagger.width": width, "seed": seed},
                "run": f"width={width},seed={seed}",
                "key": f"k{number}",
                "done": ["fit"],
                "values": None if failed else values,
                "error": "no minimum\nat all" if failed else None,
            }
        )
    plain = {"because": "it was so before", "why": "", "plain": True}
    checks = [
        {"rule": "250 ≤ every light", "value": "light", "min": 250, "max": None, "found": [281.25, 283.25],
         "passed": True, **plain},
        {"rule": "every ratios ≤ 1.01", "value": "ratios", "min": 0.9, "max": 1.01, "found": [0.97, 1.02],
         "passed": False, **plain},
        {"rule": "mean light ≤ 300 where seed=2", "value": "light", "min": None, "max": 300, "found": [],
         "passed": None, "because": "", "why": "a point that it needs has failed", "plain": False},
    ]  # fmt: skip
    columns = {
        "light": "tagger_metrics.light",
        "light_error": "tagger_metrics.light_error",
        "ratios": "closure.rows[flavour=b].ratio_calibrated",
        "passed": "coverage.summary.passed",
    }
    faking = {
        "case": "tail", "seed": 1, "error": None, "size": 7.5, "size_error": 0.5, "chi2": 40.0,
        "chi2_unexplained": 90.0, "ndf": 11, "p_value": 3e-5, "fakes": False, "scale_factors": 12,
    }  # fmt: skip
    return {
        "study": "width",
        "description": "Wider and narrower.",
        "expected": "Less is more.",
        "columns": columns,
        "points": 4,
        "done": 4,
        "failed": 1,
        "as_expected": False,
        "checks": checks,
        "rows": rows,
        "faking": [faking],
    }
