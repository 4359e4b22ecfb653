"""What tilings hold of a field, and the best that any tree of as many cells can hold."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Cells, product
from adaptok.models.one_step import OneStepModel
from adaptok.models.over_time import OF_ROLLOUTS
from adaptok.models.surrogate import Surrogate
from adaptok.patches import finest_owner, grid_index
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tree import Tree, sum_pyramid


def tiling_errors(
    errors: Float[Tensor, "b nodes"], tree: Tree, cells: Cells
) -> Float[Tensor, " b"]:
    """Computes ``||f - Pf|| / ||f - mean f||`` of each sample, with P the best polynomial on each
    cell; of any cells of one frame that tile the domain on the grids of their levels.

    Args:
        errors: squared ones of all nodes of `tree_of` the cells, as `relative_errors` gives them.

    Raises:
        ValueError: cells that overlap, do not lie on these grids, or have several frames.
    """
    level = cells.level.long()
    off = cells.origin % torch.tensor(cells.sizes)[level]
    if not cells.tiling or cells.shape[0] > 1 or bool(off.any()):
        raise ValueError("the cells are no tiling of one frame on the grids of their levels")
    node = torch.zeros_like(level)
    for number, size in enumerate(cells.sizes):
        place = tree.sizes.index(size[1:])
        own = tree.offsets[place] + grid_index(cells, number) % product(tree.grids[place])
        node = torch.where(level == number, own, node)
    total = errors.new_zeros(cells.batch_size)
    return total.index_add(0, cells.sample, errors[cells.sample, node]).sqrt()


def tree_of(cells: Cells) -> Tree:
    """Returns the tree whose levels are the sizes of the cells."""
    sizes = dict.fromkeys(size[1:] for size in cells.sizes)  # they may differ in time alone
    return Tree(tuple(cells.shape[1:]), tuple(sizes), border="clip")


def visible(cells: Cells) -> Cells:
    """Leaves out the cells that smaller ones cover completely; what is left is a tiling if it is
    one. Of cells on the grids of their levels.
    """
    owner = finest_owner(cells)
    rows = owner.unique()
    seen = cells.select(rows[rows >= 0])
    whole = seen.volume.sum() == owner.numel() and bool((owner >= 0).all())
    return seen.replace(tiling=bool(whole))


def certificate_of(
    model: OneStepModel,
    field: Float[Tensor, "b t c *s"],
    *,
    constants: Tensor | None = None,
    boundary: Tensor | None = None,
    **control: Any,
) -> Float[Tensor, " b"] | None:
    """Asks the tokenizer of a surrogate for the error that its cells reach on what it scores, see
    `TreeTokenizer.certificate`; None for a model without a tree.
    """
    if not isinstance(model, Surrogate) or not isinstance(model.tokenizer, TreeTokenizer):
        return None
    control = model.with_goal(field, control, constants=constants, boundary=boundary)
    given = {"boundary": boundary, **control}
    scored = model.scored_ahead(field, constants, **given)
    own = {k: v for k, v in given.items() if k not in ("jitter", *OF_ROLLOUTS)}
    return model.tokenizer.certificate(scored, **own)


def flicker(cells: Cells, previous: Cells) -> Float[Tensor, " b"]:
    """Computes the share of the cells of each sample that were none before.

    Cells beyond the border do not count.

    Raises:
        ValueError: cells of other samples.
    """
    new = cells.match(previous) < 0
    counted = cells.volume > 0
    sums = torch.zeros(2, cells.batch_size, device=cells.device)
    sums.index_add_(1, cells.sample, torch.stack([new & counted, counted]).float())
    return sums[0] / sums[1].clamp(min=1)


def optimal_errors(
    errors: Float[Tensor, "b nodes"], tree: Tree, budget: int
) -> Float[Tensor, " b"]:
    """Finds the least error of any tree of at most `budget` cells, by dynamic programming over the
    number of splits below each node.

    Args:
        errors: squared ones of all nodes, as `relative_errors` gives them.

    Raises:
        ValueError: a domain that the sizes do not divide, levels of different ratios, or a budget
            below the number of coarsest cells.
    """
    gains = {product(ratio) - 1 for ratio in tree.ratios}
    if not tree.divides or len(gains) != 1:
        raise ValueError("the optimal tree needs a domain that divides, and one ratio of sizes")
    room = (budget - tree.inside[0]) // gains.pop()
    if room < 0:
        raise ValueError(f"budget {budget} is below the {tree.inside[0]} coarsest cells")
    levels = tree.per_level(errors)
    least = levels[-1].unsqueeze(-1)  # by number of splits: (b, nodes, splits)
    for level in reversed(range(tree.n_levels - 1)):
        below = _families(least, tree, level)
        split = _joined(below, room)[..., :room]
        least = torch.cat([levels[level].unsqueeze(-1), split], -1)
    return _joined(least, room).squeeze(1)[:, : room + 1].amin(-1).sqrt()


def _families(least: Tensor, tree: Tree, level: int) -> Tensor:
    """Groups the children of each node of a level, (b, nodes, children, splits)."""
    grid, ratio = tree.grids[level], tree.ratios[level]
    x = least.unflatten(1, [n for pair in zip(grid, ratio, strict=True) for n in pair])
    a = len(grid)
    x = x.permute(0, *range(1, 2 * a, 2), *range(2, 2 * a + 1, 2), 2 * a + 1)
    return x.flatten(1, a).flatten(2, a + 1)


def _joined(least: Tensor, room: int) -> Tensor:
    """Shares splits between the members of the axis before the last, in pairs; drops that axis of
    families (b, nodes, children, splits), keeps it as 1 for roots (b, nodes, splits).
    """
    dim = least.ndim - 2
    while least.shape[dim] > 1:
        pairs = least.shape[dim] // 2
        one, other = (least.narrow(dim, start * pairs, pairs) for start in (0, 1))
        count = min(one.shape[-1] + other.shape[-1] - 1, room + 1)
        joined = one.new_full((*one.shape[:-1], count), torch.inf)
        for splits in range(min(other.shape[-1], count)):
            part = one[..., : count - splits] + other[..., splits : splits + 1]
            head = joined[..., splits : splits + part.shape[-1]]
            head.copy_(torch.minimum(head, part))
        rest = least.narrow(dim, 2 * pairs, least.shape[dim] - 2 * pairs)
        if rest.shape[dim]:
            filled = rest.new_full((*rest.shape[:-1], count), torch.inf)
            filled[..., : rest.shape[-1]] = rest[..., :count]
            joined = torch.cat([joined, filled], dim)
        least = joined
    return least if dim == 1 else least.squeeze(dim)


def energy_share(
    change: Float[Tensor, "b t c *s"], scores: Float[Tensor, "b inner"], tree: Tree, share: float
) -> Float[Tensor, " b"]:
    """Computes which part of the squared change lies in the given share of the blocks, those of the
    highest score.

    Args:
        tree: two levels, blocks and points; of equal scores those of lower number are taken.
    """
    energy = sum_pyramid(change.square().sum((1, 2))[:, None], tree)[:, 0]
    best = scores.sort(dim=1, descending=True, stable=True).indices
    best = best[:, : round(share * tree.inner)]
    return energy.gather(1, best).sum(1) / energy.sum(1)
