"""The configurations, data cards and studies that come with the program."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import selfcal
from selfcal.errors import ConfigError

ShippedKind = Literal["configs", "data_cards", "studies"]
SHIPPED_KINDS: tuple[ShippedKind, ...] = ("configs", "data_cards", "studies")


def shipped_root() -> Path:
    """The folder that holds them: inside an installed package, else the root of the checkout.

    Raises
    ------
    ConfigError
        If the installation has lost them.
    """
    package = Path(selfcal.__file__).resolve().parent
    for root in (package / "shipped", package.parent):
        if all((root / kind).is_dir() for kind in SHIPPED_KINDS):
            return root
    raise ConfigError(
        "the files shipped with selfcal are missing",
        where=str(package),
        fix="install selfcal again",
    )


def shipped_path(kind: ShippedKind) -> Path:
    """Folder of the shipped files of one kind."""
    return shipped_root() / kind


def shipped_names(kind: ShippedKind) -> tuple[str, ...]:
    """Names (no suffix) of the shipped configurations, cards or studies, sorted."""
    folder = shipped_path(kind)
    return tuple(
        sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    )
