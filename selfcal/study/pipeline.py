"""The stages of a run in order, each with the configuration that decides its outputs.

Stage modules are imported when they run: ``selfcal --help`` and ``--dry-run`` need none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfcal.config.card import DataCard
from selfcal.errors import ConfigError
from selfcal.run.context import RunContext
from selfcal.run.digests import file_sha256
from selfcal.run.stages import Stage, StageState, stage_states


@dataclass(frozen=True)
class StageDescription:
    """One verb of the command line.

    ``implementation`` is ``module:function``; ``produces`` tells the user which files to expect. ``reads``
    leaves out the datasets that the stage does not depend on.
    """

    name: str
    summary: str
    implementation: str
    configuration: Callable[[RunContext], Any]
    produces: tuple[str, ...]
    reads_inputs: bool = False
    reads: Callable[[RunContext], RunContext] | None = None


_WHAT_A_FILE_MEANS = (
    "name", "role", "use", "region", "format", "sha256", "weights", "collection", "fields", "units",
    "scores", "selection", "conventions", "accept",
)  # fmt: skip


def _card_facts(cards: Iterable[DataCard], *keys: str) -> list[dict[str, Any]]:
    return [card.model_dump(mode="json", include=set(keys)) for card in cards]


def _selection(context: RunContext) -> dict[str, Any]:
    return context.config.data.model_dump(mode="json", exclude={"cards", "root", "changes", "bootstrap"})


def _resampling(context: RunContext) -> dict[str, int]:
    """The bootstrap of the data, for the stages that see data; nothing where there is none."""
    bootstrap = context.config.data.bootstrap
    return {"bootstrap": bootstrap} if bootstrap else {}


def _generate_configuration(context: RunContext) -> Any:
    cards = [card for card in context.cards if card.generate is not None]
    used = {card.generate.world for card in cards if card.generate is not None}
    worlds = context.config.generate.worlds
    return {
        "seed": context.config.seed,
        "cards": _card_facts(cards, "name", "role", "use", "region", "generate"),
        "worlds": {name: worlds[name].model_dump(mode="json") for name in sorted(used)},
    }


def _validate_configuration(context: RunContext) -> Any:
    return {
        "cards": _card_facts(context.cards, *_WHAT_A_FILE_MEANS),
        "tagger": context.config.tagger.kind,
        "selection": _selection(context),
    }


def _train_configuration(context: RunContext) -> Any:
    config = context.config
    return {
        "seed": config.seed,
        "tagger": config.tagger.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json"),
        "working_points": config.fit.model_dump(
            mode="json", include={"working_points", "working_point_region"}
        ),
    }


def _training_datasets(context: RunContext) -> RunContext:
    """The tagger sees the simulation of the control regions, and nothing else of a run."""
    return context.only("simulation", "control")


def _infer_configuration(context: RunContext) -> Any:
    return {
        "seed": context.config.seed,
        "cards": _card_facts(context.cards, "name", "composition"),
        "inference": context.config.inference.model_dump(mode="json"),
        **_resampling(context),
    }


def _calibrate_configuration(context: RunContext) -> Any:
    return {
        "seed": context.config.seed,
        "cards": _card_facts(context.cards, "name", "composition"),
        "calibration": context.config.calibration.model_dump(mode="json", exclude={"workers"}),
        **_resampling(context),
    }


def _fit_configuration(context: RunContext) -> Any:
    config = context.config
    facts = {"fit": config.fit.model_dump(mode="json"), "closure": config.closure.model_dump(mode="json")}
    alternatives = {card.name: card.variation for card in context.cards if card.variation}
    return {**facts, "alternatives": alternatives} if alternatives else facts


def _efficiencies_configuration(context: RunContext) -> Any:
    return {
        "seed": context.config.seed,
        "efficiency_map": context.config.efficiency_map.model_dump(mode="json"),
    }


def _profile_configuration(context: RunContext) -> Any:
    return {
        "seed": context.config.seed,
        "neural_profile": context.config.neural_profile.model_dump(mode="json"),
    }


def _export_configuration(context: RunContext) -> Any:
    config = context.config
    # With the extra installed later, 'selfcal export' has a submission to add.
    available = importlib.util.find_spec("hepdata_lib") is not None
    return {
        "tagger": config.tagger.name,
        "export": config.export.model_dump(mode="json"),
        "hepdata_lib": available,
    }


def _report_configuration(context: RunContext) -> Any:
    facts = {"name": context.config.name, "report": context.config.report.model_dump(mode="json")}
    # What 'selfcal calibrate --evaluate' adds is no stage, and the report shows it where it is.
    evaluation = context.directory.results / "evaluation.json"
    return facts | {"evaluation": file_sha256(evaluation)} if evaluation.exists() else facts


DESCRIPTIONS: tuple[StageDescription, ...] = (
    StageDescription(
        "generate",
        "Generate the datasets whose cards say so.",
        "selfcal.generate.stage:run_generate",
        _generate_configuration,
        ("data/<card>.h5",),
    ),
    StageDescription(
        "validate",
        "Check every dataset: fields, labels, ranges, duplicates, folds.",
        "selfcal.data.validation:run_validate",
        _validate_configuration,
        ("results/validation.json",),
        reads_inputs=True,
    ),
    StageDescription(
        "train",
        "Train the tagger on the train fold of the simulation.",
        "selfcal.training.stage:run_train",
        _train_configuration,
        ("checkpoints/", "results/"),
        reads=_training_datasets,
    ),
    StageDescription(
        "infer",
        "Infer the detector of the data from tracks.",
        "selfcal.sbi.stage:run_infer",
        _infer_configuration,
        ("results/posterior.json", "results/posterior_samples.safetensors", "results/donors.safetensors"),
    ),
    StageDescription(
        "calibrate",
        "Fit composition and calibration map.",
        "selfcal.training.calibrate_stage:run_calibrate",
        _calibrate_configuration,
        ("checkpoints/", "results/"),
    ),
    StageDescription(
        "fit",
        "Fit the scale factors on the measure fold.",
        "selfcal.study.fit_stage:run_fit_and_closure",
        _fit_configuration,
        ("results/",),
    ),
    StageDescription(
        "efficiencies",
        "Learn the efficiency of single jets.",
        "selfcal.efficiency.stage:run_efficiencies",
        _efficiencies_configuration,
        ("results/efficiency_map.json", "results/efficiency_closure.json", "results/efficiency_map/"),
    ),
    StageDescription(
        "profile",
        "Learn the profile likelihood as a network.",
        "selfcal.likelihood.profile_stage:run_profile",
        _profile_configuration,
        ("results/profile_likelihood.json", "results/profile_likelihood.safetensors"),
    ),
    StageDescription(
        "export",
        "Write the scale factors in the formats that analyses read.",
        "selfcal.export.stage:run_export",
        _export_configuration,
        ("results/",),
    ),
    StageDescription(
        "report",
        "Draw the figures and write report.html.",
        "selfcal.report.stage:run_report",
        _report_configuration,
        ("figures/", "report.html"),
    ),
)


def pipeline(context: RunContext, until: str | None = None) -> list[Stage]:
    """All stages of this run: no ``generate`` where no card asks, no ``train`` where scores are given,
    no ``infer``, ``efficiencies`` or ``profile`` unless they are enabled.

    None after ``until``, if that is given.

    Raises
    ------
    ConfigError
        If this run has no stage ``until``.
    """
    config = context.config
    enabled = {
        "infer": config.inference.enabled,
        "efficiencies": config.efficiency_map.enabled,
        "profile": config.neural_profile.enabled,
    }
    stages: list[Stage] = []
    for description in DESCRIPTIONS:
        if description.name == "generate" and not any(card.generate for card in context.cards):
            continue
        if not enabled.get(description.name, True):
            continue
        if description.name == "train" and context.config.tagger.kind == "scores":
            continue
        stages.append(
            Stage(
                description.name,
                _lazy(description.implementation),
                description.configuration,
                tuple(stage.name for stage in stages),
            )
        )
        if description.reads_inputs:
            stages[-1] = replace(stages[-1], inputs=_input_files)
        if description.reads is not None:
            stages[-1] = replace(stages[-1], reads=description.reads)
    names = [stage.name for stage in stages]
    if until is None:
        return stages
    if until not in names:
        raise ConfigError(f"this run has no stage '{until}'", expected=f"one of {', '.join(names)}")
    return stages[: names.index(until) + 1]


def _lazy(implementation: str) -> Callable[[RunContext], Sequence[Path]]:
    module, function = implementation.split(":")

    def run(context: RunContext) -> Sequence[Path]:
        outputs: Sequence[Path] = getattr(importlib.import_module(module), function)(context)
        return outputs

    return run


def _input_files(context: RunContext) -> list[Path]:
    return [path for card in context.cards if card.generate is None for path in context.dataset_path(card)]


def stages_for_verb(context: RunContext, verb: str) -> list[Stage]:
    """The stages up to ``verb``, of which all but the last must be current.

    Raises
    ------
    ConfigError
        If this run has no such stage, or an earlier one has to run first.
    """
    stages = pipeline(context)
    names = [stage.name for stage in stages]
    if verb not in names:
        raise ConfigError(
            f"this run has no stage '{verb}'",
            expected=f"one of {', '.join(names)}",
            fix="a run without 'generate' blocks generates nothing; one with given scores trains nothing; "
            "'infer', 'efficiencies' and 'profile' are there where inference.enabled, efficiency_map.enabled "
            "and neural_profile.enabled are true",
        )
    wanted = stages[: names.index(verb) + 1]
    for state in stage_states(wanted, context)[:-1]:
        if not state.current:
            raise _behind(state, verb, context)
    return wanted


def _behind(state: StageState, verb: str, context: RunContext) -> ConfigError:
    name = state.stage.name
    return ConfigError(
        f"'{verb}' needs '{name}' first ({state.reason})",
        where=str(context.directory.path),
        fix=f"run 'selfcal {name}' with the same options, or 'selfcal run' for everything",
    )
