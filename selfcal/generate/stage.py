"""The ``generate`` stage: every data card with a ``generate`` block becomes a file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from selfcal import __version__
from selfcal.config.card import DataCard
from selfcal.config.run import RunConfig
from selfcal.errors import ConfigError
from selfcal.generate.dataset import GenerateRequest, generate_datasets
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.run.digests import canonical_digest
from selfcal.run.progress import Tracker

MAX_SEED = 900_000_000
"""Pythia 8 takes seeds up to 900,000,000."""


def dataset_seed(run_seed: int, card_name: str) -> int:
    """Seed of one dataset, 1 to :data:`MAX_SEED`, the same on every machine.

    The jets of two datasets, or of one dataset under two run seeds, are independent.
    """
    digest = hashlib.sha256(f"{run_seed}/{card_name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % MAX_SEED + 1


def generate_request(card: DataCard, config: RunConfig) -> GenerateRequest:
    """What a card asks to be generated, with its world filled in.

    Raises
    ------
    ConfigError
        If the card generates nothing or names a world that the configuration lacks.
    """
    if card.generate is None:
        raise ConfigError(f"data card '{card.name}' has no 'generate' block", where="generate")
    world = config.generate.worlds.get(card.generate.world)
    if world is None:
        raise ConfigError(
            f"unknown world '{card.generate.world}'",
            where=f"data card '{card.name}', key 'generate.world'",
            expected=f"one of {', '.join(sorted(config.generate.worlds))}",
        )
    return GenerateRequest(
        name=card.name,
        process=card.generate.process,
        n_jets=card.generate.jets,
        seed=dataset_seed(config.seed if card.generate.seed is None else card.generate.seed, card.name),
        pythia_settings=world.pythia,
        detector=world.detector,
        is_data=card.role == "data",
    )


def run_generate(context: RunContext) -> list[Path]:
    """Generate what is not there yet; finished collisions survive an interruption in the cache."""
    config = context.config
    outputs: list[Path] = []
    wanted: list[tuple[GenerateRequest, Path]] = []
    for card in context.cards:
        if card.generate is None:
            continue
        request = generate_request(card, config)
        (output,) = context.dataset_path(card)
        outputs += [output, _note(output)]
        if not _is_made(output, request):
            wanted.append((request, output))
    if wanted:
        workers = config.generate.workers or os.cpu_count() or 1
        generate_datasets(wanted, collision_cache(context), workers, _Report(context))
        for request, output in wanted:
            write_json(_note(output), _identity(output, request))
    return outputs


class _Report:
    """Progress in jets; the total is known with the first call."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._tracker: Tracker | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._tracker is None:
            self._tracker = self._context.progress("jets generated", total)
        self._tracker.update(done)


def collision_cache(context: RunContext) -> Path:
    """Where the truth of generated jets is kept: ``generate.cache``, or the run's own folder."""
    shared = context.config.generate.cache
    return Path(shared).expanduser() if shared else context.directory.cache


def _note(output: Path) -> Path:
    """A small file beside a dataset that says what it was made from."""
    return output.with_suffix(".made.json")


def _identity(output: Path, request: GenerateRequest) -> dict[str, object]:
    return {
        "request": canonical_digest(
            {
                "version": __version__,
                "name": request.name,
                "process": request.process,
                "n_jets": request.n_jets,
                "seed": request.seed,
                "pythia_settings": list(request.pythia_settings),
                "detector": request.detector.model_dump(mode="json"),
                "is_data": request.is_data,
            }
        ),
        "size": output.stat().st_size,
    }


def _is_made(output: Path, request: GenerateRequest) -> bool:
    if not output.is_file() or not _note(output).is_file():
        return False
    return bool(read_json(_note(output)) == _identity(output, request))
