"""What a wrapped model's feature layers return: special tokens and cell tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.cells import Cells, product
from adaptok.patches import level_grid, owner_grid
from adaptok.tokens import TokenSet
from adaptok.vision.constants import constant


class VisionTokens(NamedTuple):
    """Features of a batch of images: what timm gives as (b, tokens, dim), without padding.

    Attributes:
        prefix: class and register tokens, in timm's order.
        tokens: one feature per cell, with its cell.
    """

    prefix: Float[Tensor, "b p d"]
    tokens: TokenSet

    @property
    def cells(self) -> Cells:
        """The tiling of each image."""
        return self.tokens.cells

    def padded(self) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
        """timm's layout, prefix first, zero rows up to the longest image; and the real rows' mask.

        With finest cells only this equals the model's own ``forward_features``, order included.
        """
        dense, mask = self.tokens.padded()
        real = mask.new_ones(self.prefix.shape[:2])
        return torch.cat([self.prefix, dense], 1), torch.cat([real, mask], 1)

    def dense(self) -> Float[Tensor, "b d gh gw"]:
        """Each token replicated over the finest cells that its cell covers; differentiable.

        The map has one point per finest cell, ``(ceil(H / p), ceil(W / p))`` of them.
        """
        return dense_map(self.tokens)


def dense_map(tokens: TokenSet) -> Float[Tensor, "b d gh gw"]:
    """Features of cells on the grid of the finest cells (APT, Sec. 3: dense tasks).

    A gather, so that its gradient sums over the points of each cell.

    Raises:
        ValueError: the cells leave holes, such as patches that were dropped.
    """
    cells = tokens.cells
    if not cells.tiling:
        raise ValueError("a dense map needs cells that cover the image; these leave holes")
    _, *grid = level_grid(cells.shape, cells.sizes[-1])
    rows = tokens.features[owner_grid(cells)]  # (b, g, d)
    return rows.unflatten(1, grid).permute(0, 3, 1, 2)


def patches_per_cell(cells: Cells) -> Float[Tensor, " n"]:
    """Finest cells that each cell stands for; one that the border clips counts as a whole one."""
    finest = product(cells.sizes[-1])
    counts = tuple(product(size) / finest for size in cells.sizes)
    return constant(counts, cells.device)[cells.level.long()]
