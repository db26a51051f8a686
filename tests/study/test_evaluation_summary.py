"""What the table concludes: by control regions alone, and only beyond the errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from selfcal.study.evaluation_summary import render_evaluation, summarise

REFERENCE = {"b": "ttbar", "light": "dijet"}


def row(flavour: str, region: str, held_out: bool, deviation: float, wobble: float = 0.01) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "region": region,
        "held_out": held_out,
        "flavour": flavour,
        "points": [
            {"working_point": point, "ratio": 1 + deviation, "error": 0.01, "map_uncertainty": None}
            for point in (0.85, 0.78, 0.6)
        ],
        "deviation": deviation,
        "deviation_error": wobble,
        "deviation_map_uncertainty": 0.005,
        "deviation_bootstraps": (deviation + wobble * random.normal(size=50)).tolist(),
        "auc": 0.51,
        "auc_spread": 0.01,
        "chi2": 12.0,
        "ndf": 6,
        "w1": [0.1, 0.2, 0.3],
        "w1_error": [0.0, 0.03, 0.04],
        "rejection": [{"working_point": 0.7, "kept": 0.9, "kept_in_data": 0.8, "error": 0.1}],
    }


def content(**deviations: tuple[float, float]) -> dict[str, Any]:
    """Candidates with their deviation in control regions and in the held-out one; the first is in use."""
    candidates = []
    for number, (name, (control, held_out)) in enumerate(deviations.items()):
        rows = [row("b", "ttbar", False, control), row("light", "dijet", False, control)]
        # Neither a reference region nor held out: no part of the table.
        rows += [row("light", "ttbar", False, 9.0), row("light", "unseen", True, held_out)]
        candidates.append(
            {"name": name, "kind": "family", "in_use": number == 0, "rows": rows, "displacement": None}
        )
    null = [
        {"region": one["region"], "flavour": one["flavour"], "auc": 0.5, "auc_spread": 0.01, "w1": [0.1] * 3}
        for one in candidates[0]["rows"]
    ]
    found = {"reference_regions": REFERENCE, "null": null, "candidates": candidates}
    return {**found, "summary": summarise(found)}


def test_control_regions_decide_and_the_held_out_one_does_not() -> None:
    table = content(used=(0.10, 0.10), better=(0.02, 0.30), lucky=(0.10, 0.0), same=(0.095, 0.1))
    verdict = {entry["name"]: entry["clearly_better"] for entry in table["summary"]}
    assert verdict == {"used": False, "better": True, "lucky": False, "same": False}
    better = table["summary"][1]["against_in_use"]
    np.testing.assert_allclose(better["control"]["difference"], 0.16)
    # The bootstraps are the same for both: what is left is the spread of two maps in two flavours.
    np.testing.assert_allclose(better["control"]["error"], np.sqrt(4) * 0.005, rtol=1e-6)
    np.testing.assert_allclose(better["held_out"]["difference"], -0.20)


def test_the_table_has_the_reference_regions_and_the_held_out_ones() -> None:
    table = content(used=(0.10, 0.10), other=(0.02, 0.30))
    places = [(p["flavour"], p["region"]) for p in table["summary"][0]["places"]]
    assert places == [("b", "ttbar"), ("light", "dijet"), ("light", "unseen")]
    first = table["summary"][0]["places"][0]
    assert first["shown"]["working_point"] == 0.78
    assert first["chi2_per_ndf"] == 2.0
    np.testing.assert_allclose([first["w1"], first["w1_error"]], [0.2, 0.05 / 3])
    text = render_evaluation(table)
    for words in ("light jets, unseen (held out)", "used *", "1.100 ± 0.010", "clearly better"):
        assert words in text
