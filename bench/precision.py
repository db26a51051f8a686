"""How precise the scale factors of finished runs are, and what of: the first run beside all others.

    python -m bench.precision RUN OTHER ... [--relative]

Nothing is fitted. The systematic part of a scale factor is sqrt(total² - statistical²), the spread of both as
``results/scale_factors.json`` holds them; quoted are medians over kinematic bins and the working points of
``QUOTED``, and by how much those of the other runs differ from the first's, with ``--relative`` after
division by the scale factors. Rows that one of the runs does not measure are left out of all. Shares are
those of the groups in the systematic variance, averaged over the same rows; they need not add up to one, as
groups are correlated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.command_line import run_script
from selfcal.errors import DataError
from selfcal.run.atomic import read_json

QUOTED: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("b", (0.70, 0.77, 0.85)),
    ("b", (0.77,)),
    ("c", (0.70, 0.77, 0.85)),
    ("light", (0.77, 0.85)),
    ("light", (0.77,)),
    ("light", (0.85,)),
)
"""Flavours and working points whose medians are quoted together."""

HELD_OUT = (("light", 0.85), ("light", 0.77), ("c", 0.77), ("b", 0.77))
"""Rows of the closure that are quoted, in regions that took no part in the fit."""


@dataclass(frozen=True)
class Precision:
    """Some scale factors of one run.

    Attributes
    ----------
    systematic, total : medians of both uncertainties
    distance : mean of |scale factor - 1|
    shares : of every group of systematic uncertainties in the systematic variance, averaged over rows
    """

    systematic: float
    total: float
    distance: float
    shares: Mapping[str, float]


def measured_by_all(runs: Sequence[Iterable[Mapping[str, Any]]]) -> list[list[Mapping[str, Any]]]:
    """Of the rows of ``scale_factors.json`` of every run the measured ones that all others measure, too."""
    by_place = [
        {
            (row["flavour"], row["working_point"], *row["pt_gev"], *row["abs_eta"]): row
            for row in rows
            if row["kind"] == "working_point" and row["value"] is not None
        }
        for rows in runs
    ]
    return [
        [row for place, row in own.items() if all(place in each for each in by_place)] for own in by_place
    ]


def precision(
    rows: Iterable[Mapping[str, Any]], flavour: str, working_points: Sequence[float], *, relative: bool
) -> Precision:
    """Of measured ``rows`` of ``scale_factors.json`` those of one flavour at these working points.

    Raises
    ------
    DataError
        If none is measured.
    """
    kept = [row for row in rows if row["flavour"] == flavour and row["working_point"] in working_points]
    if not kept:
        raise DataError(
            f"no scale factor of {flavour} jets is measured at {list(working_points)} in all runs"
        )
    value, total, stat = np.array([(row["value"], row["total"], row["stat"]) for row in kept]).T
    variance = np.maximum(total**2 - stat**2, np.finfo(float).tiny)
    unit = value if relative else np.ones_like(value)
    shares = {
        group: float(
            np.mean([row["syst"][group] ** 2 / of_row for row, of_row in zip(kept, variance, strict=True)])
        )
        for group in kept[0]["syst"]
    }
    return Precision(
        float(np.median(np.sqrt(variance) / unit)),
        float(np.median(total / unit)),
        float(np.abs(value - 1.0).mean()),
        shares,
    )


def _medians(
    runs: Sequence[Path], factors: Sequence[Sequence[Mapping[str, Any]]], *, relative: bool
) -> list[str]:
    names = " | ".join(path.name for path in runs)
    lines = [f"systematic part (total; mean |SF - 1|) | {names}"]
    for flavour, points in QUOTED:
        found = [precision(each, flavour, points, relative=relative) for each in factors]
        cells = [f"{one.systematic:.4f} ({one.total:.4f}; {one.distance:.3f})" for one in found]
        for index, one in enumerate(found[1:], start=1):
            cells[index] += f" {100 * (one.systematic / found[0].systematic - 1):+.0f} %"
        lines.append(" | ".join([_label(flavour, points), *cells]))
    return lines


def _shares(runs: Sequence[Path], factors: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    lines = []
    for flavour, points in QUOTED:
        for path, each in zip(runs, factors, strict=True):
            found = precision(each, flavour, points, relative=False).shares
            cells = (f"{group} {100 * share:.0f} %" for group, share in found.items() if share >= 0.005)
            lines.append(f"variance of {_label(flavour, points)}, {path.name}: {', '.join(cells)}")
    return lines


def _closure(path: Path) -> str:
    rows = [row for row in read_json(path / "results" / "closure.json")["rows"] if row["held_out"]]
    cells = [
        f"{_label(flavour, (point,))} {row['ratio_calibrated']:.3f} ± {row['error']:.3f} "
        f"± {row['map_uncertainty'] or 0.0:.3f}"
        for flavour, point in HELD_OUT
        for row in rows
        if (row["flavour"], row["working_point"]) == (flavour, point) and row["ratio_calibrated"] is not None
    ]
    return f"held out after the map (± stat ± map), {path.name}: {', '.join(cells)}"


def _label(flavour: str, points: Sequence[float]) -> str:
    return f"{flavour} at {', '.join(f'{100 * point:.0f}' for point in points)} %"


def main(words: list[str] | None = None) -> None:
    """Read the command line, print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--relative", action="store_true", help="uncertainties divided by the scale factors")
    given = parser.parse_args(words)
    factors = measured_by_all(
        [read_json(path / "results" / "scale_factors.json")["rows"] for path in given.runs]
    )
    print(*_medians(given.runs, factors, relative=given.relative), sep="\n")
    print(*_shares(given.runs, factors), sep="\n")
    for path in given.runs:
        print(_closure(path))
        truth = path / "results" / "scale_factors_against_truth.json"
        if truth.exists():
            found = read_json(truth)
            agreement = f"{found['chi2']:.1f}/{found['ndf']}, p = {found['p_value']:.3f}"
            print(f"against the truth, {path.name}: χ² {agreement}")


if __name__ == "__main__":
    run_script(main)
