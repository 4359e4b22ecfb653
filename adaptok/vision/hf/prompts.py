"""Prompts with as many placeholders as images have tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from adaptok.vision.hf.outputs import TowerOutput
from adaptok.vision.hf.vlms import VLMS


def encode_images(model: Any, inputs: Mapping[str, Any], **control: Any) -> dict[str, Any]:
    """Runs tower and projector, and gives each image as many placeholders as it has tokens.

    Args:
        model: a vision-language model, as it is or made by `apply_apt` or `apply_reducer`.
        inputs: what its processor returns: ``input_ids``, ``pixel_values``, and perhaps
            ``image_sizes``, ``batch_num_images``, ``attention_mask``, ``token_type_ids`` and
            ``labels``.
        control: thresholds or budget for these images.

    Returns:
        Arguments of the model and of its ``generate``. The "image" in ``mm_encoder_outputs`` has
        the features of the images (``pooler_output``) and how many are of each (``image_tokens``).

    Raises:
        ValueError: another kind of model, inputs without images, or placeholders that are not those
            of as many images.
    """
    core: Any = model if isinstance(model, tuple(VLMS)) else getattr(model, "model", None)
    if not isinstance(core, tuple(VLMS)):
        known = ", ".join(sorted(kind.__name__ for kind in VLMS))
        raise ValueError(f"{type(model).__name__} is no vision-language model; these are: {known}")
    tiled = isinstance(core, LlavaNextModel | LlavaOnevisionModel)
    needed = ("input_ids", "pixel_values", *["image_sizes"] * tiled)
    missing = [name for name in needed if inputs.get(name) is None]
    if missing:
        raise ValueError(
            f"inputs without {', '.join(missing)}, got: {', '.join(sorted(inputs)) or 'none'}; a "
            "batch of text alone goes to the model as it is"
        )
    config: Any = model.config
    names = ("image_sizes", "batch_num_images") if tiled else ()
    given = {name: inputs[name] for name in names if inputs.get(name) is not None}
    encode: Any = core.get_image_features
    features = encode(inputs["pixel_values"], **{**given, **control, "return_dict": True})
    counts = present = [len(x) for x in features.pooler_output]
    if isinstance(features, TowerOutput) and features.image_tokens is not None:
        counts, present = features.image_tokens, features.unmerged_tokens
    pad = getattr(config.text_config, "pad_token_id", None) or 0
    ids = expand_placeholders(inputs, counts, config.image_token_id, pad, present)
    return {**ids, "mm_encoder_outputs": {"image": features}}


def expand_placeholders(
    inputs: Mapping[str, Any],
    counts: Sequence[int],
    image_token: int,
    pad_token: int = 0,
    present: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Gives each image in a batch of prompts as many placeholders as it has tokens.

    Args:
        inputs: ``input_ids`` (b, n) with one placeholder per image, or with `present` ones;
            ``attention_mask``, ``token_type_ids`` and ``labels`` if there are some.
        counts: tokens of each image, in the order of the prompts.
        image_token: id of the placeholder.
        pad_token: id that fills prompts up to the longest, on the left, as generation needs it.
        present: placeholders of each image in the prompts; by default equally many of each.

    Returns:
        input_ids, attention_mask, and the others if given (labels -100 in what is filled up).

    Raises:
        ValueError: the placeholders are not those of as many images.
    """
    ids = inputs["input_ids"]
    given = inputs.get("attention_mask")
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if given is None else given}
    fill = {"input_ids": pad_token, "attention_mask": 0, "token_type_ids": 0, "labels": -100}
    for name in ("token_type_ids", "labels"):
        if inputs.get(name) is not None:
            rows[name] = inputs[name]
    total, images = int((ids == image_token).sum()), len(counts)
    if total == images or (present is None and images and total % images == 0):
        present = [total // max(images, 1)] * images
    if not images or not total or present is None or sum(present) != total:
        told = "" if present is None else f", which have {sum(present)} patches"
        raise ValueError(
            f"{total} placeholder(s) (token {image_token}) for {images} image(s){told}"
        )
    left, expanded = [*zip(counts, present, strict=True)], []
    for row, real in zip(ids, rows["attention_mask"].bool(), strict=True):
        at = _places(row, real, left, image_token)
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
    left: list[tuple[int, int]],
    image_token: int,
) -> Int64[Tensor, " m"]:
    """Returns the old place of each token of the new prompt; takes images from the front of `left`,
    each with its tokens and with its placeholders in the prompts.
    """
    places, at, kept = [], 0, real.tolist()
    for is_image, run in groupby((row == image_token).tolist()):
        end = at + len([*run])
        if not is_image:
            places += [i for i in range(at, end) if kept[i]]
        start, at = at, end
        while is_image and start < end:
            count, present = left.pop(0)
            if present > end - start:
                raise ValueError(
                    f"{end - start} placeholders in a row, where the next image has {present}: "
                    "write those of an image one after the other"
                )
            places += [start] * count
            start += present
    return torch.tensor(places, dtype=torch.int64, device=row.device)
