"""Features of a wrapped model: special tokens and cell tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from adaptok.cells import Cells, Groups, product
from adaptok.layers.mixed import by_shape
from adaptok.patches import level_grid, owner_grid
from adaptok.tokens import TokenSet
from adaptok.utils.constants import constant


class VisionTokens(NamedTuple):
    """Holds the features of a batch of images, (b, tokens, dim) in timm, without padding.

    Attributes:
        prefix: class and register tokens, in timm's order.
        tokens: one feature per cell, with its cell.
    """

    prefix: Float[Tensor, "b p d"]
    tokens: TokenSet

    @property
    def cells(self) -> Cells:
        """Cells of all images."""
        return self.tokens.cells

    def padded(self) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
        """Returns timm's layout (prefix first, zero rows up to the longest image) and a mask of
        the real rows.

        With finest cells only, it equals timm's ``forward_features``, order included.
        """
        dense, mask = self.tokens.padded()
        real = mask.new_ones(self.prefix.shape[:2])
        return torch.cat([self.prefix, dense], 1), torch.cat([real, mask], 1)

    def split(self) -> list[Float[Tensor, "m d"]]:
        """Returns the rows of each image, prefix first."""
        rows = zip(self.prefix, self.tokens.split(), strict=True)
        return [torch.cat([prefix, own]) for prefix, own in rows]

    def dense(self) -> Float[Tensor, "b d gh gw"] | list[Tensor]:
        """Replicates each token over the finest cells that its cell covers; differentiable.

        The map has one point per finest cell; images of different size give a list of maps
        (d, gh, gw).
        """
        return dense_map(self.tokens)


def dense_map(tokens: TokenSet) -> Float[Tensor, "b d gh gw"] | list[Tensor]:
    """Gathers features of cells on the grid of the finest cells (APT, Sec. 3: dense tasks).

    Tokens of images of different size give a list of maps (d, gh, gw).

    Raises:
        ValueError: the cells leave holes, for example where patches were dropped.
    """
    cells = tokens.cells
    if not cells.tiling:
        raise ValueError("a dense map needs cells that cover the image; these leave holes")
    if cells.mixed is not None:
        return [one for part in by_shape(tokens) for one in dense_map(part)]
    _, *grid = level_grid(cells.shape, cells.sizes[-1])
    rows = tokens.features[owner_grid(cells)]  # (b, g, d)
    return rows.unflatten(1, grid).permute(0, 3, 1, 2)


def area_bias(
    cells: Cells, groups: Groups, prefix: int, weighted: float
) -> Float[Tensor, " n"] | None:
    """Returns the logarithm of the patches in each cell times a power, to be added to the scores of
    keys, in the order of the packed rows; 0 for special tokens. None for the power 0.

    Args:
        groups: of all rows of an image, special tokens first.
        prefix: special tokens per image.
    """
    if not weighted:
        return None
    bias = weighted * patches_per_cell(cells).log()
    return groups.gather(torch.cat([bias.new_zeros(cells.batch_size * prefix), bias]))


def tokens_per_level(cells: Cells) -> dict[tuple[int, int], Int64[Tensor, " b"]]:
    """Counts the cells of each image by their size in pixels, the smallest first."""
    b, levels = cells.batch_size, len(cells.sizes)
    keys = cells.sample * levels + cells.level.long()
    counts = torch.bincount(keys, minlength=b * levels).view(b, levels)
    return {(h, w): counts[:, i] for i, (_, h, w) in reversed([*enumerate(cells.sizes)])}


def patches_per_cell(cells: Cells) -> Float[Tensor, " n"]:
    """Counts the finest cells in each cell; the border clips nothing from the count."""
    finest = product(cells.sizes[-1])
    counts = tuple(product(size) / finest for size in cells.sizes)
    return constant(counts, cells.device)[cells.level.long()]
