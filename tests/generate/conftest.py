"""One small truth sample per process, generated once per test session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfcal.generate.pileup import MinimumBiasPool
from selfcal.generate.records import TruthJets
from selfcal.generate.truth import generate_chunk
from selfcal.generate.workers import minimum_bias_pool


@pytest.fixture(scope="session", autouse=True)
def _no_banner_on_stdout() -> None:
    """The jet finder greets on standard output the first time it runs in this process."""
    kept = os.dup(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    generate_chunk("w_charm", (), 1, 0, 1)
    os.dup2(kept, 1)
    os.close(kept)
    os.close(sink)


@pytest.fixture(scope="session")
def top_truth(_no_banner_on_stdout: None) -> TruthJets:
    """About 900 jets of ttbar_emu."""
    return generate_chunk("ttbar_emu", (), 17, 0, 800)


@pytest.fixture(scope="session")
def charm_truth(_no_banner_on_stdout: None) -> TruthJets:
    """About 450 jets of w_charm."""
    return generate_chunk("w_charm", (), 17, 0, 400)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache shared by the tests that write files."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pool(cache: Path) -> MinimumBiasPool:
    """The minimum-bias pool."""
    return minimum_bias_pool(cache)
