"""The ``profile`` stage: exact profiles of chosen scale factors, a network of them, and how exact it is.

Exact points are kept in pieces (``checkpoints/profile/<purpose>_<i>.safetensors``), each with the digest of
all that decides it: a killed stage continues with those that are missing.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import selfcal
from selfcal.likelihood.neural_profile import NeuralProfile, accuracy, learn_profile, save_profile
from selfcal.likelihood.profile_target import (
    ExactProfile,
    ProfileTarget,
    draw_points,
    exact_profile,
    profile_target,
    rise_max,
)
from selfcal.likelihood.stage import measurement_of
from selfcal.run.atomic import finished_arrays, write_arrays, write_json
from selfcal.run.context import RunContext
from selfcal.run.digests import canonical_digest, file_sha256

PIECE = 25
"""Exact points found together, and lost together by a kill."""
NETWORK_NAME, TABLE_NAME = "profile_likelihood.safetensors", "profile_likelihood.json"


def run_profile(context: RunContext) -> list[Path]:
    """Write the network, and what it is of, how exact it is, and the points that say so.

    Raises
    ------
    ConfigError, FitError
        If the scale factors named cannot be profiled (:mod:`selfcal.likelihood.profile_target`).
    """
    torch.set_num_threads(1)
    config, results, seed = context.config.neural_profile, context.directory.results, context.config.seed
    measured = measurement_of(results, context.config.fit, seed)
    target = profile_target(measured.factors.ratios, measured.result, config)
    taught, files = exact_points(context, target, "taught", config.points, 2 * seed)
    judged, more = exact_points(context, target, "judged", config.test_points, 2 * seed + 1)
    network = learn_profile(target, taught, config, seed)
    found = accuracy(network, target, judged, rise_max(len(target.best), config.level))
    table = {
        **description(target, measured.factors.measured.tolist()),
        "tagger": context.config.tagger.name,
        "blinded": measured.blinded,
        "level": config.level,
        "points": int(taught.converged.sum()),
        "accuracy": asdict(found),
        "judged": judged_points(network, target, judged),
    }
    write_json(results / TABLE_NAME, table)
    save_profile(results / NETWORK_NAME, network)
    context.say(
        f"profile: {len(target.best)} scale factors, error of −2 ln λ {found.mean:.2g} on average, "
        f"{found.largest:.2g} at most, on {found.points} fresh points up to {found.rise_max:.3g}"
    )
    return [results / TABLE_NAME, results / NETWORK_NAME, *files, *more]


def description(target: ProfileTarget, measured: list[int]) -> dict[str, Any]:
    """What the inputs of the network are; ``row`` counts in ``scale_factors.json``."""
    binning_of = [(row.flavour, row.kinematic_bin, row.working_point) for row in target.rows]
    spread = np.outer(target.best, target.best) * target.covariance
    return {
        "schema_version": 1,
        "inputs": [
            {
                "row": measured[slot],
                "flavour": flavour,
                "kinematic_bin": kinematic_bin,
                "working_point": point,
                "best_fit": float(best),
                "uncertainty": float(sigma),
            }
            for slot, (flavour, kinematic_bin, point), best, sigma in zip(
                target.slots, binning_of, target.best, np.sqrt(np.diag(spread)), strict=True
            )
        ],
        "covariance": spread.tolist(),
        "log_covariance": target.covariance.tolist(),
    }


def judged_points(network: NeuralProfile, target: ProfileTarget, exact: ExactProfile) -> dict[str, Any]:
    """−2 ln λ at the fresh points: exact, by the network, and by the parabola in the logarithms."""
    values = exact.values[exact.converged]
    with torch.no_grad():
        found = network(torch.from_numpy(values)).numpy()
    return {
        "exact": exact.rise[exact.converged].tolist(),
        "network": found.tolist(),
        "parabola": (target.whitened(values) ** 2).sum(axis=1).tolist(),
    }


def exact_points(
    context: RunContext, target: ProfileTarget, purpose: str, number: int, seed: int
) -> tuple[ExactProfile, list[Path]]:
    """The exact profile at ``number`` points, computed or taken over piece by piece, and the files of
    these."""
    config = context.config.neural_profile
    values = draw_points(target, number, config.level, seed)
    facts = {
        "version": selfcal.__version__,
        "templates": file_sha256(context.directory.results / "templates.json"),
        "fit": context.config.fit.model_dump(mode="json"),
        "slots": list(target.slots),
    }
    parts, files = [], []
    tracker = context.progress(f"exact profile, points {purpose}", number)
    for start in range(0, number, PIECE):
        piece = values[start : start + PIECE]
        path = context.directory.checkpoints / "profile" / f"{purpose}_{start // PIECE}.safetensors"
        key = canonical_digest({**facts, "values": piece.tolist()})
        part = finished_piece(path, key)
        if part is None:
            part = exact_profile(target, piece)
            write_arrays(path, {name: getattr(part, name) for name in PIECE_ARRAYS}, {"key": key})
        parts.append(part)
        files.append(path)
        tracker.update(min(start + PIECE, number))
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PIECE_ARRAYS}
    return ExactProfile(**joined), files


PIECE_ARRAYS = ("values", "rise", "gradient", "converged")


def finished_piece(path: Path, key: str) -> ExactProfile | None:
    """The points in ``path`` if it is whole and of this ``key``."""
    arrays = finished_arrays(path, key)
    return None if arrays is None else ExactProfile(**arrays)
