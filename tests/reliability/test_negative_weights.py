"""Negative weights: they subtract where sums are formed, are refused elsewhere, and never reach POT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import ot
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.errors import DataError, SelfcalError
from selfcal.likelihood.layout import make_layout
from selfcal.penalty.choice import BUILDERS, build_penalty
from selfcal.penalty.contract import PenaltySample
from selfcal.transport import references
from tests.likelihood.conftest import random_world  # noqa: F401 - a fixture
from tests.penalty.test_contract import FEATURES, REGION

SHARES = (0.0, 0.1, 0.3, 0.6)
CONFIG = FitConfig(free_flavours=("b",))


def signed(n: int, share: float, seed: int) -> np.ndarray:
    """Weights ±1 of n jets, a share of them negative."""
    weight = np.ones(n)
    weight[np.random.default_rng(seed).permutation(n)[: round(share * n)]] = -1.0
    return weight


@pytest.mark.fault(8, "templates of the fit with 0, 10, 30 and 60 % of negative weights, in any flavour")
def test_templates_are_net_sums_or_refused(random_world, attempts) -> None:  # noqa: F811
    """sum w = N (1 - 2 share), sum w² = N: below one half the error grows, above it the fit refuses."""
    templates = random_world.templates
    for share in SHARES:
        for flavour in range(4):
            with attempts(f"{share} of flavour {flavour}"):
                content, variance = templates.calibrated.copy(), templates.calibrated_variance.copy()
                content[:, flavour] *= 1 - 2 * share
                changed = replace(templates, calibrated=content, calibrated_variance=variance)
                if share > 0.5:
                    with pytest.raises(DataError, match="negative"):
                        make_layout(changed, CONFIG)
                    continue
                layout, before = make_layout(changed, CONFIG), make_layout(templates, CONFIG)
                np.testing.assert_allclose(layout.shape, before.shape, atol=0.05)
                full = templates.calibrated[:, flavour] > 50
                ratio = layout.relative_error[:, flavour][full] / before.relative_error[:, flavour][full]
                np.testing.assert_allclose(ratio, 1 / (1 - 2 * share), rtol=0.02)


@pytest.fixture
def watched(monkeypatch) -> list[float]:
    """The smallest weight of every call of POT."""
    seen: list[float] = []

    def watch(module: Any, name: str, places: slice, words: tuple[str, str]) -> None:
        function = getattr(module, name)

        def call(*given: Any, **named: Any) -> Any:
            weights = [*given[places], *(named[word] for word in words if word in named)]
            seen.extend(float(torch.as_tensor(one).min()) for one in weights if one is not None)
            return function(*given, **named)

        monkeypatch.setattr(module, name, call)

    for module, name in ((ot, "emd"), (ot, "emd2"), (ot, "sinkhorn"), (ot.bregman, "sinkhorn_log")):
        watch(module, name, slice(0, 2), ("a", "b"))
    watch(ot, "wasserstein_1d", slice(2, 4), ("u_weights", "v_weights"))
    return seen


@pytest.mark.fault(8, "every penalty and reference with 0, 10, 30 and 60 %: nothing negative reaches POT")
def test_transport_never_gets_a_negative_mass(watched, attempts) -> None:
    generator = np.random.default_rng(4)
    start, end = generator.normal(size=(60, FEATURES)), generator.normal(0.5, size=(60, FEATURES))
    flavour = torch.as_tensor(generator.integers(0, 2, 60))
    data = PenaltySample(torch.as_tensor(end), torch.ones(60, dtype=torch.float64))
    for share in SHARES:
        weight = signed(60, share, 1)
        for name in BUILDERS:
            with attempts(f"{name} {share}"):
                penalty = build_penalty(name, FEATURES, REGION).double()
                sample = PenaltySample(torch.as_tensor(start), torch.as_tensor(weight), flavour)
                allowed = share == 0 or (penalty.signed_weights and share < 0.5)
                if allowed:
                    assert bool(torch.isfinite(penalty(sample, data)))
                else:
                    with pytest.raises(SelfcalError):
                        penalty(sample, data)
        for reference, more in ((references.exact_map, ()), (references.sinkhorn_map, (1.0,))):
            with attempts(f"{reference.__name__} {share}"):
                if share == 0:
                    assert np.isfinite(reference(start, end, *more, weight)).all()
                else:
                    with pytest.raises(DataError, match="negative weight"):
                        reference(start, end, *more, weight)
    assert watched
    assert min(watched) >= 0
