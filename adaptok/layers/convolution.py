"""torch's convolutions by the number of space dimensions."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.conv import _ConvNd


def conv_class(ndim: int) -> Callable[..., _ConvNd]:
    """Returns ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``."""
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]


def conv_transpose_class(ndim: int) -> Callable[..., _ConvNd]:
    """Returns ``nn.ConvTranspose1d``, ``nn.ConvTranspose2d`` or ``nn.ConvTranspose3d``."""
    return (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[ndim - 1]
