"""Refinement by one threshold per level, the rule of APT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.cells import product
from adaptok.cells.lengths import column, each
from adaptok.registry import MARKINGS
from adaptok.tokenizers.marking.base import Budget, Marks, per_sample, rankable
from adaptok.tokenizers.marking.budget import BudgetMarking, plan, split_within
from adaptok.tree import Tree, existing
from adaptok.utils.arguments import Positive, accepts, checked, shown

Thresholds = float | Iterable[float]  # one for all levels, or one per level, fine to coarse


@MARKINGS.register("threshold")
class ThresholdMarking:
    """A cell stays whole iff its score is below the threshold of its level (APT, Sec. 3.1).

    Every region thus takes the coarsest cell whose own score passes, whatever its children score.
    Ties, NaN and nodes that cross the border split. Without `fill` the number of cells depends on
    the data, which costs one host synchronisation when the cells are packed.

    Args:
        thresholds: one per level that can split, those of the smallest cells first; or one number
            for all of them. Also per call.
        budget: at most this many cells per sample over all frames, or None. If the thresholds ask
            for more, the best-scored of the marked cells split first. Per call also one number
            per sample.
        fill: if the thresholds ask for fewer, split the best-scored of the other cells until the
            budget is spent, so that the number of cells is fixed, as compiling and exporting want.

    Raises:
        ValueError: `fill` without a budget.
    """

    controls = ("thresholds", "budget")

    @checked
    def __init__(
        self,
        *,
        thresholds: Thresholds = 5.5,
        budget: Positive | None = None,
        fill: bool = False,
    ):
        if fill and budget is None:
            raise ValueError("fill=True splits up to a budget: give budget=, the number of cells")
        self.thresholds, self.budget, self.fill = as_thresholds(thresholds), budget, fill

    @property
    def static(self) -> bool:
        """Whether the number of cells follows from the settings."""
        return self.fill

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        thresholds: Thresholds | None = None,
        budget: Budget | None = None,
    ) -> Marks:
        """Marks nodes that do not pass; without `fill` the host does not know how many leaves.

        Raises:
            ValueError: thresholds for another number of levels, a field smaller than the coarsest
                cell, or a budget below what the domain needs.
        """
        given = self.thresholds if thresholds is None else thresholds
        if any(n < size for n, size in zip(tree.shape, tree.sizes[0], strict=True)):
            raise ValueError(
                f"the field of {tree.shape} is smaller than the coarsest cell of {tree.sizes[0]}; "
                "use fewer levels or a smaller finest cell"
            )
        bars = level_thresholds(given, tree.n_levels - 1)[::-1]  # coarse to fine
        levels = zip(tree.per_level(scores), bars, strict=True)
        split = [~(score < bar) for score, bar in levels]  # so that NaN splits
        marked = torch.cat(split, -1) if split else torch.zeros_like(scores, dtype=torch.bool)
        marked = marked | tree.nodes(scores.device).forced
        budget = self.budget if budget is None else budget
        hints: dict[str, Any] = {"monotone": monotone, "shared": shared}
        if budget is not None:
            marked = capped(marked, scores, tree, budget, **hints)
        if not self.fill:
            return Marks(marked, None)
        # What is marked goes first, and parents of it are marked too: the rest fills up.
        ahead = scores.masked_fill(marked, torch.inf)
        return BudgetMarking()(ahead, tree, budget=budget, **hints)


def as_thresholds(thresholds: Thresholds) -> float | tuple[float, ...]:
    """Returns one number, or one per level; raises ``ValueError`` for anything else and NaN."""
    listed = isinstance(thresholds, Iterable) and getattr(thresholds, "ndim", 1) > 0
    values: list[Any] = list(thresholds) if listed else [thresholds]  # type: ignore[arg-type]
    if isinstance(thresholds, (str, bytes, Mapping)) or not all(accepts(float, v) for v in values):
        raise ValueError(f"thresholds are numbers, one or one per level, got {shown(thresholds)}")
    numbers = tuple(map(float, values))
    return numbers if listed else numbers[0]


def level_thresholds(thresholds: Thresholds, n_levels: int) -> tuple[float, ...]:
    """Returns a threshold for each of the levels that can split, fine to coarse.

    Raises:
        ValueError: another number of thresholds, or something other than numbers.
    """
    given = as_thresholds(thresholds)
    if not isinstance(given, tuple):
        return (given,) * n_levels
    if len(given) != n_levels:
        raise ValueError(
            f"{n_levels + 1} cell sizes need {n_levels} threshold(s), smallest merged cells first, "
            f"got {len(given)}: {given}"
        )
    return given


def capped(
    marked: Bool[Tensor, "b f inner"],
    scores: Float[Tensor, "b f inner"],
    tree: Tree,
    budget: Budget,
    *,
    monotone: bool,
    shared: int,
) -> Bool[Tensor, "b f inner"]:
    """Selects the best-first splits of the threshold tree that a budget pays for."""
    budgets = per_sample(budget, scores.shape[0])
    counts = each(budgets, lambda value: plan(value, tree, scores.shape[1], shared)[0])
    if tree.n_levels == 1:
        return marked  # nothing splits, and the budget is enough
    reached = marked & existing(marked, tree)[..., : tree.inner]  # all ancestors are marked too
    # Best-first order among the marked nodes alone: no split is spent on what would not split.
    order = rankable(scores, tree).masked_fill(~reached, -torch.inf)
    best = reached & split_within(order, tree, counts, monotone=monotone)
    if not tree.overhangs:
        return best
    # A plan does not know what splits at the border cost: where the budget pays for all, it is not
    # asked.
    nodes = tree.nodes(scores.device)
    gain = (product(tree.ratios[0]) - 1 - nodes.beyond) * ~nodes.outside
    cells = scores.shape[1] * tree.counts().leaves + (reached * gain).flatten(1).sum(1, True)
    enough = cells * shared <= column(budgets, scores.device)
    return torch.where(enough[..., None], reached, best)
