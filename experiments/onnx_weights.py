"""Turns an exported DINOv2 of transformers into a file that timm reads:
`python experiments/onnx_weights.py MODEL.onnx WEIGHTS.safetensors`.

An export keeps the names of biases and norms; a matrix has none, so the node that multiplies by it
gives the name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

RENAMED = {  # transformers to timm; versions before 5 nest the attention
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}
FUSED = r"layer\.(\d+)\.attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(\w+)$"


def exported(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Returns the weights of a graph under their names in transformers, without its prefix."""
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    found = {name: value for name, value in values.items() if not name.startswith("onnx::")}
    for node in model.graph.node:
        matrices = [values[name] for name in node.input if name in values and "::" in name]
        if node.op_type == "MatMul" and matrices:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = matrices[0].T
    places = [v for v in values.values() if v.ndim == 3 and v.shape[0] == 1 and v.shape[1] > 1]
    (patches,) = [v for v in places if v.shape[1] == round(v.shape[1] ** 0.5) ** 2]
    first = [
        values[name]
        for node in model.graph.node
        if node.op_type == "Concat" and "embeddings" in node.name
        for name in node.input
        if name in values and values[name].shape == (1, 1, patches.shape[2])
    ]
    found["backbone.embeddings.position_embeddings"] = np.concatenate([first[0], patches], 1)
    prefix = "backbone."
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def as_timm(weights: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Returns the state of timm's model: other names, and one matrix for queries, keys, values."""
    found, fused = {}, {}
    for name, value in weights.items():
        tensor = torch.from_numpy(value.copy())
        if match := re.search(FUSED, name):
            fused.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2][0]] = tensor
            continue
        if name == "embeddings.position_embeddings":
            found["pos_embed"] = tensor
            continue
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        found[name] = tensor
    for name, parts in fused.items():
        found[name] = torch.cat([parts[part] for part in "qkv"])
    return found


def main(source: str, target: str) -> None:
    state = as_timm(exported(onnx.load(source)))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, target)
    print(f"{len(state)} tensors in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
