"""The misplaced fine tokens of MATEY's paper-era code."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Cells, product
from adaptok.patches import grid_index, level_grid


def misplaced_center(cells: Cells) -> Float[Tensor, "n a"]:
    """Returns centres in grid points, with fine cells where MATEY's paper-era code puts them.

    That code mistakes the rank of a refined cell among the refined cells of its frame for the index
    of the cell, so the fine tokens of the k-th refined cell claim to lie in coarse cell k.

    Raises:
        ValueError: other than two levels, which that code does not have.
    """
    if len(cells.sizes) != 2:
        raise ValueError(f"misplaced positions have two levels, these cells {len(cells.sizes)}")
    if cells.mixed is not None:
        each = [cells.samples(i, i + 1) for i in range(int(cells.batch_size))]
        return torch.cat([misplaced_center(own) for own in each])
    coarse, fine = cells.sizes[0], cells.level == 1
    grid = level_grid(cells.reach, coarse)
    count, space = cells.batch_size * product(grid), product(grid[1:])
    parent = grid_index(cells, 0)  # of a fine cell: the coarse grid cell around its origin
    refined = torch.zeros(count, dtype=torch.int64, device=cells.device)
    refined = refined.scatter_reduce(0, parent, fine.long(), "amax").view(-1, space)
    rank = (refined.cumsum(1) - 1).flatten()[parent]  # within its frame
    actual = parent % space
    shift = torch.zeros_like(cells.origin)
    for axis in range(cells.ndim, 0, -1):
        cell = rank % grid[axis] - actual % grid[axis]
        shift[:, axis] = cell * coarse[axis]
        rank, actual = rank // grid[axis], actual // grid[axis]
    return cells.center + torch.where(fine[:, None], shift, 0)
