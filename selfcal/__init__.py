"""selfcal: train a jet-flavour tagger together with its own calibration.

What a notebook needs of a finished run stands here under one name each (``__all__``); nothing of it is
loaded before it is used. The tutorial of the documentation uses all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfcal.config.loading import load_run as load_run
    from selfcal.data.inspection import inspect_file as inspect_file
    from selfcal.data.jet_reader import Wanted as Wanted
    from selfcal.data.reading import read_dataset as read_dataset
    from selfcal.data.score_files import load_scores as load_scores
    from selfcal.export.rows import load_scale_factors as load_scale_factors
    from selfcal.likelihood.workspace_file import read_workspace as read_workspace
    from selfcal.likelihood.workspace_fit import fit_workspace as fit_workspace
    from selfcal.tagger.bundle import load_bundle as load_bundle
    from selfcal.tagger.discriminants import discriminant_b as discriminant_b
    from selfcal.tagger.scoring import score_jets as score_jets
    from selfcal.transport.calibration import load_calibration as load_calibration

__version__ = "0.1.0"

_HOME = {
    "Wanted": "data.jet_reader",
    "discriminant_b": "tagger.discriminants",
    "fit_workspace": "likelihood.workspace_fit",
    "inspect_file": "data.inspection",
    "load_bundle": "tagger.bundle",
    "load_calibration": "transport.calibration",
    "load_run": "config.loading",
    "load_scale_factors": "export.rows",
    "load_scores": "data.score_files",
    "read_dataset": "data.reading",
    "read_workspace": "likelihood.workspace_file",
    "score_jets": "tagger.scoring",
}
__all__ = tuple(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'selfcal' has no attribute '{name}'")
    return getattr(import_module(f"selfcal.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
