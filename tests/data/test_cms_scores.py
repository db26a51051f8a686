"""Ratio discriminants to class probabilities and back."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.config.card import ScoreFields
from selfcal.data.cms_scores import ScoreScheme, probabilities, score_scheme, taggers_in
from selfcal.data.score_values import log_scores
from selfcal.errors import DataError


def ratios_of(p):
    """B, CvB, CvL and TauVJet of (N, 3 or 4) probabilities, as the experiment defines them."""
    b, c, light = p[:, 0], p[:, 1], p[:, 2]
    columns = {"B": b / (b + c + light), "CvB": c / (c + b), "CvL": c / (c + light)}
    return columns | ({"TauVJet": p[:, 3]} if p.shape[1] == 4 else {})


def scheme_for(columns):
    return ScoreScheme("ratios", {}, ("b", "c", "light", "tau")[: 4 if "TauVJet" in columns else 3])


def random_simplex(classes, n=5000):
    logits = np.random.default_rng(classes).normal(0, 3, (n, classes))
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)


def rounded(values, bits=10):
    """As NanoAOD stores floats: ``bits`` bits after the leading one."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)


@pytest.mark.parametrize("classes", [3, 4])
def test_ratios_give_the_probabilities_back(classes):
    p = random_simplex(classes)
    columns = ratios_of(p)
    found = probabilities(scheme_for(columns), columns, "here")
    np.testing.assert_allclose(found, p, rtol=1e-9)


@pytest.mark.parametrize("classes", [3, 4])
def test_rounding_of_the_stored_ratios_moves_probabilities_by_its_own_size(classes):
    p = random_simplex(classes)
    columns = {name: rounded(values) for name, values in ratios_of(p).items()}
    found = probabilities(scheme_for(columns), columns, "here")
    assert np.abs(found - p).max() < 2**-10
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)


def test_a_jet_without_charm_takes_b_and_light_from_b():
    columns = {"B": np.array([0.3, 1.0]), "CvB": np.zeros(2), "CvL": np.zeros(2)}
    found = probabilities(scheme_for(columns), columns, "here")
    np.testing.assert_allclose(found, [[0.3, 0, 0.7], [1, 0, 0]])


def test_saturated_ratios_give_finite_logarithms():
    values = {"B": [1.0, 0.0, 0.0], "CvB": [0.0, 1.0, 1.0], "CvL": [0.5, 1.0, 0.0]}
    columns = {name: np.array(value) for name, value in values.items()}
    found = probabilities(scheme_for(columns), columns, "here")
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], [0, 0, 1]], atol=1e-12)
    assert np.isfinite(log_scores(found, ("b", "c", "light"), "here")).all()


@pytest.mark.fault(6, "swapped columns of CMS scores")
def test_ratios_that_contradict_b_are_refused():
    columns = ratios_of(random_simplex(3, 50))
    columns["B"][7] = columns["B"][7] * 0.5 + 0.4
    with pytest.raises(DataError, match="contradicts CvB and CvL for 1 of 50 jets"):
        probabilities(scheme_for(columns), columns, "here")


@pytest.mark.parametrize("part", ["B", "CvB", "CvL", "TauVJet"])
@pytest.mark.parametrize("sentinel", [-1.0, -3.0, -3000.0])
def test_a_sentinel_empties_the_row_and_no_other(part, sentinel):
    p = random_simplex(4, 20)
    columns = ratios_of(p)
    columns[part][5] = sentinel
    found = probabilities(scheme_for(columns), columns, "here")
    assert (found[5] == -1).all()
    np.testing.assert_allclose(np.delete(found, 5, 0), np.delete(p, 5, 0), rtol=1e-9)
    logs = log_scores(found, ("b", "c", "light", "tau"), "here")
    np.testing.assert_array_equal(np.isnan(logs).all(axis=1), np.arange(20) == 5)


def test_scheme_prefers_the_full_split_and_needs_three_classes():
    split = [f"Jet_btagDeepFlav{part}" for part in ("B_b", "B_bb", "B_lepb", "C", "UDS", "G")]
    ratios = [f"Jet_btagDeepFlav{part}" for part in ("B", "CvB", "CvL")]
    scores = ScoreFields(tagger="DeepFlav")
    assert score_scheme(scores, "Jet_btag", split + ratios, "f").kind == "split"
    assert score_scheme(scores, "Jet_btag", ratios, "f").kind == "ratios"
    assert score_scheme(scores, "Jet_btag", ["Jet_btagDeepFlavB", "Jet_btagDeepFlavC"], "f").kind == "direct"
    misspelt = [*ratios[:2], "Jet_btagDeepFlavCvLX"]
    with pytest.raises(DataError, match="lacks the field") as caught:
        score_scheme(scores, "Jet_btag", misspelt, "f")
    assert caught.value.fix is not None
    assert "for Jet_btagDeepFlavCvL perhaps Jet_btagDeepFlavCvLX" in caught.value.fix
    assert taggers_in("Jet_btag", [*split, "Jet_btagCSVV2", "Jet_btagPNetB", "Jet_btagPNetCvB"]) == ()
    assert taggers_in("Jet_btag", [*ratios, "Jet_btagDeepB", "Jet_btagDeepC"]) == ("Deep", "DeepFlav")


def test_split_and_direct_schemes_add_the_parts():
    columns = {
        name: np.array([value])
        for name, value in {"B_b": 0.2, "B_bb": 0.1, "B_lepb": 0.05, "C": 0.3, "UDS": 0.25, "G": 0.1}.items()
    }
    three = ("b", "c", "light")
    np.testing.assert_allclose(
        probabilities(ScoreScheme("split", {}, three), columns, "f"), [[0.35, 0.3, 0.35]]
    )
    direct = {"B": np.array([0.6]), "C": np.array([0.3])}
    scheme = ScoreScheme("direct", {}, three)
    np.testing.assert_allclose(probabilities(scheme, direct, "f"), [[0.6, 0.3, 0.1]])
    with pytest.raises(DataError, match=r"B \+ C exceeds 1 for 1 jets"):
        probabilities(scheme, {"B": np.array([0.8]), "C": np.array([0.5])}, "f")
