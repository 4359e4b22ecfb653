"""Random refinement, the control experiment."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.registry import MARKINGS
from adaptok.tokenizers.marking.base import Budget, Marks
from adaptok.tokenizers.marking.budget import BudgetMarking
from adaptok.tree import Tree
from adaptok.utils.arguments import Positive, Seed, checked


@MARKINGS.register("random")
class RandomMarking:
    """Random refinement to a budget: the control experiment of any indicator.

    The tiling depends on the seed alone, so a batch equals its samples one by one.

    Args:
        budget: cells per sample over all frames; per call also one number per sample.
        seed: may change per call.
    """

    controls = ("budget", "seed")
    static = True

    @checked
    def __init__(self, *, budget: Positive = 256, seed: Seed = 0):
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
        seed: Seed | None = None,
    ) -> Marks:
        """Refines by random scores; the given ones only lend their shape."""
        generator = torch.Generator().manual_seed(int(self.seed if seed is None else seed))
        draws = torch.rand(scores.shape[1:], generator=generator).to(scores.device)
        return self._marking(draws.expand_as(scores), tree, shared=shared, budget=budget)
