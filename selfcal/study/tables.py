"""The summary of a study as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERDICT = {True: "as expected", False: "NOT AS EXPECTED", None: "undecided"}


def render_summary(summary: Mapping[str, Any]) -> str:
    """The collected numbers as a table, then every check with what was found."""
    names = list(dict.fromkeys(key for row in summary["rows"] for key in row["values"] or ()))
    keys = [name for name in names if name.removesuffix("_error") not in names or not name.endswith("_error")]
    width = max([len(row["run"]) for row in summary["rows"]] + [len("point")]) + 2
    header = [key.rpartition(".")[2] for key in keys]
    cells = [
        [_cell(row["values"], key) for key in keys] if row["error"] is None else None
        for row in summary["rows"]
    ]
    columns = [
        max([len(name), 10, *(len(found[place]) for found in cells if found is not None)]) + 2
        for place, name in enumerate(header)
    ]
    lines = ["point".ljust(width) + "".join(n.rjust(c) for n, c in zip(header, columns, strict=True))]
    for row, found in zip(summary["rows"], cells, strict=True):
        if found is None:
            lines.append(row["run"].ljust(width) + "  failed: " + str(row["error"]).splitlines()[0])
        else:
            lines.append(
                row["run"].ljust(width) + "".join(x.rjust(c) for x, c in zip(found, columns, strict=True))
            )
    lines.append(f"expected: {summary['expected'].strip()}")
    faking = [_faking_line(entry) for entry in summary.get("faking", ())]
    return "\n".join([*lines, *map(_check_line, summary.get("checks", ())), *faking])


def _faking_line(entry: Mapping[str, Any]) -> str:
    """What one hidden systematic would have to be."""
    if entry["error"] is not None:
        return f"{entry['case']}: nothing can be said ({entry['error'].splitlines()[0]})"
    verdict = "COULD FAKE the shift" if entry["fakes"] else "cannot fake the shift"
    left = f"leaves chi2 {entry['chi2']:.1f} of {entry['chi2_unexplained']:.1f} for {entry['ndf']}"
    size = f"{entry['size']:+.2f} ± {entry['size_error']:.2f}"
    return f"{entry['case']}: {verdict}: needs {size}, {left} (p = {entry['p_value']:.2g})"


def _check_line(check: Mapping[str, Any]) -> str:
    found = f": found {_span(check['found'])}" if check["found"] else f" ({check['why']})"
    return f"{VERDICT[check['passed']]}: {check['rule']}{found}"


def _cell(values: Mapping[str, Any], key: str) -> str:
    """One number, with its uncertainty where that was collected too; the range of several."""
    value, error = values.get(key), values.get(f"{key}_error")
    if isinstance(value, list):
        numbers = [item for item in value if isinstance(item, int | float)]
        return _span(numbers) if numbers else "–"
    return _text(value) if error is None else f"{_text(value)} ± {error:.3g}"


def _span(numbers: list[float]) -> str:
    low, high = _text(min(numbers)), _text(max(numbers))
    return low if low == high else f"{low} … {high}"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
