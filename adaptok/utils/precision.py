"""Numbers that half precision is too coarse for."""

from __future__ import annotations

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> torch.autocast:
    """Turns autocast off for the device of a tensor inside a block."""
    kind = "cpu" if like.is_meta else like.device.type  # "meta" knows no autocast
    return torch.autocast(kind, enabled=False)
