"""The two-jet likelihood: double tagging in closed form, truth, and what pairs know more than jets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import chi2

from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError, FitError
from selfcal.likelihood.templates import Binning
from selfcal.likelihood.two_jets import (
    FractionWidths,
    PairCounts,
    PairFit,
    PairLikelihood,
    event_pairs,
    expected_counts,
    fit_pairs,
    pair_counts,
    pair_scale_factors,
    two_jets_json,
)

ONE_BIN = Binning((20.0, 250.0), (0.5,), (0.7,))
BINNING = Binning((20.0, 60.0, 250.0), (0.5, 1.5, 2.5), (0.85, 0.7, 0.5))
B_TRUE = np.array([[0.17, 0.16, 0.2, 0.47], [0.13, 0.15, 0.2, 0.52]])
OTHER = np.array([[0.86, 0.1, 0.03, 0.01], [0.84, 0.11, 0.035, 0.015]])
CLASSES = np.broadcast_to(np.array([0.66, 0.16, 0.13, 0.05])[:, None, None], (4, 2, 2))
WIDTHS = FractionWidths(0.5, 0.3)


def double_tag(observed: np.ndarray) -> PairCounts:
    """b jets and jets that are never tagged, in one kinematic bin."""
    shape = np.array([[1.0, 0.0]])
    classes = np.array([[0.7, 0.15], [0.15, 0.0]]).reshape(2, 2, 1, 1)
    b_jets = np.array([[3e8, 7e8]])
    return PairCounts(ONE_BIN, observed[None, None], classes, shape, 0 * shape + 1e-9, b_jets, b_jets)


def test_double_tagging_has_the_closed_form() -> None:
    """Tag rates A = ε(1 + f_bb), B = f_bb ε²: ε² − A ε + B = 0; its error by propagating the four counts."""
    b_jet, other = np.array([0.3, 0.7]), np.array([1.0, 0.0])
    fractions = zip((0.66, 0.2, 0.14), ((b_jet, b_jet), (b_jet, other), (other, b_jet)), strict=True)
    observed = 10000 * sum(share * np.outer(*pair) for share, pair in fractions)

    def efficiency(counts: np.ndarray) -> float:
        total = counts.sum()
        rate, both = (counts[1].sum() + counts[:, 1].sum()) / total, counts[1, 1] / total
        return float((rate + np.sqrt(rate**2 - 4 * both)) / 2)

    # The other root is f_bb ε; a prior this wide leaves the data alone.
    found = fit_pairs(double_tag(observed), FractionWidths(50.0, 1.0))
    expected = efficiency(observed)
    assert expected == pytest.approx(0.7)
    assert found.efficiency[0, 1] == pytest.approx(expected, rel=1e-3)
    variance = 0.0
    for place in np.ndindex(2, 2):
        moved = observed.copy()
        moved[place] += 0.01
        variance += ((efficiency(moved) - expected) / 0.01) ** 2 * observed[place]
    assert found.covariance[1, 1] ** 0.5 == pytest.approx(variance**0.5, rel=5e-3)


def test_pairs_of_b_jets_alone_are_as_good_as_their_jets_one_by_one() -> None:
    """Without other flavours: ε = tagged/all, σ² = ε(1 − ε)/(2 N)."""
    counts = double_tag(np.array([[900.0, 2100.0], [2100.0, 4900.0]]))
    classes = counts.classes.copy()
    classes[:] = 0
    classes[0, 0] = 1
    alone = replace(counts, classes=classes)
    for single in (False, True):
        found = fit_pairs(alone, WIDTHS, single_jets=single)
        assert found.efficiency[0, 1] == pytest.approx(0.7, abs=1e-6)
        assert found.covariance[1, 1] ** 0.5 == pytest.approx((0.21 / 20000) ** 0.5, rel=1e-4)


def drawn(seed: int, events: int, efficiency: np.ndarray, classes: np.ndarray, role: str) -> ScoredJets:
    """Events of two jets each, with classes (4, 2, 2) of pairs per pT bins of both jets."""
    random = np.random.default_rng(seed)
    pt = np.sort(random.uniform(20, 110, (events, 2)), axis=1)[:, ::-1]
    place = (pt >= 60).astype(int)
    cumulative = np.cumsum(classes[:, place[:, 0], place[:, 1]] / classes.sum(0)[*place.T], axis=0)
    of_pair = (random.random(events) > cumulative[:3]).sum(axis=0)
    other = np.stack([of_pair >= 2, of_pair % 2 == 1], axis=1)
    share = np.where(other[..., None], OTHER[place], efficiency[place])
    tag = (random.random((events, 2, 1)) > np.cumsum(share, axis=2)).sum(axis=2)
    order = random.permutation(2 * events)
    flavour = np.where(other, 2, 0).astype(np.int8)
    return ScoredJets(
        "ttbar_emu",
        np.repeat(tag.reshape(-1, 1)[order].astype(float), 4, axis=1),
        pt.reshape(-1)[order],
        np.zeros(2 * events),
        flavour.reshape(-1)[order] if role == "simulation" else np.full(2 * events, -1, dtype=np.int8),
        np.ones(2 * events),
        np.zeros(2 * events, dtype=np.int8),
        np.repeat(np.arange(events), 2)[order],
    )


def counted(seed: int, events: int, classes: np.ndarray = CLASSES) -> PairCounts:
    """Data with ``classes`` and true efficiencies; simulation with other ones."""
    simulation = drawn(10_000 + seed, 60_000, np.full((2, 4), 0.25), CLASSES, "simulation")
    data = drawn(seed, events, B_TRUE, classes, "data")
    # The discriminant itself: bin k is between the edges k − 0.5 and k + 0.5.
    values = tuple(jets.log_probability[:, 0] for jets in (data, simulation, simulation))
    return pair_counts(data, simulation, simulation, values, BINNING, 0.1)


def test_pairs_find_the_truth_with_fractions_as_wrong_as_they_may_be() -> None:
    """χ² of all efficiencies over twelve samples, each with fractions drawn from their uncertainties."""
    total, ndf = 0.0, 0
    random = np.random.default_rng(8)
    for seed in range(12):
        size = np.array([0.0, WIDTHS.mixed, WIDTHS.mixed, WIDTHS.neither])[:, None, None]
        found = fit_pairs(counted(seed, 6000, CLASSES * np.exp(size * random.normal(size=(4, 2, 2)))), WIDTHS)
        for a in range(2):
            # Shares add up to one: leave the first bin out.
            block = found.covariance[4 * a + 1 : 4 * a + 4, 4 * a + 1 : 4 * a + 4]
            difference = found.efficiency[a, 1:] - B_TRUE[a, 1:]
            total, ndf = total + difference @ np.linalg.solve(block, difference), ndf + 3
    assert 1e-3 < chi2.sf(total, ndf) < 1 - 1e-3


def test_pairs_know_more_than_their_jets_one_by_one() -> None:
    content = two_jets_json(counted(3, 20_000), FractionWidths(1.0, 0.3), blinded=False)
    assert len(content["rows"]) == len(content["single_jets"]) == 6
    for pair, single in zip(content["rows"], content["single_jets"], strict=True):
        assert pair["pairs"] < 0.75 * single["pairs"]
    goodness = content["goodness_of_fit"]
    assert goodness["statistic"] == pytest.approx(goodness["ndf"], rel=0.6)


def test_blinded_pairs_give_scale_factors_of_one() -> None:
    counts = counted(5, 6000)
    hidden = replace(counts, observed=expected_counts(counts, WIDTHS))
    assert hidden.observed.sum() == pytest.approx(counts.observed.sum())
    for row in pair_scale_factors(hidden, fit_pairs(hidden, WIDTHS)):
        assert row["value"] == pytest.approx(1.0, abs=2e-3)


def test_the_two_hardest_jets_of_an_event_are_its_pair() -> None:
    jets = drawn(1, 3, B_TRUE, CLASSES, "data")
    event, pt = np.array([7, 7, 7, 3, 3, 9]), np.array([30.0, 90, 60, 20, 50, 99])
    jets = replace(jets, event=event, pt_gev=pt)
    one, two = event_pairs(jets)
    assert sorted(zip(one.tolist(), two.tolist(), strict=True)) == [(1, 2), (4, 3)]
    alone = jets.select(np.array([True, False, False, True, False, True]))
    values = (alone.log_probability[:, 0],) * 3
    with pytest.raises(DataError, match="no event has two jets"):
        pair_counts(alone, alone, alone, values, BINNING, 0.1)


def test_the_derivative_of_the_likelihood_vanishes_at_its_expectation() -> None:
    counts = counted(2, 4000)
    hidden = replace(counts, observed=expected_counts(counts, WIDTHS))
    likelihood = PairLikelihood(hidden, WIDTHS)
    assert float(torch.func.grad(likelihood)(likelihood.start).abs().max()) < 1e-6


def test_a_bin_that_no_pair_fills_is_no_fit_and_says_what_to_do() -> None:
    observed = np.array([[0.0, 0.0], [0.0, 500.0]])
    with pytest.raises(FitError, match="no jet of any pair") as caught:
        fit_pairs(double_tag(observed), WIDTHS)
    assert "merge bins" in str(caught.value.fix)


def test_all_four_fractions_free_would_leave_one_direction_undetermined() -> None:
    """ε_b + c (ε_b − ε_l), with the fractions that go with it, gives the same expectation for any c."""
    b_jet, other, c = B_TRUE[0], OTHER[0], 0.05
    moved = (b_jet + c * other) / (1 + c)
    # Hence b = (1 + c) moved − c l.
    change = np.array([[1 + c, -c], [0.0, 1.0]])
    fractions = np.array([[0.66, 0.16], [0.13, 0.05]])
    of_moved = change.T @ fractions @ change
    assert of_moved[1, 1] == pytest.approx(0.05 - c * (0.16 + 0.13) + c**2 * 0.66, abs=1e-15)
    one_bin = replace(BINNING, pt_gev_edges=(20.0, 250.0))
    expected = []
    for shape, classes in ((b_jet, fractions), (moved, of_moved)):
        jets = 1e9 * shape[None]
        observed = np.full((1, 1, 4, 4), 100.0)
        counts = PairCounts(one_bin, observed, classes[:, :, None, None], other[None], 0 * jets, jets, jets)
        expected.append(expected_counts(counts, WIDTHS))
    np.testing.assert_allclose(expected[1], expected[0], rtol=1e-6)


def test_too_few_iterations_are_no_fit(monkeypatch) -> None:
    monkeypatch.setattr("selfcal.likelihood.two_jets.ITERATIONS_MAX", 0)
    with pytest.raises(FitError, match="the two-jet fit did not converge") as caught:
        fit_pairs(counted(2, 4000), WIDTHS)
    assert "estimated distance to the minimum inf" in str(caught.value.where)


def test_scale_factors_and_their_parts_have_the_formula_of_binomial_ratios() -> None:
    """SF = ε/ε0, σ_pairs = √(Σ C)/ε0, σ_simulation = SF √((1 − ε0)/(ε0 n)), n = (Σw)²/Σw²."""
    nominal, variance = np.array([[30.0, 50.0, 20.0, 0.0]]), np.array([[15.0, 25.0, 10.0, 0.0]])
    one_bin = replace(BINNING, pt_gev_edges=(20.0, 250.0))
    zeros = np.zeros((1, 1, 4, 4))
    counts = PairCounts(one_bin, zeros, np.zeros((2, 2, 1, 1)), nominal, nominal, nominal, variance)
    root = np.random.default_rng(2).normal(size=(4, 4))
    covariance = 1e-4 * root @ root.T
    efficiency = np.array([[0.25, 0.45, 0.2, 0.1]])
    rows = pair_scale_factors(counts, PairFit(np.array([0]), efficiency, covariance, 3.0, 2))
    # The tightest point has no simulated jet: no scale factor.
    assert [row["working_point"] for row in rows] == list(BINNING.working_points[:2])
    for row, first, before in zip(rows, (1, 2), (0.7, 0.2), strict=True):
        passed = efficiency[0, first:].sum()
        assert row["value"] == pytest.approx(passed / before, rel=1e-12)
        assert row["pairs"] == pytest.approx(covariance[first:, first:].sum() ** 0.5 / before, rel=1e-12)
        of_simulation = passed / before * ((1 - before) / before / (100.0**2 / 50.0)) ** 0.5
        assert row["simulation_statistics"] == pytest.approx(of_simulation, rel=1e-12)
        assert row["total"] ** 2 == pytest.approx(row["pairs"] ** 2 + of_simulation**2, rel=1e-12)
        assert row["pt_gev"] == [20.0, 250.0]


def test_the_pair_of_an_event_is_its_two_hardest_jets_whatever_the_order() -> None:
    """Against a loop over the events."""
    random = np.random.default_rng(4)
    jets = drawn(1, 40, B_TRUE, CLASSES, "data")
    jets = replace(jets, event=random.integers(0, 30, 80), pt_gev=random.permutation(80) + 20.0)
    expected = set()
    for event in np.unique(jets.event):
        inside = np.flatnonzero(jets.event == event)
        if len(inside) > 1:
            hardest = inside[np.argsort(-jets.pt_gev[inside])]
            expected.add((int(hardest[0]), int(hardest[1])))
    one, two = event_pairs(jets)
    assert set(zip(one.tolist(), two.tolist(), strict=True)) == expected
    assert len(one) == len(expected)
    none = jets.select(np.zeros(80, dtype=bool))
    assert [len(part) for part in event_pairs(none)] == [0, 0]


def test_weights_are_summed_pair_by_pair_and_jet_by_jet() -> None:
    """Against loops; a pair has the weight of its event."""
    random = np.random.default_rng(6)
    data, simulation = drawn(3, 150, B_TRUE, CLASSES, "data"), drawn(4, 200, B_TRUE, CLASSES, "simulation")
    data, simulation = (
        replace(jets, weight=random.uniform(0.5, 2.0, 1 + jets.event.max())[jets.event])
        for jets in (data, simulation)
    )
    values = tuple(jets.log_probability[:, 0] for jets in (data, simulation, simulation))
    counts = pair_counts(data, simulation, simulation, values, BINNING, 0.1)
    observed, classes = np.zeros_like(counts.observed), np.zeros_like(counts.classes)
    for jets, table in ((data, observed), (simulation, classes)):
        for event in np.unique(jets.event):
            first, second = sorted(np.flatnonzero(jets.event == event), key=lambda jet: -jets.pt_gev[jet])
            p, q = (int(jets.pt_gev[jet] >= 60) for jet in (first, second))
            if table is observed:
                k, m = (int(jets.log_probability[jet, 0]) for jet in (first, second))
                observed[p, q, k, m] += jets.weight[first]
            else:
                classes[int(jets.flavour[first] != 0), int(jets.flavour[second] != 0), p, q] += jets.weight[
                    first
                ]
    assert counts.observed == pytest.approx(observed, rel=1e-12)
    assert counts.classes == pytest.approx(classes, rel=1e-12)
    sums = np.zeros((2, 2, 2, 4))  # b or other, power of the weight, p, k
    for jet in range(len(simulation)):
        place = int(simulation.pt_gev[jet] >= 60), int(simulation.log_probability[jet, 0])
        for power in (1, 2):
            sums[int(simulation.flavour[jet] != 0), power - 1][place] += simulation.weight[jet] ** power
    assert counts.nominal == pytest.approx(sums[0, 0], rel=1e-12)
    assert counts.nominal_variance == pytest.approx(sums[0, 1], rel=1e-12)
    assert counts.other == pytest.approx(sums[1, 0], rel=1e-12)
    error = np.ones((2, 4))
    error[sums[1, 0] > 0] = (sums[1, 1] ** 0.5)[sums[1, 0] > 0] / sums[1, 0][sums[1, 0] > 0]
    assert counts.other_width == pytest.approx(np.hypot(0.1, np.minimum(error, 1.0)), rel=1e-12)


@pytest.mark.parametrize("seed", [1, 4])
def test_where_whole_steps_overshoot_the_minimum_is_that_of_another_minimiser(seed: int) -> None:
    """Forty events; the efficiencies against BFGS of scipy."""
    counts = counted(seed, 40)
    found, likelihood = fit_pairs(counts, WIDTHS), PairLikelihood(counts, WIDTHS)

    def value_and_slope(theta: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(theta)
        return float(likelihood(point)), torch.func.grad(likelihood)(point).numpy()

    other = minimize(
        value_and_slope, likelihood.start.numpy(), jac=True, method="BFGS", options={"gtol": 1e-8}
    )
    efficiency = likelihood.efficiency(torch.from_numpy(other.x)).numpy()
    assert found.efficiency == pytest.approx(efficiency, abs=1e-5)


PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


def test_a_fraction_parameter_makes_its_own_class_more_frequent() -> None:
    """One standard deviation of b + other: exp(σ) as many of them, before the normalisation."""
    counts = counted(7, 2000)
    likelihood = PairLikelihood(counts, WIDTHS)
    start, step = likelihood.start, torch.zeros_like(likelihood.start)
    first = sum(likelihood.sizes[:2])
    step[first : first + likelihood.sizes[3]] = 1.0  # the first of the three classes, in every combination
    seen = counts.observed.sum(axis=(2, 3)) > 0
    weights = [torch.from_numpy(counts.classes[a, b][seen]) for a, b in PLACES]
    weights[1] = weights[1] * np.exp(WIDTHS.mixed)
    shares = torch.stack(weights) / torch.stack(weights).sum(0)
    tags = torch.stack([likelihood.efficiency(likelihood.start), likelihood.other])
    one, two = tags[:, likelihood.one], tags[:, likelihood.two]
    rate = sum(
        share[:, None, None] * one[a][:, :, None] * two[b][:, None, :]
        for share, (a, b) in zip(shares, PLACES, strict=True)
    )
    rate = rate * start[-len(one[0]) :].exp()[:, None, None]
    assert likelihood.expected(start + step).numpy() == pytest.approx(rate.flatten().numpy(), rel=1e-9)
