"""Changes of scores: they favour the tiling of the step before, leave room around what will move
(as regridding codes do), and weigh where errors matter.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.cells import Cells, product
from adaptok.layers.boundary import Boundary, pad_around
from adaptok.patches import level_grid
from adaptok.tokenizers.asked import nodes_of
from adaptok.tree import Tree, sum_pyramid
from adaptok.utils.arguments import NonNegative, NonNegativeFloat, check_value, shown
from adaptok.utils.reading import reads_are_free

PAST = ("previous", "hysteresis", "buffer", "sensitivity")  # settings of a call, of every tree


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


def weighed(
    scores: Float[Tensor, "b f inner"], sensitivity: Float[Tensor, "b *s"], tree: Tree
) -> Float[Tensor, "b f inner"]:
    """Multiplies the score of each node by the sensitivity that lies in it, per grid point of a
    coarsest node; divides negative scores by it.

    With the squared errors of `near_best` this is the square of the dual-weighted residual,
    ``||dJ/du||^2 ||u - Pu||^2`` over the node. Scores of which no child exceeds its parent stay so.

    Args:
        sensitivity: squared gradient at each grid point.
    """
    inside = sum_pyramid(sensitivity[:, None].to(scores.dtype), tree)
    weight = (inside / product(tree.sizes[0])).clamp(min=torch.finfo(scores.dtype).tiny)
    return torch.where(scores < 0, scores / weight, scores * weight)


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


def check_sensitivity(sensitivity: Any, shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` for a sensitivity that is no map of finite numbers from 0 on.

    Args:
        sensitivity: as given.
        shape: (b, *space) of the field.
    """
    if not isinstance(sensitivity, Tensor) or not sensitivity.is_floating_point():
        raise ValueError(f"sensitivity is a map of numbers {shape}, got {shown(sensitivity)}")
    if tuple(sensitivity.shape) != shape:
        raise ValueError(
            f"sensitivity has a number per grid point {shape}, got {tuple(sensitivity.shape)}"
        )
    if reads_are_free(sensitivity) and not bool(
        (sensitivity >= 0).logical_and(sensitivity.isfinite()).all()
    ):
        raise ValueError("sensitivity must be finite and not negative")


def check_past(hysteresis: Any, buffer: Any) -> None:
    """Raises ``ValueError`` for a hysteresis or buffer that is negative or no number."""
    check_value(hysteresis, NonNegativeFloat, "hysteresis")
    check_value(buffer, NonNegative, "buffer")
