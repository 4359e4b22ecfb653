"""Whether the host may look at the values of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # type: ignore[import-not-found]


def reads_are_free(values: Tensor) -> bool:
    """True on the CPU, for values that are there: not while a graph is traced, under a transform
    such as ``torch.func.vmap``, or for fake tensors.
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    real = type(values) in (Tensor, nn.Parameter)
    return real and not is_functorch_wrapped_tensor(values)
