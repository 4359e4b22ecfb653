"""Numbers that half precision is too coarse for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def check_alike(x: Tensor, module: nn.Module, what: str) -> None:
    """Raises ``ValueError`` for a tensor of another dtype or device than the weights that it is
    given to; weights that are sharded or quantised, and autocast, have rules of their own.
    """
    if torch.compiler.is_compiling():
        return
    weight: Any = next(module.parameters(), None)
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        return
    if x.device != weight.device:
        raise ValueError(
            f"the {what} is on {x.device}, the weights are on {weight.device}: move one of them"
        )
    if x.dtype == weight.dtype or (not x.is_meta and torch.is_autocast_enabled(x.device.type)):
        return
    if all(p.dtype != x.dtype for p in module.parameters()):
        raise ValueError(
            f"the {what} is {x.dtype}, the weights are {weight.dtype}: convert one of them"
        )


def without_autocast(like: Tensor) -> torch.autocast:
    """Turns autocast off for the device of a tensor inside a block."""
    kind = "cpu" if like.is_meta else like.device.type  # "meta" knows no autocast
    return torch.autocast(kind, enabled=False)
