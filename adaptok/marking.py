"""Marking: rules that turn node scores into "split this node"."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from adaptok.cells import product
from adaptok.refine import Tree
from adaptok.registry import MARKINGS

Budget = int | Sequence[int] | Tensor


class Marks(NamedTuple):
    """Split masks, and the resulting leaves per sample where the host knows them."""

    split: Tensor  # bool (b, f, inner)
    lengths: tuple[int, ...] | None


class Marking(Protocol):
    """Node scores to split masks.

    `monotone` says that no child outscores its parent; `shared` is the number of frames that use
    each tiling; budgets and lengths count the leaves of all of a sample's frames. `controls` names
    what may change per call.
    """

    controls: tuple[str, ...]

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
    ) -> Marks:
        """Marks the nodes to split."""
        ...


@MARKINGS.register("budget")
class BudgetMarking:
    """Best-first refinement to a token budget (IAP, Algorithms 1 and 2), never above it.

    Ties split the coarser node first, then in raster order.

    Args:
        budget: cells per sample over all frames; per call also one number per sample.
        splits_per_step: 1 is exact best-first refinement in one shot; K > 1 runs the paper's loop,
            which splits the K best leaves per step.
    """

    controls = ("budget",)

    def __init__(self, *, budget: int = 256, splits_per_step: int = 1):
        if splits_per_step < 1:
            raise ValueError(f"splits_per_step must be at least 1, got {splits_per_step}")
        self.budget, self.splits_per_step = budget, splits_per_step

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        budget: Budget | None = None,
    ) -> Marks:
        """Marks the best nodes; raises ``ValueError`` for a budget below what the domain needs."""
        b, frames, _ = scores.shape
        budgets = per_sample(self.budget if budget is None else budget, b)
        plans = [_plan(t, tree, frames, shared, self.splits_per_step) for t in budgets]
        splits = tuple(splits for splits, _ in plans)
        lengths = tuple(length * shared for _, length in plans)
        nodes = tree.nodes(scores.device)
        # What the borders force goes first; what lies outside never exists.
        if tree.counts()[1]:
            scores = scores.masked_fill(nodes.forced, torch.inf)
            scores = scores.masked_fill(nodes.outside, -torch.inf)
        if self.splits_per_step > 1:
            split = split_stepwise(scores, tree, splits, self.splits_per_step)
        elif monotone:
            split = top_mask(scores.flatten(1), splits).view_as(scores)
        else:
            split = split_best_first(scores, tree, splits)
        return Marks(split, lengths)


@MARKINGS.register("random")
class RandomMarking:
    """Random refinement to a budget: the control experiment of any indicator.

    The tiling depends on the seed alone, so a batch equals its samples one by one.

    Args:
        budget: cells per sample over all frames; per call also one number per sample.
        seed: may change per call.
    """

    controls = ("budget", "seed")

    def __init__(self, *, budget: int = 256, seed: int = 0):
        self.seed = seed
        self._marking = BudgetMarking(budget=budget)

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        budget: Budget | None = None,
        seed: int | None = None,
    ) -> Marks:
        """Refines by random scores; the given ones only lend their shape."""
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        draws = torch.rand(scores.shape[1:], generator=generator).to(scores.device)
        return self._marking(draws.expand_as(scores), tree, shared=shared, budget=budget)


def per_sample(budget: Budget, batch: int) -> tuple[int, ...]:
    """One host budget per sample (a CUDA tensor of budgets costs a synchronisation).

    Raises:
        ValueError: not whole numbers, or not one per sample.
    """
    values = budget.tolist() if isinstance(budget, Tensor) else budget
    if isinstance(values, int):
        values = (values,) * batch
    listed = isinstance(values, Sequence) and len(values) == batch
    if listed and all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        return tuple(values)
    raise ValueError(f"budget is a whole number or {batch} of them, one per sample; got {budget!r}")


def _plan(budget: int, tree: Tree, frames: int, shared: int, step: int) -> tuple[int, int]:
    """(splits, cells) of one sample over `frames` trees, each used `shared` times; IAP Eq. 1."""
    leaves, forced, possible = (frames * count for count in tree.counts())
    children = {product(ratio) for ratio in tree.ratios}
    if budget < leaves * shared:
        raise ValueError(
            f"budget {budget} is below the {leaves * shared} cells that {frames * shared} frame(s) "
            f"of {tree.shape} need with cells of at most {tree.sizes[0]}"
        )
    budget //= shared
    if not children:
        return 0, leaves
    if len(children) > 1:
        raise ValueError(f"a budget needs one ratio between all levels, got sizes {tree.sizes}")
    gain = children.pop() - 1
    finest = leaves + (possible - forced) * gain
    if budget > finest:
        warnings.warn(
            f"budget {budget * shared} is above the {finest * shared} finest cells; "
            "every cell is the finest",
            stacklevel=2,
        )
    splits = min(step * ((budget - leaves) // (step * gain)), possible - forced)
    return forced + splits, leaves + splits * gain


def top_mask(scores: Float[Tensor, "b k"], counts: tuple[int, ...]) -> Bool[Tensor, "b k"]:
    """The `counts[i]` highest entries of row i; among equals the ones of lower index.

    A plain top-k leaves ties in any order and could take a child without its parent.
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
    """Exact best-first refinement for any scores, in one shot.

    Make scores distinct by rank (score, then node number). The key of a node is the list of suffix
    maxima of the ranks along the path from its root (the worst node on the path, then the worst
    below that one, ..., ending in the node). Nodes are popped in lexicographic order of their
    keys, a prefix before its extensions.
    """
    b, frames, inner = scores.shape
    if inner == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    index = torch.arange(1, frames * inner + 1, device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, index).view(b, frames, inner)
    bits = (frames * inner).bit_length()
    keys = _suffix_maxima(rank, tree)
    order = _lexicographic_order([k.flatten(1) for k in _packed_keys(keys, bits)])
    position = torch.empty_like(order).scatter_(1, order, index)
    if min(counts) == max(counts):
        return (position <= counts[0]).view(b, frames, inner)
    return (position <= torch.tensor(counts, device=scores.device)[:, None]).view(b, frames, inner)


def _suffix_maxima(
    rank: Int64[Tensor, "b f inner"], tree: Tree
) -> list[Int64[Tensor, "b f inner"]]:
    """Per depth of the stack one column of the keys, worst rank first, 0 where the stack has
    ended.
    """
    ranks = tree.per_level(rank)
    depth = len(ranks)
    stack = [torch.zeros_like(ranks[0]) for _ in range(depth)]
    columns: list[list[Tensor]] = [[] for _ in range(depth)]
    for level, own in enumerate(ranks):
        if level:
            stack = [tree.expand(column, level - 1) for column in stack]
        pushed = torch.zeros_like(own, dtype=torch.bool)
        for i, column in enumerate(stack):  # descending, so what stays is a prefix
            stays = column > own
            stack[i] = torch.where(stays, column, torch.where(pushed, 0, own))
            pushed = pushed | ~stays
            columns[i].append(stack[i])
    return [torch.cat(column, -1) for column in columns]


def _packed_keys(columns: list[Tensor], bits: int) -> list[Tensor]:
    """Columns joined into as few int64 as hold them, most significant first."""
    per_word = max(1, 63 // bits)
    words = []
    for start in range(0, len(columns), per_word):
        word = columns[start]
        for column in columns[start + 1 : start + per_word]:
            word = (word << bits) | column
        words.append(word)
    return words


def _lexicographic_order(words: list[Tensor]) -> Tensor:
    order = words[-1].argsort(dim=1, stable=True)
    for word in reversed(words[:-1]):
        order = order.gather(1, word.gather(1, order).argsort(dim=1, stable=True))
    return order


def split_stepwise(
    scores: Float[Tensor, "b f inner"], tree: Tree, counts: tuple[int, ...], step: int
) -> Bool[Tensor, "b f inner"]:
    """The paper's loop: each step splits the `step` best of the current leaves (IAP, Algorithm 1).

    What the borders force (score +inf) is split beforehand. A step with fewer candidates splits
    those, and the loop goes on until every sample has its number of splits.
    """
    nodes = tree.nodes(scores.device)
    split = nodes.forced.expand_as(scores).clone()
    left = torch.tensor(counts, device=scores.device)
    left = left - split.flatten(1).sum(1)
    forced = scores.shape[1] * tree.counts()[1]
    # List scheduling of out-trees on `step` machines ends within this many steps (Graham's bound).
    steps = -(-(max(counts) - forced) // step) + tree.levels
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
    """Inner nodes that exist and are leaves so far."""
    levels = tree.per_level(split)
    out = [~levels[0]]
    for level, parents in enumerate(levels[:-1]):
        out.append(tree.expand(parents, level) & ~levels[level + 1])
    return torch.cat(out, -1)
