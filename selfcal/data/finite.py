"""Numbers that cannot be used, counted and refused: never replaced, never turned into others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.errors import DataError

_FIX = "repair or drop these jets where the file is made; they are never replaced here"


def refuse_not_finite(fields: Mapping[str, NDArray[np.floating]], path: Path) -> None:
    """Raise a :class:`DataError` naming every field with NaN or infinities and how many it has."""
    bad = {name: int((~np.isfinite(values)).sum()) for name, values in fields.items()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        raise DataError(
            "NaN or infinite values: " + ", ".join(f"{name} ({count})" for name, count in bad.items()),
            where=str(path),
            expected="finite numbers in every field that is used",
            fix=_FIX,
        )


def whole_numbers(values: NDArray[Any], name: str, path: Path) -> NDArray[np.int64]:
    """Labels, run, event and jet numbers as integers (N,), whatever type the file has them in.

    Raises
    ------
    DataError
        If some are NaN, infinite or no whole numbers: as integers they would be arbitrary ones.
    """
    if values.dtype.kind not in "fiub":
        raise DataError(
            f"'{name}' holds {values.dtype} and no numbers", where=str(path), expected="whole numbers"
        )
    if values.dtype.kind == "f":
        refuse_not_finite({name: values}, path)
        broken = int((values != np.trunc(values)).sum())
        if broken:
            raise DataError(
                f"{broken} values of '{name}' are no whole numbers",
                where=str(path),
                expected="labels, or numbers of runs, events and jets",
                fix="name the right field under 'fields' in the data card",
            )
    return values.astype(np.int64)
