"""Tensors of an imaginary GPU: shapes and types without memory or arithmetic."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

DEVICE = "cuda"  # of fake tensors; a fixed budget must not read values back from it


def become_fake(model: nn.Module) -> None:
    """Replaces parameters and buffers on the meta device by fake ones on the GPU."""
    for module in model.modules():
        for key, value in module._parameters.items():
            if value is not None:
                fake = empty(*value.shape, dtype=value.dtype)
                module._parameters[key] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for key, value in module._buffers.items():
            if value is not None:
                module._buffers[key] = empty(*value.shape, dtype=value.dtype)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def noise(*shape: int) -> Tensor:
    """Makes a random walk along each space axis."""
    out = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for axis in range(3, len(shape)):
        out = out.cumsum(axis)
    return out


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@contextmanager
def fresh_caches() -> Iterator[None]:
    """Clears the caches of constant tensors around a fake mode, whose tensors must not leave it."""
    clear_caches()
    try:
        yield
    finally:
        clear_caches()


def clear_caches() -> None:
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "adaptok":
            for value in list(vars(module).values()):
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()
