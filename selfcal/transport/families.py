"""Maps of several families from one derivation: the same scores, fractions, densities and seed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from selfcal.config.calibration import MapConfig
from selfcal.config.evaluation import Family
from selfcal.run.atomic import write_text
from selfcal.transport.choice import map_config
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import missing_tasks, run_tasks


def with_map(source: Derivation, scratch: Path, config: MapConfig) -> Path:
    """The folder of a derivation that differs from ``source`` in its map alone; returns that folder.

    Inputs and the finished tasks that the map has no part in are shared with ``source`` as hard links.
    """
    changed = source.config.model_copy(update={"map": config})
    digest = hashlib.sha256(f"{source.folder.name} {changed.map.model_dump_json()}".encode()).hexdigest()
    folder = scratch / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shared = ["inputs", "composition", "densities", "identifiability"]
    # Replicas of a map fitted by distance come without densities of their own.
    if source.config.map.by_likelihood or not config.by_likelihood:
        shared += [f"bulk-{index}" for index in range(source.config.bootstraps)]
    for task in shared:
        target = folder / source.path(task).name
        if not target.exists():
            os.link(source.path(task), target)
    write_text(folder / "config.json", changed.model_dump_json())
    return folder


def derive_families(
    source: Derivation,
    scratch: Path,
    families: Sequence[Family],
    replicas: int,
    workers: int,
    report: Callable[[int, int], None],
) -> dict[Family, Derivation]:
    """Maps of every family and their first ``replicas`` replicas; what is there already is kept.

    ``source`` is a finished derivation; ``workers`` and ``report`` as in
    :func:`selfcal.transport.derivation_tasks.derive`.

    Raises
    ------
    FitError
        If a fit does not converge.
    """
    base = source.config.map
    folders = {name: with_map(source, scratch / name, map_config(name, base)) for name in families}
    bulk, count = range(source.config.bootstraps), range(min(replicas, source.config.bootstraps))
    waves = [
        [(folder, f"bulk-{index}") for folder in folders.values() for index in bulk],
        [(folder, "mixture") for folder in folders.values()],
        [(folder, f"replica-{index}") for folder in folders.values() for index in count],
    ]
    run_tasks(*missing_tasks(waves), workers, report)
    return {name: Derivation.open(folder) for name, folder in folders.items()}
