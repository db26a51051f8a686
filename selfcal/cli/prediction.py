"""``selfcal predict``: the scores of a run's tagger, written into files."""

from __future__ import annotations

from pathlib import Path

from selfcal.cli.execution import print_json, refuse_existing
from selfcal.config.card import DataCard
from selfcal.config.loading import load_card
from selfcal.errors import ConfigError, DataError
from selfcal.run.progress import reporter_for


def predict_files(
    run: Path,
    files: list[Path],
    *,
    card: Path | None,
    friend: bool,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score ``files`` with the final tagger of ``run``, into ``out`` or ``<run>/predictions``.

    Raises
    ------
    ConfigError
        If an output exists already, or two files would have the same one.
    """
    from selfcal.data.reading import count_jets
    from selfcal.tagger.bundle import load_bundle
    from selfcal.training.prediction import write_copy, write_friend

    bundle = load_bundle(_tagger_folder(run))
    target = out or run / "predictions"
    plan = []
    for path in files:
        described = _card_for(path, card)
        copied = not friend and described.format == "ftag_hdf5"
        output = target / (path.name if copied else f"{path.stem}.friend.h5")
        refuse_existing(output, "--out")
        plan.append((path, described, copied, output))
    if len({output for *_, output in plan}) < len(plan):
        raise ConfigError("two files of the same name", where=str(target), fix="score them one by one")
    reporter = reporter_for(quiet or as_json)
    written = []
    for path, described, copied, output in plan:
        jets = count_jets(described, path)
        if not dry_run:
            tracker = reporter.track(f"scoring {path.name}", jets)
            if copied:
                write_copy(bundle, described, path, output, tracker.update)
            else:
                write_friend(bundle, described, path, jets, output, tracker.update)
        written.append({"input": str(path), "output": str(output), "jets": jets, "friend": not copied})
    reporter.close()
    if as_json:
        print_json({"tagger": bundle.config.name, "written": not dry_run, "files": written})
    elif not quiet:
        for row in written:
            print(f"{row['output']}: {row['jets']} jets" + (", not written (dry run)" if dry_run else ""))


def _tagger_folder(run: Path) -> Path:
    """The tagger after joint training, or else the one before it."""
    for name in ("tagger_final", "tagger"):
        folder = run / "checkpoints" / name
        if folder.is_dir():
            return folder
    raise DataError(
        "no tagger",
        where=str(run),
        expected="a run directory with checkpoints/tagger_final or checkpoints/tagger",
        fix="run 'selfcal train' first",
    )


def _card_for(path: Path, card: Path | None) -> DataCard:
    """The card that says how to read a file, with all its jets; without one the format's own names."""
    from selfcal.data.reading import format_of

    if card is None:
        return DataCard(
            name="predict", role="simulation", region="any", format=format_of(path), files=(str(path),)
        )
    return load_card(card).model_copy(update={"selection": ()})
