"""The error about a field that is not there: what was looked for, what there is, what is nearest."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from selfcal.errors import DataError


def missing_fields(absent: Sequence[str], present: Sequence[str], where: str, card_key: str) -> DataError:
    """The error that names absent fields, the nearest names and all that are present."""
    nearest = {name: difflib.get_close_matches(name, present, n=2, cutoff=0.5) for name in absent}
    hints = [f"for {name} perhaps {' or '.join(found)}" for name, found in nearest.items() if found]
    return DataError(
        f"lacks the field(s) {', '.join(absent)}",
        where=where,
        expected=f"{', '.join(absent)}; found {', '.join(present)}",
        fix="; ".join([*hints, f"name the field under '{card_key}' in the data card"]),
    )
