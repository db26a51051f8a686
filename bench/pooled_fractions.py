"""The fractions of several worlds with the spreads of their replicas pooled: one table of all options.

    python -m bench.pooled_fractions FOLDER/*.json ...

Each file is one that ``python -m bench.composition_options`` wrote. Those of one option (the part of the name
behind the first dash) and one kind of folder (behind its last dash, such as ``true``) belong together. Three
replicas know a spread to half of itself, those of W worlds to 1/√(4 W): the variance of a fraction, but for
the difference of its two fits, is replaced by the fraction squared times the mean over the worlds of
variance / fraction².
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.command_line import run_script
from selfcal.run.atomic import read_json
from selfcal.study.closure import fraction_summary

Rows = list[dict[str, Any]]


def pooled(worlds: list[Rows]) -> list[Rows]:
    """The same rows with pooled uncertainties; regions and flavours have one order in all worlds."""
    result: list[Rows] = [[] for _ in worlds]
    for same in zip(*worlds, strict=True):
        disagreement = [row["fitted"] - row["bulk"] for row in same]
        relative = [
            (row["uncertainty"] ** 2 - apart**2) / row["fitted"] ** 2
            for row, apart in zip(same, disagreement, strict=True)
        ]
        for place, (row, apart) in enumerate(zip(same, disagreement, strict=True)):
            sigma = float(np.sqrt(np.mean(relative) * row["fitted"] ** 2 + apart**2))
            result[place].append({**row, "uncertainty": sigma})
    return result


def line(worlds: list[Rows]) -> str:
    """Share of fractions within 1.5 σ over all worlds, largest pulls, σ/fraction of the main flavours."""
    found = [fraction_summary(rows) for rows in worlds]
    inside = sum(one["within_1_5_sigma"] * one["fractions"] for one in found)
    share = inside / sum(one["fractions"] for one in found)
    pulls = ", ".join(f"{one['largest_pull']:.1f}" for one in found)
    main = ", ".join(f"{100 * one['main_relative_uncertainty']:.0f}" for one in found)
    return f"{share:.2f} | {pulls} | {main}"


def main() -> None:
    """Read the command line, print two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    groups: dict[tuple[str, str], list[Rows]] = defaultdict(list)
    for path in sorted(parser.parse_args().files):
        groups[path.parent.name.rpartition("-")[2], path.stem.partition("-")[2]].append(
            read_json(path)["rows"]
        )
    print("| option | worlds | uncertainty | within 1.5 σ | largest pulls | σ/fraction of main flavours, % |")
    print("|---|---:|---|---:|---|---|")
    for (suffix, option), worlds in sorted(groups.items()):
        print(f"| {option}, {suffix} | {len(worlds)} | own | {line(worlds)} |")
        if len(worlds) > 1:
            print(f"| {option}, {suffix} | {len(worlds)} | pooled | {line(pooled(worlds))} |")


if __name__ == "__main__":
    run_script(main)
