"""Small constant tensors, uploaded to a device once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from adaptok.utils.constants import constant_in_graphs

Values = tuple[float, ...] | tuple[tuple[float, ...], ...]


@functools.lru_cache(maxsize=256)
def _constant_on(values: Values, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # cached tensors must also serve autograd later
        return torch.tensor(values, dtype=torch.float32).to(device)


@constant_in_graphs
def constant(values: Values, device: torch.device) -> Tensor:
    """A float32 tensor of these numbers; no copy to the device after the first call."""
    return _constant_on(values, device)
