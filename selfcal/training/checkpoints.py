"""The complete state of a training in one file, so that a killed one continues bit for bit.

A checkpoint is a safetensors file (no pickle) whose metadata hold the rest as JSON.
Being one file, it is whole or absent. Shuffling and learning rate depend on the
seed, the epoch and the step alone, and thus need no state of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays_and_metadata, write_arrays

MODEL, BEST, OPTIMISER, RANDOM = "model/", "best/", "optimiser/", "random"
_METADATA_KEY = "selfcal_training"


@dataclass
class TrainingState:
    """Where a training stands, besides model and optimiser.

    Attributes
    ----------
    epoch, step_in_epoch : the next step to be done
    history : the metrics of every finished epoch
    sums : running sums of the unfinished epoch's training losses
    best_epoch, best_cost : the best epoch so far and what it was chosen by, less is better; -1, inf
        before the first
    best : the weights of that epoch
    """

    epoch: int = 0
    step_in_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best_epoch: int = -1
    best_cost: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    state: TrainingState,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    fingerprint: str,
) -> None:
    """Write everything that :func:`load_checkpoint` needs."""
    tensors = {MODEL + name: value for name, value in model.state_dict().items()}
    tensors |= {BEST + name: value for name, value in state.best.items()}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"{OPTIMISER}{number}/{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors[RANDOM] = torch.get_rng_state()
    described = {
        "fingerprint": fingerprint,
        "epoch": state.epoch,
        "step_in_epoch": state.step_in_epoch,
        "history": state.history,
        "sums": {name: value.hex() for name, value in state.sums.items()},
        "best_epoch": state.best_epoch,
        "best_cost": float(state.best_cost).hex(),
    }
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    write_arrays(path, arrays, {_METADATA_KEY: json.dumps(described)})


def load_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, fingerprint: str
) -> TrainingState | None:
    """Put model, optimiser and random numbers back; None if there is nothing to continue.

    A checkpoint of another ``fingerprint`` (other data, other configuration) is not
    continued: the training starts anew and overwrites it.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        arrays, metadata = read_arrays_and_metadata(path)
        described = json.loads(metadata.get(_METADATA_KEY, "{}"))
    except (DataError, json.JSONDecodeError) as error:
        raise DataError(
            f"damaged training checkpoint: {getattr(error, 'problem', error)}",
            where=str(path),
            fix="delete the file; the training then starts anew",
        ) from error
    if described.get("fingerprint") != fingerprint:
        return None
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    model.load_state_dict(_below(tensors, MODEL))
    _restore_optimiser(optimiser, _below(tensors, OPTIMISER))
    torch.set_rng_state(tensors[RANDOM])
    return TrainingState(
        epoch=described["epoch"],
        step_in_epoch=described["step_in_epoch"],
        history=described["history"],
        sums={name: float.fromhex(value) for name, value in described["sums"].items()},
        best_epoch=described["best_epoch"],
        best_cost=float.fromhex(described["best_cost"]),
        best=_below(tensors, BEST),
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split("/")
        state.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
