"""How a bench script ends: an error is one clear message with the exit code that ``selfcal`` has for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from selfcal.errors import SelfcalError


def run_script(main: Callable[[], object]) -> None:
    """Do ``main``; exit with the message and the code of a :class:`~selfcal.errors.SelfcalError`."""
    try:
        main()
    except SelfcalError as error:
        print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
