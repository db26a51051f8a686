"""A matplotlib figure as SVG that can stand inside an HTML page."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

from markupsafe import Markup
from matplotlib.figure import Figure

from selfcal.report.style import INK, PAPER

_KEPT_ELEMENTS = frozenset(
    {
        "svg",
        "g",
        "path",
        "defs",
        "use",
        "clipPath",
        "rect",
        "text",
        "tspan",
        "image",
        "line",
        "circle",
        "pattern",
    }
)
_GEOMETRY = frozenset({"d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "transform"})
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}(?![\de])")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline_svg(figure: Figure, prefix: str, description: str) -> Markup:
    """Draw ``figure`` as an ``<svg>`` element for the inside of an HTML page.

    Only drawing elements survive (no style sheet, metadata, script or link), the only
    images are embedded ones, every ``id`` starts with ``prefix`` so that many figures can
    share a page, and ink and paper become the page's CSS variables. Text stays text and
    is escaped by the XML writer.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())
    clean = _clean(root, prefix)
    for size in ("width", "height"):
        clean.attrib.pop(size, None)
    clean.set("role", "img")
    clean.set("aria-label", description)
    return Markup(ET.tostring(clean, encoding="unicode", short_empty_elements=True))


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _clean(element: ET.Element, prefix: str) -> ET.Element:
    copy = ET.Element(_local(element.tag))
    copy.text, copy.tail = element.text, element.tail
    for key, value in element.attrib.items():
        name = _local(key)
        if name == "id":
            value = f"{prefix}-{value}"
        elif name == "href":
            if value.startswith("#"):
                value = f"#{prefix}-{value[1:]}"
            elif not value.startswith("data:image/png;base64,"):
                continue
        elif name.startswith("on"):
            continue
        elif name in _GEOMETRY:
            # a hundredth of a point is below what a screen shows
            value = _LONG_NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value)
        else:
            value = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
            value = value.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")
        if name in ("fill", "stroke") and value.startswith("var("):
            # a presentation attribute takes no CSS variable, a style does
            copy.set("style", f"{name}: {value}; {copy.get('style', '')}")
        elif name == "style" and copy.get("style"):
            copy.set("style", f"{copy.get('style')}{value}")
        else:
            copy.set(name, value)
    copy.extend(_clean(child, prefix) for child in element if _local(str(child.tag)) in _KEPT_ELEMENTS)
    return copy
