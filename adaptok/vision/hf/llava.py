"""LLaVA with an adapted tower: as many image tokens as an image has cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaModel
from transformers.utils.generic import can_return_tuple

from adaptok.vision.hf.outputs import TowerOutput


class AdaptedLlava(LlavaModel):
    """Runs ``LlavaModel``; padding of its tower's output does not become image tokens."""

    @can_return_tuple
    def get_image_features(  # generation reads the names of the arguments
        self,
        pixel_values: Any,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> TowerOutput:
        """Returns what the model's own method does, with one tensor (tokens, d) per image in
        ``pooler_output``: tokens in the order of the tiling.
        """
        features: Any = super().get_image_features
        out = features(
            pixel_values,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            image_sizes=image_sizes,
            **{**kwargs, "return_dict": True},
        )
        if out.cells is not None:  # else the tower is a reduced one, without padding
            mask = out.attention_mask[:, -out.pooler_output[0].shape[0] :]
            counts = mask.sum(1).tolist()
            out.pooler_output = [x[:n] for x, n in zip(out.pooler_output, counts, strict=True)]
        return out


VLMS: dict[type[nn.Module], type[nn.Module]] = {LlavaModel: AdaptedLlava}


def encode_images(model: Any, inputs: Mapping[str, Any], **control: Any) -> dict[str, Any]:
    """Runs tower and projector, and gives each image as many placeholders as it has tokens.

    Args:
        model: a ``LlavaForConditionalGeneration`` made by `apply_apt` or `apply_reducer`.
        inputs: what its processor returns: ``input_ids``, ``pixel_values``, and perhaps
            ``attention_mask`` and ``labels``.
        control: thresholds or budget for these images.

    Returns:
        Arguments of the model and of its ``generate``. The features of the images, one row per
        token, are the list ``pooler_output`` of the "image" in ``mm_encoder_outputs``.

    Raises:
        ValueError: the placeholders are not those of as many images.
    """
    features = model.model.get_image_features(
        inputs["pixel_values"], **{**control, "return_dict": True}
    )
    counts = [x.shape[0] for x in features.pooler_output]
    pad = getattr(model.config.text_config, "pad_token_id", None) or 0
    ids = expand_placeholders(inputs, counts, model.config.image_token_id, pad)
    return {**ids, "mm_encoder_outputs": {"image": features}}


def expand_placeholders(
    inputs: Mapping[str, Any], counts: Sequence[int], image_token: int, pad_token: int = 0
) -> dict[str, Tensor]:
    """Gives each image in a batch of prompts as many placeholders as it has tokens.

    Args:
        inputs: ``input_ids`` (b, n) with equally many placeholders per image, one or more;
            ``attention_mask`` and ``labels`` if there are some.
        counts: tokens of each image, in the order of the prompts.
        image_token: id of the placeholder.
        pad_token: id that fills prompts up to the longest, on the left, as generation needs it.

    Returns:
        input_ids, attention_mask, and labels if given (-100 in what is filled up).

    Raises:
        ValueError: the placeholders are not those of as many images.
    """
    ids = inputs["input_ids"]
    given = inputs.get("attention_mask")
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if given is None else given}
    fill = {"input_ids": pad_token, "attention_mask": 0, "labels": -100}
    if inputs.get("labels") is not None:
        rows["labels"] = inputs["labels"]
    total, images = int((ids == image_token).sum()), len(counts)
    if not images or not total or total % images:
        raise ValueError(f"{total} placeholder(s) (token {image_token}) for {images} image(s)")
    left, expanded = list(counts), []
    for row, real in zip(ids, rows["attention_mask"].bool(), strict=True):
        at = _places(row, real, left, image_token, total // images)
        expanded.append({name: value[len(expanded)][at] for name, value in rows.items()})
    longest = max(len(row["input_ids"]) for row in expanded)
    out = {}
    for name in rows:
        own = [row[name] for row in expanded]
        filled = [x.new_full((longest - len(x),), fill[name]) for x in own]
        out[name] = torch.stack([torch.cat(pair) for pair in zip(filled, own, strict=True)])
    return out


def _places(
    row: Int64[Tensor, " n"],
    real: Bool[Tensor, " n"],
    left: list[int],
    image_token: int,
    per_image: int,
) -> Int64[Tensor, " m"]:
    """Returns the old place of each token of the new prompt; takes counts from the front of
    `left`.
    """
    places, at, kept = [], 0, real.tolist()
    for is_image, run in groupby((row == image_token).tolist()):
        length = len([*run])
        if is_image and length % per_image:
            raise ValueError(
                f"{length} placeholders in a row, where each image has {per_image}: give all "
                "images equally many"
            )
        if is_image:
            for start in range(at, at + length, per_image):
                places += [start] * left.pop(0)
        else:
            places += [i for i in range(at, at + length) if kept[i]]
        at += length
    return torch.tensor(places, dtype=torch.int64, device=row.device)
