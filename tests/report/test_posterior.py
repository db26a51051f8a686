"""The detector's chapter: the parameters that data determine, and every number of the file."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.errors import DataError
from selfcal.report.figures.posterior import SHOWN_MAX, corner_figure, shown_parameters
from selfcal.report.inputs import EnsembleSpread, GeneratorComparison, GeneratorRow, Posterior
from selfcal.report.style import report_style
from selfcal.report.tables import detector_checks_table, detector_table, generator_table, predictive_table


def posterior(size: int = 10) -> Posterior:
    sigma = np.linspace(0.1, 0.9, size)
    return Posterior.model_validate(
        {
            "parameters": [
                {
                    "name": f"parameter_{i}",
                    "unit": "mm" if i == 0 else "",
                    "nominal": 1.0,
                    "prior_width": 1.0,
                    "mean": 1.0 + 2 * s,
                    "uncertainty": s,
                    "contraction": 1 - s**2,
                }
                for i, s in enumerate(sigma)
            ],
            "covariance": np.diag(sigma**2).tolist(),
            "predictive": [
                {
                    "region": "all",
                    "histogram": "all",
                    "category": "all",
                    "chi2": 12.5,
                    "ndf": 10,
                    "p_value": 0.25,
                    "pull": -1.5,
                }
            ],
            "inflation": 1.3,
        }
    )


def test_the_corner_shows_the_parameters_that_data_determine_best():
    assert shown_parameters(posterior()) == list(range(SHOWN_MAX))
    with report_style():
        figure = corner_figure(posterior(3)).figure
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible) == 6
    (x,) = {round(axes.get_xlabel().count("mm"), 0) for axes in visible if "mm" in axes.get_xlabel()}
    assert x == 1
    assert all(axes.get_xlim()[0] < 1.0 < axes.get_xlim()[1] for axes in visible)


def test_tables_carry_the_numbers_of_the_file():
    content = posterior(4)
    table = detector_table(content)
    place = table.columns.index("posterior")
    assert [row[place].value for row in table.rows] == [row.mean for row in content.parameters]
    assert all(row[table.columns.index("shift / σ")].value == pytest.approx(2.0) for row in table.rows)
    predicted = predictive_table(content)
    assert predicted.rows[0][predicted.columns.index("χ²")].value == 12.5
    assert "1.30" in predicted.caption


def test_the_generator_is_judged_beside_it():
    rows = [
        GeneratorRow(region=region, quantity=quantity, chi2=80.0, ndf=40, p_value=2e-4)
        for region, quantity in (("all", "all"), ("dijet", "displaced_tracks"))
    ]
    table = generator_table(GeneratorComparison(rows=rows, noticed=True, error=0.061))
    assert [row[1].text for row in table.rows] == ["all", "displaced tracks"]
    assert "0.061" in table.caption
    assert not table.folded
    quiet = generator_table(GeneratorComparison(rows=rows, noticed=False, error=0.0))
    assert quiet.folded
    assert "does not describe" not in quiet.caption


def test_the_method_is_named_and_its_checks_stand_beside_each_other():
    given = {"mean_shift": [0.1, 0.2, 0.3], "width_ratio": [0.9, 1.0, 1.1]}
    content = posterior(3).model_copy(
        update={
            "method": "neural",
            "chain": {"sampler": "NUTS", **given},
            "ensemble": EnsembleSpread(networks=5, spread=[0.4, 0.5, 0.6]),
        }
    )
    assert "neural likelihood of single jets" in detector_table(content).caption
    assert "histograms of tracks" in detector_table(posterior(3)).caption
    table = detector_checks_table(content)
    assert table.columns == (
        "parameter", "chain: shift / σ", "chain: width ratio", "networks: spread / σ",
    )  # fmt: skip
    assert [row[1].value for row in table.rows] == given["mean_shift"]
    assert [row[3].value for row in table.rows] == [0.4, 0.5, 0.6]


def test_a_covariance_of_other_parameters_is_refused():
    wrong = posterior(3).model_copy(update={"covariance": [[1.0]]})
    with pytest.raises(DataError, match="3 parameters"):
        corner_figure(wrong)
