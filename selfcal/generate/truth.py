"""Stage 1: events of Pythia 8 to particle-level jets, in batches of columnar arrays.

Anti-kT R=0.4 jets of all visible particles but prompt electrons, muons and
photons; flavour by the exclusive cone label (b > c > tau > light: a hadron of
pT > 5 GeV goes to its nearest jet within 0.3); stable charged particles and
photons go to their nearest jet within 0.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.jets import ORIGINS
from selfcal.errors import ConfigError
from selfcal.generate.processes import process_named, start_pythia
from selfcal.generate.records import TruthJets, concatenate, offsets_from_counts, ranges

EVENTS_PER_BATCH = 100
EVENTS_PER_CHUNK = 10_000_000
TRUTH_JET_PT_MIN_GEV = 16.0
QUOTA_PT_MIN_GEV = 20.0
"""Jets above it count toward the number asked for."""
JET_ABS_ETA_MAX = 2.5
JET_RADIUS = 0.4
LABEL_RADIUS = 0.3
LABEL_PT_MIN_GEV = 5.0
LEPTON_PT_MIN_GEV = 10.0
CHARGED_PT_MIN_GEV = 0.4
PHOTON_PT_MIN_GEV = 1.0

WEAK_B = np.array([511, 521, 531, 541, 5122, 5132, 5232, 5332])
WEAK_C = np.array([411, 421, 431, 4122, 4132, 4232, 4332])
STRANGE = np.array([130, 310, 3122, 3112, 3222, 3312, 3322, 3334])
NEUTRINOS = np.array([12, 14, 16])
CHARGED_STABLE = np.array([11, 13, 211, 321, 2212, 3112, 3222, 3312, 3334])
_DECAY_STATUS = (91, 99)
_MAX_DECAY_DEPTH = 60


@dataclass(frozen=True)
class EventBatch:
    """All particles of E events, one after the other; ``mother`` and ``daughter`` are global rows."""

    starts: NDArray[np.int64]
    event: NDArray[np.int64]
    pdg: NDArray[np.int32]
    status: NDArray[np.int32]
    mother: NDArray[np.int64]
    daughter: NDArray[np.int64]
    momentum: NDArray[np.float64]
    energy: NDArray[np.float64]
    position: NDArray[np.float64]
    ctau_mm: NDArray[np.float64]
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class Ancestry:
    """What lies above particles in their decay chains, flags per particle asked for."""

    from_b: NDArray[np.bool_]
    from_c: NDArray[np.bool_]
    from_tau: NDArray[np.bool_]
    from_strange: NDArray[np.bool_]
    from_hadron: NDArray[np.bool_]


def batch_of(pythia: Any, n_events: int) -> EventBatch:
    """The next ``n_events`` events (failed ones are left out) as flat arrays."""
    import awkward as ak

    array = pythia.nextBatch(n_events)
    particles = array.prt
    counts = ak.to_numpy(ak.num(particles))
    starts = offsets_from_counts(counts)[:-1]
    event = np.repeat(np.arange(len(counts)), counts)
    flat = ak.flatten(particles)
    momentum, vertex = flat.p, flat.vProd
    return EventBatch(
        starts=starts,
        event=event,
        pdg=ak.to_numpy(flat.id),
        status=ak.to_numpy(flat.status),
        mother=ak.to_numpy(flat.mother1) + starts[event],
        daughter=ak.to_numpy(flat.daughter1) + starts[event],
        momentum=np.stack([ak.to_numpy(momentum[k]) for k in ("px", "py", "pz")], axis=1),
        energy=ak.to_numpy(momentum["e"]),
        position=np.stack([ak.to_numpy(ak.fill_none(vertex[k], 0.0)) for k in ("px", "py", "pz")], axis=1),
        ctau_mm=ak.to_numpy(flat.tau),
        weight=ak.to_numpy(ak.firsts(array.info.weights)),
    )


def ancestry_of(batch: EventBatch, rows: NDArray[np.int64]) -> Ancestry:
    """Walk up the decays (status codes 91-99) of all ``rows`` at once."""
    flags = np.zeros((5, len(rows)), dtype=np.bool_)
    abs_pdg, abs_status = np.abs(batch.pdg), np.abs(batch.status)
    current, active = rows.copy(), np.arange(len(rows))
    for _ in range(_MAX_DECAY_DEPTH):
        status = abs_status[current]
        is_decay = (status >= _DECAY_STATUS[0]) & (status <= _DECAY_STATUS[1])
        current, active = batch.mother[current[is_decay]], active[is_decay]
        if not len(active):
            break
        mother = abs_pdg[current]
        flags[0, active] |= np.isin(mother, WEAK_B)
        flags[1, active] |= np.isin(mother, WEAK_C)
        flags[2, active] |= mother == 15
        flags[3, active] |= np.isin(mother, STRANGE)
        flags[4, active] |= mother > 100
    return Ancestry(*flags)


def eta_phi_pt(
    momentum: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Pseudorapidity, azimuth and transverse momentum of (..., 3) momenta."""
    pt = np.hypot(momentum[..., 0], momentum[..., 1]).astype(np.float64)
    eta = np.arcsinh(momentum[..., 2] / np.maximum(pt, 1e-12))
    return eta, np.arctan2(momentum[..., 1], momentum[..., 0]).astype(np.float64), pt


def nearest_in_event(
    event: NDArray[np.int64],
    eta: NDArray[np.float64],
    phi: NDArray[np.float64],
    jet_event: NDArray[np.int64],
    jet_eta: NDArray[np.float64],
    jet_phi: NDArray[np.float64],
    n_events: int,
    radius: float,
) -> NDArray[np.int64]:
    """For each object (n,) the nearest jet of its event within ``radius``, or -1; jets sorted by event."""
    jets_in_event = np.bincount(jet_event, minlength=n_events)
    candidates = jets_in_event[event]
    which = np.repeat(np.arange(len(event)), candidates)
    jet = ranges(offsets_from_counts(jets_in_event)[:-1][event], candidates)
    dphi = np.abs(phi[which] - jet_phi[jet])
    dphi = np.minimum(dphi, 2 * np.pi - dphi)
    distance = np.hypot(eta[which] - jet_eta[jet], dphi)
    nearest = np.full(len(event), -1, dtype=np.int64)
    close = distance < radius
    which, jet, distance = which[close], jet[close], distance[close]
    order = np.argsort(-distance, kind="stable")  # the nearest is written last
    nearest[which[order]] = jet[order]
    return nearest


def cluster(
    batch: EventBatch, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Anti-kT jets of ``rows``: (event, eta, phi, pT), by event and falling pT."""
    import awkward as ak
    import fastjet

    n_events = len(batch.starts)
    inputs = ak.zip(
        {
            "px": batch.momentum[rows, 0],
            "py": batch.momentum[rows, 1],
            "pz": batch.momentum[rows, 2],
            "E": batch.energy[rows],
        },
        with_name="Momentum4D",
    )
    inputs = ak.unflatten(inputs, np.bincount(batch.event[rows], minlength=n_events))
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, JET_RADIUS)
    jets = fastjet.ClusterSequence(inputs, definition).inclusive_jets(TRUTH_JET_PT_MIN_GEV)
    event = np.repeat(np.arange(n_events), ak.to_numpy(ak.num(jets.px)))
    momentum = np.stack([ak.to_numpy(ak.flatten(jets[k])) for k in ("px", "py", "pz")], axis=1)
    eta, phi, pt = eta_phi_pt(momentum)
    central = np.abs(eta) < JET_ABS_ETA_MAX
    event, eta, phi, pt = event[central], eta[central], phi[central], pt[central]
    order = np.lexsort((-pt, event))
    return event[order], eta[order], phi[order], pt[order]


def _labels(
    batch: EventBatch,
    jet_event: NDArray[np.int64],
    jet_eta: NDArray[np.float64],
    jet_phi: NDArray[np.float64],
) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.int64]]:
    """Cone label of each jet, the row of the hadron that gave it (-1 for light), and how many b hadrons."""
    abs_pdg = np.abs(batch.pdg)
    is_b, is_c = np.isin(abs_pdg, WEAK_B), np.isin(abs_pdg, WEAK_C)
    is_tau = abs_pdg == 15
    leptonic = np.zeros(len(abs_pdg), dtype=np.bool_)
    leptonic[batch.mother[(abs_pdg == 11) | (abs_pdg == 13)]] = True
    decayed = (batch.status < 0) & (abs_pdg[batch.daughter] != abs_pdg)
    pt = np.hypot(batch.momentum[:, 0], batch.momentum[:, 1])
    rows = np.flatnonzero(decayed & (is_b | is_c | (is_tau & ~leptonic)) & (pt > LABEL_PT_MIN_GEV))
    eta, phi, hadron_pt = eta_phi_pt(batch.momentum[rows])
    jet = nearest_in_event(
        event=batch.event[rows],
        eta=eta,
        phi=phi,
        jet_event=jet_event,
        jet_eta=jet_eta,
        jet_phi=jet_phi,
        n_events=len(batch.starts),
        radius=LABEL_RADIUS,
    )
    rank = np.where(is_b[rows], 3, np.where(is_c[rows], 2, 1))
    matched = jet >= 0
    jet, rank, rows, hadron_pt = jet[matched], rank[matched], rows[matched], hadron_pt[matched]
    order = np.lexsort((hadron_pt, rank))  # heaviest, then hardest, is written last
    label = np.zeros(len(jet_event), dtype=np.int8)
    hadron = np.full(len(jet_event), -1, dtype=np.int64)
    label[jet[order]] = np.array([0, 15, 4, 5], dtype=np.int8)[rank[order]]
    hadron[jet[order]] = rows[order]
    return label, hadron, np.bincount(jet[is_b[rows]], minlength=len(jet_event))


def _vertex_index(
    jet: NDArray[np.int64], position: NDArray[np.float64], secondary: NDArray[np.bool_]
) -> NDArray[np.int16]:
    """Production vertices numbered within each jet; 0 for primary particles, equal to 1 um means the same."""
    index = np.zeros(len(jet), dtype=np.int16)
    rows = np.flatnonzero(secondary)
    if not len(rows):
        return index
    key = np.column_stack([jet[rows], np.round(position[rows] * 1e3).astype(np.int64)])
    unique, inverse = np.unique(key, axis=0, return_inverse=True)
    first_of_jet = np.searchsorted(unique[:, 0], unique[:, 0])
    index[rows] = (np.arange(len(unique)) - first_of_jet + 1)[inverse.ravel()]
    return index


def jets_of(batch: EventBatch, first_event: int, *, two_b_hadrons: bool = False) -> TruthJets:
    """Particle-level jets of a batch whose events are numbered from ``first_event``.

    ``two_b_hadrons``: only those that hold at least two weakly decaying b hadrons.
    """
    abs_pdg = np.abs(batch.pdg)
    final = np.flatnonzero((batch.status > 0) & ~np.isin(abs_pdg, NEUTRINOS))
    eta, _, pt = eta_phi_pt(batch.momentum[final])
    final = final[(np.abs(eta) < JET_ABS_ETA_MAX + 2 * JET_RADIUS) & (pt > 0.05)]
    ancestry = ancestry_of(batch, final)
    prompt = np.isin(abs_pdg[final], (11, 13, 22)) & ~ancestry.from_hadron
    jet_event, jet_eta, jet_phi, jet_pt = cluster(batch, final[~prompt])
    jet_rank = np.arange(len(jet_event)) - np.searchsorted(jet_event, jet_event)

    leptons = final[prompt & (abs_pdg[final] != 22)]
    lepton_eta, lepton_phi, lepton_pt = eta_phi_pt(batch.momentum[leptons])
    hard = lepton_pt > LEPTON_PT_MIN_GEV
    n_events = len(batch.starts)
    overlapped = nearest_in_event(
        event=batch.event[leptons[hard]], eta=lepton_eta[hard], phi=lepton_phi[hard],
        jet_event=jet_event, jet_eta=jet_eta, jet_phi=jet_phi, n_events=n_events, radius=JET_RADIUS,
    )  # fmt: skip
    keep = np.ones(len(jet_event), dtype=np.bool_)
    keep[overlapped[overlapped >= 0]] = False
    jet_event, jet_eta, jet_phi, jet_pt = jet_event[keep], jet_eta[keep], jet_phi[keep], jet_pt[keep]
    label, hadron, b_hadrons = _labels(batch, jet_event, jet_eta, jet_phi)

    eta, phi, pt = eta_phi_pt(batch.momentum[final])
    wanted = np.isin(abs_pdg[final], CHARGED_STABLE) & (pt > CHARGED_PT_MIN_GEV)
    wanted |= (abs_pdg[final] == 22) & (pt > PHOTON_PT_MIN_GEV)
    wanted &= ~prompt
    jet = np.full(len(final), -1, dtype=np.int64)
    jet[wanted] = nearest_in_event(
        event=batch.event[final[wanted]], eta=eta[wanted], phi=phi[wanted],
        jet_event=jet_event, jet_eta=jet_eta, jet_phi=jet_phi, n_events=n_events, radius=JET_RADIUS,
    )  # fmt: skip
    inside = np.flatnonzero(jet >= 0)
    inside = inside[np.argsort(jet[inside], kind="stable")]
    rows, jet = final[inside], jet[inside]
    origin, secondary = _origins(ancestry, inside)
    has_hadron = hadron >= 0
    decay = batch.position[batch.daughter[hadron]]
    jets = TruthJets(
        pt_gev=jet_pt.astype(np.float32),
        eta=jet_eta.astype(np.float32),
        phi=jet_phi.astype(np.float32),
        label=label,
        weight=batch.weight[jet_event],
        event=jet_event + first_event,
        jet_rank=jet_rank[keep].astype(np.int32),
        hadron_pdg=np.where(has_hadron, batch.pdg[hadron], 0).astype(np.int32),
        hadron_pt_gev=np.where(has_hadron, np.hypot(*batch.momentum[hadron, :2].T), 0).astype(np.float32),
        hadron_lxy_mm=np.where(has_hadron, np.hypot(*decay[:, :2].T), 0).astype(np.float32),
        hadron_ctau_mm=np.where(has_hadron, batch.ctau_mm[hadron], 0).astype(np.float32),
        offsets=offsets_from_counts(np.bincount(jet, minlength=len(jet_event))),
        momentum=batch.momentum[rows].astype(np.float32),
        position=batch.position[rows].astype(np.float32),
        charge=charge_of(batch.pdg[rows]),
        pdg=batch.pdg[rows],
        origin=origin,
        vertex=_vertex_index(jet, batch.position[rows], secondary),
    )
    return jets.select(np.flatnonzero(b_hadrons >= 2)) if two_b_hadrons else jets


def _origins(ancestry: Ancestry, inside: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """``ftagTruthOriginLabel`` and whether it is a secondary one; heavy flavour goes before strangeness."""
    from_b, from_c = ancestry.from_b[inside], ancestry.from_c[inside]
    origin = np.select(
        [from_b & from_c, from_b, from_c, ancestry.from_tau[inside], ancestry.from_strange[inside]],
        [ORIGINS.index(o) for o in ("from_bc", "from_b", "from_c", "from_tau", "other_secondary")],
        default=ORIGINS.index("primary"),
    ).astype(np.int8)
    return origin, origin != ORIGINS.index("primary")


def charge_of(pdg: NDArray[np.int32]) -> NDArray[np.int8]:
    """Charge (n,) of particles kept; leptons and Sigma-, Xi-, Omega- have the sign opposite to their code."""
    opposite = np.isin(np.abs(pdg), (11, 13, 3112, 3312, 3334))
    charge = np.sign(pdg) * np.where(opposite, -1, 1)
    return np.where(pdg == 22, 0, charge).astype(np.int8)


def generate_chunk(
    process_name: str, pythia_settings: tuple[str, ...], pythia_seed: int, chunk: int, quota: int
) -> TruthJets:
    """Generate until ``quota`` jets of pT > 20 GeV are there; everything ends with that jet.

    The same seed with a larger quota begins with the same jets.

    Raises
    ------
    ConfigError
        If Pythia refuses the settings, or a thousand events in a row give no jet.
    """
    process = process_named(process_name)
    pythia = start_pythia(process, pythia_settings, pythia_seed)
    parts: list[TruthJets] = []
    first_event, found, barren = chunk * EVENTS_PER_CHUNK, 0, 0
    while found < quota:
        batch = batch_of(pythia, EVENTS_PER_BATCH)
        jets = jets_of(batch, first_event, two_b_hadrons=process.two_b_hadrons)
        first_event += EVENTS_PER_BATCH
        new = int((jets.pt_gev > QUOTA_PT_MIN_GEV).sum())
        barren = 0 if new else barren + 1
        if barren >= 10:
            raise ConfigError(
                f"process '{process_name}' gives no jets above {QUOTA_PT_MIN_GEV:g} GeV",
                where="generate.pythia_settings",
                fix="remove settings that switch the process or its showers off",
            )
        found += new
        parts.append(jets)
    return up_to_quota(concatenate(parts), quota)


def up_to_quota(jets: TruthJets, quota: int) -> TruthJets:
    """The jets up to and including the ``quota``-th of pT > 20 GeV."""
    counted = np.cumsum(jets.pt_gev > QUOTA_PT_MIN_GEV)
    return jets.first(int(np.searchsorted(counted, quota)) + 1)
