"""salt's own modules, timed or trained; run by salt's Python, not ours: ``salt_peer.py TASK ARGUMENTS``.

The arguments are one JSON object, those of the function TASK; the last line printed is a JSON object
too. Nothing of selfcal is imported here, and nothing of salt elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnxruntime
import torch
from salt.data.datasets import SaltDataset
from salt.models import (
    ClassificationTask,
    GlobalAttentionPooling,
    InputNorm,
    SaltModel,
    Transformer,
    VertexingTask,
)
from torch import nn

SIZES = {"medium": (128, 3), "gn2": (256, 4)}


def build_model(size: str, variables: dict[str, list[str]]) -> SaltModel:
    """GN2 with salt's modules: jet, track origin and vertex heads of hidden widths 128, 64, 32."""
    width, layers = SIZES[size]
    head = {"input_size": 128, "hidden_layers": [128, 64, 32], "activation": "ReLU"}
    tasks = nn.ModuleList(
        [
            ClassificationTask(
                name="jets_classification",
                input_name="jets",
                label="flavour_label",
                loss=nn.CrossEntropyLoss(),
                dense_config={**head, "output_size": 4},
                class_names=["bjets", "cjets", "ujets", "taujets"],
            ),
            ClassificationTask(
                name="track_origin",
                input_name="tracks",
                label="ftagTruthOriginLabel",
                weight=0.5,
                loss=nn.CrossEntropyLoss(),
                dense_config={**head, "output_size": 8, "context_size": 128},
            ),
            VertexingTask(
                name="track_vertexing",
                input_name="tracks",
                label="ftagTruthVertexIndex",
                weight=1.5,
                loss=nn.BCEWithLogitsLoss(reduction="none"),
                dense_config={**head, "input_size": 256, "output_size": 1, "context_size": 128},
            ),
        ]
    )
    for task in tasks:
        task.global_object, task.model_name = "jets", "peer"
    embedding = {"output_size": width, "hidden_layers": [width], "activation": "ReLU"}
    return SaltModel(
        init_nets=[
            {
                "input_name": "tracks",
                "dense_config": embedding,
                "variables": variables,
                "global_object": "jets",
            }
        ],
        tasks=tasks,
        encoder=Transformer(
            num_layers=layers,
            embed_dim=width,
            out_dim=128,
            attn_type="torch-math",
            norm="LayerNorm",
            do_final_norm=True,
            dense_kwargs={"activation": "ReLU", "gated": False},
            attn_kwargs={"num_heads": 8},
        ),
        pool_net=GlobalAttentionPooling(input_size=128),
    )


def time_steps(
    path: str, size: str, batch: int, steps: int, variables: dict[str, list[str]]
) -> dict[str, Any]:
    """CPU-seconds of training steps and of scoring passes over the jets of a file, batch by batch."""
    torch.manual_seed(0)
    norm_dict = str(Path(path).with_name("norm_dict.yaml"))
    labels = {"jets": ["flavour_label"], "tracks": ["ftagTruthOriginLabel", "ftagTruthVertexIndex"]}
    data = SaltDataset(filename=path, norm_dict=norm_dict, variables=variables, stage="fit", labels=labels)
    norm = InputNorm(
        norm_dict=norm_dict,
        variables=variables,
        global_object="jets",
        input_map={"jets": "jets", "tracks": "tracks"},
    )
    model = build_model(size, variables)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)
    train, score = [], []
    for index in range(steps):
        inputs, masks, truth = data[np.s_[index * batch : (index + 1) * batch]]
        inputs = norm(inputs)
        begin = time.process_time()
        _, losses = model(inputs, masks, truth)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        train.append(time.process_time() - begin)
        model.eval()
        with torch.no_grad():
            begin = time.process_time()
            model(inputs, masks, None)
            score.append(time.process_time() - begin)
        model.train()
    return {"parameters": count_parameters(model), "train_s": train, "score_s": score}


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class BatchGraph(nn.Module):
    """Normalised padded jets -> probabilities of the flavours; salt's own graph takes one jet at a time."""

    def __init__(self, norm: InputNorm, model: SaltModel) -> None:
        super().__init__()
        self.norm, self.model = norm, model

    def forward(self, jets: torch.Tensor, tracks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        inputs = self.norm({"jets": jets, "tracks": tracks})
        return self.model(inputs, {"tracks": ~valid}, None)[0]["jets"]["jets_classification"].softmax(dim=1)


def time_onnx(
    path: str, size: str, batch: int, steps: int, variables: dict[str, list[str]]
) -> dict[str, Any]:
    """ONNX Runtime on one thread: CPU-seconds of batches, and wall-clock seconds for one jet of 14 tracks.

    The graph of one jet is the one that salt's exporter makes (``salt.onnx.to_onnx.ONNXModel``, without
    the checkpoint and the clean git tree that its command asks for). It has no batches, so the graph for
    these is exported here from salt's modules.
    """
    # Only this task needs what the exporter imports (pandas, lightning).
    from salt.onnx.to_onnx import ONNXModel, get_default_onnx_feature_map

    norm_of = {
        "norm_dict": str(Path(path).with_name("norm_dict.yaml")),
        "variables": variables,
        "global_object": "jets",
        "input_map": {"jets": "jets", "tracks": "tracks"},
    }
    model = build_model(size, variables)
    model.tasks = model.tasks[:1]
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        one_jet, batched = Path(name) / "one_jet.onnx", Path(name) / "batched.onnx"
        with contextlib.redirect_stdout(io.StringIO()):
            exported = ONNXModel(
                onnx_feature_map=get_default_onnx_feature_map("r22default", list(variables), "jets"),
                variable_map=variables,
                name="peer",
                model=model,
                lrs_config={},
                global_object="jets",
                norm_config=norm_of,
            ).eval()
            exported.to_onnx(
                one_jet,
                opset_version=20,
                input_names=exported.input_names,
                output_names=exported.output_names,
                dynamic_axes=exported.dynamic_axes,
                dynamo=False,
            )
            free = {0: "jets", 1: "tracks"}
            widths = {key: len(names) for key, names in variables.items()}
            torch.onnx.export(
                BatchGraph(InputNorm(**norm_of), model).eval(),
                (torch.rand(3, widths["jets"]), torch.rand(3, 5, widths["tracks"]), torch.ones(3, 5) > 0),
                str(batched),
                input_names=["jets", "tracks", "valid"],
                dynamic_axes={"jets": {0: "jets"}, "tracks": free, "valid": free},
                opset_version=20,
                dynamo=False,
            )
        return {
            **_time_one_jet(one_jet, exported, widths),
            "batch_s": _time_batches(batched, path, batch, steps),
        }


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _time_one_jet(path: Path, exported: nn.Module, widths: Mapping[str, int]) -> dict[str, Any]:
    session = _session(path)
    jet, tracks = torch.rand(1, widths["jets"]), torch.rand(14, widths["tracks"])
    given = dict(zip(exported.input_names, (jet.numpy(), tracks.numpy()), strict=True))
    apart = max(
        float(abs(a - b.numpy()).max())
        for a, b in zip(session.run(None, given), exported(jet, tracks), strict=True)
    )
    latency = []
    for _ in range(200):
        begin = time.perf_counter()
        session.run(None, given)
        latency.append(time.perf_counter() - begin)
    return {"latency_s": latency, "largest_difference": apart}


def _time_batches(path: Path, file: str, batch: int, steps: int) -> list[float]:
    """Batches of the file's jets, padded as salt pads them: to the width of the file's table."""
    session, spent = _session(path), []
    with h5py.File(file) as handle:
        valid = handle["tracks"]["valid"][: batch * steps]
    columns = {given.name: given.shape[-1] for given in session.get_inputs()}
    generator = np.random.default_rng(1)
    for k in range(steps):
        of_batch = valid[k * batch : (k + 1) * batch]
        given = {
            "jets": generator.uniform(0.1, 1, (batch, columns["jets"])).astype(np.float32),
            "tracks": generator.uniform(0.1, 1, (*of_batch.shape, columns["tracks"])).astype(np.float32),
            "valid": of_batch,
        }
        begin = time.process_time()
        session.run(None, given)
        spent.append(time.process_time() - begin)
    return spent


class PackedJets:
    """Jets of an archive: tracks of jet i are rows ``offsets[i]`` to ``offsets[i + 1]``."""

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        names = ("tracks", "offsets", "jet", "flavour", "origin", "vertex")
        self.of = {name: torch.from_numpy(arrays[f"{prefix}_{name}"]) for name in names}

    def batch(self, index: np.ndarray) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Inputs, padding masks and labels as salt's data loader gives them, padded to the longest jet."""
        chosen = torch.from_numpy(index)
        start, end = self.of["offsets"][chosen], self.of["offsets"][chosen + 1]
        position = torch.arange(max(1, int((end - start).max())))
        valid = position < (end - start)[:, None]
        rows = torch.where(valid, start[:, None] + position, 0)
        origin = torch.where(valid, self.of["origin"][rows], -1)
        vertex = torch.where(valid, self.of["vertex"][rows], -2)
        inputs = {"jets": self.of["jet"][chosen], "tracks": self.of["tracks"][rows] * valid[..., None]}
        labels = {
            "jets": {"flavour_label": self.of["flavour"][chosen]},
            "tracks": {"ftagTruthOriginLabel": origin, "ftagTruthVertexIndex": vertex},
        }
        return inputs, {"tracks": ~valid}, labels


def equal_losses(
    predictions: Mapping[str, Any], masks: Mapping[str, torch.Tensor], labels: Mapping[str, Any]
) -> torch.Tensor:
    """Our losses of salt's outputs: plain means over jets, tracks and pairs, weighted 1, 0.5 and 1.5.

    salt's own loss of the pairs is divided by the pairs of one vertex, not by all, and pairs from
    heavy hadrons count twice.
    """
    ce, of_tracks = nn.functional.cross_entropy, labels["tracks"]
    flavour = ce(predictions["jets"]["jets_classification"], labels["jets"]["flavour_label"])
    origin_logits = predictions["tracks"]["track_origin"].flatten(0, 1)
    origin = ce(origin_logits, of_tracks["ftagTruthOriginLabel"].flatten(), ignore_index=-1)
    valid, vertex = ~masks["tracks"], of_tracks["ftagTruthVertexIndex"]
    adjacent = valid[:, :, None] & valid[:, None, :] & ~torch.eye(valid.shape[1], dtype=torch.bool)
    known = ((vertex != -2)[:, :, None] & (vertex != -2)[:, None, :])[adjacent]
    same = ((vertex[:, :, None] == vertex[:, None, :]) & (vertex >= 0)[:, :, None])[adjacent]
    logits = predictions["tracks"]["track_vertexing"].squeeze(-1)
    pairs = nn.functional.binary_cross_entropy_with_logits(logits[known], same[known].float())
    total: torch.Tensor = flavour + 0.5 * origin + 1.5 * pairs
    return total


def train(
    archive: str,
    size: str,
    seed: int,
    learning_rates: list[float],
    weight_decay: float,
    gradient_clip: float,
    losses: str,
    output: str,
) -> dict[str, Any]:
    """Train on the batches of the archive in their order; scores of its test jets go to ``output``.

    ``losses``: "salt" for salt's own definitions, "equal" for ours.
    """
    arrays = np.load(archive)
    jets, test = PackedJets(arrays, "train"), PackedJets(arrays, "test")
    order = arrays[f"batches_{seed}"]
    variables = {
        "jets": [f"jet_{k}" for k in range(jets.of["jet"].shape[1])],
        "tracks": [f"track_{k}" for k in range(jets.of["tracks"].shape[1])],
    }
    torch.manual_seed(seed)
    model = build_model(size, variables)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rates[0], weight_decay=weight_decay)
    begin, history = time.process_time(), []
    for index, rate in zip(order, learning_rates, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        inputs, masks, labels = jets.batch(index)
        # salt writes into the masks it is given.
        predictions, own = model(inputs, dict(masks), labels)
        total = sum(own.values()) if losses == "salt" else equal_losses(predictions, masks, labels)
        if not math.isfinite(float(total.detach())):
            raise SystemExit(f"salt's loss is not finite after {len(history)} steps")
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
        optimiser.step()
        history.append(float(own["jets_classification"].detach()))
    answer = {
        "parameters": count_parameters(model),
        "cpu_s": time.process_time() - begin,
        "flavour_loss": history,
    }
    model.eval()
    # The flavour needs neither origins nor pairs.
    model.tasks = model.tasks[:1]
    counts = torch.diff(test.of["offsets"]).numpy()
    scores = np.zeros((len(counts), 4))
    by_length = np.argsort(counts, kind="stable")
    with torch.no_grad():
        for first in range(0, len(counts), 1000):
            index = by_length[first : first + 1000]
            inputs, masks, _ = test.batch(index)
            logits = model(inputs, masks, None)[0]["jets"]["jets_classification"]
            scores[index] = logits.double().log_softmax(dim=1).numpy()
    np.save(output, scores)
    return answer


def main() -> None:
    torch.set_num_threads(1)
    task = {"time": time_steps, "train": train, "onnx": time_onnx}[sys.argv[1]]
    print(json.dumps(task(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
