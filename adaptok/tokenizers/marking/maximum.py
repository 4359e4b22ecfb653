"""Refinement of nodes that score close to the maximum."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.registry import MARKINGS
from adaptok.tokenizers.marking.base import Marks, finite
from adaptok.tree import Tree
from adaptok.utils.arguments import PositiveShare, check_value, checked


@MARKINGS.register("maximum")
class MaximumMarking:
    """Splits a node iff ``score > gamma * max``, strictly (MATEY's `gammaref`; the maximum
    strategy of adaptive finite elements).

    The maximum is that of the sample's coarsest nodes over all its frames, and the same threshold
    holds on every level. A constant field, and any field at gamma 1, thus stays coarse. The number
    of cells depends on the values: one host synchronisation per call.

    Args:
        gamma: in (0, 1]; also per call.
    """

    controls = ("gamma",)

    @checked
    def __init__(self, *, gamma: PositiveShare = 0.2):
        self.gamma = gamma

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        gamma: PositiveShare | None = None,
    ) -> Marks:
        """Marks the nodes above the threshold, and those that cross the border."""
        if gamma is None:
            gamma = self.gamma
        elif not torch.compiler.is_compiling():
            check_value(gamma, PositiveShare, "gamma")
        if tree.inner == 0:
            return Marks(torch.zeros_like(scores, dtype=torch.bool), None)
        nodes, scores = tree.nodes(scores.device), finite(scores)
        coarsest = tree.per_level(scores.masked_fill(nodes.outside, -torch.inf))[0]
        highest = coarsest.amax((1, 2), keepdim=True)
        return Marks((scores > gamma * highest) | nodes.forced, None)
