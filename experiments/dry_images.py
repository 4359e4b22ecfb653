"""Full-size image classifiers without images, memory or arithmetic; see dry_run.py."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from fake import DEVICE, become_fake, count_parameters
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_map_only

from adaptok.cells import Cells
from adaptok.tasks.classify import build_classifier
from adaptok.tasks.classify.models import build_timm

CLASSES = 1000  # of ImageNet


def build(config: Mapping[str, Any]) -> Any:
    """Builds the classifier of a configuration with fresh weights, on the current device."""
    node = {**config["model"], "pretrained": False, "checkpoint": None}
    return build_classifier(build_timm(classes=CLASSES, **node), config["tokenizer"])


def count_images(config: Mapping[str, Any]) -> tuple[int, float, tuple[int, ...], list[str]]:
    """Runs one forward pass at the real shape and batch.

    Returns:
        parameters: of the model.
        tokens: per image, without class and register tokens.
        shape: of the images.
        notes: differences from a real pass.
    """
    with torch.device("meta"):
        model = build(config)
    parameters = count_parameters(model)
    shape = (config["data"]["batch_size"], 3, *model.patch_embed.img_size)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer")  # a key of a cache
        become_fake(model)
        images, notes = torch.empty(shape, device=DEVICE), []
        model.eval()
        if not hasattr(model, "tiling"):
            logits, tokens = model(images), float(model.patch_embed.num_patches)
        else:
            cells = _cells(model, images, notes)
            logits, tokens = model(images, cells=cells), len(cells) / shape[0]
        wanted = (shape[0], CLASSES)
        assert tuple(logits.shape) == wanted, f"{tuple(logits.shape)} in place of {wanted}"
    return parameters, tokens, shape, notes


def _cells(model: Any, images: Tensor, notes: list[str]) -> Cells:
    """Makes the model's cells, of a picture of noise if they depend on the content."""
    try:
        return model.tiling(images)
    except DataDependentOutputException:
        notes.append("number of cells depends on the image: cells of noise")
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(images.shape[1:], generator=generator)
        noise[..., : images.shape[-1] // 2] = 0  # so that there is something to merge
        cells = model.tiling(noise.repeat(len(images), 1, 1, 1))
    return tree_map_only(Tensor, lambda t: t.to(DEVICE), cells)
