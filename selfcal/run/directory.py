"""The directory of one run: where everything is, who holds it, and where its numbers come from."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import selfcal
from selfcal.errors import ConfigError
from selfcal.run.atomic import remove_leftovers, write_json

PROVENANCE_LIBRARIES: tuple[str, ...] = (
    "torch",
    "numpy",
    "scipy",
    "zuko",
    "nflows",
    "pot",
    "pyhf",
    "iminuit",
    "h5py",
    "uproot",
    "awkward",
    "pydantic",
    "correctionlib",
    "safetensors",
    "pythia8mc",
    "fastjet",
)


class RunDirectory:
    """Paths inside ``runs/<name>``; folders are made when first written to."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def cache(self) -> Path:
        """Generated collisions before detector simulation, reused for other detectors."""
        return self.path / "cache"

    @property
    def scores(self) -> Path:
        """One file per card: what the final tagger says of its jets."""
        return self.path / "scores"

    @property
    def stages(self) -> Path:
        return self.path / "stages"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def resolved_config(self) -> Path:
        return self.path / "config.resolved.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    def create(self) -> None:
        """Make the directory.

        Raises
        ------
        ConfigError
            If the path is a file, holds something that is no run, or cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("the run directory is a file", where=str(self.path), fix="choose another --out")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._looks_like_a_run():
            raise ConfigError(
                "the directory is not empty and holds no run of selfcal",
                where=str(self.path),
                fix="choose another --out, so that nothing of yours is overwritten",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the run directory: {error.strerror}",
                where=str(self.path),
                fix="choose another --out or change the permissions",
            ) from error

    def _looks_like_a_run(self) -> bool:
        return self.provenance.exists() or (self.path / ".lock").exists()

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the directory for this process alone; with ``wait``, as soon as nobody else holds it.

        The kernel drops the lock with the process that holds it, however that ends: no lock
        outlives a killed run. What such a run left half-written is removed.

        Raises
        ------
        ConfigError
            If another process holds it.
        """
        self.create()
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot write in the run directory: {error.strerror}", where=str(self.path)
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
                raise ConfigError(
                    f"another selfcal process (id {holder}) is working on this run",
                    where=str(self.path),
                    fix="wait until it ends, or choose another --out",
                ) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            remove_leftovers(self.path)
            yield
        finally:
            os.close(descriptor)

    def write_provenance(self, seed: int, command: list[str], inputs: Mapping[str, str]) -> None:
        """Write ``provenance.json``: versions, machine, seed, command line, SHA-256 of the input files."""
        write_json(self.provenance, provenance(seed, command, inputs))


def provenance(seed: int, command: list[str], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Where the numbers of a run come from, as plain values."""
    import torch  # slow to import: every stage needs it, but not every verb

    versions: dict[str, str | None] = {"selfcal": selfcal.__version__, "python": platform.python_version()}
    for name in PROVENANCE_LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "git_commit": git_commit(),
        "seed": seed,
        "command": command,
        "inputs_sha256": dict(sorted(inputs.items())),
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def git_commit() -> dict[str, Any] | None:
    """Commit of the checkout that selfcal runs from, and whether files differ from it; None outside one."""
    root = Path(selfcal.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changed)}


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return answer.stdout.strip()
