"""What a map says of jets, and the map as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.efficiency.event_jets import EventJets, batches, padded, sorted_by_event
from selfcal.efficiency.network import EfficiencyMap, EfficiencyNetwork, NetworkShape
from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.run.sealed import read_sealed, write_sealed

ARRAYS_NAME, DESCRIPTION_NAME = "network.safetensors", "network.json"


@dataclass(frozen=True)
class LearntEfficiencies:
    """A map with the meaning of its numbers; ``working_points`` loosest first."""

    map: EfficiencyMap
    tagger: str
    simulation: str
    working_points: tuple[float, ...]
    discriminant_edges: tuple[float, ...]

    @torch.no_grad()
    def of_bags(self, jets: EventJets, batch_events: int = 2048) -> NDArray[np.float32]:
        """Efficiencies by every bag, (bags, N, K)."""
        found = np.empty((len(self.map.bags), len(jets), len(self.working_points)), dtype=np.float32)
        for events in batches(jets, batch_events):
            block = padded(jets, events)
            present = block.row >= 0
            found[:, block.row[present].numpy()] = self.map.of_bags(*block.inputs)[:, present].numpy()
        return found

    def efficiencies(
        self,
        pt_gev: NDArray[np.floating],
        eta: NDArray[np.floating],
        phi: NDArray[np.floating],
        flavour: NDArray[np.integer],
        event: NDArray[np.integer],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Efficiency and uncertainty of N jets at K working points, (N, K) each.

        Parameters
        ----------
        pt_gev, eta, phi : (N,)
        flavour : (N,) 0 b, 1 c, 2 light, 3 tau (``selfcal.data.flavours``)
        event : (N,) any number that the jets of one event share; all jets of an event have to be there

        Raises
        ------
        DataError
            If a jet has another flavour, or a number that is not finite.
        """
        finite = np.isfinite(pt_gev).all() and np.isfinite(eta).all() and np.isfinite(phi).all()
        known = np.isin(flavour, np.arange(len(FLAVOURS))).all()
        if not (finite and known and (pt_gev > 0).all()):
            raise DataError(
                "jets without efficiency",
                expected=f"finite pT > 0, η and φ, and flavours 0 to {len(FLAVOURS) - 1}",
            )
        nothing = np.zeros(len(pt_gev))
        jets = sorted_by_event(pt_gev, eta, phi, flavour, nothing.astype(np.int64), nothing, event)
        by_bag = self.of_bags(jets).astype(np.float64)
        back = np.argsort(np.argsort(event, kind="stable"), kind="stable")
        return by_bag.mean(axis=0)[back], by_bag.std(axis=0, ddof=1)[back]


def network_arrays(network: EfficiencyNetwork) -> dict[str, NDArray[Any]]:
    """The parameters of one network by name."""
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def network_of(shape: NetworkShape, arrays: Mapping[str, NDArray[Any]]) -> EfficiencyNetwork:
    """The network with these parameters, in evaluation mode."""
    network = EfficiencyNetwork(shape)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return network.eval()


def save_efficiencies(folder: Path, learnt: LearntEfficiencies) -> list[Path]:
    """Write ``network.safetensors`` and ``network.json``."""
    arrays = {
        f"{b}/{name}": value
        for b, bag in enumerate(learnt.map.bags)
        if isinstance(bag, EfficiencyNetwork)
        for name, value in network_arrays(bag).items()
    }
    content = {
        "schema_version": 1,
        "tagger": learnt.tagger,
        "simulation": learnt.simulation,
        "working_points": list(learnt.working_points),
        "discriminant_edges": list(learnt.discriminant_edges),
        "shape": asdict(learnt.map.shape),
        "bags": len(learnt.map.bags),
    }
    write_arrays(folder / ARRAYS_NAME, arrays)
    write_sealed(folder / DESCRIPTION_NAME, content)
    return [folder / ARRAYS_NAME, folder / DESCRIPTION_NAME]


def load_efficiencies(folder: Path) -> LearntEfficiencies:
    """Read what :func:`save_efficiencies` wrote.

    Raises
    ------
    DataError
        If a file is missing, damaged or of another format.
    """
    content, arrays = read_sealed(folder / DESCRIPTION_NAME), read_arrays(folder / ARRAYS_NAME)
    try:
        shape = NetworkShape(**content["shape"])
        found = EfficiencyMap(shape, int(content["bags"]))
        found.load_state_dict(
            {f"bags.{name.replace('/', '.', 1)}": torch.from_numpy(value) for name, value in arrays.items()}
        )
        return LearntEfficiencies(
            found.eval(),
            str(content["tagger"]),
            str(content["simulation"]),
            tuple(content["working_points"]),
            tuple(content["discriminant_edges"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"not an efficiency map: {error}", where=str(folder), fix="run 'selfcal efficiencies' again"
        ) from error
