"""Refinement until the cells hold the field to a tolerance."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.registry import MARKINGS
from adaptok.tokenizers.marking.base import Budget, Marks, rankable
from adaptok.tokenizers.marking.best_first import bottlenecks
from adaptok.tokenizers.marking.budget import BudgetMarking
from adaptok.tokenizers.marking.threshold import capped
from adaptok.tree import Tree
from adaptok.utils.arguments import Positive, PositiveShare, check_value, checked
from adaptok.utils.reading import reads_are_free

TOLERANCE = 0.05  # if nothing else says when to stop
ROUNDING = 64  # units of rounding by which errors may be off


@MARKINGS.register("tolerance")
class ToleranceMarking:
    """Splits nodes by falling score until ``||f - Pf|| <= tolerance ||f - mean f||`` in each sample
    (with a tiling per frame, in each frame), with P as in `TreeTokenizer.certificate`.

    With the indicator `near_best` these are about as few cells as any tree of them needs. Where
    the finest cells do not meet the tolerance, all that holds an error splits and a warning says
    so. Nodes whose field does not vary stay whole. The number of cells depends on the values: one
    host synchronisation per call.

    Args:
        tolerance: relative error, also per call. None: 0.05, or with a budget none: then the cells
            are as many as the budget says.
        budget: at most this many cells per sample over all frames, or None; per call also one
            number per sample.
    """

    controls = ("tolerance", "budget")
    needs_errors = True

    @checked
    def __init__(self, *, tolerance: PositiveShare | None = None, budget: Positive | None = None):
        self.tolerance, self.budget = tolerance, budget

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        errors: Float[Tensor, "b f nodes"] | None = None,
        tolerance: PositiveShare | None = None,
        budget: Budget | None = None,
    ) -> Marks:
        """Marks the nodes to split.

        Raises:
            ValueError: no errors, or a budget below what the domain needs.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        budget = self.budget if budget is None else budget
        if tolerance is None and budget is not None:
            exact = BudgetMarking()
            return exact(scores, tree, monotone=monotone, shared=shared, budget=budget)
        if errors is None:
            raise ValueError(
                "marking 'tolerance' needs the errors of the nodes, which tree tokenizers give"
            )
        tolerance = TOLERANCE if tolerance is None else tolerance
        if not torch.compiler.is_compiling():
            check_value(tolerance, PositiveShare, "tolerance")
        split = split_to_error(scores, errors, tree, tolerance**2, monotone=monotone)
        _warn_unmet(errors, tree, tolerance)
        if budget is not None:
            split = capped(split, scores, tree, budget, monotone=monotone, shared=shared)
        return Marks(split, None)


def split_to_error(
    scores: Float[Tensor, "b f inner"],
    errors: Float[Tensor, "b f nodes"],
    tree: Tree,
    bar: float,
    *,
    monotone: bool = False,
) -> Bool[Tensor, "b f inner"]:
    """Splits nodes by falling score, as few as bring the error of each tree down to `bar`.

    Scores that are not monotone count as the lowest one on the path to the node.

    Args:
        errors: of all nodes; those of children add up to at most that of their parent.
    """
    order = rankable(scores, tree)
    if not monotone:
        order = bottlenecks(order, torch.ones_like(order, dtype=torch.bool), tree)
    order = order.sort(dim=-1, descending=True, stable=True).indices  # ties: coarse first
    levels = tree.per_level(errors.double())
    gains = [
        (own - tree.sum_children(levels[level + 1], level)).clamp(min=0)
        for level, own in enumerate(levels[:-1])
    ]
    gain = torch.cat([levels[-1][..., :0], *gains], -1).gather(-1, order)
    # The error before a node splits: that of the finest cells, and what it and all later ones gain.
    # Added up from the small end, so that nothing cancels.
    before = levels[-1].sum(-1, keepdim=True) + gain.flip(-1).cumsum(-1).flip(-1)
    above = before > _room(bar, errors)
    above = torch.zeros_like(above).scatter(-1, order, above)
    nodes = tree.nodes(scores.device)
    return (above & (errors[..., : tree.inner] > 0) & ~nodes.outside) | nodes.forced


def _room(bar: float, errors: Tensor) -> float:
    return bar * (1 - ROUNDING * torch.finfo(errors.dtype).eps)


def _warn_unmet(errors: Float[Tensor, "b f nodes"], tree: Tree, tolerance: float) -> None:
    """Warns where reading is free; the text does not vary, so that Python shows it once."""
    if not reads_are_free(errors):
        return
    finest = tree.per_level(errors.double())[-1].sum(-1)
    if bool((finest > _room(tolerance**2, errors)).any()):
        warnings.warn(
            f"cells of {tree.sizes[-1]} do not meet the tolerance {tolerance} in some samples: "
            "tokenizer.certificate(field) says what they reach, finer cells (min_size) reach more",
            stacklevel=3,
        )
