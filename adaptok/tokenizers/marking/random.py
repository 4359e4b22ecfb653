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
from adaptok.utils.constants import cached_constant, drawn


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
        chosen = int(self.seed if seed is None else seed)
        draws = _draws(chosen, scores.shape[1], scores.shape[2], scores.device)
        return self._marking(draws.expand_as(scores), tree, shared=shared, budget=budget)


@cached_constant(16)  # graphs know no generators
def _draws(seed: int, frames: int, nodes: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return drawn(lambda: torch.rand(frames, nodes, generator=generator), device)
