"""Whether the host may look at the values of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # type: ignore[import-not-found]


def reads_are_free(values: Tensor) -> bool:
    """True for values that are there (see `is_readable`) on the CPU."""
    return values.device.type == "cpu" and is_readable(values)


def is_readable(values: Tensor) -> bool:
    """True for values that are there: not while a graph is traced, under a transform such as
    ``torch.func.vmap``, or for fake tensors. The host may have to wait for the device.
    """
    if values.device.type == "meta" or torch.compiler.is_compiling():
        return False
    real = type(values) in (Tensor, nn.Parameter)
    return real and not is_functorch_wrapped_tensor(values)
