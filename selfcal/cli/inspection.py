"""``selfcal inspect``: what files hold, and guessed data cards."""

from __future__ import annotations

from pathlib import Path

from selfcal.cli.execution import print_json, refuse_existing
from selfcal.errors import ConfigError


def inspect_files(files: list[Path], *, collection: str | None, card: Path | None, as_json: bool) -> None:
    """Describe ``files``; with ``card`` write the guessed card of one file there.

    Raises
    ------
    ConfigError
        If one card is asked for of several files, or exists already.
    """
    from selfcal.data.inspection import card_text, described, inspect_file
    from selfcal.run.atomic import write_text

    if card is not None and len(files) > 1:
        raise ConfigError("one card for several files", fix="inspect the files one by one")
    refuse_existing(card, "--card")
    documents = []
    for path in files:
        found = inspect_file(path, collection)
        if card is not None:
            # A relative name in a card refers to the card's folder.
            same = card.resolve().parent == path.resolve().parent
            name = path.name if same else str(path.resolve())
            found.card["files"] = [name]
            (digest,) = found.card["sha256"].values()
            found.card["sha256"] = {name: digest}
            write_text(card, card_text(found))
        documents.append(
            {
                "file": str(path),
                "format": found.contents.format,
                "jets": found.contents.n_jets,
                "jets_read": found.jets_read,
                "taggers": found.contents.taggers,
                "flavours": found.flavours,
                "datasets": found.contents.datasets,
                "ranges": found.ranges,
                "findings": [finding.text for finding in found.findings],
                "notes": found.notes,
                "card": found.card,
            }
        )
        if not as_json:
            print(described(found))
            print(f"\ncard written to {card}" if card else f"\n# a card for it\n{card_text(found)}")
    if as_json:
        print_json({"files": documents})
