"""pyhf's fit of ``toy.json`` with its PyTorch backend and SLSQP, timed; run by ``bench.likelihood``."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import pyhf


def main() -> None:
    """Print seconds of one fit and −2 ln L as JSON."""
    warnings.simplefilter("ignore")
    pyhf.set_backend("pytorch", pyhf.optimize.scipy_optimizer(maxiter=100_000), precision="64b")
    workspace = pyhf.Workspace(json.loads((Path(sys.argv[1]) / "toy.json").read_text()))
    model = workspace.model()
    data = pyhf.tensorlib.astensor(workspace.data(model))
    begin, cpu = time.perf_counter(), time.process_time()
    _, value = pyhf.infer.mle.fit(data, model, return_fitted_val=True)
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    # Every toy costs the same again: pyhf fits one after the other.
    times = {"fit_seconds": wall, "fit_cpu_seconds": cpu, "toy_seconds": wall, "toy_cpu_seconds": cpu}
    print(json.dumps({**times, "twice_nll": float(value)}))


if __name__ == "__main__":
    main()
