"""Do the results of full pseudo-experiments cover their truth? A table of pulls and coverage, and a verdict.

An interval covers at 68 (95) % if |value − truth|/total < 1 (1.96). Pulls of scale factors are taken in the
odds of the efficiency (:func:`selfcal.likelihood.coverage.odds_pulls`), others as they are. The detectors of
the experiments are drawn from their prior, so that their posteriors must stand simulation-based calibration
and TARP; they are those of the model, so that every posterior predictive alarm is a false one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.likelihood.coverage import JETS_MIN, ONE_SIGMA, QUANTILE_95, interval_score, odds_pulls
from selfcal.sbi.diagnostics import calibration, expected_coverage
from selfcal.sbi.stage import MISFIT_MIN

Floats = NDArray[np.float64]
TARP_DRAWS = 1000
FRACTION_MIN = 0.05
"""Mean true fractions below it are listed, not judged: their priors decide them."""


@dataclass(frozen=True)
class FullLimits:
    """What 200 full pseudo-experiments must give; intervals grow with 1/√number for fewer.

    ``scale_factor`` and ``average``: 68 % coverage of each judged scale factor and of all together;
    ``detector_average`` and ``detector_pull_mean``: of the detector's parameters, of 50 experiments or more;
    ``calibration_p``: smallest p-value of their simulation-based calibration, times their number.
    """

    scale_factor: tuple[float, float] = (0.59, 0.77)
    average: tuple[float, float] = (0.63, 0.74)
    detector_average: tuple[float, float] = (0.58, 0.78)
    detector_pull_mean: float = 0.5
    calibration_p: float = 0.01
    failed_share: float = 0.005

    def for_experiments(self, number: int) -> FullLimits:
        """Distances from the nominal coverage grow as 1/√number below 200 experiments."""
        grow = max(1.0, (200 / max(number, 1)) ** 0.5)

        def stretched(low_high: tuple[float, float], factor: float) -> tuple[float, float]:
            low, high = (ONE_SIGMA + factor * (edge - ONE_SIGMA) for edge in low_high)
            return low, high

        few = max(1.0, (50 / max(number, 1)) ** 0.5)
        return FullLimits(
            stretched(self.scale_factor, grow),
            stretched(self.average, grow),
            stretched(self.detector_average, few),
            few * self.detector_pull_mean,
            self.calibration_p,
            self.failed_share,
        )


def full_coverage(experiments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of ``pseudo_experiments.json``; an experiment with ``error`` counts as failed.

    Scale factors with fewer than ``JETS_MIN`` expected jets (on average) inside or outside of their bins,
    extrapolated ones, and those that fewer than half of the experiments have, are listed, not judged.
    """
    done = [one for one in experiments if one.get("error") is None]
    failed = len(experiments) - len(done)
    limits = FullLimits().for_experiments(len(done))
    factors = _scale_factor_table(done, limits)
    detector = pull_rows(done, "detector", ("parameter",))
    uniformity = [_uniformity(members) for members in _grouped(done, "detector", ("parameter",))]
    for row, p_value in zip(detector, uniformity, strict=True):
        row["calibration_p"] = p_value
    smallest = min(1.0, min(uniformity) * len(uniformity)) if uniformity else None
    fractions = pull_rows(done, "fractions", ("region", "flavour"))
    for row in fractions:
        row["judged"] = row["truth_mean"] >= FRACTION_MIN
    judged = [row for row in factors if row["judged"]]
    average = _mean(row["coverage_68"] for row in judged)
    detector_average = _mean(row["coverage_68"] for row in detector)
    biased = [row["parameter"] for row in detector if abs(row["pull_mean"]) > limits.detector_pull_mean]
    flagged = [row["row"] for row in judged if row["exceeded"]]
    share = failed / max(len(experiments), 1)
    passed = {
        "scale_factors": bool(judged) and not flagged,
        "average": _within(average, limits.average),
        "detector": not detector or (_within(detector_average, limits.detector_average) and not biased),
        "calibration": smallest is None or smallest > limits.calibration_p,
        "failures": share <= limits.failed_share,
    }
    return {
        "schema_version": 1,
        "limits": asdict(limits),
        "scale_factors": factors,
        "detector": detector,
        "fractions": fractions,
        "joint": _joint(done),
        "seconds": _seconds(done),
        "summary": {
            "experiments": len(done),
            "failed": failed,
            "judged": len(judged),
            "average_68": average,
            "average_68_unmoved": _mean(row["coverage_68_unmoved"] for row in judged),
            "average_score": _mean(row["score"] for row in judged),
            "flagged": flagged,
            "flagged_count": len(flagged),
            "fractions_68": _mean(row["coverage_68"] for row in fractions if row["judged"]),
            "detector_68": detector_average,
            "detector_biased": biased,
            "detector_calibration_p": smallest,
            "tarp_deviation": _tarp_deviation(done),
            "predictive_alarms": _share_below(MISFIT_MIN, [one.get("predictive_p") for one in done]),
            "passed_by": passed,
            "passed": all(passed.values()),
        },
    }


def _scale_factor_table(done: Sequence[dict[str, Any]], limits: FullLimits) -> list[dict[str, Any]]:
    rows = []
    for members in _grouped(done, "scale_factors", ("row",)):
        first = members[0]

        def column(name: str, members: Sequence[dict[str, Any]] = members) -> Floats:
            return np.array([row[name] for row in members], dtype=np.float64)

        value, truth, total = column("value"), column("truth"), column("total")
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.abs(value - truth) / total
            unmoved = np.abs(column("unmoved_value") - truth) / column("unmoved_total")
        pull = odds_pulls(value, truth, total, column("efficiency"))
        width = float(2 * total.mean())
        covered = float((distance < 1).mean())
        fewer = float(column("expected_fewer").mean())
        judged = fewer >= JETS_MIN and first["status"] == "measured" and 2 * len(members) >= len(done)
        low, high = limits.scale_factor
        names = ("row", "flavour", "kinematic_bin", "kind", "working_point", "bin", "status")
        rows.append(
            {
                **{name: first[name] for name in names},
                "judged": bool(judged),
                "experiments": len(members),
                "expected_fewer": fewer,
                "truth_mean": float(truth.mean()),
                "truth_spread": float(truth.std()),
                "bias": float((value - truth).mean()),
                "spread": float((value - truth).std()),
                "total_mean": float(total.mean()),
                "pull_mean": float(pull.mean()),
                "pull_width": float(pull.std()),
                "coverage_68": covered,
                "coverage_95": float((distance < QUANTILE_95).mean()),
                "coverage_68_unmoved": float((unmoved < 1).mean()),
                "score": interval_score(width, covered, len(members)),
                "exceeded": not low <= covered <= high,
            }
        )
    return rows


def pull_rows(done: Sequence[dict[str, Any]], kind: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Pulls and coverage of all rows of one kind that have the same ``keys``."""
    rows = []
    for members in _grouped(done, kind, keys):
        value, truth, total = (
            np.array([row[name] for row in members], dtype=np.float64) for name in ("value", "truth", "total")
        )
        pull = (value - truth) / np.maximum(total, 1e-12)
        rows.append(
            {
                **{key: members[0][key] for key in keys},
                "truth_mean": float(truth.mean()),
                "total_mean": float(total.mean()),
                "bias": float((value - truth).mean()),
                "spread": float((value - truth).std()),
                "pull_mean": float(pull.mean()),
                "pull_width": float(pull.std()),
                "coverage_68": float((np.abs(pull) < 1).mean()),
                "coverage_95": float((np.abs(pull) < QUANTILE_95).mean()),
            }
        )
    return rows


def _uniformity(members: Sequence[dict[str, Any]]) -> float:
    """p-value of one parameter's ranks Φ((θ - θ̂)/σ): even if its Gaussian posterior is exact."""
    pull = np.array([(row["truth"] - row["value"]) / max(row["total"], 1e-12) for row in members])
    return calibration(np.asarray(stats.norm.cdf(pull), np.float64)).uniformity


def _tarp_deviation(done: Sequence[dict[str, Any]]) -> float | None:
    """Largest difference between expected coverage and credibility of the detector's posteriors."""
    known = [one for one in done if one.get("detector_covariance")]
    if not known:
        return None
    truth, mean = (
        np.array([[row[k] for row in one["detector"]] for one in known]) for k in ("truth", "value")
    )
    generator = np.random.default_rng(1)
    covariances = [np.array(one["detector_covariance"]) for one in known]
    draws = [generator.multivariate_normal(m, c, TARP_DRAWS) for m, c in zip(mean, covariances, strict=True)]
    reached = expected_coverage(truth, np.stack(draws), seed=1)
    return float(stats.kstest(reached, "uniform").statistic)


def _share_below(limit: float, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean([value < limit for value in known])) if known else None


def _grouped(done: Sequence[dict[str, Any]], kind: str, keys: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in done:
        for row in one[kind]:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [groups[key] for key in sorted(groups)] if kind == "scale_factors" else list(groups.values())


def _joint(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Coverage of fractions and map together: p-values above 1 − 0.6827 and above 0.05."""
    p_values = np.array([one["joint"]["p_value"] for one in done])
    chi2 = [one["joint"]["chi2"] / one["joint"]["ndf"] for one in done]
    pulls: dict[str, list[float]] = {}
    for one in done:
        for name, pull in one["joint"]["pulls"].items():
            pulls.setdefault(name, []).append(pull)
    return {
        "coverage_68": _mean((p_values > 1 - ONE_SIGMA).astype(float)),
        "coverage_95": _mean((p_values > 0.05).astype(float)),
        "chi2_per_ndf": _mean(chi2),
        "pulls": {
            name: {"mean": float(np.mean(values)), "width": float(np.std(values))}
            for name, values in pulls.items()
        },
    }


def _seconds(done: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = done[0]["seconds"] if done else {}
    return {name: float(np.mean([one["seconds"][name] for one in done])) for name in names}


def _mean(values: Any) -> float | None:
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else None


def _within(value: float | None, low_high: tuple[float, float]) -> bool:
    return value is not None and low_high[0] <= value <= low_high[1]


def coverage_text(table: dict[str, Any]) -> str:
    """The table for people: working points, detector, fractions, and the verdict."""
    number, summary = _number, table["summary"]
    header = f"{'':<28}{'truth':>8}{'σ':>8}{'bias':>8}{'pull':>14}{'68 %':>7}{'95 %':>7}"
    lines = [f"{summary['experiments']} full pseudo-experiments, {summary['failed']} failed", "", header]

    def line(name: str, row: dict[str, Any], mark: str) -> str:
        pull = f"{row['pull_mean']:+.2f} ± {row['pull_width']:.2f}"
        columns = "".join(f"{row[key]:>8.3f}" for key in ("truth_mean", "total_mean", "bias"))
        return f"{name:<28}{columns}{pull:>14}{row['coverage_68']:>7.2f}{row['coverage_95']:>7.2f}{mark}"

    for row in table["scale_factors"]:
        if row["kind"] == "working_point" and row["judged"]:
            name = f"{row['flavour']} {row['working_point']:g} bin {row['kinematic_bin']}"
            lines.append(line(name, row, "  outside" if row["exceeded"] else ""))
    lines += [line(row["parameter"], row, "") for row in table["detector"]]
    lines += [
        line(f"{row['region']} {row['flavour']}", row, "") for row in table["fractions"] if row["judged"]
    ]
    joint = table["joint"]
    lines += [
        "",
        f"scale factors, {summary['judged']} judged: {number(summary['average_68'])} on average",
        f"scale factors outside of their limits: {summary['flagged_count']}",
        f"scale factors without drawn constraints: {number(summary['average_68_unmoved'])}",
        f"detector: {number(summary['detector_68'])}",
        f"its simulation-based calibration, corrected p-value: {number(summary['detector_calibration_p'])}",
        f"its largest TARP deviation: {number(summary['tarp_deviation'])}",
        f"false alarms of its predictive check: {number(summary['predictive_alarms'])}",
        f"fractions: {number(summary['fractions_68'])}",
        f"fractions and map jointly: {number(joint['coverage_68'])}, χ²/n {number(joint['chi2_per_ndf'])}",
        "passed" if summary["passed"] else _failed_by(summary),
    ]
    return "\n".join(lines) + "\n"


def _failed_by(summary: dict[str, Any]) -> str:
    return "not passed: " + ", ".join(name for name, good in summary["passed_by"].items() if not good)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
