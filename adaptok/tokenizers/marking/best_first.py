"""Best-first refinement as selections over all nodes at once, and the stepwise loop of IAP."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from adaptok.cells import Lengths
from adaptok.cells.lengths import column, distinct
from adaptok.tree import Tree, leaves
from adaptok.utils.reading import reads_are_free


class Wanted(NamedTuple):
    """How many nodes each sample splits, and bounds that the host knows."""

    counts: Int64[Tensor, "b 1"]
    least: int
    most: int

    @classmethod
    def of(cls, counts: Lengths | Wanted, device: torch.device) -> Wanted:
        """Uploads numbers of the host."""
        if isinstance(counts, Wanted):
            return counts
        known = distinct(counts)
        return cls(column(counts, device), min(known, default=0), max(known, default=0))


def top_mask(scores: Float[Tensor, "b k"], counts: Lengths | Wanted) -> Bool[Tensor, "b k"]:
    """Selects the `counts[i]` highest entries of row i; among equals, those of lower index.

    A plain top-k breaks ties in any order and could take a child without its parent.
    """
    wanted = Wanted.of(counts, scores.device)
    bar = _nth_highest(scores, *wanted)
    above, ties = scores > bar, scores == bar
    room = wanted.counts - above.sum(1, keepdim=True)
    return above | (ties & (ties.cumsum(1) <= room))


def split_best_first(
    scores: Float[Tensor, "b f inner"], tree: Tree, counts: Lengths | Wanted
) -> Bool[Tensor, "b f inner"]:
    """Exact best-first refinement for any scores, by selection instead of sorting.

    The bottleneck of a node is the lowest score on the path from its root. When a heap first runs
    out of nodes above some score, it has popped exactly the nodes whose bottleneck is above it. So
    the bottleneck of rank `counts[i]` (the bar) decides everything but ties: what is above it
    splits. Nodes whose bottleneck equals the bar come in blocks: a head, whose own score is the
    bar, and the nodes below it that are reached through higher scores; a heap pops block after
    block in the order of their heads. At most one block per sample is cut, after its head, and
    inside of it the same question is asked again, one level deeper.

    Example: a root of score 2 with children 5 and 1, the 5 with children 3 and 4, to be split 3
    times. Bottlenecks 2, (2, 1), (2, 2): the third highest is 2, nothing is above it, and the
    nodes at 2 are one block (head 2; 5, 3, 4) of which 3 are wanted. Head first; below it the
    scores start anew: bottlenecks 5, (3, 4), the second highest is 4. So 2, 5 and 4 split.
    """
    if tree.n_levels == 1:
        return torch.zeros_like(scores, dtype=torch.bool)
    left, *bounds = Wanted.of(counts, scores.device)
    candidates = torch.ones_like(scores, dtype=torch.bool)
    return _pop(scores, candidates, left, (bounds[0], bounds[1]), tree, tree.n_levels - 1)


def _pop(
    scores: Float[Tensor, "b f inner"],
    candidates: Bool[Tensor, "b f inner"],
    left: Int64[Tensor, "b 1"],
    bounds: tuple[int, int],
    tree: Tree,
    rounds: int,
) -> Bool[Tensor, "b f inner"]:
    """The `left` first nodes that a heap pops among the candidates; `bounds` hold for `left`."""
    bottleneck = bottlenecks(scores, candidates, tree)
    bar = _nth_highest(bottleneck.flatten(1), left, *bounds)[:, :, None]
    above, at = bottleneck > bar, bottleneck == bar
    left = left - above.flatten(1).sum(1, keepdim=True)
    fits = at.flatten(1).sum(1) <= left.squeeze(1)
    taken = above | (at & fits[:, None, None])
    rows = None  # all of them, if asking which ones are not finished would sync
    if reads_are_free(scores):
        rows = (~fits).nonzero().squeeze(1)
        if not len(rows):
            return taken
        scores, at, left, bar = scores[rows], at[rows], left[rows], bar[rows]
    more, inside, left = _blocks(at, at & (scores == bar), left, tree)
    if rounds > 1:
        bounds = (int(left.min()), int(left.max())) if rows is not None else (0, bounds[1])
        more = more | _pop(scores, inside, left, bounds, tree, rounds - 1)
    return taken | more if rows is None else taken.index_put((rows,), taken[rows] | more)


def _nth_highest(
    values: Float[Tensor, "b k"], rank: Int64[Tensor, "b 1"], least: int, most: int
) -> Float[Tensor, "b 1"]:
    """The value of the given rank (1 is the highest) in each row, infinity for rank 0; all ranks
    are in least..most.
    """
    if most == 0:
        return values.new_full((values.shape[0], 1), torch.inf)
    if least == most:  # the values above it need no order
        return values.topk(most, 1, sorted=False).values.amin(1, keepdim=True)
    nth = values.topk(most, 1).values.gather(1, (rank - 1).clamp(min=0))
    return torch.where(rank == 0, torch.inf, nth)


def bottlenecks(
    scores: Float[Tensor, "b f inner"], candidates: Bool[Tensor, "b f inner"], tree: Tree
) -> Float[Tensor, "b f inner"]:
    """Lowest score on the path of candidates that leads to each candidate; -inf for the others."""
    levels: list[Tensor] = []
    may = tree.per_level(candidates)
    for level, own in enumerate(tree.per_level(scores)):
        low = own.masked_fill(~may[level], -torch.inf)
        if level:
            above = levels[-1].masked_fill(~may[level - 1], torch.inf)
            low = torch.minimum(low, tree.expand(above, level - 1))
        levels.append(low)
    return torch.cat([scores[..., :0], *levels], -1)


def _blocks(
    members: Bool[Tensor, "b f inner"],
    heads: Bool[Tensor, "b f inner"],
    left: Int64[Tensor, "b 1"],
    tree: Tree,
) -> tuple[Bool[Tensor, "b f inner"], Bool[Tensor, "b f inner"], Int64[Tensor, "b 1"]]:
    """Takes blocks in the order of their heads while there are nodes left to take.

    Returns:
        What is taken (whole blocks, and the head of the one that is cut), the rest of the cut
        block, and how many nodes are left to take there.
    """
    member, head = tree.per_level(members), tree.per_level(heads)
    sizes: list[Tensor] = []
    below = None  # nodes below each node that belong to its block
    for level in reversed(range(len(member))):
        size = member[level].int()
        if below is not None:
            size = size + size * tree.sum_children(below, level)
        sizes.insert(0, torch.where(head[level], size, 0))
        below = torch.where(head[level], 0, size)
    size = torch.cat(sizes, -1)
    ends = size.flatten(1).cumsum(1).view_as(size)
    whole = heads & (ends <= left[:, :, None])
    cut = heads & ~whole & (ends - size < left[:, :, None])
    spent = (size * whole).flatten(1).sum(1, keepdim=True) + cut.flatten(1).sum(1, keepdim=True)
    whole, inside = (_handed_down(mask, members & ~heads, tree) for mask in (whole, cut))
    return whole | cut, inside & ~cut, left - spent


def _handed_down(
    mask: Bool[Tensor, "b f inner"], through: Bool[Tensor, "b f inner"], tree: Tree
) -> Bool[Tensor, "b f inner"]:
    """The mask, and what is below it through nodes of `through`."""
    levels: list[Tensor] = []
    for level, (own, free) in enumerate(
        zip(tree.per_level(mask), tree.per_level(through), strict=True)
    ):
        levels.append(own | (tree.expand(levels[-1], level - 1) & free) if level else own)
    return torch.cat(levels, -1)


def split_stepwise(
    scores: Float[Tensor, "b f inner"], tree: Tree, counts: Lengths | Wanted, step: int
) -> Bool[Tensor, "b f inner"]:
    """Runs the paper's loop: each step splits the `step` best of the current leaves (IAP,
    Algorithm 1).

    What the borders force (score +inf) is split beforehand. A step with fewer candidates splits
    those; the loop continues until every sample has its number of splits.
    """
    split = tree.nodes(scores.device).forced.expand_as(scores).clone()
    wanted = Wanted.of(counts, scores.device)
    left, most = wanted.counts.squeeze(1) - split.flatten(1).sum(1), wanted.most
    forced = scores.shape[1] * tree.counts().forced
    # List scheduling of out-trees on `step` machines ends within this many steps (Graham's bound).
    inside = ~tree.nodes(scores.device).outside
    steps = -(-(most - forced) // step) + tree.n_levels
    for _ in range(steps if most > forced else 0):
        candidates = leaves(split, tree)[..., : tree.inner] & inside
        masked = scores.masked_fill(~candidates, -torch.inf).flatten(1)
        order = masked.argsort(dim=1, descending=True, stable=True)[:, :step]
        room = torch.arange(order.shape[1], device=scores.device) < left[:, None]
        take = torch.zeros_like(masked, dtype=torch.bool).scatter(1, order, room)
        take = take.view_as(split) & candidates
        split = split | take
        left = left - take.flatten(1).sum(1)
    return split
