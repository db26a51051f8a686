"""The needed size of a hidden systematic in closed form, and the refusal to name one where none fits."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.config.study import Case, FakingConfig
from selfcal.errors import DataError
from selfcal.run.atomic import write_json
from selfcal.study.faking import hidden_systematics, needed_size

COVARIANCE = np.array([[0.04, 0.01, 0.0], [0.01, 0.09, 0.02], [0.0, 0.02, 0.01]])


def test_a_shift_along_the_response_is_explained_exactly():
    response = np.array([0.1, -0.2, 0.05])
    needed = needed_size(1.7 * response, response, COVARIANCE)
    assert needed.size == pytest.approx(1.7)
    assert needed.chi2 == pytest.approx(0.0, abs=1e-12)
    inverse = np.linalg.inv(COVARIANCE)
    assert needed.size_error == pytest.approx((response @ inverse @ response) ** -0.5)
    assert needed.chi2_unexplained == pytest.approx(1.7**2 * response @ inverse @ response)
    assert needed.fakes
    assert not needed_size(4.0 * response, response, COVARIANCE).fakes  # no plausible size


def test_it_is_the_generalised_least_squares_estimate():
    shift, response = np.array([0.3, 0.1, -0.4]), np.array([0.1, 0.2, 0.0])
    needed = needed_size(shift, response, COVARIANCE)
    sizes = needed.size + np.array([-0.01, 0.0, 0.01])
    inverse = np.linalg.inv(COVARIANCE)
    chi2 = [(shift - size * response) @ inverse @ (shift - size * response) for size in sizes]
    assert np.argmin(chi2) == 1
    assert needed.chi2 == pytest.approx(chi2[1])
    assert needed.ndf == 2


def test_a_shift_across_the_response_is_not_faked():
    needed = needed_size(np.array([0.0, 3.0]), np.array([1.0, 0.0]), np.eye(2) * 0.1)
    assert needed.size == pytest.approx(0.0)
    assert not needed.fakes
    with pytest.raises(DataError, match="changes no scale factor"):
        needed_size(np.ones(2), np.zeros(2), np.eye(2))


def test_cases_are_read_from_their_runs(tmp_path):
    def write(key, values):
        rows = [
            {
                "flavour": flavour,
                "kind": "working_point",
                "working_point": 0.77,
                "pt_gev": [20, 40],
                "abs_eta": [0, 2.5],
                "status": "measured",
                "expected_passing": 100.0,
                "value": value,
            }
            for flavour, value in zip(("b", "c", "light"), values, strict=True)
        ]
        rows.append(rows[0] | {"kind": "continuous"})
        rows.append(rows[0] | {"flavour": "tau", "expected_passing": 3.0})
        covariance = {"rows": [0, 1, 2, 4], "matrix": (np.eye(4) * 0.01).tolist()}
        write_json(
            tmp_path / key / "results" / "scale_factors.json", {"rows": rows, "covariance": covariance}
        )

    write("k1", (0.98, 1.1, 1.6))
    write("k2", (1.0, 1.0, 1.0))
    write("k3", (0.99, 1.05, 1.3))
    names = {"all": "k1", "none": "k2", "half": "k3", "lost": None}
    rows = [
        {"point": {"case": name, "seed": 1}, "key": key, "error": None if key else "failed"}
        for name, key in names.items()
    ]
    cases = [Case(name=name, at=at) for name, at in (("all", None), ("none", None), ("half", 1), ("lost", 1))]
    half, lost = hidden_systematics(FakingConfig(measured="all", nothing="none"), cases, rows, tmp_path)
    assert (half["case"], half["scale_factors"], half["fakes"]) == ("half", 3, True)
    assert half["size"] == pytest.approx(2.0)
    assert "failed or is missing" in lost["error"]
