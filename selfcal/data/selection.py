"""The selection of a data card, on the file's own fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import Cut
from selfcal.data.field_names import missing_fields
from selfcal.data.finite import refuse_not_finite


def selected(
    fields: Mapping[str, NDArray[Any]] | NDArray[Any], cuts: Sequence[Cut], path: Path
) -> NDArray[np.bool_]:
    """Which rows (N,) pass all cuts: ``min <= x <= max`` and, where ``values`` are given, x in them.

    ``fields`` holds columns by name, at least those of the cuts; or it is a structured array.

    Raises
    ------
    DataError
        If a field is not there, or has NaN or infinite values.
    """
    names = tuple(fields.dtype.names or ()) if isinstance(fields, np.ndarray) else tuple(fields)
    absent = [cut.field for cut in cuts if cut.field not in names]
    if absent:
        raise missing_fields(absent, names, str(path), "selection")
    chosen: NDArray[np.bool_] | None = None
    for cut in cuts:
        values = np.asarray(fields[cut.field])
        if values.dtype.kind == "f":  # a comparison with NaN is false: the jet would vanish without a word
            refuse_not_finite({cut.field: values}, path)
        passes = np.ones(len(values), dtype=bool)
        if cut.min is not None:
            passes &= values >= cut.min
        if cut.max is not None:
            passes &= values <= cut.max
        if cut.values:
            passes &= np.isin(values, cut.values)
        chosen = passes if chosen is None else chosen & passes
    if chosen is None:
        raise ValueError("no cut is given")
    return chosen
