"""What must hold for a dataset before anything is trained or measured with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfcal.config.card import DataCard
from selfcal.config.run import DataConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold, fold_of
from selfcal.data.hdf5 import open_native, require_dataset
from selfcal.data.hdf5_reader import read_jets
from selfcal.data.jets import Jets
from selfcal.errors import DataError
from selfcal.run.atomic import write_json
from selfcal.run.context import RunContext
from selfcal.run.stages import file_sha256

PT_GEV_RANGE = (1.0, 10_000.0)
"""A jet outside is a sign of wrong units: files hold MeV."""


def count_jets(path: Path) -> int:
    """Number of jets in a file, without reading them."""
    with open_native(path) as file:
        return int(require_dataset(file, "jets", path).shape[0])


def validate_dataset(
    card: DataCard, paths: Sequence[Path], root: Path, selection: DataConfig
) -> dict[str, Any]:
    """Check one dataset and describe it.

    Returns
    -------
    Plain values: files, track fields, number of jets and of selected jets, jets per fold and per flavour.

    Raises
    ------
    DataError
        Listing everything that is wrong with the dataset.
    """
    problems = _checksum_problems(card, paths, root)
    parts: list[Jets] = []
    files: list[dict[str, Any]] = []
    for path in paths:
        try:
            files.append({"name": path.name, "jets": count_jets(path), "sha256": file_sha256(path)})
            parts.append(read_jets(path, card.name, with_tracks=True, with_labels=card.role == "simulation"))
        except DataError as error:
            problems.append(str(error))
    if not problems:
        for path, jets in zip(paths, parts, strict=True):
            problems += [f"{path}: {problem}" for problem in content_problems(jets)]
        problems += [f"{card.name}: {problem}" for problem in duplicate_problems(parts)]
        if len({jets.track_fields for jets in parts}) > 1:
            problems.append(f"{card.name}: its files hold different track fields")
    if problems:
        raise _joined(card.name, problems)
    return {
        "name": card.name,
        "role": card.role,
        "region": card.region,
        "use": card.use,
        "checked_files": True,
        "files": files,
        "track_fields": list(parts[0].track_fields),
        **_summary(card, parts, selection),
    }


def _joined(name: str, problems: Sequence[str]) -> DataError:
    listed = "\n".join(f"- {problem}".replace("\n", "\n  ") for problem in problems)
    return DataError(f"{len(problems)} problem(s) with dataset '{name}'\n{listed}")


def _checksum_problems(card: DataCard, paths: Sequence[Path], root: Path) -> list[str]:
    """Digests of the card against the files; a digest may be given by relative path or by file name."""
    problems: list[str] = []
    unused = dict(card.sha256)
    for path in paths:
        relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        key = next((name for name in (relative, str(path), path.name) if name in card.sha256), None)
        if key is None:
            continue
        unused.pop(key, None)
        found = file_sha256(path)
        if found != card.sha256[key]:
            problems.append(f"{path}: SHA-256 is {found}, the card says {card.sha256[key]}")
    problems += [f"{name}: the card gives a SHA-256, but no such file is listed" for name in sorted(unused)]
    return problems


def content_problems(jets: Jets) -> list[str]:
    """What is wrong with values that :func:`read_jets` lets pass: none at all, implausible momenta."""
    if not len(jets):
        return ["no jets"]
    low, high = PT_GEV_RANGE
    outside = (jets.pt_gev < low) | (jets.pt_gev > high)
    if not outside.any():
        return []
    first = int(outside.argmax())
    return [
        (f"{int(outside.sum())} jets with pT outside [{low:g}, {high:g}] GeV (first: jet {first}, "
        f"{jets.pt_gev[first]:g} GeV); 'pt_btagJes' is expected in MeV")
    ]


def duplicate_problems(parts: Sequence[Jets]) -> list[str]:
    """Jets of one dataset that share (run, event, jet index), over all its files."""
    keys = np.column_stack(
        [
            np.concatenate([getattr(jets, name).astype(np.int64) for jets in parts])
            for name in ("run", "event", "jet_index")
        ]
    )
    distinct, counts = np.unique(keys, axis=0, return_counts=True)
    repeated = counts > 1
    if not repeated.any():
        return []
    run, event, index = (int(value) for value in distinct[repeated.argmax()])
    return [
        (f"{int((counts[repeated] - 1).sum())} duplicate jets "
        f"(first: run {run}, event {event}, jet index {index})")
    ]


def _summary(card: DataCard, parts: Sequence[Jets], selection: DataConfig) -> dict[str, Any]:
    folds = {fold.name.lower(): 0 for fold in Fold}
    flavours = dict.fromkeys(FLAVOURS, 0)
    n_jets = n_tracks = 0
    for jets in parts:
        n_jets += len(jets)
        n_tracks += int(jets.track_offsets[-1])
        kept = (
            (jets.pt_gev >= selection.pt_gev_min)
            & (jets.pt_gev < selection.pt_gev_max)
            & (jets.abs_eta < selection.abs_eta_max)
        )
        fold = fold_of(jets, selection.folds_for(card.role))[kept]
        for member in Fold:
            folds[member.name.lower()] += int((fold == member).sum())
        for index, name in enumerate(FLAVOURS):
            flavours[name] += int((jets.flavour[kept] == index).sum())
    return {
        "jets": n_jets,
        "tracks": n_tracks,
        "selected": sum(folds.values()),
        "folds": folds,
        "flavours": flavours if card.role == "simulation" else None,
    }


def run_validate(context: RunContext) -> list[Path]:
    """The ``validate`` stage: every dataset of the run; writes ``results/validation.json``.

    Raises
    ------
    DataError
        Listing what is wrong with which dataset; then nothing is written.
    """
    reports: list[dict[str, Any]] = []
    problems: list[str] = []
    tracker = context.progress("datasets checked", len(context.cards))
    for index, card in enumerate(context.cards):
        root = context.data_root or context.card_folders.get(card.name, Path())
        try:
            reports.append(validate_dataset(card, context.dataset_path(card), root, context.config.data))
            problems += _too_small(card, reports[-1])
        except DataError as error:
            problems.append(str(error))
        tracker.update(index + 1)
    problems += _field_differences(reports)
    if problems:
        raise DataError("the datasets are not fit for use\n" + "\n".join(problems))
    output = context.directory.results / "validation.json"
    write_json(output, {"datasets": reports})
    context.reporter.close()
    context.say(render_report(reports))
    return [output]


def _too_small(card: DataCard, report: Mapping[str, Any]) -> list[str]:
    """A control region without jets in one of the folds can neither derive nor measure."""
    if card.use != "control":
        return []
    return [
        f"{card.name}: no selected jet in the {name} fold"
        for name, count in report["folds"].items()
        if count == 0
    ]


def _field_differences(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Track fields that one dataset has and the first has not, or the other way round."""
    problems: list[str] = []
    for report in reports[1:]:
        differing = sorted(set(report["track_fields"]) ^ set(reports[0]["track_fields"]))
        if differing:
            problems.append(
                f"{report['name']} and {reports[0]['name']} differ in the track field(s) "
                f"{', '.join(differing)}: the tagger needs the same inputs everywhere"
            )
    return problems


def render_report(reports: Sequence[Mapping[str, Any]]) -> str:
    """A table for people: one line per dataset."""
    lines = [
        f"{'dataset':<22}{'jets':>9}{'selected':>10}{'train':>8}{'derive':>8}{'measure':>9}"
        + "".join(f"{name:>8}" for name in FLAVOURS)
    ]
    for report in reports:
        if not report["checked_files"]:
            note = "made by 'selfcal generate'" if report["generated"] else "files not looked at"
            lines.append(f"{report['name']:<22}  card is valid; {note}")
            continue
        folds = report["folds"]
        flavours = report["flavours"]
        lines.append(
            f"{report['name']:<22}{report['jets']:>9}{report['selected']:>10}{folds['train']:>8}"
            f"{folds['derive']:>8}{folds['measure']:>9}"
            + "".join(f"{flavours[name] if flavours else '-':>8}" for name in FLAVOURS)
        )
    return "\n".join(lines)
