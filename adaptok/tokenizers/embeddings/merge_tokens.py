"""Embedding at the finest size, and merging of the tokens inside coarser cells."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.positions import sinusoid, sinusoid_pairs
from adaptok.patches import check_levels, check_on_grid, grid_index, level_grid, pad_end, patchify
from adaptok.registry import EMBEDDINGS
from adaptok.utils.arguments import LevelSizes, Positive, checked


@EMBEDDINGS.register("merge_tokens")
class MergeTokensEmbedding(nn.Module):
    """Embeds every finest patch of the field, adds sinusoids of its place, and merges tokens level
    by level with convolutions whose stride is their kernel (OlmoEarth's variant of APT).

    The convolutions begin as averages, one per step from a level to the next coarser one: before
    training, the token of a cell is the mean of those of the finest patches in it, so that an
    embedding that was trained at the finest size serves all. Any module from values ``(m, channels
    * volume)`` to features may replace `patch`. The cost is that of a uniform grid of the finest
    cells, whatever the tiling.

    Args:
        in_channels: channels of the field.
        dim: width of the features.
        sizes: cell size of each level, time first.
        positions: add sinusoids of the centres of the finest patches, in units of these, before
            tokens merge.

    Raises:
        ValueError: positions in fewer channels than two per space axis.
    """

    needs_grid = True

    @checked
    def __init__(
        self, in_channels: Positive, dim: Positive, sizes: LevelSizes, *, positions: bool = True
    ):
        super().__init__()
        if positions:
            sinusoid_pairs(len(sizes[0]) - 1, dim)  # raises here, not in the first forward
        self.sizes, self.positions = sizes, positions
        self.ratios = [
            tuple(c // f for c, f in zip(*pair, strict=True)) for pair in itertools.pairwise(sizes)
        ]
        self.patch = nn.Linear(in_channels * product(sizes[-1]), dim)
        self.merges = nn.ModuleList(_average(product(ratio), dim) for ratio in self.ratios)

    def forward(self, x: Float[Tensor, "b t c *s"], cells: Cells) -> Float[Tensor, "n d"]:
        """Features of each cell, in the order of the cells."""
        check_on_grid(cells, "embedding 'merge_tokens'")
        check_levels(cells, self.sizes)
        patches = patchify(x, self.sizes[-1])  # (b, g, k)
        tokens = self.patch(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        grid = level_grid(cells.shape, self.sizes[-1])
        if self.positions:
            place = self._places(cells, grid, tokens.shape[-1])
            tokens = tokens + place.to(tokens.dtype)
        levels, tokens = [tokens.flatten(0, 1)], tokens.unflatten(1, grid)
        for merge, ratio in reversed([*zip(self.merges, self.ratios, strict=True)]):
            tokens = merge(_blocks(tokens, ratio))
            levels.insert(0, tokens.flatten(0, -2))
        row, start = torch.zeros_like(cells.sample), 0
        for level, table in enumerate(levels):
            row = torch.where(cells.level == level, start + grid_index(cells, level), row)
            start += table.shape[0]
        return torch.cat(levels).index_select(0, row)

    def _places(self, cells: Cells, grid: tuple[int, ...], dim: int) -> Float[Tensor, "g d"]:
        """Sinusoids of all finest patches of a sample, in raster order."""
        axes = [
            (torch.arange(g, device=cells.device) + 0.5) * size
            for g, size in zip(grid, self.sizes[-1], strict=True)
        ]
        center = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        return sinusoid(center, cells.shape, self.sizes[-1], dim)


def _average(children: int, dim: int) -> nn.Linear:
    """A linear map of the features of the children, one after the other, that is their mean."""
    merge = nn.Linear(children * dim, dim)
    with torch.no_grad():
        merge.weight.copy_(torch.eye(dim).repeat(1, children) / children)
        merge.bias.zero_()
    return merge


def _blocks(tokens: Float[Tensor, "b *g d"], ratio: tuple[int, ...]) -> Float[Tensor, "b *h e"]:
    """Puts the features of the children of each coarser cell, in raster order, behind one another;
    those beyond the border are 0, and no cell is made of them.
    """
    x = pad_end(tokens.movedim(-1, 1), ratio)
    for axis, factor in enumerate(ratio):
        x = x.unflatten(2 + 2 * axis, (-1, factor))  # (b, d, h0, r0, h1, r1, ...)
    a = len(ratio)
    x = x.permute(0, *range(2, 2 + 2 * a, 2), *range(3, 3 + 2 * a, 2), 1)
    return x.flatten(1 + a)
