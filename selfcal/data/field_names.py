"""The errors about fields that are not there: what was looked for, and what there is or can be done."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from selfcal.data.jets import Jets
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


def require_track_fields(jets: Jets, names: Sequence[str], *, by: str, instead: str) -> None:
    """Refuse jets whose tracks lack what ``by`` needs; ``instead`` is what a user may do without them.

    Raises
    ------
    DataError
        If a field is absent.
    """
    if missing := [name for name in names if name not in jets.track_fields]:
        raise DataError(
            f"track fields that {by} cannot do without are absent: {', '.join(missing)}",
            where=jets.dataset,
            expected=", ".join(names),
            fix=f"provide them, or {instead}",
        )
