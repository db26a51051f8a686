"""Which files a data card names."""

from __future__ import annotations

from pathlib import Path

from selfcal.config.card import DataCard
from selfcal.errors import ConfigError, DataError


def card_files(card: DataCard, root: Path) -> tuple[Path, ...]:
    """Files of a card in the order it names them, patterns expanded in sorted order.

    Relative names refer to ``root``; ``**`` matches any number of folders.

    Raises
    ------
    DataError
        If a name or a pattern matches nothing.
    ConfigError
        If a file is named twice.
    """
    found: list[Path] = []
    for pattern in card.files:
        found += _matches(root, pattern, card.name)
    repeated = sorted({str(path) for path in found if found.count(path) > 1})
    if repeated:
        raise ConfigError(
            f"files of '{card.name}' are named more than once",
            where=", ".join(repeated),
            fix="make the patterns under 'files' disjoint",
        )
    return tuple(found)


def _matches(root: Path, pattern: str, name: str) -> list[Path]:
    target = root / Path(pattern).expanduser()
    if any(character in pattern for character in "*?["):
        base = Path(target.anchor)
        relative = target.relative_to(base) if target.is_absolute() else target
        paths = sorted(path for path in base.glob(str(relative)) if path.is_file())
    else:
        paths = [target] if target.is_file() else []
    if not paths:
        raise DataError(
            f"no file of dataset '{name}' found",
            where=str(target),
            expected="an existing file, or a pattern that matches some",
            fix="check 'files' in the data card and 'data.root' in the configuration",
        )
    return paths
