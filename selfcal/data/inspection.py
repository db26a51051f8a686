"""What a file holds, as far as it can be told without a data card, and a first guess at that card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.config.run import DataConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.guards import DatasetGuard, Finding
from selfcal.data.guessed_fields import guessed_jet_fields
from selfcal.data.jet_reader import CHUNK_JETS, Contents, Wanted
from selfcal.data.jets import Jets
from selfcal.data.reading import format_of, read_dataset, reader_of
from selfcal.errors import DataError
from selfcal.run.digests import file_sha256

_QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)
_MOMENTA = ("MeV", "GeV")
_IMPACT_PARAMETERS = (
    *("d0", "z0SinTheta"),
    *("lifetimeSignedD0Significance", "lifetimeSignedZ0SinThetaSignificance"),
)
"""What a tagger lives on; a file has them under some name."""


@dataclass(frozen=True)
class Inspection:
    """A file's contents, what its first jets look like, and a card that would read it.

    Attributes
    ----------
    ranges : minimum, 1 %, median, 99 %, maximum of each quantity, in our units
    flavours : labelled jets by class, or None without labels
    findings : what the guards say of the jets as the card reads them
    notes : what the guess rests on, and what could not be used
    """

    path: Path
    contents: Contents
    jets_read: int
    ranges: dict[str, tuple[float, ...]]
    flavours: dict[str, int] | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    card: dict[str, Any]


def inspect_file(path: Path, collection: str | None = None) -> Inspection:
    """Read up to ``CHUNK_JETS`` jets of a file of any format.

    Raises
    ------
    DataError
        If the file is missing, damaged or holds no jets that can be read (histograms, for example).
    """
    contents = reader_of(format_of(path)).contents(path, collection)
    notes: list[str] = []
    guess = _first_guess(path, contents, collection)
    guess = _with_own_names(guess, contents, path, notes)
    guess = _with_plausible_momenta(guess, contents, path, notes)
    guess = _with_scores(guess, contents, path, notes)
    jets = _first_jets(guess, path, contents)
    unknown = [name for name in _IMPACT_PARAMETERS if name not in jets.track_fields]
    if unknown and contents.format == "ftag_hdf5" and contents.track_fields:
        notes.append(f"LOOK INTO THIS: tracks without {', '.join(unknown)}; name them under 'fields.tracks'")
    guard = DatasetGuard(_card(guess), DataConfig(cards=("any",)))
    guard.add(jets)
    findings = tuple(guard.findings())
    for finding in findings:
        if finding.guard is not None:
            reason = f"found by selfcal inspect, not looked into: {finding.text}"
            guess.setdefault("accept", {})[finding.guard] = reason
            notes.append(f"LOOK INTO THIS: {finding.text}")
    flavours = {name: int((jets.flavour == index).sum()) for index, name in enumerate(FLAVOURS)}
    return Inspection(
        path=path,
        contents=contents,
        jets_read=len(jets),
        ranges=_ranges(jets),
        flavours=flavours if guess["role"] == "simulation" else None,
        findings=findings,
        notes=tuple(notes),
        card=guess,
    )


def _first_guess(path: Path, contents: Contents, collection: str | None) -> dict[str, Any]:
    """Role by the labels, region by the file name; everything else as the format has it."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).lstrip("_.-") or "dataset"
    role = "simulation" if contents.labelled else "data"
    region = re.sub(r"[^A-Za-z0-9]", "_", re.sub(r"^(sim|data|mc)_", "", name)).strip("_") or "region"
    guess: dict[str, Any] = {"name": name, "role": role, "region": region, "format": contents.format}
    guess |= {"files": [path.name], "sha256": {path.name: file_sha256(path)}}
    if collection is not None:
        guess["collection"] = collection
    return guess | _prior(role)


def _prior(role: str) -> dict[str, Any]:
    return {"composition": {"relative_uncertainty": 0.25}} if role == "data" else {}


def _with_own_names(
    guess: dict[str, Any], contents: Contents, path: Path, notes: list[str]
) -> dict[str, Any]:
    """The guess with names of jet fields that are not those of the format, where one name alone fits."""
    fields = guessed_jet_fields(contents.jet_fields) if contents.format == "ftag_hdf5" else {}
    if not fields:
        return guess
    if "label" in fields:
        labelled = {name: value for name, value in guess.items() if name != "composition"}
        labelled |= {"role": "simulation", "fields": fields}
        try:
            _first_jets(labelled, path, contents)
        except DataError as error:
            notes.append(f"no labels are read from {fields.pop('label')}: {error.problem}")
        else:
            guess = labelled
    notes.append(f"LOOK INTO THIS: names of fields that are not those of the format, guessed: {fields}")
    return guess | {"fields": fields}


def _card(guess: dict[str, Any]) -> DataCard:
    return DataCard.model_validate(guess)


def _first_jets(guess: dict[str, Any], path: Path, contents: Contents) -> Jets:
    """Up to ``CHUNK_JETS`` jets as the card reads them."""
    card = _card(guess)
    tracks = bool(contents.track_fields)
    wanted = Wanted(tracks=tracks, labels=card.role == "simulation", scores=card.scores is not None)
    chunks: Iterator[Jets] = read_dataset(card, [path], wanted, chunk_jets=CHUNK_JETS)
    return next(chunks)


def _with_plausible_momenta(
    guess: dict[str, Any], contents: Contents, path: Path, notes: list[str]
) -> dict[str, Any]:
    """The guess with another pT field or unit where the usual one gives momenta that no jet has."""
    choices: list[dict[str, Any]] = [{}]
    choices += [{"units": {"momentum": unit}} for unit in _MOMENTA]
    if contents.format == "ftag_hdf5" and {"pt", "eta"} <= set(contents.jet_fields):
        fields = {"fields": guess.get("fields", {}) | {"pt": "pt", "eta": "eta"}}
        choices += [fields, *(fields | {"units": {"momentum": unit}} for unit in _MOMENTA)]
    for choice in choices:
        guard = DatasetGuard(_card(guess | choice), DataConfig(cards=("any",)))
        guard.add(replace(_first_jets(guess | choice, path, contents), track_fields=()))
        if not any(finding.guard == "momentum_unit" for finding in guard.findings()):
            if choice:
                notes.append(f"the usual fields and units give momenta that no jet has; guessed {choice}")
            return guess | choice
    return guess


def _with_scores(guess: dict[str, Any], contents: Contents, path: Path, notes: list[str]) -> dict[str, Any]:
    """The guess with the tagger that scores most jets, and among those with most classes the last."""
    best, rank = guess, (-1.0, 0)
    for tagger in contents.taggers:
        choice = guess | {"scores": {"tagger": tagger}}
        try:
            jets = _first_jets(choice, path, contents)
        except DataError as error:
            notes.append(f"the scores of {tagger} cannot be used: {error.problem}")
            continue
        assert jets.log_score is not None
        scored = float(np.isfinite(jets.log_score).all(axis=1).mean()) if len(jets) else 0.0
        if (scored, len(jets.score_classes)) >= rank:
            best, rank = choice, (scored, len(jets.score_classes))
    others = [name for name in contents.taggers if name != best.get("scores", {}).get("tagger")]
    if others:
        notes.append(f"the file has scores of other taggers too: {', '.join(others)}")
    return best


def _ranges(jets: Jets) -> dict[str, tuple[float, ...]]:
    columns: dict[str, NDArray[Any]] = {
        "pt_gev": jets.pt_gev, "eta": jets.eta, "weight": jets.weight,
    }  # fmt: skip
    if jets.track_fields:
        columns["n_tracks"] = jets.n_tracks
    columns |= {name: jets.tracks[:, index] for index, name in enumerate(jets.track_fields)}
    if jets.log_score is not None:
        scores = np.exp(jets.log_score[np.isfinite(jets.log_score).all(axis=1)])
        columns |= {f"p({name})": scores[:, index] for index, name in enumerate(jets.score_classes)}
    return {
        name: tuple(float(q) for q in np.quantile(values, _QUANTILES))
        for name, values in columns.items()
        if len(values)
    }


def card_text(inspection: Inspection) -> str:
    """The guessed card as YAML, with what it rests on as comments."""
    lines = ["# Guessed by 'selfcal inspect': check the role, the region and everything marked below."]
    lines += [f"# {note}" for note in inspection.notes]
    if inspection.card["role"] == "data":
        lines.append("# The composition prior is the simulation's fractions with this uncertainty.")
    return "\n".join(lines) + "\n" + yaml.safe_dump(inspection.card, sort_keys=False, width=100)


def described(inspection: Inspection) -> str:
    """The inspection as a table for people."""
    contents = inspection.contents
    lines = [
        f"{inspection.path}",
        f"format       {contents.format}",
        f"jets         {contents.n_jets} ({inspection.jets_read} looked at)",
        f"labels       {_flavour_words(inspection.flavours)}",
        f"taggers      {', '.join(contents.taggers) or 'none'}",
        f"tracks       {f'{len(contents.track_fields)} fields' if contents.track_fields else 'none'}",
    ]
    if contents.datasets:
        lines.append(f"datasets     {', '.join(contents.datasets)}")
    if contents.collections:
        lines.append(f"collections  {', '.join(contents.collections)}")
    heads = ("min", "1 %", "median", "99 %", "max")
    lines += ["", f"{'quantity':<42}" + "".join(f"{head:>12}" for head in heads)]
    for name, values in inspection.ranges.items():
        lines.append(f"{name:<42}" + "".join(f"{value:>12.4g}" for value in values))
    lines += ["", *_wrapped("jet fields", contents.jet_fields)]
    return "\n".join([*lines, *_wrapped("track fields", contents.track_fields)])


def _flavour_words(flavours: dict[str, int] | None) -> str:
    if flavours is None:
        return "none"
    total = sum(flavours.values()) or 1
    return ", ".join(f"{name} {count} ({count / total:.1%})" for name, count in flavours.items())


def _wrapped(title: str, names: Sequence[str]) -> list[str]:
    """Names as lines of at most about 100 characters."""
    if not names:
        return []
    lines, line = [], f"{title}:"
    for name in names:
        if len(line) + len(name) > 100:
            lines.append(line)
            line = "   "
        line += f" {name}"
    return [*lines, line]
