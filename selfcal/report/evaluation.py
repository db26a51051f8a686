"""Calibration maps side by side (``results/evaluation.json``) as the report reads and lists them."""

from __future__ import annotations

from selfcal.report.inputs import EVALUATION, Content
from selfcal.report.style import percent
from selfcal.report.tables import Cell, Table, number


class EvaluationPoint(Content):
    working_point: float
    ratio: float
    error: float | None
    map_uncertainty: float | None = None


class RejectionKept(Content):
    working_point: float
    kept: float
    kept_in_data: float


class EvaluationPlace(Content):
    """One candidate in one region, for one flavour."""

    region: str
    held_out: bool
    flavour: str
    shown: EvaluationPoint
    deviation: float
    deviation_error: float | None
    auc: float
    auc_null: float
    auc_null_spread: float
    chi2_per_ndf: float | None
    w1: float
    w1_error: float
    w1_null: float
    rejection: RejectionKept | None = None


class EvaluationEntry(Content):
    name: str
    kind: str
    in_use: bool
    places: list[EvaluationPlace]
    displacement: dict[str, float] = {}
    excess_cost: dict[str, float] = {}
    clearly_better: bool = False


class Evaluation(Content):
    seed: int
    summary: list[EvaluationEntry]


def evaluation_table(evaluation: Evaluation) -> Table:
    """Every candidate in every place, sortable by flavour, region or measure."""
    columns = (
        "candidate", "flavour", "region", "held out", "WP", "ε data / calibrated", "± stat", "± map",
        "mean |ratio − 1|", "±", "AUC − null", "± null", "χ²/ndf", "W1", "W1 null", "moved by", "excess cost",
        "rejection kept", "in data",
    )  # fmt: skip
    rows = []
    for entry in evaluation.summary:
        for place in entry.places:
            shown, kept = place.shown, place.rejection
            rows.append(
                (
                    Cell(entry.name.replace("_", " "), style="strong" if entry.in_use else ""),
                    Cell(place.flavour),
                    Cell(place.region),
                    Cell("held out" if place.held_out else "control"),
                    Cell(percent(shown.working_point), shown.working_point),
                    number(shown.ratio, style="strong"),
                    number(shown.error),
                    number(shown.map_uncertainty),
                    number(place.deviation),
                    number(place.deviation_error),
                    number(place.auc - place.auc_null, 4),
                    number(place.auc_null_spread, 4),
                    number(place.chi2_per_ndf, 2),
                    number(place.w1),
                    number(place.w1_null),
                    number(entry.displacement.get(place.flavour)),
                    number(entry.excess_cost.get(place.flavour)),
                    number(kept.kept if kept else None, 2),
                    number(kept.kept_in_data if kept else None, 2),
                )
            )
    caption = (
        "Maps side by side, the one in use in bold. AUC: of a fresh classifier of data against calibrated "
        "simulation; null: the same, and W1, between halves of the simulation; W1 and the way a jet is moved "
        "(root mean square) in standard deviations of the scores; excess cost over the optimal plan; "
        "rejection at fixed b efficiency, as part of that of the uncalibrated simulation, and what it is in "
        "data. "
        f"Seed {evaluation.seed}."
    )
    return Table("table_evaluation", columns, tuple(rows), caption, (EVALUATION,))
