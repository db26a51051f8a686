"""What must hold for a dataset before anything is trained or measured with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcal.config.card import DataCard
from selfcal.config.run import DataConfig
from selfcal.data.flavours import FLAVOURS, SIMULATED_JETS_MIN
from selfcal.data.guards import DatasetGuard, Finding, overlap_problems
from selfcal.data.jet_reader import CHUNK_JETS, Wanted
from selfcal.data.reading import reader_of
from selfcal.data.units import units_of
from selfcal.errors import DataError
from selfcal.run.atomic import write_json
from selfcal.run.context import RunContext
from selfcal.run.digests import file_sha256


@dataclass(frozen=True)
class Checked:
    """A dataset that has been looked at: what it is, for the report, and its guard."""

    report: dict[str, Any]
    guard: DatasetGuard


def validate_dataset(
    card: DataCard, paths: Sequence[Path], root: Path, selection: DataConfig, wanted: Wanted
) -> Checked:
    """Check one dataset and describe it in plain values, without holding more than a chunk of it.

    Raises
    ------
    DataError
        Listing everything that is wrong with the dataset and not accepted by its card.
    """
    problems = _checksum_problems(card, paths, root)
    guard = DatasetGuard(card, selection)
    reader = reader_of(card.format)
    files: list[dict[str, Any]] = []
    fields: dict[tuple[str, ...], Path] = {}
    for path in paths:
        try:
            files.append({"name": path.name, "jets": reader.count(path, card), "sha256": file_sha256(path)})
            for jets in reader.chunks(path, card, wanted, CHUNK_JETS):
                guard.add(jets)
                fields.setdefault(jets.track_fields, path)
        except DataError as error:
            problems.append(str(error))
    if len(fields) > 1:
        problems.append(f"{card.name}: its files hold different track fields: {_differing(list(fields))}")
    accepted = []
    if not problems:
        for finding in guard.findings():
            if finding.guard in card.accept:
                accepted.append(
                    {"guard": finding.guard, "found": finding.text, "reason": card.accept[finding.guard]}
                )
            else:
                problems.append(finding.text + _how_to_accept(finding))
    if problems:
        raise _joined(card.name, problems)
    report = _report(card, guard, files, list(fields), accepted)
    return Checked(report | {"tracks_dropped": dict(reader.dropped)}, guard)


def _how_to_accept(finding: Finding) -> str:
    if finding.guard is None:
        return ""
    return f"; if the data are right, say 'accept: {{{finding.guard}: <reason>}}' in the data card"


def _differing(fields: Sequence[tuple[str, ...]]) -> str:
    return ", ".join(sorted(set().union(*fields) - set(fields[0]).intersection(*fields)))


def _report(
    card: DataCard,
    guard: DatasetGuard,
    files: list[dict[str, Any]],
    fields: list[tuple[str, ...]],
    accepted: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "name": card.name,
        "role": card.role,
        "region": card.region,
        "use": card.use,
        "format": card.format,
        "checked_files": True,
        "files": files,
        "track_fields": list(fields[0]) if fields else [],
        "units": units_of(card).model_dump(mode="json"),
        "conventions": card.conventions.model_dump(mode="json"),
        "scores": card.scores.model_dump(mode="json") if card.scores else None,
        "accepted": accepted,
        "jets": guard.jets,
        "tracks": guard.tracks,
        "selected": guard.selected,
        "folds": guard.folds,
        "flavours": guard.flavours if card.role == "simulation" else None,
        "missing_scores": guard.missing_scores,
        "without_tracks": guard.without_tracks,
        "negative_weights": guard.negative_weights,
        "effective_size": guard.effective_size,
        "quantiles": {name: guard.quantiles(name) for name in ("pt_gev", "d0", "d0_sigma", "dphi")},
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


def run_validate(context: RunContext) -> list[Path]:
    """The ``validate`` stage: every dataset of the run; writes ``results/validation.json``.

    Raises
    ------
    DataError
        Listing what is wrong with which dataset; then nothing is written.
    """
    checked: list[Checked] = []
    problems: list[str] = []
    given = context.config.tagger.kind == "scores"
    tracker = context.progress("datasets checked", len(context.cards))
    for index, card in enumerate(context.cards):
        root = context.data_root or context.card_folders.get(card.name, Path())
        wanted = Wanted(tracks=not given, labels=card.role == "simulation", scores=given)
        try:
            paths = context.dataset_path(card)
            checked.append(validate_dataset(card, paths, root, context.config.data, wanted))
            problems += _too_small(card, checked[-1].report)
        except DataError as error:
            problems.append(str(error))
        tracker.update(index + 1)
    reports = [one.report for one in checked]
    problems += _field_differences(reports)
    problems += overlap_problems([one.guard for one in checked])
    if problems:
        raise DataError("the datasets are not fit for use\n" + "\n".join(problems))
    output = context.directory.results / "validation.json"
    write_json(output, {"datasets": reports})
    context.reporter.close()
    context.say(render_report(reports))
    for warning in scarce_flavours(reports):
        context.say(f"WARNING: {warning}")
    return [output]


def scarce_flavours(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """The flavours of which there are too few simulated jets for a calibration, whatever the fold.

    No error: a tagger can be trained without them.
    """
    simulated = [
        one["flavours"] for one in reports if one["flavours"] is not None and one["use"] == "control"
    ]
    totals = {name: sum(flavours.get(name, 0) for flavours in simulated) for name in FLAVOURS}
    return [
        f"only {total} simulated {name} jets in all control regions: 'calibrate' will refuse them, it needs "
        f"{SIMULATED_JETS_MIN} in the derive fold; add simulation and data of a region that contains them"
        for name, total in totals.items()
        if total < SIMULATED_JETS_MIN and simulated
    ]


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
    remarks = [remark for report in reports if report["checked_files"] for remark in _remarks(report)]
    return "\n".join([*lines, *remarks])


def _remarks(report: Mapping[str, Any]) -> list[str]:
    """What a reader of the table should know of a dataset: weights, accepted findings, dropped tracks."""
    name, selected = report["name"], report["selected"]
    remarks = [] if selected else [f"{name}: NO JET IS SELECTED: no run can use it"]
    if selected and abs(report["effective_size"] - selected) > 1e-6 * selected:
        remarks.append(
            f"{name}: weights leave an effective sample of {report['effective_size']:.0f} jets"
            f" ({report['negative_weights']} weights are negative)"
        )
    remarks += [f"{name}: accepted {row['guard']}: {row['reason']}" for row in report["accepted"]]
    dropped = report["tracks_dropped"].items()
    return [*remarks, *(f"{name}: left out of tracks: {count} {what}" for what, count in dropped if count)]
