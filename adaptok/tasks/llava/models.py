"""LLaVA from a folder or the hub, with its tower on the cells of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptok.registry import choice
from adaptok.vision import IMAGE_TOKENIZERS, freeze_all_but_new
from adaptok.vision.hf.apply import statistics

PROJECTOR = "model.multi_modal_projector"
ONLY = ("all", "new")


def load_llava(checkpoint: str | Path, dtype: str = "float32") -> tuple[Any, Any]:
    """Loads a ``LlavaForConditionalGeneration`` and its processor.

    Args:
        checkpoint: folder of both, or a name on the Hugging Face hub.
        dtype: of the weights: "float32", "bfloat16" or "float16".

    Raises:
        ValueError: nothing is there that can be read.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    choice("model.dtype", dtype, ("float32", "bfloat16", "float16"))
    try:
        processor = AutoProcessor.from_pretrained(checkpoint)
        model = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype)
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"no LLaVA with its processor at {checkpoint}: {told}") from error
    return model, processor


def adapt_llava(model: nn.Module, processor: Any, tokenizer: str | Mapping[str, Any]) -> Any:
    """Puts LLaVA's tower on the cells of a tokenizer, one of `adaptok.vision.IMAGE_TOKENIZERS`,
    whose values are un-normalised as the processor normalises.
    """
    mean, std = statistics(processor)
    return IMAGE_TOKENIZERS.build(tokenizer, model=model, mean=mean, std=std)


def train_only(model: nn.Module, only: str) -> list[nn.Parameter]:
    """Freezes what is not trained, as APT's Table 3 does for "new": all but what the tokenizer
    added and the projector.

    Returns:
        What is trained.

    Raises:
        ValueError: `only` is not "all" or "new".
    """
    if choice("train.only", only, ONLY) == "new":
        return freeze_all_but_new(model, also=(PROJECTOR,))
    return [p for p in model.parameters() if p.requires_grad]
