"""Which share of the code the tests run, per folder, from coverage.py's combined data: ``make coverage``.

Ends with status 1 below the limits: lines 95 %, branches 90 %, of ``transport/`` and ``likelihood/`` 98 %.
``--missing FOLDER`` lists the lines and branches of a folder that no test ran.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import coverage

LINES = 0.95
BRANCHES = {"transport": 0.98, "likelihood": 0.98, "all": 0.90}


def counts_by_folder(files: dict[str, Any]) -> dict[str, Counter[str]]:
    """Sums of coverage.py's counts over the modules of each folder of the package, and over all."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for path, content in files.items():
        parts = path.rpartition("selfcal/")[2].split("/")
        folder = parts[0] if len(parts) > 1 else "(top)"
        numbers = {name: value for name, value in content["summary"].items() if isinstance(value, int)}
        counts[folder].update(numbers)
        counts["all"].update(numbers)
    return counts


def shares(counts: Counter[str]) -> tuple[float, float]:
    """Of lines and of branches; 1 where there is none."""
    lines, branches = counts["num_statements"], counts["num_branches"]
    return (
        counts["covered_lines"] / lines if lines else 1.0,
        counts["covered_branches"] / branches if branches else 1.0,
    )


def below_limits(counts: dict[str, Counter[str]]) -> list[str]:
    """What is too little, in words."""
    found = []
    if (lines := shares(counts["all"])[0]) < LINES:
        found.append(f"lines {lines:.2%} < {LINES:.0%}")
    for folder, limit in BRANCHES.items():
        if (branches := shares(counts[folder])[1]) < limit:
            found.append(f"branches of {folder} {branches:.2%} < {limit:.0%}")
    return found


def print_table(counts: dict[str, Counter[str]]) -> None:
    """One row per folder."""
    print("| folder | lines | run | branches | run |\n|---|---|---|---|---|")
    for folder in sorted(counts, key=lambda name: (name == "all", name)):
        lines, branches = shares(counts[folder])
        n_lines, n_branches = counts[folder]["num_statements"], counts[folder]["num_branches"]
        print(f"| {folder} | {n_lines} | {lines:.2%} | {n_branches} | {branches:.2%} |")


def print_missing(files: dict[str, Any], folder: str) -> None:
    """Lines and branches (from -> to; negative: out of the function) that no test ran."""
    for path, content in sorted(files.items()):
        if f"selfcal/{folder}/" in path and (content["missing_lines"] or content["missing_branches"]):
            arrows = ", ".join(f"{begin}->{end}" for begin, end in content["missing_branches"])
            print(f"{path}: lines {content['missing_lines']}, branches {arrows}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--missing", metavar="FOLDER", help="list what was not run")
    given = parser.parse_args()
    recorded = coverage.Coverage()
    recorded.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        recorded.json_report(outfile=str(path))
        files = json.loads(path.read_text())["files"]
    if given.missing:
        print_missing(files, given.missing)
        return
    counts = counts_by_folder(files)
    print_table(counts)
    sys.exit("\n".join(below_limits(counts)) or 0)


if __name__ == "__main__":
    main()
