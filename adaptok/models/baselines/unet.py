"""The U-Net (Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation",
2015) for fields."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.layers.convolution import conv_class
from adaptok.models.baselines.base import BASELINES
from adaptok.utils.arguments import Dimensions, Halvings, Positive, checked

POOLS = (nn.functional.max_pool1d, nn.functional.max_pool2d, nn.functional.max_pool3d)


@BASELINES.register("unet")
class UNet(nn.Module):
    """Two convolutions per level, halving and doubling of the grid, skip connections (Fig. 1).

    Not as in the paper: group norm and GELU; convolutions keep the grid, padding periodic axes
    circularly and the others with their edge value; doubling repeats values before a convolution.
    Any grid works: odd extents are rounded up when halved.

    Args:
        width: channels at full resolution, doubled per level.
        levels: how often the grid is halved.
    """

    @checked
    def __init__(
        self,
        ndim: Dimensions,
        in_channels: Positive,
        out_channels: Positive,
        periodic: tuple[bool, ...],
        *,
        width: Positive = 32,
        levels: Halvings = 3,
    ):
        super().__init__()
        self.ndim = ndim
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            Convolutions(ndim, a, b, periodic)
            for a, b in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            Convolutions(ndim, 3 * w, w, periodic) for w in reversed(widths[:-1])
        )
        self.head = conv_class(ndim)(width, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s"]:
        """Returns the output fields on the same grid."""
        skips = []
        for number, block in enumerate(self.down):
            x = POOLS[self.ndim - 1](x, 2, ceil_mode=True) if number else x
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[2:])
            x = block(torch.cat([x, skip], 1))
        return self.head(x)


class Convolutions(nn.Module):
    """Convolution of width 3, group norm and GELU, twice."""

    def __init__(self, ndim: int, in_channels: int, channels: int, periodic: tuple[bool, ...]):
        super().__init__()
        self.periodic = periodic
        convolution = conv_class(ndim)
        self.first = convolution(in_channels, channels, 3)
        self.second = convolution(channels, channels, 3)
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s"]:
        """Maps fields to `channels` on the same grid."""
        for convolution, norm in zip((self.first, self.second), self.norms, strict=True):
            x = nn.functional.gelu(norm(convolution(self._padded(x))))
        return x

    def _padded(self, x: Tensor) -> Tensor:
        """Adds a point at every end: the opposite one on periodic axes, else the last one."""
        for mode, wanted in (("circular", True), ("replicate", False)):
            pad = [int(p == wanted) for p in reversed(self.periodic) for _ in range(2)]
            x = nn.functional.pad(x, pad, mode=mode)
        return x
