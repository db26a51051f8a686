"""From a PyTorch module to an ONNX file that any number of jets and tracks can be given to."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jaxtyping
import torch
from torch import Tensor, nn

import selfcal
from selfcal.run.atomic import atomic_path

OPSET = 20
METADATA_KEY = "selfcal"
"""Key of the metadata that holds one JSON object: what goes in, what comes out, in which units."""


def onnx_installed() -> bool:
    """Whether the libraries of the extra ``onnx`` are there."""
    return all(find_spec(name) is not None for name in ("onnx", "onnxscript"))


def write_onnx(
    path: Path,
    module: nn.Module,
    example: Mapping[str, Tensor],
    dimensions: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
) -> Path:
    """Write ``module`` as the ONNX file ``path``, checked by ONNX's own checker.

    Parameters
    ----------
    example : one small input of each name of ``module.forward``, in order
    dimensions : per input, the axes whose length is free, by name ("jets", "tracks")
    outputs : names of what ``forward`` returns, in order
    metadata : put into the file under :data:`METADATA_KEY`, as JSON
    """
    import onnx

    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(example.values()),
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=tuple(_free_axes(dimensions.get(name, {})) for name in example),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.producer_name, model.producer_version = "selfcal", selfcal.__version__
    described = {"schema_version": 1, "selfcal_version": selfcal.__version__, **metadata}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(described, allow_nan=False)})
    onnx.checker.check_model(model)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def _free_axes(names: Mapping[int, str]) -> dict[int, Any]:
    # Both ends given: the exporter neither assumes two jets nor forgets that there may be no track.
    return {axis: torch.export.Dim(name, min=0, max=1 << 20) for axis, name in names.items()}


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's notices, and without shape annotations, which would fix the free axes."""
    disabled = jaxtyping.config.jaxtyping_disable
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        jaxtyping.config.update("jaxtyping_disable", True)
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", disabled)
        logger.setLevel(level)
