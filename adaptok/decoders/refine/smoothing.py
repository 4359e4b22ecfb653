"""A narrow dense network over a painted field, which sees across the borders of cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.layers.boundary import Boundary, pad_around
from adaptok.layers.convolution import conv_class
from adaptok.layers.zeroed import zeroed


class Smoothing(nn.Module):
    """Two convolutions of 3 points per axis over painted field and inputs; begins at zero.

    Args:
        ndim: space axes.
        in_channels: channels of the inputs.
        out_channels: channels of the painted field.
        width: channels between the convolutions.
    """

    def __init__(self, ndim: int, in_channels: int, out_channels: int, width: int):
        super().__init__()
        conv = conv_class(ndim)
        self.first = conv(out_channels + in_channels, width, 3)
        self.last = zeroed(conv(width, out_channels, 3))

    def forward(
        self, painted: Float[Tensor, "f o *s"], x: Float[Tensor, "f c *s"], boundary: Boundary
    ) -> Float[Tensor, "f o *s"]:
        """What is to be added to the painted field."""
        both = pad_around(torch.cat([painted, x], 1), [(2, 2)] * (x.ndim - 2), boundary)
        return self.last(F.gelu(self.first(both)))
