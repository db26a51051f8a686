"""Maps of several families from one derivation: the same scores, fractions, densities and seed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from selfcal.config.calibration import CalibrationConfig
from selfcal.config.evaluation import Family
from selfcal.errors import ConfigError
from selfcal.run.atomic import write_text
from selfcal.transport.choice import map_config
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import missing_tasks, run_tasks


def with_other_maps(source: Derivation, scratch: Path, config: CalibrationConfig) -> Path:
    """The folder of a derivation with ``config``, which fits its maps otherwise than ``source`` and no more.

    Inputs and the finished tasks that the map has no part in are shared with ``source`` as hard links; what
    ``bootstrap_steps`` says of them is that of ``source``.

    Raises
    ------
    ConfigError
        If ``config`` differs in more than ``map``, ``bootstrap_steps`` and ``workers``.
    """
    own = {name: getattr(config, name) for name in ("map", "bootstrap_steps", "workers")}
    if source.config.model_copy(update=own) != config:
        raise ConfigError(
            "only the settings of the maps may differ from those of the derivation that is shared",
            where="calibration",
            expected=f"other values of {', '.join(own)} alone",
        )
    settings = config.model_dump_json(exclude={"workers"})
    digest = hashlib.sha256(f"{source.folder.name} {settings}".encode()).hexdigest()
    folder = scratch / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shared = ["inputs", "composition", "densities", "identifiability"]
    # Replicas of a map fitted by distance come without densities of their own.
    if source.config.map.by_likelihood or not config.map.by_likelihood:
        shared += [f"bulk-{index}" for index in range(source.config.bootstraps)]
    for task in shared:
        target = folder / source.path(task).name
        if not target.exists():
            os.link(source.path(task), target)
    write_text(folder / "config.json", config.model_dump_json())
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
    settings = {
        name: source.config.model_copy(update={"map": map_config(name, source.config.map)})
        for name in families
    }
    folders = {name: with_other_maps(source, scratch / name, settings[name]) for name in families}
    bulk, count = range(source.config.bootstraps), range(min(replicas, source.config.bootstraps))
    waves = [
        [(folder, f"bulk-{index}") for folder in folders.values() for index in bulk],
        [(folder, "mixture") for folder in folders.values()],
        [(folder, f"replica-{index}") for folder in folders.values() for index in count],
    ]
    run_tasks(*missing_tasks(waves), workers, report)
    return {name: Derivation.open(folder) for name, folder in folders.items()}
