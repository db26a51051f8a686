"""The priors' prediction for histograms: exact where nothing moves, and wide enough for published data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from selfcal.cli.app import main
from selfcal.errors import DataError
from selfcal.sbi.prior_predictive import core_and_tail, prior_predictive, prior_predictive_of_files

EDGES = np.linspace(0.0, 50.0, 1001)
GAUSSIAN = 1e6 * np.diff(2 * norm.cdf(EDGES))
PAIRS = (
    ("Data2022C_NANO130X_v1", "MC2022_NANO130X_v2"),
    ("Data2022D_NANO130X_v1", "MC2022_NANO130X_v2"),
    ("Data2023C-22Sep2023_v4", "MC2023_Summer23"),
)


def test_core_and_tail_of_a_gaussian() -> None:
    core, tail = core_and_tail(GAUSSIAN, EDGES)
    assert core == pytest.approx(1.0, abs=1e-3)
    assert tail == pytest.approx(2 * norm.sf(3), rel=1e-6)


def test_a_prior_without_width_predicts_no_difference() -> None:
    found = prior_predictive("g", GAUSSIAN, GAUSSIAN, EDGES, draws=5, prior_widths=np.zeros(3))
    np.testing.assert_allclose([found.core_draws, found.tail_draws], 1.0, atol=1e-9)
    assert (found.core, found.tail) == (1.0, 1.0)


def test_the_width_of_the_core_is_the_priors() -> None:
    widths = np.array([0.1, 0.0, 0.0])
    found = prior_predictive("g", GAUSSIAN, GAUSSIAN, EDGES, draws=2000, prior_widths=widths)
    assert found.core_draws.mean() == pytest.approx(1.0, abs=0.01)
    assert found.core_draws.std() == pytest.approx(0.1, rel=0.06)


def test_data_beyond_the_prior_are_not_covered() -> None:
    wide = 1e6 * np.diff(2 * norm.cdf(EDGES / 1.5))
    assert prior_predictive("g", wide, GAUSSIAN, EDGES).covered == (False, False)


def test_an_empty_histogram_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        prior_predictive("g", 0 * GAUSSIAN, GAUSSIAN, EDGES)


@pytest.mark.parametrize(("data", "simulation"), PAIRS)
def test_the_priors_cover_the_ratios_of_an_experiment(shared_file, data, simulation) -> None:
    """Ten categories of tracks; the published ratios of 2022 and 2023."""
    files = [
        shared_file(f"published/cms_jpcalib/calibeHistoWrite_{name}.root") for name in (data, simulation)
    ]
    found = prior_predictive_of_files(*files)
    assert len(found) == 10
    assert all(0.95 < one.core < 1.12 for one in found)
    assert all(one.covered[0] for one in found)
    assert all(one.covered[1] for one in found)


def test_the_verb_prints_draws_and_refuses_to_overwrite(shared_file, tmp_path, capsys) -> None:
    names = (f"calibeHistoWrite_{name}.root" for name in PAIRS[0])
    files = [str(shared_file(f"published/cms_jpcalib/{name}")) for name in names]
    picture = tmp_path / "prior.png"
    assert main(["histograms", *files, "--prior", "--plot", str(picture)]) == 0
    assert capsys.readouterr().out.count(" yes") == 10
    assert picture.stat().st_size > 10_000
    assert main(["histograms", *files, "--prior", "--plot", str(picture)]) == 2
