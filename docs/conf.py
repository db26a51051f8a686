"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import selfcal  # noqa: E402
from selfcal.config.reference import write_configuration_reference  # noqa: E402

project = "selfcal"
author = "The selfcal authors"
release = selfcal.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = f"selfcal {release}"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_use_rtype = False
napoleon_use_ivar = True
nitpicky = False
suppress_warnings = ["ref.python"]  # attributes of different classes have the same names

write_configuration_reference(Path(__file__).parent / "reference" / "generated")


def _keep_bars(app, what, name, obj, options, lines) -> None:  # noqa: ARG001 - Sphinx's signature
    """``|eta|`` and ``ln |det|`` are formulae, not substitutions of reStructuredText."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``[^`]*``|:math:`[^`]*`)", line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _keep_bars)
