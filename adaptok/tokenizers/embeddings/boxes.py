"""One linear map for boxes of any size, resampled to a fixed number of points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.boxes import crop
from adaptok.registry import EMBEDDINGS
from adaptok.tokenizers.base import per_axis
from adaptok.utils.arguments import LevelSizes, PerAxis, Positive, checked


@EMBEDDINGS.register("boxes")
class BoxEmbedding(nn.Module):
    """Means over the equal parts of each box, and the logarithm of its extent, through one linear
    map; boxes may have any place and size, overlap and stick out of the domain (zeros there).

    Args:
        in_channels: channels of the field.
        dim: width of the features.
        sizes: cell size of each level, time first; not used, boxes say everything.
        points: parts of each box, one number or one per space axis.
        frames: parts of each box along time.
    """

    @checked
    def __init__(
        self,
        in_channels: Positive,
        dim: Positive,
        sizes: LevelSizes,
        *,
        points: PerAxis = 4,
        frames: Positive = 1,
    ):
        super().__init__()
        self.points = parts_of_box(points, frames, len(sizes[0]) - 1)
        self.linear = nn.Linear(in_channels * product(self.points) + len(self.points), dim)

    def forward(self, x: Float[Tensor, "b t c *s"], cells: Cells) -> Float[Tensor, "n d"]:
        """Features of each cell, in the order of the cells."""
        values = crop(x, cells.sample, cells.origin, cells.size, self.points).flatten(1)
        return self.linear(torch.cat([values, log_extent(cells, values.dtype)], 1))


def parts_of_box(points: int | Sequence[int], frames: int, ndim: int) -> tuple[int, ...]:
    """Returns the parts of a box along (t, *space); raises ``ValueError`` for invalid numbers."""
    return (*per_axis(frames, 1, "frames"), *per_axis(points, ndim, "points"))


def log_extent(cells: Cells, dtype: torch.dtype) -> Float[Tensor, "n a"]:
    """Binary logarithm of each cell's size along (t, *space)."""
    return cells.size.to(torch.promote_types(dtype, torch.float32)).log2().to(dtype)
