"""One linear head per level, painting each cell."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import product
from adaptok.patches import grid_index, level_grid, rows_of_levels, unpatchify
from adaptok.registry import DECODERS
from adaptok.tokens import TokenizerSpec, TokenSet


@DECODERS.register("linear")
class LinearDecoder(nn.Module):
    """Each token paints its own cell through the linear head of its level; overlaps add up.

    On uniform cells this is the head of a plain ViT. Cells lie on the grid of their level.

    Args:
        spec: of the tokenizer.
        out_channels: channels of the decoded field.

    Raises:
        ValueError: the tokens carry a layout of their own, so boxes do not say where they lie.
    """

    def __init__(self, spec: TokenizerSpec, out_channels: int):
        super().__init__()
        if spec.layout is not None:
            raise ValueError(
                f"decoder 'linear' paints cells on the grid of their level, but this tokenizer's "
                f"tokens overlap by a {spec.layout.__name__}; use the decoder paired with it"
            )
        self.out_channels = out_channels
        self.levels = nn.ModuleList(
            nn.Linear(spec.dim, out_channels * product(size)) for size in spec.sizes
        )

    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Field of the shape that the cells were made for."""
        cells, features = tokens.cells, tokens.features
        b, n = cells.batch_size, len(cells)
        field = None
        rows = rows_of_levels(cells)
        for level, (head, own) in enumerate(zip(self.levels, rows, strict=True)):
            size = cells.sizes[level]
            count = b * product(level_grid(cells.shape, size))
            real = own.clamp(max=n - 1)
            slots = torch.where(own < n, grid_index(cells, level)[real], count)
            patches = head(features[real])  # (m, c * volume)
            canvas = patches.new_zeros(count + 1, patches.shape[1]).index_add(0, slots, patches)
            painted = unpatchify(canvas[:count].unflatten(0, (b, -1)), cells.shape, size)
            field = painted if field is None else field + painted
        assert field is not None
        return field
