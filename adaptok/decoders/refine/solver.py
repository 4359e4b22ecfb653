"""A small convolutional solver, modulated by the tokens, at all grid points or at some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.decoders.refine.blocks import Blocks
from adaptok.layers.boundary import Boundary, pad_around
from adaptok.layers.convolution import conv_class
from adaptok.layers.zeroed import zeroed
from adaptok.patches import point_owners

CACHED = 2**20  # values gathered at a time on a CPU, so that they stay in its cache


class PointSolver(nn.Module):
    """Stencils of the inputs, gain and bias from the token that owns the point, pointwise layers.

    A stencil of spacing s has 3 taps per axis, s points apart, of the means over s points per axis:
    with (1, 3) a point sees the 9 around it one by one, and 9 means of 9 points each (in 2D).
    Modulation and output begin at zero.

    Args:
        ndim: space axes.
        in_channels: channels of the inputs.
        dim: width of the tokens.
        out_channels: channels of the result.
        width: channels of the hidden layers.
        depth: pointwise layers between stencils and output.
        stencil: odd spacings.

    Raises:
        ValueError: no stencil, or an even spacing, whose means have no centre.
    """

    stencils: Any  # torch types the entries of a ModuleList as modules alone

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        dim: int,
        out_channels: int,
        *,
        width: int,
        depth: int,
        stencil: Sequence[int],
    ):
        super().__init__()
        self.spacings = tuple(stencil)
        if not self.spacings or any(spacing % 2 == 0 for spacing in self.spacings):
            raise ValueError(
                f"stencil is a list of odd spacings in grid points, got {list(stencil)}"
            )
        conv = conv_class(ndim)
        self.stencils = nn.ModuleList(
            conv(in_channels, width, 3, dilation=spacing, bias=number == 0)
            for number, spacing in enumerate(self.spacings)
        )
        self.modulation = zeroed(nn.Linear(dim, 2 * width))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = zeroed(nn.Linear(width, out_channels))

    def forward(
        self,
        x: Float[Tensor, "f c *s"],
        features: Float[Tensor, "n d"],
        cells: Cells,
        boundary: Boundary,
        blocks: Blocks | None = None,
    ) -> Float[Tensor, "f o *s"]:
        """Solves at the points of some blocks, zeros elsewhere; without blocks at all points.

        The cost of the first follows the points, but for reading the inputs once.

        Args:
            x: inputs of every frame.
            features: of the tokens.
            cells: of the tokens.
            boundary: codes of the frames.
        """
        modulation, owner = self.modulation(features), point_owners(cells).flatten(0, 1)
        if blocks is None:
            z = self._convolved(self._sources(x, 1, boundary))
            return self._pointwise(z, modulation, owner, cells.tiling).movedim(-1, 1)
        sources = self._sources(x, blocks.block, boundary)
        weights = [conv.weight.movedim(1, -1).flatten(1) for conv in self.stencils]
        alike = cells.on_grid and all(n % blocks.block == 0 for n in cells.sizes[-1][1:])
        most = CACHED // (weights[0].shape[1] * blocks.points)
        if sources[0][0].requires_grad:  # whose gradient is a whole field, for each part
            most = blocks.index.shape[0]
        rows = []
        for some in blocks.split(most):
            z = self._gathered(sources, weights, some)
            own = some.at_points(owner, first=alike)  # of all points alike: once per block
            rows.append(self._pointwise(z, modulation, own, cells.tiling).flatten(0, 1))
        return blocks.scatter(torch.cat(rows), x.shape[0])

    def _sources(self, x: Tensor, block: int, boundary: Boundary) -> list[tuple[Tensor, int]]:
        """Means over the spacing of each stencil, channels last, up to multiples of the block, and
        how many grid points more there are before and after.
        """
        reach = max(spacing + spacing // 2 for spacing in self.spacings)
        x = pad_around(x, [(reach, reach + -n % block) for n in x.shape[2:]], boundary)
        x = x.movedim(1, -1).contiguous()
        return [(_means(x, spacing), reach - spacing // 2) for spacing in self.spacings]

    def _convolved(self, sources: Sequence[tuple[Tensor, int]]) -> Float[Tensor, "f *s w"]:
        parts = []
        for (source, margin), conv, spacing in zip(
            sources, self.stencils, self.spacings, strict=True
        ):
            cut = margin - spacing
            inside = [slice(cut, n - cut) for n in source.shape[1:-1]]
            parts.append(conv(source[(slice(None), *inside)].movedim(-1, 1)).movedim(1, -1))
        return sum(parts[1:], parts[0])

    def _gathered(
        self, sources: Sequence[tuple[Tensor, int]], weights: Sequence[Tensor], blocks: Blocks
    ) -> Float[Tensor, "m p w"]:
        z = None
        for (source, margin), conv, weight, spacing in zip(
            sources, self.stencils, weights, self.spacings, strict=True
        ):
            part = F.linear(blocks.taps(source, margin, spacing), weight, conv.bias)
            z = part if z is None else z + part
        assert z is not None
        return z.unflatten(0, (blocks.index.shape[0], blocks.points))

    def _pointwise(
        self,
        z: Float[Tensor, "*q w"],
        modulation: Float[Tensor, "n m"],
        owner: Int64[Tensor, "*r"],
        tiling: bool,
    ) -> Float[Tensor, "*q o"]:
        own = F.embedding(owner if tiling else owner.clamp(min=0), modulation)
        if not tiling:  # nobody owns a hole
            own = own * (owner >= 0)[..., None]
        gain, bias = own.chunk(2, -1)
        z = F.gelu(torch.addcmul(z + bias, z, gain))
        for layer in self.layers:
            z = F.gelu(layer(z))
        return self.head(z)


def _means(x: Float[Tensor, "f *s c"], size: int) -> Float[Tensor, "f *r c"]:
    """Means over `size` points per axis, at the points that have all of them."""
    if size == 1:
        return x
    for axis in range(1, x.ndim - 1):
        n = x.shape[axis] - size + 1
        total = x.narrow(axis, 0, n) + x.narrow(axis, 1, n)
        for shift in range(2, size):
            total += x.narrow(axis, shift, n)
        x = total
    return x.mul_(1 / size ** (x.ndim - 2))
