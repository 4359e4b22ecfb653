"""Refinement of nodes that score close to the maximum."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.registry import MARKINGS
from adaptok.tokenizers.marking.base import Marks, finite
from adaptok.tree import Tree


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

    def __init__(self, *, gamma: float = 0.2):
        self.gamma = _valid(gamma)

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        gamma: float | None = None,
    ) -> Marks:
        """Marks the nodes above the threshold, and those that cross the border."""
        gamma = self.gamma if gamma is None else _valid(gamma)
        if tree.inner == 0:
            return Marks(torch.zeros_like(scores, dtype=torch.bool), None)
        nodes, scores = tree.nodes(scores.device), finite(scores)
        coarsest = tree.per_level(scores.masked_fill(nodes.outside, -torch.inf))[0]
        highest = coarsest.amax((1, 2), keepdim=True)
        return Marks((scores > gamma * highest) | nodes.forced, None)


def _valid(gamma: float) -> float:
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma}")
    return gamma
