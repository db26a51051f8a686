"""The table of what the tests run, and its limits."""

from __future__ import annotations

from bench.covered import below_limits, counts_by_folder, shares


def file_of(lines: tuple[int, int], branches: tuple[int, int]) -> dict[str, object]:
    """What coverage.py's JSON says of one file: (all, run)."""
    names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
    return {"summary": dict(zip(names, (*lines, *branches), strict=True)) | {"percent_covered": 12.5}}


def test_shares_are_of_sums_over_files_and_each_limit_is_its_own():
    files = {
        "/a/selfcal/transport/one.py": file_of((100, 100), (99, 97)),
        "selfcal/transport/two.py": file_of((50, 50), (1, 1)),
        "selfcal/likelihood/fit.py": file_of((100, 96), (100, 97)),
        "selfcal/errors.py": file_of((10, 0), (0, 0)),
    }
    counts = counts_by_folder(files)
    assert shares(counts["transport"]) == (1.0, 0.98)
    assert shares(counts["(top)"]) == (0.0, 1.0)
    assert shares(counts["all"]) == (246 / 260, 195 / 200)
    assert below_limits(counts) == ["lines 94.62% < 95%", "branches of likelihood 97.00% < 98%"]
