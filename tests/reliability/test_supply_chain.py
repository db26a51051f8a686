"""What selfcal is made of, and what its files cannot make it do."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import selfcal

ROOT = Path(__file__).parents[2]
PACKAGE = Path(selfcal.__file__).parent
DANGEROUS = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load", "torch.save",
    "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system",
}  # fmt: skip


def dotted_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def used(source: str) -> set[str]:
    """Names of everything that a module imports or calls."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call):
            found.add(dotted_name(node.func))
    return found


@pytest.mark.fault(10, "no pickle, eval or unsafe YAML anywhere in the program")
def test_nothing_dangerous_is_called(attempts) -> None:
    assert used("import yaml\nyaml.load(x)\neval('1')") >= {"yaml.load", "eval"}
    for path in sorted(PACKAGE.rglob("*.py")):
        with attempts(path.relative_to(PACKAGE)):
            assert not used(path.read_text(encoding="utf-8")) & DANGEROUS


def canonical(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Version by package, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(one) == 2 for one in found)
    assert len({canonical(name) for name, _ in found}) == len(found)
    return {canonical(name): version for name, version in found}


def locked(file: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes by package, of a lock file."""
    found: dict[str, tuple[str, int]] = {}
    # One entry per package: name==version ; marker \\, and below it one line for each hash.
    for entry in re.split(r"\n(?=\S)", (ROOT / "locks" / file).read_text().strip()):
        first, *hashes = entry.splitlines()
        name, version = first.removesuffix("\\").partition(";")[0].strip().split("==")
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes), entry
        assert canonical(name) not in found
        found[canonical(name)] = (version, len(hashes))
    return found


def required(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[><=\[ ]", one)[0]) for one in requirements}


LOCKS = ("build.txt", "packages.txt", "docs.txt", "mutation.txt", "puma.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OF_WINDOWS = {"colorama"}


def test_torch_alone_has_no_hash() -> None:
    """Every package that is pinned is locked in that version with hashes, but for torch; no other is."""
    versions: dict[str, str] = {}
    for file in LOCKS:
        for name, (version, hashes) in locked(file).items():
            assert hashes > 0, name
            assert versions.setdefault(name, version) == version
    constraints = pinned()
    assert set(constraints) - set(versions) == {"torch"}
    assert set(versions) - set(constraints) == OF_WINDOWS
    assert {name: versions[name] for name in versions if name not in OF_WINDOWS} == {
        name: version for name, version in constraints.items() if name != "torch"
    }
    by_torch = [name for name in versions if re.match(r"torch|triton$|nvidia-|cuda-", name)]
    assert by_torch == []


def test_locks_hold_what_the_project_asks_for() -> None:
    """lightning is not used, torch is new enough, each extra is in the lock that it is installed from."""
    project = PROJECT["project"]
    assert "torch>=2.10" in project["dependencies"]
    assert not [name for name in pinned() if "lightning" in name]
    assert required(PROJECT["dependency-groups"]["build"]) <= set(locked("build.txt"))
    assert required(PROJECT["build-system"]["requires"]) <= set(locked("build.txt"))
    packages = {*locked("packages.txt"), "torch"}
    assert required(project["dependencies"]) <= packages
    for extra, requirements in project["optional-dependencies"].items():
        own = set(locked(f"{extra}.txt")) if f"{extra}.txt" in LOCKS else set()
        assert required(requirements) <= packages | own, extra


def test_make_installs_nothing_else_without_hashes() -> None:
    """Of all calls of pip, only those for torch and for selfcal itself go without."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    assert next(line for line in lines if line.startswith("LOCKED :=")).split()[2:] == [
        "$(PIP_INSTALL)", "--require-hashes", "--no-deps", "--no-build-isolation",
    ]  # fmt: skip
    recipes = [line.strip() for line in lines if line.startswith("\t")]
    assert sorted(line for line in recipes if re.search(r"LOCKED|PIP_INSTALL", line)) == [
        "$(LOCKED) -r locks/build.txt",
        "$(LOCKED) -r locks/docs.txt",
        "$(LOCKED) -r locks/mutation.txt",
        "$(LOCKED) -r locks/packages.txt",
        "$(LOCKED) -r locks/puma.txt",
        "$(PIP_INSTALL) --no-deps --no-build-isolation -e .",
        "$(PIP_INSTALL) -c constraints.txt torch",
    ]
    assert not [line for line in lines if "pip install" in line and not line.startswith("PIP_INSTALL :=")]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
