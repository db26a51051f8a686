"""What all tests share.

Tensor code is tested under jaxtyping's import hook: a wrong shape or type is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
from jaxtyping import install_import_hook

from tests.reliability.table import (  # noqa: F401 - found by pytest under their names
    attempts,
    pytest_addoption,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)

TENSOR_PACKAGES = ("selfcal.tagger", "selfcal.transport", "selfcal.penalty", "selfcal.likelihood")

install_import_hook(list(TENSOR_PACKAGES), "beartype.beartype")

SHARED = Path(__file__).parents[2] / "shared"
"""Files of others (benchmark, published, peers) beside the checkout; a user of the project has none."""


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """The path of ``shared/NAME``; the test is skipped where it does not exist."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} in a folder 'shared' beside the checkout, which is not there")
        return path

    return find


@pytest.fixture(autouse=True)
def default_precision_is_left_alone():
    """A library that changes the default precision changes every other result."""
    yield
    import torch

    found = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert found == torch.float32


def make_synthetic_jets(
    n_tracks: int | Sequence[int],
    *,
    jets: int = 0,
    seed: int = 1,
    dataset: str = "toy",
    fields: tuple[str, ...] | None = None,
):
    """Labelled ``Jets`` whose tracks are the more displaced the heavier the flavour.

    ``n_tracks`` per jet, or the mean of a Poisson law for ``jets`` jets; two jets per event.
    """
    from selfcal.data.jets import TRACK_FIELDS, Jets

    fields = fields or TRACK_FIELDS
    generator = np.random.default_rng(seed)
    given = None if isinstance(n_tracks, int) else np.asarray(n_tracks, np.int64)
    counts = generator.poisson(n_tracks, jets) if given is None else given
    n, total = len(counts), int(counts.sum())
    flavour = generator.integers(0, 4, n).astype(np.int8)
    displacement = np.repeat(np.array([4.0, 2.0, 0.0, 1.0])[flavour], counts)
    columns = {name: generator.poisson(2.0, total).astype(np.float32) for name in fields}
    for name in fields:
        if name.endswith("Uncertainty"):
            columns[name] = generator.lognormal(-7, 0.3, total)
        elif name.endswith("Significance"):
            columns[name] = generator.normal(displacement, 1.0)
        elif not name.startswith("numberOf"):
            columns[name] = generator.normal(0.0, 1e-4 if name == "qOverP" else 0.05, total)
    jets_without_vertices = Jets(
        dataset=dataset,
        pt_gev=generator.uniform(20, 250, n).astype(np.float32),
        eta=generator.uniform(-2.4, 2.4, n).astype(np.float32),
        flavour=flavour,
        weight=np.ones(n),
        run=np.zeros(n, np.int64),
        event=np.arange(n, dtype=np.int64) // 2,
        jet_index=(np.arange(n) % 2).astype(np.int32),
        track_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tracks=np.stack([columns[name] for name in fields], axis=1).astype(np.float32),
        track_origin=generator.integers(-1, 8, total).astype(np.int8),
        track_vertex=np.full(total, -2, np.int16),
        track_fields=fields,
    )
    # Pile-up, fakes and tracks of unknown origin have no vertex number.
    vertex = generator.integers(0, 3, total).astype(np.int16)
    vertex = np.where(jets_without_vertices.track_origin < 2, np.int16(-2), vertex)
    return replace(jets_without_vertices, track_vertex=vertex)


@pytest.fixture
def make_jets() -> Callable[..., object]:
    """Factory of synthetic jets: ``make_jets([3, 0, 200])`` or ``make_jets(8, jets=1000)``."""
    return make_synthetic_jets
