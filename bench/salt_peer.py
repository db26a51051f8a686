"""One training step and one scoring pass of salt's own modules, timed; run by salt's Python, not ours.

Prints one line of JSON. Nothing of selfcal is imported here, and nothing of salt elsewhere.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
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


def main() -> None:
    """Arguments: file, size, jets per batch, steps, names of the jet and of the track columns (JSON)."""
    path, size, batch, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    variables = json.loads(sys.argv[5])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    norm_dict = str(path.with_name("norm_dict.yaml"))
    labels = {"jets": ["flavour_label"], "tracks": ["ftagTruthOriginLabel", "ftagTruthVertexIndex"]}
    data = SaltDataset(
        filename=str(path), norm_dict=norm_dict, variables=variables, stage="fit", labels=labels
    )
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
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": parameters, "train_s": train, "score_s": score}))


if __name__ == "__main__":
    main()
