"""A small convolutional solver, modulated by the tokens, at all grid points or at some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.decoders.refine.blocks import Blocks
from adaptok.layers.boundary import Boundary, pad_around
from adaptok.layers.convolution import conv_class
from adaptok.patches import point_owners


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
        sources = self._sources(x, 1 if blocks is None else blocks.block, boundary)
        modulation = self.modulation(features)
        if blocks is None:
            z = self._convolved(sources)
            z = self._pointwise(_modulated(z, modulation, point_owners(cells).flatten(0, 1)))
            return z.movedim(-1, 1)
        parts = [
            F.linear(blocks.taps(source, spacing, spacing), _as_matrix(conv.weight), conv.bias)
            for source, conv, spacing in zip(sources, self.stencils, self.spacings, strict=True)
        ]
        z = sum(parts[1:], parts[0]).unflatten(0, (blocks.index.shape[0], -1))
        z = self._pointwise(_modulated(z, modulation, blocks.owners(cells)))
        return blocks.scatter(z.flatten(0, 1), x.shape[0])

    def _sources(self, x: Tensor, block: int, boundary: Boundary) -> list[Tensor]:
        """Means over the spacing of each stencil, channels last, with a margin of the spacing; up
        to multiples of the block.
        """
        space, reach = x.shape[2:], max(s + s // 2 for s in self.spacings)
        x = pad_around(x, [(reach, reach + -n % block) for n in space], boundary)
        x = x.movedim(1, -1).contiguous()
        found = []
        for spacing in self.spacings:
            source, margin = _means(x, spacing), spacing + spacing // 2
            for axis in range(1, x.ndim - 1):
                cut = reach - margin
                source = source.narrow(axis, cut, source.shape[axis] - 2 * cut)
            found.append(source.contiguous())
        return found

    def _convolved(self, sources: Sequence[Tensor]) -> Float[Tensor, "f *s w"]:
        convolved = [
            conv(source.movedim(-1, 1)).movedim(1, -1)
            for source, conv in zip(sources, self.stencils, strict=True)
        ]
        return sum(convolved[1:], convolved[0])

    def _pointwise(self, z: Float[Tensor, "... w"]) -> Float[Tensor, "... o"]:
        z = F.gelu(z)
        for layer in self.layers:
            z = F.gelu(layer(z))
        return self.head(z)


def zeroed(layer: nn.Module) -> nn.Module:
    """Sets the weights of a layer to zero, so that what it is added to starts unchanged."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def _as_matrix(weight: Float[Tensor, "w c *k"]) -> Float[Tensor, "w k"]:
    return weight.movedim(1, -1).flatten(1)


def _modulated(
    z: Float[Tensor, "*q w"], modulation: Float[Tensor, "n m"], owner: Int64[Tensor, "*r"]
) -> Float[Tensor, "*q w"]:
    """Gain and bias of the owner; none where there is no owner."""
    own = F.embedding(owner.clamp(min=0), modulation) * (owner >= 0)[..., None]
    gain, bias = own.chunk(2, -1)
    return torch.addcmul(z + bias, z, gain)


def _means(x: Float[Tensor, "f *s c"], size: int) -> Float[Tensor, "f *r c"]:
    """Means over `size` points per axis, at the points that have all of them."""
    if size == 1:
        return x
    for axis in range(1, x.ndim - 1):
        n = x.shape[axis] - size + 1
        total = x.narrow(axis, 0, n)
        for shift in range(1, size):
            total = total + x.narrow(axis, shift, n)
        x = total
    return x / size ** (x.ndim - 2)
