"""The files from which a page was made, with their digests: every number on it is in one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from selfcal.report.html import Headline, PageText, Section
from selfcal.report.tables import Cell, Table
from selfcal.run.digests import file_sha256


def files_section(headline: Headline, sections: Sequence[Section], folders: Mapping[str, Path]) -> Section:
    """A table of all sources: size, SHA-256, and the chapters that show them.

    ``folders`` maps the beginning of a source's name (empty, or ``A/``) to the directory that it stands for.
    """
    shown: dict[str, list[str]] = {}
    for tile in headline.tiles:
        for name in tile.source.split(", "):
            shown.setdefault(name, ["the top"])
    for section in sections:
        for item in section.content:
            for name in (item.source,) if isinstance(item, PageText) else item.sources:
                places = shown.setdefault(name, [])
                if section.title not in places:
                    places.append(section.title)
    rows = []
    for name in sorted(shown):
        path = _path(name, folders)
        size = path.stat().st_size
        cells = (Cell(name), Cell(f"{size:,}", size), Cell(file_sha256(path)), Cell("; ".join(shown[name])))
        rows.append(cells)
    caption = "Files from which this page was made, as they were then: every number above is in one of them."
    table = Table("table_files", ("file", "bytes", "SHA-256", "shown in"), tuple(rows), caption, ())
    return Section("files", "Files", content=(table,))


def _path(name: str, folders: Mapping[str, Path]) -> Path:
    beginning = max((one for one in folders if name.startswith(one)), key=len)
    return folders[beginning] / name.removeprefix(beginning)
