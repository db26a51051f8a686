"""Apply flavour-tagging scale factors to the jets of a NanoAOD file: awkward, uproot and correctionlib only.

    python apply_scale_factors.py results/correctionlib.json nano.root --tagger SelfCal

Per event, with the pseudo-continuous scale factors of all its jets inside the calibrated range,

    w = Π_jets SF(flavour, |eta|, pT, discriminant)

Jets outside the range of the calibration are no candidates for tagging and do not enter. A jet inside it
that has no score or whose bin was not measured has no scale factor: it is ``None``, and so is the weight of
its event. The
analysis has to decide about those events; a weight of 1 would be a claim that nobody measured.

The discriminant must be the one that was calibrated. Here it is computed from ParticleNet's scores in
NanoAOD v12 or later: with B = p_b/(p_b + p_u) and C = p_c/(p_c + p_u),

    D_b = ln[ p_b / (f_c p_c + (1 − f_c) p_u) ] = ln[ B/(1 − B) / (f_c C/(1 − C) + 1 − f_c) ]
"""

from __future__ import annotations

import argparse
import sys

import awkward as ak
import correctionlib
import numpy as np
import uproot

CHARM_FRACTION = 0.2
"""f_c of the discriminant that was calibrated."""
BRANCHES = ("Jet_pt", "Jet_eta", "Jet_hadronFlavour", "Jet_btagPNetB", "Jet_btagPNetCvL")


def read_jets(path: str) -> ak.Array:
    """Jets of every event: pt, abseta, flavor, discriminant, and whether they have a score."""
    with uproot.open(path) as file:
        events = file["Events"].arrays(BRANCHES)
    b_score, c_score = events.Jet_btagPNetB, events.Jet_btagPNetCvL
    scored = (b_score > 0) & (b_score < 1) & (c_score >= 0) & (c_score < 1)
    b_score, c_score = ak.where(scored, b_score, 0.5), ak.where(scored, c_score, 0.5)
    b_to_light = b_score / (1 - b_score)
    c_to_light = c_score / (1 - c_score)
    discriminant = np.log(b_to_light / (CHARM_FRACTION * c_to_light + 1 - CHARM_FRACTION))
    return ak.zip(
        {
            "pt": events.Jet_pt,
            "abseta": abs(events.Jet_eta),
            "flavor": ak.values_astype(events.Jet_hadronFlavour, np.int64),
            "discriminant": discriminant,
            "scored": scored,
        }
    )


def in_range(jets: ak.Array, pt: tuple[float, float], abseta: float) -> ak.Array:
    """The jets that the calibration covers, scored or not."""
    return jets[(jets.pt >= pt[0]) & (jets.pt < pt[1]) & (jets.abseta < abseta)]


def scale_factors(
    corrections: correctionlib.CorrectionSet, tagger: str, jets: ak.Array, systematic: str = "central"
) -> ak.Array:
    """The scale factor of every jet, ``None`` where there is none."""
    flat = ak.flatten(jets)
    place = [ak.to_numpy(flat[name]) for name in ("flavor", "abseta", "pt", "discriminant")]
    known = ak.to_numpy(flat.scored) & (corrections[f"{tagger}_shape_status"].evaluate(*place) > 0)
    values = np.full(len(flat), np.nan)
    measured = [column[known] for column in place]
    values[known] = corrections[f"{tagger}_shape"].evaluate(systematic, *measured)
    return ak.unflatten(ak.mask(values, known), ak.num(jets))


def event_weights(factors: ak.Array) -> ak.Array:
    """The product over the jets of each event, ``None`` where a jet has no scale factor."""
    complete = ~ak.any(ak.is_none(factors, axis=1), axis=1)
    return ak.mask(ak.prod(factors, axis=1), complete)


def main(arguments: list[str]) -> int:
    """Print the weights of a file: nominal, and total uncertainty up and down."""
    parser = argparse.ArgumentParser(description="Apply scale factors to the jets of a NanoAOD file.")
    parser.add_argument("corrections", help="correctionlib.json of a run")
    parser.add_argument("nanoaod", help="NanoAOD file, version 12 or later")
    parser.add_argument("--tagger", default="SelfCal")
    parser.add_argument("--pt", type=float, nargs=2, default=(20.0, 250.0), help="calibrated range in GeV")
    parser.add_argument("--abseta", type=float, default=2.5, help="calibrated range in |eta|")
    options = parser.parse_args(arguments)
    corrections = correctionlib.CorrectionSet.from_file(options.corrections)
    jets = in_range(read_jets(options.nanoaod), tuple(options.pt), options.abseta)
    factors = scale_factors(corrections, options.tagger, jets)
    missing = int(ak.sum(ak.is_none(factors, axis=1)))
    print(
        f"{int(ak.sum(ak.num(jets)))} jets in the calibrated range, {missing} of them without a scale factor"
    )
    for systematic in ("central", "up", "down"):
        weights = event_weights(scale_factors(corrections, options.tagger, jets, systematic))
        mean = ak.mean(ak.drop_none(weights))
        print(f"{systematic:8} mean weight {mean:.4f} of {int(ak.count(weights))} complete events")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
