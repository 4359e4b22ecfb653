"""A learned table of positions, resampled to the cells of each level."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.patches import level_grid
from adaptok.utils.constants import cached_constant
from adaptok.utils.derived import Derived
from adaptok.utils.precision import without_autocast


class LearnedPositions(nn.Module):
    """Reads the position of a cell off a learned table over space, as in ViT and APT (Sec. 3.2).

    The table is stretched over the finest cells of any field, and resampled to the grid of each
    level with an antialiased bicubic filter (that of Pillow and PyTorch), axis by axis, in 1, 2 or
    3 dimensions. Frames share it. The resampled tables are kept until the table changes, see
    `adaptok.utils.derived.Derived`.

    Args:
        dim: width of the features.
        grid: side of the table in finest cells, per space axis.
        pooled: a coarse cell has the mean of the positions of its finest cells instead.
    """

    def __init__(self, dim: int, grid: Sequence[int], *, pooled: bool = False):
        super().__init__()
        self._resample = pooled_positions if pooled else resample_positions
        self.table = nn.Parameter(torch.empty(*grid, dim))
        nn.init.trunc_normal_(self.table, std=0.02)
        self._kept = Derived()

    def forward(self, cells: Cells) -> Float[Tensor, "n d"]:
        """Returns the position of each cell."""
        return self.tables(cells).index_select(0, position_rows(cells))

    def tables(self, cells: Cells) -> Float[Tensor, "m d"]:
        """Resamples the table to all levels, coarse to fine, each in raster order."""
        table = self.table
        make = functools.partial(self._resample, table, cells.shape[1:], cells.sizes)
        return self._kept(table, (cells.shape[1:], cells.sizes), make, self.training)


def resample_positions(
    table: Float[Tensor, "*g d"], space: tuple[int, ...], sizes: tuple[tuple[int, ...], ...]
) -> Float[Tensor, "m d"]:
    """Resamples a table over the finest cells of a domain to the cells of every level.

    Args:
        table: per finest cell, in any resolution.
        space: grid points per space axis.
        sizes: cell sizes coarse to fine, time first.

    Returns:
        tables: level after level, each in the raster order of ``ceil(space / size)``;
            differentiable.
    """
    out, exact = [], torch.promote_types(table.dtype, torch.float32)
    for size in sizes:
        x = table.to(exact)
        for axis, (n, s, fine) in enumerate(zip(space, size[1:], sizes[-1][1:], strict=True)):
            cells = -(-n // fine) * fine / s  # the domain in cells of this level
            scale, like = table.shape[axis] / cells, (exact, x.device)
            x = _weighted(x, axis, _bicubic(table.shape[axis], -(-n // s), scale, *like))
        out.append(x.flatten(0, -2))
    return torch.cat(out).to(table.dtype)


def pooled_positions(
    table: Float[Tensor, "*g d"], space: tuple[int, ...], sizes: tuple[tuple[int, ...], ...]
) -> Float[Tensor, "m d"]:
    """As `resample_positions`, but the position of a coarse cell is the mean over its finest
    cells.
    """
    finest = sizes[-1][1:]
    x = resample_positions(table, space, sizes[-1:]).unflatten(0, level_grid(space, finest))
    out = []
    for size in sizes:
        pooled = x
        for axis, (s, fine) in enumerate(zip(size[1:], finest, strict=True)):
            if s > fine:
                pooled = _weighted(
                    pooled, axis, _means(x.shape[axis], s // fine, x.dtype, x.device)
                )
        out.append(pooled.flatten(0, -2))
    return torch.cat(out)


class PositionedEmbedding(nn.Module):
    """Adds learned positions to the features of an embedding.

    Args:
        embedding: called as ``embedding(x, cells)``.
        positions: called as ``positions(cells)``.
    """

    needs_grid = True

    def __init__(self, embedding: nn.Module, positions: LearnedPositions):
        super().__init__()
        self.embedding, self.positions = embedding, positions

    def forward(self, x: Float[Tensor, "b t c *s"], cells: Cells) -> Float[Tensor, "n d"]:
        """Returns features of each cell, in the order of the cells."""
        features = self.embedding(x, cells)
        return features + self.positions(cells).to(features.dtype)


def position_rows(cells: Cells) -> Int64[Tensor, " n"]:
    """Finds the row of each cell in the tables of all levels."""
    size, stride, start = _layout(cells.shape[1:], cells.sizes, cells.device)
    level = cells.level.long()
    place = cells.origin[:, 1:] // size.index_select(0, level)
    return start.index_select(0, level) + (place * stride.index_select(0, level)).sum(1)


@cached_constant(128)
def _layout(
    space: tuple[int, ...], sizes: tuple[tuple[int, ...], ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes and strides of each level per space axis, and its first row in the tables."""
    grids = [level_grid(space, size[1:]) for size in sizes]
    strides = [[product(grid[axis + 1 :]) for axis in range(len(grid))] for grid in grids]
    starts = [0, *itertools.accumulate(map(product, grids))][:-1]
    columns = [size[1:] for size in sizes], strides, starts
    size, stride, start = (torch.tensor(column, device=device) for column in columns)
    return size, stride, start


def _weighted(x: Tensor, axis: int, weights: Tensor | None) -> Tensor:
    if weights is None:
        return x
    with without_autocast(x):  # half precision is too coarse
        return (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)


@cached_constant(128)
def _bicubic(
    given: int, wanted: int, scale: float, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Computes weights (wanted, given) of the antialiased bicubic filter, None for the identity.

    `scale` is the number of given entries per wanted one.
    """
    if given == wanted and scale == 1:
        return None
    # A cell beyond the domain has no position; clamping only keeps its weights finite.
    center = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * scale).clamp(max=given)
    entry = torch.arange(given, dtype=torch.float64) + 0.5
    x = (entry - center[:, None]).abs() / max(scale, 1.0)
    near = (1.5 * x - 2.5) * x * x + 1  # Keys' cubic with a = -1/2
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    return (weights / weights.sum(1, keepdim=True)).to(dtype).to(device)


@cached_constant(128)
def _means(given: int, block: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Computes weights (blocks, given) of means over blocks, the last of which may be shorter."""
    owner = torch.arange(given) // block
    weights = torch.nn.functional.one_hot(owner).T.to(dtype)
    return (weights / weights.sum(1, keepdim=True)).to(device)
