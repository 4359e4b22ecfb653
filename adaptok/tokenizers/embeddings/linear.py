"""Embedding by one linear map per level."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, Count, product
from adaptok.patches import check_levels, gather_boxes, grid_index, patchify, rows_of_levels
from adaptok.registry import EMBEDDINGS
from adaptok.utils.arguments import LevelSizes, Positive, checked


@EMBEDDINGS.register("linear")
class LinearEmbedding(nn.Module):
    """One linear map per level of the cell's values (IAP, Sec. 2); clipped cells are zero-padded.

    Embeds only the patches that exist.

    Args:
        in_channels: channels of the field.
        dim: width of the features.
        sizes: cell size of each level, time first.
    """

    @checked
    def __init__(self, in_channels: Positive, dim: Positive, sizes: LevelSizes):
        super().__init__()
        self.sizes = sizes
        self.levels = nn.ModuleList(nn.Linear(in_channels * product(s), dim) for s in sizes)

    def forward(self, x: Float[Tensor, "b t c *s"], cells: Cells) -> Float[Tensor, "n d"]:
        """Features of each cell, in the order of the cells."""
        check_levels(cells, self.sizes)
        rows = rows_of_levels(cells)
        parts = []
        for level, (linear, own) in enumerate(zip(self.levels, rows, strict=True)):
            if not cells.on_grid:
                parts.append(linear(gather_boxes(x, cells, level, own)))
                continue
            patches = patchify(x, cells.sizes[level]).flatten(0, 1)  # (b * g, k)
            index = grid_index(cells, level)[own.clamp(max=cells.count - 1)]
            parts.append(linear(patches[index]))
        return restore_rows(torch.cat(parts), torch.cat(rows), cells.count)


def restore_rows(parts: Float[Tensor, "m d"], rows: torch.Tensor, n: Count) -> Float[Tensor, "n d"]:
    """Sorts results that were computed level by level back into row order; row number n is
    filler.
    """
    position = torch.zeros(n + 1, dtype=torch.int64, device=rows.device)
    position = position.scatter(0, rows, torch.arange(rows.shape[0], device=rows.device))
    return parts[position[:n]]
