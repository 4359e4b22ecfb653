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
    if x.dtype == weight.dtype or _autocasts(x):
        return
    if all(p.dtype != x.dtype for p in module.parameters()):
        raise ValueError(
            f"the {what} is {x.dtype}, the weights are {weight.dtype}: convert one of them"
        )


def check_one_dtype(**tensors: Tensor) -> None:
    """Raises ``ValueError`` for tensors of several dtypes; autocast has rules of its own."""
    if torch.compiler.is_compiling() or any(map(_autocasts, tensors.values())):
        return
    if len({x.dtype for x in tensors.values()}) > 1:
        given = ", ".join(f"{name} is {x.dtype}" for name, x in tensors.items())
        raise ValueError(f"{given}: convert them to one dtype")


def _autocasts(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def as_products(x: Tensor) -> Tensor:
    """Casts a tensor to the dtype that products have under autocast; without it, to none."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if _autocasts(x) else x


def without_autocast(like: Tensor) -> torch.autocast:
    """Turns autocast off for the device of a tensor inside a block."""
    kind = "cpu" if like.is_meta else like.device.type  # "meta" knows no autocast
    return torch.autocast(kind, enabled=False)
