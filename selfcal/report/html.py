"""The report page: one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from selfcal.report.tables import Cell, Table


@dataclass(frozen=True)
class Download:
    """A file that the page itself holds: its type, and the same content on disk beside the page."""

    type: Literal["image/png", "application/pdf"]
    file: str
    content: bytes

    @property
    def name(self) -> str:
        """File name without folder."""
        return self.file.rpartition("/")[2]

    @property
    def label(self) -> str:
        """What the link says."""
        return self.file.rpartition(".")[2].upper()

    @property
    def address(self) -> Markup:
        """The content as a ``data:`` address."""
        return Markup(f"data:{self.type};base64,{base64.b64encode(self.content).decode()}")


@dataclass(frozen=True)
class PageFigure:
    """A figure as it stands in the page: inline SVG, what is said about it, and files to take away."""

    name: str
    svg: Markup
    caption: str
    sources: tuple[str, ...]
    downloads: tuple[Download, ...]


@dataclass(frozen=True)
class PageText:
    """Plain text in a fold, such as the configuration."""

    title: str
    text: str
    source: str


@dataclass(frozen=True)
class Section:
    """One chapter; ``omitted`` says in one sentence why what belongs here is absent."""

    name: str
    title: str
    introduction: str = ""
    content: tuple[PageFigure | Table | PageText, ...] = ()
    omitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tile:
    """One headline number with its unit or meaning, and the file it comes from."""

    label: str
    number: str
    note: str
    source: str
    style: str = ""


@dataclass(frozen=True)
class Headline:
    """What stands at the top of the page: numbers, the main scale factors, warnings."""

    title: str
    measured: str
    tiles: tuple[Tile, ...] = ()
    warnings: tuple[str, ...] = ()
    key_table: Table | None = None
    omitted: tuple[str, ...] = field(default=())


def render(headline: Headline, sections: Sequence[Section]) -> str:
    """The page as HTML text; every string that is not :class:`Markup` is escaped.

    A content security policy in the page allows no request at all and no script but the
    page's own, recognised by its SHA-256.
    """
    environment = Environment(
        loader=PackageLoader("selfcal.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("sort.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.jinja").render(
        headline=headline,
        sections=sections,
        style=Markup(environment.get_template("report.css").render()),
        script=Markup(script),
        script_hash=digest,
        kind_of=_kind_of,
        cell_class=_cell_class,
    )
    return page.lstrip() + "\n"


def _kind_of(item: PageFigure | Table | PageText) -> str:
    return {PageFigure: "figure", Table: "table", PageText: "text"}[type(item)]


def _cell_class(cell: Cell) -> str:
    return " ".join(part for part in ("number" if cell.numeric else "", cell.style) if part)
