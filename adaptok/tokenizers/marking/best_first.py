"""Best-first refinement as selections over all nodes at once, and the stepwise loop of IAP."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from adaptok.tree import Tree


def top_mask(scores: Float[Tensor, "b k"], counts: tuple[int, ...]) -> Bool[Tensor, "b k"]:
    """Selects the `counts[i]` highest entries of row i; among equals, those of lower index.

    A plain top-k breaks ties in any order and could take a child without its parent.
    """
    most = max(counts, default=0)
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if min(counts) == most:
        # A descending k-th value by selection; the values above it need no order.
        bar = scores.topk(most, 1, sorted=False).values.amin(1, keepdim=True)
        count = most
    else:
        wanted = torch.tensor(counts, device=scores.device)[:, None]
        values = scores.topk(most, 1).values
        bar = values.gather(1, (wanted - 1).clamp(min=0))
        bar = torch.where(wanted == 0, torch.inf, bar)
        count = wanted
    above, ties = scores > bar, scores == bar
    room = count - above.sum(1, keepdim=True)
    return above | (ties & (ties.cumsum(1) <= room))


def split_best_first(
    scores: Float[Tensor, "b f inner"], tree: Tree, counts: tuple[int, ...]
) -> Bool[Tensor, "b f inner"]:
    """Selects the nodes that exact best-first refinement splits, for any scores, in one shot.

    Scores become distinct ranks (by score, then by node number; 1 is best). The key of a node lists
    the suffix maxima of the ranks on the path from its root: the worst node of the path, the worst
    below that one, and so on, down to the node. A loop that always splits the best leaf pops nodes
    in lexicographic order of their keys, a prefix before its extensions.
    """
    b, frames, inner = scores.shape
    if inner == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    index = torch.arange(1, frames * inner + 1, device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, index).view(b, frames, inner)
    words = _packed_keys(_suffix_maxima(rank, tree), bits=(frames * inner).bit_length())
    *more, last = [word.flatten(1) for word in words]
    order = last.argsort(dim=1, stable=True)
    for word in reversed(more):  # lexicographic: stable sorts, the most significant word last
        order = order.gather(1, word.gather(1, order).argsort(dim=1, stable=True))
    position = torch.empty_like(order).scatter_(1, order, index)
    same = len(set(counts)) == 1  # one number needs no upload
    wanted = counts[0] if same else torch.tensor(counts, device=scores.device)[:, None]
    return (position <= wanted).view(b, frames, inner)


def _suffix_maxima(
    rank: Int64[Tensor, "b f inner"], tree: Tree
) -> list[Int64[Tensor, "b f inner"]]:
    """Computes the keys: per depth of the stack one column, worst rank first, 0 past its end.

    Four nodes as an example: roots A and B, children C and D of A, with ranks A 3, B 2, C 1, D 4
    (C scores best but cannot split before A). The stack of ranks along the path to each node:

        A: 3   B: 2   C: 3 1 (1 goes on top of the worse 3)   D: 4 (it pops 3, which is better)

    Padded with 0 and sorted, the keys are B 20, A 30, C 31, D 40: refinement splits B, then A, then
    C at once because A, the worst on its path, has been paid for, then D.
    """
    ranks = tree.per_level(rank)
    depth = len(ranks)
    stack = [torch.zeros_like(ranks[0]) for _ in range(depth)]
    columns: list[list[Tensor]] = [[] for _ in range(depth)]
    for level, own in enumerate(ranks):
        if level:
            stack = [tree.expand(column, level - 1) for column in stack]
        pushed = torch.zeros_like(own, dtype=torch.bool)
        for i, column in enumerate(stack):  # descending, so the entries that stay are a prefix
            stays = column > own
            stack[i] = torch.where(stays, column, torch.where(pushed, 0, own))
            pushed = pushed | ~stays
            columns[i].append(stack[i])
    return [torch.cat(column, -1) for column in columns]


def _packed_keys(columns: list[Tensor], bits: int) -> list[Tensor]:
    """Packs columns into as few int64 as hold them, most significant first.

    Ranks 1 to 4 take 3 bits: the key 3 1 becomes the word 0b011_001 = 25, A's 3 0 becomes 24; one
    sort of such words orders the nodes. Trees whose key exceeds 63 bits need a sort per word.
    """
    per_word = max(1, 63 // bits)
    words = []
    for start in range(0, len(columns), per_word):
        word = columns[start]
        for column in columns[start + 1 : start + per_word]:
            word = (word << bits) | column
        words.append(word)
    return words


def split_stepwise(
    scores: Float[Tensor, "b f inner"], tree: Tree, counts: tuple[int, ...], step: int
) -> Bool[Tensor, "b f inner"]:
    """Runs the paper's loop: each step splits the `step` best of the current leaves (IAP,
    Algorithm 1).

    What the borders force (score +inf) is split beforehand. A step with fewer candidates splits
    those; the loop continues until every sample has its number of splits.
    """
    nodes = tree.nodes(scores.device)
    split = nodes.forced.expand_as(scores).clone()
    left = torch.tensor(counts, device=scores.device)
    left = left - split.flatten(1).sum(1)
    forced = scores.shape[1] * tree.counts().forced
    # List scheduling of out-trees on `step` machines ends within this many steps (Graham's bound).
    steps = -(-(max(counts) - forced) // step) + tree.n_levels
    for _ in range(steps if max(counts) > forced else 0):
        candidates = _unsplit(split, tree) & ~nodes.outside
        masked = scores.masked_fill(~candidates, -torch.inf).flatten(1)
        order = masked.argsort(dim=1, descending=True, stable=True)[:, :step]
        room = torch.arange(order.shape[1], device=scores.device) < left[:, None]
        take = torch.zeros_like(masked, dtype=torch.bool).scatter_(1, order, room)
        take = take.view_as(split) & candidates
        split = split | take
        left = left - take.flatten(1).sum(1)
    return split


def _unsplit(split: Bool[Tensor, "b f inner"], tree: Tree) -> Bool[Tensor, "b f inner"]:
    """Finds the inner nodes that exist and are leaves so far."""
    levels = tree.per_level(split)
    out = [~levels[0]]
    for level, parents in enumerate(levels[:-1]):
        out.append(tree.expand(parents, level) & ~levels[level + 1])
    return torch.cat(out, -1)
