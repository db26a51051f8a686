"""How PHYSLITE spells its columns, as TTree and as RNTuple."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfcal.data.root_files import EventBlock, EventTable


@dataclass(frozen=True)
class Layout:
    """How a file spells its columns: ``<container>AuxDyn<separator><field>``."""

    table: EventTable
    collection: str
    separator: str

    def column(self, container: str, field: str) -> str | None:
        """The column of a container's field; static ones stand in ``<container>Aux``."""
        names = (f"{container}AuxDyn{self.separator}{field}", f"{container}Aux{self.separator}{field}")
        return next((name for name in names if name in self.table), None)

    def fields(self, container: str) -> tuple[str, ...]:
        """All fields of a container; parts of a field (``btaggingLink.m_persKey``) are left out."""
        prefixes = (f"{container}AuxDyn{self.separator}", f"{container}Aux{self.separator}")
        names = self.table.columns
        found = [name[len(prefix) :] for prefix in prefixes for name in names if name.startswith(prefix)]
        return tuple(dict.fromkeys(name for name in found if name and "." not in name and ":" not in name))

    def containers(self, field: str) -> tuple[str, ...]:
        """Containers that have ``field``."""
        ending = f"AuxDyn{self.separator}{field}"
        return tuple(name[: -len(ending)] for name in self.table.columns if name.endswith(ending))

    def find(self, field: str) -> str | None:
        """The column of a field of the jets, or else of the event."""
        return self.column(self.collection, field) or self.column("EventInfo", field)

    def links(self, block: EventBlock, column: str) -> tuple[Any, Any]:
        """(key, index) of element links, jagged as the column is; a key of 0 is a link to nothing."""
        parts = tuple(f"{column}.{part}" for part in ("m_persKey", "m_persIndex"))
        if self.table.kind == "TTree" and all(part in self.table for part in parts):
            return block.read(parts[0]), block.read(parts[1])  # split into branches of their own
        array = block.read(column)
        return array["m_persKey"], array["m_persIndex"]
