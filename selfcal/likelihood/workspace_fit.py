"""Any pyhf workspace fitted: best fit, uncertainties, covariance, likelihood, certificate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfcal.likelihood.fit import fit, goodness_of_fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.identifiability import identifiability, require_identifiable


def workspace_facts(model: HistFactory) -> dict[str, Any]:
    """Size of a model: what a fit of it would be about."""
    return {
        "measurement": model.measurement,
        "channels": len(model.channels),
        "bins": len(model.observed),
        "parameters": len(model.parameters),
        "fixed": int(model.fixed.sum()),
        "constrained": int((model.constrained & ~model.fixed).sum()),
    }


def fit_workspace(
    workspace: Mapping[str, Any],
    measurement: str | None = None,
    seed: int = 1,
    *,
    force: bool = False,
    codes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fit a measurement (default: the first) and return everything as plain values.

    ``codes``: ``normsys_code`` (``code4``, ``code1``) and ``histosys_code`` (``code4p``, ``code0``).

    Rows of ``covariance`` belong to ``parameters`` in their order; parameters that are fixed or at a bound
    have zeros there.

    Raises
    ------
    FitError
        If directions are not determined by the data (named), if the workspace is inconsistent, or, unless
        ``force``, if the fit does not converge.
    """
    model = HistFactory(workspace, measurement, **(codes or {}))
    verdict = identifiability(model)
    require_identifiable(verdict)
    result = fit(model, seed=seed, force=force)
    at_bound = set(result.certificate["at_bound"])
    return {
        "schema_version": 1,
        **workspace_facts(model),
        "best_fit": [
            {
                "name": p.name,
                "value": float(value),
                "uncertainty": float(sigma),
                "constraint": p.constraint,
                "status": "fixed" if p.fixed else "at bound" if p.name in at_bound else "fitted",
            }
            for p, value, sigma in zip(model.parameters, result.best_fit, result.uncertainty, strict=True)
        ],
        "covariance": result.covariance.tolist(),
        "twice_nll": result.twice_nll,
        "deviance": result.deviance,
        "goodness_of_fit": goodness_of_fit(model, result),
        "certificate": result.certificate,
        "identifiability": verdict.as_json(),
    }


def fit_in_words(outcome: Mapping[str, Any]) -> str:
    """A table of best fit and uncertainty per parameter, under a summary."""
    certificate, goodness = outcome["certificate"], outcome["goodness_of_fit"]
    verdict = "converged" if certificate["converged"] else "NOT CONVERGED"
    width = max(len(row["name"]) for row in outcome["best_fit"])
    size = (
        f"measurement {outcome['measurement']}: {outcome['channels']} channels, {outcome['bins']} bins, "
        f"{outcome['parameters']} parameters ({outcome['fixed']} fixed)"
    )
    evidence = (
        f"{verdict} ({certificate['minimiser']}, {certificate['iterations']} iterations, estimated distance "
        f"{certificate['edm']:.1e}, gradient {certificate['gradient_in_sigma_max']:.1e} / sigma)"
    )
    value = (
        f"-2 ln L = {outcome['twice_nll']:.6f}, goodness of fit {goodness['statistic']:.2f} / "
        f"{goodness['ndf']:.0f}, p = {goodness['p_value']:.3g}"
    )
    lines = [size, evidence, value, ""]
    for row in outcome["best_fit"]:
        note = "" if row["status"] == "fitted" else f"  {row['status']}"
        lines.append(f"{row['name']:<{width}}  {row['value']:>12.6g} +- {row['uncertainty']:<10.4g}{note}")
    return "\n".join(lines)
