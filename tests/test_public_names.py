"""The names of ``import selfcal``: there, documented, and of no cost until they are used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import selfcal


@pytest.mark.parametrize("name", selfcal.__all__)
def test_every_name_is_there_typed_and_documented(name: str) -> None:
    found = getattr(selfcal, name)
    assert name in dir(selfcal)
    assert found.__name__ == name
    assert len(inspect.getdoc(found) or "") > 20
    signature = inspect.signature(found)
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        selfcal.nothing  # noqa: B018


def test_the_package_alone_loads_no_heavy_library() -> None:
    code = "import selfcal, sys; print(sorted({'torch', 'numpy', 'pydantic', 'uproot'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
