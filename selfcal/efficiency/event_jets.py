"""Jets by event: flat arrays in memory, padded ones for the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from selfcal.efficiency.network import EMPTY

PAIRS_MAX = 400_000


@dataclass(frozen=True)
class EventJets:
    """N jets, those of one event side by side.

    Attributes
    ----------
    pt_gev, eta, phi : (N,) float32
    flavour : (N,) int64, index into ``FLAVOURS``
    passed : (N,) int64, number of working points that the jet passes, loosest first
    weight : (N,) float64
    event : (N,) int64, 0, 1, 2, … in this order
    """

    pt_gev: NDArray[np.float32]
    eta: NDArray[np.float32]
    phi: NDArray[np.float32]
    flavour: NDArray[np.int64]
    passed: NDArray[np.int64]
    weight: NDArray[np.float64]
    event: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pt_gev)

    @property
    def n_events(self) -> int:
        """Number of events with a jet."""
        return int(self.event[-1]) + 1 if len(self) else 0

    @property
    def multiplicity(self) -> NDArray[np.int64]:
        """Jets of each event, (E,)."""
        return np.bincount(self.event, minlength=self.n_events)

    def events(self, chosen: NDArray[np.bool_]) -> EventJets:
        """The jets of the chosen events (E,), which are numbered anew."""
        kept = chosen[self.event]
        arrays = {part.name: getattr(self, part.name)[kept] for part in fields(EventJets)}
        arrays["event"] = (np.cumsum(chosen) - 1)[arrays["event"]]
        return EventJets(**arrays)


def sorted_by_event(
    pt_gev: NDArray[np.floating],
    eta: NDArray[np.floating],
    phi: NDArray[np.floating],
    flavour: NDArray[np.integer],
    passed: NDArray[np.integer],
    weight: NDArray[np.floating],
    event: NDArray[np.integer],
) -> EventJets:
    """Jets in any order, ``event`` any integers, with those of one event side by side."""
    order = np.argsort(event, kind="stable")
    ordered = event[order]
    new = np.zeros(len(order), dtype=np.int64)
    new[1:] = np.diff(ordered) != 0
    return EventJets(
        pt_gev[order].astype(np.float32),
        eta[order].astype(np.float32),
        phi[order].astype(np.float32),
        flavour[order].astype(np.int64),
        passed[order].astype(np.int64),
        weight[order].astype(np.float64),
        np.cumsum(new),
    )


def joined(parts: list[EventJets]) -> EventJets:
    """The events of all parts, one part after the other."""
    first = np.cumsum([0, *(part.n_events for part in parts[:-1])])
    arrays = {
        part.name: np.concatenate([getattr(one, part.name) for one in parts]) for part in fields(EventJets)
    }
    arrays["event"] = np.concatenate([part.event + start for part, start in zip(parts, first, strict=True)])
    return EventJets(**arrays)


@dataclass(frozen=True)
class PaddedEvents:
    """Slots of events: ``row`` (E, J) is the row of each jet in its ``EventJets``, -1 in an empty slot.

    The tensors are what the network takes, (E, J) each; empty slots hold zeros and flavour ``EMPTY``.
    """

    row: Int64[Tensor, "events jets"]
    pt_gev: Tensor
    eta: Tensor
    phi: Tensor
    flavour: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(E, J) each, in the order of the network's arguments."""
        return self.pt_gev, self.eta, self.phi, self.flavour


def padded(jets: EventJets, events: NDArray[np.integer], slots: int | None = None) -> PaddedEvents:
    """The events with these numbers, in this order, with as many slots as the largest has jets (or more)."""
    counts = jets.multiplicity
    starts = np.cumsum(counts) - counts
    wide = int(counts[events].max()) if slots is None else slots
    slot = np.arange(wide)
    row = np.where(slot < counts[events][:, None], starts[events][:, None] + slot, -1)
    present = torch.from_numpy(row >= 0)

    def column(values: NDArray[np.generic], filler: int) -> Tensor:
        found = torch.from_numpy(values)[torch.from_numpy(row).clamp_min(0)]
        return torch.where(present, found, torch.tensor(filler, dtype=found.dtype))

    return PaddedEvents(
        torch.from_numpy(row),
        column(jets.pt_gev, 0),
        column(jets.eta, 0),
        column(jets.phi, 0),
        column(jets.flavour, EMPTY),
    )


def batches(
    jets: EventJets, batch_events: int, rng: np.random.Generator | None = None
) -> Iterator[NDArray[np.int64]]:
    """Numbers of the events of each batch, events of like multiplicity together: little is padded.

    With ``rng``, another order of events and of batches each time. Batches are cut where they would hold more
    than ``PAIRS_MAX`` pairs of slots, which is what needs memory.
    """
    counts = jets.multiplicity
    shuffled = np.arange(len(counts)) if rng is None else rng.permutation(len(counts))
    order = shuffled[np.argsort(counts[shuffled], kind="stable")]
    starts = np.arange(0, len(order), batch_events)
    for start in starts if rng is None else rng.permutation(starts):
        chosen = order[start : start + batch_events]
        size = max(1, PAIRS_MAX // int(counts[chosen].max()) ** 2)
        for first in range(0, len(chosen), size):
            yield chosen[first : first + size]


def nearest_delta_r(jets: EventJets, batch_events: int = 4096) -> NDArray[np.float64]:
    """ΔR from each jet to the nearest other jet of its event, (N,); infinite where it is alone."""
    nearest = np.full(len(jets), np.inf)
    for events in batches(jets, batch_events):
        block = padded(jets, events)
        eta, phi = block.eta.double().numpy(), block.phi.double().numpy()
        delta_phi = (phi[:, :, None] - phi[:, None] + np.pi) % (2 * np.pi) - np.pi
        distance = np.hypot(eta[:, :, None] - eta[:, None], delta_phi)
        present = block.row.numpy() >= 0
        both = present[:, :, None] & present[:, None] & ~np.eye(eta.shape[1], dtype=bool)
        nearest[block.row.numpy()[present]] = np.where(both, distance, np.inf).min(axis=2)[present]
    return nearest
