"""Examples at the end of ``selfcal VERB --help``: what people type most."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("selfcal init mine && cd mine", "a project to start from"),
        ("selfcal run configs/demo.yaml --dry-run", "what would be done, and with which files"),
        ("selfcal run configs/demo.yaml", "do it; the same again goes on where it stopped"),
        ("selfcal inspect FILE", "what a file holds, and a guess at its data card"),
    ),
    "init": (("selfcal init mine", "configurations, data cards and schemas in a new folder"),),
    "validate": (
        ("selfcal validate cards/sim_ttbar.yaml", "one dataset: units, ranges, duplicates, labels"),
        ("selfcal validate mine.yaml", "all datasets of a run"),
    ),
    "generate": (
        ("selfcal generate configs/demo.yaml", "collisions of the demonstration"),
        ("selfcal generate configs/demo.yaml --set generate.workers=4", "on four cores"),
    ),
    "train": (
        ("selfcal train mine.yaml --set training.epochs=20", "one value changed"),
        ("torchrun --no-python --nproc-per-node 2 selfcal train mine.yaml", "shared by two processes"),
    ),
    "infer": (("selfcal infer mine.yaml", "the detector, where inference.enabled is true"),),
    "calibrate": (
        ("selfcal calibrate mine.yaml --set calibration.map.family=residual", "with another family of maps"),
        ("selfcal calibrate configs/demo.yaml --evaluate", "all families side by side (pseudo-data)"),
    ),
    "fit": (
        ("selfcal fit mine.yaml --set fit.unblind=true", "show the results of data"),
        ("selfcal fit --workspace workspace.json --json", "any pyhf workspace"),
    ),
    "efficiencies": (("selfcal efficiencies mine.yaml", "per jet, where efficiency_map.enabled is true"),),
    "profile": (("selfcal profile mine.yaml", "−2 ln λ as a network, where neural_profile.enabled is true"),),
    "export": (("selfcal export mine.yaml", "correctionlib, HEPData, Combine, CDI-like, CSV, ONNX"),),
    "report": (
        ("selfcal report mine.yaml --set report.style=atlas", "figures in the style of an experiment"),
        ("selfcal report runs/first runs/second", "two runs side by side"),
    ),
    "run": (
        ("selfcal run configs/demo.yaml --dry-run", "what would be done; nothing is written"),
        ("selfcal run mine.yaml --seed 2 --out runs/seed2", "another seed, another directory"),
        ("selfcal run mine.yaml more.yaml --set fit.unblind=true", "later files and --set win"),
    ),
    "inspect": (
        ("selfcal inspect file.h5", "flavours, ranges, taggers"),
        ("selfcal inspect nano.root --card cards/nano.yaml", "and write the guessed data card"),
    ),
    "predict": (
        ("selfcal predict runs/demo file.h5", "a copy of the file with the scores"),
        ("selfcal predict runs/demo file.root --friend", "keys and scores alone"),
    ),
    "tensorboard": (("selfcal tensorboard runs/demo --follow", "goes on as the training does"),),
    "schema": (("selfcal schema card --out card.json", "for an editor; also 'run' and 'study'"),),
    "histograms": (
        ("selfcal histograms data.root simulation.root --plot cores.pdf", "with a figure"),
        ("selfcal histograms data.root simulation.root --prior", "what the priors allow, before any fit"),
    ),
    "study run": (
        ("selfcal study run closure --dry-run", "its points, and which are done"),
        ("selfcal study run closure --config small", "a few hundred jets: everything runs, no number counts"),
        ("selfcal study run closure --from runs/demo", "what the demonstration has done is not done again"),
        ("selfcal study run closure --workers 4", "four processes of this machine"),
        ("selfcal study run mine.yaml --scheduler tcp://head:8786", "the workers of a Dask scheduler"),
    ),
    "study resume": (("selfcal study resume closure", "what is missing, and what failed"),),
    "study list": (("selfcal study list --json", "names, descriptions and numbers of points"),),
}


def examples(verb: str) -> str:
    """The examples of a verb as the end of its help; ``\\b`` keeps click from filling the lines."""
    lines = [f"  {command}\n      {meaning}" for command, meaning in EXAMPLES[verb]]
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *lines])
