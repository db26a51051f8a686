"""True flavours of pseudo-data, for closure checks alone.

Nothing that trains, calibrates or fits may import this module.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import flavour_from_cone_label
from selfcal.data.hdf5 import LABEL_FIELD, TRUTH_DATASET
from selfcal.data.hdf5_file import open_native, require_dataset


def read_closure_truth(path: Path) -> NDArray[np.int8]:
    """Flavour (see ``FLAVOURS``) of every jet of a pseudo-data file, (N,) in file order.

    Raises
    ------
    DataError
        If the file is missing or damaged, or carries no truth.
    """
    with open_native(path) as file:
        labels = require_dataset(file, TRUTH_DATASET, path, (LABEL_FIELD,))[LABEL_FIELD]
    return flavour_from_cone_label(labels, where=f"{path}, {TRUTH_DATASET}")


def holds_closure_truth(path: Path) -> bool:
    """Whether a file carries closure truth: pseudo-data do, collision data do not."""
    if not h5py.is_hdf5(path):
        return False
    with open_native(path) as file:
        return TRUTH_DATASET in file
