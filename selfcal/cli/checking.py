"""``selfcal validate``: data cards on their own, or all datasets of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfcal.cli.execution import execute, print_json, set_log_level
from selfcal.cli.options import Options
from selfcal.config.card import DataCard
from selfcal.config.document import read_document
from selfcal.config.loading import find_configuration, is_card, joined_problems, load_card
from selfcal.config.run import DataConfig
from selfcal.errors import ConfigError
from selfcal.run.card_files import card_files


def validate_cards_or_run(options: Options) -> None:
    """Tell cards from configurations by their keys, and check them.

    Raises
    ------
    ConfigError
        If there is nothing to check, both kinds are given together, or a file is wrong.
    """
    if not options.configurations:
        raise ConfigError("nothing to validate", expected="paths of data cards or of run configurations")
    are_cards = [is_card(read_document(find_configuration(name))) for name in options.configurations]
    if not any(are_cards):
        execute("validate", options)
        return
    if not all(are_cards):
        raise ConfigError("data cards and run configurations together", fix="validate them in two commands")
    set_log_level(options.verbose)
    _validate_cards([Path(name) for name in options.configurations], options)


def _validate_cards(paths: list[Path], options: Options) -> None:
    from selfcal.data.jet_reader import Wanted
    from selfcal.data.reading import reader_of
    from selfcal.data.validation import render_report, validate_dataset

    cards: list[tuple[DataCard, Path]] = []
    problems: list[ConfigError] = []
    for path in paths:
        try:
            cards.append((load_card(path), path))
        except ConfigError as error:
            problems.append(error)
    if problems:
        raise joined_problems(problems)
    reports: list[dict[str, Any]] = []
    for card, path in cards:
        if card.generate is not None or options.dry_run:
            reports.append(
                {"name": card.name, "generated": card.generate is not None, "checked_files": False}
            )
            continue
        selection = DataConfig(cards=(str(path),))
        paths_of_card = card_files(card, path.parent)
        tracks = reader_of(card.format).contents(paths_of_card[0], card.collection).track_fields
        wanted = Wanted(tracks=bool(tracks), labels=card.role == "simulation", scores=card.scores is not None)
        reports.append(validate_dataset(card, paths_of_card, path.parent, selection, wanted).report)
    if options.as_json:
        print_json({"datasets": reports})
    elif not options.quiet:
        print(render_report(reports))
