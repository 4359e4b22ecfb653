"""Refinement to a token budget."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.cells import Lengths, product
from adaptok.cells.lengths import distinct, each
from adaptok.registry import MARKINGS
from adaptok.tokenizers.marking.base import (
    Budget,
    Marks,
    OutOfReachError,
    per_sample,
    rankable,
)
from adaptok.tokenizers.marking.best_first import (
    Wanted,
    split_best_first,
    split_stepwise,
    top_mask,
)
from adaptok.tree import Tree
from adaptok.utils.arguments import Positive, checked

ROUNDS = 4  # of splits in place of those whose children lie beyond the border


@MARKINGS.register("budget")
class BudgetMarking:
    """Best-first refinement to a token budget (IAP, Algorithms 1 and 2), never above it.

    Ties split the coarser node first, then in raster order; tilings per frame go frame by frame.
    If cells may stick out of the domain, a split that leaves children beyond the border pays only
    for those inside; the few cells that are missing to a number that the host knows lie beyond it.

    Args:
        budget: cells per sample over all frames; per call also one number per sample.
        splits_per_step: 1 is exact best-first refinement in one shot; K > 1 runs the paper's loop,
            which splits the K best leaves per step.
        per_batch: the samples of a batch share the sum of their budgets, so that those with more
            content get more cells. The total, and with it every shape, stays fixed; what a sample
            gets depends on its batch.
    """

    controls = ("budget",)
    static = True

    @checked
    def __init__(
        self, *, budget: Positive = 256, splits_per_step: Positive = 1, per_batch: bool = False
    ):
        self.budget, self.splits_per_step, self.per_batch = budget, splits_per_step, per_batch

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
        budgets = per_sample(self.budget if budget is None else budget, scores.shape[0])
        if not self.per_batch:
            return self._mark(scores, tree, budgets, monotone, shared)
        if not isinstance(budgets, tuple):
            raise ValueError("a budget that samples share (per_batch) needs a batch of known size")
        whole = scores.flatten(0, 1).unsqueeze(0)  # the frames of one large sample
        marks = self._mark(whole, tree, (sum(budgets),), monotone, shared)
        assert isinstance(marks.lengths, tuple)
        return Marks(marks.split.view_as(scores), None, marks.lengths[0])

    def _mark(
        self, scores: Tensor, tree: Tree, budgets: Lengths, monotone: bool, shared: int
    ) -> Marks:
        frames = scores.shape[1]
        step = self.splits_per_step
        plans = {t: plan(t, tree, frames, shared, step) for t in distinct(budgets)}
        _warn_above_finest(budgets, tree, frames * shared)
        splits = each(budgets, lambda t: plans[t][0])
        lengths = each(budgets, lambda t: plans[t][1] * shared)
        split = self._split(rankable(scores, tree), tree, splits, monotone)
        return Marks(split, lengths)

    def _split(
        self, scores: Tensor, tree: Tree, counts: Lengths, monotone: bool
    ) -> Bool[Tensor, "b f inner"]:
        if self.splits_per_step > 1:
            return split_stepwise(scores, tree, counts, self.splits_per_step)
        return split_within(scores, tree, counts, monotone=monotone)


def split_within(
    scores: Float[Tensor, "b f inner"], tree: Tree, counts: Lengths, *, monotone: bool
) -> Bool[Tensor, "b f inner"]:
    """Splits the best nodes, as many as `plan` counts. Children beyond the border are no use, so
    that others split in their place, round by round.
    """
    split = _best(scores, tree, counts, monotone)
    if tree.n_levels == 1 or not tree.overhangs:
        return split
    first, beyond = Wanted.of(counts, scores.device), tree.nodes(scores.device).beyond
    most = scores.shape[1] * tree.counts().possible
    for _ in range(ROUNDS):
        spare = (split * beyond).flatten(1).sum(1, keepdim=True)
        more = first.counts + spare // (product(tree.ratios[0]) - 1)
        wanted = Wanted(more.clamp(max=most), first.least, most)
        split = _best(scores, tree, wanted, monotone)
    return split


def _best(
    scores: Float[Tensor, "b f inner"], tree: Tree, counts: Lengths | Wanted, monotone: bool
) -> Bool[Tensor, "b f inner"]:
    if monotone:
        return top_mask(scores.flatten(1), counts).view_as(scores)
    return split_best_first(scores, tree, counts)


def plan(budget: int, tree: Tree, frames: int, shared: int, step: int = 1) -> tuple[int, int]:
    """Computes (splits, cells) of one sample over `frames` trees, each used `shared` times (IAP,
    Eq. 1).

    Raises:
        ValueError: a budget below what the domain needs, or levels with different ratios.
    """
    leaves, forced, possible = (frames * count for count in tree.counts())
    children = {product(ratio) for ratio in tree.ratios}
    if budget < leaves * shared:
        raise OutOfReachError(
            f"budget {budget} is below the {leaves * shared} cells that {frames * shared} frame(s) "
            f"of {tree.shape} need with cells of at most {tree.sizes[0]}"
        )
    budget //= shared
    if not children:
        return 0, leaves
    if len(children) > 1:
        raise ValueError(f"a budget needs one ratio between all levels, got sizes {tree.sizes}")
    gain = children.pop() - 1
    most = possible - forced
    if tree.overhangs and step == 1:  # others split in place of those with children beyond
        most = min(most, -((leaves - frames * tree.inside[-1]) // gain))
    splits = min(step * ((budget - leaves) // (step * gain)), most)
    return forced + splits, leaves + splits * gain


def _warn_above_finest(budgets: Lengths, tree: Tree, frames: int) -> None:
    finest = frames * tree.inside[-1]
    if tree.n_levels == 1 or torch.compiler.is_compiling():
        return
    for budget in distinct(budgets):
        if budget > finest:
            warnings.warn(
                f"budget {budget} is above the {finest} finest cells; every cell is the finest",
                stacklevel=3,
            )
