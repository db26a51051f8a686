"""Simulated jets, each under a detector of its own: what the neural estimators learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, prior_widths, within_ranges
from selfcal.data.folds import event_hash
from selfcal.data.jets import Jets
from selfcal.sbi.donors import Donors
from selfcal.sbi.jet_scores import JetRows, joined
from selfcal.sbi.jet_summaries import summarise
from selfcal.sbi.smearing import smear_each
from selfcal.sbi.summaries import tracks_of_jets

if TYPE_CHECKING:
    from selfcal.config.inference import InferenceConfig

Floats = NDArray[np.float64]
MULTIPLICITY = PARAMETERS.index("efficiency_shift")
"""The parameter that a wrong multiplicity of the generator looks like."""
_PASS_SEEDS = 7919
"""Between the seeds of two passes."""


def multiplicity_width(config: InferenceConfig) -> Floats:
    """The generator's multiplicity error as a move of the parameters, in prior widths, (D,)."""
    found = np.zeros(len(PARAMETERS))
    found[MULTIPLICITY] = config.multiplicity_error / prior_widths(config.prior_width)[MULTIPLICITY]
    return found


def drawn_detectors(generator: np.random.Generator, number: int, config: InferenceConfig) -> Floats:
    """u of detectors: of the prior and the multiplicity error, ``proposal_scale`` as wide, (n, D)."""
    reach = config.neural.proposal_scale * np.hypot(1.0, multiplicity_width(config))
    return np.asarray(reach * generator.standard_normal((number, len(PARAMETERS))), np.float64)


def jet_rows(jets: Jets, region: int, seed: int, theta: Floats | None = None) -> JetRows:
    """The summaries of ``jets`` as they are; ``theta``: the detector that made each, in prior widths."""
    return JetRows(
        summaries=summarise(jets, seed),
        counts=tracks_of_jets(jets),
        kinematics=np.stack(
            [np.log(jets.pt_gev.astype(np.float64)), jets.abs_eta.astype(np.float64)], axis=1
        ),
        region=np.full(len(jets), region, np.int64),
        flavour=jets.flavour.astype(np.int64),
        weight=jets.weight.astype(np.float64),
        theta=np.zeros((len(jets), 0)) if theta is None else theta,
        event=event_hash(jets.dataset, jets.run, jets.event),
    )


def sample_rows(samples: Sequence[Jets], region: int, seed: int) -> JetRows:
    """The summaries of several samples of a region as they are."""
    return joined([jet_rows(jets, region, seed) for jets in samples])


def simulated_rows(
    samples: Sequence[Sequence[Jets]],
    donors: Donors,
    config: InferenceConfig,
    seed: int,
    on_pass: Callable[[int], None] = lambda _: None,
) -> JetRows:
    """Jets of every region (``samples``) ``passes`` times, each in a pair: under a new u and under -u, with
    the same noise. The first half of the rows are the ones, the second half the others.

    Raises
    ------
    DataError
        If fields are absent.
    """
    widths, nominal = prior_widths(config.prior_width), NOMINAL.vector()
    parts: dict[float, list[JetRows]] = {1.0: [], -1.0: []}
    for number in range(config.neural.passes):
        of_pass = seed + _PASS_SEEDS * (number + 1)
        generator = np.random.default_rng([seed, number])
        for region, members in enumerate(samples):
            for jets in members:
                moves = drawn_detectors(generator, len(jets), config)
                for sign, rows in parts.items():
                    theta = within_ranges(nominal + sign * widths * moves)
                    smeared = smear_each(jets, theta, donors, of_pass)
                    rows.append(jet_rows(smeared, region, of_pass, (theta - nominal) / widths))
        on_pass(number + 1)
    return joined(parts[1.0] + parts[-1.0])
