"""Small constant tensors, uploaded to a device once."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptok.utils.constants import cached_constant


@cached_constant()
def constant(
    values: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device
) -> Tensor:
    """A float32 tensor of these numbers; no copy to the device after the first call."""
    return torch.tensor(values, dtype=torch.float32, device=device)
