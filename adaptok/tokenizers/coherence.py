"""Temporal coherence: scores that favour the tiling of the step before, and leave room around what
will move, as regridding codes do.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.cells import Cells
from adaptok.layers.boundary import Boundary, pad_around
from adaptok.patches import level_grid
from adaptok.tokenizers.asked import nodes_of
from adaptok.tree import Tree
from adaptok.utils.arguments import NonNegative, NonNegativeFloat, check_value, shown

PAST = ("previous", "hysteresis", "buffer")  # settings of a call, of every tree


def favoured(
    scores: Float[Tensor, "b f inner"], split: Bool[Tensor, "b f inner"], hysteresis: float
) -> Float[Tensor, "b f inner"]:
    """Multiplies the scores of nodes that were split before by 1 + hysteresis, and divides negative
    ones by it. Scores of which no child exceeds its parent stay so.
    """
    more = 1 + hysteresis
    return torch.where(split, torch.where(scores < 0, scores / more, scores * more), scores)


def spread(
    scores: Float[Tensor, "b f inner"], tree: Tree, boundary: Boundary, reach: int
) -> Float[Tensor, "b f inner"]:
    """Gives each node the largest score among its neighbours on the same level.

    Scores of which no child exceeds its parent stay so.

    Args:
        reach: to how many nodes along each axis; across the ends of periodic axes.
    """
    levels = []
    for own, grid, size in zip(tree.per_level(scores), tree.grids, tree.sizes, strict=False):
        whole = own.unflatten(-1, grid)
        inside = (..., *(slice(n) for n in level_grid(tree.shape, size)))
        x = pad_around(whole[inside], [(reach, reach)] * len(grid), boundary)
        for axis in range(2, x.ndim):
            x = x.unfold(axis, 2 * reach + 1, 1).amax(-1)
        whole = whole.clone()
        whole[inside] = x
        levels.append(whole.flatten(-len(grid)))
    return torch.cat([*levels, scores[..., :0]], -1)


def present(cells: Cells, tree: Tree, frames: int, frame_size: int) -> Bool[Tensor, "b f nodes"]:
    """Finds which nodes of a tree are cells.

    Args:
        frames: frames of cells to look at, from the first one.
        frame_size: of each.
    """
    count = tree.offsets[-1]
    frame = cells.origin[:, 0].long() // frame_size
    place = (cells.sample * frames + frame) * count + nodes_of(cells, tree, cells.level.long())
    none = cells.batch_size * frames * count
    place = torch.where(frame < frames, place, none)
    found = torch.zeros(none + 1, dtype=torch.bool, device=cells.device)
    found = found.index_fill(0, place, True)
    return found[:none].view(cells.batch_size, frames, count)


def ancestors(cell: Bool[Tensor, "b f nodes"], tree: Tree) -> Bool[Tensor, "b f inner"]:
    """Finds the nodes with a cell below them: those that were split."""
    levels, splits = tree.per_level(cell), [cell[..., :0]]
    below = levels[-1]
    for level in reversed(range(tree.n_levels - 1)):
        split = tree.sum_children(below.long(), level) > 0
        splits.insert(0, split)
        below = split | levels[level]
    return torch.cat(splits, -1)


def check_previous(cells: Any, batch: Any, shape: tuple[int, ...], sizes: Any) -> None:
    """Raises ``ValueError`` for previous cells that are none, or of another field or tokenizer.

    Args:
        cells: as given.
        batch: number of samples.
        shape: (t, *space) of the field.
        sizes: of the cells of the tokenizer.
    """
    if not isinstance(cells, Cells):
        raise ValueError(f"previous cells are those of an earlier call, got {shown(cells)}")
    there, here = (cells.batch_size, *cells.shapes[0]), (batch, *shape)
    if cells.mixed is not None or there != here:
        raise ValueError(f"previous cells are for (b, t, *space) = {there}, the field is {here}")
    if cells.sizes != sizes:
        raise ValueError(f"previous cells have the sizes {cells.sizes}, these have {sizes}")


def check_past(hysteresis: Any, buffer: Any) -> None:
    """Raises ``ValueError`` for a hysteresis or buffer that is negative or no number."""
    check_value(hysteresis, NonNegativeFloat, "hysteresis")
    check_value(buffer, NonNegative, "buffer")
