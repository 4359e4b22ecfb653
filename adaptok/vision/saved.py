"""How a wrapped model is described, so that it can be built again without its weights."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from adaptok.vision.apply import apply_apt


def described(model: Any, options: dict[str, Any]) -> dict[str, Any] | None:
    """Plain values from which `build_vision` makes the same model; None if timm has no name of it.

    Args:
        model: wrapped; its head and size are read now, they may have changed since it was wrapped.
        options: arguments of `apply_apt`.
    """
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name is None:
        return None
    made = {"num_classes": model.num_classes, "global_pool": model.global_pool}
    made |= {"in_chans": model.patch_embed.proj.in_channels}
    made |= {"img_size": list(model.patch_embed.img_size)}
    return {"kind": "vision", "model": name, "made": made, "options": options}


def build_vision(model: str, made: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """The model with fresh weights."""
    return apply_apt(timm.create_model(model, pretrained=False, **made), **options)
