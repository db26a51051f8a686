"""What a stage gets to work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from selfcal.config.card import DataCard
from selfcal.config.run import RunConfig
from selfcal.run.card_files import card_files
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import Reporter, SilentReporter, Tracker


@dataclass(frozen=True)
class RunContext:
    """One run: its configuration, datasets, directory and progress display.

    ``card_folders`` gives the folder of each card's own file by card name; relative file
    names of a card refer to ``data_root`` where it is set, else to that folder.
    """

    config: RunConfig
    cards: tuple[DataCard, ...]
    directory: RunDirectory
    reporter: Reporter = field(default_factory=SilentReporter)
    card_folders: Mapping[str, Path] = field(default_factory=dict)
    data_root: Path | None = None

    def progress(self, label: str, total: int) -> Tracker:
        """Start to show the progress of ``label``; call ``update(done)`` on what comes back."""
        return self.reporter.track(label, total)

    def say(self, text: str) -> None:
        """Tell the user one line."""
        self.reporter.say(text)

    def cards_for(self, role: str | None = None, use: str | None = None) -> tuple[DataCard, ...]:
        """The cards with this role and use (None: any), in the order of the configuration."""
        return tuple(
            card
            for card in self.cards
            if (role is None or card.role == role) and (use is None or card.use == use)
        )

    def only(self, role: str, use: str) -> RunContext:
        """The same run as if it had no other datasets than those with this role and use."""
        return replace(self, cards=self.cards_for(role, use))

    def corrected(self, card: DataCard) -> bool:
        """Whether the detector inferred from data is taken over into the jets of a dataset.

        Truth samples stay what they are: they define the nominal efficiencies.
        """
        return self.config.inference.enabled and card.role == "simulation" and card.use != "truth"

    def generated_path(self, card: DataCard) -> Path:
        """Where ``generate`` writes a dataset."""
        return self.directory.data / f"{card.name}.h5"

    def dataset_path(self, card: DataCard) -> tuple[Path, ...]:
        """The files of a dataset: those its card names, or the one that ``generate`` makes.

        Raises
        ------
        DataError
            If a file or pattern of the card matches nothing.
        """
        if card.generate is not None:
            return (self.generated_path(card),)
        return card_files(card, self.data_root or self.card_folders.get(card.name, Path()))
