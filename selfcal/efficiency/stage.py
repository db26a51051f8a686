"""The ``efficiencies`` stage: bags of networks on simulation, their projection on a grid, and closure.

A bag that is done is a file of its own (``checkpoints/efficiency_map/bag_<b>.safetensors``) with the digest
of all that decides it: a killed stage continues with the bags that are missing.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

import selfcal
from selfcal.config.efficiency_map import EfficiencyMapConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.efficiency.closure import closure_content
from selfcal.efficiency.event_jets import EventJets
from selfcal.efficiency.grid import Grid, GridMap, learn_grid, projected
from selfcal.efficiency.learning import learn_bag
from selfcal.efficiency.network import EfficiencyMap, EfficiencyNetwork, NetworkShape
from selfcal.efficiency.prediction import (
    LearntEfficiencies,
    network_arrays,
    network_of,
    save_efficiencies,
)
from selfcal.efficiency.samples import read_samples
from selfcal.run.atomic import content_sha256, finished_arrays, read_json, write_arrays, write_json
from selfcal.run.context import RunContext
from selfcal.run.digests import canonical_digest

FOLDER = "efficiency_map"
TABLE_NAME, CLOSURE_NAME = "efficiency_map.json", "efficiency_closure.json"


def run_efficiencies(context: RunContext) -> list[Path]:
    """Learn, project and judge; writes ``efficiency_map/`` and the two tables named above.

    Raises
    ------
    DataError
        If simulation or φ is missing (:func:`selfcal.efficiency.samples.read_samples`).
    """
    torch.set_num_threads(1)
    config, results = context.config.efficiency_map, context.directory.results
    factors = read_json(results / "scale_factors.json")
    edges = tuple(float(edge) for edge in factors["discriminant_edges"])
    points = tuple(float(point) for point in factors["working_points"])
    samples = read_samples(context, edges)
    shape = NetworkShape(len(points), config.width, config.layers, config.delta_r_max)
    networks, files = learn_bags(context, samples.learning, shape)
    found = EfficiencyMap(shape, config.bags)
    for b, network in enumerate(networks):
        found.bags[b] = network
    learnt = LearntEfficiencies(found.eval(), context.config.tagger.name, config.simulation, points, edges)
    grid = Grid(config.pt_gev_edges, config.abs_eta_edges)
    grid_map = learn_grid(grid, samples.learning, len(points))
    table = {
        **facts(learnt, config),
        "learning_jets": len(samples.learning),
        "learning_events": samples.learning.n_events,
        "rows": table_rows(learnt, grid_map, samples.learning),
    }
    closure = {**facts(learnt, config), **closure_content(samples, learnt, grid_map, config)}
    write_json(results / TABLE_NAME, table)
    write_json(results / CLOSURE_NAME, closure)
    saved = save_efficiencies(results / FOLDER, learnt)
    context.say(f"efficiencies: {config.bags} networks from {len(samples.learning)} jets")
    return [results / TABLE_NAME, results / CLOSURE_NAME, *saved, *files]


def learn_bags(
    context: RunContext, jets: EventJets, shape: NetworkShape
) -> tuple[list[EfficiencyNetwork], list[Path]]:
    """The networks of all bags, learnt or taken over from their files, and these files."""
    config = context.config.efficiency_map
    sample = content_sha256({part.name: getattr(jets, part.name) for part in fields(EventJets)}, {})
    tracker = context.progress("bags of efficiencies", config.bags)
    networks, files = [], []
    for b in range(config.bags):
        path = context.directory.checkpoints / FOLDER / f"bag_{b}.safetensors"
        seed = int(np.random.SeedSequence([context.config.seed, 2, b]).generate_state(1)[0])
        key = canonical_digest(
            {
                "version": selfcal.__version__,
                "sample": sample,
                "seed": seed,
                "working_points": shape.working_points,
                "learning": config.model_dump(mode="json", include=set(LEARNING_KEYS)),
            }
        )
        network = finished_bag(path, shape, key)
        if network is None:
            network = learn_bag(jets, shape, config, seed)
            write_arrays(path, network_arrays(network), {"key": key})
        networks.append(network)
        files.append(path)
        tracker.update(b + 1)
    return networks, files


LEARNING_KEYS = ("delta_r_max", "width", "layers", "epochs", "batch_events", "learning_rate")
"""What decides a bag, beside its jets and its seed."""


def finished_bag(path: Path, shape: NetworkShape, key: str) -> EfficiencyNetwork | None:
    """The network in ``path`` if it is whole and of this ``key``."""
    arrays = finished_arrays(path, key)
    return None if arrays is None else network_of(shape, arrays)


def facts(learnt: LearntEfficiencies, config: EfficiencyMapConfig) -> dict[str, Any]:
    """What both files begin with."""
    return {
        "schema_version": 1,
        "tagger": learnt.tagger,
        "simulation": learnt.simulation,
        "flavours": list(FLAVOURS),
        "working_points": list(learnt.working_points),
        "discriminant_edges": list(learnt.discriminant_edges),
        "delta_r_max": config.delta_r_max,
        "bags": config.bags,
        "pt_gev_edges": list(config.pt_gev_edges),
        "abs_eta_edges": list(config.abs_eta_edges),
    }


def table_rows(learnt: LearntEfficiencies, grid_map: GridMap, jets: EventJets) -> list[dict[str, Any]]:
    """The network's mean efficiency in every cell of the grid with its uncertainty, beside that by counting.

    ``value`` is null in cells without jets.
    """
    grid = grid_map.grid
    mean, spread = projected(grid, jets, learnt.of_bags(jets))
    rows = []
    for cell in range(grid.size):
        flavour, pt_bin, eta_bin = grid.place(cell)
        for k, point in enumerate(learnt.working_points):
            known = bool(np.isfinite(mean[cell, k]))
            rows.append(
                {
                    "flavour": FLAVOURS[flavour],
                    "working_point": point,
                    "pt_gev": list(grid.pt_gev_edges[pt_bin : pt_bin + 2]),
                    "abs_eta": list(grid.abs_eta_edges[eta_bin : eta_bin + 2]),
                    "jets": int(grid_map.jets[cell]),
                    "value": float(mean[cell, k]) if known else None,
                    "uncertainty": float(spread[cell, k]) if known else None,
                    "counted": float(grid_map.efficiency[cell, k]) if known else None,
                    "counted_error": float(np.sqrt(grid_map.variance[cell, k])) if known else None,
                }
            )
    return rows
